package main

import (
	"fmt"
	"os"
	"runtime/pprof"
)

// startProfile writes a processor profile to the file that DSAS_CPUPROFILE
// names, until stop is called: for `make bench-net` and whoever looks for what
// takes the time.
func startProfile() (stop func(), err error) {
	name := os.Getenv("DSAS_CPUPROFILE")
	if name == "" {
		return func() {}, nil
	}
	f, err := os.Create(name)
	if err != nil {
		return nil, fmt.Errorf("processor profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("processor profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
