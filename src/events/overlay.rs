//! Writes that are collected: the newest bytes win.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use zeroize::Zeroizing;

/// Pieces that do not overlap, by their place.
#[derive(Default)]
pub(super) struct Overlay {
    pieces: BTreeMap<u64, Zeroizing<Vec<u8>>>,
}

impl Overlay {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// After the last byte; 0 for none.
    pub(super) fn end(&self) -> u64 {
        self.pieces.last_key_value().map_or(0, |(at, bytes)| at + bytes.len() as u64)
    }

    /// Keeps what lies before `at` of a piece that reaches over it, and splits off the rest.
    fn split(&mut self, at: u64) {
        let Some((start, bytes)) = self.pieces.range_mut(..at).next_back() else { return };
        let keep = usize::try_from(at - start).unwrap_or(usize::MAX);
        if keep < bytes.len() {
            let rest = Zeroizing::new(bytes[keep..].to_vec());
            zeroize::Zeroize::zeroize(&mut bytes[keep..]);
            bytes.truncate(keep);
            self.pieces.insert(at, rest);
        }
    }

    /// Puts `bytes` at `at`, over what is there.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = at + bytes.len() as u64;
        self.split(at);
        self.split(end);
        let covered: Vec<u64> = self.pieces.range(at..end).map(|(start, _)| *start).collect();
        for start in covered {
            self.pieces.remove(&start);
        }
        self.pieces.insert(at, Zeroizing::new(bytes.to_vec()));
    }

    /// Forgets everything from `len` on.
    pub(super) fn truncate(&mut self, len: u64) {
        self.split(len);
        self.pieces.split_off(&len);
    }

    /// Copies what it has of the file's bytes from `at` on over `buffer`.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) {
        let end = at + buffer.len() as u64;
        for (start, bytes) in self.meeting(at, end) {
            let from = start.max(at);
            let to = (start + bytes.len() as u64).min(end);
            let within =
                |position: u64, base: u64| usize::try_from(position - base).unwrap_or(usize::MAX);
            buffer[within(from, at)..within(to, at)]
                .copy_from_slice(&bytes[within(from, start)..within(to, start)]);
        }
    }

    /// Whether any of its bytes lies in the range.
    pub(super) fn touches(&self, from: u64, to: u64) -> bool {
        self.meeting(from, to).next().is_some()
    }

    /// What of the range it does not have.
    pub(super) fn gaps(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let (mut gaps, mut at) = (Vec::new(), from);
        for (start, bytes) in self.meeting(from, to) {
            if start > at {
                gaps.push((at, start));
            }
            at = at.max(start + bytes.len() as u64);
        }
        if at < to {
            gaps.push((at, to));
        }
        gaps
    }

    fn meeting(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let before = self.pieces.range(..from).next_back();
        before
            .into_iter()
            .chain(self.pieces.range(from..to.max(from)))
            .map(|(start, bytes)| (*start, bytes.as_slice()))
            .filter(move |(start, bytes)| *start < to && start + bytes.len() as u64 > from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_reads_as_a_file_would(
            steps in proptest::collection::vec((0_u64..60, 0_usize..20, any::<bool>()), 0..30)
        ) {
            let mut overlay = Overlay::default();
            let mut file: Vec<Option<u8>> = vec![None; 100];
            for (turn, (at, len, cut)) in steps.into_iter().enumerate() {
                if cut {
                    overlay.truncate(at);
                    file[at as usize..].fill(None);
                } else {
                    let bytes = vec![turn as u8 + 1; len];
                    overlay.write(at, &bytes);
                    file[at as usize..at as usize + len].fill(Some(turn as u8 + 1));
                }
                let mut buffer = vec![0; 100];
                overlay.read(0, &mut buffer);
                let expected: Vec<u8> = file.iter().map(|b| b.unwrap_or(0)).collect();
                prop_assert_eq!(&buffer, &expected);
                let last = file.iter().rposition(Option::is_some).map_or(0, |p| p as u64 + 1);
                prop_assert_eq!(overlay.end(), last);
                let gaps: u64 = overlay.gaps(5, 50).iter().map(|(a, b)| b - a).sum();
                prop_assert_eq!(gaps, file[5..50].iter().filter(|b| b.is_none()).count() as u64);
                prop_assert_eq!(overlay.touches(10, 20), file[10..20].iter().any(Option::is_some));
            }
        }
    }
}
