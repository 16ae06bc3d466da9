//! `audit`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use crate::audit::record::Event;
use crate::audit::verify::Known;
use crate::clock::Timestamp;
use crate::proto;
use crate::sys::durable;

use super::output::{note, or_dash, show};
use super::{Context, Failure, Outcome, exit};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Writes records to a file, whole or not at all: one JSON object a line.
    #[command(after_help = "Example:\n  strongroom audit export november.jsonl \\\n    \
        --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z")]
    Export {
        /// The file; what is there is replaced.
        file: PathBuf,
        #[command(flatten)]
        filter: QueryArgs,
    },
    /// Prints what to store elsewhere: whoever has it finds a log that was cut or made anew.
    ///
    /// The record's number, its link, and the first public key.
    #[command(after_help = "Example:\n  strongroom audit head --json > head.json")]
    Head,
    /// Removes the records of days gone by; a signed anchor stands for them.
    #[command(after_help = "Example:\n  strongroom audit prune --keep-days 90")]
    Prune {
        /// Days before this one go, as 2026-11-23.
        #[arg(long, required_unless_present = "keep_days", conflicts_with = "keep_days")]
        before: Option<String>,
        /// So many days stay, today among them.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        keep_days: Option<u16>,
    },
    /// Prints records, as stored: one JSON object a line.
    #[command(after_help = "Example:\n  strongroom audit query --event secret_accessed --json")]
    Query(QueryArgs),
    /// Prints records as they come.
    #[command(after_help = "Examples:\n  \
        strongroom audit tail --limit 20\n  \
        strongroom audit tail --follow --after-seq 4711 --json")]
    Tail {
        #[command(flatten)]
        filter: QueryArgs,
        /// Goes on until it is interrupted.
        #[arg(short, long)]
        follow: bool,
    },
    /// Checks every line; also without a daemon, with --dir.
    #[command(after_help = "Examples:\n  \
        strongroom audit verify\n  \
        strongroom audit verify --dir /mnt/copy/audit --public-key first.pub")]
    Verify {
        /// The directory of the log, offline.
        #[arg(long)]
        dir: Option<PathBuf>,
        /// The first public key, or a file with it, as `audit head` told it.
        #[arg(long, value_name = "KEY|FILE")]
        public_key: Option<String>,
        /// Number and link of a record, as `audit head` told them.
        #[arg(long, num_args = 2, value_names = ["SEQ", "LINK"])]
        head: Option<Vec<String>>,
    },
}

#[derive(Debug, Args)]
pub(super) struct QueryArgs {
    /// The event, as secret_accessed.
    #[arg(long, value_parser = PossibleValuesParser::new(Event::names()), hide_possible_values = true)]
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
        let mut records = 0_u64;
        client.stream("/v1/audit", &query, |line| {
            records += 1;
            let line = if context.json { line.to_owned() } else { line_text(line) };
            writeln!(out, "{line}").and_then(|()| out.flush()).is_ok()
        })?;
        if records == 0 {
            // A name that is spelt wrong finds nothing as well.
            note("note: no record matches");
        }
        Ok(exit::OK)
    };
    match command {
        AuditCommand::Query(args) => print(query(args, false)),
        AuditCommand::Tail { filter, follow } => print(query(filter, follow)),
        AuditCommand::Head => {
            let head: proto::AuditHead = client.get("/v1/audit/head", &proto::Empty::default())?;
            show(context.json, &head, || {
                format!("{} {} {}", head.seq, head.link, or_dash(head.first_public_key.as_ref()))
            })?;
            Ok(exit::OK)
        }
        AuditCommand::Export { file, filter } => {
            let mut records = 0_u64;
            let request = query(filter, false);
            let unwritten = |e: &std::io::Error| {
                Failure::new(format!("{}: {e}", file.display()))
                    .hint("name a file in a directory that you may write")
            };
            let mut refused = None;
            let written = durable::write_with(&file, 0o600, |out| {
                let mut out = std::io::BufWriter::new(out);
                let mut failed = None;
                let streamed = client.stream("/v1/audit", &request, |line| {
                    records += 1;
                    failed = writeln!(out, "{line}").err();
                    failed.is_none()
                });
                if let Err(problem) = streamed {
                    refused = Some(problem);
                    return Err(std::io::Error::other("the records could not be had"));
                }
                failed.map_or_else(|| out.flush(), Err)
            });
            if let Some(problem) = refused {
                return Err(problem.into());
            }
            written.map_err(|e| unwritten(&e))?;
            let result = serde_json::json!({"file": file, "records": records});
            show(context.json, &result, || format!("{records} records in {}", file.display()))?;
            Ok(exit::OK)
        }
        AuditCommand::Prune { before, keep_days } => {
            let request = proto::AuditPrune { before, keep_days };
            let pruned: proto::AuditPruned = client.post("/v1/audit/prune", &request)?;
            show(context.json, &pruned, || match pruned.files.as_slice() {
                [] => "nothing is that old".to_owned(),
                files => format!("removed {} records: {}", pruned.records, files.join(" ")),
            })?;
            Ok(exit::OK)
        }
        AuditCommand::Verify { dir, public_key, head } => {
            let public_key = public_key.map(|text| public_key_of(&text)).transpose()?;
            let head = head.map(|words| head_of(&words)).transpose()?;
            let verified = match dir {
                Some(dir) => {
                    let known = Known { public_key, head };
                    crate::daemon::inspect::verified(&dir, &known).map_err(|problem| {
                        let mut failure = Failure::from(problem);
                        failure.what = format!("{}: {}", dir.display(), failure.what);
                        failure
                    })?
                }
                None => {
                    let (head_seq, head_link) = head.unzip();
                    let request = proto::AuditVerify { public_key, head_seq, head_link };
                    client.get("/v1/audit/verify", &request)?
                }
            };
            show(context.json, &verified, || verdict_text(&verified))?;
            Ok(if verified.ok { exit::OK } else { exit::FOUND })
        }
    }
}

/// A key in hex, or a file that holds one.
fn public_key_of(text: &str) -> Result<String, Failure> {
    let is_key = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let key = if is_key(text) {
        text.to_owned()
    } else {
        std::fs::read_to_string(text).map(|t| t.trim().to_owned()).map_err(|e| {
            Failure::new(format!("{text} is no public key, and as a file: {e}"))
                .hint("give the third word of `strongroom audit head`, or a file with it")
        })?
    };
    if is_key(&key) {
        return Ok(key.to_ascii_lowercase());
    }
    Err(Failure::new(format!("{text} holds no public key"))
        .hint("a public key is 64 hex digits: the third word of `strongroom audit head`"))
}

fn head_of(words: &[String]) -> Result<(u64, String), Failure> {
    match words {
        [seq, link] if link.len() == 64 => seq.parse().ok().map(|seq| (seq, link.clone())),
        _ => None,
    }
    .ok_or_else(|| {
        Failure::new("the noted record does not parse")
            .hint("give the first two words of `strongroom audit head`: number and link")
    })
}

fn verdict_text(verified: &proto::AuditVerified) -> String {
    match &verified.first_bad {
        Some(bad) if bad.line == 0 => {
            format!("{}: {}: {}", bad.kind.to_uppercase(), bad.file, bad.detail)
        }
        Some(bad) => {
            format!("{}: {} line {}: {}", bad.kind.to_uppercase(), bad.file, bad.line, bad.detail)
        }
        None => {
            let mut text = format!(
                "ok: {} records in {} files, up to {}; {} checkpoints",
                verified.records,
                verified.files,
                or_dash(verified.last_seq),
                verified.checkpoints
            );
            if verified.unsealed > 0 {
                use std::fmt::Write as _;
                // Writing to a string cannot fail.
                let _written = write!(text, "\nunsealed tail of {} records", verified.unsealed);
            }
            text
        }
    }
}
