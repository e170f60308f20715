package main

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// The command line's library names its own tokens and Go's types where a value
// is missing or wrong. These are its words; what is not among them stays as it is.
var (
	noValueRE    = regexp.MustCompile(`^(\S+): expected \S+ value but got "(.*)" \((<EOL>|\w+ flag)`)
	noNumberRE   = regexp.MustCompile(`^(\S+): expected a valid (\d+) bit (u?)int but got "(.*)"$`)
	noDurationRE = regexp.MustCompile(`^(\S+): expected duration but got "(.*?)"(: .*)?$`)
	noChoiceRE   = regexp.MustCompile(`^(\S+) must be one of (\S+) but got "(.*)"$`)
	noArgumentRE = regexp.MustCompile(`^expected "(<.*)"$`)
	noCommandRE  = regexp.MustCompile(`^expected one of "\w`)
	noFlagRE     = regexp.MustCompile(`^unknown flag (-\d+)`)
)

// usageText says in our words what the parser has against a command line; flags
// are those of the command.
func usageText(err error, flags []*kong.Flag) error {
	said := err.Error()
	if m := noValueRE.FindStringSubmatch(said); m != nil {
		way := m[1] + "=" + valueOf(m[1], flags)
		switch m[3] {
		case "<EOL>":
			return fmt.Errorf("%s: its value is missing; write %s", m[1], way)
		case "long flag":
			return fmt.Errorf("%s: its value is missing: %s is a flag; write %s", m[1], m[2], way)
		}
		return fmt.Errorf("%s: its value is missing: %s begins with a dash, as flags do; write %s, or %s=%s if that is the value", m[1], m[2], way, m[1], m[2])
	}
	if m := noNumberRE.FindStringSubmatch(said); m != nil {
		want := "a whole number"
		if bits, err := strconv.Atoi(m[2]); err == nil && bits < 64 && m[3] == "u" {
			want = fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<bits-1)
		}
		return fmt.Errorf("%s: %q: want %s", m[1], unquoted(m[4]), want)
	}
	if m := noDurationRE.FindStringSubmatch(said); m != nil {
		return fmt.Errorf("%s: %q is no duration; write it as 90s, 15m or 1h30m", m[1], unquoted(m[2]))
	}
	if m := noChoiceRE.FindStringSubmatch(said); m != nil {
		var choices []string
		for c := range strings.SplitSeq(m[2], ",") {
			if c = strings.Trim(c, `"`); c != "" {
				choices = append(choices, c)
			}
		}
		or := " or "
		if len(choices) > 2 {
			or = ", "
		}
		return fmt.Errorf("%s: %q: use %s", m[1], unquoted(m[3]), strings.Join(choices, or))
	}
	if m := noArgumentRE.FindStringSubmatch(said); m != nil {
		return fmt.Errorf("missing: %s", m[1])
	}
	if m := noFlagRE.FindStringSubmatch(said); m != nil {
		return fmt.Errorf("%s: it begins with a dash, as flags do, and there is no such flag", m[1])
	}
	return err
}

// valueOf is how help shows the value of a flag, VALUE where it does not.
func valueOf(name string, flags []*kong.Flag) string {
	for _, f := range flags {
		if f.ShortSummary() == name && f.PlaceHolder != "" {
			return f.PlaceHolder
		}
	}
	return "VALUE"
}

// unquoted takes back the escapes of %q, which the parser has written.
func unquoted(s string) string {
	if plain, err := strconv.Unquote(`"` + s + `"`); err == nil {
		return plain
	}
	return s
}

// usageOf makes of the parser's error one in our words, with the command whose
// help to read.
func usageOf(err error) usageError {
	usage := usageError{err: err, command: "dsas"}
	p, ok := errors.AsType[*kong.ParseError](err)
	if !ok || p.Context == nil {
		return usage
	}
	usage.err = usageText(err, p.Context.Flags())
	if node := p.Context.Selected(); node != nil {
		usage.command = node.FullPath()
		if noCommandRE.MatchString(err.Error()) {
			usage.err = fmt.Errorf("missing: what to do; there are: %s", strings.Join(commandsOf(node), ", "))
		}
	}
	return usage
}

// commandsOf names the commands of a command.
func commandsOf(node *kong.Node) (names []string) {
	for _, child := range node.Children {
		if !child.Hidden {
			names = append(names, child.Name)
		}
	}
	return names
}
