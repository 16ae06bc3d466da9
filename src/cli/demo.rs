//! `demo`: the whole in a throw-away home: a daemon, a chain of three agents, what each sees, what
//! lands of what they write, a rotation, what a stranger sees, and the records of it.
//!
//! Every command is run as a person would run it, by this very program; nothing is staged.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::config::HOME_VARIABLE;
use crate::secret::SecretBytes;
use crate::vault::crypto;

use super::output::{note, show};
use super::{Failure, Outcome, exit};

const DEFINITION: &str = r#"{"chain": "deploy-pipeline",
 "agents": [
   {"name": "CodeAnalyzer", "secrets": ["OPENAI_API_KEY"]},
   {"name": "TestRunner", "secrets": ["OPENAI_API_KEY", "DATABASE_URL"]},
   {"name": "Deployer", "secrets": ["OPENAI_API_KEY", "aws-deploy",
                                    {"name": "SSH_DEPLOY_KEY", "as": "id_deploy"}]}]}
"#;

/// What an agent shows of its view: names and sizes, never values.
const LOOK: &str = "ls -1 \"$CREDENTIALS_DIRECTORY\" | sed 's/^/    /'; \
    for n in OPENAI_API_KEY DATABASE_URL id_deploy AWS_SECRET_ACCESS_KEY; do \
      if v=$(cat \"$CREDENTIALS_DIRECTORY/$n\" 2>/dev/null); \
      then echo \"    reads $n: ${#v} characters\"; \
      else echo \"    reads $n: no such file\"; fi; done";

/// An agent that logs what it should not.
const LOG: &str = "echo \"uploading with key $(cat \"$CREDENTIALS_DIRECTORY/AWS_SECRET_ACCESS_KEY\"); \
    in base64: $(cat \"$CREDENTIALS_DIRECTORY/OPENAI_API_KEY\" | base64 -w0)\" > \
    \"$STRONGROOM_EVENTS_DIR/deploy.log\"";
/// Which version an agent has, as its own `.identity` says.
const VERSION: &str = "tr ',{' '\\n\\n' < \"$CREDENTIALS_DIRECTORY/.identity\" | \
    sed -n 's/.*\"version\" *: *\\([0-9]*\\).*/\\1/p' | head -n 1";

/// A home that goes with its daemon, however the demo is left.
struct Home {
    dir: PathBuf,
    key_dir: PathBuf,
    program: PathBuf,
    json: bool,
}

impl Home {
    fn say(&self, text: &str) -> Result<(), Failure> {
        say(self.json, text)
    }

    fn run(&self, args: &[&str], input: Option<&SecretBytes>) -> Result<String, Failure> {
        self.run_with(args.iter().map(OsStr::new).collect(), input)
    }

    /// Runs a script as an agent.
    fn agent(&self, execution: &str, agent: &str, script: &str) -> Result<String, Failure> {
        let view = self.dir.join("view").display().to_string();
        self.run(
            &[
                "run",
                "--execution",
                execution,
                "--agent",
                agent,
                "--secrets-path",
                &view,
                "--",
                "sh",
                "-c",
                script,
            ],
            None,
        )
    }

    fn run_with(&self, args: Vec<&OsStr>, input: Option<&SecretBytes>) -> Result<String, Failure> {
        let mut child = Command::new(&self.program)
            .args(&args)
            .env(HOME_VARIABLE, &self.dir)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(anyhow::Error::from)?;
        if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(input.expose()).map_err(anyhow::Error::from)?;
        }
        let output = child.wait_with_output().map_err(anyhow::Error::from)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let line = |start: &str| {
            text.lines().find_map(|l| l.strip_prefix(start)).map(|l| l.trim().to_owned())
        };
        let what =
            line("error:").unwrap_or_else(|| format!("a command ended with {}", output.status));
        let failure = Failure::new(what);
        Err(match line("hint:") {
            Some(hint) => failure.hint(hint),
            None => failure,
        })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // It may not have come up at all.
        let _down = self.run(&["down", "--force"], None);
        for dir in [&self.dir, &self.key_dir] {
            match fs::remove_dir_all(dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    note(&format!("note: {} is left: {e}", dir.display()));
                }
                _ => {}
            }
        }
    }
}

/// A line on stdout, or beside the result where that is JSON; a reader that has gone ends the demo.
fn say(json: bool, text: &str) -> Result<(), Failure> {
    let told = match json {
        true => writeln!(std::io::stderr(), "{text}"),
        false => writeln!(std::io::stdout(), "{text}"),
    };
    told.map_err(|e| anyhow::Error::from(e).into())
}

fn random_text(prefix: &str, bytes: usize) -> Result<SecretBytes, Failure> {
    let mut random = vec![0; bytes];
    crypto::random(&mut random).map_err(anyhow::Error::from)?;
    Ok(SecretBytes::from_vec(format!("{prefix}{}", crypto::hex(&random)).into_bytes()))
}

fn make_home(program: PathBuf, json: bool) -> Result<Home, Failure> {
    let name = String::from_utf8_lossy(random_text("strongroom-demo-", 6)?.expose()).into_owned();
    let key_dir = std::env::temp_dir().join(format!("{name}.key"));
    let dir = std::env::temp_dir().join(name);
    fs::create_dir(&dir).map_err(anyhow::Error::from)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(anyhow::Error::from)?;
    Ok(Home { dir, key_dir, program, json })
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(|e| anyhow::Error::from(e).into())
}

pub(super) fn main(json: bool) -> Outcome {
    let home = make_home(std::env::current_exe().map_err(anyhow::Error::from)?, json)?;
    home.say(&format!("A throw-away home: {}", home.dir.display()))?;
    let mut bytes = [0; 32];
    crypto::random(&mut bytes).map_err(anyhow::Error::from)?;
    // Beside the home, not in it: in system mode the vault's own directory is refused.
    fs::create_dir(&home.key_dir).map_err(anyhow::Error::from)?;
    let key_file = home.key_dir.join("key");
    write_private(&key_file, &bytes)?;
    play(&home, &key_file)?;
    drop(home);
    say(json, "\nAll of it is gone again. Next: README.md, or `strongroom --help`.")?;
    if json {
        show(json, &serde_json::json!({"ok": true}), String::new)?;
    }
    Ok(exit::OK)
}

fn play(home: &Home, key: &Path) -> Result<(), Failure> {
    home.run(&["init", "--unlock", &format!("key-file:{}", key.display())], None)?;
    home.run(&["up"], None)?;
    home.say("  vault made, daemon up, mount answers\n")?;

    home.say("Secrets go in by stdin, each with a scope:")?;
    let secrets = [
        ("OPENAI_API_KEY", "org", "sk-proj-"),
        ("prod/DATABASE_URL", "chain:deploy-pipeline", "postgres://app:"),
        (
            "SSH_DEPLOY_KEY",
            "agent:deploy-pipeline/Deployer",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n",
        ),
    ];
    for (name, scope, prefix) in secrets {
        let value = random_text(prefix, 24)?;
        home.run(&["secret", "set", name, "--scope", scope, "--exact"], Some(&value))?;
        home.say(&format!("  {name:<20} {scope}"))?;
    }
    let id = random_text("AKIA", 8)?;
    let secret = random_text("", 20)?;
    let group = SecretBytes::from_vec(
        format!(
            "{{\"AWS_ACCESS_KEY_ID\": \"{}\", \"AWS_SECRET_ACCESS_KEY\": \"{}\"}}",
            String::from_utf8_lossy(id.expose()),
            String::from_utf8_lossy(secret.expose())
        )
        .into_bytes(),
    );
    home.run(&["group", "set", "aws-deploy", "--scope", "chain:deploy-pipeline"], Some(&group))?;
    home.say(&format!("  {:<20} chain:deploy-pipeline (a group of two)", "aws-deploy"))?;

    let definition = home.dir.join("deploy-pipeline.json");
    write_private(&definition, DEFINITION.as_bytes())?;
    home.run_with(vec![OsStr::new("chain"), OsStr::new("apply"), definition.as_os_str()], None)?;
    let start =
        ["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", "demo-run"];
    home.run(&start, None)?;
    home.say("\nOne run of the chain deploy-pipeline in prod; each agent sees its own files:")?;
    for agent in ["CodeAnalyzer", "TestRunner", "Deployer"] {
        let shown = home.agent("demo-run", agent, LOOK)?;
        home.say(&format!("  {agent}:\n{}", shown.trim_end()))?;
    }

    home.say("\nThe Deployer writes its keys into its events/deploy.log; what lands is:")?;
    home.agent("demo-run", "Deployer", LOG)?;
    let log = home.dir.join("events/deploy-pipeline/prod/demo-run/deploy.log");
    home.say(&format!("    {}", fs::read_to_string(log).map_err(anyhow::Error::from)?.trim_end()))?;

    home.say(
        "\nA rotation while the run goes on; new runs get the new version, this one keeps its own:",
    )?;
    let new = random_text("sk-proj-", 24)?;
    home.run(&["secret", "rotate", "OPENAI_API_KEY"], Some(&new))?;
    home.run(
        &["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", "demo-new"],
        None,
    )?;
    for execution in ["demo-run", "demo-new"] {
        let version = home.agent(execution, "CodeAnalyzer", VERSION)?;
        home.say(&format!("    {execution}: version {}", version.trim()))?;
    }

    home.say("\nA stranger (this shell, outside of every run) looks at the mount:")?;
    let mount = home.dir.join("mnt");
    for entry in fs::read_dir(&mount).map_err(anyhow::Error::from)?.flatten() {
        home.say(&format!("    {}", entry.file_name().to_string_lossy()))?;
    }
    let refused = fs::read(mount.join("OPENAI_API_KEY"));
    match refused {
        Err(error) => home.say(&format!("    reads OPENAI_API_KEY: {error}"))?,
        Ok(_) => return Err(Failure::new("a stranger read a secret: this is a bug")),
    }

    home.say("\nWhat the audit log has of it (written before the bytes left):")?;
    let records = home.run(&["audit", "query", "--execution", "demo-run"], None)?;
    for line in records.lines().filter(|l| l.contains("secret_")) {
        home.say(&format!("  {}", line.trim_end()))?;
    }
    home.say(&format!("  {}", home.run(&["audit", "verify"], None)?.trim_end()))?;
    for execution in ["demo-run", "demo-new"] {
        home.run(&["execution", "end", execution], None)?;
    }
    Ok(())
}
