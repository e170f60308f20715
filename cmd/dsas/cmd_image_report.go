package main

import (
	"fmt"
	"strings"

	"dsas"
	"dsas/imagebuild"
)

// parseAllow reads the values of --allow.
func parseAllow(values []string) ([]dsas.Allow, error) {
	var out []dsas.Allow
	for _, v := range values {
		path, reason, ok := strings.Cut(v, "=")
		if path, reason = strings.TrimSpace(path), strings.TrimSpace(reason); !ok || path == "" || reason == "" {
			return nil, usageError{err: fmt.Errorf("--allow %s: want PATH=REASON, the path as the finding names it and why it may pass: %w", v, dsas.ErrInvalid)}
		}
		out = append(out, dsas.Allow{Path: path, Reason: reason})
	}
	return out, nil
}

// printReport tells people what else is to be known of a built image.
func printReport(a *app, r imagebuild.Report) {
	line := func(format string, args ...any) { fmt.Fprintln(a.stdout, clean("  "+fmt.Sprintf(format, args...))) }
	for _, c := range r.Base {
		line("base: %s", c)
	}
	for _, c := range r.Packages {
		line("%s", c)
	}
	for _, f := range r.Allowed {
		line("%s", f)
	}
	for _, p := range r.UnusedAllow {
		line("allow %s: nothing was found there; take it out", p)
	}
	if len(r.Privileged) > 0 {
		var names []string
		for _, p := range r.Privileged {
			names = append(names, p.Path)
		}
		line("%s with rights of %s own (setuid, setgid, capabilities): %s", dsas.Count(len(names), "program"), dsas.Agree(len(names), "its", "their"), strings.Join(names, " "))
	}
}
