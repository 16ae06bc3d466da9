//! The unit under systemd itself: started, restarted, its keeper killed, reloaded, stopped, with an
//! agent that reads all the while. systemd runs in namespaces of its own (`tests/tools/boot.sh`).

mod common;
mod tools;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{Home, cannot_run, may_mount, text};

#[test]
fn under_systemd_the_mount_outlives_restarts_and_deaths_of_the_unit() {
    if !may_mount() || !tools::has("systemctl") || !tools::has("unshare") {
        return;
    }
    if !Path::new("/lib/systemd/systemd").exists() {
        cannot_run("systemd is not installed (tests/run.sh installs it)");
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
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools");
    let unit = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd/strongroom.service"),
    )
    .unwrap();
    // The unit as it is, but for where things lie.
    let unit = unit
        .replace("/usr/local/bin/strongroom", program)
        .replace("After=local-fs.target", "DefaultDependencies=no")
        .replace("RequiresMountsFor=/var/lib/strongroom\n", "")
        .replace(
            "[Service]\n",
            &format!(
                "[Service]\nEnvironment=STRONGROOM_HOME={}\nStandardError=file:{}/serve.log\n",
                home.home().display(),
                dir.display()
            ),
        );
    std::fs::write(dir.join("strongroom.service"), unit).unwrap();
    let reads = dir.join("reads");
    std::fs::write(&reads, "").unwrap();
    std::fs::set_permissions(&reads, mode(0o666)).unwrap();
    let agent = dir.join("agent.sh");
    let script = format!(
        "while :; do cat $CREDENTIALS_DIRECTORY/FOO >> {0} 2>/dev/null && echo >> {0} || \
         echo FAILED >> {0}; sleep 0.02; done\n",
        reads.display()
    );
    std::fs::write(&agent, script).unwrap();
    let steps = format!(
        "STRONGROOM_HOME={} PROGRAM={program} VIEW={} READS={} AGENT={}\n{}",
        home.home().display(),
        dir.join("view").display(),
        reads.display(),
        agent.display(),
        std::fs::read_to_string(tests.join("steps.sh")).unwrap()
    );
    std::fs::write(dir.join("steps.sh"), steps).unwrap();
    let hierarchy = strongroom::sys::cgroup::hierarchy_root().unwrap();
    let booted = Command::new("timeout")
        .args(["--kill-after=5", "150", "unshare", "--mount", "sh"])
        .arg(tests.join("boot.sh"))
        .arg(dir)
        .arg(&hierarchy)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let Ok(told) = std::fs::read_to_string(dir.join("out")) else {
        cannot_run(&format!("systemd does not boot in namespaces here: {}", text(&booted)));
        return;
    };
    let log = std::fs::read_to_string(dir.join("serve.log")).unwrap_or_default();
    let all = format!("{told}\n--- its log:\n{log}\n--- systemd:\n{}", text(&booted));
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
    assert!(line("group ").starts_with("group /strongroom/"), "{all}");
    assert_eq!(line("NoNewPrivs "), "NoNewPrivs 1", "{all}");
    assert_eq!(line("Seccomp "), "Seccomp 2", "the unit's filters hold: {all}");
    assert!(line("stop ").starts_with("stop 0 inactive 0"), "{all}");
    line("unmounted");
    assert_eq!(told.lines().last(), Some("FAILED"), "the agent lost its secrets: {all}");
}
