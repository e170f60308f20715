#!/usr/bin/env bash
# build.sh VERSION DIR: makes DIR/dsas_VERSION_ARCH.deb of what make build has built, the
# same bytes for the same commit and compiler: every time stamp is SOURCE_DATE_EPOCH.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=$1 out=$2
arch=$(dpkg --print-architecture)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct 2>/dev/null || date +%s)}
maintainer="${DEBFULLNAME:-dsas developers} <${DEBEMAIL:-dsas@dsas.invalid}>"
umask 022

mkdir -p "$out"
root=$(mktemp -d "$out/.root-XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

DESTDIR=$root PREFIX=/usr "$here/../install.sh" install "$version"
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/bin/dsas"
gzip -9n "$root/usr/share/man/man8/dsas.8"

doc=$root/usr/share/doc/dsas
install -D -m 644 "$here/copyright" "$doc/copyright"
install -m 644 "$here/../../../../README.md" "$doc/README.md"
gzip -9nc "$here/../../../../CHANGELOG.md" >"$doc/changelog.gz"
gzip -9nc >"$doc/changelog.Debian.gz" <<END
dsas ($version) unstable; urgency=medium

  * Built from this commit; changelog.gz says what is new.

 -- $maintainer  $(LC_ALL=C date -uR -d "@$SOURCE_DATE_EPOCH")
END
install -D -m 644 "$here/lintian-overrides" "$root/usr/share/lintian/overrides/dsas"

mkdir "$root/DEBIAN"
size=$(find "$root" -path "$root/DEBIAN" -prune -o -type f -printf '%s\n' | awk '{ n += int(($1 + 1023) / 1024) } END { print n }')
sed "s|@VERSION@|$version|; s|@ARCH@|$arch|; s|@SIZE@|$size|; s|@MAINTAINER@|$maintainer|" "$here/control.in" >"$root/DEBIAN/control"
echo /etc/dsas/dsas.yaml >"$root/DEBIAN/conffiles"
install -m 755 "$here/postinst" "$here/prerm" "$here/postrm" "$root/DEBIAN/"
(cd "$root" && find . -path ./DEBIAN -prune -o -type f ! -path ./etc/dsas/dsas.yaml -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' md5sum) >"$root/DEBIAN/md5sums"

dpkg-deb --root-owner-group -Zxz --build "$root" "$out/dsas_${version}_$arch.deb"
