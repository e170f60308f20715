package roles

import (
	"os/exec"
	"strings"
	"testing"
)

// testVRRP runs two balancers on one wire that know different sites, as two do
// while a change is on its way: one is master, the other stays backup until
// the first ends, and then takes over.
func testVRRP(t *testing.T, boxOf boxMaker) {
	a, def, in := boxOf(t, "lb") // w103
	b, _, _ := boxOf(t, "lb")
	pidB := itoa(b.init.Process.Pid)
	out, err := exec.Command("nsenter", "-t", itoa(a.init.Process.Pid), "--net", "ip", "link", "set", "peer0", "netns", pidB, "name", "wire").CombinedOutput()
	if err != nil {
		t.Fatalf("join the boxes: %v\n%s", err, out)
	}
	b.must("ip link del bond0; ip link set wire name bond0; ip addr add 10.77.0.104/24 dev bond0; ip link set bond0 up")

	const path = "/etc/keepalived/keepalived.conf"
	render := func(in Input, sites ...Site) string {
		in.Sites = nil
		for _, s := range sites {
			s.Servers = nil // no IPVS in every kernel this runs on
			in.Sites = append(in.Sites, s)
		}
		return string(renderFile(t, def, in, path))
	}
	a.put(path, render(in, in.Sites[0], in.Sites[1]))
	b.put(path, render(fleet(t, def, "w104", "10.77.0.104"), in.Sites[1]))
	// One after the other: of two that start at once, either may be master.
	first := a.start("keepalived")
	first.until("ip -brief addr show dev bond0", "10.77.0.201/32")
	second := b.start("keepalived")
	waitLogN(t, second, "BACKUP STATE", 1)
	// The master says its addresses a second time 5 s later (keepalived.conf(5),
	// vrrp_garp_master_delay): longer than a backup waits for a lost master.
	waitLogN(t, first, "Sending gratuitous ARP on bond0 for 10.77.0.200", 10)
	if log := second.log.String(); strings.Contains(log, "MASTER STATE") || !strings.Contains(log, "BACKUP STATE") {
		t.Errorf("the second balancer did not stay backup:\n%s", log)
	}
	if log := first.log.String() + second.log.String(); strings.Contains(log, "ip number count") {
		t.Errorf("advertisements were dropped:\n%s", log)
	}
	first.signal("TERM")
	first.ended()
	second.until("ip -brief addr show dev bond0", "10.77.0.200/32")
}
