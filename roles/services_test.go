package roles

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dsas"
)

// TestServicesRun starts every shipped service under its own run script, on a
// real Debian root, checks it as the node would and stops it.
func TestServicesRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a root of about 530 MB")
	}
	needTools(t, "mmdebstrap", "nsenter", "ip", "ssh", "ssh-keygen")
	set := shippedSet(t)
	defs := set.Definitions()
	root := buildRoot(t, get(t, set, "lb"), get(t, set, "web"), get(t, set, "db"))
	// No secrets in an image: what the packages made goes, as imagebuild does it.
	for _, d := range defs {
		for _, p := range d.Role.Remove {
			os.RemoveAll(filepath.Join(root, p))
			os.MkdirAll(filepath.Join(root, p), 0o755)
		}
	}
	keys, _ := filepath.Glob(filepath.Join(root, "etc/ssh/ssh_host_*"))
	for _, k := range keys {
		os.Remove(k)
	}
	boxOf := func(t *testing.T, role string) (*box, Definition, Input) {
		def := get(t, set, role)
		in := fleet(t, def, "w103", "10.77.0.103")
		return newBox(t, root, def, in), def, in
	}
	t.Run("nginx", func(t *testing.T) { testNginx(t, boxOf) })
	t.Run("sshd", func(t *testing.T) { testSSHD(t, boxOf) })
	t.Run("keepalived", func(t *testing.T) { testKeepalived(t, boxOf) })
	t.Run("vrrp", func(t *testing.T) { testVRRP(t, boxOf) })
	t.Run("mariadb", func(t *testing.T) { testMariaDB(t, boxOf) })
	t.Run("report", func(t *testing.T) { testReport(t, boxOf) })
}

type boxMaker func(t *testing.T, role string) (*box, Definition, Input)

func testNginx(t *testing.T, boxOf boxMaker) {
	b, def, _ := boxOf(t, "web")
	s := b.start("nginx")
	s.healthy(def)
	if out := b.must(httpGet("http://10.77.0.103/")); !strings.Contains(out, "<h1>w103</h1>") || !strings.Contains(out, "role web, address 10.77.0.103") {
		t.Errorf("GET / = %s; want the page of w103", out)
	}
	// Requests are in the log, health checks are not, and neither in a file.
	waitLog(t, s, "GET / HTTP")
	if strings.Contains(s.log.String(), "/healthz") {
		t.Errorf("the log has health checks:\n%s", s.log)
	}
	if out := b.must("find /var/log/nginx -type f -size +0"); out != "" {
		t.Errorf("log files in memory: %s", out)
	}
	reload := ""
	for _, d := range def.Role.Services {
		if d.Name == "nginx" {
			reload = d.Reload
		}
	}
	b.must(reload)
	s.healthy(def)
	s.signal("TERM")
	if err := s.ended(); err != nil {
		t.Errorf("nginx after TERM: %v", err)
	}
	// A killed master leaves its workers, which hold the port.
	s = b.start("nginx")
	s.healthy(def)
	s.signal("KILL")
	s.ended()
	if out := b.must("pgrep -x nginx"); out == "" {
		t.Error("no worker outlived its master: this test tests nothing")
	}
	s = b.start("nginx")
	s.until("test $(pgrep -o -x nginx) = $(cat /run/nginx.test-pid) && "+httpGet("http://127.0.0.1/healthz"), "200")
	if !strings.Contains(s.log.String(), "an earlier master") {
		t.Errorf("log = %q; want it to say that workers were ended", s.log)
	}
}

// waitLog waits for text in the service's log.
func waitLog(t *testing.T, s *service, text string) {
	t.Helper()
	waitLogN(t, s, text, 1)
}

// waitLogN waits until text is in the service's log n times.
func waitLogN(t *testing.T, s *service, text string, n int) {
	t.Helper()
	for range 600 {
		if strings.Count(s.log.String(), text) >= n {
			return
		}
		s.until("sleep 0.1", "")
	}
	t.Fatalf("not %d times %q in the log:\n%s", n, text, s.log)
}

func testSSHD(t *testing.T, boxOf boxMaker) {
	b, def, _ := boxOf(t, "rescue")
	s := b.start("sshd")
	if err := s.ended(); err == nil || !strings.Contains(s.log.String(), "host_ed25519_key is missing") {
		t.Errorf("sshd without a host key: %v, log %q; want a failure that says so", err, s.log)
	}

	dir := t.TempDir()
	gen := func(name string) (private, public string) {
		p := filepath.Join(dir, name)
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", p).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
		priv, _ := os.ReadFile(p)
		pub, _ := os.ReadFile(p + ".pub")
		return string(priv), string(pub)
	}
	hostKey, hostPub := gen("host")
	_, operator := gen("operator")
	gen("stranger")
	b.put("/etc/ssh/ssh_host_ed25519_key", hostKey)
	b.put("/root/.ssh/authorized_keys", operator)
	b.must("chmod 0644 /etc/ssh/ssh_host_ed25519_key; chmod 0700 /root/.ssh; chmod 0600 /root/.ssh/authorized_keys")
	s = b.start("sshd")
	s.healthy(def)

	known := filepath.Join(dir, "known")
	if err := os.WriteFile(known, []byte("10.77.0.103 "+hostPub), 0o600); err != nil {
		t.Fatal(err)
	}
	// The client runs on the host's programs, in the box's network.
	login := func(opts ...string) (string, error) {
		args := append([]string{"-t", itoa(b.init.Process.Pid), "--net", "ssh", "-F", "none",
			"-o", "UserKnownHostsFile=" + known, "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes",
			"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "ConnectTimeout=20"}, opts...)
		out, err := exec.Command("nsenter", append(args, "root@10.77.0.103", "cat /etc/hostname")...).CombinedOutput()
		return string(out), err
	}
	if out, err := login("-i", filepath.Join(dir, "operator")); err != nil || out != "w103\n" {
		t.Errorf("ssh with the operator's key: %q, %v; want w103", out, err)
	}
	if out, err := login("-i", filepath.Join(dir, "stranger")); err == nil || !strings.Contains(out, "Permission denied (publickey)") {
		t.Errorf("ssh with a stranger's key: %q, %v; want a refusal that offers keys only", out, err)
	}
	if out, err := login("-o", "PubkeyAuthentication=no"); err == nil || !strings.Contains(out, "(publickey)") {
		t.Errorf("ssh without a key: %q, %v; want a refusal that offers keys only", out, err)
	}
	s.signal("TERM")
	s.ended()
}

func testKeepalived(t *testing.T, boxOf boxMaker) {
	b, def, in := boxOf(t, "lb")
	const path = "/etc/keepalived/keepalived.conf"
	check := "keepalived --config-test --use-file=" + path
	variants := map[string]func(*Input){
		"fleet":       func(*Input) {},
		"no sites":    func(in *Input) { in.Sites = nil },
		"alone":       func(in *Input) { in.Nodes = nil },
		"no servers":  func(in *Input) { in.Sites = in.Sites[2:] },
		"odd path":    func(in *Input) { in.Sites = in.Sites[1:2]; in.Sites[0].Check.Path = "/a?b=c&d=%20~x;y" },
		"every kind":  func(in *Input) { in.Sites = everyScheduler(in.Sites[1]) },
		"many peers":  func(in *Input) { in.Nodes = append(in.Nodes, manyPeers(40)...) },
		"sample full": func(i *Input) { *i = sampleInputs(def.Role)[1] },
	}
	for name, change := range variants {
		v := fleet(t, def, "w103", "10.77.0.103")
		change(&v)
		b.put(path, string(renderFile(t, def, v, path)))
		// A warning counts: keepalived's exit code of a test does not tell one
		// from an error.
		if out, err := b.sh(check); err != nil || out != "" {
			t.Errorf("%s: %s: %v\n%s", name, check, err, out)
		}
	}
	// The test can fail.
	b.put(path, "vrrp_instance x {\n bogus\n}\n")
	if out, err := b.sh(check); err == nil {
		t.Errorf("%s of nonsense: no error\n%s", check, out)
	}

	// Run it with VRRP alone: this kernel need not have IPVS. Alone and with
	// nobody to take over from, it becomes master and holds the addresses.
	render := func(n int) string {
		v := in
		v.Nodes = nil
		v.Sites = nil
		for _, s := range in.Sites[:n] {
			s.Servers = nil
			v.Sites = append(v.Sites, s)
		}
		return string(renderFile(t, def, v, path))
	}
	b.put(path, render(0))
	s := b.start("keepalived")
	s.until("kill -0 $(cat /run/keepalived.pid)", "")
	b.put(path, render(1))
	var reload string
	for _, d := range def.Role.Services {
		if d.Name == "keepalived" {
			reload = d.Reload
		}
	}
	b.must(reload)
	s.until("ip -brief addr show dev bond0", "10.77.0.201/32")
	b.put(path, render(2))
	b.must(reload)
	s.until("ip -brief addr show dev bond0", "10.77.0.200/32")
	// What does not parse is refused, and the running configuration stays.
	b.put(path, "vrrp_instance x {\n bogus\n}\n")
	if out, err := b.sh(reload); err == nil {
		t.Errorf("reload of nonsense: no error\n%s", out)
	}
	if out := b.must("ip -brief addr show dev bond0"); !strings.Contains(out, "10.77.0.200/32") || !strings.Contains(out, "10.77.0.201/32") {
		t.Errorf("addresses after a refused reload: %s; want both", out)
	}
	b.put(path, render(2))
	s.signal("TERM")
	s.ended()
	if out := b.must("ip -brief addr show dev bond0"); strings.Contains(out, "10.77.0.20") {
		t.Errorf("addresses after the end: %s; want no service address", out)
	}
}

func everyScheduler(s Site) []Site {
	var out []Site
	for i, sched := range dsas.Schedulers() {
		c := s
		c.Name, c.Scheduler, c.Port = "s-"+sched, sched, uint16(8000+i)
		out = append(out, c)
	}
	return out
}

func manyPeers(n int) []Peer {
	var out []Peer
	for i := range n {
		out = append(out, peer("p"+itoa(i), "10.77.0."+itoa(i+1), "lb"))
	}
	return out
}

func testMariaDB(t *testing.T, boxOf boxMaker) {
	b, def, _ := boxOf(t, "db")
	refuses := func(says string, env ...string) {
		t.Helper()
		s := b.start("mariadb", env...)
		if err := s.ended(); err == nil || !strings.Contains(s.log.String(), says) {
			t.Errorf("mariadb with %v: %v, log %q; want a failure that says %q", env, err, s.log, says)
		}
		if out := b.must("ls -A /var/lib/mysql"); out != "" && says != "did not make" {
			t.Errorf("a refused start left files: %s", out)
		}
	}
	const dev = "DBDEVICE=/dev/vda"
	refuses("no DBDEVICE")
	refuses("no DBDEVICE", "DBDEVICE=")
	refuses("/dev/vda is not mounted", dev)

	b.must("mount --bind /disk /var/lib/mysql")
	b.must("touch /var/lib/mysql/ibdata1")
	refuses("did not make", dev)
	b.must("rm /var/lib/mysql/ibdata1")

	// Half a first boot, and what mkfs leaves: neither is in the way.
	b.must("mkdir -p /var/lib/mysql/data.new/mysql /var/lib/mysql/lost+found")
	s := b.start("mariadb", dev)
	s.healthy(def)
	sql := func(q string) string { return b.must(`mariadb --batch --skip-column-names -e "` + q + `"`) }
	sql("create database shop; create table shop.t (n int primary key) engine=innodb; insert into shop.t values (42)")
	if out := sql("select concat(@@datadir, ' ', @@bind_address, ' ', @@innodb_buffer_pool_size >= 67108864)"); out != "/var/lib/mysql/data/ 0.0.0.0 1\n" {
		t.Errorf("settings = %q", out)
	}
	if out := sql("show databases like '%lost%'"); out != "" {
		t.Errorf("databases %q; want no lost+found", out)
	}
	// root has no way in over the network, and there is nobody without a name.
	if out, err := b.sh("mariadb --host=10.77.0.103 --connect-timeout=20 -e 'select 1'"); err == nil {
		t.Errorf("root over the network: %s; want a refusal", out)
	}
	if out := sql("select count(*) from mysql.global_priv where user=''"); out != "0\n" {
		t.Errorf("nameless users: %s", out)
	}
	s.signal("TERM")
	if err := s.ended(); err != nil {
		t.Errorf("mariadbd after TERM: %v", err)
	}
	for _, sig := range []string{"KILL", "TERM"} {
		s = b.start("mariadb", dev)
		s.healthy(def)
		if out := sql("select n from shop.t"); out != "42\n" {
			t.Errorf("row after a restart = %q; want 42", out)
		}
		s.signal(sig)
		s.ended()
	}
	if strings.Contains(s.log.String(), "first boot") {
		t.Error("a later start made the data again")
	}
	// The data are on the disk and nowhere else.
	if _, err := os.Stat(filepath.Join(b.data, "data/shop")); err != nil {
		t.Errorf("the database is not on the disk: %v", err)
	}
	b.must("umount /var/lib/mysql")
	if out := b.must("ls -A /var/lib/mysql"); out != "" {
		t.Errorf("below the mount: %s; want nothing", out)
	}
}

func testReport(t *testing.T, boxOf boxMaker) {
	b, def, _ := boxOf(t, "inventory")
	s := b.start("report")
	s.healthy(def)
	waitLog(t, s, "\n")
	var got struct {
		CPU     string
		Threads int
		Memory  int64
		Disks   json.RawMessage
		NICs    []struct{ Ifname, Address string }
	}
	if err := json.Unmarshal([]byte(s.log.String()), &got); err != nil {
		t.Fatalf("report = %s: %v", s.log, err)
	}
	if got.CPU == "" || got.Threads < 1 || got.Memory < 1<<20 || len(got.NICs) < 2 {
		t.Errorf("report = %+v; want CPU, threads, memory and the NICs", got)
	}
	if out := b.must("cat /run/dsas/inventory.json"); strings.TrimSpace(out) != strings.TrimSpace(s.log.String()) {
		t.Errorf("what is left for the init to send is %s; want what is in the log, %s", out, s.log)
	}
	s.until("true", "") // it stays
	s.signal("TERM")
	s.ended()
}
