package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"dsas"
)

type tokenCmd struct {
	Ls  tokenLsCmd  `cmd:"" help:"List tokens."`
	Add tokenAddCmd `cmd:"" help:"Make a token and print it, once."`
	Rm  tokenRmCmd  `cmd:"" help:"Make tokens worthless."`
}

type tokenLsCmd struct{}

func (*tokenLsCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	tokens, err := c.Tokens(ctx)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(tokens)
	}
	t := &table{head: []string{"NAME", "MADE", "LAST USED"}}
	now := time.Now()
	for _, k := range tokens {
		used := "never"
		if !k.LastUsed.IsZero() {
			used = ago(k.LastUsed, now) + " ago"
		}
		t.row(k.Name, ago(k.Created, now)+" ago", used)
	}
	return a.table(t, "No tokens. Make one with: dsas token add NAME")
}

type tokenAddCmd struct {
	Name string `arg:"" help:"Name of the token: who or what will use it."`
}

func (*tokenAddCmd) Help() string {
	return `Examples:

    dsas token add laptop > token && chmod 600 token
    dsas --server https://master:8443 --token-file token node ls`
}

func (cmd *tokenAddCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	t, err := c.AddToken(ctx, cmd.Name)
	if err != nil {
		return err
	}
	if a.JSON {
		return a.writeJSON(t)
	}
	// The token alone goes to stdout, so that it can be sent to a file.
	a.printf("%s\n", t.Secret)
	fmt.Fprintln(a.stderr, "This is the only time it is shown. Use it with --token-file or DSAS_TOKEN_FILE.")
	return nil
}

type tokenRmCmd struct {
	Names  []string `arg:"" help:"Tokens to remove."`
	Yes    bool     `short:"y" help:"Do not ask."`
	DryRun bool     `help:"Only say what would be done."`
}

func (cmd *tokenRmCmd) Run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	tokens, err := c.Tokens(ctx)
	if err != nil {
		return err
	}
	var known []string
	for _, t := range tokens {
		known = append(known, t.Name)
	}
	for _, n := range cmd.Names { // before the first is gone
		if !slices.Contains(known, n) {
			return fmt.Errorf("token %q: %w%s", n, dsas.ErrNotFound, dsas.DidYouMean(n, known))
		}
	}
	if cmd.DryRun {
		return a.done(cmd.Names, "would be removed")
	}
	if err := a.confirm(fmt.Sprintf("Remove %s?", strings.Join(cmd.Names, ", ")), cmd.Yes); err != nil {
		return err
	}
	for i, n := range cmd.Names {
		if err := c.RemoveToken(ctx, n); err != nil {
			return partly(cmd.Names[:i], "removed", err)
		}
	}
	return a.done(cmd.Names, "removed")
}
