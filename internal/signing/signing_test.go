package signing

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"dsas"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func manifest(role string) []byte {
	return []byte(`{"schemaVersion":2,"config":{"digest":"` + digest + `"},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd","size":7,"digest":"` +
		digest + `","annotations":{"dsas.title":"base","dsas.unpacked":"4096"}}],"annotations":{"dsas.role":"` + role + `","dsas.kernel.release":"6.1","dsas.memory":"1048576"}}`)
}

func newKey(t *testing.T, f Folder) Signer {
	t.Helper()
	if _, err := f.New(); err != nil {
		t.Fatal(err)
	}
	all, err := f.Signers()
	if err != nil || len(all) == 0 {
		t.Fatalf("Signers() = %v, %v; want one", all, err)
	}
	return all[len(all)-1]
}

func folder(t *testing.T) Folder { return Folder(filepath.Join(t.TempDir(), "keys")) }

func sign(t *testing.T, s Signer, m []byte, release string) string {
	t.Helper()
	text, err := s.Sign(m, release, time.Unix(1764370818, 0))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestCheck(t *testing.T) {
	a, b := newKey(t, folder(t)), newKey(t, folder(t))
	web, db := manifest("web"), manifest("db")
	good, byB := sign(t, a, web, "web:7"), sign(t, b, web, "web:7")
	one, both := Keys{a.Key()}, Keys{b.Key(), a.Key()}
	changed := []byte(strings.Replace(string(web), `"size":7`, `"size":8`, 1))
	comment := strings.Replace(good, "release:web:7", "release:web:9", 1)
	for name, c := range map[string]struct {
		keys       Keys
		manifest   []byte
		signatures []string
		release    string
		want       string // in the error; "": it is good
	}{
		"good":                                {one, web, []string{good}, "web:7", ""},
		"one of two keys":                     {both, web, []string{good}, "web:7", ""},
		"of two signatures one by a known":    {one, web, []string{byB, good}, "web:7", ""},
		"beside one that is damaged":          {one, web, []string{"nonsense", good}, "web:7", ""},
		"no key":                              {nil, web, []string{good}, "web:7", "no release key that is trusted"},
		"no signature":                        {one, web, nil, "web:7", "is not signed"},
		"another key":                         {one, web, []string{byB}, "web:7", "by key " + b.Key().KeyID() + ", which is not trusted here (trusted: " + a.Key().KeyID() + ")"},
		"a manifest that was changed":         {one, changed, []string{good}, "web:7", "is not of this manifest"},
		"a manifest cut off":                  {one, web[:len(web)-1], []string{good}, "web:7", "is not of this manifest"},
		"no manifest":                         {one, nil, []string{good}, "web:7", "is not of this manifest"},
		"a signature cut off":                 {one, web, []string{good[:len(good)/2]}, "web:7", "cannot be read"},
		"an empty one":                        {one, web, []string{""}, "web:7", "cannot be read"},
		"another release's":                   {one, web, []string{good}, "web:9", `signed it as release "web:7"`},
		"its comment changed":                 {one, web, []string{comment}, "web:9", "is not of this manifest"},
		"another role's":                      {one, db, []string{sign(t, a, db, "web:7")}, "web:7", "an image of role db, not of web"},
		"something else, signed as a release": {one, []byte("{}"), []string{sign(t, a, []byte("{}"), "web:7")}, "web:7", "its manifest is not"},
		"a file that the key signed": {one, web, []string{string(minisign.Sign(a.key, web))}, "web:7",
			"is not of this manifest"}, // not hashed first, as old minisigns did
	} {
		m, st, err := c.keys.Check(dsas.Signed{Manifest: c.manifest, Signatures: c.signatures}, c.release, "web")
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: Check = %v; want it taken", name, err)
		case c.want == "":
			if m.Role != "web" || m.Kernel != "6.1" || m.Memory != 1<<20 || len(m.Parts) != 1 || m.Parts[0].Digest != digest || m.Parts[0].Size != 7 || m.Parts[0].Unpacked != 4096 || m.Parts[0].Title != "base" {
				t.Errorf("%s: manifest %+v; want what stands in it", name, m)
			}
			if st.Release != "web:7" || st.Time.Unix() != 1764370818 || st.Key != a.Key().KeyID() {
				t.Errorf("%s: statement %+v; want web:7 by key %s", name, st, a.Key().KeyID())
			}
		case !errors.Is(err, dsas.ErrDenied) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.release):
			t.Errorf("%s: Check = %v; want ErrDenied with %q", name, err, c.want)
		}
	}
}

// TestMinisign: minisign itself takes what we write.
func TestMinisign(t *testing.T) {
	prog, err := exec.LookPath("minisign")
	if err != nil {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal("minisign is missing")
		}
		t.Skip("minisign is missing")
	}
	f := folder(t)
	s := newKey(t, f)
	dir := t.TempDir()
	file := filepath.Join(dir, "manifest")
	if err := os.WriteFile(file, manifest("web"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+".minisig", []byte(sign(t, s, manifest("web"), "web:7")), 0o644); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(string(f), s.Key().KeyID())
	out, err := exec.Command(prog, "-V", "-H", "-m", file, "-p", base+PubExt).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "release:web:7") {
		t.Errorf("minisign -V: %v\n%s\nwant it verified, and the release named", err, out)
	}
	// And the other way round: signed by minisign with our key, and our comment.
	if out, err := exec.Command(prog, "-S", "-m", file, "-s", base+KeyExt, "-t", "timestamp:1764370818\trelease:web:7").CombinedOutput(); err != nil {
		t.Fatalf("minisign -S: %v\n%s", err, out)
	}
	text, err := os.ReadFile(file + ".minisig")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := (Keys{s.Key()}).Check(dsas.Signed{Manifest: manifest("web"), Signatures: []string{string(text)}}, "web:7", "web"); err != nil {
		t.Errorf("Check of minisign's signature = %v; want it taken", err)
	}
}

func TestFolder(t *testing.T) {
	f := folder(t)
	if list, err := f.List(); err != nil || len(list) != 0 {
		t.Errorf("List() of a folder that is not there = %v, %v; want none", list, err)
	}
	if ks, err := ReadKeys(string(f)); err != nil || len(ks) != 0 {
		t.Errorf("ReadKeys of a folder that is not there = %v, %v; want none", ks, err)
	}
	first, second := newKey(t, f), newKey(t, f)
	ks, err := ReadKeys(string(f))
	if err != nil || len(ks) != 2 || len(ks.Both(Keys{second.Key()})) != 1 {
		t.Errorf("ReadKeys = %v, %v; want both", ks, err)
	}
	key := filepath.Join(string(f), first.Key().KeyID()+KeyExt)
	if fi, err := os.Stat(key); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("private key: %v, %v; want mode 0600", fi, err)
	}
	// A private key that others may read signs nothing more.
	if err := os.Chmod(key, 0o640); err != nil {
		t.Fatal(err)
	}
	if s, err := f.Signers(); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("Signers() with a key of mode 0640 = %v, %v; want ErrInvalid and the way out", s, err)
	}
	// Kept elsewhere, its public half is still trusted.
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if s, err := f.Signers(); err != nil || len(s) != 1 || !s[0].Key().Equal(second.Key().PublicKey) {
		t.Errorf("Signers() = %v, %v; want the second alone", s, err)
	}
	if err := f.Remove(first.Key().KeyID()); err != nil {
		t.Error(err)
	}
	if err := f.Remove(first.Key().KeyID()); !errors.Is(err, dsas.ErrNotFound) {
		t.Errorf("Remove again = %v; want ErrNotFound", err)
	}
	// One that cannot be read is told, and not passed over.
	pub := filepath.Join(string(f), second.Key().KeyID()+PubExt)
	if err := os.WriteFile(pub, []byte("RWQ broken"), 0o644); err != nil {
		t.Fatal(err)
	}
	if ks, err := ReadKeys(string(f)); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), pub) {
		t.Errorf("ReadKeys with a broken key = %v, %v; want ErrInvalid and the file", ks, err)
	}
	// A folder that others may write to decides nothing.
	if err := os.Chmod(string(f), 0o777); err != nil {
		t.Fatal(err)
	}
	if l, err := f.List(); !errors.Is(err, dsas.ErrInvalid) || !strings.Contains(err.Error(), "chmod go-w") {
		t.Errorf("List() of a folder of mode 0777 = %v, %v; want ErrInvalid and the way out", l, err)
	}
}
