//! Writes of one agent into its `events` directory, whose store lies on a tmpfs, against a bare server
//! that writes through to a file there and looks at nothing.
//!
//! A daemon writes events at level `all`, whatever is launched. What `values` would cost is measured on
//! another bare server, which hands each write to the same [`Events`] but judges no caller; it does `all`
//! as well, so that the two levels can be compared.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use strongroom::broker::{Place, Refusal, Request as Id, Writer};
use strongroom::events::{At, Change, Events, Limits, Look, Outside, Telling};
use strongroom::execution::handles::Handles;
use strongroom::execution::journal::Journal;
use strongroom::execution::state::State;
use strongroom::fuse::adapter::MAX_WRITE_BYTES;
use strongroom::fuse::session;
use strongroom::redact::{Index, Level, Others, Value, View};
use strongroom::sys::{device, shm::Region};
use strongroom::vault::crypto::Key;

use super::home::{Home, VALUE, value_of};
use super::{ROLE, TURNS, beside_server, median, met, on_one_cpu};

const TMPFS: &str = "/dev/shm";
const NAME: &str = "log";
const SECRETS: usize = 1_000;
/// How long the kernel may believe the bare server.
const TTL: Duration = Duration::from_secs(1);

/// How one writer writes, and the smallest share of the bare server's speed that is aimed at.
struct Row {
    role: &'static str,
    what: &'static str,
    bytes: usize,
    count: usize,
    append: bool,
    /// At `values`, and at `all`.
    aims: Option<(f64, f64)>,
}

const ROWS: [Row; 2] = [
    Row {
        role: "stream",
        what: "writes of 128 KiB",
        bytes: 128 << 10,
        count: 4_096,
        append: false,
        aims: Some((0.3, 0.15)),
    },
    Row {
        role: "append",
        what: "appends of 200 bytes",
        bytes: 200,
        count: 50_000,
        append: true,
        aims: None,
    },
];

impl Row {
    fn len(&self) -> u64 {
        (self.bytes * self.count) as u64
    }

    /// Measures both sides in turns and prints them.
    fn compare(&self, what: &str, aim: Option<f64>, ours: impl Fn() -> f64) {
        let speed = |micros: f64| self.bytes as f64 / micros / 1e3;
        let what = format!("events, {}, {what}", self.what);
        let mut ratios = Vec::new();
        for _ in 0..TURNS {
            let (base, ours) = (on_bare_server(self, None), ours());
            println!(
                "{what}: bare fuser {base:.1} us ({:.3} GB/s), strongroom {ours:.1} us ({:.3} GB/s)",
                speed(base),
                speed(ours)
            );
            ratios.push(base / ours);
        }
        let ratio = median(ratios);
        let verdict = match aim {
            Some(aim) => format!("aim >= {aim} ({})", met(ratio >= aim)),
            None => "no aim".to_owned(),
        };
        println!("{what}: {ratio:.3} x as fast, {verdict}");
    }
}

/// What is written again and again: lines of a service that says what it does, none like another, and
/// nothing that looks like a secret.
fn text(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 128);
    let mut n = 0_u32;
    while text.len() < bytes {
        let (second, took) = (n / 50 % 60, n % 97);
        writeln!(
            text,
            "2026-01-02T03:04:{second:02} INFO request {n} of the build step was answered in {took} ms"
        )
        .unwrap();
        n += 1;
    }
    text.truncate(bytes - 1);
    text.push(b'\n');
    text
}

/// As the agent, or any writer: prints nanoseconds of all writes and the close.
pub(crate) fn write(role: &str, beside: &Path) {
    let row = ROWS.iter().find(|row| row.role == role).unwrap();
    let path = match std::env::var_os("STRONGROOM_EVENTS_DIR") {
        Some(events) => Path::new(&events).join(NAME),
        None => beside.to_owned(),
    };
    let bytes = text(row.bytes);
    let mut options = OpenOptions::new();
    options.write(true).create(true).custom_flags(if row.append { libc::O_APPEND } else { 0 });
    let mut file = options.open(&path).unwrap();
    file.set_len(0).unwrap();
    let start = Instant::now();
    for _ in 0..row.count {
        // A short write would be another number of requests.
        assert_eq!(file.write(&bytes).unwrap(), bytes.len());
    }
    drop(file);
    println!("{}", start.elapsed().as_nanos());
}

/// Microseconds of one write, of what a writer printed.
fn micros(row: &Row, printed: &str) -> f64 {
    printed.trim().parse::<f64>().unwrap() / 1e3 / row.count as f64
}

/// A server that is a role of this program; `level` is none for the one that looks at nothing.
fn on_bare_server(row: &Row, level: Option<Level>) -> f64 {
    let store = tempfile::tempdir_in(TMPFS).unwrap();
    let path = store.path().to_str().unwrap();
    let level = level.map_or("none", Level::word);
    let printed = beside_server("sink", &[level, path], |mounted| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([ROLE, row.role]).arg(mounted.join(NAME));
        let output = command.env_remove("STRONGROOM_EVENTS_DIR").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        stored_whole(row, &stored(row, store.path()));
        String::from_utf8(output.stdout).unwrap()
    });
    micros(row, &printed)
}

fn on_strongroom(row: &Row, home: &Home, store: &Path) -> f64 {
    let printed = home.agent(row.role, &[]);
    let file = stored(row, store);
    stored_whole(row, &file);
    std::fs::remove_file(file).unwrap();
    micros(row, &printed)
}

/// The one file of a store, complete: the last close is answered before it is.
fn stored(row: &Row, store: &Path) -> PathBuf {
    // Each `run` is an execution of its own, with a folder of its own.
    let found = Command::new("find").arg(store).args(["-name", NAME]).output().unwrap();
    let file = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim_end());
    let deadline = Instant::now() + Duration::from_secs(10);
    while file.metadata().unwrap().len() < row.len() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    file
}

/// All was stored as it was written: nothing in it is taken for a secret, which would cost more.
fn stored_whole(row: &Row, file: &Path) {
    let bytes = text(row.bytes);
    let file = File::open(file).unwrap();
    assert_eq!(file.metadata().unwrap().len(), row.len());
    for n in [0, row.count / 2, row.count - 1] {
        let mut found = vec![0; row.bytes];
        file.read_exact_at(&mut found, (n * row.bytes) as u64).unwrap();
        assert!(found == bytes, "write {n} was not stored as it was");
    }
}

pub(crate) fn events() {
    on_one_cpu();
    let store = tempfile::tempdir_in(TMPFS).unwrap();
    let home = Home::with(&format!("[events]\ndir = \"{}\"\n", store.path().display()));
    home.fill_up_to(SECRETS);
    println!("events: {SECRETS} secrets, nothing of them is written");
    for row in &ROWS {
        let (values, all) = row.aims.unzip();
        row.compare("daemon, all", all, || on_strongroom(row, &home, store.path()));
        row.compare("no daemon, all", None, || on_bare_server(row, Some(Level::All)));
        row.compare("no daemon, values", values, || on_bare_server(row, Some(Level::Values)));
    }
}

/// A bare server of one file below `store`, on the descriptors of the device and of a runtime state.
pub(crate) fn sink(dev: i32, memory: i32, level: &str, store: &Path) {
    let dev = device::inherited(dev).unwrap();
    let memory = device::inherited(memory).unwrap();
    let state = State::adopt(Region::map(memory).unwrap()).unwrap();
    let level = [Level::All, Level::Values].into_iter().find(|l| l.word() == level);
    let sink = match level {
        Some(level) => Sink::Events(Box::new(Redacted::new(&state, level, store))),
        None => Sink::File(File::create(store.join(NAME)).unwrap()),
    };
    let (session, _) =
        session::take_over(sink, &state, std::os::fd::AsFd::as_fd(&dev), 4, true).unwrap();
    session.run().unwrap();
}

enum Sink {
    File(File),
    Events(Box<Redacted>),
}

/// A file of the events directories.
struct Redacted {
    events: Events,
    writer: Writer,
    inode: u64,
}

/// What the daemon knows: all values, and one name that the writer may see.
struct Known {
    view: Arc<View>,
    key: Arc<Key>,
}

impl Outside for Known {
    fn view(&self, _: &Place) -> Result<Arc<View>, Refusal> {
        Ok(self.view.clone())
    }

    fn key(&self) -> Result<Arc<Key>, Refusal> {
        Ok(self.key.clone())
    }

    fn redacted(&self, _: &Place, _: &str, _: &Telling) -> bool {
        true
    }

    fn unchecked(&self, _: &Place, _: &str, _: &str, _: &[u8]) {}

    fn noted(&self, _: &[u8]) {}

    fn name_refused(&self, _: &Place) {}
    fn guessed(&self, _: &Place, _: u64) {}
    fn is_guesser(&self, _: &Place) -> bool {
        false
    }
}

impl Redacted {
    fn new(state: &State, level: Level, store: &Path) -> Self {
        let values: Vec<Vec<u8>> =
            std::iter::once(VALUE.to_vec()).chain((1..SECRETS).map(value_of)).collect();
        let index = Index::build(
            (0..).zip(&values).map(|(id, bytes)| Value { id, bytes: bytes.as_slice() }),
        );
        let view = View::new(&Arc::new(index), [(0, "KEY".into())].into(), Others::Unnamed);
        let known = Known { view: Arc::new(view), key: Arc::new(Key::random().unwrap()) };
        let limits = Limits { max_file: 1 << 30, max_total: 16 << 30, max_held: 64 << 20 };
        let look = Look { uid: None, gid: None, mode: 0o600 };
        let (journal, handles) = (Arc::new(Journal::open(state)), Arc::new(Handles::open(state)));
        let events = Events::open(store, look, limits, journal, handles, Arc::new(known)).unwrap();
        let place = Place {
            folder: "bench/-/one".to_owned(),
            chain: "bench".to_owned(),
            environment: None,
            execution: "one".to_owned(),
        };
        let writer = Writer {
            principal: 0,
            place: Arc::new(place),
            token: "one".to_owned(),
            uid: 0,
            gid: 0,
            level,
        };
        let root = events.root(&writer).unwrap().inode;
        let request = Id { id: 0, resent: false };
        let inode = events.make_file(&writer, root, OsStr::new(NAME), true, request).unwrap().inode;
        Self { events, writer, inode }
    }
}

/// The kernel's number of a request; none comes again.
fn id(request: &Request) -> Id {
    Id { id: request.unique().0, resent: false }
}

impl Sink {
    fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.metadata().unwrap().size(),
            Self::Events(to) => to.events.attributes(&to.writer, to.inode).unwrap().size_bytes,
        }
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_root = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if is_root { 0 } else { self.len() },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

impl Filesystem for Sink {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // As the daemon, so that both get as many requests.
        config.set_max_write(MAX_WRITE_BYTES).unwrap();
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &self.attributes(INodeNo(2)), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size {
            match self {
                Self::File(file) => file.set_len(size).unwrap(),
                Self::Events(to) => {
                    let change = Change { size: Some(size), ..Change::default() };
                    to.events.change(&to.writer, to.inode, change).unwrap();
                }
            }
        }
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let handle = match self {
            Self::File(_) => 0,
            Self::Events(to) => {
                to.events.open_file(&to.writer, to.inode, true, id(request)).unwrap()
            }
        };
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let is_written = match self {
            Self::File(file) => file.write_all_at(data, offset).is_ok(),
            Self::Events(to) => {
                let at = At { offset, append: flags.0 & libc::O_APPEND != 0 };
                to.events.write(&to.writer, handle.0, at, data, id(request)).is_ok()
            }
        };
        if is_written {
            reply.written(u32::try_from(data.len()).unwrap());
        } else {
            reply.error(Errno::EIO);
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Self::Events(to) = self {
            to.events.release(handle.0);
        }
        reply.ok();
    }
}
