// Package lab is a virtual rack: a network namespace for the server, another
// with two switches and QEMU nodes with a NIC on each, and a virtual BMC per
// node. It stands in for hardware and nothing else: firmware, kernel, network
// and IPMI are real. No packet leaves the namespaces. It wants root.
package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dsas"
	"dsas/server/netns"
)

// DefaultRunDir is where labs keep their state files and sockets, a folder
// each. It is short, since a socket's path has at most 107 bytes (unix(7)).
const DefaultRunDir = "/run/dsas/lab"

// Config says what rack to build; the zero value is a good one. The tags are
// kong's, for a command that embeds it.
type Config struct {
	// Name of the lab and of the server's network namespace; that of the
	// switches has "-sw" after it. Default "dsas-lab".
	Name string `help:"Name of the lab and of its network namespace." default:"dsas-lab"`
	// Address of the server on the core bridge. Default 10.77.0.1/24.
	Address netip.Prefix `help:"Address of the server in the lab." default:"10.77.0.1/24"`
	// Dir holds disks, firmware variables and serial logs, which Down leaves
	// there. Empty: a temporary folder, which Down removes.
	Dir string `help:"Folder of disks and serial logs; without one they go with the lab." type:"path"`
	// RunDir is the folder of the labs' state folders. Default DefaultRunDir.
	RunDir string `help:"Folder of the labs' state and sockets." default:"/run/dsas/lab" type:"path"`
	// KeepDisks: a node's disk that exists already in Dir is used again;
	// otherwise each AddNode makes a blank one.
	KeepDisks bool `help:"Use disks again that an earlier lab left in the folder."`
	// BMCPassword is that of every virtual BMC. Default "lab-only".
	BMCPassword string `name:"bmc-password" help:"Password of the virtual BMCs." default:"lab-only"`
	// Reserve is the memory (MiB) that must stay free beside all nodes
	// running. Default 512.
	Reserve int `help:"Memory in MiB to keep free beside all nodes." default:"512"`

	Log *slog.Logger `kong:"-"` // nil: silent
}

var labNameRE = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)

func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		c.Name = "dsas-lab"
	}
	if !c.Address.IsValid() {
		c.Address = netip.MustParsePrefix("10.77.0.1/24")
	}
	if c.RunDir == "" {
		c.RunDir = DefaultRunDir
	}
	if c.BMCPassword == "" {
		c.BMCPassword = "lab-only"
	}
	if c.Reserve == 0 {
		c.Reserve = 512
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case !labNameRE.MatchString(c.Name):
		return c, fmt.Errorf("lab name %q: use lower-case letters, digits and dashes, at most 31: %w", c.Name, dsas.ErrInvalid)
	case !c.Address.Addr().Is4():
		return c, fmt.Errorf("lab %s: address %s: give an IPv4 address with its prefix, as 10.77.0.1/24: %w", c.Name, c.Address, dsas.ErrInvalid)
	case strings.ContainsAny(c.Dir+c.RunDir, ",\n\""):
		return c, fmt.Errorf("lab %s: folders %s and %s may hold no comma or quote, which QEMU takes for its own: %w", c.Name, c.Dir, c.RunDir, dsas.ErrInvalid)
	case len(c.runDir()) > 60:
		return c, fmt.Errorf("lab %s: folder %s is too long for the sockets in it: %w", c.Name, c.runDir(), dsas.ErrInvalid)
	case len(c.BMCPassword) > 20 || strings.ContainsAny(c.BMCPassword, "\"\\\n"):
		// 20 bytes: IPMI 2.0, section 22.30.
		return c, fmt.Errorf("lab %s: BMC password: at most 20 characters without quotes: %w", c.Name, dsas.ErrInvalid)
	}
	return c, nil
}

// runDir is this lab's state folder.
func (c Config) runDir() string { return filepath.Join(c.RunDir, c.Name) }

// Lab is a rack that is up.
type Lab struct {
	cfg     Config
	log     *slog.Logger
	started time.Time
	saving  sync.Mutex // the state file
	tempDir bool       // cfg.Dir is ours to remove
	lock    *os.File
	inside  *spawner // in the server's namespace
	rack    *spawner // in the switches' and nodes' namespace
	outside *spawner // where the process is: the BMCs
	control *control

	mu       sync.Mutex
	nodes    map[string]*Node
	order    []string
	forwards [Switches]bool
	down     bool
}

// Up builds the rack's network. A stale lab of the same name is cleaned
// first; one that is in use gives dsas.ErrConflict. ctx bounds only the
// building: end the lab with Down.
func Up(ctx context.Context, cfg Config) (*Lab, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("lab %s: it needs root, to make network namespaces and taps: %w", cfg.Name, dsas.ErrDenied)
	}
	if err := need("ip"); err != nil {
		return nil, err
	}
	l := &Lab{started: time.Now(), cfg: cfg, log: cfg.Log.With("lab", cfg.Name), nodes: map[string]*Node{}}
	for i := range l.forwards {
		l.forwards[i] = true
	}
	// What Down cannot find it skips, so it also undoes half a lab.
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("lab %s: %w", cfg.Name, err), l.Down(context.WithoutCancel(ctx)))
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) (err error) {
	if l.lock, err = lockLab(l.cfg); err != nil {
		return err
	}
	if err := cleanLocked(ctx, l.cfg.RunDir, l.cfg.Name, l.log); err != nil {
		return err
	}
	for _, name := range []string{l.cfg.Name, rackName(l.cfg.Name)} {
		if netns.Exists(name) {
			l.cfg.Name = "" // not ours: Down must not remove it
			return fmt.Errorf("network namespace %s exists and no lab made it (remove it with: ip netns del %s): %w", name, name, dsas.ErrConflict)
		}
	}
	if l.cfg.Dir == "" {
		if l.cfg.Dir, err = os.MkdirTemp("", "dsas-lab-"); err != nil {
			return err
		}
		l.tempDir = true
	} else if l.cfg.Dir, err = filepath.Abs(l.cfg.Dir); err != nil {
		return err
	} else if err := os.MkdirAll(l.cfg.Dir, 0o755); err != nil {
		return err
	}
	// On disk before anything is made, so that it can always be found.
	if err := l.save(); err != nil {
		return err
	}
	for _, name := range []string{l.cfg.Name, rackName(l.cfg.Name)} {
		if err := netns.Create(ctx, name); err != nil {
			return err
		}
	}
	if err := buildNetwork(l.cfg.Name, l.cfg.Address); err != nil {
		return err
	}
	if l.inside, err = newSpawner(l.cfg.Name); err != nil {
		return err
	}
	if l.rack, err = newSpawner(rackName(l.cfg.Name)); err != nil {
		return err
	}
	if l.outside, err = newSpawner(""); err != nil {
		return err
	}
	l.control, err = l.listenControl()
	return err
}

// Down ends everything the lab made: processes, BMCs, links, namespace,
// sockets, and the temporary folder if it made one. It may be called twice.
func (l *Lab) Down(ctx context.Context) error {
	l.mu.Lock()
	if l.down {
		l.mu.Unlock()
		return nil
	}
	l.down = true
	nodes := make([]*Node, 0, len(l.nodes))
	for _, n := range l.nodes {
		nodes = append(nodes, n)
	}
	l.mu.Unlock()

	var errs []error
	if l.control != nil {
		l.control.close()
	}
	for _, n := range nodes {
		errs = append(errs, n.stop(ctx))
	}
	for _, s := range []*spawner{l.rack, l.inside, l.outside} {
		if s != nil {
			s.close() // whatever still ran dies with its thread
		}
	}
	if l.lock != nil {
		if l.cfg.Name != "" {
			errs = append(errs, netns.Delete(ctx, rackName(l.cfg.Name)), netns.Delete(ctx, l.cfg.Name))
			errs = append(errs, os.RemoveAll(l.cfg.runDir()))
		}
		if l.tempDir {
			errs = append(errs, os.RemoveAll(l.cfg.Dir))
		}
		unlockLab(l.lock)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %s down: %w", l.cfg.Name, err)
	}
	return nil
}

// Namespace names the network namespace where the server opens its boot
// listeners (server/netns) and tests' clients are.
func (l *Lab) Namespace() string { return l.cfg.Name }

// Address is the server's address on the core bridge.
func (l *Lab) Address() netip.Prefix { return l.cfg.Address }

// Core names the interface that has the server's address.
func (l *Lab) Core() string { return coreName }

// Dir is where disks and serial logs are.
func (l *Lab) Dir() string { return l.cfg.Dir }

// Node gives a node by name, or nil.
func (l *Lab) Node(name string) *Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nodes[name]
}

// Nodes gives all nodes in the order they were added.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*Node, 0, len(l.order))
	for _, name := range l.order {
		all = append(all, l.nodes[name])
	}
	return all
}

// SwitchForwarding makes a switch stop passing packets, or pass them again,
// while every link on it stays up: what ARP monitoring notices and MII
// monitoring does not.
func (l *Lab) SwitchForwarding(sw int, on bool) error {
	if err := checkSwitch(sw); err != nil {
		return err
	}
	l.mu.Lock()
	err := setForwarding(rackName(l.cfg.Name), sw, on)
	if err == nil {
		l.forwards[sw] = on
	}
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("switch %d forwarding %t: %w", sw, on, err)
	}
	l.log.Info("switch", "switch", sw, "forwarding", on)
	return l.save()
}

// CutSwitch takes down every node's link to a switch, or brings it back, as
// when the switch loses its power.
func (l *Lab) CutSwitch(ctx context.Context, sw int, cut bool) error {
	if err := checkSwitch(sw); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range l.Nodes() {
		for port := range n.spec.MACs {
			if port%Switches == sw {
				g.Go(func() error { return n.SetLink(ctx, port, !cut) })
			}
		}
	}
	return g.Wait()
}

func checkSwitch(sw int) error {
	if sw < 0 || sw >= Switches {
		return fmt.Errorf("switch %d: there are %d, from 0: %w", sw, Switches, dsas.ErrInvalid)
	}
	return nil
}

// Start starts cmd in the lab's server namespace. It dies with the lab at the
// latest; the caller calls cmd.Wait.
func (l *Lab) Start(cmd *exec.Cmd) error { return l.inside.start(cmd) }

// Exec runs a program in the lab's server namespace and gives what it wrote to both
// outputs.
func (l *Lab) Exec(ctx context.Context, argv ...string) ([]byte, error) {
	if len(argv) == 0 {
		return nil, fmt.Errorf("lab exec: no program given: %w", dsas.ErrInvalid)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second // a grandchild may hold the pipe open
	if err := l.Start(cmd); err != nil {
		return nil, fmt.Errorf("lab exec %s: %w", argv[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return []byte(out.String()), fmt.Errorf("lab exec %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(out.String()))
	}
	return []byte(out.String()), nil
}

// Dialer dials from inside the namespace, to IP addresses only.
func (l *Lab) Dialer() *netns.Dialer { return &netns.Dialer{Namespace: l.cfg.Name} }

// HTTPClient gives a client whose connections start inside the namespace;
// each request makes a new one, so that a balancer sees them apart.
func (l *Lab) HTTPClient() *http.Client {
	return &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{DialContext: l.Dialer().DialContext, DisableKeepAlives: true},
	}
}

// need says which package to install when a program is missing.
func need(programs ...string) error {
	pkg := map[string]string{"ip": "iproute2", "tcpdump": "tcpdump", "qemu-system-x86_64": "qemu-system-x86", "ipmi_sim": "openipmi", "curl": "curl"}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("program %s: %w (apt-get install %s)", p, dsas.ErrNotFound, pkg[p])
		}
	}
	return nil
}

// remove forgets a node.
func (l *Lab) remove(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.nodes, name)
	l.order = slices.DeleteFunc(l.order, func(s string) bool { return s == name })
}
