//! Policies and their schedule: what is due, who is told, what has come to its end.
//!
//! Invariant: a notice is noted before it is sent, so that no due date has two. Danger: a host that
//! slept for long; [`schedule::steps`] decides, this carries out.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::audit::record::Event;
use crate::catalog::policy::{self, Policy, SetBack, State, Terms};
use crate::catalog::secret::{End, Secret, Stage};
use crate::catalog::{Catalog, Unit};
use crate::clock::Timestamp;
use crate::config::Permission;
use crate::control::Caller;
use crate::proto::{self, Code, Problem};
use crate::rotation::schedule::{self, Facts, Step};
use crate::vault::record::RecordKind;

use super::alert::Alert;
use super::core::{new_id, put};
use super::rotate::store_all;
use super::rotation::check_chain;
use super::secrets::{catalog_problem, parse};
use super::step::invalid;
use super::{Daemon, user_of};

impl Daemon {
    pub(super) fn apply_policies(
        &self,
        who: &Caller,
        req: &proto::RotationApply,
    ) -> Result<proto::RotationListed, Problem> {
        self.core.unlocked()?;
        let all = policy::parse(&req.text).map_err(|e| {
            invalid(
                e.to_string(),
                "as in {\"rotation_policy\": {\"NAME\": {\"rotate_every_days\": 30}}}",
            )
        })?;
        let targets = all
            .into_iter()
            .map(|(name, terms)| Ok((self.policy_target(&name, &terms)?, terms)))
            .collect::<Result<Vec<_>, Problem>>()?;
        let now = self.core.clock.now();
        let by = user_of(who.peer.uid);
        if req.dry_run {
            let shown = targets.iter().map(|(unit, terms)| {
                policy_shown(&policy_of(unit, terms, "dry-run".into(), now, &by), unit, now)
            });
            return Ok(proto::RotationListed { policies: shown.collect() });
        }
        let (policies, revision) = self.core.change(|catalog, batch| {
            let mut policies = Vec::new();
            for (unit, terms) in &targets {
                let id = match catalog.policy(unit.id()) {
                    Some(old) => old.id.clone(),
                    None => new_id()?.to_string(),
                };
                let policy = policy_of(unit, terms, id, now, &by);
                put(batch, RecordKind::Policy, &policy.id, &policy)?;
                policies.push(policy);
            }
            let stored = policies.clone();
            let apply = move |c: &mut Catalog| stored.into_iter().for_each(|p| c.put_policy(p));
            Ok((policies, Box::new(apply) as _))
        })?;
        for (unit, terms) in &targets {
            let reason = format!("every {}", terms.rotate_every);
            self.record_unit(
                Event::PolicyApplied,
                who.peer.uid,
                unit,
                Some(&reason),
                Some(revision),
            )?;
        }
        self.settle_soon();
        let shown = policies.iter().zip(&targets).map(|(p, (unit, _))| policy_shown(p, unit, now));
        Ok(proto::RotationListed { policies: shown.collect() })
    }

    /// What a policy is for: a member stands for its group.
    fn policy_target(&self, name: &str, terms: &Terms) -> Result<Unit, Problem> {
        let catalog = self.core.catalog();
        let found = catalog.find_unit(name, None).map_err(|e| catalog_problem(&e))?;
        let unit = match (&found.group, found.members.first()) {
            (None, Some(secret)) => catalog.unit_of(secret),
            _ => found,
        };
        if let Some(name) = &terms.rotation_chain {
            let chain = catalog.chain(name).ok_or_else(|| {
                Problem::new(Code::NotFound, format!("there is no chain {name}"))
                    .with_hint("store its definition: strongroom chain apply FILE.json")
            })?;
            check_chain(chain)?;
        }
        Ok(unit)
    }

    pub(super) fn list_policies(&self, who: &Caller) -> Result<proto::RotationListed, Problem> {
        self.core.unlocked()?;
        let now = self.core.clock.now();
        let catalog = self.core.catalog();
        let mut policies: Vec<_> = catalog
            .policies()
            .iter()
            .filter_map(|p| Some((p.clone(), catalog.unit(&p.target)?)))
            .filter(|(_, unit)| {
                let chain = unit.scope().and_then(|s| s.chain()).map(|c| c.as_str());
                let environment = unit.environment().map(|e| e.as_str());
                who.may_in(Permission::Operate, chain, environment)
                    || who.may_in(Permission::Audit, chain, environment)
            })
            .map(|(policy, unit)| policy_shown(&policy, &unit, now))
            .collect();
        policies.sort_by(|a, b| (a.due_at, &a.name).cmp(&(b.due_at, &b.name)));
        Ok(proto::RotationListed { policies })
    }

    pub(super) fn remove_policy(
        &self,
        who: &Caller,
        req: &proto::RotationRm,
    ) -> Result<proto::Done, Problem> {
        let found = self.unit(&req.name, req.scope.as_deref())?;
        let unit = match (&found.group, found.members.first()) {
            (None, Some(secret)) => self.core.catalog().unit_of(secret),
            _ => found,
        };
        let ((), revision) = self.core.change(|catalog, batch| {
            let policy = catalog.policy(unit.id()).ok_or_else(|| {
                Problem::new(Code::NotFound, format!("{} has no policy", unit.name()))
                    .with_hint("strongroom rotation list")
            })?;
            batch.delete(RecordKind::Policy, parse(&policy.id)?);
            let target = policy.target.clone();
            Ok(((), Box::new(move |c: &mut Catalog| c.remove_policy(&target)) as _))
        })?;
        self.record_unit(
            Event::PolicyApplied,
            who.peer.uid,
            &unit,
            Some("removed"),
            Some(revision),
        )?;
        Ok(proto::Done::default())
    }

    pub(super) fn record_unit(
        &self,
        event: Event,
        uid: u32,
        unit: &Unit,
        reason: Option<&str>,
        revision: Option<u64>,
    ) -> Result<(), Problem> {
        let (name, scope) = (unit.name(), unit.scope().map(ToString::to_string));
        let user = user_of(uid);
        let mut record = self.core.new_record(event);
        record.secret_key = Some(&name);
        record.scope = scope.as_deref();
        record.environment = unit.environment().map(|e| e.as_str());
        record.user = Some(&user);
        record.uid = Some(uid);
        record.reason = reason;
        record.revision = revision;
        self.core.record(&record)?;
        Ok(())
    }

    /// What the schedule asks for now. Runs of chains go on in threads of their own.
    pub(super) fn keep_schedule(self: &Arc<Self>) {
        self.clear_dead_runs();
        let now = self.core.clock.now();
        let due: Vec<_> = {
            let catalog = self.core.catalog();
            let of = |policy: &Arc<Policy>| {
                let unit = catalog.unit(&policy.target)?;
                let steps = schedule::steps(policy, facts(policy, &unit), now);
                (!steps.is_empty()).then(|| (policy.clone(), unit, steps))
            };
            catalog.policies().iter().filter_map(of).collect()
        };
        for (policy, unit, steps) in due {
            for step in steps {
                match step {
                    Step::Anchor(set_back) => self.anchor(&policy, set_back),
                    Step::Notice { due } => self.notice(&policy, &unit, due),
                    Step::Rotate { .. } => self.rotate_in_background(&policy, unit.clone()),
                }
            }
        }
        self.note_ended(now);
        self.run_chores(now);
    }

    fn anchor(&self, policy: &Policy, set_back: Option<SetBack>) {
        let noted = self.change_policy(&policy.target, |state| state.set_back = set_back);
        if let Err(problem) = noted {
            tracing::error!(%problem, "that the clock was set back could not be noted");
        }
    }

    fn notice(&self, policy: &Policy, unit: &Unit, due: Timestamp) {
        // Noted first: a daemon that dies here says it once too few times rather than for ever.
        let noted = self.change_policy(&policy.target, |state| state.noticed_for = Some(due));
        if let Err(problem) = noted {
            tracing::error!(%problem, "a notice could not be noted");
            return;
        }
        let reason = format!("due {due}");
        let uid = nix::unistd::geteuid().as_raw();
        if let Err(problem) = self.record_unit(Event::RotationDue, uid, unit, Some(&reason), None) {
            tracing::error!(%problem, "a notice could not be recorded");
        }
        self.alert(Alert {
            event: Event::RotationDue.name(),
            secret: Some(unit.name()),
            message: format!("the rotation of {} is due {due}", unit.name()),
            reason: None,
            at: self.core.clock.now(),
        });
    }

    pub(super) fn change_policy(
        &self,
        target: &str,
        change: impl FnOnce(&mut State),
    ) -> Result<(), Problem> {
        self.core
            .change(|catalog, batch| {
                let Some(policy) = catalog.policy(target) else {
                    return Ok(((), Box::new(|_: &mut Catalog| ()) as _));
                };
                let mut policy = Policy::clone(policy);
                change(&mut policy.state);
                put(batch, RecordKind::Policy, &policy.id, &policy)?;
                Ok(((), Box::new(move |c: &mut Catalog| c.put_policy(policy)) as _))
            })
            .map(|_| ())
    }

    /// Tells of ends that have come, also while no daemon ran.
    fn note_ended(&self, now: Timestamp) {
        if self.core.catalog().ended(now).is_empty() {
            return;
        }
        // Noted first: a daemon that dies here tells of it once too few times rather than for ever.
        let noted = self.core.change(|catalog, batch| {
            let ended = catalog.ended(now);
            let mut stored = Vec::new();
            for (secret, end) in &ended {
                let mut secret = Secret::clone(secret);
                secret.tell(*end);
                put(batch, RecordKind::Secret, &secret.id, &secret)?;
                stored.push(secret);
            }
            Ok((ended, store_all(stored)))
        });
        let ended = match noted {
            Ok((ended, _)) => ended,
            Err(problem) => return tracing::error!(%problem, "an end could not be noted"),
        };
        for (secret, end) in ended {
            let unit = Unit { group: None, members: vec![secret] };
            let (message, reason) = match end {
                End::Secret => {
                    (format!("{} has expired: nobody reads it any more", unit.name()), None)
                }
                End::Version(number) => (
                    format!(
                        "version {number} of {} has come to its end: new executions get none",
                        unit.name()
                    ),
                    Some(format!("valid_until of version {number}")),
                ),
            };
            let uid = nix::unistd::geteuid().as_raw();
            let recorded =
                self.record_unit(Event::SecretExpired, uid, &unit, reason.as_deref(), None);
            if let Err(problem) = recorded {
                tracing::error!(%problem, "an end could not be recorded");
            }
            self.alert(Alert {
                event: Event::SecretExpired.name(),
                secret: Some(unit.name()),
                message,
                reason,
                at: now,
            });
        }
    }
}

fn policy_of(unit: &Unit, terms: &Terms, id: String, now: Timestamp, by: &str) -> Policy {
    Policy {
        id,
        target: unit.id().to_owned(),
        terms: terms.clone(),
        state: State::default(),
        applied_at: now,
        applied_by: by.to_owned(),
    }
}

fn facts(policy: &Policy, unit: &Unit) -> Facts {
    let changed = unit.members.iter().map(|s| s.rotated_at.unwrap_or(s.created_at)).max();
    Facts {
        rotated_at: changed.unwrap_or(policy.applied_at),
        is_pending: unit.members.iter().any(|s| s.at_stage(Stage::Pending).is_some()),
    }
}

fn policy_shown(policy: &Policy, unit: &Unit, now: Timestamp) -> proto::PolicyShown {
    let facts = facts(policy, unit);
    let due_at = schedule::due_at(policy, facts.rotated_at, now);
    let soon = due_at.checked_sub(policy.terms.notify_before.0).is_ok_and(|at| at <= now);
    let state = if facts.is_pending {
        "pending"
    } else if policy.state.failures > 0 {
        "failed"
    } else if due_at <= now {
        "due"
    } else if soon {
        "soon"
    } else {
        "ok"
    };
    proto::PolicyShown {
        name: unit.name(),
        scope: unit.scope().map(ToString::to_string).unwrap_or_default(),
        rotate_every: policy.terms.rotate_every,
        notify_before: policy.terms.notify_before,
        auto_rotate: policy.terms.auto_rotate,
        rotation_chain: policy.terms.rotation_chain.as_ref().map(ToString::to_string),
        rotated_at: facts.rotated_at,
        due_at,
        state: state.to_owned(),
        failures: policy.state.failures,
    }
}
