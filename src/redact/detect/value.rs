//! Values of formats: what is a secret by the name, the number or the URL that stands before it.
//!
//! Invariant: what stands before a place is read within [`BACK_BYTES`]. Danger: each run of a log begins
//! after something, so what costs least is asked first.
#![forbid(unsafe_code)]

use super::class::{self, BACK_BYTES, OF_STRIKING, Run, Text, is_base64, is_token, is_url_safe};
use super::formats::{Class, Going, Outcome};
use super::jwt::holds_colon;
use super::label::{Label, Name, Scheme};
use super::pattern::DECIDING_BYTES;
use super::pem::{self, Place, Reach};
use super::random::{is_placeholder, is_varied, is_wordy};
use super::rules::Coded;
use super::url::{is_url_user, url_password};
use super::{Detector, Look};

/// Values of `user:password` and of parameters are at least as long.
pub(super) const VALUE_BYTES_MIN: usize = 12;

/// Whether the `://` of a URL stands in a run, before a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheming {
    /// The place is not seen from the start of the run on.
    Perhaps,
    Seen,
    Unseen,
}

impl Detector {
    /// What a place is by what stands before it.
    #[inline]
    pub(super) fn value(
        &self,
        look: Look<'_>,
        run: &Run,
        at: usize,
        scheme: &mut Scheming,
    ) -> (Option<usize>, Outcome) {
        let Look { text, marks, .. } = look;
        let previous = text.back(at, 1);
        match previous {
            Some(b':') => {
                let may_be_user = *scheme != Scheming::Unseen;
                if text.bytes[at..].starts_with(b"//") {
                    *scheme = Scheming::Seen;
                }
                match self.after_colon(text, at, may_be_user) {
                    (_, Outcome::No) => {}
                    found => return found,
                }
            }
            Some(b'.') => return self.after_dot(text, at),
            _ => {}
        }
        if !run.is_open && run.end - at < VALUE_BYTES_MIN {
            return (None, Outcome::No);
        }
        // A secret has a digit or a capital; most words have neither.
        let stop = run.end.min(at + DECIDING_BYTES);
        let is_open = run.is_open && stop - at < DECIDING_BYTES;
        if !is_open && !class::has(marks, OF_STRIKING, at, stop) {
            return (None, Outcome::No);
        }
        self.named(look, at, previous)
    }

    /// A password in a URL, or a token after its number.
    fn after_colon(
        &self,
        text: &Text<'_>,
        at: usize,
        may_be_user: bool,
    ) -> (Option<usize>, Outcome) {
        let mut room = [0; BACK_BYTES];
        if may_be_user
            && let Some(rule) = self.coded(Coded::UrlPassword)
            && is_url_user(text.before(at, &mut room))
        {
            match url_password(text, at) {
                Outcome::No => {}
                outcome => return (Some(rule), outcome),
            }
        }
        if text.back(at, 2).is_some_and(|b| b.is_ascii_digit())
            && let Some(rule) = self.coded(Coded::TelegramToken)
            && is_telegram_id(text.before(at, &mut room))
        {
            let pattern = self.telegram;
            return (Some(rule), self.check(text, at, pattern, &self.patterns[pattern]));
        }
        (None, Outcome::No)
    }

    /// The secret part of a token after its public ones.
    fn after_dot(&self, text: &Text<'_>, at: usize) -> (Option<usize>, Outcome) {
        let mut room = [0; BACK_BYTES];
        if text.back(at, 8) == Some(b'.')
            && let Some(rule) = self.coded(Coded::DiscordToken)
            && is_discord_id(text.before(at, &mut room))
        {
            let pattern = self.discord;
            return (Some(rule), self.check(text, at, pattern, &self.patterns[pattern]));
        }
        (None, Outcome::No)
    }

    /// What a place is by the name before it.
    fn named(&self, look: Look<'_>, at: usize, previous: Option<u8>) -> (Option<usize>, Outcome) {
        let Look { text, names, .. } = look;
        let mut room = [0; BACK_BYTES];
        let back = text.before(at, &mut room);
        if let Some(rule) = self.private_key
            && matches!(previous, Some(b'\n' | b'n'))
            && is_putty(back)
        {
            let reach = pem::go_on(text, at, Place::Inside);
            let (end, open, going) = match reach {
                Reach::Done(end) => (end, false, Going::Armour(Place::Inside)),
                Reach::Open(end, place) => (end, true, Going::Armour(place)),
            };
            return (Some(rule), Outcome::Yes { end, going, open });
        }
        let mut names = names.borrow_mut();
        let Some(label) = Label::read(back) else {
            names.none_at(at);
            return (None, Outcome::No);
        };
        let is_scheme = matches!(label.scheme, Some(Scheme::Basic | Scheme::Bearer));
        if !is_scheme && names.is_dull(label) {
            names.none_at(at);
            return (None, Outcome::No);
        }
        let name = label.name();
        if self.is_dull(&name) {
            names.put(label);
            names.none_at(at);
            if !is_scheme {
                return (None, Outcome::No);
            }
        }
        self.labelled(text, at, label, &name)
    }

    /// Calls `each` with the patterns for values of such a name.
    fn patterns_of(&self, label_name: &Name, mut each: impl FnMut(usize)) {
        let name = label_name.bytes();
        let mut start = 0;
        while start < name.len() {
            let first = usize::from(name[start]);
            if name.get(start + 1).is_none_or(|second| self.word_pairs[first].has(*second)) {
                for (word, number) in &self.words[first] {
                    if label_name.has(word.as_bytes(), start) {
                        each(*number);
                    }
                }
            }
            let rest = name[start..].iter().position(|b| *b == b'_');
            start += rest.map_or(name.len(), |at| at + 1);
        }
    }

    /// Whether a name says nothing of its value, neither here nor for guesses.
    fn is_dull(&self, name: &Name) -> bool {
        let mut is_known = false;
        self.patterns_of(name, |_| is_known = true);
        !is_known && !is_header(name) && !is_parameter(name) && !name.tells()
    }

    fn labelled(
        &self,
        text: &Text<'_>,
        at: usize,
        label: Label<'_>,
        name: &Name,
    ) -> (Option<usize>, Outcome) {
        let mut numbers: Vec<usize> = Vec::new();
        self.patterns_of(name, |number| numbers.push(number));
        // The table's order decides.
        numbers.sort_unstable();
        for number in numbers {
            let compiled = &self.patterns[number];
            match self.check(text, at, number, compiled) {
                Outcome::No => {}
                outcome => return (Some(compiled.rule), outcome),
            }
        }
        let coded = match label.scheme {
            Some(Scheme::Basic) => Some((Coded::Basic, 12)),
            Some(Scheme::Bearer) => Some((Coded::Bearer, 16)),
            _ if is_header(name) => Some((Coded::Header, 16)),
            _ if label.is_parameter && is_parameter(name) => Some((Coded::Parameter, 12)),
            _ => None,
        };
        if let Some((coded, least)) = coded
            && let Some(rule) = self.coded(coded)
        {
            return (Some(rule), rest(text, at, least, coded == Coded::Basic));
        }
        (None, Outcome::No)
    }
}

/// A token of any token bytes.
fn rest(text: &Text<'_>, at: usize, least: usize, basic: bool) -> Outcome {
    let bytes = text.bytes;
    let end = at + bytes[at..].iter().take_while(|b| is_token(**b)).count();
    let len = end - at;
    if len < DECIDING_BYTES && text.is_cut(end) {
        return Outcome::Maybe;
    }
    let value = &bytes[at..end.min(at + DECIDING_BYTES)];
    let is_word = value.starts_with(b"$") || value.starts_with(b"%") || is_wordy(value);
    let fits = if basic {
        value.iter().all(|b| is_base64(*b) || is_url_safe(*b) || *b == b'=') && holds_colon(value)
    } else {
        is_varied(value) && !is_word
    };
    if len < least || is_placeholder(value) || !fits {
        return Outcome::No;
    }
    let going = Going::Rest(0, Class::Token);
    Outcome::Yes { end, going, open: text.is_cut(end) }
}

/// The number of a bot before its token (core.telegram.org/bots/api, "Authorizing your bot").
fn is_telegram_id(back: &[u8]) -> bool {
    let id = &back[..back.len() - 1];
    let digits = id.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    (8..=11).contains(&digits)
}

/// The user's number and the time before the secret part of a token.
fn is_discord_id(back: &[u8]) -> bool {
    // The time has six bytes.
    if back.len() < 32 || back[back.len() - 8] != b'.' {
        return false;
    }
    let mut parts = back[..back.len() - 1].rsplitn(3, |b| *b == b'.');
    let (Some(time), Some(user)) = (parts.next(), parts.next()) else { return false };
    let len = user.iter().rev().take_while(|b| is_url_safe(**b)).count();
    let user = &user[user.len() - len..];
    // The colour of a terminal may stand before it.
    let begins = |count: usize| len >= count && matches!(user[len - count], b'M' | b'N' | b'O');
    time.len() == 6 && time.iter().all(|b| is_url_safe(*b)) && len < 34 && (23..=28).any(begins)
}

/// `Private-Lines: 14` of a PuTTY key file, directly before its body.
#[inline(never)]
fn is_putty(back: &[u8]) -> bool {
    let line = match back {
        [line @ .., b'\\', b'r', b'\\', b'n'] | [line @ .., b'\\', b'n'] => line,
        [line @ .., b'\r', b'\n'] | [line @ .., b'\n'] => line,
        _ => return false,
    };
    let digits = line.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    digits > 0 && line[..line.len() - digits].ends_with(b"Private-Lines: ")
}

/// Headers that carry a secret alone.
fn is_header(name: &Name) -> bool {
    matches!(
        name.bytes(),
        b"authorization"
            | b"proxy_authorization"
            | b"x_api_key"
            | b"x_auth_token"
            | b"x_access_token"
            | b"private_token"
            | b"x_vault_token"
            | b"x_amz_security_token"
            | b"x_goog_api_key"
            | b"ocp_apim_subscription_key"
            | b"x_functions_key"
            | b"job_token"
            | b"deploy_token"
            | b"x_consul_token"
            | b"x_shopify_access_token"
            | b"x_figma_token"
            | b"dd_api_key"
            | b"x_n8n_api_key"
            | b"x_postmark_server_token"
            | b"x_tracker_token"
    )
}

/// Parameters of URLs that carry a secret.
fn is_parameter(name: &Name) -> bool {
    matches!(
        name.bytes(),
        b"access_key"
            | b"access_token"
            | b"api_key"
            | b"api_token"
            | b"apikey"
            | b"auth"
            | b"auth_token"
            | b"authtoken"
            | b"client_secret"
            | b"id_token"
            | b"key"
            | b"pass"
            | b"passwd"
            | b"password"
            | b"private_token"
            | b"pwd"
            | b"refresh_token"
            | b"secret"
            | b"session_token"
            | b"sig"
            | b"signature"
            | b"subscription_key"
            | b"token"
            | b"x_amz_security_token"
            | b"x_amz_signature"
            | b"x_goog_signature"
    )
}
