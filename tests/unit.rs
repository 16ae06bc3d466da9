//! The units of `contrib/systemd` against what the daemon does: nothing that they set keeps it from
//! its work, and the system's one leaves it with no right that it does not need.

mod common;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{DB_PROD, Home, LIMIT, OPENAI, may_mount, text, wait_until};

fn unit(below: &str) -> (PathBuf, Vec<(String, String)>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd").join(below);
    let settings = std::fs::read_to_string(&path)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    (path, settings)
}

/// All values of a setting that may stand several times.
fn all(settings: &[(String, String)], name: &str) -> String {
    let values = settings.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
    values.collect::<Vec<_>>().join(" ")
}

/// systemd.exec(5): each of these gives the unit a mount namespace, whose mounts nobody else sees.
const MOUNT_NAMESPACE: [&str; 28] = [
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "ExtensionDirectories",
    "ExtensionImages",
    "InaccessiblePaths",
    "IPCNamespacePath",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateTmp",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
];

#[test]
fn no_setting_hides_the_mount_or_breaks_what_the_daemon_does() {
    for below in ["strongroom.service", "user/strongroom.service"] {
        let (_, settings) = unit(below);
        for (name, _) in &settings {
            assert!(!MOUNT_NAMESPACE.contains(&name.as_str()), "{below}: {name}");
            assert!(name != "PrivateUsers" && name != "PrivateNetwork", "{name}");
            // Their filters refuse clone3(2), openat2(2), and memory of programs that compile as they
            // run.
            let filters = ["RestrictNamespaces", "RestrictSUIDSGID", "MemoryDenyWriteExecute"];
            assert!(!filters.contains(&name.as_str()), "{name}");
        }
        let value = |name: &str| all(&settings, name);
        assert_eq!(value("Type"), "notify", "{below}");
        assert!(value("FileDescriptorStoreMax").parse::<u32>().unwrap() >= 3);
        assert_eq!(value("RestartKillSignal"), "SIGUSR1");
        assert_eq!(value("KillMode"), "mixed");
        assert_eq!(value("OOMPolicy"), "continue");
    }
    let (_, system) = unit("strongroom.service");
    let families = all(&system, "RestrictAddressFamilies");
    for family in ["AF_UNIX", "AF_INET", "AF_INET6"] {
        assert!(families.split(' ').any(|f| f == family), "webhooks need {family}");
    }
    assert_eq!(all(&system, "DeviceAllow"), "/dev/fuse rw");
    let (_, user) = unit("user/strongroom.service");
    for (name, value) in &user {
        // fusermount3 is setuid; these would have the kernel ignore that.
        let implies = ["NoNewPrivileges", "RestrictAddressFamilies", "SystemCallFilter"];
        assert!(!implies.contains(&name.as_str()), "{name}={value}");
    }
}

/// The unit with our binary in the place of the installed one.
fn copy_for(home: &Home, below: &str) -> PathBuf {
    let (path, _) = unit(below);
    let words = std::fs::read_to_string(path).unwrap();
    let words = words.replace("/usr/local/bin/strongroom", env!("CARGO_BIN_EXE_strongroom"));
    let copy = home.dir.path().join("strongroom.service");
    std::fs::write(&copy, words).unwrap();
    copy
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !tools::has("systemd-analyze") {
        return;
    }
    let home = Home::new();
    for (below, more) in [
        ("strongroom.service", &["--man=no"][..]),
        ("user/strongroom.service", &["--man=no", "--user"]),
    ] {
        let copy = copy_for(&home, below);
        let output = Command::new("systemd-analyze")
            .arg("verify")
            .args(more)
            .arg(&copy)
            .env("XDG_RUNTIME_DIR", home.dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{below}: {}", text(&output));
        assert_eq!(text(&output), "", "{below}");
    }
    let copy = copy_for(&home, "strongroom.service");
    // About 6 of 10 as it stands: what is left is what it must do, as the unit says.
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=63", "--no-pager"])
        .arg(&copy)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// `CAP_SYS_ADMIN CAP_KILL` as setpriv(1) wants it.
fn bounding_set() -> String {
    let (_, settings) = unit("strongroom.service");
    let set = all(&settings, "CapabilityBoundingSet");
    let names = set.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_")));
    format!("-all{}", names.collect::<String>()).to_lowercase()
}

/// What the unit grants and nothing else, around a command.
fn as_the_unit(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    let set = bounding_set();
    command.args(["--no-new-privs", "--inh-caps=-all", &format!("--bounding-set={set}"), program]);
    command
}

#[test]
fn with_the_units_capabilities_alone_everything_works() {
    if !may_mount() || !tools::has("setpriv") {
        return;
    }
    let home = Home::new();
    home.start();
    home.ok(&["down"]);
    // An event store of another owner, which needs the rights to that.
    let config = home.home().join("strongroom.toml");
    let mut words = std::fs::read_to_string(&config).unwrap();
    words.push_str("\n[events]\nowner = \"nobody\"\nmode = \"640\"\n");
    std::fs::write(&config, words).unwrap();
    let log = std::fs::File::create(home.dir.path().join("serve.log")).unwrap();
    let mut serve = as_the_unit(env!("CARGO_BIN_EXE_strongroom"))
        .arg("serve")
        .env("STRONGROOM_HOME", home.home())
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    home.ok(&["wait"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", home.worker_pid())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let full = "CapBnd:\t000001ffffffffff";
    assert!(!status.contains(full), "{status}");
    home.fill();
    assert_eq!(home.json(&["status"])["hardening"]["memory_locked"], "full");

    // Agents of root and of another user, born in their groups and moved there.
    let read = "cat $CREDENTIALS_DIRECTORY/DATABASE_URL; echo $$ > $STRONGROOM_EVENTS_DIR/note";
    assert_eq!(tools::good(&home.agent("TestRunner", read)), DB_PROD);
    let view = home.dir.path().join("view");
    let run = |more: &[&str], script: &str| {
        let mut args = vec!["run", "--no-redact", "--chain", "deploy-pipeline", "--agent"];
        args.extend(["TestRunner", "--env", "prod", "--secrets-path", view.to_str().unwrap()]);
        args.extend(more);
        args.extend(["--", "sh", "-c", script]);
        home.run(&args)
    };
    assert_eq!(tools::good(&run(&["--as", "nobody"], read)), DB_PROD);
    assert_eq!(tools::good(&run(&["--as", "nobody", "--isolate"], read)), DB_PROD);

    // A rotation chain whose steps the daemon starts itself.
    let make = home.dir.path().join("make.sh");
    std::fs::write(&make, "#!/bin/sh\nprintf sk-proj-canary-rotated-0123456789\n").unwrap();
    let check = home.dir.path().join("check.sh");
    std::fs::write(
        &check,
        "#!/bin/sh\ntest -s \"$CREDENTIALS_DIRECTORY/OPENAI_API_KEY@pending\"\n",
    )
    .unwrap();
    for script in [&make, &check] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(script, mode).unwrap();
    }
    let definition = serde_json::json!({"chain": "rotate-openai", "agents": [
        {"name": "create", "secrets": [], "command": [make]},
        {"name": "test", "secrets": [], "rotates": ["OPENAI_API_KEY"], "command": [check]},
    ]});
    let chain = home.dir.path().join("rotate.json");
    std::fs::write(&chain, definition.to_string()).unwrap();
    home.ok(&["chain", "apply", chain.to_str().unwrap()]);
    let policy = home.dir.path().join("policy.json");
    let terms = r#"{"rotation_policy": {"OPENAI_API_KEY": {"rotate_every_days": 30,
        "auto_rotate": false, "rotation_chain": "rotate-openai"}}}"#;
    std::fs::write(&policy, terms).unwrap();
    home.ok(&["rotation", "apply", policy.to_str().unwrap()]);
    let mut held = tools::obedient(&home, "CodeAnalyzer", "held.py");
    assert_eq!(held.ask("read(path)"), OPENAI);
    home.ok(&["rotation", "run", "OPENAI_API_KEY"]);

    // A revoke that ends who had it, and looks into every process of the host for those who left.
    let revoked = home
        .run_with(&["secret", "revoke", "OPENAI_API_KEY", "--reason", "test"], "sk-new-canary-99");
    assert!(revoked.status.success(), "{}", text(&revoked));
    let (_, well) = held.end();
    assert!(!well, "the exposed agent was ended");

    // A dead worker, a reload, the end.
    let worker = nix::unistd::Pid::from_raw(home.worker_pid());
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("another worker serves", LIMIT, || {
        home.run(&["status", "--json"]).status.success() && home.worker_pid() != worker.as_raw()
    });
    home.ok(&["reload"]);
    assert_eq!(tools::good(&home.agent("TestRunner", read)), DB_PROD);
    home.ok(&["audit", "verify"]);
    home.ok(&["down"]);
    assert!(serve.wait().unwrap().success());
}
