package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"dsas"
)

type sshCmd struct {
	User     string   `short:"l" help:"User to log in as." default:"root"`
	Identity string   `short:"i" help:"Private key to log in with." placeholder:"FILE"`
	Node     string   `arg:"" help:"Node to log in to."`
	Command  []string `arg:"" optional:"" passthrough:"" help:"Command to run there; none: a shell."`
}

func (*sshCmd) Help() string {
	return `The node's host key comes from the server, so nothing has to be confirmed and
known_hosts is left alone. The exit status is ssh's own.

Examples:

    dsas ssh w101
    dsas ssh w101 ip -br addr
    dsas ssh -i id_fleet w101`
}

func (cmd *sshCmd) Run(ctx context.Context, a *app) error {
	if len(cmd.Command) > 0 && cmd.Command[0] == "--" {
		cmd.Command = cmd.Command[1:] // as with ssh itself
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := a.oneNode(ctx, c, cmd.Node)
	if err != nil {
		return err
	}
	info, err := c.SSH(ctx, v.Node.Name)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "dsas-ssh-")
	if err != nil {
		return fmt.Errorf("ssh %s: %w", v.Node.Name, err)
	}
	defer os.RemoveAll(dir)
	known := filepath.Join(dir, "known_hosts")
	line, err := knownHost(v.Node.Name, info)
	if err != nil {
		return err
	}
	if err := os.WriteFile(known, line, 0o600); err != nil {
		return fmt.Errorf("ssh %s: %w", v.Node.Name, err)
	}
	argv, err := cmd.argv(v.Node.Name, info, known, os.Geteuid() == 0)
	if err != nil {
		return err
	}
	return runProgram(ctx, a, argv)
}

// knownHost is the line of known_hosts (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)
// that vouches for the node. The key is parsed and written anew, so that what
// the server sent is a key and nothing else.
func knownHost(name string, info dsas.SSHInfo) ([]byte, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(info.HostKey))
	if err != nil {
		return nil, fmt.Errorf("ssh %s: the server's word on its host key is not a key: %w", name, err)
	}
	return append([]byte(name+" "), ssh.MarshalAuthorizedKey(key)...), nil
}

func (cmd *sshCmd) argv(name string, info dsas.SSHInfo, known string, root bool) ([]string, error) {
	if !info.Address.IsValid() {
		return nil, fmt.Errorf("ssh %s: the node has no address", name)
	}
	var argv []string
	if info.Netns != "" {
		if err := dsas.CheckName("network namespace", info.Netns); err != nil {
			return nil, fmt.Errorf("ssh %s: %w", name, err)
		}
		if !root {
			return nil, fmt.Errorf("ssh %s: the node lives in the network namespace %s of this machine; run this as root", name, info.Netns)
		}
		argv = append(argv, "ip", "netns", "exec", info.Netns)
	}
	port := info.Port
	if port == 0 {
		port = 22
	}
	argv = append(argv, "ssh",
		"-o", "StrictHostKeyChecking=yes", "-o", "UserKnownHostsFile="+known, "-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "HostKeyAlias="+name, "-o", "UpdateHostKeys=no", "-o", "CheckHostIP=no",
		"-o", "ConnectTimeout=15",
		"-l", cmd.User, "-p", strconv.Itoa(int(port)))
	if cmd.Identity != "" {
		argv = append(argv, "-i", cmd.Identity)
	}
	argv = append(argv, info.Address.String())
	if len(cmd.Command) > 0 {
		// After the address ssh takes all words as the command's, but for a
		// "--" that stands right there.
		argv = append(argv, "--")
		argv = append(argv, strings.Join(cmd.Command, " "))
	}
	return argv, nil
}

// runProgram runs argv on this terminal and ends with its status.
func runProgram(ctx context.Context, a *app, argv []string) error {
	p := exec.CommandContext(ctx, argv[0], argv[1:]...)
	p.Stdin, p.Stdout, p.Stderr = a.stdin, a.stdout, a.stderr
	// A signal to us is passed on; ssh restores the terminal and ends.
	p.Cancel = func() error { return p.Process.Signal(syscall.SIGTERM) }
	p.WaitDelay = 5 * time.Second
	err := p.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
		return exitError(exit.ExitCode())
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("run %s: not installed; on Debian: apt install openssh-client iproute2", argv[0])
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	return nil
}
