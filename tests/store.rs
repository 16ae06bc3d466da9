//! Under a service manager that keeps descriptors, the mount and all that runs on it outlive the
//! keeper. The manager is `tests/tools/manager.py`, which speaks sd_notify(3).

mod common;
mod tools;

use std::process::{Command, Stdio};

use common::{Home, LIMIT, OPENAI, may_mount, wait_until};
use tools::Talker;

/// A service manager with our daemon as its one unit.
struct Manager(Talker);

impl Manager {
    fn of(home: &Home) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/manager.py");
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(home.dir.path().join("serve.log"))
            .unwrap();
        let mut talker = Talker::spawn(
            Command::new("/usr/bin/python3")
                .args(["-u", script])
                .arg(home.dir.path().join("notify"))
                .args([env!("CARGO_BIN_EXE_strongroom"), "serve"])
                .env("STRONGROOM_HOME", home.home())
                .stderr(Stdio::from(log)),
        );
        assert_eq!(talker.line(), "listening");
        Self(talker)
    }

    /// The next line that begins so.
    fn until(&mut self, start: &str) -> String {
        loop {
            let line = self.0.line();
            if line.starts_with(start) {
                return line;
            }
        }
    }

    fn start(&mut self) -> i32 {
        self.0.tell("start");
        self.until("started ").split(' ').next_back().unwrap().parse().unwrap()
    }

    fn start_ready(&mut self) -> i32 {
        let pid = self.start();
        while !self.until("told STATUS=").contains("READY=1") {}
        pid
    }

    fn end(&mut self, how: &str) -> String {
        self.0.tell(how);
        self.until("ended ")
    }

    fn fds(&mut self) -> String {
        self.0.tell("fds");
        self.until("fds").trim_end().to_owned()
    }
}

fn initialised(unlock: &str) -> Home {
    let home = Home::new();
    if unlock == "passphrase" {
        home.ok_with(&["init"], "a long passphrase\n");
    } else {
        home.init();
    }
    home
}

/// The id of our mount, which another mount would not have.
fn mount_id(home: &Home) -> u64 {
    strongroom::sys::mount::topmost(&home.mount()).unwrap().mount_id
}

fn read_of(home: &Home, agent: &mut Talker, version: &str) {
    assert_eq!(agent.ask("read(path)"), version);
    let shown = home.json(&["status"]);
    assert_eq!(shown["mounted"], true);
}

#[test]
fn agents_outlive_keeper_and_worker_with_their_files_pins_and_identity() {
    if !may_mount() {
        return;
    }
    let home = initialised("key-file");
    let mut manager = Manager::of(&home);
    let first = manager.start_ready();
    assert_eq!(manager.fds(), "fds strongroom-device strongroom-socket strongroom-state");
    home.fill();
    let mut agent = tools::obedient(&home, "CodeAnalyzer", "agent.py");
    read_of(&home, &mut agent, OPENAI);
    agent.ask("keep('f', open(path, 'rb', buffering=0)) and None");
    agent.ask("keep('e', open(d + '/events/note', 'wb', buffering=0)) and None");
    // What could still become a secret is held back.
    agent.ask(&format!("held['e'].write(b'{}')", &OPENAI[..20]));
    home.ok_with(&["secret", "rotate", "OPENAI_API_KEY"], "sk-proj-canary-the-next-one-0123");
    let mount = mount_id(&home);
    let list = home.json(&["execution", "list"]);
    let id = list["executions"][0]["id"].as_str().unwrap().to_owned();
    let before = home.json(&["execution", "show", &id]);

    // The keeper alone; its worker follows without unmounting.
    assert_eq!(manager.end("kill"), "ended -9");
    // A read meanwhile waits; it is never answered wrongly.
    agent.tell("read(path)");
    let second = manager.start_ready();
    assert_ne!(first, second);
    assert_eq!(agent.line(), OPENAI);
    assert_eq!(mount_id(&home), mount);

    // Both at once, in the middle of reads.
    let worker = home.worker_pid();
    agent.tell("{read(path) for _ in range(2000)}");
    let kill = |pid: i32| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
    };
    kill(worker).unwrap();
    assert_eq!(manager.end("kill"), "ended -9");
    manager.start_ready();
    assert_eq!(agent.line(), format!("{{'{OPENAI}'}}"));

    // Handed over on purpose, as a restart of the unit does.
    assert_eq!(manager.end("handover"), "ended 0");
    assert_eq!(mount_id(&home), mount);
    manager.start_ready();
    assert_eq!(agent.ask("os.pread(held['f'].fileno(), 100, 0).decode()"), OPENAI);
    read_of(&home, &mut agent, OPENAI);
    let after = home.json(&["execution", "show", &id]);
    assert_eq!(after["pins"], before["pins"], "{after}");
    assert_eq!(after["state"], "active");
    assert_eq!(after["agents"][0]["processes"], 1);
    assert_eq!(agent.ask("d + '/events/note' and held['e'].write(b' and more\\n')"), "10");
    assert_eq!(agent.ask("held['e'].close()"), "None");
    let folder = home.ok(&["events", "path", &id]);
    let stored = || std::fs::read_to_string(format!("{}/note", folder.trim())).unwrap_or_default();
    wait_until("the note is complete", LIMIT, || stored().ends_with("more\n"));
    assert!(stored().contains(&OPENAI[..20]), "what was no secret in the end is there");
    // Everything else goes on as well.
    let next = home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
    assert!(tools::good(&next).contains("the-next-one"));
    home.ok(&["audit", "verify"]);
    agent.end();

    // A stop leaves nothing, neither mounted nor kept.
    assert_eq!(manager.end("stop"), "ended 0");
    assert_eq!(manager.fds(), "fds");
    assert!(strongroom::sys::mount::topmost(&home.mount()).is_none());
    assert!(!home.socket().exists());
}

/// A worker that starts when its keeper is dead must not take whoever its parent is then for one.
#[test]
fn a_keeper_that_dies_while_its_next_worker_starts_is_followed_by_another() {
    if !may_mount() {
        return;
    }
    let home = initialised("key-file");
    let mut manager = Manager::of(&home);
    manager.start_ready();
    let kill = |pid: i32| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
    };
    for after_ms in 0..25 {
        kill(home.worker_pid()).unwrap();
        // The moments of a start, one after the other.
        std::thread::park_timeout(std::time::Duration::from_millis(after_ms));
        assert_eq!(manager.end("kill"), "ended -9");
        manager.start_ready();
    }
    assert_eq!(manager.end("stop"), "ended 0");
    assert!(strongroom::sys::mount::topmost(&home.mount()).is_none());
}

#[test]
fn a_vault_that_a_person_unlocks_is_told_as_locked_and_reads_get_enokey_until_then() {
    if !may_mount() {
        return;
    }
    let home = initialised("passphrase");
    let mut manager = Manager::of(&home);
    manager.start();
    let told = manager.until("told STATUS=the vault is locked");
    assert!(!told.contains("READY"), "{told}");
    home.ok_with(&["unlock"], "a long passphrase\n");
    while !manager.until("told STATUS=serving").contains("READY=1") {}
    home.fill();
    let mut agent = tools::obedient(&home, "CodeAnalyzer", "agent.py");
    read_of(&home, &mut agent, OPENAI);
    manager.end("kill");
    manager.start();
    let told = manager.until("told STATUS=the vault is locked");
    assert!(!told.contains("READY"), "{told}");
    assert_eq!(agent.ask("read(path)"), "errno ENOKEY", "the root key is not kept");
    home.ok_with(&["unlock"], "a long passphrase\n");
    while !manager.until("told STATUS=serving").contains("READY=1") {}
    read_of(&home, &mut agent, OPENAI);
    // A reload is told from its begin to its end.
    home.ok(&["reload"]);
    manager.until("told RELOADING=1 MONOTONIC_USEC=");
    while !manager.until("told STATUS=").contains("READY=1") {}
    // And signs of life go on.
    while !manager.until("told STATUS=serving").contains("WATCHDOG=1") {}
    agent.end();
    manager.end("stop");
}

#[test]
fn what_was_kept_without_its_mount_is_of_no_use_and_the_start_is_a_new_one() {
    if !may_mount() {
        return;
    }
    let home = initialised("key-file");
    let mut manager = Manager::of(&home);
    manager.start_ready();
    home.fill();
    manager.end("kill");
    // Somebody has taken the mount away meanwhile.
    wait_until("it is unmounted", LIMIT, || {
        Command::new("umount").arg("--lazy").arg(home.mount()).status().unwrap().success()
    });
    manager.start_ready();
    let told = home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
    assert!(tools::good(&told).contains(OPENAI));
    assert_eq!(manager.fds(), "fds strongroom-device strongroom-socket strongroom-state");
    manager.end("stop");
}

#[test]
fn a_daemon_that_is_put_up_beside_a_service_leaves_that_services_manager_alone() {
    if !may_mount() {
        return;
    }
    let home = initialised("key-file");
    let socket = home.dir.path().join("foreign");
    let foreign = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
    foreign.set_nonblocking(true).unwrap();
    let up = home.command(&["up"]).env("NOTIFY_SOCKET", &socket).output().unwrap();
    assert!(up.status.success(), "{}", common::text(&up));
    home.ok(&["wait"]);
    home.ok(&["down"]);
    let heard = foreign.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(heard.kind(), std::io::ErrorKind::WouldBlock);
}
