package dhcp

import (
	"bytes"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// TestPadBootFile: who reads by the length finds the name, and who reads to a
// zero byte finds the same.
func TestPadBootFile(t *testing.T) {
	for _, name := range []string{"nbp/52-54-00-00-01-01/undionly.kpxe", "x"} {
		m, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithGeneric(dhcpv4.OptionBootfileName, []byte(name)),
			dhcpv4.WithGeneric(dhcpv4.OptionTFTPServerName, []byte("10.0.0.1")), dhcpv4.WithGeneric(dhcpv4.OptionRelayAgentInformation, []byte{1, 2, 3, 4}))
		if err != nil {
			t.Fatal(err)
		}
		plain := m.ToBytes()
		b := padBootFile(bytes.Clone(plain))
		if len(b) > len(plain)+1 || len(b) < len(plain) {
			t.Errorf("%q: %d bytes, were %d; want at most one more", name, len(b), len(plain))
		}
		i := bytes.Index(b, append([]byte{67, byte(len(name))}, name...))
		if i < 0 {
			t.Fatalf("%q: option 67 is gone: %x", name, b)
		}
		rest := b[i+2:]
		if got := string(rest[:bytes.IndexByte(rest, 0)]); got != name {
			t.Errorf("read up to a zero byte the name is %q; want %q", got, name)
		}
		back, err := dhcpv4.FromBytes(b)
		if err != nil || back.BootFileNameOption() != name || back.Options.Get(dhcpv4.OptionRelayAgentInformation) == nil || len(back.Options) != len(m.Options) {
			t.Errorf("%q: after the pad it reads %v, %v", name, back, err)
		}
	}
	for _, same := range [][]byte{nil, make([]byte, 240), append(make([]byte, 240), 67), append(make([]byte, 240), 67, 9, 1), append(make([]byte, 240), 53, 1, 2, 255)} {
		if got := padBootFile(bytes.Clone(same)); !bytes.Equal(got, same) {
			t.Errorf("padBootFile(%x) = %x; want it unchanged", same, got)
		}
	}
}
