package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestHTTPS is an operator at another machine: a token, the certificate's
// fingerprint from the server's log, and nothing else.
func TestHTTPS(t *testing.T) {
	if os.Getenv("DSAS_E2E") == "" {
		t.Skip("set DSAS_E2E=1 (make e2e)")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "bin", "dsas")
	server, laptop := "dsas-https-s", "dsas-https-l"
	run := func(argv ...string) {
		t.Helper()
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	for _, ns := range []string{server, laptop} {
		exec.Command("ip", "netns", "del", ns).Run() // an interrupted run's
		run("ip", "netns", "add", ns)
		t.Cleanup(func() { run("ip", "netns", "del", ns) })
		run("ip", "-n", ns, "link", "set", "lo", "up")
	}
	run("ip", "-n", server, "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", laptop)
	run("ip", "-n", server, "addr", "add", "10.99.0.1/24", "dev", "eth1")
	run("ip", "-n", server, "link", "set", "eth1", "up")
	run("ip", "-n", laptop, "addr", "add", "10.99.0.2/24", "dev", "eth0")
	run("ip", "-n", laptop, "link", "set", "eth0", "up")

	dir := t.TempDir()
	sock := filepath.Join(dir, "dsas.sock")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	serve := exec.CommandContext(ctx, "ip", "netns", "exec", server, bin, "serve", "--interface", "eth1", "--listen", "10.99.0.1:8443",
		"--state", filepath.Join(dir, "state"), "--socket", sock, "--config", writeFile(t, filepath.Join(dir, "dsas.yaml"), "httpPort: 8080\n"))
	log, err := serve.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	serve.Cancel = func() error { return serve.Process.Signal(os.Interrupt) }
	serve.WaitDelay = 30 * time.Second
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	fingerprint := make(chan string, 1)
	ended := make(chan struct{})
	var said bytes.Buffer
	go func() {
		defer close(ended)
		re := regexp.MustCompile(`certificate_sha256=([0-9a-f]{64})`)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			said.WriteString(lines.Text() + "\n")
			if m := re.FindStringSubmatch(lines.Text()); m != nil {
				fingerprint <- m[1]
			}
		}
	}()
	defer func() { cancel(); <-ended; serve.Wait() }()
	var print string
	select {
	case print = <-fingerprint:
	case <-ended:
		t.Fatalf("dsas serve ended:\n%s", said.String())
	}
	local := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(bin, append([]string{"--server", sock}, args...)...).Output()
		if err != nil {
			t.Fatalf("dsas %v: %v", args, err)
		}
		return string(out)
	}
	var token string
	eventually(t, "the socket answers", func() error {
		out, err := exec.Command(bin, "--server", sock, "token", "add", "laptop").Output()
		token = string(out)
		return err
	})
	good := writeFile(t, filepath.Join(dir, "token"), token)
	bad := writeFile(t, filepath.Join(dir, "bad"), "x"+strings.TrimSpace(token)[1:]+"\n")
	remote := func(print, token string, args ...string) (string, error) {
		cmd := exec.Command("ip", append([]string{"netns", "exec", laptop, bin, "--server", "https://10.99.0.1:8443", "--fingerprint", print, "--token-file", token}, args...)...)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("%w: %s", err, errOut.String())
		}
		return out.String(), nil
	}
	refused := func(what, want string, print, token string) {
		t.Helper()
		if out, err := remote(print, token, "node", "ls"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want an error with %q", what, out, err, want)
		}
	}
	if out, err := remote(print, good, "node", "add", "w1", "--mac", "52:54:00:00:00:01"); err != nil {
		t.Fatalf("node add over HTTPS: %s, %v", out, err)
	}
	if out := local("node", "ls"); !strings.Contains(out, "52:54:00:00:00:01") {
		t.Errorf("node ls on the server after an add over HTTPS:\n%s", out)
	}
	refused("another fingerprint", "certificate", strings.Repeat("0", 64), good)
	refused("a wrong token", "token", print, bad)
	local("token", "rm", "--yes", "laptop")
	refused("a token that was taken back", "token", print, good)
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
