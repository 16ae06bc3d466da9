//! Agents that do one step after the other on the events directory and on a plain one, and what the
//! plain one says that must be stored.
//!
//! The plain directory is on a tmpfs and is the whole model: a step must end alike on both, and a
//! complete file must be what a redactor makes of the plain one. Bytes of a match that a later write
//! cut stay hidden, which is judged by `may`: every byte that was part of a match at any time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use strongroom::redact::{Index, Level, Others, Redactor, Sink, Value, View, redact};

use crate::common::{Home, LIMIT, wait_until};
use crate::tools::Talker;

const PATIENCE: Duration = Duration::from_secs(3);
pub(crate) const CHAIN: &str = "oracle";

/// Values of a small alphabet, so that they overlap, nest and almost happen all the time.
pub(crate) const VALUES: [(&str, &str); 6] = [
    ("SHORT", "babbab"),
    ("ABAB", "abaababaab"),
    ("LONGER", "abaababaabbbabaab"),
    ("TWIN", "bbabaabaababaabb"),
    ("LINES", "aabbaabb\nbbaabbaa"),
    ("WORDS", "ab ab-ab ba-ba ab"),
];

/// A home with the chain of the oracle and its values.
pub(crate) fn home() -> Home {
    let home = Home::new();
    home.start();
    fill(&home);
    home
}

pub(crate) fn fill(home: &Home) {
    for (name, value) in VALUES {
        let scope = format!("chain:{CHAIN}");
        home.ok_with(&["secret", "set", name, "--scope", &scope, "--exact"], value);
    }
    let names: Vec<&str> = VALUES.iter().map(|(name, _)| *name).collect();
    let definition = json!({"chain": CHAIN, "agents": [
        {"name": "One", "secrets": names}, {"name": "Two", "secrets": names}]});
    let file = home.dir.path().join("oracle.json");
    fs::write(&file, definition.to_string()).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap()]);
}

/// Starts an execution; its folder in the store.
pub(crate) fn execution(home: &Home, id: &str) -> PathBuf {
    home.ok(&["execution", "start", "--chain", CHAIN, "--id", id]);
    home.home().join("events").join(CHAIN).join("-").join(id)
}

pub(crate) fn view() -> Arc<View> {
    let values = VALUES.iter().zip(0..).map(|((_, v), id)| Value { id, bytes: v.as_bytes() });
    let names = (0..).zip(VALUES).map(|(id, (name, _))| (id, name.into())).collect();
    Arc::new(View::new(&Arc::new(Index::build(values)), names, Others::Unseen))
}

/// A numbered sequence, the same for one seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        // xorshift64*, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }

    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Bytes in which values happen, almost happen, and are cut.
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..=self.below(3) {
            match self.below(5) {
                0 => {
                    let count = 1 + self.below(6);
                    bytes.extend((0..count).map(|_| *self.of(b"abab -\n{\"\\")));
                }
                1 | 2 => bytes.extend_from_slice(self.of(&VALUES).1.as_bytes()),
                _ => {
                    let value = self.of(&VALUES).1.as_bytes();
                    let (a, b) = (self.below(value.len() + 1), self.below(value.len() + 1));
                    bytes.extend_from_slice(&value[a.min(b)..a.max(b)]);
                }
            }
        }
        bytes
    }
}

/// Which bytes are hidden.
pub(crate) fn hidden(view: &Arc<View>, level: Level, text: &[u8]) -> Vec<bool> {
    struct Mask(Vec<bool>);
    impl Sink for Mask {
        fn clear(&mut self, bytes: &[u8]) {
            self.0.resize(self.0.len() + bytes.len(), false);
        }
        fn hidden(&mut self, raw: &[u8]) {
            self.0.resize(self.0.len() + raw.len(), true);
        }
        fn marker(&mut self, _: &str, _: u64) {}
    }
    let mut mask = Mask(Vec::new());
    let mut redactor = Redactor::new(view.clone(), level);
    redactor.push(text, &mut mask);
    redactor.finish(&mut mask);
    assert_eq!(mask.0.len(), text.len());
    mask.0
}

pub(crate) fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether `stored` is `plain` with markers for all that must, and for nothing but what may be hidden.
fn explains(stored: &[u8], plain: &[u8], must: &[bool], may: &[bool]) -> bool {
    let mut reached = BTreeSet::from([(0, 0)]);
    while let Some((at, of)) = reached.pop_first() {
        if (at, of) == (stored.len(), plain.len()) {
            return true;
        }
        if at < stored.len() && of < plain.len() && stored[at] == plain[of] && !must[of] {
            reached.insert((at + 1, of + 1));
        }
        // What a later write left of a marker is none.
        if stored[at..].starts_with(b"[REDACTED")
            && let Some(len) = stored[at..].iter().position(|b| *b == b']')
        {
            let end = at + len + 1;
            let run = may[of..].iter().take_while(|m| **m).count();
            reached.extend((1..=run).map(|n| (end, of + n)));
        }
    }
    false
}

/// What is known of a plain file, by its inode number.
#[derive(Default)]
struct Known {
    before: Vec<u8>,
    /// Was part of a match at some time.
    may: Vec<bool>,
    /// The raw text that led to the file's first bytes, and how many those are: what a completion
    /// replaced goes on being looked at.
    raw: Option<(Vec<u8>, usize)>,
    /// Only grew since the last completion.
    grew: bool,
}

/// One open file of one agent.
struct Slot {
    agent: usize,
    inode: u64,
    writing: bool,
}

pub(crate) struct Stage {
    socket: PathBuf,
    store: PathBuf,
    plain: PathBuf,
    agents: Vec<Talker>,
    slots: BTreeMap<usize, Slot>,
    next_slot: usize,
    known: BTreeMap<u64, Known>,
    view: Arc<View>,
    level: Level,
    /// All steps, to show them when one went wrong.
    pub(crate) steps: Vec<String>,
    /// Completions that were compared, and how many of them byte by byte.
    pub(crate) compared: (usize, usize),
}

impl Stage {
    /// Agents of a new execution `id`, with a plain directory on a tmpfs.
    pub(crate) fn set(home: &Home, id: &str, agents: usize, level: Level) -> Self {
        let store = execution(home, id);
        let plain = PathBuf::from(format!("/dev/shm/strongroom-{}-{id}", std::process::id()));
        fs::create_dir_all(&plain).unwrap();
        let script = home.dir.path().join("hand.py");
        fs::write(&script, include_str!("hand.py")).unwrap();
        let view_path = home.dir.path().join("view");
        let hand = |agent: usize| {
            let name = if agent.is_multiple_of(2) { "One" } else { "Two" };
            let mut command =
                home.command(&["run", "--no-redact", "--execution", id, "--agent", name]);
            command
                .arg("--secrets-path")
                .arg(&view_path)
                .args(["--", "/usr/bin/python3", "-u"])
                .arg(&script)
                .arg(&plain);
            let mut talker = Talker::spawn(&mut command);
            assert_eq!(talker.line(), "ready");
            talker
        };
        Self {
            socket: home.socket(),
            store,
            agents: (0..agents).map(hand).collect(),
            plain,
            slots: BTreeMap::new(),
            next_slot: 0,
            known: BTreeMap::new(),
            view: view(),
            level,
            steps: Vec::new(),
            compared: (0, 0),
        }
    }

    /// Carries a step out on both; what came out, if it came out alike.
    fn step(&mut self, agent: usize, step: &Json) -> (Json, Json) {
        let line = step.to_string();
        self.steps.push(format!("{agent} {line}"));
        let answer: Json = serde_json::from_str(&self.agents[agent].ask(&line)).unwrap();
        self.steps.push(format!("    {answer}"));
        self.follow();
        (answer[0].clone(), answer[1].clone())
    }

    fn alike(&mut self, agent: usize, step: &Json) -> Json {
        let (ours, theirs) = self.step(agent, step);
        assert_eq!(ours, theirs, "{step}");
        ours
    }

    /// Plain files, by their path below the root.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut left = vec![self.plain.clone()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { left.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files.iter().map(|f| f.strip_prefix(&self.plain).unwrap().to_owned()).collect()
    }

    /// Notes which bytes of the plain files are part of a match now.
    fn follow(&mut self) {
        for file in self.files() {
            let path = self.plain.join(file);
            let (now, inode) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().ino());
            let known = self.known.entry(inode).or_default();
            if known.before == now && known.may.len() == now.len() {
                continue;
            }
            known.grew &= now.starts_with(&known.before);
            let mut may = hidden(&self.view, self.level, &now);
            for (at, may) in may.iter_mut().enumerate() {
                *may |= known.may.get(at) == Some(&true) && known.before[at] == now[at];
            }
            if let Some((raw, of)) = &known.raw
                && now.len() >= *of
                && known.grew
            {
                let whole = [raw, &now[*of..]].concat();
                let more = hidden(&self.view, self.level, &whole);
                for (may, more) in may[*of..].iter_mut().zip(&more[raw.len()..]) {
                    *may |= more;
                }
            }
            known.may = may;
            known.before = now;
        }
    }

    fn writers_of(&self, inode: u64) -> usize {
        self.slots.values().filter(|s| s.inode == inode && s.writing).count()
    }

    fn inode_of(&self, file: &Path) -> u64 {
        fs::metadata(self.plain.join(file)).unwrap().ino()
    }

    /// Open files, by the daemon's own count.
    fn open_files(&self) -> Option<usize> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream
            .write_all(b"GET /v1/metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .ok()?;
        let mut text = String::new();
        // A worker that dies meanwhile is asked again.
        let _read = stream.read_to_string(&mut text);
        let line = text.lines().find_map(|l| l.strip_prefix("strongroom_open_files "))?;
        line.trim().parse().ok()
    }

    /// Waits until the kernel has told of everything that was closed.
    fn settle(&self) {
        let deadline = Instant::now() + LIMIT;
        while self.open_files() != Some(self.slots.len()) {
            assert!(
                Instant::now() < deadline,
                "{:?} files are open, not {}",
                self.open_files(),
                self.slots.len()
            );
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// A file that nobody writes any more is what a redactor makes of the plain one; from now on the
    /// plain one is what is stored.
    fn completed(&mut self, inode: u64) {
        let Some(file) = self.files().into_iter().find(|f| self.inode_of(f) == inode) else {
            return;
        };
        self.settle();
        let path = self.plain.join(&file);
        let plain = fs::read(&path).unwrap();
        let mut stored = fs::read(self.store.join(&file)).unwrap();
        let mut must = hidden(&self.view, self.level, &plain);
        let known = self.known.get(&inode).unwrap();
        let mut is_cut = known.may != must;
        // What only grew goes on where it was, whatever stands in the store for that.
        if let Some((raw, of)) = known.raw.as_ref().filter(|_| known.grew) {
            let whole = hidden(&self.view, self.level, &[raw, &plain[*of..]].concat());
            must[..*of].fill(false);
            must.splice(of.., whole[raw.len()..].iter().copied());
            is_cut |= plain[..*of] != raw[..];
            is_cut |= known.may != must;
        }
        let expected = redact(&self.view, self.level, &plain);
        let context = |stored: &[u8]| {
            format!(
                "{}\nplain  {:?}\nstored {:?}\nexpect {:?}\nmust {}\nmay  {}",
                file.display(),
                shown(&plain),
                shown(stored),
                shown(&expected),
                must.iter().map(|m| if *m { 'x' } else { '.' }).collect::<String>(),
                known.may.iter().map(|m| if *m { 'x' } else { '.' }).collect::<String>(),
            )
        };
        let is_right = |stored: &[u8]| match is_cut {
            true => explains(stored, &plain, &must, &known.may),
            false => stored == expected,
        };
        // A size that was changed by name is no open file that could be counted.
        let deadline = Instant::now() + PATIENCE;
        while !is_right(&stored) && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(1));
            stored = fs::read(self.store.join(&file)).unwrap();
        }
        assert!(is_right(&stored), "{}", context(&stored));
        for (name, value) in VALUES {
            let leaks = stored.windows(value.len()).any(|w| w == value.as_bytes());
            // Short ones count between words only.
            assert!(!leaks || name == "SHORT", "{name}: {}", context(&stored));
        }
        self.compared.0 += 1;
        self.compared.1 += usize::from(!is_cut);
        let raw = match &known.raw {
            Some((raw, of)) if known.grew => Some([raw, &plain[*of..]].concat()),
            _ => None,
        };
        let raw = raw.unwrap_or_else(|| plain.clone());
        if stored != plain {
            // Whoever still reads the old one goes on reading it.
            let new = self.plain.join("new");
            fs::write(&new, &stored).unwrap();
            fs::rename(&new, &path).unwrap();
            self.known.remove(&inode);
        }
        let may = end_marker(&stored, hidden(&self.view, self.level, &stored));
        let new = Known { may, raw: Some((raw, stored.len())), grew: true, before: stored };
        let inode = self.inode_of(&file);
        self.known.insert(inode, new);
    }

    /// No file of the store, staged ones included, contains a value.
    fn search_store(&self) {
        let root = self.store.ancestors().nth(3).unwrap();
        let mut left = vec![root.to_owned()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    left.push(path);
                    continue;
                }
                let bytes = fs::read(&path).unwrap_or_default();
                for (name, value) in VALUES {
                    let leaks = bytes.windows(value.len()).any(|w| w == value.as_bytes());
                    assert!(
                        !leaks || name == "SHORT",
                        "{name} in {}: {}",
                        path.display(),
                        shown(&bytes)
                    );
                }
            }
        }
    }

    /// Bytes that an agent read are those of the plain file, or stars for what may be hidden.
    fn same_text(&self, ours: &Json, theirs: &Json, step: &Json) {
        let bytes = |json: &Json| {
            let text = json.as_str().unwrap_or("");
            (0..text.len() / 2)
                .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
                .collect::<Vec<u8>>()
        };
        if ours.as_str().is_some_and(|t| t.starts_with('!')) || !ours.is_string() {
            assert_eq!(ours, theirs, "{step}");
            return;
        }
        let (ours, theirs) = (bytes(ours), bytes(theirs));
        let context = || format!("{step}\nread  {:?}\nplain {:?}", shown(&ours), shown(&theirs));
        assert_eq!(ours.len(), theirs.len(), "{}", context());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!(ours == theirs || *ours == b'*', "{}", context());
        }
        for (name, value) in VALUES {
            let leaks = ours.windows(value.len()).any(|w| w == value.as_bytes());
            assert!(!leaks || name == "SHORT", "{name} was read back: {}", context());
        }
    }

    fn some_path(random: &mut Random) -> String {
        let name = *random.of(&["f", "g", "h"]);
        let directory = *random.of(&["", "", "", "d/", "e/"]);
        format!("{directory}{name}")
    }

    /// One step at random.
    pub(crate) fn turn(&mut self, random: &mut Random) {
        let agent = random.below(self.agents.len());
        let mine: Vec<usize> =
            self.slots.iter().filter(|(_, s)| s.agent == agent).map(|(n, _)| *n).collect();
        if !mine.is_empty() && random.below(10) < 7 {
            let slot = *random.of(&mine);
            self.turn_on(agent, slot, random);
        } else if random.below(10) < 7 && self.slots.len() < 6 {
            let path = Self::some_path(random);
            let how =
                *random.of(&["r", "w", "rw", "a", "ra", "c", "cx", "ct", "ca", "ca", "ca", "c"]);
            self.open(agent, &path, how);
        } else {
            self.turn_on_names(agent, random);
        }
        self.search_store();
    }

    fn open(&mut self, agent: usize, path: &str, how: &str) {
        let slot = self.next_slot;
        if self.alike(agent, &json!(["open", slot, path, how])) == json!(0) {
            self.next_slot += 1;
            let inode = self.inode_of(Path::new(path));
            self.slots.insert(slot, Slot { agent, inode, writing: how != "r" });
            if how == "ct" && self.writers_of(inode) == 1 {
                // Nothing is left of what was there.
                self.known.insert(inode, Known::default());
            }
        }
    }

    fn turn_on(&mut self, agent: usize, slot: usize, random: &mut Random) {
        let size = 90;
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        match random.below(30) {
            0..=9 => {
                let step = json!(["write", slot, hex(&random.bytes())]);
                drop(self.alike(agent, &step));
            }
            10 | 11 => {
                let step = json!(["pwrite", slot, random.below(size), hex(&random.bytes())]);
                drop(self.alike(agent, &step));
            }
            12 => drop(self.alike(agent, &json!(["append", slot, hex(&random.bytes())]))),
            13 => {
                let step = json!(["noappend", slot, random.below(size), hex(&random.bytes())]);
                drop(self.alike(agent, &step));
            }
            14 => drop(self.alike(agent, &json!(["ftruncate", slot, random.below(size)]))),
            15 | 16 => drop(self.alike(agent, &json!(["fsync", slot]))),
            17 => drop(self.alike(agent, &json!(["fstat", slot]))),
            18 => {
                let step = json!(["seek", slot, random.below(size), 0]);
                drop(self.alike(agent, &step));
            }
            19 => drop(self.alike(agent, &json!(["seek", slot, 0, 2]))),
            20 => drop(self.alike(agent, &json!(["appending", slot, random.below(2)]))),
            21 => drop(self.alike(agent, &json!(["allocate", slot, 0, 1 + random.below(size)]))),
            22..=25 => {
                let step = match random.below(2) {
                    0 => json!(["read", slot, random.below(100)]),
                    _ => json!(["pread", slot, random.below(size), random.below(100)]),
                };
                let (ours, theirs) = self.step(agent, &step);
                self.same_text(&ours, &theirs, &step);
            }
            _ => self.close(agent, slot),
        }
    }

    fn close(&mut self, agent: usize, slot: usize) {
        self.alike(agent, &json!(["close", slot]));
        let closed = self.slots.remove(&slot).unwrap();
        if closed.writing && self.writers_of(closed.inode) == 0 {
            self.completed(closed.inode);
        }
    }

    fn turn_on_names(&mut self, agent: usize, random: &mut Random) {
        let path = Self::some_path(random);
        let directory = *random.of(&["d", "e"]);
        match random.below(12) {
            0 | 1 => drop(self.alike(agent, &json!(["mkdir", directory]))),
            2 => drop(self.alike(agent, &json!(["rmdir", directory]))),
            3 | 4 => drop(self.alike(agent, &json!(["unlink", path]))),
            5 | 6 => {
                let to = Self::some_path(random);
                drop(self.alike(agent, &json!(["rename", path, to])));
            }
            7 => drop(self.alike(agent, &json!(["rename", directory, random.of(&["d", "e"])]))),
            8 => {
                let step = json!(["truncate", path, random.below(60)]);
                if self.alike(agent, &step) == Json::Null {
                    let inode = self.inode_of(Path::new(&path));
                    if self.writers_of(inode) == 0 {
                        self.completed(inode);
                    }
                }
            }
            9 => drop(self.alike(agent, &json!(["list", random.of(&["", "d", "e"])]))),
            _ => drop(self.alike(agent, &json!(["stat", path]))),
        }
    }

    /// Closes everything and looks at all files a last time.
    pub(crate) fn strike(mut self, home: &Home, id: &str) -> (usize, usize) {
        let slots: Vec<(usize, usize)> = self.slots.iter().map(|(n, s)| (*n, s.agent)).collect();
        for (slot, agent) in slots {
            self.close(agent, slot);
        }
        self.search_store();
        let listed = |root: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(listed(&self.plain), listed(&self.store));
        for agent in std::mem::take(&mut self.agents) {
            let (rest, good) = agent.end();
            assert!(good, "{rest:?}");
        }
        // A worker that dies meanwhile does not answer; asking again is fine.
        wait_until("the execution's end", LIMIT, || {
            home.run(&["execution", "end", id]).status.success()
        });
        self.compared
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _removed = fs::remove_dir_all(&self.plain);
        if std::thread::panicking() {
            eprintln!("{}", self.steps.join("\n"));
        }
    }
}

/// A marker at the end may take in what follows.
fn end_marker(stored: &[u8], mut may: Vec<bool>) -> Vec<bool> {
    if stored.ends_with(b"]")
        && let Some(at) = stored.windows(9).rposition(|w| w == b"[REDACTED")
    {
        may[at..].fill(true);
    }
    may
}
