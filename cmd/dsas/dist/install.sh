#!/usr/bin/env bash
# install.sh install|uninstall [VERSION]: what make install and make uninstall do, with
# DESTDIR, PREFIX and DATE (of the manual page) from the environment.
# Configuration and state are never removed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
version=${2:-unknown}
date=$(date -u -d "@${SOURCE_DATE_EPOCH:-$(date +%s)}" +%Y-%m-%d)

# systemd and its helpers look below /usr/lib, /usr/local/lib and /etc alike;
# sysusers, tmpfiles and sysctl below /usr/lib, /usr/local/lib (the former two) and /etc.
lib=$PREFIX/lib
case $PREFIX in /usr) conf=$lib ;; *) conf=/etc ;; esac
case $PREFIX in /usr) unit=/lib/systemd/system ;; *) unit=/etc/systemd/system ;; esac

files=(
  "755 $top/bin/dsas $PREFIX/bin/dsas"
  "755 $top/build/dsas-init $lib/dsas/dsas-init"
  "755 $top/build/bb $lib/dsas/bb"
  "644 unit $unit/dsas.service"
  "644 $here/sysusers.conf $conf/sysusers.d/dsas.conf"
  "644 $here/tmpfiles.conf $conf/tmpfiles.d/dsas.conf"
  "644 $here/sysctl.conf $conf/sysctl.d/10-dsas.conf"
  "644 completion $PREFIX/share/bash-completion/completions/dsas"
  "644 man $PREFIX/share/man/man8/dsas.8"
)
live() { [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ]; }

case ${1:-} in
install)
  tmp=$(mktemp -d)
  trap 'rm -rf "$tmp"' EXIT
  sed "s|@BINDIR@|$PREFIX/bin|" "$here/dsas.service.in" >"$tmp/unit"
  sed "s|@VERSION@|$version|; s|@DATE@|$date|" "$here/dsas.8.in" >"$tmp/man"
  "$top/bin/dsas" completion >"$tmp/completion"
  for f in "${files[@]}"; do
    read -r mode from to <<<"$f"
    case $from in /*) ;; *) from=$tmp/$from ;; esac
    install -D -m "$mode" "$from" "$DESTDIR$to"
  done
  # Somebody's configuration is never written over.
  [ -e "$DESTDIR/etc/dsas/dsas.yaml" ] || install -D -m 644 "$here/dsas.yaml" "$DESTDIR/etc/dsas/dsas.yaml"
  install -d -m 755 "$DESTDIR/etc/dsas/roles"
  if live; then
    systemd-sysusers "$conf/sysusers.d/dsas.conf"
    systemd-tmpfiles --create "$conf/tmpfiles.d/dsas.conf"
    sysctl -q -p "$conf/sysctl.d/10-dsas.conf"
    systemctl daemon-reload
  fi
  [ -n "$DESTDIR" ] || cat <<END
dsas is installed below $PREFIX. Name the nodes' interface in /etc/dsas/dsas.yaml, then:
  systemctl enable --now dsas
END
  ;;
uninstall)
  if live; then systemctl disable --now dsas 2>/dev/null || true; fi
  for f in "${files[@]}"; do
    read -r _ _ to <<<"$f"
    rm -f "$DESTDIR$to"
  done
  rmdir "$DESTDIR$lib/dsas" 2>/dev/null || true
  if live; then systemctl daemon-reload; fi
  [ -n "$DESTDIR" ] || echo "configuration (/etc/dsas), state (/var/lib/dsas) and the user dsas are left"
  ;;
*)
  echo "usage: install.sh install|uninstall [VERSION]" >&2
  exit 2
  ;;
esac
