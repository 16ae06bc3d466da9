//! `scan`: where secrets are in files and trees.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::proto::{Code, Problem};
use crate::redact::{Level, View};
use crate::scan::allow::{Lists, MAX_COMPARED, Verdict};
use crate::scan::{self, Finding, Local, Options, Outcome as Searched, Part};
use crate::secret::SecretBytes;

use super::output::note;
use super::redact::Remote;
use super::{Context, Failure, Outcome, exit};

/// The longest report that is read as a baseline.
const MAX_BASELINE_BYTES: u64 = 64 << 20;
/// Files between two updates of the progress.
const PROGRESS_FILES: usize = 64;
/// How stdin is named in a report.
const STDIN: &str = "(stdin)";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object.
    Json,
    /// SARIF 2.1.0, as code hosts and editors read it.
    Sarif,
    /// path:line:column: name.
    Text,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  strongroom scan .\n  strongroom scan --values ~/work/project\n  \
    strongroom scan --format sarif . > findings.sarif\n  git diff | strongroom scan -\n  \
    strongroom scan --format json . > known.json; strongroom scan --baseline known.json .\n\n\
    In a git work tree what git ignores is left out, unless it is tracked. Tokens that are no \
    secrets are left out where .strongroom-allow in PATH has them (see strongroom allow); a value of \
    the vault never is. The status is 0 when \
    nothing was found, 8 when something was, and 10 when nothing was but some files could not be \
    read."
)]
pub(super) struct ScanArgs {
    /// Files and directories; - is stdin.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// How findings are told.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Looks for the vault's values too, through the daemon: for operators and auditors.
    #[arg(long)]
    values: bool,
    /// How much is looked for: all, formats (without what merely looks random), or, with --values,
    /// values alone.
    #[arg(long, default_value = "all", value_parser = level)]
    level: Level,
    /// Also what git ignores, and the .git directory.
    #[arg(long)]
    no_ignore: bool,
    /// Not what begins with a dot.
    #[arg(long)]
    skip_hidden: bool,
    /// Leaves out larger files, as 10M.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// One more list of tokens that are no secrets, as strongroom allow --to FILE makes it.
    #[arg(long, value_name = "FILE")]
    allow: Vec<PathBuf>,
    /// Without any such list.
    #[arg(long, conflicts_with = "allow")]
    no_allow: bool,
    /// A report of --format json: as many findings of each kind in a file as there are known.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
}

/// A level by its word; `off` looks for nothing.
pub(super) fn level(text: &str) -> Result<Level, String> {
    [Level::All, Level::Formats, Level::Values]
        .into_iter()
        .find(|level| level.word() == text)
        .ok_or_else(|| "all, formats or values".to_owned())
}

/// A number of bytes, as 512K, 10M or 1G.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "k" | "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err("a number of bytes, as 512K, 10M or 1G".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a number of bytes, as 10M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

impl ScanArgs {
    /// Whether no daemon is needed.
    pub(super) fn is_local(&self) -> bool {
        !self.values
    }
}

/// A finding as it is reported.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Reported {
    path: String,
    /// A rule's id, or a secret's name.
    rule: String,
    line: Option<u64>,
    column: Option<u64>,
    /// In bytes; none when it is the name of the file.
    offset: Option<u64>,
    /// The name of the file has it.
    #[serde(default)]
    in_name: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Unreadable {
    path: String,
    error: String,
}

/// A whole report: the JSON of `--format json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Report {
    findings: Vec<Reported>,
    /// Findings beyond those, of files with very many.
    more: u64,
    /// Findings that the baseline has.
    known: u64,
    /// Findings that a list of tokens has, which are no secrets.
    #[serde(default)]
    allowed: u64,
    /// The same, for SARIF.
    #[serde(skip)]
    suppressed: Vec<Reported>,
    files: u64,
    bytes: u64,
    /// Larger than --max-size.
    too_large: u64,
    unreadable: Vec<Unreadable>,
}

/// How many findings of each kind in each file are known.
type Baseline = BTreeMap<(String, String), u64>;

fn read_baseline(path: &Path) -> Result<Baseline, Failure> {
    let failed = |what: String| {
        Failure::new(format!("{}: {what}", path.display()))
            .hint("make it with: strongroom scan --format json PATH > FILE")
    };
    let file = std::fs::File::open(path).map_err(|e| failed(e.to_string()))?;
    let report: Report = serde_json::from_reader(std::io::BufReader::new(std::io::Read::take(
        file,
        MAX_BASELINE_BYTES,
    )))
    .map_err(|_| failed("it is no report of a scan".to_owned()))?;
    let mut baseline = Baseline::new();
    for finding in report.findings {
        *baseline.entry((finding.path, finding.rule)).or_default() += 1;
    }
    Ok(baseline)
}

/// Whether a value of the vault is in a token.
type HasValue<'a> = &'a mut dyn FnMut(&[u8]) -> Result<bool, Failure>;

/// What is done with findings as they come.
struct Reporter<'a> {
    format: Format,
    lists: Lists,
    has_value: HasValue<'a>,
    /// Findings that may be on a list, if more had been compared.
    not_compared: u64,
    failed: Option<Failure>,
    baseline: Baseline,
    report: Report,
    out: std::io::StdoutLock<'static>,
    /// Stdout was closed, as `head` does.
    closed: bool,
    progress: Option<usize>,
    done: usize,
}

impl Reporter<'_> {
    /// Whether a finding is on a list; a value of the vault never is.
    fn is_allowed(&mut self, path: Option<&Path>, token: &SecretBytes) -> bool {
        match self.lists.judge(path, token.expose()) {
            Verdict::Allowed => match (self.has_value)(token.expose()) {
                Ok(has_value) => !has_value,
                Err(failure) => {
                    self.failed.get_or_insert(failure);
                    false
                }
            },
            Verdict::Found => false,
            Verdict::NotCompared => {
                self.not_compared += 1;
                false
            }
        }
    }

    fn finding(&mut self, reported: Reported) {
        let kind = (reported.path.clone(), reported.rule.clone());
        if let Some(left) = self.baseline.get_mut(&kind)
            && *left > 0
        {
            *left -= 1;
            self.report.known += 1;
            return;
        }
        if self.format == Format::Text && !self.closed {
            self.clear_progress();
            self.closed = writeln!(self.out, "{}", line(&reported)).is_err();
        }
        self.report.findings.push(reported);
    }

    /// What came of a file, whose name may be shown as `path`.
    fn outcome(&mut self, path: &str, file: Option<&Path>, mut searched: Searched) {
        self.done += 1;
        self.report.more += searched.more;
        self.report.bytes += searched.bytes;
        self.report.too_large += u64::from(searched.too_large);
        if let Some(error) = searched.unreadable {
            self.unreadable(path.to_owned(), error);
        } else if !searched.too_large {
            self.report.files += 1;
        }
        for (number, finding) in searched.findings.into_iter().enumerate() {
            let Finding { rule, line, column, offset } = finding;
            let (path, offset) = (path.to_owned(), Some(offset));
            let reported = Reported { path, rule, line, column, offset, in_name: false };
            let token = searched.tokens.remove(&number);
            if token.is_some_and(|token| self.is_allowed(file, &token)) {
                self.report.allowed += 1;
                self.report.suppressed.push(reported);
            } else {
                self.finding(reported);
            }
        }
        self.show_progress();
    }

    fn unreadable(&mut self, path: String, error: String) {
        self.clear_progress();
        note(&format!("warning: {path}: {error}"));
        self.report.unreadable.push(Unreadable { path, error });
    }

    fn show_progress(&mut self) {
        if let Some(all) = self.progress
            && self.done.is_multiple_of(PROGRESS_FILES)
        {
            eprint!("\r\x1b[K{} of {all} files, {} found", self.done, self.report.findings.len());
        }
    }

    fn clear_progress(&self) {
        if self.progress.is_some() && self.done > 0 {
            eprint!("\r\x1b[K");
        }
    }

    fn finish(mut self) -> Outcome {
        self.clear_progress();
        if let Some(failure) = self.failed {
            return Err(failure);
        }
        if self.not_compared > 0 {
            note(&format!(
                "warning: {} findings may be on the list: {MAX_COMPARED} different ones of a length that \
                 it has were compared with it, and no more",
                self.not_compared
            ));
        }
        let report = &self.report;
        let written = match self.format {
            Format::Text => Ok(()),
            Format::Json => serde_json::to_writer_pretty(&mut self.out, report),
            Format::Sarif => serde_json::to_writer_pretty(&mut self.out, &sarif(report)),
        };
        if self.format != Format::Text {
            // A reader that has gone wants no more; the status still tells.
            let _closed = written.map_err(std::io::Error::from).and_then(|()| writeln!(self.out));
        }
        let found = report.findings.len() as u64 + report.more;
        if self.format == Format::Text {
            let mut text = format!(
                "{found} found in {} files ({})",
                report.files,
                super::events::size(report.bytes)
            );
            for (count, what) in [
                (report.known, "known"),
                (report.allowed, "allowed"),
                (report.too_large, "too large"),
                (report.unreadable.len() as u64, "unreadable"),
            ] {
                if count > 0 {
                    text.push_str(&format!(", {count} {what}"));
                }
            }
            note(&text);
        }
        Ok(match (found, report.unreadable.len()) {
            (0, 0) => exit::OK,
            (0, _) => exit::UNREAD,
            _ => exit::FOUND,
        })
    }
}

fn line(finding: &Reported) -> String {
    let place = match (finding.line, finding.column, finding.offset) {
        (Some(line), Some(column), Some(_)) => format!(":{line}:{column}"),
        (_, _, Some(offset)) => format!(": byte {offset}"),
        _ => ": in its name".to_owned(),
    };
    format!("{}{place}: {}", finding.path, finding.rule)
}

/// A path as a reference of RFC 3986, relative where the path is.
fn uri(path: &str) -> String {
    let mut text = if path.starts_with('/') { "file://".to_owned() } else { String::new() };
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// SARIF 2.1.0 (OASIS). No region has an end, which would tell the length of a secret, and no
/// result a fingerprint.
fn sarif(report: &Report) -> serde_json::Value {
    let all = || {
        let suppressed = report.suppressed.iter().map(|finding| (finding, true));
        report.findings.iter().map(|finding| (finding, false)).chain(suppressed)
    };
    let rules: BTreeSet<&str> = all().map(|(finding, _)| finding.rule.as_str()).collect();
    let number = |rule: &str| rules.iter().position(|r| *r == rule);
    let results: Vec<_> = all()
        .map(|(finding, is_suppressed)| {
            let mut place = serde_json::json!({"artifactLocation": {"uri": uri(&finding.path)}});
            match (finding.line, finding.column, finding.offset) {
                (Some(line), Some(column), _) => {
                    place["region"] = serde_json::json!({"startLine": line, "startColumn": column});
                }
                (_, _, Some(offset)) => {
                    place["region"] = serde_json::json!({"byteOffset": offset});
                }
                _ => {}
            }
            let what = if finding.in_name { "The name of this file holds" } else { "This is" };
            let mut result = serde_json::json!({
                "ruleId": finding.rule,
                "ruleIndex": number(&finding.rule),
                "level": "error",
                "message": {"text": format!("{what} a secret: {}.", finding.rule)},
                "locations": [{"physicalLocation": place}],
            });
            // Of a run all results have these or none (section 3.27.23).
            if is_suppressed {
                result["suppressions"] = serde_json::json!([{
                    "kind": "external",
                    "justification": "An allow list has it.",
                }]);
            } else if report.allowed > 0 {
                result["suppressions"] = serde_json::json!([]);
            }
            result
        })
        .collect();
    let rules: Vec<_> = rules
        .iter()
        .map(|rule| {
            serde_json::json!({
                "id": rule,
                "shortDescription": {"text": format!("A secret: {rule}")},
                "help": {"text": "Take it out, and have a new one made: whoever saw it has it."},
                "defaultConfiguration": {"level": "error"},
            })
        })
        .collect();
    let notifications: Vec<_> = report
        .unreadable
        .iter()
        .map(|file| {
            serde_json::json!({
                "level": "warning",
                "message": {"text": format!("not searched: {}", file.error)},
                "locations": [
                    {"physicalLocation": {"artifactLocation": {"uri": uri(&file.path)}}},
                ],
            })
        })
        .collect();
    serde_json::json!({
        "$schema":
            "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "strongroom",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "columnKind": "unicodeCodePoints",
            "invocations": [{
                "executionSuccessful": report.unreadable.is_empty(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
        }],
    })
}

/// With known formats alone.
pub(super) fn local(view: View, args: &ScanArgs, json: bool) -> Outcome {
    if args.level == Level::Values {
        return Err(Failure::new("values are looked for through the daemon")
            .hint("add --values, or leave out --level values"));
    }
    let view = Arc::new(view);
    let engine = |level| Ok(Local::new(view.clone(), level));
    search(args, json, engine, |never: std::convert::Infallible| match never {})
}

/// With the vault's values, through the daemon.
pub(super) fn main(context: &Context, args: &ScanArgs) -> Outcome {
    let client = context.client();
    let make = |level| {
        let remote = Remote::open(&client, level, true)?;
        if remote.knows_values() {
            return Ok(remote);
        }
        Err(Problem::new(
            Code::NoRole,
            "values are looked for on behalf of operators and auditors alone",
        )
        .with_hint("leave out --values to look for known formats"))
    };
    search(args, context.json, make, Failure::from)
}

/// Why a list is none, with its next step.
pub(super) fn not_a_list(error: scan::allow::Error) -> Failure {
    Failure::new(error.to_string()).hint(error.hint())
}

fn search<E, M>(
    args: &ScanArgs,
    json: bool,
    make: M,
    failed: impl Fn(E::Error) -> Failure,
) -> Outcome
where
    E: scan::Engine,
    E::Error: Send,
    M: Fn(Level) -> Result<E, E::Error> + Sync,
{
    let baseline = args.baseline.as_deref().map(read_baseline).transpose()?.unwrap_or_default();
    let is_stdin = |path: &&PathBuf| path.as_os_str() == "-";
    let paths: Vec<PathBuf> = args.paths.iter().filter(|p| !is_stdin(p)).cloned().collect();
    let options = Options { no_ignore: args.no_ignore, skip_hidden: args.skip_hidden };
    let lists = match args.no_allow {
        true => Lists::default(),
        false => Lists::read(&paths, &args.allow).map_err(not_a_list)?,
    };
    let found = scan::find(&paths, options);
    let lens = lists.lens();
    let wants = |len: usize| lens.contains(&len);
    let wanted: scan::Wanted<'_> = if lens.is_empty() { None } else { Some(&wants) };
    let mut values = None;
    let mut has_value = |token: &[u8]| {
        let engine = match &mut values {
            Some(engine) => engine,
            none => none.insert(make(Level::Values).map_err(&failed)?),
        };
        let mut has_value = false;
        let mut each = |part: Part<'_>| has_value |= matches!(part, Part::Marker(_));
        engine.push(token, &mut each).and_then(|()| engine.finish(&mut each)).map_err(&failed)?;
        Ok(has_value)
    };
    let mut reporter = Reporter {
        format: if json { Format::Json } else { args.format },
        lists,
        has_value: &mut has_value,
        not_compared: 0,
        failed: None,
        baseline,
        report: Report::default(),
        out: std::io::stdout().lock(),
        closed: false,
        progress: std::io::stderr().is_terminal().then_some(found.items.len()),
        done: 0,
    };
    // What merely looks random is left in names, or nobody would find the file.
    let mut engine = make(if args.level == Level::All { Level::Formats } else { args.level })
        .map_err(&failed)?;
    let items = found.items.iter().map(|item| item.path.as_path());
    let paths: Vec<&Path> = items.chain(found.unreadable.iter().map(|(path, _)| &**path)).collect();
    let names = scan::names(&paths, &mut engine).map_err(&failed)?;
    let (names, unreadable) = names.split_at(found.items.len());
    for (name, (_, error)) in unreadable.iter().zip(&found.unreadable) {
        reporter.unreadable(name.shown.clone(), error.clone());
    }
    let mut engine = make(args.level).map_err(&failed)?;
    if args.paths.iter().any(|path| is_stdin(&path)) {
        let stdin = &mut std::io::stdin().lock();
        let searched = scan::text(stdin, wanted, &mut engine).map_err(&failed)?;
        reporter.outcome(STDIN, None, searched);
    }
    drop(engine);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let make = || make(args.level);
    scan::files(&found.items, args.max_size, wanted, threads, make, &mut |number, searched| {
        let name = &names[number];
        for rule in name.rules.clone() {
            let path = name.shown.clone();
            let nowhere = (None, None, None);
            let (line, column, offset) = nowhere;
            reporter.finding(Reported { path, rule, line, column, offset, in_name: true });
        }
        reporter.outcome(&name.shown, Some(&found.items[number].path), searched);
    })
    .map_err(&failed)?;
    reporter.finish()
}
