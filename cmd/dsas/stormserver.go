package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/client"
	"dsas/internal/signing"
	"dsas/lab"
	"dsas/lab/storm"
	"dsas/server/blobs"
	"dsas/server/netns"
)

// The network that a storm of its own makes: 10.98.0.0/16.
var (
	stormServer = netip.MustParsePrefix("10.98.0.1/16")
	stormNodes  = netip.MustParsePrefix("10.98.255.1/16") // beyond all nodes and the pool
)

const (
	stormPool  = "10.98.128.0-10.98.191.255"
	stormPlain = 8081
)

// stormHost is a server made for a storm, in a network made for it.
type stormHost struct {
	dir     string
	profile string    // where the server writes its CPU profile; "" for none
	ns      [2]string // the server's, the nodes'
	spawn   [2]*lab.Spawner
	exe     string
	api     *client.Client
	log     *os.File
	cleanup []func()

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// own storms a server that it makes.
func (c *labStormCmd) own(ctx context.Context, a *app) (rep *storm.Report, err error) {
	rate, err := parseRate(c.Rate)
	if err != nil {
		return nil, err
	}
	sizes, err := parseSizes(c.Sizes)
	if err != nil {
		return nil, err
	}
	h, err := c.host(ctx, rate, sizes)
	if h != nil {
		defer h.close()
	}
	if err != nil {
		return nil, err
	}
	if err := h.start(ctx); err != nil {
		return nil, err
	}
	nodes, err := c.register(ctx, h.api)
	if err != nil {
		return nil, err
	}
	plain, err := h.plain()
	if err != nil {
		return nil, err
	}
	rep, err = c.nodes(ctx, a, h, nodes, plain)
	if err != nil || rep == nil {
		return rep, err
	}
	return rep, h.sound(ctx, rep, nodes)
}

func parseSizes(s string) (sizes [3]int64, err error) {
	f := strings.Split(s, ",")
	if len(f) != 3 {
		return sizes, usagef("sizes %q: write three figures, as 1,4,16", s)
	}
	for i := range f {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil || v <= 0 || v > 4096 {
			return sizes, usagef("sizes %q: %q: use MiB, more than 0 and at most 4096", s, f[i])
		}
		sizes[i] = int64(v * (1 << 20))
	}
	return sizes, nil
}

// host makes the network and the state of a server.
func (c *labStormCmd) host(ctx context.Context, rate uint64, sizes [3]int64) (h *stormHost, err error) {
	h = &stormHost{dir: c.State, profile: c.CPUProfile}
	if h.exe, err = os.Executable(); err != nil {
		return nil, err
	}
	if h.dir == "" {
		if h.dir, err = os.MkdirTemp("", "dsas-storm"); err != nil {
			return nil, err
		}
		h.defers(func() { os.RemoveAll(h.dir) })
	} else if h.dir, err = filepath.Abs(h.dir); err != nil {
		return nil, err
	} else if err := emptyFolder(h.dir); err != nil {
		return nil, err
	}
	if err := h.images(ctx, c.Role, sizes); err != nil {
		return h, err
	}
	for i, end := range []string{"s", "n"} {
		h.ns[i] = fmt.Sprintf("dsas-storm-%d-%s", os.Getpid(), end)
		if err := netns.Create(ctx, h.ns[i]); err != nil {
			return h, err
		}
		h.defers(func() { netns.Delete(context.WithoutCancel(ctx), h.ns[i]) })
	}
	seg := storm.Segment{ServerNS: h.ns[0], NodesNS: h.ns[1], ServerName: "boot", NodesName: "nodes", Server: stormServer, Nodes: stormNodes, Rate: rate}
	if err := seg.Connect(netns.Do); err != nil {
		return h, fmt.Errorf("make the storm's network: %w", err)
	}
	for i := range h.spawn {
		ns := ""
		if i == 1 {
			ns = h.ns[1]
		}
		if h.spawn[i], err = lab.NewSpawner(ns); err != nil {
			return h, err
		}
		h.defers(h.spawn[i].Close)
	}
	if h.log, err = os.OpenFile(filepath.Join(h.dir, "serve.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return h, err
	}
	h.defers(func() { h.log.Close() })
	if h.api, err = client.New(h.socket(), "", client.Options{}); err != nil {
		return h, err
	}
	conf := fmt.Sprintf(`state: %s
socket: %s
roles: %s
keys: %s
netns: %s
interfaces: [boot]
listen: 127.0.0.1:0
noRouterAdvertisement: true
heartbeat: %s
subnets:
  - prefix: %s
    pool: %s
`, h.dir, h.socket(), filepath.Join(h.dir, "roles"), h.keys(), h.ns[0], c.Heartbeat, stormServer.Masked(), stormPool)
	return h, os.WriteFile(h.conf(), []byte(conf), 0o600)
}

// emptyFolder refuses a folder that holds something: what a storm publishes
// would take the place of a server's kernel and image.
func emptyFolder(dir string) error {
	there, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil && len(there) > 0 {
		err = fmt.Errorf("it holds %s already, and the storm's synthetic images would replace a server's; name a new folder: %w", there[0].Name(), dsas.ErrConflict)
	}
	if err != nil {
		return fmt.Errorf("--state %s: %w", dir, err)
	}
	return nil
}

func (h *stormHost) conf() string         { return filepath.Join(h.dir, "dsas.yaml") }
func (h *stormHost) keys() signing.Folder { return signing.Folder(filepath.Join(h.dir, "keys")) }
func (h *stormHost) socket() string       { return filepath.Join(h.dir, "sock") }

func (h *stormHost) defers(fn func()) { h.cleanup = append(h.cleanup, fn) }

func (h *stormHost) close() {
	h.kill(unix.SIGTERM)
	for i := len(h.cleanup) - 1; i >= 0; i-- {
		h.cleanup[i]()
	}
}

// images makes a synthetic kernel, initramfs and image of the role.
func (h *stormHost) images(ctx context.Context, role string, sizes [3]int64) error {
	store, err := blobs.Open(filepath.Join(h.dir, "images"))
	if err != nil {
		return err
	}
	var parts [3]dsas.Part
	for i, size := range sizes {
		// Noise, so that nothing on the way can make it smaller.
		d, n, err := store.Put(ctx, io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size))
		if err != nil {
			return err
		}
		parts[i] = dsas.Part{Digest: d, DiffID: d, Size: n, Unpacked: n, MediaType: dsas.MediaTarZstd, Title: "storm"}
	}
	r, err := store.AddRelease(ctx, dsas.Release{Role: role, Boot: dsas.BootSet{Release: "6.1.0-storm", Kernel: parts[0], Initramfs: parts[1]},
		Manifest: dsas.Manifest{Kernel: "6.1.0-storm", Parts: parts[2:]}})
	if err != nil {
		return err
	}
	_, signers, err := releaseKeys(h.keys(), func(string) {})
	if err != nil {
		return err
	}
	if _, _, err := signRelease(ctx, store, signers, r.ID); err != nil {
		return err
	}
	return store.Propose(r.ID)
}

// start starts the server and waits until it answers.
func (h *stormHost) start(ctx context.Context) error {
	if err := h.launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if _, err := h.api.Status(ctx); err == nil {
			return nil
		}
		select {
		case <-h.gone():
			text, _ := os.ReadFile(h.log.Name())
			return fmt.Errorf("the storm's server ended; the end of its log:\n%s", lastLines(string(text), 10))
		case <-ctx.Done():
			return fmt.Errorf("the storm's server does not answer: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stormEnv leaves out what the environment says for our flags: DSAS_STATE, set for
// a server of one's own, would go before the storm's configuration, and its nodes
// into that server's state.
func stormEnv(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		return strings.HasPrefix(v, "DSAS_") && !strings.HasPrefix(v, "DSAS_TEST_")
	})
}

func (h *stormHost) launch() error {
	cmd := exec.Command(h.exe, "serve", "--config", h.conf(), "--log-level", "warn")
	if h.profile != "" {
		cmd.Args = append(cmd.Args, "--cpu-profile", h.profile)
	}
	cmd.Env = stormEnv(os.Environ())
	cmd.Stdout, cmd.Stderr = h.log, h.log
	if err := h.spawn[0].Start(cmd); err != nil {
		return fmt.Errorf("start the storm's server: %w", err)
	}
	exited := make(chan struct{})
	h.mu.Lock()
	h.cmd, h.exited = cmd, exited
	h.mu.Unlock()
	go func() {
		cmd.Wait()
		close(exited)
	}()
	return nil
}

func (h *stormHost) gone() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.exited
}

// kill ends the server and waits until it has ended.
func (h *stormHost) kill(sig unix.Signal) {
	h.mu.Lock()
	cmd, exited := h.cmd, h.exited
	h.cmd = nil
	h.mu.Unlock()
	if cmd == nil {
		return
	}
	cmd.Process.Signal(sig)
	select {
	case <-exited:
	case <-time.After(15 * time.Second):
		cmd.Process.Kill()
		<-exited
	}
}

// plain serves the same blobs by plain HTTP on the same link, and gives their URL.
func (h *stormHost) plain() (string, error) {
	var l net.Listener
	err := netns.Do(h.ns[0], func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(stormServer.Addr(), stormPlain).String())
		return err
	})
	if err != nil {
		return "", fmt.Errorf("plain HTTP for comparison: %w", err)
	}
	srv := &http.Server{Handler: http.FileServer(http.Dir(filepath.Join(h.dir, "images", "blobs", "sha256"))), ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(l)
	h.defers(func() { srv.Close() })
	return "http://" + l.Addr().String(), nil
}

// nodes runs the nodes' side as a process in their namespace, and kills the
// server meanwhile where that is wanted.
func (c *labStormCmd) nodes(ctx context.Context, a *app, h *stormHost, nodes []dsas.Node, plain string) (*storm.Report, error) {
	b, err := json.Marshal(nodes)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(h.dir, "nodes.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return nil, err
	}
	args := []string{"lab", "storm", "--server", h.socket(), "--interface", "nodes", "--nodes-file", file, "--plain", plain,
		"--over", c.Over.String(), "--hold", c.Hold.String(), "--timeout", c.Timeout.String(), "--strangers", strconv.Itoa(c.Strangers)}
	for flag, on := range map[string]bool{"--quiet": c.Quiet, "--no-plain": c.NoPlain, "--until-eof": c.Kill > 0} {
		if on {
			args = append(args, flag)
		}
	}
	cmd := exec.Command(h.exe, args...)
	cmd.Env = stormEnv(os.Environ())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, a.stderr
	enough, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := h.spawn[1].Start(cmd); err != nil {
		return nil, fmt.Errorf("start the nodes: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	if c.Kill > 0 {
		err = h.strike(ctx, c.Kill)
	}
	enough.Close()
	waitErr := cmd.Wait()
	if err := errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	var rep storm.Report
	if err := json.Unmarshal(out.Bytes(), &rep); err != nil {
		return nil, fmt.Errorf("the nodes' process: %w: %w", waitErr, err)
	}
	return &rep, nil
}

// strike kills the server times times, and starts it again at once.
func (h *stormHost) strike(ctx context.Context, times int) error {
	for range times {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.gone():
			text, _ := os.ReadFile(h.log.Name())
			return fmt.Errorf("the server ended by itself; the end of its log:\n%s", lastLines(string(text), 10))
		case <-time.After(50*time.Millisecond + rand.N(time.Second)):
		}
		h.kill(unix.SIGKILL)
		if err := h.launch(); err != nil {
			return err
		}
	}
	return nil
}

// sound checks what the server has kept: every node ready, every lease that was
// promised, no address promised to two, and a database in order.
func (h *stormHost) sound(ctx context.Context, rep *storm.Report, nodes []dsas.Node) error {
	views, err := h.api.Nodes(ctx)
	if err != nil {
		return err
	}
	// Not the phase: they have fallen silent, and some are lost by now.
	status := map[string]dsas.NodeStatus{}
	for _, v := range views {
		status[v.Node.Name] = v.Status
	}
	failed := map[string]bool{}
	for _, f := range rep.Failed {
		failed[f.Node] = true
	}
	var all error
	for _, n := range nodes {
		if st := status[n.Name]; st.Serving != n.Role && !failed[n.Name] {
			all = errors.Join(all, fmt.Errorf("node %s became ready, and the server has it as %q, serving %q", n.Name, st.Phase, st.Serving))
		}
	}
	kept, err := h.api.Leases(ctx)
	all = errors.Join(all, err, checkLeases(rep.Leases, kept))
	h.kill(unix.SIGTERM)
	return errors.Join(all, checkDatabase(ctx, filepath.Join(h.dir, "dsas.db")))
}

// checkLeases compares what strangers were promised with what is kept.
func checkLeases(promised []storm.Lease, kept []dsas.Lease) error {
	on := map[netip.Addr]dsas.Lease{}
	for _, l := range kept {
		on[l.Address] = l
	}
	var all error
	to := map[netip.Addr]dsas.MAC{}
	for _, l := range promised {
		if other, twice := to[l.Address]; twice {
			all = errors.Join(all, fmt.Errorf("address %s was given to %s and to %s", l.Address, other, l.MAC))
		}
		to[l.Address] = l.MAC
		k, ok := on[l.Address]
		switch {
		case !ok || k.MAC != l.MAC:
			all = errors.Join(all, fmt.Errorf("the lease of %s, promised to %s, is lost", l.Address, l.MAC))
		case k.Expires.Before(l.Expires.Add(-2 * time.Second)): // seconds on the wire, and its way here
			all = errors.Join(all, fmt.Errorf("the lease of %s ends at %s, and %s was promised %s", l.Address, k.Expires, l.MAC, l.Expires))
		}
	}
	return all
}

// checkDatabase asks SQLite whether a database that nobody has open is sound.
func checkDatabase(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite3", "file:"+path+"?mode=ro")
	if err != nil {
		return err
	}
	defer db.Close()
	var said string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&said); err != nil {
		return fmt.Errorf("check database: %w", err)
	}
	if said != "ok" {
		return fmt.Errorf("the database is damaged: %s", said)
	}
	return nil
}
