package dsas

import (
	"encoding/hex"
	"errors"
	"testing"
)

func TestVendorOptions(t *testing.T) {
	for _, tt := range []struct {
		in   VendorOptions
		want string // "": ErrInvalid
	}{
		{VendorOptions{Class: "a", Hex: "01:02"}, "0102"},
		{VendorOptions{Class: "a", Options: map[int]string{2: "hi", 1: "10.0.0.1", 3: "0xff00"}}, "01040a000001" + "02026869" + "0302ff00" + "ff"},
		{VendorOptions{Hex: "01"}, ""},
		{VendorOptions{Class: "a"}, ""},
		{VendorOptions{Class: "a", Hex: "xyz"}, ""},
		{VendorOptions{Class: "a", Hex: "01", Options: map[int]string{1: "a"}}, ""},
		{VendorOptions{Class: "a", Options: map[int]string{0: "a"}}, ""},
		{VendorOptions{Class: "a", Options: map[int]string{255: "a"}}, ""},
		{VendorOptions{Class: "a", Options: map[int]string{1: "0xz"}}, ""},
	} {
		b, err := tt.in.Bytes()
		if got := hex.EncodeToString(b); got != tt.want || (tt.want == "") != errors.Is(err, ErrInvalid) {
			t.Errorf("%+v.Bytes = %s, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}
