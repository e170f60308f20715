package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"dsas"
)

// sshd is a small SSH server that lets everybody in and runs nothing: it
// answers with the command it was given, on 127.0.0.1.
func sshd(t *testing.T) (port uint16, hostKey string) {
	t.Helper()
	return listenSSH(t, func(user, command string, ch ssh.Channel) (status uint32) {
		fmt.Fprintf(ch, "%s ran %s\n", user, command)
		io.Copy(ch, ch)
		return 7
	})
}

// listenSSH is an SSH server on 127.0.0.1 that lets everybody in and has run
// answer each command.
func listenSSH(t *testing.T, run func(user, command string, ch ssh.Channel) (status uint32)) (port uint16, hostKey string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	conf := &ssh.ServerConfig{NoClientAuth: true}
	conf.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveSSH(c, conf, run)
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port), string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
}

func serveSSH(c net.Conn, conf *ssh.ServerConfig, run func(user, command string, ch ssh.Channel) uint32) {
	conn, channels, requests, err := ssh.NewServerConn(c, conf)
	if err != nil {
		return
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	for nc := range channels {
		ch, reqs, err := nc.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range reqs {
				if r.WantReply {
					r.Reply(r.Type == "exec", nil)
				}
				if r.Type != "exec" {
					continue
				}
				var cmd struct{ Line string }
				ssh.Unmarshal(r.Payload, &cmd)
				status := run(conn.User(), cmd.Line, ch)
				ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
				ch.Close()
			}
		}()
	}
}

// A real ssh client gets in when the host key is the one that the API tells,
// and does not when it is another.
func TestSSH(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		skipOrFail(t, "ssh is not installed")
	}
	t.Setenv("HOME", t.TempDir())
	port, key := sshd(t)
	_, other := sshd(t)
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01")...)
	info := dsas.SSHInfo{Address: netip.MustParseAddr("127.0.0.1"), Port: port, HostKey: key}
	c.ssh = func(dsas.Node) dsas.SSHInfo { return info }

	r := c.runIn("from stdin", "ssh", "w101", "cat", "--flag", "-x")
	if want := "root ran cat --flag -x\nfrom stdin"; r.out != want || r.code != 7 {
		t.Errorf("ssh = %d, %q, %q; want 7 (ssh's own), %q", r.code, r.out, r.errors, want)
	}
	if r := c.runIn("", "ssh", "-l", "admin", "w101", "id"); !strings.HasPrefix(r.out, "admin ran id") {
		t.Errorf("ssh -l admin = %d, %q, %q", r.code, r.out, r.errors)
	}
	info.HostKey = other
	if r := c.runIn("", "ssh", "w101", "id"); r.code != 255 || r.out != "" {
		t.Errorf("ssh to a wrong host key = %d, %q; want 255", r.code, r.out)
	}
	info.HostKey = "nonsense\n* ssh-ed25519 AAAA"
	c.fails(1, words("ssh w101 id"), "not a key")
	c.fails(1, words("ssh w102 id"), "w102", "not found")
}

func TestSSHArgv(t *testing.T) {
	info := dsas.SSHInfo{Address: netip.MustParseAddr("10.77.0.101"), Netns: "dsas-lab"}
	cmd := sshCmd{User: "root"}
	got, err := cmd.argv("w101", info, "/known", true)
	want := []string{"ip", "netns", "exec", "dsas-lab", "ssh"}
	if err != nil || !slices.Equal(got[:5], want) || got[len(got)-1] != "10.77.0.101" || !slices.Contains(got, "StrictHostKeyChecking=yes") {
		t.Errorf("argv = %q, %v; want it to begin with %q", got, err, want)
	}
	if _, err := cmd.argv("w101", info, "/known", false); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("argv without root = %v; want an error that says root", err)
	}
	info.Netns = "-x"
	if _, err := cmd.argv("w101", info, "/known", true); err == nil {
		t.Error("argv takes a namespace that looks like a flag")
	}
}
