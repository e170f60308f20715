package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/client"
	"dsas/initramfs/kmod"
	"dsas/initramfs/modindex"
	"dsas/initramfs/netcfg"
	"dsas/initramfs/rootfs"
	"dsas/internal/signing"
)

// sysroot is where the image is unpacked.
const sysroot = "/sysroot"

// boot is one boot's way through stage 1.
type boot struct {
	con     *Console
	log     *slog.Logger
	params  netcfg.Params
	node    *client.Node
	out     *client.Outbox
	cfg     dsas.NodeConfig
	signed  signing.Statement // of the release
	mods    *kmod.Loader
	net     *netcfg.State
	state   state
	meminfo string // a file in place of /proc/meminfo, in tests
}

// stage1 runs in the initramfs and ends in the role's root by exec.
func stage1(ctx context.Context, con *Console, log *slog.Logger) error {
	took := stopwatch()
	b := &boot{con: con, log: log}
	b.state.KernelRun = uptime()
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return fmt.Errorf("read kernel command line: %w", err)
	}
	if b.params, err = netcfg.ParseCmdline(string(cmdline)); err != nil {
		return err
	}
	con.Say("node %s, boot %s, server %s", b.params.Node, b.params.Boot, b.params.Server)
	if err := copySelf(initPath); err != nil {
		return err
	}
	loading := stopwatch()
	if err := b.loadModules(ctx); err != nil {
		return err
	}
	modules := loading()
	go b.watch(ctx)
	if err := b.network(ctx); err != nil {
		return err
	}
	b.node = client.NewNode(b.params.Server, b.params.Boot)
	b.out = client.NewOutbox(b.node, log)
	b.event(dsas.Event{Kind: dsas.KindInit, Duration: took(),
		Message: fmt.Sprintf("network up (kernel %.1f s, modules %.1f s)", b.state.KernelRun.Seconds(), modules.Seconds())})
	if err := b.takeConfig(ctx); err != nil {
		return err
	}
	posting, stop := context.WithCancel(ctx)
	posted := make(chan struct{})
	go func() { defer close(posted); b.out.Run(posting) }()
	err = b.prepareRoot(ctx)
	if err != nil {
		b.event(dsas.Event{Kind: dsas.KindFailed, Message: err.Error(), Detail: con.Tail()})
		flush, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		b.out.Flush(flush)
	}
	stop()
	<-posted
	if err != nil {
		return err
	}
	if err := b.handOver(); err != nil {
		b.event(dsas.Event{Kind: dsas.KindFailed, Message: err.Error(), Detail: con.Tail()})
		flush, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		b.out.Flush(flush)
		return err
	}
	return nil
}

// stopwatch gives a function that tells the time since it was made.
func stopwatch() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

// uptime is how long the kernel has run.
func uptime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (b *boot) event(e dsas.Event) {
	if e.Message != "" {
		b.con.Say("%s: %s", e.Kind, e.Message)
	}
	b.out.Add(e)
}

// loadModules loads the drivers of what the box has, and what the network
// needs whatever the box has.
func (b *boot) loadModules(ctx context.Context) error {
	ix, err := modindex.ReadFile("/etc/" + modindex.File)
	if err != nil {
		return err
	}
	b.mods = &kmod.Loader{Root: "/", Index: ix, Log: b.log}
	// Without max_bonds=0 the driver makes a bond0 of its own, round-robin.
	if err := b.mods.Load("bonding", "max_bonds=0"); err != nil {
		return err
	}
	for _, m := range []string{"af_packet", "8021q"} {
		if err := b.mods.Load(m, ""); err != nil {
			b.con.Say("module %s: %v", m, err)
		}
	}
	if err := b.mods.LoadFor(ctx, "/sys"); err != nil {
		b.con.Say("some drivers did not load: %v", err)
	}
	// Disks behind USB and SCSI show up later than their controllers.
	go b.mods.Hotplug(ctx, "/sys")
	return nil
}

// watch arms the hardware watchdog, if there is one, until stage 2 takes it
// over. Waiting for a server may take for ever in stage 1, so that what it
// guards against is a kernel that hangs, not an init that makes no progress.
func (b *boot) watch(ctx context.Context) {
	if _, err := NewWatchdog(math.MaxInt64).Run(ctx, "/dev/watchdog", func(s string) { b.con.Say("%s", s) }); err != nil {
		b.con.Say("%v", err)
	}
}

// networkPatience: after it a node whose network does not come up boots anew
// from the firmware on, and gets what the operator may have corrected since;
// its token is dead by then anyway.
const networkPatience = 10 * time.Minute

// networkTime bounds one try to bring the network up. A switch that was just
// powered on with us may take a minute until it forwards (802.1w edge ports or
// not), so there is more than one try.
const networkTime = 90 * time.Second

// network brings the cmdline's network up before the first byte is fetched. It
// tries for long: a node whose switches are off comes up when they do.
func (b *boot) network(ctx context.Context) error {
	spent := stopwatch()
	for try := 1; ; try++ {
		limited, cancel := context.WithTimeout(ctx, networkTime)
		st, err := netcfg.Up(limited, b.params)
		cancel()
		if err == nil {
			b.net, b.state.Bond = st, st.Bond
			for _, w := range st.Warnings {
				b.con.Say("network: %v", w)
			}
			b.con.Say("network up on %s: %s", st.Device, st.Changes)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if spent() > networkPatience {
			return fmt.Errorf("network: %d tries: %w", try, err)
		}
		b.con.Say("network, try %d: %v", try, err)
		if err := sleep(ctx, 2*time.Second); err != nil {
			return err
		}
	}
}

// takeConfig trades the boot token for the node config. It tries for ever
// while the server is away; a server that refuses is final.
func (b *boot) takeConfig(ctx context.Context) error {
	wait := time.Second
	for {
		cfg, err := b.node.Config(ctx, b.params.Token)
		if err == nil {
			b.cfg = cfg
			break
		}
		if errors.Is(err, dsas.ErrDenied) || errors.Is(err, dsas.ErrNotFound) {
			return err
		}
		b.con.Say("node config: %v; again in %s", err, wait)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, 15*time.Second)
	}
	if off, err := setClock(b.cfg.Time); err != nil {
		b.event(dsas.Event{Kind: dsas.KindWarning, Message: err.Error()})
	} else if off.Abs() >= time.Second {
		b.con.Say("clock was off by %s, set to %s", off.Round(time.Second), time.Now().UTC().Format(time.RFC3339))
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// prepareRoot makes the role's root ready to switch to.
func (b *boot) prepareRoot(ctx context.Context) error {
	if err := b.checkRelease(signing.InitramfsKeys); err != nil {
		return err
	}
	if err := b.fetch(ctx); err != nil {
		return err
	}
	return b.apply(ctx)
}

// room says, before anything is fetched, whether there is memory for the role
// and how large its root may grow.
func (b *boot) room() (rootfs.Plan, error) {
	var limit int64
	if size := b.cfg.Role.RootSize; size != "" {
		var err error
		if limit, err = dsas.ParseSize(size); err != nil {
			return rootfs.Plan{}, fmt.Errorf("role %s: rootSize: %w", b.cfg.Role.Name, err)
		}
	}
	have, err := rootfs.ReadMemory(b.meminfo)
	if err != nil {
		return rootfs.Plan{}, err
	}
	return rootfs.Room(rootfs.Need(b.cfg.Manifest), have, limit)
}

// fetch streams the image into a tmpfs.
func (b *boot) fetch(ctx context.Context) error {
	m := b.cfg.Manifest
	var size, unpacked int64
	for _, p := range m.Parts {
		size += p.Size
		unpacked += p.Unpacked
	}
	room, err := b.room()
	if err != nil {
		return err
	}
	if room.Warning != "" {
		b.warn("%s", room.Warning)
	}
	b.event(dsas.Event{Kind: dsas.KindFetch, Bytes: size,
		Message: fmt.Sprintf("%s; image %s: %d parts, %d MiB, %d MiB unpacked", b.signed, m.Digest.Short(), len(m.Parts), size>>20, unpacked>>20)})
	if err := rootfs.MountTmpfs(sysroot, room.Size); err != nil {
		return err
	}
	took := stopwatch()
	stats, err := rootfs.Fetch(ctx, rootfs.Options{
		BaseURL: b.params.Server, Registry: b.cfg.Registry, Manifest: m, Dest: sysroot, Log: b.log,
		// The digest of the compressed bytes, which is checked, fixes the tar
		// inside: hashing that too would cost a third of the time again.
		SkipDiffID: true,
	})
	if rootfs.BadPart(err) {
		b.event(dsas.Event{Kind: dsas.KindPartBad, Message: err.Error()})
	}
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%w: the root may have %d MiB (rootSize and memory in the role; docs/roles.md)", err, room.Size>>20)
	}
	if err != nil {
		return err
	}
	b.event(dsas.Event{Kind: dsas.KindFetched, Bytes: size, Duration: took(),
		Message: stats.String()})
	return nil
}
