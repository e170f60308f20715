package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"dsas/lab/figures"
)

// sample is what one turn of one contender gave. extra are further figures by
// name, such as "lost", "retries", "p50 ms", "server CPU s".
type sample struct {
	value float64
	extra map[string]float64
}

// contender is a program that does the work of a row.
type contender struct {
	name string // "dsas" is ours; a name that begins with it, ours otherwise set up
	turn func(ctx context.Context) (sample, error)
	// reference: it is no peer, and shown without being compared with.
	reference bool
}

// work is a row to be measured.
type work struct {
	name string
	unit string
	// less: a smaller value is the better one (milliseconds, CPU seconds).
	less       bool
	contenders []contender
	goal       string                    // in words
	met        func(r row) (bool, error) // nil: not judged; gets the finished row
	note       string
}

const oursName = "dsas"

// contest lets the contenders take turns and adds the row of their medians. A
// peer that fails costs its own figure and is named in the note; ours is an
// error.
func (b *bench) contest(ctx context.Context, w work) error {
	if !strings.Contains(w.name, b.rows) {
		return nil
	}
	if b.who != "" {
		w.contenders = slices.DeleteFunc(w.contenders, func(c contender) bool {
			return !slices.ContainsFunc(strings.Split(b.who, ","), func(part string) bool { return strings.Contains(c.name, part) })
		})
	}
	samples := map[string][]sample{}
	failed := map[string]error{}
	for i := range b.runs {
		for _, c := range w.contenders {
			if failed[c.name] != nil {
				continue
			}
			s, err := c.turn(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				if c.name == oursName {
					return fmt.Errorf("%s: %w", w.name, err)
				}
				failed[c.name] = err
				b.say("%s: %s: %v", w.name, c.name, err)
				continue
			}
			b.say("%s, turn %d: %s %s %s%s", w.name, i+1, c.name, figures.Number(s.value), w.unit, extraText(s.extra))
			samples[c.name] = append(samples[c.name], s)
		}
	}
	r := row{Name: w.name, Unit: w.unit, Less: w.less, Goal: w.goal, Note: w.note, Peers: map[string]float64{}, Others: map[string]float64{}, Extra: map[string]map[string]float64{}}
	for _, c := range w.contenders {
		s := samples[c.name]
		if len(s) == 0 || failed[c.name] != nil {
			if err := failed[c.name]; err != nil {
				r.addNote("%s not measured: %s", c.name, firstLine(err.Error()))
			}
			continue
		}
		v := medianOf(s, func(s sample) float64 { return s.value })
		switch {
		case c.name == oursName:
			r.Ours = &v
		case c.reference || strings.HasPrefix(c.name, oursName):
			r.Others[c.name] = v
		default:
			r.Peers[c.name] = v
		}
		r.Extra[c.name] = medians(s)
		for _, s := range s {
			r.turns(c.name, s.value)
		}
	}
	r.compare()
	if w.met != nil && r.Ours != nil {
		ok, err := w.met(r)
		if err != nil {
			r.addNote("aim not judged: %s", err)
		} else {
			r.OK = &ok
		}
	}
	b.report.add(r)
	return nil
}

// medians gives the median of each further figure; one that only some turns
// have is the median of those.
func medians(all []sample) map[string]float64 {
	out := map[string]float64{}
	for _, s := range all {
		for name := range s.extra {
			var with []sample
			for _, s := range all {
				if _, ok := s.extra[name]; ok {
					with = append(with, s)
				}
			}
			out[name] = medianOf(with, func(s sample) float64 { return s.extra[name] })
		}
	}
	return out
}

func medianOf(all []sample, of func(sample) float64) float64 {
	v := make([]float64, len(all))
	for i, s := range all {
		v[i] = of(s)
	}
	return median(v)
}

// median of v, which is sorted by it; of an even number, the mean of the middle two.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func extraText(extra map[string]float64) string {
	if len(extra) == 0 {
		return ""
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		words = append(words, name+" "+figures.Number(extra[name]))
	}
	return " (" + strings.Join(words, ", ") + ")"
}
