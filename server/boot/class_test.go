package boot

import (
	"strings"
	"testing"
)

// FuzzVendorClass: an architecture is read from a vendor class only where all
// of its five digits stand there.
func FuzzVendorClass(f *testing.F) {
	for _, s := range []string{"PXEClient:Arch:00007:UNDI:003016", "HTTPClient:Arch:00016", "PXEClient:Arch:", "PXEClient:Arch:99999", "U-Boot.armv8", "AAPLBSDPC/i386"} {
		f.Add(s, []byte("RPi4"))
	}
	f.Fuzz(func(t *testing.T, class string, guid []byte) {
		r := Request{Step: StepDHCP, MAC: mac, VendorClass: class, GUID: guid, Node: node(""), Server: server, Release: rel}
		a, ok := r.arch()
		if i := strings.Index(class, ":Arch:"); ok && (i < 0 || len(class) < i+11) {
			t.Errorf("vendor class %q: architecture %d", class, a)
		}
		p := Decide(r)
		if p.Reason == "" || len(p.BootFile) >= 128 {
			t.Errorf("vendor class %q: %+v", class, p)
		}
		if strings.HasPrefix(class, "HTTPClient") && p.BootFile != "" && !strings.HasPrefix(p.BootFile, "http://") {
			t.Errorf("vendor class %q gets %q", class, p.BootFile)
		}
	})
}
