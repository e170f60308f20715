package roles

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dsas"
)

// needTools skips the test where something is missing on a developer's
// machine, and fails it in CI.
func needTools(t *testing.T, names ...string) {
	t.Helper()
	missing := func(what string) {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatalf("%s is needed", what)
		}
		t.Skipf("%s is needed", what)
	}
	if os.Getuid() != 0 {
		missing("root (namespaces, chroot)")
	}
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			missing(n)
		}
	}
}

// buildRoot makes a Debian root with the packages of the given definitions.
func buildRoot(t *testing.T, defs ...Definition) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	var packages []string
	for _, d := range defs {
		packages = append(packages, d.Role.Packages...)
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "mmdebstrap", "--variant=minbase", "--mode=root",
		"--include="+strings.Join(packages, ","), "bookworm", root).CombinedOutput()
	if err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	return root
}

// box is a node without its kernel: PID, mount and network namespaces of its
// own, a role's root with a node's files in it, and a NIC pair named bond0.
type box struct {
	t    *testing.T
	init *exec.Cmd
	dir  string // of the merged root, inside the box's mount namespace only
	data string // a folder outside that stands for the disk
	log  *logBuffer
}

// boxInit sets the box up and becomes its PID 1, which only has to stay. $1:
// the base root, $2: the box's folder, $3: the node's address.
const boxInit = `set -eu
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
for n in null zero full random urandom; do : >dev/$n; mount --bind /dev/$n dev/$n; done
ln -s /proc/self/fd dev/fd; ln -s /proc/self/fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr
mkdir dev/pts dev/shm disk; mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts; ln -s pts/ptmx dev/ptmx
mount --bind "$2/disk" disk
ip link set lo up
ip link add bond0 type veth peer name peer0
ip addr add "$3" dev bond0
ip link set bond0 up; ip link set peer0 up
# Said from inside: before the chroot, nsenter would find the host's root.
# The shell stays and reaps, as PID 1 must.
exec chroot . /bin/sh -c 'echo up; while :; do sleep 3600 & wait; done'
`

// newBox boots a box of def with in's files; it ends with the test.
func newBox(t *testing.T, root string, def Definition, in Input) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir(), log: &logBuffer{}}
	for _, d := range []string{"upper", "work", "root", "disk"} {
		if err := os.Mkdir(filepath.Join(b.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.data = filepath.Join(b.dir, "disk")
	upper := filepath.Join(b.dir, "upper")
	b.unpack(def.FS, "files", upper)
	b.unpack(def.FS, "services", filepath.Join(upper, "etc/dsas/services"))
	files, err := Render(def, in)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b.write(f)
	}
	b.init = exec.Command("sh", "-c", boxInit, "sh", root, b.dir, in.Node.Address.String())
	b.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	b.init.Stderr = b.log
	out, err := b.init.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.init.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.init.Process.Kill() // PID 1 of its namespace: all in it end with it
		b.init.Wait()
		if t.Failed() {
			t.Logf("log of the box:\n%s", b.log)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("box: %q, %v\n%s", line, err, b.log)
	}
	return b
}

// unpack copies folder from of fsys into to, with the modes fsys gives.
func (b *box) unpack(fsys fs.FS, from, to string) {
	b.t.Helper()
	err := fs.WalkDir(fsys, from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		dst := filepath.Join(to, strings.TrimPrefix(p, from))
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		text, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		return os.WriteFile(dst, text, info.Mode())
	})
	if err != nil && !os.IsNotExist(err) {
		b.t.Fatal(err)
	}
}

// write puts a rendered file into the box before it is up.
func (b *box) write(f dsas.File) {
	b.t.Helper()
	p := filepath.Join(b.dir, "upper", f.Path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(p, f.Content, os.FileMode(f.Mode)); err != nil {
		b.t.Fatal(err)
	}
}

// put writes a file in the running box.
func (b *box) put(path, text string) {
	b.t.Helper()
	if out, err := b.sh("mkdir -p \"$(dirname '" + path + "')\"; cat >'" + path + "' <<'ENDOFFILE'\n" + text + "ENDOFFILE\n"); err != nil {
		b.t.Fatalf("write %s: %v\n%s", path, err, out)
	}
}

func (b *box) command(script string, env ...string) *exec.Cmd {
	pid := strconv.Itoa(b.init.Process.Pid)
	cmd := exec.Command("nsenter", "-t", pid, "--mount", "--net", "--pid", "--uts", "--ipc", "--root", "--wd",
		"/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Args = append(cmd.Args, env...)
	cmd.Args = append(cmd.Args, "/bin/sh", "-c", script)
	return cmd
}

// sh runs a script in the box.
func (b *box) sh(script string) (string, error) {
	out, err := b.command(script).CombinedOutput()
	return string(out), err
}

// must is sh that has to succeed.
func (b *box) must(script string) string {
	b.t.Helper()
	out, err := b.sh(script)
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// service is one running run script.
type service struct {
	b    *box
	name string
	cmd  *exec.Cmd
	log  *logBuffer
	done chan error // the exit, once
}

// start runs a service's run script as the supervisor would: output to a pipe,
// dsas.conf's variables in the environment.
func (b *box) start(name string, env ...string) *service {
	b.t.Helper()
	s := &service{b: b, name: name, log: &logBuffer{also: b.log}, done: make(chan error, 1)}
	s.cmd = b.command("echo $$ >/run/"+name+".test-pid; exec /etc/dsas/services/"+name+"/run", env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	// What outlives the service holds its output open; that is no reason to
	// wait for it.
	s.cmd.WaitDelay = time.Second
	if err := s.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	return s
}

// signal sends to the process that run became.
func (s *service) signal(name string) {
	s.b.t.Helper()
	s.b.must("kill -" + name + " $(cat /run/" + s.name + ".test-pid)")
}

// ended waits for the end of the service.
func (s *service) ended() error {
	s.b.t.Helper()
	select {
	case err := <-s.done:
		return err
	case <-time.After(2 * time.Minute):
		s.b.t.Fatalf("%s: did not end within 2 minutes\n%s", s.name, s.log)
		return nil
	}
}

// until runs script in the box again and again, until it succeeds and its
// output has want; it fails when the service ends or after two minutes.
func (s *service) until(script, want string) string {
	s.b.t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := s.b.sh(script)
		if err == nil && strings.Contains(out, want) {
			return out
		}
		select {
		case end := <-s.done:
			s.b.t.Fatalf("%s ended (%v) before %s\n%s", s.name, end, script, s.log)
		case <-deadline:
			s.b.t.Fatalf("%s: %s: %v, output %q; want %q\n%s", s.name, script, err, out, want, s.log)
		case <-tick.C:
		}
	}
}

// healthy waits for the health check that role.yaml names.
func (s *service) healthy(def Definition) {
	s.b.t.Helper()
	for _, d := range def.Role.Services {
		if d.Name != s.name || d.Check == nil {
			continue
		}
		switch c := d.Check; {
		case c.Exec != "":
			s.until(c.Exec, "")
		case c.TCP != "":
			host, port, _ := strings.Cut(c.TCP, ":")
			s.until(fmt.Sprintf("perl -MIO::Socket::INET -e 'IO::Socket::INET->new(PeerAddr=>shift,Proto=>\"tcp\") or exit 1' %s:%s", host, port), "")
		case c.HTTP != "":
			s.until(httpGet(c.HTTP), "200")
		}
		return
	}
	s.b.t.Fatalf("%s: no service with a check", s.name)
}

// httpGet is a script that prints an answer, head and body: the root has no
// curl, and perl is in every Debian.
func httpGet(url string) string {
	hostPath := strings.TrimPrefix(url, "http://")
	host, path, _ := strings.Cut(hostPath, "/")
	if !strings.Contains(host, ":") {
		host += ":80"
	}
	return fmt.Sprintf(`perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(PeerAddr=>"%s") or exit 1; print $s "GET /%s HTTP/1.0\r\nHost: x\r\n\r\n"; print while <$s>'`, host, path)
}

// logBuffer is written by a child's copier and read by the test.
type logBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	also *logBuffer
}

// Write implements io.Writer.
func (l *logBuffer) Write(p []byte) (int, error) {
	if l.also != nil {
		l.also.Write(p)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String gives all that was written.
func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func itoa(i int) string { return strconv.Itoa(i) }
