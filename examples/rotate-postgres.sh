#!/bin/sh
# Steps of a rotation chain for a PostgreSQL password: see rotate-postgres.json.
#
# A role has one password, so a rotation goes to and fro between two roles of the same rights, NAME_a
# and NAME_b: who still has the old URL logs in with it until nobody holds it any more.
#
# DATABASE_URL   postgres://NAME_a:PASSWORD@HOST:PORT/DATABASE
# ADMIN_URL      the same form, of a role that may ALTER the two
#
# Passwords go by the environment and stdin of psql, never by an argument.
set -eu
cd "$CREDENTIALS_DIRECTORY"

# Part N of the URL in a file: 1 user, 2 password, 3 host, 4 port, 5 database.
part() {
    sed -E "s|^postgres://([^:]+):([^@]+)@([^:/]+):([0-9]+)/(.+)\$|\\$2|" "$1"
}

# SQL on stdin, as the role of the URL in a file.
as() {
    PGUSER=$(part "$1" 1) PGPASSWORD=$(part "$1" 2) PGHOST=$(part "$1" 3) PGPORT=$(part "$1" 4) \
        PGDATABASE=$(part "$1" 5) psql -X -q -A -t -v ON_ERROR_STOP=1
}

other() {
    case "$1" in
    *_a) echo "${1%_a}_b" ;;
    *_b) echo "${1%_b}_a" ;;
    *) echo "role $1 ends in neither _a nor _b" >&2 && return 1 ;;
    esac
}

case "$STRONGROOM_ROTATION_STEP" in
create)
    user=$(other "$(part DATABASE_URL@current 1)")
    password=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
    host=$(part DATABASE_URL@current 3) port=$(part DATABASE_URL@current 4)
    printf 'postgres://%s:%s@%s:%s/%s' "$user" "$password" "$host" "$port" \
        "$(part DATABASE_URL@current 5)"
    ;;
set)
    printf "ALTER ROLE %s WITH LOGIN PASSWORD '%s';\n" \
        "$(part DATABASE_URL@pending 1)" "$(part DATABASE_URL@pending 2)" | as ADMIN_URL
    ;;
test)
    [ "$(echo 'SELECT 1;' | as DATABASE_URL@pending)" = 1 ]
    ;;
finish)
    # The new URL is the current one now: the old role's password goes.
    printf 'ALTER ROLE %s WITH PASSWORD NULL;\n' "$(other "$(part DATABASE_URL@current 1)")" |
        as ADMIN_URL
    ;;
esac
