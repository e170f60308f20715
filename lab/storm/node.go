package storm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"dsas"
	"dsas/client"
)

// node is one simulated box.
type node struct {
	*storm
	is   dsas.Node
	mac  dsas.MAC
	addr netip.Addr

	step    string // what it does
	began   time.Time
	reboots int
	failed  error
	fetched []string // URLs of what the last boot read
	took    int64    // bytes of them
}

// live boots until it is ready, then runs. up is called once: when the node is
// ready or has given up.
func (n *node) live(limit, running context.Context, after time.Duration, up func()) {
	n.at("", "off")
	n.step = "off"
	select {
	case <-time.After(after):
	case <-limit.Done():
	}
	began := time.Now()
	pause := time.Second
	for {
		h := httpFrom(n.addr)
		b, err := n.boot(limit, h)
		if err == nil {
			n.figures.add("boot", time.Since(began))
			n.enter("ready")
			n.boots.Add(1)
			if n.again() && limit.Err() == nil {
				// Power-cycled while it runs.
				c, cancel := context.WithTimeout(limit, spread(2*time.Second))
				n.run(c, b)
				cancel()
				h.CloseIdleConnections()
				began, pause = time.Now(), time.Second
				continue
			}
			n.ready.Add(1)
			up()
			n.run(running, b)
			h.CloseIdleConnections()
			return
		}
		h.CloseIdleConnections()
		n.bytes.Add(-n.took)
		if limit.Err() != nil {
			n.failed = errors.Join(errGaveUp, err)
			up()
			return
		}
		// A box whose boot failed starts over, as firmware and init do.
		n.Log.Info("a boot failed; again", "node", n.is.Name, "step", n.step, "err", err)
		n.reboots++
		n.figures.failure(n.step, err)
		select {
		case <-time.After(pause):
		case <-limit.Done():
		}
		pause = min(2*pause, 16*time.Second)
	}
}

// again tells whether the node is to boot once more.
func (n *node) again() bool {
	if n.Until == nil {
		return false
	}
	select {
	case <-n.Until:
		return false
	default:
		return true
	}
}

// enter begins a step and ends the one before.
func (n *node) enter(step string) {
	now := time.Now()
	if n.step != "off" {
		n.figures.add(n.step, now.Sub(n.began))
	}
	n.at(n.step, step)
	n.step, n.began = step, now
}

// booted is what a node has in its hands when it is up.
type booted struct {
	api *client.Node
	cfg dsas.NodeConfig
}

// boot is one boot from the first DISCOVER to ready.
func (n *node) boot(ctx context.Context, h *http.Client) (b booted, err error) {
	if n.step != "off" {
		n.at(n.step, "off")
		n.step = "off"
	}
	n.fetched, n.took = nil, 0
	n.enter("dhcp-firmware")
	ack, err := n.wire.dhcp(ctx, n.mac, asFirmware, n.retry)
	if err != nil {
		return b, err
	}
	if got, _ := given(ack); got != n.addr {
		return b, fmt.Errorf("DHCP gave %s; the node's address is %s", got, n.addr)
	}
	server, _ := netip.AddrFromSlice(ack.ServerIPAddr.To4())
	if file := ack.BootFileName; strings.HasPrefix(file, "nbp/") {
		n.enter("tftp")
		for try := 1; ; try++ {
			if _, err = tftpGet(ctx, n.addr, server, file, n.retry); err == nil {
				break
			}
			if ctx.Err() != nil || try == 5 {
				return b, err
			}
			n.retry(time.Second)
		}
	} else if file == "" {
		return b, fmt.Errorf("DHCP gave no boot file")
	}
	n.enter("dhcp-ipxe")
	if ack, err = n.wire.dhcp(ctx, n.mac, asIPXE, n.retry); err != nil {
		return b, err
	}
	n.enter("script")
	script, err := n.script(ctx, h, ack.BootFileName)
	if err != nil {
		return b, err
	}
	for _, f := range script.files {
		n.enter(f.name)
		if err := n.fetch(ctx, h, f.url); err != nil {
			return b, err
		}
	}
	return n.init(ctx, h, script)
}

// init is what dsas-init does.
func (n *node) init(ctx context.Context, h *http.Client, s script) (b booted, err error) {
	b.api = client.NewNode(s.server, s.boot)
	b.api.HTTP = h
	n.enter("config")
	err = n.persist(ctx, func() (err error) {
		b.cfg, err = b.api.Config(ctx, s.token)
		return err
	})
	if err != nil {
		return b, err
	}
	if b.cfg.Node != n.is.Name {
		return b, fmt.Errorf("the node config is of %q", b.cfg.Node)
	}
	n.enter("events")
	if err := n.say(ctx, b.api, dsas.KindInit, dsas.KindFetch); err != nil {
		return b, err
	}
	n.enter("image")
	for _, p := range b.cfg.Manifest.Parts {
		if err := n.fetch(ctx, h, s.server+"/v2/dsas/"+b.cfg.Role.Name+"/blobs/"+string(p.Digest)); err != nil {
			return b, err
		}
	}
	n.enter("events")
	if err := n.say(ctx, b.api, dsas.KindFetched, dsas.KindConf, dsas.KindSwitched); err != nil {
		return b, err
	}
	return b, n.say(ctx, b.api, dsas.KindService, dsas.KindService, dsas.KindReady)
}

// script is what a simulated iPXE reads out of its script.
type script struct {
	server, boot, token string
	files               []scriptFile
}

type scriptFile struct{ name, url string }

var (
	kernelRE  = regexp.MustCompile(`(?m)^kernel --name kernel (\S+) .*dsas\.server=(\S+) .*dsas\.boot=(\S+) dsas\.token=(\S+)`)
	initrdRE  = regexp.MustCompile(`(?m)^initrd --name (\S+) (\S+)`)
	errScript = errors.New("the script boots nothing")
)

func (n *node) script(ctx context.Context, h *http.Client, url string) (s script, err error) {
	var text []byte
	err = n.persist(ctx, func() error {
		text, err = get(ctx, h, url)
		return err
	})
	if err != nil {
		return s, err
	}
	m := kernelRE.FindSubmatch(text)
	if m == nil {
		return s, fmt.Errorf("%w: %.300q", errScript, text)
	}
	s.server, s.boot, s.token = string(m[2]), string(m[3]), string(m[4])
	s.files = append(s.files, scriptFile{"kernel", string(m[1])})
	for _, i := range initrdRE.FindAllSubmatch(text, -1) {
		s.files = append(s.files, scriptFile{string(i[1]), string(i[2])})
	}
	return s, nil
}

// fetch reads a blob whole, resuming where it broke off.
func (n *node) fetch(ctx context.Context, h *http.Client, url string) error {
	var r resumed
	err := n.persist(ctx, func() error {
		before := r.at
		err := n.sums.read(ctx, h, url, &r)
		n.bytes.Add(r.at - before)
		n.took += r.at - before
		return err
	})
	if err == nil {
		n.fetched = append(n.fetched, url)
	}
	return err
}

// say posts events, and goes on until they have arrived.
func (n *node) say(ctx context.Context, api *client.Node, kinds ...dsas.Kind) error {
	events := make([]dsas.Event, len(kinds))
	for i, k := range kinds {
		events[i] = dsas.Event{Kind: k, Time: api.ServerTime(time.Now()), Message: "storm"}
	}
	return n.persist(ctx, func() error {
		start := time.Now()
		err := api.PostEvents(ctx, events)
		if err == nil {
			n.figures.add("post", time.Since(start))
		}
		return err
	})
}

// run is a node that is up: heartbeats, and the long poll for changed files.
func (n *node) run(ctx context.Context, b booted) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		tag := b.cfg.FilesTag
		for ctx.Err() == nil {
			r, changed, err := b.api.Files(ctx, tag, 25*time.Second)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				n.figures.failure("long poll", err)
				sleep(ctx, time.Second)
			case changed:
				tag = r.Tag
				n.figures.count("files changed")
			}
		}
	}()
	every := b.cfg.Heartbeat
	if every <= 0 {
		every = 10 * time.Second
	}
	sleep(ctx, spread(every))
	for ctx.Err() == nil {
		start := time.Now()
		if err := b.api.Heartbeat(ctx); err == nil {
			n.figures.add("heartbeat", time.Since(start))
		} else if ctx.Err() == nil {
			n.figures.failure("heartbeat", err)
		}
		sleep(ctx, every)
	}
	<-done
}

// retry counts a try that was made again after a pause.
func (n *node) retry(pause time.Duration) { n.figures.retry(n.step, pause) }

// persist tries until do succeeds, is refused for good, or ctx ends: after
// 1/4, 1/2, 1, 2 and then every 4 s.
func (n *node) persist(ctx context.Context, do func() error) error {
	pause := 250 * time.Millisecond
	for {
		err := do()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return errors.Join(ctx.Err(), err)
		case errors.Is(err, dsas.ErrDenied), errors.Is(err, dsas.ErrInvalid), errors.Is(err, dsas.ErrNotFound):
			return err
		}
		n.figures.failure(n.step, err)
		n.retry(pause)
		sleep(ctx, pause)
		pause = min(2*pause, 4*time.Second)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// httpFrom gives a client whose requests come from an address: a box's own.
func httpFrom(a netip.Addr) *http.Client {
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: a.AsSlice()}}
	return &http.Client{
		Transport:     &http.Transport{DialContext: d.DialContext, MaxIdleConnsPerHost: 2, IdleConnTimeout: 60 * time.Second, DisableCompression: true, ResponseHeaderTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get reads a small answer.
func get(ctx context.Context, h *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("GET: %w: %w", err, dsas.ErrInvalid)
	}
	resp, err := h.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %.200q", url, resp.Status, body)
	}
	return body, err
}
