# What a person's unit goes through, under `systemd --user`.
#
#   KEY, and what unit.sh wants, from the lines before this file's.
MANAGER=--user
cd "$HOME" || exit 1

/lib/systemd/systemd --user --unit=empty.target --log-target=console &
awaited test -S "$XDG_RUNTIME_DIR/systemd/private"
head -c 32 /dev/urandom > "$KEY"
chmod 600 "$KEY"
"$PROGRAM" init --unlock "key-file:$KEY" > /dev/null
start
read_by_an_agent
restart
kill_keeper
goes_on

# The launcher is killed without a word; what it started is nobody's descendant then.
kill -9 "$(pgrep -f "run --no-redact -s FOO")"
awaited gone alive "sh $AGENT" && echo "agent ended"

stop
systemctl --user exit
wait
