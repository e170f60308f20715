package main

import (
	"os"
	"path/filepath"
	"testing"

	"dsas/internal/signing"
)

// TestCheckForServer: what root may read is not what the service may.
func TestCheckForServer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it gives files to another user")
	}
	top, err := os.MkdirTemp("", "dsas-check-test-") // t.TempDir's parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	const nobody = 65534
	loaders, keys := filepath.Join(top, "state", "loaders"), filepath.Join(top, "keys")
	release := filepath.Join(top, "release")
	pub := filepath.Join(release, "01"+signing.PubExt)
	for _, err := range []error{os.MkdirAll(release, 0o755), os.WriteFile(pub, nil, 0o644), os.WriteFile(filepath.Join(release, "01"+signing.KeyExt), nil, 0o600), os.Chmod(top, 0o755), os.MkdirAll(loaders, 0o755), os.Chown(filepath.Join(top, "state"), nobody, nobody),
		os.WriteFile(keys, nil, 0o644), os.WriteFile(filepath.Join(loaders, "shimx64.efi"), nil, 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func() *checker {
		c := &checker{cfg: config{State: filepath.Join(top, "state"), Roles: filepath.Join(top, "roles"), Keys: release, AuthorizedKeys: keys}}
		c.forServer()
		return c
	}
	check().expect(t, "files for the server", levelOK)
	for _, c := range []struct {
		path string
		mode os.FileMode
		uid  int
		want level
	}{
		{keys, 0o600, 0, levelFail},
		{keys, 0o640, 0, levelFail},
		{keys, 0o600, nobody, levelOK},
		{filepath.Join(loaders, "shimx64.efi"), 0o600, 0, levelFail},
		{loaders, 0o744, 0, levelFail},
		{pub, 0o600, 0, levelFail},
		{top, 0o700, 0, levelFail},
	} {
		before, err := os.Stat(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(c.path, c.uid, 0); err != nil {
			t.Fatal(err)
		}
		os.Chmod(c.path, c.mode)
		words := []string{c.path}
		if c.want == levelOK {
			words = nil
		}
		check().expect(t, "files for the server", c.want, words...)
		os.Chmod(c.path, before.Mode())
		os.Chown(c.path, 0, 0)
	}
	r := reader{name: "dsas", uid: nobody, hidden: []string{top}}
	if why := r.reads(keys); why == "" {
		t.Error("a file that the unit hides may be read; want a reason")
	}
}
