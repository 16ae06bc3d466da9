//! Small programs that tests run as agents and as strangers, and what starts them.
#![allow(dead_code)] // each test binary uses its part

pub(crate) mod disk;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use crate::common::{Home, LIMIT, text, wait_until};

/// The interpreter of the system: a user's own may be out of reach for other users.
const PYTHON: &str = "/usr/bin/python3";

/// Writes a Python script into the home's directory; its path.
pub(crate) fn script(home: &Home, name: &str, source: &str) -> PathBuf {
    let file = home.dir.path().join(name);
    std::fs::write(&file, source).unwrap();
    file
}

/// Runs a Python script as an agent, with arguments; its whole output.
pub(crate) fn python(home: &Home, agent: &str, source: &str, args: &[&str]) -> String {
    let file = script(home, "agent.py", source);
    let command = format!("{PYTHON} {} {}", file.display(), args.join(" "));
    text(&home.agent(agent, &command))
}

/// Runs a Python script outside every execution, from a directory outside the mount.
pub(crate) fn stranger(home: &Home, source: &str, args: &[&str]) -> String {
    let file = script(home, "stranger.py", source);
    let output = Command::new(PYTHON)
        .arg(file)
        .args(args)
        .current_dir(home.dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    text(&output)
}

/// Compiles `tests/tools/NAME.c` into the home's directory; its path.
pub(crate) fn compile(home: &Home, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/tools/{name}.c"));
    let binary = home.dir.path().join(name);
    let output = Command::new("cc")
        .args(["-O1", "-Wall", "-Wextra", "-pthread", "-o"])
        .arg(&binary)
        .arg(source)
        .output()
        .expect("cc is installed by tests/run.sh");
    assert!(output.status.success(), "{}", text(&output));
    binary
}

/// Whether a program is there; says loudly when not.
pub(crate) fn has(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()));
    if !found {
        crate::common::cannot_run(&format!(
            "{program} is not installed (tests/run.sh installs it)"
        ));
    }
    found
}

/// A process that a test talks to line by line; killed when dropped. One that does not answer within
/// [`LIMIT`] fails the test.
pub(crate) struct Talker {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<String>,
}

impl Talker {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (said, output) = channel();
        // Ends with the pipe, or when nobody listens any more.
        std::thread::spawn(move || {
            let _heard = lines.map_while(Result::ok).try_for_each(|line| said.send(line));
        });
        Self { child, input, output }
    }

    /// What it prints next; none when it has closed its output.
    fn heard(&mut self) -> Option<String> {
        match self.output.recv_timeout(LIMIT) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line from {} in {LIMIT:?}", self.id()),
        }
    }

    /// Starts a Python script outside every execution.
    pub(crate) fn stranger(home: &Home, name: &str, source: &str) -> Self {
        let file = script(home, name, source);
        Self::spawn(Command::new(PYTHON).arg("-u").arg(file).current_dir(home.dir.path()))
    }

    /// Starts a Python script with what `run` is told besides, as `--execution X --agent A`.
    pub(crate) fn agent(home: &Home, run: &[&str], name: &str, source: &str) -> Self {
        let file = script(home, name, source);
        let view = home.dir.path().join("view");
        let mut args = vec!["run", "--no-redact", "--secrets-path", view.to_str().unwrap()];
        args.extend(run);
        args.extend(["--", PYTHON, "-u", file.to_str().unwrap()]);
        Self::spawn(&mut home.command(&args))
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        self.heard().expect("the process ended without a line")
    }

    /// Sends it a line; it may have ended.
    pub(crate) fn tell(&mut self, line: &str) {
        if let Some(input) = &mut self.input {
            let _told = input.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Sends it a line, and waits for its answer.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.line()
    }

    /// The id of what was started: of the launcher for an agent.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Closes its input and waits; what it still printed, and whether it succeeded.
    pub(crate) fn end(mut self) -> (Vec<String>, bool) {
        self.input = None;
        let rest = std::iter::from_fn(|| self.heard()).collect();
        let mut status = None;
        wait_until("the process ends", LIMIT, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        (rest, status.is_some_and(|status| status.success()))
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        // Ended before, as most are.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// What agents that are talked to run: each line is a Python expression, its value or the number of
/// its error is the answer. `path` and `d` are the agent's secret and directory.
pub(crate) const OBEY: &str = r#"
import ctypes, errno, fcntl, os, socket, sys, threading, time
d = os.environ.get("CREDENTIALS_DIRECTORY", "")
path = d + "/OPENAI_API_KEY"
libc = ctypes.CDLL(None, use_errno=True)
held = {}
def keep(name, value):
    held[name] = value
    return value
def read(p):
    with open(p, "rb", buffering=0) as f:
        return f.read().decode()
print(os.getpid())
for line in sys.stdin:
    try:
        print(eval(line))
    except OSError as e:
        print("errno", errno.errorcode[e.errno])
"#;

/// The directory in the mount that is bound at the agent's `$CREDENTIALS_DIRECTORY`, as everybody
/// could name it who knew its token.
pub(crate) fn principal_dir(home: &Home, pid: &str) -> PathBuf {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let root = table
        .lines()
        .filter_map(|line| line.split(' ').nth(3))
        .find(|root| root.starts_with("/.agents/"))
        .expect("the agent's directory is bound");
    home.mount().join(&root[1..])
}

/// Counters of the kernel's requests by operation.
pub(crate) fn requests(home: &Home) -> std::collections::BTreeMap<String, u64> {
    let output = Command::new("curl")
        .args(["--silent", "--fail", "--unix-socket"])
        .arg(home.socket())
        .arg("http://strongroom/v1/metrics")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("strongroom_mount_requests_total{operation=\"")?;
            let (operation, count) = rest.split_once("\"} ")?;
            Some((operation.to_owned(), count.parse().unwrap()))
        })
        .collect()
}

/// Fails unless the process ended well.
pub(crate) fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

/// An agent that is talked to, in an execution of its own.
pub(crate) fn obedient(home: &Home, agent: &str, name: &str) -> Talker {
    let run = ["--chain", "deploy-pipeline", "--agent", agent, "--env", "prod"];
    let mut talker = Talker::agent(home, &run, name, OBEY);
    // Its process id: it is ready.
    talker.line();
    talker
}

/// An agent that is talked to, in an execution that was started before; `more` goes to `run`.
pub(crate) fn member(home: &Home, execution: &str, agent: &str, more: &[&str]) -> Talker {
    let mut run = vec!["--execution", execution, "--agent", agent];
    run.extend(more);
    let mut talker = Talker::agent(home, &run, &format!("{execution}.{agent}.py"), OBEY);
    talker.line();
    talker
}

/// Starts an execution of the pipeline in its production environment.
pub(crate) fn execution(home: &Home, id: &str) {
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", id]);
}

/// The group of a process in the v2 hierarchy.
pub(crate) fn group_of(pid: &str) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text.lines().find_map(|l| l.strip_prefix("0::/")).unwrap().to_owned();
    strongroom::sys::cgroup::hierarchy_root().unwrap().join(path)
}

/// Moves a process, as only root may.
pub(crate) fn move_to(group: &Path, pid: &str) {
    std::fs::write(group.join("cgroup.procs"), pid).unwrap();
}
