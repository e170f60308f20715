package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"dsas"
)

// style is an SGR colour (ECMA-48 section 8.3.117); 0 for none.
type style int

const (
	plain  style = 0
	bold   style = 1
	dim    style = 2
	red    style = 31
	green  style = 32
	yellow style = 33
)

// cell is one field of a table.
type cell struct {
	text  string
	style style
}

// table prints aligned columns. Everything shown goes through clean: events
// and vendor classes come from the boot network, where anybody may speak.
type table struct {
	head []string
	rows [][]cell
}

// row adds a line of unstyled cells.
func (t *table) row(texts ...string) {
	cells := make([]cell, len(texts))
	for i, s := range texts {
		cells[i] = cell{text: s}
	}
	t.rows = append(t.rows, cells)
}

func (t *table) cells(c ...cell) { t.rows = append(t.rows, c) }

// write prints t; width > 0 cuts the lines to it.
func (t *table) write(w io.Writer, width int, colours bool) error {
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		head[i] = cell{h, bold}
	}
	lines := t.rows
	if len(head) > 0 {
		lines = append([][]cell{head}, t.rows...)
	}
	var widths []int
	for _, line := range lines {
		for i := range line {
			line[i].text = clean(line[i].text)
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(line[i].text))
		}
	}
	var b strings.Builder
	for _, line := range lines {
		column := 0
		for i, c := range line {
			text := c.text
			pad := widths[i] - utf8.RuneCountInString(text)
			if i == len(line)-1 {
				pad = 0
				text = cut(text, width, column)
			}
			if colours && c.style != plain && text != "" {
				fmt.Fprintf(&b, "\x1b[%dm%s\x1b[0m", c.style, text)
			} else {
				b.WriteString(text)
			}
			if i < len(line)-1 {
				b.WriteString(strings.Repeat(" ", pad+2))
				column += widths[i] + 2
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, trimLines(b.String()))
	return err
}

// cut shortens the last field of a line that begins at column; a terminal of
// no known width, or too narrow for it to make sense, gets all.
func cut(text string, width, column int) string {
	room := width - column
	if width == 0 || room < 10 || utf8.RuneCountInString(text) <= room {
		return text
	}
	return string([]rune(text)[:room-1]) + "…"
}

// trimLines takes the blanks off the ends of lines, which empty last fields leave.
func trimLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// unsafeRune tells what could drive a terminal or make text look like other
// text: control characters (C0, DEL, C1), format characters such as those that
// turn the writing direction, and line separators.
func unsafeRune(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co)
}

// clean makes s one harmless line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n':
			return ' '
		case unsafeRune(r):
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// escapeUnsafe writes unsafe characters of JSON text as \u escapes.
func escapeUnsafe(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n' || !unsafeRune(r):
			b.WriteRune(r)
		case r > 0xffff:
			hi, lo := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// phaseCell colours a phase.
func phaseCell(p dsas.Phase) cell {
	c := cell{text: string(p)}
	switch p {
	case dsas.PhaseReady:
		c.style = green
	case dsas.PhaseFailed, dsas.PhaseLost:
		c.style = red
	case dsas.PhaseOff, dsas.PhaseNew:
		c.style = dim
	default:
		c.style = yellow
	}
	return c
}

// ago says how long ago t was, in the two units that matter.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return short(now.Sub(t))
}

// short writes a duration in at most two units: 850ms, 4.2s, 3m12s, 5h20m, 12d4h.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// size writes bytes in binary units.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB"} {
		if v /= 1024; v < 1024 {
			return fmt.Sprintf("%.1f %s", v, unit)
		}
	}
	return fmt.Sprintf("%.1f TiB", v/1024)
}

// or gives s, or a dash where there is none.
func or(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// writeLoose prints the cells of each line one after the other, not aligned.
func (t *table) writeLoose(w io.Writer, colours bool) error {
	for _, line := range t.rows {
		one := table{rows: [][]cell{line}}
		if err := one.write(w, 0, colours); err != nil {
			return err
		}
	}
	return nil
}
