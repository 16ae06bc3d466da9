//! `import`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::proto::{self, Value};
use crate::secret::{MAX_VALUE_BYTES, SecretBytes};

use super::output::{note, or_dash, show, table};
use super::{Context, Failure, Outcome, exit};

/// The longest file, in bytes.
const MAX_FILE_BYTES: usize = 6 << 20;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum OnConflict {
    /// Nothing is stored where a name exists.
    Fail,
    /// The value becomes the next version of what exists, as by `secret rotate`.
    Rotate,
    /// What exists stays as it is.
    Skip,
}

#[derive(Debug, Args)]
#[command(after_help = "Reads NAME=value lines, a JSON object of names and values, \
    {\"secrets\": {...}, \"secret_groups\": {...}, \"plain\": [...], \
    \"rotation_policy\": {...}}, the JSON of Vault KV version 2, or a directory with a file for \
    each value.\n\nExamples:\n  \
    strongroom import .env --scope chain:deploy --env dev --dry-run\n  \
    sops -d secrets.json | strongroom import - --scope org\n  \
    vault kv get -format=json secret/deploy | strongroom import - --scope chain:deploy")]
pub(super) struct ImportArgs {
    /// A file, a directory, or - for stdin.
    source: PathBuf,
    /// org, project:P, chain:C or agent:C/A.
    #[arg(long)]
    scope: Option<String>,
    /// The environment.
    #[arg(long)]
    env: Option<String>,
    /// What is done with names that exist.
    #[arg(long, default_value = "fail")]
    on_conflict: OnConflict,
    /// A name that is no secret; may be repeated.
    #[arg(long)]
    plain: Vec<String>,
    /// A name that is a secret whatever it looks like; may be repeated.
    #[arg(long)]
    secret: Vec<String>,
    /// Says what would be done.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn main(context: &Context, args: &ImportArgs) -> Outcome {
    let unreadable = |e: std::io::Error| {
        Failure::new(format!("{}: {e}", args.source.display()))
            .hint("give a file or directory that you can read, or - for stdin")
    };
    let from_stdin = args.source.as_os_str() == "-";
    let mut entries = BTreeMap::new();
    let (format, content) = if from_stdin {
        let bytes = SecretBytes::read_from(std::io::stdin().lock(), MAX_FILE_BYTES);
        (proto::ImportFormat::Auto, Some(Value::new(bytes.map_err(unreadable)?)))
    } else if args.source.is_dir() {
        for entry in std::fs::read_dir(&args.source).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !entry.file_type().map_err(unreadable)?.is_file() || name.starts_with('.') {
                note(&format!("note: passed over {name}: no plain file"));
                continue;
            }
            let file = std::fs::File::open(entry.path()).map_err(unreadable)?;
            let value = SecretBytes::read_from(file, MAX_VALUE_BYTES).map_err(unreadable)?;
            entries.insert(name, Value::new(value));
        }
        (proto::ImportFormat::Directory, None)
    } else {
        let file = std::fs::File::open(&args.source).map_err(unreadable)?;
        let bytes = SecretBytes::read_from(file, MAX_FILE_BYTES).map_err(unreadable)?;
        (proto::ImportFormat::Auto, Some(Value::new(bytes)))
    };
    let request = proto::Import {
        format,
        content,
        entries,
        source: (!from_stdin).then(|| args.source.display().to_string()),
        scope: args.scope.clone(),
        environment: args.env.clone(),
        on_conflict: match args.on_conflict {
            OnConflict::Fail => proto::OnConflict::Fail,
            OnConflict::Rotate => proto::OnConflict::Rotate,
            OnConflict::Skip => proto::OnConflict::Skip,
        },
        plain: args.plain.clone(),
        secret: args.secret.clone(),
        dry_run: args.dry_run,
    };
    let imported: proto::Imported = context.client().post("/v1/import", &request)?;
    for text in &imported.notes {
        note(&format!("note: {text}"));
    }
    show(context.json, &imported, || {
        let rows: Vec<_> = imported
            .items
            .iter()
            .map(|i| {
                vec![
                    i.action.clone(),
                    i.key.clone(),
                    or_dash(i.group.clone()),
                    if i.plain { "plain" } else { "secret" }.to_owned(),
                    i.why.clone(),
                ]
            })
            .collect();
        table(&["", "NAME", "GROUP", "KIND", "WHY"], &rows)
    })?;
    Ok(exit::OK)
}
