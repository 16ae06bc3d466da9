//! What is wrong with what a person gives, or with the host: each is told in two lines, what happened
//! and the next step, and nothing is lost or half done.

mod common;

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use common::{Home, LIMIT, OPENAI, may_mount, text};

fn mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

std::thread_local! {
    /// What the errors of this thread's test looked like.
    static SEEN: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the errors of a test as people see them, in a file, so that a change of words is seen and
/// meant. `STRONGROOM_UPDATE=1 cargo test --test bad_input` writes it anew.
struct Kept(&'static str);

impl Drop for Kept {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/errors");
        let file = dir.join(format!("{}.txt", self.0));
        let seen = SEEN.take();
        if std::env::var_os("STRONGROOM_UPDATE").is_some() {
            std::fs::create_dir_all(dir).unwrap();
            std::fs::write(&file, &seen).unwrap();
        }
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(seen, kept, "if it was meant: STRONGROOM_UPDATE=1 cargo test --test bad_input");
    }
}

/// Without what differs from run to run: scratch directories, numbers of processes.
fn steady(text: &str) -> String {
    let mut parts = text.split("/tmp/.tmp");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str("$DIR");
        out.push_str(part.get(6..).unwrap_or_default());
    }
    for before in ["revision ", "log has seen ", "file_len="] {
        let parts: Vec<_> = out.split(before).map(ToOwned::to_owned).collect();
        let rest = parts.iter().skip(1).map(|p| p.trim_start_matches(|c: char| c.is_ascii_digit()));
        out = std::iter::once(parts[0].as_str()).chain(rest).collect::<Vec<_>>().join(before);
    }
    // Values of a megabyte are named by their length.
    out.lines().map(|l| l.chars().take(400).collect::<String>() + "\n").collect()
}

/// Two lines: what happened, and the next step; with the status.
fn told(output: &Output, status: u8, what: &[&str], hint: &[&str]) {
    let all = text(output);
    SEEN.with_borrow_mut(|seen| {
        let asked = common::LAST.with_borrow(|asked| steady(asked));
        seen.push_str(&format!("$ {asked}{}status {status}\n\n", steady(&all)));
    });
    assert_eq!(output.status.code(), Some(i32::from(status)), "{all}");
    let line = |start: &str| {
        let found = all.lines().find_map(|l| l.strip_prefix(start));
        found.unwrap_or_else(|| panic!("no {start} in {all}")).to_owned()
    };
    let (error, next) = (line("error: "), line("hint: "));
    for part in what {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    for part in hint {
        assert!(next.contains(part), "{part:?} is not in {next:?}");
    }
    assert!(
        !error.ends_with('.')
            && error.starts_with(|c: char| !c.is_ascii_uppercase() || error.starts_with("OPENAI")),
        "{error}"
    );
    assert!(!all.contains("panicked"), "{all}");
}

#[test]
fn a_wrong_passphrase_opens_nothing_is_recorded_and_slows_the_next() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("passphrase");
    let home = Home::new();
    let made = home.run_with(&["init", "--unlock", "passphrase"], "correct horse battery\n");
    assert!(made.status.success(), "{}", text(&made));
    let short = Home::new();
    let refused = short.run_with(&["init", "--unlock", "passphrase"], "x\n");
    told(&refused, 1, &["passphrase"], &[]);
    assert!(!short.home().join("vault.redb").exists());
    home.ok(&["up"]);
    told(
        &home.run_with(&["unlock"], "wrong horse battery\n"),
        4,
        &["could not be unlocked"],
        &["key list"],
    );
    told(&home.run_with(&["secret", "set", "A"], "value"), 4, &["locked"], &["strongroom unlock"]);
    let unlocked = home.run_with(&["unlock"], "correct horse battery\n");
    let again = text(&unlocked);
    if !unlocked.status.success() {
        assert!(again.contains("hint: "), "{again}");
        common::wait_until("the pause is over", LIMIT, || {
            home.run_with(&["unlock"], "correct horse battery\n").status.success()
        });
    }
    assert_eq!(home.records("unlock_failed").len(), 1);
    home.ok_with(&["secret", "set", "A"], "value");
}

#[test]
fn a_key_file_that_others_read_that_is_gone_or_another_is_refused() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("key-file");
    let home = Home::new();
    let key = home.dir.path().join("key");
    let unlock = format!("key-file:{}", key.display());
    told(&home.run(&["init", "--unlock", &unlock]), 1, &["cannot be read"], &["--key-file"]);
    std::fs::write(&key, [7; 32]).unwrap();
    mode(&key, 0o644);
    told(&home.run(&["init", "--unlock", &unlock]), 1, &["mode 0644"], &["chmod 600"]);
    mode(&key, 0o600);
    std::fs::write(&key, [7; 31]).unwrap();
    told(&home.run(&["init", "--unlock", &unlock]), 1, &["31 bytes"], &["/dev/urandom"]);
    assert!(!home.home().join("vault.redb").exists(), "nothing half made");
    told(&home.run(&["init", "--unlock", "pigeon"]), 1, &["pigeon"], &["key-file:PATH"]);
    told(&home.run(&["up"]), 6, &["there is no vault"], &["strongroom init"]);
    std::fs::write(&key, [7; 32]).unwrap();
    home.ok(&["init", "--unlock", &unlock]);
    told(&home.run(&["init", "--unlock", &unlock]), 1, &["there is a vault already"], &[]);
    mode(&key, 0o640);
    // Served, so that people can mend it; `up` says why it gives nothing.
    told(&home.run(&["up"]), 4, &["locked", "mode 0640"], &["chmod 600"]);
    mode(&key, 0o600);
    std::fs::write(&key, [8; 32]).unwrap();
    told(&home.run(&["unlock"]), 4, &["could not be unlocked"], &[]);
    std::fs::write(&key, [7; 32]).unwrap();
    common::wait_until("unlocked", LIMIT, || home.run(&["unlock"]).status.success());
}

#[test]
fn a_second_daemon_on_one_home_is_refused_and_harms_nothing() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("second-daemon");
    let home = Home::deployed();
    told(&home.run(&["up"]), 7, &["already serves"], &["strongroom down"]);
    told(&home.run(&["serve"]), 1, &["already serves"], &["strongroom down"]);
    let read = home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
    assert_eq!(text(&read), OPENAI);
}

#[test]
fn a_mount_point_that_is_missing_is_made_and_one_that_is_not_empty_is_left_alone() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("mount-point");
    let home = Home::deployed();
    home.ok(&["down"]);
    std::fs::remove_dir(home.mount()).unwrap();
    home.ok(&["up"]);
    home.ok(&["down"]);
    std::fs::write(home.mount().join("precious"), "x").unwrap();
    told(&home.run(&["up"]), 1, &["is taken", "not empty"], &["[mount] path"]);
    assert_eq!(std::fs::read(home.mount().join("precious")).unwrap(), b"x");
    std::fs::remove_file(home.mount().join("precious")).unwrap();
    std::fs::remove_dir(home.mount()).unwrap();
    std::fs::write(home.mount(), "a file").unwrap();
    told(&home.run(&["up"]), 1, &["cannot be prepared"], &["directory"]);
    std::fs::remove_file(home.mount()).unwrap();
    home.ok(&["up"]);
}

#[test]
fn names_scopes_and_values_that_cannot_be_are_refused_one_by_one() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("names");
    let home = Home::deployed();
    let set = |args: &[&str], value: &str| {
        let mut all = vec!["secret", "set"];
        all.extend(args);
        home.run_with(&all, value)
    };
    told(&set(&["1BAD"], "hunter2x"), 1, &["a secret's name"], &[]);
    told(&set(&["../etc/passwd"], "hunter2x"), 1, &["an environment has"], &[]);
    told(&set(&["A B"], "hunter2x"), 1, &["a secret's name"], &[]);
    told(&set(&["events"], "hunter2x"), 1, &["events"], &[]);
    told(&set(&["nowhere/A"], "hunter2x"), 1, &["nowhere"], &["environments"]);
    told(&set(&["A", "--scope", "team:x"], "hunter2x"), 1, &["a scope is org"], &[]);
    told(&set(&["A", "--scope", "agent:only"], "hunter2x"), 1, &["a scope is org"], &[]);
    told(&set(&["A"], ""), 1, &["empty"], &[]);
    told(&set(&["A"], &"x".repeat((1 << 20) + 1)), 1, &["1048576 bytes"], &[]);
    told(&set(&["OPENAI_API_KEY", "--scope", "org"], "hunter2x"), 7, &["exists"], &["rotate"]);
    assert!(set(&["A"], &"x".repeat(1 << 20)).status.success(), "1 MiB is a value");
    let listed = home.json(&["secret", "list"]);
    assert_eq!(listed["secrets"].as_array().unwrap().len(), 6);
}

#[test]
fn chains_and_agents_that_are_unknown_are_named_with_those_that_are_known() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("chains");
    let home = Home::deployed();
    let run = |chain: &str, agent: &str, env: &str| {
        home.run(&["run", "--chain", chain, "--agent", agent, "--env", env, "--", "true"])
    };
    told(&run("nope", "A", "prod"), 125, &["no chain nope"], &["chain apply"]);
    told(&run("deploy-pipeline", "Nobody", "prod"), 125, &["no agent Nobody"], &["CodeAnalyzer"]);
    told(&run("deploy-pipeline", "CodeAnalyzer", "mars"), 125, &["mars"], &["environments"]);
    let start = home.run(&["execution", "start", "--chain", "nope"]);
    told(&start, 6, &["no chain nope"], &["chain apply"]);
    assert_eq!(home.json(&["status"])["executions"], 0);
    assert!(home.records("agent_started").is_empty());
}

#[test]
fn the_socket_of_a_dead_daemon_and_no_daemon_at_all_are_told() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("no-daemon");
    let home = Home::deployed();
    let worker = home.kill_daemon();
    common::wait_until("both are gone", LIMIT, || {
        !std::path::Path::new(&format!("/proc/{worker}/exe")).exists()
    });
    assert!(home.socket().exists(), "the socket is left");
    for args in [&["status"][..], &["secret", "list"], &["down"]] {
        told(&home.run(args), 3, &["no daemon"], &["strongroom up"]);
    }
    told(&home.run(&["run", "-s", "A", "--", "true"]), 125, &["no daemon"], &["strongroom up"]);
    home.ok(&["up"]);
    assert_eq!(home.json(&["status"])["state"], "ready");
}

#[test]
fn without_fuse_the_start_names_what_is_missing_and_leaves_nothing() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("no-fuse");
    let home = Home::deployed();
    home.ok(&["down"]);
    let up = |prepare: &str| {
        let strongroom = env!("CARGO_BIN_EXE_strongroom");
        let home_dir = home.home();
        common::LAST.set("strongroom up".to_owned());
        let script = format!("{prepare}; exec {strongroom} --home {} up", home_dir.display());
        Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap()
    };
    // A device that is there and leads nowhere; and none at all.
    told(&up("mount --bind /dev/null /dev/fuse"), 1, &["/dev/fuse"], &["FUSE"]);
    let none = "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; \
                mknod -m 666 /dev/urandom c 1 9";
    told(&up(none), 1, &["/dev/fuse"], &["modprobe fuse"]);
    home.ok(&["up"]);
}

#[test]
fn a_full_disk_refuses_a_change_as_a_whole_and_heals() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("full-disk");
    let home = Home::new();
    let disk = home.home();
    std::fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m,mode=700", "small"])
        .arg(&disk)
        .status()
        .unwrap();
    assert!(mount.success());
    // The record of a refusal needs its place too, so the log lies elsewhere.
    let audit = home.dir.path().join("audit");
    std::fs::create_dir(&audit).unwrap();
    std::os::unix::fs::symlink(&audit, disk.join("audit")).unwrap();
    std::fs::write(
        disk.join("strongroom.toml"),
        format!(
            "[unlock]\nmethod = \"key-file\"\npath = \"{}\"\n",
            home.dir.path().join("key").display()
        ),
    )
    .unwrap();
    home.start();
    home.ok_with(&["secret", "set", "KEPT"], "canary-kept");
    let filler = disk.join("filler");
    let _full = std::fs::write(&filler, vec![0; 8 << 20]);
    let big = "x".repeat(1 << 19);
    let refused = home.run_with(&["secret", "set", "BIG"], &big);
    told(&refused, 1, &["vault file", "no space"], &["space"]);
    home.refused(&["secret", "show", "BIG"]);
    // Who saw a value must be on the ledger first, for which there is no room; it is still there.
    told(&home.run(&["secret", "get", "KEPT", "--reveal"]), 1, &["no space"], &["space"]);
    std::fs::remove_file(&filler).unwrap();
    common::wait_until("the vault heals", LIMIT, || {
        home.run(&["secret", "get", "KEPT", "--reveal"]).stdout == b"canary-kept"
    });
    home.ok_with(&["secret", "set", "BIG"], &big);
    home.ok(&["down"]);
    home.ok(&["up"]);
    assert_eq!(home.ok(&["secret", "get", "BIG", "--reveal"]).len(), big.len());
    home.ok(&["down"]);
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
}

#[test]
fn what_a_configuration_definition_or_import_has_wrong_is_told_with_its_place() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("files");
    let home = Home::deployed();
    let write = |name: &str, content: &str| {
        std::fs::write(home.dir.path().join(name), content).unwrap();
    };
    write("a.json", "{\"chain\": \"a\",\n \"agents\": [{\"name\": \"A\", \"secrts\": []}]}");
    told(&home.run(&["chain", "check", "a.json"]), 1, &["line 2", "column"], &["did you mean"]);
    write(
        "b.json",
        "{\"chain\": \"a\", \"agents\": [{\"name\": \"A\", \"secrets\": [{\"name\": \"K\", \"value\": \"hunter2-canary\"}]}]}",
    );
    told(&home.run(&["chain", "apply", "b.json"]), 1, &["line 1"], &["secret set"]);
    write("c.json", "{\"chain\": \"a\", \"agents\": [{\"name\": \"A\"}]");
    told(&home.run(&["chain", "apply", "c.json"]), 1, &["not JSON"], &[]);
    told(&home.run(&["chain", "apply", "none.json"]), 1, &["none.json"], &[]);
    write("p.json", "{\"rotation_policy\": {\"OPENAI_API_KEY\": {\"rotate_evry_days\": 3}}}");
    told(&home.run(&["rotation", "apply", "p.json"]), 1, &["line 1"], &[]);
    write("e.env", "A='hunter2-canary\nB=2\n");
    told(&home.run(&["import", "e.env"]), 1, &["line 1"], &[]);
    write("f.env", "OPENAI_API_KEY=hunter2-canary\n");
    told(&home.run(&["import", "f.env"]), 7, &["exists already"], &["--on-conflict"]);
    told(&home.run(&["secret", "show", "NOPE"]), 6, &["NOPE"], &["secret list"]);
    told(&home.run(&["secret", "get", "OPENAI_API_KEY"]), 1, &["on demand"], &["--reveal"]);
    told(&home.run(&["group", "show", "nope"]), 6, &["nope"], &[]);
    told(&home.run(&["execution", "end", "nope"]), 6, &["nope"], &[]);
    told(&home.run(&["audit", "verify", "--dir", "none"]), 1, &["none"], &[]);
    told(&home.run(&["backup", "verify", "a.json"]), 1, &[], &[]);
    let config = home.home().join("strongroom.toml");
    let own = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{own}\n[audit]\nsnyc = \"each\"\n")).unwrap();
    told(&home.run(&["config", "check"]), 1, &["unknown key `snyc`"], &["did you mean `sync`?"]);
    std::fs::write(&config, format!("{own}\n[mount]\nthreads = \"hunter2-canary\"\n")).unwrap();
    told(&home.run(&["status"]), 1, &["line", "expected"], &["config check"]);
    std::fs::write(&config, own).unwrap();
    SEEN.with_borrow(|seen| assert!(!seen.contains("hunter2"), "{seen}"));
}

#[test]
fn a_vault_of_a_newer_format_and_one_that_was_altered_are_refused() {
    if !may_mount() {
        return;
    }
    let _kept = Kept("vault");
    let home = Home::new();
    home.start();
    home.ok_with(&["secret", "set", "A"], "a-0123456789");
    home.ok(&["down"]);
    let vault = home.home().join("vault.redb");
    let older = std::fs::read(&vault).unwrap();
    home.ok(&["up"]);
    home.ok_with(&["secret", "set", "B"], "b-0123456789");
    home.ok(&["down"]);
    let newest = std::fs::read(&vault).unwrap();
    std::fs::write(&vault, &older).unwrap();
    told(&home.run(&["up"]), 4, &["older"], &["--accept-rollback"]);
    home.ok(&["down"]);
    std::fs::write(&vault, &newest[..newest.len() / 2]).unwrap();
    told(&home.run(&["up"]), 4, &["damaged"], &[]);
    home.ok(&["down"]);
    std::fs::write(&vault, b"not a vault at all").unwrap();
    told(&home.run(&["up"]), 4, &["damaged"], &[]);
    home.ok(&["down"]);
    std::fs::write(&vault, &newest).unwrap();
    home.ok(&["up"]);
}

#[test]
fn a_command_line_that_is_not_understood() {
    let _kept = Kept("command-line");
    let home = Home::new();
    let cases: [(&[&str], &str, &str); 6] = [
        (&["scan", "--format", "sarf", "."], "'sarf'", "did you mean `sarif`? known here: json, "),
        (&["audit", "query", "--event", "q8"], "'q8' for '--event", "known here: agent_started, "),
        (&["scan", "--formt", "json"], "'--formt'", "did you mean `--format`?"),
        (&["events", "lst"], "'lst'", "did you mean `list`?"),
        (&["secret", "set"], "missing: <NAME>", "strongroom secret set"),
        (&["run", "--no-redact", "--redact", "off", "--", "true"], "cannot be used with", "--help"),
    ];
    for (args, what, hint) in cases {
        let refused = home.run(args);
        assert_eq!(text(&refused).lines().count(), 2, "{args:?}: {}", text(&refused));
        told(&refused, 2, &[what], &[hint]);
    }
}
