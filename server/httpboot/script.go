package httpboot

import (
	"cmp"
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
	plan, params, err := s.Begin(r.Context(), boot.StepScript, mac, from, r.URL.Query().Get("role"))
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

// PXELINUXConfig is what the TFTP server sends as a node's configuration; from
// is who asks, name what PXELINUX asked for in this boot.
func (s *Server) PXELINUXConfig(ctx context.Context, mac dsas.MAC, from netip.Addr, name boot.ConfigName) (string, error) {
	plan, params, err := s.Begin(ctx, boot.StepTFTPConfig, mac, from, name.Role)
	if err != nil {
		return "", err
	}
	return plan.PXELINUXConfig(params, name.Attempt), nil
}

// maxBoots is how many boots of one MAC may begin per minute and protocol. A
// loader that fails asks some six times in its first minute, then less.
const maxBoots = 30

// maxBootsFrom is how many may begin per minute from one address, whatever
// MACs it names: a box asks with those of its own ports. maxUnknownBoots is for
// all MACs together that belong to no node.
const (
	maxBootsFrom    = 60
	maxUnknownBoots = 600
)

// Begin decides what mac boots and, where that is a kernel, records a new
// boot with its token and session key: both are on disk before the script
// leaves, so a restarted server knows them. from is where the request came
// from. A request that may not begin a boot gets a plan that waits and says why:
// an error would make firmware go on to its next boot device.
// pick is the role that was picked at the loader's menu, as the request has it;
// "" where none was.
func (s *Server) Begin(ctx context.Context, step boot.Step, mac dsas.MAC, from netip.Addr, pick string) (boot.Plan, boot.Params, error) {
	req, err := s.Request(ctx, step, mac, from, pick)
	if err != nil {
		return boot.Plan{}, boot.Params{}, err
	}
	plan := boot.Decide(req)
	params := boot.Params{Bond: s.BondOptions, Extra: append([]string{"printk.devkmsg=on"}, strings.Fields(s.ExtraCmdline)...)}
	if !plan.Boots() {
		s.refusedPick(ctx, req, from)
		return plan, params, nil
	}
	addr, why, err := s.addressOf(ctx, req, from)
	if err != nil {
		return boot.Plan{}, boot.Params{}, err
	}
	if why != "" {
		return refuse(plan, why), params, nil
	}
	// By protocol: anyone can put a node's address on a TFTP request, and must
	// not use up what the node has for HTTP.
	if !s.begun.allow(string(step)+" "+mac.String(), s.Now(), maxBoots) {
		return refuse(plan, fmt.Sprintf("%s asked for more than %d boots within a minute.", mac, maxBoots)), params, nil
	}
	if req.Node == nil && !s.begun.allow(string(step)+" unknown", s.Now(), maxUnknownBoots) {
		return refuse(plan, fmt.Sprintf("More than %d unknown boxes asked to boot within a minute.", maxUnknownBoots)), params, nil
	}
	if !s.begun.allow(string(step)+" "+from.String(), s.Now(), maxBootsFrom) {
		return refuse(plan, fmt.Sprintf("%s asked for more than %d boots within a minute.", from, maxBootsFrom)), params, nil
	}
	if sub, ok := s.subnetOf(addr.Addr()); ok {
		params.Gateway = sub.Gateway
		params.Bond = cmp.Or(sub.Bond, params.Bond)
	}
	id, token := hex.EncodeToString(randomBytes(6)), hex.EncodeToString(randomBytes(16))
	hash := sha256.Sum256([]byte(token))
	b := dsas.Boot{
		ID: id, MAC: mac, Address: addr.Addr(), Role: plan.Role, Image: plan.Release,
		TokenHash: hash[:], Session: randomBytes(32), Created: s.Now(),
	}
	if plan.Node != nil {
		b.Node = plan.Node.Name
		b.Picked = plan.Pick != "" && plan.Pick != plan.Node.Role
	}
	if err := s.Store.CreateBoot(ctx, b); err != nil {
		return plan, params, fmt.Errorf("begin boot of %s: %w", mac, err)
	}
	s.stats.boots.Add(1)
	s.picked(ctx, plan, b, from)
	msg := fmt.Sprintf("%s: role %s, release %s", plan.Loader, b.Role, plan.ReleaseName)
	if from != b.Address {
		s.guests.add(from, id, s.Now())
		msg += fmt.Sprintf("; it has %s of another DHCP server, and %s from its kernel on", from, b.Address)
	}
	s.event(ctx, dsas.Event{Node: b.Node, MAC: mac, Boot: id, Kind: dsas.KindScript, Message: msg})
	params.Boot, params.Token, params.Address = id, token, addr
	return plan, params, nil
}

// refuse makes p one that waits and shows why.
func refuse(p boot.Plan, why string) boot.Plan {
	p.Kernel, p.Initrds, p.Release, p.ReleaseName, p.Reason = "", nil, "", "", why
	return p
}

// addressOf gives the address that the box boots with: the one reserved for the
// node, or the pool's lease of an unknown MAC. Who asks from another address
// gets a reason instead, since the answer holds a token.
func (s *Server) addressOf(ctx context.Context, req boot.Request, from netip.Addr) (addr netip.Prefix, why string, err error) {
	if req.Node != nil {
		addr = req.Node.Address
		if s.OtherDHCP && addr.IsValid() {
			if why := s.notAt(from, req.Node.HasMAC); why != "" {
				s.refusedScript(ctx, req, why)
				return addr, why, nil
			}
			if _, ok := s.subnetOf(addr.Addr()); !ok {
				return addr, fmt.Sprintf("Node %s has address %s, which is of no subnet that is served.", req.Node.Name, addr), nil
			}
			return addr, "", nil
		}
		if from == addr.Addr() {
			return addr, "", nil
		}
		s.refusedScript(ctx, req, fmt.Sprintf("asked for from %s, and the node has %s", from, addr.Addr()))
		return addr, fmt.Sprintf("Node %s has address %s, and %s asks; a DHCP server other than dsas must give it the same.", req.Node.Name, addr.Addr(), from), nil
	}
	sub, ok := s.subnetOf(from)
	if !ok {
		return addr, fmt.Sprintf("%s is of no subnet that is served.", from), nil
	}
	if s.OtherDHCP {
		if why := s.notAt(from, func(m dsas.MAC) bool { return m == req.MAC }); why != "" {
			return addr, why, nil
		}
	} else {
		l, err := s.Store.Lease(ctx, from, s.Now())
		if err != nil && !errors.Is(err, dsas.ErrNotFound) {
			return addr, "", err
		}
		if err != nil || l.MAC != req.MAC {
			return addr, fmt.Sprintf("%s is not leased to %s.", from, req.MAC), nil
		}
	}
	return netip.PrefixFrom(from, sub.Prefix.Bits()), "", nil
}

// refusedScript records, once a minute, that a node's script was refused.
func (s *Server) refusedScript(ctx context.Context, req boot.Request, why string) {
	if s.said.allow("script "+req.MAC.String(), s.Now(), time.Minute) {
		// Without a boot: the server says it of the node.
		s.event(ctx, dsas.Event{Node: req.Node.Name, MAC: req.MAC, Kind: dsas.KindWarning, Message: "boot script refused: " + why})
	}
}

// Request gathers what the decision depends on; pick as for Begin.
func (s *Server) Request(ctx context.Context, step boot.Step, mac dsas.MAC, from netip.Addr, pick string) (boot.Request, error) {
	req := boot.Request{Step: step, MAC: mac, HasLoader: s.HasLoader, Discovery: s.Discovery, Pick: pick, MenuTimeout: s.MenuTimeout}
	node, err := s.Store.NodeByMAC(ctx, mac)
	switch {
	case err == nil:
		req.Node = &node
		if req.Menu, err = s.menu(node); err != nil {
			return req, err
		}
		from = node.Address.Addr()
	case !errors.Is(err, dsas.ErrNotFound):
		return req, err
	}
	sub, ok := s.subnetOf(from)
	if !ok && len(s.Subnets) > 0 {
		sub = s.Subnets[0]
	}
	req.Server = boot.Server{Addr: sub.Server, URL: s.url(sub)}
	if role := req.Role(); role != "" {
		if req.Release, err = s.Releases.Assigned(req.Node, role); err != nil {
			return req, fmt.Errorf("release of role %s: %w", role, err)
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

// loaderFailed is iPXE's way to say that it could not go on.
func (s *Server) loaderFailed(w http.ResponseWriter, r *http.Request) {
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
	if err := s.noteFailure(r.Context(), mac, from, r.URL.Query().Get("why")); err != nil {
		s.Log.Error("record a loader's failure", "mac", mac, "err", err)
	}
	// An empty body would be an error to iPXE.
	io.WriteString(w, "noted\n")
}
