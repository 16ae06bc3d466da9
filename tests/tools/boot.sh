#!/bin/sh
# Boots systemd as the first process of a pid namespace, with a /run and a v2 hierarchy of its own, and
# has it run DIR/steps.sh once; output goes to DIR/out. Nothing that is mounted here is seen outside.
#
#   unshare --mount boot.sh DIR HIERARCHY
set -e
dir=$1
group=$2/sr-systemd-$$
mount --make-rprivate /
mkdir "$group"
echo $$ > "$group/cgroup.procs"
cat > "$dir/init.sh" <<END
set -e
umount -l /sys/fs/cgroup || true
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
cp "$dir"/*.service /run/systemd/system/
export container=test
exec /lib/systemd/systemd --system --unit=steps.service --show-status=no --log-target=console
END
cat > "$dir/steps.service" <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
TimeoutStartSec=120
ExecStart=/bin/bash $dir/steps.sh
StandardOutput=file:$dir/out
StandardError=file:$dir/out
ExecStopPost=/bin/kill -s RTMIN+14 1
END
unshare --pid --fork --kill-child --mount-proc --cgroup sh "$dir/init.sh" || true
echo $$ > "$2/cgroup.procs"
for _ in 1 2 3 4 5 6 7 8 9 10; do
  find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
  [ -e "$group" ] || exit 0
  sleep 0.2
done
