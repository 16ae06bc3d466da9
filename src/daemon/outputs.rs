//! What agents leave in the `outputs` of their definition is searched when they have ended.
//!
//! Files are opened and changed with the rights of the agent's own user, beneath its launcher's
//! working directory, through no link and onto no other file system. Invariant: a file is replaced
//! by one without secrets, or stays as it is; what is found is on record first, and once; what could
//! not be searched is told, and fails where findings would; a search that a worker's death interrupts is
//! begun anew by the next. Danger: root that is led to a file which is not the agent's.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{Gid, Uid, UnlinkatFlags, User, unlinkat};
use zeroize::Zeroizing;

use crate::audit::record::Event;
use crate::broker::{Place, Refusal};
use crate::catalog::definition::OnFinding;
use crate::catalog::name::{AgentName, ChainName};
use crate::control::Caller;
use crate::events::Outside;
use crate::execution::journal::{Journal, Kind};
use crate::execution::principal::{Outputs, Principal};
use crate::proto;
use crate::redact::{self, Level, Redactor, Sink, View};
use crate::sys::peer::Peer;
use crate::sys::process;

use super::Daemon;
use super::core::{Core, record_tag};
use super::told::{self, Told};

/// What is read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Of more findings in one agent's outputs it is said that there are more.
const MAX_TOLD: usize = 1000;

/// A launcher that waits for a search asks the next worker; only then it goes on by itself.
const LAUNCHERS_FIRST: Duration = Duration::from_secs(10);

/// One search of an agent's outputs at a time, and what came of it for those that wait.
type Turn = Arc<Mutex<Option<Searched>>>;

/// Agents whose outputs are being searched, by number.
pub(super) type Searching = Arc<Mutex<HashMap<u64, Turn>>>;

/// What an agent left, to be searched.
pub(super) struct Search {
    core: Arc<Core>,
    principal: Arc<Principal>,
    outputs: Outputs,
    view: Result<Arc<View>, Refusal>,
    /// The launcher's working directory, where it still lives.
    base: Option<OwnedFd>,
    journal: Arc<Journal>,
    searching: Searching,
    turn: Turn,
}

impl Drop for Search {
    fn drop(&mut self) {
        let mut searching = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
        // The list's own, and this one.
        if Arc::strong_count(&self.turn) <= 2 {
            searching.remove(&self.principal.number.0);
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Searched {
    /// By file and name.
    pub(super) findings: Vec<proto::OutputFinding>,
    /// What could not be searched, and why.
    pub(super) unsearched: Vec<String>,
    /// Whether the agent has failed by it.
    pub(super) failed: bool,
}

/// A search in work.
struct Course {
    view: Arc<View>,
    searched: Searched,
    told: Told,
    /// Something could not be recorded.
    unrecorded: bool,
}

impl Daemon {
    /// The outputs of an agent that is launched.
    pub(super) fn outputs_of(
        &self,
        chain: &str,
        agent: &AgentName,
        peer: &Peer,
    ) -> Option<Outputs> {
        let chain: ChainName = chain.parse().ok()?;
        let catalog = self.core.catalog();
        let defined = catalog.chain(&chain)?.definition.agent(agent)?.clone();
        if defined.outputs.is_empty() {
            return None;
        }
        let base = std::fs::read_link(format!("/proc/{}/cwd", peer.pid)).unwrap_or_default();
        Some(Outputs { paths: defined.outputs, on_finding: defined.on_finding, base })
    }

    /// To be made before the agent is taken off the register: its own values are looked for.
    pub(super) fn output_search(
        &self,
        principal: &Arc<Principal>,
        peer: Option<&Peer>,
    ) -> Option<Search> {
        let outputs = principal.outputs.clone()?;
        let journal = self.registry.journal().clone();
        // Before the agent is off the register: whatever happens now, it is searched.
        let noted = serde_json::to_vec(&**principal).unwrap_or_default();
        let number = principal.number.0;
        if let Err(error) = journal.put(Kind::Outputs, &number.to_be_bytes(), &noted) {
            tracing::error!(%error, "a worker that dies now leaves outputs unsearched");
        }
        let mut searching = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = searching.entry(number).or_default().clone();
        drop(searching);
        let place = Place {
            folder: principal.events_folder.clone(),
            chain: principal.chain.clone(),
            environment: principal.environment.clone(),
            execution: principal.execution.to_string(),
        };
        // A directory of the launcher's own view of the file system, which may not be ours.
        let base = peer.filter(|peer| peer.is_alive()).and_then(|peer| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let path = format!("/proc/{}/cwd", peer.pid);
            let found = nix::fcntl::open(path.as_str(), flags, Mode::empty()).ok();
            found.filter(|_| peer.is_alive())
        });
        Some(Search {
            core: self.core.clone(),
            principal: principal.clone(),
            outputs,
            view: self.around.view(&place),
            base,
            journal,
            searching: self.searching.clone(),
            turn,
        })
    }
}

impl Daemon {
    fn left_unsearched(&self) -> impl Iterator<Item = Principal> {
        let left = self.registry.journal().all(Kind::Outputs).into_iter();
        left.filter_map(|(_, noted)| serde_json::from_slice::<Principal>(&noted).ok())
    }

    /// What came of the outputs of an agent that is off the register, for the launcher that waits.
    pub(super) fn searched_of(&self, who: &Caller, launch: &str) -> Option<proto::AgentEnded> {
        let left = self.left_unsearched().find(|p| {
            subtle::ConstantTimeEq::ct_eq(p.launch.as_bytes(), launch.as_bytes()).into()
                && (who.peer.uid == 0 || who.peer.uid == p.uid)
        });
        let search = left.and_then(|p| self.output_search(&Arc::new(p), Some(&who.peer)));
        match search {
            Some(search) => Some(search.run().ended(Vec::new())),
            None => told::outcome(self.registry.journal(), who.peer.uid, launch),
        }
    }

    /// Begins anew what an earlier worker was killed over, or could not record.
    pub(super) fn search_what_was_left(&self) {
        let served = self.core.clock.now().duration_since(self.started_at);
        let waits = Duration::try_from(served).is_ok_and(|served| served < LAUNCHERS_FIRST);
        if waits || self.core.seal().is_none() || self.core.log.fault().is_some() {
            return;
        }
        told::forget_rest(self.registry.journal());
        for principal in self.left_unsearched() {
            let searching = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
            let is_searched = searching.contains_key(&principal.number.0);
            drop(searching);
            // One that is still there is searched at its end.
            if !is_searched
                && self.registry.principals().iter().all(|p| p.number != principal.number)
                && let Some(search) = self.output_search(&Arc::new(principal), None)
            {
                search.run_later();
            }
        }
    }
}

/// Counts, and writes where it is told to.
struct Out<'a> {
    to: Option<&'a mut File>,
    failed: Option<io::Error>,
}

impl Out<'_> {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(to) = &mut self.to
            && self.failed.is_none()
        {
            self.failed = to.write_all(bytes).err();
        }
    }
}

impl Sink for Out<'_> {
    fn clear(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }
    fn hidden(&mut self, _raw: &[u8]) {}
    fn marker(&mut self, text: &str, _raw_len: u64) {
        self.write(text.as_bytes());
    }
}

fn error(errno: Errno) -> io::Error {
    io::Error::from_raw_os_error(errno as i32)
}

fn open(dir: &impl AsFd, name: &OsStr, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    openat2(dir, name, OpenHow::new().flags(flags).mode(mode).resolve(resolve)).map_err(error)
}

fn directory(dir: &impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    open(dir, name, OFlag::O_DIRECTORY | OFlag::O_RDONLY, Mode::empty())
}

impl Search {
    /// Searches on a thread of its own, with the agent's rights, and waits for it.
    pub(super) fn run(self) -> Searched {
        let fail = self.outputs.on_finding == OnFinding::Fail;
        let thread = std::thread::Builder::new().name("outputs".into());
        let searched = thread.spawn(move || self.search()).map(std::thread::JoinHandle::join);
        match searched {
            Ok(Ok(searched)) => searched,
            _ => Searched {
                unsearched: vec!["the outputs: the search itself failed".to_owned()],
                failed: fail,
                ..Searched::default()
            },
        }
    }

    /// Searches while nobody waits.
    pub(super) fn run_later(self) {
        let thread = std::thread::Builder::new().name("outputs".into());
        if thread.spawn(move || drop(self.search())).is_err() {
            tracing::error!("outputs could not be searched: no thread");
        }
    }

    fn search(mut self) -> Searched {
        let turn = self.turn.clone();
        let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(searched) = &*turn {
            // Somebody else has ended the agent in the same moment.
            return searched.clone();
        }
        let (told, findings) = Told::load(&self.journal, self.principal.number.0);
        let searched = Searched { findings, ..Searched::default() };
        let (view, unsearchable) = match self.view.clone() {
            Ok(view) => (view, None),
            Err(refusal) => (Arc::new(View::empty()), Some(format!("the outputs: {refusal}"))),
        };
        let mut course = Course { view, searched, told, unrecorded: false };
        match unsearchable {
            Some(why) => course.searched.unsearched.push(why),
            None => match self.base() {
                Err(error) => {
                    let base = self.outputs.base.display();
                    course.searched.unsearched.push(format!("{base}: {error}"));
                }
                Ok(base) => {
                    for path in &self.outputs.paths {
                        self.path(&base, path, &mut course);
                    }
                }
            },
        }
        self.record_unsearched(&mut course);
        let Course { mut searched, told, unrecorded, .. } = course;
        let found = !searched.findings.is_empty() || !searched.unsearched.is_empty();
        searched.failed = self.outputs.on_finding == OnFinding::Fail && found;
        // Searched again when the vault is unlocked, or records can be written.
        if !unrecorded && !matches!(self.view, Err(Refusal::Locked)) {
            told.close(&self.principal, &searched.clone().ended(Vec::new()));
            *turn = Some(searched.clone());
        }
        searched
    }

    /// The directory beneath which everything is, with the agent's rights from now on.
    fn base(&mut self) -> io::Result<OwnedFd> {
        let (uid, gid) = (self.principal.uid, self.principal.gid);
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let groups = user.and_then(|user| {
            let name = std::ffi::CString::new(user.name).ok()?;
            nix::unistd::getgrouplist(&name, Gid::from_raw(gid)).ok()
        });
        let groups: Vec<u32> = groups.into_iter().flatten().map(Gid::as_raw).collect();
        process::take_file_rights(uid, gid, &groups)?;
        match self.base.take() {
            Some(base) => Ok(base),
            None => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                nix::fcntl::open(&self.outputs.base, flags, Mode::empty()).map_err(error)
            }
        }
    }

    fn path(&self, base: &OwnedFd, path: &Path, course: &mut Course) {
        let path = path.strip_prefix(".").unwrap_or(path);
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (parent, name),
            _ => (Path::new(""), OsStr::new(".")),
        };
        let parent_dir = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match directory(base, parent_dir.as_os_str()) {
            // An agent that left nothing has left no secret.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => course.unsearched(path, &error),
            Ok(dir) => self.entry(&dir, name, path, course),
        }
    }

    fn entry(&self, dir: &OwnedFd, name: &OsStr, path: &Path, course: &mut Course) {
        let stat = match nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return,
            Err(errno) => return course.unsearched(path, &error(errno)),
            Ok(stat) => stat,
        };
        let done = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => self.below(dir, name, path, course),
            SFlag::S_IFREG => self.file(dir, name, path, course),
            // Links lead to what is elsewhere; pipes and devices hold nothing.
            _ => Ok(()),
        };
        if let Err(error) = done {
            course.unsearched(path, &error);
        }
    }

    fn below(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        course: &mut Course,
    ) -> io::Result<()> {
        let inner = directory(dir, name)?;
        let mut listing = nix::dir::Dir::from_fd(directory(dir, name)?).map_err(error)?;
        let mut names: Vec<OsString> = Vec::new();
        for entry in listing.iter() {
            names.push(OsStr::from_bytes(entry.map_err(error)?.file_name().to_bytes()).to_owned());
        }
        names.sort();
        for name in names.into_iter().filter(|name| name != "." && name != "..") {
            self.entry(&inner, &name, &path.join(&name), course);
        }
        Ok(())
    }

    fn file(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        course: &mut Course,
    ) -> io::Result<()> {
        let mut source = File::from(open(dir, name, OFlag::O_NONBLOCK, Mode::empty())?);
        let about = source.metadata()?;
        let found = pass(&mut source, None, &course.view)?;
        if found.is_empty() {
            return Ok(());
        }
        // As long as nobody writes to it, it is the same file for the next worker.
        let of_file = [about.dev(), about.ino(), about.mtime().cast_unsigned()]
            .into_iter()
            .chain([about.mtime_nsec().cast_unsigned()])
            .flat_map(u64::to_le_bytes)
            .chain(path.as_os_str().as_bytes().iter().copied())
            .collect::<Vec<u8>>();
        let shown = shown(&course.view, path);
        let mut recorded = true;
        for (name, count) in &found {
            let tag = self.tag(&[b"found", &of_file, b"\0", name.as_bytes(), &count.to_le_bytes()]);
            let finding = proto::OutputFinding {
                path: shown.clone(),
                name: Some(name.clone()).filter(|name| !name.is_empty()),
                count: *count,
            };
            recorded &= self.found(tag, finding, course);
        }
        if !recorded {
            return Err(io::Error::other("what was found in it could not be recorded"));
        }
        if self.outputs.on_finding == OnFinding::Redact {
            // Of one file one name: who is killed over it leaves it to the next.
            let tag = self.tag(&[b"replace", &of_file]);
            replace(dir, name, (&mut source, &found), &course.view, tag)?;
        }
        Ok(())
    }

    /// Names a record about these outputs.
    fn tag(&self, parts: &[&[u8]]) -> u64 {
        record_tag(&[&[b"outputs", self.principal.launch.as_bytes()], parts].concat())
    }

    /// Takes a finding up, whose file may be replaced if this says so.
    fn found(&self, tag: u64, finding: proto::OutputFinding, course: &mut Course) -> bool {
        if course.told.has(tag) {
            return true;
        }
        let done = self.outputs.on_finding.word();
        if course.searched.findings.len() >= MAX_TOLD {
            let reason = format!("more than {MAX_TOLD} findings: {done}");
            return self.record(self.tag(&[b"more"]), None, &reason, None, course);
        }
        let reason = format!("{}: {done}", finding.path);
        let recorded = self.record(tag, Some(&finding), &reason, Some(finding.count), course);
        course.searched.findings.push(finding);
        recorded
    }

    fn record_unsearched(&self, course: &mut Course) {
        course.searched.unsearched.truncate(MAX_TOLD);
        for what in course.searched.unsearched.clone() {
            let tag = self.tag(&[b"not searched", what.as_bytes()]);
            self.record(tag, None, &format!("not searched: {what}"), None, course);
        }
    }

    /// Puts something on record, unless it is; whether it is now.
    fn record(
        &self,
        tag: u64,
        finding: Option<&proto::OutputFinding>,
        reason: &str,
        count: Option<u64>,
        course: &mut Course,
    ) -> bool {
        if course.told.has(tag) {
            return true;
        }
        let mut record = self.core.new_record_of(Event::OutputFound, &self.principal);
        record.secret_key = finding.and_then(|finding| finding.name.as_deref());
        record.via = Some("outputs");
        record.reason = Some(reason);
        record.count = count;
        if let Err(problem) = self.core.record_once(&record, tag) {
            tracing::error!(%problem, "what an agent left could not be recorded");
            course.unrecorded = true;
            return false;
        }
        course.told.note(tag, finding);
        self.core.forget_tag(tag);
        true
    }
}

impl Course {
    fn unsearched(&mut self, path: &Path, error: &io::Error) {
        self.searched.unsearched.push(format!("{}: {error}", shown(&self.view, path)));
    }
}

impl Searched {
    /// For whoever ended the agent.
    pub(super) fn ended(self, notes: Vec<String>) -> proto::AgentEnded {
        proto::AgentEnded {
            notes,
            findings: self.findings,
            unsearched: self.unsearched,
            failed: self.failed,
        }
    }
}

fn shown(view: &Arc<View>, path: &Path) -> String {
    let bytes = redact::redact(view, Level::Formats, path.as_os_str().as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Goes through a file from its start; what was hidden, by name.
fn pass(
    source: &mut File,
    to: Option<&mut File>,
    view: &Arc<View>,
) -> io::Result<BTreeMap<String, u64>> {
    io::Seek::rewind(source)?;
    let mut redactor = Redactor::new(view.clone(), Level::All);
    let mut buffer = Zeroizing::new(vec![0; CHUNK_BYTES]);
    let mut out = Out { to, failed: None };
    loop {
        match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => redactor.push(&buffer[..count], &mut out),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    redactor.finish(&mut out);
    match out.failed {
        Some(error) => Err(error),
        None => Ok(redactor.counts().map(|(name, count)| (name.to_owned(), count)).collect()),
    }
}

/// Puts a file without secrets in the place of one with, whose findings are on record.
fn replace(
    dir: &OwnedFd,
    name: &OsStr,
    (source, found): (&mut File, &BTreeMap<String, u64>),
    view: &Arc<View>,
    tag: u64,
) -> io::Result<()> {
    let temporary = PathBuf::from(format!(".strongroom-{tag:016x}"));
    let temporary = temporary.as_os_str();
    // Of a worker that was killed over it.
    let _removed = unlinkat(dir, temporary, UnlinkatFlags::NoRemoveDir);
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
    let mut file = File::from(open(dir, temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    let changed = || io::Error::other("it was changed meanwhile");
    let replaced = (|| {
        if pass(source, Some(&mut file), view)? != *found {
            return Err(changed());
        }
        let old = source.metadata()?;
        let mode = Mode::from_bits_truncate(old.mode() & 0o777);
        nix::sys::stat::fchmod(&file, mode).map_err(error)?;
        file.sync_data()?;
        let now =
            nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(error)?;
        if (now.st_dev, now.st_ino) != (old.dev(), old.ino()) {
            return Err(changed());
        }
        nix::fcntl::renameat(dir, temporary, dir, name).map_err(error)?;
        if old.nlink() > 1 {
            return Err(io::Error::other("it is redacted, but has another name that is not"));
        }
        Ok(())
    })();
    if replaced.is_err() {
        // Gone if it has taken the file's place.
        let _removed = unlinkat(dir, temporary, UnlinkatFlags::NoRemoveDir);
    }
    replaced
}
