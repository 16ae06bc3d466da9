//! Entries of the allow list on the wire.
#![forbid(unsafe_code)]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Value};

/// `allow`: a token that may be shown.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// The token, exactly as it is found.
    pub token: Value,
}

impl Request for Allow {}

/// What stands for a token.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AllowMade {
    /// For `[redaction] allow` of the configuration.
    pub entry: String,
    /// The rule that finds the token where it stands alone or as the value of a name like `api_key`;
    /// none: it is found elsewhere, or not as a whole.
    #[serde(default)]
    pub rule: Option<String>,
}
