//! What the daemon tells of itself: status, doctor, explanations, metrics, the audit log.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::audit::record::Event;
use crate::audit::verify::{Known, Verdict, read, verify};
use crate::config::{Permission, near_miss};
use crate::control::{Caller, Lines};
use crate::execution::principal::Principal;
use crate::fuse::requests::Operation;
use crate::identity::attestor::PrincipalNumber;
use crate::identity::{self, Facts, resolver};
use crate::proto::{self, Code, Hold, Problem};
use crate::sys::{mount, pidfd::PidFd};

use super::{Daemon, NAME_AND_VERSION};

/// Between two looks at the log of those who follow it.
const FOLLOW: Duration = Duration::from_millis(100);

impl Daemon {
    pub(super) fn state(&self) -> proto::State {
        if self.core.log.fault().is_some() {
            proto::State::Degraded
        } else if self.core.vault().is_none() {
            proto::State::Locked
        } else {
            proto::State::Ready
        }
    }

    pub(super) fn full_status(&self) -> proto::Status {
        let vault = self.core.vault();
        let waiting = self.all_waiting();
        let catalog = self.core.catalog();
        let running =
            self.registry.executions().iter().filter(|e| e.ended.is_none()).count() as u64;
        let mut warnings = Vec::new();
        let panics = self.alarms.panics.load(Ordering::Relaxed);
        if panics > 0 {
            warnings.push(format!("{panics} handlers of the mount panicked"));
        }
        let unseen = self.core.needles.unseen();
        if unseen > 0 {
            warnings.push(format!("{unseen} values are too weak to be looked for by redaction"));
        }
        for chain in self.around.probes().guessers() {
            warnings.push(format!(
                "chain {chain} guesses values of others; its events are slow until strongroom reload"
            ));
        }
        if let Some((false, found, remedy)) = self.allow_list() {
            warnings.push(format!("allow list: {found}: {remedy}"));
        }
        proto::Status {
            state: self.state(),
            version: NAME_AND_VERSION.to_owned(),
            mode: self.paths.mode,
            keeper_pid: nix::unistd::getppid().as_raw(),
            worker_pid: nix::unistd::getpid().as_raw(),
            worker_restarts: self.state.generation().saturating_sub(1),
            started_at: self.started_at,
            mount: self.paths.mount.display().to_string(),
            mounted: mount::topmost(&self.paths.mount).is_some_and(|m| m.fs_type == mount::FS_TYPE),
            vault: proto::VaultStatus {
                unlocked: vault.is_some(),
                id: vault.as_ref().map(|v| crate::vault::crypto::hex(&v.vault_id())),
                epoch: vault.as_ref().map(|v| v.revision()),
                secrets: vault.as_ref().map(|_| catalog.secret_count() as u64),
                chains: vault.as_ref().map(|_| catalog.chains().len() as u64),
            },
            executions: running,
            audit_seq: Some(self.core.log.head().seq),
            audit_problem: self.core.log.fault(),
            waiting,
            hardening: self.hardening.clone(),
            events_search: self.core.searches.shown(),
            warnings,
        }
    }

    pub(super) fn examine(&self) -> proto::Doctor {
        let by_cgroup = self.cgroup_root.is_some();
        let system = self.paths.mode == crate::config::Mode::System;
        let identity = if !by_cgroup {
            (Hold::Partial, Some("no cgroup can be made here: identity is by process tree"))
        } else if !system {
            (Hold::Partial, Some("user mode: an agent of your own uid can leave its cgroup"))
        } else {
            (Hold::Full, Some("but none for agents that run as root: use --as USER"))
        };
        let resend = self.resend;
        let promise = |number, name: &str, holds: Hold, why: Option<&str>| proto::Promise {
            number,
            name: name.to_owned(),
            holds,
            why: why.map(ToOwned::to_owned),
        };
        let promises = vec![
            promise(
                1,
                "scope",
                Hold::Partial,
                Some("names of opened files can be watched in the shared root of the mount"),
            ),
            promise(2, "identity", identity.0, identity.1),
            promise(
                3,
                "record",
                Hold::Full,
                Some(
                    "what no checkpoint seals yet can be cut: keep `strongroom audit head` elsewhere",
                ),
            ),
            promise(4, "consistency", Hold::Full, None),
            promise(
                5,
                "revocation",
                identity.0,
                (identity.0 != Hold::Full)
                    .then_some("who can leave the cgroup or the tree outlives a revoke"),
            ),
            promise(
                6,
                "redaction",
                Hold::Full,
                Some(
                    "of what goes through it: not what is compressed, encrypted or sent elsewhere",
                ),
            ),
            promise(
                7,
                "survival",
                if resend { Hold::Full } else { Hold::Partial },
                (!resend).then_some("this kernel cannot repeat requests (before Linux 6.9)"),
            ),
            promise(8, "vault", Hold::Full, None),
        ];
        let check = |name: &str, ok: bool, found: String, remedy: Option<&str>| proto::Check {
            name: name.to_owned(),
            ok,
            found,
            remedy: remedy.filter(|_| !ok).map(ToOwned::to_owned),
        };
        let fault = self.core.log.fault();
        let mounted =
            mount::topmost(&self.paths.mount).is_some_and(|m| m.fs_type == mount::FS_TYPE);
        let locked = self.hardening.get("memory_locked") == Some(&Hold::Full);
        // Without Yama, or with 0 there, who has the same uid may trace (ptrace(2)).
        let yama = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
        let traced = yama.map_or(true, |scope| scope.trim() == "0");
        let store = nix::sys::statvfs::statvfs(self.events.path());
        let method = match self.tree.broker().method() {
            resolver::Method::PidfdInfo => "thread pidfds",
            resolver::Method::Proc => "/proc, read twice",
        };
        let mut checks = vec![
            check(
                "mount",
                mounted,
                self.paths.mount.display().to_string(),
                Some("strongroom down, then strongroom up"),
            ),
            check(
                "vault",
                self.core.vault().is_some(),
                if self.core.vault().is_some() { "unlocked" } else { "locked" }.to_owned(),
                Some("strongroom unlock"),
            ),
            check(
                "audit",
                fault.is_none(),
                fault.unwrap_or_else(|| "written".to_owned()),
                Some("free space where the audit directory lies"),
            ),
            check(
                "events",
                store.is_ok(),
                match &store {
                    Ok(found) => format!(
                        "{}, {} MiB free",
                        self.events.path().display(),
                        (found.blocks_available() * found.fragment_size()) >> 20
                    ),
                    Err(errno) => format!("{}: {errno}", self.events.path().display()),
                },
                Some("make the directory of [events] dir there again, then strongroom reload"),
            ),
            check(
                "swap",
                true,
                if locked { "kept out" } else { "only the root key is kept out of it" }.to_owned(),
                None,
            ),
            check(
                "tracing",
                true,
                if traced {
                    "agents of one uid can trace each other: run them --isolate, or --as different users"
                } else {
                    "restricted by Yama"
                }
                .to_owned(),
                None,
            ),
            check("identity", true, format!("by {method}"), None),
            check(
                "cgroups",
                by_cgroup,
                self.cgroup_root.as_ref().map_or("none".to_owned(), |p| p.display().to_string()),
                Some("run the daemon as root, or in a delegated cgroup"),
            ),
        ];
        if let Some((ok, found, remedy)) = self.allow_list() {
            checks.push(check("allow list", ok, found, Some(remedy)));
        }
        proto::Doctor { promises, checks }
    }

    /// The principal of a process, by the facts of now.
    pub(super) fn principal_of_process(&self, pid: u32) -> Option<PrincipalNumber> {
        let pidfd = PidFd::open(pid).ok();
        let cgroup_id = pidfd.as_ref().and_then(|p| p.info().ok()).map(|info| info.cgroup_id);
        let cgroup_id = cgroup_id.or_else(|| {
            let caller = identity::Caller { tid: pid, uid: 0, gid: 0 };
            resolver::Resolver::new(false).resolve(caller).ok().and_then(|f| f.cgroup_id)
        });
        self.tree.broker().attest(pid, &Facts { tgid: pid, cgroup_id })
    }

    pub(super) fn who_is(&self, who: &Caller) -> proto::SelfShown {
        let principal = u32::try_from(who.peer.pid)
            .ok()
            .and_then(|pid| self.principal_of_process(pid))
            .and_then(|n| self.registry.principal(n));
        proto::SelfShown {
            uid: who.peer.uid,
            roles: who.role_names(),
            may: who.permissions().iter().map(|p| p.word().to_owned()).collect(),
            execution: principal.as_ref().map(|p| p.execution.to_string()),
            chain: principal.as_ref().map(|p| p.chain.clone()),
            agent: principal.as_ref().map(|p| p.agent.clone()),
            environment: principal.as_ref().and_then(|p| p.environment.clone()),
            may_launch: principal.as_ref().map(|p| self.may_launch_of(p)).unwrap_or_default(),
            explained: None,
        }
    }

    /// Whom an agent may launch by its definition of now.
    fn may_launch_of(&self, principal: &Principal) -> Vec<String> {
        let catalog = self.core.catalog();
        let chain = principal.chain.parse().ok().and_then(|chain| catalog.chain(&chain));
        let agents = chain.iter().flat_map(|stored| &stored.definition.agents);
        let own = agents.filter(|agent| agent.name.as_str() == principal.agent);
        own.flat_map(|agent| &agent.may_launch).map(ToString::to_string).collect()
    }

    pub(super) fn open_metrics(&self) -> String {
        let mut text = String::new();
        let running = self.registry.executions().iter().filter(|e| e.ended.is_none()).count();
        let rows: [(&str, &str, &str, u64); 6] = [
            ("strongroom_executions", "gauge", "Executions that run.", running as u64),
            (
                "strongroom_open_files",
                "gauge",
                "Files of the mount that are open.",
                self.tree.broker().open_files() as u64,
            ),
            (
                "strongroom_audit_records_total",
                "counter",
                "Records in the audit log.",
                self.core.log.head().seq,
            ),
            (
                "strongroom_audit_healthy",
                "gauge",
                "Whether the audit log can be written.",
                u64::from(self.core.log.fault().is_none()),
            ),
            (
                "strongroom_worker_restarts_total",
                "counter",
                "Workers that were replaced.",
                self.state.generation().saturating_sub(1),
            ),
            (
                "strongroom_handler_panics_total",
                "counter",
                "Panics in handlers of the mount.",
                self.alarms.panics.load(Ordering::Relaxed),
            ),
        ];
        for (name, kind, help, value) in rows {
            let family = name.strip_suffix("_total").unwrap_or(name);
            // Writing to a string cannot fail.
            let _written =
                write!(text, "# TYPE {family} {kind}\n# HELP {family} {help}\n{name} {value}\n");
        }
        let family = "strongroom_mount_requests";
        let help = "Requests of the kernel to this worker.";
        let _written = write!(text, "# TYPE {family} counter\n# HELP {family} {help}\n");
        for operation in Operation::ALL {
            let (word, count) = (operation.word(), self.alarms.requests.of(operation));
            let _written = writeln!(text, "{family}_total{{operation=\"{word}\"}} {count}");
        }
        text.push_str("# EOF\n");
        text
    }

    pub(super) fn query_audit(
        &self,
        who: &Caller,
        req: &proto::AuditQuery,
        out: &mut dyn Lines,
    ) -> Result<(), Problem> {
        // A word that is spelt wrong would find nothing, as if nothing had happened.
        if let Some(event) = &req.event
            && !Event::names().any(|name| name == event)
        {
            let hint = near_miss(event, Event::names()).map_or_else(
                || format!("known here: {}", Event::names().collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            return Err(Problem::new(Code::BadRequest, "there is no such event").with_hint(hint));
        }
        self.records(who, &[Permission::Audit], req, out)
    }

    /// Records of places where the caller has one of these permissions.
    fn records(
        &self,
        who: &Caller,
        one_of: &[Permission],
        req: &proto::AuditQuery,
        out: &mut dyn Lines,
    ) -> Result<(), Problem> {
        // What was acknowledged is shown, also what is on its way to the file.
        let _flushed = self.core.log.flush(Duration::from_secs(2));
        let wanted = |value: &serde_json::Value| {
            let text = |field: &str| value[field].as_str();
            let same = |wanted: &Option<String>, field: &str| {
                wanted.as_deref().is_none_or(|w| text(field) == Some(w))
            };
            let at = text("timestamp").and_then(|t| t.parse::<crate::clock::Timestamp>().ok());
            same(&req.event, "event")
                && same(&req.secret, "secret_key")
                && same(&req.chain, "chain")
                && same(&req.agent, "agent")
                && same(&req.user, "user")
                && same(&req.execution, "execution")
                && same(&req.environment, "environment")
                && same(&req.decision, "decision")
                && req.pid.is_none_or(|pid| value["pid"].as_i64() == Some(i64::from(pid)))
                && req.uid.is_none_or(|uid| value["uid"].as_u64() == Some(u64::from(uid)))
                && req.since.is_none_or(|since| at.is_some_and(|at| at >= since))
                && req.until.is_none_or(|until| at.is_some_and(|at| at < until))
                && one_of.iter().any(|p| who.may_in(*p, text("chain"), text("environment")))
        };
        let limit = usize::try_from(req.limit.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let mut after = req.after_seq.unwrap_or(0);
        let mut sent = 0;
        let io = |e: std::io::Error| {
            Problem::new(Code::Internal, format!("the audit log cannot be read: {e}"))
        };
        if req.newest && !req.follow {
            let mut kept = std::collections::VecDeque::new();
            read(self.core.log.dir(), after, |line, value| {
                if wanted(value) {
                    kept.push_front(line.to_owned());
                    kept.truncate(limit);
                }
                true
            })
            .map_err(io)?;
            for line in kept {
                if out.send(line.as_bytes()).is_err() {
                    break;
                }
            }
            return Ok(());
        }
        loop {
            let mut gone = false;
            read(self.core.log.dir(), after, |line, value| {
                after = value["seq"].as_u64().unwrap_or(after);
                if wanted(value) {
                    gone = out.send(line.as_bytes()).is_err();
                    sent += 1;
                }
                !gone && sent < limit
            })
            .map_err(io)?;
            if gone || !req.follow || sent >= limit || out.is_gone() || self.is_stopping() {
                return Ok(());
            }
            // Only new records make a new reading worth it.
            while self.core.log.head().seq <= after {
                if out.is_gone() || self.is_stopping() {
                    return Ok(());
                }
                std::thread::park_timeout(FOLLOW);
            }
        }
    }

    pub(super) fn watch_events(
        &self,
        who: &Caller,
        req: &proto::Watch,
        out: &mut dyn Lines,
    ) -> Result<(), Problem> {
        struct Events<'a>(&'a mut dyn Lines);
        impl Lines for Events<'_> {
            fn send(&mut self, line: &[u8]) -> Result<(), crate::control::Gone> {
                let Ok(value) = serde_json::from_slice::<serde_json::Value>(line) else {
                    return Ok(());
                };
                let text = |field: &str| value[field].as_str().map(ToOwned::to_owned);
                let event = proto::WatchEvent {
                    seq: value["seq"].as_u64().unwrap_or(0),
                    at: text("timestamp")
                        .and_then(|t| t.parse().ok())
                        .unwrap_or(crate::clock::Timestamp::UNIX_EPOCH),
                    event: text("event").unwrap_or_default(),
                    chain: text("chain"),
                    agent: text("agent"),
                    execution: text("execution"),
                    secret: text("secret_key"),
                    reason: text("reason"),
                };
                match serde_json::to_vec(&event) {
                    Ok(line) => self.0.send(&line),
                    Err(_) => Ok(()),
                }
            }
            fn is_gone(&self) -> bool {
                self.0.is_gone()
            }
        }
        let query = proto::AuditQuery {
            after_seq: Some(req.after_seq.unwrap_or_else(|| self.core.log.head().seq)),
            execution: req.execution.clone(),
            chain: req.chain.clone(),
            follow: true,
            ..proto::AuditQuery::default()
        };
        // Whoever launches there watches what becomes of it.
        let one_of = [Permission::Audit, Permission::Launch, Permission::Operate];
        self.records(who, &one_of, &query, &mut Events(out))
    }

    pub(super) fn verify_log(
        &self,
        req: &proto::AuditVerify,
    ) -> Result<proto::AuditVerified, Problem> {
        // The file must hold what was acknowledged; a fault of it is what verify is asked about.
        let _flushed = self.core.log.flush(Duration::from_secs(2));
        let signing = self.signing();
        let known = Known {
            public_key: req.public_key.clone().or(signing.as_ref().map(|(key, _)| key.clone())),
            head: req.head_seq.zip(req.head_link.clone()),
        };
        let mut verified = verified(self.core.log.dir(), &known)?;
        // A tail that was cut off with its checkpoints is a valid log; the vault counts them.
        if let Some((_, made)) = signing
            && verified.ok
            && verified.checkpoints < made
        {
            verified.ok = false;
            verified.first_bad = Some(proto::FirstBad {
                file: self.core.log.dir().display().to_string(),
                line: 0,
                kind: "truncated".to_owned(),
                detail: format!(
                    "the log ends at checkpoint {}, but {made} were made",
                    verified.checkpoints
                ),
            });
        }
        if let Some(bad) = &verified.first_bad {
            self.alert(super::alert::Alert {
                event: "verify_failed",
                secret: None,
                message: "the audit log is not as it was written".to_owned(),
                reason: Some(format!("{} line {}: {}", bad.file, bad.line, bad.detail)),
                at: self.core.clock.now(),
            });
        }
        Ok(verified)
    }

    pub(super) fn log_head(&self) -> proto::AuditHead {
        let _flushed = self.core.log.flush(Duration::from_secs(2));
        let head = self.core.log.head();
        proto::AuditHead {
            seq: head.seq,
            link: head.link,
            timestamp: self.core.clock.now(),
            first_public_key: self.signing().map(|(key, _)| key),
            epoch: self.core.vault().map(|v| v.revision()),
        }
    }
}

/// What a check of the log in `dir` finds.
///
/// # Errors
/// The problem that it cannot be read.
pub fn verified(dir: &std::path::Path, known: &Known) -> Result<proto::AuditVerified, Problem> {
    let io = |e: std::io::Error| {
        Problem::new(Code::Internal, format!("the audit log cannot be read: {e}"))
            .with_hint("check the directory with --dir")
    };
    let files = crate::audit::files::files(dir).map_err(io)?.len() as u64;
    Ok(match verify(dir, known).map_err(io)? {
        Verdict::Whole { records, seq, link, checkpoints, unsealed, .. } => proto::AuditVerified {
            ok: true,
            records,
            files,
            checkpoints,
            unsealed,
            last_seq: Some(seq),
            link: Some(link),
            first_bad: None,
        },
        Verdict::Broken { file, line, what, kind } => proto::AuditVerified {
            ok: false,
            records: 0,
            files,
            checkpoints: 0,
            unsealed: 0,
            last_seq: None,
            link: None,
            first_bad: Some(proto::FirstBad {
                file: file.display().to_string(),
                line,
                kind: kind.to_owned(),
                detail: what.to_owned(),
            }),
        },
    })
}

/// How far hardening went, for `status`.
pub(super) fn hold(achieved: &crate::sys::process::Achieved) -> Hold {
    match achieved {
        crate::sys::process::Achieved::Full => Hold::Full,
        crate::sys::process::Achieved::Partial(_) => Hold::Partial,
        crate::sys::process::Achieved::None(_) => Hold::None,
    }
}

/// A map of what was achieved.
pub(super) fn hardening(steps: &[(&str, crate::sys::process::Achieved)]) -> BTreeMap<String, Hold> {
    steps.iter().map(|(name, achieved)| ((*name).to_owned(), hold(achieved))).collect()
}
