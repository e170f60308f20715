package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dsas"
)

// TestKernel boots one node, for work on this alone; TestRack does the same with
// a node that it has.
func TestKernel(t *testing.T) {
	r, w := alone(t)
	testKernel(t, r, w)
}

// testKernel takes a node back to an older kernel of the mirrors, where builds
// stay, and on to the newest. Roles and node have their releases of before again
// when it ends.
func testKernel(t *testing.T, r *rack, b *box) {
	first := b.ssh(t, "uname -r")
	older := r.olderKernel(t, first)
	role := r.node(t, b.Name()).Node.Role
	was := r.current(t)
	t.Cleanup(func() { r.restoreKernel(t, was) })
	t.Logf("%s runs %s; going back to %s", b.Name(), first, older)

	up := r.updateKernel(t, "--to", "linux-image-"+older, "--dry-run")
	if v := r.node(t, b.Name()).Release; up.Kernel.Release != older || v.Changes || len(up.Releases) < len(was) {
		t.Errorf("a rehearsal says %+v, and the node's release is %+v; want %s for each role, and no change", up, v, older)
	}
	up = r.updateKernel(t, "--to", older)
	back := up.of(t, role)
	if !up.Held || up.Kernel.Release != older || back.Old != was[role] || back.New == was[role] {
		t.Errorf("kernel update --to %s says %+v; want it held, and a release after %s", older, up, was[role])
	}
	b.wouldBoot(t, back.New)
	// A build that changes nothing makes what the update made: all of it but the
	// kernel is of before, and the kernel stays.
	var built struct {
		Boot     dsas.BootSet
		Releases []dsas.Release
	}
	decode(t, r.dsas(t, "image", "build", role, "--config", r.conf, "--json"), &built)
	if built.Boot.Release != older || len(built.Releases) != 1 || built.Releases[0].Name() != back.New {
		t.Errorf("a build after it has kernel %s and makes %+v; want %s and %s", built.Boot.Release, built.Releases, older, back.New)
	}
	b.boot(t)
	b.runsKernel(t, older, back.New)

	up = r.updateKernel(t)
	on := up.of(t, role)
	if up.Held || up.Kernel.Release == older || on.Old != back.New || on.New == back.New {
		t.Errorf("kernel update says %+v; want the newest kernel, and a release after %s", up, back.New)
	}
	b.wouldBoot(t, on.New)
	b.boot(t)
	b.runsKernel(t, up.Kernel.Release, on.New)

	r.dsas(t, "image", "rollback", role)
	b.wouldBoot(t, back.New)
	if v := r.release(t, back.New); v.Boot.Release != older {
		t.Errorf("rolled back, nodes would boot kernel %s; want %s", v.Boot.Release, older)
	}
}

// kernelUpdated is what dsas kernel update --json says.
type kernelUpdated struct {
	Kernel   struct{ Release string }
	Held     bool
	Releases []struct{ Role, Old, New string }
}

func (r *rack) updateKernel(t *testing.T, args ...string) (u kernelUpdated) {
	t.Helper()
	begin := time.Now()
	defer func() { t.Logf("kernel update %s: %.1f s", strings.Join(args, " "), time.Since(begin).Seconds()) }()
	decode(t, r.dsas(t, append([]string{"kernel", "update", "--config", r.conf, "--json"}, args...)...), &u)
	return u
}

// of is the step of one role.
func (u kernelUpdated) of(t *testing.T, role string) struct{ Role, Old, New string } {
	t.Helper()
	for _, s := range u.Releases {
		if s.Role == role {
			return s
		}
	}
	t.Fatalf("kernel update says %+v; want a step of role %s", u, role)
	return struct{ Role, Old, New string }{}
}

// current is the release that nodes follow, by role.
func (r *rack) current(t *testing.T) map[string]string {
	t.Helper()
	var list []dsas.ReleaseView
	decode(t, r.dsas(t, "image", "ls", "--json"), &list)
	out := map[string]string{}
	for _, v := range list {
		if v.Current {
			out[v.Role] = v.Name
		}
	}
	return out
}

func (r *rack) release(t *testing.T, name string) (v dsas.ReleaseView) {
	t.Helper()
	decode(t, r.dsas(t, "image", "show", name, "--json"), &v)
	return v
}

// restoreKernel has roles' nodes follow what they did, and builds keep no kernel
// that was asked for.
func (r *rack) restoreKernel(t *testing.T, was map[string]string) {
	if _, err := os.Stat(filepath.Join(r.state, "locks", "kernel.lock")); err == nil { // the test has failed in between
		r.updateKernel(t, "--no-publish")
	}
	now := r.current(t)
	for role, name := range was {
		if now[role] != name {
			r.dsas(t, "image", "publish", name)
		}
	}
}

// wouldBoot fails unless a boot would give the node this release, which it does
// not run.
func (b *box) wouldBoot(t *testing.T, release string) {
	t.Helper()
	v := b.r.node(t, b.Name()).Release
	if v.Assigned != release || !v.Changes {
		t.Errorf("%s: its release is %+v; want that a boot would give it %s", b.Name(), v, release)
	}
	if out := b.r.dsas(t, "node", "ls", b.Name()); !strings.Contains(out, v.Running+", next "+release) {
		t.Errorf("node ls does not say that a boot would change %s from %s to %s:\n%s", b.Name(), v.Running, release, out)
	}
}

// runsKernel fails unless the node runs this kernel with modules of its own, from
// its initramfs (bonding) and from its image (veth, which the kernel asks for by
// itself).
func (b *box) runsKernel(t *testing.T, kernel, release string) {
	t.Helper()
	got := b.ssh(t, `uname -r; ls /usr/lib/modules; modinfo -F vermagic veth | cut -d' ' -f1; modinfo -n veth; grep -c '^bonding ' /proc/modules
grep -c 'Slave Interface' /proc/net/bonding/bond0; grep -c '^veth ' /proc/modules; ip link add lab0 type veth peer name lab1 && ip link del lab0; grep -c '^veth ' /proc/modules`)
	want := []string{kernel, kernel, kernel, "/lib/modules/" + kernel + "/kernel/drivers/net/veth.ko", "1", "2", "0", "1"}
	if lines := strings.Split(got, "\n"); !slices.Equal(lines, want) {
		t.Errorf("%s: kernel, module folders, veth's kernel and place, bonding, ports, veth before and after = %q; want %q", b.Name(), lines, want)
	}
	v := b.r.node(t, b.Name())
	if v.Status.Phase != dsas.PhaseReady || v.Release.Running != release || v.Release.Changes {
		t.Errorf("%s: %s with release %+v; want ready, with %s and nothing to change", b.Name(), v.Status.Phase, v.Release, release)
	}
}

// kernelPackageRE is a package of an ordinary kernel: linux-image-6.1.0-50-amd64,
// linux-image-6.12.41+deb13-amd64.
var kernelPackageRE = regexp.MustCompile(`^linux-image-([0-9]+\.[0-9]+\.[0-9]+(?:[-+][a-z]*[0-9]+)?-amd64)$`)

// olderKernel asks apt, with the lists that images are built from, for the oldest
// kernel of the same series as one, and sees to it that dsas offers it.
func (r *rack) olderKernel(t *testing.T, one string) string {
	t.Helper()
	cmd := exec.Command("apt-cache", "pkgnames", "linux-image-")
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(r.state, "cache", "apt", "apt.conf"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("apt-cache: %v", err)
	}
	numbers := regexp.MustCompile(`[0-9]+`)
	version := func(release string) (v []int) {
		for _, n := range numbers.FindAllString(strings.TrimSuffix(release, "-amd64"), -1) {
			i, _ := strconv.Atoi(n)
			v = append(v, i)
		}
		return v
	}
	oldest := one
	var series []string
	for _, name := range strings.Fields(string(out)) {
		m := kernelPackageRE.FindStringSubmatch(name)
		if m == nil || !slices.Equal(version(m[1])[:2], version(one)[:2]) {
			continue
		}
		series = append(series, m[1])
		if slices.Compare(version(m[1]), version(oldest)) < 0 {
			oldest = m[1]
		}
	}
	if oldest == one {
		t.Skipf("the mirrors have no ordinary kernel of the series that is older than %s, which the node runs (they have %q): there is no step between two to see", one, series)
	}
	list := r.dsas(t, "kernel", "ls", "--available", "--config", r.conf)
	for _, want := range []string{fmt.Sprintf(`(?m)^%s +[0-9]`, regexp.QuoteMeta(oldest)), fmt.Sprintf(`(?m)^%s .* web .*builds take it`, regexp.QuoteMeta(one)), `(?m) dsas kernel update takes it`} {
		if !regexp.MustCompile(want).MatchString(list) {
			t.Errorf("kernel ls --available has no line %s:\n%s", want, list)
		}
	}
	return oldest
}
