//! `redact`: a filter that leaves markers where secrets were.
//!
//! Invariant: what is passed on was decided by an engine that looks for all that was asked for; where
//! it cannot, nothing passes. Bytes are out as soon as they are decided, in constant memory. Danger:
//! a filter that quietly does less, as without a daemon; it must be told so.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zeroize::Zeroizing;

use crate::control::client::Client;
use crate::control::redacting::Redacting;
use crate::proto::stream::{Piece, Redact, Scope};
use crate::proto::{self, Problem};
use crate::redact::{Level, View};
use crate::scan::{Each, Engine, Local, Part};

use super::output::note;
use super::{Context, Failure, Outcome, exit};

/// What is read at once.
const CHUNK_BYTES: usize = 128 << 10;
/// More than any value that is held back: what waits longer for its answer belongs to a secret.
const MAX_WAITING_BYTES: usize = 64 << 20;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ./agent.sh 2>&1 | strongroom redact | tee agent.log\n  \
    strongroom redact --level formats < session.jsonl > session.clean.jsonl\n  \
    strongroom redact --check report.md > /dev/null || echo 'secrets in it'\n\n\
    The vault's values are looked for through the daemon, for operators and auditors. Without \
    it, --local looks for known formats and for what looks random.")]
pub(super) struct RedactArgs {
    /// How much is looked for: all, formats (values and known formats), or values.
    #[arg(long, default_value = "all", value_parser = super::scan::level)]
    level: Level,
    /// Leaves with status 8 when something was found.
    #[arg(long, visible_alias = "exit-code")]
    check: bool,
    /// Asks no daemon: no values are looked for.
    #[arg(long)]
    local: bool,
    /// Files, one after the other; none, or -, is stdin.
    files: Vec<PathBuf>,
}

impl RedactArgs {
    /// Whether no daemon is to be asked.
    pub(super) fn is_local(&self) -> bool {
        self.local
    }
}

/// The daemon's engine.
pub(super) struct Remote {
    stream: Redacting,
    /// Sent and not answered, where places are asked for.
    raw: Option<VecDeque<u8>>,
    /// Bytes of a secret that was not answered yet, passed on already.
    early: u64,
}

impl Remote {
    /// Opens a stream; with `places` hidden bytes are given as well.
    pub(super) fn open(client: &Client, level: Level, places: bool) -> Result<Self, Problem> {
        // Whether there is a daemon at all is told at once.
        let _health: proto::Health = client.get("/v1/health", &proto::Empty::default())?;
        let stream = Redacting::open(client, Redact { level, ..Redact::default() })?;
        Ok(Self { stream, raw: places.then(VecDeque::new), early: 0 })
    }

    /// Whether values are looked for.
    pub(super) fn knows_values(&self) -> bool {
        self.stream.scope() == Scope::All
    }
}

fn skip(raw: &mut VecDeque<u8>, count: usize) {
    raw.drain(..count.min(raw.len()));
}

/// Gives the first bytes that wait as hidden ones.
fn hide(raw: &mut VecDeque<u8>, count: usize, each: Each<'_>) {
    let count = count.min(raw.len());
    let (first, second) = raw.as_slices();
    let cut = count.min(first.len());
    each(Part::Hidden(&first[..cut]));
    each(Part::Hidden(&second[..count - cut]));
    skip(raw, count);
}

fn pass(raw: &mut Option<VecDeque<u8>>, early: &mut u64, piece: Piece<'_>, each: Each<'_>) {
    match piece {
        Piece::Clear(bytes) => {
            if let Some(raw) = raw {
                skip(raw, bytes.len());
            }
            each(Part::Clear(bytes));
        }
        Piece::Marker { text, raw_len } => {
            if let Some(raw) = raw {
                let left = raw_len.saturating_sub(std::mem::take(early));
                hide(raw, usize::try_from(left).unwrap_or(usize::MAX), each);
            }
            each(Part::Marker(text));
        }
    }
}

impl Engine for Remote {
    type Error = Problem;

    fn push(&mut self, input: &[u8], each: Each<'_>) -> Result<(), Problem> {
        let Self { stream, raw, early } = self;
        if let Some(raw) = raw {
            raw.extend(input);
        }
        stream.push(input, &mut |piece| pass(raw, early, piece, each))?;
        if let Some(raw) = raw
            && let Some(surplus) = raw.len().checked_sub(MAX_WAITING_BYTES)
        {
            hide(raw, surplus, each);
            *early += surplus as u64;
        }
        Ok(())
    }

    fn flush(&mut self, each: Each<'_>) -> Result<(), Problem> {
        let Self { stream, raw, early } = self;
        stream.flush(&mut |piece| pass(raw, early, piece, each))
    }

    fn finish(&mut self, each: Each<'_>) -> Result<(), Problem> {
        let Self { stream, raw, early } = self;
        stream.finish(&mut |piece| pass(raw, early, piece, each))
    }
}

/// Why an engine or the system ended it.
enum Ended<E> {
    Engine(E),
    Output(io::Error),
}

/// What was found.
#[derive(Default)]
struct Counts {
    markers: BTreeMap<String, u64>,
    unreadable: u64,
}

fn filter<E: Engine, S: Read + AsFd>(
    source: &mut S,
    engine: &mut E,
    counts: &mut Counts,
    name: &Path,
) -> Result<(), Ended<E::Error>> {
    let mut out = io::stdout().lock();
    let mut buffer = Zeroizing::new(vec![0; CHUNK_BYTES]);
    let mut decided = Vec::with_capacity(2 * CHUNK_BYTES);
    loop {
        let count = match source.read(&mut buffer) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                note(&format!("warning: {}: {error}", name.display()));
                counts.unreadable += 1;
                0
            }
        };
        let mut take = |part: Part<'_>| match part {
            Part::Clear(bytes) => decided.extend_from_slice(bytes),
            Part::Hidden(_) => {}
            Part::Marker(text) => {
                decided.extend_from_slice(text.as_bytes());
                match counts.markers.get_mut(text) {
                    Some(count) => *count += 1,
                    None => drop(counts.markers.insert(text.to_owned(), 1)),
                }
            }
        };
        if count == 0 {
            engine.finish(&mut take).map_err(Ended::Engine)?;
        } else {
            engine.push(&buffer[..count], &mut take).map_err(Ended::Engine)?;
            // Answers are waited for only where no more input waits for us.
            if !is_ready(&*source) {
                engine.flush(&mut take).map_err(Ended::Engine)?;
            }
        }
        out.write_all(&decided).and_then(|()| out.flush()).map_err(Ended::Output)?;
        decided.clear();
        if count == 0 {
            return Ok(());
        }
    }
}

fn is_ready(source: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(ready) if ready > 0)
}

fn run<E: Engine>(
    args: &RedactArgs,
    json: bool,
    engine: &mut E,
    failed: impl Fn(E::Error) -> Failure,
) -> Outcome {
    let mut counts = Counts::default();
    let stdin = [PathBuf::from("-")];
    let files = if args.files.is_empty() { &stdin[..] } else { &args.files };
    for path in files {
        let done = if path.as_os_str() == "-" {
            // Past the buffer of the standard library: what has come is to be passed on.
            match io::stdin().as_fd().try_clone_to_owned() {
                Ok(fd) => filter(&mut std::fs::File::from(fd), engine, &mut counts, path),
                Err(error) => Err(Ended::Output(error)),
            }
        } else {
            match std::fs::File::open(path) {
                Ok(mut file) => filter(&mut file, engine, &mut counts, path),
                Err(error) => {
                    note(&format!("error: {}: {error}", path.display()));
                    counts.unreadable += 1;
                    continue;
                }
            }
        };
        match done {
            Ok(()) => {}
            Err(Ended::Engine(error)) => return Err(failed(error)),
            // A closed pipe ends it quietly.
            Err(Ended::Output(error)) => return Err(anyhow::Error::from(error).into()),
        }
    }
    if json {
        let summary = serde_json::json!({
            "redacted": counts.markers,
            "unreadable": counts.unreadable,
        });
        note(&summary.to_string());
    }
    Ok(match (counts.markers.is_empty(), counts.unreadable) {
        (false, _) if args.check => exit::FOUND,
        (_, 0) => exit::OK,
        _ => exit::FAILED,
    })
}

/// With known formats alone.
pub(super) fn local(view: View, args: &RedactArgs, json: bool) -> Outcome {
    if args.level == Level::Values {
        return Err(Failure::new("without the daemon there are no values to look for")
            .hint("leave out --local, or ask for --level all or formats"));
    }
    let mut engine = Local::new(Arc::new(view), args.level);
    run(args, json, &mut engine, |never| match never {})
}

/// Through the daemon, where it can be asked.
pub(super) fn main(context: &Context, args: &RedactArgs) -> Outcome {
    let weaker = |why: &str| {
        note(&format!("note: {why}: values are not looked for, known formats are"));
        local(super::formats_view(&context.config)?, args, context.json)
    };
    match Remote::open(&context.client(), args.level, false) {
        Ok(mut engine) if engine.knows_values() => {
            run(args, context.json, &mut engine, Failure::from)
        }
        Ok(_) if args.level == Level::Formats => weaker("no role of yours allows more"),
        Ok(_) => {
            Err(Failure::new("values are looked for on behalf of operators and auditors alone")
                .hint("--local looks for known formats, and for what looks random")
                .status(exit::NO_ROLE))
        }
        Err(problem) if args.level == Level::Formats => weaker(&problem.detail),
        Err(problem) => Err(Failure::from(problem)
            .hint("strongroom up; or --local, which looks for known formats alone")),
    }
}
