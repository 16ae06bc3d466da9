//! The allow list of a tree: tags of tokens that are no secrets, in a file that lives with them.
//!
//! Whoever has the file has its salt and can try tokens against it, so each try costs as much as one
//! of a vault's weakest passphrase (Argon2id, RFC 9106). Invariant: what is compared depends on the
//! findings and their order alone, so a tree gives the same report on however many cores. Danger: a
//! list that others wrote: it is read from the root that is searched alone, and what it allows is
//! counted.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::redact::allow::{Allowed, Costly, Entry, MAX_ENTRIES, Salt, Tagger};
use crate::secret::SecretBytes;

use super::Item;

/// The name of the list in the root of a tree.
pub const NAME: &str = ".strongroom-allow";
/// Tokens that are compared with lists in one search: each takes a fraction of a second.
pub const MAX_COMPARED: usize = 100;
/// Longer files are no lists.
const MAX_BYTES: u64 = 1 << 20;
/// What the line with the salt begins with.
const SALT: &str = "salt ";

/// Why a file is no list.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is none of a list; its text is not told, for it may be a token.
    #[error("{} line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1; the last one where something is missing.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The token cannot be on a list.
    #[error("a token has 8 to 8192 bytes")]
    Token,
}

impl Error {
    /// The next step.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::File { .. } => "make it with: strongroom allow --to FILE",
            Self::Line { .. } => {
                "lines are what strongroom allow --to FILE writes, and comments behind #; scan --no-allow \
                 goes without lists"
            }
            Self::Token => "give it exactly as it is found, without what stands around it",
        }
    }
}

/// A list as it was read.
struct List {
    salt: Salt,
    entries: Vec<Entry>,
}

impl List {
    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let (mut salt, mut entries, mut last) = (None, Vec::new(), 0);
        for (index, line) in text.lines().enumerate() {
            last = index + 1;
            let bad = |what| Error::Line { path: path.to_owned(), line: last, what };
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if let Some(text) = line.strip_prefix(SALT) {
                let new = Salt::parse(text.trim()).ok_or_else(|| bad("this is no salt"))?;
                if salt.replace(new).is_some() {
                    return Err(bad("there is a salt already"));
                }
                continue;
            }
            let entry: Entry = line.parse().map_err(|_| bad("this is no entry"))?;
            let of = salt.as_ref().ok_or_else(|| bad("the salt comes first"))?;
            if !entry.is_of(Costly::new(*of).key_id()) {
                return Err(bad("this entry was made for another list"));
            }
            if entries.len() == MAX_ENTRIES {
                return Err(bad("there are too many entries"));
            }
            entries.push(entry);
        }
        let missing =
            || Error::Line { path: path.to_owned(), line: last, what: "the salt is missing" };
        Ok(Self { salt: salt.ok_or_else(missing)?, entries })
    }

    fn read(path: &Path, file: File) -> Result<(Self, String), Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let mut text = String::new();
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            let source = io::Error::new(io::ErrorKind::InvalidData, "it is too long for a list");
            return Err(failed(source));
        }
        Ok((Self::parse(path, &text)?, text))
    }
}

/// What came of adding a token.
#[derive(Debug)]
pub struct Added {
    /// Its entry.
    pub entry: Entry,
    /// It was not there before.
    pub is_new: bool,
}

/// Adds a token to a list, which is made if there is none; the comment stands behind the entry.
///
/// # Errors
/// That it is no list, or cannot be written.
pub fn add(path: &Path, token: &[u8], comment: &str) -> Result<Added, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let (list, before) = match File::open(path) {
        Ok(file) => {
            let (list, text) = List::read(path, file)?;
            (list, Some(text))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let salt = Salt::random().map_err(|e| failed(io::Error::other(e)))?;
            (List { salt, entries: Vec::new() }, None)
        }
        Err(error) => return Err(failed(error)),
    };
    let entry = Entry::of(token, &Costly::new(list.salt)).ok_or(Error::Token)?;
    if list.entries.contains(&entry) {
        return Ok(Added { entry, is_new: false });
    }
    let comment: String = comment.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let comment = if comment.is_empty() { comment } else { format!("  # {comment}") };
    let mut options = File::options();
    let text = match before {
        Some(text) => {
            options.append(true);
            let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            format!("{gap}{entry}{comment}\n")
        }
        None => {
            options.write(true).create_new(true);
            format!(
                "# What strongroom scan finds here and does not report: tags of tokens that are no secrets.\n\
                 # One more: strongroom allow --to {NAME} --at PATH:LINE:COLUMN\n\
                 {SALT}{}\n{entry}{comment}\n",
                list.salt
            )
        }
    };
    let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(failed)?;
    Ok(Added { entry, is_new: true })
}

/// A list and where it counts.
struct Judge {
    list: Allowed,
    /// The tree; none: everywhere.
    root: Option<PathBuf>,
    /// What was compared with it before, and what came of it.
    known: Vec<(SecretBytes, bool)>,
}

impl Judge {
    fn counts_for(&self, path: Option<&Path>) -> bool {
        match (&self.root, path) {
            (None, _) => true,
            (Some(_), None) => false,
            // As the paths below it are told: without a dot.
            (Some(root), Some(path)) if root.as_os_str().is_empty() => {
                path.is_relative() && !path.starts_with("..")
            }
            (Some(root), Some(path)) => path.starts_with(root),
        }
    }
}

/// Whether a finding is on a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Allowed,
    /// It is not.
    Found,
    /// It may be: too many were compared before.
    NotCompared,
}

/// All lists of a search.
#[derive(Default)]
pub struct Lists {
    judges: Vec<Judge>,
    compared: usize,
}

impl Lists {
    /// The lists in the roots of these trees, and those files.
    ///
    /// # Errors
    /// That one is none, or cannot be read.
    pub fn read(roots: &[PathBuf], files: &[PathBuf]) -> Result<Self, Error> {
        let mut lists = Self::default();
        for root in roots.iter().filter(|root| root.is_dir()) {
            let path = root.join(NAME);
            let item = Item { path, named: false };
            // One that is a link or cannot be read allows nothing; the search itself tells of the file.
            if let Ok(file) = super::open(&item) {
                lists.add(&item.path, file, Some(super::tree::neat(root)))?;
            }
        }
        for path in files {
            let failed = |source| Error::File { path: path.clone(), source };
            lists.add(path, File::open(path).map_err(failed)?, None)?;
        }
        Ok(lists)
    }

    fn add(&mut self, path: &Path, file: File, root: Option<PathBuf>) -> Result<(), Error> {
        let (list, _) = List::read(path, file)?;
        let list = Allowed::new(&list.entries, Box::new(Costly::new(list.salt)));
        self.judges.extend(list.map(|list| Judge { list, root, known: Vec::new() }));
        Ok(())
    }

    /// Lengths that some entry has: the bytes of such findings are needed.
    pub fn lens(&self) -> BTreeSet<usize> {
        self.judges.iter().flat_map(|judge| judge.list.lens()).collect()
    }

    /// Judges what was found in a file, or elsewhere; to be asked in the order of the findings.
    pub fn judge(&mut self, path: Option<&Path>, token: &[u8]) -> Verdict {
        let mut verdict = Verdict::Found;
        for judge in self.judges.iter_mut().filter(|judge| judge.list.has_len(token.len())) {
            if !judge.counts_for(path) {
                continue;
            }
            let known = judge.known.iter().find(|(before, _)| before.expose() == token);
            let is_allowed = match known {
                Some((_, is_allowed)) => *is_allowed,
                None if self.compared == MAX_COMPARED => {
                    verdict = Verdict::NotCompared;
                    continue;
                }
                None => {
                    self.compared += 1;
                    let is_allowed = judge.list.has(token);
                    judge.known.push((SecretBytes::copy_of(token), is_allowed));
                    is_allowed
                }
            };
            if is_allowed {
                return Verdict::Allowed;
            }
        }
        verdict
    }
}

impl std::fmt::Debug for Lists {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lists").field("lists", &self.judges.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &[u8] = b"ghp_q7Zk2Wm9Lx4Tb8Rv3Yd6Nc1Jf5Hg0Ps8UaEo";

    fn parse(text: &str) -> Result<List, String> {
        List::parse(Path::new("list"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_list_grows_by_one_line_an_entry_and_holds_nothing_of_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        assert!(add(&path, TOKEN, "in\nthe documents").unwrap().is_new);
        let first = std::fs::read_to_string(&path).unwrap();
        assert!(first.ends_with("  # in the documents\n"), "{first}");
        assert!(!add(&path, TOKEN, "").unwrap().is_new);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
        std::fs::write(&path, first.trim_end()).unwrap();
        assert!(add(&path, b"k7Hq2ZpX9vLm4TnB8sRd3WfY", "").unwrap().is_new);
        let second = std::fs::read_to_string(&path).unwrap();
        assert_eq!(second.lines().count(), first.lines().count() + 1);
        assert!(!second.contains("q7Zk2") && !second.contains("k7Hq"), "{second}");
        assert!(matches!(add(&path, b"short", ""), Err(Error::Token)));

        let mut lists = Lists::read(&[dir.path().to_owned()], &[]).unwrap();
        let inside = dir.path().join("a");
        assert_eq!(lists.lens(), [24, TOKEN.len()].into());
        assert_eq!(lists.judge(Some(&inside), TOKEN), Verdict::Allowed);
        assert_eq!(lists.judge(Some(&inside), &[b'x'; 24]), Verdict::Found);
        // It counts below its root alone.
        assert_eq!(lists.judge(Some(Path::new("/elsewhere/a")), TOKEN), Verdict::Found);
        assert_eq!(lists.judge(None, TOKEN), Verdict::Found);
        let mut named = Lists::read(&[], &[path]).unwrap();
        assert_eq!(named.judge(None, TOKEN), Verdict::Allowed);
        assert_eq!(named.compared, 1);
        assert_eq!(named.judge(Some(&inside), TOKEN), Verdict::Allowed);
        assert_eq!(named.compared, 1, "what is known costs nothing");
        named.compared = MAX_COMPARED;
        assert_eq!(named.judge(None, TOKEN), Verdict::Allowed);
        assert_eq!(named.judge(None, &[b'x'; 24]), Verdict::NotCompared);
    }

    #[test]
    fn a_line_that_is_none_is_told_by_its_number_and_never_by_its_text() {
        let salt = "salt 00112233445566778899aabbccddeeff\n";
        assert!(parse(salt).unwrap().entries.is_empty());
        let other = Costly::new(Salt::parse("ff112233445566778899aabbccddeeff").unwrap());
        let foreign = Entry::of(TOKEN, &other).unwrap();
        for (text, what) in [
            (String::new(), "list line 0: the salt is missing"),
            ("# only this\n".to_owned(), "list line 1: the salt is missing"),
            (format!("{foreign}\n{salt}"), "list line 1: the salt comes first"),
            (format!("{salt}{foreign}\n"), "list line 2: this entry was made for another list"),
            (format!("{salt}{salt}"), "list line 2: there is a salt already"),
            (format!("{salt}\nghp_q7Zk2Wm9Lx4T\n"), "list line 3: this is no entry"),
            ("salt 0011\n".to_owned(), "list line 1: this is no salt"),
        ] {
            assert_eq!(parse(&text).err().as_deref(), Some(what));
        }
    }

    #[test]
    fn the_root_that_is_the_working_directory_has_what_is_relative_and_below() {
        let list = Allowed::new(
            [&Entry::of(TOKEN, &Costly::new(Salt::parse(&"00".repeat(16)).unwrap())).unwrap()],
            Box::new(Costly::new(Salt::parse(&"00".repeat(16)).unwrap())),
        );
        let judge = Judge { list: list.unwrap(), root: Some(PathBuf::new()), known: Vec::new() };
        for (path, counts) in [("a", true), ("a/b", true), ("/a", false), ("../a", false)] {
            assert_eq!(judge.counts_for(Some(Path::new(path))), counts, "{path}");
        }
    }
}
