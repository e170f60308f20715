package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"dsas"
	"dsas/capture"
)

// show lists changes for people, those that can be carried with their numbers.
func (c *carrier) show(changes []capture.Change) error {
	t := &table{head: []string{"NO", "PATH", "CHANGE", "SIZE", "NOTE"}}
	n := 0
	for _, ch := range changes {
		no, length := "", ""
		if ch.To != "" {
			n++
			no = strconv.Itoa(n)
		}
		if ch.Size > 0 {
			length = size(ch.Size)
		}
		what := ch.Kind
		if len(ch.What) > 0 {
			what += ": " + strings.Join(ch.What, ", ")
		}
		note := ch.Note
		if ch.To == "" {
			note = "left: " + note
		}
		t.row(no, clean(ch.Path), clean(what), length, clean(note))
	}
	return c.a.table(t, fmt.Sprintf("%s is as release %s has it.", c.of, c.rel.Name()))
}

// choose has somebody pick what to carry: by --path and --yes, or on a terminal
// by number.
func (c *carrier) choose(changes []capture.Change) ([]capture.Change, error) {
	if c.all || len(c.patterns) > 0 {
		var patterns []string
		if len(c.patterns) > 0 {
			patterns = c.patterns
		}
		chosen, err := capture.Choose(changes, patterns)
		if err != nil {
			return nil, usageError{err: err}
		}
		return chosen, nil
	}
	if _, ok := c.a.interactive(); !ok || c.a.JSON {
		return nil, usagef("capture %s: nobody is there to choose: give --path, or --yes for all; --dry-run lists what differs", c.of)
	}
	if err := c.show(changes); err != nil {
		return nil, err
	}
	var can []capture.Change
	for _, ch := range changes {
		if ch.To != "" {
			can = append(can, ch)
		}
	}
	if len(can) == 0 {
		return nil, nil
	}
	in := bufio.NewReader(c.a.stdin)
	for {
		fmt.Fprint(c.a.stderr, "Which are to be kept? Numbers (1,3-5), all, or none: ")
		line, err := in.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read answer: %w", err)
		}
		picked, perr := pick(line, len(can))
		if perr == nil {
			var chosen []capture.Change
			for _, i := range picked {
				// A secret is no part of "all".
				if !can[i].Private || strings.TrimSpace(line) != "all" {
					chosen = append(chosen, can[i])
				}
			}
			return chosen, nil
		}
		if err != nil { // the end of the input
			return nil, perr
		}
		fmt.Fprintln(c.a.stderr, message(perr))
	}
}

// pick reads "1,3-5", "all", and "none" or nothing, into indexes below n.
func pick(line string, n int) ([]int, error) {
	line = strings.TrimSpace(line)
	var out []int
	switch line {
	case "", "none", "n":
		return nil, nil
	case "all":
		line = fmt.Sprintf("1-%d", n)
	}
	seen := map[int]bool{}
	for word := range strings.FieldsFuncSeq(line, func(r rune) bool { return r == ',' || r == ' ' }) {
		from, to, isRange := strings.Cut(word, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || a < 1 || b > n || a > b {
			return nil, fmt.Errorf("%.40q: write numbers from 1 to %d, as 1,3-5: %w", word, n, dsas.ErrInvalid)
		}
		for i := a - 1; i < b; i++ {
			if !seen[i] {
				seen[i] = true
				out = append(out, i)
			}
		}
	}
	return out, nil
}
