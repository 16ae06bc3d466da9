//! Where everything lies and how the daemon is to behave, read once and checked as a whole.
//!
//! Invariant: a [`Config`] that exists was checked: no unknown key, no impossible value, nothing of
//! the daemon's own beneath its own mount (it would wait for itself). Danger: a misspelt key that
//! silently leaves a default in force; unknown keys are errors that name the near miss and the line.
//! Errors never quote values of the file, since a webhook's address may hold a token.
#![forbid(unsafe_code)]

mod check;
mod paths;
mod period;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use paths::{Mode, Paths, Surroundings};
pub use period::{BadPeriod, Period};
use words::describe;
pub use words::near_miss;
pub(crate) use words::{expected, shown_key, unknown_field};

/// The variable that names the directory which holds everything, like `--home`.
pub const HOME_VARIABLE: &str = "STRONGROOM_HOME";

/// The longest configuration file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The most that `events.max_held` may be: a part of what the runtime state has for all files.
const MAX_HELD: u64 = 32 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is there but cannot be read.
    #[error("configuration {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key that no version of this program knows, or not in this place.
    #[error("configuration {} line {line} column {column}: unknown key `{key}`", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// The key as written.
        key: String,
        /// The known key that was probably meant.
        near: Option<String>,
        /// What may stand there.
        known: Vec<String>,
    },
    /// The file is not TOML, or a value is of the wrong kind.
    #[error("configuration {} line {line} column {column}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong, without the value.
        problem: String,
    },
    /// Every value is of the right kind, but together they make no sense.
    #[error("configuration {}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to write instead.
        remedy: String,
    },
    /// A place that the environment ought to name is not named.
    #[error("{variable} is not set, so there is no place for {what}")]
    NoPlace {
        /// The variable.
        variable: &'static str,
        /// What would lie there.
        what: &'static str,
    },
}

impl Error {
    /// The next step for a person.
    pub fn hint(&self) -> String {
        match self {
            Self::Read { path, .. } => {
                format!("check the owner and mode of {}", path.display())
            }
            Self::UnknownKey { near: Some(near), .. } => format!("did you mean `{near}`?"),
            Self::UnknownKey { known, .. } => format!("known here: {}", known.join(", ")),
            Self::Syntax { path, .. } => {
                format!("correct {}, then: strongroom config check", path.display())
            }
            Self::Invalid { remedy, .. } => remedy.clone(),
            Self::NoPlace { .. } => {
                format!("name one directory for everything: --home DIR or {HOME_VARIABLE}")
            }
        }
    }
}

/// The whole of `strongroom.toml`; a missing file means all defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Environments that may prefix a secret's name.
    pub environments: Vec<String>,
    /// How the daemon opens the vault at start.
    pub unlock: Unlock,
    /// The audit log.
    pub audit: Audit,
    /// The mount.
    pub mount: Mount,
    /// Versions and their ends.
    pub rotation: Rotation,
    /// Values that are looked for in what agents write.
    pub redaction: Redaction,
    /// The event store.
    pub events: Events,
    /// Asking the operator again.
    pub operator: Operator,
    /// Who may do what over the control socket; none means the default of the mode.
    #[serde(rename = "role")]
    pub roles: Vec<Role>,
    /// Who is told what.
    #[serde(rename = "alert")]
    pub alerts: Vec<Alert>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            environments: ["dev", "staging", "prod"].map(str::to_owned).to_vec(),
            unlock: Unlock::default(),
            audit: Audit::default(),
            mount: Mount::default(),
            rotation: Rotation::default(),
            redaction: Redaction::default(),
            events: Events::default(),
            operator: Operator::default(),
            roles: Vec::new(),
            alerts: Vec::new(),
        }
    }
}

/// `[unlock]`: how the daemon opens the vault at start; without a method it starts locked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Unlock {
    /// The method; none: locked until `strongroom unlock`.
    pub method: Option<UnlockMethod>,
    /// `key-file`: the file. `systemd-credential`: the credential's name.
    pub path: Option<PathBuf>,
    /// `command`: program and arguments.
    pub command: Vec<String>,
    /// The slot's label, where several slots have the same method.
    pub label: Option<String>,
}

/// How a slot's master key is obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnlockMethod {
    /// A program that wraps and unwraps 32 bytes.
    Command,
    /// A file that holds the key.
    KeyFile,
    /// Words that a person knows.
    Passphrase,
    /// A file in `$CREDENTIALS_DIRECTORY`.
    SystemdCredential,
}

impl fmt::Display for UnlockMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Command => "command",
            Self::KeyFile => "key-file",
            Self::Passphrase => "passphrase",
            Self::SystemdCredential => "systemd-credential",
        })
    }
}

/// `[audit]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// When a record reaches the disk.
    pub sync: Sync,
    /// A signed checkpoint at least this often, while there are records.
    pub checkpoint: Period,
    /// A signed checkpoint at least after so many records.
    pub checkpoint_records: u64,
}

impl Default for Audit {
    fn default() -> Self {
        Self { sync: Sync::Batch, checkpoint: Period::secs(300), checkpoint_records: 10_000 }
    }
}

/// When a record reaches the disk; in order of rising durability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    /// When the system writes it.
    Os,
    /// Within some milliseconds after the answer.
    Batch,
    /// Before the bytes leave.
    Each,
}

/// `[mount]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mount {
    /// The mount point, when not the mode's own.
    pub path: Option<PathBuf>,
    /// Threads that serve requests (1 to 64); more than four were slower.
    pub threads: usize,
}

impl Default for Mount {
    fn default() -> Self {
        Self { path: None, threads: 4 }
    }
}

/// `[rotation]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// A pending version is promoted after this time even if executions still hold the old one.
    pub drain: Period,
    /// How long `rollback` can bring the previous version back.
    pub keep_previous: Period,
    /// How long one step of a rotation chain may take.
    pub step_timeout: Period,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            drain: Period::secs(24 * 3600),
            keep_previous: Period::secs(7 * 86_400),
            step_timeout: Period::secs(300),
        }
    }
}

/// `[redaction]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redaction {
    /// How long retired and revoked versions are kept to be found, before they are destroyed.
    pub keep_retired: Period,
    /// Ids of rules for known formats that are switched off.
    pub off: Vec<String>,
    /// Tokens that may be shown though a rule finds them, as `strongroom allow` prints them; values of
    /// the vault never.
    pub allow: Vec<String>,
    /// Rules of one's own.
    #[serde(rename = "rule")]
    pub rules: Vec<RedactionRule>,
}

impl Default for Redaction {
    fn default() -> Self {
        Self {
            keep_retired: Period::secs(90 * 86_400),
            off: Vec::new(),
            allow: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// `[[redaction.rule]]`: a format of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedactionRule {
    /// What stands in the marker.
    pub id: String,
    /// Fixed text and classes with counts, like `acme_[A-Za-z0-9]{32}`.
    pub pattern: String,
}

/// `[events]`: sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// The store's directory, when not the mode's own.
    pub dir: Option<PathBuf>,
    /// The user that owns stored files; none: the daemon's.
    pub owner: Option<String>,
    /// The group of stored files; none: the daemon's.
    pub group: Option<String>,
    /// Permission bits of stored files, in octal, like `"0640"`.
    pub mode: String,
    /// Stored files of ended executions are removed after this time; none: never.
    pub keep: Option<Period>,
    /// The longest event file.
    pub max_file: u64,
    /// The most that the store may hold.
    pub max_total: u64,
    /// What is collected in memory of one file's writes elsewhere than at its end, before they are
    /// applied.
    pub max_held: u64,
    /// How long the store may take for a request, which then gets `EIO`.
    pub patience: Period,
    /// What is taken out of what agents write.
    pub redact: EventsLevel,
}

/// How much is looked for in event files; they are never written as they are. In order of rising
/// care.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventsLevel {
    /// Values alone.
    Values,
    /// Values and known formats.
    Formats,
    /// Values, known formats, and what looks random.
    #[default]
    All,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            dir: None,
            owner: None,
            group: None,
            mode: "0600".to_owned(),
            keep: None,
            max_file: 1 << 30,
            max_total: 16 << 30,
            max_held: 16 << 20,
            patience: Period::secs(20),
            redact: EventsLevel::All,
        }
    }
}

/// `[operator]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Operator {
    /// Verbs that reveal, store, grant or revoke want the passphrase again, from the session that
    /// asks, when the last time is longer ago than this.
    pub confirm: Option<Period>,
}

/// What a role allows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Read records, `access`, `explain`, `doctor`; never values.
    Audit,
    /// Start executions and agents.
    Launch,
    /// Change secrets, groups, projects, chains and keys.
    Operate,
    /// See a value in clear.
    Reveal,
    /// Revoke a version and end who has it.
    Revoke,
}

impl Permission {
    /// All, in the order of tables.
    pub const ALL: [Self; 5] =
        [Self::Launch, Self::Operate, Self::Reveal, Self::Revoke, Self::Audit];

    /// The word used in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Launch => "launch",
            Self::Operate => "operate",
            Self::Reveal => "reveal",
            Self::Revoke => "revoke",
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// `[[role]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// A name for messages and records.
    pub name: String,
    /// Users that have the role.
    #[serde(default)]
    pub uids: Vec<u32>,
    /// Groups whose members have the role (the peer's effective group).
    #[serde(default)]
    pub gids: Vec<u32>,
    /// What the role allows.
    pub may: Vec<Permission>,
    /// Only these chains; none listed: all. A trailing `*` stands for any rest.
    #[serde(default)]
    pub chains: Vec<String>,
    /// Only these environments; none listed: all. `-` stands for no environment.
    #[serde(default)]
    pub environments: Vec<String>,
}

/// `[[alert]]`: one of `command` and `webhook`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alert {
    /// A name for messages and records.
    pub name: String,
    /// Only these events; none listed: all alerts.
    #[serde(default)]
    pub on: Vec<String>,
    /// Program and arguments; gets JSON on stdin.
    #[serde(default)]
    pub command: Vec<String>,
    /// An address that gets the JSON by POST.
    #[serde(default)]
    pub webhook: Option<String>,
    /// How long one try may take.
    #[serde(default = "alert_timeout")]
    pub timeout: Period,
}

const fn alert_timeout() -> Period {
    Period::secs(10)
}

impl Config {
    /// Reads and checks the file that `paths` names; a missing file means all defaults.
    ///
    /// # Errors
    /// Every variant but [`Error::NoPlace`].
    pub fn load(paths: &Paths) -> Result<Self, Error> {
        let path = &paths.config_file;
        let failed = |source| Error::Read { path: path.clone(), source };
        let text = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(failed(e)),
            Ok(meta) if meta.len() > MAX_CONFIG_BYTES => {
                return Err(Error::Invalid {
                    path: path.clone(),
                    problem: format!("the file is longer than {MAX_CONFIG_BYTES} bytes"),
                    remedy: "a configuration is a page; is this the right file?".to_owned(),
                });
            }
            Ok(_) => std::fs::read_to_string(path).map_err(failed)?,
        };
        let config = Self::parse(&text, path)?;
        config.check(paths)?;
        Ok(config)
    }

    /// Parses the text of a file, which `path` names in errors.
    ///
    /// # Errors
    /// [`Error::UnknownKey`] and [`Error::Syntax`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        toml::from_str(text).map_err(|e| describe(&e, text, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(text, Path::new("/c/strongroom.toml"))
    }

    fn home() -> Paths {
        let from = Surroundings { strongroom_home: Some("/h".into()), ..Default::default() };
        Paths::of(&from).unwrap()
    }

    #[test]
    fn one_home_holds_everything() {
        let paths = home();
        assert_eq!(paths.socket, Path::new("/h/run/control.sock"));
        assert_eq!(paths.mount, Path::new("/h/mnt"));
        assert_eq!(paths.vault_file, Path::new("/h/vault.redb"));
        assert_eq!(paths.mode, Mode::System);
    }

    #[test]
    fn a_plain_user_gets_xdg_places_and_root_the_system_ones() {
        let user = Surroundings {
            uid: 1000,
            home: Some("/home/u".into()),
            xdg_runtime_dir: Some("/run/user/1000".into()),
            xdg_state_home: Some("relative/is/ignored".into()),
            ..Default::default()
        };
        let paths = Paths::of(&user).unwrap();
        assert_eq!(paths.mode, Mode::User);
        assert_eq!(paths.config_file, Path::new("/home/u/.config/strongroom/strongroom.toml"));
        assert_eq!(paths.vault_file, Path::new("/home/u/.local/state/strongroom/vault.redb"));
        assert_eq!(paths.socket, Path::new("/run/user/1000/strongroom/control.sock"));
        assert_eq!(paths.mount, Path::new("/run/user/1000/secrets"));
        let root = Paths::of(&Surroundings::default()).unwrap();
        assert_eq!(root.mount, Path::new("/run/secrets"));
        assert_eq!(root.config_file, Path::new("/etc/strongroom/strongroom.toml"));
    }

    #[test]
    fn a_user_without_a_runtime_directory_is_told_what_to_name() {
        let error = Paths::of(&Surroundings { uid: 7, ..Default::default() }).unwrap_err();
        assert!(error.to_string().contains("XDG_RUNTIME_DIR"));
        assert!(error.hint().contains("STRONGROOM_HOME"));
    }

    #[test]
    fn an_unknown_key_names_line_and_near_miss() {
        let error = parse("[audit]\nsnyc = \"each\"\n").unwrap_err();
        assert!(error.to_string().contains("line 2 column 1: unknown key `snyc`"), "{error}");
        assert_eq!(error.hint(), "did you mean `sync`?");
        let error = parse("\n[rotatoin]\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        assert_eq!(error.hint(), "did you mean `rotation`?");
    }

    #[test]
    fn an_error_never_quotes_a_value() {
        for text in [
            "[[alert]]\nname = 1\nwebhook = \"https://x/hunter2\"\n",
            "[mount]\nthreads = \"hunter2\"\n",
            "[audit]\nsync = \"hunter2\"\n",
            "[operator]\nconfirm = \"hunter2\"\n",
            "[unlock]\nlabel = \"hunter2\n",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_full_file_is_understood() {
        let config = parse(
            r#"
            environments = ["dev", "prod"]
            [unlock]
            method = "key-file"
            path = "key"
            [audit]
            sync = "each"
            checkpoint = "1m"
            [rotation]
            drain = "1d12h"
            [[role]]
            name = "ci"
            uids = [1000]
            may = ["launch", "audit"]
            environments = ["dev", "-"]
            [[alert]]
            name = "page"
            command = ["/bin/page"]
            "#,
        )
        .unwrap();
        config.check(&home()).unwrap();
        assert_eq!(config.rotation.drain, Period::secs(36 * 3600));
        assert_eq!(config.roles[0].may, [Permission::Launch, Permission::Audit]);
        assert_eq!(config.audit.sync, Sync::Each);
    }

    #[test]
    fn what_makes_no_sense_together_is_refused_with_a_remedy() {
        for (text, part) in [
            ("[mount]\nthreads = 0", "threads"),
            ("[mount]\npath = \"/h\"", "beneath the mount"),
            ("[unlock]\nmethod = \"key-file\"", "path"),
            ("[unlock]\npath = \"k\"", "no method"),
            ("environments = [\"PROD\"]", "environments"),
            ("[[role]]\nname = \"x\"\nmay = []", "neither"),
            ("[[role]]\nname = \"x\"\nuids = [1]\nmay = []\nenvironments = [\"qa\"]", "qa"),
            ("[[alert]]\nname = \"x\"", "one of"),
            ("[events]\nmode = \"rw\"", "octal"),
        ] {
            let error = parse(text).unwrap().check(&home()).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn periods_read_what_they_print_and_nothing_vague() {
        for (text, secs) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("7d", 604_800)] {
            assert_eq!(text.parse(), Ok(Period::secs(secs)));
        }
        for text in ["1w", "90m", "1500ms", "0s"] {
            let period: Period = text.parse().unwrap();
            assert_eq!(period.to_string().parse(), Ok(period));
        }
        for text in ["", "10", "m", "-1s", "1 h", "1y", "99999999999999999999s", "99999999999999w"]
        {
            assert_eq!(text.parse::<Period>(), Err(BadPeriod), "{text}");
        }
    }
}
