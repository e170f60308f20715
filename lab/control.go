package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"dsas"
)

// control is the lab's socket, in its state folder and for root only: the
// virtual BMCs' hooks come here, and `dsas lab` of another process.
//
//	POST /bmc/NODE                      body "get power boot" or "set power 1": ipmi_sim's hook
//	GET  /state                         State
//	POST /nodes/NODE/power/ACTION       on, off, cycle, reset, button
//	POST /nodes/NODE/link/PORT/up|down
//	POST /switches/SW/forward|block
type control struct {
	path   string
	server *http.Server
	done   chan struct{}
}

// Tell asks a lab of another process to do one of the above, by the words of
// its path: Tell(ctx, "", "dsas-lab", "nodes", "w101", "link", "0", "down").
func Tell(ctx context.Context, runDir, name string, words ...string) error {
	cfg, err := Config{Name: name, RunDir: runDir}.withDefaults()
	if err != nil {
		return err
	}
	what := strings.Join(words, " ")
	path := ""
	for _, w := range words {
		path += "/" + url.PathEscape(w)
	}
	req, err := http.NewRequestWithContext(ctx, "POST", "http://lab"+path, nil)
	if err != nil {
		return fmt.Errorf("lab %s: %s: %w", cfg.Name, what, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", cfg.controlPath())
		}}}
	res, err := client.Do(req)
	if err != nil {
		if _, serr := ReadState(runDir, name); serr != nil {
			return serr // no such lab
		}
		return fmt.Errorf("lab %s: %s: %w", cfg.Name, what, err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return nil
	}
	said, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
	err = errors.New(strings.TrimSpace(string(said)))
	for sentinel, code := range statuses() {
		if code == res.StatusCode {
			return fmt.Errorf("lab %s: %w: %w", cfg.Name, sentinel, err)
		}
	}
	return fmt.Errorf("lab %s: %s: %w", cfg.Name, what, err)
}

// statuses pairs the sentinels with their HTTP statuses.
func statuses() map[error]int {
	return map[error]int{dsas.ErrInvalid: 400, dsas.ErrNotFound: 404, dsas.ErrConflict: 409}
}

func (c Config) controlPath() string { return filepath.Join(c.runDir(), "control") }

func (l *Lab) listenControl() (*control, error) {
	c := &control{path: l.cfg.controlPath(), done: make(chan struct{})}
	ln, err := net.Listen("unix", c.path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(c.path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /bmc/{node}", l.onNode(l.serveBMC))
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(l.State())
	})
	mux.HandleFunc("POST /nodes/{node}/power/{action}", l.onNode(func(n *Node, w http.ResponseWriter, r *http.Request) error {
		return n.act(r.Context(), r.PathValue("action"))
	}))
	mux.HandleFunc("POST /nodes/{node}/link/{port}/{state}", l.onNode(func(n *Node, w http.ResponseWriter, r *http.Request) error {
		up, err := oneOf(r.PathValue("state"), "down", "up")
		if err != nil {
			return err
		}
		port, err := number(r.PathValue("port"))
		if err != nil {
			return err
		}
		return n.SetLink(r.Context(), port, up)
	}))
	mux.HandleFunc("POST /switches/{switch}/{state}", answer(func(w http.ResponseWriter, r *http.Request) error {
		on, err := oneOf(r.PathValue("state"), "block", "forward")
		if err != nil {
			return err
		}
		sw, err := number(r.PathValue("switch"))
		if err != nil {
			return err
		}
		return l.SwitchForwarding(sw, on)
	}))
	c.server = &http.Server{Handler: http.MaxBytesHandler(mux, 4096), ReadTimeout: 10 * time.Second, WriteTimeout: 2 * time.Minute}
	go func() {
		defer close(c.done)
		if err := c.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			l.log.Error("control socket", "error", err)
		}
	}()
	return c, nil
}

func (c *control) close() {
	c.server.Close()
	<-c.done
}

func oneOf(s, off, on string) (bool, error) {
	switch s {
	case off:
		return false, nil
	case on:
		return true, nil
	}
	return false, fmt.Errorf("%.20q: use %s or %s: %w", s, on, off, dsas.ErrInvalid)
}

func number(s string) (int, error) {
	if len(s) != 1 || s[0] < '0' || s[0] > '9' {
		return 0, fmt.Errorf("%.20q: use a number from 0 to 9: %w", s, dsas.ErrInvalid)
	}
	return int(s[0] - '0'), nil
}

// answer turns an error into a status and its text.
func answer(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil {
			return
		}
		code := http.StatusInternalServerError
		for sentinel, c := range statuses() {
			if errors.Is(err, sentinel) {
				code = c
			}
		}
		http.Error(w, err.Error(), code)
	}
}

func (l *Lab) onNode(h func(*Node, http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return answer(func(w http.ResponseWriter, r *http.Request) error {
		n := l.Node(r.PathValue("node"))
		if n == nil {
			return fmt.Errorf("lab %s: node %s: %w", l.cfg.Name, r.PathValue("node"), dsas.ErrNotFound)
		}
		return h(n, w, r)
	})
}

func (n *Node) act(ctx context.Context, action string) error {
	switch action {
	case "on":
		return n.PowerOn(ctx)
	case "off":
		return n.PowerOff(ctx, true)
	case "cycle":
		return n.Cycle(ctx)
	case "reset":
		return n.Reset(ctx)
	case "button":
		return n.PowerOff(ctx, false)
	}
	return fmt.Errorf("power %.20q: use on, off, cycle, reset or button: %w", action, dsas.ErrInvalid)
}

// want is what a BMC was told and has not done yet. Like a real one it
// answers at once and does it afterwards.
type want struct {
	mu      sync.Mutex
	pending int
	power   string
}

func (l *Lab) serveBMC(n *Node, w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	n.mu.Lock()
	b := n.bmc
	n.mu.Unlock()
	if b == nil { // it is asked while it is being made
		return fmt.Errorf("node %s: its BMC is not up yet: %w", n.spec.Name, dsas.ErrConflict)
	}
	f := strings.Fields(string(body))
	switch {
	case len(f) >= 2 && f[0] == "get":
		for _, p := range f[1:] {
			fmt.Fprintf(w, "%s:%s\n", p, b.get(p))
		}
		return nil
	case len(f) >= 3 && f[0] == "set":
		for i := 1; i+1 < len(f); i += 2 {
			if err := b.set(f[i], f[i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("BMC hook: %.60q: %w", body, dsas.ErrInvalid)
}

func (b *bmc) get(param string) string {
	switch param {
	case "power":
		b.want.mu.Lock()
		defer b.want.mu.Unlock()
		state := b.node.State()
		if b.want.pending > 0 {
			state = b.want.power
		}
		if state == On {
			return "1"
		}
		return "0"
	case "boot":
		return b.node.BootDevice()
	}
	return "0"
}

func (b *bmc) set(param, value string) error {
	n := b.node
	switch param {
	case "power":
		if value == "0" {
			return b.later(Off, func(ctx context.Context) error { return n.PowerOff(ctx, true) })
		}
		return b.later(On, n.PowerOn)
	case "reset":
		return b.later("", n.Reset)
	case "shutdown":
		// The button may take for ever: not in the queue.
		p := n.current()
		if p == nil {
			return nil
		}
		return p.qmp.do(context.Background(), "system_powerdown", nil, nil)
	case "boot":
		n.mu.Lock()
		defer n.mu.Unlock()
		n.nextDev = value
	}
	return nil
}

// BootDevice tells what the node's BMC was told to boot from next: none, pxe,
// default (the disk), cdrom or bios. The lab's nodes boot from the network
// whatever it says.
func (n *Node) BootDevice() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nextDev == "" {
		return "none"
	}
	return n.nextDev
}

func (b *bmc) later(power string, do func(context.Context) error) error {
	b.want.mu.Lock()
	defer b.want.mu.Unlock()
	if power == "" { // a reset leaves it as it is
		power = b.want.power
		if b.want.pending == 0 {
			power = b.node.State()
		}
	}
	select {
	case b.todo <- do:
		b.want.pending++
		b.want.power = power
		return nil
	default:
		return errors.New("the BMC is busy")
	}
}

// work does what the BMC was told, in order.
func (b *bmc) work(ctx context.Context) {
	defer close(b.idle)
	for {
		select {
		case do := <-b.todo:
			if err := do(ctx); err != nil {
				b.node.lab.log.Error("BMC", "node", b.node.spec.Name, "error", err)
			}
			b.want.mu.Lock()
			b.want.pending--
			b.want.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}
