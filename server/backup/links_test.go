package backup

import (
	"errors"
	"testing"

	"dsas"
)

func TestCheckLinks(t *testing.T) {
	file := func(name, link string) File { return File{Name: name, Link: link} }
	for _, c := range []struct {
		name  string
		files []File
		ok    bool
	}{
		{"none", []File{file("state/key", ""), file("roles/a/role.yaml", "")}, true},
		{"a role's", []File{file("roles/a/files/etc/x", "/etc/y"), file("roles/a/files/etc/xy", "")}, true},
		{"the key", []File{file("state/key", "/etc/shadow")}, false},
		{"a file below it", []File{file("roles/a", "/etc"), file("roles/a/passwd", "")}, false},
		{"a file below it, before", []File{file("roles/a/b/passwd", ""), file("roles/a", "/etc")}, false},
		{"with content", []File{{Name: "roles/a", Link: "/etc", Size: 1}}, false},
	} {
		if err := checkLinks(c.files); c.ok != (err == nil) || err != nil && !errors.Is(err, dsas.ErrInvalid) {
			t.Errorf("%s: checkLinks = %v; want accepted: %t", c.name, err, c.ok)
		}
	}
}
