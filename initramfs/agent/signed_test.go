package agent

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/client"
	"dsas/internal/signing"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestCheckRelease: what the server says beside what is signed is not used, and a
// refusal is an event with the way out.
func TestCheckRelease(t *testing.T) {
	keys := signing.Folder(filepath.Join(t.TempDir(), "keys"))
	if _, err := keys.New(); err != nil {
		t.Fatal(err)
	}
	signers, err := keys.Signers()
	if err != nil {
		t.Fatal(err)
	}
	manifest := []byte(`{"schemaVersion":2,"config":{"digest":"` + digest + `"},"layers":[{"size":7,"digest":"` + digest + `"}],"annotations":{"dsas.role":"web","dsas.kernel.release":"6.1"}}`)
	text, err := signers[0].Sign(manifest, "web:7", time.Unix(1764370818, 0))
	if err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	for name, c := range map[string]struct {
		keys, role, release string
		signatures          []string
		want                []string // in the refusal; nil: none
	}{
		"good":                     {string(keys), "web", "web:7", []string{text}, nil},
		"no keys in the initramfs": {empty, "web", "web:7", []string{text}, []string{"release web:7 refused", "no release keys", "dsas image build web"}},
		"no folder of keys":        {empty + "/none", "web", "web:7", []string{text}, []string{"release web:7 refused", "no release keys"}},
		"not signed":               {string(keys), "web", "web:7", nil, []string{"release refused: release web:7 is not signed", "dsas image sign web:7"}},
		"another role":             {string(keys), "lb", "web:7", []string{text}, []string{"release refused", "an image of role web, not of lb"}},
		"an old one by a new name": {string(keys), "web", "web:9", []string{text}, []string{"release refused", `signed it as release "web:7"`}},
	} {
		node := client.NewNode("http://127.0.0.1:1", "boot")
		b := &boot{con: &Console{}, node: node, out: client.NewOutbox(node, nil), cfg: dsas.NodeConfig{
			Role: dsas.Role{Name: c.role}, Release: c.release, Signed: dsas.Signed{Manifest: manifest, Signatures: c.signatures},
			Manifest: dsas.Manifest{Role: c.role, Memory: 1 << 40, Parts: []dsas.Part{{Digest: "sha256:evil"}}},
		}}
		err := b.checkRelease(c.keys)
		if c.want == nil {
			if m := b.cfg.Manifest; err != nil || m.Memory != 0 || len(m.Parts) != 1 || m.Parts[0].Digest != digest || m.Digest == "" {
				t.Errorf("%s: checkRelease = %v, manifest %+v; want what is signed", name, err, m)
			}
			continue
		}
		if said := b.con.Tail(); !strings.Contains(said, string(dsas.KindPartBad)+": ") {
			t.Errorf("%s: the console says %q; want the event too", name, said)
		}
		for _, w := range c.want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: checkRelease = %v; want %q in it", name, err, w)
			}
		}
	}
}
