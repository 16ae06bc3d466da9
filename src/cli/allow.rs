//! `allow`: tokens that may be shown, as entries that tell nothing of them.
#![forbid(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::proto::{self, Value};
use crate::redact::allow::{self, MAX_TOKEN_BYTES};
use crate::redact::{Level, View};
use crate::scan::{self, Local};
use crate::secret::SecretBytes;

use super::output::{note, show};
use super::{Context, Failure, Outcome, exit, value};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  printf %s \"$TOKEN\" | strongroom allow\n  \
    strongroom allow --to .strongroom-allow --at docs/setup.md:12:8 --reason 'of the documents'\n\n\
    The token is read from stdin, or asked for. Without --to the vault's key makes the entry, which \
    [redaction] allow of the configuration takes. A value of the vault is hidden all the same.")]
pub(super) struct AllowArgs {
    /// Takes the token that strongroom scan reports at this place.
    #[arg(long, value_name = "PATH:LINE:COLUMN")]
    at: Option<String>,
    /// Adds the entry to a list for strongroom scan, which needs no daemon; makes the list if need be.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Stands behind the entry in the list.
    #[arg(long, requires = "to", value_name = "TEXT")]
    reason: Option<String>,
}

impl AllowArgs {
    /// Whether no daemon is needed.
    pub(super) fn is_local(&self) -> bool {
        self.to.is_some()
    }
}

/// The token as it is found: nothing that is found ends in a line break.
fn token(args: &AllowArgs, view: &Arc<View>) -> Result<SecretBytes, Failure> {
    if let Some(place) = &args.at {
        return token_at(place, view);
    }
    let token = value::read(None, true, "token")?;
    let bytes = token.expose();
    let end = bytes.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |last| last + 1);
    Ok(SecretBytes::copy_of(&bytes[..end]))
}

fn token_at(place: &str, view: &Arc<View>) -> Result<SecretBytes, Failure> {
    let mut parts = place.rsplitn(3, ':');
    let mut number = || parts.next().and_then(|text| text.parse::<u64>().ok());
    let (column, line) = (number(), number());
    let (Some(path), Some(line), Some(column)) = (parts.next(), line, column) else {
        return Err(Failure::new("--at is no PATH:LINE:COLUMN")
            .hint("give a place as strongroom scan prints it, like docs/setup.md:12:8")
            .status(exit::USAGE));
    };
    let unread = |e: std::io::Error| {
        Failure::new(format!("{path}: {e}")).hint("give a file that you can read")
    };
    let mut file = File::open(Path::new(path)).map_err(unread)?;
    let mut engine = Local::new(view.clone(), Level::All);
    let Ok(mut searched) = scan::text(&mut file, Some(&|_| true), &mut engine);
    if let Some(error) = searched.unreadable {
        return Err(Failure::new(format!("{path}: {error}")).hint("give a file that you can read"));
    }
    let is_there = |found: &scan::Finding| (found.line, found.column) == (Some(line), Some(column));
    let number = searched.findings.iter().position(is_there).ok_or_else(|| {
        Failure::new(format!("nothing is found at {path}:{line}:{column}"))
            .hint("strongroom scan PATH tells the places of what is found")
    })?;
    searched.tokens.remove(&number).ok_or_else(|| {
        Failure::new(format!("what is found there is longer than {MAX_TOKEN_BYTES} bytes"))
            .hint("something so long cannot be allowed; strongroom scan --baseline leaves out what is known")
    })
}

fn found_by(rule: Option<&str>) {
    match rule {
        Some(rule) => note(&format!("found by: {rule}")),
        None => note(
            "note: alone, or as the value of a name like api_key, no rule finds exactly this; what \
             is found must be the same to the byte",
        ),
    }
}

/// Through the daemon, whose key makes the entry.
pub(super) fn main(context: &Context, args: &AllowArgs) -> Outcome {
    let view = Arc::new(super::formats_view(&context.config)?);
    let request = proto::Allow { token: Value::new(token(args, &view)?) };
    let made: proto::AllowMade = context.client().post("/v1/allow", &request)?;
    show(context.json, &made, || made.entry.clone())?;
    if !context.json {
        found_by(made.rule.as_deref());
        note(
            "to show it: [redaction] allow = [\"allow1:..\"] in strongroom.toml, strongroom reload",
        );
    }
    Ok(exit::OK)
}

/// Into a list for `scan`.
pub(super) fn local(view: View, args: &AllowArgs, json: bool) -> Outcome {
    let Some(file) = &args.to else { return Ok(exit::USAGE) };
    let view = Arc::new(view);
    let token = token(args, &view)?;
    let rule = allow::rule_of(view.detector(), token.expose());
    let reason = args.reason.as_deref().unwrap_or_default();
    let added = scan::allow::add(file, token.expose(), reason).map_err(super::scan::not_a_list)?;
    let told = serde_json::json!({
        "entry": added.entry.to_string(),
        "file": file.display().to_string(),
        "new": added.is_new,
        "rule": rule.as_deref(),
    });
    show(json, &told, || match added.is_new {
        true => format!("added to {}", file.display()),
        false => format!("in {} already", file.display()),
    })?;
    if !json {
        found_by(rule.as_deref());
    }
    Ok(exit::OK)
}
