package dsas

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestSiteDefaults(t *testing.T) {
	got := Site{Name: "www"}.WithDefaults()
	want := Site{Name: "www", Port: 80, Role: "web", Balancer: "lb", Scheduler: "wlc", Check: SiteCheck{Kind: "http", Path: "/", Status: 200}}
	if got != want {
		t.Errorf("WithDefaults = %+v; want %+v", got, want)
	}
	if again := got.WithDefaults(); again != got {
		t.Errorf("WithDefaults twice = %+v; want %+v", again, got)
	}
	own := Site{Port: 3306, Role: "db", Balancer: "edge", Scheduler: "rr", Check: SiteCheck{Kind: "tcp"}}
	if got := own.WithDefaults(); got != own {
		t.Errorf("WithDefaults of what is all set = %+v; want %+v", got, own)
	}
}

func TestSiteCheckFields(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Site)
		want   string // "": nothing wrong
	}{
		{"good", func(*Site) {}, ""},
		{"tcp", func(s *Site) { s.Check = SiteCheck{Kind: "tcp"} }, ""},
		{"a query", func(s *Site) { s.Check.Path = "/healthz?full=1&x=%20" }, ""},
		{"no name", func(s *Site) { s.Name = "" }, "site name"},
		{"no address", func(s *Site) { s.Address = netip.Addr{} }, "IPv4 service address"},
		{"IPv6", func(s *Site) { s.Address = netip.MustParseAddr("2001:db8::1") }, "IPv4 service address"},
		{"port 0", func(s *Site) { s.Port = 0 }, "port 0"},
		{"role", func(s *Site) { s.Role = "Web" }, "role name"},
		{"balancer", func(s *Site) { s.Balancer = "" }, "balancer role name"},
		{"scheduler", func(s *Site) { s.Scheduler = "fastest" }, "rr, wrr, lc, wlc, sh"},
		{"kind", func(s *Site) { s.Check.Kind = "ping" }, "http or tcp"},
		{"path without /", func(s *Site) { s.Check.Path = "healthz" }, "begin with /"},
		{"path with a brace", func(s *Site) { s.Check.Path = "/}\nvirtual_server" }, "check path"},
		{"path with a comment", func(s *Site) { s.Check.Path = "/a#b" }, "check path"},
		{"path with a variable", func(s *Site) { s.Check.Path = "/$HOME" }, "check path"},
		{"path with a blank", func(s *Site) { s.Check.Path = "/a b" }, "check path"},
		{"path in umlauts", func(s *Site) { s.Check.Path = "/ä" }, "check path"},
		{"status", func(s *Site) { s.Check.Status = 20 }, "100 to 599"},
	} {
		s := Site{Name: "www", Address: netip.MustParseAddr("10.0.0.80")}.WithDefaults()
		c.change(&s)
		err := s.CheckFields()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: CheckFields = %v; want ErrInvalid that says %q", c.name, err, c.want)
		}
	}
	for _, s := range Schedulers() {
		site := Site{Name: "www", Address: netip.MustParseAddr("10.0.0.80"), Scheduler: s}.WithDefaults()
		if err := site.CheckFields(); err != nil {
			t.Errorf("scheduler %s: %v", s, err)
		}
	}
}
