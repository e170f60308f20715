package dsas

import "time"

// Role is what a node is to be, as its definition folder says in role.yaml.
type Role struct {
	Name        string `json:"name" yaml:"name"`
	Description string `json:"description" yaml:"description"`
	// Extends is "shipped" where the definition lies over the shipped one of the
	// same name and has only what differs.
	Extends  string   `json:"-" yaml:"extends"`
	Packages []string `json:"packages,omitempty" yaml:"packages"` // Debian packages beyond the base
	Modules  []string `json:"modules,omitempty" yaml:"modules"`   // kernel modules loaded before services start
	Memory   string   `json:"memory,omitempty" yaml:"memory"`     // "512MiB": refused below this
	// RootSize is the most its root may grow to in memory, "2GiB"; empty: what
	// its programs do not need.
	RootSize string `json:"rootSize,omitempty" yaml:"rootSize"`
	// BootTime is how long a boot may take, from its script until the node is
	// ready, while the role's release is a canary. Default DefaultBootTime.
	BootTime Duration `json:"bootTime,omitempty" yaml:"bootTime"`
	// CarriesSites: the node holds its sites' service addresses on lo with the
	// ARP settings direct routing needs (arp_ignore=1, arp_announce=2).
	CarriesSites bool `json:"carriesSites,omitempty" yaml:"carriesSites"`
	// Remove lists folders that are emptied once the packages are installed:
	// what a package's scripts put there is no part of the image.
	Remove []string `json:"remove,omitempty" yaml:"remove"`
	// Erases: the role overwrites disks by itself. It is never offered in a
	// loader's menu (nor is one that formats; see MenuRefusal).
	Erases    bool       `json:"erases,omitempty" yaml:"erases"`
	Devices   []Device   `json:"devices,omitempty" yaml:"devices"`
	Services  []Service  `json:"services,omitempty" yaml:"services"`
	Templates []Template `json:"templates,omitempty" yaml:"templates"`
	// DHCP is what the role's nodes are told in option 43, by vendor class.
	DHCP []VendorOptions `json:"dhcp,omitempty" yaml:"dhcp"`
	// Allow lists what the checks of an image build find and shall let pass.
	Allow []Allow `json:"allow,omitempty" yaml:"allow"`
}

// Allow lets what a build's checks find in a file pass, for a written reason.
type Allow struct {
	// Path as the finding names it: below the definition ("files/etc/x"), or
	// absolute for a file of the built tree. A pattern of path.Match.
	Path   string `json:"path" yaml:"path"`
	Reason string `json:"reason" yaml:"reason"`
}

// DefaultBootTime is a role's boot time where its definition names none: a large
// server's firmware is through with itself before the boot begins, but a node
// may repair a file system.
const DefaultBootTime = 10 * time.Minute

// Device is a block device the role wants, named by its dsas.conf key.
type Device struct {
	Key      string `json:"key" yaml:"key"`                     // DBDEVICE
	Mount    string `json:"mount" yaml:"mount"`                 // /var/lib/mysql
	FS       string `json:"fs" yaml:"fs"`                       // ext4
	Format   bool   `json:"format,omitempty" yaml:"format"`     // may be made when the disk is blank
	Required bool   `json:"required,omitempty" yaml:"required"` // without it the boot fails
	Owner    string `json:"owner,omitempty" yaml:"owner"`       // user:group of the mount's top
}

// Service is one supervised program of a role: services/NAME/run and, where
// they exist, log/run, finish and check beside it (the daemontools layout).
type Service struct {
	Name  string   `json:"name" yaml:"name"`
	After []string `json:"after,omitempty" yaml:"after"` // services that must be healthy first
	Check *Check   `json:"check,omitempty" yaml:"check"`
	// Reload is run (by /bin/sh -c, in the role's root) when one of the
	// templates that name the service changed; empty: restart.
	Reload string `json:"reload,omitempty" yaml:"reload"`
	// Timeout: not healthy for the first time within it: failed. Default 120 s.
	Timeout Duration `json:"timeout,omitempty" yaml:"timeout"`
	// Stop: how long after TERM before KILL. Default 10 s.
	Stop Duration `json:"stop,omitempty" yaml:"stop"`
}

// Check is a service's health check; exactly one kind is set. With none, the
// service is healthy once it has run for a second. A "check" file in the
// service folder is a command check.
type Check struct {
	HTTP     string   `json:"http,omitempty" yaml:"http"` // URL that must answer 2xx
	TCP      string   `json:"tcp,omitempty" yaml:"tcp"`   // host:port that must accept
	Exec     string   `json:"exec,omitempty" yaml:"exec"` // command that must exit 0
	Interval Duration `json:"interval,omitempty" yaml:"interval"`
	Timeout  Duration `json:"timeout,omitempty" yaml:"timeout"`
}

// Template is a file rendered per node at boot and again when its inputs
// change (text/template over roles.Input).
type Template struct {
	Source  string `json:"source" yaml:"source"`             // below templates/
	Path    string `json:"path" yaml:"path"`                 // absolute, on the node
	Mode    string `json:"mode,omitempty" yaml:"mode"`       // "0644"
	Service string `json:"service,omitempty" yaml:"service"` // reloaded on change
}

// Duration is a time.Duration whose text form is Go's ("1m30s").
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Or gives d, or def where d is not positive.
func (d Duration) Or(def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return time.Duration(d)
}
