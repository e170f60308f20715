package dsas

import (
	"fmt"
	"strconv"
	"strings"
)

// ParseSize reads what role definitions say of memory, "512MiB" or "2GiB", into
// bytes.
func ParseSize(s string) (int64, error) {
	for _, unit := range []struct {
		name  string
		bytes int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}} {
		if digits, ok := strings.CutSuffix(s, unit.name); ok {
			if v, err := strconv.ParseInt(digits, 10, 32); err == nil && v > 0 {
				return v * unit.bytes, nil
			}
		}
	}
	return 0, fmt.Errorf("%q: write it as 512MiB or 2GiB: %w", s, ErrInvalid)
}
