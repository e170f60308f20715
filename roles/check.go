package roles

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"dsas"
)

var (
	// packageRE: Debian Policy section 5.6.1.
	packageRE = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	moduleRE  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]*$`)
	memoryRE  = regexp.MustCompile(`^[1-9][0-9]{0,8}(KiB|MiB|GiB)$`)
	ownerRE   = regexp.MustCompile(`^[a-z_][a-z0-9_-]*(:[a-z_][a-z0-9_-]*)?$`)
)

// fileSystems are those the node's agent can make and mount.
func fileSystems() []string { return []string{"ext4"} }

// Check says all that is wrong with a definition, or nil: what role.yaml says,
// that the files it speaks of are there, and that the templates render for a
// sample node with sites and without.
func Check(def Definition) error {
	c := &checker{def: def}
	c.names()
	c.devices()
	c.vendorOptions()
	c.services()
	c.templates()
	c.files()
	if len(c.errs) == 0 {
		c.samples()
	}
	return errors.Join(c.errs...)
}

type checker struct {
	def  Definition
	errs []error
}

func (c *checker) bad(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format+": %w", append(args, dsas.ErrInvalid)...))
}

func (c *checker) names() {
	r := c.def.Role
	if err := dsas.CheckName("role", r.Name); err != nil {
		c.errs = append(c.errs, err)
	}
	c.each("package", r.Packages, packageRE, "write a Debian package's name, without a version")
	c.each("module", r.Modules, moduleRE, "write a kernel module's name, as ip_vs; options belong into dsas.conf (MODULES)")
	for _, p := range r.Remove {
		if err := checkPath(p); err != nil {
			c.bad("remove %w", err)
		}
	}
	for _, a := range r.Allow {
		if _, err := path.Match(a.Path, ""); err != nil || a.Path == "" {
			c.bad("allow %q: name the file as the build's finding does, as files/etc/x.conf (* and ? stand for letters)", a.Path)
		}
		if strings.TrimSpace(a.Reason) == "" {
			c.bad("allow %s: has no reason; write why it may pass, who reads the image's report will ask", a.Path)
		}
	}
	if r.Memory != "" && !memoryRE.MatchString(r.Memory) {
		c.bad("memory %q: write it as 512MiB or 2GiB", r.Memory)
	}
	if r.RootSize != "" && !memoryRE.MatchString(r.RootSize) {
		c.bad("rootSize %q: write it as 512MiB or 2GiB", r.RootSize)
	}
	if r.BootTime < 0 {
		c.bad("bootTime %s: write a time that a boot may take, as 10m", time.Duration(r.BootTime))
	}
}

// each checks a list of names: their form, and that none is there twice.
func (c *checker) each(what string, list []string, re *regexp.Regexp, way string) {
	seen := map[string]bool{}
	for _, s := range list {
		if !re.MatchString(s) {
			c.bad("%s %q: %s", what, s, way)
		}
		if seen[s] {
			c.bad("%s %q: is listed twice; remove one", what, s)
		}
		seen[s] = true
	}
}

func (c *checker) vendorOptions() {
	for _, v := range c.def.Role.DHCP {
		if _, err := v.Bytes(); err != nil {
			c.bad("%w", err)
		}
	}
}

func (c *checker) devices() {
	keys, mounts := map[string]bool{}, map[string]bool{}
	for _, d := range c.def.Role.Devices {
		// The agent takes keys that end in DEVICE for block devices.
		if !variableRE.MatchString(d.Key) || !strings.HasSuffix(d.Key, "DEVICE") {
			c.bad("device key %q: use capitals and end in DEVICE, as DBDEVICE", d.Key)
		}
		if d.Mount != "" {
			if err := checkPath(d.Mount); err != nil {
				c.bad("device %s: mount %w", d.Key, err)
			}
			if !slices.Contains(fileSystems(), d.FS) {
				c.bad("device %s: fs %q: use %s", d.Key, d.FS, strings.Join(fileSystems(), ", "))
			}
		} else if d.FS != "" || d.Format {
			c.bad("device %s: has a file system and no mount; give mount an absolute path", d.Key)
		}
		if d.Owner != "" && !ownerRE.MatchString(d.Owner) {
			c.bad("device %s: owner %q: write user or user:group", d.Key, d.Owner)
		}
		if keys[d.Key] {
			c.bad("device key %s: is listed twice; remove one", d.Key)
		}
		if d.Mount != "" && mounts[d.Mount] {
			c.bad("device %s: mount %s is another device's; choose another", d.Key, d.Mount)
		}
		keys[d.Key], mounts[d.Mount] = true, true
	}
}

func (c *checker) services() {
	byName := map[string]dsas.Service{}
	for _, s := range c.def.Role.Services {
		if err := dsas.CheckName("service", s.Name); err != nil {
			c.errs = append(c.errs, err)
			continue
		}
		if _, ok := byName[s.Name]; ok {
			c.bad("service %s: is listed twice; remove one", s.Name)
		}
		byName[s.Name] = s
		c.service(s)
	}
	for _, s := range c.def.Role.Services {
		for _, a := range s.After {
			if _, ok := byName[a]; !ok {
				c.bad("service %s: after %q: no such service; there are %s", s.Name, a, c.serviceNames())
			}
		}
	}
	c.cycle(byName)
	// A folder that role.yaml does not name would never be started.
	entries, err := fs.ReadDir(c.def.FS, "services")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.errs = append(c.errs, fmt.Errorf("read services: %w", err))
	}
	for _, e := range entries {
		if _, ok := byName[e.Name()]; !ok {
			c.bad("services/%s: role.yaml has no service of this name; list it under services", e.Name())
		}
	}
}

func (c *checker) serviceNames() string {
	var names []string
	for _, s := range c.def.Role.Services {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

func (c *checker) service(s dsas.Service) {
	dir := path.Join("services", s.Name)
	if _, err := readText(c.def.FS, path.Join(dir, "run")); errors.Is(err, fs.ErrNotExist) {
		c.bad("service %s: %s/run is missing; write a script that ends in exec of the program in the foreground", s.Name, dir)
	} else if err != nil {
		c.errs = append(c.errs, fmt.Errorf("service %s: %w", s.Name, err))
	}
	for _, f := range []string{"run", "finish", "check", "log/run"} {
		text, err := readText(c.def.FS, path.Join(dir, f))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("service %s: %w", s.Name, err))
			continue
		}
		// The kernel answers a missing "#!" with ENOEXEC and a carriage return
		// with "no such file", which says nothing to anybody.
		first, _, _ := strings.Cut(string(text), "\n")
		switch {
		case !strings.HasPrefix(first, "#!/") && !strings.HasPrefix(first, "\x7fELF"):
			c.bad("service %s: %s/%s does not begin with #!/; write #!/bin/sh as its first line", s.Name, dir, f)
		case strings.HasPrefix(first, "#!") && strings.HasSuffix(first, "\r"):
			c.bad("service %s: %s/%s has DOS line ends; save it with Unix ones", s.Name, dir, f)
		}
	}
	for what, d := range map[string]dsas.Duration{"timeout": s.Timeout, "stop": s.Stop} {
		if d < 0 {
			c.bad("service %s: %s %s: use a positive one, as 2m", s.Name, what, time.Duration(d))
		}
	}
	if s.Check != nil {
		c.health(s)
	}
}

func (c *checker) health(s dsas.Service) {
	h := s.Check
	kinds := 0
	for _, v := range []string{h.HTTP, h.TCP, h.Exec} {
		if v != "" {
			kinds++
		}
	}
	if kinds != 1 {
		c.bad("service %s: check has %d kinds; give exactly one of http, tcp, exec", s.Name, kinds)
	}
	if _, err := fs.Lstat(c.def.FS, path.Join("services", s.Name, "check")); err == nil {
		c.bad("service %s: has a check in role.yaml and a check file; keep one", s.Name)
	}
	if h.HTTP != "" {
		if u, err := url.Parse(h.HTTP); err != nil || u.Scheme != "http" || u.Host == "" {
			c.bad("service %s: check http %q: write it as http://127.0.0.1/path", s.Name, h.HTTP)
		}
	}
	if h.TCP != "" {
		if _, port, err := net.SplitHostPort(h.TCP); err != nil || port == "" {
			c.bad("service %s: check tcp %q: write it as 127.0.0.1:22", s.Name, h.TCP)
		}
	}
	if h.Interval < 0 || h.Timeout < 0 {
		c.bad("service %s: check has a negative duration; use a positive one, as 5s", s.Name)
	}
}

// cycle finds services that wait for each other, by following After.
func (c *checker) cycle(byName map[string]dsas.Service) {
	const walking, done = 1, 2
	state := map[string]int{}
	var trail []string
	var visit func(name string) bool
	visit = func(name string) bool {
		trail = append(trail, name)
		defer func() { trail = trail[:len(trail)-1] }()
		switch state[name] {
		case done:
			return true
		case walking:
			c.bad("services wait for each other: %s; remove one of the after", strings.Join(trail[slices.Index(trail, name):], " after "))
			return false
		}
		state[name] = walking
		for _, a := range byName[name].After {
			if !visit(a) {
				return false
			}
		}
		state[name] = done
		return true
	}
	for _, s := range c.def.Role.Services {
		if !visit(s.Name) {
			return
		}
	}
}

func (c *checker) templates() {
	paths := map[string]bool{}
	for _, t := range c.def.Role.Templates {
		if !fs.ValidPath(t.Source) || t.Source == "." {
			c.bad("template source %q: write a path below templates/, without . and ..", t.Source)
			continue
		}
		if err := checkPath(t.Path); err != nil {
			c.bad("template %s: path %w", t.Source, err)
		}
		if paths[t.Path] {
			c.bad("template %s: path %s is another template's; choose another", t.Source, t.Path)
		}
		paths[t.Path] = true
		if _, err := parseMode(t.Mode); err != nil {
			c.errs = append(c.errs, fmt.Errorf("template %s: %w", t.Source, err))
		}
		if t.Service != "" && !slices.ContainsFunc(c.def.Role.Services, func(s dsas.Service) bool { return s.Name == t.Service }) {
			c.bad("template %s: service %q: no such service; there are %s", t.Source, t.Service, c.serviceNames())
		}
		text, err := readText(c.def.FS, path.Join("templates", t.Source))
		if errors.Is(err, fs.ErrNotExist) {
			c.bad("template %s: templates/%s is missing", t.Source, t.Source)
		} else if err != nil {
			c.errs = append(c.errs, err)
		} else if _, err := parseTemplate(t.Source, text); err != nil {
			c.errs = append(c.errs, err)
		}
	}
}

// checkPath refuses what is not a clean absolute path, and places that are not
// files of the role's root.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("%q: write a clean absolute path, as /etc/motd", p)
	}
	for _, no := range []string{"/proc", "/sys", "/dev", "/run/dsas", "/etc/dsas.conf"} {
		if p == no || strings.HasPrefix(p, no+"/") {
			return fmt.Errorf("%q: %s is not a role's to fill; choose another", p, no)
		}
	}
	return nil
}

// files looks at the overlay: a bin, lib or sbin at its top would take the
// place of usrmerge's links.
func (c *checker) files() {
	for _, top := range []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"} {
		if _, err := fs.Lstat(c.def.FS, "files/"+top); err == nil {
			c.bad("files/%s: would replace the link /%s; put it below files/usr/%s", top, top, top)
		}
	}
	err := fs.WalkDir(c.def.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch t := d.Type(); {
		case t.IsDir(), t.IsRegular():
		case t&fs.ModeSymlink != 0 && strings.HasPrefix(p, "files/"):
		default:
			c.bad("%s: is neither a file nor a folder (a symlink may stand in files/ only); remove it", p)
		}
		return nil
	})
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("read definition: %w", err))
	}
}

// samples renders for made-up nodes: with sites and peers, and with neither.
func (c *checker) samples() {
	for _, in := range sampleInputs(c.def.Role) {
		_, err1 := Render(c.def, in)
		_, err2 := Conf(c.def, in)
		if err := cmp.Or(err1, err2); err != nil {
			c.errs = append(c.errs, fmt.Errorf("with a sample node: %w", err))
			return
		}
	}
}

func sampleInputs(role dsas.Role) []Input {
	// RFC 5737: addresses for documentation.
	addr := netip.MustParseAddr
	bare := Input{
		Role: role,
		Node: dsas.Node{
			Name: "sample", Role: role.Name,
			NICs:    []dsas.NIC{{MAC: dsas.MAC{2, 0, 0, 0, 0, 1}}},
			Address: netip.MustParsePrefix("192.0.2.10/24"),
		},
		Subnet: dsas.Subnet{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Server: addr("192.0.2.1"), Lease: time.Hour},
	}
	full := bare
	full.Node.NICs = append(slices.Clone(bare.Node.NICs), dsas.NIC{MAC: dsas.MAC{2, 0, 0, 0, 0, 2}})
	full.Node.Interfaces = []dsas.Interface{{Device: "bond0.2", Address: netip.MustParsePrefix("198.51.100.10/24")}}
	full.Node.Disks = map[string]string{}
	for _, d := range role.Devices {
		full.Node.Disks[d.Key] = "/dev/vda"
	}
	full.Subnet.Gateway, full.Subnet.DNS, full.Subnet.Domain = addr("192.0.2.254"), []netip.Addr{addr("192.0.2.1")}, "example.net"
	full.Nodes = []Peer{{"sample", addr("192.0.2.10"), role.Name}, {"sample2", addr("192.0.2.11"), role.Name}}
	for i, kind := range []string{"http", "tcp"} {
		s := dsas.Site{Name: "site-" + kind, Address: addr("192.0.2.200"), Port: uint16(80 + i), Role: role.Name, Balancer: role.Name, Check: dsas.SiteCheck{Kind: kind}}
		full.Sites = append(full.Sites, Site{s.WithDefaults(), []Peer{{"w1", addr("192.0.2.21"), role.Name}}})
	}
	return []Input{bare, full}
}
