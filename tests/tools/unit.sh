# What a unit of either manager goes through: functions for steps.sh and user_steps.sh, whose lines
# follow. One line for each result.
#
#   STRONGROOM_HOME, PROGRAM, READS, AGENT from the lines before this file's; MANAGER is --user or not set.
export STRONGROOM_HOME
control() { timeout 100 systemctl $MANAGER "$@"; }
show() { systemctl $MANAGER show strongroom -p "$1" --value; }
state() { echo "$1 $2 $(show ActiveState) $(show NFileDescriptorStore) $(show StatusText)"; }
# Waits for what a command says, for a while.
awaited() {
  for _ in $(seq 600); do
    "$@" && return 0
    sleep 0.05
  done
  return 1
}
alive() { pgrep -f "$1" > /dev/null; }
gone() { ! "$@"; }

start() {
  control start strongroom
  state start $?
}
read_by_an_agent() {
  printf %s canary-of-systemd | "$PROGRAM" secret set FOO > /dev/null
  # Nobody's child but its launcher's, as from a person's shell.
  setsid "$PROGRAM" run --no-redact -s FOO "$@" -- sh "$AGENT" &
  # Its end is no news of this shell's, which could come between or after the results.
  disown
  awaited test -s "$READS"
}
restart() {
  control restart strongroom
  state restart $?
}
is_another() { [ "$(show MainPID)" != "$1" ] && [ "$(show ActiveState)" = active ]; }
kill_keeper() {
  local pid
  pid=$(show MainPID)
  [ "$pid" -gt 1 ] && kill -9 "$pid"
  awaited is_another "$pid"
  state killed 0
}
has_more_than() { [ "$(wc -l < "$READS")" -gt "$1" ]; }
goes_on() {
  awaited has_more_than "$(wc -l < "$READS")" && echo "goes on"
  echo "failed $(grep -c FAILED "$READS")"
}
stop() {
  control stop strongroom
  state stop $?
  findmnt "$STRONGROOM_HOME/mnt" > /dev/null || echo "unmounted"
}
