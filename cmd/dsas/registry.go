package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"dsas"
)

// checkRegistry refuses a registry that no node could reach: while it fetches
// its image it has addresses and routes, and no DNS yet.
func checkRegistry(registry string) error {
	if registry == "" {
		return nil
	}
	u, err := url.Parse(registry)
	switch {
	case err != nil:
		return fmt.Errorf("registry: %w: %w", err, dsas.ErrInvalid)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("registry %q: write it as http://10.0.0.9:5000, with https:// if it wants TLS: %w", registry, dsas.ErrInvalid)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("registry %q: address, port and folder alone: nodes fetch without a password: %w", u.Redacted(), dsas.ErrInvalid)
	}
	if _, err := netip.ParseAddr(u.Hostname()); err != nil {
		return fmt.Errorf("registry %q: name it by its address: nodes have no DNS while they fetch their image: %w", registry, dsas.ErrInvalid)
	}
	return nil
}

// registryRepository gives where a role's images stand in the registry that
// nodes fetch from, "10.0.0.9:5000/dsas/web", and whether by plain HTTP.
func registryRepository(registry, role string) (repo string, plain bool) {
	scheme, rest, _ := strings.Cut(registry, "://")
	return strings.TrimRight(rest, "/") + "/dsas/" + role, scheme == "http"
}
