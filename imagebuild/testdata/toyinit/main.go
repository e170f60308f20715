// Toyinit is the /init of the boot test: it says what the kernel unpacked and
// switches the machine off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"dsas/initramfs/modindex"
)

func main() {
	defer syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	if err := syscall.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		fmt.Println("toy: /dev:", err)
	}
	ix, err := modindex.ReadFile("/etc/" + modindex.File)
	if err != nil {
		fmt.Println("toy: index:", err)
		return
	}
	files := 0
	for _, m := range ix.Modules {
		if _, err := os.Stat("/lib/modules/" + ix.Release + "/" + m.Path); err == nil {
			files++
		}
	}
	fmt.Printf("toy: modules %d of %d\n", files, len(ix.Modules))
	out, err := exec.Command("/bin/sh", "-c", "echo shell $((40+2)); /bbin/uname -r").CombinedOutput()
	fmt.Printf("toy: %s %v\n", strings.ReplaceAll(string(out), "\n", " "), err)
	// virtio_net with all it needs, by the node's own alias.
	order, err := ix.Closure("virtio:d00000001v00001AF4")
	for _, n := range order {
		b, rerr := os.ReadFile("/lib/modules/" + ix.Release + "/" + ix.Modules[n].Path)
		if rerr == nil {
			p := []byte{0} // no parameters
			_, _, e := syscall.Syscall(syscall.SYS_INIT_MODULE, ptr(b), uintptr(len(b)), ptr(p))
			if e != 0 {
				rerr = e
			}
		}
		if rerr != nil {
			err = fmt.Errorf("%s: %w", n, rerr)
			break
		}
	}
	if _, ferr := os.Stat("/lib/firmware/toy.bin"); ferr == nil {
		fmt.Println("toy: firmware there")
	}
	fmt.Printf("toy: loaded %v %v\ntoy: end\n", order, err)
}
