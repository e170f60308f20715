package boot

import (
	"strings"
	"testing"

	"dsas"
)

func TestExplainProxy(t *testing.T) {
	steps := func(r Request) string {
		var s []string
		for _, e := range ExplainProxy(r) {
			if e.Reason == "" {
				t.Errorf("%s: no reason", e.Step)
			}
			s = append(s, e.Step+": "+e.Gets)
		}
		return strings.Join(s, "\n")
	}
	for _, tt := range []struct {
		arch dsas.Arch
		want string
	}{
		{dsas.ArchBIOS, "address: an address of the other DHCP server\nfirmware proxyDHCP: nbp/52-54-00-00-01-01/undionly.kpxe\nTFTP: nbp/52-54-00-00-01-01/undionly.kpxe\niPXE proxyDHCP: http://"},
		{dsas.ArchEFIX64, "address: an address of the other DHCP server\nfirmware proxyDHCP: the way to port 4011\nboot server: nbp/52-54-00-00-01-01/snponly.efi\nTFTP: nbp/52-54-00-00-01-01/snponly.efi\niPXE proxyDHCP: http://"},
	} {
		r := explainable()
		r.Arch, r.HasArch = tt.arch, true
		if got := steps(r); !strings.HasPrefix(got, tt.want) {
			t.Errorf("ExplainProxy(%s) = %s; want %s...", tt.arch, got, tt.want)
		}
	}
	r := explainable()
	r.Node, r.Arch, r.HasArch = nil, dsas.ArchBIOS, true
	if got := steps(r); !strings.HasSuffix(got, "firmware proxyDHCP: nothing of dsas; the other server's answer stands") {
		t.Errorf("ExplainProxy of an unknown box = %s; want it left to the other server", got)
	}
}

// explainable is a node that has all it needs.
func explainable() Request {
	digest := dsas.Digest("sha256:" + strings.Repeat("a", 64))
	mac := dsas.MAC{0x52, 0x54, 0, 0, 1, 1}
	return Request{
		MAC: mac, Node: &dsas.Node{Name: "w101", Role: "web", NICs: []dsas.NIC{{MAC: mac}}}, Server: Server{URL: "http://10.77.0.1:8080"},
		Release: &dsas.Release{ID: digest, Role: "web", Number: 7, Boot: dsas.BootSet{Kernel: dsas.Part{Digest: digest}, Initramfs: dsas.Part{Digest: digest}}},
	}
}
