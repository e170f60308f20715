package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"strings"

	"golang.org/x/sys/unix"

	"dsas"
)

// configFlags are the parts of the configuration that commands may override.
type configFlags struct {
	Config string `help:"Configuration file." default:"/etc/dsas/dsas.yaml" env:"DSAS_CONFIG" placeholder:"FILE"`
	State  string `help:"State folder (default /var/lib/dsas)." env:"DSAS_STATE" placeholder:"DIR"`
	Roles  string `help:"Folder of your own role definitions (default /etc/dsas/roles)." name:"roles-dir" env:"DSAS_ROLES" placeholder:"DIR"`
	Keys   string `help:"Folder of the keys that releases are signed by (default /etc/dsas/keys)." name:"keys-dir" env:"DSAS_KEYS" placeholder:"DIR"`
	Apt    string `help:"Folder of apt's configuration, whose mirrors image builds take (default /etc/apt)." name:"apt-dir" env:"DSAS_APT" placeholder:"DIR"`
}

// load reads the file and puts the flags over it.
func (f *configFlags) load() (config, error) {
	c, err := loadConfig(f.Config)
	if err != nil {
		return c, err
	}
	override(&c.State, f.State)
	override(&c.Roles, f.Roles)
	override(&c.Keys, f.Keys)
	override(&c.Apt, f.Apt)
	c.setDefaults()
	return c, nil
}

func override(p *string, v string) {
	if v != "" {
		*p = v
	}
}

type serveCmd struct {
	configFlags
	Interface      []string `help:"Serve boots on this interface; give it again for more." short:"i" env:"DSAS_INTERFACE" placeholder:"eth1"`
	Pool           string   `help:"Addresses for MACs that belong to no node, of the first subnet (default: its last 32; none: no pool)." env:"DSAS_POOL" placeholder:"10.0.3.200-10.0.3.250"`
	Listen         string   `help:"Where operators reach pages and API (default 127.0.0.1:8443; anything else is TLS)." env:"DSAS_LISTEN" placeholder:"ADDR:PORT"`
	Socket         string   `help:"The CLI's socket (default /run/dsas/dsas.sock)." env:"DSAS_SOCKET" placeholder:"PATH"`
	SocketGroup    string   `help:"Let members of this group use the socket too." env:"DSAS_SOCKET_GROUP" placeholder:"GROUP"`
	Registry       string   `help:"Have nodes fetch image parts from this OCI registry first, and here what it does not give." env:"DSAS_REGISTRY" placeholder:"http://ADDR:PORT"`
	Netns          string   `help:"Open the boot listeners in this network namespace." env:"DSAS_NETNS" placeholder:"NAME"`
	Discovery      bool     `help:"Boot MACs that belong to no node into the inventory role." env:"DSAS_DISCOVERY"`
	NoDHCP         bool     `help:"Give no addresses: an existing DHCP server does, and its next-server and boot file point here." name:"no-dhcp" env:"DSAS_NO_DHCP"`
	ProxyDHCP      bool     `help:"Give no addresses: an existing DHCP server does and need know nothing of dsas, which names the boot files beside it (proxyDHCP)." name:"proxy-dhcp" env:"DSAS_PROXY_DHCP"`
	AllowOtherDHCP bool     `help:"Start although another DHCP server answers on an interface." name:"allow-other-dhcp" env:"DSAS_ALLOW_OTHER_DHCP"`
	AuthorizedKeys string   `help:"SSH public keys that may log in as root on every node." env:"DSAS_AUTHORIZED_KEYS" placeholder:"FILE"`
	ResetPassword  bool     `help:"Forget the operators' password, log everybody out, and print a new set-up link."`
	LogLevel       string   `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error" env:"DSAS_LOG_LEVEL"`
	CPUProfile     string   `hidden:"" name:"cpu-profile" help:"Write a CPU profile here when the server ends." placeholder:"FILE"`
	LogJSON        bool     `help:"Log as JSON lines." env:"DSAS_LOG_JSON"`
}

// Help gives the examples.
func (*serveCmd) Help() string {
	return `Answers the nodes' boots on the interfaces, and operators on the socket and the
page. SIGTERM or Ctrl-C ends it, a second one at once; a changed configuration
is taken at the next start.

  dsas serve --interface eth1
  dsas serve --interface eth1 --proxy-dhcp    # another server gives the addresses

A lost password: stop the server, start it once like this, and open the link
that it prints:

  dsas serve --interface eth1 --reset-password

Of the service: touch /var/lib/dsas/reset-password; systemctl restart dsas; the
link is in journalctl -u dsas`
}

// Run implements the command.
func (c *serveCmd) Run(ctx context.Context, a *app) error {
	cfg, err := c.load()
	if err != nil {
		return configError{err}
	}
	if len(c.Interface) > 0 {
		cfg.Interfaces = c.Interface
	}
	override(&cfg.Listen, c.Listen)
	override(&cfg.Socket, c.Socket)
	override(&cfg.SocketGroup, c.SocketGroup)
	override(&cfg.Registry, c.Registry)
	override(&cfg.Netns, c.Netns)
	override(&cfg.AuthorizedKeys, c.AuthorizedKeys)
	cfg.Discovery = cfg.Discovery || c.Discovery
	cfg.NoDHCP = cfg.NoDHCP || c.NoDHCP
	cfg.ProxyDHCP = cfg.ProxyDHCP || c.ProxyDHCP
	cfg.AllowOtherDHCP = cfg.AllowOtherDHCP || c.AllowOtherDHCP
	if c.Pool != "" {
		if len(cfg.Subnets) > 1 {
			return usageError{err: fmt.Errorf("--pool with %d subnets configured: name the pools in the configuration: %w", len(cfg.Subnets), dsas.ErrInvalid)}
		}
		cfg.DefaultPool = c.Pool
	}
	if len(cfg.Interfaces) == 0 {
		_, err := interfaceAddrs(nil)
		return configError{err}
	}
	if err := cfg.check(); err != nil {
		return configError{err}
	}
	log, err := newLog(a.stderr, c.LogLevel, c.LogJSON)
	if err != nil {
		return err
	}
	defer keepOnHangup(log)()
	if os.Getenv("GOGC") == "" {
		go paceGC(ctx)
	}
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < 2 {
		// On one core a thread that waits for the disk inside SQLite would keep
		// everybody else from running until the runtime notices, up to 10 ms.
		runtime.GOMAXPROCS(2)
	}
	ready := func() {
		if err := notify("READY=1\nSTATUS=serving " + strings.Join(cfg.Interfaces, ", ")); err != nil {
			log.Warn("ready", "err", err)
		}
	}
	defer context.AfterFunc(ctx, func() { notify("STOPPING=1") })()
	if c.CPUProfile != "" {
		stop, err := profileCPU(c.CPUProfile)
		if err != nil {
			return err
		}
		defer stop()
	}
	return serve(ctx, cfg, log, a.stdout, serveOptions{ResetPassword: c.ResetPassword, Ready: ready})
}

// keepOnHangup makes SIGHUP harmless, until it is stopped: it comes when a
// terminal is closed and from whoever expects the configuration to be read
// again, and neither means that no node can boot any more.
func keepOnHangup(log *slog.Logger) (stop func()) {
	hup, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hup, unix.SIGHUP)
	go func() {
		for {
			select {
			case <-hup:
				log.Warn("SIGHUP: restart to take a changed configuration")
			case <-done:
				return
			}
		}
	}()
	return func() { signal.Stop(hup); close(done) }
}

func newLog(w io.Writer, level string, asJSON bool) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.ToUpper(level))); err != nil {
		return nil, usageError{err: fmt.Errorf("log level: %w", err)}
	}
	opt := &slog.HandlerOptions{Level: l}
	if asJSON {
		return slog.New(slog.NewJSONHandler(w, opt)), nil
	}
	return slog.New(slog.NewTextHandler(w, opt)), nil
}

// profileCPU writes a profile for `go tool pprof` from now until stop.
func profileCPU(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("CPU profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("CPU profile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
	}, nil
}
