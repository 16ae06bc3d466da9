#!/usr/bin/env bash
# Builds the Debian package: program, unit, man pages, completions.
#
#   contrib/debian/build.sh [DIRECTORY]      target/ unless another is named; prints the file's path
#
# STRONGROOM_PROGRAM names a program that is built already, STRONGROOM_COMPRESSION what dpkg-deb's -Z
# takes (xz unless set); DEBFULLNAME and DEBEMAIL say who maintains it, SOURCE_DATE_EPOCH when it was made.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
out=${1:-$top/target}
for tool in dpkg-deb dpkg gzip; do
  command -v "$tool" >/dev/null || {
    echo "error: $tool is not installed" >&2
    echo "hint: apt-get install dpkg gzip" >&2
    exit 1
  }
done
program=${STRONGROOM_PROGRAM:-}
if [ -z "$program" ]; then
  cargo build --locked --release --manifest-path "$top/Cargo.toml" >&2
  program=$top/target/release/strongroom
fi
maintainer="${DEBFULLNAME:-the strongroom developers} <${DEBEMAIL:-root@localhost}>"
version=$("$program" --version | cut -d' ' -f2)
arch=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
umask 022

install -D -m 755 "$program" "$root/usr/bin/strongroom"
if command -v strip >/dev/null; then strip --strip-unneeded -R .comment "$root/usr/bin/strongroom"; fi
# The unit for the place where packages put programs, without how to install it by hand.
mkdir -p "$root/usr/lib/systemd/system"
sed -n '/^\[Unit\]/,$ s,/usr/local/bin/,/usr/bin/,; /^\[Unit\]/,$ p' "$top/contrib/systemd/strongroom.service" \
  > "$root/usr/lib/systemd/system/strongroom.service"
# Not in force: whoever wants it copies it to /etc/apparmor.d.
install -D -m 644 "$top/contrib/apparmor/strongroom" "$root/usr/share/apparmor/extra-profiles/strongroom"
"$program" man --dir "$root/usr/share/man/man1" >&2
gzip -9n "$root"/usr/share/man/man1/*.1
complete() { mkdir -p "$(dirname "$root/$2")"; "$program" completions "$1" > "$root/$2"; }
complete bash usr/share/bash-completion/completions/strongroom
complete zsh usr/share/zsh/vendor-completions/_strongroom
complete fish usr/share/fish/vendor_completions.d/strongroom.fish
doc=$root/usr/share/doc/strongroom
mkdir -p "$doc/examples"
install -m 644 "$top/README.md" "$top/SECURITY.md" "$doc"
gzip -9n < "$top/CHANGELOG.md" > "$doc/CHANGELOG.md.gz"
made=${SOURCE_DATE_EPOCH:-$(stat -c %Y "$top/CHANGELOG.md")}
gzip -9n > "$doc/changelog.gz" <<CHANGES
strongroom ($version) unstable; urgency=medium

  * CHANGELOG.md.gz has what is new.

 -- $maintainer  $(date -u -R -d "@$made")
CHANGES
# What lintian(1) would find, and why it is so.
mkdir -p "$root/usr/share/lintian/overrides"
{
  if [ -z "${DEBEMAIL:-}" ]; then
    echo "# Built where it is installed: whoever publishes one sets DEBEMAIL."
    echo "strongroom: bogus-mail-host"
    echo "strongroom: bogus-mail-host-in-debian-changelog"
    echo "strongroom: root-in-contact"
  fi
  echo "# deb-systemd-helper disables what it has enabled, and nothing is enabled at installation."
  echo "strongroom: maintainer-script-calls-systemctl"
  echo "# Functions of C that take a buffer's length: the program is not in C."
  echo "strongroom: hardening-no-fortify-functions"
  echo "# Without systemd it is started by \`strongroom up\`, at login or by hand."
  echo "strongroom: package-supports-alternative-init-but-no-init.d-script"
} > "$root/usr/share/lintian/overrides/strongroom"
cp "$top"/examples/* "$doc/examples"
{
  echo "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
  echo "Upstream-Name: strongroom"
  echo
  echo "Files: *"
  echo "Copyright: the strongroom developers"
  echo "License: MIT or Apache-2.0"
  sed 's/^$/./; s/^/ /' "$top/LICENSE-MIT"
} > "$doc/copyright"
find "$root/usr/share" -type f -exec chmod 644 {} +
chmod 755 "$doc"/examples/*.sh "$doc"/examples/*.py

mkdir "$root/DEBIAN"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum > DEBIAN/md5sums)
size=$(du -sk "$root/usr" | cut -f1)
cat > "$root/DEBIAN/control" <<CONTROL
Package: strongroom
Version: $version
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $size
Depends: libc6 (>= 2.36), fuse3
Section: admin
Priority: optional
Description: secrets vault for chains of agents, mounted at /run/secrets
 A daemon that mounts a secrets vault: each process sees only the secrets
 that its own chain and agent may read, as ordinary read-only files, and
 every read is on record before the bytes leave.
 .
 After installation: strongroom setup
CONTROL
# Nothing starts by itself: there is no vault yet. What runs is stopped before it is removed.
cat > "$root/DEBIAN/postinst" <<'POSTINST'
#!/bin/sh
set -e
if [ "$1" = configure ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload || true
fi
POSTINST
cat > "$root/DEBIAN/prerm" <<'PRERM'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl disable --now strongroom.service || true
fi
PRERM
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm"
file=$out/strongroom_${version}_$arch.deb
mkdir -p "$out"
dpkg-deb --root-owner-group -Z"${STRONGROOM_COMPRESSION:-xz}" --build "$root" "$file" >&2
echo "$file"
