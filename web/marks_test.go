package web

import (
	"strings"
	"testing"
	"time"
)

func TestMarks(t *testing.T) {
	m := newMarks()
	at := time.UnixMilli(1_800_000_000_000)
	page := `<div data-now="` + m.clock() + `"></div><time>` + m.ago(at) + `</time> <b>mark;</b> ` + m.ago(at.Add(-90*time.Second)) + "|" + m.ago(time.UnixMilli(-5))
	for _, tt := range []struct {
		after time.Duration
		want  string
	}{
		{0, `<div data-now="1800000000000"></div><time>0s</time> <b>mark;</b> 1m|20833d`},
		{5 * time.Minute, `<div data-now="1800000300000"></div><time>5m</time> <b>mark;</b> 6m|20833d`},
	} {
		var out strings.Builder
		m.write(&out, []byte(page), at.Add(tt.after))
		if out.String() != tt.want {
			t.Errorf("after %s: %s; want %s", tt.after, out.String(), tt.want)
		}
	}
	if newMarks() == m {
		t.Error("two servers have the same marks; want them unknown beforehand")
	}
}
