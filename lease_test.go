package dsas

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestRange(t *testing.T) {
	a := netip.MustParseAddr
	r := Range{a("10.0.0.10"), a("10.0.0.20")}
	for s, want := range map[string]bool{"10.0.0.9": false, "10.0.0.10": true, "10.0.0.15": true, "10.0.0.20": true, "10.0.0.21": false, "10.0.1.15": false} {
		if got := r.Contains(a(s)); got != want {
			t.Errorf("%v.Contains(%s) = %v; want %v", r, s, got, want)
		}
	}
	if (Range{}).Contains(a("10.0.0.1")) || (Range{}).Contains(netip.Addr{}) {
		t.Error("the empty range contains something")
	}
}

func TestSubnetCheck(t *testing.T) {
	good := Subnet{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Server: netip.MustParseAddr("10.0.0.1")}
	if err := good.Check(); err != nil {
		t.Errorf("Check = %v; want nil", err)
	}
	pool := func(first, last string) func(*Subnet) {
		return func(s *Subnet) { s.Pool = Range{netip.MustParseAddr(first), netip.MustParseAddr(last)} }
	}
	for _, c := range []struct {
		name   string
		change func(*Subnet)
		want   string // "": nothing wrong
	}{
		{"a pool", pool("10.0.0.10", "10.0.0.20"), ""},
		{"a pool of one", pool("10.0.0.10", "10.0.0.10"), ""},
		{"no prefix", func(s *Subnet) { s.Prefix = netip.Prefix{} }, "not an IPv4 prefix"},
		{"IPv6", func(s *Subnet) { s.Prefix = netip.MustParsePrefix("2001:db8::/64") }, "not an IPv4 prefix"},
		{"server elsewhere", func(s *Subnet) { s.Server = netip.MustParseAddr("10.0.1.1") }, "10.0.1.1"},
		{"no server", func(s *Subnet) { s.Server = netip.Addr{} }, "server's address"},
		{"pool elsewhere", pool("10.0.1.10", "10.0.1.20"), "10.0.1.10"},
		{"pool that ends elsewhere", pool("10.0.0.10", "10.0.1.20"), "10.0.1.20"},
		{"pool backwards", pool("10.0.0.20", "10.0.0.10"), "10.0.0.20-10.0.0.10"},
	} {
		s := good
		c.change(&s)
		err := s.Check()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: Check = %v; want ErrInvalid that names %q", c.name, err, c.want)
		}
	}
}
