package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
)

// skipOrFail skips where a tool is missing, but not in CI.
func skipOrFail(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("DSAS_CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// terminal opens a pseudo-terminal (pty(7)): what is written to user is typed,
// and what the program writes to tty can be read from user.
func terminal(t *testing.T, columns uint16) (user, tty *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		skipOrFail(t, "no pseudo-terminals: "+err.Error())
	}
	t.Cleanup(func() { user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: 25}); err != nil {
		t.Fatal(err)
	}
	return user, tty
}

// onTerminal runs a command with somebody at the terminal who types answer.
func (c *cliTest) onTerminal(answer string, args ...string) result {
	c.Helper()
	user, tty := terminal(c.T, 80)
	if _, err := io.WriteString(user, answer); err != nil {
		c.Fatal(err)
	}
	var out, errs bytes.Buffer
	err := run(c.Context(), append([]string{"--server", c.socket}, args...), tty, &out, &errs)
	return result{report(err, &errs), out.String(), errs.String()}
}

func TestConfirm(t *testing.T) {
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01")...)
	for _, no := range []string{"n\n", "\n", "what\n"} {
		c.failed(c.onTerminal(no, "node", "rm", "w101"), 1, []string{"node rm", no}, "Remove w101?", "not done")
	}
	if r := c.onTerminal("y\n", "node", "rm", "w101"); r.code != 0 {
		t.Errorf("node rm, answered y = %d %s", r.code, r.errors)
	}
	if nodes, _ := c.store.Nodes(t.Context()); len(nodes) != 0 {
		t.Error("the node is still there")
	}
}

func TestAskBMCPassword(t *testing.T) {
	c := newCLI(t)
	r := c.onTerminal("s3cret\n", "node", "add", "w101", "--mac", "52:54:00:00:01:01", "--bmc", "ipmi://admin@10.0.9.1")
	if r.code != 0 || !strings.Contains(r.errors, "Password of ipmi://admin@10.0.9.1") {
		t.Errorf("node add --bmc = %d %s", r.code, r.errors)
	}
	if p, err := c.store.BMCPassword(t.Context(), "w101"); p != "s3cret" {
		t.Errorf("BMC password = %q, %v", p, err)
	}
}

// Colours and cutting are for terminals, and colours not for those who want none.
func TestTerminalOutput(t *testing.T) {
	c := newCLI(t)
	c.ok(words("node add w101 --mac 52:54:00:00:01:01 --role web")...)
	c.event(dsas.Event{Node: "w101", Kind: dsas.KindReady, Boot: "b", Message: strings.Repeat("long ", 40)})
	print := func() string {
		t.Helper()
		user, tty := terminal(t, 100)
		if err := run(t.Context(), []string{"--server", c.socket, "node", "ls"}, tty, tty, tty); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 8<<10)
		if err := user.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Logf("no deadline: %v", err)
		}
		n, err := user.Read(buf) // all of it: a terminal's buffer holds 4 KiB
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if out := print(); !strings.Contains(out, "\x1b[32mready\x1b[0m") || !strings.Contains(out, "…") {
		t.Errorf("node ls on a terminal = %q; want colours and a cut", out)
	}
	t.Setenv("NO_COLOR", "1")
	out := print()
	if strings.Contains(out, "\x1b") {
		t.Errorf("node ls with NO_COLOR = %q", out)
	}
	for line := range strings.Lines(out) {
		if n := len([]rune(strings.TrimRight(line, "\r\n"))); n > 100 {
			t.Errorf("a line of %d columns on a terminal of 100: %q", n, line)
		}
	}
}

func TestTable(t *testing.T) {
	tab := table{head: []string{"A", "LONGER", "C"}}
	tab.row("x", "y", "z")
	tab.row("wide\tone", "ö", "")
	var b strings.Builder
	if err := tab.write(&b, 0, false); err != nil {
		t.Fatal(err)
	}
	if want := "A         LONGER  C\nx         y       z\nwide one  ö\n"; b.String() != want {
		t.Errorf("table = %q; want %q", b.String(), want)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain ö 漢": "plain ö 漢", "a\tb\nc": "a b c", "\x1b[2J": "\uFFFD[2J", "\u009b31m": "\uFFFD31m", "\x7f": "\uFFFD",
		"\xff": "\uFFFD", "a\u202eb": "a\uFFFDb", "\u2028": "\uFFFD", "\u200b": "\uFFFD",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestShort(t *testing.T) {
	for in, want := range map[time.Duration]string{
		-time.Second: "0s", 850 * time.Millisecond: "850ms", 4200 * time.Millisecond: "4.2s", 42 * time.Second: "42s",
		192 * time.Second: "3m12s", 5*time.Hour + 20*time.Minute: "5h20m", 292 * time.Hour: "12d4h",
	} {
		if got := short(in); got != want {
			t.Errorf("short(%v) = %q; want %q", in, got, want)
		}
	}
}
