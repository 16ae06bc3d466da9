//! The unit under systemd itself: started, restarted, its keeper killed, reloaded, stopped, with an
//! agent that reads all the while. systemd runs in namespaces of its own (`tests/tools/boot.sh`).

mod common;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Home, cannot_run, may_mount, text};

/// Whether systemd can be booted at all; says loudly when not.
fn can_boot() -> bool {
    if !may_mount() || !tools::has("systemctl") || !tools::has("unshare") {
        return false;
    }
    let is_there = Path::new("/lib/systemd/systemd").exists();
    if !is_there {
        cannot_run("systemd is not installed (tests/run.sh installs it)");
    }
    is_there
}

/// A unit of ours as it is, but for where things lie.
fn unit_for(home: &Home, below: &str, program: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd").join(below);
    std::fs::read_to_string(path)
        .unwrap()
        .replace("/usr/local/bin/strongroom", program)
        .replace("After=local-fs.target\n", "")
        .replace("RequiresMountsFor=/var/lib/strongroom\n", "")
        .replace("[Unit]\n", "[Unit]\nDefaultDependencies=no\n")
        .replace(
            "[Service]\n",
            &format!(
                "[Service]\nEnvironment=STRONGROOM_HOME={}\nStandardError=file:{}/serve.log\n",
                home.home().display(),
                home.dir.path().display()
            ),
        )
}

/// Runs `tools/STEPS`, after lines that set `variables`, under the manager of `whose`; what the steps
/// said, and all of it.
fn boot(home: &Home, whose: &str, variables: &str, steps: &str) -> Option<(String, String)> {
    let dir = home.dir.path();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools");
    let read = |name: &str| std::fs::read_to_string(tools.join(name)).unwrap();
    let steps = format!("{variables}\n{}\n{}", read("unit.sh"), read(steps));
    std::fs::write(dir.join("steps.sh"), steps).unwrap();
    let hierarchy = strongroom::sys::cgroup::hierarchy_root().unwrap();
    let booted = Command::new("timeout")
        .args(["--kill-after=5", "400", "unshare", "--mount", "sh"])
        .arg(tools.join("boot.sh"))
        .arg(whose)
        .arg(dir)
        .arg(&hierarchy)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let Ok(told) = std::fs::read_to_string(dir.join("out")) else {
        cannot_run(&format!("systemd does not boot in namespaces here: {}", text(&booted)));
        return None;
    };
    let log = std::fs::read_to_string(dir.join("serve.log")).unwrap_or_default();
    let all = format!("{told}\n--- its log:\n{log}\n--- systemd:\n{}", text(&booted));
    Some((told, all))
}

/// An agent that reads without end, and where it says what came of it.
fn reader(home: &Home) -> (PathBuf, PathBuf) {
    let (agent, reads) = (home.dir.path().join("agent.sh"), home.dir.path().join("reads"));
    std::fs::write(&reads, "").unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&reads, everybody).unwrap();
    let script = format!(
        "while :; do cat $CREDENTIALS_DIRECTORY/FOO >> {0} 2>/dev/null && echo >> {0} || \
         echo FAILED >> {0}; sleep 0.02; done\n",
        reads.display()
    );
    std::fs::write(&agent, script).unwrap();
    (agent, reads)
}

#[test]
fn under_systemd_the_mount_outlives_restarts_and_deaths_of_the_unit() {
    if !can_boot() {
        return;
    }
    let home = Home::new();
    let dir = home.dir.path();
    let key = dir.join("key");
    std::fs::write(&key, [7; 32]).unwrap();
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&key, mode(0o600)).unwrap();
    home.ok(&["init", "--unlock", &format!("key-file:{}", key.display())]);
    let program = env!("CARGO_BIN_EXE_strongroom");
    std::fs::write(dir.join("strongroom.service"), unit_for(&home, "strongroom.service", program))
        .unwrap();
    let (agent, reads) = reader(&home);
    let variables = format!(
        "STRONGROOM_HOME={} PROGRAM={program} VIEW={} READS={} AGENT={}",
        home.home().display(),
        dir.join("view").display(),
        reads.display(),
        agent.display()
    );
    let Some((told, all)) = boot(&home, "system", &variables, "steps.sh") else { return };
    let line = |start: &str| {
        told.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {all}"))
    };
    for step in ["start", "restart", "killed", "reload"] {
        assert_eq!(line(&format!("{step} ")), format!("{step} 0 active 3 serving"), "{all}");
    }
    line("goes on");
    assert_eq!(line("failed "), "failed 0", "{all}");
    line("same mount");
    line("verified");
    // Outside the unit's group, which a stop of it ends.
    assert!(line("group ").starts_with("group /system.slice/strongroom-agents-"), "{all}");
    assert_eq!(line("scope "), "scope yes active", "{all}");
    assert_eq!(line("NoNewPrivs "), "NoNewPrivs 1", "{all}");
    assert_eq!(line("Seccomp "), "Seccomp 2", "the unit's filters hold: {all}");
    assert!(line("stop ").starts_with("stop 0 inactive 0"), "{all}");
    line("unmounted");
    let end: Vec<_> = told.lines().skip_while(|line| *line != "unmounted").collect();
    assert_eq!(end.get(1), Some(&"FAILED"), "the agent lost its secrets: {all}");
    line("scope gone");
}

#[test]
fn under_a_persons_systemd_it_is_the_same_and_a_killed_launcher_takes_its_agent_along() {
    if !can_boot() || !tools::has("fusermount3") {
        return;
    }
    let home = Home::new();
    let dir = home.dir.path();
    // Where a person without rights reaches it.
    let program = dir.join("strongroom");
    std::fs::copy(env!("CARGO_BIN_EXE_strongroom"), &program).unwrap();
    let units = dir.join(".config/systemd/user");
    std::fs::create_dir_all(&units).unwrap();
    let unit = unit_for(&home, "user/strongroom.service", program.to_str().unwrap());
    std::fs::write(units.join("strongroom.service"), unit).unwrap();
    std::fs::write(units.join("empty.target"), "[Unit]\nDefaultDependencies=no\n").unwrap();
    let (agent, reads) = reader(&home);
    let variables = format!(
        "STRONGROOM_HOME={} PROGRAM={} READS={} AGENT={} KEY={}",
        home.home().display(),
        program.display(),
        reads.display(),
        agent.display(),
        dir.join("key").display()
    );
    for entry in ["", ".config", ".config/systemd", ".config/systemd/user"] {
        std::os::unix::fs::chown(dir.join(entry), Some(65534), Some(65534)).unwrap();
    }
    let Some((told, all)) = boot(&home, "user", &variables, "user_steps.sh") else { return };
    let line = |start: &str| {
        told.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {all}"))
    };
    for step in ["start", "restart", "killed"] {
        assert_eq!(line(&format!("{step} ")), format!("{step} 0 active 3 serving"), "{all}");
    }
    line("goes on");
    assert_eq!(line("failed "), "failed 0", "{all}");
    line("agent ended");
    assert!(line("stop ").starts_with("stop 0 inactive 0"), "{all}");
    line("unmounted");
}
