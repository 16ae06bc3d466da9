//! Armoured keys (RFC 7468, RFC 4880 6.2): from BEGIN to END, or to the end of what looks like their body.
//!
//! Lines may be real ones or escaped (`\n`), indented, quoted, behind the prefix of a log or joined by
//! spaces. Invariant: a key never goes on past a quote, so never past the string of JSON it began in.
//! The body is swallowed as it comes; only what stands between two pieces of it is held back.
#![forbid(unsafe_code)]

use super::class::{Text, is_base64, is_space};

/// What an armour begins with.
pub(super) const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// Labels like `ENCRYPTED PRIVATE KEY`.
const LABEL_BYTES_MAX: usize = 40;
/// Between BEGIN and the body: headers like `Proc-Type: 4,ENCRYPTED`.
const HEADERS_BYTES_MAX: usize = 320;
/// Between two lines of a body: the end of the line, an indent, a log's prefix.
const GAP_BYTES_MAX: usize = 160;
/// A shorter piece of base64 is a word.
const PIECE_BYTES_MIN: usize = 16;
/// After a prefix of letters.
const PREFIXED_BYTES_MIN: usize = 40;
/// So many bytes of a piece decide that it is one.
const PIECE_BYTES_MAX: usize = 96;

/// Where a body goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Between two pieces.
    Between,
    /// Inside a piece.
    Inside,
}

/// How far a key reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// It ended here.
    Done(usize),
    /// It reaches up to here, and what follows is not known.
    Open(usize, Place),
}

/// What stands at BEGIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// No armour with a body.
    No,
    /// More bytes decide.
    Maybe,
    Yes {
        private: bool,
        reach: Reach,
    },
}

enum Step {
    /// The next piece, or the end of all.
    Piece(usize),
    End(usize),
    Stop,
    Maybe,
}

/// What begins at `at`, where [`BEGIN`] stands.
pub(super) fn begin(text: &Text<'_>, at: usize) -> Begin {
    let bytes = text.bytes;
    let start = at + BEGIN.len();
    let label = bytes[start..].iter().take(LABEL_BYTES_MAX + 1);
    let len = label.take_while(|b| b.is_ascii_alphanumeric() || **b == b' ').count();
    if len > LABEL_BYTES_MAX {
        return Begin::No;
    }
    let after = start + len;
    let dashes = &bytes[after..bytes.len().min(after + DASHES.len())];
    if dashes != DASHES {
        let maybe = DASHES.starts_with(dashes) && !text.end;
        return if maybe { Begin::Maybe } else { Begin::No };
    }
    let label = &bytes[start..after];
    let private = label.windows(11).any(|w| w == b"PRIVATE KEY");
    let body = after + DASHES.len();
    match step(text, body, true) {
        Step::Piece(piece) => Begin::Yes { private, reach: go_on(text, piece, Place::Inside) },
        Step::Maybe => Begin::Maybe,
        Step::End(_) | Step::Stop => Begin::No,
    }
}

/// How far a body reaches that goes on at `at`.
pub(super) fn go_on(text: &Text<'_>, at: usize, place: Place) -> Reach {
    let bytes = text.bytes;
    let (mut at, mut place) = (at, place);
    loop {
        if place == Place::Inside {
            at += bytes[at..].iter().take_while(|b| in_piece(**b)).count();
            if text.is_cut(at) {
                return Reach::Open(at, Place::Inside);
            }
        }
        match step(text, at, false) {
            Step::Piece(piece) => (at, place) = (piece, Place::Inside),
            Step::End(end) => return Reach::Done(end),
            Step::Stop => return Reach::Done(at),
            Step::Maybe => return Reach::Open(at, Place::Between),
        }
    }
}

const fn in_piece(byte: u8) -> bool {
    is_base64(byte) || byte == b'='
}

/// A line of a body varies: it is no word, and no dashes or dots.
fn is_piece(piece: &[u8]) -> bool {
    let has = |is: fn(&u8) -> bool| usize::from(piece.iter().any(is));
    has(u8::is_ascii_lowercase) + has(u8::is_ascii_uppercase) + has(u8::is_ascii_digit) >= 2
        && !piece.windows(8).any(|w| w.iter().all(|b| *b == w[0] && *b != b'A'))
}

/// Looks for the next piece; after BEGIN, headers may stand before it.
fn step(text: &Text<'_>, from: usize, begins: bool) -> Step {
    let room = if begins { HEADERS_BYTES_MAX } else { GAP_BYTES_MAX };
    let bytes = text.bytes;
    let mut at = from;
    // Whether a line ended since, and whether letters stand before the piece on its line.
    let (mut new_line, mut prefixed) = (begins, false);
    let more = |at: usize| if text.is_cut(at) { Step::Maybe } else { Step::Stop };
    loop {
        let Some(byte) = bytes.get(at) else { return more(at) };
        if at - from > room {
            return Step::Stop;
        }
        match byte {
            b'"' | b'\'' | b'`' => return Step::Stop,
            b'\\' => {
                let slashes = bytes[at..].iter().take_while(|b| **b == b'\\').count();
                match bytes.get(at + slashes) {
                    Some(b'n' | b'r') => {
                        (new_line, prefixed) = (true, false);
                        at += slashes + 1;
                    }
                    Some(b'\n') => at += slashes,
                    Some(b't') => at += slashes + 1,
                    Some(_) => return Step::Stop,
                    None => return more(at + slashes),
                }
            }
            b'\n' => {
                (new_line, prefixed) = (true, false);
                at += 1;
            }
            b'-' => {
                let dash = &bytes[at..bytes.len().min(at + END.len())];
                if dash == END {
                    let rest = &bytes[at + END.len()..];
                    let label = rest.iter().take(LABEL_BYTES_MAX + 1);
                    let len =
                        label.take_while(|b| b.is_ascii_alphanumeric() || **b == b' ').count();
                    let tail = &rest[len..rest.len().min(len + DASHES.len())];
                    if tail == DASHES {
                        return Step::End(at + END.len() + len + DASHES.len());
                    }
                    let cut = DASHES.starts_with(tail) && text.is_cut(bytes.len());
                    return if cut && len + tail.len() == rest.len() {
                        Step::Maybe
                    } else {
                        Step::Stop
                    };
                }
                if END.starts_with(dash) && text.is_cut(bytes.len()) {
                    return Step::Maybe;
                }
                if !new_line {
                    return Step::Stop;
                }
                at += 1;
            }
            byte if in_piece(*byte) => {
                let most = bytes.len().min(at + PIECE_BYTES_MAX);
                let len = bytes[at..most].iter().take_while(|b| in_piece(**b)).count();
                let end = at + len;
                if len < PIECE_BYTES_MAX && text.is_cut(end) {
                    return Step::Maybe;
                }
                let piece = &bytes[at..end];
                let last = bytes.get(end);
                let line_ends =
                    len == PIECE_BYTES_MAX || matches!(last, None | Some(b'\n' | b'\r' | b'\\'));
                let fits = if prefixed {
                    len >= PREFIXED_BYTES_MIN && (line_ends || begins)
                } else {
                    // A short last line ends with padding.
                    len >= PIECE_BYTES_MIN || (len >= 2 && piece.ends_with(b"=") && line_ends)
                };
                if fits && (is_piece(piece) || len < PIECE_BYTES_MIN) {
                    return Step::Piece(end);
                }
                prefixed |= len > 2;
                at = end;
            }
            byte if is_space(*byte) => at += 1,
            b'>' | b'|' | b'#' | b'*' => at += 1,
            _ if new_line => {
                prefixed = true;
                at += 1;
            }
            _ => return Step::Stop,
        }
    }
}
