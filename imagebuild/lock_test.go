package imagebuild

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
)

func TestLockFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "locks", "web.lock")
	if l, err := readLock(name); l != nil || err != nil {
		t.Errorf("readLock(nothing) = %v, %v; want none", l, err)
	}
	want := lock{"nginx": "1.22.1-9+deb12u3", "libc++1": "1:14.0-16", "a": "2~rc1"}
	delete(want, "a") // a name has two letters at least
	if err := writeLock(name, "role web", want); err != nil {
		t.Fatal(err)
	}
	got, err := readLock(name)
	if err != nil || len(changes(want, got)) > 0 || len(got) != len(want) {
		t.Errorf("readLock = %v, %v; want %v", got, err, want)
	}
	before, _ := os.Stat(name)
	if err := writeLock(name, "role web", want); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(name); !os.SameFile(before, after) {
		t.Error("an unchanged lock was written anew")
	}
	// No lock and an empty one are not the same: the second has no packages.
	if err := writeLock(name, "role web", lock{}); err != nil {
		t.Fatal(err)
	}
	if got, err := readLock(name); got == nil || err != nil {
		t.Errorf("readLock(empty) = %v, %v; want an empty lock", got, err)
	}
	for _, bad := range []string{"nginx\n", "nginx 1 2\n", "nginx 1\nnginx 2\n", "nginx=1\n", "Nginx 1\n", "nginx 1\n\nPackage: *\n"} {
		if err := os.WriteFile(name, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readLock(name); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "--refresh") {
			t.Errorf("readLock(%q) = %v; want ErrInvalid with the way out", bad, err)
		}
	}
}

func TestChanges(t *testing.T) {
	var got []string
	for _, c := range changes(lock{"aa": "1", "bb": "1", "cc": "1"}, lock{"aa": "1", "bb": "2", "dd": "1"}) {
		got = append(got, c.String())
	}
	if want := "bb 1 -> 2|dd 1 (new)|cc 1 (gone)"; strings.Join(got, "|") != want {
		t.Errorf("changes = %q; want %s", got, want)
	}
	if got := changes(nil, lock{"aa": "1"}); got != nil {
		t.Errorf("changes of a first build = %v; want none", got)
	}
}

func TestMissed(t *testing.T) {
	l := lock{"openssl": "3.0.1", "same": "1", "unneeded": "1"}
	err := l.missed(lock{"openssl": "3.0.2", "same": "1", "more": "1"}, "/x/web.lock")
	if !errors.Is(err, dsas.ErrNotFound) {
		t.Fatalf("missed = %v; want ErrNotFound", err)
	}
	for _, want := range []string{"/x/web.lock", "openssl 3.0.1 (there is 3.0.2)", "--refresh"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missed = %v; want %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "same") || l.missed(lock{"openssl": "3.0.1"}, "") != nil || lock(nil).missed(l, "") != nil {
		t.Error("missed tells of what did not change")
	}
}

func TestAptStatus(t *testing.T) {
	var got []int64
	aptStatus(strings.NewReader("dlstatus:1:12.5:Retrieving\nnonsense\npmstatus:libc6:amd64:40.0000:Unpacking\nmedia-change:x\npmstatus:dash:100.0:Done\n"), func(done, total int64) {
		if total != 1000 {
			t.Errorf("total = %d; want 1000", total)
		}
		got = append(got, done)
	})
	if len(got) != 3 || got[0] != 125 || got[1] != 400 || got[2] != 1000 {
		t.Errorf("aptStatus = %v; want 125, 400, 1000", got)
	}
}
