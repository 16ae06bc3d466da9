//! Daemons for benches: one home each, in a scratch directory, ended with the value.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use strongroom::control::client::Client;
use strongroom::proto;

pub(crate) const VALUE: &[u8] = b"sk-bench-0123456789abcdef0123456789abcdef";
/// The value of the `n`th secret that fills a vault.
pub(crate) fn value_of(n: usize) -> Vec<u8> {
    format!("sk-{n:08}-0123456789abcdef0123456789abcdef").into_bytes()
}

/// A user without privileges, for launches that the daemon must help with.
pub(crate) const NOBODY: u32 = 65534;

/// A home with a served vault that holds `KEY`.
pub(crate) struct Home {
    dir: tempfile::TempDir,
    /// How many there are, with `KEY`.
    secrets: AtomicUsize,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// With more in its configuration.
    pub(crate) fn with(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mode =
            |bits| -> std::fs::Permissions { std::os::unix::fs::PermissionsExt::from_mode(bits) };
        std::fs::set_permissions(dir.path(), mode(0o755)).unwrap();
        let home = Self { dir, secrets: AtomicUsize::new(1) };
        let key = home.path("key");
        std::fs::write(&key, [7; 32]).unwrap();
        std::fs::set_permissions(&key, mode(0o600)).unwrap();
        home.run(&["init", "--unlock", &format!("key-file:{}", key.display())], b"");
        // The socket lies below it; other users' credentials decide there.
        std::fs::set_permissions(home.path("home"), mode(0o711)).unwrap();
        let file = home.path("home/strongroom.toml");
        let own = std::fs::read_to_string(&file).unwrap();
        let roles = format!(
            "{own}\n{config}\n[[role]]\nname = \"root\"\nuids = [0]\nmay = [\"launch\", \"operate\", \
             \"reveal\", \"revoke\", \"audit\"]\n[[role]]\nname = \"bench\"\nuids = [{NOBODY}]\n\
             may = [\"launch\"]\n"
        );
        std::fs::write(&file, roles).unwrap();
        home.run(&["up"], b"");
        home.run(&["secret", "set", "KEY"], VALUE);
        home
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("STRONGROOM_HOME", self.path("home")).current_dir("/");
        command
    }

    pub(crate) fn strongroom(&self, args: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_strongroom"), args)
    }

    pub(crate) fn run(&self, args: &[&str], input: &[u8]) -> String {
        let mut child = self
            .strongroom(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Arguments of `run` that put `KEY` into [`Home::view`].
    pub(crate) fn run_args<'a>(&self, view: &'a Path, command: &[&'a str]) -> Vec<&'a str> {
        let view = view.to_str().unwrap();
        let mut args = vec!["run", "-s", "KEY", "--deliver", "files", "--secrets-path", view, "--"];
        args.extend_from_slice(command);
        args
    }

    /// What one role of this program prints when it runs as an agent; it gets the path of `KEY`.
    pub(crate) fn agent(&self, role: &str, more: &[&str]) -> String {
        let view = self.path("view");
        let exe = std::env::current_exe().unwrap();
        let key = view.join("KEY");
        let mut command = vec![exe.to_str().unwrap(), super::ROLE, role, key.to_str().unwrap()];
        command.extend_from_slice(more);
        self.run(&self.run_args(&view, &command), b"")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.path("home/run/control.sock"))
    }

    /// Adds secrets until there are `count`, by imports that a request can hold.
    pub(crate) fn fill_up_to(&self, count: usize) {
        const AT_ONCE: usize = 10_000;
        let from = self.secrets.swap(count, Ordering::Relaxed);
        for from in (from..count).step_by(AT_ONCE) {
            let lines: String = (from..count.min(from + AT_ONCE))
                .map(|n| {
                    let value = String::from_utf8(value_of(n)).unwrap();
                    format!("BENCH_SECRET_{n}={value}\n")
                })
                .collect();
            self.run(&["import", "-", "--scope", "org"], lines.as_bytes());
        }
    }

    /// Starts `executions`, each of a chain of ten agents with five secrets, and launches all agents
    /// of the first `agents / 10`; this process is their lifeline.
    pub(crate) fn populate(&self, executions: usize, agents: usize) {
        let definition: Vec<_> = (0..10)
            .map(|agent| {
                let secrets: Vec<_> =
                    (0..5).map(|n| format!("BENCH_SECRET_{}", 1 + agent * 5 + n)).collect();
                serde_json::json!({"name": format!("Agent{agent}"), "secrets": secrets})
            })
            .collect();
        let file = self.path("chain.json");
        let text = serde_json::json!({"chain": "bench", "agents": definition}).to_string();
        std::fs::write(&file, text).unwrap();
        self.run(&["chain", "apply", file.to_str().unwrap()], b"");
        let client = self.client();
        for n in 0..executions {
            let start = proto::ExecutionStart {
                chain: "bench".into(),
                id: Some(format!("bench-{n}")),
                environment: None,
                owner_pid: None,
                deadline: None,
                labels: BTreeMap::new(),
                workspace: None,
            };
            let _started: proto::ExecutionShown = client.post("/v1/executions", &start).unwrap();
        }
        for n in 0..agents {
            let launch = proto::AgentLaunch {
                chain: Some("bench".into()),
                agent: Some(format!("Agent{}", n % 10)),
                environment: None,
                execution: Some(format!("bench-{}", n / 10)),
                secrets: Vec::new(),
                deliver: None,
                workspace: None,
                secrets_path: None,
                how: proto::How::Cgroup,
                as_user: None,
                exe: None,
                keep_background: false,
                isolation: None,
                pid: None,
                deadline: None,
                labels: BTreeMap::new(),
                launch: None,
            };
            let _launched: proto::AgentLaunched = client.post("/v1/agents", &launch).unwrap();
        }
    }

    pub(crate) fn keeper(&self) -> u32 {
        std::fs::read_to_string(self.path("home/run/keeper.pid")).unwrap().trim().parse().unwrap()
    }

    /// The worker that runs now; `None` between two.
    pub(crate) fn worker(&self) -> Option<u32> {
        let keeper = self.keeper();
        let children =
            std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let down = self.strongroom(&["down"]).stdout(Stdio::null()).status();
        if !down.is_ok_and(|status| status.success()) {
            eprintln!("a daemon of the bench did not end");
        }
    }
}
