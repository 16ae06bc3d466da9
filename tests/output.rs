//! What comes out of `run`: redacted, and else as if the command had been started by itself.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{AWS_SECRET, DB_PROD, Home, LIMIT, OPENAI, may_mount, text, wait_until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::Winsize;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn run(home: &Home, more: &[&str], script: &str) -> Command {
    let mut command = home.command(&["run", "--chain", "deploy-pipeline", "--env", "prod"]);
    if !more.contains(&"--agent") {
        command.args(["--agent", "TestRunner"]);
    }
    command
        .arg("--secrets-path")
        .arg(home.dir.path().join("view"))
        .args(more)
        .args(["--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn output(home: &Home, more: &[&str], script: &str) -> Output {
    run(home, more, script).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The value of a file, as a shell prints it.
const SHOW: &str = r#"cat "$CREDENTIALS_DIRECTORY/DATABASE_URL""#;

#[test]
fn values_do_not_come_out_of_either_pipe_and_all_else_does() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = format!("{SHOW}; echo ' out'; {{ {SHOW}; echo ' err'; }} >&2; printf last");
    let done = output(&home, &[], &script);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    assert_eq!(out(&done), "[REDACTED:DATABASE_URL] out\nlast");
    assert_eq!(err(&done), "[REDACTED:DATABASE_URL] err\n");
    let nothing = output(&home, &[], "true");
    assert_eq!((out(&nothing), err(&nothing)), (String::new(), String::new()));
    // Another form, and the password alone.
    let done = output(&home, &[], &format!("{SHOW} | base64 -w0; echo; echo canary-hunter2"));
    let lines: Vec<_> = done.stdout.split(|b| *b == b'\n').collect();
    // The last characters of it depend on what follows.
    assert!(
        lines[0].starts_with(b"[REDACTED:DATABASE_URL]") && lines[0].len() < 28,
        "{}",
        out(&done)
    );
    assert_eq!(lines[1], b"[REDACTED:DATABASE_URL]");
    let records = home.records("output_redacted");
    let found = records.iter().find(|r| r["reason"] == "stderr").expect("a record");
    assert_eq!(found["secret_key"], "DATABASE_URL");
    assert_eq!((&found["via"], &found["agent"]), (&"output".into(), &"TestRunner".into()));
    assert!(!format!("{records:?}").contains("canary"));
}

#[test]
fn values_that_come_by_the_environment_are_hidden_when_env_prints_them() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let done = output(&home, &["--agent", "Deployer"], "env | grep AWS_SECRET; set | grep AWS_S");
    let told = out(&done);
    assert!(told.contains("AWS_SECRET_ACCESS_KEY=[REDACTED:AWS_SECRET_ACCESS_KEY]"), "{told}");
    assert!(!told.contains(AWS_SECRET), "{told}");
    // Without a definition as well.
    let alone = home
        .command(&["run", "-s", "OPENAI_API_KEY", "--deliver", "env", "--secrets-path"])
        .arg(home.dir.path().join("view"))
        .args(["--", "sh", "-c", "echo $OPENAI_API_KEY; (trap '' TERM; sleep 0.3; env) &"])
        .output()
        .unwrap();
    assert!(out(&alone).starts_with("[REDACTED:OPENAI_API_KEY]\n"), "{}", text(&alone));
    assert!(!text(&alone).contains(OPENAI), "{}", text(&alone));
}

#[test]
fn bytes_that_are_no_text_come_out_as_they_are() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let file = home.dir.path().join("bytes");
    let mut bytes = vec![0; 3_000_001];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    fs::write(&file, &bytes).unwrap();
    let done = output(&home, &["--redact", "values"], &format!("cat '{}'", file.display()));
    assert_eq!(done.stdout.len(), bytes.len());
    assert!(done.stdout == bytes);
}

#[test]
fn the_status_is_the_commands_own() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for level in ["values", "off"] {
        for (script, status) in
            [("exit 0", 0), ("exit 7", 7), ("exec nonsense-command", 127), ("exec /", 126)]
        {
            let done = output(&home, &["--redact", level], script);
            assert_eq!(done.status.code(), Some(status), "{level} {script}: {}", text(&done));
        }
    }
    for (signal, status) in [("TERM", 143), ("KILL", 137), ("INT", 130), ("PIPE", 141)] {
        let done = output(&home, &[], &format!("kill -{signal} $$"));
        assert_eq!(done.status.code(), Some(status), "{signal}: {}", text(&done));
    }
    let replaced = output(&home, &["--no-redact"], "kill -TERM $$");
    assert_eq!(replaced.status.signal(), Some(15), "the command itself was our child");
}

#[test]
fn the_command_inherits_no_signals_that_the_launcher_keeps_for_itself() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let blocked = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    let outside = Command::new("sh").args(["-c", blocked]).output().unwrap();
    assert_eq!(out(&output(&home, &[], blocked)), out(&outside));
    let mut screen = Screen::start(&home, &[], &format!("{blocked}; echo end"), &[]);
    assert_eq!(screen.expect("end").replace("\r\n", "\n"), out(&outside));
}

#[test]
fn without_redaction_the_launcher_becomes_the_command() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let child = run(&home, &["--no-redact"], &format!("echo $$; {SHOW}")).spawn().unwrap();
    let pid = child.id();
    let done = child.wait_with_output().unwrap();
    assert_eq!(out(&done), format!("{pid}\n{DB_PROD}"));
    wait_until("the execution ends with it", LIMIT, || {
        home.json(&["execution", "list"])["executions"].as_array().is_none_or(Vec::is_empty)
    });
}

#[test]
fn both_outputs_keep_their_order_where_they_are_one() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let (mut reading, writing) = std::io::pipe().unwrap();
    let script = "i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let mut command = run(&home, &[], script);
    command.stdout(writing.try_clone().unwrap()).stderr(writing);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut told = String::new();
    reading.read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success());
    let expected: String = (0..300).map(|i| format!("out {i}\nerr {i}\n")).collect();
    assert_eq!(told, expected);
}

#[test]
fn an_agent_whose_reader_goes_meets_a_closed_pipe() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut child = run(&home, &[], "exec yes").spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert_eq!(line, "y\n");
    drop(reader);
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(141), "{}", text(&done));
    assert_eq!(err(&done), "");
}

#[test]
fn a_value_in_pieces_is_hidden_however_long_the_rest_takes_to_come() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = format!(
        r#"v="$({SHOW})"; printf 'a %.20s' "$v"; sleep 0.4; printf '%s' "$v" | cut -c21- | tr -d '\n'; echo ' z'"#
    );
    let mut child = run(&home, &[], &script).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 2];
    stdout.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"a ", "what cannot become a value is out at once");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "[REDACTED:DATABASE_URL] z\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_worker_that_dies_or_is_replaced_loses_and_doubles_nothing() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = format!(
        r#"touch "$FIFO.on"; v="$({SHOW})"; i=0; while [ $i -lt 4000 ]; do echo "$i $v $i"; i=$((i+1)); done; read go < "$FIFO"; echo end"#
    );
    let fifo = home.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = run(&home, &[], &script);
    let child = command.env("FIFO", &fifo).spawn().unwrap();
    let reader = std::thread::spawn(move || child.wait_with_output().unwrap());
    let started = home.dir.path().join("fifo.on");
    wait_until("the agent", LIMIT, || started.exists());
    for round in 0..6 {
        if round == 3 {
            home.ok(&["reload"]);
        } else {
            kill(Pid::from_raw(home.worker_pid()), Signal::SIGKILL).unwrap();
        }
        std::thread::park_timeout(Duration::from_millis(150));
    }
    let go = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    (&go).write_all(b"go\n").unwrap();
    let done = reader.join().unwrap();
    let mut expected: String =
        (0..4000).map(|i| format!("{i} [REDACTED:DATABASE_URL] {i}\n")).collect();
    expected.push_str("end\n");
    assert_eq!(done.status.code(), Some(0), "{}", err(&done));
    assert!(out(&done) == expected, "{}", out(&done).len());
}

#[test]
fn a_locked_vault_stops_the_output_and_nothing_passes_in_clear() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = format!(
        r#"v="$({SHOW})"; echo before; read go < "$FIFO"; trap '' PIPE; echo "$v"; sleep 0.2; echo "$v"; exit 0"#
    );
    let fifo = home.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut child = run(&home, &[], &script).env("FIFO", &fifo).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    home.ok(&["lock"]);
    fs::write(&fifo, "go\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!((line.as_str(), rest.as_str()), ("before\n", ""));
    assert_eq!(done.status.code(), Some(125), "{}", err(&done));
    assert!(err(&done).contains("the vault is locked"), "{}", err(&done));
    assert!(!err(&done).contains("canary"), "{}", err(&done));
}

#[test]
fn what_the_command_leaves_behind_is_ended_and_its_last_words_come_out() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let listens = home.dir.path().join("listens");
    let script = format!(
        "v=$({SHOW}); (trap 'printf %s \"$v\"; exit' TERM; touch {0}; while :; do sleep 0.05; done) & \
         while [ ! -e {0} ]; do sleep 0.01; done",
        listens.display()
    );
    let done = output(&home, &[], &script);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    assert_eq!(out(&done), "[REDACTED:DATABASE_URL]");
    let kept = output(&home, &["--keep-background"], &format!("(sleep 0.5; {SHOW}) & exit 3"));
    assert_eq!(kept.status.code(), Some(3), "{}", text(&kept));
    assert_eq!(out(&kept), "[REDACTED:DATABASE_URL]");
}

#[test]
fn nothing_that_is_held_back_tells_of_the_values_of_other_chains() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let foreign = "Vq7Jx3Lm9Tz2Rw5Yb8NcHd4Kf6";
    home.ok_with(&["secret", "set", "FOREIGN", "--scope", "chain:elsewhere"], foreign);
    home.ok_with(&["secret", "set", "PIN", "--scope", "chain:elsewhere"], "48151623");
    let (first, rest) = foreign.split_at(17);
    // No newline follows: what comes at once does not depend on what the vault holds.
    let script = format!(
        "printf '%s' '{first}'; read go; printf '%s\\n' '{rest}' '{foreign}' 48151623 'FOREIGN PIN'"
    );
    let mut command = run(&home, &["--redact", "values"], &script);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut at_once = vec![0; first.len()];
    stdout.read_exact(&mut at_once).unwrap();
    assert_eq!(at_once, first.as_bytes());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut told = String::new();
    stdout.read_to_string(&mut told).unwrap();
    assert_eq!(told, "[REDACTED]\n[REDACTED]\n48151623\nFOREIGN PIN\n");
    assert!(child.wait().unwrap().success());
}

#[test]
fn how_much_is_taken_out_is_what_was_asked_for() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let token = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";
    let random = "q7Kz0Xv9bT3mW5yR8uJ1nL4cF6hD2sGpA0eZxVbNqM7kJ5tY";
    let key =
        "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0BAQ\\n-----END PRIVATE KEY-----";
    let word = "db_password = 7Hq2ZpX9vLm4TnB8sRd3";
    let script = format!("{SHOW}; echo; echo '{token} {random}'; echo '{key}'; echo '{word}'");
    let value = "[REDACTED:DATABASE_URL]\n";
    for (more, first, tokens, keys, words) in [
        (&["--redact", "off"][..], format!("{DB_PROD}\n"), format!("{token} {random}"), key, word),
        (&["--redact", "values"], value.into(), format!("{token} {random}"), key, word),
        (
            &["--redact", "formats"],
            value.into(),
            format!("[REDACTED:github-token] {random}"),
            "[REDACTED:private-key]",
            word,
        ),
        // Unless told otherwise.
        (
            &[],
            value.into(),
            format!("[REDACTED:github-token] {random}"),
            "[REDACTED:private-key]",
            word,
        ),
        (
            &["--redact", "all"],
            value.into(),
            "[REDACTED:github-token] [REDACTED:high-entropy]".into(),
            "[REDACTED:private-key]",
            "db_password = [REDACTED:keyword-secret]",
        ),
    ] {
        let done = output(&home, more, &script);
        let keys = keys.replace("\\n", "\n");
        assert_eq!(out(&done), format!("{first}{tokens}\n{keys}\n{words}\n"), "{more:?}");
    }
}

/// Without groups of its own `run` is the agent's parent, as in user mode.
#[test]
fn in_tree_mode_output_is_redacted_and_a_daemon_that_is_gone_for_good_stops_it() {
    if !may_mount() {
        return;
    }
    let mut home = Home::new();
    home.env.push(("STRONGROOM_DISABLE".into(), "cgroup".into()));
    home.start();
    home.fill();
    let done = output(&home, &[], &format!("{SHOW}; echo; {SHOW} >&2; exit 4"));
    assert_eq!(done.status.code(), Some(4), "{}", text(&done));
    assert_eq!(out(&done), "[REDACTED:DATABASE_URL]\n");
    assert!(err(&done).ends_with("[REDACTED:DATABASE_URL]"), "{}", err(&done));
    assert!(err(&done).contains("identity by process tree"), "{}", err(&done));
    let reason = home.records("agent_started")[0]["reason"].to_string();
    assert!(reason.contains("identity by process tree"), "{reason}");
    // Until its output is closed.
    let script = format!(
        r#"v="$({SHOW})"; trap '' PIPE; echo first; while echo "$v"; do sleep 0.05; done 2>/dev/null; exit 0"#
    );
    let mut child = run(&home, &[], &script).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "first\n");
    let keeper = home.json(&["status"])["keeper_pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(keeper).unwrap()), Signal::SIGKILL).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let done = child.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(125), "{}", err(&done));
    assert!(rest.lines().all(|line| line == "[REDACTED:DATABASE_URL]"), "{rest}");
    assert!(!err(&done).contains("canary"), "{}", err(&done));
}

#[test]
fn an_agent_of_another_user_is_redacted_too() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let done = output(&home, &["--as", "nobody"], &format!("id -un; {SHOW}"));
    assert_eq!(out(&done), "nobody\n[REDACTED:DATABASE_URL]", "{}", text(&done));
}

/// What holds on a terminal holds for an isolated agent as well.
const PLAIN_AND_ISOLATED: [&[&str]; 2] = [&[], &["--isolate"]];

/// A terminal of the test's own, with a command on it.
struct Screen {
    master: OwnedFd,
    child: Child,
    seen: String,
}

impl Screen {
    /// Begins a session on a terminal of 31 rows and 97 columns.
    fn start(home: &Home, more: &[&str], script: &str, through: &[&str]) -> Self {
        let size = Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let run = run(home, more, script);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).args(through).arg(run.get_program());
        command.args(run.get_args()).env("STRONGROOM_HOME", home.home());
        let end = || pty.slave.try_clone().unwrap();
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { master: pty.master, child, seen: String::new() }
    }

    fn type_in(&self, keys: &str) {
        let mut file = fs::File::from(self.master.try_clone().unwrap());
        file.write_all(keys.as_bytes()).unwrap();
    }

    /// Reads what is there; false at the end.
    fn read(&mut self, wait_ms: u16) -> bool {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::from(wait_ms)).unwrap() == 0 {
            return true;
        }
        let mut buffer = [0; 4096];
        match nix::unistd::read(&self.master, &mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
                true
            }
        }
    }

    /// Waits for a text after what was awaited before.
    fn expect(&mut self, what: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(what) {
                let before = self.seen[..at].to_owned();
                self.seen.drain(..at + what.len());
                return before;
            }
            assert!(Instant::now() < deadline, "not seen: {what:?} in {:?}", self.seen);
            assert!(self.read(100) || self.seen.contains(what), "no {what:?}: {:?}", self.seen);
        }
    }

    fn end(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.read(20);
            if let Some(status) = self.child.try_wait().unwrap() {
                while self.read(20) && Instant::now() < deadline {
                    let before = self.seen.len();
                    self.read(50);
                    if self.seen.len() == before {
                        break;
                    }
                }
                return (status.code(), std::mem::take(&mut self.seen));
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("it does not end: {:?}", self.seen);
            }
        }
    }

    fn is_cooked(&self) -> bool {
        let settings = nix::sys::termios::tcgetattr(&self.master).unwrap();
        settings.local_flags.contains(nix::sys::termios::LocalFlags::ICANON)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A test that failed leaves it.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

#[test]
fn on_a_terminal_the_agent_has_one_of_its_own_and_it_is_redacted() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for more in PLAIN_AND_ISOLATED {
        let script = format!(
            "for i in 0 1 2; do test -t $i && echo tty $i; done; stty size; {SHOW}; echo; \
         {SHOW} > /dev/tty; echo; echo err >&2; echo 'Password: ' | tr -d '\\n'; read line; \
         echo \"got $line\"; exit 9"
        );
        let mut screen = Screen::start(&home, more, &script, &[]);
        screen.expect("tty 0\r\ntty 1\r\ntty 2\r\n31 97\r\n");
        screen.expect("[REDACTED:DATABASE_URL]\r\n[REDACTED:DATABASE_URL]\r\nerr\r\nPassword: ");
        assert!(!screen.is_cooked(), "keys are passed on as they come");
        for key in ["p", "o", "s"] {
            // These begin a value, and are seen all the same.
            screen.type_in(key);
            screen.expect(key);
        }
        screen.type_in("hello\r");
        screen.expect("hello\r\ngot poshello\r\n");
        let master = screen.master.try_clone().unwrap();
        assert_eq!(screen.end(), (Some(9), String::new()));
        let settings = nix::sys::termios::tcgetattr(&master).unwrap();
        assert!(settings.local_flags.contains(nix::sys::termios::LocalFlags::ICANON), "as it was");
    }
}

#[test]
fn keys_that_interrupt_reach_the_command_and_its_status_comes_back() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for more in PLAIN_AND_ISOLATED {
        let mut screen = Screen::start(&home, more, "echo ready; exec sleep 60", &[]);
        screen.expect("ready");
        screen.type_in("\x03");
        let (status, _) = screen.end();
        assert_eq!(status, Some(130));
        let mut screen = Screen::start(
            &home,
            more,
            "trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.05; done",
            &[],
        );
        screen.expect("ready");
        screen.type_in("\x03");
        screen.expect("caught");
        assert_eq!(screen.end().0, Some(4));
    }
}

#[test]
fn a_signal_that_ends_the_launcher_gives_the_terminal_back() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for more in PLAIN_AND_ISOLATED {
        let mut screen = Screen::start(
            &home,
            more,
            "echo ready; exec sleep 60",
            &["sh", "-c", "echo $$; exec \"$@\"", "sh"],
        );
        let pid: i32 = screen.expect("\r\nready").trim().parse().unwrap();
        assert!(!screen.is_cooked());
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        let master = screen.master.try_clone().unwrap();
        assert_eq!(screen.end().0, Some(143));
        let settings = nix::sys::termios::tcgetattr(&master).unwrap();
        assert!(settings.local_flags.contains(nix::sys::termios::LocalFlags::ICANON));
    }
}

#[test]
fn a_command_is_stopped_by_a_key_and_goes_on_in_the_foreground() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for more in PLAIN_AND_ISOLATED {
        let script = r#""$@"; echo "shell: $?"; echo waits; read x; fg; echo "ended: $?""#;
        let agent = "echo ready; read line; echo \"got $line\"; exit 6";
        let mut screen = Screen::start(&home, more, agent, &["bash", "-m", "-c", script, "bash"]);
        screen.expect("ready");
        screen.type_in("\x1a");
        screen.expect("waits");
        assert!(screen.is_cooked(), "the shell has its terminal back");
        screen.type_in("x\n");
        let deadline = Instant::now() + LIMIT;
        while screen.is_cooked() {
            assert!(Instant::now() < deadline, "{:?}", screen.seen);
            screen.read(10);
        }
        screen.type_in("more\r");
        screen.expect("got more");
        screen.expect("ended: 6");
        screen.end();
    }
}

#[test]
fn another_size_of_the_terminal_is_told() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for more in PLAIN_AND_ISOLATED {
        let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
        let mut screen = Screen::start(&home, more, script, &[]);
        screen.expect("ready");
        let size = Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        strongroom::sys::terminal::set_size(screen.master.as_fd(), size).unwrap();
        screen.expect("50 132");
        assert_eq!(screen.end().0, Some(0));
    }
}

#[test]
fn in_a_pipeline_only_what_was_a_terminal_is_one() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for more in PLAIN_AND_ISOLATED {
        let script = format!(
            "for i in 0 1 2; do test -t $i && echo tty $i 1>&2; done; stty size <&2 >&2; {SHOW} >&2; \
         echo >&2; {SHOW}; echo"
        );
        let mut screen = Screen::start(
            &home,
            more,
            &script,
            // What came by the pipe is said when it has ended: both go to one terminal, in no order.
            &["sh", "-c", "\"$@\" | sed 'H;$!d;x;s/\\n/&piped: /g'; echo done", "sh"],
        );
        let told = screen.expect("done");
        assert!(told.contains("tty 0\r\ntty 2\r\n31 97\r\n"), "{told:?}");
        assert!(told.contains("piped: [REDACTED:DATABASE_URL]\r\n"), "{told:?}");
        assert_eq!(told.matches("[REDACTED:DATABASE_URL]").count(), 2, "{told:?}");
        screen.end();
    }
}
