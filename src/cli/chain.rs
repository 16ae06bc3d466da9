//! `chain`, `execution`, `access`, `explain`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::config::Period;
use crate::proto::{self, Value};
use crate::secret::SecretBytes;

use super::output::{moment, note, or_dash, show, table};
use super::{Context, Failure, Outcome, exit};

#[derive(Debug, Subcommand)]
pub(super) enum ChainCommand {
    /// Stores a definition: it is a grant, so what it changes is printed.
    #[command(after_help = "Example:\n  strongroom chain apply deploy-pipeline.json")]
    Apply {
        /// The definition's JSON file.
        file: PathBuf,
        /// Refuses every unknown key.
        #[arg(long)]
        strict: bool,
        /// Also where an existing definition widens.
        #[arg(long)]
        yes: bool,
    },
    /// Reads a definition and says what it would change.
    #[command(after_help = "Example:\n  strongroom chain check deploy-pipeline.json --env prod")]
    Check {
        /// The definition's JSON file.
        file: PathBuf,
        /// Refuses every unknown key.
        #[arg(long)]
        strict: bool,
        /// References are resolved in this environment.
        #[arg(long)]
        env: Option<String>,
    },
    /// Lists chains.
    #[command(after_help = "Example:\n  strongroom chain list")]
    List,
    /// Removes a definition.
    #[command(after_help = "Example:\n  strongroom chain rm deploy-pipeline")]
    Rm {
        /// Its name.
        chain: String,
        /// Also while executions run.
        #[arg(long)]
        force: bool,
    },
    /// Runs the agents that have a command, in order, as one execution: for trials.
    Run(super::chain_run::ChainRunArgs),
    /// Shows a definition.
    #[command(after_help = "Example:\n  strongroom chain show deploy-pipeline --json")]
    Show {
        /// Its name.
        chain: String,
    },
}

fn read_definition(file: &Path) -> Result<Value, Failure> {
    let open = |e: std::io::Error| {
        Failure::new(format!("{}: {e}", file.display())).hint("give a definition's JSON file")
    };
    let source = std::fs::File::open(file).map_err(open)?;
    Ok(Value::new(SecretBytes::read_from(source, 1 << 20).map_err(open)?))
}

fn changes_text(changes: &[proto::GrantChange]) -> String {
    let rows: Vec<_> = changes
        .iter()
        .map(|c| {
            vec![
                if c.change == "added" { "+" } else { "-" }.to_owned(),
                c.agent.clone(),
                or_dash(c.environment.clone()),
                c.secret.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "access: no change".to_owned();
    }
    table(&["", "AGENT", "ENV", "SECRET"], &rows)
}

fn note_unresolved(unresolved: &[proto::Unresolved]) {
    for item in unresolved {
        note(&format!("warning: {} of agent {} resolves to nothing", item.reference, item.agent));
        note(&format!("hint: {}", item.remedy));
    }
}

pub(super) fn chain(context: &Context, command: ChainCommand) -> Outcome {
    let client = context.client();
    match command {
        ChainCommand::Apply { file, strict, yes } => {
            let request = proto::ChainApply {
                definition: read_definition(&file)?,
                source: Some(file.display().to_string()),
                strict,
                yes,
            };
            let applied: proto::ChainApplied = client.post("/v1/chains", &request)?;
            note_unresolved(&applied.unresolved);
            show(context.json, &applied, || {
                format!("applied {}\n{}", applied.chain, changes_text(&applied.changes))
            })?;
        }
        ChainCommand::Check { file, strict, env } => {
            return difference(context, &file, strict, env);
        }
        ChainCommand::List => {
            let listed: proto::ChainListed =
                client.get("/v1/chains", &proto::ChainList::default())?;
            show(context.json, &listed, || {
                let rows: Vec<_> = listed
                    .chains
                    .iter()
                    .map(|c| vec![c.chain.clone(), c.active.to_string(), c.agents.join(" ")])
                    .collect();
                table(&["CHAIN", "ACTIVE", "AGENTS"], &rows)
            })?;
        }
        ChainCommand::Show { chain } => {
            let request = proto::ChainName { chain, force: false };
            let shown: proto::ChainShown = client.get("/v1/chains/show", &request)?;
            show(context.json, &shown, || {
                serde_json::to_string_pretty(&shown.definition).unwrap_or_default()
            })?;
        }
        ChainCommand::Run(args) => return super::chain_run::main(context, &args),
        ChainCommand::Rm { chain, force } => {
            let request = proto::ChainName { chain, force };
            let done: proto::Done = client.post("/v1/chains/rm", &request)?;
            show(context.json, &done, || format!("removed {}", request.chain))?;
        }
    }
    Ok(exit::OK)
}

#[derive(Debug, Subcommand)]
pub(super) enum ExecutionCommand {
    /// Ends an execution: its view first, then its processes.
    #[command(after_help = "Example:\n  strongroom execution end nightly-4711 --reason \"done\"")]
    End {
        /// Its id.
        id: String,
        /// Goes into the record.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Sets a new deadline, counted from now.
    #[command(after_help = "Example:\n  strongroom execution extend nightly-4711 --deadline 2h")]
    Extend {
        /// Its id.
        id: String,
        /// As 90m or 24h.
        #[arg(long)]
        deadline: Period,
    },
    /// Lists executions.
    #[command(after_help = "Examples:\n  \
        strongroom execution list\n  \
        strongroom execution list --chain deploy-pipeline --all")]
    List {
        /// Only of this chain.
        #[arg(long)]
        chain: Option<String>,
        /// Ended ones too.
        #[arg(long)]
        all: bool,
    },
    /// Shows an execution.
    #[command(after_help = "Example:\n  strongroom execution show nightly-4711")]
    Show {
        /// Its id.
        id: String,
    },
    /// Starts an execution that several agents share; the same id again is the same execution.
    #[command(after_help = "Example:\n  \
        id=$(strongroom execution start --chain deploy --env prod --deadline 2h)\n  \
        strongroom run --execution \"$id\" --agent Tester -- ./test.sh\n  \
        strongroom execution end \"$id\"")]
    Start {
        /// The chain.
        #[arg(long)]
        chain: String,
        /// The environment.
        #[arg(long)]
        env: Option<String>,
        /// Your own id.
        #[arg(long)]
        id: Option<String>,
        /// Ends with this process.
        #[arg(long)]
        owner_pid: Option<i32>,
        /// Ends after this time, as 90m or 24h.
        #[arg(long)]
        deadline: Option<Period>,
        /// KEY=VALUE, for people; may be repeated.
        #[arg(long = "label")]
        labels: Vec<String>,
    },
}

fn execution_text(e: &proto::ExecutionShown) -> String {
    let mut text = format!(
        "{}  {}  chain {}  environment {}  by {}\n",
        e.id,
        e.state,
        e.chain,
        e.environment.as_deref().unwrap_or("-"),
        e.user
    );
    if let Some(reason) = &e.ended_reason {
        text.push_str(&format!("ended: {reason}\n"));
    }
    let agents: Vec<_> = e
        .agents
        .iter()
        .map(|a| {
            vec![a.agent.clone(), a.uid.to_string(), a.processes.to_string(), a.attestor.clone()]
        })
        .collect();
    text.push_str(&table(&["AGENT", "UID", "PROCESSES", "KNOWN BY"], &agents));
    let pins: Vec<_> = e
        .pins
        .iter()
        .map(|p| vec![p.secret.clone(), p.scope.clone(), p.version.to_string(), p.stage.clone()])
        .collect();
    text.push('\n');
    text.push_str(&table(&["PINNED", "SCOPE", "VERSION", "STAGE"], &pins));
    text
}

pub(super) fn execution(context: &Context, command: ExecutionCommand) -> Outcome {
    let client = context.client();
    match command {
        ExecutionCommand::Start { chain, env, id, owner_pid, deadline, labels } => {
            let labels = labels
                .iter()
                .map(|label| {
                    let (key, value) = label.split_once('=').ok_or_else(|| {
                        Failure::new(format!("{label} is no label")).hint("--label KEY=VALUE")
                    })?;
                    Ok((key.to_owned(), value.to_owned()))
                })
                .collect::<Result<BTreeMap<_, _>, Failure>>()?;
            let request = proto::ExecutionStart {
                chain,
                id,
                environment: env,
                owner_pid,
                deadline,
                labels,
                workspace: None,
            };
            let shown: proto::ExecutionShown = client.post("/v1/executions", &request)?;
            note_unresolved(&shown.unresolved);
            show(context.json, &shown, || shown.id.clone())?;
        }
        ExecutionCommand::List { chain, all } => {
            let request = proto::ExecutionList { chain, environment: None, all };
            let listed: proto::ExecutionListed = client.get("/v1/executions", &request)?;
            show(context.json, &listed, || {
                let rows: Vec<_> = listed
                    .executions
                    .iter()
                    .map(|e| {
                        vec![
                            e.id.clone(),
                            e.state.clone(),
                            e.chain.clone(),
                            or_dash(e.environment.clone()),
                            e.agents.len().to_string(),
                            moment(e.started_at),
                            or_dash(e.ended_reason.clone()),
                        ]
                    })
                    .collect();
                table(&["ID", "STATE", "CHAIN", "ENV", "AGENTS", "STARTED", "ENDED"], &rows)
            })?;
        }
        ExecutionCommand::Show { id } => {
            let shown: proto::ExecutionShown =
                client.get("/v1/executions/show", &proto::ExecutionName { id })?;
            show(context.json, &shown, || execution_text(&shown))?;
        }
        ExecutionCommand::Extend { id, deadline } => {
            let request = proto::ExecutionExtend { id, deadline };
            let shown: proto::ExecutionShown = client.post("/v1/executions/extend", &request)?;
            show(context.json, &shown, || {
                format!("until {}", or_dash(shown.deadline.map(moment)))
            })?;
        }
        ExecutionCommand::End { id, reason } => {
            let request = proto::ExecutionEnd { id, reason, grace: None };
            let shown: proto::ExecutionShown = client.post("/v1/executions/end", &request)?;
            for left in &shown.survivors {
                note(&format!("warning: {left} could not be ended"));
            }
            show(context.json, &shown, || format!("ended {}", shown.id))?;
            return Ok(if shown.survivors.is_empty() { exit::OK } else { exit::FOUND });
        }
    }
    Ok(exit::OK)
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  strongroom access --chain deploy\n  \
    strongroom access --chain deploy --env prod --explain DATABASE_URL\n  \
    strongroom access --diff deploy-pipeline.json")]
pub(super) struct AccessArgs {
    /// What would change if this definition held; nothing is applied.
    #[arg(long, value_name = "FILE",
        conflicts_with_all = ["chain", "agent", "secret", "explain"])]
    diff: Option<PathBuf>,
    /// Only this chain.
    #[arg(long)]
    chain: Option<String>,
    /// Only this agent.
    #[arg(long)]
    agent: Option<String>,
    /// Only in this environment; - for none.
    #[arg(long)]
    env: Option<String>,
    /// Only this secret.
    #[arg(long)]
    secret: Option<String>,
    /// Why a name resolves as it does.
    #[arg(long, value_name = "NAME")]
    explain: Option<String>,
}

/// What applying a definition would change; its status says whether everything in it resolves.
fn difference(context: &Context, file: &Path, strict: bool, env: Option<String>) -> Outcome {
    let request = proto::ChainCheck {
        definition: read_definition(file)?,
        source: Some(file.display().to_string()),
        strict,
        environment: env,
    };
    let checked: proto::ChainChecked = context.client().post("/v1/chains/check", &request)?;
    note_unresolved(&checked.unresolved);
    show(context.json, &checked, || changes_text(&checked.changes))?;
    Ok(if checked.ok { exit::OK } else { exit::FOUND })
}

pub(super) fn access(context: &Context, args: &AccessArgs) -> Outcome {
    if let Some(file) = &args.diff {
        return difference(context, file, false, args.env.clone());
    }
    let request = proto::Access {
        chain: args.chain.clone(),
        agent: args.agent.clone(),
        environment: args.env.clone(),
        secret: args.secret.clone(),
        explain: args.explain.clone(),
    };
    let shown: proto::AccessShown = context.client().get("/v1/access", &request)?;
    show(context.json, &shown, || {
        let rows: Vec<_> = shown
            .rows
            .iter()
            .map(|r| {
                vec![
                    r.agent.clone(),
                    or_dash(r.environment.clone()),
                    r.file_name.clone(),
                    or_dash(r.secret.clone()),
                    or_dash(r.scope.clone()),
                    or_dash(r.version),
                    r.why.clone(),
                ]
            })
            .collect();
        let mut text = table(&["AGENT", "ENV", "FILE", "SECRET", "SCOPE", "VERSION", "WHY"], &rows);
        for e in &shown.explanations {
            text.push_str(&format!(
                "\n\n{} for {} in {}:",
                e.reference,
                e.agent,
                e.environment.as_deref().unwrap_or("(no environment)")
            ));
            for c in &e.candidates {
                let mark = if c.taken { "*" } else { " " };
                text.push_str(&format!("\n {mark} {} ({}): {}", c.secret, c.scope, c.why));
            }
            if let Some(remedy) = &e.remedy {
                text.push_str(&format!("\n   to mend it: {remedy}"));
            }
        }
        text
    })?;
    Ok(exit::OK)
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  strongroom explain --pid 4711 DATABASE_URL")]
pub(super) struct ExplainArgs {
    /// The process.
    #[arg(long)]
    pid: i32,
    /// The name that it cannot see.
    name: Option<String>,
}

pub(super) fn explain(context: &Context, args: &ExplainArgs) -> Outcome {
    let request = proto::Explain { pid: args.pid, name: args.name.clone() };
    let told: proto::Explained = context.client().get("/v1/explain", &request)?;
    show(context.json, &told, || {
        let rows: Vec<_> = told
            .findings
            .iter()
            .map(|f| {
                vec![if f.ok { "ok" } else { "NO" }.to_owned(), f.what.clone(), f.found.clone()]
            })
            .collect();
        let mut text = table(&["", "WHAT", "FOUND"], &rows);
        for refusal in &told.refusals {
            text.push_str(&format!("\nlast refusal: {refusal}"));
        }
        if let Some(remedy) = &told.remedy {
            text.push_str(&format!("\nto mend it: {remedy}"));
        }
        text
    })?;
    Ok(if told.visible { exit::OK } else { exit::FOUND })
}
