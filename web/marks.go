package web

import (
	"bytes"
	"crypto/rand"
	"io"
	"strconv"
	"time"
)

// marks stand in what the templates write for what depends on the clock, and
// are filled in when it is sent: so what was written once can be sent again, and
// two pages that differ in nothing but ages are known to be the same.
type marks struct {
	// begin is what a mark begins with: unknown to whoever gets text onto a page.
	begin string
}

// A mark is begin, milliseconds since 1970 in hex (nothing for the clock), and
// its end.
const markEnd = ';'

func newMarks() marks { return marks{"mark" + rand.Text()} }

// ago marks how long ago t is.
func (m marks) ago(t time.Time) string {
	return m.begin + strconv.FormatInt(t.UnixMilli(), 16) + string(markEnd)
}

// clock marks the time, in milliseconds since 1970: by it the script counts ages.
func (m marks) clock() string { return m.begin + string(markEnd) }

// write sends page with its marks filled in.
func (m marks) write(w io.Writer, page []byte, now time.Time) {
	out := make([]byte, 0, len(page)+1024)
	for {
		i := bytes.Index(page, []byte(m.begin))
		if i < 0 {
			break
		}
		out = append(out, page[:i]...)
		page = page[i+len(m.begin):]
		end := max(bytes.IndexByte(page, markEnd), 0) // ago and clock write it
		if at, err := strconv.ParseInt(string(page[:end]), 16, 64); err == nil {
			out = append(out, ago(now, time.UnixMilli(at))...)
		} else {
			out = strconv.AppendInt(out, now.UnixMilli(), 10)
		}
		page = page[end+1:]
	}
	_, _ = w.Write(append(out, page...)) // the reader has gone: nobody to tell
}
