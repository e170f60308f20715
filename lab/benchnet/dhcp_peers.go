package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"dsas/lab/load"
)

// dnsmasqDHCP is dnsmasq at its best: no ping before an offer, no DNS, the
// nodes in a file of their own.
func dnsmasqDHCP(nodes int) dhcpServer {
	return dhcpServer{name: "dnsmasq", start: func(ctx context.Context, a *arena, dir string) (*program, error) {
		var hosts strings.Builder
		for i := range nodes {
			fmt.Fprintf(&hosts, "%s,%s,n%d\n", load.MAC(i), nodeAddr(i), i)
		}
		file := filepath.Join(dir, "hosts")
		if err := os.WriteFile(file, []byte(hosts.String()), 0o644); err != nil {
			return nil, err
		}
		return a.start(ctx, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--no-ping", "--log-facility=-", "--quiet-dhcp",
			"--interface="+linkName, "--bind-interfaces", "--dhcp-authoritative", "--pid-file="+filepath.Join(dir, "pid"), "--dhcp-leasefile="+filepath.Join(dir, "leases"),
			"--dhcp-hostsfile="+file, "--dhcp-lease-max=100000", "--dhcp-range="+poolFirst+","+poolLast+",255.255.0.0,1h", "--dhcp-boot=undionly.kpxe,"+serverAddr+","+serverAddr)
	}}
}

// keaDHCP is Kea with threads, and leases in its memory file.
func keaDHCP(nodes int) dhcpServer {
	return dhcpServer{name: "kea", start: func(ctx context.Context, a *arena, dir string) (*program, error) {
		type object = map[string]any
		reservations := make([]object, nodes)
		for i := range reservations {
			reservations[i] = object{"hw-address": load.MAC(i).String(), "ip-address": nodeAddr(i).String(), "hostname": fmt.Sprintf("n%d", i)}
		}
		config := object{"Dhcp4": object{
			"interfaces-config": object{"interfaces": []string{linkName}, "dhcp-socket-type": "raw"},
			"lease-database":    object{"type": "memfile", "persist": true, "name": filepath.Join(dir, "leases.csv"), "lfc-interval": 0},
			"multi-threading":   object{"enable-multi-threading": true, "thread-pool-size": 4, "packet-queue-size": 400},
			"valid-lifetime":    3600, "authoritative": true,
			"reservations-global": false, "reservations-in-subnet": true, "host-reservation-identifiers": []string{"hw-address"},
			"subnet4": []object{{
				"id": 1, "subnet": subnetPrefix, "interface": linkName, "pools": []object{{"pool": poolFirst + " - " + poolLast}},
				"next-server": serverAddr, "boot-file-name": "undionly.kpxe", "reservations": reservations,
				"option-data": []object{{"name": "tftp-server-name", "data": serverAddr}},
			}},
			"loggers": []object{{"name": "kea-dhcp4", "severity": "ERROR", "output_options": []object{{"output": "stderr"}}}},
		}}
		data, err := json.Marshal(config)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(dir, "kea.json")
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return nil, err
		}
		return a.start(ctx, "env", "KEA_PIDFILE_DIR="+dir, "KEA_LOCKFILE_DIR="+dir, "KEA_LOGGER_DESTINATION=stderr", "kea-dhcp4", "-c", file)
	}}
}
