package web_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"dsas"
)

// row is a node's row; rowText is a part of it.
func rowText(name, part string) string {
	return fmt.Sprintf(`(document.querySelector("#row-%s %s")?.textContent ?? "").trim()`, name, part)
}

// TestOperator is an operator's day in a real browser: from the set-up link to
// a web server that becomes a database by clicks alone.
func TestOperator(t *testing.T) {
	f := start(t)
	for i, name := range []string{"w101", "w102", "w103"} {
		f.boot(f.node(name, "web", i+1), "web", time.Now().Add(-time.Hour), "")
	}
	f.node("hand", "", 9)
	if _, err := f.store.UpdateNode(t.Context(), "hand", func(n *dsas.Node) error { n.BMC = nil; return nil }); err != nil {
		t.Fatal(err)
	}
	const guid = "00-4c4c4544-0042-3510-8051-b7c04f4a4e31"
	for i, u := range []dsas.Unknown{{MAC: mac(0x9001), GUID: guid, Arch: "bios"}, {MAC: mac(0x9002), GUID: guid, Arch: "bios"}, {MAC: mac(0x9003), Arch: "uefi-x64"}} {
		u.Last = time.Now().Add(-time.Duration(i) * time.Second)
		if _, err := f.store.RecordUnknown(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	// Whoever is power-cycled boots: to the kernel at once, further when told to.
	goOn := make(chan struct{})
	f.power.boot = func(n dsas.Node, action string) {
		n, err := f.store.Node(context.WithoutCancel(t.Context()), n.Name)
		if err != nil || action != dsas.PowerCycle {
			return
		}
		began := time.Now()
		f.boot(n, n.Role, began, dsas.KindInitramfs)
		<-goOn
		f.bootFrom(n, n.Role, began, dsas.KindInitramfs, "")
		goOn <- struct{}{}
	}
	b := chromium(f)
	b.browserLogIn()
	b.until(`document.querySelector("#pulse").textContent === "live"`)
	eval[int](b, `window.before = document.getElementById("row-w101"), window.mark = 1`)

	// Something else is chosen and typed meanwhile.
	b.do(chromedp.Click(chromedp.CSS("#row-w101 input[name=node]")))
	b.until(`document.querySelector("#chosen").textContent === "1 chosen"`)
	b.do(chromedp.Click(chromedp.CSS("button[value=assign]")))
	b.until(`document.querySelector("#fleet .said-here").textContent.includes("choose a role or what to do with the power")`)
	b.do(choose("select[name=role]", "db"), choose("select[name=power]", "cycle"),
		chromedp.Click(chromedp.CSS("button[value=assign]")), chromedp.WaitVisible(chromedp.CSS("#sure")))
	b.screen("operator-sure")
	if got := eval[string](b, `document.querySelector("#sure").innerText`); !strings.Contains(got, "w101 is ready and serving. Power-cycle it?") || !strings.Contains(got, "Assign db, then power-cycle") {
		t.Errorf("question = %q; want it to name w101 and what happens", got)
	}
	b.do(chromedp.Click(chromedp.CSS("#sure button[value=no]")))
	b.until(`!document.querySelector("#sure").open && !document.querySelector("button[value=assign]").disabled`)
	if got := f.stored("w101").Role; got != "web" || len(f.power.did()) != 0 {
		t.Errorf("after Cancel: role %s, power %v; want web and none", got, f.power.did())
	}
	b.do(chromedp.Click(chromedp.CSS("button[value=assign]")), chromedp.Click(chromedp.CSS("#sure-yes")))
	b.until(`document.querySelector("#said").textContent.includes("w101: role db; w101: power-cycled")`)
	b.until(rowText("w101", ".phase") + ` === "kernel"`)
	b.until(rowText("w101", "td:nth-child(3)") + ` === "db"`)
	b.screen("operator-booting")
	if got := fmt.Sprint(f.power.did()); got != "[w101 cycle]" {
		t.Errorf("power = %s; want w101 cycle", got)
	}
	if got := eval[string](b, `document.querySelector("#chosen").textContent`); got != "none chosen" {
		t.Errorf("after it was done: %q; want none chosen", got)
	}

	// While it boots, what the operator does elsewhere on the page stays.
	b.do(chromedp.Click(chromedp.CSS("#row-w102 input[name=node]")), choose("#fleet select[name=role]", "lb"),
		chromedp.SendKeys(chromedp.CSS("#box-"+mac(0x9003).Dashed()+" input[name=name]"), "half-ty"))
	goOn <- struct{}{}
	<-goOn
	b.until(rowText("w101", ".phase") + ` === "ready"`)
	b.until(rowText("w101", ".last") + `.includes("role db: 2 services healthy")`)
	for what, js := range map[string]string{
		"the page was not loaded anew":  `window.mark === 1`,
		"the row is the same element":   `window.before === document.getElementById("row-w101")`,
		"the chosen node stays chosen":  `document.querySelector("#row-w102 input").checked && document.querySelector("#chosen").textContent === "1 chosen"`,
		"the chosen role stays":         `document.querySelector("#fleet select[name=role]").value === "lb"`,
		"what was typed stays":          `document.activeElement.value === "half-ty"`,
		"it does not say still web now": `!document.querySelector("#row-w101 .differs")`,
	} {
		if !eval[bool](b, js) {
			t.Errorf("%s: %s is false", what, js)
		}
	}
	b.screen("operator-ready")

	// What fails is told in place.
	b.do(chromedp.Click(chromedp.CSS("#row-hand input[name=node]")), chromedp.Click(chromedp.CSS("#row-w102 input[name=node]")),
		choose("#fleet select[name=role]", ""), choose("#fleet select[name=power]", "on"), chromedp.Click(chromedp.CSS("button[value=assign]")))
	b.until(`document.querySelector("#fleet .said-here").textContent.includes("hand: power on of node hand: it has no BMC")`)
	b.screen("operator-error")

	// Boxes that asked: two ports of one box become a node, a third is added.
	one := "#box-" + mac(0x9001).Dashed()
	b.do(chromedp.SendKeys(chromedp.CSS(one+" input[name=name]"), "w105"), choose(one+" select[name=role]", "web"),
		chromedp.Click(chromedp.CSS(one+" button[value=add]")), chromedp.WaitVisible(chromedp.CSS("#row-w105")))
	b.until(`!document.querySelector("` + one + `")`)
	if n := f.stored("w105"); len(n.NICs) != 2 || n.Role != "web" {
		t.Errorf("w105 = %+v; want both MACs and role web", n)
	}
	three := "#box-" + mac(0x9003).Dashed()
	b.do(chromedp.Click(chromedp.CSS(three + " button[value=join]")))
	b.until(`document.querySelector("` + three + ` .said-here").textContent.includes("half-ty")`)
	b.do(choose(three+" input[name=name]", "w105"), chromedp.Click(chromedp.CSS(three+" button[value=join]")))
	b.until(`!document.querySelector("#unknown")`)
	if n := f.stored("w105"); len(n.NICs) != 3 {
		t.Errorf("w105 = %+v; want three MACs", n)
	}

	// A node by hand.
	b.do(chromedp.Click(chromedp.CSS("#add summary")), chromedp.SendKeys(chromedp.CSS("#add-form input[name=name]"), "w101"),
		chromedp.SendKeys(chromedp.CSS("#add-form input[name=macs]"), "52:54:00:11:22:33"), chromedp.Click(chromedp.CSS("#add-form button")))
	b.until(`document.querySelector("#add-form .said-here").textContent.includes("exists already")`)
	b.do(chromedp.SendKeys(chromedp.CSS("#add-form input[name=name]"), "9"), chromedp.Click(chromedp.CSS("#add-form button")), chromedp.WaitVisible(chromedp.CSS("#row-w1019")))

	// The connection breaks, as when the server is restarted, and comes back.
	f.srv.CloseClientConnections()
	f.event(dsas.Event{Node: "w103", Kind: dsas.KindLost, Message: "no heartbeat for 30s"})
	b.until(rowText("w103", ".phase") + ` === "lost"`)
	b.until(`document.querySelector("#pulse").textContent === "live" && window.mark === 1`)

	// Its own page follows too.
	b.do(chromedp.Click(chromedp.CSS("#row-w103 a.name")), chromedp.WaitVisible(chromedp.CSS("#trouble")))
	f.event(dsas.Event{Node: "w103", Kind: dsas.KindBack})
	b.until(`!document.querySelector("#trouble") && document.querySelector("#head .phase").textContent === "ready"`)

	// Out, and in again.
	b.do(chromedp.Click(chromedp.CSS(".bar form button")), chromedp.WaitVisible(chromedp.CSS("input[name=password]")))
	b.open("/nodes/w103")
	b.do(chromedp.SendKeys(chromedp.CSS("input[name=password]"), "not this one"), chromedp.Click(chromedp.CSS("button")), chromedp.WaitVisible(chromedp.CSS("[role=alert]")))
	b.screen("login-wrong")
	if got := eval[string](b, `document.querySelector("[role=alert]").textContent`); got != "Wrong password." {
		t.Errorf("wrong password = %q; want it said", got)
	}
	b.do(chromedp.SendKeys(chromedp.CSS("input[name=password]"), password), chromedp.Click(chromedp.CSS("button")), chromedp.WaitVisible(chromedp.CSS("#facts")))
	if got := eval[string](b, `location.pathname`); got != "/nodes/w103" {
		t.Errorf("after the log-in at %s; want the page that was asked for", got)
	}
	// The session ends elsewhere: the page does not stay as if nothing were.
	if err := f.auth.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.event(dsas.Event{Node: "w103", Kind: dsas.KindLink, Message: "bond0: active port eth1 (was eth0)"})
	b.until(`location.pathname === "/login"`)
	b.quiet()
}

// TestHostileInBrowser: nothing that a box says is run.
func TestHostileInBrowser(t *testing.T) {
	f := start(t)
	const evil = `"'><script>window.pwned=1</script><img src=x onerror="window.pwned=2"><svg onload="window.pwned=3">`
	f.boot(f.node("w1", "web", 1), "web", time.Now().Add(-time.Minute), "")
	f.event(dsas.Event{Node: "w1", Kind: dsas.KindFailed, Message: evil, Detail: evil})
	u := dsas.Unknown{MAC: mac(77), Arch: evil, VendorClass: evil, GUID: evil}
	if _, err := f.store.RecordUnknown(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	b := chromium(f)
	b.browserLogIn()
	for _, path := range []string{"/", "/nodes/w1", "/events"} {
		b.open(path)
		b.until(`document.querySelector("#pulse").textContent === "live"`)
		// By the script too, which puts fetched HTML into the page.
		f.event(dsas.Event{Node: "w1", Kind: dsas.KindWarning, Message: evil + path, Detail: evil})
		b.until(`document.querySelector("#live").textContent.includes("pwned=3\">` + path + `")`)
		if eval[bool](b, `"pwned" in window || !!document.querySelector("#live script, #live img")`) {
			t.Errorf("%s: what a box said became a part of the page", path)
		}
	}
	b.screen("hostile")
	b.quiet() // the Content-Security-Policy had nothing to stop
}

// TestFilterInBrowser: what one types fits the same nodes as what the server
// filters by; those that are chosen stay so.
func TestFilterInBrowser(t *testing.T) {
	f := start(t)
	for i, n := range []struct{ name, role string }{{"w9", "web"}, {"w10", "web"}, {"w101", "db"}, {"w102", "lb"}, {"ready1", ""}} {
		f.node(n.name, n.role, i+1)
	}
	f.boot(f.stored("w10"), "web", time.Now().Add(-time.Minute), "")
	b := chromium(f)
	b.browserLogIn()
	const shown = `[...document.querySelectorAll("#nodes tbody tr")].filter((r) => !r.hidden).map((r) => r.dataset.name).join(" ")`
	for _, q := range []string{"", "w10", "W10 DB", "role:web", "role:none", "phase:ready", "ready", "!phase:ready", "w[9-10]", "w[101-102,9]", "w[09-10]", "w[1",
		"10.77.0.19", mac(4).String(), "<script>", "w[9-10],w101", "!w[9-10]", "!", "  "} {
		b.open("/")
		typed := eval[string](b, fmt.Sprintf(`(() => { const q = document.querySelector("#q"); q.value = %q; q.dispatchEvent(new InputEvent("input", {bubbles: true})); return %s; })()`, q, shown))
		b.do(chromedp.Reload()) // the URL has it
		served := eval[string](b, `document.querySelector("#q").value + ": " + `+shown)
		if want := strings.TrimSpace(q) + ": " + typed; served != want {
			t.Errorf("typed: %q; served: %q", want, served)
		}
	}
	b.open("/")
	b.do(chromedp.Click(chromedp.CSS("#row-w101 input")), chromedp.Click(chromedp.CSS(`a[data-filter="phase:ready"]`)))
	b.until(`document.querySelector("#chosen").textContent === "1 chosen, 1 of them not shown" && document.querySelector("#shown").textContent === "1 of 5"`)
	b.do(chromedp.Click(chromedp.CSS("#all")))
	b.until(`document.querySelector("#chosen").textContent === "2 chosen, 1 of them not shown"`)
	f.event(dsas.Event{Node: "w9", Kind: dsas.KindReady})
	b.until(`document.querySelector("#shown").textContent === "2 of 5" && !document.querySelector("#row-w9").hidden`)
	b.do(chromedp.Click(chromedp.CSS(`a[data-filter="phase:ready"]`)))
	b.until(`document.querySelector("#chosen").textContent === "2 chosen" && document.querySelector("#q").value === ""`)
	b.quiet()
}

// TestThousand: a thousand nodes that boot at once leave the page usable and
// the server in peace.
func TestThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("a thousand nodes")
	}
	f := start(t)
	const n = 1000
	nodes := make([]dsas.Node, n)
	for i := range nodes {
		addr := i + 16
		made, err := f.store.CreateNode(t.Context(), dsas.Node{Name: fmt.Sprintf("w%d", 1001+i), Role: "web", NICs: []dsas.NIC{{MAC: mac(2 * i)}, {MAC: mac(2*i + 1)}},
			Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(addr >> 8), byte(addr)}), 16)})
		if err != nil {
			t.Fatal(err)
		}
		nodes[i] = made
	}
	b := chromium(f)
	b.browserLogIn()
	b.until(`document.querySelector("#pulse").textContent === "live"`)
	b.do(chromedp.Click(chromedp.CSS("#row-w1003 input")), chromedp.Click(chromedp.CSS("#row-w1010 input")))
	eval[int](b, `window.mark = 1, window.row = document.querySelector("#row-w1500"), 0`)
	f.gets.mu.Lock()
	f.gets.n = 0
	f.gets.mu.Unlock()
	began := time.Now()
	events := 0
	for _, k := range []dsas.Kind{dsas.KindDHCP, dsas.KindScript, dsas.KindReady} {
		for c := range slices.Chunk(nodes, 100) {
			for _, node := range c {
				f.event(dsas.Event{Node: node.Name, Kind: k})
				events++
			}
		}
	}
	stormed := time.Since(began)
	b.until(`document.querySelector(".counts").textContent.trim() === "1000 ready"`)
	f.gets.mu.Lock()
	fetched, most := f.gets.n, f.gets.most
	f.gets.mu.Unlock()
	t.Logf("%d events in %s: %d fetches, all ready on the page after %s", events, stormed, fetched, time.Since(began))
	if most != 1 {
		t.Errorf("%d fetches at once; want 1", most)
	}
	if fetched > events/20 {
		t.Errorf("%d fetches for %d events; want them gathered", fetched, events)
	}
	if !eval[bool](b, `window.mark === 1 && window.row === document.querySelector("#row-w1500") && document.querySelector("#chosen").textContent === "2 chosen"`) {
		t.Errorf("the page was made anew, or the chosen nodes are lost")
	}
	t.Logf("filter of %d rows: %.1f ms", n, eval[float64](b, `(() => { const q = document.querySelector("#q"), t = performance.now(); q.value = "w15"; q.dispatchEvent(new InputEvent("input", {bubbles: true})); document.body.offsetHeight; return performance.now() - t; })()`))
	b.screen("thousand")
	if got := eval[string](b, `document.querySelector("#shown").textContent`); got != "100 of 1000" {
		t.Errorf("filter w15 shows %q; want 100 of 1000", got)
	}
	b.quiet()
}
