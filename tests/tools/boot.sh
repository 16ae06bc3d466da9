#!/bin/sh
# Runs DIR/steps.sh in a pid namespace with a /run and a v2 hierarchy of its own; output goes to DIR/out.
# For `system`, systemd is the first process there and has the steps run once. For `user`, user nobody
# runs them, with a runtime directory and a /dev/fuse as a person's session would have them. Nothing that
# is mounted here is seen outside.
#
#   unshare --mount boot.sh system|user DIR HIERARCHY
set -e
whose=$1
dir=$2
hierarchy=$3
group=$hierarchy/sr-systemd-$$
mount --make-rprivate /
mkdir "$group"
echo $$ > "$group/cgroup.procs"
cat > "$dir/init.sh" <<END
set -e
umount -l /sys/fs/cgroup || true
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
END
case $whose in
system)
  cat >> "$dir/init.sh" <<END
cp "$dir"/*.service /run/systemd/system/
export container=test
exec /lib/systemd/systemd --system --unit=steps.service --show-status=no --log-target=console
END
  cat > "$dir/steps.service" <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
TimeoutStartSec=360
ExecStart=/bin/bash $dir/steps.sh
StandardOutput=file:$dir/out
StandardError=file:$dir/out
ExecStopPost=/bin/kill -s RTMIN+14 1
END
  ;;
user)
  cat >> "$dir/init.sh" <<END
chown 65534:65534 /sys/fs/cgroup /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/cgroup.subtree_control
mkdir -p /run/user/65534 /run/dev
chown 65534:65534 /run/user/65534
mknod -m 666 /run/dev/fuse c 10 229
mount --bind /run/dev/fuse /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME="$dir" \\
  XDG_RUNTIME_DIR=/run/user/65534 PATH=/usr/bin:/bin:/usr/sbin:/sbin bash "$dir/steps.sh" > "$dir/out" 2>&1
END
  ;;
esac
unshare --pid --fork --kill-child --mount-proc --cgroup sh "$dir/init.sh" || true
echo $$ > "$hierarchy/cgroup.procs"
for _ in 1 2 3 4 5 6 7 8 9 10; do
  find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
  [ -e "$group" ] || exit 0
  sleep 0.2
done
