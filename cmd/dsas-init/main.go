// Command dsas-init is a node's init: PID 1 from the kernel's start on.
package main

import (
	"context"
	"fmt"
	"os"

	"dsas/initramfs/agent"
)

func main() {
	if err := agent.Main(context.Background(), os.Args, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "dsas-init:", err)
		os.Exit(1)
	}
}
