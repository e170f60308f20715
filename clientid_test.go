package dsas

import (
	"errors"
	"strings"
	"testing"
)

func TestParseClientID(t *testing.T) {
	for in, want := range map[string]ClientID{
		"01:52:54:00:00:01:01": "01525400000101", "01-52-54-00-00-01-01": "01525400000101", "FF00aa": "ff00aa", " text:box7 ": "626f7837",
	} {
		if got, err := ParseClientID(in); err != nil || got != want {
			t.Errorf("ParseClientID(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "01", "xyz", "text:", "text:a", "012", strings.Repeat("00", 256)} {
		if got, err := ParseClientID(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseClientID(%q) = %q, %v; want ErrInvalid", in, got, err)
		}
	}
}
