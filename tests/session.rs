//! The README's session and what must not happen in it: the real binary, daemon and mount.

mod common;

use common::{DB_PROD, Home, LIMIT, OPENAI, SSH_KEY, may_mount, text, wait_until};

#[test]
fn each_agent_reads_its_own_secrets_and_no_others() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let look = "ls \"$CREDENTIALS_DIRECTORY\"; cat \"$CREDENTIALS_DIRECTORY\"/*[A-Z]*";
    let analyzer = home.agent("CodeAnalyzer", look);
    assert_eq!(text(&analyzer), format!("OPENAI_API_KEY\nevents\n{OPENAI}"));
    let tester = home.agent("TestRunner", look);
    assert_eq!(text(&tester), format!("DATABASE_URL\nOPENAI_API_KEY\nevents\n{DB_PROD}{OPENAI}"));
    let deployer =
        home.agent("Deployer", "ls \"$CREDENTIALS_DIRECTORY\"; cat \"$DEPLOY_KEY_FILE\"");
    assert_eq!(
        text(&deployer),
        format!(
            "AWS_ACCESS_KEY_ID\nAWS_SECRET_ACCESS_KEY\nOPENAI_API_KEY\nevents\nid_deploy\n{SSH_KEY}"
        )
    );
    let foreign = home.agent("TestRunner", "cat \"$CREDENTIALS_DIRECTORY\"/id_deploy");
    assert!(text(&foreign).contains("No such file"), "{}", text(&foreign));
    assert_eq!(foreign.status.code(), Some(1));
    let by_environment = home.agent("Deployer", "printf %s \"$AWS_SECRET_ACCESS_KEY\"");
    assert_eq!(text(&by_environment), common::AWS_SECRET);
    let not_asked_for = home.agent("Deployer", "printf %s \"$OPENAI_API_KEY\"");
    assert_eq!(text(&not_asked_for), "");
}

#[test]
fn a_stranger_sees_an_empty_directory_that_says_why() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let names: Vec<_> =
        std::fs::read_dir(home.mount()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, [".identity"]);
    let told = std::fs::read_to_string(home.mount().join(".identity")).unwrap();
    assert!(told.contains("belongs to no execution"), "{told}");
    for name in ["OPENAI_API_KEY", "NO_SUCH_NAME", "events"] {
        let error = std::fs::read(home.mount().join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{name}");
    }
    let error = std::fs::write(home.mount().join("x"), "x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn every_read_is_on_record_and_an_altered_log_is_found() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for _ in 0..5 {
        home.agent("TestRunner", "cat \"$CREDENTIALS_DIRECTORY\"/DATABASE_URL");
    }
    let records = home.records("secret_accessed");
    assert_eq!(records.len(), 5);
    for record in &records {
        assert_eq!(record["secret_key"], "prod/DATABASE_URL");
        assert_eq!(record["agent"], "TestRunner");
        assert_eq!(record["version"], 1);
    }
    assert!(home.ok(&["audit", "verify"]).starts_with("ok: "));
    home.ok(&["down"]);
    let dir = home.home().join("audit");
    let offline = ["audit", "verify", "--dir", dir.to_str().unwrap()];
    assert!(home.ok(&offline).starts_with("ok: "));
    let file = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "jsonl"))
        .unwrap();
    let log = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, log.replacen("TestRunner", "Deployer", 1)).unwrap();
    let output = home.run(&offline);
    assert_eq!(output.status.code(), Some(8));
    assert!(text(&output).contains("ALTERED"), "{}", text(&output));
}

#[test]
fn the_status_of_run_is_the_commands_own() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let view = home.dir.path().join("view");
    let status = |script: &str| {
        let agent = ["run", "--chain", "deploy-pipeline", "--agent", "CodeAnalyzer"];
        let more = ["--env", "prod", "--secrets-path", view.to_str().unwrap(), "--"];
        home.run(&[&agent[..], &more[..], &["sh", "-c", script]].concat()).status.code()
    };
    assert_eq!(status("exit 0"), Some(0));
    assert_eq!(status("exit 42"), Some(42));
    assert_eq!(status("kill -KILL $$"), Some(137));
    let view = home.dir.path().join("view");
    let run = |command: &str| {
        home.run(&[
            "run",
            "-s",
            "OPENAI_API_KEY",
            "--secrets-path",
            view.to_str().unwrap(),
            "--",
            command,
        ])
    };
    assert_eq!(run("/nonexistent").status.code(), Some(127));
    assert_eq!(run("/etc/passwd").status.code(), Some(126));
    let unknown = home.run(&["run", "--chain", "none", "--agent", "x", "--", "true"]);
    assert_eq!(unknown.status.code(), Some(125));
}

#[test]
fn the_command_inherits_no_blocked_signals() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let blocked = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    let outside = std::process::Command::new("sh").args(["-c", blocked]).output().unwrap();
    assert_eq!(text(&home.agent("CodeAnalyzer", blocked)), text(&outside));
    // A shell that waits for children needs SIGCHLD.
    let waits = home.agent("CodeAnalyzer", "sleep 0.05 & sleep 0.1 & wait; echo done");
    assert_eq!(text(&waits), "done\n");
}

#[test]
fn what_an_agent_leaves_behind_is_ended_with_it() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let file = home.dir.path().join("pid");
    let script = format!("setsid sleep 300 & echo $! > {}; wait_for=1", file.display());
    home.agent("CodeAnalyzer", &script);
    let pid = std::fs::read_to_string(&file).unwrap();
    // A process leaves its group a moment before it is a zombie.
    wait_until("the end of the sleep", LIMIT, || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        state.map_or(true, |state| state.contains(") Z "))
    });
    // The daemon notices the end of a process that has no launcher.
    wait_until("the execution's end", LIMIT, || home.json(&["status"])["executions"] == 0);
}

#[test]
fn several_agents_share_an_execution_and_its_pins() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let start = ["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", "r1"];
    assert_eq!(home.ok(&start).trim(), "r1");
    assert_eq!(home.json(&start)["created"], false);
    let view = home.dir.path().join("view");
    let read = || {
        let output = home.run(&[
            "run",
            "--no-redact",
            "--execution",
            "r1",
            "--agent",
            "CodeAnalyzer",
            "--secrets-path",
            view.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY",
        ]);
        text(&output)
    };
    assert_eq!(read(), OPENAI);
    home.ok_with(&["secret", "set", "OPENAI_API_KEY", "--scope", "org", "--replace"], "sk-new-one");
    // The run keeps what it started with; a new one gets the new version.
    assert_eq!(read(), OPENAI);
    assert_eq!(
        text(&home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY")),
        "sk-new-one"
    );
    home.ok(&["execution", "end", "r1"]);
    let message = home.refused(&[
        "run",
        "--no-redact",
        "--execution",
        "r1",
        "--agent",
        "CodeAnalyzer",
        "--",
        "true",
    ]);
    assert!(message.contains("has ended"), "{message}");
}

#[test]
fn a_reference_that_resolves_to_nothing_stops_the_launch_with_the_remedy() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let message = home.refused(&[
        "run",
        "--no-redact",
        "--chain",
        "deploy-pipeline",
        "--agent",
        "TestRunner",
        "--",
        "true",
    ]);
    assert!(message.contains("DATABASE_URL of agent TestRunner resolves to nothing"), "{message}");
    assert!(message.contains("hint: strongroom secret set DATABASE_URL --scope"), "{message}");
    assert!(home.records("agent_started").is_empty());
}

#[test]
fn an_agent_has_no_role_whatever_its_uid() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let strongroom = env!("CARGO_BIN_EXE_strongroom");
    let script =
        format!("{strongroom} --home {} secret get OPENAI_API_KEY --reveal", home.home().display());
    let output = home.agent("CodeAnalyzer", &script);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(!text(&output).contains(OPENAI));
    // The neighbouring allow: the same verb by the operator.
    assert_eq!(home.ok(&["secret", "get", "OPENAI_API_KEY", "--reveal"]), OPENAI);
    assert_eq!(home.records("revealed").len(), 1);
    assert!(!home.records("role_denied").is_empty());
}

#[test]
fn a_locked_vault_gives_nothing_and_unlocks_again() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    home.ok(&["lock"]);
    let output = home.run(&["secret", "list"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output).contains("hint: strongroom unlock"));
    home.ok(&["unlock"]);
    assert!(home.ok(&["secret", "list"]).contains("OPENAI_API_KEY"));
}

#[test]
fn bad_input_is_told_with_the_next_step_and_changes_nothing() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let set = |args: &[&str], input: &str| {
        let mut all = vec!["secret", "set"];
        all.extend(args);
        let output = home.run_with(&all, input);
        assert!(!output.status.success(), "{args:?}");
        let message = text(&output);
        assert!(message.contains("hint: ") || message.contains("error: "), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
        message
    };
    set(&["OPENAI_API_KEY", "--scope", "org"], "hunter2hunter2");
    set(&["../etc", "--scope", "org"], "hunter2");
    set(&["events"], "hunter2");
    set(&["A", "--scope", "team:x"], "hunter2");
    set(&["qa/A"], "hunter2");
    set(&["A"], "");
    set(&["A"], &"x".repeat((1 << 20) + 1));
    home.refused(&["up"]);
    home.refused(&["secret", "show", "NONE"]);
    home.refused(&["execution", "show", "none"]);
    home.refused(&["key", "rm", "1"]);
    home.refused(&["secret", "get", "OPENAI_API_KEY"]);
    let file = home.dir.path().join("bad.json");
    std::fs::write(&file, "{\"chain\": \"x\",\n \"agents\": [{\"name\": \"A\", \"secrts\": []}]}")
        .unwrap();
    let message = home.refused(&["chain", "check", file.to_str().unwrap()]);
    assert!(message.contains("line 2, column"), "{message}");
    assert!(message.contains("did you mean \"secrets\"?"), "{message}");
    let listed = home.json(&["secret", "list"]);
    assert_eq!(listed["secrets"].as_array().unwrap().len(), 5);
}

/// How a value may be written; base64 without the characters that its neighbours decide.
fn forms(value: &str) -> Vec<(&'static str, Vec<u8>)> {
    use base64ct::{Base64Unpadded, Base64UrlUnpadded, Encoding};
    let bytes = value.as_bytes();
    let each = |write: &dyn Fn(u8) -> String| bytes.iter().map(|b| write(*b)).collect::<String>();
    let mut forms = vec![
        ("plain", bytes.to_vec()),
        ("hex", each(&|b| format!("{b:02x}")).into_bytes()),
        ("upper-case hex", each(&|b| format!("{b:02X}")).into_bytes()),
        ("percent", each(&|b| format!("%{b:02X}")).into_bytes()),
        ("a list of numbers", each(&|b| format!("{b}, ")).trim_end_matches(", ").into()),
        ("JSON escapes", each(&|b| format!("\\u{b:04x}")).into_bytes()),
        ("reversed", bytes.iter().rev().copied().collect()),
        ("UTF-16", bytes.iter().flat_map(|b| [*b, 0]).collect()),
    ];
    for lead in 0..3 {
        let padded = [&vec![0; lead][..], bytes].concat();
        let (first, last) = ((lead * 8_usize).div_ceil(6), padded.len() * 8 / 6);
        let cut = |text: String| text.as_bytes()[first..last].to_vec();
        forms.push(("base64", cut(Base64Unpadded::encode_string(&padded))));
        forms.push(("base64url", cut(Base64UrlUnpadded::encode_string(&padded))));
    }
    forms
}

/// All that is made to tell what it must not: agents' output and events, filters, scans, refusals,
/// rotations and revokes. What was printed.
fn agents_that_tell(home: &Home) -> Vec<u8> {
    let dir = home.dir.path();
    let mut seen = Vec::new();
    let mut keep = |output: std::process::Output| {
        seen.extend(output.stdout);
        seen.extend(output.stderr);
    };
    let chain = ["--chain", "deploy-pipeline", "--agent", "Deployer", "--env", "prod"];
    let view = dir.join("view").display().to_string();
    let run = |script: &str| {
        let mut args = vec!["run", "--redact", "all", "--secrets-path", &view];
        args.extend(chain);
        args.extend(["--", "sh", "-c", script]);
        home.run(&args)
    };
    let all = "cat $CREDENTIALS_DIRECTORY/*[A-Z]* $CREDENTIALS_DIRECTORY/id_deploy";
    keep(run(&format!("{all}; {all} | base64; {all} | od -An -tx1 | tr -d ' \\n'; {all} >&2")));
    keep(run(&format!(
        "{all} > $STRONGROOM_EVENTS_DIR/plain; {all} | base64 -w0 > $STRONGROOM_EVENTS_DIR/b64; \
         {all} | tee -a $STRONGROOM_EVENTS_DIR/plain > $STRONGROOM_EVENTS_DIR/again; \
         touch \"$STRONGROOM_EVENTS_DIR/$(cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY)\""
    )));
    // A file of all values, outside the home: what is told of it is looked at, not the file.
    let leak =
        format!("{OPENAI}\n{}\n{}\n{}\n", common::DB_PROD, common::SSH_KEY, common::AWS_SECRET);
    let file = dir.join("leak.env");
    std::fs::write(&file, leak).unwrap();
    let file = file.to_str().unwrap();
    for format in ["text", "json", "sarif"] {
        keep(home.run(&["scan", "--values", "--format", format, file]));
    }
    keep(home.run(&["redact", file]));
    // Refusals: a value in the wrong place.
    for args in [
        &["import", file][..],
        &["chain", "apply", file],
        &["rotation", "apply", file],
        &["group", "set", "wrong", "--file", file],
        &["backup", "verify", file],
        &["unlock", "--key-file", file],
    ] {
        keep(home.run(args));
    }
    for wrong in [OPENAI, common::AWS_SECRET] {
        keep(home.run_with(&["group", "set", "wrong"], wrong));
        keep(home.run_with(&["secret", "set", "OPENAI_API_KEY"], wrong));
        let body = format!("{{\"name\": \"A\", \"value\": [\"{wrong}\"]}}");
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--unix-socket"]).arg(home.socket());
        curl.args(["--json", &body, "http://localhost/v1/secrets"]);
        keep(curl.output().unwrap());
    }
    for path in ["/v1/metrics", "/v1/status", "/v1/audit", "/v1/events", "/v1/access"] {
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--unix-socket"]).arg(home.socket());
        keep(curl.arg(format!("http://localhost{path}")).output().unwrap());
    }
    // In the home, so that it is searched with all the rest.
    let backup = home.home().join("all.backup");
    keep(home.run_with(&["backup", "create", backup.to_str().unwrap()], "a long passphrase"));
    keep(home.run_with(&["secret", "rotate", "OPENAI_API_KEY"], "canary-next-0123456789abcdef"));
    let revoke = ["secret", "revoke", "OPENAI_API_KEY", "--reason", "test", "--no-replacement"];
    keep(home.run(&revoke));
    seen
}

#[test]
fn no_value_is_anywhere_but_where_it_was_asked_for() {
    if !may_mount() {
        return;
    }
    let mut home = Home::new();
    home.env.push(("STRONGROOM_LOG".into(), "trace".into()));
    home.start();
    home.fill();
    home.agent("TestRunner", "cat $CREDENTIALS_DIRECTORY/*[A-Z]*");
    let mut seen = agents_that_tell(&home);
    for args in [
        &["secret", "list"][..],
        &["secret", "show", "OPENAI_API_KEY"],
        &["group", "list"],
        &["chain", "list"],
        &["access"],
        &["status"],
        &["doctor"],
        &["audit", "query"],
        &["execution", "list", "--all"],
        &["key", "list"],
        &["secret", "exposures", "OPENAI_API_KEY"],
        &["events", "list"],
        &["rotation", "list"],
        &["config", "show"],
        &["explain", "--pid", "1", "OPENAI_API_KEY"],
        &["prompt", "--chain", "deploy-pipeline", "--agent", "Deployer", "--env", "prod"],
        &["setup", "--dry-run"],
        &["man", "secret", "set"],
    ] {
        seen.extend(home.run(args).stdout);
        let mut json = args.to_vec();
        json.push("--json");
        seen.extend(home.run(&json).stdout);
    }
    // A worker that dies of a fault leaves no image of its memory, wherever the kernel would put it.
    let worker = home.worker_pid();
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let cwd = std::fs::read_link(format!("/proc/{worker}/cwd")).unwrap();
    let pid = nix::unistd::Pid::from_raw(worker);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGABRT).unwrap();
    wait_until("another worker", LIMIT, || {
        home.run(&["status"]).status.success() && home.worker_pid() != worker
    });
    for name in ["core".to_owned(), format!("core.{worker}")] {
        assert!(!cwd.join(&name).exists(), "{name} in {}", cwd.display());
    }
    home.ok(&["down"]);
    let mut files = vec![home.home()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            seen.extend(std::fs::read(&path).unwrap());
        }
    }
    let next = "canary-next-0123456789abcdef";
    for canary in [OPENAI, "canary-hunter2", "canaryKEY", common::AWS_SECRET, next] {
        for (form, text) in forms(canary) {
            let found = memchr::memmem::find(&seen, &text).is_some();
            assert!(!found, "a value was written somewhere, in form {form}");
        }
    }
}

#[test]
fn a_dotenv_file_is_taken_as_a_whole_or_not_at_all() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let file = home.dir.path().join(".env");
    std::fs::write(
        &file,
        "# comment\nexport STRIPE_KEY='sk_live_canary0123456789'\nLOG_LEVEL=info\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let dry = home.json(&["import", path, "--scope", "org", "--dry-run"]);
    assert_eq!(dry["items"].as_array().unwrap().len(), 2);
    assert_eq!(home.json(&["secret", "list"])["secrets"].as_array().unwrap().len(), 5);
    let taken = home.json(&["import", path, "--scope", "org"]);
    let kinds: Vec<_> =
        taken["items"].as_array().unwrap().iter().map(|i| i["plain"].as_bool().unwrap()).collect();
    assert_eq!(kinds, [false, true]);
    assert_eq!(taken["notes"][0], format!("lines 2, 3 of {path} can go now"));
    assert_eq!(home.ok(&["secret", "get", "STRIPE_KEY", "--reveal"]), "sk_live_canary0123456789");
    std::fs::write(&file, "STRIPE_KEY=other\nNEW_ONE=value\n").unwrap();
    let message = home.refused(&["import", path, "--scope", "org"]);
    assert!(message.contains("STRIPE_KEY exists already"), "{message}");
    home.refused(&["secret", "show", "NEW_ONE"]);
    home.ok(&["import", path, "--scope", "org", "--on-conflict", "skip"]);
    assert_eq!(home.ok(&["secret", "get", "NEW_ONE", "--reveal"]), "value");
    assert_eq!(home.ok(&["secret", "get", "STRIPE_KEY", "--reveal"]), "sk_live_canary0123456789");
    std::fs::write(&file, "1BAD=canary-bad\n").unwrap();
    let message = home.refused(&["import", path]);
    assert!(message.contains("line 1") && !message.contains("canary-bad"), "{message}");
}

#[test]
fn no_page_of_the_worker_can_be_swapped_where_it_may_lock_them() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    assert_eq!(home.json(&["status"])["hardening"]["memory_locked"], "full");
    let status = std::fs::read_to_string(format!("/proc/{}/status", home.worker_pid())).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // More than what is resident: what comes later is locked as it comes.
    assert!(kib("VmLck:") >= kib("VmRSS:"), "{status}");
    // Without the right to it, the status says so and the daemon serves all the same.
    let home = Home::new();
    home.init();
    let up = std::process::Command::new("setpriv")
        .args(["--bounding-set", "-ipc_lock,-sys_resource", "prlimit", "--memlock=65536:65536"])
        .arg(env!("CARGO_BIN_EXE_strongroom"))
        .arg("up")
        .env("STRONGROOM_HOME", home.home())
        .output()
        .unwrap();
    assert!(up.status.success(), "{}", text(&up));
    assert_eq!(home.json(&["status"])["hardening"]["memory_locked"], "partial");
}

#[test]
fn chains_come_onto_a_projects_list_and_go_and_a_difference_is_shown_before_it_holds() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let missing = home.run(&["project", "add", "billing", "--chain", "billing/refunds"]);
    assert!(!missing.status.success());
    assert!(text(&missing).contains("hint: "), "{}", text(&missing));
    home.ok(&["project", "set", "billing", "--chain", "billing/invoices"]);
    home.ok(&["project", "add", "billing", "--chain", "deploy-pipeline"]);
    // Twice is once.
    home.ok(&["project", "add", "billing", "--chain", "deploy-pipeline"]);
    let chains = || home.json(&["project", "list"])["projects"][0]["chains_allowed"].clone();
    assert_eq!(chains(), serde_json::json!(["billing/invoices", "deploy-pipeline"]));
    home.ok_with(
        &["secret", "set", "BILLING_KEY", "--scope", "project:billing"],
        "billing-canary-77",
    );
    let file = home.dir.path().join("wider.json");
    let wider = r#"{"chain": "deploy-pipeline", "agents": [
        {"name": "CodeAnalyzer", "secrets": ["OPENAI_API_KEY", "BILLING_KEY"]}]}"#;
    std::fs::write(&file, wider).unwrap();
    let path = file.to_str().unwrap();
    let told = home.json(&["access", "--diff", path]);
    assert_eq!(told["widens"], true, "{told}");
    let changes = told["changes"].to_string();
    assert!(changes.contains("BILLING_KEY") && changes.contains("removed"), "{changes}");
    // Nothing of it holds.
    let access = home.json(&["access", "--chain", "deploy-pipeline"]);
    assert!(!access.to_string().contains("BILLING_KEY"), "{access}");
    home.ok(&["project", "remove", "billing", "--chain", "deploy-pipeline"]);
    assert_eq!(chains(), serde_json::json!(["billing/invoices"]));
    let unresolved = home.run(&["access", "--diff", path]);
    assert!(!unresolved.status.success(), "{}", text(&unresolved));
    let again = home.run(&["project", "remove", "billing", "--chain", "deploy-pipeline"]);
    assert!(text(&again).contains("not on the list"), "{}", text(&again));
}

#[test]
fn the_demo_shows_it_all_and_leaves_nothing_behind() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let demo = |script: &str| {
        let output = std::process::Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_strongroom")])
            .env("TMPDIR", dir.path())
            .env_remove("STRONGROOM_HOME")
            .output()
            .unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{}", text(&output));
        output
    };
    let whole = demo("\"$0\" demo");
    assert!(whole.status.success(), "{}", text(&whole));
    let told = text(&whole);
    for part in [
        "reads DATABASE_URL: no such file",
        "uploading with key [REDACTED:AWS_SECRET_ACCESS_KEY]",
        "demo-run: version 1",
        "demo-new: version 2",
        "reads OPENAI_API_KEY: No such file",
        "secret_accessed",
        "ok: ",
    ] {
        assert!(told.contains(part), "not {part}: {told}");
    }
    // A reader that goes early is no reason to leave anything, nor to panic.
    let early = demo("\"$0\" demo | head -n 1");
    assert!(!text(&early).contains("panicked"), "{}", text(&early));
}

#[test]
fn down_says_who_still_runs_and_ends_them_or_leaves_them_when_it_is_told_to() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let view = home.dir.path().join("view");
    let start = |script: &str| {
        let mut run = home.command(&["run", "--chain", "deploy-pipeline", "--agent", "TestRunner"]);
        run.args(["--env", "prod", "--secrets-path", view.to_str().unwrap(), "--", "sh", "-c"]);
        let mut child = run.arg(script).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        (child, line.trim().to_owned(), out)
    };
    let look = "echo $$; while :; do cat $CREDENTIALS_DIRECTORY/DATABASE_URL >/dev/null 2>&1 || \
                echo gone; sleep 0.1; done";
    let (mut agent, pid, _out) = start(look);
    let message = home.refused(&["down"]);
    assert!(message.contains("1 execution still runs"), "{message}");
    assert!(message.contains("--end-agents") && message.contains("--force"), "{message}");
    let told = text(&home.run(&["down"]));
    assert!(told.contains("of deploy-pipeline: TestRunner"), "{told}");
    assert_eq!(home.run(&["down"]).status.code(), Some(7));
    assert_eq!(home.json(&["status"])["executions"], 1, "nothing was ended");
    home.ok(&["down", "--end-agents"]);
    assert!(!agent.wait().unwrap().success());
    assert!(!std::path::Path::new(&format!("/proc/{pid}/cwd")).exists());
    home.ok(&["up"]);
    let records = home.records("execution_ended");
    assert_eq!(records.last().unwrap()["reason"], "the daemon goes down");

    // Left alive on purpose, an agent has lost its secrets at once.
    let mut silent = home.command(&["run", "--no-redact", "--chain", "deploy-pipeline", "--agent"]);
    silent.args(["TestRunner", "--env", "prod", "--secrets-path", view.to_str().unwrap(), "--"]);
    let mut left =
        silent.args(["sh", "-c", look]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(left.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    home.ok(&["down", "--force"]);
    line.clear();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "gone\n");
    left.kill().unwrap();
    left.wait().unwrap();
}
