package e2e

import (
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"

	"dsas"
)

// testMenu picks another role at the loaders' menus, as a person does at the
// console: it boots that once; the next boot, without a key, is as assigned.
func testMenu(t *testing.T, r *rack, byIPXE, byPXELINUX *box) {
	if out, err := r.try("node", "set", byIPXE.Name(), "--menu", "rescue,db"); err == nil || !strings.Contains(err.Error(), "may format a disk (DBDEVICE)") {
		t.Errorf("a menu with db: %q, %v; want it refused, since db may format a disk", out, err)
	}
	for _, tt := range []struct {
		b    *box
		menu string // on the screen when keys are awaited
		keys string
	}{
		// 2 is the key of the second item, as iPXE shows beside it.
		{byIPXE, `rescue \(for this boot only\)`, "2"},
		// PXELINUX's prompt wants the name, as the book has it.
		{byPXELINUX, `(?s)rescue \(for this boot only\).*boot: `, "rescue\r"},
	} {
		r.dsas(t, "node", "set", tt.b.Name(), "--menu", "rescue")
		t.Run(tt.b.Name(), func(t *testing.T) {
			t.Parallel()
			b, assigned := tt.b, r.node(t, tt.b.Name()).Node.Role
			b.pickRescue(t, typed{tt.menu, tt.keys})
			mark := r.mark(t, b.Name())
			b.boot(t) // nobody presses a key
			if v := r.node(t, b.Name()); v.Status.Running != assigned || v.Status.Picked {
				t.Errorf("without a key: runs %q, picked %v; want %s", v.Status.Running, v.Status.Picked, assigned)
			}
			if !regexp.MustCompile(tt.menu).MatchString(b.screen(t)) {
				t.Errorf("the second boot showed no menu\n%s", b.story(t, mark))
			}
		})
	}
}

// typed is what a person types when the screen shows something.
type typed struct{ want, keys string } // a regular expression; as a serial line has it

// pickRescue cycles a node's power and types at its loader's menu: it comes up
// as rescue, and is still assigned what it was.
func (b *box) pickRescue(t *testing.T, keys ...typed) {
	t.Helper()
	r, assigned := b.r, b.r.node(t, b.Name()).Node.Role
	mark := r.mark(t, b.Name())
	r.dsas(t, "power", "cycle", b.Name())
	b.typeAt(t, mark, keys...)
	b.ready(t, mark)
	v := r.node(t, b.Name())
	if v.Status.Running != "rescue" || !v.Status.Picked || v.Node.Role != assigned {
		t.Errorf("picked: runs %q, picked %v, assigned %q; want rescue, true, %s", v.Status.Running, v.Status.Picked, v.Node.Role, assigned)
	}
	if out := b.ssh(t, "command -v smartctl"); out == "" {
		t.Error("no smartctl on the node; want the rescue role's")
	}
	if out := r.dsas(t, "node", "ls", b.Name()); !strings.Contains(out, assigned+" (runs rescue, picked at the loader)") {
		t.Errorf("node ls does not mark the picked role:\n%s", out)
	}
	var told bool
	for _, e := range r.events(t, b.Name(), mark) {
		told = told || e.Kind == dsas.KindMenu && strings.Contains(e.Message, "role rescue picked") && e.Boot == v.Status.Boot
	}
	if !told {
		t.Errorf("no event %s of boot %s\n%s", dsas.KindMenu, v.Status.Boot, b.story(t, mark))
	}
}

// typeAt types at the console of the boot that just began, each when the
// screen shows what is wanted.
func (b *box) typeAt(t *testing.T, mark int64, keys ...typed) {
	t.Helper()
	b.wait(t, mark, "the loader", kind(dsas.KindNBP))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b.waitScreen(t, ctx, keys[0].want)
	con, err := net.Dial("unix", b.Console())
	if err != nil {
		t.Fatal(err)
	}
	defer con.Close()
	go io.Copy(io.Discard, con) // the log has it all
	for _, k := range keys {
		b.waitScreen(t, ctx, k.want)
		if _, err := io.WriteString(con, k.keys); err != nil {
			t.Fatal(err)
		}
	}
	// What QEMU has not read yet goes with the connection.
	b.waitScreen(t, ctx, `role rescue\b|picked at its loader`)
}

var escapeRE = regexp.MustCompile(`\x1b(\[[0-9;?]*[A-Za-z]|[()][0-9A-Za-z]|[a-zA-Z=>])`)

// screen is what the console said since the power came on, without what moves
// a terminal's cursor and sets its colours.
func (b *box) screen(t *testing.T) string {
	t.Helper()
	log, err := b.SerialLog()
	if err != nil {
		t.Fatal(err)
	}
	return string(escapeRE.ReplaceAll(log, nil))
}

func (b *box) waitScreen(t *testing.T, ctx context.Context, want string) {
	t.Helper()
	re := regexp.MustCompile(want)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !re.MatchString(b.screen(t)) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: the console never showed %q\n%s", b.Name(), want, b.screen(t))
		}
	}
}
