#!/bin/sh
# Runs DIR/steps.sh as user nobody in a pid namespace with a /run, a v2 hierarchy and a /dev/fuse of its
# own, as a person's session would have them; output goes to DIR/out.
#
#   unshare --mount boot_user.sh DIR HIERARCHY
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
chown 65534:65534 /sys/fs/cgroup /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/cgroup.subtree_control
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/user/65534 /run/dev
chown 65534:65534 /run/user/65534
mknod -m 666 /run/dev/fuse c 10 229
mount --bind /run/dev/fuse /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME="$dir" \\
  XDG_RUNTIME_DIR=/run/user/65534 PATH=/usr/bin:/bin:/usr/sbin:/sbin bash "$dir/steps.sh" > "$dir/out" 2>&1
END
unshare --pid --fork --kill-child --mount-proc --cgroup sh "$dir/init.sh" || true
echo $$ > "$2/cgroup.procs"
for _ in 1 2 3 4 5 6 7 8 9 10; do
  find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
  [ -e "$group" ] || exit 0
  sleep 0.2
done
