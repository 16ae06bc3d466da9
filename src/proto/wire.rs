//! Between the types of the control interface and bytes, in both directions.
//!
//! Invariant: encoded bytes are allocated once at full size and wiped on drop, because they may
//! hold values; an error about received bytes says where and what was expected, never what was
//! there. Danger: a growing buffer leaves copies of values behind.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::{Code, Problem};
use crate::config::{expected, near_miss, unknown_field};

thread_local! {
    /// Whether this thread is inside [`to_bytes`].
    static OPEN: Cell<bool> = const { Cell::new(false) };
}

/// Whether values may be serialised now.
pub(super) fn is_open() -> bool {
    OPEN.get()
}

/// Closes the wire again however [`to_bytes`] is left.
struct Opened;

impl Opened {
    fn new() -> Self {
        OPEN.set(true);
        Self
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        OPEN.set(false);
    }
}

/// Encodes as JSON, values included: for the control socket alone.
///
/// # Errors
/// Where the type cannot be JSON (a map with keys that are no text).
pub fn to_bytes<T: Serialize + ?Sized>(message: &T) -> io::Result<Zeroizing<Vec<u8>>> {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let _opened = Opened::new();
    let mut count = Count(0);
    serde_json::to_writer(&mut count, message)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(count.0));
    serde_json::to_writer(&mut *bytes, message)?;
    Ok(bytes)
}

/// Decodes JSON.
///
/// # Errors
/// A [`Problem`] with line, column and, for an unknown key, the near miss.
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|e| {
        let place = format!("line {} column {}", e.line(), e.column());
        describe(&e.to_string(), &place)
    })
}

/// Decodes the query part of a path, `a=1&b=2`.
///
/// # Errors
/// As [`from_bytes`].
pub fn from_query<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    let uri = format!("/?{query}");
    let uri = uri.parse().map_err(|_| describe("not a query", "the query"))?;
    axum::extract::Query::<T>::try_from_uri(&uri).map(|q| q.0).map_err(|e| {
        let mut cause: &dyn std::error::Error = &e;
        while let Some(next) = cause.source() {
            cause = next;
        }
        describe(&cause.to_string(), "the query")
    })
}

/// serde's text without what it quotes of the input.
fn describe(message: &str, place: &str) -> Problem {
    // Some deserialisers prepend the field's name ("limit: invalid digit ..").
    let bare = message.find("unknown field `").map_or(message, |at| &message[at..]);
    if let Some((key, known)) = unknown_field(bare) {
        let hint = match near_miss(&key, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => "this request takes no keys".to_owned(),
            None => format!("known here: {}", known.join(", ")),
        };
        let key: String = key.chars().filter(|c| !c.is_control()).take(64).collect();
        return Problem::new(Code::BadRequest, format!("{place}: unknown key `{key}`"))
            .with_hint(hint);
    }
    let what = if let Some(field) = message.strip_prefix("missing field `") {
        format!("missing key `{}`", field.split('`').next().unwrap_or_default())
    } else if let Some(expected) = expected(message) {
        expected.split(" at line ").next().unwrap_or_default().to_owned()
    } else if message.starts_with("not a span of time") {
        message.split(" at line ").next().unwrap_or_default().to_owned()
    } else {
        "not what this request takes".to_owned()
    };
    Problem::new(Code::BadRequest, format!("{place}: {what}"))
        .with_hint("GET /v1/openapi.json describes every request")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ExecutionList, SecretSet};

    #[test]
    fn the_encoded_bytes_never_moved() {
        let bytes = to_bytes(&vec!["x".repeat(1000); 10]).unwrap();
        assert_eq!(bytes.capacity(), bytes.len());
    }

    #[test]
    fn an_unknown_key_names_its_near_miss_and_no_value() {
        let problem =
            from_bytes::<SecretSet>(br#"{"name": "A", "vlaue": "hunter2"}"#).err().unwrap();
        assert_eq!(problem.code, Code::BadRequest);
        assert!(problem.detail.contains("unknown key `vlaue`"), "{problem:?}");
        assert_eq!(problem.hint.as_deref(), Some("did you mean `value`?"));
        let problem = from_bytes::<SecretSet>(br#"{"name": 12, "value": "hunter2"}"#).err();
        let problem = problem.unwrap();
        assert!(problem.detail.contains("expected a string"), "{problem:?}");
        assert!(!format!("{problem:?}").contains("hunter2"));
    }

    #[test]
    fn a_query_is_decoded_like_a_body() {
        let list: ExecutionList = from_query("chain=a%2Fb&all=true").unwrap();
        assert_eq!(list.chain.as_deref(), Some("a/b"));
        assert!(list.all);
        let problem = from_query::<ExecutionList>("chian=a").unwrap_err();
        assert_eq!(problem.hint.as_deref(), Some("did you mean `chain`?"));
    }
}
