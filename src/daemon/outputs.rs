//! What agents leave in the `outputs` of their definition is searched when they have ended.
//!
//! Files are opened and changed with the rights of the agent's own user, beneath its launcher's
//! working directory, through no link and onto no other file system. Invariant: a file is replaced
//! by one without secrets, or stays as it is; what could not be searched is told, and fails where
//! findings would; a search that a worker's death interrupts is begun anew by the next. Danger: root that is led to a file which is not the agent's.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashSet};
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
use crate::proto::{self, Problem};
use crate::redact::{self, Level, Redactor, Sink, View};
use crate::sys::peer::Peer;
use crate::sys::process;

use super::Daemon;
use super::core::Core;

/// What is read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// More records and notes of one agent are only counted.
const MAX_TOLD: usize = 1000;

/// A launcher that waits for a search asks the next worker; only then it goes on by itself.
const LAUNCHERS_FIRST: Duration = Duration::from_secs(10);

/// Agents whose outputs are being searched.
pub(super) type Searching = Arc<Mutex<HashSet<u64>>>;

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
}

impl Drop for Search {
    fn drop(&mut self) {
        let mut searching = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
        searching.remove(&self.principal.number.0);
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Searched {
    /// By file and name.
    pub(super) findings: Vec<proto::OutputFinding>,
    /// What could not be searched, and why.
    pub(super) unsearched: Vec<String>,
    /// Whether the agent has failed by it.
    pub(super) failed: bool,
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
        self.searching.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
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
        })
    }
}

impl Daemon {
    /// What an earlier worker has left unsearched, but for what is being searched now.
    fn left_unsearched(&self) -> Vec<Principal> {
        let searching = self.searching.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.registry.journal().all(Kind::Outputs).into_iter();
        let left = left.filter_map(|(_, noted)| serde_json::from_slice::<Principal>(&noted).ok());
        left.filter(|p| !searching.contains(&p.number.0)).collect()
    }

    /// The search that a launcher waits for, of an agent that is off the register.
    pub(super) fn search_again(&self, who: &Caller, launch: &str) -> Option<Search> {
        let left = self.left_unsearched().into_iter().find(|p| {
            subtle::ConstantTimeEq::ct_eq(p.launch.as_bytes(), launch.as_bytes()).into()
                && (who.peer.uid == 0 || who.peer.uid == p.uid)
        });
        self.output_search(&Arc::new(left?), Some(&who.peer))
    }

    /// Begins anew what an earlier worker was killed over.
    pub(super) fn search_what_was_left(&self) {
        let served = self.core.clock.now().duration_since(self.started_at);
        let waits = Duration::try_from(served).is_ok_and(|served| served < LAUNCHERS_FIRST);
        if waits || self.core.seal().is_none() {
            return;
        }
        for principal in self.left_unsearched() {
            // One that is still there is searched at its end.
            if self.registry.principals().iter().all(|p| p.number != principal.number)
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
        let mut searched = Searched::default();
        match self.view.clone() {
            Err(refusal) => searched.unsearched.push(format!("the outputs: {refusal}")),
            Ok(view) => match self.base() {
                Err(error) => {
                    let base = self.outputs.base.display();
                    searched.unsearched.push(format!("{base}: {error}"));
                }
                Ok(base) => {
                    for path in &self.outputs.paths {
                        self.path(&base, path, &view, &mut searched);
                    }
                }
            },
        }
        let found = !searched.findings.is_empty() || !searched.unsearched.is_empty();
        searched.failed = self.outputs.on_finding == OnFinding::Fail && found;
        self.record(&searched);
        if matches!(self.view, Err(Refusal::Locked)) {
            // On record as not searched, and searched when it is unlocked.
            return searched;
        }
        let key = self.principal.number.0.to_be_bytes();
        if let Err(error) = self.journal.remove(Kind::Outputs, &key) {
            tracing::warn!(%error, "outputs will be searched again");
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

    fn path(&self, base: &OwnedFd, path: &Path, view: &Arc<View>, searched: &mut Searched) {
        let path = path.strip_prefix(".").unwrap_or(path);
        let (parent, name) = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => (parent, name),
            _ => (Path::new(""), OsStr::new(".")),
        };
        let parent_dir = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match directory(base, parent_dir.as_os_str()) {
            // An agent that left nothing has left no secret.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.unsearched(path, &error, view, searched),
            Ok(dir) => self.entry(&dir, name, path, view, searched),
        }
    }

    fn entry(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        view: &Arc<View>,
        searched: &mut Searched,
    ) {
        let stat = match nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return,
            Err(errno) => return self.unsearched(path, &error(errno), view, searched),
            Ok(stat) => stat,
        };
        let done = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => self.below(dir, name, path, view, searched),
            SFlag::S_IFREG => self.file(dir, name, path, view, searched),
            // Links lead to what is elsewhere; pipes and devices hold nothing.
            _ => Ok(()),
        };
        if let Err(error) = done {
            self.unsearched(path, &error, view, searched);
        }
    }

    fn below(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        view: &Arc<View>,
        searched: &mut Searched,
    ) -> io::Result<()> {
        let inner = directory(dir, name)?;
        let mut listing = nix::dir::Dir::from_fd(directory(dir, name)?).map_err(error)?;
        let mut names: Vec<OsString> = Vec::new();
        for entry in listing.iter() {
            names.push(OsStr::from_bytes(entry.map_err(error)?.file_name().to_bytes()).to_owned());
        }
        names.sort();
        for name in names.into_iter().filter(|name| name != "." && name != "..") {
            self.entry(&inner, &name, &path.join(&name), view, searched);
        }
        Ok(())
    }

    fn file(
        &self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        view: &Arc<View>,
        searched: &mut Searched,
    ) -> io::Result<()> {
        let mut source = File::from(open(dir, name, OFlag::O_NONBLOCK, Mode::empty())?);
        let found = pass(&mut source, None, view)?;
        if found.is_empty() {
            return Ok(());
        }
        let shown = shown(view, path);
        for (name, count) in found {
            searched.findings.push(proto::OutputFinding {
                path: shown.clone(),
                name: Some(name).filter(|name| !name.is_empty()),
                count,
            });
        }
        if self.outputs.on_finding == OnFinding::Redact {
            replace(dir, name, &mut source, view)?;
        }
        Ok(())
    }

    fn unsearched(&self, path: &Path, error: &io::Error, view: &Arc<View>, to: &mut Searched) {
        to.unsearched.push(format!("{}: {error}", shown(view, path)));
    }

    fn record(&self, searched: &Searched) {
        let principal = &self.principal;
        let done = self.outputs.on_finding.word();
        let found = searched.findings.iter().take(MAX_TOLD).map(|f| {
            let name = f.name.as_deref();
            (name, format!("{}: {done}", f.path), Some(f.count))
        });
        let missed = searched.unsearched.iter().take(MAX_TOLD);
        let missed = missed.map(|what| (None, format!("not searched: {what}"), None));
        for (name, reason, count) in found.chain(missed) {
            let mut record = self.core.new_record_of(Event::OutputFound, principal);
            record.secret_key = name;
            record.via = Some("outputs");
            record.reason = Some(&reason);
            record.count = count;
            if self.core.log.append(&record, 0).is_err() {
                tracing::error!("what an agent left could not be recorded");
            }
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

/// Puts a file without secrets in the place of one with.
fn replace(dir: &OwnedFd, name: &OsStr, source: &mut File, view: &Arc<View>) -> io::Result<()> {
    let mut random = [0; 8];
    crate::vault::crypto::random(&mut random).map_err(|e| io::Error::other(e.to_string()))?;
    let temporary = PathBuf::from(format!(".strongroom-{:016x}", u64::from_le_bytes(random)));
    let temporary = temporary.as_os_str();
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY;
    let mut file = File::from(open(dir, temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    let replaced = (|| {
        pass(source, Some(&mut file), view)?;
        let old = source.metadata()?;
        let mode = Mode::from_bits_truncate(old.mode() & 0o777);
        nix::sys::stat::fchmod(&file, mode).map_err(error)?;
        file.sync_data()?;
        let now =
            nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(error)?;
        if (now.st_dev, now.st_ino) != (old.dev(), old.ino()) {
            return Err(io::Error::other("it was changed meanwhile"));
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

/// What came of the search, for whoever ended the agent.
pub(super) fn ended(
    notes: Vec<String>,
    searched: Option<Searched>,
) -> Result<proto::AgentEnded, Problem> {
    let mut searched = searched.unwrap_or_default();
    searched.findings.truncate(MAX_TOLD);
    searched.unsearched.truncate(MAX_TOLD);
    Ok(proto::AgentEnded {
        notes,
        findings: searched.findings,
        unsearched: searched.unsearched,
        failed: searched.failed,
    })
}
