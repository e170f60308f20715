package httpboot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"dsas"
	"dsas/server/boot"
)

// script answers iPXE. A plan with a kernel begins a boot.
func (s *Server) script(w http.ResponseWriter, r *http.Request) {
	mac, err := dsas.ParseMAC(chi.URLParam(r, "mac"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	from, err := remoteAddr(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	plan, params, err := s.Begin(r.Context(), boot.StepScript, mac, from)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	io.WriteString(w, plan.IPXEScript(params))
}

// anyScript is for an existing DHCP server that has one boot file for all: it
// makes iPXE ask for its own. netX is the interface it booted from, hexhyp its
// MAC with dashes (iPXE's settings); the URL is relative to this one's.
func (s *Server) anyScript(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "#!ipxe\n:again\nchain --replace --autofree ${netX/mac:hexhyp}/script.ipxe ||\n"+
		"echo dsas: ${netX/mac}: no script: ${errno}; again in 10 s\nsleep 10\ngoto again\n")
}

// PXELINUXConfig is what the TFTP server sends as a node's configuration;
// attempt counts what PXELINUX asked for already in this boot.
func (s *Server) PXELINUXConfig(ctx context.Context, mac dsas.MAC, attempt int) (string, error) {
	plan, params, err := s.Begin(ctx, boot.StepTFTPConfig, mac, netip.Addr{})
	if err != nil {
		return "", err
	}
	return plan.PXELINUXConfig(params, attempt), nil
}

// Begin decides what mac boots and, where that is a kernel, records a new
// boot with its token and session key: both are on disk before the script
// leaves, so a restarted server knows them. from is where the request came
// from, or invalid where the protocol gives no proof.
func (s *Server) Begin(ctx context.Context, step boot.Step, mac dsas.MAC, from netip.Addr) (boot.Plan, boot.Params, error) {
	req, err := s.Request(ctx, step, mac, from)
	if err != nil {
		return boot.Plan{}, boot.Params{}, err
	}
	plan := boot.Decide(req)
	params := boot.Params{Bond: s.BondOptions, Extra: append([]string{"printk.devkmsg=on"}, strings.Fields(s.ExtraCmdline)...)}
	if !plan.Boots() || plan.Node == nil {
		return plan, params, nil
	}
	if sub, ok := s.subnetOf(plan.Node.Address.Addr()); ok {
		params.Gateway = sub.Gateway
	}
	id, token := hex.EncodeToString(randomBytes(6)), hex.EncodeToString(randomBytes(16))
	hash := sha256.Sum256([]byte(token))
	b := dsas.Boot{
		ID: id, Node: plan.Node.Name, MAC: mac, Role: plan.Role, Image: *plan.Image,
		TokenHash: hash[:], Session: randomBytes(32), Created: s.Now(),
	}
	if err := s.Store.CreateBoot(ctx, b); err != nil {
		return plan, params, fmt.Errorf("begin boot of %s: %w", b.Node, err)
	}
	s.event(ctx, dsas.Event{Node: b.Node, MAC: mac, Boot: id, Kind: dsas.KindScript,
		Message: fmt.Sprintf("%s: role %s, image %s", plan.Loader, b.Role, b.Image.Short())})
	params.Boot, params.Token = id, token
	return plan, params, nil
}

// Request gathers what the decision depends on.
func (s *Server) Request(ctx context.Context, step boot.Step, mac dsas.MAC, from netip.Addr) (boot.Request, error) {
	req := boot.Request{Step: step, MAC: mac, Discovery: s.Discovery}
	node, err := s.Store.NodeByMAC(ctx, mac)
	switch {
	case err == nil:
		req.Node = &node
		from = node.Address.Addr()
	case !errors.Is(err, dsas.ErrNotFound):
		return req, err
	}
	sub, ok := s.subnetOf(from)
	if !ok && len(s.Subnets) > 0 {
		sub = s.Subnets[0]
	}
	req.Server = boot.Server{Addr: sub.Server, URL: s.url(sub)}
	if set, err := s.Blobs.Boot(); err == nil {
		req.Boot = &set
	} else if !errors.Is(err, dsas.ErrNotFound) {
		return req, err
	}
	if role := req.Role(); role != "" {
		if m, err := s.Blobs.Current(role); err == nil {
			req.Image = &m
		} else if !errors.Is(err, dsas.ErrNotFound) {
			return req, err
		}
	}
	return req, nil
}

func (s *Server) url(sub dsas.Subnet) string {
	return fmt.Sprintf("http://%s", netip.AddrPortFrom(sub.Server, uint16(s.Port)))
}

func (s *Server) subnetOf(a netip.Addr) (dsas.Subnet, bool) {
	for _, sub := range s.Subnets {
		if a.IsValid() && sub.Prefix.Contains(a) {
			return sub, true
		}
	}
	return dsas.Subnet{}, false
}

// loaderFailed takes a loader's word that it could not go on. It is unsigned:
// anyone on the wire could say it, so it is recorded once a minute per MAC and
// changes nothing but what is shown.
func (s *Server) loaderFailed(w http.ResponseWriter, r *http.Request) {
	mac, err := dsas.ParseMAC(chi.URLParam(r, "mac"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	why := clip(r.URL.Query().Get("why"), 80)
	if s.fails.allow(mac.String(), s.Now(), time.Minute) {
		if node, err := s.Store.NodeByMAC(r.Context(), mac); err == nil {
			s.event(r.Context(), dsas.Event{Node: node.Name, MAC: mac, Kind: dsas.KindLoaderFailed, Message: "the loader could not go on: " + why})
		}
	}
	// An empty body would be an error to iPXE.
	io.WriteString(w, "noted\n")
}
