package dhcp

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// TestAppendMessage: it writes byte by byte what the library does.
func TestAppendMessage(t *testing.T) {
	long := func(n int) []byte { return bytes.Repeat([]byte{7}, n) }
	list := map[string][]dhcpv4.Modifier{
		"nothing":       nil,
		"names":         {optText(12, "w101"), optText(67, undionly), func(m *dhcpv4.DHCPv4) { m.BootFileName, m.ServerHostName = undionly, "s" }},
		"82 goes last":  {opt(82, 1, 1, 1), opt(175, 1, 1, 1), opt(224, 9)},
		"empty":         {opt(61), optText(67, "")},
		"long":          {opt(43, long(255)...), opt(121, long(256)...), opt(119, long(700)...)},
		"pad and end":   {opt(0, 1), opt(255, 1)},
		"name too long": {func(m *dhcpv4.DHCPv4) { m.BootFileName = string(long(200)) }},
	}
	var all []dhcpv4.Modifier
	for code := 1; code < 255; code++ {
		all = append(all, opt(uint8(code), byte(code)))
	}
	list["all there are"] = all
	for name, mods := range list {
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(nodeMAC.HardwareAddr()), dhcpv4.WithYourIP(near.Server.AsSlice())}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		plain := m.ToBytes()
		if got := messageLen(m); got != len(plain) {
			t.Errorf("%s: messageLen = %d; want %d", name, got, len(plain))
		}
		want := padBootFile(plain)
		before := []byte("before")
		if got := appendMessage(bytes.Clone(before), m); !bytes.Equal(got, append(before, want...)) {
			t.Errorf("%s: appendMessage = %x; want %x", name, got[len(before):], want)
		}
		used := make([]byte, 4096) // memory that was another message
		copy(used, long(4096))
		if got := appendMessage(used[:0], m); !bytes.Equal(got, want) {
			t.Errorf("%s: appendMessage over another = %x; want %x", name, got, want)
		}
	}
}

// TestParseInto: requests of real clients read as the library reads them, also
// into memory that held another.
func TestParseInto(t *testing.T) {
	var used dhcpv4.DHCPv4
	for _, c := range captures(t) {
		want, err := dhcpv4.FromBytes(c.payload)
		if err != nil {
			t.Fatal(err)
		}
		if err := parseInto(&used, c.payload); err != nil || !reflect.DeepEqual(&used, want) {
			t.Errorf("parseInto(%s) = %+v, %v; want %+v", c.name, &used, err, want)
		}
		for n := range c.payload {
			if parseInto(&used, c.payload[:n]) == nil {
				if _, err := dhcpv4.FromBytes(c.payload[:n]); err != nil {
					t.Errorf("parseInto takes the first %d bytes of %s; the library says %v", n, c.name, err)
				}
			}
		}
	}
}
