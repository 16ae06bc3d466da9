//! `audit`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::clock::Timestamp;
use crate::proto;

use super::output::{or_dash, show};
use super::{Context, Outcome, exit};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Prints what to store elsewhere: whoever has it finds a log that was cut.
    Head,
    /// Prints records, as stored: one JSON object a line.
    #[command(after_help = "Example:\n  strongroom audit query --event secret_accessed --json")]
    Query(QueryArgs),
    /// Prints records as they come.
    Tail {
        #[command(flatten)]
        filter: QueryArgs,
        /// Goes on until it is interrupted.
        #[arg(short, long)]
        follow: bool,
    },
    /// Checks every line; also without a daemon, with --dir.
    Verify {
        /// The directory of the log, offline.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// The event, as secret_accessed.
    #[arg(long)]
    event: Option<String>,
    /// The secret, with its environment.
    #[arg(long)]
    secret: Option<String>,
    /// The chain.
    #[arg(long)]
    chain: Option<String>,
    /// The agent.
    #[arg(long)]
    agent: Option<String>,
    /// The user.
    #[arg(long)]
    user: Option<String>,
    /// The execution.
    #[arg(long)]
    execution: Option<String>,
    /// granted or denied.
    #[arg(long)]
    decision: Option<String>,
    /// From this time on, as 2026-11-23T00:00:00Z.
    #[arg(long)]
    since: Option<Timestamp>,
    /// Before this time.
    #[arg(long)]
    until: Option<Timestamp>,
    /// Only records after this number.
    #[arg(long)]
    after_seq: Option<u64>,
    /// At most so many.
    #[arg(long)]
    limit: Option<u64>,
    /// Newest first.
    #[arg(long)]
    newest: bool,
}

fn query(args: QueryArgs, follow: bool) -> proto::AuditQuery {
    proto::AuditQuery {
        event: args.event,
        secret: args.secret,
        chain: args.chain,
        agent: args.agent,
        user: args.user,
        execution: args.execution,
        environment: None,
        decision: args.decision,
        pid: None,
        uid: None,
        since: args.since,
        until: args.until,
        after_seq: args.after_seq,
        limit: args.limit,
        newest: args.newest,
        follow,
    }
}

fn line_text(line: &str) -> String {
    let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else {
        return line.to_owned();
    };
    let text = |field: &str| value[field].as_str().unwrap_or("-").to_owned();
    format!(
        "{}  {:<18} {:<24} {}/{} {} {}",
        text("timestamp"),
        text("event"),
        text("secret_key"),
        text("chain"),
        text("agent"),
        text("execution"),
        value["reason"].as_str().unwrap_or("")
    )
    .trim_end()
    .to_owned()
}

pub(super) fn main(context: &Context, command: AuditCommand) -> Outcome {
    let client = context.client();
    let print = |query: proto::AuditQuery| -> Outcome {
        let mut out = std::io::stdout().lock();
        client.stream("/v1/audit", &query, |line| {
            let line = if context.json { line.to_owned() } else { line_text(line) };
            writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
        })?;
        Ok(exit::OK)
    };
    match command {
        AuditCommand::Query(args) => print(query(args, false)),
        AuditCommand::Tail { filter, follow } => print(query(filter, follow)),
        AuditCommand::Head => {
            let head: proto::AuditHead = client.get("/v1/audit/head", &proto::Empty::default())?;
            show(context.json, &head, || format!("{} {}", head.seq, head.link))?;
            Ok(exit::OK)
        }
        AuditCommand::Verify { dir } => {
            let verified = match dir {
                Some(dir) => crate::daemon::inspect::verified(&dir)?,
                None => client.get("/v1/audit/verify", &proto::AuditVerify::default())?,
            };
            show(context.json, &verified, || match &verified.first_bad {
                None => format!(
                    "ok: {} records in {} files, up to {}",
                    verified.records,
                    verified.files,
                    or_dash(verified.last_seq)
                ),
                Some(bad) => format!("ALTERED: {} line {}: {}", bad.file, bad.line, bad.detail),
            })?;
            Ok(if verified.ok { exit::OK } else { exit::FOUND })
        }
    }
}
