package uevent

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

// TestNext has the kernel tell of /dev/null once more.
func TestNext(t *testing.T) {
	const file = "/sys/devices/virtual/mem/null/uevent"
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	defer f.Close()
	c, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	second, err := Listen()
	if err != nil {
		t.Fatalf("Listen a second time: %v", err)
	}
	second.Close()
	if _, err := f.WriteString("change"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		e, err := c.Next(ctx)
		if err != nil {
			t.Fatalf("Next: %v", err)
		}
		if e.DevPath != "/devices/virtual/mem/null" {
			continue // something else on this machine
		}
		if e.Action != "change" || e.Env["SUBSYSTEM"] != "mem" || e.Env["DEVNAME"] != "null" {
			t.Errorf("Next = %+v; want the change of null in mem", e)
		}
		break
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	for {
		if _, err := c.Next(ended); err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Next after cancel: %v; want context.Canceled", err)
			}
			break
		}
	}
	if _, err := f.WriteString("change"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(ctx); err != nil {
		t.Errorf("Next after a cancelled one: %v; want an event", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("add@/devices/x\x00ACTION=add\x00MODALIAS=pci:v1\x00"))
	f.Add([]byte("libudev\x00"))
	f.Add([]byte("@/\x00=\x00\x00"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if e, ok := Parse(msg); ok && (e.Action == "" || e.DevPath == "") {
			t.Errorf("Parse(%q) = %+v; want action and path", msg, e)
		}
	})
}
