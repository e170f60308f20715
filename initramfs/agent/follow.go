package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"dsas"
	"dsas/initramfs/dsasconf"
	"dsas/initramfs/netcfg"
	"dsas/initramfs/service"
)

// follower keeps a running node's dsas.conf and rendered files as the server
// has them.
type follower struct {
	root   string // "/", or a test's
	tag    string
	event  func(dsas.Event)
	reload func(ctx context.Context, service string) error
	states func() map[string]service.State
	// applyConf obeys a changed dsas.conf; nil: it is only written.
	applyConf func(ctx context.Context, text string)
	// pending are the services whose files changed and that did not take the
	// change yet: a file that is written already must not make it forgotten.
	pending []string
}

// followFiles follows changes until ctx ends. While the server is away the
// last copy stays.
func (n *node) followFiles(ctx context.Context) {
	f := &follower{
		root: "/", tag: n.st.Config.FilesTag, event: n.event, reload: n.reload, applyConf: n.applyConf,
		states: func() map[string]service.State {
			out := map[string]service.State{}
			for _, s := range n.sup.Status() {
				out[s.Name] = s.State
			}
			return out
		},
	}
	wait := time.Second
	for ctx.Err() == nil {
		poll := 25 * time.Second
		if len(f.pending) > 0 {
			poll = time.Second
		}
		got, changed, err := n.api.Files(ctx, f.tag, poll)
		if err == nil && changed {
			if err = f.take(ctx, got.Conf, got.Files); err == nil {
				f.tag = got.Tag
			} else {
				n.event(dsas.Event{Kind: dsas.KindWarning, Message: "changed files: " + err.Error()})
			}
		}
		f.reloadPending(ctx)
		if err != nil {
			sleep(ctx, wait)
			wait = min(2*wait, 30*time.Second)
			continue
		}
		wait = time.Second
	}
}

// take writes what differs and notes whose it is. A file that cannot be
// written does not keep the others from their services.
func (f *follower) take(ctx context.Context, conf string, files []dsas.File) error {
	var errs []error
	var names []string
	served := false
	write := func(file dsas.File) bool {
		if have, err := os.ReadFile(f.root + file.Path); err == nil && bytes.Equal(have, file.Content) {
			return false
		}
		if err := writeFiles(f.root, []dsas.File{file}); err != nil {
			errs = append(errs, err)
			return false
		}
		names = append(names, file.Path)
		return true
	}
	if conf != "" && write(dsas.File{Path: "/etc/dsas.conf", Mode: 0o644, Content: []byte(conf)}) && f.applyConf != nil {
		served = true
		f.applyConf(ctx, conf)
	}
	for _, file := range files {
		if !write(file) || file.Service == "" {
			continue
		}
		served = true
		if !slices.Contains(f.pending, file.Service) {
			f.pending = append(f.pending, file.Service)
		}
	}
	// What concerns no service (/etc/hosts: each node's peers) is no news: a
	// thousand nodes would say it at each change of one.
	if served {
		f.event(dsas.Event{Kind: dsas.KindFiles, Message: strings.Join(names, " ") + " changed"})
	}
	return errors.Join(errs...)
}

// reloadPending makes services take their changed files, each once it is up:
// one that is still starting may have read the old file already, and is not
// ready to be told of the new one.
func (f *follower) reloadPending(ctx context.Context) {
	if len(f.pending) == 0 {
		return
	}
	states := f.states()
	f.pending = slices.DeleteFunc(f.pending, func(name string) bool {
		if st := states[name]; st == service.Starting || st == service.Waiting {
			return false
		}
		if err := f.reload(ctx, name); err != nil {
			f.event(dsas.Event{Kind: dsas.KindWarning, Message: "reload " + err.Error()})
		}
		return true
	})
}

func (n *node) reload(ctx context.Context, name string) error {
	for _, s := range n.st.Config.Role.Services {
		if s.Name == name {
			return n.sup.Reload(ctx, name, s.Reload)
		}
	}
	return fmt.Errorf("%s: %w", name, dsas.ErrNotFound)
}

// applyConf obeys what of a changed dsas.conf can be obeyed on a running node:
// addresses, VLANs, and the service addresses of sites that came or went.
func (n *node) applyConf(ctx context.Context, text string) {
	conf, wrong := dsasconf.Parse(text)
	for _, e := range wrong {
		n.event(dsas.Event{Kind: dsas.KindConfError, Message: e.Error()})
	}
	base, err := cmdlinePlan()
	if err != nil {
		n.event(dsas.Event{Kind: dsas.KindWarning, Message: "changed dsas.conf: " + err.Error()})
		return
	}
	applyNetwork(ctx, base, conf, n.event, n.con)
}

// cmdlinePlan is the network that this boot's command line asked for.
func cmdlinePlan() (netcfg.Plan, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return netcfg.Plan{}, err
	}
	params, err := netcfg.ParseCmdline(string(text))
	if err != nil {
		return netcfg.Plan{}, err
	}
	return netcfg.FromCmdline(params)
}
