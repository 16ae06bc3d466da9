//! Whether what is held back is held for a value of others alone, and tells of it.
//!
//! Whoever writes the beginning of such a value again and again, with another next byte each time, can
//! tell the right one by the clock, if only often enough. What is noticed here is slowed down and told
//! of elsewhere. Invariant: beginnings that all of a kind have, words, and what the view's own values
//! and the rules for tokens hold back, are none. Danger: one that is missed is not counted: every form
//! that holds bytes back is looked at.
#![forbid(unsafe_code)]

use super::super::index::View;
use super::super::lens::Search;
use super::super::nested;
use super::super::part::Text;
use super::super::strength;
use super::stretch::Stretch;
use super::{Level, Redactor};

/// Where what `view` sees begins at the end of a text, undecided: no byte from there on may be shown.
pub(super) fn undecided(
    redactor: &mut Redactor,
    view: &View,
    text: Text<'_>,
    each: &mut dyn FnMut(usize, usize),
) -> usize {
    let len = text.bytes.len();
    let mut limit = len;
    let plain = view.plain();
    plain.find(text, &mut |hit| {
        if hit.end > len {
            limit = limit.min(hit.start);
        } else {
            each(hit.start, hit.end);
        }
    });
    limit = limit.min(plain.open_from(text.bytes, text.from));
    if !view.is_empty() {
        let lens = &mut redactor.scratch.lens;
        limit = limit.min(lens.wrapped(text, &plain, &mut |_| {}));
        if let Some(lines) = view.lines() {
            limit = limit.min(lens.lines(text, &lines, &mut |_| {}));
            limit = limit.min(view.find_prefixed(text, &mut |_| {}));
        }
        lens.forget();
    }
    limit
}

impl Redactor {
    /// Whether the bytes that are held back are held for a value alone that has no name here, and are so
    /// much of it that nobody writes them by accident.
    pub fn is_held_for_others(&mut self) -> bool {
        let from = self.taken() - self.held() as u64;
        // A token, or what looks random, is held back whoever has values.
        let is_own = self.detect_from <= from || self.open.is_some() || self.rest.is_some();
        if is_own || self.level == Level::Off || !strength::is_telling(self.held_bytes()) {
            return false;
        }
        let text = std::mem::take(&mut *self.text);
        let stretch = self.stretch(&text);
        let is_own = self.own_from(stretch) <= stretch.place(from);
        *self.text = text;
        !is_own
    }

    /// From where on bytes would be held back if nobody else had values.
    fn own_from(&mut self, stretch: Stretch<'_>) -> usize {
        let mut limit = stretch.place(self.detect_from);
        for token in self.waiting.iter().flatten() {
            limit = limit.min(stretch.place(token.start));
        }
        let own = self.view.named();
        let text = stretch.text(stretch.lead, false);
        let mut last = text.bytes.len();
        let begun = undecided(self, &own, text, &mut |start, end| {
            // A whole one may wait for the byte behind it.
            if end + 1 >= text.bytes.len() {
                last = last.min(start);
            }
        });
        limit = limit.min(begun).min(last);
        if self.level == Level::All {
            let search = own.plain();
            let look =
                nested::Look { search: &search, detector: own.detector(), made_of: own.made_of() };
            limit = limit.min(self.scratch.nested.find(text, look, &mut |_| {}));
        }
        if limit > stretch.lead && stretch.is_escaped(limit) { limit - 1 } else { limit }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base64ct::Encoding;

    use super::super::super::{Collect, Index, Others, Value};
    use super::*;

    const OWN: &[u8] = b"Own4Tg7Pq2Lm9Xv3Rt6Yb1Nc8";
    const OTHER: &[u8] = b"Zk8Wq2LmN5rT7yU0pX3cVb9sQ1dF4gH6";
    const KEY: &[u8] = b"sk-ant-api03-Hq7Zp2Kd9Wm4Xs6Tv1Bn8Rf3Lc5Jy0Gu";
    const LINES: &[u8] = b"vP3!tG6 %hJ9,wE2 (R5;\nY1u =o4?I8p )7a !s0 -_+";
    const SIGNS: &[u8] = b"Zk8!Wq2 %mN5,rT7 (U0;X3c =b9?Q1d )4g";
    const URL: &[u8] = b"postgres://app:Mx7Qv2Tz9Lk4Wd6Rj1Hb8@db.internal/prod";

    fn view() -> Arc<View> {
        let values = [OWN, OTHER, KEY, LINES, SIGNS, URL];
        let index = Index::build(values.iter().zip(1..).map(|(bytes, id)| Value { id, bytes }));
        let names = [(1, Arc::from("OWN"))].into();
        Arc::new(View::new(&Arc::new(index), names, Others::Unnamed))
    }

    fn held(view: Arc<View>, level: Level, text: &[u8]) -> usize {
        let mut redactor = Redactor::new(view, level);
        redactor.push(text, &mut Collect(Vec::new()));
        redactor.held()
    }

    fn is_noticed(level: Level, text: &[u8]) -> bool {
        let mut redactor = Redactor::new(view(), level);
        redactor.push(text, &mut Collect(Vec::new()));
        let before = (redactor.held(), redactor.save());
        let noticed = redactor.is_held_for_others();
        assert_eq!(before, (redactor.held(), redactor.save()), "it changes nothing");
        let mut next = Redactor::resume(view(), level, &before.1).unwrap();
        assert_eq!(next.is_held_for_others(), noticed, "the next worker thinks otherwise");
        noticed
    }

    fn base64(bytes: &[u8]) -> Vec<u8> {
        base64ct::Base64Unpadded::encode_string(bytes).into_bytes()
    }

    #[test]
    fn long_beginnings_of_foreign_values_are_noticed_in_every_form() {
        let utf16 = |text: &[u8]| text.iter().flat_map(|b| [*b, 0]).collect::<Vec<_>>();
        let hex =
            |text: &[u8]| text.iter().map(|b| format!("{b:02x}")).collect::<String>().into_bytes();
        let percent = |text: &[u8]| {
            let form = |b: &u8| match b.is_ascii_alphanumeric() {
                true => char::from(*b).to_string(),
                false => format!("%{b:02X}"),
            };
            text.iter().map(form).collect::<String>().into_bytes()
        };
        let lines = |text: &[u8]| {
            let text = base64(text);
            text.chunks(16).collect::<Vec<_>>().join(&b"\n"[..])
        };
        let mut noticed = 0;
        for level in [Level::All, Level::Formats, Level::Values] {
            for (what, text) in [
                ("plain", OTHER[..20].to_vec()),
                ("hex", hex(&OTHER[..16])),
                ("percent", percent(&SIGNS[..16])),
                ("utf-16", utf16(&OTHER[..16])),
                ("base64", base64(&OTHER[..24])),
                ("wrapped", lines(&OTHER[..24])),
                ("signs", SIGNS[..20].to_vec()),
                ("base64 twice", base64(&base64(&SIGNS[..27]))),
                ("lines", LINES[..32].to_vec()),
                ("lines, quoted", [&b"> "[..], &LINES[..22], b"> ", &LINES[22..34]].concat()),
                ("password", URL[15..33].to_vec()),
            ] {
                for text in [&text[..], &[b"a line\nand then ", &text[..]].concat()] {
                    // What looks random is held back at that level, whoever's it is.
                    let own = Arc::new(view().named());
                    // The last byte may be the first of any value.
                    let is_alike = held(view(), level, text) - held(own, level, text) < 4;
                    assert!(is_noticed(level, text) || is_alike, "{what} at {level:?}");
                    noticed += usize::from(!is_alike);
                }
            }
        }
        assert_eq!(noticed, 52, "of 66");
    }

    #[test]
    fn nothing_else_is_noticed() {
        let wrong = [&OTHER[..19], b"q"].concat();
        let longer = [OTHER, &b" "[..]].concat();
        for text in [
            &b""[..],
            b"an ordinary line\n",
            b"an ordinary line without an end",
            // Little of one, and what all of a kind begin with.
            &OTHER[..6],
            &KEY[..13],
            &URL[..15],
            b"{\"type\": \"service_account\", \"project_id\": \"",
            // A wrong guess, and a whole one.
            &wrong,
            &longer,
            // One's own.
            OWN,
            &OWN[..20],
            b"AKIAIOSFODNN7ABCDEFG",
            b"ghp_Jd5Fs8Ka1Gz4Hw7Pe2Rn9Tb6Mc",
            b"-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEAq7Hq2ZpX9vLm4TnB8sRd3WfY",
        ] {
            for level in [Level::All, Level::Formats, Level::Values] {
                let shown = String::from_utf8_lossy(text);
                assert!(!is_noticed(level, text), "{shown} at {level:?}");
                let base64 = base64(text);
                if level == Level::All && text != &OTHER[..6] {
                    assert!(!is_noticed(level, &base64), "base64 of {shown} at {level:?}");
                }
            }
        }
    }
}
