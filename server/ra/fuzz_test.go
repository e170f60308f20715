package ra

import "testing"

func TestSolicitation(t *testing.T) {
	plain := []byte{133, 0, 0, 0, 0, 0, 0, 0}
	with := func(o ...byte) []byte { return append(append([]byte{}, plain...), o...) }
	for _, tt := range []struct {
		name string
		b    []byte
		hop  int
		want bool
	}{
		{"plain", plain, 255, true},
		{"with its link-layer address", with(1, 1, 0x52, 0x54, 0, 0, 1, 1), 255, true},
		{"from another link", plain, 254, false},
		{"no hop limit", plain, 0, false},
		{"short", plain[:7], 255, false},
		{"empty", nil, 255, false},
		{"an advertisement", append([]byte{134}, plain[1:]...), 255, false},
		{"code 1", append([]byte{133, 1}, plain[2:]...), 255, false},
		{"option of length 0", with(1, 0, 0, 0, 0, 0, 0, 0), 255, false},
		{"option over the end", with(1, 2, 0, 0, 0, 0, 0, 0), 255, false},
		{"half an option", with(1), 255, false},
	} {
		if got := solicitation(tt.b, tt.hop); got != tt.want {
			t.Errorf("solicitation(%s) = %v; want %v", tt.name, got, tt.want)
		}
	}
}

func FuzzSolicitation(f *testing.F) {
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0}, 255)
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0, 1, 1}, 255)
	f.Add([]byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 0}, 255)
	f.Fuzz(func(t *testing.T, b []byte, hop int) {
		if solicitation(b, hop) && (hop != 255 || len(b) < 8 || len(b)%8 != 0) {
			t.Errorf("solicitation(%x, %d) = true", b, hop)
		}
	})
}
