// Package dsasconf reads /etc/dsas.conf, the file in which everything about
// one node stands: a bash fragment of assignments, read as bash would read it
// (arrays, +=, quoting, variables set above), but never run. Commands and
// command substitutions are refused. A refused line costs that line alone: it
// gives a [LineError], and the rest still applies.
//
// The keys with a meaning are
//
//	SYSTEMNAME=w101                    the node's name
//	IPADDRESS0=192.168.1.1/22          addresses, with their prefix length
//	INTERFACE[0]=bond0.2               device of IPADDRESS0; bond0.2 is VLAN 2 on bond0
//	GATEWAY[0]=192.168.1.254           default routes, the lowest number preferred
//	SERVICEADDRESS=("10.77.0.80")      addresses held on lo for direct routing
//	NAMESERVER=("10.77.0.1") SEARCH=("example.net")
//	HWTYPE=S6014HT
//	MODULES=("ipmi_si" "bond0 mode=active-backup miimon=100")
//	BONDING=("bond0 eth0 eth1")        the ports of a bond; none named: all NICs
//	MTU=9000                           of the bond and its ports, or of the NIC
//	BTDEVICE= SWDEVICE= DBDEVICE= FSDEVICE= and any other ...DEVICE
//
// Any other key is kept, for the services.
package dsasconf
