package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"dsas"
	"dsas/initramfs/dsasconf"
	"dsas/roles"
	"dsas/server/boot"
)

// config is /etc/dsas/dsas.yaml. Every key has a default, so that an empty
// file and one --interface make a working server.
type config struct {
	State      string         `yaml:"state"`      // /var/lib/dsas
	Socket     string         `yaml:"socket"`     // /run/dsas/dsas.sock
	Roles      string         `yaml:"roles"`      // /etc/dsas/roles
	Keys       string         `yaml:"keys"`       // of releases: /etc/dsas/keys
	Apt        string         `yaml:"apt"`        // where image builds learn the mirrors: /etc/apt
	Listen     string         `yaml:"listen"`     // operators: 127.0.0.1:8443
	Netns      string         `yaml:"netns"`      // boot listeners are opened in this namespace (the lab)
	Interfaces []string       `yaml:"interfaces"` // boot listeners answer on these alone
	Subnets    []subnetConfig `yaml:"subnets"`    // default: the interfaces' own (subnets.go)
	HTTPPort   int            `yaml:"httpPort"`   // boot HTTP: 8080
	// Registry has nodes fetch image parts from an existing OCI registry first,
	// as http://10.0.0.9:5000, and from this server what it does not give.
	Registry string `yaml:"registry"`
	// MetricsListen is a listener for monitors: /metrics, /readyz and /healthz
	// by plain HTTP without log-in; empty: none.
	MetricsListen string `yaml:"metricsListen"`
	// SocketGroup may use the socket too; empty: only root and the server's user.
	SocketGroup string `yaml:"socketGroup"`
	// Bond is the bond every node brings up: a name and the bonding driver's
	// options (kernel Documentation/networking/bonding.rst).
	Bond bondConfig `yaml:"bond"`
	// Variables stand at the top of every dsas.conf: LVSADDRESS: 10.0.0.1
	Variables map[string]string `yaml:"variables"`
	// Discovery: unknown MACs boot the inventory role.
	Discovery bool `yaml:"discovery"`
	// MenuTimeout is how long a loader's menu, where a node has one, waits for a
	// key before the assigned role boots.
	MenuTimeout time.Duration `yaml:"menuTimeout"` // 10s
	// NoDHCP: an existing DHCP server gives the addresses and points here.
	NoDHCP bool `yaml:"noDHCP"`
	// ProxyDHCP: an existing DHCP server gives the addresses and knows nothing
	// of us; we answer boot firmware beside it.
	ProxyDHCP bool `yaml:"proxyDHCP"`
	// AllowOtherDHCP: start although another DHCP server answers there.
	AllowOtherDHCP bool `yaml:"allowOtherDHCP"`
	// NoRouterAdvertisement: do not tell iPXE that there is no IPv6 router.
	NoRouterAdvertisement bool `yaml:"noRouterAdvertisement"`
	// AuthorizedKeys is a file of SSH public keys that may log in as root on
	// every node.
	AuthorizedKeys string `yaml:"authorizedKeys"`
	// ConsolePasswordFile holds a crypt(5) hash for root on the nodes' consoles;
	// empty: no console log-in.
	ConsolePasswordFile string `yaml:"consolePasswordFile"`
	// NoConflictCheck: pool addresses are offered without asking (ARP, behind a
	// relay ping; a quarter of a second) whether somebody uses them already.
	NoConflictCheck bool `yaml:"noConflictCheck"`
	// Cmdline is appended to every node's kernel command line.
	Cmdline   string        `yaml:"cmdline"`
	Heartbeat time.Duration `yaml:"heartbeat"` // 10s

	// DefaultPool is --pool: of the subnet that names none.
	DefaultPool string `yaml:"-"`
}

type bondConfig struct {
	Name    string `yaml:"name"`    // bond0
	Options string `yaml:"options"` // "mode=active-backup miimon=100"
}

const (
	defaultConfigDir  = "/etc/dsas"
	defaultConfigPath = defaultConfigDir + "/dsas.yaml"
	defaultKeysDir    = defaultConfigDir + "/keys"
)

// loadConfig reads path strictly; the default path may be missing.
func loadConfig(path string) (config, error) {
	var c config
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && path == defaultConfigPath {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict())
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) { // EOF: nothing but comments
		return c, fmt.Errorf("configuration %s: %s%s", path, lineOf(b, err), explainYAML(err))
	}
	if err := c.Bond.check(); err != nil {
		return c, fmt.Errorf("configuration %s: %s%w", path, lineOf(b, err), err)
	}
	return c, nil
}

// check says what is wrong with what is set of a bond: before the first node
// says so on its console, and comes up without it. An error quotes the value it
// speaks of, by which lineOf finds it.
func (c bondConfig) check() error {
	if c.Name != "" && !bondNameRE.MatchString(c.Name) {
		return fmt.Errorf("bond: name %q: use one as bond0, of at most 11 lower-case letters and digits: %w", c.Name, dsas.ErrInvalid)
	}
	if c.Name == "eth" || strings.HasPrefix(c.Name, "eth") && strings.Trim(c.Name[3:], "0123456789") == "" || c.Name == "lo" {
		return fmt.Errorf("bond: name %q: that is a port's name on the nodes; use one as bond0: %w", c.Name, dsas.ErrInvalid)
	}
	if c.Options == "" {
		return nil
	}
	if err := dsasconf.CheckBond(strings.Fields(c.Options)); err != nil {
		return fmt.Errorf("bond: options %q: %w: %w", c.Options, err, dsas.ErrInvalid)
	}
	return nil
}

var bondNameRE = regexp.MustCompile(`^[a-z][a-z0-9]{0,10}$`)

// explainYAML is err with its lines of the file, and a way out where the
// library's words have none.
func explainYAML(err error) string {
	said, lines, _ := strings.Cut(strings.TrimRight(yaml.FormatError(err, false, true), " \n"), "\n")
	switch _, key, ok := strings.Cut(said, "unknown field "); {
	case ok:
		said += dsas.DidYouMean(strings.Trim(key, `"`), yamlKeys(reflect.TypeFor[config]()))
	case strings.HasSuffix(said, "sequence is expected"):
		said += "; write a list: [a, b]"
	case strings.Contains(said, "cannot start any token"):
		said += "; indent by spaces, not by tabs"
	}
	if lines == "" {
		return said
	}
	return said + "\n" + lines
}

// yamlKeys gives the keys of a struct and of the structs in it.
func yamlKeys(t reflect.Type) []string {
	var keys []string
	for f := range t.Fields() {
		if key := f.Tag.Get("yaml"); key != "-" && key != "" {
			keys = append(keys, key)
		}
		inner := f.Type
		if inner.Kind() == reflect.Slice || inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			keys = append(keys, yamlKeys(inner)...)
		}
	}
	return keys
}

// lineOf gives "[line:column] " of the value that err speaks of, for the errors
// of addresses and durations, which come without.
func lineOf(text []byte, err error) string {
	var placed yaml.Error
	if errors.As(err, &placed) {
		return ""
	}
	file, parseErr := parser.ParseBytes(text, 0)
	if parseErr != nil {
		return ""
	}
	v := &valueFinder{said: err.Error()}
	for _, doc := range file.Docs {
		if doc.Body != nil {
			ast.Walk(v, doc.Body)
		}
	}
	return v.found
}

// valueFinder looks for the first value that an error quotes.
type valueFinder struct{ said, found string }

func (v *valueFinder) Visit(n ast.Node) ast.Visitor {
	if _, ok := n.(ast.ScalarNode); ok && v.found == "" {
		if tk := n.GetToken(); tk != nil && tk.Value != "" && strings.Contains(v.said, strconv.Quote(tk.Value)) {
			v.found = fmt.Sprintf("[%d:%d] ", tk.Position.Line, tk.Position.Column)
		}
	}
	return v
}

// setDefaults fills in what was left out.
func (c *config) setDefaults() {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&c.State, "/var/lib/dsas")
	def(&c.Socket, "/run/dsas/dsas.sock")
	def(&c.Roles, "/etc/dsas/roles")
	def(&c.Keys, defaultKeysDir)
	def(&c.Apt, "/etc/apt")
	def(&c.Listen, "127.0.0.1:8443")
	def(&c.Bond.Name, "bond0")
	def(&c.Bond.Options, "mode=active-backup miimon=100")
	if c.HTTPPort == 0 {
		c.HTTPPort = 8080
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 10 * time.Second
	}
}

// otherDHCP tells whether another server gives the addresses.
func (c *config) otherDHCP() bool { return c.NoDHCP || c.ProxyDHCP }

// check refuses figures that no part could work with.
func (c *config) check() error {
	if c.NoDHCP && c.ProxyDHCP {
		return fmt.Errorf("noDHCP and proxyDHCP exclude each other: with noDHCP the existing DHCP server names the boot files, with proxyDHCP we do: %w", dsas.ErrInvalid)
	}
	if c.HTTPPort < 1 || c.HTTPPort > 65535 {
		return fmt.Errorf("httpPort %d: use a port from 1 to 65535: %w", c.HTTPPort, dsas.ErrInvalid)
	}
	for _, l := range []struct{ key, value, example string }{{"listen", c.Listen, "127.0.0.1:8443"}, {"metricsListen", c.MetricsListen, "10.9.0.5:9644"}} {
		if err := checkListen(l.value, l.example); err != nil {
			return fmt.Errorf("%s %q: %w: %w", l.key, l.value, err, dsas.ErrInvalid)
		}
	}
	if c.Heartbeat < time.Second || c.Heartbeat > time.Hour {
		return fmt.Errorf("heartbeat %s: use 1s to 1h: %w", c.Heartbeat, dsas.ErrInvalid)
	}
	if c.MenuTimeout != 0 && (c.MenuTimeout < time.Second || c.MenuTimeout > time.Hour) {
		return fmt.Errorf("menuTimeout %s: use 1s to 1h: %w", c.MenuTimeout, dsas.ErrInvalid)
	}
	if err := c.Bond.check(); err != nil {
		return err
	}
	if err := checkRegistry(c.Registry); err != nil {
		return err
	}
	// Now, and not on the console of every node.
	if err := boot.CheckArgs(append(strings.Fields(c.Cmdline), c.bondParameter())); err != nil {
		return fmt.Errorf("cmdline or bond: %w", err)
	}
	if err := roles.CheckVariables(c.Variables); err != nil {
		return fmt.Errorf("variables: %w", err)
	}
	for _, sc := range c.Subnets {
		if sc.Lease != 0 && (sc.Lease < time.Minute || sc.Lease > maxLease) {
			return fmt.Errorf("subnet %s: lease %s: use 1m to 720h (30 days): %w", sc.Prefix, sc.Lease, dsas.ErrInvalid)
		}
	}
	if err := c.checkSubnets(); err != nil {
		return err
	}
	return checkConsolePassword(c.ConsolePasswordFile)
}

// checkListen says what is wrong with where to listen; "" is nowhere.
func checkListen(addr, example string) error {
	if addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		if a, ipErr := netip.ParseAddr(strings.Trim(addr, "[]")); ipErr == nil { // the commonest slip: it is all of an address
			_, p, _ := net.SplitHostPort(example)
			return fmt.Errorf("the port is missing; write %s", net.JoinHostPort(a.String(), p))
		}
		return fmt.Errorf("write an address and a port, as %s", example)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("port %q: use a number from 1 to 65535, as %s", port, example)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		return fmt.Errorf("%q is no address of this machine; write one, as %s, or :%s for all", host, example, port)
	}
	return nil
}

// maxLease is the longest lease: an address must come back to the pool some day.
const maxLease = 30 * 24 * time.Hour

// checkConsolePassword refuses a file that login on the nodes would not take,
// at the start and not when the first node wants it.
func checkConsolePassword(path string) error {
	if path == "" {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("consolePasswordFile: %w; make it with `openssl passwd -6`, or leave the key out for no console log-in", err)
	}
	// What stands there instead may be the password itself: it is not shown.
	if !bytes.HasPrefix(b, []byte("$")) {
		return fmt.Errorf("consolePasswordFile %s: it holds no crypt(5) hash, which begins with $; make one with `openssl passwd -6`: %w", path, dsas.ErrInvalid)
	}
	return nil
}

// path gives a place below the state folder.
func (c *config) path(elem ...string) string {
	return filepath.Join(append([]string{c.State}, elem...)...)
}

// bondParameter is the bond as the kernel command line carries it
// (docs/architecture.md, "Kernel command line").
func (c *config) bondParameter() string { return bondParameter(c.Bond.Name, c.Bond.Options) }

func bondParameter(name, options string) string {
	return strings.Join(append([]string{name}, strings.Fields(options)...), ":")
}
