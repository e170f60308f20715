package diskio

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSweepScratch: what is old and nobody's goes, and nothing else.
func TestSweepScratch(t *testing.T) {
	dir := t.TempDir()
	if removed, err := SweepScratch(filepath.Join(dir, "none"), 0); removed != nil || err != nil {
		t.Errorf("SweepScratch(no folder) = %v, %v; want nothing", removed, err)
	}
	make := func(what string) *Scratch {
		t.Helper()
		s, err := NewScratch(dir, what)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Mkdir(filepath.Join(s.Dir, "root"), 0o755), os.WriteFile(filepath.Join(s.Dir, "root", "x"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		return s
	}
	used, left, young, ended := make("used"), make("left"), make("young"), make("ended")
	begun := make("begun")
	// A process that was started in one may outlive who made it.
	cat := exec.Command("cat")
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	inherited := make("inherited")
	cat.ExtraFiles = []*os.File{inherited.Lock}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(begun.Lock.Name()); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Scratch{left, young, inherited, begun} { // as when they are killed
		s.Lock.Close()
	}
	if err := ended.Remove(); err != nil {
		t.Error(err)
	}
	other := filepath.Join(dir, "trees")
	link, file := filepath.Join(dir, scratchPrefix+"link"), filepath.Join(dir, scratchPrefix+"file")
	if err := errors.Join(os.Mkdir(other, 0o755), os.Symlink(other, link), os.WriteFile(file, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * ScratchAge)
	for _, name := range []string{used.Dir, left.Dir, inherited.Dir, begun.Dir, other, file} {
		if err := os.Chtimes(name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := SweepScratch(dir, ScratchAge)
	if want := []string{filepath.Base(begun.Dir), filepath.Base(left.Dir)}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("SweepScratch = %v, %v; want %v", removed, err, want)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 6 {
		t.Errorf("left are %v, %v; want used, inherited, young, trees, the link and the file", entries, err)
	}
	in.Close()
	if err := cat.Wait(); err != nil {
		t.Error(err)
	}
	removed, err = SweepScratch(dir, ScratchAge)
	if err != nil || len(removed) != 1 || !strings.Contains(removed[0], "inherited") {
		t.Errorf("when its last process ended, SweepScratch = %v, %v; want inherited", removed, err)
	}
}
