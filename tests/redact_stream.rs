//! The redacted stream of the control socket, on a real daemon: who gets what looked for, and that
//! a worker's death in the middle loses and doubles nothing.
#![forbid(unsafe_code)]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use common::{DB_PROD, Home, LIMIT, OPENAI, may_mount, text, wait_until};
use strongroom::control::client::Client;
use strongroom::control::redacting::Redacting;
use strongroom::proto::stream::{Piece, Redact, Scope};
use strongroom::proto::{Code, Problem};
use strongroom::redact::Level;

/// In no vault, but of a known format.
const TOKEN: &str = "ghp_0123456789abcdefghijABCDEFGHIJ012345";
/// Nobody else's.
const UID: &str = "54321";

fn put(out: &mut Vec<u8>) -> impl FnMut(Piece<'_>) + '_ {
    |piece| match piece {
        Piece::Clear(bytes) => out.extend_from_slice(bytes),
        Piece::Marker { text, .. } => out.extend_from_slice(text.as_bytes()),
    }
}

fn open(home: &Home, level: Level) -> Redacting {
    let request = Redact { level, ..Redact::default() };
    Redacting::open(&Client::new(&home.socket()), request).unwrap()
}

/// One whole text.
fn redact(stream: &mut Redacting, text: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut out = Vec::new();
    stream.push(text, &mut put(&mut out))?;
    stream.finish(&mut put(&mut out))?;
    Ok(out)
}

/// `POST /v1/redact` without an upgrade, as a user; status and body.
fn post(home: &Home, uid: &str, query: &str, body: &[u8]) -> (String, Vec<u8>) {
    for dir in [home.home(), home.home().join("run")] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, open).unwrap();
    }
    let mut child = Command::new("setpriv")
        .args(["--reuid", uid, "--regid", uid, "--clear-groups"])
        .args(["curl", "-sS", "-i", "--data-binary", "@-", "--unix-socket"])
        .arg(home.socket())
        .arg(format!("http://localhost/v1/redact{query}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(body).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let at = output.stdout.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    (String::from_utf8(output.stdout[..at].to_vec()).unwrap(), output.stdout[at + 4..].to_vec())
}

fn sample() -> String {
    format!("key {OPENAI} db {DB_PROD} token {TOKEN}\n")
}

#[test]
fn operators_have_every_value_looked_for_by_name_and_others_known_formats() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let (head, all) = post(&home, "0", "?level=formats", sample().as_bytes());
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("strongroom-scope: all"), "{head}");
    let all = String::from_utf8(all).unwrap();
    let expected = "key [REDACTED:OPENAI_API_KEY] db [REDACTED:DATABASE_URL] token ";
    assert!(all.starts_with(expected), "{all}");
    let values = post(&home, "0", "?level=values", sample().as_bytes()).1;
    assert!(String::from_utf8(values).unwrap().contains(TOKEN));
    let (head, formats) = post(&home, UID, "?level=formats", sample().as_bytes());
    assert!(head.contains("strongroom-scope: formats"), "{head}");
    let formats = String::from_utf8(formats).unwrap();
    assert!(!formats.contains("OPENAI_API_KEY"), "{formats}");
    // What has no known format says nothing of what the vault holds.
    let unknown = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYcanary";
    let (_, told) = post(&home, UID, "?level=formats", format!("x {unknown} y").as_bytes());
    assert_eq!(String::from_utf8(told).unwrap(), format!("x {unknown} y"));
    for (uid, query, code) in [
        (UID, "?level=values", "no_role"),
        (UID, "?launch=00112233445566778899aabbccddeeff", "not_found"),
        ("0", "?launch=00112233445566778899aabbccddeeff", "not_found"),
        ("0", "?level=off", "invalid"),
        ("0", "?levels=all", "bad_request"),
    ] {
        let (head, body) = post(&home, uid, query, b"x");
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains(&format!("\"{code}\"")), "{uid} {query}: {head} {body}");
    }
    let records = home.records("output_redacted");
    let named = |r: &serde_json::Value| r["secret_key"] == "OPENAI_API_KEY" && r["via"] == "redact";
    assert!(records.iter().any(named), "{records:?}");
    assert!(!format!("{records:?}").contains("canary"));
}

#[test]
fn each_role_has_looked_for_what_the_manual_says() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let file = home.home().join("strongroom.toml");
    let own = std::fs::read_to_string(&file).unwrap();
    let base = own.split("[[role]]").next().unwrap();
    for (may, limit, all) in [
        ("launch", "", false),
        ("reveal", "", false),
        ("revoke", "", false),
        ("operate", "", true),
        ("audit", "", true),
        ("operate", "chains = [\"deploy-pipeline\"]", false),
        ("audit", "environments = [\"dev\"]", false),
    ] {
        let roles = format!(
            "{base}[[role]]\nname = \"root\"\nuids = [0]\nmay = [\"launch\", \"operate\", \
             \"audit\"]\n[[role]]\nname = \"tested\"\nuids = [{UID}]\nmay = [\"{may}\"]\n{limit}\n"
        );
        std::fs::write(&file, roles).unwrap();
        home.ok(&["reload"]);
        let (_, told) = post(&home, UID, "", sample().as_bytes());
        let told = String::from_utf8(told).unwrap();
        assert_eq!(told.contains("[REDACTED:DATABASE_URL]"), all, "{may} {limit}: {told}");
    }
}

#[test]
fn an_agent_has_known_formats_looked_for_whatever_its_uid() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = format!(
        "printf '%s' '{OPENAI} x {TOKEN}' | curl -sS --data-binary @- --unix-socket {} \
         'http://localhost/v1/redact?level=LEVEL' > out",
        home.socket().display()
    );
    let out = home.dir.path().join("out");
    let done = home.agent("Deployer", &script.replace("LEVEL", "formats"));
    assert!(done.status.success(), "{}", text(&done));
    let told = std::fs::read_to_string(&out).unwrap();
    assert!(told.contains(" x ") && !told.contains("OPENAI_API_KEY"), "{told}");
    home.agent("Deployer", &script.replace("LEVEL", "values"));
    assert!(std::fs::read_to_string(&out).unwrap().contains("agent_refused"));
}

#[test]
fn a_stream_goes_on_exactly_where_a_worker_was_killed_and_where_one_was_replaced() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut stream = open(&home, Level::Values);
    assert_eq!(stream.scope(), Scope::All);
    let mut expected = Vec::new();
    let mut out = Vec::new();
    for round in 0..40_u32 {
        // Cut inside the value, with the rest to come after the death.
        let line = format!("{round} {OPENAI} {}\n", "x".repeat(70_000));
        let (head, tail) = line.split_at(20);
        stream.push(head.as_bytes(), &mut put(&mut out)).unwrap();
        if round % 2 == 0 {
            stream.flush(&mut put(&mut out)).unwrap();
        }
        match round {
            5 | 20 => {
                let pid = home.worker_pid();
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                )
                .unwrap();
            }
            10 => drop(home.ok(&["reload"])),
            _ => {}
        }
        stream.push(tail.as_bytes(), &mut put(&mut out)).unwrap();
        expected.extend_from_slice(line.replace(OPENAI, "[REDACTED:OPENAI_API_KEY]").as_bytes());
    }
    stream.finish(&mut put(&mut out)).unwrap();
    assert_eq!(out.len(), expected.len());
    assert!(out == expected);
    // Another text on the same connection.
    assert_eq!(redact(&mut stream, b"plain").unwrap(), b"plain");
    assert_eq!(redact(&mut stream, b"").unwrap(), b"");
}

#[test]
fn a_value_that_is_stored_while_a_stream_is_open_is_looked_for_in_it() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut stream = open(&home, Level::Values);
    let late = "brand-new-value-9f8e7d6c";
    let mut out = Vec::new();
    stream.push(&late.as_bytes()[..10], &mut put(&mut out)).unwrap();
    stream.flush(&mut put(&mut out)).unwrap();
    home.ok_with(&["secret", "set", "LATE", "--scope", "org"], late);
    stream.push(format!(" {late} ").as_bytes(), &mut put(&mut out)).unwrap();
    stream.finish(&mut put(&mut out)).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), format!("{} [REDACTED:LATE] ", &late[..10]));
}

#[test]
fn nothing_passes_while_the_vault_is_locked() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut stream = open(&home, Level::Values);
    let mut out = Vec::new();
    stream.push(b"before ", &mut put(&mut out)).unwrap();
    stream.flush(&mut put(&mut out)).unwrap();
    home.ok(&["lock"]);
    stream.push(OPENAI.as_bytes(), &mut put(&mut out)).unwrap_or(());
    let problem = stream.flush(&mut put(&mut out)).unwrap_err();
    assert_eq!(problem.code, Code::Locked, "{problem}");
    assert_eq!(out, b"before ");
    let again = stream.push(b"more", &mut put(&mut out));
    assert_eq!(again.unwrap_err().code, Code::Locked, "for good");
    let refused = Redacting::open(&Client::new(&home.socket()), Redact::default());
    assert_eq!(refused.unwrap_err().code, Code::Locked);
}

#[test]
fn frames_that_are_none_end_the_connection_and_no_other() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut other = open(&home, Level::Values);
    for bytes in
        [&[9, 0, 0, 0, 0][..], &[1, 255, 255, 255, 255], &[3, 8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]]
    {
        let mut socket = std::os::unix::net::UnixStream::connect(home.socket()).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
            .write_all(
                b"POST /v1/redact HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n\
                  upgrade: strongroom-redact\r\ncontent-length: 0\r\n\r\n",
            )
            .unwrap();
        socket.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut socket, &mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(redact(&mut other, OPENAI.as_bytes()).unwrap(), b"[REDACTED:OPENAI_API_KEY]");
    wait_until("the daemon is well", LIMIT, || home.json(&["status"])["state"] == "ready");
}
