//! `run --isolate`: agents of one uid neither see, trace nor signal each other, and nothing of the
//! vault is in reach but the agent's own secrets; all else is as without it.

mod common;
mod tools;

use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{DB_PROD, Home, LIMIT, OPENAI, may_mount, text, wait_until};
use tools::{OBEY, Talker};

/// An isolated agent that is talked to.
fn isolated(home: &Home, agent: &str, name: &str, more: &[&str]) -> Talker {
    let mut run =
        vec!["--isolate", "--chain", "deploy-pipeline", "--agent", agent, "--env", "prod"];
    run.extend(more);
    let mut talker = Talker::agent(home, &run, name, OBEY);
    talker.line();
    talker
}

/// The agent's Python process as the host numbers it: its launcher's grandchild.
fn host_pid(launcher: u32) -> String {
    let children = |pid: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
    };
    let first = children(&launcher.to_string());
    let leader = first.split_whitespace().next().expect("the leader of the agent's namespace");
    children(leader).split_whitespace().next().expect("the agent").to_owned()
}

const AS_NOBODY: &[&str] = &["--as", "nobody"];

#[test]
fn isolated_agents_of_one_user_neither_see_nor_trace_nor_signal_each_other() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut one = isolated(&home, "TestRunner", "one.py", AS_NOBODY);
    let mut two = isolated(&home, "CodeAnalyzer", "two.py", AS_NOBODY);
    assert_eq!(one.ask("os.getuid()"), two.ask("os.getuid()"));
    let pids = "sorted(int(n) for n in os.listdir('/proc') if n.isdigit())";
    // Itself, and the process of ours that leads its namespace.
    assert_eq!(one.ask(pids), format!("[1, {}]", one.ask("os.getpid()")));
    let other = host_pid(two.id());
    // As they would be called from outside: not there at all.
    assert_eq!(one.ask(&format!("os.path.exists('/proc/{other}')")), "False");
    assert_eq!(one.ask(&format!("os.kill({other}, 0)")), "errno ESRCH");
    let traced = format!("libc.ptrace(16, {other}, 0, 0), ctypes.get_errno()");
    assert_eq!(one.ask(&traced), "(-1, 3)");
    // A neighbour that is told of by a descriptor of its process is refused as well.
    let traces_itself = "libc.ptrace(16, 1, 0, 0), ctypes.get_errno()";
    assert_eq!(one.ask(traces_itself), "(-1, 1)", "nor the process that leads its namespace");
    let vector = "keep('v', (ctypes.c_uint64 * 2)(ctypes.addressof(keep('b', \
                  ctypes.create_string_buffer(8))), 8)) and None";
    assert_eq!(one.ask(vector), "None");
    let reads = |pid: &str| {
        format!(
            "(ctypes.set_errno(0), libc.process_vm_readv({pid}, held['v'], 1, held['v'], 1, 0), \
             ctypes.get_errno())[1:]"
        )
    };
    assert_eq!(one.ask(&reads(&other)), "(-1, 3)");
    assert_eq!(one.ask(&reads("1")), "(-1, 1)");
    // What is its own is there.
    assert_eq!(one.ask("read(path)"), OPENAI);
    assert_eq!(one.ask("read(d + '/DATABASE_URL')"), DB_PROD);
    assert_eq!(two.ask("read(d + '/DATABASE_URL')"), "errno ENOENT");
    one.end();
    two.end();
}

#[test]
fn landlock_stops_signals_traces_and_abstract_sockets_where_a_pid_is_known() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    // What an agent could reach if it saw it: an abstract socket of a stranger of its own uid.
    let script = tools::script(
        &home,
        "abstract.py",
        "import os, socket, sys\ns = socket.socket(socket.AF_UNIX)\n\
         s.bind('\\0strongroom-isolate-test-%d' % os.getppid())\ns.listen()\nprint('ready')\n\
         sys.stdin.readline()\n",
    );
    let mut stranger = Talker::spawn(
        Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "/usr/bin/python3"])
            .arg(script),
    );
    assert_eq!(stranger.line(), "ready");
    let address = format!("'\\0strongroom-isolate-test-{}'", std::process::id());
    let connect = format!("socket.socket(socket.AF_UNIX).connect({address})");
    let mut agent = isolated(&home, "CodeAnalyzer", "one.py", AS_NOBODY);
    let identity = agent.ask("read(d + '/.identity').replace('\\n', ' ')");
    if identity.contains("\"isolation\": \"full\"") {
        assert_eq!(agent.ask(&connect), "errno EPERM");
    } else {
        assert!(identity.contains("no Landlock scopes"), "{identity}");
        common::cannot_run("Landlock's scopes need Linux 6.12");
    }
    agent.end();
    let mut open = tools::obedient(&home, "CodeAnalyzer", "open.py");
    assert_eq!(open.ask(&connect), "None", "without --isolate it is reached");
    open.end();
    stranger.end();
}

#[test]
fn the_vault_and_its_socket_are_out_of_sight_also_for_root_and_by_every_way_back() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let place = home.home().display().to_string();
    for more in [AS_NOBODY, &[]] {
        // Its working directory lies below the vault's own.
        let view = home.dir.path().join("view");
        let script = tools::script(&home, "hidden.py", OBEY);
        let mut run = home.command(&["run", "--isolate", "--no-redact", "--chain"]);
        run.args(["deploy-pipeline", "--agent", "CodeAnalyzer", "--env", "prod"]).args(more);
        run.args(["--secrets-path", view.to_str().unwrap(), "--", "/usr/bin/python3", "-u"]);
        run.arg(script).current_dir(home.home().join("audit"));
        let mut agent = Talker::spawn(&mut run);
        agent.line();
        assert_eq!(agent.ask("os.getcwd()"), "/", "{more:?}");
        assert_eq!(agent.ask(&format!("os.listdir('{place}')")), "[]");
        for path in ["vault.redb", "run/control.sock", "strongroom.toml", "audit", "mnt"] {
            assert_eq!(agent.ask(&format!("os.stat('{place}/{path}')")), "errno ENOENT", "{path}");
        }
        let socket = format!("socket.socket(socket.AF_UNIX).connect('{place}/run/control.sock')");
        assert_eq!(agent.ask(&socket), "errno ENOENT");
        let key = home.dir.path().join("key").display().to_string();
        let key = agent.ask(&format!("len(read('{key}'))"));
        assert!(key == "0" || key == "errno EACCES", "{key}");
        assert_eq!(agent.ask(&format!("os.mkdir('{place}/x')")), "errno EROFS");
        assert_eq!(agent.ask(&format!("libc.umount2(b'{place}', 2)")), "-1");
        // A namespace of its own in which it may mount does not uncover it either.
        let deeper = format!(
            "libc.unshare(0x10000000 | 0x20000), libc.umount2(b'{place}', 2), os.listdir('{place}')"
        );
        let told = agent.ask(&deeper);
        assert!(told.ends_with("-1, [])"), "{told}");
        assert_eq!(agent.ask("read(path)"), OPENAI, "and changes nothing about who it is");
        assert_eq!(agent.ask("read('/proc/1/environ')"), "errno EACCES");
        assert_eq!(agent.ask("os.listdir('/proc/1/root')"), "errno EACCES");
        agent.end();
    }
}

#[test]
fn a_root_agent_that_is_isolated_cannot_leave_its_group() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut agent = isolated(&home, "CodeAnalyzer", "root.py", &[]);
    let root = strongroom::sys::cgroup::hierarchy_root().unwrap().display().to_string();
    assert_eq!(agent.ask(&format!("open('{root}/cgroup.procs', 'w')")), "errno EROFS");
    let again = format!("libc.mount(b'cgroup2', b'{root}', b'cgroup2', 0, None)");
    assert_eq!(agent.ask(&format!("{again}, ctypes.get_errno()")), "(-1, 1)");
    assert_eq!(agent.ask("os.mknod('/tmp/sr-device', 0o60600, os.makedev(8, 0))"), "errno EPERM");
    agent.end();
    let records = home.records("agent_started");
    let reason = records.last().unwrap()["reason"].as_str().unwrap();
    assert!(reason.starts_with("isolation partial: the agent is root"), "{reason}");
    assert!(reason.contains("identity partial"), "{reason}");
}

#[test]
fn what_was_achieved_is_on_record_in_the_list_and_in_the_agents_identity() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    tools::execution(&home, "shown");
    let more = ["--isolate", "--as", "nobody"];
    let mut agent = tools::member(&home, "shown", "CodeAnalyzer", &more);
    let mut plain = tools::member(&home, "shown", "TestRunner", &[]);
    let identity = agent.ask("read(d + '/.identity').replace('\\n', ' ')");
    let shown = home.json(&["execution", "show", "shown"]);
    let agents = shown["agents"].as_array().unwrap();
    let of = |name: &str| {
        let found = agents.iter().find(|a| a["agent"] == name).unwrap();
        found["isolation"].as_str().map(str::to_owned)
    };
    let achieved = of("CodeAnalyzer").unwrap();
    assert!(achieved == "full" || achieved.starts_with("partial: "), "{achieved}");
    assert!(identity.contains(&format!("\"isolation\": \"{achieved}\"")), "{identity}");
    assert_eq!(of("TestRunner"), None);
    let identity = plain.ask("read(d + '/.identity').replace('\\n', ' ')");
    assert!(identity.contains("\"isolation\": \"none\""), "{identity}");
    let records = home.records("agent_started");
    assert_eq!(records[0]["reason"], format!("isolation {achieved}"));
    // From outside it is explained as any other.
    let why = text(&home.run(&["explain", "--pid", &host_pid(agent.id()), "OPENAI_API_KEY"]));
    assert!(why.contains("CodeAnalyzer"), "{why}");
    agent.end();
    plain.end();
    home.ok(&["execution", "end", "shown"]);
}

#[test]
fn a_definition_that_wants_isolation_gets_it_or_no_launch() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let definition = r#"{"chain": "alone", "agents": [{"name": "Hermit", "isolate": true,
        "secrets": ["OPENAI_API_KEY"], "command": ["sh", "-c", "ls /proc | grep -c '^[0-9]'"]}]}"#;
    let file = home.dir.path().join("alone.json");
    std::fs::write(&file, definition).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap()]);
    let view = home.dir.path().join("view");
    let view = view.to_str().unwrap();
    // `run` and `chain run` isolate it unasked.
    let run = ["run", "--chain", "alone", "--agent", "Hermit", "--secrets-path", view, "--"];
    let told = home.ok(&[&run[..], &["sh", "-c", "echo $$"]].concat());
    assert_eq!(told, "2\n");
    let told = text(&home.run(&["chain", "run", "alone", "--secrets-path", view]));
    assert!(told.lines().any(|line| line == "5" || line == "4"), "{told}");
    // A client that does not is refused, and told why.
    let output = Command::new("curl")
        .args(["-s", "--unix-socket"])
        .arg(home.socket())
        .args(["-H", "content-type: application/json", "-d"])
        .arg(r#"{"chain": "alone", "agent": "Hermit", "how": "attach"}"#)
        .arg("http://strongroom/v1/agents")
        .output()
        .unwrap();
    assert!(text(&output).contains("not_isolated"), "{}", text(&output));
    std::fs::write(&file, definition.replace("true", "1")).unwrap();
    assert!(home.refused(&["chain", "apply", file.to_str().unwrap()]).contains("isolate"));
}

#[test]
fn status_signals_output_and_the_end_are_as_without_isolation() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let view = home.dir.path().join("view");
    let run = |more: &[&str], script: &str| {
        let mut args = vec!["run", "--isolate", "--chain", "deploy-pipeline", "--agent"];
        args.extend(["TestRunner", "--env", "prod", "--secrets-path", view.to_str().unwrap()]);
        args.extend(more);
        args.extend(["--", "sh", "-c", script]);
        home.command(&args)
    };
    let out = |more: &[&str], script: &str| run(more, script).output().unwrap();
    let shown = out(&[], "cat $CREDENTIALS_DIRECTORY/DATABASE_URL; exit 7");
    assert_eq!(shown.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "[REDACTED:DATABASE_URL]");
    assert_eq!(out(&["--no-redact"], "kill -9 $$").status.code(), Some(137));
    assert_eq!(out(&[], "kill -TERM $$").status.code(), Some(143));
    let events = "echo canary > $STRONGROOM_EVENTS_DIR/note && cat $STRONGROOM_EVENTS_DIR/note";
    assert_eq!(String::from_utf8_lossy(&out(AS_NOBODY, events).stdout), "canary\n");
    // A signal to the launcher reaches the command, not the process that leads its namespace.
    let script = "trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    let mut signalled = Talker::spawn(&mut run(&[], script));
    assert_eq!(signalled.line(), "ready");
    let pid = nix::unistd::Pid::from_raw(signalled.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(signalled.end(), (vec!["caught".to_owned()], false));
    // What it leaves is told to end, and is ended when it does not.
    let both = [home.dir.path().join("listens"), home.dir.path().join("ignores")];
    let [listens, ignores] = both.each_ref().map(|file| file.display());
    let leaves = format!(
        "(trap 'echo last words; exit' TERM; touch {listens}; while :; do sleep 0.02; done) & \
         (trap '' TERM; touch {ignores}; sleep 300) & \
         while [ ! -e {listens} ] || [ ! -e {ignores} ]; do sleep 0.01; done; exit 3"
    );
    let left = out(&[], &leaves);
    assert_eq!(left.status.code(), Some(3), "{}", text(&left));
    assert!(text(&left).contains("last words"), "{}", text(&left));
    // The launcher's own violent end is the agent's.
    let mut orphan = Talker::spawn(&mut run(&["--no-redact"], "echo ready; exec sleep 300"));
    assert_eq!(orphan.line(), "ready");
    let agent = host_pid(orphan.id());
    let id = nix::unistd::Pid::from_raw(orphan.id().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("the agent is gone", LIMIT, || {
        std::fs::read_to_string(format!("/proc/{agent}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
    });
    orphan.end();
    // In the background it goes on until it ends by itself.
    let kept = out(&["--keep-background", "--no-redact"], "(sleep 0.3; touch $0) & exit 0");
    assert_eq!(kept.status.code(), Some(0), "{}", text(&kept));
    wait_until("nothing runs", LIMIT, || home.json(&["status"])["executions"] == 0);
}

#[test]
fn a_plain_users_agents_are_isolated_in_a_user_namespace() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    std::os::unix::fs::chown(home.dir.path(), Some(65534), Some(65534)).unwrap();
    let strongroom = env!("CARGO_BIN_EXE_strongroom");
    let dir = home.dir.path().display().to_string();
    let script = format!(
        r#"set -e
mount -t tmpfs dev {dir}.dev
mknod -m 666 {dir}.dev/fuse c 10 229
mount --bind {dir}.dev/fuse /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '
set -e
export STRONGROOM_HOME={dir}/home HOME={dir}
cd {dir}
head -c 32 /dev/urandom > {dir}/key; chmod 600 {dir}/key
{strongroom} init --unlock key-file:{dir}/key
{strongroom} up
printf %s {OPENAI} | {strongroom} secret set OPENAI_API_KEY
{strongroom} run -s OPENAI_API_KEY -- sh -c "exec sleep 300" &
other=$!
cat > agent.sh <<END
id -u; ls /proc | grep -c "^[0-9]"
cat \$CREDENTIALS_DIRECTORY/OPENAI_API_KEY; echo
(sleep 0; cat \$CREDENTIALS_DIRECTORY/OPENAI_API_KEY); echo
ls {dir}/home; ls -A {dir}/home/run 2>&1; wc -c < {dir}/key
test -e /proc/$other && echo SEEN
{strongroom} --home {dir}/home status 2>&1 | head -1
grep -E "CapEff|NoNewPrivs" /proc/self/status
grep isolation \$CREDENTIALS_DIRECTORY/.identity
echo kept > \$STRONGROOM_EVENTS_DIR/note; cat \$STRONGROOM_EVENTS_DIR/note
exit 5
END
status=0; {strongroom} run --isolate --no-redact -s OPENAI_API_KEY -- sh agent.sh || status=$?
echo status $status
kill $other; wait $other || true
{strongroom} audit query --event agent_started
{strongroom} down
'"#
    );
    let device_dir = format!("{dir}.dev");
    std::fs::create_dir(&device_dir).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sh", "-c", &script])
        .arg0("unshare")
        .output()
        .unwrap();
    std::fs::remove_dir(&device_dir).unwrap();
    let told = text(&output);
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches(OPENAI).count(), 2, "{told}");
    assert!(told.contains("status 5"), "{told}");
    assert!(told.contains("kept"), "{told}");
    assert!(!told.contains("SEEN"), "{told}");
    let lines: Vec<_> = told.lines().map(str::trim).collect();
    assert!(lines.contains(&"mnt"), "the home shows the way to its own secrets alone: {told}");
    assert!(lines.contains(&"0"), "the key file is covered: {told}");
    assert_eq!(told.matches("vault.redb").count(), 1, "only where it was made: {told}");
    assert!(told.contains("no daemon"), "{told}");
    assert!(told.contains("CapEff:\t0000000000000000"), "{told}");
    assert!(told.contains("NoNewPrivs:\t1"), "{told}");
    assert!(told.contains("isolation full") || told.contains("isolation partial"), "{told}");
}
