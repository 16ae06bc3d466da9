//! A chain's definition: the grant of secrets to agents, read from an orchestrator's own JSON.
//!
//! Only our keys are read; others are left alone, but near misses of ours are errors, and so is any
//! value that looks like a secret. Errors name line and column and never quote what they refuse.
//! Danger: a misspelt `secrets` that silently grants nothing, a key pasted where a name belongs.
#![forbid(unsafe_code)]

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::name::{AgentName, ChainName, EnvName, SecretKey, SecretName};

/// Larger definitions are refused.
const MAX_BYTES: usize = 1 << 20;
const CHAIN_KEYS: &[&str] = &["chain", "secrets", "environments", "deliver", "events", "agents"];
const AGENT_KEYS: &[&str] = &[
    "name",
    "secrets",
    "command",
    "deliver",
    "uids",
    "rotates",
    "may_launch",
    "isolate",
    "outputs",
    "on_finding",
];
const REFERENCE_KEYS: &[&str] = &["name", "group", "deliver", "as", "path_env"];
/// Keys that a person may mean by a reference's value.
const VALUE_KEYS: &[&str] = &["value", "secret", "password", "token", "key", "data"];

/// How a secret reaches the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deliver {
    /// As a variable with the value, and as a file.
    Env,
    /// As a file, and a variable `NAME_FILE` with its path.
    FileEnv,
    /// As a file.
    Files,
}

impl std::str::FromStr for Deliver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "env" => Ok(Self::Env),
            "file-env" => Ok(Self::FileEnv),
            "files" | "file" => Ok(Self::Files),
            _ => Err("deliver is files, env or file-env".into()),
        }
    }
}

/// What becomes of a secret in what an agent leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFinding {
    /// The agent has failed.
    Fail,
    /// A marker takes its place.
    Redact,
    /// It is told.
    #[default]
    Report,
}

impl OnFinding {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Redact => "redact",
            Self::Report => "report",
        }
    }
}

/// A secret or group that an agent wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// The name, with an environment where it was written with one.
    pub name: SecretKey,
    /// Written as `{"group": ...}`; else the catalog tells.
    pub group: bool,
    /// How it is to come, where it was said.
    pub deliver: Option<Deliver>,
    /// Its file's name, where it is another.
    #[serde(rename = "as")]
    pub as_name: Option<SecretName>,
    /// A variable that gets its file's path.
    pub path_env: Option<String>,
}

/// One agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name.
    pub name: AgentName,
    /// What it may read.
    pub secrets: Vec<Reference>,
    /// What `chain run` runs.
    pub command: Vec<String>,
    /// How its secrets come unless said otherwise.
    pub deliver: Option<Deliver>,
    /// Further uids that may read.
    pub uids: Vec<u32>,
    /// Secrets whose versions it sees side by side.
    pub rotates: Vec<SecretKey>,
    /// Agents that it may launch itself.
    pub may_launch: Vec<AgentName>,
    /// It is launched isolated, or not at all.
    #[serde(default)]
    pub isolate: bool,
    /// What it leaves: searched when it has ended, beneath its launcher's working directory.
    #[serde(default)]
    pub outputs: Vec<PathBuf>,
    /// What becomes of secrets in it.
    #[serde(default)]
    pub on_finding: OnFinding,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its name.
    pub chain: ChainName,
    /// What all its agents may read.
    pub secrets: Vec<Reference>,
    /// Environments that it runs in; none: any.
    pub environments: Vec<EnvName>,
    /// How secrets come unless said otherwise.
    pub deliver: Option<Deliver>,
    /// All executions of an environment write to one events folder.
    #[serde(default)]
    pub shared_events: bool,
    /// In order.
    pub agents: Vec<Agent>,
}

/// Why a text is no definition. Lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct Error {
    /// Where.
    pub line: usize,
    /// Where.
    pub column: usize,
    /// What is wrong there, without quoting values.
    pub what: String,
    /// The next step.
    pub hint: Option<String>,
}

struct Source<'a> {
    text: &'a str,
    strict: bool,
}

impl Source<'_> {
    /// An error at the first place where `needle` stands as a JSON string.
    fn at(&self, needle: &str, what: impl Into<String>) -> Error {
        let quoted = serde_json::to_string(needle).unwrap_or_default();
        let offset = self.text.find(&quoted).unwrap_or(0);
        let before = &self.text[..offset];
        Error {
            line: before.matches('\n').count() + 1,
            column: before.rsplit('\n').next().unwrap_or("").chars().count() + 1,
            what: what.into(),
            hint: None,
        }
    }

    fn check_keys(&self, map: &Map<String, Value>, known: &[&str]) -> Result<(), Error> {
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let near = crate::config::near_miss(key, known.iter().copied());
            if let Some(near) = near {
                let mut error = self.at(key, format!("unknown key \"{key}\""));
                error.hint = Some(format!("did you mean \"{near}\"?"));
                return Err(error);
            }
            if self.strict {
                let shown = crate::config::shown_key(key);
                let mut error = self.at(key, format!("unknown key \"{shown}\""));
                error.hint = Some(format!("known here: {}", known.join(", ")));
                return Err(error);
            }
        }
        Ok(())
    }

    fn array<'v>(&self, map: &'v Map<String, Value>, key: &str) -> Result<&'v [Value], Error> {
        match map.get(key) {
            None => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(self.at(key, format!("\"{key}\" must be a list"))),
        }
    }

    fn string<'v>(&self, key: &str, value: &'v Value) -> Result<&'v str, Error> {
        value.as_str().ok_or_else(|| self.at(key, format!("\"{key}\" must hold text")))
    }

    fn strings(&self, map: &Map<String, Value>, key: &str) -> Result<Vec<String>, Error> {
        self.array(map, key)?.iter().map(|item| self.string(key, item).map(str::to_owned)).collect()
    }

    fn parsed<T: std::str::FromStr>(&self, key: &str, text: &str) -> Result<T, Error>
    where
        T::Err: std::fmt::Display,
    {
        text.parse().map_err(|error: T::Err| self.at(key, format!("in \"{key}\": {error}")))
    }

    fn deliver(&self, map: &Map<String, Value>) -> Result<Option<Deliver>, Error> {
        match map.get("deliver") {
            None => Ok(None),
            Some(value) => {
                let text = self.string("deliver", value)?;
                Ok(Some(self.parsed("deliver", text)?))
            }
        }
    }

    fn shared_events(&self, map: &Map<String, Value>) -> Result<bool, Error> {
        match map.get("events") {
            None => Ok(false),
            Some(value) => match self.string("events", value)? {
                "chain" => Ok(true),
                "execution" => Ok(false),
                _ => Err(self.at("events", "\"events\" is \"execution\" or \"chain\"")),
            },
        }
    }

    fn outputs(&self, map: &Map<String, Value>) -> Result<Vec<PathBuf>, Error> {
        let plain = |path: &Path| {
            let fits = |c| matches!(c, Component::Normal(_) | Component::CurDir);
            !path.as_os_str().is_empty() && path.components().all(fits)
        };
        let all = self.strings(map, "outputs")?.into_iter().map(PathBuf::from);
        all.map(|path| {
            if plain(&path) {
                return Ok(path);
            }
            let mut error = self.at(
                "outputs",
                "\"outputs\" are paths beneath the directory that \
                the agent is started in",
            );
            error.hint = Some("write them like \"./out\"".to_owned());
            Err(error)
        })
        .collect()
    }

    fn on_finding(&self, map: &Map<String, Value>) -> Result<OnFinding, Error> {
        match map.get("on_finding") {
            None => Ok(OnFinding::default()),
            Some(value) => match self.string("on_finding", value)? {
                "fail" => Ok(OnFinding::Fail),
                "redact" => Ok(OnFinding::Redact),
                "report" => Ok(OnFinding::Report),
                _ => Err(self.at("on_finding", "\"on_finding\" is report, redact or fail")),
            },
        }
    }

    fn references(&self, map: &Map<String, Value>) -> Result<Vec<Reference>, Error> {
        self.array(map, "secrets")?.iter().map(|item| self.reference(item)).collect()
    }

    fn reference(&self, item: &Value) -> Result<Reference, Error> {
        match item {
            Value::String(text) => {
                let name = text.parse().map_err(|_| self.no_reference(text))?;
                Ok(Reference { name, group: false, deliver: None, as_name: None, path_env: None })
            }
            Value::Object(map) => {
                if let Some(key) = map.keys().find(|k| VALUE_KEYS.contains(&k.as_str())) {
                    let mut error =
                        self.at(key, format!("\"{key}\": a definition holds names, never values"));
                    error.hint =
                        Some("store the value with `strongroom secret set NAME`".to_owned());
                    return Err(error);
                }
                self.check_keys(map, REFERENCE_KEYS)?;
                let (key, group) = match (map.get("name"), map.get("group")) {
                    (Some(_), None) => ("name", false),
                    (None, Some(_)) => ("group", true),
                    _ => {
                        return Err(self.at("secrets", "a reference has a \"name\" or a \"group\""));
                    }
                };
                let text = self.string(key, &map[key])?;
                let name = text.parse().map_err(|_| self.no_reference(text))?;
                let as_name = match map.get("as") {
                    Some(value) => Some(self.parsed("as", self.string("as", value)?)?),
                    None => None,
                };
                let path_env = match map.get("path_env") {
                    Some(value) => {
                        let name = self.string("path_env", value)?;
                        if !super::loader::may_be_injected(name) {
                            return Err(self.at("path_env", "this variable may not be set"));
                        }
                        Some(name.to_owned())
                    }
                    None => None,
                };
                if group && (as_name.is_some() || path_env.is_some()) {
                    return Err(self.at(text, "a group's members keep their own names"));
                }
                Ok(Reference { name, group, deliver: self.deliver(map)?, as_name, path_env })
            }
            _ => Err(self.at("secrets", "a reference is a name or an object")),
        }
    }

    /// A text that is no name may be a value: it is not quoted.
    fn no_reference(&self, text: &str) -> Error {
        let mut error = self.at(text, "this is no secret's name");
        error.hint = Some(
            "references are names like OPENAI_API_KEY or prod/DATABASE_URL; if this is a value, \
             store it with `strongroom secret set NAME`"
                .to_owned(),
        );
        error
    }

    fn agent(&self, item: &Value) -> Result<Agent, Error> {
        let Value::Object(map) = item else {
            return Err(self.at("agents", "an agent is an object"));
        };
        self.check_keys(map, AGENT_KEYS)?;
        let name = map.get("name").ok_or_else(|| self.at("agents", "an agent has a \"name\""))?;
        let uids = self
            .array(map, "uids")?
            .iter()
            .map(|uid| {
                uid.as_u64()
                    .and_then(|uid| u32::try_from(uid).ok())
                    .ok_or_else(|| self.at("uids", "\"uids\" holds user ids"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Agent {
            name: self.parsed("name", self.string("name", name)?)?,
            secrets: self.references(map)?,
            command: self.strings(map, "command")?,
            deliver: self.deliver(map)?,
            uids,
            rotates: self
                .strings(map, "rotates")?
                .iter()
                .map(|text| self.parsed("rotates", text))
                .collect::<Result<_, _>>()?,
            outputs: self.outputs(map)?,
            on_finding: self.on_finding(map)?,
            isolate: match map.get("isolate") {
                None => false,
                Some(Value::Bool(isolate)) => *isolate,
                Some(_) => return Err(self.at("isolate", "\"isolate\" is true or false")),
            },
            may_launch: self
                .strings(map, "may_launch")?
                .iter()
                .map(|text| self.parsed("may_launch", text))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Refuses text anywhere that has the form of a provider's key.
    fn refuse_values(&self, value: &Value) -> Result<(), Error> {
        match value {
            Value::String(text) if looks_like_a_secret(text) => {
                let mut error = self.at(text, "this looks like a secret's value");
                error.hint = Some(
                    "store it with `strongroom secret set NAME` and refer to it by name".to_owned(),
                );
                Err(error)
            }
            Value::Array(items) => items.iter().try_for_each(|item| self.refuse_values(item)),
            Value::Object(map) => map.values().try_for_each(|item| self.refuse_values(item)),
            _ => Ok(()),
        }
    }
}

/// Known beginnings of providers' keys, with the least length of the whole.
const PREFIXES: &[(&str, usize)] = &[
    ("sk-", 20),
    ("sk_live_", 20),
    ("rk_live_", 20),
    ("AKIA", 20),
    ("ASIA", 20),
    ("ghp_", 30),
    ("gho_", 30),
    ("ghs_", 30),
    ("github_pat_", 30),
    ("glpat-", 20),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("AIza", 35),
    ("npm_", 30),
    ("hf_", 30),
    ("-----BEGIN ", 20),
    ("eyJ", 60),
];

pub(super) fn looks_like_a_secret(text: &str) -> bool {
    let url_password = text.split_once("://").is_some_and(|(_, rest)| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
        authority
            .rsplit_once('@')
            .and_then(|(user, _)| user.split_once(':'))
            .is_some_and(|(_, password)| !password.is_empty() && !password.starts_with('$'))
    });
    url_password
        || PREFIXES.iter().any(|(prefix, least)| {
            text.len() >= *least
                && text.starts_with(prefix)
                && (prefix.starts_with('-') || !text.contains(char::is_whitespace))
        })
}

impl Definition {
    /// Reads a definition.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(text: &str, strict: bool) -> Result<Self, Error> {
        let source = Source { text, strict };
        if text.len() > MAX_BYTES {
            return Err(Error {
                line: 1,
                column: 1,
                what: "a definition has at most 1 MiB".into(),
                hint: None,
            });
        }
        let value: Value = serde_json::from_str(text).map_err(|error| Error {
            line: error.line(),
            column: error.column(),
            // The parser's own words may quote the text.
            what: "this is not JSON".into(),
            hint: Some("check commas, quotes and brackets before this place".into()),
        })?;
        source.refuse_values(&value)?;
        let Value::Object(map) = value else {
            return Err(source.at("", "a definition is an object"));
        };
        source.check_keys(&map, CHAIN_KEYS)?;
        let chain = map.get("chain").ok_or_else(|| {
            let mut error = source.at("", "the key \"chain\" is missing");
            error.hint = Some("give the chain's name: {\"chain\": \"deploy\", ...}".into());
            error
        })?;
        let definition = Self {
            chain: source.parsed("chain", source.string("chain", chain)?)?,
            secrets: source.references(&map)?,
            environments: source
                .strings(&map, "environments")?
                .iter()
                .map(|text| source.parsed("environments", text))
                .collect::<Result<_, _>>()?,
            deliver: source.deliver(&map)?,
            shared_events: source.shared_events(&map)?,
            agents: source
                .array(&map, "agents")?
                .iter()
                .map(|agent| source.agent(agent))
                .collect::<Result<_, _>>()?,
        };
        if definition.agents.is_empty() {
            return Err(source.at("chain", "the chain has no agents"));
        }
        for (index, agent) in definition.agents.iter().enumerate() {
            if definition.agents[..index].iter().any(|other| other.name == agent.name) {
                return Err(source.at(agent.name.as_str(), "two agents have this name"));
            }
            if let Some(stranger) =
                agent.may_launch.iter().find(|name| definition.agent(name).is_none())
            {
                let what = format!("\"may_launch\": the chain has no agent {stranger}");
                let mut error = source.at(stranger.as_str(), what);
                let known: Vec<_> =
                    definition.agents.iter().map(|agent| agent.name.to_string()).collect();
                error.hint = Some(format!("its agents are {}", known.join(", ")));
                return Err(error);
            }
        }
        Ok(definition)
    }

    /// An agent by name.
    pub fn agent(&self, name: &AgentName) -> Option<&Agent> {
        self.agents.iter().find(|agent| agent.name == *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPLOY: &str = r#"{"chain": "deploy-pipeline", "owner": "team-a",
 "agents": [
   {"name": "CodeAnalyzer", "secrets": ["OPENAI_API_KEY"], "command": ["./analyze.sh"]},
   {"name": "Deployer", "secrets": ["OPENAI_API_KEY", {"group": "aws-deploy", "deliver": "env"},
     {"name": "SSH_DEPLOY_KEY", "as": "id_deploy", "path_env": "DEPLOY_KEY_FILE"}]}]}"#;

    #[test]
    fn a_definition_with_foreign_keys_is_read() {
        let parsed = Definition::parse(DEPLOY, false).unwrap();
        assert_eq!(parsed.agents.len(), 2);
        let deployer = &parsed.agents[1];
        assert!(deployer.secrets[1].group);
        assert_eq!(deployer.secrets[1].deliver, Some(Deliver::Env));
        assert_eq!(deployer.secrets[2].as_name.as_ref().unwrap().as_str(), "id_deploy");
        let strict = Definition::parse(DEPLOY, true).unwrap_err();
        assert!(strict.what.contains("owner"), "{strict}");
        let stored = serde_json::to_string(&parsed).unwrap();
        assert_eq!(serde_json::from_str::<Definition>(&stored).unwrap(), parsed);
    }

    #[test]
    fn a_near_miss_is_an_error_with_its_place() {
        let text = "{\"chain\": \"a\",\n \"agents\": [{\"name\": \"A\", \"secrts\": []}]}";
        let error = Definition::parse(text, false).unwrap_err();
        assert_eq!((error.line, error.column), (2, 27));
        assert_eq!(error.hint.as_deref(), Some("did you mean \"secrets\"?"));
    }

    #[test]
    fn a_value_is_refused_wherever_it_stands_and_not_quoted() {
        let key = "sk-proj-0123456789abcdefghij";
        for text in [
            format!(
                "{{\"chain\": \"a\", \"agents\": [{{\"name\": \"A\", \"secrets\": [\"{key}\"]}}]}}"
            ),
            format!("{{\"chain\": \"a\", \"note\": \"{key}\", \"agents\": [{{\"name\": \"A\"}}]}}"),
            "{\"chain\": \"a\", \"u\": \"postgres://u:hunter2@h/db\", \"agents\": []}".to_owned(),
            "{\"chain\": \"a\", \"agents\": [{\"name\": \"A\", \"secrets\": [{\"name\": \"K\", \
             \"value\": \"hunter2\"}]}]}"
                .to_owned(),
            "{\"chain\": \"a\", \"agents\": [{\"name\": \"A\", \"secrets\": [\"K=hunter2\"]}]}"
                .to_owned(),
        ] {
            let error = Definition::parse(&text, false).unwrap_err();
            let shown = format!("{error} {:?}", error.hint);
            assert!(!shown.contains(key) && !shown.contains("hunter2"), "{shown}");
            assert!(error.hint.is_some(), "{shown}");
        }
    }

    #[test]
    fn a_chain_without_agents_or_with_two_of_a_name_is_refused() {
        assert!(Definition::parse("{\"chain\": \"a\", \"agents\": []}", false).is_err());
        let twice = "{\"chain\": \"a\", \"agents\": [{\"name\": \"A\"}, {\"name\": \"A\"}]}";
        assert!(Definition::parse(twice, false).is_err());
        let stranger = r#"{"chain": "a", "agents": [{"name": "A", "may_launch": ["B"]}]}"#;
        assert!(Definition::parse(stranger, false).unwrap_err().what.contains("no agent B"));
        assert!(Definition::parse("[]", false).is_err());
        assert!(Definition::parse("{", false).is_err());
    }
}
