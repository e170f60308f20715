package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
)

// A file with cap_net_bind_service, permitted and effective, as capabilities(7)
// and linux/capability.h (struct vfs_cap_data) have it. Perl is essential in
// Debian, and makes a system call by its number: setxattr and getxattr of x86_64.
const (
	labTool        = "/usr/local/bin/lab-tool"
	netBindService = "0100000200040000000000000000000000000000"
	// Perl wants variables where the kernel wants addresses.
	capabilityOf   = `my ($f, $a) = ("` + labTool + `", "security.capability"); `
	setCapability  = `perl -e '` + capabilityOf + `my $v = pack("H*", "` + netBindService + `"); syscall(188, $f, $a, $v, 20, 0) == 0 or die "setxattr: $!"'`
	showCapability = `perl -e '` + capabilityOf + `my $v = "\0" x 64; my $n = syscall(191, $f, $a, $v, 64); $n >= 0 or die "getxattr: $!"; print unpack("H*", substr($v, 0, $n))'`
)

// testCapture changes nginx's configuration on a running node, carries that home,
// and switches the node off and on: the change is there after it, and the release
// of before can be gone back to. It leaves the role as it was.
func testCapture(t *testing.T, r *rack, b *box) {
	var before dsas.ReleaseView
	decode(t, r.dsas(t, "image", "show", r.node(t, b.Name()).Release.Running, "--json"), &before)
	const line = "# carried home by the lab"
	// A key, a log and what the server renders come along: none may be taken.
	b.ssh(t, "sed -i '1i "+line+"' /etc/nginx/nginx.conf && nginx -t -q && echo changed >>/etc/hosts && "+
		"echo '-----BEGIN PRIVATE KEY-----' >/etc/ssl/private/lab.key && echo lab >/var/log/lab.log && echo lab >/tmp/lab && "+
		"umask 077 && echo secret >/etc/lab.secret")
	// A program that may bind low ports, by a capability and without setuid.
	b.ssh(t, "cp /bin/true "+labTool+" && chmod 755 "+labTool+" && "+setCapability)
	key := filepath.Join(r.state, "operator")
	capture := func(args ...string) string {
		t.Helper()
		return r.dsas(t, append([]string{"image", "capture", b.Name(), "--config", r.conf, "--identity", key}, args...)...)
	}
	var shown struct {
		Release string
		Changes []struct {
			Path    string
			To      string
			Private bool
		}
		Built []dsas.Release
	}
	decode(t, capture("--dry-run", "--json"), &shown)
	to := map[string]string{}
	for _, c := range shown.Changes {
		to[c.Path] = c.To
		if c.Path == "/etc/lab.secret" && !c.Private {
			t.Errorf("%s, with mode 0600, is offered as any other", c.Path)
		}
	}
	if shown.Release != before.Name || to["/etc/nginx/nginx.conf"] != "files/etc/nginx/nginx.conf" {
		t.Fatalf("the node differs from %s in %v; want %s, and nginx.conf among it", shown.Release, to, before.Name)
	}
	if got, want := to[labTool], "files"+labTool; got != want {
		t.Errorf("%s would go to %q; want %q", labTool, got, want)
	}
	// Nothing that a node does by itself may look like somebody's change.
	delete(to, "/etc/nginx/nginx.conf")
	delete(to, labTool)
	delete(to, "/etc/lab.secret")
	if len(to) > 0 {
		t.Errorf("a running node seems to be changed in %v; want nothing but what was", to)
	}
	own := filepath.Join(r.state, "roles", "web")
	if _, err := os.Stat(own); err == nil {
		t.Errorf("a rehearsal has made %s", own)
	}
	defer os.RemoveAll(own)
	decode(t, capture("--yes", "--json"), &shown)
	if len(shown.Built) != 1 || shown.Built[0].Name() == before.Name {
		t.Fatalf("capture built %+v; want one release, other than %s", shown.Built, before.Name)
	}
	if text, err := os.ReadFile(filepath.Join(own, "files/etc/nginx/nginx.conf")); err != nil || !strings.HasPrefix(string(text), line+"\n") {
		t.Errorf("the definition's nginx.conf begins with %.60q, %v; want %q", text, err, line)
	}
	if text, err := os.ReadFile(filepath.Join(own, "attributes")); err != nil || !strings.Contains(string(text), strings.TrimPrefix(labTool, "/")) || !strings.Contains(string(text), "security.capability") {
		t.Errorf("the definition's attributes are %q, %v; want the capability of %s", text, err, labTool)
	}
	if _, err := os.Stat(filepath.Join(own, "files/etc/lab.secret")); err == nil {
		t.Error("--yes has taken a file that only root may read")
	}
	if v := r.node(t, b.Name()); !v.Release.Changes || v.Release.Assigned != shown.Built[0].Name() {
		t.Errorf("after the capture the node's release is %+v; want a change to %s", v.Release, shown.Built[0].Name())
	}
	b.boot(t)
	if got := b.ssh(t, "head -1 /etc/nginx/nginx.conf; cat /etc/lab.secret 2>&1 | wc -w; pidof nginx >/dev/null && echo running"); !strings.HasPrefix(got, line+"\n") || !strings.HasSuffix(got, "\nrunning") {
		t.Errorf("after a power cycle nginx.conf begins with %q; want %q, and nginx running", got, line)
	}
	if got := b.ssh(t, showCapability); got != netBindService {
		t.Errorf("after a power cycle %s has the capability %q; want %q", labTool, got, netBindService)
	}
	if out := capture("--dry-run"); !strings.Contains(out, "is as release "+shown.Built[0].Name()+" has it") {
		t.Errorf("after the boot there still differs:\n%s", out)
	}
	if list := r.dsas(t, "image", "ls", "web"); !strings.Contains(list, before.Name+" ") {
		t.Errorf("releases:\n%s\nwant %s among them still", list, before.Name)
	}
	r.dsas(t, "image", "rollback", "web")
	if v := r.node(t, b.Name()); v.Release.Assigned != before.Name {
		t.Errorf("rolled back, the node would boot %s; want %s", v.Release.Assigned, before.Name)
	}
	b.boot(t)
	if got := b.ssh(t, "head -1 /etc/nginx/nginx.conf"); got == line {
		t.Errorf("after a roll-back and a boot nginx.conf begins with %q still", got)
	}
}
