package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/client"
	"dsas/lab/storm"
)

type labStormCmd struct {
	N         int           `help:"Nodes." short:"n" default:"100" placeholder:"1000"`
	Interface string        `help:"Use the server that --server names, from this interface on its boot network, instead of a server and a network made for it." short:"i" placeholder:"eth1"`
	Role      string        `help:"Role of the nodes." default:"web"`
	Prefix    string        `help:"What the nodes' names begin with." default:"storm"`
	Over      time.Duration `help:"The nodes are switched on within this time." default:"1s"`
	Hold      time.Duration `help:"The nodes run for so long after the last was ready." default:"0s"`
	Timeout   time.Duration `help:"Who is not ready by then has failed." default:"30m"`
	Strangers int           `help:"MACs that belong to no node and want addresses of the pool."`
	NoPlain   bool          `help:"Leave out the comparison with plain HTTP."`
	Quiet     bool          `help:"Show no progress." short:"q"`

	// Of the server made for it.
	Rate       string        `help:"Bits per second of the link, as 100mbit or 1gbit; 0: as fast as it goes." default:"1gbit"`
	Sizes      string        `help:"MiB of the synthetic kernel, initramfs and image." default:"1,4,16" placeholder:"K,I,M"`
	Heartbeat  time.Duration `help:"Heartbeat of the nodes." default:"10s"`
	Kill       int           `help:"SIGKILL the server so many times, at random moments, and start it again at once; nodes boot again and again meanwhile."`
	State      string        `help:"Folder for the server's state and log, kept afterwards (default: one that is removed); new or empty." placeholder:"DIR"`
	CPUProfile string        `help:"Write a CPU profile of the server here." name:"cpu-profile" placeholder:"FILE"`

	// How the server made for it tells its nodes, which are another process.
	NodesFile string `hidden:"" placeholder:"FILE"`
	Plain     string `hidden:"" placeholder:"URL"`
	UntilEOF  bool   `hidden:"" name:"until-eof"`
}

// Help gives the examples.
func (*labStormCmd) Help() string {
	return `Simulates nodes that boot at the same second, each doing the whole conversation:
DHCP as firmware and as iPXE, loader by TFTP, script, kernel, initramfs, node
config, image, signed events, ready, heartbeats. Shows how long each step took
and what the server took; then reads the same bytes by plain HTTP, for
comparison. It needs root.

  dsas lab storm -n 1000

makes a server with synthetic images, and a network of two namespaces for it.
Against a server of your own, on a machine that is on its boot network:

  dsas lab storm -n 200 --server https://boot:8443 --token-file t --interface eth1

The nodes storm-0001 ... are added to it with the role, and removed in the end
with all that is known of them; nodes that are there are not touched. The load
is real: all of the image, for each node. To a site they are nodes like others:
take a --role that no site serves, or its balancers send them requests.

Exit status: 0 all nodes became ready, 1 one did not.`
}

// Run implements the command.
func (c *labStormCmd) Run(ctx context.Context, a *app) error {
	if c.N < 1 || c.N > maxStorm {
		return usagef("-n %d: use 1 to %d", c.N, maxStorm)
	}
	if c.Strangers < 0 || c.Strangers > maxStorm || c.Kill < 0 {
		return usagef("--strangers and --kill: use 0 or more, strangers at most %d", maxStorm)
	}
	if err := checkTimeout(c.Timeout); err != nil {
		return err
	}
	if c.Over < 0 || c.Hold < 0 {
		return usagef("--over and --hold: give a time, as 10s, or 0s")
	}
	if _, err := parseRate(c.Rate); err != nil {
		return err
	}
	if _, err := parseSizes(c.Sizes); err != nil {
		return err
	}
	if c.Interface != "" && c.Kill > 0 {
		return usagef("--kill is for the server that is made for it, not for yours: leave out --interface")
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("dsas lab storm needs root: it speaks DHCP in frames of its own and puts the nodes' addresses on an interface")
	}
	var rep *storm.Report
	var err error
	switch {
	case c.NodesFile != "":
		rep, err = c.asChild(ctx, a)
	case c.Interface != "":
		rep, err = c.against(ctx, a)
	default:
		rep, err = c.own(ctx, a)
	}
	if rep == nil {
		return err
	}
	if a.JSON || c.NodesFile != "" {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		err = errors.Join(err, enc.Encode(rep))
	} else {
		err = errors.Join(err, rep.Write(a.stdout))
	}
	if err == nil && len(rep.Failed) > 0 {
		err = fmt.Errorf("%d of %s did not become ready", len(rep.Failed), dsas.Count(rep.Nodes+rep.Strangers, "node"))
	}
	return err
}

// maxStorm is what one interface and 16 bits of a MAC hold with ease.
const maxStorm = 16000

// config is what all ways have in common.
func (c *labStormCmd) config(a *app, api *client.Client) storm.Config {
	conf := storm.Config{
		Interface: c.Interface, Strangers: c.Strangers, Over: c.Over, Timeout: c.Timeout, Hold: c.Hold, NoPlain: c.NoPlain,
		Plain: c.Plain, API: api, Log: slog.New(slog.DiscardHandler),
	}
	if path, ok := strings.CutPrefix(a.Server, "unix:"); ok || strings.HasPrefix(path, "/") || strings.HasPrefix(path, ".") {
		conf.PID = func() int { return socketPID(path) }
		conf.Page = pageOver(path)
	} else {
		conf.Page = func(ctx context.Context) error { _, err := api.Nodes(ctx); return err }
	}
	if !c.Quiet {
		conf.Progress = func(p storm.Progress) {
			var at []string
			for k, n := range p.At {
				if k != "ready" {
					at = append(at, fmt.Sprintf("%s %d", k, n))
				}
			}
			slices.Sort(at)
			fmt.Fprintf(a.stderr, "%5.0f s  %d of %d ready  %.0f MB  %s\n", p.Elapsed.Seconds(), p.Ready, p.Nodes, float64(p.Bytes)/1e6, strings.Join(at, ", "))
		}
	}
	return conf
}

// asChild is the nodes' side of a storm whose server another process made.
func (c *labStormCmd) asChild(ctx context.Context, a *app) (*storm.Report, error) {
	b, err := os.ReadFile(c.NodesFile)
	if err != nil {
		return nil, err
	}
	api, err := a.client()
	if err != nil {
		return nil, err
	}
	conf := c.config(a, api)
	if err := json.Unmarshal(b, &conf.Nodes); err != nil {
		return nil, fmt.Errorf("nodes: %w", err)
	}
	if c.UntilEOF {
		until := make(chan struct{})
		go func() {
			io.Copy(io.Discard, a.stdin)
			close(until)
		}()
		conf.Until, conf.API = until, nil
	}
	return storm.Run(ctx, conf)
}

// against storms a server that is there.
func (c *labStormCmd) against(ctx context.Context, a *app) (rep *storm.Report, err error) {
	api, err := a.client()
	if err != nil {
		return nil, err
	}
	// Whatever happens, what was added is removed; a second Ctrl-C ends that too.
	after := context.WithoutCancel(ctx)
	nodes, err := c.register(ctx, api)
	defer func() {
		if undo := c.unregister(after, api, nodes); undo != nil {
			err = errors.Join(err, fmt.Errorf("remove the storm's nodes: %w; remove them with: dsas node rm '%s-[0001-%04d]'", undo, c.Prefix, c.N))
		}
	}()
	if err != nil {
		return nil, err
	}
	conf := c.config(a, api)
	conf.Nodes = nodes
	return storm.Run(ctx, conf)
}

// register adds the nodes; the server chooses their addresses. Names or MACs
// that are there already are refused by it, and nothing is changed.
func (c *labStormCmd) register(ctx context.Context, api *client.Client) ([]dsas.Node, error) {
	var all []dsas.Node
	const chunk = 500
	for from := 0; from < c.N; from += chunk {
		var some []dsas.Node
		for i := from; i < min(from+chunk, c.N); i++ {
			some = append(some, dsas.Node{Name: fmt.Sprintf("%s-%04d", c.Prefix, i+1), NICs: []dsas.NIC{{MAC: storm.NodeMAC(i)}}, Role: c.Role})
		}
		added, err := api.AddNodes(ctx, some, false)
		if err != nil {
			return all, fmt.Errorf("add the storm's nodes: %w", err)
		}
		all = append(all, added...)
	}
	return all, nil
}

func (c *labStormCmd) unregister(ctx context.Context, api *client.Client, nodes []dsas.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var all error
	for _, n := range nodes {
		if err := api.RemoveNode(ctx, n.Name); err != nil && !errors.Is(err, dsas.ErrNotFound) {
			all = errors.Join(all, err)
		}
	}
	for i := range c.Strangers {
		if err := api.RemoveUnknown(ctx, storm.StrangerMAC(i)); err != nil && !errors.Is(err, dsas.ErrNotFound) {
			all = errors.Join(all, err)
		}
	}
	return all
}

// socketPID gives the process that listens on a unix socket (SO_PEERCRED,
// unix(7)); 0 while none does.
func socketPID(path string) int {
	c, err := net.Dial("unix", path)
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// pageOver asks for the operators' page over the server's socket.
func pageOver(path string) func(ctx context.Context) error {
	h := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://dsas.socket/", nil)
		if err != nil {
			return err
		}
		resp, err := h.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("the page answers %s", resp.Status)
		}
		return nil
	}
}

// parseRate reads tc(8)'s way of writing bits per second.
func parseRate(s string) (uint64, error) {
	num, unit := s, 1.0
	for suffix, u := range map[string]float64{"gbit": 1e9, "mbit": 1e6, "kbit": 1e3, "bit": 1} {
		if n, ok := strings.CutSuffix(strings.ToLower(s), suffix); ok && len(n) < len(num) {
			num, unit = n, u
		}
	}
	v, err := strconv.ParseFloat(num, 64)
	if err != nil || v < 0 || math.IsInf(v, 0) || v > 0 && v*unit < 1e6 || v*unit > 1e12 {
		return 0, usagef("rate %q: write it as 1gbit or 100mbit, at least 1mbit; 0 for no limit", s)
	}
	return uint64(v * unit), nil
}
