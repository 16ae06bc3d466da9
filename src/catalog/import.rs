//! Plans an import: what is taken, what counts as secret and what as plain, and what is in the way.
//!
//! Invariant: a plan writes nothing and shows no value. In doubt a value is a secret. Danger: a
//! secret that is taken for plain is never redacted.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::catalog::Catalog;
use crate::catalog::definition::looks_like_a_secret;
use crate::catalog::dotenv;
use crate::catalog::name::{BadName, EnvName, GroupName, SecretKey, SecretName};
use crate::catalog::scope::Scope;
use crate::secret::{MAX_VALUE_BYTES, SecretBytes};

/// One value of a source.
pub struct Entry {
    /// What the source calls it.
    pub key: String,
    /// Its bytes.
    pub value: SecretBytes,
    /// The group that the source puts it in.
    pub group: Option<String>,
    /// Whether the source says that it is no secret.
    pub plain: bool,
    /// Its line in the source, where that has lines.
    pub line: Option<usize>,
}

/// What is done with a value whose identity exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// The import is refused.
    Fail,
    /// The value is staged as its next version.
    Rotate,
    /// It stays as it is.
    Skip,
}

/// What is to be done with one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Refuse: it exists.
    Conflict,
    /// Make a secret.
    Create,
    /// Stage a version of one that exists.
    Rotate,
    /// Leave.
    Skip,
}

/// Whether a value is redacted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// Not redacted, and why.
    Plain(&'static str),
    /// Redacted, and why.
    Secret(&'static str),
}

/// One value that is taken.
pub struct Item {
    /// Its name.
    pub name: SecretName,
    /// Its group.
    pub group: Option<GroupName>,
    /// Its bytes.
    pub value: SecretBytes,
    /// Secret or plain.
    pub nature: Nature,
    /// What is to be done.
    pub action: Action,
    /// Its line in the source, which can go afterwards.
    pub line: Option<usize>,
}

/// Why a value is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No bytes.
    #[error("the value is empty")]
    Empty,
    /// More bytes than a value may have.
    #[error("the value is longer than {MAX_VALUE_BYTES} bytes")]
    Long,
    /// The key is no name.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A group has this name.
    #[error("a group has this name")]
    NameOfGroup,
    /// The name came before.
    #[error("the name is given twice")]
    Twice,
}

/// What an import would do.
pub struct Plan {
    /// What is taken.
    pub items: Vec<Item>,
    /// What is not: its place among the entries (from 0), its line, and why.
    pub refused: Vec<(usize, Option<usize>, Refusal)>,
}

impl Plan {
    /// Whether nothing is refused and nothing in the way.
    pub fn is_clean(&self) -> bool {
        self.refused.is_empty() && !self.items.iter().any(|i| matches!(i.action, Action::Conflict))
    }
}

/// A JSON source is not of a known shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No object of names and values.
    #[error("the JSON is no object of names and values")]
    Shape,
    /// No JSON.
    #[error("line {line}, column {column}: this is not valid JSON")]
    Syntax {
        /// Line from 1.
        line: usize,
        /// Column from 1.
        column: usize,
    },
}

/// The entries of a dotenv file.
///
/// # Errors
/// The first line that is no assignment.
pub fn from_dotenv(bytes: &[u8]) -> Result<Vec<Entry>, dotenv::Error> {
    let lines = dotenv::parse(bytes)?.into_iter();
    Ok(lines.map(|l| Entry { line: Some(l.line), ..entry(l.key, l.value) }).collect())
}

/// The entries of a directory: file name and content.
pub fn from_files(files: Vec<(String, SecretBytes)>) -> Vec<Entry> {
    files.into_iter().map(|(key, value)| entry(key, value)).collect()
}

/// The entries of a JSON text: our own shape (`secrets`, `secret_groups`, `plain`), the answer of
/// Vault KV version 2 (`data.data`), or one object of names and values.
///
/// # Errors
/// No JSON, or none of these shapes.
pub fn from_json(bytes: &[u8]) -> Result<Vec<Entry>, Error> {
    let tree: Tree = serde_json::from_slice(bytes)
        .map_err(|e| Error::Syntax { line: e.line(), column: e.column() })?;
    let Tree::Branch(mut root) = tree else { return Err(Error::Shape) };
    if let Some(Tree::Branch(mut data)) = root.remove("data") {
        return match data.remove("data") {
            Some(Tree::Branch(values)) => entries(values, None),
            _ => Err(Error::Shape),
        };
    }
    let ours = root.contains_key("secrets") || root.contains_key("secret_groups");
    if !ours {
        return entries(root, None);
    }
    let mut found = Vec::new();
    match root.remove("secrets") {
        Some(Tree::Branch(values)) => found.extend(entries(values, None)?),
        None => {}
        Some(_) => return Err(Error::Shape),
    }
    match root.remove("secret_groups") {
        Some(Tree::Branch(groups)) => {
            for (group, members) in groups {
                let Tree::Branch(members) = members else { return Err(Error::Shape) };
                found.extend(entries(members, Some(&group))?);
            }
        }
        None => {}
        Some(_) => return Err(Error::Shape),
    }
    if let Some(Tree::List(plain)) = root.remove("plain") {
        let mut names = HashSet::new();
        for name in &plain {
            let Tree::Leaf(name) = name else { return Err(Error::Shape) };
            names.insert(name.expose());
        }
        for entry in &mut found {
            entry.plain |= names.contains(entry.key.as_bytes());
        }
    }
    Ok(found)
}

/// What an import of these entries into one environment and scope would do.
pub fn plan(
    catalog: &Catalog,
    entries: Vec<Entry>,
    env: Option<&EnvName>,
    scope: &Scope,
    on_conflict: OnConflict,
) -> Plan {
    let mut plan = Plan { items: Vec::new(), refused: Vec::new() };
    let mut names = HashSet::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let line = entry.line;
        match item(catalog, entry, env, scope, on_conflict) {
            Ok(item) if !names.insert(item.name.clone()) => {
                plan.refused.push((at, line, Refusal::Twice));
            }
            Ok(item) => plan.items.push(item),
            Err(refusal) => plan.refused.push((at, line, refusal)),
        }
    }
    plan
}

fn item(
    catalog: &Catalog,
    entry: Entry,
    env: Option<&EnvName>,
    scope: &Scope,
    on_conflict: OnConflict,
) -> Result<Item, Refusal> {
    let name = entry.key.parse::<SecretName>()?;
    let group = entry.group.as_deref().map(str::parse::<GroupName>).transpose()?;
    if entry.value.is_empty() {
        return Err(Refusal::Empty);
    }
    if entry.value.len() > MAX_VALUE_BYTES {
        return Err(Refusal::Long);
    }
    let as_group = name.as_str().parse::<GroupName>();
    if as_group.is_ok_and(|group| !catalog.groups_named(&group).is_empty()) {
        return Err(Refusal::NameOfGroup);
    }
    let key = SecretKey { environment: env.cloned(), name: name.clone() };
    let action = match catalog.find(&key, Some(scope)) {
        Err(_) => Action::Create,
        Ok(_) => match on_conflict {
            OnConflict::Fail => Action::Conflict,
            OnConflict::Rotate => Action::Rotate,
            OnConflict::Skip => Action::Skip,
        },
    };
    let nature = nature(&name, &entry);
    Ok(Item { name, group, value: entry.value, nature, action, line: entry.line })
}

fn nature(name: &SecretName, entry: &Entry) -> Nature {
    // Names whose values are public by what they mean.
    const PLAIN: [&str; 14] = [
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "DEBUG",
        "ENVIRONMENT",
        "HOST",
        "LANG",
        "LOG_LEVEL",
        "NODE_ENV",
        "PORT",
        "PYTHONUNBUFFERED",
        "RAILS_ENV",
        "RUST_LOG",
        "STAGE",
        "TZ",
    ];
    if entry.plain {
        return Nature::Plain("the source says so");
    }
    match std::str::from_utf8(entry.value.expose()) {
        Ok(text) if looks_like_a_secret(text) => Nature::Secret("it has the form of a credential"),
        Ok("true" | "false") => Nature::Plain("it is true or false"),
        Ok(_) if PLAIN.contains(&name.as_str()) => Nature::Plain("its name is that of a setting"),
        _ => Nature::Secret("nothing says that it is plain"),
    }
}

fn entry(key: String, value: SecretBytes) -> Entry {
    Entry { key, value, group: None, plain: false, line: None }
}

fn entries(values: BTreeMap<String, Tree>, group: Option<&str>) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    for (key, tree) in values {
        let (value, plain) = match tree {
            Tree::Leaf(value) => (value, false),
            Tree::Branch(mut fields) => {
                let plain =
                    matches!(fields.remove("plain"), Some(Tree::Leaf(v)) if v.expose() == b"true");
                match fields.remove("value") {
                    Some(Tree::Leaf(value)) => (value, plain),
                    _ => return Err(Error::Shape),
                }
            }
            Tree::List(_) => return Err(Error::Shape),
        };
        found.push(Entry { plain, group: group.map(str::to_owned), ..entry(key, value) });
    }
    Ok(found)
}

/// JSON whose texts are secret bytes from the start.
enum Tree {
    Branch(BTreeMap<String, Tree>),
    Leaf(SecretBytes),
    List(Vec<Tree>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Tree;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                Ok(Tree::Leaf(SecretBytes::copy_of(text.as_bytes())))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
                Ok(Tree::Leaf(SecretBytes::from_vec(value.to_string().into_bytes())))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
                Ok(Tree::Leaf(SecretBytes::from_vec(value.to_string().into_bytes())))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Leaf(SecretBytes::from_vec(value.to_string().into_bytes())))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
                Ok(Tree::Leaf(SecretBytes::from_vec(value.to_string().into_bytes())))
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf(SecretBytes::copy_of(b"")))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    if fields.insert(key, value).is_some() {
                        return Err(serde::de::Error::custom("a key is given twice"));
                    }
                }
                Ok(Tree::Branch(fields))
            }
        }
        from.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(json: &str) -> Vec<(String, Option<String>, bool)> {
        from_json(json.as_bytes()).unwrap().into_iter().map(|e| (e.key, e.group, e.plain)).collect()
    }

    #[test]
    fn the_known_shapes_of_json_are_read() {
        let ours = r#"{"secrets":{"A":"1","R":"eu"},"secret_groups":{"g":{"B":"2"}},
            "rotation_policy":{},"plain":["R"]}"#;
        let expected = [
            ("A".into(), None, false),
            ("R".into(), None, true),
            ("B".into(), Some("g".into()), false),
        ];
        assert_eq!(keys(ours), expected);
        assert_eq!(keys(r#"{"data":{"data":{"A":"1"},"metadata":{}}}"#)[0].0, "A");
        assert_eq!(keys(r#"{"A":{"value":"1","plain":true}}"#), [("A".into(), None, true)]);
        for bad in ["[]", r#"{"A":["1"]}"#, r#"{"A":"1","A":"2"}"#, "{"] {
            assert!(from_json(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plan_tells_secret_from_plain_and_refuses_what_cannot_be_stored() {
        let source =
            b"A=v\nAWS_REGION=eu\nLOG_LEVEL=postgres://u:pw@h/x\nE=\n1X=v\nA=w\nDEBUG=true";
        let catalog = Catalog::new(Vec::new());
        let entries = from_dotenv(source).unwrap();
        let plan = plan(&catalog, entries, None, &Scope::Org, OnConflict::Fail);
        let natures: Vec<_> = plan
            .items
            .iter()
            .map(|i| (i.name.as_str(), matches!(i.nature, Nature::Secret(_))))
            .collect();
        let expected = [("A", true), ("AWS_REGION", false), ("LOG_LEVEL", true), ("DEBUG", false)];
        assert_eq!(natures, expected);
        let lines: Vec<_> = plan.refused.iter().map(|(_, line, _)| line.unwrap()).collect();
        assert_eq!(lines, [4, 5, 6]);
        assert!(!plan.is_clean());
    }
}
