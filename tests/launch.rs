//! Who may launch what: agents by their definition alone, roles in their own chains alone.

mod common;

use common::{Home, LIMIT, OPENAI, may_mount, text, wait_until};

const SUPERVISED: &str = r#"{"chain": "supervised", "agents": [
   {"name": "Supervisor", "secrets": ["OPENAI_API_KEY"], "may_launch": ["Worker"]},
   {"name": "Worker", "secrets": ["WORKER_KEY"]},
   {"name": "Other", "secrets": ["OTHER_KEY"]}]}"#;

fn supervised() -> Home {
    let home = Home::new();
    home.start();
    home.ok_with(&["secret", "set", "OPENAI_API_KEY"], OPENAI);
    home.ok_with(&["secret", "set", "WORKER_KEY"], "canary-worker-key");
    home.ok_with(&["secret", "set", "OTHER_KEY"], "canary-other-key");
    home.apply(SUPERVISED);
    home
}

/// What a command of ours says when the supervisor gives it.
fn as_supervisor(home: &Home, arguments: &str) -> String {
    let strongroom = env!("CARGO_BIN_EXE_strongroom");
    let script = format!("{strongroom} --home {} {arguments}", home.home().display());
    let view = home.dir.path().join("view");
    let output = home.run(&[
        "run",
        "--no-redact",
        "--chain",
        "supervised",
        "--agent",
        "Supervisor",
        "--secrets-path",
        view.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        &script,
    ]);
    text(&output)
}

#[test]
fn an_agent_launches_what_its_definition_lists_in_its_own_execution() {
    if !may_mount() {
        return;
    }
    let home = supervised();
    let inner = home.dir.path().join("inner");
    let look = "'echo $STRONGROOM_EXECUTION $STRONGROOM_AGENT; \
        cat $CREDENTIALS_DIRECTORY/WORKER_KEY $CREDENTIALS_DIRECTORY/OPENAI_API_KEY; echo'";
    let told = as_supervisor(
        &home,
        &format!(
            "run --no-redact --chain supervised --agent Worker --secrets-path {} -- sh -c {look}; echo \
             mine $STRONGROOM_EXECUTION",
            inner.display()
        ),
    );
    assert!(told.contains("canary-worker-key"), "{told}");
    assert!(!told.contains(OPENAI), "the worker sees its own secrets alone: {told}");
    let execution = |mark: &str| {
        let line = told.lines().find(|l| l.contains(mark)).unwrap_or_else(|| panic!("{told}"));
        line.split(' ').find(|w| *w != "mine").unwrap().to_owned()
    };
    assert_eq!(execution(" Worker"), execution("mine "));
    let records = home.records("agent_started");
    let agents: Vec<_> = records.iter().map(|r| r["agent"].as_str().unwrap()).collect();
    assert_eq!(agents, ["Supervisor", "Worker"]);
    // Their end is that of their processes, which the daemon notices.
    wait_until("both have ended", LIMIT, || home.json(&["status"])["executions"] == 0);
    let me = as_supervisor(
        &home,
        "status >/dev/null 2>&1; curl -s --unix-socket \
        $SOCKET http://x/v1/self"
            .replace("$SOCKET", home.socket().to_str().unwrap())
            .as_str(),
    );
    assert!(me.contains("\"may_launch\":[\"Worker\"]"), "{me}");
}

#[test]
fn an_agent_launches_nothing_else_and_obtains_no_value_that_way() {
    if !may_mount() {
        return;
    }
    let home = supervised();
    home.ok(&["execution", "start", "--chain", "supervised", "--id", "elsewhere"]);
    for arguments in [
        "run --no-redact --chain supervised --agent Other -- true",
        "run --no-redact --chain supervised --agent Supervisor -- true",
        "run --execution elsewhere --agent Worker -- true",
        "run -s OTHER_KEY -- sh -c 'echo $OTHER_KEY'",
        "run --no-redact --chain supervised --agent Worker --as nobody -- true",
        "execution start --chain supervised",
    ] {
        let told = as_supervisor(&home, arguments);
        assert!(told.contains("error: "), "{arguments}: {told}");
        assert!(told.contains("hint: "), "{arguments}: {told}");
        assert!(!told.contains("canary"), "{arguments}: {told}");
    }
    // Not through the answer of the socket itself either.
    for body in [
        r#"{"secrets": ["OTHER_KEY"], "how": "attach"}"#,
        r#"{"chain": "supervised", "agent": "Other", "deliver": "env", "how": "cgroup"}"#,
    ] {
        let socket = home.socket().display().to_string();
        let told = as_supervisor(
            &home,
            &format!(
                "wait >/dev/null; curl -s --unix-socket {socket} -H 'content-type: \
                 application/json' -d '{body}' http://x/v1/agents"
            ),
        );
        assert!(told.contains("agent_refused"), "{told}");
        assert!(!told.contains("secret_env"), "{told}");
    }
    assert!(home.records("role_denied").len() >= 7);
    let launched = home.records("agent_started");
    assert!(launched.iter().all(|r| r["agent"] == "Supervisor"));
}

#[test]
fn a_definition_that_lets_an_agent_launch_more_wants_a_yes() {
    if !may_mount() {
        return;
    }
    let home = supervised();
    let file = home.dir.path().join("supervised.json");
    let wider = SUPERVISED.replace("[\"Worker\"]", "[\"Worker\", \"Other\"]");
    std::fs::write(&file, wider).unwrap();
    let message = home.refused(&["chain", "apply", file.to_str().unwrap()]);
    assert!(message.contains("added supervised/Supervisor"), "{message}");
    assert!(message.contains("the launch of Other"), "{message}");
    home.ok(&["chain", "apply", file.to_str().unwrap(), "--yes"]);
    let told = as_supervisor(&home, "run --no-redact --chain supervised --agent Other -- true");
    assert!(!told.contains("error: "), "{told}");
}

#[test]
fn a_role_for_one_chain_or_environment_launches_and_defines_nowhere_else() {
    if !may_mount() {
        return;
    }
    let home = supervised();
    let file = home.home().join("strongroom.toml");
    let own = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        format!(
            "{own}[[role]]\nname = \"root\"\nuids = [0]\nmay = [\"launch\", \"operate\", \
             \"reveal\", \"revoke\", \"audit\"]\n[[role]]\nname = \"ci\"\nuids = [54321]\nmay = \
             [\"launch\", \"operate\"]\nchains = [\"ci\"]\nenvironments = [\"dev\"]\n"
        ),
    )
    .unwrap();
    home.ok(&["reload"]);
    home.ok(&["execution", "start", "--chain", "supervised", "--id", "theirs"]);
    for dir in [home.home(), home.home().join("run")] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, open).unwrap();
    }
    let ask = |path: &str, body: &str| {
        let output = std::process::Command::new("setpriv")
            .args(["--reuid", "54321", "--regid", "54321", "--clear-groups", "curl", "-s"])
            .arg("--unix-socket")
            .arg(home.socket())
            .args(["-H", "content-type: application/json", "-d", body])
            .arg(format!("http://x{path}"))
            .output()
            .unwrap();
        text(&output)
    };
    for body in [
        // Only the execution is named: the verb itself judges its chain.
        r#"{"execution": "theirs", "agent": "Worker", "how": "attach"}"#,
        r#"{"chain": "supervised", "agent": "Worker", "how": "attach"}"#,
        r#"{"secrets": ["OTHER_KEY"], "how": "attach"}"#,
    ] {
        let told = ask("/v1/agents", body);
        assert!(told.contains("no_role"), "{told}");
    }
    let apply = |environments: &str| {
        let definition = format!(
            r#"{{"chain": "ci", {environments}"agents": [{{"name": "A", "secrets": []}}]}}"#
        );
        ask("/v1/chains", &serde_json::json!({ "definition": definition }).to_string())
    };
    let both = apply(r#""environments": ["dev", "prod"], "#);
    assert!(both.contains("no_role"), "a definition reaches over the wall: {both}");
    assert!(apply("").contains("no_role"));
    let dev = apply(r#""environments": ["dev"], "#);
    assert!(dev.contains("\"created\":true"), "{dev}");
}

/// Becomes a caller with habits of its own, and then the command that it is given.
const CALLER: &str = r#"
import os, resource, signal, sys
os.umask(0o027)
for limit, value in [("NOFILE", 321), ("CORE", 65536), ("FSIZE", 1 << 30), ("STACK", 4 << 20), ("CPU", 3000)]:
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (value, value))
os.nice(7)
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR1, signal.SIGWINCH, signal.SIGRTMIN})
for s in range(1, signal.NSIG):
    try:
        signal.signal(s, signal.SIG_IGN if s in (signal.SIGHUP, signal.SIGUSR2) else signal.SIG_DFL)
    except (OSError, ValueError):
        pass
os.chdir(sys.argv[1])
for number, text in [(7, b"seven\n"), (9, b"nine\n")]:
    out, into = os.pipe()
    os.write(into, text)
    os.dup2(out, number)
    os.close(out), os.close(into)
os.environ["CALLER_S_OWN"] = "kept"
os.execvp(sys.argv[2], sys.argv[2:])
"#;

/// What tells what a process has of its caller. A shell would change its signals first.
const HABITS: [&[&str]; 2] = [
    &[
        "grep",
        "-E",
        "^(Umask|SigBlk|SigIgn|Cpus_allowed:|Max )",
        "/proc/self/status",
        "/proc/self/limits",
    ],
    &["sh", "-c", "nice; pwd; echo \"$CALLER_S_OWN\"; ls /proc/self/fd; cat <&7; cat <&9"],
];

#[test]
fn a_command_keeps_mask_limits_priority_directory_signals_and_descriptors_of_its_caller() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let file = home.dir.path().join("caller.py");
    std::fs::write(&file, CALLER).unwrap();
    let (file, place) = (file.to_str().unwrap(), tempfile::tempdir().unwrap());
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(), open).unwrap();
    let place = place.path().to_str().unwrap();
    let called = |command: &[&str]| {
        HABITS.map(|habits| {
            let mut caller = std::process::Command::new("python3");
            caller.args([file, place]).args(command).args(habits);
            let output = caller.env("STRONGROOM_HOME", home.home()).output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", text(&output));
            String::from_utf8(output.stdout).unwrap()
        })
    };
    let alone = called(&["env"]);
    for sure in ["Umask:\t0027", "SigBlk:\t0000000208000200", "801\n/proc/self/status:Cpus"] {
        assert!(alone[0].contains(sure), "{sure}: {alone:?}");
    }
    for sure in ["7\n", place, "kept", "\nseven\nnine\n"] {
        assert!(alone[1].contains(sure), "{sure}: {alone:?}");
    }
    let view = home.dir.path().join("view");
    let run = [env!("CARGO_BIN_EXE_strongroom"), "run", "--secrets-path", view.to_str().unwrap()];
    let agent = ["--chain", "deploy-pipeline", "--agent", "CodeAnalyzer"];
    for how in [
        // In its place, as its parent, as the parent of another user's, and for a person.
        &[&agent[..], &["--no-redact"]].concat()[..],
        &agent[..],
        &[&agent[..], &["--as", "nobody"]].concat()[..],
        &["-s", "OPENAI_API_KEY"][..],
    ] {
        let kept = called(&[&run[..], how, &["--"]].concat());
        for (kept, alone) in kept.iter().zip(&alone) {
            assert_eq!(kept, alone, "{how:?}");
        }
    }
}
