package web_test

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"dsas"
)

var updateScreens = flag.Bool("update-screens", false, "write docs/img/nodes.png and docs/img/node.png")

const (
	screenDir = "../build/screens"
	docsDir   = "../docs/img"
	patience  = time.Minute // for one step; the machine may be busy
)

// browser is one tab of a real Chromium.
type browser struct {
	*fixture
	ctx      context.Context
	troubles func() []string // what the console said
}

// chromium starts Debian's Chromium, headless, with a profile of its own.
func chromium(f *fixture) *browser {
	f.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("DSAS_CI") == "" {
			f.Skip("chromium is not installed")
		}
		f.Fatal(err)
	}
	profile, err := os.MkdirTemp("", "dsas-chromium-")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		// Its children may still write for a moment.
		for i := 0; os.RemoveAll(profile) != nil && i < 50; i++ {
			time.Sleep(100 * time.Millisecond)
		}
	})
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(profile), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("headless", "new"), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.Flag("lang", "en"),
		chromedp.WindowSize(1400, 900))
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	f.Cleanup(cancel)
	ctx, cancel2 := chromedp.NewContext(alloc)
	f.Cleanup(cancel2)
	if err := chromedp.Do(ctx); err != nil {
		f.Fatal(err)
	}
	b := &browser{fixture: f, ctx: ctx}
	b.watchConsole()
	return b
}

// watchConsole keeps what the page's console says: a script's error, or
// something that the Content-Security-Policy has stopped.
func (b *browser) watchConsole() {
	said := make(chan string, 1000)
	console := chromedp.Console(b.ctx)
	go func() {
		for m, err := range console {
			if err != nil {
				return
			}
			select {
			case said <- fmt.Sprintf("%+v", m):
			default:
			}
		}
	}()
	b.troubles = func() []string {
		var out []string
		for {
			select {
			case s := <-said:
				out = append(out, s)
			default:
				return out
			}
		}
	}
}

// do runs steps, each with a time of its own.
func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	for i, s := range steps {
		ctx, cancel := context.WithTimeout(b.ctx, patience)
		err := chromedp.Do(ctx, s)
		cancel()
		if err != nil {
			b.screen("failed")
			b.Fatalf("step %d: %v; console: %v; screenshot in %s/failed.png", i+1, err, b.troubles(), screenDir)
		}
	}
}

func eval[T any](b *browser, js string) T {
	b.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](js))
	if err != nil {
		b.Fatalf("%s: %v", js, err)
	}
	return v
}

// until waits for a condition of the page, or of the one it goes on to.
func (b *browser) until(js string) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for {
		_, err := chromedp.Run(ctx, chromedp.Poll[bool](js, chromedp.WithPollingTimeout(0)))
		if err == nil {
			return
		}
		// A page that is left takes the poll with it.
		left := func(why string) bool { return strings.Contains(err.Error(), why) }
		if ctx.Err() == nil && (left("navigated or closed") || left("Cannot find context") || left("context was destroyed")) {
			continue
		}
		b.screen("failed")
		b.Fatalf("waiting for %s: %v; console: %v; screenshot in %s/failed.png", js, err, b.troubles(), screenDir)
	}
}

// choose sets a field as a hand does, which the page is told of.
func choose(sel, value string) chromedp.Action[chromedp.Void] {
	return chromedp.Evaluate[chromedp.Void](fmt.Sprintf(
		`(() => { const e = document.querySelector(%q); e.value = %q; e.dispatchEvent(new Event("change", {bubbles: true})); })()`, sel, value))
}

func (b *browser) open(path string) {
	b.Helper()
	b.do(chromedp.Navigate(b.srv.URL + path))
}

// size sets the window.
func (b *browser) size(w, h int64) {
	b.Helper()
	b.do(chromedp.EmulateViewport(w, h))
}

func (b *browser) dark(on bool) {
	b.Helper()
	scheme := map[bool]string{true: "dark", false: "light"}[on]
	b.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	}))
}

// screen keeps a picture of what is to be seen below build/screens.
func (b *browser) screen(name string) []byte {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	img, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err == nil {
		if err = os.MkdirAll(screenDir, 0o755); err == nil {
			err = os.WriteFile(filepath.Join(screenDir, name+".png"), img, 0o644)
		}
	}
	if err != nil {
		b.Errorf("screenshot %s: %v", name, err)
	}
	return img
}

// quiet wants a console without troubles.
func (b *browser) quiet() {
	b.Helper()
	for _, s := range b.troubles() {
		// A wrong password is a 403, and the console says so.
		if strings.Contains(s, "Failed to load resource") || strings.HasPrefix(s, "info") || strings.HasPrefix(s, "debug") {
			continue
		}
		b.Errorf("console: %s; want silence", s)
	}
}

// browserLogIn opens a set-up link and sets the password.
func (b *browser) browserLogIn() {
	b.Helper()
	link, err := b.auth.SetupLink(b.Context(), b.srv.URL)
	if err != nil {
		b.Fatal(err)
	}
	b.do(chromedp.Navigate(link), chromedp.SendKeys(chromedp.CSS("input[name=password]"), password),
		chromedp.SendKeys(chromedp.CSS("input[name=again]"), password))
	b.screen("setup")
	b.do(chromedp.Click(chromedp.CSS("button")), chromedp.WaitVisible(chromedp.CSS("#head h1")))
}

// fleet is twenty nodes at all sorts of work, two unknown boxes, two sites.
func (f *fixture) fleet() {
	f.Helper()
	now := time.Now()
	type kind struct {
		name, role, run string
		ago             time.Duration
		until           dsas.Kind
	}
	list := []kind{
		{"db1", "db", "db", 26 * time.Hour, ""}, {"db2", "db", "db", 26 * time.Hour, ""},
		{"lb1", "lb", "lb", 9 * 24 * time.Hour, ""}, {"lb2", "lb", "lb", 9 * 24 * time.Hour, ""},
	}
	booting := map[int]kind{
		102: {run: "web", ago: 12 * time.Second, until: dsas.KindInitramfs}, 104: {run: "web", ago: 24 * time.Second, until: dsas.KindSwitched},
		106: {run: "web", ago: 18 * time.Second, until: dsas.KindFetch}, 109: {run: "web", ago: 4 * time.Second, until: dsas.KindDHCP},
	}
	for i := 101; i <= 115; i++ {
		k := kind{run: "web", ago: time.Duration(i-60) * time.Minute}
		if b, ok := booting[i]; ok {
			k = b
		}
		k.name, k.role = fmt.Sprintf("w%d", i), "web"
		if i == 103 {
			k.role = "db" // assigned, and not yet power-cycled
		}
		list = append(list, k)
	}
	list = append(list, kind{name: "w116"})
	for i, k := range list {
		n := f.node(k.name, k.role, 85+i)
		if k.run != "" {
			f.boot(n, k.run, now.Add(-k.ago), k.until)
		}
		switch k.name {
		case "w105":
			f.event(dsas.Event{Node: n.Name, Kind: dsas.KindLink, Time: now.Add(-9 * time.Minute), Message: "bond0: active port eth1 (was eth0)"})
		case "w107":
			f.event(dsas.Event{Node: n.Name, Kind: dsas.KindFailed, Time: now.Add(-2 * time.Minute), Message: "nginx: failed: not healthy within 2m0s: GET http://127.0.0.1/healthz: connection refused",
				Detail: "nginx: [emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)\nnginx: configuration file /etc/nginx/nginx.conf test failed"})
		case "w108":
			f.event(dsas.Event{Node: n.Name, Kind: dsas.KindLost, Time: now.Add(-7 * time.Minute), Message: "no heartbeat for 30s"})
		case "w110":
			f.event(dsas.Event{Node: n.Name, Kind: dsas.KindPower, Time: now.Add(-time.Hour), Message: "off", Detail: "by operator"})
		case "w103":
			f.event(dsas.Event{Node: n.Name, Kind: dsas.KindAssigned, Time: now.Add(-30 * time.Second), Message: "role db, was web, by operator"})
		}
	}
	for i, u := range []dsas.Unknown{
		{MAC: mac(0x9a10), Arch: "uefi-x64", VendorClass: "PXEClient:Arch:00007:UNDI:003016", GUID: "00-4c4c4544-0042-3510-8051-b7c04f4a4e31", Address: netip.MustParseAddr("10.77.200.14")},
		{MAC: mac(0x9a11), Arch: "uefi-x64", VendorClass: "PXEClient:Arch:00007:UNDI:003016", GUID: "00-4c4c4544-0042-3510-8051-b7c04f4a4e31", Address: netip.MustParseAddr("10.77.200.15")},
		{MAC: mac(0x7710), Arch: "bios", VendorClass: "PXEClient:Arch:00000:UNDI:002001", Address: netip.MustParseAddr("10.77.200.9")},
	} {
		u.Last = now.Add(-time.Duration(i*40+20) * time.Second)
		if _, err := f.store.RecordUnknown(f.Context(), u); err != nil {
			f.Fatal(err)
		}
	}
	w105 := f.stored("w105")
	for i, at := range []dsas.MAC{w105.NICs[0].MAC, w105.NICs[1].MAC, mac(0x9a10), mac(0x9a11)} {
		p := dsas.Port{MAC: at, Relay: netip.MustParseAddr("10.77.0.254"), CircuitID: fmt.Sprintf("ge-0/0/%d", 11+i/2), RemoteID: []string{"sw1", "sw2"}[i%2], Seen: now.Add(-time.Hour)}
		if err := f.store.RecordPort(f.Context(), p); err != nil {
			f.Fatal(err)
		}
	}
	for _, s := range []dsas.Site{
		{Name: "shop", Address: netip.MustParseAddr("10.77.250.80"), Port: 80, Check: dsas.SiteCheck{Kind: "http", Path: "/healthz"}},
		{Name: "sql", Address: netip.MustParseAddr("10.77.250.6"), Port: 3306, Role: "db", Scheduler: "lc", Check: dsas.SiteCheck{Kind: "tcp"}},
	} {
		if _, err := f.store.CreateSite(f.Context(), s.WithDefaults()); err != nil {
			f.Fatal(err)
		}
	}
}

func TestScreens(t *testing.T) {
	f := start(t)
	f.fleet()
	b := chromium(f)
	b.size(1400, 1000)
	b.open("/")
	b.screen("login")
	b.browserLogIn()
	b.until(`document.querySelector("#pulse").textContent === "live"`)
	b.size(1280, 790)
	nodes := b.screen("nodes")
	b.size(1400, 1700)
	b.screen("nodes-long")
	b.open("/nodes/w105")
	b.size(1400, 1000)
	node := b.screen("node")
	b.open("/nodes/w107")
	b.screen("node-failed")
	b.open("/nodes/w106")
	b.screen("node-booting")
	b.open("/nodes/w116")
	b.do(chromedp.Click(chromedp.CSS("#change summary")))
	b.screen("node-new")
	b.open("/events")
	b.screen("events")
	b.open("/roles")
	b.screen("roles")
	b.size(420, 900)
	b.screen("roles-narrow")
	b.open("/")
	b.screen("nodes-narrow")
	b.open("/nodes/w105")
	b.screen("node-narrow")
	b.open("/events")
	b.screen("events-narrow")
	b.size(1400, 1700)
	b.dark(true)
	b.open("/")
	b.do(chromedp.Click(chromedp.CSS("#add summary")), chromedp.Click(chromedp.CSS("#row-w111 input")), chromedp.Click(chromedp.CSS("#row-w112 input")))
	b.screen("nodes-dark")
	b.do(choose("select[name=power]", "cycle"), chromedp.Click(chromedp.CSS("button[value=assign]")), chromedp.WaitVisible(chromedp.CSS("#sure-yes")))
	b.screen("sure-dark")
	b.open("/nodes/w105")
	b.size(1400, 1000)
	b.screen("node-dark")
	b.open("/login")
	b.screen("login-dark")
	b.quiet()
	if *updateScreens {
		for name, img := range map[string][]byte{"nodes": nodes, "node": node} {
			if len(img) > 200<<10 {
				t.Errorf("docs/img/%s.png has %d bytes; want at most 200 KiB", name, len(img))
			}
			if err := os.MkdirAll(docsDir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(docsDir, name+".png"), img, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}
