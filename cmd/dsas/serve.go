package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/internal/signing"
	"dsas/roles"
	"dsas/server"
	"dsas/server/blobs"
	"dsas/server/boot"
	"dsas/server/canary"
	"dsas/server/dhcp"
	"dsas/server/httpboot"
	"dsas/server/liveness"
	"dsas/server/loaders"
	"dsas/server/metrics"
	"dsas/server/power"
	"dsas/server/ra"
	"dsas/server/store"
	"dsas/server/tftp"
	"dsas/server/unproven"
)

// daemon is dsas serve: all parts, wired.
type daemon struct {
	cfg     config
	log     *slog.Logger
	out     io.Writer // where people look: the set-up link is written here
	started time.Time
	opt     serveOptions

	store   *store.Store
	gate    unproven.Gate // before the store, for what anybody can bring about
	blobs   *blobs.Store
	rel     *releases
	roles   *roles.Set
	render  *renderer
	boot    *httpboot.Server
	power   *power.Driver
	subnets []dsas.Subnet
	socks   bootSockets
}

// serveOptions are what one start of the server is asked for.
type serveOptions struct {
	ResetPassword bool
	Ready         func() // called once, when all sockets listen; may be nil
}

// serve runs the server until ctx ends.
func serve(ctx context.Context, cfg config, log *slog.Logger, out io.Writer, opt serveOptions) error {
	cfg.setDefaults()
	if err := cfg.check(); err != nil {
		return err
	}
	d := &daemon{cfg: cfg, log: log, out: out, started: time.Now(), opt: opt}
	d.gate.Log = log.With("part", "events")
	if err := d.checkNamed(); err != nil {
		return err
	}
	if err := checkOwner(cfg.State); err != nil {
		return err
	}
	unlock, err := lockState(cfg.State)
	if err != nil {
		return err
	}
	defer unlock()
	if err := noPendingRestore(cfg.State); err != nil {
		return err
	}
	if err := d.open(ctx); err != nil {
		return err
	}
	defer d.store.Close()
	components, err := d.components(ctx)
	if err != nil {
		return err
	}
	for _, s := range d.subnets {
		log.Info("serving", "subnet", s.Prefix, "server", s.Server, "pool", s.Pool.String(), "relayed", s.Relayed, "interfaces", strings.Join(cfg.Interfaces, ","))
	}
	if opt.Ready != nil {
		opt.Ready()
	}
	return server.Run(ctx, log, components...)
}

// checkNamed looks for what the configuration names on this machine, before
// anything is made in the state folder.
func (d *daemon) checkNamed() error {
	if d.cfg.AuthorizedKeys == "" {
		d.cfg.AuthorizedKeys = defaultKeys()
	}
	if d.cfg.AuthorizedKeys != "" {
		if err := checkKeys(d.cfg.AuthorizedKeys); err != nil {
			return configError{err}
		}
	}
	if d.cfg.SocketGroup != "" {
		if _, err := groupID(d.cfg.SocketGroup); err != nil {
			return fmt.Errorf("socket: %w", err)
		}
	}
	return d.inBootNetwork(func() error {
		_, err := d.cfg.subnets()
		return err
	})
}

// lockState keeps two servers off one state folder, and a restore off a
// server's.
func lockState(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "serve.lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) {
		return nil, fmt.Errorf("state folder: %w; it must be writable: mount -o remount,rw, or name another with --state", err)
	}
	if err != nil {
		return nil, fmt.Errorf("state folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("state folder %s is in use by a dsas serve; stop it first (systemctl stop dsas): %w", dir, dsas.ErrConflict)
	}
	return func() { f.Close() }, nil
}

// open opens state, images, roles, loaders and the boot sockets.
func (d *daemon) open(ctx context.Context) (err error) {
	if d.blobs, err = blobs.Open(d.cfg.path("images")); err != nil {
		return err
	}
	if d.roles, err = roles.Load(d.cfg.Roles); err != nil {
		if d.roles == nil {
			return err
		}
		d.log.Error("some role definitions cannot be used", "err", err)
	}
	if err := loaders.Install(d.cfg.path("loaders")); err != nil {
		return err
	}
	if err := d.inBootNetwork(d.listenBoot); err != nil {
		return err
	}
	if d.store, err = store.Open(ctx, d.cfg.path("dsas.db"), d.cfg.path("key"), d.log); err != nil {
		return err
	}
	d.rel = &releases{Store: d.blobs, state: d.store, log: d.log, keys: func() (signing.Keys, error) { return signing.ReadKeys(d.cfg.Keys) }}
	d.rel.syncAndTell(ctx) // whatever fails, what is published already is served
	nodes, err := d.store.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, err := range d.rel.Load(nodes) {
		d.log.Error("releases", "err", err) // the others are served
	}
	d.render = &renderer{cfg: &d.cfg, store: d.store, roles: d.roles, rel: d.rel, subnets: d.subnets, changeHub: newChangeHub()}
	d.boot = httpboot.New(httpboot.Config{
		Store: d.bootStore(), Blobs: d.blobs, Releases: d.rel, Images: d.blobs, Registry: d.cfg.Registry, Renderer: d.render, Log: d.log.With("part", "http"), Subnets: d.subnets,
		Port: d.cfg.HTTPPort, BondOptions: d.cfg.bondParameter(), ExtraCmdline: d.cfg.Cmdline,
		Discovery: d.cfg.Discovery, OtherDHCP: d.cfg.otherDHCP(), Neighbour: d.socks.neighbour, Heartbeat: d.cfg.Heartbeat,
		LoaderDir: d.cfg.path("loaders"), Role: d.render.role, MenuTimeout: d.cfg.MenuTimeout,
	})
	d.power = power.New(d.store.BMCPassword, d.log.With("part", "power"))
	return nil
}

// components wires the parts that run.
func (d *daemon) components(ctx context.Context) ([]server.Named, error) {
	watch := &dhcp.Watch{Log: d.log.With("part", "dhcp"), Ears: d.socks.ears, Allow: d.cfg.AllowOtherDHCP, Event: dhcpStore{d.bootStore()}.Event, In: d.inBootNetwork}
	for _, s := range d.subnets {
		watch.Own = append(watch.Own, s.Server)
	}
	vendor := map[string][]dsas.VendorOptions{} // asked for every packet
	for _, def := range d.roles.Definitions() {
		vendor[def.Role.Name] = def.Role.DHCP
	}
	dhcpd, err := dhcp.New(dhcp.Config{
		Log: d.log.With("part", "dhcp"), Store: dhcpStore{d.bootStore()}, Releases: d.rel, Subnets: d.subnets,
		Listeners: d.socks.dhcp, HTTPPort: d.cfg.HTTPPort, Discovery: d.cfg.Discovery, HasLoader: (&recentLoaders{has: d.boot.HasLoader}).Has, In: d.inBootNetwork, NoProbe: d.cfg.NoConflictCheck,
		Vendor: func(role string) []dsas.VendorOptions { return vendor[role] },
		Proxy:  d.cfg.ProxyDHCP, Probing: watch.Probing,
	})
	if err != nil {
		return nil, err
	}
	tftpd, err := tftp.New(tftp.Config{
		Log: d.log.With("part", "tftp"), Dir: d.cfg.path("loaders"), PXELINUXConfig: d.boot.PXELINUXConfig,
		Open: d.tftpOpen, Sent: d.tftpSent, Listeners: d.socks.tftp, In: d.inBootNetwork,
	})
	if err != nil {
		return nil, err
	}
	events, cancelEvents := d.store.Subscribe()
	list := []server.Named{
		{Name: "tftp", Component: tftpd},
		{Name: "ra", Component: &ra.Server{Log: d.log.With("part", "ra"), Conns: d.socks.ra, In: d.inBootNetwork}},
		{Name: "changes", Component: server.Func(func(ctx context.Context) error {
			defer cancelEvents()
			return d.render.Run(ctx, events)
		})},
		{Name: "liveness", Component: &liveness.Watch{Store: d.store, Log: d.log, Quiet: 4 * d.cfg.Heartbeat, Every: d.cfg.Heartbeat / 2}},
		{Name: "releases", Component: d.rel},
		{Name: "canaries", Component: &canary.Watch{Store: d.store, Log: d.log.With("part", "canary"), Release: d.rel.Release, Role: d.render.role, Power: d.cycle, Up: time.Now()}},
		{Name: "housekeeping", Component: server.Func(d.housekeeping)},
	}
	if !d.cfg.NoDHCP {
		list = append(list, server.Named{Name: "dhcp", Component: dhcpd})
	}
	if len(watch.Ears) > 0 {
		list = append(list, server.Named{Name: "other DHCP servers", Component: watch})
	}
	for _, l := range d.socks.http {
		list = append(list, server.Named{Name: "boot HTTP", Component: server.Func(func(ctx context.Context) error { return d.boot.Run(ctx, l) })})
	}
	if period := watchdogPeriod(); period > 0 {
		list = append(list, server.Named{Name: "watchdog", Component: server.Func(func(ctx context.Context) error {
			return watchdog(ctx, period, d.log, d.store.Alive)
		})})
	}
	counted := dhcpd
	if d.cfg.NoDHCP {
		counted = nil
	}
	figures := metrics.New(version, d.started, d.source(counted, tftpd), d.log.With("part", "metrics"))
	follow, err := figures.Follow(ctx, d.store)
	if err != nil {
		return nil, err
	}
	list = append(list, server.Named{Name: "metrics", Component: server.Func(follow)})
	operators, err := d.operators(ctx, figures.Handler())
	if err != nil {
		return nil, err
	}
	return append(list, operators...), nil
}

func (d *daemon) bootStore() bootStore { return bootStore{d.store, &d.gate} }

// dhcpStore gives the DHCP server its one way to record a fact.
type dhcpStore struct{ bootStore }

// Event implements dhcp.Store: no answer waits for its record.
func (s dhcpStore) Event(_ context.Context, e dsas.Event) error { return s.NoteEvent(e) }

// bootStore is the state as the boot listeners see it: what anybody can bring
// about is stored only so often.
type bootStore struct {
	*store.Store
	gate *unproven.Gate
}

// AddEvent stores e; one that is left out has no ID afterwards.
func (s bootStore) AddEvent(ctx context.Context, e dsas.Event) (dsas.Event, error) {
	if !s.gate.Allow(e) {
		return e, nil
	}
	return s.Store.AddEvent(ctx, e)
}

// NoteEvent is AddEvent without the wait.
func (s bootStore) NoteEvent(e dsas.Event) error {
	if !s.gate.Allow(e) {
		return nil
	}
	return s.Store.NoteEvent(e)
}

// tftpOpen gives the TFTP server what it does not have itself: shim and GRUB,
// and what GRUB asks for.
func (d *daemon) tftpOpen(ctx context.Context, r tftp.Request) (tftp.Content, error) {
	if f, err := d.boot.OpenLoader(r.File); err == nil {
		return tftpFile(f)
	} else if !errors.Is(err, dsas.ErrNotFound) {
		return nil, err
	}
	text, f, err := d.boot.GRUB(ctx, r.File, r.From)
	if err != nil {
		return nil, err
	}
	if f != nil {
		return tftpFile(f)
	}
	return tftp.Bytes([]byte(text)), nil
}

func tftpFile(f *os.File) (tftp.Content, error) {
	c, err := tftp.File(f)
	if err != nil {
		f.Close()
	}
	return c, err
}

// tftpSent records that a node took its NBP.
func (d *daemon) tftpSent(ctx context.Context, t tftp.Transfer) {
	if strings.HasPrefix(t.File, "pxelinux.cfg/") {
		return // told as boot.script
	}
	if strings.HasPrefix(t.File, "grub/") {
		if peer, err := netip.ParseAddrPort(t.Peer); err == nil {
			d.boot.GRUBSent(ctx, t.File, peer.Addr().Unmap(), t.Bytes, t.Duration)
		}
		return
	}
	node, err := d.store.NodeByMAC(ctx, t.MAC)
	if err != nil {
		return
	}
	err = d.bootStore().NoteEvent(dsas.Event{
		Node: node.Name, MAC: t.MAC, Kind: dsas.KindNBP, Message: t.File, Bytes: t.Bytes, Duration: t.Duration,
	})
	if err != nil {
		d.log.Error("record NBP", "node", node.Name, "err", err)
	}
}

// keepEvents bounds the events kept: some weeks of a thousand nodes' boots.
const keepEvents = 500_000

func (d *daemon) housekeeping(ctx context.Context) error {
	t := time.NewTicker(time.Hour)
	defer t.Stop()
	for {
		if err := errors.Join(d.store.PruneEvents(ctx, keepEvents), d.store.PruneBoots(ctx)); err != nil && ctx.Err() == nil {
			d.log.Error("prune state", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// explain tells what a MAC would be given at each step.
func (d *daemon) explain(ctx context.Context, mac dsas.MAC, arch string) (any, error) {
	req, err := d.boot.Request(ctx, boot.StepDHCP, mac, netip.Addr{}, "")
	if err != nil {
		return nil, err
	}
	req.Via = d.relayOf(ctx, req)
	if d.cfg.ProxyDHCP {
		return explainAs(req, arch, boot.ExplainProxy)
	}
	return explainAs(req, arch, boot.Explain)
}

// relayOf says through which relay a box asks, "" where it asks us directly.
func (d *daemon) relayOf(ctx context.Context, req boot.Request) string {
	if ports, err := d.store.Ports(ctx); err == nil {
		if p, ok := ports[req.MAC]; ok {
			return p.String()
		}
	}
	for _, s := range d.subnets {
		if s.Relayed && req.Node != nil && s.Prefix.Contains(req.Node.Address.Addr()) {
			return "a relay of " + s.Prefix.String()
		}
	}
	return ""
}

// sshInfo tells how an operator reaches a node's sshd.
func (d *daemon) sshInfo(ctx context.Context, n dsas.Node) (dsas.SSHInfo, error) {
	key, err := d.render.hostKey(ctx, n.Name)
	if err != nil {
		return dsas.SSHInfo{}, err
	}
	pub, err := publicKey(key)
	if err != nil {
		return dsas.SSHInfo{}, fmt.Errorf("host key of %s: %w", n.Name, err)
	}
	return dsas.SSHInfo{Address: n.Address.Addr(), HostKey: pub, Netns: d.cfg.Netns}, nil
}

// Roles implements api.Roles.
func (d *daemon) Roles(context.Context) ([]dsas.RoleView, error) {
	var out []dsas.RoleView
	for _, def := range d.roles.Definitions() {
		v := dsas.RoleView{Role: def.Role, Source: def.Source}
		var err error
		if v.Release, err = d.rel.Assigned(nil, def.Role.Name); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// status is what the server says of itself.
func (d *daemon) status(context.Context) (dsas.ServerStatus, error) {
	s := dsas.ServerStatus{Version: version, Started: d.started, Discovery: d.cfg.Discovery, Subnets: d.subnets, Listeners: map[string]string{
		"operators": d.cfg.Listen, "socket": d.cfg.Socket,
	}}
	for _, l := range d.socks.http {
		s.Listeners["boot HTTP"] = l.Addr().String()
	}
	return s, nil
}

// httpServer is an operator's listener with limits; event streams have none.
func httpServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// explainAs lists the steps for an architecture by its name ("bios", "uefi-x64"
// or option 93's number); without one, for both that are booted.
func explainAs(req boot.Request, arch string, explain func(boot.Request) []boot.Explained) (any, error) {
	known := []dsas.Arch{dsas.ArchBIOS, dsas.ArchEFIIA32, dsas.ArchEFIX64, dsas.ArchEFIARM64, dsas.ArchEFIX64HTTP, dsas.ArchEFIARM64HTTP}
	req.HasArch = true
	if arch == "" {
		var both []boot.Explained
		for _, req.Arch = range []dsas.Arch{dsas.ArchBIOS, dsas.ArchEFIX64} {
			both = append(both, explain(req)...)
		}
		return both, nil
	}
	var names []string
	for _, k := range known {
		if arch == k.String() || arch == strconv.Itoa(int(k)) {
			req.Arch = k
			return explain(req), nil
		}
		names = append(names, k.String())
	}
	return nil, fmt.Errorf("architecture %q: use one of %s: %w", arch, strings.Join(names, ", "), dsas.ErrInvalid)
}
