package httpboot_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/client/sign"
	"dsas/server/httpboot"
)

// served runs the listener as dsas serve does, with its own limits.
func (f *fixture) served() (addr string) {
	f.t.Helper()
	l, err := net.Listen("tcp4", "127.77.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.srv.Run(ctx, l) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run = %v; want nil", err)
		}
	})
	return l.Addr().String()
}

// raw sends bytes and gives the status of the first answer, 0 when the
// connection was closed without one.
func raw(t *testing.T, addr, send string) int {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	go io.WriteString(c, send) // the server may close before it has read all
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("no answer and no end to %.60q", send)
		}
		return 0
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if strings.Contains(string(b), "root:") || strings.Contains(string(b), "SQLite") {
		t.Errorf("%.60q was answered with a file: %.60q", send, b)
	}
	return resp.StatusCode
}

// TestBodyOfNobody: what names no boot is refused before its body is read.
func TestBodyOfNobody(t *testing.T) {
	f := open(t, nil)
	const head = "POST /node/events HTTP/1.1\r\nHost: x\r\nDsas-Boot: none\r\nContent-Length: 1048576\r\n\r\n"
	if got := raw(t, f.served(), head+"["); got != http.StatusForbidden {
		t.Errorf("an unknown boot with a body that does not come: status %d; want 403", got)
	}
}

// TestMalformed: nothing that is not a request of ours gets more than an error,
// and the server goes on.
func TestMalformed(t *testing.T) {
	f := open(t, nil)
	addr := f.served()
	host := " HTTP/1.1\r\nHost: x\r\n"
	end := "Connection: close\r\n\r\n"
	for _, c := range []struct {
		name, send string
		want       string // statuses that are right
	}{
		{"nothing but an end", "\r\n\r\n", "400 0"},
		{"binary", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400 0"},
		{"no version", "GET /boot/script.ipxe\r\n\r\n", "400"},
		{"HTTP/0.9", "GET /\n\n", "400"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 405 505 0"},
		{"no host", "GET /boot/script.ipxe HTTP/1.1\r\n\r\n", "400"},
		{"two hosts", "GET /boot/script.ipxe HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		{"unknown method", "BREW /boot/script.ipxe" + host + end, "405"},
		{"a method of 10 kB", strings.Repeat("A", 10<<10) + " /" + host + end, "400 404 405"},
		{"header too large", "GET /boot/script.ipxe" + host + "X: " + strings.Repeat("a", 64<<10) + "\r\n" + end, "431"},
		{"path too large", "GET /" + strings.Repeat("a", 64<<10) + host + end, "431"},
		{"many headers", "GET /boot/script.ipxe" + host + strings.Repeat("X: a\r\n", 20<<10) + end, "431"},
		{"header without a colon", "GET /boot/script.ipxe" + host + "nonsense\r\n" + end, "400"},
		{"a NUL in a header", "GET /boot/script.ipxe" + host + "X: \x00\r\n" + end, "400"},
		{"folded header", "GET /boot/script.ipxe" + host + "X: a\r\n b\r\n" + end, "200 400"},
		{"length and chunks", "POST /node/events" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 403"},
		{"two lengths", "POST /node/events" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", "400"},
		{"negative length", "POST /node/events" + host + "Content-Length: -1\r\n\r\n", "400"},
		{"length of 2^63", "POST /node/events" + host + "Content-Length: 9223372036854775808\r\n\r\n", "400"},
		{"broken chunk", "POST /node/events" + host + "Transfer-Encoding: chunked\r\n" + end + "zz\r\n", "400 403"},
		{"endless chunk extension", "POST /node/events" + host + "Transfer-Encoding: chunked\r\n" + end + "1;" + strings.Repeat("a", 1<<20), "400 403 0"},
		{"up", "GET /../../../../etc/passwd" + host + end, "404 400"},
		{"up, escaped", "GET /%2e%2e/%2e%2e/etc/passwd" + host + end, "404 400"},
		{"up, below a loader", "GET /nbp/..%2f..%2fdsas.db" + host + end, "404 400"},
		{"up, below a MAC", "GET /nbp/52-54-00-00-01-01/..%2f..%2f..%2fdsas.db" + host + end, "404 400"},
		{"up by a MAC", "GET /boot/..%2f..%2fdsas.db/script.ipxe" + host + end, "404 400"},
		{"backslashes", "GET /nbp/..\\..\\dsas.db" + host + end, "404 400"},
		{"double slashes", "GET //boot//script.ipxe" + host + end, "404"},
		{"bad escape", "GET /boot/%zz" + host + end, "400"},
		{"a NUL in the path", "GET /boot/\x00" + host + end, "400"},
		{"an escaped NUL in the path", "GET /nbp/snponly.efi%00" + host + end, "404 400"},
		{"another server's URL", "GET http://example.com/etc/passwd" + host + end, "404 400"},
		{"a proxy's CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1:22\r\n" + end, "404 405"},
		{"a role of 8 kB", "GET /boot/52-54-00-00-01-01/script.ipxe?role=" + strings.Repeat("a", 8<<10) + host + end, "200"},
		{"a broken query", "GET /boot/52-54-00-00-01-01/script.ipxe?role=%zz&;=&%" + host + end, "200 400"},
		{"a huge range", "GET /v2/dsas/boot/blobs/" + string(f.boot.Kernel.Digest) + host + "Range: bytes=0-18446744073709551616\r\n" + end, "416 200 206"},
		{"many ranges", "GET /v2/dsas/boot/blobs/" + string(f.boot.Kernel.Digest) + host + "Range: bytes=" + strings.TrimSuffix(strings.Repeat("0-,", 2000), ",") + "\r\n" + end, "416 200 206"},
		{"upgrade", "GET /boot/script.ipxe" + host + "Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "200"},
	} {
		if got := fmt.Sprint(raw(t, addr, c.send)); !strings.Contains(" "+c.want+" ", " "+got+" ") {
			t.Errorf("%s: status %s; want one of %s", c.name, got, c.want)
		}
	}
	if got := raw(t, addr, "GET /boot/script.ipxe"+host+end); got != 200 {
		t.Errorf("after all that, an honest request: status %d; want 200", got)
	}
	if e := f.events(dsas.KindScript, dsas.KindMenu, dsas.KindKernel); len(e) != 0 {
		t.Errorf("malformed requests made events: %+v", e)
	}
}

// TestSlowSenders: connections that say little or nothing keep nobody out, and
// are ended.
func TestSlowSenders(t *testing.T) {
	f := open(t, nil)
	addr := f.served()
	var held []net.Conn
	for i := range 200 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "%.*s", i%40, "POST /node/events HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n")
		held = append(held, c)
	}
	if got := raw(t, addr, "GET /boot/script.ipxe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); got != 200 {
		t.Errorf("beside 200 slow senders: status %d; want 200", got)
	}
	for i, c := range held {
		c.SetReadDeadline(time.Now().Add(2 * time.Minute))
		if _, err := io.Copy(io.Discard, c); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatalf("slow sender %d is held for ever", i)
			}
		}
	}
}

// TestWrongTokens: who guesses is not looked up for ever, and keeps nobody out
// but himself.
func TestWrongTokens(t *testing.T) {
	f := open(t, nil)
	guesser := addr("127.77.0.66")
	id, token := f.begin(w101, mac101)
	var denied, later int
	for i := range 300 {
		switch a := f.get(guesser, "/node/config", "Authorization", fmt.Sprintf("Bearer %032x", i)); a.code {
		case http.StatusForbidden:
			denied++
		case http.StatusTooManyRequests:
			later++
			if a.header.Get("Retry-After") == "" {
				t.Fatal("429 without Retry-After")
			}
		default:
			t.Fatalf("a wrong token = %d", a.code)
		}
	}
	if denied != 120 || later != 180 {
		t.Errorf("of 300 wrong tokens %d were looked up; want 120", denied)
	}
	if a := f.do(guesser, "POST", "/node/heartbeat", "", sign.HeaderBoot, "0123456789ab"); a.code != http.StatusTooManyRequests {
		t.Errorf("a heartbeat of a boot that is none = %d; want 429", a.code)
	}
	if cfg, err := f.node(w101, id).Config(t.Context(), token); err != nil || cfg.Node != "w101" {
		t.Errorf("beside a guesser, node config = %q, %v; want w101's", cfg.Node, err)
	}
	f.later(time.Minute)
	if a := f.get(guesser, "/node/config", "Authorization", "Bearer x"); a.code != http.StatusForbidden {
		t.Errorf("a minute later = %d; want 403", a.code)
	}
}

// TestReplayedHeartbeat: a request that somebody recorded, played again, must
// not make a dead node look alive.
func TestReplayedHeartbeat(t *testing.T) {
	f := open(t, nil)
	id, token := f.begin(w101, mac101)
	cfg, err := f.node(w101, id).Config(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	at := f.now()
	beat := func(nonce string) {
		t.Helper()
		if code := f.signed(w101, id, cfg.SessionKey, at, nonce, "POST", "/node/heartbeat", "", nil); code != http.StatusNoContent {
			t.Fatalf("heartbeat = %d; want 204", code)
		}
	}
	beat("0011223344556677")
	seen := f.status("w101").LastSeen
	f.later(5 * time.Minute)
	beat("0011223344556677")
	if now := f.status("w101").LastSeen; !now.Equal(seen) {
		t.Errorf("a heartbeat played again moved last seen from %s to %s", seen, now)
	}
	beat("8899aabbccddeeff")
	if now := f.status("w101").LastSeen; !now.After(seen) {
		t.Errorf("another heartbeat did not move last seen from %s", seen)
	}
}

// TestHostileBatches: event batches that are too large, too many or too deep.
func TestHostileBatches(t *testing.T) {
	f := open(t, nil)
	id, token := f.begin(w101, mac101)
	cfg, err := f.node(w101, id).Config(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	many, err := json.Marshal(make([]dsas.Event, 1001))
	if err != nil {
		t.Fatal(err)
	}
	deep := strings.Repeat("[", 100_000)
	for name, body := range map[string]string{
		"2 MB":               `[{"kind":"node.ready","message":"` + strings.Repeat("a", 2<<20) + `"}]`,
		"1001 events":        string(many),
		"deep":               deep + strings.Repeat("]", 100_000),
		"deep, open":         deep,
		"deep detail":        `[{"kind":"node.inventory","detail":"` + strings.Repeat("[", 15000) + strings.Repeat("]", 1000) + `"}]`,
		"an object":          `{"kind":"node.ready"}`,
		"a kind of 1 MB":     `[{"kind":"` + strings.Repeat("k", 900_000) + `"}]`,
		"an operator's":      `[{"kind":"power","message":"off"}]`,
		"the server's":       `[{"kind":"node.assigned","message":"role wipe"}]`,
		"a pick":             `[{"kind":"boot.menu","message":"role wipe picked"}]`,
		"numbers out of all": `[{"kind":"node.ready","bytes":1e999}]`,
		"two values":         `[][]`,
		"nothing":            ``,
	} {
		nonce := sign.NewNonce()
		if code := f.signed(w101, id, cfg.SessionKey, f.now(), nonce, "POST", "/node/events", body, nil); code != http.StatusBadRequest {
			t.Errorf("%s: %d; want 400", name, code)
		}
	}
	if e := f.events(dsas.KindReady, dsas.KindInventory, dsas.KindPower, dsas.KindAssigned, dsas.KindMenu); len(e) != 0 {
		t.Errorf("refused batches left %d events: %+v", len(e), e[0])
	}
}

// TestBootFlood: one address that plays many boxes.
func TestBootFlood(t *testing.T) {
	f := open(t, func(c *httpboot.Config) { c.OtherDHCP, c.Discovery = true, true })
	begun := 0
	for i := range 200 {
		if _, token := tokenIn(f.get(addr("127.77.0.67"), scriptPath(dsas.MAC{0x52, 0x54, 0, 0xcc, 0, byte(i)})).body); token != "" {
			begun++
		}
	}
	if begun != 60 {
		t.Errorf("one address began %d boots; want 60", begun)
	}
	f.begin(w101, mac101) // a node has its own
}
