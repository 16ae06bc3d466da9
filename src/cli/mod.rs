//! The command line: noun, then verb. Results on stdout, messages on stderr.
#![forbid(unsafe_code)]

mod admin;
mod allow;
mod audit;
mod chain;
mod chain_run;
mod demo;
mod drill;
mod events;
mod examples;
pub mod exit;
mod import;
mod init;
mod man;
mod output;
mod prompt;
mod redact;
mod rotation;
mod run;
mod scan;
mod secret;
mod serve;
mod setup;
mod usage;
mod value;
mod version;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{Config, Paths};
use crate::control::client::Client;
use crate::proto::Problem;
use crate::redact::View;
use crate::redact::detect::Detector;

/// A secrets vault for chains of agents, mounted at /run/secrets.
#[derive(Debug, Parser)]
#[command(name = "strongroom", version, max_term_width = 100)]
#[command(after_help = "Examples:\n  strongroom demo\n  strongroom setup\n  \
    printf %s \"$KEY\" | strongroom secret set OPENAI_API_KEY\n  \
    strongroom run -s OPENAI_API_KEY -- python3 agent.py")]
struct Cli {
    /// Everything under one directory: configuration, vault, log, socket, mount.
    #[arg(long, global = true, env = crate::config::HOME_VARIABLE, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Results as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Who gets which secret, and why.
    Access(chain::AccessArgs),
    /// Makes an entry for the allow list of a token that may be shown.
    Allow(allow::AllowArgs),
    /// The audit log.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom audit query --event secret_accessed --json\n  \
        strongroom audit verify"
    )]
    Audit(audit::AuditCommand),
    /// Encrypted backups.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom backup create /srv/backups/vault.backup\n  \
        strongroom backup verify /srv/backups/vault.backup"
    )]
    Backup(admin::BackupCommand),
    /// Definitions of chains: which agents may read what.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom chain check deploy-pipeline.json\n  \
        strongroom chain apply deploy-pipeline.json"
    )]
    Chain(chain::ChainCommand),
    /// Prints completions for a shell.
    #[command(after_help = "Examples:\n  \
        strongroom completions bash > /usr/share/bash-completion/completions/strongroom\n  \
        strongroom completions zsh > ~/.zfunc/_strongroom\n  \
        strongroom completions fish > ~/.config/fish/completions/strongroom.fish")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Alerts of the configuration.
    #[command(subcommand, after_help = "Example:\n  strongroom alert test")]
    Alert(AlertCommand),
    /// The configuration.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom config check && strongroom reload\n  \
        strongroom config show"
    )]
    Config(admin::ConfigCommand),
    /// Shows it all in a throw-away home, in seconds.
    #[command(after_help = "Example:\n  strongroom demo")]
    Demo,
    /// How far each promise holds on this host.
    #[command(after_help = "Examples:\n  \
        strongroom doctor\n  \
        strongroom doctor --json")]
    Doctor,
    /// Emergencies for practice.
    #[command(subcommand, after_help = "Example:\n  strongroom drill revoke")]
    Drill(drill::DrillCommand),
    /// Ends the daemon; no mount is left behind.
    ///
    /// Where agents run it says which, and ends nothing: they would go on without their secrets.
    #[command(after_help = "Examples:\n  \
        strongroom down\n  \
        strongroom down --end-agents\n  \
        strongroom down --force")]
    Down(serve::DownArgs),
    /// What agents wrote: folders of the event store.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom events list\n  \
        strongroom events path nightly-4711"
    )]
    Events(events::EventsCommand),
    /// Runs of chains.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom execution start --chain deploy-pipeline --env prod --id nightly-4711\n  \
        strongroom execution end nightly-4711"
    )]
    Execution(chain::ExecutionCommand),
    /// Why a process cannot see a secret.
    Explain(chain::ExplainArgs),
    /// Sets of secrets that are referenced together.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom group set aws-deploy --scope chain:deploy-pipeline < group.json\n  \
        strongroom group show aws-deploy"
    )]
    Group(secret::GroupCommand),
    /// Takes values from a dotenv file, JSON, or a directory.
    Import(import::ImportArgs),
    /// Makes the vault.
    Init(init::InitArgs),
    /// Key slots: the ways to unlock the vault.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom key list\n  \
        strongroom key add recovery"
    )]
    Key(admin::KeyCommand),
    /// Forgets the vault's key until the next unlock.
    #[command(after_help = "Example:\n  strongroom lock")]
    Lock,
    /// Prints the man page of a command, or writes those of all.
    Man(man::ManArgs),
    /// Projects: lists of chains that share secrets.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom project set billing --chain billing/invoices --chain billing/payments\n  \
        strongroom project list"
    )]
    Project(secret::ProjectCommand),
    /// Prints the standing instruction for an agent's prompt.
    Prompt(prompt::PromptArgs),
    /// Leaves markers where secrets were: a filter.
    Redact(redact::RedactArgs),
    /// Starts a new worker (new binary, new configuration) under the same mount.
    #[command(after_help = "Example:\n  strongroom config check && strongroom reload")]
    Reload,
    /// Rotation policies and rotation chains.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        strongroom rotation apply policy.json\n  \
        strongroom rotation list"
    )]
    Rotation(rotation::RotationCommand),
    /// Runs a command as an agent.
    Run(run::RunArgs),
    /// Looks for secrets in files and trees.
    Scan(scan::ScanArgs),
    /// Secrets.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
        printf %s \"$KEY\" | strongroom secret set OPENAI_API_KEY\n  \
        strongroom secret show OPENAI_API_KEY\n  \
        strongroom secret revoke OPENAI_API_KEY --reason leaked --no-replacement"
    )]
    Secret(secret::SecretCommand),
    /// Serves in the foreground, as the service manager wants it.
    #[command(after_help = "Examples:\n  \
        strongroom serve\n  \
        systemctl start strongroom")]
    Serve,
    /// Makes vault, key and configuration, starts the daemon, and says what to do next.
    Setup(setup::SetupArgs),
    /// State of the daemon.
    #[command(after_help = "Examples:\n  \
        strongroom status\n  \
        strongroom status --json")]
    Status,
    /// Unlocks the vault.
    #[command(after_help = "Examples:\n  \
        strongroom unlock\n  \
        strongroom unlock --recovery")]
    Unlock(admin::UnlockArgs),
    /// Starts the daemon in the background; returns when the mount answers.
    #[command(after_help = "Example:\n  strongroom up && strongroom status")]
    Up,
    /// Waits until the daemon is ready.
    #[command(after_help = "Example:\n  strongroom wait --timeout 60s")]
    Wait(admin::WaitArgs),
    /// What stands between an agent of `chain run` and its output.
    #[command(hide = true)]
    Tee(chain_run::TeeArgs),
    /// What the keeper starts.
    #[command(hide = true)]
    Worker {
        /// Numbers of the inherited descriptors.
        #[arg(long)]
        descriptors: String,
        /// The service manager keeps them beyond the keeper.
        #[arg(long)]
        stored: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
enum AlertCommand {
    /// Delivers a test to every configured alert, and waits for it.
    #[command(after_help = "Example:\n  strongroom alert test")]
    Test,
}

impl Command {
    /// Whether it asks the daemon and nothing else, so that anybody may try.
    fn needs_socket_alone(&self) -> bool {
        matches!(
            self,
            Self::Allow(_)
                | Self::Events(_)
                | Self::Prompt(_)
                | Self::Redact(_)
                | Self::Run(_)
                | Self::Scan(_)
                | Self::Status
                | Self::Wait(_)
        )
    }
}

/// What went wrong, and the next step: the two lines of an error.
#[derive(Debug)]
pub struct Failure {
    what: String,
    hint: Option<String>,
    details: Vec<String>,
    status: u8,
}

impl Failure {
    /// What happened.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), hint: None, details: Vec::new(), status: exit::FAILED }
    }

    /// The next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The status to leave with.
    #[must_use]
    pub fn status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let status = exit::of_problem(problem.code);
        let mut details = Vec::new();
        for unresolved in &problem.unresolved {
            details.push(format!("  {} of agent {}:", unresolved.reference, unresolved.agent));
            details.extend(unresolved.searched.iter().map(|s| format!("    {s}")));
        }
        for change in &problem.changes {
            details.push(format!(
                "  {} {}/{} in {}: {}",
                change.change,
                change.chain,
                change.agent,
                change.environment.as_deref().unwrap_or("(no environment)"),
                change.secret
            ));
        }
        Self { what: problem.detail, hint: problem.hint, details, status }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // A reader that closed its pipe, as `head` does, wants no more.
        let closed = error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe);
        if closed {
            return Self::new("").status(exit::OK);
        }
        Self::new(format!("{error:#}"))
    }
}

/// What every command has at hand.
pub struct Context {
    paths: Paths,
    config: Config,
    home: Option<PathBuf>,
    json: bool,
}

impl Context {
    /// Reads and checks the configuration. A client of another user may need the socket alone; the
    /// file may hold a webhook's token.
    fn load(home: Option<PathBuf>, json: bool, socket_alone: bool) -> Result<Self, Failure> {
        use crate::config::Error;
        let home = home.map(std::path::absolute).transpose().map_err(anyhow::Error::from)?;
        let paths = Paths::of_this_process(home.as_deref()).map_err(config_failure)?;
        let config = match Config::load(&paths) {
            Err(Error::Read { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied && socket_alone =>
            {
                Config::default()
            }
            loaded => loaded.map_err(config_failure)?,
        };
        let paths = paths.with(&config);
        config.check(&paths).map_err(config_failure)?;
        Detector::of_config(&config.redaction).map_err(|error| {
            let file = paths.config_file.display();
            Failure::new(format!("configuration {file}: {error}")).hint(error.hint())
        })?;
        Ok(Self { paths, config, home, json })
    }

    fn client(&self) -> Client {
        Client::new(&self.paths.socket).asking(|| value::prompt("the vault's passphrase").ok())
    }

    /// Arguments that name the same home to another process of ours.
    fn home_args(&self) -> Vec<std::ffi::OsString> {
        match &self.home {
            Some(home) => vec!["--home".into(), home.clone().into()],
            None => Vec::new(),
        }
    }
}

type Outcome = Result<u8, Failure>;

/// Runs the command line; the status to leave with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            match usage::told(&error) {
                Some((what, hint)) => eprintln!("error: {what}\nhint: {hint}"),
                None => drop(error.print()),
            }
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    let is_run = matches!(
        cli.command,
        Command::Chain(chain::ChainCommand::Run(_)) | Command::Run(_) | Command::Tee(_)
    );
    // No error leaves a person without a next step.
    let fallback = match &cli.command {
        Command::Serve | Command::Worker { .. } => "strongroom config check, and the log above",
        _ => "the command with --help shows what it takes; `strongroom status` what is there",
    };
    match dispatch(cli) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            if !failure.what.is_empty() {
                eprintln!("error: {}", failure.what);
            }
            for detail in &failure.details {
                eprintln!("{detail}");
            }
            if !failure.what.is_empty() {
                eprintln!("hint: {}", failure.hint.as_deref().unwrap_or(fallback));
            }
            let ours = is_run && failure.status < exit::RUN_FAILED;
            ExitCode::from(if ours { exit::RUN_FAILED } else { failure.status })
        }
    }
}

/// The tree without what is hidden: completions would offer it.
fn offered(cli: &clap::Command) -> clap::Command {
    clap::Command::new("strongroom")
        .args(cli.get_arguments())
        .subcommands(cli.get_subcommands().filter(|c| !c.is_hide_set()))
}

fn config_failure(error: crate::config::Error) -> Failure {
    let hint = error.hint();
    Failure::new(error.to_string()).hint(hint)
}

/// Known formats by a configuration's rules.
fn formats_view(config: &Config) -> Result<View, Failure> {
    let detector = Detector::of_config(&config.redaction).map_err(|error| {
        let hint = error.hint();
        Failure::new(error.to_string()).hint(hint)
    })?;
    Ok(View::empty().with_detector(Arc::new(detector)))
}

/// The same where no daemon is needed, nor a home or a readable configuration, as in a CI job.
fn local_view(home: Option<&Path>) -> Result<View, Failure> {
    use crate::config::Error;
    let config = match Paths::of_this_process(home) {
        Err(Error::NoPlace { .. }) => Config::default(),
        Err(error) => return Err(config_failure(error)),
        Ok(paths) => match Config::load(&paths) {
            Err(Error::Read { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Config::default()
            }
            loaded => loaded.map_err(config_failure)?,
        },
    };
    formats_view(&config)
}

fn dispatch(cli: Cli) -> Outcome {
    match &cli.command {
        Command::Completions { shell } => {
            clap_complete::generate(
                *shell,
                &mut offered(&Cli::command()),
                "strongroom",
                &mut std::io::stdout(),
            );
            return Ok(exit::OK);
        }
        Command::Man(args) => return man::main(Cli::command(), args, cli.json),
        Command::Demo => return demo::main(cli.json),
        Command::Setup(args) => return setup::main(cli.home.clone(), args, cli.json),
        Command::Tee(args) => return chain_run::tee(args),
        Command::Prompt(args) if args.is_local() => return prompt::local(cli.json),
        Command::Allow(args) if args.is_local() => {
            return allow::local(local_view(cli.home.as_deref())?, args, cli.json);
        }
        Command::Redact(args) if args.is_local() => {
            return redact::local(local_view(cli.home.as_deref())?, args, cli.json);
        }
        Command::Scan(args) if args.is_local() => {
            return scan::local(local_view(cli.home.as_deref())?, args, cli.json);
        }
        _ => {}
    }
    let context = Context::load(cli.home, cli.json, cli.command.needs_socket_alone())?;
    match cli.command {
        Command::Alert(AlertCommand::Test) => version::test_alerts(&context),
        Command::Access(args) => chain::access(&context, &args),
        Command::Allow(args) => allow::main(&context, &args),
        Command::Audit(command) => audit::main(&context, command),
        Command::Backup(command) => admin::backup(&context, command),
        Command::Chain(command) => chain::chain(&context, command),
        Command::Config(command) => admin::config(&context, &command),
        Command::Doctor => admin::doctor(&context),
        Command::Drill(command) => drill::main(&context, &command),
        Command::Down(args) => serve::down(&context, &args),
        Command::Events(command) => events::main(&context, command),
        Command::Execution(command) => chain::execution(&context, command),
        Command::Explain(args) => chain::explain(&context, &args),
        Command::Group(command) => secret::group(&context, command),
        Command::Import(args) => import::main(&context, &args),
        Command::Init(args) => init::init(&context, &args),
        Command::Key(command) => admin::key(&context, command),
        Command::Lock => admin::lock(&context),
        Command::Project(command) => secret::project(&context, command),
        Command::Prompt(args) => prompt::main(&context, &args),
        Command::Redact(args) => redact::main(&context, &args),
        Command::Reload => serve::reload(&context),
        Command::Rotation(command) => rotation::main(&context, command),
        Command::Run(args) => run::main(&context, &args),
        Command::Scan(args) => scan::main(&context, &args),
        Command::Secret(command) => secret::secret(&context, command),
        Command::Serve => serve::serve(&context),
        Command::Status => admin::status(&context),
        Command::Unlock(args) => admin::unlock(&context, &args),
        Command::Up => serve::up(&context),
        Command::Wait(args) => admin::wait(&context, &args),
        Command::Worker { descriptors, stored } => serve::worker(context, &descriptors, stored),
        Command::Completions { .. }
        | Command::Demo
        | Command::Man(_)
        | Command::Setup(_)
        | Command::Tee(_) => Ok(exit::OK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
