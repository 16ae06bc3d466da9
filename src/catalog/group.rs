//! Sets of secrets that are referenced and rotated together, and projects.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::name::{BadName, ChainName, EnvName, GroupName, ProjectName};
use super::scope::Scope;

/// A group's name with its environment, as `prod/aws-deploy`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// The environment, if it has one.
    pub environment: Option<EnvName>,
    /// The name.
    pub name: GroupName,
}

impl FromStr for GroupKey {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Ok(match text.split_once('/') {
            None => Self { environment: None, name: text.parse()? },
            Some((environment, name)) => {
                Self { environment: Some(environment.parse()?), name: name.parse()? }
            }
        })
    }
}

impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(environment) = &self.environment {
            write!(f, "{environment}/")?;
        }
        write!(f, "{}", self.name)
    }
}

impl Serialize for GroupKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GroupKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A group. Its members are the secrets of its environment and scope that name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The vault's record of this, in hex.
    pub id: String,
    /// Name and environment.
    pub key: GroupKey,
    /// Who may be admitted.
    pub scope: Scope,
    /// For people.
    pub description: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
}

/// A project: the chains that its secrets admit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// The vault's record of this, in hex.
    pub id: String,
    /// Its name.
    pub name: ProjectName,
    /// The chains that it admits.
    pub chains_allowed: Vec<ChainName>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
}
