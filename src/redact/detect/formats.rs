//! Tokens of known formats: from left to right, never two that overlap.
//!
//! Whether a token begins at a place depends on at most [`BACK_BYTES`] bytes before it and on a bounded
//! number after its beginning, so the outcome is the same however the text was cut. What begins a
//! token and may still become one is undecided; a token that is known to be one is swallowed.
#![forbid(unsafe_code)]

use memchr::memmem;

use super::class::{
    self, BACK_BYTES, ESCAPE_BYTES_MAX, OF_ALNUM, OF_STRIKING, Run, Text, is_alnum, is_base64,
    is_token, is_url_safe,
};
use super::label::{Label, Name, Scheme};
use super::pattern::{DECIDING_BYTES, Match};
use super::pem::{self, Begin, Place, Reach};
use super::random::{is_placeholder, is_varied, is_wordy};
use super::rules::Coded;
use super::{Compiled, Detector, Look};

/// The longest password of a URL, and host after it.
const PASSWORD_BYTES_MAX: usize = 256;
const HOST_BYTES_MAX: usize = 64;
/// The longest first part of a JWT that is held back.
const JWT_HEAD_BYTES_MAX: usize = 400;
/// The shortest second part.
const JWT_BODY_BYTES_MIN: usize = 10;

/// How a token goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Going {
    /// An armoured key.
    Armour(Place),
    /// So many bytes more.
    Count(usize),
    /// So many bytes, and then as long as bytes of the class of its last piece follow.
    Rest(usize, Class),
}

/// Bytes that a token goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Of the last piece of the pattern with this number.
    Pattern(usize),
    /// Token bytes.
    Token,
    /// The URL alphabet of base64, padding and dots.
    Jwt,
}

/// A token that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub start: usize,
    pub end: usize,
    /// The rule's number; none for what is public and hides nothing.
    pub rule: Option<usize>,
    pub continues: bool,
    /// How it goes on after its end.
    pub going: Going,
}

impl Token {
    /// How it goes on after a cut at `at`, inside it.
    pub(super) fn cut(&self, at: usize) -> Going {
        match self.going {
            Going::Armour(place) => Going::Armour(place),
            Going::Count(_) => Going::Count(self.end - at),
            Going::Rest(_, class) => Going::Rest(self.end - at, class),
        }
    }
}

/// What was found, and how it goes on.
pub(super) struct Formats {
    pub tokens: Vec<Token>,
    pub undecided: usize,
    /// The last token goes on at the end.
    pub open: Option<(Option<usize>, Going)>,
}

pub(super) enum Outcome {
    Maybe,
    No,
    Yes { end: usize, going: Going, open: bool },
}

impl Detector {
    fn class_has(&self, class: Class, byte: u8) -> bool {
        match class {
            Class::Pattern(number) => {
                self.patterns.get(number).is_some_and(|c| c.pattern.last_set().has(byte))
            }
            Class::Token => is_token(byte),
            Class::Jwt => is_url_safe(byte) || matches!(byte, b'.' | b'='),
        }
    }

    /// Goes through all of the text.
    pub(super) fn formats(&self, look: Look<'_>, open: Option<(Option<usize>, Going)>) -> Formats {
        let Look { text, runs, .. } = look;
        let bytes = text.bytes;
        let mut found = Formats { tokens: Vec::new(), undecided: bytes.len(), open: None };
        let mut at = 0;
        if let Some((rule, going)) = open {
            let (end, next) = self.go_on(text, going);
            if end > 0 {
                let token = Token { start: 0, end, rule, continues: true, going };
                found.tokens.push(token);
            }
            if let Some(going) = next {
                found.undecided = end;
                found.open = Some((rule, going));
                return found;
            }
            at = end;
        }
        let mut begins = memmem::find_iter(bytes, pem::BEGIN).peekable();
        for run in runs {
            // Armours before the run, and inside it.
            let mut here = run.start.max(at);
            while let Some(begin) = begins.next_if(|b| *b < run.end) {
                if begin < at {
                    continue;
                }
                if !self.in_run(look, run, here.max(at), begin, &mut at, &mut found)
                    || !Self::armour(text, begin, &mut at, &mut found, self.private_key)
                {
                    return found;
                }
                here = run.start.max(begin + 1);
            }
            if !self.in_run(look, run, here.max(at), run.end, &mut at, &mut found) {
                return found;
            }
        }
        for begin in begins {
            if begin >= at && !Self::armour(text, begin, &mut at, &mut found, self.private_key) {
                return found;
            }
        }
        if !text.end {
            // The beginning of an armour at the very end.
            let cut = (1..pem::BEGIN.len())
                .rev()
                .find(|len| bytes.len() >= at + len && bytes.ends_with(&pem::BEGIN[..*len]));
            if let Some(len) = cut {
                found.undecided = found.undecided.min(bytes.len() - len);
            }
        }
        found
    }

    /// Where a token ends that goes on at the start, and how it goes on after the end of the text.
    fn go_on(&self, text: &Text<'_>, going: Going) -> (usize, Option<Going>) {
        let len = text.bytes.len();
        match going {
            Going::Armour(place) => match pem::go_on(text, 0, place) {
                Reach::Done(end) => (end, None),
                Reach::Open(end, place) => (end, Some(Going::Armour(place))),
            },
            Going::Count(count) if count > len => {
                (len, Some(Going::Count(count - len)).filter(|_| !text.end))
            }
            Going::Count(count) => (count, None),
            Going::Rest(count, class) if count > len => {
                (len, Some(Going::Rest(count - len, class)).filter(|_| !text.end))
            }
            Going::Rest(count, class) => {
                let rest = text.bytes[count..].iter();
                let end = count + rest.take_while(|b| self.class_has(class, **b)).count();
                (end, Some(Going::Rest(0, class)).filter(|_| text.is_cut(end)))
            }
        }
    }

    /// What an armour is; false when it is undecided.
    fn armour(
        text: &Text<'_>,
        start: usize,
        at: &mut usize,
        found: &mut Formats,
        rule: Option<usize>,
    ) -> bool {
        match pem::begin(text, start) {
            Begin::No => *at = start + 1,
            Begin::Maybe => {
                found.undecided = start;
                return false;
            }
            Begin::Yes { private, reach } => {
                let rule = rule.filter(|_| private);
                let (end, open) = match reach {
                    Reach::Done(end) => (end, None),
                    Reach::Open(end, place) => (end, Some(Going::Armour(place))),
                };
                let going = Going::Armour(Place::Inside);
                found.tokens.push(Token { start, end, rule, continues: false, going });
                *at = end;
                if let Some(going) = open {
                    found.undecided = end;
                    found.open = Some((rule, going));
                    return false;
                }
            }
        }
        true
    }

    /// Looks at the places `from..to` of a run; false when one is undecided.
    fn in_run(
        &self,
        look: Look<'_>,
        run: &Run,
        from: usize,
        to: usize,
        at: &mut usize,
        found: &mut Formats,
    ) -> bool {
        let Look { text, marks, .. } = look;
        let mut here = from;
        let before_run = text.back(run.start, 1);
        let may_open = before_run.is_some_and(|b| matches!(b, b'\\' | b'[' | b';') || is_token(b));
        while here < to {
            let previous = text.back(here, 1);
            let is_inside = previous.is_some_and(is_alnum);
            if is_inside {
                // An escape stands at the start of the run, or is one of a URL.
                let near = may_open && here - run.start <= ESCAPE_BYTES_MAX
                    || text.back(here, 3) == Some(b'%');
                if !near || !text.is_after_escape(here) {
                    let may_be_next = may_open && here - run.start < ESCAPE_BYTES_MAX
                        || text.back(here, 2) == Some(b'%');
                    // No other place before the end of these letters is one.
                    here = if may_be_next { here } else { marks.run_end(OF_ALNUM, here) } + 1;
                    continue;
                }
            }
            let (rule, outcome) = self.at(look, run, here, previous);
            match outcome {
                Outcome::Maybe => {
                    found.undecided = here;
                    return false;
                }
                Outcome::No => here += 1,
                Outcome::Yes { end, going, open } => {
                    let token = Token { start: here, end, rule, continues: false, going };
                    found.tokens.push(token);
                    *at = end;
                    if open {
                        found.undecided = end;
                        found.open = Some((rule, going));
                        return false;
                    }
                    here = end;
                }
            }
        }
        true
    }

    /// What begins at a place.
    pub(super) fn at(
        &self,
        look: Look<'_>,
        run: &Run,
        at: usize,
        previous: Option<u8>,
    ) -> (Option<usize>, Outcome) {
        let Look { text, .. } = look;
        let bytes = text.bytes;
        let first = usize::from(bytes[at]);
        let second = bytes.get(at + 1);
        if second.is_none_or(|second| self.pairs[first].has(*second)) {
            let heads = self.heads[first].iter();
            for (_, number) in heads.filter(|head| second.is_none_or(|second| *second == head.0)) {
                let compiled = &self.patterns[*number];
                match self.check(text, at, *number, compiled) {
                    Outcome::No => {}
                    outcome => return (Some(compiled.rule), outcome),
                }
            }
        }
        if bytes[at] == b'e'
            && let Some(rule) = self.coded(Coded::Jwt)
        {
            match jwt(text, at) {
                Outcome::No => {}
                outcome => return (Some(rule), outcome),
            }
        }
        let at_value = match previous {
            Some(b'=' | b':' | b'.') => true,
            Some(b) => !is_token(b) || is_alnum(b),
            None => true,
        };
        if at_value { self.value(look, run, at, previous) } else { (None, Outcome::No) }
    }

    fn check(&self, text: &Text<'_>, at: usize, number: usize, compiled: &Compiled) -> Outcome {
        match compiled.pattern.matches(text, at) {
            Match::Maybe => Outcome::Maybe,
            Match::No => Outcome::No,
            Match::Yes { end, goes_on } => {
                let body = at + compiled.pattern.head().len();
                let body = &text.bytes[body..end.min(body + DECIDING_BYTES)];
                let named = !compiled.labels.is_empty();
                if is_placeholder(body) || !is_varied(body) || (named && is_wordy(body)) {
                    return Outcome::No;
                }
                let going = if goes_on {
                    Going::Rest(0, Class::Pattern(number))
                } else {
                    Going::Count(end - at)
                };
                Outcome::Yes { end, going, open: goes_on && text.is_cut(end) }
            }
        }
    }

    /// What a place is by what stands before it.
    fn value(
        &self,
        look: Look<'_>,
        run: &Run,
        at: usize,
        previous: Option<u8>,
    ) -> (Option<usize>, Outcome) {
        let Look { text, marks, names, .. } = look;
        let mut room = [0; BACK_BYTES];
        let back = text.before(at, &mut room);
        if previous == Some(b':') {
            if let Some(rule) = self.coded(Coded::UrlPassword)
                && is_url_user(back)
            {
                match url_password(text, at) {
                    Outcome::No => {}
                    outcome => return (Some(rule), outcome),
                }
            }
            if let Some(rule) = self.coded(Coded::TelegramToken)
                && is_telegram_id(back)
            {
                let pattern = self.telegram;
                match self.check(text, at, pattern, &self.patterns[pattern]) {
                    Outcome::No => {}
                    outcome => return (Some(rule), outcome),
                }
            }
        }
        if previous == Some(b'.') {
            if let Some(rule) = self.coded(Coded::DiscordToken)
                && is_discord_id(back)
            {
                let pattern = self.discord;
                match self.check(text, at, pattern, &self.patterns[pattern]) {
                    Outcome::No => {}
                    outcome => return (Some(rule), outcome),
                }
            }
            return (None, Outcome::No);
        }
        if !run.is_open && run.end - at < self.shortest_value {
            return (None, Outcome::No);
        }
        // A secret has a digit or a capital; most words have neither.
        let stop = run.end.min(at + DECIDING_BYTES);
        let is_open = run.is_open && stop - at < DECIDING_BYTES;
        if !is_open && marks.next(OF_STRIKING, at) >= stop {
            return (None, Outcome::No);
        }
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
        let Some(label) = Label::read(back) else { return (None, Outcome::No) };
        let is_scheme = matches!(label.scheme, Some(Scheme::Basic | Scheme::Bearer));
        if !is_scheme && names.borrow().is_dull(label) {
            return (None, Outcome::No);
        }
        let name = label.name();
        if self.is_dull(&name) {
            names.borrow_mut().put(label);
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

/// Whether base64 is of text with a colon in it, as `user:password` has.
fn holds_colon(value: &[u8]) -> bool {
    decoded(value).contains(&b':')
}

/// What base64 decodes to, as far as it does.
fn decoded(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut word, mut bits) = (0_u32, 0);
    for byte in value {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => break,
        };
        word = word << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
        }
    }
    out
}

/// A JSON web token (RFC 7519, RFC 7516): two parts or more, the first of which is a JSON object.
fn jwt(text: &Text<'_>, at: usize) -> Outcome {
    let bytes = &text.bytes[at..];
    let known = bytes.len().min(3);
    if bytes[..known] != b"eyJ"[..known] {
        return Outcome::No;
    }
    let maybe = |here: usize| {
        if text.is_cut(at + here) { Outcome::Maybe } else { Outcome::No }
    };
    let head = bytes.iter().take(JWT_HEAD_BYTES_MAX).take_while(|b| is_url_safe(**b)).count();
    let names_algorithm = || {
        let head = decoded(&bytes[..head]);
        head.windows(5).any(|w| w == b"\"alg\"" || w == b"\"enc\"" || w == b"\"kid\"")
    };
    let yes = || {
        let end =
            at + bytes.iter().take_while(|b| is_url_safe(**b) || matches!(b, b'.' | b'=')).count();
        Outcome::Yes { end, going: Going::Rest(0, Class::Jwt), open: text.is_cut(end) }
    };
    if head == JWT_HEAD_BYTES_MAX {
        return if names_algorithm() { yes() } else { Outcome::No };
    }
    match bytes.get(head) {
        None => return maybe(head),
        Some(b'.') if head >= 12 => {}
        Some(_) => return Outcome::No,
    }
    let body = &bytes[head + 1..];
    let len = body.iter().take(JWT_BODY_BYTES_MIN).take_while(|b| is_url_safe(**b)).count();
    if len < JWT_BODY_BYTES_MIN {
        return if body.len() > len { Outcome::No } else { maybe(head + 1 + len) };
    }
    if body.starts_with(b"eyJ") || names_algorithm() { yes() } else { Outcome::No }
}

/// `scheme://user:` (RFC 3986, 3.2.1), where the user may be missing.
fn is_url_user(back: &[u8]) -> bool {
    let is_user = |b: &u8| is_token(*b) && !matches!(b, b'/' | b'@' | b':' | b'?' | b'#');
    let end = back.len() - 1;
    let slashes = end - back[..end].iter().rev().take_while(|b| is_user(b)).count();
    back[..slashes].ends_with(b"://") && slashes > 3 && is_alnum(back[slashes - 4])
}

/// The password of a URL: up to the last `@` before the host.
fn url_password(text: &Text<'_>, at: usize) -> Outcome {
    let bytes = &text.bytes[at..];
    let ends = |b: u8| !(0x21..0x7f).contains(&b) || matches!(b, b'"' | b'\'' | b'`' | b'\\');
    let digits = bytes.iter().take(6).take_while(|b| b.is_ascii_digit()).count();
    if let Some(next) = bytes.get(digits)
        && digits < 6
        && digits > 0
        && !(is_alnum(*next)
            || matches!(
                next,
                b'@' | b'-' | b'_' | b'.' | b'!' | b'$' | b'%' | b'*' | b'+' | b'~' | b'=' | b'^'
            ))
    {
        // A port.
        return Outcome::No;
    }
    let mut last: Option<usize> = None;
    let mut here = 0;
    loop {
        let Some(byte) = bytes.get(here) else {
            if text.is_cut(at + here) {
                return Outcome::Maybe;
            }
            break;
        };
        match last {
            None if here > PASSWORD_BYTES_MAX => return Outcome::No,
            Some(sign) if here - sign > HOST_BYTES_MAX => break,
            _ => {}
        }
        match byte {
            b'@' => last = Some(here),
            byte if ends(*byte) => break,
            b'/' | b'?' | b'#' | b',' | b';' | b')' | b']' | b'}' | b'>' if last.is_some() => break,
            _ => {}
        }
        here += 1;
        if here > PASSWORD_BYTES_MAX + HOST_BYTES_MAX {
            break;
        }
    }
    let Some(end) = last else { return Outcome::No };
    let password = &bytes[..end];
    const NONE: &[&[u8]] = &[
        b"password",
        b"PASSWORD",
        b"pass",
        b"PASS",
        b"passwd",
        b"secret",
        b"pwd",
        b"pw",
        b"token",
        b"x",
        b"xxx",
        b"x-oauth-basic",
    ];
    let is_none = password.is_empty()
        || NONE.contains(&password)
        || password.contains(&b'{') && password.contains(&b'}')
        || is_variable(password)
        || password.starts_with(b"<")
        || password.starts_with(b"[REDACTED")
        || password.starts_with(b"%") && !password.get(1).is_some_and(|b| class::is_hex(*b))
        || password.iter().all(|b| matches!(b, b'*' | b'x' | b'X' | b'.' | b'_'))
        || is_placeholder(password) && !password.iter().any(u8::is_ascii_digit);
    if is_none {
        return Outcome::No;
    }
    Outcome::Yes { end: at + end, going: Going::Count(end), open: false }
}

/// `$NAME` or `$(command)`.
fn is_variable(text: &[u8]) -> bool {
    let Some(name) = text.strip_prefix(b"$") else { return false };
    name.starts_with(b"(")
        || name.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
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
