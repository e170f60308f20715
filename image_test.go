package dsas

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseDigest(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	d, err := ParseDigest("sha256:" + hex)
	if err != nil || string(d) != "sha256:"+hex || d.Hex() != hex || d.Short() != "0123456789ab" {
		t.Errorf("ParseDigest = %s, %v, hex %s, short %s", d, err, d.Hex(), d.Short())
	}
	for _, bad := range []string{
		"", "sha256:", hex, "sha256:" + hex[1:], "sha256:" + hex + "0", "sha256:" + strings.ToUpper(hex), "sha512:" + hex, "SHA256:" + hex,
		"sha256:" + hex + "\n", " sha256:" + hex, "sha256:../../../../etc/passwd" + hex[:38], "sha256:" + hex[:62] + "/x", strings.Repeat("x", 1<<16),
	} {
		if d, err := ParseDigest(bad); !errors.Is(err, ErrInvalid) || d != "" || len(err.Error()) > 500 {
			t.Errorf("ParseDigest(%.80q) = %q, %v; want ErrInvalid, said in short", bad, d, err)
		}
	}
	// What was never parsed does no harm in a table.
	for _, d := range []Digest{"", "x", "sha256:", "sha256:abc"} {
		if got := d.Short(); got != string(d) {
			t.Errorf("Digest(%q).Short() = %q; want it as it is", string(d), got)
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	for _, s := range []string{"sha256:" + strings.Repeat("a", 64), "sha256:../x", "", "sha256:" + strings.Repeat("A", 64), "sha256:" + strings.Repeat("a", 64) + "\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if err != nil {
			if d != "" || !errors.Is(err, ErrInvalid) {
				t.Errorf("ParseDigest(%q) = %q, %v; want ErrInvalid and none", s, d, err)
			}
			return
		}
		// It is used as a file name.
		if len(d.Hex()) != 64 || filepath.Base(d.Hex()) != d.Hex() || !filepath.IsLocal(d.Hex()) || string(d) != s {
			t.Errorf("ParseDigest(%q) = %q, which is no file name", s, d)
		}
	})
}
