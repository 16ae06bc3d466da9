//! Versions of secrets and groups: rotate, promote, rollback, revoke, destroy, exposures.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use crate::clock::Timestamp;
use crate::config::Period;
use crate::proto::{self, Value};

use super::output::{moment, note, or_dash, show, table};
use super::secret::{NameArgs, members};
use super::{Context, Failure, Outcome, exit, value};

#[derive(Debug, Args)]
pub(super) struct TimeArgs {
    /// From when on new executions get it, as 2027-01-31T00:00:00Z; none: now.
    #[arg(long)]
    valid_from: Option<Timestamp>,
    /// Until when new executions get it.
    #[arg(long)]
    valid_until: Option<Timestamp>,
    /// Promote after this time even while executions hold the old version, as 12h.
    #[arg(long)]
    drain: Option<Period>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    printf %s \"$NEW\" | strongroom secret rotate prod/DATABASE_URL\n  \
    strongroom secret rotate SESSION_KEY --generate hex:64")]
pub(super) struct RotateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Reads the value from a file.
    #[arg(long, conflicts_with = "generate")]
    file: Option<PathBuf>,
    /// Keeps a trailing newline.
    #[arg(long)]
    exact: bool,
    /// Has the daemon make a value: alphanumeric, hex or base64, with its length, as hex:64.
    #[arg(long, value_name = "KIND[:LENGTH]")]
    generate: Option<String>,
    #[command(flatten)]
    times: TimeArgs,
}

#[derive(Debug, Args)]
pub(super) struct GroupRotateArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Reads the JSON object from a file.
    #[arg(long)]
    file: Option<PathBuf>,
    #[command(flatten)]
    times: TimeArgs,
}

#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Also while executions hold the current version: they keep it.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Also a version that was removed at its provider.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct DestroyArgs {
    #[command(flatten)]
    name: NameArgs,
    /// The version's number.
    #[arg(long)]
    version: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    strongroom secret revoke prod/API_KEY --reason \"on a forum\" --dry-run\n  \
    printf %s \"$NEW\" | strongroom secret revoke prod/API_KEY --reason \"on a forum\"\n\n\
    The status is 9 when a process that had the value could not be ended.")]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Why; goes into every record.
    #[arg(long)]
    reason: String,
    /// A number, pending, current, previous or all; none: every version but the replacement.
    #[arg(long)]
    version: Option<String>,
    /// The name resolves to nothing from now on.
    #[arg(long)]
    no_replacement: bool,
    /// Reads the replacement from a file.
    #[arg(long, conflicts_with = "no_replacement")]
    file: Option<PathBuf>,
    /// Keeps a trailing newline of the replacement.
    #[arg(long)]
    exact: bool,
    /// Only says who holds it, how, and since when.
    #[arg(long)]
    dry_run: bool,
}

fn generated(text: &str) -> Result<proto::Generate, Failure> {
    let bad = || {
        Failure::new("--generate takes a kind and a length")
            .hint("as in --generate alphanumeric:32, hex:64 or base64:43")
            .status(exit::USAGE)
    };
    let (kind, length) = match text.split_once(':') {
        None => (text, 32),
        Some((kind, length)) => (kind, length.parse().map_err(|_| bad())?),
    };
    Ok(proto::Generate { length, alphabet: Some(kind.to_owned()) })
}

fn rotated_text(rotated: &proto::Rotated) -> String {
    let numbers = |of: &BTreeMap<String, u64>| {
        of.iter().map(|(name, number)| format!("{name} {number}")).collect::<Vec<_>>().join(", ")
    };
    let mut lines = vec![format!("current: {}", numbers(&rotated.current))];
    if !rotated.pending.is_empty() {
        lines.push(format!("pending: {}", numbers(&rotated.pending)));
        if let Some(from) = rotated.valid_from {
            lines.push(format!("new executions get it from {from} on"));
        }
        match &rotated.waits_for[..] {
            [] => lines.push("nobody holds the current one: it is promoted at once".to_owned()),
            holders => {
                lines.push(format!("waits for {}", holders.join(", ")));
                if let Some(at) = rotated.drain_at {
                    lines.push(format!("promoted at {at} at the latest"));
                }
            }
        }
    }
    lines.join("\n")
}

fn show_rotated(context: &Context, rotated: &proto::Rotated) -> Outcome {
    for text in &rotated.notes {
        note(&format!("note: {text}"));
    }
    show(context.json, rotated, || rotated_text(rotated))?;
    Ok(exit::OK)
}

pub(super) fn rotate(context: &Context, args: RotateArgs) -> Outcome {
    let generate = args.generate.as_deref().map(generated).transpose()?;
    let value = match generate {
        Some(_) => None,
        None => Some(Value::new(value::read(args.file.as_deref(), args.exact, "new value")?)),
    };
    let request = proto::SecretRotate {
        name: args.name.name,
        scope: args.name.scope,
        value,
        generate,
        valid_from: args.times.valid_from,
        valid_until: args.times.valid_until,
        drain: args.times.drain,
    };
    show_rotated(context, &context.client().post("/v1/secrets/rotate", &request)?)
}

pub(super) fn rotate_group(context: &Context, args: GroupRotateArgs) -> Outcome {
    let request = proto::GroupRotate {
        name: args.name.name,
        scope: args.name.scope,
        members: members(args.file.as_deref())?,
        valid_from: args.times.valid_from,
        valid_until: args.times.valid_until,
        drain: args.times.drain,
    };
    show_rotated(context, &context.client().post("/v1/groups/rotate", &request)?)
}

pub(super) fn promote(context: &Context, args: PromoteArgs) -> Outcome {
    let request =
        proto::SecretPromote { name: args.name.name, scope: args.name.scope, force: args.force };
    show_rotated(context, &context.client().post("/v1/secrets/promote", &request)?)
}

pub(super) fn rollback(context: &Context, args: RollbackArgs) -> Outcome {
    let request =
        proto::SecretRollback { name: args.name.name, scope: args.name.scope, force: args.force };
    show_rotated(context, &context.client().post("/v1/secrets/rollback", &request)?)
}

pub(super) fn destroy(context: &Context, args: DestroyArgs) -> Outcome {
    let request = proto::SecretDestroy {
        name: args.name.name,
        scope: args.name.scope,
        version: args.version,
    };
    let shown: proto::SecretShown = context.client().post("/v1/secrets/destroy", &request)?;
    show(context.json, &shown, || {
        format!("version {} of {} is destroyed", request.version, shown.key)
    })?;
    Ok(exit::OK)
}

fn exposure_row(e: &proto::Exposure) -> Vec<String> {
    vec![
        e.key.clone(),
        e.version.to_string(),
        e.via.clone(),
        or_dash(e.execution.clone()),
        or_dash(e.agent.clone()),
        e.user.clone(),
        moment(e.at),
        if e.active { "running" } else { "-" }.to_owned(),
    ]
}

/// Executions that are over are shown up to this many.
const MOST_OVER: usize = 20;

const EXPOSURE_HEADING: [&str; 8] =
    ["SECRET", "VERSION", "VIA", "EXECUTION", "AGENT", "USER", "SINCE", "NOW"];

pub(super) fn exposures(context: &Context, name: NameArgs) -> Outcome {
    let request = proto::SecretName { name: name.name, scope: name.scope };
    let listed: proto::ExposureList = context.client().get("/v1/secrets/exposures", &request)?;
    show(context.json, &listed, || {
        let rows: Vec<_> = listed.exposures.iter().map(exposure_row).collect();
        table(&EXPOSURE_HEADING, &rows)
    })?;
    Ok(exit::OK)
}

fn revoked_text(revoked: &proto::Revoked) -> String {
    let would = if revoked.dry_run { "would be " } else { "" };
    let mut lines = Vec::new();
    for (name, numbers) in &revoked.versions {
        let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        let replaced = revoked
            .replaced_by
            .get(name)
            .map_or(String::new(), |number| format!("; current is version {number}"));
        lines.push(format!("{name}: version {} {would}revoked{replaced}", numbers.join(", ")));
    }
    lines.push(format!("executions {would}ended: {}", revoked.ended.len()));
    let rows: Vec<_> = revoked
        .ended
        .iter()
        .map(|e| {
            vec![
                e.execution.clone(),
                e.chain.clone(),
                e.agents.join(" "),
                e.via.join(" "),
                or_dash(e.since.map(moment)),
                e.processes.to_string(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let heading = ["EXECUTION", "CHAIN", "AGENTS", "VIA", "SINCE (UTC)", "PROCESSES"];
        lines.push(table(&heading, &rows));
    }
    if !revoked.outside.is_empty() {
        lines.push("seen by people, which only they can undo:".to_owned());
        let rows: Vec<_> = revoked.outside.iter().map(exposure_row).collect();
        lines.push(table(&EXPOSURE_HEADING, &rows));
    }
    if !revoked.over.is_empty() {
        lines.push(format!("obtained before by executions that are over: {}", revoked.over.len()));
        // The newest; --json has them all.
        let rows: Vec<_> = revoked.over.iter().rev().take(MOST_OVER).map(exposure_row).collect();
        lines.push(table(&EXPOSURE_HEADING, &rows));
    }
    for other in &revoked.same_value {
        lines.push(format!("the same value is also in {other}: revoke it as well"));
    }
    if !revoked.goes_on.is_empty() {
        lines.push(format!(
            "never obtained it and {would}left running: {}",
            revoked.goes_on.join(" ")
        ));
    }
    lines.extend(revoked.notes.iter().map(|note| format!("note: {note}")));
    for survivor in &revoked.survivors {
        lines.push(format!("NOT ENDED: {survivor}"));
    }
    if !revoked.dry_run {
        lines.push(format!(
            "first denial after {} us, all done after {} ms",
            revoked.first_denial_us, revoked.took_ms
        ));
    }
    lines.join("\n")
}

pub(super) fn revoke(context: &Context, args: RevokeArgs, is_group: bool) -> Outcome {
    let stays = matches!(args.version.as_deref(), Some(v) if v != "all" && v != "current");
    let wants = !(args.no_replacement || args.dry_run || stays);
    let mut request = proto::SecretRevoke {
        name: args.name.name,
        scope: args.name.scope,
        reason: args.reason,
        version: args.version,
        replacement: None,
        replacement_members: BTreeMap::new(),
        no_replacement: args.no_replacement,
        dry_run: args.dry_run,
    };
    if wants && is_group {
        request.replacement_members = members(args.file.as_deref())?;
    } else if wants {
        let value = value::read(args.file.as_deref(), args.exact, "replacement")?;
        request.replacement = Some(Value::new(value));
    }
    let revoked: proto::Revoked = context.client().post("/v1/secrets/revoke", &request)?;
    show(context.json, &revoked, || revoked_text(&revoked))?;
    Ok(if revoked.complete || revoked.dry_run { exit::OK } else { exit::INCOMPLETE })
}

pub(super) fn test_alerts(context: &Context) -> Outcome {
    let tested: proto::AlertTested =
        context.client().post("/v1/alerts/test", &proto::Empty::default())?;
    show(context.json, &tested, || {
        let rows: Vec<_> = tested
            .deliveries
            .iter()
            .map(|d| {
                let outcome = d.failed.clone().unwrap_or_else(|| "delivered".to_owned());
                vec![d.name.clone(), outcome]
            })
            .collect();
        table(&["ALERT", "OUTCOME"], &rows)
    })?;
    let all = tested.deliveries.iter().all(|d| d.delivered);
    Ok(if all { exit::OK } else { exit::FOUND })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_to_generate_has_a_length_of_its_own_or_32() {
        assert_eq!(generated("hex:64").unwrap().length, 64);
        assert_eq!(generated("hex").unwrap().length, 32);
        assert!(generated("hex:many").is_err());
    }
}
