//! Tokens that may be on the allow list: nothing of one is decided before its end is known.
//!
//! Invariant: a token waits from its first byte until it has ended or is longer than any that is
//! allowed, so whether it is shown depends on all of it, and never on how the input is cut. Danger: what goes
//! on with a token that was allowed, or one of two that overlap: each is judged by its own bytes.
#![forbid(unsafe_code)]

use super::super::allow::Allowed;
use super::super::found::{Found, Grade};
use super::Redactor;
use super::stretch::Stretch;

/// Tokens of known formats, and guesses: at most one of each goes on at a time.
pub(super) const TRACKS: usize = 2;

fn track(found: &Found) -> usize {
    usize::from(found.grade != Grade::Format)
}

impl Redactor {
    /// Takes what the detector found in `stretch`, and whether something of each track goes on; where
    /// what is not decided begins.
    pub(super) fn sift(
        &mut self,
        stretch: Stretch<'_>,
        found: impl Iterator<Item = Found>,
        goes_on: [bool; TRACKS],
    ) -> usize {
        let list = self.view.allowed().cloned();
        let Some(list) = list.as_deref() else {
            // A view before may have had a list.
            self.hits.extend(self.waiting.iter_mut().filter_map(Option::take));
            self.hits.extend(found);
            return stretch.bytes.len();
        };
        for found in found {
            let waiting = &mut self.waiting[track(&found)];
            match waiting {
                Some(waiting) if found.continues => waiting.end = found.end,
                // Goes on with what is hidden already.
                None if found.continues => self.hits.push(found),
                _ => {
                    if let Some(whole) = waiting.replace(found) {
                        self.judge(stretch, whole, list);
                    }
                }
            }
        }
        for (number, goes_on) in goes_on.into_iter().enumerate() {
            let is_too_long = |found: &Found| found.end - found.start > list.longest() as u64;
            let waiting = &mut self.waiting[number];
            if let Some(long) = waiting.take_if(|found| is_too_long(found)) {
                self.hits.push(long);
            } else if !goes_on && let Some(whole) = waiting.take() {
                self.judge(stretch, whole, list);
            }
        }
        let first = self.waiting.iter().flatten().map(|found| found.start).min();
        first.map_or(stretch.bytes.len(), |first| stretch.place(first))
    }

    /// Hides a whole token, unless it is on the list.
    fn judge(&mut self, stretch: Stretch<'_>, token: Found, list: &Allowed) {
        if !list.has(stretch.piece(token.start, token.end)) {
            self.hits.push(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::super::allow::{Allowed, Entry, Keyed, Tagger};
    use super::super::super::{Collect, Index, Level, Others, Value, View};
    use super::super::tests::in_pieces;
    use super::*;
    use crate::vault::crypto::Key;

    const GITHUB: &str = "ghp_q7Zk2Wm9Lx4Tb8Rv3Yd6Nc1Jf5Hg0Ps8UaEo";
    const OTHER: &str = "ghp_X3vLm4TnB8sRd3WfY7Kq2ZpH9c1Jg5Ua0EoQ";
    /// Of a token that is allowed.
    const BASE64: &str = "YSBnaHBfcTdaazJXbTlMeDRUYjhSdjNZZDZOYzFKZjVIZzBQczhVYUVvIGI=";
    const OPEN_END: &str = "sk-proj-k7Hq2ZpX9vLm4TnB8sRd3WfYcG6jAe0uQ5iKoN1bXy2w";
    const GUESS: &str = "k7Hq2ZpX9vLm4TnB8sRd3WfY";
    const LONG: &str =
        "q0Yt7BvXz3KpLm9Rw2Jd5Hn8Fs1Gc4Va6Te+UiOoPyQxZbM/NkWjDhSgCfAlErq0Yt7BvXz3KpLm9Rw2Jd5Hn8Fs";

    /// A key that was made for this test.
    fn armour() -> String {
        let line = "MIIEpAIBAAKCAQEAk7Hq2ZpX9vLm4TnB8sRd3WfYq0Yt7BvXz3KpLm9Rw2Jd5Hn8";
        let body: String = (0..12).map(|n| format!("{}{}\n", &line[n..], &line[..n])).collect();
        format!("-----BEGIN RSA PRIVATE KEY-----\n{body}-----END RSA PRIVATE KEY-----")
    }

    fn tagger() -> Box<dyn Tagger> {
        Box::new(Keyed::new(Key::from_bytes(&[7; 32]).unwrap()))
    }

    fn list(tokens: &[&str]) -> Option<Arc<Allowed>> {
        let entries: Vec<_> =
            tokens.iter().map(|t| Entry::of(t.as_bytes(), &*tagger()).unwrap()).collect();
        Allowed::new(&entries, tagger()).map(Arc::new)
    }

    fn view(values: &[&str], allowed: &[&str]) -> Arc<View> {
        let values = || (0..).zip(values);
        let index = Index::build(values().map(|(id, text)| Value { id, bytes: text.as_bytes() }));
        let names = values().map(|(id, _)| (id, format!("N{id}").into())).collect();
        let view = View::new(&Arc::new(index), names, Others::Unseen);
        Arc::new(view.with_allowed(list(allowed)))
    }

    /// With every cut into two, and in small pieces; all give the same.
    fn everyhow(view: &Arc<View>, level: Level, text: &str) -> String {
        let bytes = text.as_bytes();
        let whole = in_pieces(view, level, bytes, &[bytes.len()], false);
        for first in 1..=bytes.len() {
            for pieces in [&[first, bytes.len()][..], &[first, 1, bytes.len()]] {
                let cut = in_pieces(view, level, bytes, pieces, first % 2 == 0);
                assert_eq!(
                    String::from_utf8_lossy(&cut),
                    String::from_utf8_lossy(&whole),
                    "{pieces:?} of {text}"
                );
            }
        }
        for size in [1, 2, 7, 63] {
            let cut = in_pieces(view, level, bytes, &[size], true);
            assert_eq!(cut, whole, "pieces of {size} of {text}");
        }
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn what_is_allowed_is_shown_and_its_neighbours_are_not() {
        let armour = armour();
        let view = view(&["Zk8Wq2LmN5rT7yU0pX3c"], &[GITHUB, OPEN_END, GUESS, LONG, &armour]);
        for (text, shown) in [
            (GITHUB.to_owned(), GITHUB.to_owned()),
            (format!("a {GITHUB} b {OTHER} c"), format!("a {GITHUB} b [REDACTED:github-token] c")),
            (format!("{OTHER}\n{GITHUB}\n"), format!("[REDACTED:github-token]\n{GITHUB}\n")),
            (format!("t={OPEN_END}\n"), format!("t={OPEN_END}\n")),
            // What goes on is another one.
            (format!("t={OPEN_END}x\n"), "t=[REDACTED:openai-api-key]\n".to_owned()),
            (format!("t={}\n", &OPEN_END[..50]), "t=[REDACTED:openai-api-key]\n".to_owned()),
            (format!("api_key = {GUESS}\n"), format!("api_key = {GUESS}\n")),
            (format!("api_key = {GUESS}x\n"), "api_key = [REDACTED:keyword-secret]\n".to_owned()),
            (format!("x {LONG} y"), format!("x {LONG} y")),
            (format!("x {LONG}A y"), "x [REDACTED:high-entropy] y".to_owned()),
            (
                format!("{armour}\nZk8Wq2LmN5rT7yU0pX3c {GUESS}"),
                format!("{armour}\n[REDACTED:N0] {GUESS}"),
            ),
            (armour.replacen("Yt7BvXz3", "Yt8BvXz3", 1), "[REDACTED:private-key]".to_owned()),
        ] {
            assert_eq!(everyhow(&view, Level::All, &text), shown);
        }
    }

    #[test]
    fn a_value_of_the_vault_is_hidden_whatever_is_allowed() {
        let all = view(&[GITHUB, "k7Hq2ZpX9vLm4TnB"], &[GITHUB, OPEN_END, LONG]);
        for (text, shown) in [
            (format!("a {GITHUB} b"), "a [REDACTED:N0] b".to_owned()),
            (format!("t={OPEN_END}\n"), format!("t=sk-proj-[REDACTED:N1]{}\n", &OPEN_END[24..])),
        ] {
            for level in [Level::Formats, Level::All] {
                assert_eq!(everyhow(&all, level, &text), shown);
            }
        }
    }

    #[test]
    fn a_value_is_hidden_in_every_form_though_the_form_is_allowed_and_wherever_it_overlaps() {
        const VALUE: &str = "Zk8Wq2LmN5rT7yU0pX3cVb6Ad9Fg1Hj4";
        const BASE64: &str = "Wms4V3EyTG1ONXJUN3lVMHBYM2NWYjZBZDlGZzFIajQ=";
        let hex: String = VALUE.bytes().map(|b| format!("{b:02x}")).collect();
        let forms = [VALUE, &BASE64[..43], BASE64, &hex];
        let view = view(&[VALUE, &GITHUB[30..]], &[&forms[..], &[GITHUB, OPEN_END]].concat());
        for form in forms {
            for text in
                [format!("api_key = {form}\n"), format!("password={form};"), form.to_owned()]
            {
                let shown = everyhow(&view, Level::All, &text);
                assert!(
                    shown.contains("[REDACTED:N0]") && !shown.contains(&form[8..20]),
                    "{shown}"
                );
            }
        }
        // The end of an allowed token is a value.
        let shown = everyhow(&view, Level::All, &format!("a {GITHUB} b"));
        assert_eq!(shown, format!("a {}[REDACTED:N1] b", &GITHUB[..30]));
        // A value that only begins in one, and goes on behind it.
        let over = format!("t={OPEN_END} {}", "x");
        let view = super::tests::view(&[&over[20..over.len()]], &[OPEN_END]);
        let shown = everyhow(&view, Level::All, &over);
        assert_eq!(shown, format!("{}[REDACTED:N0]", &over[..20]));
    }

    #[test]
    fn in_base64_a_token_stays_hidden_though_it_is_allowed() {
        let shown = everyhow(&view(&[], &[GITHUB]), Level::All, BASE64);
        assert!(shown.contains("[REDACTED:github-token]"), "{shown}");
    }

    #[test]
    fn without_a_list_nothing_more_is_held_and_a_list_that_goes_leaves_nothing_shown() {
        let (bare, listed) = (view(&[], &[]), view(&[], &[OPEN_END]));
        let held = |view: &Arc<View>, text: &str| {
            let mut redactor = Redactor::new(view.clone(), Level::All);
            redactor.push(text.as_bytes(), &mut Collect(Vec::new()));
            redactor.held()
        };
        // Known to be one, so what comes of it is swallowed; one that may be allowed waits.
        let more = [OPEN_END, &"k7Hq2ZpX9vLm4TnB8sRd3WfY".repeat(20)].concat();
        assert_eq!(held(&bare, &more), 0);
        assert_eq!(held(&listed, OPEN_END), OPEN_END.len());
        assert_eq!(held(&listed, &more), 0);
        let mut redactor = Redactor::new(listed, Level::All);
        let mut out = Collect(Vec::new());
        redactor.push(OPEN_END.as_bytes(), &mut out);
        let state = redactor.save();
        redactor = Redactor::resume(bare, Level::All, &state).unwrap();
        redactor.push(b" x", &mut out);
        redactor.finish(&mut out);
        assert_eq!(String::from_utf8_lossy(&out.0), "[REDACTED:openai-api-key] x");
    }

    #[test]
    fn a_value_that_comes_while_an_allowed_token_waits_is_hidden_in_it() {
        let (before, after) = (view(&[], &[OPEN_END]), view(&[&OPEN_END[12..40]], &[OPEN_END]));
        for cut in 1..=OPEN_END.len() {
            let mut redactor = Redactor::new(before.clone(), Level::All);
            let mut out = Collect(Vec::new());
            redactor.push(&OPEN_END.as_bytes()[..cut], &mut out);
            redactor.set_view(after.clone());
            redactor.push(&OPEN_END.as_bytes()[cut..], &mut out);
            redactor.push(b" x", &mut out);
            redactor.finish(&mut out);
            let shown = String::from_utf8(out.0).unwrap();
            let hidden = format!("{}[REDACTED:N0]{} x", &OPEN_END[..12], &OPEN_END[40..]);
            assert_eq!(shown, hidden, "{cut}");
        }
    }

    #[test]
    fn a_state_that_knows_of_no_list_goes_on_with_one() {
        let (bare, listed) = (view(&[], &[]), view(&[], &[OPEN_END, GITHUB]));
        let text = format!("t={OPEN_END} {GITHUB} x");
        for cut in 0..text.len() {
            let mut redactor = Redactor::new(bare.clone(), Level::All);
            let mut out = Collect(Vec::new());
            redactor.push(&text.as_bytes()[..cut], &mut out);
            let mut state = redactor.save();
            // As the program before saved it.
            let len = state.len();
            assert_eq!((state[0], &state[len - 2..]), (4, [0, 0].as_slice()));
            state[0] = 3;
            state.truncate(len - 2);
            let mut redactor = Redactor::resume(listed.clone(), Level::All, &state).unwrap();
            redactor.push(&text.as_bytes()[cut..], &mut out);
            redactor.finish(&mut out);
            let shown = String::from_utf8(out.0).unwrap();
            // A token that was known to be one before is hidden to its end.
            let first = [OPEN_END, "[REDACTED:openai-api-key]"];
            let second = [GITHUB, "[REDACTED:github-token]"];
            let may_be = |one: &&str| shown.starts_with(&format!("t={one} "));
            let or = |one: &&str| shown.ends_with(&format!(" {one} x"));
            assert!(first.iter().any(may_be) && second.iter().any(or), "{cut}: {shown}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(
            std::env::var("STRONGROOM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
        ))]

        #[test]
        fn what_is_shown_does_not_depend_on_cuts(
            parts in proptest::collection::vec((0..12_usize, "[ -~\n]{0,12}"), 1..8),
            pieces in proptest::collection::vec(1..90_usize, 1..6),
            save in any::<bool>(),
        ) {
            let armour = armour();
            let some = [
                GITHUB, OTHER, OPEN_END, GUESS, LONG, "password=", "k7Hq2ZpX9vLm", &armour, "==",
                BASE64, "{\"token\":\"", "\\",
            ];
            let text: String =
                parts.iter().flat_map(|(part, between)| [some[*part], between]).collect();
            let view = view(&["Zk8Wq2LmN5rT7yU0pX3c", "vLm4TnB8sRd3"], &[
                GITHUB, OPEN_END, GUESS, LONG, &armour,
            ]);
            for level in [Level::All, Level::Formats] {
                let whole = in_pieces(&view, level, text.as_bytes(), &[text.len()], false);
                let cut = in_pieces(&view, level, text.as_bytes(), &pieces, save);
                prop_assert_eq!(
                    String::from_utf8_lossy(&cut).into_owned(),
                    String::from_utf8_lossy(&whole).into_owned()
                );
            }
        }
    }
}
