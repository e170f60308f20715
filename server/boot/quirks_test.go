package boot

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"dsas"
)

// TestQuirks asks what each firmware of the table asks.
func TestQuirks(t *testing.T) {
	seen := map[string]bool{}
	for _, q := range Quirks() {
		if q.ID == "" || q.Who == "" || q.Does == "" || q.Answer == "" || len(q.Sources) == 0 || seen[q.ID] {
			t.Errorf("quirk %q: something is missing, or its name is taken: %+v", q.ID, q)
		}
		seen[q.ID] = true
		if q.Asks == nil {
			if q.Held == "" {
				t.Errorf("quirk %s: no test holds it", q.ID)
			}
			continue
		}
		r := *q.Asks
		r.Step, r.MAC, r.Server, r.Release = StepDHCP, mac, server, rel
		if r.Node == nil {
			r.Node = node("")
		}
		p := Decide(r)
		if p.Action != q.Gets || p.Loader != q.Loader {
			t.Errorf("quirk %s: Decide = %s %q (%s); want %s %q", q.ID, p.Action, p.Loader, p.Reason, q.Gets, q.Loader)
		}
	}
}

// TestNoQuirk: what looks like one and is none.
func TestNoQuirk(t *testing.T) {
	for _, guid := range []string{
		strings.Repeat("\x00", 16), strings.Repeat("\xff", 16), // boards that were never given a UUID
		"ABCDABCDABCDABCE", "", "RPi4", "xRPi4ABCDEFGHIJK",
	} {
		r := Request{Step: StepDHCP, MAC: mac, HasArch: true, VendorClass: biosPXE, GUID: []byte(guid), Node: node(""), Server: server, Release: rel}
		if p := Decide(r); p.Loader != FileUndionly {
			t.Errorf("option 97 %q: %s %q (%s); want %s", guid, p.Action, p.Loader, p.Reason, FileUndionly)
		}
		// A UEFI box with the same is no Raspberry Pi either.
		r.Arch, r.GUID = 7, []byte("RPi4RPi4RPi4RPi4")
		if p := Decide(r); p.Loader != FileSNPOnly {
			t.Errorf("x64 UEFI with a Pi's option 97: %s %q; want %s", p.Action, p.Loader, FileSNPOnly)
		}
	}
}

func TestHTTPClientGetsNoTFTPPath(t *testing.T) {
	for _, class := range []string{"HTTPClient", "HTTPClient:Arch:00016:UNDI:003001", "HTTPClient:Arch:00015:UNDI:003001"} {
		for _, arch := range []dsas.Arch{15, 16, 18, 19, 20} {
			p := Decide(Request{Step: StepDHCP, MAC: mac, HasArch: true, Arch: arch, VendorClass: class, Node: node(""), Server: server, Release: rel})
			if p.BootFile != "" && !strings.HasPrefix(p.BootFile, "http://") {
				t.Errorf("%s, option 93 %d: boot file %q; want a URL or none", class, arch, p.BootFile)
			}
		}
	}
}

// TestQuirksDocument: docs/quirks.md is this table. UPDATE_GOLDEN=1 writes it.
func TestQuirksDocument(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Quirks\n\nWhat boot firmware and loaders do that no one would guess, what the server makes of it, and where it\n" +
		"can be read. Written from the table in `server/boot/quirks.go` (`UPDATE_GOLDEN=1 go test ./server/boot`),\n" +
		"which is tested against the decision itself.\n\n| who | does | our answer | held by | sources |\n|---|---|---|---|---|\n")
	for _, q := range Quirks() {
		held := q.Held
		if q.Asks != nil {
			held = "TestQuirks"
		}
		var src []string
		for _, s := range q.Sources {
			if rest, ok := strings.CutPrefix(s, github); ok {
				s = fmt.Sprintf("[%s](%s)", rest, s)
			}
			src = append(src, s)
		}
		fmt.Fprintf(&b, "| <a id=%q></a>%s | %s | %s | %s | %s |\n", q.ID, q.Who, q.Does, q.Answer, held, strings.Join(src, "; "))
	}
	const path = "../../docs/quirks.md"
	if update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != b.String() {
		t.Errorf("docs/quirks.md is not the table's (%v); write it with UPDATE_GOLDEN=1 go test ./server/boot", err)
	}
}
