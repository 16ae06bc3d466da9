//! The frames of `POST /v1/redact` after its connection was upgraded: bytes in, redacted bytes out.
//!
//! A frame is a kind (one byte), a length (32 bits, little endian) and so many bytes. One connection
//! carries any number of texts, one after the other. Invariant: after each answer a client can go on
//! with another worker, where this one died: it shows the last session and state and sends again
//! what follows `consumed`, so that nothing is lost or doubled. Both are sealed: a client never sees
//! what is looked for. Danger: a length that the other side made up.
#![forbid(unsafe_code)]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Request, Subject};
use crate::redact::Level;

/// The token of the `Upgrade` header.
pub const UPGRADE: &str = "strongroom-redact";
/// The header that says what is looked for: a [`Scope`].
pub const SCOPE_HEADER: &str = "strongroom-scope";
/// The most input in one frame, in bytes.
pub const MAX_DATA_BYTES: usize = 64 << 10;
/// The longest frame: a session names every value that it looks for.
pub const MAX_FRAME_BYTES: usize = 32 << 20;
/// Kind and length.
pub const HEAD_BYTES: usize = 5;

/// `POST /v1/redact`: these in the query, bytes in the body, or frames after an upgrade.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redact {
    /// How much is looked for; `off` is refused.
    #[serde(default)]
    pub level: Level,
    /// Looks for what is looked for in the events of this launch's agent.
    #[serde(default)]
    pub launch: Option<String>,
    /// What it is that the launch's agent writes, for the record.
    #[serde(default)]
    pub channel: Option<Channel>,
    /// The first frame will be [`Kind::Resume`], and says all the rest.
    #[serde(default)]
    pub resume: bool,
}

impl Request for Redact {
    fn subject(&self) -> Subject<'_> {
        Subject::Inside
    }
}

/// What an agent writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Both of the next two, where they are one.
    Output,
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A terminal: nobody waits there for a word to end.
    Terminal,
}

impl Channel {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Stderr => "stderr",
            Self::Stdout => "stdout",
            Self::Terminal => "terminal",
        }
    }
}

/// What is looked for beside known formats, by who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every value, by its name.
    All,
    /// No value at all.
    Formats,
    /// What the agents of one chain can see by name, and of all others what nobody can guess.
    Launch,
}

impl Scope {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Formats => "formats",
            Self::Launch => "launch",
        }
    }

    /// By its word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::All, Self::Formats, Self::Launch].into_iter().find(|s| s.word() == word)
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To the worker: input, at most [`MAX_DATA_BYTES`].
    Data,
    /// To the worker: the text has ended; another may follow.
    End,
    /// To the client: a [`super::Problem`] as JSON; nothing follows.
    Fail,
    /// To the client: [`Out`].
    Out,
    /// To the worker, as the first frame: session and state of an earlier connection.
    Resume,
    /// To the client: what to show to go on, until another one comes.
    Session,
}

impl Kind {
    fn to_byte(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::End => 2,
            Self::Resume => 3,
            Self::Session => 16,
            Self::Out => 17,
            Self::Fail => 18,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Data, Self::End, Self::Resume, Self::Session, Self::Out, Self::Fail]
            .into_iter()
            .find(|kind| kind.to_byte() == byte)
    }
}

/// The other side sent what is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the redaction stream is broken")]
pub struct Broken;

/// The head of a frame of `len` bytes.
pub fn head(kind: Kind, len: usize) -> Result<[u8; HEAD_BYTES], Broken> {
    let len = u32::try_from(len).map_err(|_| Broken)?;
    let mut head = [kind.to_byte(), 0, 0, 0, 0];
    head[1..].copy_from_slice(&len.to_le_bytes());
    Ok(head)
}

/// Kind, payload, and the length of both with the head.
pub type Framed<'a> = (Kind, &'a [u8], usize);

/// The first frame in `bytes` and how long it is with its head, once it is complete.
///
/// # Errors
/// [`Broken`].
pub fn first(bytes: &[u8]) -> Result<Option<Framed<'_>>, Broken> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let kind = Kind::from_byte(head[0]).ok_or(Broken)?;
    let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    let most = if kind == Kind::Data { MAX_DATA_BYTES } else { MAX_FRAME_BYTES };
    if len > most {
        return Err(Broken);
    }
    Ok(rest.get(..len).map(|payload| (kind, payload, HEAD_BYTES + len)))
}

/// The payload of [`Kind::Resume`].
pub fn resume(session: &[u8], state: &[u8]) -> Vec<u8> {
    let mut out = (session.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(session);
    out.extend_from_slice(state);
    out
}

/// Session and state of [`resume`].
///
/// # Errors
/// [`Broken`].
pub fn parse_resume(payload: &[u8]) -> Result<(&[u8], &[u8]), Broken> {
    let (len, rest) = payload.split_first_chunk::<8>().ok_or(Broken)?;
    let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| Broken)?;
    rest.split_at_checked(len).ok_or(Broken)
}

/// A part of the redacted text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes as they were.
    Clear(&'a [u8]),
    /// What stands for bytes that are hidden.
    Marker {
        /// What to show.
        text: &'a str,
        /// For so many bytes of the text.
        raw_len: u64,
    },
}

/// An answer to input: `consumed` (64 bits), whether the text has ended (8), the state's length (32)
/// and the state; then pieces, each a tag (8): 0 with a length (32) and bytes, or 1 with the length
/// of what is hidden (64) and that of the marker (16) and the marker.
#[derive(Debug, Clone, Copy)]
pub struct Out<'a> {
    /// So much of the text need not be sent again.
    pub consumed: u64,
    /// All of the text is out; what comes next is another one.
    pub ended: bool,
    /// What to show another worker.
    pub state: &'a [u8],
    pieces: &'a [u8],
}

/// Writes the head of an [`Out`]; pieces follow.
///
/// # Errors
/// [`Broken`] where a state is far too long.
pub fn put_out(out: &mut Vec<u8>, consumed: u64, ended: bool, state: &[u8]) -> Result<(), Broken> {
    let len = u32::try_from(state.len()).map_err(|_| Broken)?;
    out.extend_from_slice(&consumed.to_le_bytes());
    out.push(u8::from(ended));
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(state);
    Ok(())
}

/// Writes a piece; one that is too long for a frame becomes several.
pub fn put_piece(out: &mut Vec<u8>, piece: Piece<'_>) {
    match piece {
        Piece::Clear(bytes) => {
            for part in bytes.chunks(1 << 30) {
                out.push(0);
                out.extend_from_slice(&(part.len() as u32).to_le_bytes());
                out.extend_from_slice(part);
            }
        }
        Piece::Marker { text, raw_len } => {
            // Markers are short by their own rule.
            let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
            out.push(1);
            out.extend_from_slice(&raw_len.to_le_bytes());
            out.extend_from_slice(&(text.len() as u16).to_le_bytes());
            out.extend_from_slice(text);
        }
    }
}

impl<'a> Out<'a> {
    /// Reads the payload of a frame.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn parse(payload: &'a [u8]) -> Result<Self, Broken> {
        let (consumed, rest) = payload.split_first_chunk::<8>().ok_or(Broken)?;
        let (ended, rest) = rest.split_first().ok_or(Broken)?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(Broken)?;
        let (state, pieces) =
            rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(Broken)?;
        let out =
            Self { consumed: u64::from_le_bytes(*consumed), ended: *ended != 0, state, pieces };
        // All of it, before any of it is used.
        out.each(&mut |_| {})?;
        Ok(out)
    }

    /// The pieces in order.
    ///
    /// # Errors
    /// [`Broken`]; never after [`Out::parse`].
    pub fn each(&self, each: &mut dyn FnMut(Piece<'a>)) -> Result<(), Broken> {
        let mut rest = self.pieces;
        while let Some((tag, after)) = rest.split_first() {
            rest = match tag {
                0 => {
                    let (len, after) = after.split_first_chunk::<4>().ok_or(Broken)?;
                    let len = u32::from_le_bytes(*len) as usize;
                    let (bytes, after) = after.split_at_checked(len).ok_or(Broken)?;
                    each(Piece::Clear(bytes));
                    after
                }
                1 => {
                    let (raw_len, after) = after.split_first_chunk::<8>().ok_or(Broken)?;
                    let (len, after) = after.split_first_chunk::<2>().ok_or(Broken)?;
                    let len = usize::from(u16::from_le_bytes(*len));
                    let (text, after) = after.split_at_checked(len).ok_or(Broken)?;
                    let text = std::str::from_utf8(text).map_err(|_| Broken)?;
                    each(Piece::Marker { text, raw_len: u64::from_le_bytes(*raw_len) });
                    after
                }
                _ => return Err(Broken),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_parsed_and_every_cut_of_it_is_no_answer() {
        let mut bytes = Vec::new();
        put_out(&mut bytes, 77, true, b"sealed").unwrap();
        let pieces = [
            Piece::Clear(b"a\0b"),
            Piece::Marker { text: "[REDACTED:A]", raw_len: 20 },
            Piece::Clear(b"c"),
        ];
        let mut whole = vec![bytes.len()];
        for piece in pieces {
            put_piece(&mut bytes, piece);
            whole.push(bytes.len());
        }
        let out = Out::parse(&bytes).unwrap();
        assert_eq!((out.consumed, out.ended, out.state), (77, true, b"sealed".as_slice()));
        let mut seen = Vec::new();
        out.each(&mut |piece| seen.push(piece)).unwrap();
        assert_eq!(seen, pieces);
        for len in 0..bytes.len() {
            assert_eq!(Out::parse(&bytes[..len]).is_ok(), whole.contains(&len), "{len}");
        }
    }

    #[test]
    fn frames_that_are_none_are_refused_and_unfinished_ones_are_awaited() {
        let mut bytes = head(Kind::Data, 3).unwrap().to_vec();
        assert_eq!(first(&bytes), Ok(None));
        bytes.extend_from_slice(b"abcd");
        assert_eq!(first(&bytes), Ok(Some((Kind::Data, b"abc".as_slice(), 8))));
        assert_eq!(first(&[0; 5]), Err(Broken));
        let long = head(Kind::Data, MAX_DATA_BYTES + 1).unwrap();
        assert_eq!(first(&long), Err(Broken));
        let session = resume(b"who", b"where");
        assert_eq!(parse_resume(&session), Ok((b"who".as_slice(), b"where".as_slice())));
        assert_eq!(parse_resume(&[255; 12]), Err(Broken));
        for scope in [Scope::All, Scope::Formats, Scope::Launch] {
            assert_eq!(Scope::from_word(scope.word()), Some(scope));
        }
    }
}
