//! `status`, `doctor`, `unlock`, `lock`, `wait`, `key`, `backup`, `config`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};

use crate::config::Period;
use crate::proto::{self, Hold, Value};

use super::output::{moment, or_dash, show, table};
use super::{Context, Failure, Outcome, exit, value};

pub(super) fn status(context: &Context) -> Outcome {
    let status: proto::Status = context.client().get("/v1/status", &proto::Empty::default())?;
    show(context.json, &status, || {
        let mut rows = vec![
            vec!["state".to_owned(), status.state.to_string()],
            vec!["mount".to_owned(), status.mount.clone()],
            vec!["secrets".to_owned(), or_dash(status.vault.secrets)],
            vec!["chains".to_owned(), or_dash(status.vault.chains)],
            vec!["executions".to_owned(), status.executions.to_string()],
            vec!["records".to_owned(), or_dash(status.audit_seq)],
            vec!["keeper".to_owned(), status.keeper_pid.to_string()],
            vec![
                "worker".to_owned(),
                format!("{} (replaced {} times)", status.worker_pid, status.worker_restarts),
            ],
            vec!["since".to_owned(), moment(status.started_at)],
        ];
        if let Some(problem) = &status.audit_problem {
            rows.push(vec!["audit".to_owned(), problem.clone()]);
        }
        for waiting in &status.waiting {
            let text = format!(
                "{} version {} since {}, for {}",
                waiting.secret,
                waiting.pending,
                moment(waiting.since),
                match &waiting.waits_for[..] {
                    [] => "its time".to_owned(),
                    holders => holders.join(", "),
                }
            );
            rows.push(vec!["waiting".to_owned(), text]);
        }
        if let Some(search) = &status.events_search {
            let failed = match search.failed {
                0 => String::new(),
                failed => format!(", {failed} could not be read (see the log)"),
            };
            let text = format!(
                "{} of {} event files for new values; {} redacted{failed}",
                search.looked, search.files, search.rewritten
            );
            rows.push(vec!["searching".to_owned(), text]);
        }
        for (step, hold) in &status.hardening {
            if *hold != Hold::Full {
                rows.push(vec![step.clone(), hold.to_string()]);
            }
        }
        for warning in &status.warnings {
            rows.push(vec!["warning".to_owned(), warning.clone()]);
        }
        table(&["", ""], &rows).trim_start().to_owned()
    })?;
    Ok(exit::OK)
}

pub(super) fn doctor(context: &Context) -> Outcome {
    let doctor: proto::Doctor = context.client().get("/v1/doctor", &proto::Empty::default())?;
    show(context.json, &doctor, || {
        let promises: Vec<_> = doctor
            .promises
            .iter()
            .map(|p| {
                vec![
                    p.number.to_string(),
                    p.name.clone(),
                    p.holds.to_string(),
                    p.why.clone().unwrap_or_default(),
                ]
            })
            .collect();
        let checks: Vec<_> = doctor
            .checks
            .iter()
            .map(|c| {
                vec![
                    if c.ok { "ok" } else { "NO" }.to_owned(),
                    c.name.clone(),
                    c.found.clone(),
                    c.remedy.clone().unwrap_or_default(),
                ]
            })
            .collect();
        format!(
            "{}\n\n{}",
            table(&["", "PROMISE", "HOLDS", "WHY"], &promises),
            table(&["", "CHECK", "FOUND", "REMEDY"], &checks)
        )
    })?;
    Ok(if doctor.checks.iter().all(|c| c.ok) { exit::OK } else { exit::FOUND })
}

#[derive(Debug, Args)]
pub(super) struct UnlockArgs {
    /// Asks for the recovery key.
    #[arg(long)]
    recovery: bool,
    /// Reads this key file.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Takes an older vault file, as after a restore by hand.
    #[arg(long)]
    accept_rollback: bool,
}

pub(super) fn unlock(context: &Context, args: &UnlockArgs) -> Outcome {
    let mut request =
        proto::Unlock { accept_rollback: args.accept_rollback, ..proto::Unlock::default() };
    let by_person = matches!(
        context.config.unlock.method,
        None | Some(crate::config::UnlockMethod::Passphrase)
    );
    if args.recovery {
        request.recovery_key = Some(Value::new(value::read(None, false, "recovery key")?));
    } else if let Some(path) = &args.key_file {
        let path = std::path::absolute(path).map_err(anyhow::Error::from)?;
        request.key_file = Some(path.display().to_string());
    } else if by_person {
        request.passphrase = Some(Value::new(value::read(None, false, "passphrase")?));
    }
    let unlocked: proto::Unlocked = context.client().post("/v1/unlock", &request)?;
    show(context.json, &unlocked, || "unlocked".to_owned())?;
    Ok(exit::OK)
}

pub(super) fn lock(context: &Context) -> Outcome {
    let done: proto::Done = context.client().post("/v1/lock", &proto::Lock::default())?;
    show(context.json, &done, || "locked".to_owned())?;
    Ok(exit::OK)
}

#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// How long, as 30s.
    #[arg(long, default_value = "30s")]
    timeout: Period,
}

pub(super) fn wait(context: &Context, args: &WaitArgs) -> Outcome {
    let deadline = Instant::now() + args.timeout.0;
    loop {
        let health: Result<proto::Health, _> =
            context.client().get("/v1/health", &proto::Empty::default());
        if let Ok(health) = &health
            && health.state == proto::State::Ready
        {
            show(context.json, health, || "ready".to_owned())?;
            return Ok(exit::OK);
        }
        if Instant::now() >= deadline {
            return Err(match health {
                Err(problem) => problem.into(),
                Ok(health) => Failure::new(format!("the daemon is {}", health.state))
                    .hint("strongroom status"),
            });
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Method {
    /// A program that keeps the key.
    Command,
    /// A file of 32 bytes or more.
    KeyFile,
    /// Typed by a person.
    Passphrase,
    /// Printed once.
    Recovery,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Adds a slot.
    #[command(after_help = "Examples:\n  \
        strongroom key add passphrase --label \"for people\"\n  \
        strongroom key add key-file --path /root/strongroom.key\n  \
        strongroom key add command --command /usr/local/bin/kms-wrap --region eu\n  \
        strongroom key add recovery")]
    Add {
        /// How it unlocks.
        method: Method,
        /// The key file.
        #[arg(long)]
        path: Option<PathBuf>,
        /// The program and all its arguments: the last option.
        #[arg(long, num_args = 1.., value_name = "PROGRAM", allow_hyphen_values = true)]
        command: Vec<String>,
        /// For people.
        #[arg(long)]
        label: Option<String>,
    },
    /// Lists slots.
    #[command(after_help = "Example:\n  strongroom key list")]
    List,
    /// Gives a slot a new credential.
    #[command(after_help = "Examples:\n  \
        strongroom key rekey 1\n  \
        strongroom key rekey 2 --path /root/new.key")]
    Rekey {
        /// Its number.
        slot: String,
        /// The new key file.
        #[arg(long)]
        path: Option<PathBuf>,
        /// The new program and all its arguments: the last option.
        #[arg(long, num_args = 1.., value_name = "PROGRAM", allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Removes a slot; the last one stays.
    #[command(after_help = "Example:\n  strongroom key rm 2")]
    Rm {
        /// Its number.
        slot: String,
    },
}

fn absolute(path: Option<PathBuf>) -> Result<Option<String>, Failure> {
    match path {
        None => Ok(None),
        Some(path) => {
            let path = std::path::absolute(path).map_err(anyhow::Error::from)?;
            Ok(Some(path.display().to_string()))
        }
    }
}

fn show_added(context: &Context, added: &proto::KeyAdded) -> Result<(), Failure> {
    if let Some(key) = &added.recovery_key {
        // The one time that it is shown, to the person who asked for it.
        eprintln!("recovery key (write it down, it is not shown again):");
        eprintln!("  {}", String::from_utf8_lossy(key.secret().expose()));
    }
    show(context.json, &added.slot, || {
        format!("slot {} unlocks by {}", added.slot.id, added.slot.method)
    })?;
    Ok(())
}

pub(super) fn key(context: &Context, command: KeyCommand) -> Outcome {
    let client = context.client();
    match command {
        KeyCommand::List => {
            let listed: proto::KeyListed = client.get("/v1/keys", &proto::KeyList::default())?;
            show(context.json, &listed, || {
                let rows: Vec<_> = listed
                    .slots
                    .iter()
                    .map(|s| {
                        vec![
                            s.id.clone(),
                            s.method.clone(),
                            or_dash(s.label.clone()),
                            moment(s.created_at),
                        ]
                    })
                    .collect();
                table(&["SLOT", "METHOD", "LABEL", "MADE"], &rows)
            })?;
        }
        KeyCommand::Add { method, path, command, label } => {
            let (method, passphrase) = match method {
                Method::Command => (proto::KeyMethod::Command, None),
                Method::KeyFile => (proto::KeyMethod::KeyFile, None),
                Method::Passphrase => (
                    proto::KeyMethod::Passphrase,
                    Some(Value::new(value::read(None, false, "new passphrase")?)),
                ),
                Method::Recovery => (proto::KeyMethod::Recovery, None),
            };
            let request =
                proto::KeyAdd { method, label, passphrase, path: absolute(path)?, command };
            let added: proto::KeyAdded = client.post("/v1/keys", &request)?;
            show_added(context, &added)?;
        }
        KeyCommand::Rekey { slot, path, command } => {
            let listed: proto::KeyListed = client.get("/v1/keys", &proto::KeyList::default())?;
            let typed = listed.slots.iter().any(|s| s.id == slot && s.method == "passphrase");
            let passphrase = match typed {
                true => Some(Value::new(value::read(None, false, "new passphrase")?)),
                false => None,
            };
            let request = proto::KeyRekey { slot, passphrase, path: absolute(path)?, command };
            let added: proto::KeyAdded = client.post("/v1/keys/rekey", &request)?;
            show_added(context, &added)?;
        }
        KeyCommand::Rm { slot } => {
            let request = proto::KeyRm { slot };
            let done: proto::Done = client.post("/v1/keys/rm", &request)?;
            show(context.json, &done, || format!("removed slot {}", request.slot))?;
        }
    }
    Ok(exit::OK)
}

#[derive(Debug, Subcommand)]
pub(super) enum BackupCommand {
    /// Writes a backup under a passphrase of its own (stdin or prompt).
    #[command(after_help = "Examples:\n  \
        strongroom backup create strongroom.backup\n  \
        printf %s \"$PASSPHRASE\" | strongroom backup create strongroom.backup")]
    Create {
        /// Where; must not exist.
        file: PathBuf,
    },
    /// Puts a backup into the vault.
    #[command(after_help = "Examples:\n  \
        strongroom backup restore strongroom.backup\n  \
        strongroom backup restore strongroom.backup --replace")]
    Restore {
        /// The backup.
        file: PathBuf,
        /// In the place of all that is there.
        #[arg(long)]
        replace: bool,
    },
    /// Checks that a backup is whole.
    #[command(after_help = "Example:\n  strongroom backup verify strongroom.backup")]
    Verify {
        /// The backup.
        file: PathBuf,
    },
}

fn read_backup(file: &PathBuf) -> Result<proto::Blob, Failure> {
    std::fs::read(file).map(proto::Blob).map_err(|e| {
        Failure::new(format!("{}: {e}", file.display())).hint("give a file of `backup create`")
    })
}

pub(super) fn backup(context: &Context, command: BackupCommand) -> Outcome {
    let client = context.client();
    match command {
        BackupCommand::Create { file } => {
            let passphrase = Value::new(value::read(None, false, "passphrase of the backup")?);
            let write = |e: std::io::Error| {
                Failure::new(format!("{}: {e}", file.display())).hint("name a new file")
            };
            let mut out = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&file)
                .map_err(write)?;
            let created: Result<proto::BackupCreated, _> =
                client.post("/v1/backup", &proto::BackupCreate { passphrase });
            let written = match created {
                Ok(created) => out
                    .write_all(&created.backup.0)
                    .and_then(|()| out.sync_all())
                    .map(|()| created)
                    .map_err(write),
                Err(problem) => Err(problem.into()),
            };
            if written.is_err() {
                // Nothing half done is left.
                let _removed = std::fs::remove_file(&file);
            }
            let created = written?;
            let result = serde_json::json!({
                "file": file, "records": created.records, "revision": created.epoch,
            });
            show(context.json, &result, || {
                format!("{} records in {}", created.records, file.display())
            })?;
        }
        BackupCommand::Verify { file } => {
            let backup = read_backup(&file)?;
            let passphrase = Value::new(value::read(None, false, "passphrase of the backup")?);
            let request = proto::BackupVerify { backup, passphrase };
            let verified: proto::BackupVerified = client.post("/v1/backup/verify", &request)?;
            show(context.json, &verified, || format!("ok: {} records", verified.records))?;
        }
        BackupCommand::Restore { file, replace } => {
            let backup = read_backup(&file)?;
            let passphrase = Value::new(value::read(None, false, "passphrase of the backup")?);
            let request = proto::BackupRestore { backup, passphrase, replace };
            let restored: proto::BackupRestored = client.post("/v1/backup/restore", &request)?;
            show(context.json, &restored, || format!("restored {} records", restored.records))?;
        }
    }
    Ok(exit::OK)
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Reads the configuration and says whether it is sound.
    #[command(after_help = "Example:\n  strongroom config check")]
    Check,
    /// Prints every setting, with its default where none is given.
    #[command(after_help = "Example:\n  strongroom config show")]
    Show,
}

pub(super) fn config(context: &Context, command: &ConfigCommand) -> Outcome {
    match command {
        // It was read and checked before any command runs.
        ConfigCommand::Check => {
            let file = context.paths.config_file.display().to_string();
            show(context.json, &serde_json::json!({"file": file, "ok": true}), || {
                format!("ok: {file}")
            })?;
        }
        ConfigCommand::Show => {
            show(context.json, &context.config, || {
                serde_json::to_string_pretty(&context.config).unwrap_or_default()
            })?;
        }
    }
    Ok(exit::OK)
}
