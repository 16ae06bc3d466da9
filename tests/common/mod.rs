//! A home with a real daemon, for tests: made in a scratch directory, ended with the test.
#![allow(dead_code)] // each test binary uses its part

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const OPENAI: &str = "sk-proj-canary-0123456789abcdef";
pub(crate) const DB_PROD: &str = "postgres://app:canary-hunter2@db.internal/prod";
pub(crate) const SSH_KEY: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\ncanaryKEY\n-----END-----\n";
pub(crate) const AWS_SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYcanary";

/// The chain of the design, three agents.
pub(crate) const DEFINITION: &str = r#"{"chain": "deploy-pipeline",
 "agents": [
   {"name": "CodeAnalyzer", "secrets": ["OPENAI_API_KEY"]},
   {"name": "TestRunner", "secrets": ["OPENAI_API_KEY", "DATABASE_URL"]},
   {"name": "Deployer", "secrets": ["OPENAI_API_KEY", {"group": "aws-deploy", "deliver": "env"},
     {"name": "SSH_DEPLOY_KEY", "as": "id_deploy", "path_env": "DEPLOY_KEY_FILE"}]}]}"#;

/// Says loudly that a test cannot run here; fails where all must run.
pub(crate) fn cannot_run(why: &str) {
    assert_ne!(std::env::var("REQUIRE_ALL_TESTS").as_deref(), Ok("1"), "{why}");
    eprintln!("NOT RUN: {why}");
}

pub(crate) fn may_mount() -> bool {
    let may = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !may {
        cannot_run("needs root and /dev/fuse");
    }
    may
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Bounds a hang, and nothing else: what works comes nowhere near it, on a busy machine either.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Whether a process runs; one that has ended and was not waited for does not.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// Runs a shell script on a terminal of its own; each answer is typed when its question was seen.
/// What was seen, then `unanswered N status N`.
pub(crate) fn at_a_terminal(home: &Home, script: &str, answers: &[(&str, &str)]) -> String {
    let file = home.dir.path().join("terminal.py");
    std::fs::write(&file, include_str!("terminal.py")).unwrap();
    let output = Command::new("python3")
        .arg(&file)
        .arg(script.replace("strongroom ", concat!(env!("CARGO_BIN_EXE_strongroom"), " ")))
        .args(answers.iter().flat_map(|(question, answer)| [question, answer]))
        .env("STRONGROOM_HOME", home.home())
        .current_dir(home.dir.path())
        .output()
        .unwrap();
    text(&output).replace('\r', "")
}

std::thread_local! {
    /// What this test's thread asked of the program last, as it would be typed.
    pub(crate) static LAST: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// A home, served until it is dropped.
pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) env: Vec<(String, String)>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Agents of other users reach the mount and the socket through it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        Self { dir, env: Vec::new() }
    }

    /// Made, served, and filled as the design's deploy pipeline.
    pub(crate) fn deployed() -> Self {
        let home = Self::new();
        home.start();
        home.fill();
        home
    }

    pub(crate) fn start(&self) {
        self.init();
        self.ok(&["up"]);
    }

    /// Makes the vault, unlocked by a key file.
    pub(crate) fn init(&self) {
        let key = self.dir.path().join("key");
        std::fs::write(&key, [7; 32]).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key, private).unwrap();
        self.ok(&["init", "--unlock", &format!("key-file:{}", key.display())]);
    }

    /// Adds to the configuration of the daemon that runs.
    pub(crate) fn configure(&self, more: &str) {
        let file = self.home().join("strongroom.toml");
        let own = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{own}\n{more}\n")).unwrap();
        self.ok(&["reload"]);
    }

    /// Applies a definition that widens nothing that is there.
    pub(crate) fn apply(&self, definition: &str) {
        let file = self.dir.path().join("applied.json");
        std::fs::write(&file, definition).unwrap();
        self.ok(&["chain", "apply", file.to_str().unwrap()]);
    }

    pub(crate) fn fill(&self) {
        self.ok_with(&["secret", "set", "OPENAI_API_KEY", "--scope", "org"], OPENAI);
        self.ok_with(
            &["secret", "set", "prod/DATABASE_URL", "--scope", "chain:deploy-pipeline"],
            DB_PROD,
        );
        self.ok_with(
            &["secret", "set", "SSH_DEPLOY_KEY", "--scope", "agent:deploy-pipeline/Deployer"],
            SSH_KEY,
        );
        let group = format!(
            "{{\"AWS_ACCESS_KEY_ID\": \"AKIAcanary\", \"AWS_SECRET_ACCESS_KEY\": \"{AWS_SECRET}\"}}"
        );
        self.ok_with(&["group", "set", "aws-deploy", "--scope", "chain:deploy-pipeline"], &group);
        let file = self.dir.path().join("deploy-pipeline.json");
        std::fs::write(&file, DEFINITION).unwrap();
        self.ok(&["chain", "apply", file.to_str().unwrap()]);
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home().join("run/control.sock")
    }

    pub(crate) fn mount(&self) -> PathBuf {
        self.home().join("mnt")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        LAST.set(format!("strongroom {}", args.join(" ")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        command
            .args(args)
            .env("STRONGROOM_HOME", self.home())
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir(self.dir.path());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn run_with(&self, args: &[&str], input: &str) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses at once does not read.
        let _written = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn ok_with(&self, args: &[&str], input: &str) -> String {
        let output = self.run_with(args, input);
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut all = args.to_vec();
        all.push("--json");
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// Refused, with a hint; the whole message.
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?} was not refused: {}", text(&output));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.starts_with("error: "), "{args:?}: {message}");
        assert!(message.contains("\nhint: "), "{args:?} gives no hint: {message}");
        message
    }

    /// Runs a shell script as an agent.
    pub(crate) fn agent(&self, agent: &str, script: &str) -> Output {
        let view = self.dir.path().join("view");
        self.run(&[
            "run",
            "--no-redact",
            "--chain",
            "deploy-pipeline",
            "--agent",
            agent,
            "--env",
            "prod",
            "--secrets-path",
            view.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            script,
        ])
    }

    /// Runs a shell script as an agent of an execution; its output is redacted.
    pub(crate) fn agent_of(&self, execution: &str, agent: &str, script: &str) -> Output {
        let view = self.dir.path().join("view");
        let view = view.to_str().unwrap();
        let who = ["run", "--execution", execution, "--agent", agent, "--secrets-path", view];
        self.run(&[&who[..], &["--", "sh", "-c", script]].concat())
    }

    /// Ends keeper and worker at once, so that neither is left to unmount; the worker's pid.
    pub(crate) fn kill_daemon(&self) -> i32 {
        use nix::sys::signal::{Signal, kill};
        use nix::unistd::Pid;
        let file = self.home().join("run/keeper.pid");
        let keeper: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let worker = self.worker_pid();
        kill(Pid::from_raw(worker), Signal::SIGSTOP).unwrap();
        kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
        kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
        worker
    }

    pub(crate) fn records(&self, event: &str) -> Vec<serde_json::Value> {
        self.ok(&["audit", "query", "--event", event, "--json"])
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    pub(crate) fn worker_pid(&self) -> i32 {
        i32::try_from(self.json(&["status"])["worker_pid"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Agents of a test that failed may be left.
        let output = self.run(&["down", "--force"]);
        if !output.status.success() && !std::thread::panicking() {
            let message = text(&output);
            assert!(message.contains("no daemon"), "{message}");
        }
    }
}

/// Runs a shell script as `TestRunner` in an execution that was started before.
pub(crate) fn in_execution(home: &Home, id: &str, script: &str) -> Output {
    home.agent_of(id, "TestRunner", script)
}

/// What a command that ended well printed.
pub(crate) fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
