#!/usr/bin/env bash
# Runs every test. As root it installs the Debian packages that tests need; otherwise it says what
# is missing, and the tests that need it say so too.
#
#   tests/run.sh           build and test
#   tests/run.sh --lint    formatting and lints first
set -euo pipefail
cd "$(dirname "$0")/.."

# command -> Debian package
needed="fio:fio git:git pg_ctlcluster:postgresql psql:postgresql-client setpriv:util-linux fusermount3:fuse3 busybox:busybox-static curl:curl python3:python3 node:nodejs cc:gcc runuser:util-linux perl:perl-base losetup:mount nsenter:util-linux unshare:util-linux pgrep:procps findmnt:util-linux systemd-analyze:systemd zsh:zsh fish:fish groff:groff-base mandoc:mandoc lintian:lintian apparmor_parser:apparmor"
missing=()
for pair in $needed; do
  command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair##*:}")
done
# Programs of tests/tools are compiled when they are run.
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing: ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
  else
    echo "missing packages: ${missing[*]} (tests that need them will say so)" >&2
  fi
fi
if [ ! -e /dev/fuse ]; then
  if [ "$(id -u)" = 0 ]; then
    modprobe fuse 2>/dev/null || mknod -m 666 /dev/fuse c 10 229 || true
  fi
  [ -e /dev/fuse ] || echo "missing: /dev/fuse (tests of the mount will say so)" >&2
fi
command -v cargo >/dev/null 2>&1 || {
  echo "error: cargo is not installed" >&2
  echo "hint: install Rust 1.89 or newer with rustup" >&2
  exit 1
}

# Suites for file systems, from crates.io: programs that tests run, in versions that tests know.
suites="fsx@0.3.2 pjdfstest@0.2.2"
for suite in $suites; do
  if [ ! -x "target/tools/bin/${suite%@*}" ]; then
    echo "building: $suite"
    cargo install --quiet --debug --locked --root target/tools "$suite" ||
      echo "missing: $suite (tests that need it will say so)" >&2
  fi
done

if [ "${1:-}" = "--lint" ]; then
  cargo fmt --check
  cargo clippy --locked --all-targets -- -D warnings
fi
# Every test that fails is named, not only the first.
cargo test --locked --no-fail-fast
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items --quiet
