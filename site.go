package dsas

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Schedulers are the IPVS schedulers a site may use (ipvsadm(8)); the role lb
// has a kernel module for each.
func Schedulers() []string { return []string{"rr", "wrr", "lc", "wlc", "sh"} }

// Site is a service the fleet offers: an address and port that the balancer
// holds, and the role whose ready nodes serve it.
type Site struct {
	Name      string     `json:"name"`
	Address   netip.Addr `json:"address"` // service address (virtual)
	Port      uint16     `json:"port"`
	Role      string     `json:"role"`      // who serves it
	Balancer  string     `json:"balancer"`  // role that balances it, default "lb"
	Scheduler string     `json:"scheduler"` // IPVS: rr, wrr, lc, wlc, sh
	Check     SiteCheck  `json:"check"`
}

// SiteCheck is how a balancer tests a real server.
type SiteCheck struct {
	Kind   string `json:"kind"`             // "http" or "tcp"
	Path   string `json:"path,omitempty"`   // http: default "/"
	Status int    `json:"status,omitempty"` // http: default 200
}

// WithDefaults fills in what was left out.
func (s Site) WithDefaults() Site {
	if s.Balancer == "" {
		s.Balancer = "lb"
	}
	if s.Scheduler == "" {
		s.Scheduler = "wlc"
	}
	if s.Role == "" {
		s.Role = "web"
	}
	if s.Port == 0 {
		s.Port = 80
	}
	if s.Check.Kind == "" {
		s.Check.Kind = "http"
	}
	if s.Check.Kind == "http" {
		if s.Check.Path == "" {
			s.Check.Path = "/"
		}
		if s.Check.Status == 0 {
			s.Check.Status = 200
		}
	}
	return s
}

// CheckFields says what is wrong with s, or nil. (Check is a field.)
func (s *Site) CheckFields() error {
	if err := CheckName("site", s.Name); err != nil {
		return err
	}
	if !s.Address.IsValid() || !s.Address.Is4() {
		return fmt.Errorf("site %s: needs an IPv4 service address: %w", s.Name, ErrInvalid)
	}
	if s.Port == 0 {
		return fmt.Errorf("site %s: port 0: give one from 1 to 65535: %w", s.Name, ErrInvalid)
	}
	for what, name := range map[string]string{"role": s.Role, "balancer role": s.Balancer} {
		if err := CheckName(what, name); err != nil {
			return fmt.Errorf("site %s: %w", s.Name, err)
		}
	}
	if !slices.Contains(Schedulers(), s.Scheduler) {
		return fmt.Errorf("site %s: scheduler %q: use one of %s: %w", s.Name, s.Scheduler, strings.Join(Schedulers(), ", "), ErrInvalid)
	}
	switch s.Check.Kind {
	case "tcp":
	case "http":
		// What keepalived's parser gives a meaning to is refused, and what no
		// URL path holds unescaped.
		bad := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'`{}<>!#$\\^|", r) }
		if !strings.HasPrefix(s.Check.Path, "/") || strings.ContainsFunc(s.Check.Path, bad) {
			return fmt.Errorf("site %s: check path %q: begin with / and use no spaces, quotes, braces or other signs that a URL escapes: %w", s.Name, s.Check.Path, ErrInvalid)
		}
		if s.Check.Status < 100 || s.Check.Status > 599 {
			return fmt.Errorf("site %s: check status %d: use an HTTP status from 100 to 599: %w", s.Name, s.Check.Status, ErrInvalid)
		}
	default:
		return fmt.Errorf("site %s: check kind %q: use http or tcp: %w", s.Name, s.Check.Kind, ErrInvalid)
	}
	return nil
}
