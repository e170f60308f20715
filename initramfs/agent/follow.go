package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"dsas"
	"dsas/initramfs/service"
)

// follower keeps a running node's rendered files as the server has them.
type follower struct {
	*node
	tag string
	// pending are the services whose files changed and that did not take the
	// change yet: a file that is written already must not make it forgotten.
	pending []string
}

// followFiles follows changes until ctx ends. While the server is away the
// last copy stays.
func (n *node) followFiles(ctx context.Context) {
	f := &follower{node: n, tag: n.st.Config.FilesTag}
	wait := time.Second
	for ctx.Err() == nil {
		poll := 25 * time.Second
		if len(f.pending) > 0 {
			poll = time.Second
		}
		tag, files, changed, err := n.api.Files(ctx, f.tag, poll)
		if err == nil && changed {
			if err = f.write(files); err == nil {
				f.tag = tag
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

// write writes the files that differ and notes whose they are.
func (f *follower) write(files []dsas.File) error {
	var changed []dsas.File
	var names []string
	for _, file := range files {
		if have, err := os.ReadFile(file.Path); err == nil && bytes.Equal(have, file.Content) {
			continue
		}
		changed, names = append(changed, file), append(names, file.Path)
	}
	if len(changed) == 0 {
		return nil
	}
	if err := writeFiles("/", changed); err != nil {
		return err
	}
	served := false
	for _, file := range changed {
		if file.Service == "" {
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
	return nil
}

// reloadPending makes services take their changed files, each once it is up:
// one that is still starting may have read the old file already, and is not
// ready to be told of the new one.
func (f *follower) reloadPending(ctx context.Context) {
	states := map[string]service.State{}
	for _, s := range f.sup.Status() {
		states[s.Name] = s.State
	}
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
