package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"dsas"
)

const pagePassword = "correct horse battery"

var setupRE = regexp.MustCompile(`http://127\.0\.0\.1:\d+/setup\?token=\S+`)

// operatorsPage is a real Chromium, logged in by the server's one-time link.
func operatorsPage(t *testing.T, r *rack) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatalf("%v; install the package chromium", err)
	}
	profile, err := os.MkdirTemp("", "dsas-e2e-chromium-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for i := 0; os.RemoveAll(profile) != nil && i < 50; i++ {
			time.Sleep(100 * time.Millisecond) // its children may still write
		}
	})
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(profile), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("headless", "new"), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.WindowSize(1400, 900))
	alloc, cancel := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(alloc)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil { // starts it, to live as long as ctx
		t.Fatal(err)
	}
	links := setupRE.FindAllString(r.serverLog(), -1)
	if len(links) == 0 {
		t.Fatalf("the server printed no set-up link:\n%s", r.serverLog())
	}
	clicks(t, ctx,
		chromedp.Navigate(links[len(links)-1]),
		chromedp.SendKeys(chromedp.CSS("input[name=password]"), pagePassword),
		chromedp.SendKeys(chromedp.CSS("input[name=again]"), pagePassword),
		chromedp.Click(chromedp.CSS("button")), chromedp.WaitVisible(chromedp.CSS("#row-w101")))
	return ctx
}

func clicks(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	for i, s := range steps {
		limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
		err := chromedp.Do(limited, s)
		cancel()
		if err != nil {
			t.Fatalf("step %d on the page: %v", i+1, err)
		}
	}
}

// toRoleByClicks makes a node something else with nothing but a browser, and
// watches the row become ready without ever loading the page again.
func (b *box) toRoleByClicks(t *testing.T, page context.Context, role string) {
	t.Helper()
	mark := b.r.mark(t, b.Name())
	pick := func(selector, value string) chromedp.Action[chromedp.Void] {
		return chromedp.Evaluate[chromedp.Void](fmt.Sprintf(
			`(() => { const e = document.querySelector(%q); e.value = %q; e.dispatchEvent(new Event("change", {bubbles: true})); })()`, selector, value))
	}
	clicks(t, page,
		chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`window.loadedOnce = true; window.phaseBefore = document.querySelector("#row-%s .phase").textContent`, b.Name())),
		chromedp.Click(chromedp.CSS("#row-"+b.Name()+" input[name=node]")), pick("select[name=role]", role), pick("select[name=power]", dsas.PowerCycle),
		chromedp.Click(chromedp.CSS("button[value=assign]")))
	// The page asks once before it takes the power from a node that serves; one
	// that does not serve is cycled at once.
	asks, went := `document.querySelector("#sure").open`, fmt.Sprintf(`document.querySelector("#row-%s .phase")?.textContent !== window.phaseBefore`, b.Name())
	if _, err := chromedp.Run(page, chromedp.Poll[bool](asks+" || "+went, chromedp.WithPollingTimeout(2*time.Minute))); err != nil {
		t.Fatalf("after Apply the page neither asks nor shows %s going: %v", b.Name(), err)
	}
	if asked, err := chromedp.Run(page, chromedp.Evaluate[bool](asks)); err != nil {
		t.Fatal(err)
	} else if asked {
		clicks(t, page, chromedp.Click(chromedp.CSS("#sure-yes")))
	}
	b.ready(t, mark)
	js := fmt.Sprintf(`window.loadedOnce && document.querySelector("#row-%[1]s .phase")?.textContent.includes("ready") && document.querySelector("#row-%[1]s").innerText.includes(%[2]q)`, b.Name(), role)
	if _, err := chromedp.Run(page, chromedp.Poll[bool](js, chromedp.WithPollingTimeout(2*time.Minute))); err != nil {
		t.Errorf("the row of %s does not show %s and ready: %v", b.Name(), role, err)
	}
	png, err := chromedp.Run(page, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.r.root, "build", "screens")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rack.png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}
