package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"dsas"
	"dsas/client"
)

const (
	maxTokenFile = 4 << 10 // bytes
	maxInputFile = 8 << 20
)

// app is what every command's Run gets: the global flags and the terminal.
type app struct {
	globals
	args   []string // of the command line
	model  *kong.Application
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
}

// client talks to the server that the flags name.
func (a *app) client() (*client.Client, error) {
	var token string
	if a.TokenFile != "" {
		b, err := a.readFile(a.TokenFile, maxTokenFile)
		if err != nil {
			return nil, fmt.Errorf("read token: %w", err)
		}
		if token = strings.TrimSpace(string(b)); token == "" || strings.ContainsAny(token, " \n") {
			return nil, fmt.Errorf("token file %s: want one token in it", a.TokenFile)
		}
	}
	c, err := client.New(a.Server, token, client.Options{CAFile: a.CAFile, Fingerprint: a.Fingerprint})
	if err != nil {
		return nil, usageError{err: err}
	}
	return c, nil
}

// readFile reads a small file, or stdin for "-".
func (a *app) readFile(name string, limit int64) ([]byte, error) {
	var r io.Reader = a.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return b, nil
}

// expand turns the words of a command line into node names, each once.
func expand(patterns []string) ([]string, error) {
	var names []string
	seen := map[string]bool{}
	for _, p := range patterns {
		some, err := dsas.ExpandNames(p)
		if err != nil {
			return nil, usageError{err: err}
		}
		for _, n := range some {
			if !seen[n] {
				seen[n] = true
				names = append(names, n)
			}
		}
	}
	return names, nil
}

// nodes gives the nodes that the patterns name, in their order; without
// patterns all. A name that is no node's is an error, so that nothing is done
// to some nodes of a list that has a slip in it.
func (a *app) nodes(ctx context.Context, c *client.Client, patterns []string) ([]dsas.NodeView, error) {
	names, err := expand(patterns)
	if err != nil {
		return nil, err
	}
	views, err := c.Nodes(ctx)
	if err != nil || len(patterns) == 0 {
		return views, err
	}
	known := make(map[string]dsas.NodeView, len(views))
	all := make([]string, 0, len(views))
	for _, v := range views {
		known[v.Node.Name] = v
		all = append(all, v.Node.Name)
	}
	var picked []dsas.NodeView
	var missing []string
	for _, n := range names {
		if v, ok := known[n]; ok {
			picked = append(picked, v)
		} else {
			missing = append(missing, n)
		}
	}
	switch len(missing) {
	case 0:
		return picked, nil
	case 1:
		return nil, fmt.Errorf("node %s: %w%s", missing[0], dsas.ErrNotFound, dsas.DidYouMean(missing[0], all))
	}
	if len(missing) > 10 {
		missing = append(missing[:10:10], fmt.Sprintf("and %d more", len(missing)-10))
	}
	return nil, fmt.Errorf("nodes %s: %w", strings.Join(missing, ", "), dsas.ErrNotFound)
}

func namesOf(views []dsas.NodeView) []string {
	names := make([]string, len(views))
	for i, v := range views {
		names[i] = v.Node.Name
	}
	return names
}

// printf writes a line for people. Values from outside go through clean first.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.stdout, format, args...) }

// writeJSON prints v for programs.
func (a *app) writeJSON(v any) error { return printJSON(a.stdout, v, "  ") }

// printJSON writes v so that a terminal it lands on is safe: encoding/json
// escapes the control characters below space, but not DEL, the C1 ones and
// those that turn the writing direction.
func printJSON(w io.Writer, v any, indent string) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", indent)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	_, err := io.WriteString(w, escapeUnsafe(b.String()))
	return err
}

// interactive tells whether somebody sits at stdin.
func (a *app) interactive() (*os.File, bool) {
	f, ok := a.stdin.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks before something is lost.
func (a *app) confirm(question string, yes bool) error {
	if yes {
		return nil
	}
	if _, ok := a.interactive(); !ok {
		return usagef("%s Nobody is there to answer: give --yes", question)
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil && err != io.EOF {
		return fmt.Errorf("read answer: %w", err)
	}
	if !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(line))) {
		return fmt.Errorf("not done")
	}
	return nil
}

// askSecret reads a line without showing it; "" where nobody can be asked.
func (a *app) askSecret(prompt string) (string, error) {
	f, ok := a.interactive()
	if !ok {
		return "", nil
	}
	fmt.Fprint(a.stderr, prompt)
	b, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return string(b), nil
}

// width gives the columns of the terminal at stdout, 0 where there is none.
func (a *app) width() int {
	f, ok := a.stdout.(*os.File)
	if !ok {
		return 0
	}
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return w
}

// colours tells whether stdout shows them and nobody asked for none
// (no-color.org).
func (a *app) colours() bool {
	return a.width() > 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// table prints t, or says that there is nothing.
func (a *app) table(t *table, nothing string) error {
	if len(t.rows) == 0 {
		a.printf("%s\n", nothing)
		return nil
	}
	return t.write(a.stdout, a.width(), a.colours())
}
