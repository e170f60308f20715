package dhcp

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"dsas"
	"dsas/server/dhcp/dhcptest"
)

// With -update the answers of testdata/answers are written anew; with
// -update-captures testdata/clients too, by running the clients (root).
var (
	update         = flag.Bool("update", false, "write testdata/answers anew")
	updateCaptures = flag.Bool("update-captures", false, "capture testdata/clients anew")
)

// capture is a request as a real program or firmware sent it.
type capture struct {
	name    string
	payload []byte
}

// captures reads what testdata holds: clients', and firmware's to port 67.
func captures(t testing.TB) (out []capture) {
	t.Helper()
	for _, pattern := range []string{"testdata/clients/*.hex", "testdata/proxy/*.hex"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			fields := strings.Fields(string(text))
			if strings.Contains(pattern, "proxy") { // port and sender come first
				if fields[0] != "67" {
					continue
				}
				fields = fields[2:]
			}
			b, err := hex.DecodeString(strings.Join(fields, ""))
			if err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			out = append(out, capture{strings.TrimSuffix(filepath.Base(f), ".hex"), b})
		}
	}
	return out
}

// TestGoldens: what real clients and firmware asked gets the same answer, field
// by field, from a node's reservation and as a stranger.
func TestGoldens(t *testing.T) {
	list := captures(t)
	if len(list) < 10 {
		t.Fatalf("%d captures in testdata; want those of clients and firmware", len(list))
	}
	for _, c := range list {
		t.Run(c.name, func(t *testing.T) {
			var text strings.Builder
			for _, known := range []bool{true, false} {
				req, err := parse(c.payload)
				if err != nil {
					t.Fatal(err)
				}
				b := newBench(t)
				b.l = testLink(full())
				b.store = dhcptest.New()
				b.store.Publish(bootSet, "web")
				b.s.Store, b.s.Releases = b.store, b.store
				what := "a stranger"
				if mac, ok := dsas.MACFrom(req.ClientHWAddr); known && ok {
					what = "node w101"
					b.store.AddNode(dsas.Node{Name: "w101", NICs: []dsas.NIC{{MAC: mac}}, Address: netip.MustParsePrefix("10.77.0.101/24"), Role: "web"})
				}
				r, err := b.s.answer(context.Background(), new(slate), b.l, req, false)
				fmt.Fprintf(&text, "%s of %s:\n", req.MessageType(), what)
				switch {
				case r == nil:
					fmt.Fprintf(&text, "nothing (%v)\n", err)
				default:
					wire := padBootFile(r.msg.ToBytes())
					back, err := dhcpv4.FromBytes(wire)
					if err != nil {
						t.Fatal(err)
					}
					fmt.Fprintf(&text, "to %s %s, %d bytes\n%s\n", r.to, r.hw, len(wire), back.Summary())
				}
			}
			name := filepath.Join("testdata/answers", c.name+".golden")
			if *update {
				if err := os.WriteFile(name, []byte(text.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatalf("%v; write it with -update", err)
			}
			if got := text.String(); got != string(want) {
				t.Errorf("the answer to %s is\n%s\nwant\n%s", c.name, got, want)
			}
		})
	}
}

// TestCaptureClients writes testdata/clients.
func TestCaptureClients(t *testing.T) {
	if !*updateCaptures {
		t.Skip("only with -update-captures")
	}
	dir := t.TempDir()
	hook := filepath.Join(dir, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, command := range map[string]string{
		"udhcpc":   "udhcpc -f -q -n -t 5 -T 3 -i nic -s " + hook,
		"dhclient": "dhclient -1 -v -sf " + hook + " -lf " + dir + "/leases -cf " + conf + " -pf " + dir + "/pid nic",
		"dhcpcd":   "dhcpcd -4 -1 -B -t 30 --noarp -i dhcpcd-9.4.1:Linux-6.1.0-118-amd64:x86_64:AuthenticAMD -f " + conf + " -c /bin/true nic",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSegment(t)
			if out, err := s.run(strings.Fields(command)...); err != nil {
				t.Fatalf("%s: %v: %s", name, err, out)
			}
			if name == "dhclient" {
				s.run("dhclient", "-r", "-sf", hook, "-lf", dir+"/leases", "-cf", conf, "-pf", dir+"/pid", "nic")
			}
			s.heardMu.Lock()
			for _, b := range s.heard {
				req, err := parse(b)
				if err != nil {
					t.Fatal(err)
				}
				text := hex.EncodeToString(b)
				var lines []string
				for ; len(text) > 64; text = text[64:] {
					lines = append(lines, text[:64])
				}
				lines = append(lines, text, "")
				file := fmt.Sprintf("testdata/clients/%s-%s.hex", name, typeName(req.MessageType()))
				if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			s.heardMu.Unlock()
		})
	}
}
