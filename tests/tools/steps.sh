# What the unit goes through, in the systemd that boot.sh has started.
#
#   VIEW, and what unit.sh wants, from the lines before this file's.
export PATH=/usr/bin:/bin:/usr/sbin:/sbin
mount_id() { findmnt --noheadings --output ID "$STRONGROOM_HOME/mnt" | tr -d ' '; }

start
first=$(mount_id)
read_by_an_agent --secrets-path "$VIEW" --as nobody
restart
kill_keeper
control reload strongroom
state reload $?
goes_on
[ "$(mount_id)" = "$first" ] && echo "same mount"
echo "group $(sed -n 's/^0:://p' "/proc/$(pgrep -u nobody -f "$AGENT" | head -1)/cgroup")"
scope=$(basename "$(dirname /sys/fs/cgroup/system.slice/strongroom-agents*.scope/agents)")
echo "scope $(systemctl show "$scope" -p Delegate --value) $(systemctl show "$scope" -p ActiveState --value)"
"$PROGRAM" audit verify >/dev/null && echo "verified"
sed -n 's/^\(NoNewPrivs\|Seccomp\|CapBnd\):\t/\1 /p' "/proc/$(show MainPID)/status"

stop
last_failed() { tail -1 "$READS" | grep -q FAILED; }
awaited last_failed
tail -1 "$READS"
# The scope goes with its last process.
pkill -KILL -u nobody -f "$AGENT"
awaited gone test -e "/sys/fs/cgroup/system.slice/$scope" && echo "scope gone"
