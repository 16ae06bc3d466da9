//! Who may be admitted to a secret.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use super::name::{AgentName, BadName, ChainName, ProjectName};

/// From wide to narrow: the order has that meaning, the narrowest that admits wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every chain.
    Org,
    /// The chains on a project's list.
    Project(ProjectName),
    /// One chain.
    Chain(ChainName),
    /// One agent of one chain.
    Agent(ChainName, AgentName),
}

/// Why a text is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadScope {
    /// Not one of the four forms.
    #[error("a scope is org, project:NAME, chain:NAME or agent:CHAIN/AGENT")]
    Form,
    /// A name in it is none.
    #[error(transparent)]
    Name(#[from] BadName),
}

impl Scope {
    /// The chain that the scope is limited to, if it is to one.
    pub fn chain(&self) -> Option<&ChainName> {
        match self {
            Self::Agent(chain, _) | Self::Chain(chain) => Some(chain),
            Self::Org | Self::Project(_) => None,
        }
    }

    /// How narrow it is, 0 for the widest.
    pub fn narrowness(&self) -> u8 {
        match self {
            Self::Org => 0,
            Self::Project(_) => 1,
            Self::Chain(_) => 2,
            Self::Agent(..) => 3,
        }
    }
}

impl FromStr for Scope {
    type Err = BadScope;

    fn from_str(text: &str) -> Result<Self, BadScope> {
        if text == "org" {
            return Ok(Self::Org);
        }
        match text.split_once(':') {
            Some(("project", name)) => Ok(Self::Project(name.parse()?)),
            Some(("chain", name)) => Ok(Self::Chain(name.parse()?)),
            // The last slash: a chain's name may have some, an agent's has none.
            Some(("agent", name)) => {
                let (chain, agent) = name.rsplit_once('/').ok_or(BadScope::Form)?;
                Ok(Self::Agent(chain.parse()?, agent.parse()?))
            }
            _ => Err(BadScope::Form),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Org => f.write_str("org"),
            Self::Project(name) => write!(f, "project:{name}"),
            Self::Chain(name) => write!(f, "chain:{name}"),
            Self::Agent(chain, agent) => write!(f, "agent:{chain}/{agent}"),
        }
    }
}

impl serde::Serialize for Scope {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Scope {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_as_they_are_written() {
        for text in ["org", "project:billing", "chain:a/b", "agent:a/b/Deployer"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        let agent: Scope = "agent:a/b/Deployer".parse().unwrap();
        assert_eq!(agent.chain().unwrap().as_str(), "a/b");
        for bad in ["", "Org", "chain", "chain:", "agent:Deployer", "team:x", "chain:../x"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn narrower_is_greater() {
        let mut all: Vec<Scope> = ["agent:a/b", "org", "chain:a", "project:p"]
            .iter()
            .map(|s| s.parse().unwrap())
            .collect();
        all.sort_by_key(Scope::narrowness);
        let texts: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["org", "project:p", "chain:a", "agent:a/b"]);
    }
}
