package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"dsas"
	"dsas/server"
	"dsas/server/dhcp"
	"dsas/server/httpboot"
	"dsas/server/metrics"
	"dsas/server/tftp"
)

// phases are all that a node can be in.
var phases = []dsas.Phase{
	dsas.PhaseNew, dsas.PhasePower, dsas.PhaseDHCP, dsas.PhaseLoader, dsas.PhaseKernel, dsas.PhaseInit, dsas.PhaseFetch,
	dsas.PhaseServices, dsas.PhaseReady, dsas.PhaseFailed, dsas.PhaseLost, dsas.PhaseOff,
}

// source gives the figures that are asked for at each scrape.
func (d *daemon) source(dhcpd *dhcp.Server, tftpd *tftp.Server) metrics.Source {
	return func(ctx context.Context) ([]metrics.Metric, error) {
		list, err := d.stateMetrics(ctx)
		if dhcpd != nil {
			list = append(list, dhcpMetrics(dhcpd.Stats())...)
		}
		list = append(list, tftpMetrics(tftpd.Stats())...)
		list = append(list, httpMetrics(d.boot.Stats())...)
		return list, err
	}
}

// stateMetrics are what the store knows.
func (d *daemon) stateMetrics(ctx context.Context) ([]metrics.Metric, error) {
	statuses, err1 := d.store.Statuses(ctx)
	unknowns, err2 := d.store.Unknowns(ctx)
	byPhase := map[dsas.Phase]int{}
	for _, s := range statuses {
		byPhase[s.Phase]++
	}
	nodes := metrics.Metric{Name: "dsas_nodes", Help: "Nodes by the phase they are in.", Labels: []string{"phase"}}
	for _, p := range phases {
		nodes.Samples = append(nodes.Samples, sample(byPhase[p], string(p)))
	}
	db := metrics.Metric{Name: "dsas_database_bytes", Help: "Size of the database's files.", Labels: []string{"file"}}
	var err3 error
	for label, name := range map[string]string{"database": "dsas.db", "wal": "dsas.db-wal"} {
		st, err := os.Stat(d.cfg.path(name))
		if err == nil {
			db.Samples = append(db.Samples, sample(st.Size(), label))
		} else if !errors.Is(err, os.ErrNotExist) {
			err3 = err
		}
	}
	return []metrics.Metric{
		nodes, db,
		{Name: "dsas_unknown_machines", Help: "MACs that asked and belong to no node.", Samples: []metrics.Sample{sample(len(unknowns))}},
		{Name: "dsas_store_writable", Help: "1: what happens is saved; 0: nothing could be saved lately.", Samples: []metrics.Sample{sample(one(d.store.Writable() == nil))}},
		counts("dsas_events_left_out_total", "Events not recorded, since anybody could bring so many about, by kind.", "kind", d.gate.Stats().Dropped),
	}, errors.Join(err1, err2, err3)
}

func dhcpMetrics(s dhcp.Stats) []metrics.Metric {
	pool := func(name, help string, value func(dhcp.PoolUse) int) metrics.Metric {
		m := metrics.Metric{Name: name, Help: help, Labels: []string{"subnet"}}
		for _, p := range s.Pools {
			m.Samples = append(m.Samples, sample(value(p), p.Subnet.String()))
		}
		return m
	}
	return []metrics.Metric{
		counts("dsas_dhcp_received_total", "DHCP requests, by message type.", "type", s.Received),
		counts("dsas_dhcp_answered_total", "DHCP answers, by message type.", "type", s.Answered),
		counts("dsas_dhcp_dropped_total", "DHCP packets that got no answer, by reason.", "reason", s.Dropped),
		pool("dsas_dhcp_pool_addresses", "Addresses of the pools that may be given out.", func(p dhcp.PoolUse) int { return p.Size }),
		pool("dsas_dhcp_pool_leased", "Addresses of the pools that are leased.", func(p dhcp.PoolUse) int { return p.Leased }),
		pool("dsas_dhcp_pool_declined", "Addresses of the pools that another box uses.", func(p dhcp.PoolUse) int { return p.Declined }),
	}
}

func tftpMetrics(s tftp.Stats) []metrics.Metric {
	ended := metrics.Metric{Name: "dsas_tftp_transfers_total", Help: "TFTP transfers that ended, by file and how.", Counter: true, Labels: []string{"file", "outcome"}}
	for k, n := range s.Transfers {
		ended.Samples = append(ended.Samples, sample(n, k.File, string(k.Outcome)))
	}
	count := func(name, help string, n uint64) metrics.Metric {
		return metrics.Metric{Name: name, Help: help, Counter: true, Samples: []metrics.Sample{sample(n)}}
	}
	return []metrics.Metric{
		ended,
		{Name: "dsas_tftp_active_transfers", Help: "TFTP transfers under way.", Samples: []metrics.Sample{sample(s.Active)}},
		count("dsas_tftp_sent_bytes_total", "Content sent by TFTP, repeated blocks too.", s.Bytes),
		count("dsas_tftp_retransmits_total", "TFTP packets sent again.", s.Retransmits),
		count("dsas_tftp_dropped_total", "TFTP requests beyond a limit.", s.Dropped),
		count("dsas_tftp_stray_total", "TFTP packets of no transfer, and nonsense.", s.Stray),
	}
}

func httpMetrics(s httpboot.Stats) []metrics.Metric {
	count := func(name, help string, n uint64) metrics.Metric {
		return metrics.Metric{Name: name, Help: help, Counter: true, Samples: []metrics.Sample{sample(n)}}
	}
	gauge := func(name, help string, n uint64) metrics.Metric {
		return metrics.Metric{Name: name, Help: help, Samples: []metrics.Sample{sample(n)}}
	}
	return []metrics.Metric{
		counts("dsas_http_requests_total", "Requests to the boot listener, by what was asked for.", "what", s.Requests),
		counts("dsas_http_errors_total", "Answers of the boot listener that were errors, by status code.", "code", s.Errors),
		count("dsas_http_sent_bytes_total", "Content by digest sent to nodes.", s.BlobBytes),
		count("dsas_http_broken_transfers_total", "Transfers of content that the reader broke off.", s.BlobsBroken),
		count("dsas_http_slow_readers_total", "Transfers broken off because the reader was too slow.", s.SlowReaders),
		gauge("dsas_http_connections", "Connections to the boot listener.", s.Conns),
		count("dsas_http_refused_connections_total", "Connections to the boot listener beyond a limit.", s.ConnsRefused),
		gauge("dsas_http_waiting_polls", "Nodes that wait for changed files.", s.LongPolls),
		count("dsas_boots_begun_total", "Boot scripts with a kernel given out.", s.Boots),
	}
}

// counts makes a counter of a map from a label's values.
func counts[V ~string, M ~map[V]uint64](name, help, label string, values M) metrics.Metric {
	m := metrics.Metric{Name: name, Help: help, Counter: true, Labels: []string{label}}
	for v, n := range values {
		m.Samples = append(m.Samples, sample(n, string(v)))
	}
	return m
}

func sample[N int | int64 | uint64](n N, labels ...string) metrics.Sample {
	return metrics.Sample{Values: labels, Value: float64(n)}
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// readiness is one thing that boots need, and why it is not so.
type readiness struct {
	name string
	err  error
}

// ready looks whether a node that is switched on now would come up: what
// happens can be saved, every boot interface is up, and there are kernel and
// images for the roles that nodes have.
func (d *daemon) ready(ctx context.Context) []readiness {
	return []readiness{
		{"store", errors.Join(d.store.Writable(), d.store.Probe(ctx))},
		{"interfaces", d.inBootNetwork(d.interfacesUp)},
		{"images", d.imagesThere(ctx)},
	}
}

func (d *daemon) interfacesUp() error {
	var errs []error
	for _, name := range d.cfg.Interfaces {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("interface %s: %w", name, err))
		} else if ifi.Flags&net.FlagUp == 0 || ifi.Flags&net.FlagRunning == 0 {
			errs = append(errs, fmt.Errorf("interface %s is down, or has no link", name))
		}
	}
	return errors.Join(errs...)
}

func (d *daemon) imagesThere(ctx context.Context) error {
	nodes, err := d.store.Nodes(ctx)
	if err != nil {
		return err
	}
	var roles []string
	for _, n := range nodes {
		if n.Role != "" && !slices.Contains(roles, n.Role) {
			roles = append(roles, n.Role)
		}
	}
	if len(roles) == 0 {
		return nil // nothing to boot yet
	}
	var errs []error
	slices.Sort(roles)
	for _, role := range roles {
		r, err := d.rel.Assigned(nil, role)
		if err == nil && r == nil {
			err = fmt.Errorf("role %s has no release to boot (build one with: dsas image build %s): %w", role, role, dsas.ErrNotFound)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// readyEvery is how often at most readiness is looked at: it writes to disk.
const readyEvery = 5 * time.Second

// monitoring gives /healthz, /readyz and /metrics. Who may see reasons and
// figures is for the caller to say.
func (d *daemon) monitoring(figures http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.Handle("GET /metrics", figures)
	turn := make(chan struct{}, 1) // held by whoever looks
	var last []readiness
	var at time.Time
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		select {
		case turn <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		if at.IsZero() || time.Since(at) >= readyEvery {
			last, at = d.ready(context.WithoutCancel(r.Context())), time.Now()
		}
		now := last
		<-turn
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if slices.ContainsFunc(now, func(c readiness) bool { return c.err != nil }) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		for _, c := range now {
			if c.err == nil {
				fmt.Fprintf(w, "ok %s\n", c.name)
				continue
			}
			fmt.Fprintf(w, "failed %s: %s\n", c.name, strings.ReplaceAll(c.err.Error(), "\n", "; "))
		}
	})
	return mux
}

// hereOr lets requests pass that come from this machine by themselves; others,
// and what a proxy here hands on, go to else.
func hereOr(here, elsewhere http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ap, err := netip.ParseAddrPort(r.RemoteAddr)
		if err == nil && ap.Addr().Unmap().IsLoopback() && r.Header.Get("X-Forwarded-For") == "" && r.Header.Get("Forwarded") == "" {
			here.ServeHTTP(w, r)
			return
		}
		elsewhere.ServeHTTP(w, r)
	})
}

// monitorListener serves monitors elsewhere, where dsas.yaml has an address
// for them: figures and reasons alone, without log-in.
func (d *daemon) monitorListener(mux http.Handler) ([]server.Named, error) {
	if d.cfg.MetricsListen == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", d.cfg.MetricsListen)
	if err != nil {
		return nil, fmt.Errorf("metricsListen: %w", err)
	}
	srv := httpServer(mux, d.log)
	srv.ReadTimeout, srv.WriteTimeout = 10*time.Second, 30*time.Second
	return []server.Named{{Name: "monitoring", Component: server.Func(func(ctx context.Context) error { return serveHTTP(ctx, srv, l) })}}, nil
}
