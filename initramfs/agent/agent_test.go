package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dsas"
)

func TestWriteFileStaysBelowRoot(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	for link, to := range map[string]string{"etc": outside, "up": "../.."} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/etc/passwd", "up/x", "/up/tmp/x"} {
		if err := writeFile(root, path, []byte("x"), 0o644); err == nil {
			t.Errorf("writeFile(%q) through a link out of the root = nil; want an error", path)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("outside the root there is %v; want nothing", left)
	}
	// A path that climbs is taken below the root, as the shell would in a chroot.
	if err := writeFile(root, "/../../srv/a", []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(root, "srv/a")
	if got, err := os.ReadFile(p); err != nil || string(got) != "one" {
		t.Errorf("content = %q, %v; want one", got, err)
	}
	if st, err := os.Stat(p); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v; want 0600", st.Mode(), err)
	}
	if err := writeFile(root, "/srv/a", []byte("two"), 0o644); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(root, "srv/*")); len(left) != 1 {
		t.Errorf("the folder holds %v; want the file alone", left)
	}
}

func TestWriteFilesGivesOwnersByTheRootsOwnNames(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing owners needs root")
	}
	root := t.TempDir()
	for name, text := range map[string]string{"etc/passwd": "root:x:0:0::/root:/bin/sh\nmysql:x:4711:4712::/nonexistent:/bin/false\n", "etc/group": "root:x:0:\nmysql:x:4713:\n"} {
		if err := writeFile(root, name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeFiles(root, []dsas.File{{Path: "/etc/my.cnf", Mode: 0o640, Owner: "mysql:mysql", Content: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(root, "etc/my.cnf"))
	if err != nil {
		t.Fatal(err)
	}
	if uid, gid := ids(st); uid != 4711 || gid != 4713 || st.Mode().Perm() != 0o640 {
		t.Errorf("owner %d:%d, mode %v; want 4711:4713, 0640", uid, gid, st.Mode())
	}
	err = writeFiles(root, []dsas.File{{Path: "/x", Mode: 0o644, Owner: "nobody-here"}})
	if !errors.Is(err, dsas.ErrNotFound) || !strings.Contains(err.Error(), "nobody-here") {
		t.Errorf("unknown owner: %v; want ErrNotFound that names it", err)
	}
}

func TestSetRootPassword(t *testing.T) {
	p := filepath.Join(t.TempDir(), "shadow")
	const before = "root:*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n"
	if err := os.WriteFile(p, []byte(before), 0o640); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "plain", "$6$a:0:0", "$6$x\ny"} {
		if err := setRootPassword(p, bad); !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("setRootPassword(%q) = %v; want ErrInvalid", bad, err)
		}
	}
	if got, _ := os.ReadFile(p); string(got) != before {
		t.Errorf("after refusals shadow is %q; want it as it was", got)
	}
	if err := setRootPassword(p, "$6$salt$hash"); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(before, "root:*", "root:$6$salt$hash", 1)
	if got, _ := os.ReadFile(p); string(got) != want {
		t.Errorf("shadow = %q; want %q", got, want)
	}
}

func TestWatchdogIsFedOnlyWhileAlive(t *testing.T) {
	w := NewWatchdog(time.Hour)
	if !w.Live() {
		t.Error("a new watchdog is not alive; want alive")
	}
	w.start = w.start.Add(-2 * time.Hour) // two hours without a sign
	if w.Live() {
		t.Error("after two silent hours it is alive; want not")
	}
	w.Alive()
	if !w.Live() {
		t.Error("after a sign of life it is not alive; want alive")
	}
}

func TestConsoleKeepsTheEndAndNothingUnprintable(t *testing.T) {
	c := &Console{start: time.Now(), out: devNull(t)}
	for range consoleTail {
		c.Say("old")
	}
	c.Say("a\x1b[2Jb\nc")
	got := strings.Split(c.Tail(), "\n")
	if len(got) != consoleTail {
		t.Errorf("Tail() has %d lines; want %d", len(got), consoleTail)
	}
	if last := got[len(got)-1]; !strings.HasSuffix(last, " a?[2Jb c") {
		t.Errorf("last line = %q; want the escape taken out", last)
	}
}

func TestStateSurvivesTheExec(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	s := state{Config: dsas.NodeConfig{Node: "w101", SessionKey: []byte{1, 2, 3}}, Bond: "bond0", Env: []string{"A=b c"}, Outbox: []byte(`{"events":null}`)}
	if err := s.save(path); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("state file: %v, %v; want mode 0600, it holds the session key", st.Mode(), err)
	}
	got, err := loadState(path)
	if err != nil || got.Config.Node != "w101" || string(got.Config.SessionKey) != "\x01\x02\x03" || got.Bond != "bond0" || got.Env[0] != "A=b c" {
		t.Errorf("loadState() = %+v, %v; want what was saved", got, err)
	}
}
