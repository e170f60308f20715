package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/server/loaders"
	"dsas/server/netns"
)

type checkCmd struct {
	configFlags
	Interface      []string `help:"The interface to serve boots on; give it again for more (default: the configuration's)." short:"i" env:"DSAS_INTERFACE" placeholder:"eth1"`
	Netns          string   `help:"The boot network is this network namespace." env:"DSAS_NETNS" placeholder:"NAME"`
	NoDHCP         bool     `help:"As for serve." name:"no-dhcp" env:"DSAS_NO_DHCP"`
	ProxyDHCP      bool     `help:"As for serve." name:"proxy-dhcp" env:"DSAS_PROXY_DHCP"`
	AllowOtherDHCP bool     `help:"As for serve." name:"allow-other-dhcp" env:"DSAS_ALLOW_OTHER_DHCP"`
}

// Help gives the examples.
func (*checkCmd) Help() string {
	return `Looks at all that keeps boots from working, before the server is started or
beside one that runs, changes nothing, and says how to mend what it finds. It
asks the boot network for other DHCP servers, which takes 4 s and takes no
lease. Run it as root: what it may not see it says.

  dsas check --interface eth1
  dsas check --json | jq '.[] | select(.level != "ok")'

Exit status: 0 when nothing fails (warnings are allowed), 1 when something does.`
}

// Run implements the command.
func (c *checkCmd) Run(ctx context.Context, a *app) error {
	ck := &checker{lib: nodeProgram, loaders: loaders.All(), now: time.Now, proc: "/proc", rtc: "/sys/class/rtc/rtc0/since_epoch"}
	cfg, err := c.load()
	if err != nil {
		ck.fail("configuration", err.Error(), "Nothing can be started with it.", "correct the line that it names")
	} else {
		if len(c.Interface) > 0 {
			cfg.Interfaces = c.Interface
		}
		override(&cfg.Netns, c.Netns)
		cfg.NoDHCP = cfg.NoDHCP || c.NoDHCP
		cfg.ProxyDHCP = cfg.ProxyDHCP || c.ProxyDHCP
		cfg.AllowOtherDHCP = cfg.AllowOtherDHCP || c.AllowOtherDHCP
		ck.cfg = cfg
		ck.all(ctx)
	}
	if a.JSON {
		if err := a.writeJSON(ck.findings); err != nil {
			return err
		}
	} else if err := ck.print(a); err != nil {
		return err
	}
	return ck.verdict()
}

// level is how bad a finding is.
type level string

// The levels. Nothing boots, or something will be lost, with a fail; a warn is
// worth a look.
const (
	levelOK   level = "ok"
	levelWarn level = "warn"
	levelFail level = "fail"
)

// finding is one thing looked at.
type finding struct {
	Check string `json:"check"` // "port 67/udp"
	Level level  `json:"level"`
	Found string `json:"found"`
	Why   string `json:"why,omitempty"`  // it matters
	Mend  string `json:"mend,omitempty"` // a command, or what to do
}

// checker looks at one server's configuration and machine. Its paths and clock
// are fields, so that a test can have each thing go wrong.
type checker struct {
	cfg      config
	findings []finding
	running  int // pid of the dsas serve that holds the state folder; 0: none

	lib     func(name string) (string, error)
	loaders []loaders.Loader
	now     func() time.Time
	proc    string // /proc
	rtc     string // seconds since 1970 by the real-time clock
	subnets []dsas.Subnet
}

func (c *checker) add(f finding) { c.findings = append(c.findings, f) }
func (c *checker) ok(check, format string, a ...any) {
	c.add(finding{Check: check, Level: levelOK, Found: fmt.Sprintf(format, a...)})
}
func (c *checker) warn(check, found, why, mend string) {
	c.add(finding{check, levelWarn, found, why, mend})
}
func (c *checker) fail(check, found, why, mend string) {
	c.add(finding{check, levelFail, found, why, mend})
}

// all runs every check. The question to other DHCP servers takes the longest
// and runs beside the others.
func (c *checker) all(ctx context.Context) {
	c.cfg.setDefaults()
	if err := c.cfg.check(); err != nil {
		c.fail("configuration", err.Error(), "dsas serve refuses to start.", "correct it in "+defaultConfigPath+" or on the command line")
	} else {
		c.ok("configuration", "can be used")
	}
	c.running = holder(c.cfg.path("serve.lock"), c.proc)
	other := &checker{cfg: c.cfg}
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		c.findings = append(c.findings, other.findings...)
	}()
	if err := c.inNetwork(func() error {
		c.network()
		c.ports()
		return nil
	}); err != nil {
		c.fail("network namespace", err.Error(), "The boot listeners are opened there.", "make it, or leave netns out of the configuration")
	} else {
		wg.Go(func() { other.otherServers(ctx) })
	}
	c.software()
	c.images()
	c.permissions()
	c.database(ctx)
	c.receiveBuffers()
	c.clock()
	c.space()
}

func (c *checker) inNetwork(f func() error) error {
	if c.cfg.Netns == "" {
		return f()
	}
	return netns.Do(c.cfg.Netns, f)
}

// holder finds the process that has the lock of a state folder, 0 for none, in
// proc_locks(5): "1: FLOCK  ADVISORY  WRITE 123 08:01:456 0 EOF". To try the lock
// would be simpler, and could keep a server from starting at that moment.
func holder(lock, proc string) int {
	var st unix.Stat_t
	if unix.Stat(lock, &st) != nil {
		return 0
	}
	inode := ":" + strconv.FormatUint(st.Ino, 10)
	b, _ := os.ReadFile(filepath.Join(proc, "locks"))
	for line := range strings.Lines(string(b)) {
		w := strings.Fields(line)
		if len(w) < 6 || w[1] != "FLOCK" || w[3] != "WRITE" || !strings.HasSuffix(w[5], inode) {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}

// print writes the findings for people: a line each, and below those that are
// not ok why they matter and how to mend them.
func (c *checker) print(a *app) error {
	styles := map[level]style{levelOK: green, levelWarn: yellow, levelFail: red}
	t := &table{}
	for _, f := range c.findings {
		t.cells(cell{string(f.Level), styles[f.Level]}, cell{text: f.Check}, cell{text: f.Found})
		if f.Level == levelOK {
			continue
		}
		if f.Why != "" {
			t.cells(cell{}, cell{}, cell{f.Why, dim})
		}
		if f.Mend != "" {
			t.cells(cell{}, cell{}, cell{"-> " + f.Mend, bold})
		}
	}
	return t.write(a.stdout, 0, a.colours())
}

// verdict is the exit status: an error when something fails.
func (c *checker) verdict() error {
	n := 0
	for _, f := range c.findings {
		if f.Level == levelFail {
			n++
		}
	}
	switch n {
	case 0:
		return nil
	case 1:
		return errors.New("check: one thing fails")
	}
	return fmt.Errorf("check: %d things fail", n)
}
