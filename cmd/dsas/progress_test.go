package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/roles"
)

func TestProgressPlain(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.line("fetching lists")
	p.fraction(1, 2)
	p.line("installing \x1b[31mred")
	p.close()
	if want := "fetching lists\ninstalling \uFFFD[31mred\n"; out.String() != want {
		t.Errorf("plain progress = %q; want %q", out.String(), want)
	}
}

func TestProgressBars(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := &progress{w: &out, width: func() int { return 50 }, now: func() time.Time { return now }, stop: make(chan struct{}), stopped: make(chan struct{})}
	close(p.stopped)
	frame := func() string {
		out.Reset()
		p.draw()
		return out.String()
	}
	p.line("downloading")
	p.fraction(400, 1000)
	now = now.Add(3 * time.Second)
	if got, want := frame(), "\r\x1b[Kdownloading  [========            ]  40 %  3 s"; got != want {
		t.Errorf("bar = %q; want %q", got, want)
	}
	p.line("a step whose name is longer than the terminal is wide")
	p.fraction(3<<20, 0)
	if got := frame(); !strings.Contains(got, "3.0 MiB") || len(got) > 50+len("\r\x1b[K") || strings.Contains(got, "\n") {
		t.Errorf("bar = %q; want one line of less than 50 columns with 3.0 MiB", got)
	}
	out.Reset()
	now = now.Add(9 * time.Second)
	p.close()
	if got, want := out.String(), "\r\x1b[Ka step whose name is longer than the terminal is wide  9 s\n"; got != want {
		t.Errorf("last line = %q; want %q", got, want)
	}
}

func TestBar(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		want        string
	}{{0, 10, "[          ]   0 %"}, {10, 10, "[==========] 100 %"}, {11, 10, "[==========] 100 %"}, {-1, 10, "[          ]   0 %"}} {
		if got := bar(10, c.done, c.total, 0); got != c.want {
			t.Errorf("bar(%d of %d) = %q; want %q", c.done, c.total, got, c.want)
		}
	}
	for i := range 40 { // the walking block never leaves its frame
		if got := bar(10, 0, 0, time.Duration(i)*redraw); len(got) != 12 || strings.Count(got, "=") != 4 {
			t.Errorf("bar at step %d = %q; want a block of 4 within 10", i, got)
		}
	}
}

func TestParseAllow(t *testing.T) {
	got, err := parseAllow([]string{"files/etc/a=why = so", "/etc/b = x"})
	want := []dsas.Allow{{Path: "files/etc/a", Reason: "why = so"}, {Path: "/etc/b", Reason: "x"}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("parseAllow = %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"files/a", "files/a=", "files/a= ", "=x"} {
		if _, err := parseAllow([]string{bad}); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("parseAllow(%q) = %v; want ErrInvalid", bad, err)
		}
	}
}

// A lock goes with a user's own definition, and is no part of it.
func TestLockOf(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"role.yaml": "name: mine\ndescription: x\nallow: [{path: files/x, reason: a sample}]\n", roles.LockFile: "nginx 1\n"} {
		if err := os.WriteFile(filepath.Join(dir, "mine", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	set, err := roles.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	own, err := set.Get("mine")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := lockOf(own), filepath.Join(dir, "mine", "role.lock"); got != want {
		t.Errorf("lockOf(mine) = %s; want %s", got, want)
	}
	if entries, err := fs.ReadDir(own.FS, "."); err != nil || slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == roles.LockFile }) {
		t.Errorf("the definition has %v, %v; want no lock among it", entries, err)
	}
	before := own.Digest
	if err := os.WriteFile(filepath.Join(dir, "mine", roles.LockFile), []byte("nginx 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if set, err = roles.Load(dir); err != nil {
		t.Fatal(err)
	}
	if own, err = set.Get("mine"); err != nil || own.Digest != before {
		t.Errorf("digest with another lock = %s, %v; want %s", own.Digest, err, before)
	}
	shipped, err := set.Get("web")
	if err != nil || lockOf(shipped) != "" {
		t.Errorf("lockOf(web) = %s, %v; want none of its own", lockOf(shipped), err)
	}
	if len(own.Role.Allow) != 1 || own.Role.Allow[0].Reason != "a sample" {
		t.Errorf("allow = %v; want what role.yaml says", own.Role.Allow)
	}
}
