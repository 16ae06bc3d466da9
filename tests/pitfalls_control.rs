//! The control socket against peers that mean harm: what is too much, too long, too slow or forged is
//! refused, costs others nothing, and the socket is never somebody else's.

mod common;
mod tools;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use common::{Home, LIMIT, OPENAI, may_mount, text, wait_until};
use tools::Talker;

/// A home whose socket other users reach, as they reach /run/strongroom.
fn reachable() -> Home {
    let home = Home::deployed();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(home.home(), open).unwrap();
    home
}

/// One request of root's over a connection of its own; the whole answer.
fn ask(home: &Home, request: &str) -> String {
    let mut stream = UnixStream::connect(home.socket()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // A daemon that has heard enough closes while we still send.
    let _sent = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _rest = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(home: &Home, path: &str, body: &str) -> String {
    let length = body.len();
    ask(
        home,
        &format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: \
             application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ),
    )
}

#[test]
fn what_is_too_long_or_no_request_at_all_is_refused_and_others_are_served() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let head = |more: &str| format!("POST /v1/secrets HTTP/1.1\r\nhost: x\r\n{more}\r\n\r\n");
    let told = ask(&home, &head("content-length: 99999999999"));
    assert!(told.contains(" 413 ") && told.contains("too_large"), "{told}");
    let told = ask(&home, &head(&format!("x-long: {}", "a".repeat(1 << 20))));
    assert!(told.is_empty() || told.contains(" 4"), "{told}");
    let chunk = "100000\r\n".to_owned() + &"x".repeat(1 << 20) + "\r\n";
    let told = ask(&home, &(head("transfer-encoding: chunked") + &chunk.repeat(4) + "0\r\n\r\n"));
    assert!(told.is_empty() || told.contains("too_large"), "{}", &told[..told.len().min(300)]);
    let told = ask(&home, &("\u{0}\u{1}".repeat(4096) + "\r\n\r\n"));
    assert!(told.is_empty() || told.contains(" 400 "), "{told}");
    let told = post(&home, "/v1/secrets", &"[".repeat(100_000));
    assert!(told.contains(" 400 "), "deep nesting is an error, no crash: {told}");
    assert_eq!(home.json(&["status"])["worker_restarts"], 0);
}

#[test]
fn connections_without_end_and_slow_ones_leave_room_for_their_owner() {
    if !may_mount() || !tools::has("setpriv") {
        return;
    }
    let home = reachable();
    let script = r#"
import socket, sys, time
held, refused = [], 0
for _ in range(400):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(5)
    try:
        s.connect(sys.argv[1])
        s.sendall(b"GET /v1/self HTTP/1.1\r\nhost: ")
        held.append(s)
    except OSError:
        refused += 1
open_still = len(held)
deadline = time.monotonic() + 10
while refused == 0 and time.monotonic() < deadline:
    for s in held:
        s.settimeout(0)
        try:
            # An answer to half a request, or the end: it is sent away.
            s.recv(1)
            refused, open_still = refused + 1, open_still - 1
        except BlockingIOError:
            pass
        except OSError:
            refused, open_still = refused + 1, open_still - 1
print(open_still > 0, refused > 0, flush=True)
sys.stdin.readline()
"#;
    let file = tools::script(&home, "hold.py", script);
    let mut crowd = Talker::spawn(
        Command::new("setpriv")
            .args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "/usr/bin/python3"])
            .arg(file)
            .arg(home.socket()),
    );
    assert_eq!(crowd.line(), "True True", "some are held, the rest are sent away");
    // Its owner is served all the while, and agents start.
    let read = home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
    assert_eq!(tools::good(&read), OPENAI);
    // Who says nothing is let go in time.
    let mut silent = UnixStream::connect(home.socket()).unwrap();
    silent.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0);
    crowd.end();
}

#[test]
fn an_agent_forges_no_launch_no_process_and_no_chain() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let socket = home.socket().display().to_string();
    let mut agent = tools::obedient(&home, "CodeAnalyzer", "agent.py");
    let victim = tools::obedient(&home, "TestRunner", "victim.py");
    agent.ask(&format!(
        "keep('ask', lambda path, body: (lambda s: (s.connect('{socket}'), s.sendall((f'POST {{path}} \
         HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\ncontent-type: application/json\\r\\n\
         content-length: {{len(body)}}\\r\\n\\r\\n' + body).encode()), s.makefile().read())[2])\
         (socket.socket(socket.AF_UNIX))) and None"
    ));
    let mut tell = |path: &str, body: &str| {
        agent.ask(&format!("held['ask']('{path}', '''{body}''').split()[1]"))
    };
    let richer = r#"{"chain": "deploy-pipeline", "agent": "TestRunner", "environment": "prod", "how": "move-peer"}"#;
    assert_eq!(tell("/v1/agents", richer), "403");
    let process = victim.id();
    let other = format!(
        r#"{{"chain": "deploy-pipeline", "agent": "TestRunner", "environment": "prod", "how": "attach", "pid": {process}}}"#
    );
    assert_eq!(tell("/v1/agents", &other), "403");
    for launch in ["", "00000000000000000000000000000000", "../../etc"] {
        let body = format!(r#"{{"launch": "{launch}"}}"#);
        let answer = tell("/v1/agents/attach", &body);
        assert!(answer == "404" || answer == "403", "{launch:?}: {answer}");
        let answer = tell("/v1/agents/end", &body);
        assert!(answer == "404" || answer == "403", "{launch:?}: {answer}");
    }
    let ticket = r#"{"ticket": "bm90IGEgdGlja2V0", "how": "move-peer"}"#;
    let answer = tell("/v1/tickets/redeem", ticket);
    assert!(answer == "410" || answer == "403" || answer == "400", "{answer}");
    // Two at once for one: neither wins.
    let race = format!(
        "sorted({{(lambda r: r.split()[1])(held['ask']('/v1/agents', '''{richer}''')) for _ in range(8)}})"
    );
    assert_eq!(agent.ask(&race), "['403']");
    assert_eq!(agent.ask("read(d + '/DATABASE_URL')"), "errno ENOENT");
    assert_eq!(agent.ask("read(path)"), OPENAI);
    agent.end();
    victim.end();
    let denied = home.records("role_denied");
    assert!(!denied.is_empty(), "the refusals are on record");
}

#[test]
fn a_socket_in_other_hands_is_still_that_of_who_connected() {
    if !may_mount() || !tools::has("setpriv") {
        return;
    }
    let home = reachable();
    // A stranger connects, and root sends the request over that connection: judged as the stranger.
    let script = r#"
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
pid = os.fork()
if pid == 0:
    os.setgid(54321); os.setuid(54321)
    s.connect(sys.argv[1])
    os._exit(0)
os.waitpid(pid, 0)
s.settimeout(60)
try:
    s.sendall(b"GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    print(s.recv(64).split(b"\r\n")[0].decode())
except OSError as e:
    print("closed", e)
"#;
    let told = tools::stranger(&home, script, &[home.socket().to_str().unwrap()]);
    assert!(told.contains(" 403 ") || told.contains(" 401 ") || told.contains("closed"), "{told}");
    // The other way round: root connects and hands the socket to an agent; root's process has ended.
    let told = tools::stranger(
        &home,
        &script.replace("os.setgid(54321); os.setuid(54321)\n    ", ""),
        &[home.socket().to_str().unwrap()],
    );
    assert!(
        !told.contains(" 200 "),
        "a peer that has ended has no say over what comes by its socket: {told}"
    );
}

#[test]
fn what_stands_at_the_sockets_path_is_replaced_and_links_are_not_followed() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    home.ok(&["down"]);
    let run = home.home().join("run");
    let aside = home.dir.path().join("aside");
    std::fs::write(&aside, "kept").unwrap();
    for squat in ["link", "file", "socket"] {
        match squat {
            "link" => std::os::unix::fs::symlink(&aside, home.socket()).unwrap(),
            "file" => std::fs::write(home.socket(), "squat").unwrap(),
            _ => drop(std::os::unix::net::UnixListener::bind(home.socket()).unwrap()),
        }
        home.ok(&["up"]);
        assert_eq!(home.json(&["status"])["mounted"], true, "{squat}");
        home.ok(&["down"]);
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), "kept", "{squat}");
    }
    // A directory is nobody's socket, and is left alone.
    std::fs::create_dir(home.socket()).unwrap();
    assert!(home.refused(&["up"]).contains("control.sock"));
    std::fs::remove_dir(home.socket()).unwrap();
    home.ok(&["up"]);
    // Nothing listens where another network namespace could reach it, and only its owner may write there.
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!sockets.lines().any(|line| line.contains("@strongroom")), "no abstract socket");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&run).unwrap().permissions());
    assert_eq!(mode & 0o022, 0, "{mode:o}");
    let squatter = Command::new("setpriv")
        .args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "rm", "-f"])
        .arg(home.socket())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(!squatter.success());
    wait_until("it answers", LIMIT, || text(&home.run(&["status"])).contains("ready"));
}
