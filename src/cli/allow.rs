//! `allow`: tokens that may be shown, as entries that tell nothing of them.
#![forbid(unsafe_code)]

use clap::Args;

use crate::proto::{self, Value};
use crate::secret::SecretBytes;

use super::output::{note, show};
use super::{Context, Failure, Outcome, exit, value};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  printf %s \"$TOKEN\" | strongroom allow\n  strongroom allow\n\n\
    The token is read from stdin, or asked for. A value of the vault is hidden all the same."
)]
pub(super) struct AllowArgs {}

/// The token as it is found: nothing that is found ends in a line break.
fn token() -> Result<SecretBytes, Failure> {
    let token = value::read(None, true, "token")?;
    let bytes = token.expose();
    let end = bytes.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |last| last + 1);
    Ok(SecretBytes::copy_of(&bytes[..end]))
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
pub(super) fn main(context: &Context, _args: &AllowArgs) -> Outcome {
    let request = proto::Allow { token: Value::new(token()?) };
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
