package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"dsas"
	"dsas/initramfs/disk"
	"dsas/initramfs/dsasconf"
	"dsas/initramfs/kmod"
	"dsas/initramfs/modindex"
	"dsas/initramfs/netcfg"
	"dsas/initramfs/rootfs"
)

// apply makes the unpacked image this node's: its dsas.conf is written and
// then obeyed. A wrong line is told with line and reason, and the rest applies;
// what ends the boot is only what the role cannot do without.
func (b *boot) apply(ctx context.Context) error {
	took := stopwatch()
	if err := writeFile(sysroot, "/etc/dsas.conf", []byte(b.cfg.Conf), 0o644); err != nil {
		return err
	}
	conf, wrong := dsasconf.Parse(b.cfg.Conf)
	for _, e := range wrong {
		b.event(dsas.Event{Kind: dsas.KindConfError, Message: e.Error()})
	}
	if conf.SystemName != "" {
		if err := unix.Sethostname([]byte(conf.SystemName)); err != nil {
			b.warn("set host name %q: %v", conf.SystemName, err)
		}
	}
	applyNetwork(ctx, b.net.Plan, conf, b.event, b.con)
	b.modulesFromConf(conf)
	if err := writeFiles(sysroot, b.cfg.Files); err != nil {
		return err
	}
	if len(conf.Nameservers) > 0 { // else the subnet's, which the server rendered
		if err := writeFile(sysroot, "/etc/resolv.conf", []byte(netcfg.ResolvConf(conf.Nameservers, conf.Search)), 0o644); err != nil {
			return err
		}
	}
	if err := linkTools(sysroot); err != nil {
		return err
	}
	if err := b.disks(ctx, conf); err != nil {
		return err
	}
	b.state.Env = conf.Environ()
	b.event(dsas.Event{Kind: dsas.KindConf, Duration: took(),
		Message: fmt.Sprintf("dsas.conf applied, %d lines refused", len(wrong))})
	return nil
}

func (b *boot) warn(format string, args ...any) {
	b.event(dsas.Event{Kind: dsas.KindWarning, Message: fmt.Sprintf(format, args...)})
}

// applyNetwork restates the network as dsas.conf has it: more addresses,
// VLANs, gateways, service addresses. What differs from the running bond and
// cannot be changed with its ports attached is told, not forced.
func applyNetwork(ctx context.Context, base netcfg.Plan, conf *dsasconf.Config, event func(dsas.Event), con *Console) {
	plan, errs := netcfg.FromConf(base, conf)
	for _, err := range errs {
		event(dsas.Event{Kind: dsas.KindConfError, Message: err.Error()})
	}
	changes, err := netcfg.Restate(ctx, plan)
	if err != nil {
		event(dsas.Event{Kind: dsas.KindConfError, Message: err.Error()})
	}
	for _, c := range changes {
		if c.Deferred {
			event(dsas.Event{Kind: dsas.KindWarning, Message: c.String()})
			continue
		}
		con.Say("network: %s", c)
	}
}

// modulesFromConf loads what the role and dsas.conf name, from the image.
func (b *boot) modulesFromConf(conf *dsasconf.Config) {
	names := append([]string(nil), b.cfg.Role.Modules...)
	options := map[string]string{}
	for _, m := range conf.Modules {
		if isBond(conf, m.Name) {
			continue // a bond's options, not a module's
		}
		names, options[m.Name] = append(names, m.Name), m.Options
	}
	if len(names) == 0 {
		return
	}
	mods, err := imageModules(sysroot, b.cfg.Manifest.Kernel)
	if err != nil {
		b.warn("modules %s: %v", strings.Join(names, " "), err)
		return
	}
	for _, n := range names {
		if err := mods.Load(n, options[n]); err != nil {
			b.warn("module %s: %v", n, err)
		}
	}
}

func isBond(conf *dsasconf.Config, name string) bool {
	for _, bond := range conf.Bonds {
		if bond.Name == name {
			return true
		}
	}
	return false
}

// imageModules opens the module index that an image carries.
func imageModules(root, release string) (*kmod.Loader, error) {
	ix, err := modindex.ReadFile(filepath.Join(root, "usr/lib/modules", release, modindex.File))
	if err != nil {
		return nil, fmt.Errorf("the image: %w", err)
	}
	return &kmod.Loader{Root: filepath.Join(root, "usr"), Index: ix}, nil
}

// disks mounts the block devices that the role wants.
func (b *boot) disks(ctx context.Context, conf *dsasconf.Config) error {
	for _, wish := range b.cfg.Role.Devices {
		dev, ok := conf.Disk(wish.Key)
		if !ok {
			if wish.Required {
				return fmt.Errorf("role %s needs %s and the node has none (give it one with: dsas node set %s --disk %s=/dev/vda)",
					b.cfg.Role.Name, wish.Key, b.cfg.Node, wish.Key)
			}
			continue
		}
		took := stopwatch()
		res, err := b.mount(ctx, wish, dev)
		if err != nil {
			err = fmt.Errorf("%s=%s: %w", wish.Key, dev, err)
			if wish.Required {
				return err
			}
			b.warn("%v", err)
			continue
		}
		b.state.Mounts = append(b.state.Mounts, wish.Mount)
		b.event(dsas.Event{Kind: dsas.KindConf, Duration: took(), Message: fmt.Sprintf("%s: %s", wish.Key, res)})
	}
	return nil
}

func (b *boot) mount(ctx context.Context, wish dsas.Device, dev string) (disk.Result, error) {
	if mods, err := imageModules(sysroot, b.cfg.Manifest.Kernel); err == nil && wish.FS != "" {
		if err := mods.Load(wish.FS, ""); err != nil {
			b.con.Say("module %s: %v", wish.FS, err)
		}
	}
	m := disk.Mounter{Root: sysroot}
	return m.Mount(ctx, wish, dev)
}

// handOver saves what stage 2 needs and becomes it.
func (b *boot) handOver() error {
	box, err := json.Marshal(b.out.State())
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	cfg := b.cfg
	cfg.Files = nil // written; the host key need not be kept twice
	b.state.Node, b.state.Config, b.state.Outbox = b.node.State(), cfg, box
	if err := b.state.save(statePath); err != nil {
		return err
	}
	b.con.Say("switching to the root of role %s", b.cfg.Role.Name)
	return rootfs.SwitchRoot(sysroot, initPath, []string{"dsas-init", "stage2"}, os.Environ())
}

// linkTools gives operators on the node reboot, poweroff and svc.
func linkTools(root string) error {
	for _, name := range []string{"reboot", "poweroff", "halt", "svc"} {
		p := filepath.Join(root, "usr/sbin", name)
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("link %s: %w", name, err)
		}
		if err := os.Symlink(initPath, p); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return nil
}

// writeFiles writes rendered files below root, with owners by the names that
// root's own passwd and group know.
func writeFiles(root string, files []dsas.File) error {
	for _, f := range files {
		uid, gid := 0, 0
		if f.Owner != "" {
			var err error
			if uid, gid, err = ownerIn(root, f.Owner); err != nil {
				return fmt.Errorf("owner of %s: %w", f.Path, err)
			}
		}
		if err := writeFileAs(root, f.Path, f.Content, os.FileMode(f.Mode)&os.ModePerm, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// ownerIn resolves "user:group" in root's passwd(5) and group(5).
func ownerIn(root, owner string) (uid, gid int, err error) {
	user, group, _ := strings.Cut(owner, ":")
	uid, err = idIn(filepath.Join(root, "etc/passwd"), user)
	if err == nil && group != "" {
		gid, err = idIn(filepath.Join(root, "etc/group"), group)
	}
	return uid, gid, err
}

// idIn finds name's number: the third field in both files.
func idIn(path, name string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Split(sc.Text(), ":")
		if len(fields) > 2 && fields[0] == name {
			return strconv.Atoi(fields[2])
		}
	}
	if err := sc.Err(); err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("%s is not in %s: %w", name, filepath.Base(path), dsas.ErrNotFound)
}
