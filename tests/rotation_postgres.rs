//! A real password is rotated: a PostgreSQL role, while a client logs in without end.

mod common;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Home, LIMIT, cannot_run, may_mount, text, wait_until};

/// A server of its own, ended with the test.
struct Server {
    bin: PathBuf,
    data: PathBuf,
    port: u16,
}

fn bin() -> Option<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .map(|e| e.unwrap().path().join("bin"))
        .filter(|p| p.join("initdb").exists())
        .collect();
    found.sort();
    found.pop()
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
    command
}

impl Server {
    fn start(bin: PathBuf, dir: &Path) -> Self {
        let place = dir.join("postgres");
        std::fs::create_dir(&place).unwrap();
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        nix::unistd::chown(&place, Some(user.uid), Some(user.gid)).unwrap();
        let password = place.join("password");
        std::fs::write(&password, "admin-password").unwrap();
        let data = place.join("data");
        let made = as_postgres(&bin.join("initdb"))
            .args(["-A", "scram-sha-256", "-U", "admin", "--no-sync", "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", text(&made));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options =
            format!("-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''");
        let started = as_postgres(&bin.join("pg_ctl"))
            .args(["start", "-w", "-s", "-l"])
            .arg(place.join("log"))
            .arg("-D")
            .arg(&data)
            .args(["-o", &options])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(started.success());
        Self { bin, data, port }
    }

    fn sql(&self, user: &str, password: &str, sql: &str) -> std::process::Output {
        Command::new("psql")
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", user)
            .env("PGPASSWORD", password)
            .env("PGDATABASE", "postgres")
            .output()
            .unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _stopped = as_postgres(&self.bin.join("pg_ctl"))
            .args(["stop", "-s", "-m", "immediate", "-D"])
            .arg(&self.data)
            .status();
    }
}

/// Logs in without end with the URL that its execution holds; a failed login is a line.
const CLIENT: &str = r#"while [ ! -e STOP ]; do
  url=$(cat "$CREDENTIALS_DIRECTORY/DATABASE_URL")
  rest=${url#postgres://}
  export PGUSER=${rest%%:*} PGHOST=127.0.0.1 PGPORT=@PORT@ PGDATABASE=postgres
  secret=${rest#*:}
  export PGPASSWORD=${secret%@*}
  psql -X -q -A -t -c 'SELECT 1' >/dev/null 2>>LOG || echo "failed as $PGUSER"
  echo "$PGUSER" >> WHO
done"#;

#[test]
fn running_clients_never_fail_to_log_in_while_their_password_is_rotated() {
    if !may_mount() {
        return;
    }
    let Some(bin) = bin() else {
        cannot_run("needs a PostgreSQL server: apt-get install postgresql");
        return;
    };
    let home = Home::new();
    let server = Server::start(bin, home.dir.path());
    let made = server.sql(
        "admin",
        "admin-password",
        "CREATE ROLE app_a LOGIN PASSWORD 'first-password'; CREATE ROLE app_b LOGIN;",
    );
    assert!(made.status.success(), "{}", text(&made));

    home.start();
    let url = |user: &str, password: &str| {
        format!("postgres://{user}:{password}@127.0.0.1:{}/postgres", server.port)
    };
    home.ok_with(&["secret", "set", "ADMIN_URL"], &url("admin", "admin-password"));
    home.ok_with(&["secret", "set", "prod/DATABASE_URL"], &url("app_a", "first-password"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/rotate-postgres.sh");
    let chain = include_str!("../examples/rotate-postgres.json")
        .replace("/usr/local/lib/strongroom/rotate-postgres.sh", script);
    let file = home.dir.path().join("rotate.json");
    std::fs::write(&file, chain).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap()]);
    let app = r#"{"chain": "app", "agents": [{"name": "client", "secrets": ["DATABASE_URL"]}]}"#;
    let file = home.dir.path().join("app.json");
    std::fs::write(&file, app).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap()]);
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/rotation-policy.json");
    home.ok(&["rotation", "apply", policy]);

    let dir = home.dir.path();
    let client = |name: &str| {
        let at = |file: &str| dir.join(format!("{name}-{file}")).display().to_string();
        let script = CLIENT
            .replace("STOP", &at("stop"))
            .replace("LOG", &at("log"))
            .replace("WHO", &at("who"))
            .replace("@PORT@", &server.port.to_string());
        let view = dir.join("view");
        let child = home
            .command(&[
                "run",
                "--no-redact",
                "--chain",
                "app",
                "--agent",
                "client",
                "--env",
                "prod",
                "--secrets-path",
            ])
            .args([view.to_str().unwrap(), "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let who = at("who");
        wait_until("a login", LIMIT, || Path::new(&who).exists());
        child
    };
    let stop = |name: &str| std::fs::write(dir.join(format!("{name}-stop")), "").unwrap();
    let users = |name: &str| {
        let text = std::fs::read_to_string(dir.join(format!("{name}-who"))).unwrap();
        let mut users: Vec<_> = text.lines().map(ToOwned::to_owned).collect();
        users.dedup();
        users
    };

    let old = client("old");
    home.ok(&["rotation", "run", "prod/DATABASE_URL"]);
    let new = client("new");
    // Both passwords work as long as someone holds the old one.
    stop("old");
    assert_eq!(text(&old.wait_with_output().unwrap()), "");
    assert_eq!(users("old"), ["app_a"]);
    let gone = |user: &str| {
        let sql = format!("SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = '{user}'");
        text(&server.sql("admin", "admin-password", &sql)).trim() == "t"
    };
    wait_until("the old password gone at the provider", LIMIT, || gone("app_a"));
    assert!(!server.sql("app_a", "first-password", "SELECT 1").status.success());
    home.ok(&["rotation", "run", "prod/DATABASE_URL"]);
    stop("new");
    assert_eq!(text(&new.wait_with_output().unwrap()), "");
    assert_eq!(users("new"), ["app_b"]);
    wait_until("the second password gone", LIMIT, || gone("app_b"));
}
