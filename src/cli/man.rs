//! `man`: a page for each command, from the tree that the command line itself is made of.
//!
//! Invariant: what a page says of options, statuses and places is read from where the program reads
//! it (clap's tree, [`exit::TABLE`], [`Paths`]), so that no page goes stale. See man-pages(7).
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::config::{Paths, Surroundings};

use super::output::show;
use super::{Failure, Outcome, examples, exit};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    strongroom man | man -l -\n  \
    strongroom man secret rotate | man -l -\n  \
    strongroom man --dir /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Writes the page of every command to files in this directory, which is made.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
    /// The command that the page is of; none: strongroom itself.
    command: Vec<String>,
}

/// Variables that every command reads.
const VARIABLES: &[(&str, &str)] = &[
    ("STRONGROOM_HOME", "The directory that holds everything, as --home."),
    ("XDG_CONFIG_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR", "Where a plain user's files lie."),
    ("STRONGROOM_LOG", "What the daemon logs, as info or strongroom=debug."),
];

/// Variables that an agent finds.
const AGENT_VARIABLES: &[(&str, &str)] = &[
    ("CREDENTIALS_DIRECTORY", "Set for the command: the directory of its secrets."),
    ("STRONGROOM_EXECUTION, STRONGROOM_CHAIN, STRONGROOM_AGENT", "Set for the command: who it is."),
    ("STRONGROOM_EVENTS_DIR", "Set for the command: where it may write; redacted on the way."),
];

/// A page: its name, as `strongroom-secret-set`, and its text.
struct Page {
    name: String,
    text: Vec<u8>,
}

impl Page {
    fn file(&self) -> String {
        format!("{}.1", self.name)
    }
}

/// The tree, named as pages are, without what is hidden.
fn tree(cli: Command) -> Command {
    let mut cli = cli.disable_help_subcommand(true);
    cli.build();
    cli
}

fn pages(command: &Command, path: &[&str], seen: &[String], all: &mut Vec<Page>) {
    all.push(page(command, path, seen));
    let own = page_name(path);
    let below: Vec<&Command> =
        command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help").collect();
    for sub in &below {
        let mut path = path.to_vec();
        path.push(sub.get_name());
        let mut related = vec![own.clone()];
        // Those of the same noun; of the commands at the top there are too many.
        if path.len() > 1 {
            let others = below.iter().filter(|c| c.get_name() != sub.get_name());
            related.extend(others.map(|c| format!("{own}-{}", c.get_name())));
        }
        pages(sub, &path, &related, all);
    }
}

fn page_name(path: &[&str]) -> String {
    std::iter::once("strongroom").chain(path.iter().copied()).collect::<Vec<_>>().join("-")
}

fn page(command: &Command, path: &[&str], related: &[String]) -> Page {
    let name = page_name(path);
    let text = render(command, path, related, &name)
        .unwrap_or_else(|error| unreachable!("memory takes every write: {error}"));
    Page { name, text }
}

fn render(
    command: &Command,
    path: &[&str],
    related: &[String],
    name: &str,
) -> std::io::Result<Vec<u8>> {
    let man = Man::new(command.clone());
    let mut out = Vec::new();
    // clap_mangen leaves an empty date out, and all that follows it moves.
    let (title, version) = (name.to_uppercase(), env!("CARGO_PKG_VERSION"));
    writeln!(out, ".TH {title} 1 \"\" \"strongroom {version}\" \"strongroom manual\"")?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.get_subcommands().any(|c| !c.is_hide_set()) {
        man.render_subcommands_section(&mut out)?;
    }
    let mut more = Roff::new();
    let help = examples::parts(command);
    for note in &help.notes {
        more.control("SH", ["NOTES"]);
        verbatim(&mut more, note.lines());
    }
    if !help.examples.is_empty() {
        more.control("SH", ["EXAMPLES"]);
        verbatim(&mut more, help.examples.iter().map(String::as_str));
    }
    more.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in statuses(path) {
        more.control("TP", []);
        more.text([bold(status)]);
        more.text([roman(meaning)]);
    }
    more.control("SH", ["ENVIRONMENT"]);
    let agents: &[_] = if starts_agents(path) { AGENT_VARIABLES } else { &[] };
    for (variables, meaning) in VARIABLES.iter().chain(agents) {
        more.control("TP", []);
        more.text([bold(*variables)]);
        more.text([roman(*meaning)]);
    }
    more.control("SH", ["FILES"]);
    for (what, system, user) in files() {
        more.control("TP", []);
        more.text([bold(system), roman(", "), bold(user)]);
        more.text([roman(what)]);
    }
    more.control("PP", []);
    more.text([roman("With --home or STRONGROOM_HOME all of it lies under that one directory.")]);
    if !related.is_empty() {
        more.control("SH", ["SEE ALSO"]);
        let mut names = Vec::new();
        for (at, other) in related.iter().enumerate() {
            names.push(bold(other.as_str()));
            names.push(roman(if at + 1 < related.len() { "(1), " } else { "(1)" }));
        }
        more.text(names);
    }
    more.to_writer(&mut out)?;
    Ok(out)
}

/// Lines as they are.
fn verbatim<'a>(roff: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    roff.control("nf", []);
    for line in lines {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
}

/// Whether the command starts agents, and so leaves with what they leave with.
fn starts_agents(path: &[&str]) -> bool {
    matches!(path, ["run"] | ["chain", "run"])
}

/// The rows of the table of statuses that a command can leave with.
fn statuses(path: &[&str]) -> Vec<(String, &'static str)> {
    let mut rows: Vec<_> = exit::TABLE
        .iter()
        .filter(|(status, _)| exit::is_of(path, *status))
        .map(|(status, meaning)| (status.to_string(), *meaning))
        .collect();
    if starts_agents(path) {
        rows.push(("128+N".to_owned(), "the command was ended by signal N"));
        rows.push(("any other".to_owned(), "the command's own"));
    }
    rows
}

/// What lies where: for root, and for a plain user.
fn files() -> Vec<(&'static str, String, String)> {
    let user = Surroundings {
        uid: 1,
        home: Some(OsString::from("/~")),
        xdg_runtime_dir: Some(OsString::from("/$XDG_RUNTIME_DIR")),
        ..Surroundings::default()
    };
    let (Ok(system), Ok(user)) = (Paths::of(&Surroundings::default()), Paths::of(&user)) else {
        return Vec::new();
    };
    let text = |path: &Path| {
        let text = path.display().to_string();
        text.strip_prefix('/').filter(|t| t.starts_with(['~', '$'])).unwrap_or(&text).to_owned()
    };
    let row = |what, of: fn(&Paths) -> &PathBuf| (what, text(of(&system)), text(of(&user)));
    vec![
        row("The configuration.", |p| &p.config_file),
        row("The vault.", |p| &p.vault_file),
        row("The audit log.", |p| &p.audit_dir),
        row("The event store.", |p| &p.events_dir),
        row("The control socket.", |p| &p.socket),
        row("The mount.", |p| &p.mount),
    ]
}

pub(super) fn main(cli: Command, args: &ManArgs, json: bool) -> Outcome {
    let tree = tree(cli);
    let mut all = Vec::new();
    pages(&tree, &[], &[], &mut all);
    let Some(dir) = &args.dir else {
        let path: Vec<&str> = args.command.iter().map(String::as_str).collect();
        let name = page_name(&path);
        let Some(page) = all.into_iter().find(|page| page.name == name) else {
            return Err(Failure::new(format!("there is no command {}", args.command.join(" ")))
                .hint("strongroom --help lists them")
                .status(exit::NOT_FOUND));
        };
        let text = String::from_utf8_lossy(&page.text);
        show(json, &serde_json::json!({"page": page.name, "text": text}), || text.to_string())?;
        return Ok(exit::OK);
    };
    let failed = |path: &Path, error: std::io::Error| {
        Failure::new(format!("{}: {error}", path.display()))
            .hint("name a directory that you may write, with --dir")
    };
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    for page in &all {
        let path = dir.join(page.file());
        std::fs::File::create(&path)
            .and_then(|mut file| file.write_all(&page.text))
            .map_err(|e| failed(&path, e))?;
    }
    let names: Vec<_> = all.iter().map(Page::file).collect();
    show(json, &serde_json::json!({"dir": dir, "pages": names}), || {
        format!("{} pages in {}", names.len(), dir.display())
    })?;
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn all() -> Vec<Page> {
        let mut all = Vec::new();
        pages(&tree(super::super::Cli::command()), &[], &[], &mut all);
        all
    }

    fn text(name: &str) -> String {
        let page = all().into_iter().find(|p| p.name == name).unwrap();
        String::from_utf8(page.text).unwrap()
    }

    #[test]
    fn every_command_has_a_page_with_every_section() {
        let all = all();
        assert!(all.len() > 70, "{}", all.len());
        assert!(
            !all.iter().any(|page| page.name.ends_with("worker") || page.name.ends_with("tee"))
        );
        for page in &all {
            let text = String::from_utf8(page.text.clone()).unwrap();
            for section in ["NAME", "SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", "FILES"] {
                let heading = [format!(".SH {section}\n"), format!(".SH \"{section}\"\n")];
                assert!(heading.iter().any(|h| text.contains(h)), "{} {section}", page.name);
            }
        }
    }

    #[test]
    fn a_page_lists_the_statuses_of_its_command_and_no_others() {
        let of = |path: &[&str]| statuses(path).into_iter().map(|(s, _)| s).collect::<Vec<_>>();
        assert_eq!(of(&["run"]), ["2", "125", "126", "127", "128+N", "any other"]);
        assert!(of(&["secret", "revoke"]).contains(&"9".to_owned()));
        assert!(!of(&["secret", "rotate"]).contains(&"9".to_owned()));
        assert!(of(&["scan"]).contains(&"10".to_owned()));
        // Each status is in the page of strongroom itself.
        assert_eq!(of(&[]).len(), exit::TABLE.len());
    }

    #[test]
    fn places_are_those_of_root_and_of_a_plain_user() {
        let text = text("strongroom-up");
        for place in ["/etc/strongroom/strongroom.toml", "$XDG_RUNTIME_DIR/strongroom/control"] {
            assert!(text.contains(place), "{place}: {text}");
        }
        assert!(text.contains("~/.config/strongroom/strongroom.toml"), "{text}");
    }
}
