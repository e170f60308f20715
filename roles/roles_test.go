package roles

import "testing"

func TestLoadShipped(t *testing.T) {
	set, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lb", "web", "db", "inventory", "rescue"} {
		d, err := set.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Role.Packages[0]; got != "openssh-server" {
			t.Errorf("role %s: first package = %q; want openssh-server of %s", name, got, commonDir)
		}
		t.Logf("%s %s %v", name, d.Digest, d.Role.Packages)
	}
}
