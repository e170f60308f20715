package web

import (
	"cmp"
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"time"
	"unicode"

	"dsas"
)

// funcs are what the templates may call.
func (w *web) funcs() template.FuncMap {
	return template.FuncMap{
		"ago":   w.marks.ago,
		"clock": w.marks.clock,
		"unix":  func(t time.Time) int64 { return t.UnixMilli() },
		"stamp": func(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") },
		"secs":  secs,
		"bytes": bytesText,
		"clean": clean,
		"kind":  func(k dsas.Kind) string { return clean(string(k)) },
		"what":  what,
		"bad":   bad,
		"pips":  pips,
	}
}

// ago says how long ago in one unit: what one wants to know of a phase. The
// script has the same function, which counts on.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return ""
	case d < time.Second: // or a clock of its own that runs ahead
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func secs(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

func bytesText(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// clean takes the teeth out of text from the boot network: HTML escaping is
// the templates' work, but control signs and signs that turn the direction of
// writing could still make a line look like another.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == '\r':
			return -1
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r):
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// what says an event in words: its message, or what its kind means.
func what(e dsas.Event) string {
	if m := strings.TrimSpace(clean(e.Message)); m != "" {
		if e.Kind == dsas.KindPower {
			return strings.TrimSpace(m + " " + clean(e.Detail))
		}
		return m
	}
	return map[dsas.Kind]string{
		dsas.KindDHCP: "address given", dsas.KindNBP: "boot loader sent", dsas.KindScript: "boot script sent",
		dsas.KindKernel: "kernel sent", dsas.KindInitramfs: "initramfs sent", dsas.KindConfigTaken: "node config taken",
		dsas.KindInit: "init is up with its network", dsas.KindFetch: "image is being fetched", dsas.KindFetched: "image unpacked",
		dsas.KindConf: "dsas.conf applied", dsas.KindSwitched: "runs in the role's root", dsas.KindReady: "all services are healthy",
		dsas.KindLost: "heartbeats stopped", dsas.KindBack: "heartbeats are back",
	}[e.Kind]
}

// bad tells whether an event is one to look at.
func bad(k dsas.Kind) bool {
	switch k {
	case dsas.KindFailed, dsas.KindPartBad, dsas.KindConfError, dsas.KindLost, dsas.KindRefused, dsas.KindLoaderFailed, dsas.KindWarning, dsas.KindRolledBack:
		return true
	}
	return false
}

// pip is one step of a boot under way.
type pip struct {
	X          int
	Done, Here bool
}

// pips shows how far a boot is; none for a node that is not booting.
func pips(p dsas.Phase) []pip {
	order := []dsas.Phase{dsas.PhasePower, dsas.PhaseDHCP, dsas.PhaseLoader, dsas.PhaseKernel, dsas.PhaseInit, dsas.PhaseFetch, dsas.PhaseServices}
	at := -1
	for i, o := range order {
		if o == p {
			at = i
		}
	}
	if at < 0 {
		return nil
	}
	out := make([]pip, len(order))
	for i := range out {
		out[i] = pip{X: i * 9, Done: i < at, Here: i == at}
	}
	return out
}

// foldNames writes many names short, as dsas.ExpandNames reads them:
// "w[101-103] db1". Names keep their order.
func foldNames(names []string) string {
	var out []string
	for i := 0; i < len(names); {
		stem, num, ok := splitNumber(names[i])
		j := i + 1
		for ok && j < len(names) {
			s, n, k := splitNumber(names[j])
			if !k || s != stem || n != num+j-i || names[j] != fmt.Sprintf("%s%0*d", stem, len(names[i])-len(stem), n) {
				break
			}
			j++
		}
		if j-i < 3 {
			j = i + 1
			out = append(out, names[i])
		} else {
			out = append(out, fmt.Sprintf("%s[%s-%s]", stem, names[i][len(stem):], names[j-1][len(stem):]))
		}
		i = j
	}
	return strings.Join(out, " ")
}

// splitNumber cuts the number off a name's end.
func splitNumber(name string) (stem string, n int, ok bool) {
	stem = strings.TrimRight(name, "0123456789")
	n, err := strconv.Atoi(name[len(stem):])
	return stem, n, err == nil
}

func orNone(role string) string { return cmp.Or(role, "none") }
