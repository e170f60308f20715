package dsasconf

import (
	"fmt"
	"net/netip"
	"sort"
	"strings"
)

// Config is what a dsas.conf says.
type Config struct {
	SystemName string
	HWType     string
	Addresses  []Address // ascending by N
	Gateways   []Gateway // ascending by N: the first is preferred
	Modules    []ModuleOption
	Bonds      []Bond
	MTU        int    // bytes; 0: not given
	Disks      []Disk // keys that end in DEVICE and are not empty, sorted by key

	Nameservers      []netip.Addr
	Search           []string
	ServiceAddresses []netip.Addr

	// Vars holds every variable, known or not, for the services' environment.
	// An array is its elements joined by a blank, since an environment
	// variable cannot be an array.
	Vars map[string]string
}

// Address is an IPADDRESS<n>.
type Address struct {
	N      int
	Prefix netip.Prefix // the address itself with the prefix length, not masked
	Device string       // INTERFACE[n]; empty: the bond, else the NIC that booted
}

// Gateway is a GATEWAY[n].
type Gateway struct {
	N    int
	Addr netip.Addr
}

// ModuleOption is a MODULES entry: a module to load, with its options.
type ModuleOption struct {
	Name    string
	Options string // as the kernel takes them: "key=value key=value"
}

// Bond is a bond and its options, from BONDING and from the MODULES entries
// that begin with its name.
type Bond struct {
	Name    string
	Ports   []string // device names; none: all NICs with a driver
	Options []Option // in the order given, each key once
}

// Option is one bonding option, checked by [CheckBondOption].
type Option struct {
	Key, Value string
}

// Option gives the value of the option key.
func (b *Bond) Option(key string) (string, bool) {
	for _, o := range b.Options {
		if o.Key == key {
			return o.Value, true
		}
	}
	return "", false
}

// Set sets option key, in the place it had if it was set before.
func (b *Bond) Set(key, value string) {
	for i := range b.Options {
		if b.Options[i].Key == key {
			b.Options[i].Value = value
			return
		}
	}
	b.Options = append(b.Options, Option{key, value})
}

// Disk is a key that names a block device.
type Disk struct {
	Key    string // "DBDEVICE"
	Device string // "/dev/vda"
}

// Disk gives the device that key names.
func (c *Config) Disk(key string) (string, bool) {
	for _, d := range c.Disks {
		if d.Key == key {
			return d.Device, true
		}
	}
	return "", false
}

// Environ gives Vars as KEY=value, sorted.
func (c *Config) Environ() []string {
	env := make([]string, 0, len(c.Vars))
	for k, v := range c.Vars {
		env = append(env, k+"="+v)
	}
	sort.Strings(env)
	return env
}

// LineError is a refused line: the rest of the file applies all the same.
type LineError struct {
	Line   int    // from 1
	Key    string // "" where the line is no assignment
	Value  string // as far as it is known; cut to a readable length
	Reason string // what is wrong and what would be right
}

// Error implements error.
func (e LineError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "dsas.conf line %d: ", e.Line)
	if e.Key != "" {
		b.WriteString(e.Key)
		if e.Value != "" {
			fmt.Fprintf(&b, "=%q", e.Value)
		}
		b.WriteString(": ")
	}
	b.WriteString(e.Reason)
	return b.String()
}
