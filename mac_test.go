package dsas

import (
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
)

func TestParseMAC(t *testing.T) {
	want := MAC{0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc}
	for _, s := range []string{
		"52:54:00:aa:bb:cc", "52-54-00-aa-bb-cc", "5254.00aa.bbcc", "525400aabbcc",
		"01-52-54-00-aa-bb-cc", "52:54:00:AA:BB:CC", " 52:54:00:aa:bb:cc\n",
	} {
		if got, err := ParseMAC(s); got != want || err != nil {
			t.Errorf("ParseMAC(%q) = %s, %v; want %s", s, got, err, want)
		}
	}
	for s, why := range map[string]string{
		"":                        "six pairs",
		"52:54:00:aa:bb":          "six pairs",
		"52:54:00:aa:bb:cc:dd":    "six pairs",
		"52:54:00:aa:bb:c":        "six pairs",
		"52:54-00:aa:bb:cc":       "six pairs",
		"5:254:00:aa:bb:cc":       "six pairs",
		"525400:aabbcc":           "six pairs",
		"5254.00aa:bbcc":          "six pairs",
		"52:54:00:aa:bb:gg":       "not hexadecimal",
		"g25400aabbcc":            "not hexadecimal",
		"00:00:00:00:00:00":       "all zero",
		"ff:ff:ff:ff:ff:ff":       "multicast",
		"01:00:5e:00:00:01":       "multicast",
		"06-52-54-00-aa-bb-cc":    "six pairs", // BOOTIF of another hardware type
		"01:52:54:00:aa:bb:cc":    "six pairs",
		strings.Repeat("5", 1000): "six pairs",
	} {
		got, err := ParseMAC(s)
		if !errors.Is(err, ErrInvalid) || !got.IsZero() {
			t.Errorf("ParseMAC(%.40q) = %s, %v; want ErrInvalid", s, got, err)
		} else if !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "52:54:00:aa:bb:cc") {
			t.Errorf("ParseMAC(%.40q): %v; want it to say %q and how to write one", s, err, why)
		}
	}
}

func TestMACForms(t *testing.T) {
	m := MAC{0x52, 0x54, 0x00, 0xaa, 0xbb, 0xcc}
	if got := m.String(); got != "52:54:00:aa:bb:cc" {
		t.Errorf("String = %s", got)
	}
	if got := m.Dashed(); got != "52-54-00-aa-bb-cc" {
		t.Errorf("Dashed = %s", got)
	}
	if got, ok := MACFrom(m.HardwareAddr()); got != m || !ok {
		t.Errorf("MACFrom(HardwareAddr) = %s, %v; want %s", got, ok, m)
	}
	for _, hw := range []net.HardwareAddr{nil, {1, 2, 3}, make([]byte, 6), make([]byte, 20)} {
		if got, ok := MACFrom(hw); ok {
			t.Errorf("MACFrom(%v) = %s; want false", hw, got)
		}
	}
	text, err := json.Marshal(map[MAC]NIC{m: {m}})
	if want := `{"52:54:00:aa:bb:cc":{"mac":"52:54:00:aa:bb:cc"}}`; err != nil || string(text) != want {
		t.Errorf("JSON = %s, %v; want %s", text, err, want)
	}
	var back map[MAC]NIC
	if err := json.Unmarshal(text, &back); err != nil || back[m].MAC != m {
		t.Errorf("read back: %v, %v; want %s", back, err, m)
	}
	if err := json.Unmarshal([]byte(`{"mac":"nonsense"}`), new(NIC)); !errors.Is(err, ErrInvalid) {
		t.Errorf("NIC from nonsense: %v; want ErrInvalid", err)
	}
}

func FuzzParseMAC(f *testing.F) {
	for _, s := range []string{"52:54:00:aa:bb:cc", "01-52-54-00-aa-bb-cc", "5254.00aa.bbcc", "525400aabbcc", "::::::", "", "ÿÿÿÿÿÿ", "01-ÿ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMAC(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || !m.IsZero() {
				t.Errorf("ParseMAC(%q) = %s, %v; want ErrInvalid and no MAC", s, m, err)
			}
			return
		}
		if m.IsZero() || m[0]&1 != 0 {
			t.Errorf("ParseMAC(%q) = %s, which no NIC has", s, m)
		}
		for _, form := range []string{m.String(), m.Dashed(), "01-" + m.Dashed()} {
			if again, err := ParseMAC(form); again != m || err != nil {
				t.Errorf("ParseMAC(%q) = %s, and ParseMAC(%q) = %s, %v", s, m, form, again, err)
			}
		}
	})
}
