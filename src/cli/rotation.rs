//! `rotation`: policies, what is due when, and runs of rotation chains by hand.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::proto;

use super::output::{moment, note, or_dash, show, table};
use super::secret::NameArgs;
use super::{Context, Failure, Outcome, exit};

#[derive(Debug, Subcommand)]
pub(super) enum RotationCommand {
    /// Makes policies hold: a JSON file, all of it or nothing.
    #[command(after_help = "Example:\n  strongroom rotation apply policy.json\n\nSuch a file:\n  \
        {\"rotation_policy\": {\"prod/DATABASE_URL\": {\n    \
        \"rotate_every_days\": 30, \"notify_before_days\": 7,\n    \
        \"auto_rotate\": true, \"rotation_chain\": \"rotate-db\"}}}")]
    Apply {
        /// The file; - for stdin.
        file: PathBuf,
        /// Only says what would be.
        #[arg(long)]
        dry_run: bool,
    },
    /// Lists policies, the next due first.
    #[command(after_help = "Example:\n  strongroom rotation list --json")]
    List,
    /// Takes a policy away; the secret stays as it is.
    #[command(after_help = "Example:\n  strongroom rotation rm prod/DATABASE_URL")]
    Rm(NameArgs),
    /// Runs the rotation chain now.
    #[command(after_help = "Examples:\n  \
        strongroom rotation run prod/DATABASE_URL\n  \
        strongroom rotation run prod/DATABASE_URL --chain rotate-db")]
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    name: NameArgs,
    /// The chain, where no policy names one.
    #[arg(long)]
    chain: Option<String>,
}

/// The last line of a run that failed.
#[derive(serde::Deserialize)]
struct Failed {
    problem: proto::Problem,
}

fn rows(listed: &proto::RotationListed) -> String {
    let rows: Vec<_> = listed
        .policies
        .iter()
        .map(|p| {
            vec![
                p.name.clone(),
                p.scope.clone(),
                p.rotate_every.to_string(),
                moment(p.due_at),
                p.state.clone(),
                if p.auto_rotate { "auto" } else { "by hand" }.to_owned(),
                or_dash(p.rotation_chain.clone()),
            ]
        })
        .collect();
    table(&["SECRET", "SCOPE", "EVERY", "DUE (UTC)", "STATE", "HOW", "CHAIN"], &rows)
}

fn read(file: &std::path::Path) -> Result<String, Failure> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin().lock())
    } else {
        std::fs::read_to_string(file)
    };
    text.map_err(|e| {
        Failure::new(format!("{}: {e}", file.display())).hint("give a JSON file that you can read")
    })
}

pub(super) fn main(context: &Context, command: RotationCommand) -> Outcome {
    let client = context.client();
    match command {
        RotationCommand::Apply { file, dry_run } => {
            let request = proto::RotationApply { text: read(&file)?, dry_run };
            let listed: proto::RotationListed = client.post("/v1/rotations", &request)?;
            show(context.json, &listed, || rows(&listed))?;
        }
        RotationCommand::List => {
            let listed: proto::RotationListed =
                client.get("/v1/rotations", &proto::RotationList::default())?;
            show(context.json, &listed, || rows(&listed))?;
        }
        RotationCommand::Rm(name) => {
            let request = proto::RotationRm { name: name.name, scope: name.scope };
            let done: proto::Done = client.post("/v1/rotations/rm", &request)?;
            show(context.json, &done, || format!("removed the policy of {}", request.name))?;
        }
        RotationCommand::Run(args) => return run(context, args),
    }
    Ok(exit::OK)
}

fn run(context: &Context, args: RunArgs) -> Outcome {
    let request =
        proto::RotationRun { name: args.name.name, scope: args.name.scope, chain: args.chain };
    // Progress for people only: a script reads the lines, or the status.
    let progress = !context.json && std::io::stderr().is_terminal();
    let mut failed: Option<Failed> = None;
    context.client().stream_post("/v1/rotations/run", &request, |line| {
        if context.json && serde_json::from_str::<Failed>(line).is_err() {
            return writeln!(std::io::stdout().lock(), "{line}").is_ok();
        }
        if let Ok(step) = serde_json::from_str::<proto::RotationStep>(line) {
            match (&step.detail, step.state.as_str()) {
                // Of a pipe as well: it says why.
                (Some(said), "said") => {
                    said.lines().for_each(|line| note(&format!("{}: {line}", step.step)));
                    return true;
                }
                (_, "started") if progress => eprintln!("{} ...", step.step),
                (_, "ok") if progress && step.step != "done" => eprintln!("{} done", step.step),
                _ => {}
            }
        } else if let Ok(last) = serde_json::from_str(line) {
            failed = Some(last);
        }
        true
    })?;
    if let Some(Failed { problem }) = failed {
        return Err(problem.into());
    }
    if !context.json {
        writeln!(std::io::stdout(), "{} is rotated", request.name).map_err(anyhow::Error::from)?;
    }
    Ok(exit::OK)
}
