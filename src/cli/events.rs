//! `events`: the folders of the event store.
#![forbid(unsafe_code)]

use clap::Subcommand;

use crate::clock::{Clock, SystemClock, Timestamp};
use crate::config::Period;
use crate::proto;

use super::output::{note, or_dash, show, table};
use super::{Context, Outcome, exit};

#[derive(Debug, Subcommand)]
pub(super) enum EventsCommand {
    /// Lists folders: whose they are, what they hold, and since when nothing has changed.
    #[command(after_help = "Example:\n  strongroom events list --chain deploy --env prod")]
    List {
        /// Only of this chain.
        #[arg(long)]
        chain: Option<String>,
        /// Only in this environment; - for none.
        #[arg(long)]
        env: Option<String>,
    },
    /// Prints the folder of an execution.
    #[command(after_help = "Example:\n  tail -f \"$(strongroom events path \"$id\")\"/*.log")]
    Path {
        /// The execution's id.
        execution: String,
        /// Its chain, where several had executions of that id.
        #[arg(long)]
        chain: Option<String>,
        /// Its environment, where there were several; - for none.
        #[arg(long)]
        env: Option<String>,
    },
    /// Removes folders of executions that have ended.
    ///
    /// With both --older-than and --keep a folder goes that meets both. Of a folder that all
    /// executions of a chain share, old files go, while none of them runs.
    #[command(after_help = "Examples:\n  strongroom events prune --older-than 30d --dry-run\n  \
        strongroom events prune --chain deploy --keep 20\n\n`[events] keep = \"30d\"` in the \
        configuration does it by itself.")]
    Prune {
        /// Folders go in which nothing has changed for so long, as 30d or 12h.
        #[arg(long, required_unless_present = "keep")]
        older_than: Option<Period>,
        /// Of those that have ended, so many of each chain and environment stay: the newest.
        #[arg(long, value_name = "N")]
        keep: Option<u64>,
        /// Only of this chain.
        #[arg(long)]
        chain: Option<String>,
        /// Only in this environment; - for none.
        #[arg(long)]
        env: Option<String>,
        /// Says what would go, and removes nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

/// A number of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return bytes.to_string();
    }
    let (mut rest, mut unit) = (bytes, 0);
    while rest >= 1024 * 1024 && unit + 1 < UNITS.len() {
        rest /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", rest / 1024, rest % 1024 * 10 / 1024, UNITS[unit])
}

/// The largest unit of a span of time.
fn age(since: Option<Timestamp>) -> String {
    let Some(since) = since else { return "-".to_owned() };
    let secs = SystemClock.now().as_second().saturating_sub(since.as_second()).max(0);
    match secs {
        0..120 => format!("{secs}s"),
        120..7200 => format!("{}m", secs / 60),
        7200..172_800 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}

fn rows(folders: &[proto::EventsFolder]) -> String {
    let rows: Vec<_> = folders
        .iter()
        .map(|f| {
            vec![
                f.chain.clone(),
                or_dash(f.environment.as_ref()),
                f.execution.clone().unwrap_or_else(|| "(all)".to_owned()),
                f.files.to_string(),
                size(f.bytes),
                f.state.clone(),
                age(f.changed_at),
            ]
        })
        .collect();
    table(&["CHAIN", "ENV", "EXECUTION", "FILES", "SIZE", "STATE", "AGE"], &rows)
}

pub(super) fn main(context: &Context, command: EventsCommand) -> Outcome {
    let client = context.client();
    match command {
        EventsCommand::List { chain, env } => {
            let request = proto::EventsList { chain, environment: env };
            let listed: proto::EventsListed = client.get("/v1/events", &request)?;
            show(context.json, &listed, || rows(&listed.folders))?;
        }
        EventsCommand::Path { execution, chain, env } => {
            let request = proto::EventsPath { execution, chain, environment: env };
            let found: proto::EventsFolder = client.get("/v1/events/path", &request)?;
            show(context.json, &found, || found.path.clone())?;
        }
        EventsCommand::Prune { older_than, keep, chain, env, dry_run } => {
            let request = proto::EventsPrune { older_than, keep, chain, environment: env, dry_run };
            let pruned: proto::EventsPruned = client.post_again("/v1/events/prune", &request)?;
            for left in &pruned.left {
                note(&format!("warning: {left}"));
            }
            show(context.json, &pruned, || {
                if pruned.folders.is_empty() {
                    return "nothing is that old".to_owned();
                }
                let verb = if pruned.dry_run { "would remove" } else { "removed" };
                format!(
                    "{}\n{verb} {} files, {} bytes",
                    rows(&pruned.folders),
                    pruned.files,
                    pruned.bytes
                )
            })?;
            return Ok(if pruned.left.is_empty() { exit::OK } else { exit::FAILED });
        }
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        assert_eq!(size(0), "0");
        assert_eq!(size(1023), "1023");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(1536 * 1024), "1.5 MiB");
        assert_eq!(size(u64::MAX), "16383.9 PiB");
    }
}
