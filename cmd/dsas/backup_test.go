package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"dsas"
	"dsas/server/backup"
	"dsas/server/blobs"
	"dsas/server/store"
)

// TestMain lets the tests start this program as a dsas that is killed at a
// given step.
func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	if args := os.Getenv("DSAS_TEST_RUN"); args != "" {
		left, _ := strconv.Atoi(os.Getenv("DSAS_TEST_KILL"))
		restoreStep = func(string) {
			if left--; left == 0 {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		os.Exit(report(run(context.Background(), strings.Split(args, "\n"), os.Stdin, os.Stdout, os.Stderr), os.Stderr))
	}
	os.Exit(m.Run())
}

// opsBox is a server's folders.
type opsBox struct {
	t                  *testing.T
	state, etc, config string
}

// newServedBox is one whose server was configured.
func newServedBox(t *testing.T) opsBox {
	t.Helper()
	b := newOpsBox(t)
	b.write("etc/dsas.yaml", "interfaces: [eth7]\n")
	return b
}

func newOpsBox(t *testing.T) opsBox {
	t.Helper()
	dir := t.TempDir()
	b := opsBox{t: t, state: filepath.Join(dir, "state"), etc: filepath.Join(dir, "etc")}
	b.config = filepath.Join(b.etc, "dsas.yaml")
	for _, d := range []string{b.state, filepath.Join(b.etc, "roles")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// args gives a command line for this box.
func (b opsBox) args(words ...string) []string {
	return append(words[:1:1], append([]string{"--config", b.config, "--state", b.state, "--roles-dir", filepath.Join(b.etc, "roles"), "--keys-dir", filepath.Join(b.etc, "keys")}, words[1:]...)...)
}

func (b opsBox) run(words ...string) (string, error) {
	var out, errs bytes.Buffer
	err := run(b.t.Context(), b.args(words...), strings.NewReader(""), &out, &errs)
	return out.String(), err
}

func (b opsBox) must(words ...string) string {
	b.t.Helper()
	out, err := b.run(words...)
	if err != nil {
		b.t.Fatalf("dsas %q: %v", words, err)
	}
	return out
}

func (b opsBox) store() *store.Store {
	b.t.Helper()
	s, err := store.Open(b.t.Context(), filepath.Join(b.state, "dsas.db"), filepath.Join(b.state, "key"), slog.New(slog.DiscardHandler))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.Close() })
	return s
}

func (b opsBox) write(name, content string) {
	b.t.Helper()
	p := filepath.Join(filepath.Dir(b.state), name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// nodes gives the names in the state, "" where it cannot be opened.
func (b opsBox) nodes() []string {
	b.t.Helper()
	s := b.store()
	defer s.Close()
	return nodeNames(b.t, s)
}

func nodeNames(t *testing.T, s *store.Store) (names []string) {
	t.Helper()
	list, err := s.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		names = append(names, v.Name)
	}
	return names
}

func addNode(t *testing.T, s *store.Store, n int) error {
	_, err := s.CreateNode(t.Context(), dsas.Node{Name: fmt.Sprintf("w%03d", n), NICs: []dsas.NIC{{MAC: dsas.MAC{2, 0, 0, 0, byte(n >> 8), byte(n)}}},
		BMC: &dsas.BMC{Kind: "ipmi", Address: "192.0.2.1", Password: "hidden-words"}})
	return err
}

func TestBackupRestore(t *testing.T) {
	from := newServedBox(t)
	from.write("etc/roles/mine/role.yaml", "name: mine\n")
	from.write("etc/roles/mine/files/etc/real", "text")
	if err := os.Symlink("real", filepath.Join(from.etc, "roles/mine/files/etc/link")); err != nil {
		t.Fatal(err)
	}
	from.write("state/tls.crt", "certificate")
	from.write("state/tls.key", "its key")
	from.write("state/locks/kernel.lock", "linux-image-6.1.0-8-amd64 6.1.8-1\n")
	images, err := blobs.Open(filepath.Join(from.state, "images"))
	if err != nil {
		t.Fatal(err)
	}
	built := addRelease(t, images, "web", "a part")
	s := from.store() // a server has it open all the while
	if err := addNode(t, s, 1); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		name           string
		flags, restore []string
		images         bool
	}{
		{name: "plain"},
		{name: "images", flags: []string{"--images"}, images: true},
		{name: "passphrase", flags: []string{"--passphrase-file", writeTemp(t, "correct horse\n")}, restore: []string{"--passphrase-file", writeTemp(t, "correct horse\n")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "b")
			from := from
			from.t = t
			if out := from.must(append(append([]string{"backup"}, c.flags...), file)...); len(c.restore) == 0 && !strings.Contains(out, "the key to every secret") {
				t.Errorf("dsas backup said %q; want a warning about the key", out)
			}
			if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("mode of the backup = %v, %v; want 0600", st.Mode(), err)
			}
			if left, _ := os.ReadDir(filepath.Dir(file)); len(left) != 1 {
				t.Errorf("beside the backup there is %v; want nothing", left)
			}

			if out := from.must(append(append([]string{"restore", "--dry-run"}, c.restore...), file)...); strings.Contains(out, "dsas image build") {
				t.Errorf("dsas restore --dry-run where the images are said %q; want none to build", out)
			}
			to := newOpsBox(t)
			to.must(append(append([]string{"restore", "--dry-run"}, c.restore...), file)...)
			if _, err := os.Stat(filepath.Join(to.state, "dsas.db")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a dry run restored the database: %v", err)
			}
			out := to.must(append(append([]string{"restore"}, c.restore...), file)...)
			if got, want := strings.Contains(out, "dsas image build web"), !c.images; got != want {
				t.Errorf("dsas restore said %q; want the images to build in it: %t", out, want)
			}
			restored := to.store()
			if got := nodeNames(t, restored); !slices.Equal(got, []string{"w001"}) {
				t.Errorf("restored nodes = %q; want w001", got)
			}
			if pw, err := restored.BMCPassword(t.Context(), "w001"); err != nil || pw != "hidden-words" {
				t.Errorf("restored BMC password = %q, %v; want it", pw, err)
			}
			for name, want := range map[string]string{"state/tls.key": "its key", "state/locks/kernel.lock": "linux-image-6.1.0-8-amd64 6.1.8-1\n", "etc/dsas.yaml": "interfaces: [eth7]\n", "etc/roles/mine/role.yaml": "name: mine\n"} {
				if got, err := os.ReadFile(filepath.Join(filepath.Dir(to.state), name)); err != nil || string(got) != want {
					t.Errorf("%s = %q, %v; want %q", name, got, err, want)
				}
			}
			if fi, err := os.Stat(filepath.Join(to.state, heldKernel)); err != nil || fi.Mode().Perm() != 0o644 {
				t.Errorf("mode of %s = %v, %v; want 0644", heldKernel, fi.Mode(), err)
			}
			if got, err := os.Readlink(filepath.Join(to.etc, "roles/mine/files/etc/link")); err != nil || got != "real" {
				t.Errorf("a role's link = %q, %v; want it to lead to real", got, err)
			}
			if out := to.must(append(append([]string{"restore", "--dry-run"}, c.restore...), file)...); strings.Contains(out, "link  (replaced)") {
				t.Errorf("the same again would replace the link:\n%s", out)
			}
			have, err := blobs.Open(filepath.Join(to.state, "images"))
			if err != nil {
				t.Fatal(err)
			}
			if !c.images {
				return
			}
			got, err := have.Release(built.ID)
			if err != nil {
				t.Fatalf("restored release: %v", err)
			}
			for _, p := range append(got.Boot.Parts(), got.Manifest.Parts...) {
				if !have.Has(p.Digest, p.Size) {
					t.Errorf("restored release %s lacks its %s", got.Name(), p.Title)
				}
			}
		})
	}
}

// TestBackupWhileWriting: every backup is the state at one moment, of a
// database that is written without a pause.
func TestBackupWhileWriting(t *testing.T) {
	from := newServedBox(t)
	s := from.store()
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				stopped <- n
				return
			default:
			}
			if err := addNode(t, s, n); err != nil {
				t.Error(err)
				<-stop
				stopped <- n
				return
			}
		}
	}()
	defer func() {
		close(stop)
		if <-stopped == 0 {
			t.Error("nothing was written meanwhile")
		}
	}()
	for range 5 {
		file := filepath.Join(t.TempDir(), "b")
		from.must("backup", file)
		to := newOpsBox(t)
		to.must("restore", file)
		for i, name := range to.nodes() {
			if want := fmt.Sprintf("w%03d", i); name != want {
				t.Fatalf("node %d of the backup = %s; want %s: no gap", i, name, want)
			}
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	from := newServedBox(t)
	if err := addNode(t, from.store(), 1); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b")
	from.must("backup", file)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}

	to := newOpsBox(t)
	if err := addNode(t, to.store(), 2); err != nil {
		t.Fatal(err)
	}
	refused := func(name, want string, words ...string) {
		t.Helper()
		if _, err := to.run(append([]string{"restore"}, words...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: dsas restore = %v; want an error with %q", name, err, want)
		}
		if got := to.nodes(); !slices.Equal(got, []string{"w002"}) {
			t.Errorf("%s: nodes afterwards = %q; want w002 as before", name, got)
		}
		if _, err := os.Stat(filepath.Join(to.state, backup.StageName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %s is left", name, backup.StageName)
		}
	}
	refused("without --force", "--force", file)
	unlock, err := lockState(to.state)
	if err != nil {
		t.Fatal(err)
	}
	refused("while a server runs", "systemctl stop dsas", "--force", file)
	unlock()
	for _, at := range []int{0, len(whole) / 3, len(whole) - 20} {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x40
		refused(fmt.Sprintf("byte %d turned", at), "", "--force", writeTemp(t, string(bad)))
	}
	refused("cut short", "", "--force", writeTemp(t, string(whole[:len(whole)/2])))
	refused("no backup", "no backup", "--force", writeTemp(t, "#!/bin/sh\n"))
	if _, err := from.run("backup", file+"/x"); err == nil {
		t.Error("dsas backup to an impossible place = nil; want an error")
	}

	out := to.must("restore", "--force", file)
	if got := to.nodes(); !slices.Equal(got, []string{"w001"}) {
		t.Errorf("nodes after --force = %q; want w001", got)
	}
	asides, _ := filepath.Glob(filepath.Join(to.state, "before-restore-*", "state", "dsas.db"))
	if len(asides) != 1 || !strings.Contains(out, "before-restore-") {
		t.Fatalf("kept aside: %q, said %q; want the old database", asides, out)
	}
	old := opsBox{t: t, state: filepath.Dir(asides[0])}
	if got := old.nodes(); !slices.Equal(got, []string{"w002"}) {
		t.Errorf("nodes kept aside = %q; want w002", got)
	}
}

// TestRestoreKeepsModes: who may read a file of the configuration stays as it is
// where there is one.
func TestRestoreKeepsModes(t *testing.T) {
	from, to := newServedBox(t), newServedBox(t)
	from.store().Close()
	keys := filepath.Join(to.etc, "operators")
	from.write("etc/dsas.yaml", "authorizedKeys: "+keys+"\n")
	from.write("etc/operators", goodKey+"\n")
	to.write("etc/operators", goodKey+"\n")
	if err := os.Chmod(keys, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b")
	from.must("backup", file)
	to.must("restore", "--force", file)
	if st, err := os.Stat(keys); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%s after a restore: %v, %v; want mode 0600 as before", keys, st.Mode(), err)
	}
}

// TestRestoreElsewhere: what would leave the server without its state, or stop
// half-way, is refused before anything is changed.
func TestRestoreElsewhere(t *testing.T) {
	from := newOpsBox(t)
	from.write("etc/dsas.yaml", "state: /srv/dsas-of-old\n")
	if err := addNode(t, from.store(), 1); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b")
	from.must("backup", file)
	to := newOpsBox(t)
	untouched := func(name string) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(to.state, "dsas.db")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the database was put in place: %v", name, err)
		}
		if err := noPendingRestore(to.state); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := to.run("restore", file); err == nil || !strings.Contains(err.Error(), "--state /srv/dsas-of-old") {
		t.Errorf("restore to another state folder than the configuration's = %v; want an error that names it", err)
	}
	untouched("another state folder")

	from.write("etc/dsas.yaml", "state: "+to.state+"\n")
	from.must("backup", file)
	to.write("elsewhere.yaml", "interfaces: [eth7]\n")
	if err := os.Symlink("../elsewhere.yaml", to.config); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--dry-run", "--force"} {
		if _, err := to.run("restore", flag, file); err == nil || !strings.Contains(err.Error(), to.config) {
			t.Errorf("restore %s over a link = %v; want an error that names it", flag, err)
		}
		untouched("a link, " + flag)
	}
	to.must("restore", "--no-config", file)
	if got := to.nodes(); !slices.Equal(got, []string{"w001"}) {
		t.Errorf("nodes = %q; want w001", got)
	}
}

// TestBackupOfLinks: roles that are elsewhere are in the backup, links that
// were there are kept aside; and a backup is not made through a link.
func TestBackupOfLinks(t *testing.T) {
	from, to := newServedBox(t), newServedBox(t)
	from.store().Close()
	from.write("git/mine/role.yaml", "name: mine\n")
	roles := filepath.Join(from.etc, "roles")
	link := func(target, at string) {
		t.Helper()
		os.Remove(at)
		if err := os.Symlink(target, at); err != nil {
			t.Fatal(err)
		}
	}
	link("../git", roles)
	link("new", filepath.Join(from.etc, "../git/mine/link"))
	file := filepath.Join(t.TempDir(), "b")
	from.must("backup", file)
	to.write("etc/roles/mine/role.yaml", "name: mine\n")
	there := filepath.Join(to.etc, "roles/mine/link")
	link("old", there)
	if _, err := to.run("restore", file); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("restore over another link without --force = %v; want ErrConflict", err)
	}
	to.must("restore", "--force", file)
	if got, err := os.Readlink(there); err != nil || got != "new" {
		t.Errorf("the link = %q, %v; want new", got, err)
	}
	kept, _ := filepath.Glob(filepath.Join(to.state, "before-restore-*/roles/mine/link"))
	if len(kept) != 1 {
		t.Fatalf("kept aside: %q; want the link", kept)
	}
	if got, err := os.Readlink(kept[0]); err != nil || got != "old" {
		t.Errorf("the link kept aside = %q, %v; want old", got, err)
	}

	link(t.TempDir(), filepath.Join(from.state, "backup.tmp"))
	if _, err := from.run("backup", file); !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("backup with a link in its folder's place = %v; want ErrConflict", err)
	}
}

// TestRestoreWithoutRoot: who is not root restores to folders of his own.
func TestRestoreWithoutRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it starts dsas as another user")
	}
	from := newServedBox(t)
	if err := addNode(t, from.store(), 1); err != nil {
		t.Fatal(err)
	}
	images, err := blobs.Open(filepath.Join(from.state, "images"))
	if err != nil {
		t.Fatal(err)
	}
	addRelease(t, images, "web", "a part")
	dir, err := os.MkdirTemp("", "dsas-restore-test-") // t.TempDir's parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	b := opsBox{t: t, state: filepath.Join(dir, "state"), etc: filepath.Join(dir, "etc"), config: filepath.Join(dir, "etc", "dsas.yaml")}
	file, program := filepath.Join(dir, "b"), filepath.Join(dir, "dsas.test")
	from.must("backup", "--images", file)
	const nobody = 65534
	for _, err := range []error{os.Mkdir(b.etc, 0o755), os.WriteFile(program, exe, 0o755), os.Chown(dir, nobody, nobody), os.Chown(b.etc, nobody, nobody), os.Chown(file, nobody, nobody)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DSAS_TEST_RUN="+strings.Join(b.args("restore", file), "\n"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("dsas restore as nobody: %v: %s", err, out)
	}
}

// TestRestoreWrongKey: a backup whose key does not open its database is no
// backup.
func TestRestoreWrongKey(t *testing.T) {
	from := newServedBox(t)
	from.store().Close()
	if err := os.WriteFile(filepath.Join(from.state, "key"), bytes.Repeat([]byte("x"), 32), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b")
	from.must("backup", file)
	to := newOpsBox(t)
	if _, err := to.run("restore", file); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "key") {
		t.Errorf("dsas restore = %v; want ErrInvalid about the key", err)
	}
}

// TestRestoreKilled kills a restore before each of its steps: what is left is
// the old state, or says that it has to be finished, and then is the new one.
func TestRestoreKilled(t *testing.T) {
	from := newServedBox(t)
	if err := addNode(t, from.store(), 1); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "b")
	from.must("backup", file)
	for step := 1; ; step++ {
		to := newOpsBox(t)
		if err := addNode(t, to.store(), 2); err != nil { // left open: with a WAL
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "DSAS_TEST_RUN="+strings.Join(to.args("restore", "--force", file), "\n"), fmt.Sprintf("DSAS_TEST_KILL=%d", step))
		out, err := cmd.CombinedOutput()
		if err == nil {
			if step < 8 {
				t.Errorf("the restore ended in %d steps; want more: is step called?", step)
			}
			return
		}
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
			t.Fatalf("killed at step %d: %v\n%s", step, err, out)
		}
		if err := noPendingRestore(to.state); !errors.Is(err, dsas.ErrConflict) || !strings.Contains(err.Error(), "--finish") {
			t.Fatalf("step %d: noPendingRestore = %v; want ErrConflict with --finish", step, err)
		}
		if _, err := to.run("backup", filepath.Join(t.TempDir(), "b")); err == nil {
			t.Errorf("step %d: a backup of a half restored state was made", step)
		}
		to.must("restore", "--finish")
		if got := to.nodes(); !slices.Equal(got, []string{"w001"}) {
			t.Errorf("step %d: nodes once finished = %q; want w001", step, got)
		}
		if b, err := os.ReadFile(to.config); err != nil || string(b) != "interfaces: [eth7]\n" {
			t.Errorf("step %d: dsas.yaml = %q, %v; want the backup's", step, b, err)
		}
	}
}

// TestBackupKilled kills backups at any moment: the one before stays as it
// was, and nothing half is beside it.
func TestBackupKilled(t *testing.T) {
	from := newServedBox(t)
	s := from.store()
	for n := range 100 {
		if err := addNode(t, s, n); err != nil {
			t.Fatal(err)
		}
	}
	from.write("etc/roles/big/files/x", strings.Repeat("0123456789abcdef", 1<<18))
	dir := t.TempDir()
	file := filepath.Join(dir, "b")
	from.must("backup", file)
	killed := 0
	for n := range 30 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "DSAS_TEST_RUN="+strings.Join(from.args("backup", file), "\n"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(n)*10*time.Millisecond, func() { cmd.Process.Kill() })
		if cmd.Wait() != nil {
			killed++
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := backup.Read(t.Context(), f, nil, nil); err != nil {
			t.Errorf("kill %d: the backup there is not whole: %v", n, err)
		}
		f.Close()
		if left, _ := os.ReadDir(dir); len(left) != 1 {
			t.Errorf("kill %d: beside the backup there is %v; want nothing", n, left)
		}
	}
	if killed == 0 {
		t.Error("no backup was killed")
	}
	from.must("backup", file) // what they left in the state folder is in nobody's way
	if _, err := os.Stat(filepath.Join(from.state, "backup.tmp")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("backup.tmp is left: %v", err)
	}
}

func TestBackupRecipient(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	from := newServedBox(t)
	from.store().Close()
	file := filepath.Join(t.TempDir(), "b")
	from.must("backup", "--recipient", id.Recipient().String(), file)
	if b, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(b, []byte("age-encryption.org/")) {
		t.Errorf("the backup begins %.20q, %v; want age's header", b, err)
	}
	to := newOpsBox(t)
	if _, err := to.run("restore", file); err == nil || !strings.Contains(err.Error(), "--identity") {
		t.Errorf("dsas restore without an identity = %v; want an error with --identity", err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.run("restore", "--identity", writeTemp(t, other.String()), file); err == nil {
		t.Error("dsas restore with another identity = nil; want an error")
	}
	if _, err := to.run("restore", "--identity", writeTemp(t, "nonsense"), file); err == nil || !strings.Contains(err.Error(), "--identity") {
		t.Errorf("dsas restore with nonsense for an identity = %v; want an error that names --identity", err)
	}
	to.must("restore", "--identity", writeTemp(t, id.String()), file)
}

// TestBackupReplacesFilesAlone: the rename must not put a file in the place of
// /dev/stdout or the like.
func TestBackupReplacesFilesAlone(t *testing.T) {
	from := newServedBox(t)
	from.store().Close()
	dir := t.TempDir()
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := errors.Join(syscall.Mkfifo(fifo, 0o600), os.Symlink(fifo, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, link, dir} {
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := from.run("backup", path); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), path) {
			t.Errorf("dsas backup %s = %v; want ErrInvalid that names it", path, err)
		}
		if after, err := os.Lstat(path); err != nil || after.Mode() != before.Mode() {
			t.Errorf("%s: %v, %v; want what it was", path, after, err)
		}
	}
}
