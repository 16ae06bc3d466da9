//! One step of a rotation chain: an agent's command, started by the daemon.
//!
//! Invariant: a value that a step prints goes through a pipe into [`SecretBytes`], and nowhere else;
//! what it says on stderr is passed on redacted ([`Said`]). Danger: a chain's command runs as the user who applied the chain, never as more.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::catalog::definition::Agent;
use crate::catalog::{Chain, Unit};
use crate::execution::principal::Execution;
use crate::proto::{self, Code, Problem};
use crate::secret::{MAX_VALUE_BYTES, SecretBytes};
use crate::sys::process;

use super::Daemon;
use super::rotate::Fresh;
use super::rotation::{GRACE, Run};
use super::said::{self, Said};

/// A request, or a chain, that cannot be worked with.
pub(super) fn invalid(what: impl Into<String>, hint: &str) -> Problem {
    Problem::new(Code::Invalid, what.into()).with_hint(hint)
}

/// The agent of a chain that is this step, where it has one.
pub(super) fn step_of<'a>(chain: &'a Chain, step: &str) -> Option<&'a Agent> {
    let is = |a: &&Agent| a.name.as_str() == step && !a.command.is_empty();
    chain.definition.agents.iter().find(is)
}

impl Daemon {
    /// Runs one agent of the chain; its stdout. `hear` gets what it said on stderr, if anything.
    pub(super) fn run_step(
        &self,
        run: &Run,
        chain: &Chain,
        execution: &Arc<Execution>,
        hear: &mut dyn FnMut(&str),
    ) -> Result<SecretBytes, Problem> {
        let step = &run.step;
        let agent = step_of(chain, step).ok_or_else(|| {
            invalid(format!("chain {} has no step {step}", run.chain), "add an agent of that name")
        })?;
        let failed = |what: String| {
            Problem::new(Code::Conflict, what).with_hint(
                "the current version stays; mend the chain and try again: strongroom rotation run",
            )
        };
        let (uid, gid) = runner(chain)?;
        let limit = self.config.rotation.step_timeout.0;
        let ticket = self.issue_own(execution, &agent.name, (uid, gid), limit)?;
        let file = self.paths.runtime_dir.join(format!("rotation-{}-{step}", &run.token[..16]));
        let io = |e: std::io::Error| failed(format!("{step} cannot be started: {}", e.kind()));
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)
            .and_then(|mut f| {
                std::os::unix::fs::fchown(&f, Some(uid), Some(gid))?;
                f.write_all(ticket.expose())
            })
            .map_err(io)?;
        let outcome = self.spawn_step(run, agent, (uid, gid), &file, limit, hear);
        let _removed = std::fs::remove_file(&file);
        outcome.map_err(failed)
    }

    fn spawn_step(
        &self,
        run: &Run,
        agent: &Agent,
        (uid, gid): (u32, u32),
        ticket: &std::path::Path,
        limit: Duration,
        hear: &mut dyn FnMut(&str),
    ) -> Result<SecretBytes, String> {
        let exe = std::env::current_exe().map_err(|e| e.to_string())?;
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
        let mut command = Command::new(exe);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        if let Some(user) = &user {
            command.env("HOME", &user.dir).env("USER", &user.name).env("LOGNAME", &user.name);
            command.current_dir(if user.dir.is_dir() { user.dir.as_path() } else { "/".as_ref() });
        }
        if let Some(home) = &self.paths.home {
            command.arg("--home").arg(home);
        }
        // Its output is the value.
        command.args(["run", "--no-redact", "--ticket-file"]).arg(ticket).arg("--").arg("env");
        for (name, value) in [("NAME", &run.name), ("TOKEN", &run.token), ("STEP", &run.step)] {
            command.arg(format!("STRONGROOM_ROTATION_{name}={value}"));
        }
        command.args(&agent.command);
        if nix::unistd::geteuid().as_raw() != uid {
            command.uid(uid).gid(gid);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = process::begin_afresh(&mut command, false)
            .spawn()
            .map_err(|e| format!("{} cannot be started: {}", run.step, e.kind()))?;
        let stderr = said::listen(child.stderr.take().ok_or("no pipe")?);
        // One byte more than fits tells of too much.
        let stdout = said::drain(child.stdout.take().ok_or("no pipe")?, MAX_VALUE_BYTES);
        let deadline = Instant::now() + limit;
        let ended = loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => break Ok(()),
                Ok(Some(status)) => break Err(format!("{} failed: {status}", run.step)),
                Ok(None) if Instant::now() >= deadline || self.is_stopping() => {
                    // Its agent ends with its execution; the launcher itself is ended here.
                    let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
                    let _ended =
                        self.end_one(&run.execution, "rotation step hangs", Duration::ZERO);
                    let _gone = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                    let _reaped = child.wait();
                    let period = self.config.rotation.step_timeout;
                    break Err(if self.is_stopping() {
                        format!("the daemon was stopped during {}", run.step)
                    } else {
                        format!("{} did not end within {period}", run.step)
                    });
                }
                Ok(None) => std::thread::park_timeout(Duration::from_millis(10)),
                Err(error) => break Err(error.to_string()),
            }
        };
        // A process that the step has left behind may hold its pipes for ever.
        let left = deadline.saturating_duration_since(Instant::now()).max(GRACE);
        let printed = stdout.recv_timeout(left);
        if printed.is_err() {
            let _ended = self.end_one(&run.execution, "rotation step hangs", Duration::ZERO);
        }
        let known = printed.as_ref().ok().and_then(|p| p.as_ref().ok());
        let said = Said::of(&stderr, GRACE, known, run.step == "create", &self.around);
        if !said.shown.is_empty() {
            hear(&said.shown);
        }
        let outcome = ended.and_then(|()| match printed {
            Err(_) => Err(format!("{} ended, and left a process that holds its output", run.step)),
            Ok(Err(e)) => {
                Err(format!("the output of {} could not be read: {}", run.step, e.kind()))
            }
            Ok(Ok(value)) => Ok(value),
        });
        outcome.map_err(|what| {
            if !said.told.is_empty() {
                tracing::warn!(step = run.step, stderr = said.told, "a step of a rotation failed");
            }
            said.added_to(what)
        })
    }
}

/// As whom the chain's commands run: who applied it, never more.
pub(super) fn runner(chain: &Chain) -> Result<(u32, u32), Problem> {
    let own = nix::unistd::geteuid();
    let found = match chain.applied_by.parse::<u32>() {
        Ok(uid) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)),
        Err(_) => nix::unistd::User::from_name(&chain.applied_by),
    };
    let user = found.ok().flatten().ok_or_else(|| {
        invalid(
            format!(
                "{}, who applied chain {}, is no user here",
                chain.applied_by, chain.definition.chain
            ),
            "apply it again as a user of this host",
        )
    })?;
    if !own.is_root() && user.uid != own {
        return Err(invalid(
            format!("chain {} was applied by {}", chain.definition.chain, user.name),
            "apply it as the daemon's own user",
        ));
    }
    Ok((user.uid.as_raw(), user.gid.as_raw()))
}

/// What `create` printed, as values of the unit.
pub(super) fn fresh_of(unit: &Unit, made: SecretBytes) -> Result<Fresh, Problem> {
    let hint = "create prints the value on its stdout, and nothing else";
    if made.is_empty() {
        return Err(invalid("create printed nothing", hint));
    }
    if made.len() > MAX_VALUE_BYTES {
        return Err(invalid(format!("create printed more than {MAX_VALUE_BYTES} bytes"), hint));
    }
    if unit.group.is_none() {
        let bytes = made.expose();
        let single = bytes.iter().filter(|b| **b == b'\n').count() == 1 && bytes.ends_with(b"\n");
        if single && bytes.len() > 1 {
            return Ok(Fresh::One(SecretBytes::copy_of(&bytes[..bytes.len() - 1])));
        }
        return Ok(Fresh::One(made));
    }
    // The parser's own words would quote values.
    let members: BTreeMap<String, proto::Value> =
        serde_json::from_slice(made.expose()).map_err(|e| {
            invalid(
                format!(
                    "create printed no JSON object of names and texts (line {}, column {})",
                    e.line(),
                    e.column()
                ),
                "for a group it prints {\"MEMBER\": \"value\", ...}",
            )
        })?;
    Ok(Fresh::Given(super::rotate::members_of(members)))
}
