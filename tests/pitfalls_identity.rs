//! Whose request it is: ids that return, descriptors that travel, namespaces, groups, threads.

mod common;
#[path = "tools/mod.rs"]
mod tools;

use std::process::Command;
use std::time::Duration;

use common::{DB_PROD, Home, LIMIT, OPENAI, cannot_run, may_mount, text, wait_until};
use strongroom::sys::cgroup::hierarchy_root;
use tools::{
    OBEY, Talker, compile, execution, good, group_of, has, member, move_to, obedient,
    principal_dir, python, script, stranger,
};

#[test]
fn a_thread_is_its_process_also_when_the_main_thread_has_exited() {
    if !may_mount() || !has("cc") {
        return;
    }
    for disabled in ["", "pidfd-info"] {
        let mut home = Home::new();
        home.env.push(("STRONGROOM_DISABLE".into(), disabled.into()));
        home.start();
        home.fill();
        let leaderless = compile(&home, "leaderless");
        let command = format!("{} $CREDENTIALS_DIRECTORY/OPENAI_API_KEY", leaderless.display());
        let told = good(&home.agent("CodeAnalyzer", &command));
        let (pid, value) = told.trim().split_once(' ').unwrap();
        assert_eq!(value, OPENAI);
        let records = home.records("secret_accessed");
        assert_eq!(records.len(), 1);
        assert_eq!(records[0]["pid"].to_string(), pid);
        // The process's own link is gone with its main thread; the thread's is there.
        assert_eq!(records[0]["exe"], leaderless.to_str().unwrap());
    }
}

#[test]
fn a_thread_that_took_another_uid_reads_nothing_and_the_others_read_on() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import ctypes, errno, os, threading
libc = ctypes.CDLL(None)
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
held = os.open(path, os.O_RDONLY)
def look(who):
    for how, call in (("open", lambda: open(path).read()),
                      ("held", lambda: os.pread(held, 100, 0))):
        try:
            print(who, how, len(call()), flush=True)
        except OSError as e:
            print(who, how, errno.errorcode[e.errno], flush=True)
def changed():
    libc.setfsuid(65534)
    look("changed")
    libc.setfsuid(0)
    look("back")
t = threading.Thread(target=changed); t.start(); t.join()
look("main")
"#;
    let told = python(&home, "CodeAnalyzer", script, &[]);
    let want = "changed open ENOENT\nchanged held EACCES\nback open 31\nback held 31\n\
                main open 31\nmain held 31\n";
    assert_eq!(told, want);
}

#[test]
fn a_program_that_takes_its_files_owners_rights_gets_no_view() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let copy = home.dir.path().join("cat-of-root");
    std::fs::copy("/bin/cat", &copy).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    std::fs::set_permissions(&copy, mode).unwrap();
    let view = home.dir.path().join("view");
    let command = format!(
        "{0} /proc/self/status | grep ^Uid; {0} $CREDENTIALS_DIRECTORY/OPENAI_API_KEY; \
         {0} < $CREDENTIALS_DIRECTORY/OPENAI_API_KEY; cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY",
        copy.display()
    );
    let run = [
        "run",
        "--no-redact",
        "--chain",
        "deploy-pipeline",
        "--agent",
        "CodeAnalyzer",
        "--env",
        "prod",
    ];
    let more = ["--as", "nobody", "--secrets-path", view.to_str().unwrap(), "--", "sh", "-c"];
    let output = home.run(&[&run[..], &more[..], &[&command]].concat());
    let told = text(&output);
    if told.starts_with("Uid:\t65534\t65534") {
        cannot_run("setuid programs have no effect beneath the directory for temporary files");
        return;
    }
    assert!(told.starts_with("Uid:\t65534\t0\t0\t0\n"), "{told}");
    assert!(told.contains("No such file or directory"), "{told}");
    assert!(told.contains("Permission denied"), "{told}");
    // The neighbouring allow: the same program without the rights, and once.
    assert_eq!(told.matches(OPENAI).count(), 1, "{told}");
}

#[test]
fn no_process_can_put_itself_into_the_group_of_another_execution() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "poor");
    execution(&home, "rich");
    let mut rich = member(&home, "rich", "TestRunner", &["--as", "nobody"]);
    let mut poor = member(&home, "poor", "CodeAnalyzer", &["--as", "nobody"]);
    let group = group_of(&rich.ask("os.getpid()"));
    let own = group_of(&poor.ask("os.getpid()"));
    assert_ne!(group, own);
    let write = |file: &std::path::Path| {
        format!("os.write(os.open({file:?}, os.O_WRONLY), str(os.getpid()).encode())")
    };
    let root = hierarchy_root().unwrap();
    for place in [&group, &own, group.parent().unwrap(), &root] {
        for file in ["cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze"] {
            if place.join(file).exists() {
                assert_eq!(poor.ask(&write(&place.join(file))), "errno EACCES", "{file}");
            }
        }
        assert_eq!(poor.ask(&format!("os.mkdir({:?})", place.join("own"))), "errno EACCES");
    }
    assert_eq!(group_of(&poor.ask("os.getpid()")), own);
    assert_eq!(poor.ask("read(d + '/DATABASE_URL')"), "errno ENOENT");
    assert_eq!(rich.ask("read(d + '/DATABASE_URL')"), DB_PROD);
}

#[test]
fn a_descriptor_is_worth_nothing_to_another_agent_and_only_its_own_to_another_execution() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "r1");
    execution(&home, "r2");
    let mut giver = member(&home, "r1", "TestRunner", &[]);
    let mut same_agent = member(&home, "r2", "TestRunner", &[]);
    let mut same_execution = member(&home, "r1", "CodeAnalyzer", &[]);
    let mut stranger = Talker::stranger(&home, "stranger.py", OBEY);
    stranger.line();
    for (name, other) in [("a", &mut same_agent), ("b", &mut same_execution), ("c", &mut stranger)]
    {
        let socket = format!("{:?}", home.dir.path().join(name));
        other.ask(&format!(
            "keep('s', socket.socket(socket.AF_UNIX)) and (held['s'].bind({socket}), \
             held['s'].listen(1))"
        ));
        giver.ask(&format!(
            "keep('s', socket.socket(socket.AF_UNIX)) and (held['s'].connect({socket}), \
             socket.send_fds(held['s'], [b'x'], [os.open(d + '/DATABASE_URL', os.O_RDONLY), \
             os.open(d + '/DATABASE_URL', os.O_PATH), os.open(d, os.O_RDONLY)]))"
        ));
        other.ask("keep('f', socket.recv_fds(held['s'].accept()[0], 1, 3)[1])");
    }
    let attempts = [
        "os.pread(held['f'][0], 100, 0)",
        "read('/proc/self/fd/%d' % held['f'][0])",
        "read('/proc/self/fd/%d' % held['f'][1])",
        "os.pread(os.open('.identity', os.O_RDONLY, dir_fd=held['f'][2]), 4096, 0)",
        "os.open('DATABASE_URL', os.O_RDONLY, dir_fd=held['f'][2])",
        "sorted(os.listdir(held['f'][2]))",
    ];
    let answers = |other: &mut Talker| attempts.map(|attempt| other.ask(attempt));
    let nobody_said = |text: &str| text.contains("belongs to no execution");
    for other in [&mut same_execution, &mut stranger] {
        let told = answers(other);
        assert_eq!(told[..3], ["errno EACCES"; 3].map(str::to_owned));
        assert!(nobody_said(&told[3]), "{told:?}");
        assert_eq!(told[4..], ["errno ENOENT", "['.identity']"]);
    }
    // The same agent of another execution has the secret itself: what it opens anew is its own,
    // what was opened is not.
    let told = answers(&mut same_agent);
    assert_eq!(told[..3], ["errno EACCES", DB_PROD, DB_PROD]);
    assert!(nobody_said(&told[3]), "{told:?}");
    assert_eq!(told[4..], ["errno ENOENT", "['.identity']"]);
    let accessed = home.records("secret_accessed");
    assert_eq!(accessed.len(), 2);
    assert!(accessed.iter().all(|r| r["execution"] == "r2"), "{accessed:?}");
    let denied = home.records("secret_denied");
    for (agent, execution) in [("TestRunner", "r2"), ("CodeAnalyzer", "r1")] {
        assert!(
            denied.iter().any(|r| r["agent"] == agent && r["execution"] == execution),
            "no refusal of {agent} in {execution}: {denied:?}"
        );
    }
    assert!(denied.iter().any(|r| r["agent"].is_null()), "no refusal of the stranger: {denied:?}");
    assert_eq!(giver.ask("os.pread(os.open(d + '/DATABASE_URL', os.O_RDONLY), 5, 0)"), "b'postg'");
}

// The boundary is the group, not the program: what a child or the next program inherits is its
// execution's, and ends with it.
#[test]
fn what_passes_an_exec_stays_with_the_execution_and_ends_with_it() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "r1");
    let mut agent = member(&home, "r1", "CodeAnalyzer", &[]);
    let pid = agent.ask("os.getpid()");
    agent.ask("keep('f', os.open(path, os.O_RDONLY)) and os.set_inheritable(held['f'], True)");
    agent.ask("keep('d', os.open(d, os.O_RDONLY))");
    let by_cat = "__import__('subprocess').run(['cat'], stdin=held['f'], capture_output=True)";
    assert_eq!(agent.ask(&format!("{by_cat}.stdout.decode()")), OPENAI);
    let records = home.records("secret_accessed");
    assert!(records[0]["exe"].as_str().unwrap().ends_with("cat"), "{records:?}");
    assert_ne!(records[0]["pid"].to_string(), pid);
    // Out of its group, as only root can be: nothing that it holds is worth anything.
    let (group, root) = (group_of(&pid), hierarchy_root().unwrap());
    let nothing = |agent: &mut Talker| {
        assert_eq!(agent.ask("os.pread(held['f'], 100, 0)"), "errno EACCES");
        assert_eq!(agent.ask("read('/proc/self/fd/%d' % held['f'])"), "errno EACCES");
        assert_eq!(agent.ask("read(path)"), "errno ENOENT");
        assert_eq!(agent.ask("os.open('OPENAI_API_KEY', 0, dir_fd=held['d'])"), "errno ENOENT");
        assert_eq!(agent.ask("os.listdir(d)"), "['.identity']");
        let cat = agent.ask(&format!("{by_cat}.stderr.decode().strip()"));
        assert!(cat.contains("Permission denied"), "{cat}");
    };
    move_to(&root, &pid);
    nothing(&mut agent);
    // The neighbouring allow: back inside, all is as before.
    move_to(&group, &pid);
    assert_eq!(agent.ask("os.pread(held['f'], 6, 0)"), "b'sk-pro'");
    // Outside while its execution ends: it survives, with nothing.
    move_to(&root, &pid);
    home.ok(&["execution", "end", "r1"]);
    assert_eq!(home.json(&["execution", "show", "r1"])["state"], "ended");
    nothing(&mut agent);
    assert_eq!(agent.ask("os.getpid()"), pid);
}

#[test]
fn children_made_in_every_way_are_the_agent() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let script = r#"
import os, subprocess, sys
path = os.environ["CREDENTIALS_DIRECTORY"] + "/OPENAI_API_KEY"
def told(name, r, pid=None):
    print(name, os.read(r, 100).decode().strip(), flush=True)
    if pid:
        os.waitpid(pid, 0)
def pipe():
    r, w = os.pipe()
    os.set_inheritable(w, True)
    return r, w
# posix_spawn is a vfork.
r, w = pipe()
pid = os.posix_spawn("/bin/cat", ["cat", path], os.environ,
                     file_actions=[(os.POSIX_SPAWN_DUP2, w, 1)])
told("vfork", r, pid)
# A brother instead of a child: clone with CLONE_PARENT (0x8000), by the launcher reaped.
import ctypes
libc = ctypes.CDLL(None)
r, w = pipe()
if libc.syscall({"x86_64": 56, "aarch64": 220}[os.uname().machine], 0x8000 | 17, 0, 0, 0, 0) == 0:
    os.dup2(w, 1)
    os.execv("/bin/cat", ["cat", path])
told("brother", r)
# Sessions, groups and parents change nothing.
r, w = pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setpgid(0, 0)
        while os.getppid() not in (1, int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()):
            pass
        os.dup2(w, 1)
        os.execv("/bin/cat", ["cat", path])
    os._exit(0)
told("daemon", r)
"#;
    let told = python(&home, "CodeAnalyzer", script, &[]);
    assert_eq!(told, format!("vfork {OPENAI}\nbrother {OPENAI}\ndaemon {OPENAI}\n"));
    assert_eq!(home.records("secret_accessed").len(), 3);
}

// A pid came back after 32,300 forks in 1.6 s where this was measured.
#[test]
fn an_id_that_returns_is_judged_anew_in_both_directions() {
    if !may_mount() || !has("cc") {
        return;
    }
    for disabled in ["", "pidfd-info"] {
        let mut home = Home::new();
        home.env.push(("STRONGROOM_DISABLE".into(), disabled.into()));
        home.start();
        home.fill();
        let same_id = compile(&home, "same_id");
        let shared = home.mount().join("OPENAI_API_KEY");
        let mut agent = obedient(&home, "CodeAnalyzer", "agent.py");
        let shell = |command: &str| {
            format!(
                "__import__('subprocess').run({command:?}, shell=True, capture_output=True)\
                     .stdout.decode().strip()"
            )
        };
        // An agent's process reads by one name for all and ends; a stranger gets its id.
        let mut returned = false;
        for _ in 0..20 {
            let read = format!("echo $$; exec cat {}", shared.display());
            let told = agent.ask(&format!("{}.replace(chr(10), ' ')", shell(&read)));
            let (pid, value) = told.split_once(' ').unwrap();
            assert_eq!(value, OPENAI);
            let again = good(&Command::new(&same_id).arg(pid).arg(&shared).output().unwrap());
            if again.trim() == format!("clone3 errno {}", libc::EPERM) {
                cannot_run("clone3 with a wanted id is not permitted here");
                return;
            }
            if again.trim() == format!("clone3 errno {}", libc::EEXIST) {
                // Somebody else was faster.
                continue;
            }
            assert_eq!(again.trim(), format!("{pid} errno {}", libc::ENOENT));
            returned = true;
            break;
        }
        assert!(returned, "no id returned");
        // A stranger asks and ends; a process of the agent gets its id.
        let mut returned = false;
        for _ in 0..20 {
            let mut stranger = Command::new("cat")
                .arg(&shared)
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let pid = stranger.id();
            assert!(!stranger.wait().unwrap().success());
            let told =
                agent.ask(&shell(&format!("{} {pid} {}", same_id.display(), shared.display())));
            if told == format!("clone3 errno {}", libc::EEXIST) {
                continue;
            }
            assert_eq!(told, format!("{pid} {OPENAI}"));
            returned = true;
            break;
        }
        assert!(returned, "no id returned");
    }
}

#[test]
fn what_is_reached_through_an_agents_proc_entry_is_judged_as_the_real_caller() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut agent = obedient(&home, "TestRunner", "agent.py");
    let mut other = obedient(&home, "CodeAnalyzer", "other.py");
    let pid = agent.ask("os.getpid()");
    let fd = agent.ask("os.chdir(d) or keep('f', os.open('DATABASE_URL', os.O_RDONLY))");
    let view = home.dir.path().join("view");
    let through = [
        (format!("/proc/{pid}/root{}/DATABASE_URL", view.display()), "ENOENT"),
        (format!("/proc/{pid}/cwd/DATABASE_URL"), "ENOENT"),
        (format!("/proc/{pid}/cwd/../.agents/x/DATABASE_URL"), "ENOENT"),
        (format!("/proc/{pid}/fd/{fd}"), "EACCES"),
        (format!("/proc/{pid}/task/{pid}/fd/{fd}"), "EACCES"),
    ];
    let mut stranger = Talker::stranger(&home, "stranger.py", OBEY);
    stranger.line();
    for asker in [&mut stranger, &mut other] {
        for (path, errno) in &through {
            assert_eq!(asker.ask(&format!("read({path:?})")), format!("errno {errno}"), "{path}");
        }
        assert_eq!(asker.ask(&format!("os.listdir('/proc/{pid}/cwd')")), "['.identity']");
    }
    // Its own way in is open.
    assert_eq!(agent.ask("read('/proc/self/cwd/DATABASE_URL')"), DB_PROD);
    assert_eq!(agent.ask(&format!("read('/proc/self/fd/{fd}')")), DB_PROD);
}

#[test]
fn namespaces_that_an_agent_makes_change_nothing_about_who_it_is() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let view = home.dir.path().join("view");
    let look = "ls $CREDENTIALS_DIRECTORY; cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY; \
                cat $CREDENTIALS_DIRECTORY/DATABASE_URL 2>&1 | grep -o 'No such file'";
    let want = format!("OPENAI_API_KEY\nevents\n{OPENAI}No such file\n");
    let run = |user: &str, ways: &[&str]| {
        let run = [
            "run",
            "--no-redact",
            "--chain",
            "deploy-pipeline",
            "--agent",
            "CodeAnalyzer",
            "--env",
            "prod",
        ];
        let more = ["--as", user, "--secrets-path", view.to_str().unwrap(), "--"];
        let output = home.run(&[&run[..], &more[..], ways, &["sh", "-c", look]].concat());
        (output.status.success(), text(&output))
    };
    for ways in [
        &["unshare", "--mount", "--propagation", "private"][..],
        &["unshare", "--pid", "--fork", "--mount-proc"],
        &["unshare", "--cgroup", "--uts", "--ipc", "--net"],
        &["unshare", "--pid", "--fork", "unshare", "--pid", "--fork", "--mount-proc"],
    ] {
        assert_eq!(run("root", ways).1, want, "{ways:?}");
    }
    // Without rights of its own it makes a user namespace first.
    for ways in [
        &["unshare", "--user"][..],
        &["unshare", "--user", "--map-root-user", "--mount"],
        &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--cgroup"],
        &["unshare", "--user", "--map-root-user", "unshare", "--user", "--map-root-user"],
    ] {
        let (_, told) = run("nobody", ways);
        if told.contains("unshare: ") {
            cannot_run(&format!("user namespaces are switched off here: {told}"));
            return;
        }
        assert_eq!(told, want, "{ways:?}");
    }
}

#[test]
fn mounts_that_an_agent_makes_are_its_own_and_bring_others_nothing() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut agent = obedient(&home, "CodeAnalyzer", "agent.py");
    let mut other = obedient(&home, "TestRunner", "other.py");
    let pid = agent.ask("os.getpid()");
    let elsewhere = home.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let shell = |command: &str| format!("os.system({command:?})");
    // Bound elsewhere: the agent reads there, who enters its namespace does not.
    let bind = format!("mount --bind $CREDENTIALS_DIRECTORY {}", elsewhere.display());
    assert_eq!(agent.ask(&shell(&bind)), "0");
    assert_eq!(agent.ask(&format!("read('{}/OPENAI_API_KEY')", elsewhere.display())), OPENAI);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    let entered = Command::new("nsenter")
        .args(["--target", &pid, "--mount", "cat"])
        .arg(elsewhere.join("OPENAI_API_KEY"))
        .output()
        .unwrap();
    assert!(text(&entered).contains("No such file"), "{}", text(&entered));
    // Covered, and taken away: it harms itself alone.
    assert_eq!(agent.ask(&shell(&format!("mount -t tmpfs own {}", home.mount().display()))), "0");
    assert_eq!(agent.ask(&format!("os.listdir({:?})", home.mount())), "[]");
    assert_eq!(agent.ask("read(path)"), OPENAI);
    assert_eq!(agent.ask(&shell("umount -l $CREDENTIALS_DIRECTORY")), "0");
    assert_eq!(agent.ask("read(path)"), "errno ENOENT");
    assert_eq!(other.ask("read(path)"), OPENAI);
    assert!(home.mount().join(".identity").exists());
    assert!(home.json(&["status"])["mounted"].as_bool().unwrap());
    assert_eq!(agent.end(), (Vec::new(), true));
    assert_eq!(other.ask("read(path)"), OPENAI);
}

// A stranger's ENOENT on a directory would drop it from the dentry cache, with mounts upon it.
#[test]
fn a_stranger_who_looks_at_a_directory_disturbs_nobody_who_works_in_it() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut agent = obedient(&home, "CodeAnalyzer", "agent.py");
    let dir = principal_dir(&home, &agent.ask("os.getpid()"));
    assert_eq!(agent.ask(&format!("os.chdir({dir:?}) or os.getcwd()")), dir.to_str().unwrap());
    let below =
        script(&home, "look.py", "import os, sys\nfor _ in range(100):\n os.stat(sys.argv[1])\n");
    let look = || good(&Command::new("/usr/bin/python3").arg(&below).arg(&dir).output().unwrap());
    look();
    assert_eq!(agent.ask("os.getcwd()"), dir.to_str().unwrap());
    assert_eq!(agent.ask("read('OPENAI_API_KEY')"), OPENAI);
    // In the host's own namespace, where the stranger looks.
    good(&Command::new("mount").args(["-t", "tmpfs", "own"]).arg(&dir).output().unwrap());
    std::fs::write(dir.join("mine"), "kept").unwrap();
    look();
    std::fs::metadata(home.mount().join(".agents")).unwrap();
    let kept = std::fs::read_to_string(dir.join("mine"));
    good(&Command::new("umount").arg(&dir).output().unwrap());
    assert_eq!(kept.unwrap(), "kept");
    assert_eq!(agent.ask("os.getcwd()"), dir.to_str().unwrap());
    assert_eq!(agent.ask("read('OPENAI_API_KEY')"), OPENAI);
}

#[test]
fn one_name_for_two_versions_has_two_inodes_and_each_its_size() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "old");
    let mut old = member(&home, "old", "CodeAnalyzer", &[]);
    let longer = "sk-proj-a-much-longer-second-version-of-the-same-secret";
    home.ok_with(&["secret", "set", "OPENAI_API_KEY", "--scope", "org", "--replace"], longer);
    execution(&home, "new");
    let mut new = member(&home, "new", "CodeAnalyzer", &[]);
    let shared = home.mount().join("OPENAI_API_KEY");
    let look = format!(
        "[(s.st_ino, s.st_size, len(read(p)), os.lseek(f, 0, 2), os.close(f)) \
         for p in [{shared:?}] for s in [os.stat(p)] for f in [os.open(p, 0)]][0]"
    );
    let mut inodes = std::collections::BTreeSet::new();
    for _ in 0..50 {
        for (agent, size) in [(&mut old, OPENAI.len()), (&mut new, longer.len())] {
            let told = agent.ask(&look);
            let (inode, rest) = told.trim_start_matches('(').split_once(", ").unwrap();
            assert_eq!(rest, format!("{size}, {size}, {size}, None)"));
            inodes.insert(inode.to_owned());
        }
    }
    assert_eq!(inodes.len(), 2);
    // A descriptor of before is of before, to the last byte.
    let slow = "b''.join(iter(lambda: os.read(held['f'], 1), b'')).decode()";
    old.ask("keep('f', os.open(path, 0)) and os.read(held['f'], 3)");
    home.ok_with(&["secret", "set", "OPENAI_API_KEY", "--scope", "org", "--replace"], "sk-third");
    assert_eq!(old.ask(slow), OPENAI[3..]);
}

// An overlay asks with the reader's thread and the uid of whoever mounted it.
#[test]
fn through_an_overlay_a_stranger_reads_nothing_and_a_uid_alone_is_nobody() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    execution(&home, "r1");
    let as_root = member(&home, "r1", "CodeAnalyzer", &[]);
    let as_nobody = member(&home, "r1", "CodeAnalyzer", &["--as", "nobody"]);
    let mut other = member(&home, "r1", "TestRunner", &[]);
    for (index, (mut agent, want)) in
        [(as_root, OPENAI), (as_nobody, "errno ENOENT")].into_iter().enumerate()
    {
        let pid = agent.ask("os.getpid()");
        let dir = principal_dir(&home, &pid);
        let [empty, merged] = ["empty", "merged"].map(|name| {
            let path = home.dir.path().join(format!("{name}{index}"));
            std::fs::create_dir(&path).unwrap();
            path
        });
        let mounted = Command::new("nsenter")
            .args(["--target", &pid, "--mount", "mount", "-t", "overlay", "overlay", "-o"])
            .arg(format!("lowerdir={}:{}", dir.display(), empty.display()))
            .arg(&merged)
            .output()
            .unwrap();
        if !mounted.status.success() {
            cannot_run(&format!("no overlay can be made here: {}", text(&mounted)));
            return;
        }
        let file = merged.join("OPENAI_API_KEY");
        let from_outside = format!("/proc/{pid}/root{}", file.display());
        for _ in 0..3 {
            // The reader's group decides, and its uid as the overlay shows it must fit as well.
            assert_eq!(agent.ask(&format!("read({file:?})")), want);
            if let Ok(bytes) = std::fs::read(&from_outside) {
                panic!("a stranger read {} bytes", bytes.len());
            }
            let by_other = other.ask(&format!("read({from_outside:?})"));
            assert!(by_other.starts_with("errno "), "{by_other}");
        }
        // The neighbouring allow: without the overlay it reads its own.
        assert_eq!(agent.ask("read(path)"), OPENAI);
    }
}

/// A loop device, detached with it.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status().unwrap();
        assert!(detached.success() || std::thread::panicking());
    }
}

// A thread of the kernel reads for whoever reads the device.
#[test]
fn a_loop_device_over_a_secret_reads_nothing_for_anybody() {
    if !may_mount() || !has("losetup") {
        return;
    }
    let home = Home::deployed();
    // A device has whole sectors.
    let long = "canary-of-a-sector ".repeat(64);
    home.ok_with(&["secret", "set", "OPENAI_API_KEY", "--scope", "org", "--replace"], &long);
    let mut agent = obedient(&home, "CodeAnalyzer", "agent.py");
    let told = agent.ask(
        "__import__('subprocess').run(['losetup', '--find', '--show', '--read-only', path], \
         capture_output=True)",
    );
    let Some(device) = told.split_once("stdout=b'").and_then(|(_, rest)| rest.split_once("\\n'"))
    else {
        cannot_run(&format!("no loop device can be made here: {told}"));
        return;
    };
    let device = Loop(device.0.to_owned());
    let by_agent = agent.ask(&format!("len(read({:?}))", device.0));
    let by_stranger = std::fs::read(&device.0).map(|bytes| bytes.len());
    assert_eq!(by_agent, "errno EIO");
    assert_eq!(by_stranger.unwrap_err().raw_os_error(), Some(libc::EIO));
    // The neighbouring allow, and no other record.
    assert_eq!(agent.ask("len(read(path))"), long.len().to_string());
    let records = home.records("secret_accessed");
    assert_eq!(records.len(), 1, "{records:?}");
}

/// A daemon in a pid namespace of its own, with a shell that is talked to; ended with it.
struct Inside {
    shell: Option<Talker>,
    lock: std::path::PathBuf,
}

impl Inside {
    fn start(home: &Home) -> Self {
        let strongroom = env!("CARGO_BIN_EXE_strongroom");
        let script = format!(
            "{strongroom} up >/dev/null && echo up\nwhile read line; do eval \"$line\"; done\n\
             {strongroom} down >/dev/null; echo down"
        );
        let shell = Talker::spawn(
            Command::new("unshare")
                .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &script])
                .env("STRONGROOM_HOME", home.home())
                .current_dir(home.dir.path()),
        );
        let lock = home.home().join("run");
        Self { shell: Some(shell), lock }
    }

    fn ask(&mut self, line: &str) -> String {
        self.shell.as_mut().unwrap().ask(line)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.shell.take());
        // Until then an ordinary `down` would find a daemon.
        while strongroom::keeper::is_served(&self.lock) {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_caller_whom_the_daemon_cannot_see_is_told_nothing() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.init();
    let mut inside = Inside::start(&home);
    assert_eq!(inside.shell.as_mut().unwrap().line(), "up");
    let strongroom = env!("CARGO_BIN_EXE_strongroom");
    let set =
        format!("printf %s {OPENAI} | {strongroom} secret set OPENAI_API_KEY >/dev/null; echo $?");
    assert_eq!(inside.ask(&set), "0");
    // The shell's process as it is called out here.
    let pid = String::from_utf8(
        Command::new("sh")
            .args([
                "-c",
                &format!("cat /proc/{0}/task/{0}/children", inside.shell.as_ref().unwrap().id()),
            ])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    let mount = format!("/proc/{}/root{}", pid.trim(), home.mount().display());
    // Inside, the agent reads and a stranger is told why it sees nothing.
    let read = format!(
        "{strongroom} run --no-redact -s OPENAI_API_KEY --deliver files --secrets-path {0}/view -- \
         sh -c 'cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY; echo'",
        home.dir.path().display()
    );
    assert_eq!(inside.ask(&read), OPENAI);
    assert_eq!(inside.ask(&format!("ls -A {}", home.mount().display())), ".identity");
    // Out here, nothing is: the daemon gets no id of the caller.
    let told = stranger(
        &home,
        r#"
import errno, os, sys
root = sys.argv[1]
for call in (lambda: os.listdir(root), lambda: open(root + "/.identity").read(),
             lambda: open(root + "/OPENAI_API_KEY").read(), lambda: os.stat(root + "/none")):
    try:
        print(call())
    except OSError as e:
        print(errno.errorcode[e.errno])
"#,
        &[&mount],
    );
    assert_eq!(told, "EACCES\n".repeat(4));
    let served = || strongroom::keeper::is_served(&home.home().join("run"));
    assert!(served());
    // The number that the keeper left names another process here, or none: it is not signalled.
    let message = home.refused(&["down"]);
    assert!(message.contains("another pid namespace"), "{message}");
    assert!(served());
    inside.shell.take().unwrap().end();
    wait_until("the daemon is gone", LIMIT, || !served());
}
