//! The ways in which one value may be written: its needle forms.
//!
//! Invariant: [`encode`] is a function of form and bytes alone, so that an index stores the value
//! may make a form again. Danger: a value that leaves in base64, in a
//! JSON string or as a shell word is as public as the value. See RFC 4648, RFC 8259, RFC 3986,
//! POSIX shell 2.2. Base64 is cut to the characters that no neighbour can change.
#![forbid(unsafe_code)]

/// Values above this size are looked for in few forms: each form is as large again.
const LARGE_BYTES: usize = 16 << 10;
/// No form has more than so many bytes for one of the value.
pub(super) const GROWTH_MAX: usize = 8;
/// A form shorter than this is no needle.
pub(super) const FORM_BYTES_MIN: usize = 8;

/// One way to write bytes. The order has no meaning; the numbers live in memory only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Form {
    Plain,
    /// Lines joined by nothing, by a space, and ended as in Windows.
    LinesJoined,
    LinesSpaced,
    LinesCrLf,
    Base32,
    Base64At0,
    Base64At1,
    Base64At2,
    Base64UrlAt0,
    Base64UrlAt1,
    Base64UrlAt2,
    CsvQuoted,
    GoQuoted,
    Hex,
    HexColon,
    HexEscaped,
    Json,
    JsonAscii,
    JsonAsciiUpper,
    JsonHtml,
    JsonHtmlUpper,
    JsonSlash,
    JsonSlashAscii,
    JsonTwice,
    PercentComponent,
    PercentWww,
    PercentReserved,
    PercentTwice,
    PercentUnreserved,
    PythonBytes,
    PythonRepr,
    QuotedPrintable,
    ShellAnsi,
    ShellBackslash,
    ShellDouble,
    ShellSingle,
    ShellSingleQuoted,
    SqlDoubled,
    Utf16,
    Utf16Be,
    Utf16Base64At0,
    Utf16Base64At1,
    Utf16Base64At2,
    XmlApos,
    XmlHex,
    XmlNumeric,
    XmlQuot,
    XmlText,
}

/// Every form but `Plain`; those of the first part also for values without specials.
const TOKEN_FORMS: &[Form] = &[
    Form::Base64At0,
    Form::Base64At1,
    Form::Base64At2,
    Form::Base64UrlAt0,
    Form::Base64UrlAt1,
    Form::Base64UrlAt2,
    Form::Hex,
    Form::HexColon,
    Form::HexEscaped,
    Form::Base32,
    Form::Utf16,
    Form::Utf16Be,
    Form::Utf16Base64At0,
    Form::Utf16Base64At1,
    Form::Utf16Base64At2,
];
const SPECIAL_FORMS: &[Form] = &[
    Form::Json,
    Form::JsonAscii,
    Form::JsonAsciiUpper,
    Form::JsonHtml,
    Form::JsonHtmlUpper,
    Form::JsonSlash,
    Form::JsonSlashAscii,
    Form::JsonTwice,
    Form::PercentUnreserved,
    Form::PercentComponent,
    Form::PercentReserved,
    Form::PercentWww,
    Form::PercentTwice,
    Form::ShellSingle,
    Form::ShellSingleQuoted,
    Form::ShellDouble,
    Form::ShellAnsi,
    Form::ShellBackslash,
    Form::SqlDoubled,
    Form::CsvQuoted,
    Form::PythonRepr,
    Form::PythonBytes,
    Form::GoQuoted,
    Form::QuotedPrintable,
    Form::XmlText,
    Form::XmlQuot,
    Form::XmlApos,
    Form::XmlNumeric,
    Form::XmlHex,
];
const MULTI_LINE_FORMS: &[Form] = &[Form::LinesCrLf, Form::LinesJoined, Form::LinesSpaced];
const LARGE_FORMS: &[Form] =
    &[Form::Base64At0, Form::Base64At1, Form::Base64At2, Form::Hex, Form::Json];
const LINE_FORMS: &[Form] = &[Form::Json];

/// The forms that may differ from the plain one, for a whole value or for one line of it.
pub(super) fn forms(bytes: &[u8], line: bool) -> impl Iterator<Item = Form> + use<> {
    let safe = bytes.iter().all(|b| unreserved(*b));
    let (token, special): (&[Form], &[Form]) = match (line, bytes.len() > LARGE_BYTES) {
        (true, _) => (&[], if safe { &[] } else { LINE_FORMS }),
        (false, true) => (&[], LARGE_FORMS),
        (false, false) => (TOKEN_FORMS, if safe { &[] } else { SPECIAL_FORMS }),
    };
    let several = bytes.contains(&b'\n') && !line;
    let lines: &[Form] = if several { MULTI_LINE_FORMS } else { &[] };
    token.iter().chain(special).chain(lines).copied()
}

impl Form {
    /// Whether ASCII case does not matter.
    pub(super) fn is_caseless(self) -> bool {
        matches!(self, Self::Base32 | Self::Hex | Self::HexColon | Self::HexEscaped)
    }

    /// Whether the case of digits behind a percent sign does not matter.
    pub(super) fn is_percent(self) -> bool {
        matches!(
            self,
            Self::PercentComponent
                | Self::PercentReserved
                | Self::PercentTwice
                | Self::PercentUnreserved
                | Self::PercentWww
        )
    }
}

/// Whether percent-encoded text begins as a needle does, whatever the case of the digits; also of
/// those that were encoded again (`%252f`).
pub(super) fn same_percent(needle: &[u8], text: &[u8]) -> bool {
    let (mut digits, mut is_again) = (0, true);
    needle.iter().zip(text).all(|(one, two)| {
        if *one == b'%' {
            (digits, is_again) = (2, true);
            return one == two;
        }
        if digits == 0 {
            return one == two;
        }
        digits -= 1;
        is_again &= *one == [b'5', b'2'][digits];
        if digits == 0 && is_again {
            digits = 2;
        }
        one.eq_ignore_ascii_case(two)
    })
}

/// Appends `bytes` as written in `form`. Nothing for a form that the bytes do not have.
pub(super) fn encode(form: Form, bytes: &[u8], out: &mut Vec<u8>) {
    match form {
        Form::Plain => out.extend_from_slice(bytes),
        Form::LinesCrLf => lines(bytes, b"\r\n", out),
        Form::LinesJoined => lines(bytes, b"", out),
        Form::LinesSpaced => lines(bytes, b" ", out),
        Form::Base32 => base32(bytes, out),
        Form::Base64At0 => base64(bytes, 0, STANDARD, out),
        Form::Base64At1 => base64(bytes, 1, STANDARD, out),
        Form::Base64At2 => base64(bytes, 2, STANDARD, out),
        Form::Base64UrlAt0 => base64(bytes, 0, URL, out),
        Form::Base64UrlAt1 => base64(bytes, 1, URL, out),
        Form::Base64UrlAt2 => base64(bytes, 2, URL, out),
        Form::CsvQuoted => doubled(bytes, b'"', out),
        Form::GoQuoted => quoted(bytes, b'"', Unprintable::Byte, out),
        Form::Hex => bytes.iter().for_each(|b| hex(*b, LOWER, out)),
        Form::HexColon => {
            for (at, b) in bytes.iter().enumerate() {
                if at > 0 {
                    out.push(b':');
                }
                hex(*b, LOWER, out);
            }
        }
        Form::HexEscaped => {
            for b in bytes {
                out.extend_from_slice(b"\\x");
                hex(*b, LOWER, out);
            }
        }
        Form::Json => json(bytes, &JsonStyle::default(), out),
        Form::JsonAscii => json(bytes, &JsonStyle { ascii: true, ..JsonStyle::default() }, out),
        Form::JsonAsciiUpper => {
            let style = JsonStyle { ascii: true, digits: UPPER, ..JsonStyle::default() };
            json(bytes, &style, out);
        }
        Form::JsonHtml => json(bytes, &JsonStyle { html: true, ..JsonStyle::default() }, out),
        Form::JsonHtmlUpper => {
            let style =
                JsonStyle { ascii: true, html: true, digits: UPPER, ..JsonStyle::default() };
            json(bytes, &style, out);
        }
        Form::JsonSlash => json(bytes, &JsonStyle { slash: true, ..JsonStyle::default() }, out),
        Form::JsonSlashAscii => {
            json(bytes, &JsonStyle { ascii: true, slash: true, ..JsonStyle::default() }, out);
        }
        Form::JsonTwice => {
            twice(bytes, out, |bytes, out| json(bytes, &JsonStyle::default(), out));
        }
        Form::PercentComponent => percent(bytes, component, out),
        Form::PercentWww => form_encoded(bytes, out),
        Form::PercentReserved => percent(bytes, reserved_kept, out),
        Form::PercentTwice => {
            twice(bytes, out, |bytes, out| percent(bytes, unreserved, out));
        }
        Form::PercentUnreserved => percent(bytes, unreserved, out),
        Form::PythonBytes => quoted(bytes, b'\'', Unprintable::ByteAscii, out),
        Form::PythonRepr => quoted(bytes, b'\'', Unprintable::Byte, out),
        Form::QuotedPrintable => quoted_printable(bytes, out),
        Form::ShellAnsi => quoted(bytes, b'\'', Unprintable::Octal, out),
        Form::ShellBackslash => {
            for b in bytes {
                if !(unreserved(*b) || *b >= 0x80 || b"/:=@%+,".contains(b)) {
                    out.push(b'\\');
                }
                out.push(*b);
            }
        }
        Form::ShellDouble => {
            for b in bytes {
                if b"\\\"$`".contains(b) {
                    out.push(b'\\');
                }
                out.push(*b);
            }
        }
        Form::ShellSingle => replaced(bytes, &[(b'\'', b"'\\''")], out),
        Form::ShellSingleQuoted => replaced(bytes, &[(b'\'', b"'\"'\"'")], out),
        Form::SqlDoubled => doubled(bytes, b'\'', out),
        Form::Utf16 => utf16(bytes, out),
        Form::Utf16Be => utf16_be(bytes, out),
        Form::Utf16Base64At0 => utf16_base64(bytes, 0, out),
        Form::Utf16Base64At1 => utf16_base64(bytes, 1, out),
        Form::Utf16Base64At2 => utf16_base64(bytes, 2, out),
        Form::XmlApos => xml(bytes, b"&quot;", b"&apos;", out),
        Form::XmlHex => xml(bytes, b"&quot;", b"&#x27;", out),
        Form::XmlNumeric => xml(bytes, b"&#34;", b"&#39;", out),
        Form::XmlQuot => xml(bytes, b"&quot;", b"&#39;", out),
        Form::XmlText => xml(bytes, b"\"", b"'", out),
    }
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const LOWER: &[u8; 16] = b"0123456789abcdef";
const UPPER: &[u8; 16] = b"0123456789ABCDEF";

/// The characters of the base64 of `lead` unknown bytes, `bytes`, and anything, that `bytes` alone
/// decides.
fn base64(bytes: &[u8], lead: usize, alphabet: &[u8; 64], out: &mut Vec<u8>) {
    let first = (lead * 8).div_ceil(6);
    let last = (lead + bytes.len()) * 8 / 6;
    let byte = |at: usize| -> u32 {
        at.checked_sub(lead).and_then(|at| bytes.get(at)).map_or(0, |b| u32::from(*b))
    };
    // Whole groups of three bytes make four characters.
    let mut group = first / 4;
    while group * 4 < last {
        let bits = byte(group * 3) << 16 | byte(group * 3 + 1) << 8 | byte(group * 3 + 2);
        for place in 0..4 {
            let at = group * 4 + place;
            if (first..last).contains(&at) {
                out.push(alphabet[(bits >> (18 - 6 * place) & 63) as usize]);
            }
        }
        group += 1;
    }
}

fn base32(bytes: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut count) = (0_u32, 0);
    for b in bytes {
        bits = bits << 8 | u32::from(*b);
        count += 8;
        while count >= 5 {
            count -= 5;
            out.push(BASE32[(bits >> count & 31) as usize]);
        }
        bits &= (1 << count) - 1;
    }
}

fn lines(bytes: &[u8], by: &[u8], out: &mut Vec<u8>) {
    for b in bytes {
        match b {
            b'\n' => out.extend_from_slice(by),
            b'\r' => {}
            b => out.push(*b),
        }
    }
}

fn hex(byte: u8, digits: &[u8; 16], out: &mut Vec<u8>) {
    out.push(digits[usize::from(byte >> 4)]);
    out.push(digits[usize::from(byte & 15)]);
}

fn unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-_.~".contains(&b)
}

fn component(b: u8) -> bool {
    unreserved(b) || b"!'()*".contains(&b)
}

fn reserved_kept(b: u8) -> bool {
    component(b) || b";/?:@&=+$,#".contains(&b)
}

fn percent(bytes: &[u8], keep: fn(u8) -> bool, out: &mut Vec<u8>) {
    for b in bytes {
        if keep(*b) {
            out.push(*b);
        } else {
            out.push(b'%');
            hex(*b, LOWER, out);
        }
    }
}

/// application/x-www-form-urlencoded (WHATWG URL, 5.2).
fn form_encoded(bytes: &[u8], out: &mut Vec<u8>) {
    for b in bytes {
        match b {
            b' ' => out.push(b'+'),
            b if b.is_ascii_alphanumeric() || b"-_.*".contains(b) => out.push(*b),
            b => {
                out.push(b'%');
                hex(*b, LOWER, out);
            }
        }
    }
}

/// Quoted-printable (RFC 2045, 6.7) without soft line breaks.
fn quoted_printable(bytes: &[u8], out: &mut Vec<u8>) {
    for b in bytes {
        match b {
            b'=' | 0..=8 | 11 | 12 | 14..=31 | 127.. => {
                out.push(b'=');
                hex(*b, UPPER, out);
            }
            b => out.push(*b),
        }
    }
}

struct JsonStyle {
    ascii: bool,
    digits: &'static [u8; 16],
    html: bool,
    slash: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self { ascii: false, digits: LOWER, html: false, slash: false }
    }
}

fn json(bytes: &[u8], style: &JsonStyle, out: &mut Vec<u8>) {
    let unicode = |unit: u16, out: &mut Vec<u8>| {
        out.extend_from_slice(b"\\u");
        unit.to_be_bytes().iter().for_each(|b| hex(*b, style.digits, out));
    };
    let one = |b: u8, out: &mut Vec<u8>| match b {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        8 => out.extend_from_slice(b"\\b"),
        12 => out.extend_from_slice(b"\\f"),
        0..0x20 => unicode(u16::from(b), out),
        b'/' if style.slash => out.extend_from_slice(b"\\/"),
        b'<' | b'>' | b'&' if style.html => unicode(u16::from(b), out),
        b => out.push(b),
    };
    match std::str::from_utf8(bytes) {
        Ok(text) if style.ascii => {
            for c in text.chars() {
                if c.is_ascii() {
                    one(c as u8, out);
                } else {
                    c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| unicode(*unit, out));
                }
            }
        }
        _ => bytes.iter().for_each(|b| one(*b, out)),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Unprintable {
    /// `\xNN` for control characters.
    Byte,
    /// `\xNN` for control characters and all that is not ASCII.
    ByteAscii,
    /// `\NNN` for control characters and all that is not ASCII.
    Octal,
}

/// Backslash escapes as in Python, Go and `$'..'`.
fn quoted(bytes: &[u8], quote: u8, unprintable: Unprintable, out: &mut Vec<u8>) {
    for b in bytes {
        match *b {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b if b == quote => out.extend_from_slice(&[b'\\', b]),
            b if b < 0x20 || b == 0x7f || (b >= 0x80 && unprintable != Unprintable::Byte) => {
                if unprintable == Unprintable::Octal {
                    out.extend([b'\\', b'0' + (b >> 6), b'0' + (b >> 3 & 7), b'0' + (b & 7)]);
                } else {
                    out.extend_from_slice(b"\\x");
                    hex(b, LOWER, out);
                }
            }
            b => out.push(b),
        }
    }
}

fn replaced(bytes: &[u8], by: &[(u8, &[u8])], out: &mut Vec<u8>) {
    for b in bytes {
        match by.iter().find(|(from, _)| from == b) {
            Some((_, to)) => out.extend_from_slice(to),
            None => out.push(*b),
        }
    }
}

fn doubled(bytes: &[u8], quote: u8, out: &mut Vec<u8>) {
    for b in bytes {
        if *b == quote {
            out.push(quote);
        }
        out.push(*b);
    }
}

fn xml(bytes: &[u8], double: &[u8], single: &[u8], out: &mut Vec<u8>) {
    let by: [(u8, &[u8]); 5] =
        [(b'&', b"&amp;"), (b'<', b"&lt;"), (b'>', b"&gt;"), (b'"', double), (b'\'', single)];
    replaced(bytes, &by, out);
}

fn twice(bytes: &[u8], out: &mut Vec<u8>, encode: impl Fn(&[u8], &mut Vec<u8>)) {
    let mut once = zeroize::Zeroizing::new(Vec::with_capacity(bytes.len() * 6));
    encode(bytes, &mut once);
    encode(&once, out);
}

/// UTF-16, little-endian. The last zero byte of ASCII text is left out: so the needle is also in
/// the big-endian form.
fn utf16(bytes: &[u8], out: &mut Vec<u8>) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let start = out.len();
    for unit in text.encode_utf16() {
        out.extend_from_slice(&unit.to_le_bytes());
    }
    if text.is_ascii() && out.len() > start {
        out.pop();
    }
}

/// UTF-16, big-endian, where it is not covered by [`utf16`].
fn utf16_be(bytes: &[u8], out: &mut Vec<u8>) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if !text.is_ascii() {
        for unit in text.encode_utf16() {
            out.extend_from_slice(&unit.to_be_bytes());
        }
    }
}

fn utf16_base64(bytes: &[u8], lead: usize, out: &mut Vec<u8>) {
    let mut wide = zeroize::Zeroizing::new(Vec::with_capacity(bytes.len() * 2));
    utf16(bytes, &mut wide);
    if !wide.is_empty() {
        base64(&wide, lead, STANDARD, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(form: Form, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        encode(form, bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn base64_forms_are_what_every_neighbour_leaves_unchanged() {
        use base64ct::{Base64, Encoding};
        let value = b"\x00\xffhunter2-\xfe\x3e!";
        for (lead, form) in [(0, Form::Base64At0), (1, Form::Base64At1), (2, Form::Base64At2)] {
            let needle = text(form, value);
            for before in [0_u8, 0x55, 0xff] {
                for after in [&b""[..], b"\n", b"\xff\xff"] {
                    let all = [&vec![before; lead][..], value, after].concat();
                    let encoded = Base64::encode_string(&all);
                    assert!(encoded.contains(&needle), "{encoded} {needle}");
                }
            }
            // Not a character shorter than it could be.
            assert_eq!(needle.len(), (lead + value.len()) * 8 / 6 - (lead * 8).div_ceil(6));
        }
    }

    #[test]
    fn each_form_writes_as_its_tool_does() {
        let value = "a/b+c\"d'e\\f\n<&> $é~*";
        for (form, expected) in [
            (Form::Json, r#"a/b+c\"d'e\\f\n<&> $é~*"#),
            (Form::JsonAscii, r#"a/b+c\"d'e\\f\n<&> $\u00e9~*"#),
            (Form::JsonHtml, r#"a/b+c\"d'e\\f\n\u003c\u0026\u003e $é~*"#),
            (Form::JsonSlash, r#"a\/b+c\"d'e\\f\n<&> $é~*"#),
            (Form::JsonTwice, r#"a/b+c\\\"d'e\\\\f\\n<&> $é~*"#),
            (Form::PercentUnreserved, "a%2fb%2bc%22d%27e%5cf%0a%3c%26%3e%20%24%c3%a9~%2a"),
            (Form::PercentComponent, "a%2fb%2bc%22d'e%5cf%0a%3c%26%3e%20%24%c3%a9~*"),
            (Form::PercentReserved, "a/b+c%22d'e%5cf%0a%3c&%3e%20$%c3%a9~*"),
            (Form::PercentWww, "a%2fb%2bc%22d%27e%5cf%0a%3c%26%3e+%24%c3%a9%7e*"),
            (Form::ShellSingle, "a/b+c\"d'\\''e\\f\n<&> $é~*"),
            (Form::ShellDouble, "a/b+c\\\"d'e\\\\f\n<&> \\$é~*"),
            (Form::ShellAnsi, r#"a/b+c"d\'e\\f\n<&> $\303\251~*"#),
            (Form::SqlDoubled, "a/b+c\"d''e\\f\n<&> $é~*"),
            (Form::PythonRepr, r#"a/b+c"d\'e\\f\n<&> $é~*"#),
            (Form::PythonBytes, r#"a/b+c"d\'e\\f\n<&> $\xc3\xa9~*"#),
            (Form::GoQuoted, r#"a/b+c\"d'e\\f\n<&> $é~*"#),
            (Form::QuotedPrintable, "a/b+c\"d'e\\f\n<&> $=C3=A9~*"),
            (Form::XmlText, "a/b+c\"d'e\\f\n&lt;&amp;&gt; $é~*"),
            (Form::XmlQuot, "a/b+c&quot;d&#39;e\\f\n&lt;&amp;&gt; $é~*"),
        ] {
            assert_eq!(text(form, value.as_bytes()), expected, "{form:?}");
        }
        assert_eq!(text(Form::QuotedPrintable, b"k=1\t\x7f\r\n"), "k=3D1\t=7F\r\n");
        assert_eq!(text(Form::Base32, b"foobar"), "mzxw6ytbo");
        assert_eq!(text(Form::HexColon, b"\x01\xab"), "01:ab");
        assert_eq!(text(Form::Utf16, b"ab"), "a\0b");
    }
}
