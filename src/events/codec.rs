//! Entries of the runtime state: numbers and byte strings, one after the other.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

/// Puts an entry together; what it holds may be secret.
#[derive(Default)]
pub(super) struct Encoder(pub Zeroizing<Vec<u8>>);

impl Encoder {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn optional(&mut self, bytes: Option<&[u8]>) -> &mut Self {
        self.number(u64::from(bytes.is_some()));
        self.bytes(bytes.unwrap_or_default())
    }
}

/// Takes an entry apart.
pub(super) struct Decoder<'a>(pub &'a [u8]);

impl<'a> Decoder<'a> {
    pub(super) fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn optional(&mut self) -> Option<Option<&'a [u8]>> {
        let is_there = self.number()? != 0;
        let bytes = self.bytes()?;
        Some(is_there.then_some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_apart_as_it_was_put_together_and_a_cut_one_not() {
        let mut entry = Encoder::default();
        entry.number(7).bytes(b"abc").optional(None).optional(Some(b""));
        let mut back = Decoder(&entry.0);
        assert_eq!(back.number(), Some(7));
        assert_eq!(back.bytes(), Some(b"abc".as_slice()));
        assert_eq!(back.optional(), Some(None));
        assert_eq!(back.optional(), Some(Some(b"".as_slice())));
        assert!(back.0.is_empty());
        assert_eq!(Decoder(&entry.0[..10]).number(), Some(7));
        assert_eq!(Decoder(&entry.0[8..10]).bytes(), None);
    }
}
