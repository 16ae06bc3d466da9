//! `secret`, `group`, `project`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::clock::Timestamp;
use crate::proto::{self, Value};

use super::output::{moment, note, or_dash, show, table};
use super::{Context, Failure, Outcome, exit, value, version};

#[derive(Debug, Subcommand)]
pub(super) enum SecretCommand {
    /// Removes the bytes of a version that nobody holds.
    #[command(after_help = "Example:\n  strongroom secret destroy prod/DATABASE_URL --version 3")]
    Destroy(version::DestroyArgs),
    /// Changes a secret's metadata.
    #[command(after_help = "Examples:\n  \
        strongroom secret edit API_KEY --description \"of the sandbox\" --expires-at 2027-01-31T00:00:00Z\n  \
        strongroom secret edit API_KEY --scope org --new-scope chain:deploy")]
    Edit(EditArgs),
    /// Who obtained which version, and how.
    #[command(after_help = "Example:\n  strongroom secret exposures prod/DATABASE_URL")]
    Exposures(NameArgs),
    /// Shows a value; recorded as a disclosure to you.
    #[command(after_help = "Examples:\n  \
        strongroom secret get prod/DATABASE_URL --reveal --reason \"incident 7\"\n  \
        strongroom secret get TLS_CERT --reveal --version previous > cert.pem")]
    Get(GetArgs),
    /// Lists secrets.
    #[command(after_help = "Examples:\n  \
        strongroom secret list\n  \
        strongroom secret list --env prod --scope chain:deploy API")]
    List(ListArgs),
    /// Makes the pending version current now.
    #[command(after_help = "Example:\n  strongroom secret promote prod/DATABASE_URL")]
    Promote(version::PromoteArgs),
    /// Denies versions for good, and ends the executions that obtained them.
    Revoke(version::RevokeArgs),
    /// Removes a secret with all its versions.
    #[command(after_help = "Example:\n  \
        strongroom secret rm prod/DATABASE_URL --scope chain:deploy")]
    Rm {
        #[command(flatten)]
        name: NameArgs,
        /// Also where executions hold it.
        #[arg(long)]
        force: bool,
    },
    /// Gives up the pending version, or brings the previous one back.
    #[command(after_help = "Example:\n  strongroom secret rollback prod/DATABASE_URL")]
    Rollback(version::RollbackArgs),
    /// Stages a new version: new executions get it, running ones keep theirs.
    Rotate(version::RotateArgs),
    /// Stores a value: from stdin, a file, or a prompt.
    Set(SetArgs),
    /// Shows a secret, without its value.
    #[command(after_help = "Example:\n  strongroom secret show prod/DATABASE_URL --json")]
    Show(NameArgs),
}

#[derive(Debug, Args)]
pub(super) struct NameArgs {
    /// NAME or ENV/NAME.
    pub(super) name: String,
    /// org, project:P, chain:C or agent:C/A; needed where the name is ambiguous.
    #[arg(long)]
    pub(super) scope: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    printf %s \"$KEY\" | strongroom secret set OPENAI_API_KEY --scope org\n  \
    strongroom secret set prod/DATABASE_URL --scope chain:deploy --file url.txt")]
pub(super) struct SetArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Reads the value from a file.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Keeps a trailing newline.
    #[arg(long)]
    exact: bool,
    /// Gives an existing secret a new value at once.
    #[arg(long)]
    replace: bool,
    /// For people.
    #[arg(long)]
    description: Option<String>,
    /// When the secret ends, as 2027-01-31T00:00:00Z.
    #[arg(long)]
    expires_at: Option<Timestamp>,
    /// Follows the current version at each open, instead of staying with one for an execution.
    #[arg(long)]
    floating: bool,
    /// It is delivered, but no secret.
    #[arg(long)]
    plain: bool,
    /// Reads of it are not recorded (turning this off is).
    #[arg(long)]
    no_access_log: bool,
}

#[derive(Debug, Args)]
pub(super) struct EditArgs {
    #[command(flatten)]
    name: NameArgs,
    /// For people; empty removes it.
    #[arg(long)]
    description: Option<String>,
    /// When it ends, or never.
    #[arg(long)]
    expires_at: Option<String>,
    /// Whether each read is recorded.
    #[arg(long)]
    access_log: Option<bool>,
    /// Whether it is delivered but no secret.
    #[arg(long)]
    plain: Option<bool>,
    /// pinned or floating.
    #[arg(long)]
    binding: Option<String>,
    /// Moves it to another scope.
    #[arg(long)]
    new_scope: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    name: NameArgs,
    /// Needed, since the value is shown.
    #[arg(long)]
    reveal: bool,
    /// current, pending, previous, or a number.
    #[arg(long)]
    version: Option<String>,
    /// Goes into the record.
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only of this scope.
    #[arg(long)]
    scope: Option<String>,
    /// Only of this environment; - for none.
    #[arg(long)]
    env: Option<String>,
    /// Only of this group.
    #[arg(long)]
    group: Option<String>,
    /// Only names that contain this.
    name: Option<String>,
}

fn secret_text(secret: &proto::SecretShown) -> String {
    let mut text = format!(
        "{}  scope {}  by {}  {}\n",
        secret.key, secret.scope, secret.created_by, secret.created_at
    );
    let rows: Vec<_> = secret
        .versions
        .values()
        .chain(&secret.old_versions)
        .map(|v| {
            vec![
                v.version.to_string(),
                match v.withdrawn_at {
                    Some(_) => format!("{}, removed at its provider", v.stage),
                    None => v.stage.clone(),
                },
                moment(v.created_at),
                v.created_by.clone(),
                or_dash((!v.held_by.is_empty()).then(|| v.held_by.join(" "))),
            ]
        })
        .collect();
    text.push_str(&table(&["VERSION", "STAGE", "MADE", "BY", "HELD BY"], &rows));
    text
}

pub(super) fn secret(context: &Context, command: SecretCommand) -> Outcome {
    let client = context.client();
    match command {
        SecretCommand::Destroy(args) => return version::destroy(context, args),
        SecretCommand::Exposures(name) => return version::exposures(context, name),
        SecretCommand::Promote(args) => return version::promote(context, args),
        SecretCommand::Revoke(args) => return version::revoke(context, args, false),
        SecretCommand::Rollback(args) => return version::rollback(context, args),
        SecretCommand::Rotate(args) => return version::rotate(context, args),
        SecretCommand::Set(args) => {
            let value = value::read(args.file.as_deref(), args.exact, "value")?;
            let request = proto::SecretSet {
                name: args.name.name,
                scope: args.name.scope,
                value: Value::new(value),
                description: args.description,
                expires_at: args.expires_at,
                valid_until: None,
                binding: args.floating.then(|| "floating".to_owned()),
                plain: args.plain,
                access_log_enabled: args.no_access_log.then_some(false),
                replace: args.replace,
            };
            let shown: proto::SecretShown = client.post("/v1/secrets", &request)?;
            for text in &shown.notes {
                note(&format!("note: {text}"));
            }
            show(context.json, &shown, || {
                format!("stored {} with scope {}", shown.key, shown.scope)
            })?;
        }
        SecretCommand::Edit(args) => {
            let request = proto::SecretEdit {
                name: args.name.name,
                scope: args.name.scope,
                description: args.description,
                expires_at: args.expires_at,
                binding: args.binding,
                access_log_enabled: args.access_log,
                plain: args.plain,
                new_scope: args.new_scope,
            };
            let shown: proto::SecretShown = client.post("/v1/secrets/edit", &request)?;
            show(context.json, &shown, || secret_text(&shown))?;
        }
        SecretCommand::Get(args) => {
            if !args.reveal {
                return Err(Failure::new("a value is shown only on demand")
                    .hint("add --reveal; it is recorded as a disclosure to you"));
            }
            let request = proto::SecretGet {
                name: args.name.name,
                scope: args.name.scope,
                version: args.version,
                reason: args.reason,
            };
            let revealed: proto::SecretRevealed = client.post("/v1/secrets/get", &request)?;
            use std::io::Write;
            let mut out = std::io::stdout().lock();
            if context.json {
                // The person asked for the value in this form, with --reveal.
                let bytes = proto::wire::to_bytes(&revealed).map_err(anyhow::Error::from)?;
                out.write_all(&bytes).map_err(anyhow::Error::from)?;
                writeln!(out).map_err(anyhow::Error::from)?;
            } else {
                out.write_all(revealed.value.secret().expose()).map_err(anyhow::Error::from)?;
            }
            out.flush().map_err(anyhow::Error::from)?;
        }
        SecretCommand::List(args) => {
            let request = proto::SecretList {
                scope: args.scope,
                environment: args.env,
                name: args.name,
                group: args.group,
                limit: None,
            };
            let listed: proto::SecretListed = client.get("/v1/secrets", &request)?;
            show(context.json, &listed, || {
                let rows: Vec<_> = listed
                    .secrets
                    .iter()
                    .map(|s| {
                        vec![
                            s.key.clone(),
                            s.scope.clone(),
                            or_dash(s.group.clone()),
                            or_dash(s.current),
                            or_dash(s.expires_at.map(moment)),
                        ]
                    })
                    .collect();
                table(&["NAME", "SCOPE", "GROUP", "CURRENT", "EXPIRES"], &rows)
            })?;
        }
        SecretCommand::Rm { name, force } => {
            let request = proto::SecretRm { name: name.name, scope: name.scope, force };
            let done: proto::Done = client.post("/v1/secrets/rm", &request)?;
            show(context.json, &done, || format!("removed {}", request.name))?;
        }
        SecretCommand::Show(name) => {
            let request = proto::SecretName { name: name.name, scope: name.scope };
            let shown: proto::SecretShown = client.get("/v1/secrets/show", &request)?;
            show(context.json, &shown, || secret_text(&shown))?;
        }
    }
    Ok(exit::OK)
}

#[derive(Debug, Subcommand)]
pub(super) enum GroupCommand {
    /// Lists groups.
    #[command(after_help = "Example:\n  strongroom group list --env prod")]
    List {
        /// Only of this environment; - for none.
        #[arg(long)]
        env: Option<String>,
    },
    /// Makes the pending versions of all members current now.
    #[command(after_help = "Example:\n  strongroom group promote prod/aws-deploy")]
    Promote(version::PromoteArgs),
    /// Denies versions of all members for good, and ends the executions that obtained them.
    #[command(after_help = "Examples:\n  \
        strongroom group revoke aws-deploy --reason \"on a forum\" --dry-run\n  \
        strongroom group revoke aws-deploy --reason \"on a forum\" --file new-keys.json\n\n\
        The status is 9 when a process that had the values could not be ended.")]
    Revoke(version::RevokeArgs),
    /// Removes a group with its members.
    #[command(after_help = "Example:\n  strongroom group rm aws-deploy --scope chain:deploy")]
    Rm(NameArgs),
    /// Gives up the pending versions, or brings the previous ones back.
    #[command(after_help = "Example:\n  strongroom group rollback aws-deploy")]
    Rollback(version::RollbackArgs),
    /// Stages a new version of every member at once: a JSON object on stdin.
    #[command(after_help = "Examples:\n  \
        strongroom group rotate aws-deploy --file new-keys.json\n  \
        strongroom group rotate aws-deploy < new-keys.json")]
    Rotate(version::GroupRotateArgs),
    /// Stores a group: a JSON object of names and values on stdin.
    #[command(
        after_help = "Example:\n  strongroom group set aws-deploy --scope chain:deploy < group.json"
    )]
    Set {
        #[command(flatten)]
        name: NameArgs,
        /// Members that are delivered but no secrets.
        #[arg(long)]
        plain: Vec<String>,
        /// Reads the object from a file.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Gives all members of an existing group new values at once.
        #[arg(long)]
        replace: bool,
    },
    /// Shows a group, without values.
    #[command(after_help = "Example:\n  strongroom group show aws-deploy")]
    Show(NameArgs),
}

fn group_text(group: &proto::GroupShown) -> String {
    let rows: Vec<_> = group
        .members
        .iter()
        .map(|m| {
            vec![m.key.clone(), or_dash(m.current), if m.plain { "plain" } else { "secret" }.into()]
        })
        .collect();
    format!(
        "{}  scope {}\n{}",
        group.group,
        group.scope,
        table(&["MEMBER", "CURRENT", "KIND"], &rows)
    )
}

/// A group's members: a JSON object of names and values, from stdin or a file.
pub(super) fn members(file: Option<&Path>) -> Result<BTreeMap<String, Value>, Failure> {
    let text = value::read(file, true, "JSON object")?;
    // The parser's own words would quote values.
    serde_json::from_slice(text.expose()).map_err(|e| {
        Failure::new(format!(
            "line {}, column {}: this is no JSON object of names and texts",
            e.line(),
            e.column()
        ))
        .hint("as in {\"AWS_ACCESS_KEY_ID\": \"...\", \"AWS_SECRET_ACCESS_KEY\": \"...\"}")
    })
}

pub(super) fn group(context: &Context, command: GroupCommand) -> Outcome {
    let client = context.client();
    match command {
        GroupCommand::Promote(args) => return version::promote(context, args),
        GroupCommand::Revoke(args) => return version::revoke(context, args, true),
        GroupCommand::Rollback(args) => return version::rollback(context, args),
        GroupCommand::Rotate(args) => return version::rotate_group(context, args),
        GroupCommand::Set { name, plain, file, replace } => {
            let members = members(file.as_deref())?;
            let request = proto::GroupSet {
                name: name.name,
                scope: name.scope,
                members,
                plain,
                description: None,
                replace,
            };
            let shown: proto::GroupShown = client.post("/v1/groups", &request)?;
            for text in &shown.notes {
                note(&format!("note: {text}"));
            }
            show(context.json, &shown, || {
                format!("stored group {} of {} members", shown.group, shown.members.len())
            })?;
        }
        GroupCommand::List { env } => {
            let listed: proto::GroupListed =
                client.get("/v1/groups", &proto::GroupList { environment: env })?;
            show(context.json, &listed, || {
                let rows: Vec<_> = listed
                    .groups
                    .iter()
                    .map(|g| vec![g.group.clone(), g.scope.clone(), g.members.len().to_string()])
                    .collect();
                table(&["GROUP", "SCOPE", "MEMBERS"], &rows)
            })?;
        }
        GroupCommand::Show(name) => {
            let request = proto::GroupName { name: name.name, scope: name.scope, force: false };
            let shown: proto::GroupShown = client.get("/v1/groups/show", &request)?;
            show(context.json, &shown, || group_text(&shown))?;
        }
        GroupCommand::Rm(name) => {
            let request = proto::GroupName { name: name.name, scope: name.scope, force: false };
            let done: proto::Done = client.post("/v1/groups/rm", &request)?;
            show(context.json, &done, || format!("removed group {}", request.name))?;
        }
    }
    Ok(exit::OK)
}

#[derive(Debug, Subcommand)]
pub(super) enum ProjectCommand {
    /// Adds chains to a project's list.
    #[command(after_help = "Example:\n  \
        strongroom project add billing --chain billing/refunds")]
    Add {
        /// Its name.
        name: String,
        /// A chain that the project's secrets admit from now on; may be repeated.
        #[arg(long = "chain", required = true)]
        chains: Vec<String>,
    },
    /// Lists projects.
    #[command(after_help = "Example:\n  strongroom project list")]
    List,
    /// Takes chains off a project's list.
    #[command(after_help = "Example:\n  \
        strongroom project remove billing --chain billing/refunds")]
    Remove {
        /// Its name.
        name: String,
        /// A chain that the project's secrets no longer admit; may be repeated.
        #[arg(long = "chain", required = true)]
        chains: Vec<String>,
    },
    /// Removes a project.
    #[command(after_help = "Example:\n  strongroom project rm billing")]
    Rm {
        /// Its name.
        name: String,
        /// Also where secrets have its scope.
        #[arg(long)]
        force: bool,
    },
    /// Sets the chains of a project.
    #[command(after_help = "Example:\n  \
        strongroom project set billing --chain billing/invoices --chain billing/payments")]
    Set {
        /// Its name.
        name: String,
        /// A chain that the project's secrets admit; may be repeated.
        #[arg(long = "chain", required = true)]
        chains: Vec<String>,
    },
}

pub(super) fn project(context: &Context, command: ProjectCommand) -> Outcome {
    let client = context.client();
    let tell = |shown: &proto::ProjectShown| {
        let chains = match &shown.chains_allowed[..] {
            [] => "no chain".to_owned(),
            chains => chains.join(", "),
        };
        show(context.json, shown, || format!("project {} admits {chains}", shown.project))
    };
    match command {
        ProjectCommand::Add { name, chains } => {
            tell(&client.post("/v1/projects/add", &proto::ProjectChains { name, chains })?)?;
        }
        ProjectCommand::Remove { name, chains } => {
            tell(&client.post("/v1/projects/remove", &proto::ProjectChains { name, chains })?)?;
        }
        ProjectCommand::Set { name, chains } => {
            let request = proto::ProjectSet { name, chains_allowed: chains, description: None };
            tell(&client.post("/v1/projects", &request)?)?;
        }
        ProjectCommand::List => {
            let listed: proto::ProjectListed =
                client.get("/v1/projects", &proto::ProjectList::default())?;
            show(context.json, &listed, || {
                let rows: Vec<_> = listed
                    .projects
                    .iter()
                    .map(|p| {
                        vec![p.project.clone(), p.secrets.to_string(), p.chains_allowed.join(" ")]
                    })
                    .collect();
                table(&["PROJECT", "SECRETS", "CHAINS"], &rows)
            })?;
        }
        ProjectCommand::Rm { name, force } => {
            let request = proto::ProjectName { name, force };
            let done: proto::Done = client.post("/v1/projects/rm", &request)?;
            show(context.json, &done, || format!("removed project {}", request.name))?;
        }
    }
    Ok(exit::OK)
}
