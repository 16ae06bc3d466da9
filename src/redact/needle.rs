//! What of a value is looked for: its parts, each in all its forms.
//!
//! Parts: the value without white space around it; the password of a URL; leaf strings of a JSON or
//! YAML value and values of a dotenv text; lines that look random of a value of several.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use super::lens;
use super::strength::{self, Weakness};
use super::variant::{self, FORM_BYTES_MIN, Form};

/// Shorter lines of a longer value are no needles.
const LINE_BYTES_MIN: usize = 16;

/// How one byte string is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// ASCII case does not matter.
    pub caseless: bool,
    /// That of digits behind a percent sign does not matter.
    pub percent: bool,
    /// Only between bytes that are no part of a word.
    pub boundary: bool,
    /// As the value itself is written.
    pub literal: bool,
}

/// Makes needles, one value after the other, in room that is used again.
#[derive(Default)]
pub(super) struct Maker {
    one: Zeroizing<Vec<u8>>,
    /// All of the value so far, one behind the other, and where each ends.
    all: Zeroizing<Vec<u8>>,
    ends: Vec<usize>,
}

/// Makes room; a vector that grows by itself leaves its old bytes behind.
pub(super) fn reserve(bytes: &mut Zeroizing<Vec<u8>>, more: usize) {
    let needed = bytes.len() + more;
    if bytes.capacity() < needed {
        let room = needed.max(2 * bytes.capacity()).max(1024);
        let mut grown = Zeroizing::new(Vec::with_capacity(room));
        grown.extend_from_slice(bytes);
        *bytes = grown;
    }
}

impl Maker {
    /// Gives all needles of `value`; none for one that is too short or stands in markers.
    pub(super) fn each(&mut self, value: &[u8], each: &mut dyn FnMut(&[u8], Shape)) {
        self.all.clear();
        self.ends.clear();
        let whole = value.trim_ascii();
        let boundary = match strength::weakness(whole) {
            Some(Weakness::TooShort | Weakness::InMarker) => return,
            Some(
                Weakness::CommonWord | Weakness::FewDigits | Weakness::Repeated | Weakness::Short,
            ) => true,
            None => false,
        };
        self.add(whole, false, boundary, each);
        for (part, line) in parts(whole) {
            if part.len() >= FORM_BYTES_MIN && strength::weakness(part).is_none() {
                self.add(part, line, false, each);
            }
        }
    }

    fn add(
        &mut self,
        bytes: &[u8],
        line: bool,
        boundary: bool,
        each: &mut dyn FnMut(&[u8], Shape),
    ) {
        self.put(Form::Plain, bytes, boundary, each);
        for form in variant::forms(bytes, line) {
            // An encoded weak value is no word any more.
            self.put(form, bytes, false, each);
        }
    }

    fn put(
        &mut self,
        form: Form,
        bytes: &[u8],
        boundary: bool,
        each: &mut dyn FnMut(&[u8], Shape),
    ) {
        self.one.clear();
        reserve(&mut self.one, bytes.len() * variant::GROWTH_MAX + 64);
        variant::encode(form, bytes, &mut self.one);
        let literal =
            matches!(form, Form::Plain | Form::LinesCrLf | Form::LinesJoined | Form::LinesSpaced);
        let mut start = 0;
        let is_known = self.ends.iter().any(|end| {
            let known = &self.all[start..*end];
            start = *end;
            known == self.one.as_slice()
        });
        if (literal || self.one.len() >= FORM_BYTES_MIN) && !is_known {
            reserve(&mut self.all, self.one.len());
            self.all.extend_from_slice(&self.one);
            self.ends.push(self.all.len());
            let (caseless, percent) = (form.is_caseless(), form.is_percent());
            each(&self.one, Shape { caseless, percent, boundary, literal });
        }
    }
}

/// A value of several lines as a lens shows it; nothing for others.
pub(super) fn folded(value: &[u8], out: &mut Zeroizing<Vec<u8>>) {
    out.clear();
    let whole = value.trim_ascii();
    if strength::weakness(whole).is_none() {
        lens::fold(whole, out);
    }
    if out.len() < FORM_BYTES_MIN {
        out.clear();
    }
}

/// Bytes of a value beyond its first line that say something of it.
pub(super) const CUT_BYTES_MIN: usize = 8;

/// A value of several lines without carriage returns, for [`super::prefixed`]; nothing for others.
pub(super) fn of_lines(value: &[u8], out: &mut Zeroizing<Vec<u8>>) {
    let whole = value.trim_ascii();
    let first = whole.iter().position(|b| *b == b'\n').unwrap_or(0);
    out.clear();
    if first >= FORM_BYTES_MIN && strength::weakness(whole).is_none() {
        reserve(out, whole.len());
        for (number, line) in whole.split(|b| *b == b'\n').enumerate() {
            if number > 0 {
                out.push(b'\n');
            }
            out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        }
    }
}

/// Parts of a value, and whether each is a mere line.
fn parts(value: &[u8]) -> Vec<(&[u8], bool)> {
    let mut parts = Vec::new();
    if let Some(password) = url_password(value) {
        parts.push((password, false));
    }
    if let Ok(text) = std::str::from_utf8(value) {
        if matches!(value.first(), Some(b'{' | b'[')) {
            leaves(text, &mut parts);
        }
        if value.contains(&b'\n') {
            scalars(text, &mut parts);
            for line in text.lines() {
                let line = line.trim();
                if let Some((key, value)) = line.split_once('=')
                    && !key.is_empty()
                    && key
                        .bytes()
                        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
                {
                    parts.push((value.trim_matches(['"', '\'']).as_bytes(), false));
                } else if line.len() >= LINE_BYTES_MIN
                    && !line.starts_with("-----")
                    && strength::random(line.as_bytes())
                {
                    parts.push((line.as_bytes(), true));
                }
            }
        }
    }
    parts
}

/// The password in `scheme://user:PASSWORD@host` (RFC 3986, 3.2.1).
pub(super) fn url_password(value: &[u8]) -> Option<&[u8]> {
    let at = value.windows(3).position(|w| w == b"://")?;
    if at == 0
        || at > 32
        || !value[..at].iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b))
    {
        return None;
    }
    let rest = &value[at + 3..];
    let end = rest.iter().position(|b| b"/?#".contains(b)).unwrap_or(rest.len());
    let info = &rest[..rest[..end].iter().rposition(|b| *b == b'@')?];
    let colon = info.iter().position(|b| *b == b':')?;
    Some(&info[colon + 1..]).filter(|p| !p.is_empty())
}

/// Strings of JSON that have no escapes: those stand in the value as they are.
fn leaves<'a>(text: &'a str, parts: &mut Vec<(&'a [u8], bool)>) {
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_err() {
        return;
    }
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(open) = bytes[at..].iter().position(|b| *b == b'"').map(|p| p + at) {
        let mut end = open + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let Some(inside) = bytes.get(open + 1..end) else { return };
        at = (end + 1).min(bytes.len());
        let is_key = bytes[at..].trim_ascii_start().first() == Some(&b':');
        if !is_key && !inside.contains(&b'\\') {
            parts.push((inside, false));
        }
    }
}

/// Plain and quoted scalars of YAML (YAML 1.2.2, 7.3) in block mappings and sequences, of a text in
/// which every line is one of those or in a block scalar; nothing for any other text. A scalar with
/// escapes does not stand in the value as it is.
fn scalars<'a>(text: &'a str, parts: &mut Vec<(&'a [u8], bool)>) {
    let mut found = Vec::new();
    // The indent of the key whose block scalar goes on.
    let mut block = None;
    for line in text.lines() {
        let rest = line.trim_start_matches(' ');
        let indent = line.len() - rest.len();
        let rest = rest.trim_end();
        if rest.is_empty() || block.is_some_and(|key| indent > key) {
            continue;
        }
        block = None;
        if rest.starts_with('#') || matches!(rest, "---" | "..." | "-") {
            continue;
        }
        let mut item = rest;
        while let Some(inner) = item.strip_prefix("- ") {
            item = inner.trim_start();
        }
        let value = match (after_key(item), item.len() < rest.len()) {
            (Some(value), _) => value.trim_start(),
            (None, true) => item,
            // A text of another kind.
            (None, false) => return,
        };
        let quoted = |mark: char| {
            let inside = value.strip_prefix(mark)?.split(mark).next()?;
            value[inside.len() + 1..].starts_with(mark).then_some(inside)
        };
        let scalar = match value.chars().next() {
            Some('|' | '>') => {
                block = Some(indent);
                continue;
            }
            None | Some('!' | '#' | '&' | '*' | '[' | '{') => continue,
            Some('"') => quoted('"').filter(|inside| !inside.contains('\\')),
            Some('\'') => quoted('\'').filter(|inside| !value.contains(&format!("{inside}\'\'"))),
            Some(_) => value.split(" #").next().map(str::trim_end),
        };
        found.extend(scalar.map(|scalar| (scalar.as_bytes(), false)));
    }
    parts.append(&mut found);
}

/// What follows the key that a line of YAML begins with.
fn after_key(line: &str) -> Option<&str> {
    let after = match line.chars().next()? {
        mark @ ('"' | '\'') => {
            let inside = line[1..].find(mark)?;
            &line[inside + 2..]
        }
        _ => line.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_-./".contains(c)),
    };
    let value = after.strip_prefix(':').filter(|_| after.len() < line.len())?;
    (value.is_empty() || value.starts_with(' ')).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needles(value: &[u8]) -> Vec<(Vec<u8>, Shape)> {
        let mut all = Vec::new();
        Maker::default().each(value, &mut |bytes, shape| all.push((bytes.to_vec(), shape)));
        all
    }

    fn literals(value: &[u8]) -> Vec<String> {
        let all = needles(value);
        let literal = all.iter().filter(|(_, shape)| shape.literal);
        literal.map(|(bytes, _)| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    #[test]
    fn parts_of_a_value_are_needles_of_their_own() {
        let url = b"postgres://app:Xq7-pass-word9@db.internal/prod\n";
        assert_eq!(literals(url)[1], "Xq7-pass-word9");
        assert_eq!(url_password(b"https://example.com/a:b@c"), None);
        let json = br#"{"type": "service", "key": "Zk8Wq2LmN5rT7yU0"}"#;
        assert!(literals(json).contains(&"Zk8Wq2LmN5rT7yU0".to_owned()));
        assert!(!literals(json).contains(&"service".to_owned()), "a common word");
        let pem =
            b"-----BEGIN X-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n}\n-----END X-----\n";
        let found = literals(pem);
        assert!(found.contains(&"b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ".to_owned()));
        assert!(found.iter().all(|n| n.len() >= LINE_BYTES_MIN && !n.starts_with("-----END")));
        assert!(needles(b"abcd").is_empty());
        assert!(needles(b"REDACTED").is_empty());
        assert!(needles(b"s3cr3").iter().all(|(_, shape)| shape.boundary || !shape.literal));
    }

    #[test]
    fn scalars_of_yaml_are_needles_and_lines_of_other_texts_are_not() {
        let yaml = b"# of a cluster\nuser: robot-of-ours\nitems:\n  - name: 'Zk8Wq2LmN5rT'\n    pass: \"k7Hq2ZpX9vLm\" # old\n\
            \x20   note: It's plain, Xq7 9!   # and no more\n    short: k7H\n  - bare-item-7Q4x\ncert: |\n  ordinary line: in a block\n\
            esc: \"a\\tb-k7Hq2ZpX\"\nlast.key: tail-Zk8W-2LmN\n";
        let found = literals(yaml);
        for leaf in [
            "Zk8Wq2LmN5rT",
            "k7Hq2ZpX9vLm",
            "It's plain, Xq7 9!",
            "bare-item-7Q4x",
            "tail-Zk8W-2LmN",
        ] {
            assert!(found.contains(&leaf.to_owned()), "{leaf}: {found:?}");
        }
        for other in ["ordinary line: in a block", "in a block", "a\\tb-k7Hq2ZpX", "k7H"] {
            assert!(!found.contains(&other.to_owned()), "{other}: {found:?}");
        }
        for text in [
            "Dear all,\nsubject: the-long-word-7Q\nbye",
            "Proc-Type: 4,ENCRYPTED\n\nMIIEow",
            "a=b\nkey: the-long-word-7Q",
        ] {
            let found = literals(text.as_bytes());
            let is_leaf = |n: &String| n == "the-long-word-7Q" || n == "4,ENCRYPTED";
            assert!(!found.iter().any(is_leaf), "{found:?}");
        }
    }

    #[test]
    fn an_ordinary_token_has_about_a_dozen_needles() {
        let count = needles(b"k7Hq2ZpX9vLm4TnB8sRd3WfY6cJg1A").len();
        assert!((6..=16).contains(&count), "{count}");
    }
}
