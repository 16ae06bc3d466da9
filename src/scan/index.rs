//! Names in git's index: what is tracked.
//!
//! Versions 2 to 4 of gitformat-index(5), with object names of 20 or 32 bytes. Nothing but names is
//! taken. Danger: a file that others made; every length is checked.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Larger ones are refused: about ten million names.
const MAX_INDEX_BYTES: u64 = 1 << 30;
/// Times, device, inode, mode, owner, group and size before the object's name.
const STAT_BYTES: usize = 40;
const FLAG_EXTENDED: u16 = 0x4000;
/// Types of gitformat-index(5): a regular file, as bits 12 to 15 of the mode.
const TYPE_REGULAR: u32 = 0o10;

fn bad() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the index is none that is understood")
}

/// A whole file, if it is not longer than that.
pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too long"));
    }
    Ok(bytes)
}

/// Regular files that an index names, below its work tree.
pub(super) fn tracked(index: &Path) -> io::Result<Vec<PathBuf>> {
    let bytes = read_bounded(index, MAX_INDEX_BYTES)?;
    // Which of the two it is stands in the repository's configuration; only one of them parses.
    names(&bytes, 20).or_else(|| names(&bytes, 32)).ok_or_else(bad)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The number that version 4 puts before a name: how much of the last one is dropped.
fn dropped(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0_usize;
    loop {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value = value.checked_mul(128)?.checked_add(usize::from(byte & 0x7f))?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
        value = value.checked_add(1)?;
    }
}

fn names(bytes: &[u8], object_bytes: usize) -> Option<Vec<PathBuf>> {
    if bytes.get(..4)? != b"DIRC" {
        return None;
    }
    let (version, count) = (number(bytes, 4)?, number(bytes, 8)?);
    if !(2..=4).contains(&version) {
        return None;
    }
    let body = bytes.get(..bytes.len().checked_sub(object_bytes)?)?;
    let mut at = 12;
    let mut last: Vec<u8> = Vec::new();
    let mut found = Vec::new();
    for _ in 0..count {
        let start = at;
        let mode = number(body, start + 24)?;
        at = start + STAT_BYTES + object_bytes;
        let flags = u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?);
        at += 2;
        if flags & FLAG_EXTENDED != 0 {
            if version < 3 {
                return None;
            }
            at += 2;
        }
        if version == 4 {
            let keep = last.len().checked_sub(dropped(body, &mut at)?)?;
            last.truncate(keep);
        } else {
            last.clear();
        }
        let rest = body.get(at..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        last.extend_from_slice(&rest[..end]);
        at += end + 1;
        if version < 4 {
            // Zeros to a multiple of eight, at least one.
            let len = at - start;
            at = start + len.next_multiple_of(8);
        }
        if last.is_empty() {
            return None;
        }
        if mode >> 12 == TYPE_REGULAR {
            found.push(PathBuf::from(OsStr::from_bytes(&last)));
        }
    }
    // What follows are extensions, each with its length: with object names of another length than
    // assumed, this would hardly come out even.
    while at < body.len() {
        let len = usize::try_from(number(body, at + 4)?).ok()?;
        at = at.checked_add(8)?.checked_add(len)?;
    }
    (at == body.len()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, mode: u32, object_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes.extend_from_slice(&mode.to_be_bytes());
        bytes.resize(STAT_BYTES + object_bytes, 1);
        bytes.extend_from_slice(&u16::try_from(name.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn index(entries: &[Vec<u8>], object_bytes: usize) -> Vec<u8> {
        let mut bytes = b"DIRC\0\0\0\x02".to_vec();
        bytes.extend_from_slice(&u32::try_from(entries.len()).unwrap().to_be_bytes());
        entries.iter().for_each(|e| bytes.extend_from_slice(e));
        bytes.extend_from_slice(b"TREE\0\0\0\x03abc");
        bytes.resize(bytes.len() + object_bytes, 9);
        bytes
    }

    #[test]
    fn both_lengths_of_object_names_are_told_apart() {
        for object_bytes in [20, 32] {
            let entries = [
                entry("a/file", 0o100_644, object_bytes),
                entry("a/link", 0o120_000, object_bytes),
                entry("module", 0o160_000, object_bytes),
                entry("z", 0o100_755, object_bytes),
            ];
            let bytes = index(&entries, object_bytes);
            let found = names(&bytes, 20).or_else(|| names(&bytes, 32)).unwrap();
            assert_eq!(found, [PathBuf::from("a/file"), PathBuf::from("z")]);
        }
    }

    #[test]
    fn an_index_that_was_cut_or_altered_is_refused_and_never_read_beyond() {
        let bytes = index(&[entry("a/file", 0o100_644, 20), entry("b", 0o100_644, 20)], 20);
        for cut in 0..bytes.len() {
            let _refused = names(&bytes[..cut], 20);
            let _refused = names(&bytes[..cut], 32);
        }
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut altered = bytes.clone();
                altered[at] = value;
                let _some = names(&altered, 20);
                altered[7] = 4;
                let _some = names(&altered, 20);
            }
        }
    }
}
