# What a person's unit goes through, under `systemd --user`. One line for each result.
#
#   STRONGROOM_HOME, PROGRAM, READS, AGENT, KEY from the lines before this file's.
export STRONGROOM_HOME
cd "$HOME" || exit 1
show() { systemctl --user show strongroom -p "$1" --value; }
state() { echo "$1 $2 $(show ActiveState) $(show NFileDescriptorStore) $(show StatusText)"; }
mounted() { findmnt "$STRONGROOM_HOME/mnt" > /dev/null; }

/lib/systemd/systemd --user --unit=empty.target --log-target=console &
for _ in $(seq 200); do
  [ -S "$XDG_RUNTIME_DIR/systemd/private" ] && break
  sleep 0.05
done
head -c 32 /dev/urandom > "$KEY"
chmod 600 "$KEY"
"$PROGRAM" init --unlock "key-file:$KEY" > /dev/null
timeout 30 systemctl --user start strongroom
state start $?
printf %s canary-of-systemd | "$PROGRAM" secret set FOO > /dev/null
setsid "$PROGRAM" run --no-redact -s FOO -- sh "$AGENT" &
until [ -s "$READS" ]; do sleep 0.05; done

timeout 30 systemctl --user restart strongroom
state restart $?
pid=$(show MainPID)
[ "$pid" -gt 1 ] && kill -9 "$pid"
for _ in $(seq 200); do
  [ "$(show MainPID)" != "$pid" ] && [ "$(show ActiveState)" = active ] && break
  sleep 0.05
done
state killed 0
before=$(wc -l < "$READS")
for _ in $(seq 200); do
  [ "$(wc -l < "$READS")" -gt "$before" ] && break
  sleep 0.05
done
[ "$(wc -l < "$READS")" -gt "$before" ] && echo "goes on"
echo "failed $(grep -c FAILED "$READS")"

# The launcher is killed without a word; what it started is nobody's descendant then.
kill -9 "$(pgrep -f "run --no-redact -s FOO")"
for _ in $(seq 200); do
  pgrep -f "sh $AGENT" > /dev/null || break
  sleep 0.05
done
pgrep -f "sh $AGENT" > /dev/null || echo "agent ended"

timeout 30 systemctl --user stop strongroom
state stop $?
mounted || echo "unmounted"
systemctl --user exit
wait
