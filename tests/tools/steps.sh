# What the unit goes through, in the systemd that boot.sh has started. One line for each result.
#
#   STRONGROOM_HOME, PROGRAM, VIEW, READS, AGENT from the lines before this file's.
export STRONGROOM_HOME PATH=/usr/bin:/bin:/usr/sbin:/sbin
show() { systemctl show strongroom -p "$1" --value; }
mount_id() { findmnt --noheadings --output ID "$STRONGROOM_HOME/mnt" | tr -d ' '; }
state() { echo "$1 $2 $(show ActiveState) $(show NFileDescriptorStore) $(show StatusText)"; }

timeout 30 systemctl start strongroom
state start $?
printf %s canary-of-systemd | "$PROGRAM" secret set FOO >/dev/null
first=$(mount_id)
# Nobody's child but its launcher's, as from a person's shell.
setsid "$PROGRAM" run --no-redact -s FOO --secrets-path "$VIEW" --as nobody -- sh "$AGENT" &
until [ -s "$READS" ]; do sleep 0.05; done

timeout 30 systemctl restart strongroom
state restart $?

pid=$(show MainPID)
[ "$pid" -gt 1 ] && kill -9 "$pid"
for _ in $(seq 200); do
  [ "$(show MainPID)" != "$pid" ] && [ "$(show ActiveState)" = active ] && break
  sleep 0.05
done
state killed 0

timeout 30 systemctl reload strongroom
state reload $?

before=$(wc -l < "$READS")
for _ in $(seq 200); do
  [ "$(wc -l < "$READS")" -gt "$before" ] && break
  sleep 0.05
done
[ "$(wc -l < "$READS")" -gt "$before" ] && echo "goes on"
echo "failed $(grep -c FAILED "$READS")"
[ "$(mount_id)" = "$first" ] && echo "same mount"
echo "group $(sed -n 's/^0:://p' "/proc/$(pgrep -u nobody -f "$AGENT" | head -1)/cgroup")"
scope=$(basename "$(dirname /sys/fs/cgroup/system.slice/strongroom-agents*.scope/agents)")
echo "scope $(systemctl show "$scope" -p Delegate --value) $(systemctl show "$scope" -p ActiveState --value)"
"$PROGRAM" audit verify >/dev/null && echo "verified"
sed -n 's/^\(NoNewPrivs\|Seccomp\|CapBnd\):\t/\1 /p' "/proc/$(show MainPID)/status"

timeout 30 systemctl stop strongroom
state stop $?
[ -z "$(mount_id)" ] && echo "unmounted"
for _ in $(seq 100); do
  tail -1 "$READS" | grep -q FAILED && break
  sleep 0.05
done
tail -1 "$READS"
# The scope goes with its last process.
pkill -KILL -u nobody -f "$AGENT"
for _ in $(seq 100); do
  [ -e "/sys/fs/cgroup/system.slice/$scope" ] || break
  sleep 0.05
done
[ -e "/sys/fs/cgroup/system.slice/$scope" ] || echo "scope gone"
