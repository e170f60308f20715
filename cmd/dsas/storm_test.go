package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dsas"
	"dsas/lab/storm"
)

// asProgram makes TestMain run the program: a storm starts processes.
const asProgram = "DSAS_TEST_AS_PROGRAM"

// runStorm is dsas lab storm with these arguments.
func runStorm(t *testing.T, args ...string) storm.Report {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("DSAS_CI") != "" {
			t.Fatal("a storm needs root")
		}
		t.Skip("a storm needs root")
	}
	t.Setenv(asProgram, "1")
	// Of a server of somebody's own, which a storm must not get near.
	state := filepath.Join(t.TempDir(), "state")
	t.Setenv("DSAS_STATE", state)
	defer func() {
		if _, err := os.Stat(state); !os.IsNotExist(err) {
			t.Errorf("the storm used the state folder that the environment names: %v", err)
		}
	}()
	var out, errs bytes.Buffer
	err := run(t.Context(), append([]string{"lab", "storm", "--json", "--quiet", "--timeout", "5m"}, args...), strings.NewReader(""), &out, &errs)
	var rep storm.Report
	if jsonErr := json.Unmarshal(out.Bytes(), &rep); err != nil || jsonErr != nil {
		t.Fatalf("dsas lab storm %v = %v; want nil\n%s%s", args, err, out.String(), errs.String())
	}
	return rep
}

// TestStorm: a rack of simulated nodes boots on a server of its own, at once.
func TestStorm(t *testing.T) {
	rep := runStorm(t, "-n", "50", "--rate", "0", "--sizes", "0.1,0.5,2", "--strangers", "10", "--hold", "1s", "--heartbeat", "1s")
	if rep.Ready != 50 || rep.Boots != 50 || rep.Reboots != 0 || len(rep.Failed) != 0 {
		t.Errorf("ready %d, boots %d, begun again %d, failed %v; want 50, 50, 0, none", rep.Ready, rep.Boots, rep.Reboots, rep.Failed)
	}
	var sizes int64
	for _, mib := range []float64{0.1, 0.5, 2} {
		sizes += int64(mib * (1 << 20))
	}
	if want := 50 * sizes; rep.Bytes != want || rep.Plain == nil || rep.Plain.Bytes != want {
		t.Errorf("bytes = %d, and by plain HTTP %+v; want %d both", rep.Bytes, rep.Plain, want)
	}
	steps := map[string]int{}
	for _, s := range rep.Steps {
		steps[s.Name] = s.N
	}
	for _, step := range []string{"dhcp-firmware", "tftp", "dhcp-ipxe", "script", "kernel", "initramfs", "config", "image", "boot"} {
		if steps[step] != 50 {
			t.Errorf("step %s was done %d times; want 50", step, steps[step])
		}
	}
	if steps["heartbeat"] < 50 || steps["page"] == 0 || steps["event shown"] != 50 {
		t.Errorf("heartbeats %d, pages %d, events shown %d; want at least 50, some, 50", steps["heartbeat"], steps["page"], steps["event shown"])
	}
	if rep.Server == nil || rep.Server.RSS == 0 || rep.Server.CPU == 0 {
		t.Errorf("server = %+v; want its memory and processor time", rep.Server)
	}
	if len(rep.Leases) != 10 {
		t.Errorf("%d strangers have a lease; want 10", len(rep.Leases))
	}
	for k, n := range rep.Errors {
		t.Errorf("%d times: %s", n, k)
	}
}

// TestStormKilled kills the server at random moments while nodes boot and
// strangers take leases: runStorm's error would tell of a node that is not ready
// in the end, of a lease that was promised and is lost, of an address promised
// to two, and of a damaged database.
func TestStormKilled(t *testing.T) {
	kills := "20"
	if os.Getenv("DSAS_LONG") != "" {
		kills = "200"
	}
	rep := runStorm(t, "-n", "30", "--rate", "0", "--sizes", "0.1,0.2,0.5", "--strangers", "20", "--no-plain", "--kill", kills, "--heartbeat", "1s")
	if rep.Ready != 30 || rep.Boots < 30 || len(rep.Failed) != 0 {
		t.Errorf("ready %d, boots %d, failed %v; want 30, at least 30, none", rep.Ready, rep.Boots, rep.Failed)
	}
	if len(rep.Leases) < 20 {
		t.Errorf("%d leases were promised; want at least 20", len(rep.Leases))
	}
	t.Logf("%d boots; errors on the way: %v", rep.Boots, rep.Errors)
}

// TestStormRefuses: wrong figures, and a list of nodes that are there already.
func TestStormRefuses(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-n 0", "use 1 to"},
		{"-n 20000", "use 1 to"},
		{"--timeout=-1s", "above 0"},
		{"--over=-1s", "--over and --hold"},
		{"--rate fast", "1gbit"},
		{"--rate 3bit", "1gbit"},
		{"--sizes 1,2", "three figures"},
		{"--sizes 1,2,x", "use MiB"},
		{"--interface eth9 --kill 1", "leave out --interface"},
	} {
		err := run(context.Background(), append([]string{"lab", "storm"}, strings.Fields(c.args)...), strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("dsas lab storm %s = %v; want a usage error with %q", c.args, err, c.want)
		}
	}
	c := newCLI(t)
	mine := dsas.Node{Name: "storm-0002", NICs: []dsas.NIC{{MAC: dsas.MAC{2, 9, 9, 9, 9, 9}}}, Address: netip.MustParsePrefix("10.77.0.9/24")}
	if _, err := c.store.CreateNode(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		return
	}
	err := run(t.Context(), []string{"--server", c.socket, "lab", "storm", "-n", "3", "--interface", "lo", "--role", "web"}, strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "storm-0002") {
		t.Errorf("a storm over a node that is there = %v; want it refused, with the node's name", err)
	}
	nodes, err := c.store.Nodes(t.Context())
	if err != nil || len(nodes) != 1 || nodes[0].Name != mine.Name || nodes[0].NICs[0] != mine.NICs[0] {
		t.Errorf("nodes after it = %+v, %v; want storm-0002 as it was, alone", nodes, err)
	}
}

// TestStormLeases: what the check after a storm finds.
func TestStormLeases(t *testing.T) {
	now := time.Now()
	at := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	a, b := storm.StrangerMAC(0), storm.StrangerMAC(1)
	kept := []dsas.Lease{{Address: at("10.0.0.1"), MAC: a, Expires: now.Add(time.Hour)}, {Address: at("10.0.0.2"), MAC: b, Expires: now.Add(time.Minute)}}
	for _, c := range []struct {
		name     string
		promised []storm.Lease
		want     string
	}{
		{"kept", []storm.Lease{{MAC: a, Address: at("10.0.0.1"), Expires: now.Add(time.Hour)}}, ""},
		{"lost", []storm.Lease{{MAC: a, Address: at("10.0.0.3"), Expires: now.Add(time.Hour)}}, "is lost"},
		{"another's", []storm.Lease{{MAC: b, Address: at("10.0.0.1"), Expires: now.Add(time.Hour)}}, "is lost"},
		{"twice", []storm.Lease{{MAC: a, Address: at("10.0.0.1"), Expires: now}, {MAC: b, Address: at("10.0.0.1"), Expires: now}}, "was given to"},
		{"too short", []storm.Lease{{MAC: b, Address: at("10.0.0.2"), Expires: now.Add(time.Hour)}}, "was promised"},
	} {
		err := checkLeases(c.promised, kept)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: checkLeases = %v; want %q", c.name, err, c.want)
		}
	}
}

// TestStormKeepsOff: a server's state is never what a storm works in.
func TestStormKeepsOff(t *testing.T) {
	dir := t.TempDir()
	if err := emptyFolder(dir); err != nil {
		t.Errorf("emptyFolder of an empty one = %v; want nil", err)
	}
	if err := emptyFolder(filepath.Join(dir, "none")); err != nil {
		t.Errorf("emptyFolder of none = %v; want nil", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dsas.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := (&labStormCmd{State: dir}).host(t.Context(), 0, [3]int64{1, 1, 1})
	if !errors.Is(err, dsas.ErrConflict) {
		t.Errorf("a storm in a server's state = %v; want ErrConflict", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "images")); err == nil {
		t.Error("it made images there")
	}
}
