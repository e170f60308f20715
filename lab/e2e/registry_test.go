package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dsas"
)

// TestRegistry boots one node, for work on this alone; TestRack does the same
// with a node that it has.
func TestRegistry(t *testing.T) {
	r, w := alone(t)
	testRegistry(t, r, w)
}

// testRegistry boots a node from Debian's docker-registry, at another address
// than the server's, and then without it, when it is configured and gone.
func testRegistry(t *testing.T, r *rack, b *box) {
	config, err := os.ReadFile(r.conf)
	if err != nil {
		t.Fatal(err)
	}
	reg := r.startRegistry(t, "10.77.0.90")
	r.reconfigure(t, "registry: "+reg.url+"\n")
	t.Cleanup(func() {
		r.stopServer()
		if err := os.WriteFile(r.conf, config, 0o644); err != nil {
			t.Fatal(err)
		}
		r.startServer()
	})
	var v dsas.ReleaseView
	decode(t, r.dsas(t, "image", "show", r.node(t, b.Name()).Release.Assigned, "--json"), &v)
	out, err := r.lab.Exec(t.Context(), r.bin(), "image", "export", "--config", r.conf, v.Name, "registry")
	if err != nil {
		t.Fatalf("image export: %v", err)
	}
	t.Logf("%s", out)

	mark := r.mark(t, b.Name())
	b.boot(t)
	b.saw(t, mark, dsas.KindFetch, dsas.KindFetched, dsas.KindSwitched, dsas.KindReady)
	told := b.fetched(t, mark)
	m := regexp.MustCompile(`^(\d+) MiB in .*, (\d+) MiB of it from the registry$`).FindStringSubmatch(told)
	if m == nil || m[1] != m[2] || m[1] == "0" {
		t.Errorf("with the registry: %s says %q; want all of it from the registry", dsas.KindFetched, told)
	}
	// The registry's own word, for every part: the message counts whole MiB. A
	// transfer that was taken up again has a line with 206.
	log := reg.log(t)
	from := r.node(t, b.Name()).Node.Address.Addr().String()
	for _, p := range v.Manifest.Parts {
		given := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(from) + ` .*"GET /v2/dsas/` + v.Role + `/blobs/` + string(p.Digest) + ` HTTP/1\.1" 20[06] `)
		if !given.MatchString(log) {
			t.Errorf("the registry's log has no line %s\n%s", given, log)
		}
	}

	reg.kill(t)
	mark = r.mark(t, b.Name())
	b.boot(t)
	b.saw(t, mark, dsas.KindFetch, dsas.KindFetched, dsas.KindSwitched, dsas.KindReady)
	if told := b.fetched(t, mark); !strings.Contains(told, " MiB in ") || strings.Contains(told, "registry") {
		t.Errorf("without the registry: %s says %q; want nothing from a registry", dsas.KindFetched, told)
	}
	if _, err := b.WaitSerial(t.Context(), regexp.MustCompile(`the registry is of no use; fetching from the server`)); err != nil {
		t.Errorf("without the registry: console: %v", err)
	}
	if st := r.node(t, b.Name()).Status; st.Phase != dsas.PhaseReady {
		t.Errorf("without the registry: status %+v; want ready", st)
	}
}

// fetched is what a node said of its image after mark.
func (b *box) fetched(t *testing.T, mark int64) string {
	t.Helper()
	e := b.wait(t, mark, "the fetched image", kind(dsas.KindFetched))
	t.Logf("%s: %s", b.Name(), e.Message)
	return e.Message
}

// debianRegistry is a docker-registry in the boot network.
type debianRegistry struct {
	url  string
	file string // of its log
	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
}

// startRegistry runs Debian's docker-registry, empty, on a machine of its own.
func (r *rack) startRegistry(t *testing.T, address string) *debianRegistry {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		// Its package would start it, so make test unpacks it (Makefile, TEST_PEERS).
		program = filepath.Join(r.root, "build", "peers", "usr", "bin", "docker-registry")
		if _, err := os.Stat(program); err != nil {
			t.Fatalf("%v (make test-deps)", err)
		}
	}
	dir := t.TempDir()
	config := writeFile(t, filepath.Join(dir, "config.yml"), fmt.Sprintf("version: 0.1\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "data"), address+":5000"))
	reg := &debianRegistry{url: "http://" + address + ":5000", file: filepath.Join(dir, "log"), gone: make(chan struct{})}
	log, err := os.Create(reg.file)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// ip becomes the program: the process is the registry.
	reg.cmd = exec.Command("ip", "netns", "exec", r.machine(t, "r", address+"/24"), program, "serve", config)
	reg.cmd.Stdout, reg.cmd.Stderr = log, log
	if err := r.lab.Start(reg.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		reg.cmd.Wait()
		close(reg.gone)
	}()
	t.Cleanup(func() { reg.cmd.Process.Kill(); <-reg.gone })
	c := r.lab.HTTPClient()
	eventually(t, "docker-registry", func() error {
		select {
		case <-reg.gone:
			t.Fatalf("docker-registry ended:\n%s", reg.log(t))
		default:
		}
		resp, err := c.Get(reg.url + "/v2/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("it answers %s", resp.Status)
		}
		return nil
	})
	return reg
}

// kill is SIGKILL; its machine stays, and refuses connections.
func (reg *debianRegistry) kill(t *testing.T) {
	t.Helper()
	if err := reg.cmd.Process.Kill(); err != nil {
		t.Fatalf("kill docker-registry: %v\n%s", err, reg.log(t))
	}
	<-reg.gone
}

func (reg *debianRegistry) log(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(reg.file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
