package rootfs

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// MemoryError: the node has too little memory for its role.
type MemoryError struct {
	Need, Available int64 // bytes
}

func (e *MemoryError) Error() string {
	return fmt.Sprintf("not enough memory: the role's root and programs need %d MiB, %d MiB are available: give the node more memory or another role",
		(e.Need+1<<20-1)>>20, e.Available>>20)
}

// CheckMemory compares need (see Need) with MemAvailable of the file meminfo (""
// is /proc/meminfo, proc(5)). It gives a *MemoryError where that is less.
func CheckMemory(need int64, meminfo string) error {
	if meminfo == "" {
		meminfo = "/proc/meminfo"
	}
	f, err := os.Open(meminfo)
	if err != nil {
		return fmt.Errorf("check memory: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		if err != nil {
			return fmt.Errorf("check memory: %q: %w", lines.Text(), err)
		}
		if available := kib << 10; available < need {
			return &MemoryError{Need: need, Available: available}
		}
		return nil
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("check memory: %w", err)
	}
	return fmt.Errorf("check memory: no MemAvailable in %s: is it the kernel's?", meminfo)
}
