//! Policies, their schedule, rotation chains and alerts, on a real daemon.

mod common;

use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{Home, LIMIT, may_mount, text, wait_until};

/// A provider that a directory stands for: `live` holds the passwords that it takes.
struct Provider {
    home: Home,
    dir: PathBuf,
}

/// Reads what the steps leave: each writes a line into `log`.
const STEPS: &str = r#"{"chain": "rotate", "agents": [
  {"name": "create", "command": ["sh", "-c", "echo create >> @DIR@/log; @CREATE@"]},
  {"name": "set", "rotates": ["PASSWORD"], "secrets": ["PASSWORD"],
   "command": ["sh", "-c", "echo set >> @DIR@/log; cat $CREDENTIALS_DIRECTORY/PASSWORD@pending >> @DIR@/live; echo >> @DIR@/live; @SET@"]},
  {"name": "test", "rotates": ["PASSWORD"],
   "command": ["sh", "-c", "echo test >> @DIR@/log; grep -qxF \"$(cat $CREDENTIALS_DIRECTORY/PASSWORD@pending)\" @DIR@/live && grep -qxF \"$(cat $CREDENTIALS_DIRECTORY/PASSWORD@current)\" @DIR@/live && @TEST@"]},
  {"name": "finish", "command": ["sh", "-c", "echo finish $STRONGROOM_ROTATION_NAME >> @DIR@/log"]},
  {"name": "revoke", "command": ["sh", "-c", "echo revoke >> @DIR@/log"]}]}"#;

impl Provider {
    fn new(config: &str, create: &str, set: &str, test: &str) -> Self {
        let home = Home::new();
        home.start();
        let dir = home.dir.path().join("provider");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("live"), "first-password\n").unwrap();
        let config = config.replace("@DIR@", dir.to_str().unwrap());
        home.configure(&config);
        home.ok_with(&["secret", "set", "PASSWORD"], "first-password");
        let provider = Self { home, dir };
        provider.apply_chain(create, set, test);
        provider
    }

    fn apply_chain(&self, create: &str, set: &str, test: &str) {
        let chain = STEPS
            .replace("@DIR@", self.dir.to_str().unwrap())
            .replace("@CREATE@", create)
            .replace("@SET@", set)
            .replace("@TEST@", test);
        let file = self.home.dir.path().join("rotate.json");
        std::fs::write(&file, chain).unwrap();
        self.home.ok(&["chain", "apply", file.to_str().unwrap(), "--yes"]);
    }

    /// No step may take long from here on. Those before are to have the time that they need.
    fn hurry(&self) {
        let file = self.home.home().join("strongroom.toml");
        let config = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, config.replace("\"5m\"", "\"10s\"")).unwrap();
        self.home.ok(&["reload"]);
    }

    fn policy(&self, fields: &str) {
        let text = format!(r#"{{"rotation_policy": {{"PASSWORD": {{{fields}}}}}}}"#);
        self.home.ok_with(&["rotation", "apply", "-"], &text);
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }

    fn stage_of(&self, stage: &str) -> Option<u64> {
        self.home.json(&["secret", "show", "PASSWORD"])["versions"][stage]["version"].as_u64()
    }

    fn has_untouched_secret(&self) -> bool {
        self.stage_of("current") == Some(1)
            && self.stage_of("pending").is_none()
            && self.home.ok(&["secret", "get", "PASSWORD", "--reveal"]) == "first-password"
    }
}

const MAKE: &str = "head -c 18 /dev/urandom | base64";

fn lines(file: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_rotation_goes_through_its_steps_and_the_old_value_goes_when_nobody_holds_it() {
    if !may_mount() {
        return;
    }
    let provider = Provider::new("", MAKE, "true", "true");
    let home = &provider.home;
    provider.policy(r#""rotate_every_days": 30, "rotation_chain": "rotate""#);
    let chain = r#"{"chain": "app", "agents": [{"name": "a", "secrets": ["PASSWORD"]}]}"#;
    home.apply(chain);
    home.ok(&["execution", "start", "--chain", "app", "--id", "long"]);

    home.ok(&["rotation", "run", "PASSWORD"]);
    assert_eq!(provider.log(), ["create", "set", "test"]);
    assert_eq!((provider.stage_of("current"), provider.stage_of("pending")), (Some(1), Some(2)));
    let again = home.refused(&["rotation", "run", "PASSWORD"]);
    assert!(again.contains("pending already"), "{again}");
    home.ok(&["execution", "end", "long"]);
    wait_until("finished", LIMIT, || provider.log().len() == 4);
    assert_eq!(provider.log()[3], "finish PASSWORD");
    assert_eq!(provider.stage_of("current"), Some(2));
    let now = home.ok(&["secret", "get", "PASSWORD", "--reveal"]);
    let live = std::fs::read_to_string(provider.dir.join("live")).unwrap();
    assert!(live.lines().any(|l| l == now), "{now:?} {live:?}");
    let listed = home.json(&["rotation", "list"]);
    assert_eq!(listed["policies"][0]["state"], "ok");

    home.ok_with(&["secret", "revoke", "PASSWORD", "--reason", "leaked"], "by-hand-password");
    wait_until("told the provider", LIMIT, || provider.log().last().unwrap() == "revoke");
}

#[test]
fn whatever_fails_leaves_the_current_version_and_nothing_in_the_way_of_the_next_try() {
    if !may_mount() {
        return;
    }
    let config = "[rotation]\nstep_timeout = \"5m\"\n\
        [[alert]]\nname = \"file\"\ncommand = ['sh', '-c', '''printf \"%s\\n\" \"$(cat)\" >> @DIR@/alerts''']\n";
    let provider = Provider::new(config, "true", "true", "true");
    let home = &provider.home;
    let run = ["rotation", "run", "PASSWORD", "--chain", "rotate"];
    let cases = [
        ("true", "true", "true", "create printed nothing"),
        ("head -c 2000000 /dev/zero", "true", "true", "create printed more than"),
        ("exit 3", "true", "true", "create failed"),
        (MAKE, "exit 1", "true", "set failed"),
        (MAKE, "true", "false", "test failed"),
        (MAKE, "sleep 1000", "true", "set did not end within 10s"),
    ];
    for (create, set, test, what) in cases {
        provider.apply_chain(create, set, test);
        if what.contains("10s") {
            provider.hurry();
        }
        let refused = home.refused(&run);
        assert!(refused.contains(what), "{what}: {refused}");
        assert!(provider.has_untouched_secret(), "{what}");
    }
    home.ok_with(
        &["group", "set", "pair"],
        r#"{"LEFT": "left-value-1", "RIGHT": "right-value-1"}"#,
    );
    for (create, what) in [
        ("echo no json", "create printed no JSON object"),
        ("echo '{\\\"LEFT\\\": \\\"left-value-2\\\"}'", "there is no value for RIGHT"),
    ] {
        provider.apply_chain(create, "true", "true");
        let refused = home.refused(&["rotation", "run", "pair", "--chain", "rotate"]);
        assert!(refused.contains(what), "{refused}");
    }
    let failures = cases.len() + 2;
    let alerts = provider.dir.join("alerts");
    wait_until("alerts", LIMIT, || lines(&alerts).len() == failures);
    assert!(lines(&alerts).iter().all(|a| a["event"] == "rotation_failed"));
    assert_eq!(home.records("rotation_failed").len(), failures);
    let tested = home.json(&["alert", "test"]);
    assert_eq!(tested["deliveries"][0]["delivered"], true);
    provider.apply_chain(MAKE, "true", "true");
    home.ok(&run);
    wait_until("promoted", LIMIT, || provider.stage_of("current").is_some_and(|n| n > 1));
    // No value passed through an alert, a record or a message.
    let value = home.ok(&["secret", "get", "PASSWORD", "--reveal"]);
    assert!(!std::fs::read_to_string(&alerts).unwrap().contains(&value));
}

#[test]
fn a_daemon_killed_at_any_step_discards_the_pending_version() {
    if !may_mount() {
        return;
    }
    for step in ["create", "set", "test"] {
        let halt = |own: &str| if own == step { "sleep 100" } else { "true" };
        let create = format!("{}; {MAKE}", halt("create"));
        let provider = Provider::new("", &create, halt("set"), halt("test"));
        let home = &provider.home;
        let mut run = home
            .command(&["rotation", "run", "PASSWORD", "--chain", "rotate"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the step", LIMIT, || provider.log().last().is_some_and(|l| l == step));
        let worker = nix::unistd::Pid::from_raw(home.worker_pid());
        nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL).unwrap();
        run.wait().unwrap();
        wait_until("cleared", LIMIT, || {
            home.run(&["status"]).status.success() && provider.has_untouched_secret()
        });
        wait_until("recorded", LIMIT, || home.records("rotation_failed").len() == 1);
        let active = home.json(&["execution", "list"]);
        wait_until("ended", LIMIT, || {
            let listed = home.json(&["execution", "list"]);
            listed["executions"].as_array().unwrap().is_empty()
        });
        drop(active);
        provider.apply_chain(MAKE, "true", "true");
        home.ok(&["rotation", "run", "PASSWORD", "--chain", "rotate"]);
    }
}

#[test]
fn a_keeper_killed_at_any_step_leaves_nothing_in_the_way_of_the_next_try() {
    if !may_mount() {
        return;
    }
    for step in ["create", "set", "test"] {
        let halt = |own: &str| if own == step { "sleep 100" } else { "true" };
        let create = format!("{}; {MAKE}", halt("create"));
        let provider = Provider::new("", &create, halt("set"), halt("test"));
        let home = &provider.home;
        let mut run = home
            .command(&["rotation", "run", "PASSWORD", "--chain", "rotate"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the step", LIMIT, || provider.log().last().is_some_and(|l| l == step));
        let keeper = home.json(&["status"])["keeper_pid"].as_i64().unwrap();
        let keeper = nix::unistd::Pid::from_raw(i32::try_from(keeper).unwrap());
        nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL).unwrap();
        run.wait().unwrap();
        wait_until("up again", LIMIT, || home.run(&["up"]).status.success());
        wait_until("cleared", LIMIT, || provider.has_untouched_secret());
        if step != "create" {
            wait_until("recorded", LIMIT, || home.records("rotation_failed").len() == 1);
        }
        provider.apply_chain(MAKE, "true", "true");
        home.ok(&["rotation", "run", "PASSWORD", "--chain", "rotate"]);
    }
}

#[test]
fn a_pending_version_in_test_is_promoted_by_force_alone_and_given_up_by_rollback() {
    if !may_mount() {
        return;
    }
    let go = "while [ ! -e @DIR@/go ]; do sleep 0.05; done";
    let provider = Provider::new("", MAKE, "true", "true");
    let home = &provider.home;
    let go = go.replace("@DIR@", provider.dir.to_str().unwrap());
    provider.apply_chain(MAKE, "true", &go);
    let run = home
        .command(&["rotation", "run", "PASSWORD", "--chain", "rotate"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("the test", LIMIT, || provider.log().last().is_some_and(|l| l == "test"));
    let busy = home.refused(&["rotation", "run", "PASSWORD", "--chain", "rotate"]);
    assert!(busy.contains("runs already"), "{busy}");
    let early = home.refused(&["secret", "promote", "PASSWORD"]);
    assert!(early.contains("not tested yet") && early.contains("--force"), "{early}");
    home.ok(&["secret", "rollback", "PASSWORD"]);
    std::fs::write(provider.dir.join("go"), "").unwrap();
    let told = text(&run.wait_with_output().unwrap());
    assert!(told.contains("given up meanwhile"), "{told}");
    assert!(provider.has_untouched_secret());
    assert!(!provider.log().iter().any(|l| l.starts_with("finish")));
}

#[test]
fn a_new_value_is_in_no_file_argument_or_environment_while_it_is_made_and_tested() {
    if !may_mount() {
        return;
    }
    let value = "only-through-a-pipe-7f3a91c2";
    let make = "cat @DIR@/make | tr a-zA-Z n-za-mN-ZA-M";
    let provider = Provider::new("", "true", "true", "true");
    let home = &provider.home;
    // Made by the step itself, so that nothing but its stdout has it.
    let rot13: String = value.chars().map(rot13).collect();
    std::fs::write(provider.dir.join("make"), rot13).unwrap();
    let go = provider.dir.join("go");
    let hold = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let chain = STEPS
        .replace("@CREATE@", make)
        .replace("cat $CREDENTIALS_DIRECTORY/PASSWORD@pending >> @DIR@/live; echo >> @DIR@/live; @SET@", "true")
        .replace("grep -qxF \\\"$(cat $CREDENTIALS_DIRECTORY/PASSWORD@pending)\\\" @DIR@/live && grep -qxF \\\"$(cat $CREDENTIALS_DIRECTORY/PASSWORD@current)\\\" @DIR@/live && @TEST@", &hold)
        .replace("@DIR@", provider.dir.to_str().unwrap());
    assert!(!chain.contains('@') || !chain.contains("@pending"), "{chain}");
    let file = home.dir.path().join("rotate.json");
    std::fs::write(&file, chain).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap(), "--yes"]);
    let mut run = home
        .command(&["rotation", "run", "PASSWORD", "--chain", "rotate"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the test", LIMIT, || provider.log().last().is_some_and(|l| l == "test"));
    let has = |bytes: &[u8]| bytes.windows(value.len()).any(|w| w == value.as_bytes());
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        if entry.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        for what in ["environ", "cmdline"] {
            let Ok(bytes) = std::fs::read(entry.path().join(what)) else { continue };
            seen += 1;
            // This test's own memory is not looked at; its arguments are.
            assert!(!has(&bytes), "{what} of {:?}", entry.file_name());
        }
    }
    assert!(seen > 10);
    fn walk(dir: &Path, mount: &Path, check: &mut dyn FnMut(&Path)) {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path == mount || path.is_symlink() {
                continue;
            }
            if path.is_dir() { walk(&path, mount, check) } else { check(&path) }
        }
    }
    let mut files = 0;
    walk(home.dir.path(), &home.mount(), &mut |path| {
        if let Ok(meta) = path.metadata()
            && meta.is_file()
        {
            files += 1;
            assert!(!has(&std::fs::read(path).unwrap_or_default()), "{}", path.display());
        }
    });
    assert!(files > 4);
    std::fs::write(&go, "").unwrap();
    assert!(run.wait().unwrap().success());
    wait_until("promoted", LIMIT, || home.ok(&["secret", "get", "PASSWORD", "--reveal"]) == value);
}

/// Every file of the home but the mount, the vault and the steps' own.
fn written(home: &Home) -> String {
    let mut all = String::new();
    for dir in [home.home().join("audit"), home.home()] {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_file() && entry.file_name() != "vault.redb" {
                all.push_str(&String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    all
}

#[test]
fn what_a_step_says_on_stderr_reaches_the_person_and_the_record_without_any_value() {
    if !may_mount() {
        return;
    }
    let config = "[rotation]\nstep_timeout = \"5m\"\n\
        [[alert]]\nname = \"file\"\ncommand = ['sh', '-c', '''printf \"%s\\n\" \"$(cat)\" >> @DIR@/alerts''']\n";
    let provider = Provider::new(config, "true", "true", "true");
    let home = &provider.home;
    let value = "made-by-the-provider-7f3a91c2";
    let base64 = "bWFkZS1ieS10aGUtcHJvdmlkZXItN2YzYTkxYzI";
    let rot13: String = value.chars().map(rot13).collect();
    std::fs::write(provider.dir.join("make"), format!("{rot13}\n")).unwrap();
    let dir = provider.dir.display();
    // Whatever the step has, it says: before it is printed, after it, and in another form.
    let make = format!(
        "v=$(tr a-zA-Z n-za-mN-ZA-M < {dir}/make); echo loud $v >&2; \
         printf %s $v | base64 -w0 >&2; printf '\\\\033[31m\\\\n' >&2; echo $v; echo after $v >&2"
    );
    let silent = |said: &str| {
        assert!(!said.contains(value) && !said.contains(base64), "{said}");
        assert!(!said.contains("first-password"), "{said}");
    };
    let run = |home: &Home| home.run(&["rotation", "run", "PASSWORD", "--chain", "rotate"]);
    let reason = |home: &Home| -> String {
        home.records("rotation_failed").last().unwrap()["reason"].as_str().unwrap().to_owned()
    };
    let alerts = provider.dir.join("alerts");
    let mut failures = 0;
    let mut failed = |what: &str| {
        failures += 1;
        wait_until("the alert", LIMIT, || lines(&alerts).len() == failures);
        let alert = lines(&alerts).pop().unwrap();
        assert!(alert["reason"].as_str().unwrap().contains(what), "{what}: {alert}");
        assert!(reason(home).contains(what), "{what}: {}", reason(home));
    };

    // `set` tells all that it can see.
    let loud = "echo the provider is away >&2; cat $CREDENTIALS_DIRECTORY/* >&2; exit 3";
    provider.apply_chain(&make, loud, "true");
    let output = run(home);
    let said = text(&output);
    assert!(!output.status.success());
    assert!(said.contains("create: loud [REDACTED:new-value]"), "{said}");
    assert!(said.contains("create: after [REDACTED:new-value]"), "{said}");
    assert!(said.contains("set: the provider is away"), "{said}");
    assert!(said.contains("[REDACTED:PASSWORD]"), "{said}");
    assert!(!said.contains('\x1b'), "{said:?}");
    silent(&said);
    failed("the provider is away");

    // `create` fails after it has printed, then without having printed anything.
    provider.apply_chain(&format!("{make}; exit 4"), "true", "true");
    let said = text(&run(home));
    assert!(said.contains("create: after [REDACTED:"), "{said}");
    silent(&said);
    failed("after [REDACTED:");
    provider.apply_chain("echo no quota left >&2; exit 5", "true", "true");
    let said = text(&run(home));
    assert!(said.contains("create: no quota left"), "{said}");
    failed("create failed: exit status: 5");
    assert!(!reason(home).contains("quota"), "kept nowhere: what it made is not known");

    // Too weak a value, or too much text: told of, not shown.
    provider.apply_chain("echo a-x-b >&2; echo x; exit 6", "true", "true");
    let said = text(&run(home));
    assert!(said.contains("withheld: the value that was made is too weak"), "{said}");
    failed("too weak");
    provider.apply_chain(MAKE, "yes complaint | head -c 3000000 >&2; exit 7", "true");
    let said = text(&run(home));
    assert!(said.contains("set: (what it said on stderr is withheld: it is longer"), "{said}");
    failed("longer than 1 MiB");
    // Long, and not too long: its end.
    provider.apply_chain(
        MAKE,
        "yes complaint | head -c 100000 >&2; echo >&2; echo end >&2; exit 8",
        "true",
    );
    let output = run(home);
    assert!(output.stderr.len() < 20_000, "{}", output.stderr.len());
    assert!(text(&output).contains("set: end\n"), "{}", text(&output));
    failed("| end");
    assert!(reason(home).len() < 500, "{}", reason(home));

    // What succeeds is heard as well; a hang is told with what was said before.
    provider.hurry();
    provider.apply_chain(MAKE, "echo waits for the provider >&2; sleep 1000", "true");
    let said = text(&run(home));
    assert!(said.contains("did not end within 10s") && said.contains("waits for"), "{said}");
    failed("waits for the provider");
    provider.apply_chain(&make, "echo a warning >&2", "true");
    let output = run(home);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("set: a warning") && said.contains("PASSWORD is rotated"), "{said}");
    silent(&said);
    let all = written(home) + &std::fs::read_to_string(&alerts).unwrap();
    silent(&all);
    assert!(all.contains("a step of a rotation failed"), "the operator's log");
    wait_until("promoted", LIMIT, || home.ok(&["secret", "get", "PASSWORD", "--reveal"]) == value);
}

fn rot13(c: char) -> char {
    match c {
        'a'..='m' | 'A'..='M' => (c as u8 + 13) as char,
        'n'..='z' | 'N'..='Z' => (c as u8 - 13) as char,
        other => other,
    }
}

#[test]
fn a_step_that_leaves_a_process_with_its_output_does_not_hang_the_rotation() {
    if !may_mount() {
        return;
    }
    let config = "[rotation]\nstep_timeout = \"8s\"\n";
    let create = format!("{MAKE}; (setsid sleep 1000 &)");
    let provider = Provider::new(config, &create, "true", "true");
    // Ended with its step, or told of: never waited for without end.
    let begun = std::time::Instant::now();
    let _either = provider.home.run(&["rotation", "run", "PASSWORD", "--chain", "rotate"]);
    assert!(begun.elapsed() < LIMIT);
    provider.apply_chain(MAKE, "true", "true");
    wait_until("free again", LIMIT, || {
        let _given_up = provider.home.run(&["secret", "rollback", "PASSWORD"]);
        provider.home.run(&["rotation", "run", "PASSWORD", "--chain", "rotate"]).status.success()
    });
}

#[test]
fn a_place_that_hangs_keeps_neither_reads_nor_other_places_and_a_killed_worker_loses_no_alert() {
    if !may_mount() {
        return;
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, bodies) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = std::io::BufReader::new(stream.try_clone().unwrap());
            let mut len = 0;
            loop {
                let mut line = String::new();
                if lines.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                    break;
                }
                if let Some(rest) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    len = rest.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; len];
            lines.read_exact(&mut body).unwrap();
            let _gone = stream.write_all(
                b"HTTP/1.1 204 No Content\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            );
            if sender.send(serde_json::from_slice::<serde_json::Value>(&body).unwrap()).is_err() {
                return;
            }
        }
    });
    let config = format!(
        "[[alert]]\nname = \"hangs\"\ncommand = [\"sleep\", \"1000\"]\ntimeout = \"30s\"\n\
         [[alert]]\nname = \"late\"\ntimeout = \"5m\"\n\
         command = ['sh', '-c', '''while [ ! -e @DIR@/go ]; do sleep 0.05; done; printf \"%s\\n\" \"$(cat)\" >> @DIR@/alerts''']\n\
         [[alert]]\nname = \"hook\"\nwebhook = \"http://{address}/hook\"\n"
    );
    let provider = Provider::new(&config, MAKE, "true", "true");
    let home = &provider.home;
    provider.policy(r#""rotate_every": "3s", "notify_before": "2s""#);
    let first = bodies.recv_timeout(LIMIT).unwrap();
    assert_eq!((&first["event"], &first["secret"]), (&"rotation_due".into(), &"PASSWORD".into()));
    home.ok(&["secret", "edit", "PASSWORD", "--expires-at", &in_a_second()]);
    assert_eq!(bodies.recv_timeout(LIMIT).unwrap()["event"], "secret_expired");
    home.ok(&["secret", "edit", "PASSWORD", "--expires-at", "never"]);
    // The place that hangs is still at its first.
    let view = home.dir.path().join("view");
    let mut command =
        home.command(&["run", "--redact", "off", "-s", "PASSWORD", "--deliver", "files"]);
    command.args(["--secrets-path", view.to_str().unwrap(), "--", "sh", "-c"]);
    let read = command.arg("cat $CREDENTIALS_DIRECTORY/PASSWORD").output().unwrap();
    assert_eq!(text(&read), "first-password");

    let alerts = provider.dir.join("alerts");
    let worker = nix::unistd::Pid::from_raw(home.worker_pid());
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("served", LIMIT, || home.run(&["status"]).status.success());
    std::fs::write(provider.dir.join("go"), "").unwrap();
    let told = |event: &str| lines(&alerts).iter().any(|a| a["event"] == event);
    wait_until("both", LIMIT, || told("rotation_due") && told("secret_expired"));
}

#[test]
fn the_schedule_rotates_by_itself_and_says_what_is_due() {
    if !may_mount() {
        return;
    }
    let provider = Provider::new("", MAKE, "true", "true");
    let home = &provider.home;
    provider.policy(
        r#""rotate_every": "2s", "notify_before": "500ms", "auto_rotate": true, "rotation_chain": "rotate""#,
    );
    wait_until("two rotations", LIMIT, || provider.stage_of("current").is_some_and(|n| n >= 3));
    home.ok(&["rotation", "rm", "PASSWORD"]);
    assert!(home.records("rotation_due").len() >= 2);
    assert!(home.ok(&["rotation", "list"]).contains("(none)"));

    let bad = [
        (r#"{"rotation_policy": {"NO_SUCH": {"rotate_every_days": 3}}}"#, "NO_SUCH"),
        (r#"{"rotation_policy": {"PASSWORD": {"rotate_every_days": 0}}}"#, "rotate_every_days"),
        (r#"{"rotation_policy": {"PASSWORD": {"rotate_every_days": -1}}}"#, "rotate_every_days"),
        (
            r#"{"rotation_policy": {"PASSWORD": {"rotate_every_days": 3, "notify_before_days": 4}}}"#,
            "the notice is to come",
        ),
        (
            r#"{"rotation_policy": {"PASSWORD": {"rotate_every_days": 3, "rotation_chain": "none"}}}"#,
            "there is no chain none",
        ),
        ("{", "line 1"),
    ];
    for (policy, what) in bad {
        let output = home.run_with(&["rotation", "apply", "-"], policy);
        assert!(!output.status.success());
        let said = text(&output);
        assert!(said.contains(what) && said.contains("hint: "), "{policy}: {said}");
    }
    assert!(home.ok(&["rotation", "list"]).contains("(none)"));
    // An end that has come is told once, and denies.
    home.ok(&["secret", "edit", "PASSWORD", "--expires-at", &in_a_second()]);
    wait_until("expired", LIMIT, || home.records("secret_expired").len() == 1);
}

#[test]
fn failed_unlocks_bursts_of_refusals_and_an_altered_log_raise_alerts_and_a_drill_is_complete() {
    if !may_mount() {
        return;
    }
    let config = "[[alert]]\nname = \"file\"\ncommand = ['sh', '-c', '''printf \"%s\\n\" \"$(cat)\" >> @DIR@/alerts''']\n";
    let provider = Provider::new(config, MAKE, "true", "true");
    let home = &provider.home;
    let alerts = provider.dir.join("alerts");
    let events = || -> Vec<String> {
        lines(&alerts).iter().map(|a| a["event"].as_str().unwrap().to_owned()).collect()
    };
    home.ok_with(&["secret", "set", "FOREIGN", "--scope", "chain:other"], "foreign-value");
    let view = home.dir.path().join("view");
    let script = "for i in $(seq 40); do cat $CREDENTIALS_DIRECTORY/FOREIGN; done";
    let mut run = home.command(&["run", "-s", "PASSWORD", "--secrets-path"]);
    let output = run.args([view.to_str().unwrap(), "--", "sh", "-c", script]).output().unwrap();
    assert!(text(&output).contains("No such file"));
    wait_until("a burst", LIMIT, || events() == ["denied_burst"]);

    let drill = home.json(&["drill", "revoke"]);
    assert_eq!((&drill["complete"], &drill["ended"]), (&true.into(), &1.into()), "{drill}");
    wait_until("revoked", LIMIT, || events() == ["denied_burst", "secret_revoked"]);
    let record = &home.records("secret_revoked")[0];
    assert_eq!(record["reason"], "drill");
    assert!(record["took_us"].as_u64().unwrap() > 0);
    assert!(!home.ok(&["secret", "list"]).contains("DRILL"));

    home.ok(&["lock"]);
    let wrong = home.dir.path().join("wrong");
    std::fs::write(&wrong, [9; 32]).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&wrong, private).unwrap();
    home.refused(&["unlock", "--key-file", wrong.to_str().unwrap()]);
    wait_until("unlock", LIMIT, || events().last().unwrap() == "unlock_failed");
    home.ok(&["unlock"]);

    let log = std::fs::read_dir(home.home().join("audit"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .unwrap();
    let altered = std::fs::read_to_string(&log).unwrap().replacen("denied", "granted", 1);
    std::fs::write(&log, altered).unwrap();
    assert!(!home.run(&["audit", "verify"]).status.success());
    wait_until("verify", LIMIT, || events().last().unwrap() == "verify_failed");
}

fn in_a_second() -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "-d", "+2 seconds", "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
