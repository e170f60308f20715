# Runs in the virtual machine, as root. Says "PROOF ok: ..." or "PROOF FAIL: ..." for each fact.
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
exec 2>&1
ok() { echo "PROOF ok: $*"; }
bad() { echo "PROOF FAIL: $*"; journalctl -u dsas -n 15 --no-pager -o cat; }
is() { # is WHAT WANT GOT
  if [ "$2" = "$3" ]; then ok "$1: $3"; else bad "$1: $3; want $2"; fi
}
has() { # has WHAT WANT GOT
  case $3 in *"$2"*) ok "$1: $2" ;; *) bad "$1: $3; want $2 in it" ;; esac
}
until_is() { # until_is WHAT WANT COMMAND...: waits up to two minutes
  local what=$1 want=$2 got n
  shift 2
  for n in $(seq 240); do
    got=$("$@" 2>/dev/null)
    [ "$got" = "$want" ] && { ok "$what: $got"; return; }
    sleep 0.5
  done
  bad "$what: $got; want $want"
}
show() { systemctl show -P "$1" dsas; }
client() { ip netns exec c "$@"; }
cd /

ip netns add c
ip link add eth1 type veth peer name eth0 netns c
ip addr add 10.93.0.1/24 dev eth1
ip link set eth1 up
ip -n c link set eth0 up
ip link set lo up

said=$(dpkg -i /dsas.deb)
is "dpkg -i" 0 $?
has "a new package says" "not started" "$said"
is "a new package starts nothing" inactive "$(systemctl is-active dsas)"
is "it is enabled" enabled "$(systemctl is-enabled dsas)"
systemctl start dsas
is "without an interface" "failed exit-code 78 0" "$(show ActiveState) $(show Result) $(show ExecMainStatus) $(show NRestarts)"
has "and says so" "interfaces: [eth1] in /etc/dsas/dsas.yaml" "$(journalctl -u dsas --no-pager -o cat)"
is "state folder" "dsas:dsas 750" "$(stat -c '%U:%G %a' /var/lib/dsas)"
is "images folder" "root:root 755" "$(stat -c '%U:%G %a' /var/lib/dsas/images)"

printf 'interfaces: [eth1]\n' >>/etc/dsas/dsas.yaml
systemctl restart dsas
is "configured" "active running" "$(show ActiveState) $(show SubState)"
pid=$(show MainPID)
is "runs as" dsas "$(ps -o user= -p "$pid")"
is "capabilities" "CapInh:0000000000002400 CapPrm:0000000000002400 CapEff:0000000000002400 CapBnd:0000000000002400 CapAmb:0000000000002400" \
  "$(grep ^Cap /proc/"$pid"/status | tr -d '\t' | tr '\n' ' ' | sed 's/ $//')"
is "no new privileges, seccomp" "NoNewPrivs:1 Seccomp:2" "$(grep -E '^(NoNewPrivs|Seccomp):' /proc/"$pid"/status | tr -d '\t' | tr '\n' ' ' | sed 's/ $//')"
is "receive ceiling" 4194304 "$(cat /proc/sys/net/core/rmem_max)"
is "DHCP socket's buffer" 8388608 "$(ss -Hulnpm 'sport = :67' | grep -o 'rb[0-9]*' | head -1 | tr -d rb)"

cat >/udhcpc.sh <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr flush dev $interface
ip addr add $ip/24 dev $interface
echo got $ip from $serverid
END
chmod +x /udhcpc.sh
boots() {
  has "udhcpc $1" "from 10.93.0.1" "$(client udhcpc -i eth0 -n -q -f -t 20 -T 2 -s /udhcpc.sh)"
  client tftp -m binary 10.93.0.1 -c get undionly.kpxe /tmp/nbp
  cmp /tmp/nbp /usr/lib/ipxe/undionly.kpxe && ok "TFTP $1" || bad "TFTP $1"
  has "HTTP $1" "#!ipxe" "$(client curl -sS -m 60 http://10.93.0.1:8080/boot/script.ipxe)"
}
boots "at first"

is "root adds a node" 0 "$(dsas node add w1 --mac 52:54:00:00:00:01 >/dev/null; echo $?)"
is "root lists nodes" w1 "$(dsas node ls --names)"
useradd -G dsas-admin op
useradd stranger
is "dsas-admin lists nodes" w1 "$(setpriv --reuid=op --regid=op --init-groups dsas node ls --names)"
setpriv --reuid=stranger --regid=stranger --init-groups dsas node ls >/dev/null 2>&1 && bad "a stranger lists nodes" || ok "a stranger is refused"
is "/healthz" ok "$(curl -sS http://127.0.0.1:8443/healthz)"
is "/readyz" "ok store ok interfaces ok images" "$(curl -sS http://127.0.0.1:8443/readyz | tr '\n' ' ' | sed 's/ $//')"
has "/metrics" 'dsas_dhcp_answered_total{type="ack"} 1' "$(curl -sS http://127.0.0.1:8443/metrics)"
has "exposure" "Overall exposure level" "$(systemd-analyze security --no-pager dsas | tail -1)"
systemd-analyze security --no-pager dsas | tail -1

# In its mount namespace, even root cannot write or replace the images.
inside() { nsenter -t "$(show MainPID)" -m -- "$@" 2>&1; }
has "write to images" "Read-only file system" "$(inside touch /var/lib/dsas/images/x)"
has "replace images" "busy" "$(inside mv /var/lib/dsas/images /var/lib/dsas/other)"
has "see the cache" "Permission denied" "$(inside setpriv --reuid=dsas --regid=dsas --clear-groups ls /var/lib/dsas/cache)"
has "write to the system" "Read-only file system" "$(inside touch /usr/x)"

kill -9 "$(show MainPID)"
until_is "after kill -9" "active 1" sh -c 'echo $(systemctl is-active dsas) $(systemctl show -P NRestarts dsas)'
is "nodes after kill -9" w1 "$(dsas node ls --names)"
boots "after kill -9"

is "backup" 0 "$(dsas backup /root/b >/dev/null; echo $?)"
is "its mode" 600 "$(stat -c %a /root/b)"
has "restore while it runs" "systemctl stop dsas" "$(dsas restore --force /root/b 2>&1)"
dsas node add w2 --mac 52:54:00:00:00:02 >/dev/null
systemctl stop dsas
is "restore" 0 "$(dsas restore --force /root/b >/dev/null; echo $?)"
systemctl start dsas
is "nodes after a restore" "w1 active" "$(dsas node ls --names) $(systemctl is-active dsas)"

touch /var/lib/dsas/reset-password
systemctl restart dsas
has "a new set-up link" "/setup?token=" "$(journalctl -u dsas -n 30 --no-pager -o cat)"

dpkg -i /dsas.deb >/dev/null
is "upgrade" 0 $?
is "after an upgrade" "active w1" "$(systemctl is-active dsas) $(dsas node ls --names)"
grep -q '^interfaces: \[eth1\]' /etc/dsas/dsas.yaml && ok "an upgrade keeps dsas.yaml" || bad "an upgrade changed dsas.yaml"

systemctl stop dsas
systemctl start dsas
mkdir -p /etc/dsas/roles/mine
dpkg -r dsas >/dev/null 2>&1
is "removed" inactive "$(systemctl is-active dsas)"
is "state stays when removed" 0 "$(test -s /var/lib/dsas/dsas.db; echo $?)"
dpkg -P dsas >/dev/null 2>&1
is "purged" "" "$(dpkg-query -W -f '${db:Status-Status}' dsas 2>/dev/null | grep -v not-installed)"
is "left by purge" "/etc/dsas /etc/dsas/roles /etc/dsas/roles/mine" \
  "$(find / -xdev \( -path /proc -o -path /sys -o -path /tmp \) -prune -o \( -name '*dsas*' -o -path '*/dsas/*' \) -print | grep -v '^/dsas.deb$' | sort | tr '\n' ' ' | sed 's/ $//')"
is "its user stays" 0 "$(getent passwd dsas >/dev/null; echo $?)"
echo "PROOF end"
