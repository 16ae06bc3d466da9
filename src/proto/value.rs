//! A value on its way over the control socket: text where it is UTF-8, base64 where it is not.
//!
//! Invariant: bytes go from the body into [`SecretBytes`] without a stop, and back only inside
//! [`super::wire::to_bytes`]; anywhere else serialising a value is an error, so that `--json` or a
//! log can never print one by accident.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

use base64ct::{Base64, Encoding};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

/// Value bytes in a request or an answer: `"text"` or `{"base64": "..."}`.
pub struct Value(SecretBytes);

impl Value {
    /// Wraps bytes for sending.
    pub fn new(bytes: SecretBytes) -> Self {
        Self(bytes)
    }

    /// The bytes, for good.
    pub fn into_secret(self) -> SecretBytes {
        self.0
    }

    /// The bytes, still wrapped.
    pub fn secret(&self) -> &SecretBytes {
        &self.0
    }
}

impl From<SecretBytes> for Value {
    fn from(bytes: SecretBytes) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Value(..)")
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !super::wire::is_open() {
            return Err(S::Error::custom("a value is serialised for the control socket only"));
        }
        if let Ok(text) = std::str::from_utf8(self.0.expose()) {
            return serializer.serialize_str(text);
        }
        let text = Zeroizing::new(Base64::encode_string(self.0.expose()));
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("base64", text.as_str())?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or {\"base64\": \"..\"}")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value(SecretBytes::copy_of(text.as_bytes())))
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Value, E> {
        Ok(Value(SecretBytes::from_vec(text.into_bytes())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key != "base64" || found.is_some() {
                return Err(A::Error::custom("expected exactly the key `base64`"));
            }
            found = Some(map.next_value::<Encoded>()?.0);
        }
        found.map(Value).ok_or_else(|| A::Error::custom("expected the key `base64`"))
    }
}

/// The decoded content of a base64 string.
struct Encoded(SecretBytes);

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Encoded;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64 text")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Encoded, E> {
                decode(text.as_bytes())
                    .map(Encoded)
                    .ok_or_else(|| E::custom("expected base64 of the standard alphabet, padded"))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Decodes padded standard base64 (RFC 4648, section 4); none where it is not that.
fn decode(text: &[u8]) -> Option<SecretBytes> {
    let text = std::str::from_utf8(text).ok()?;
    let mut buffer = Zeroizing::new(vec![0_u8; text.len() / 4 * 3]);
    let decoded = Base64::decode(text, &mut buffer).ok()?;
    Some(SecretBytes::copy_of(decoded))
}

impl JsonSchema for Value {
    fn schema_name() -> Cow<'static, str> {
        "Value".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "value bytes: text where they are UTF-8, else base64",
            "oneOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"base64": {"type": "string", "contentEncoding": "base64"}},
                    "required": ["base64"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire;

    #[test]
    fn a_value_does_not_serialise_outside_the_wire() {
        let value = Value::new(SecretBytes::copy_of(b"hunter2"));
        assert!(serde_json::to_string(&value).is_err());
        assert!(serde_json::to_value(&value).is_err());
        assert_eq!(format!("{value:?}"), "Value(..)");
        assert_eq!(wire::to_bytes(&value).unwrap().as_slice(), br#""hunter2""#);
        assert!(serde_json::to_string(&value).is_err(), "the wire closes again");
    }

    #[test]
    fn any_bytes_survive_the_wire() {
        for bytes in [&b""[..], b"a\nb\"\\", b"\xff\xfe\x00", &[0_u8; 3000], "p\u{e4}ss".as_bytes()]
        {
            let sent = wire::to_bytes(&Value::new(SecretBytes::copy_of(bytes))).unwrap();
            let got: Value = wire::from_bytes(&sent).unwrap();
            assert_eq!(got.secret().expose(), bytes);
        }
    }

    #[test]
    fn bad_base64_is_refused_without_being_quoted() {
        for text in [
            r#"{"base64": "hunter2!"}"#,
            r#"{"base64": "aGk"}"#,
            r#"{"base46": "aGk="}"#,
            r#"{}"#,
            r#"{"base64": "aGk=", "base64": "aGk="}"#,
            r#"42"#,
            r#"["hunter2"]"#,
        ] {
            let problem = wire::from_bytes::<Value>(text.as_bytes()).unwrap_err();
            assert!(!format!("{problem:?}").contains("hunter2"), "{problem:?}");
        }
    }
}
