package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"dsas"
	"dsas/client"
)

// cli is the command line. A field is a command; its help stands here, its
// flags, examples and Run in the file named after it.
type cli struct {
	globals

	Status statusCmd `cmd:"" group:"Look:" help:"Show what the server says of itself."`
	Node   nodeCmd   `cmd:"" group:"Nodes:" help:"List, add, change, show and remove nodes."`
	Power  powerCmd  `cmd:"" group:"Nodes:" help:"Switch nodes on and off, or cycle them."`
	SSH    sshCmd    `cmd:"" name:"ssh" group:"Nodes:" help:"Log in to a node."`
	Events eventsCmd `cmd:"" group:"Look:" help:"Show what happened, and follow what happens."`
	Site   siteCmd   `cmd:"" group:"Fleet:" help:"List, add, change, show and remove sites."`
	Role   roleCmd   `cmd:"" group:"Fleet:" help:"List the roles."`
	Loader loaderCmd `cmd:"" group:"Server:" help:"List the boot loaders, and fetch the optional ones."`
	Image  imageCmd  `cmd:"" group:"Fleet:" help:"Build, publish, list and carry images."`
	Kernel kernelCmd `cmd:"" group:"Fleet:" help:"Update and list the kernels that nodes boot."`

	Explain explainCmd `cmd:"" group:"Look:" help:"Tell what a MAC would be given at each step of a boot, and why."`
	Unknown unknownCmd `cmd:"" group:"Look:" help:"List and forget MACs that asked and belong to no node."`
	Lease   leaseCmd   `cmd:"" group:"Look:" help:"List the leases of pool addresses."`

	Serve   serveCmd   `cmd:"" group:"Server:" help:"Run the server."`
	Check   checkCmd   `cmd:"" group:"Server:" help:"Look for what keeps boots from working, and how to mend it."`
	Backup  backupCmd  `cmd:"" group:"Server:" help:"Copy the server's state into one file."`
	Restore restoreCmd `cmd:"" group:"Server:" help:"Put the state of a backup in its place."`
	Token   tokenCmd   `cmd:"" group:"Server:" help:"Make, list and remove tokens for the API over HTTPS."`
	Lab     labCmd     `cmd:"" group:"Server:" help:"Run a virtual rack on this machine, or a storm of simulated nodes."`

	Version    versionCmd    `cmd:"" group:"More:" help:"Show the version."`
	Completion completionCmd `cmd:"" group:"More:" help:"Print a completion script for bash."`
}

// globals are the flags that every command has.
type globals struct {
	Server      string `help:"Server: path of its socket, or https://name:8443." env:"DSAS_SERVER" default:"/run/dsas/dsas.sock" placeholder:"ADDR"`
	TokenFile   string `help:"File that holds the API token, for a server elsewhere." env:"DSAS_TOKEN_FILE" placeholder:"FILE"`
	CAFile      string `name:"ca-file" help:"Certificate authority of the server (PEM)." env:"DSAS_CA_FILE" placeholder:"FILE"`
	Fingerprint string `help:"SHA-256 of the server's certificate, trusted alone." env:"DSAS_FINGERPRINT" placeholder:"HEX"`
	JSON        bool   `name:"json" help:"Print JSON, for programs."`
}

const description = `Servers that boot from the network, each with the role it is given.

Nodes are named singly (w101), by ranges (w[101-140,150]) or by lists (w101,w102).
Exit status: 0 done, 1 an error, 2 wrong usage, 3 a node failed,
78 the configuration of serve is wrong.`

// run is the program: everything it reads and writes is passed in.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var c cli
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	parser, err := kong.New(&c,
		kong.Name("dsas"), kong.Description(description),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exited(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: false}),
		kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(a),
	)
	if err != nil {
		return fmt.Errorf("command line: %w", err)
	}
	a.model = parser.Model
	switch {
	case len(args) == 0:
		args = []string{"--help"}
	case args[0] == "help": // as with other programs
		args = append(slices.Clone(args[1:]), "--help")
	case args[0] == "--version":
		args = []string{"version"}
	}
	selected, helped, err := parse(parser, args)
	if err != nil || helped {
		return err
	}
	a.globals, a.args = c.globals, args
	return selected.Run()
}

// exited is what kong's own exit (after --help) unwinds the stack with.
type exited int

func parse(parser *kong.Kong, args []string) (selected *kong.Context, helped bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(exited); !ok {
				panic(r)
			}
			helped = true
		}
	}()
	selected, err = parser.Parse(args)
	if err == nil {
		return selected, false, nil
	}
	return nil, false, usageOf(err)
}

// usageError: the command line itself is wrong. Exit status 2.
type usageError struct {
	err     error
	command string // whose help to read; "" for none
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// usagef makes a usage error.
func usagef(format string, args ...any) error {
	return usageError{err: fmt.Errorf(format, args...)}
}

// configError: dsas serve cannot start before somebody changes its
// configuration. Exit status 78, EX_CONFIG of sysexits.h, at which systemd does
// not try again.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }

// nodeError: the server did as it was told, but a node failed. Exit status 3.
type nodeError struct{ msg string }

func (e nodeError) Error() string { return e.msg }

// exitError ends with the status of a program that was run, which has said
// itself what is wrong.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// report says on w what err is and gives the exit status.
func report(err error, w io.Writer) int {
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(w, "dsas: interrupted")
		return 130 // 128 + SIGINT, as a shell gives it
	}
	for line := range strings.SplitSeq(message(err), "\n") {
		fmt.Fprintln(w, "dsas:", line)
	}
	if usage, ok := errors.AsType[usageError](err); ok {
		if usage.command != "" {
			fmt.Fprintf(w, "Run %q for more.\n", usage.command+" --help")
		}
		return 2
	}
	if _, ok := errors.AsType[configError](err); ok {
		return 78
	}
	if _, ok := errors.AsType[nodeError](err); ok {
		return 3
	}
	return 1
}

// saysAbsent: a message says by itself that something is not there.
var saysAbsent = regexp.MustCompile(`\b(no|not|none|nothing|there (is|are))\b`)

// message is err for a terminal: nothing in it can drive the terminal, and the
// sentinel's word at its end, which is for programs, is left off where the rest
// says it better.
func message(err error) string {
	msg := err.Error()
	for _, s := range []error{dsas.ErrInvalid, dsas.ErrConflict, dsas.ErrDenied} {
		msg = strings.TrimSuffix(msg, ": "+s.Error())
	}
	if rest, ok := strings.CutSuffix(msg, ": "+dsas.ErrNotFound.Error()); ok && saysAbsent.MatchString(rest) {
		msg = rest
	}
	lines := strings.Split(msg, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	if refused, ok := errors.AsType[*client.Error](err); ok && len(refused.Items) > 1 {
		for _, item := range refused.Items[1:] {
			lines = append(lines, clean(item.Error))
		}
	}
	return strings.Join(lines, "\n")
}
