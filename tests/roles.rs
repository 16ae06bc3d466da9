//! Every cell of the table of verbs by role, on the real server: what a role does not allow is
//! refused, what it allows is not refused for want of a role.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Home, LIMIT, may_mount, text};
use strongroom::config::Permission;
use strongroom::control::Needs;
use strongroom::control::route::Method;
use strongroom::control::verbs::table;

/// Nobody else's.
const UID: &str = "54321";

/// Asks for every verb with an empty request; prints the problem's code, or `-`.
const ASK: &str = r#"
import http.client, json, socket, sys
class Vault(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(sys.argv[1])
for line in sys.stdin:
    method, path = line.split()
    vault = Vault("strongroom")
    try:
        vault.request(method, path, "{}" if method == "POST" else None,
                      {"content-type": "application/json"})
        answer = vault.getresponse()
        code = "-"
        if answer.status >= 400:
            code = json.load(answer).get("code", "?")
        elif path.startswith("/v1/watch") or path == "/v1/audit":
            pass
        else:
            answer.read()
    except TimeoutError:
        code = "-"
    print(code, flush=True)
    vault.close()
"#;

fn codes(home: &Home) -> Vec<String> {
    let file = home.dir.path().join("ask.py");
    std::fs::write(&file, ASK).unwrap();
    let lines: String =
        table().iter().map(|r| format!("{} {}\n", r.method.word(), r.path)).collect();
    let questions = home.dir.path().join("questions");
    std::fs::write(&questions, lines).unwrap();
    for dir in [home.home(), home.home().join("run")] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, open).unwrap();
    }
    let output = Command::new("setpriv")
        .args(["--reuid", UID, "--regid", UID, "--clear-groups", "/usr/bin/env", "python3"])
        .arg(&file)
        .arg(home.socket())
        .stdin(std::fs::File::open(&questions).unwrap())
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let told = text(&output);
    let codes: Vec<_> = told.lines().map(ToOwned::to_owned).collect();
    assert_eq!(codes.len(), table().len(), "{told}");
    codes
}

fn configure(home: &Home, may: Option<Permission>) {
    let file = home.home().join("strongroom.toml");
    let own = std::fs::read_to_string(&file).unwrap();
    let base = own.split("[[role]]").next().unwrap();
    let mut text = format!(
        "{base}[[role]]\nname = \"root\"\nuids = [0]\nmay = [\"launch\", \"operate\", \"reveal\", \
         \"revoke\", \"audit\"]\n"
    );
    if let Some(permission) = may {
        text.push_str(&format!(
            "[[role]]\nname = \"tested\"\nuids = [{UID}]\nmay = [\"{}\"]\n",
            permission.word()
        ));
    }
    std::fs::write(&file, text).unwrap();
    home.ok(&["reload"]);
}

#[test]
fn each_cell_of_the_table_is_as_it_says() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    for may in [None].into_iter().chain(Permission::ALL.map(Some)) {
        configure(&home, may);
        let mut wrong = Vec::new();
        for (route, code) in table().iter().zip(codes(&home)) {
            let allowed = match may {
                Some(permission) => route.needs.cell(permission),
                None => matches!(route.needs, Needs::Anyone),
            };
            let refused = code == "no_role" || code == "agent_refused";
            if allowed == refused {
                wrong.push(format!("{} with {may:?}: {code}", route.verb));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

#[test]
fn a_verb_that_reads_is_get_and_every_path_is_named_once() {
    let mut seen = std::collections::BTreeSet::new();
    for route in table() {
        assert!(seen.insert((route.method.word(), route.path)), "{} twice", route.path);
        assert!(route.idempotent || route.method == Method::Post, "{}", route.verb);
    }
}

// A connection that is closed while its client writes ends in EPIPE there: the client never reads
// why it was refused.
#[test]
fn a_client_that_is_refused_while_it_sends_reads_why() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    // What is refused is taken in for two seconds: a test that was kept waiting longer says nothing.
    let answer = std::iter::repeat_with(|| refused_while_it_sends(&home)).flatten().next().unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

/// The answer to a request whose body comes late; none where it came later than it was to.
fn refused_while_it_sends(home: &Home) -> Option<String> {
    let mut vault = UnixStream::connect(home.socket()).unwrap();
    vault.set_read_timeout(Some(LIMIT)).unwrap();
    let body = vec![b'x'; 300_000];
    let begun = Instant::now();
    write!(
        vault,
        "POST /v1/secrets HTTP/1.1\r\nhost: strongroom\r\nconnection: close\r\n\
         idempotency-key: \r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    // Time enough for an answer that does not wait for the body.
    std::thread::park_timeout(Duration::from_millis(300));
    let sent = vault.write_all(&body);
    if begun.elapsed() > Duration::from_secs(1) {
        return None;
    }
    sent.unwrap();
    let mut answer = String::new();
    vault.read_to_string(&mut answer).unwrap();
    Some(answer)
}
