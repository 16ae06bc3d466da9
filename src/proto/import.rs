//! Imports on the wire.
//!
//! Invariant: the request, whose content holds values, derives neither `Debug` nor `Clone`; the
//! answer names what was taken and shows none of it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject, Value, place_of_secret};

/// How the content of an import is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImportFormat {
    /// Decided by the content: JSON where it starts with `{`, else dotenv.
    Auto,
    /// A directory: one file, one value.
    Directory,
    /// `NAME=value` lines.
    Dotenv,
    /// The JSON shapes of the manual, and `sops -d` and Vault KV v2 output.
    Json,
}

/// What to do with a name that exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// Import nothing at all.
    #[default]
    Fail,
    /// Stage the value as the existing one's next version; of a group, all members.
    Rotate,
    /// Leave the existing one.
    Skip,
}

/// `import`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// How the content is written.
    pub format: ImportFormat,
    /// The text, unless it is a directory.
    #[serde(default)]
    pub content: Option<Value>,
    /// File names and contents of a directory.
    #[serde(default)]
    pub entries: BTreeMap<String, Value>,
    /// What it came from, for messages.
    #[serde(default)]
    pub source: Option<String>,
    /// Scope of all; none: `org`.
    #[serde(default)]
    pub scope: Option<String>,
    /// Environment of all.
    #[serde(default)]
    pub environment: Option<String>,
    /// What to do with a name that exists.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// Names that are plain, whatever they look like.
    #[serde(default)]
    pub plain: Vec<String>,
    /// Names that are secret, whatever they look like.
    #[serde(default)]
    pub secret: Vec<String>,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

impl Request for Import {
    fn subject(&self) -> Subject<'_> {
        match place_of_secret("", self.scope.as_deref()) {
            Subject::Place { chain, .. } => Subject::Place {
                chain,
                environment: Some(self.environment.as_deref().unwrap_or("-")),
            },
            other => other,
        }
    }
}

/// One name of an import.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ImportedItem {
    /// Its name.
    pub key: String,
    /// Its environment.
    pub environment: Option<String>,
    /// Its group.
    #[serde(default)]
    pub group: Option<String>,
    /// Taken for plain, not secret.
    pub plain: bool,
    /// Why it was taken for that.
    pub why: String,
    /// `created`, `skipped`, `rotated` or `conflict`.
    pub action: String,
    /// The line of the source that can go now.
    #[serde(default)]
    pub line: Option<u64>,
}

/// What an import did, or would do.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Imported {
    /// In order of the source.
    pub items: Vec<ImportedItem>,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// What the person should know.
    #[serde(default)]
    pub notes: Vec<String>,
}
