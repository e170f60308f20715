package dsasconf

import (
	"errors"
	"fmt"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// Limits on what is read, so that no file, however wrong, costs a boot more
// than a moment: a dsas.conf has some tens of lines.
const (
	maxText      = 256 << 10
	maxErrors    = 100
	maxStmtLines = 100 // lines of one statement (a long array)
	maxLine      = 16 << 10
	maxValue     = 8 << 10
	maxElems     = 256
	maxIndex     = 255
	maxExpans    = 64 // expansions in one statement
)

// Parse reads the text of a dsas.conf. It always gives a Config, made of the
// lines that are right; the errors are in the order of the lines.
func Parse(text string) (*Config, []LineError) {
	p := &parser{sh: newShell()}
	if len(text) > maxText {
		p.fail(LineError{Line: 1, Reason: fmt.Sprintf("the file has %d bytes; only the first %d are read", len(text), maxText)})
		text = text[:maxText]
	}
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	for i := 0; i < len(lines); {
		if len(p.errs) >= maxErrors {
			p.fail(LineError{Line: i + 1, Reason: "too many wrong lines; the rest of the file is not read"})
			break
		}
		i += p.statement(lines[i:], i+1)
	}
	cfg, errs := interpret(p.sh)
	p.errs = append(p.errs, errs...)
	sortErrors(p.errs)
	return cfg, p.errs
}

type parser struct {
	sh   *shell
	errs []LineError
}

func (p *parser) fail(e LineError) {
	if len(e.Value) > 80 {
		e.Value = e.Value[:77] + "..."
	}
	p.errs = append(p.errs, e)
}

// statement reads the statement (or the several of one line) that begins in
// lines[0], which is line number first of the file, and tells how many lines
// it took. The parser of a whole file would stop for good at the first syntax
// error; so it is given as many lines as make the statement complete, and
// after an error the next line is a fresh start.
func (p *parser) statement(lines []string, first int) int {
	if t := strings.TrimSpace(lines[0]); t == "" || t[0] == '#' {
		return 1
	}
	var text strings.Builder
	var stmts []*syntax.Stmt
	n := 0
	for {
		line := lines[n]
		if len(line) > maxLine {
			p.fail(LineError{Line: first + n, Reason: fmt.Sprintf("the line has %d bytes; at most %d are read", len(line), maxLine)})
			return n + 1
		}
		text.WriteString(line)
		text.WriteByte('\n')
		n++
		file, err := parseShell(text.String())
		more := n < len(lines) && n < maxStmtLines
		if err == nil {
			// A trailing backslash joins the next line.
			if more && strings.HasSuffix(line, `\`) && !strings.HasSuffix(line, `\\`) {
				continue
			}
			stmts = file.Stmts
			break
		}
		if syntax.IsIncomplete(err) && more {
			continue
		}
		reason, at := syntaxReason(err)
		if at > 1 {
			reason += fmt.Sprintf(" (seen at line %d)", first+at-1)
		}
		p.fail(LineError{Line: first, Reason: reason})
		return 1
	}
	for _, s := range stmts {
		errs, broken := p.sh.run(s, first-1)
		for _, e := range errs {
			p.fail(e)
		}
		if broken {
			return 1
		}
	}
	return n
}

// parseShell reads bash. A bug in the library must not take PID 1 down.
func parseShell(text string) (file *syntax.File, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the shell parser gave up: %v", r)
		}
	}()
	return syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(text), "")
}

// syntaxReason gives a parser's complaint for people, and the line it is at.
func syntaxReason(err error) (string, int) {
	var pe syntax.ParseError
	if errors.As(err, &pe) {
		return "not shell syntax: " + pe.Text + "; is a quote or a parenthesis missing?", int(pe.Pos.Line())
	}
	var le syntax.LangError
	if errors.As(err, &le) {
		return "not bash: " + le.Feature, int(le.Pos.Line())
	}
	return err.Error(), 1
}
