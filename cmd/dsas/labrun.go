package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"dsas"
	"dsas/client"
	"dsas/lab"
)

// labNode is one box of the demonstration rack.
type labNode struct {
	spec lab.NodeSpec
	role string
}

// labRack is what make run shows: two web nodes behind a balancer, one of
// them with a disk, so that it can become a database.
var labRack = []labNode{
	{lab.NodeSpec{Name: "w101"}, "web"},
	{lab.NodeSpec{Name: "w102", Firmware: lab.UEFI, Disk: 1 << 30, Memory: 2048}, "web"},
	{lab.NodeSpec{Name: "w103"}, "lb"},
}

// labSite is the address that the rack offers.
var labSite = dsas.Site{Name: "www", Address: netip.MustParseAddr("10.77.0.80"), Port: 80, Role: "web"}

// labRequest is what dsas lab run was asked for.
type labRequest struct {
	State, Listen, Socket string
	Out                   io.Writer
	Log                   *slog.Logger
}

// runLab shows a whole data centre on one machine until ctx ends.
func runLab(ctx context.Context, req labRequest) error {
	if err := socketFree(req.Socket); err != nil {
		return err // before the minutes that images take
	}
	state, err := filepath.Abs(req.State)
	if err != nil {
		return err
	}
	say := func(format string, a ...any) { fmt.Fprintf(req.Out, format+"\n", a...) }
	keys := labKey(state)
	cfg := config{
		State: state, Keys: filepath.Join(state, "keys"), Roles: filepath.Join(state, "roles"), Listen: req.Listen, Socket: req.Socket, Netns: labName, Interfaces: []string{"core"}, AuthorizedKeys: keys + ".pub",
		Bond: bondConfig{Options: "mode=active-backup arp_interval=500 arp_ip_target=10.77.0.1"}, Heartbeat: 5 * time.Second,
		Variables: map[string]string{"LVSADDRESS": "10.77.0.1"},
	}
	cfg.setDefaults()
	if err := cfg.check(); err != nil {
		return err
	}
	if err := listenFree(cfg.Listen); err != nil {
		return err
	}
	if err := makeLabKeys(state); err != nil {
		return err
	}
	begin := time.Now()
	say("building images (the first time takes some minutes) ...")
	if _, err := buildImages(ctx, cfg, buildRequest{
		Roles:    []string{"web", "lb", "db", "rescue"},
		Progress: func(l string) { say("  %s", l) },
	}); err != nil {
		return err
	}
	rack, err := lab.Up(ctx, lab.Config{Name: cfg.Netns, Dir: filepath.Join(state, "lab"), KeepDisks: true, Log: req.Log})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	ready := make(chan struct{})
	g.Go(func() error { return serve(ctx, cfg, req.Log, req.Out, serveOptions{Ready: func() { close(ready) }}) })
	g.Go(func() error {
		select {
		case <-ready: // it is our server that answers on the socket now
		case <-ctx.Done():
			return ctx.Err()
		}
		err := showRack(ctx, rack, cfg, keys, begin, say)
		if err == nil {
			<-ctx.Done()
			return nil
		}
		return err
	})
	err = g.Wait()
	down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if downErr := rack.Down(down); downErr != nil {
		err = errors.Join(err, downErr)
	}
	say("the rack is down")
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// rackDown refuses to start a rack where one is up.
func rackDown(runDir string) error {
	st, err := lab.ReadState(runDir, labName)
	if err != nil || !st.Alive { // what a dead one left is cleaned up by the next
		return nil
	}
	return fmt.Errorf("the rack is up already (process %d); stop it with: dsas lab down; dsas lab status tells what runs: %w", st.Owner.PID, dsas.ErrConflict)
}

// labKey is the file of the operator's SSH key for the rack.
func labKey(state string) string { return filepath.Join(state, "operator") }

// makeLabKeys makes that key, unless it is there.
func makeLabKeys(state string) error {
	fail := func(err error) error { return fmt.Errorf("make operator's key: %w", err) }
	path := labKey(state)
	if isFile(path) && isFile(path+".pub") {
		return nil
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fail(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "dsas lab")
	if err != nil {
		return fail(err)
	}
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(state, 0o755); err != nil {
		return fail(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return fail(err)
	}
	if err := os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(line), 0o644); err != nil {
		return fail(err)
	}
	return nil
}

func isFile(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular()
}

// showRack adds the nodes as an operator would, boots them and tells how far
// they are.
func showRack(ctx context.Context, rack *lab.Lab, cfg config, keys string, begin time.Time, say func(string, ...any)) error {
	cfg.setDefaults()
	c, err := client.New(cfg.Socket, "", client.Options{})
	if err != nil {
		return err
	}
	known, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range labRack {
		box, err := rack.AddNode(ctx, n.spec)
		if err != nil {
			return err
		}
		if err := tellNode(ctx, c, known, n, box); err != nil {
			return err
		}
	}
	if _, err := c.AddSite(ctx, labSite, false); err != nil && !errors.Is(err, dsas.ErrConflict) {
		return err
	}
	last, err := c.LastEvent(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, n := range labRack {
		names = append(names, n.spec.Name)
	}
	say("switching on %s; serial consoles in %s/*/serial.log", strings.Join(names, " "), rack.Dir())
	results, err := c.Power(ctx, dsas.PowerCycle, names, false)
	if err != nil {
		return err
	}
	for _, r := range results {
		if r.Error != "" {
			return fmt.Errorf("power on %s: %s", r.Node, r.Error)
		}
	}
	if err := watchBoots(ctx, c, last, len(names), say); err != nil {
		return err
	}
	say("")
	say("%d nodes are ready after %s. Ask the balancer, as a client on the rack's network would:", len(names), time.Since(begin).Round(time.Second))
	say("")
	say("  ip netns exec %s curl -s http://%s/", rack.Namespace(), labSite.Address)
	say("")
	say("Make a database of a web server (a minute or two), and ask it:")
	say("")
	say("  bin/dsas node set w102 --role db && bin/dsas power cycle w102 --wait ready")
	say("  bin/dsas ssh --identity %s w102 mariadb -e \"'select version()'\"", keys) // ssh hands the words to a shell there
	say("")
	say("Build and look at its images (once in that terminal: else it is the machine's own state):")
	say("")
	say("  export DSAS_STATE=%s DSAS_KEYS=%s DSAS_ROLES=%s", cfg.State, cfg.Keys, cfg.Roles)
	say("  bin/dsas image build web && bin/dsas image ls")
	say("")
	say("See bin/dsas node ls, bin/dsas events --follow, and the page. Ctrl-C takes all of it down.")
	return nil
}

// tellNode makes the server know a box of the rack; one that it knows from an
// earlier run only gets its BMC's new address.
func tellNode(ctx context.Context, c *client.Client, known []dsas.NodeView, n labNode, box *lab.Node) error {
	for _, k := range known {
		if k.Node.Name == n.spec.Name {
			_, err := c.ChangeNode(ctx, k.Node.Name, map[string]any{"bmc": box.BMC()}, false)
			return err
		}
	}
	node := dsas.Node{Name: n.spec.Name, NICs: box.NICs(), Role: n.role, BMC: box.BMC()}
	if n.spec.Disk > 0 {
		node.Disks = map[string]string{"DBDEVICE": "/dev/vda"}
	}
	_, err := c.AddNodes(ctx, []dsas.Node{node}, false)
	return err
}

// watchBoots shows each node's steps until all are ready.
func watchBoots(ctx context.Context, c *client.Client, after int64, want int, say func(string, ...any)) error {
	start := time.Now()
	ready := map[string]bool{}
	for e, err := range c.Stream(ctx, after) {
		if err != nil {
			return err
		}
		if e.Node == "" {
			continue
		}
		switch e.Kind {
		case dsas.KindService, dsas.KindLink, dsas.KindFiles:
		default:
			say("%6.1fs  %-5s %-15s %s", time.Since(start).Seconds(), e.Node, e.Kind, e.Message)
		}
		if e.Kind == dsas.KindReady {
			if ready[e.Node] = true; len(ready) == want {
				return nil
			}
		}
	}
	return ctx.Err()
}
