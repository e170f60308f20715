package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"dsas"
	"dsas/client"
	"dsas/server"
	"dsas/server/api"
	"dsas/server/auth"
	"dsas/web"
)

// operators wires the operators' way in: the unix socket and, for browsers and
// programs elsewhere, the TCP listener. None of it is on the boot network
// unless the operator binds it there.
func (d *daemon) operators(ctx context.Context, figures http.Handler) ([]server.Named, error) {
	keeper := auth.New(d.store, d.log.With("part", "auth"))
	if d.cfg.SocketGroup != "" {
		keeper.TrustSocket()
	}
	apiHandler := api.New(api.Deps{
		Store: d.store, Power: d.power, Roles: d, Releases: d.rel, Tokens: d.store, Subnets: d.subnets,
		Explain: d.explain, CheckConf: d.render.checkConf, SSH: d.sshInfo, Status: d.status, Done: ctx.Done(), Who: auth.Who, Log: d.log.With("part", "api"),
	})
	pages, err := web.New(web.Deps{
		// The pages use the API as any client does, without a socket between.
		API: client.InProcess(apiHandler), Nodes: func(ctx context.Context) ([]dsas.NodeView, error) { return api.Views(ctx, d.store, d.rel) }, Subscribe: d.store.Subscribe, Done: ctx.Done(), Log: d.log.With("part", "web"),
	})
	if err != nil {
		return nil, err
	}
	gate := limitForm(web.Gate(keeper, d.log.With("part", "web")))
	mux := http.NewServeMux()
	mux.Handle(api.Prefix+"/", keeper.Require(apiHandler))
	mux.Handle("/static/", web.Static())
	mux.Handle("/login", gate)
	mux.Handle("/setup", gate)
	mux.Handle("/logout", keeper.Require(gate))
	monitoring := d.monitoring(figures)
	mux.Handle("/healthz", monitoring)
	mux.Handle("/metrics", hereOr(monitoring, keeper.Require(monitoring)))
	mux.Handle("/readyz", hereOr(monitoring, keeper.Require(monitoring)))
	mux.Handle("/", keeper.Require(pages))

	sock, err := listenSocket(d.cfg.Socket, d.cfg.SocketGroup)
	if err != nil {
		return nil, err
	}
	tcp, base, err := d.listenOperators()
	if err != nil {
		return nil, err
	}
	// For the service, whose flags nobody changes for one start.
	asked := os.Remove(d.cfg.path("reset-password"))
	if asked != nil && !errors.Is(asked, os.ErrNotExist) {
		return nil, fmt.Errorf("reset password: %w", asked)
	}
	if d.opt.ResetPassword || asked == nil {
		if err := keeper.Reset(ctx); err != nil {
			return nil, fmt.Errorf("reset password: %w", err)
		}
	}
	link, err := keeper.SetupLink(ctx, base)
	if err != nil {
		return nil, err
	}
	if link != "" {
		// On stdout and not in the log: it is a secret until it is used.
		fmt.Fprintf(d.out, "page: open this link once to set the operators' password:\n  %s\n", link)
	} else {
		fmt.Fprintf(d.out, "page: %s/\n", base)
	}
	monitor, err := d.monitorListener(monitoring)
	if err != nil {
		return nil, err
	}
	local, remote := httpServer(mux, d.log), httpServer(mux, d.log)
	local.ConnContext = auth.ConnContext
	return append(monitor, []server.Named{
		{Name: "socket", Component: server.Func(func(ctx context.Context) error { return serveHTTP(ctx, local, sock) })},
		{Name: "operators", Component: server.Func(func(ctx context.Context) error { return serveHTTP(ctx, remote, tcp) })},
	}...), nil
}

// formTime is how long somebody who is not logged in may take to send a form.
const formTime = 30 * time.Second

// limitForm bounds the reading of a body. It is not Server.ReadTimeout, which
// would end event streams and long power calls too.
func limitForm(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(formTime)); err != nil {
				http.Error(w, "cannot limit the request", http.StatusInternalServerError)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// serveHTTP serves l until ctx ends, and returns when its handlers have: what
// they use is closed next.
func serveHTTP(ctx context.Context, srv *http.Server, l net.Listener) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		c, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if srv.Shutdown(c) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-done
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// socketFree refuses a socket on which somebody answers.
func socketFree(path string) error {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return nil
	}
	c.Close()
	return fmt.Errorf("a dsas serve answers on %s already; choose another with --socket: %w", path, dsas.ErrConflict)
}

// listenFree refuses an address that cannot be listened on now.
func listenFree(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("operators' listener: %w; another address with --listen", err)
	}
	return l.Close()
}

// listenSocket opens the CLI's socket, for its owner and, where one is named,
// for the members of group: connecting takes the right to write. A socket that a
// killed server left behind is replaced; one that answers is not.
func listenSocket(path, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := socketFree(path); err != nil {
		return nil, err
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("socket %s: something else has this name; it is left alone, name another with --socket: %w", path, dsas.ErrConflict)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := shareSocket(path, group); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

func shareSocket(path, group string) error {
	if group == "" {
		return os.Chmod(path, 0o600)
	}
	gid, err := groupID(group)
	if err != nil {
		return err
	}
	// The group first: until then the mode lets nobody else write.
	if err := os.Chown(path, -1, gid); err != nil {
		return fmt.Errorf("give it to group %s, of which the server's user must be a member: %w", group, err)
	}
	return os.Chmod(path, 0o660)
}

// groupID gives a group's number.
func groupID(group string) (int, error) {
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("group %s: %w; make it with `groupadd --system %s`, or leave socketGroup out", group, err, group)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, fmt.Errorf("group %s: %w", group, err)
	}
	return gid, nil
}

// listenOperators opens the TCP listener: plain HTTP on loopback, else TLS.
func (d *daemon) listenOperators() (net.Listener, string, error) {
	l, err := net.Listen("tcp", d.cfg.Listen)
	if err != nil {
		return nil, "", fmt.Errorf("operators' listener: %w; another address with --listen", err)
	}
	ap, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		l.Close()
		return nil, "", fmt.Errorf("operators' listener: %w", err)
	}
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	if ap.Addr().IsLoopback() {
		return l, "http://" + ap.String(), nil
	}
	host, err := os.Hostname()
	if err != nil {
		l.Close()
		return nil, "", fmt.Errorf("operators' listener: %w", err)
	}
	base := "https://" + ap.String()
	if ap.Addr().IsUnspecified() {
		// Nobody's address: operators elsewhere know us by name.
		base = "https://" + net.JoinHostPort(host, strconv.Itoa(int(ap.Port())))
	}
	cert, err := d.certificate(host, ap.Addr())
	if err != nil {
		l.Close()
		return nil, "", err
	}
	sum := sha256.Sum256(cert.Certificate[0])
	d.log.Info("operators' listener", "address", l.Addr().String(), "certificate_sha256", hex.EncodeToString(sum[:]))
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	return tls.NewListener(l, conf), base, nil
}

// certificate is tls.crt and tls.key of the state folder: the operator's own,
// or a pair made here once, which clients know by its fingerprint.
func (d *daemon) certificate(host string, addr netip.Addr) (tls.Certificate, error) {
	crt, key := d.cfg.path("tls.crt"), d.cfg.path("tls.key")
	haveCrt, err1 := exists(crt)
	haveKey, err2 := exists(key)
	if err := errors.Join(err1, err2); err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	if haveCrt != haveKey {
		missing, there := crt, key
		if haveCrt {
			missing, there = key, crt
		}
		return tls.Certificate{}, fmt.Errorf("certificate: %s is missing, %s is there: put the missing one back, or remove the other to have a pair made: %w",
			missing, there, dsas.ErrInvalid)
	}
	if !haveCrt {
		if err := makeCertificate(crt, key, host, addr, time.Now()); err != nil {
			return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
		}
	}
	cert, err := tls.LoadX509KeyPair(crt, key)
	if err != nil {
		return cert, fmt.Errorf("certificate %s, %s: %w", crt, key, err)
	}
	return cert, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// makeCertificate makes a self-signed pair for host and, when it is one that
// can be asked for, addr.
func makeCertificate(crtPath, keyPath, host string, addr netip.Addr, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "dsas on " + host}, DNSNames: []string{host},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	if addr.IsValid() && !addr.IsUnspecified() {
		tmpl.IPAddresses = []net.IP{addr.AsSlice()}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writeWhole(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return writeWhole(crtPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// writeWhole leaves the whole file at path, or nothing.
func writeWhole(path string, b []byte, mode os.FileMode) error {
	if err := os.WriteFile(path+".new", b, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
