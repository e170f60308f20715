#!/usr/bin/env bash
# build.sh DIR: makes DIR/vmlinuz and DIR/base.cpio.zst, a small Debian with systemd and what
# the dsas package depends on, from the machine's apt sources.
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
key=$(cat "$here/build.sh" /etc/os-release | sha256sum | cut -d' ' -f1)
[ "$(cat "$dir/key" 2>/dev/null)" = "$key" ] && exit 0
rm -rf "$dir"
mkdir -p "$dir"
. /etc/os-release

sources=()
for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
  [ -s "$f" ] && sources+=("$f")
done
# As root in a mount namespace of its own: whatever happens, nothing stays mounted.
unshare --mount mmdebstrap --mode=root --variant=minbase --quiet \
  --include=systemd,systemd-sysv,dbus,iproute2,procps,kmod,udhcpc,tftp-hpa,curl,ipxe,pxelinux,syslinux-common,init-system-helpers,mmdebstrap,zstd,xz-utils,openssh-client,cpio \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  "$VERSION_CODENAME" "$dir/root" "${sources[@]}"

# The kernel is unpacked, not installed: there is no boot loader and no disk.
kernel=$(apt-cache show --no-all-versions linux-image-amd64 | sed -n 's/^Depends:.* \?\(linux-image-[^ ,]*\).*/\1/p')
(cd "$dir" && apt-get download -qq "$kernel" && dpkg-deb -x linux-image-*.deb kernel)
mv "$dir"/kernel/boot/vmlinuz-* "$dir/vmlinuz"
release=$(ls "$dir/kernel/lib/modules")
for m in drivers/net/veth.ko fs/autofs/autofs4.ko net/ipv4/inet_diag.ko net/ipv4/udp_diag.ko; do
  install -D -m 644 "$dir/kernel/lib/modules/$release/kernel/$m" "$dir/root/lib/modules/$release/kernel/$m"
done
cp "$dir/kernel/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$dir/root/lib/modules/$release/"
depmod -b "$dir/root" "$release"
rm -rf "$dir"/root/var/cache/apt/* "$dir"/root/var/lib/apt/lists/*
(cd "$dir/root" && find . -xdev -print0 | LC_ALL=C sort -z | cpio -o -0 -H newc --quiet | zstd -q -3 -T2 -o "$dir/base.cpio.zst")
rm -rf "$dir/root" "$dir/kernel" "$dir"/linux-image-*.deb
echo "$key" >"$dir/key"
