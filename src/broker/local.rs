//! The broker of the host that holds the vault.
//!
//! Invariant: a value is passed on only after the caller was attested in this very request, found to
//! be of the execution that opened the handle and to see that inode itself, and a record was
//! written. Dangers: a descriptor in other hands, an execution that has ended, a version revoked
//! between two reads. Tested in `tests/mount`.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::clock::Clock;
use crate::execution::exposure::{Channel, Exposure};
use crate::execution::handles::{Handle, Handles};
use crate::execution::principal::{File, Principal};
use crate::execution::registry::Registry;
use crate::execution::roster::Inode;
use crate::identity::attestor::{Attestor, PrincipalNumber};
use crate::identity::resolver::Resolver;
use crate::identity::{Caller, Facts};

use super::backend::{Access, Backend, Outcome, Recorder};
use super::open::OpenValues;
use super::refusals::{Burst, Refusals};
use super::{Broker, FileFact, Node, Place, Range, Refusal, Request, Standing, Writer};

/// A continued reading is recorded again after this many seconds.
const RECORD_AGAIN_SECS: u64 = 15 * 60;
/// So many principals' entries are kept before those that have ended go.
const MAX_WRITERS: usize = 4096;

/// See the module.
pub struct Local<B, R> {
    resolver: Resolver,
    attestors: Vec<Box<dyn Attestor>>,
    registry: Arc<Registry>,
    handles: Arc<Handles>,
    backend: Arc<B>,
    recorder: Arc<R>,
    clock: Arc<dyn Clock>,
    open: OpenValues,
    /// Held for reading from the judgement of a request to its answer.
    in_work: RwLock<()>,
    refusals: Refusals,
    /// Principals as users of their events directories; what is in it never changes.
    writers: RwLock<HashMap<PrincipalNumber, Arc<Writer>>>,
}

impl<B: Backend, R: Recorder> Local<B, R> {
    /// Puts the parts together.
    pub fn new(
        resolver: Resolver,
        attestors: Vec<Box<dyn Attestor>>,
        registry: Arc<Registry>,
        handles: Arc<Handles>,
        backend: Arc<B>,
        recorder: Arc<R>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            resolver,
            attestors,
            refusals: Refusals::new(registry.clone(), clock.clone()),
            registry,
            handles,
            backend,
            recorder,
            clock,
            open: OpenValues::new(),
            in_work: RwLock::new(()),
            writers: RwLock::default(),
        }
    }

    /// Files open now.
    pub fn open_files(&self) -> usize {
        self.handles.len()
    }

    /// How callers are told.
    pub fn method(&self) -> crate::identity::resolver::Method {
        self.resolver.method()
    }

    /// The last refusal of a principal, in words.
    pub fn last_refusals(&self, principal: PrincipalNumber) -> Vec<String> {
        let last = self.refusals.last(principal);
        last.map(|last| format!("{}: {} ({})", last.name, last.why, last.at)).into_iter().collect()
    }

    /// Waits until every request that was judged before has been answered: what is denied from then
    /// on is denied to all.
    pub fn settle_requests(&self) {
        drop(self.in_work.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Bursts of refusals since the last call.
    pub fn take_bursts(&self) -> Vec<Burst> {
        self.refusals.take_bursts()
    }

    /// Drops the decrypted values that are denied now.
    pub fn wipe_denied(&self) {
        self.open.retain(|handle| {
            let inode = self.handles.get(handle).map(|h| h.inode);
            let secret = inode.and_then(|inode| self.registry.inode(inode));
            !matches!(secret, Some(Inode::Secret(s)) if self.backend.is_revoked(&s.value))
        });
    }

    /// Drops every decrypted value, as locking the vault asks for.
    pub fn wipe(&self) {
        self.open.retain(|_| false);
    }

    /// Which principal the facts belong to, whatever the uid.
    pub fn attest(&self, tid: u32, facts: &Facts) -> Option<PrincipalNumber> {
        self.attestors.iter().find_map(|a| a.attest(tid, facts, &*self.registry))
    }

    fn attested(&self, caller: Caller) -> Result<(Facts, Option<Arc<Principal>>), Refusal> {
        let facts = self.resolver.resolve(caller).map_err(|_| Refusal::Unattributable)?;
        let principal = self
            .attest(caller.tid, &facts)
            .and_then(|number| self.registry.principal(number))
            .filter(|principal| principal.admits_uid(caller.uid));
        Ok((facts, principal))
    }

    fn fact(principal: &Principal, name: &str, file: &File) -> FileFact {
        FileFact {
            name: name.to_owned(),
            inode: file.inode,
            size_bytes: file.size_bytes,
            uid: principal.uid,
            gid: principal.gid,
            modified: file.created_at,
        }
    }

    /// Refuses a use of `file`, for the record and for the principal's `.identity`.
    fn deny(
        &self,
        principal: Option<&Principal>,
        file: Option<&File>,
        name: &str,
        caller: Caller,
        why: Refusal,
    ) -> Refusal {
        self.refusals.note(principal, name, why);
        let count = self.refusals.count(principal, file, name, caller, why);
        if let Some(count) = count {
            let access = Access {
                outcome: Outcome::Denied(why),
                principal,
                file,
                name: Some(name),
                caller,
                tgid: None,
                count,
                request: 0,
            };
            // The refusal stands whether or not it could be recorded.
            let _recorded = self.recorder.record(&access);
        }
        why
    }

    /// Records the refusals that were counted and whose minute is over, or `all` of them, as a
    /// worker that stops must: without this a burst would be on record as one refusal.
    pub fn record_counts(&self, all: bool) {
        for (key, refused, count) in self.refusals.take_due(all) {
            let access = Access {
                outcome: Outcome::Denied(refused.why),
                principal: refused.principal.as_deref(),
                file: refused.file.as_ref(),
                name: Some(&refused.name),
                // Its thread is long gone, and another may have its id.
                caller: Caller { tid: 0, uid: refused.uid, gid: refused.gid },
                tgid: None,
                count,
                request: 0,
            };
            if self.recorder.record(&access).is_err() {
                self.refusals.put_back(&key, count);
            }
        }
    }

    /// Whether the file may be opened and read now.
    fn usable(&self, file: &File) -> Result<(), Refusal> {
        if self.backend.is_revoked(&file.value) {
            return Err(Refusal::Revoked);
        }
        if file.expires_at.is_some_and(|end| end <= self.clock.now()) {
            return Err(Refusal::Expired);
        }
        Ok(())
    }

    /// Whether the version that was judged is still to be had, when its bytes are about to leave. The
    /// record of this refusal waits for the housekeeping: the reader has waited long enough.
    fn check_again(
        &self,
        reader: &Principal,
        file: &File,
        name: &str,
        caller: Caller,
    ) -> Result<(), Refusal> {
        if !self.backend.is_revoked(&file.value) {
            return Ok(());
        }
        let why = Refusal::Revoked;
        self.refusals.note(Some(reader), name, why);
        self.refusals.count_for_later(reader, file, name, caller, why);
        Err(why)
    }

    /// Notes that the reader's execution obtains this version, before it does.
    fn expose(&self, reader: &Principal, file: &File) -> Result<(), Refusal> {
        let ledger = self.registry.ledger();
        if ledger.knows(&file.value, &reader.execution, Channel::File) {
            return Ok(());
        }
        ledger
            .note(Exposure {
                value: file.value.clone(),
                via: Channel::File,
                execution: Some(reader.execution.clone()),
                chain: Some(reader.chain.clone()),
                agent: Some(reader.agent.clone()),
                user: reader.user.clone(),
                at: self.clock.now(),
            })
            .map_err(|_| Refusal::AuditUnavailable)
    }

    /// Whether a read at `offset` through `handle` wants a record of its own.
    fn wants_record(&self, handle: u64, file: &File, offset: u64, now_secs: u64) -> bool {
        let last = self.handles.recorded_at(handle);
        file.access_log_enabled
            && (offset == 0 || last == 0 || now_secs.saturating_sub(last) >= RECORD_AGAIN_SECS)
    }
}

impl<B: Backend, R: Recorder> Broker for Local<B, R> {
    fn standing(&self, caller: Caller) -> Result<Standing, Refusal> {
        let (_, principal) = self.attested(caller)?;
        Ok(principal.map_or(Standing::Stranger, |p| Standing::Agent(p.number)))
    }

    fn directory(&self, token: &str) -> Option<u64> {
        self.registry.directory(token)
    }

    fn inodes(&self, principal: PrincipalNumber) -> Option<(u64, u64)> {
        self.registry.principal(principal).map(|p| (p.directory, p.identity))
    }

    fn files(&self, principal: PrincipalNumber) -> Vec<FileFact> {
        self.registry.principal(principal).map_or_else(Vec::new, |p| {
            p.files.iter().map(|(name, file)| Self::fact(&p, name, file)).collect()
        })
    }

    fn file(&self, principal: PrincipalNumber, name: &str, caller: Caller) -> Option<FileFact> {
        let principal = self.registry.principal(principal)?;
        match principal.files.get(name) {
            Some(file) => Some(Self::fact(&principal, name, file)),
            None => {
                if self.backend.name_exists(name) {
                    self.deny(Some(&principal), None, name, caller, Refusal::Missing);
                }
                None
            }
        }
    }

    fn node(&self, inode: u64) -> Option<Node> {
        Some(match self.registry.inode(inode)? {
            Inode::Directory(number) => Node::Directory(number),
            Inode::Identity(number) => Node::Identity(number),
            Inode::Secret(secret) => Node::Secret(FileFact {
                name: String::new(),
                inode,
                size_bytes: secret.size_bytes,
                uid: secret.uid,
                gid: secret.gid,
                modified: secret.created_at,
            }),
        })
    }

    fn writer(&self, principal: PrincipalNumber) -> Option<Arc<Writer>> {
        if let Some(known) =
            self.writers.read().unwrap_or_else(PoisonError::into_inner).get(&principal)
        {
            return Some(known.clone());
        }
        let p = self.registry.principal(principal)?;
        let place = Place {
            folder: p.events_folder.clone(),
            chain: p.chain.clone(),
            environment: p.environment.clone(),
            execution: p.execution.to_string(),
        };
        let writer = Arc::new(Writer {
            principal: principal.0,
            place: Arc::new(place),
            token: p.token.clone(),
            uid: p.uid,
            gid: p.gid,
            level: p.redact,
        });
        let mut writers = self.writers.write().unwrap_or_else(PoisonError::into_inner);
        if writers.len() >= MAX_WRITERS {
            writers.retain(|number, _| self.registry.principal(*number).is_some());
        }
        writers.insert(principal, writer.clone());
        Some(writer)
    }

    fn owner(&self, principal: PrincipalNumber) -> Option<(u32, u32)> {
        self.registry.principal(principal).map(|p| (p.uid, p.gid))
    }

    fn open(
        &self,
        principal: PrincipalNumber,
        inode: u64,
        caller: Caller,
        request: Request,
    ) -> Result<u64, Refusal> {
        let _in_work = self.in_work.read().unwrap_or_else(PoisonError::into_inner);
        let principal = self.registry.principal(principal).ok_or(Refusal::ForeignHandle)?;
        let Some((name, file)) = principal.file_by_inode(inode) else {
            // Another principal's inode, reached through a descriptor that was passed.
            let why = Refusal::ForeignHandle;
            return Err(self.deny(Some(&principal), None, "(foreign inode)", caller, why));
        };
        let opened = self.usable(file).and_then(|()| self.backend.value(&file.value));
        let value =
            opened.map_err(|why| self.deny(Some(&principal), Some(file), name, caller, why))?;
        let handle = Handle { principal: Some(principal.number.0), inode, writing: false };
        let handle =
            self.handles.insert(handle, request.id, request.resent).ok_or(Refusal::TooManyOpen)?;
        self.open.insert(handle, value);
        Ok(handle)
    }

    fn read(
        &self,
        handle: u64,
        caller: Caller,
        range: Range,
        request: Request,
        reply: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        let _in_work = self.in_work.read().unwrap_or_else(PoisonError::into_inner);
        let opened = self.handles.get(handle).ok_or(Refusal::ForeignHandle)?;
        let (facts, reader) = self.attested(caller)?;
        let foreign = |reader: Option<&Principal>| {
            self.deny(reader, None, "(foreign descriptor)", caller, Refusal::ForeignHandle)
        };
        let Some(reader) = reader else { return Err(foreign(None)) };
        let opener =
            opened.principal.and_then(|number| self.registry.principal(PrincipalNumber(number)));
        if opener.is_none_or(|opener| opener.execution != reader.execution) {
            return Err(foreign(Some(&reader)));
        }
        // The reader's own definition decides, also within one execution.
        let Some((name, file)) = reader.file_by_inode(opened.inode) else {
            return Err(foreign(Some(&reader)));
        };
        self.usable(file).map_err(|why| self.deny(Some(&reader), Some(file), name, caller, why))?;
        if self.open.is_repeated(handle, caller.tid, range) {
            reply(&[]);
            return Ok(());
        }
        let now_secs = u64::try_from(self.clock.now().as_second()).unwrap_or(0);
        if self.wants_record(handle, file, range.offset, now_secs) {
            let repeated = request.resent && self.recorder.has_recorded(request.id);
            if !repeated {
                let recorded = self.recorder.record(&Access {
                    outcome: Outcome::Granted,
                    principal: Some(&reader),
                    file: Some(file),
                    name: Some(name),
                    caller,
                    tgid: Some(facts.tgid),
                    count: 1,
                    request: request.id,
                });
                // Revoked while this waited for its record: it has obtained nothing.
                self.check_again(&reader, file, name, caller)?;
                recorded?;
            }
            self.handles.set_recorded_at(handle, now_secs);
        }
        self.expose(&reader, file)?;
        let value = self.open.value(handle, || self.backend.value(&file.value))?;
        let bytes = range.of(value.expose());
        self.check_again(&reader, file, name, caller)?;
        // Before the reply: the next request may come at once, by another thread of ours.
        self.open.note_read(handle, caller.tid, range, bytes.len());
        reply(bytes);
        Ok(())
    }

    fn release(&self, handle: u64) {
        self.open.remove(handle);
        self.handles.remove(handle);
    }

    fn identity(&self, principal: PrincipalNumber) -> Vec<u8> {
        let Some(principal) = self.registry.principal(principal) else { return Vec::new() };
        let refusal = self.refusals.last(principal.number).map(|last| {
            serde_json::json!({
                "name": last.name,
                "reason": last.why.to_string(),
                "at": last.at,
            })
        });
        let secrets: serde_json::Map<_, _> = principal
            .files
            .iter()
            .map(|(name, file)| {
                let fact = serde_json::json!({
                    "version": file.version,
                    "expires_at": file.expires_at,
                });
                (name.clone(), fact)
            })
            .collect();
        let document = serde_json::json!({
            "principal": {
                "execution": principal.execution,
                "chain": principal.chain,
                "agent": principal.agent,
                "environment": principal.environment,
                "workspace": principal.workspace,
            },
            "isolation": principal.isolation.as_deref().unwrap_or("none"),
            "secrets": secrets,
            "last_refusal": refusal,
        });
        let mut text = serde_json::to_vec_pretty(&document).unwrap_or_default();
        text.push(b'\n');
        text
    }

    fn refused(
        &self,
        principal: Option<PrincipalNumber>,
        inode: u64,
        caller: Caller,
        why: Refusal,
    ) {
        let principal = match principal {
            Some(number) => self.registry.principal(number),
            None => self.attested(caller).ok().and_then(|(_, principal)| principal),
        };
        let file = principal.as_ref().and_then(|p| p.file_by_inode(inode));
        let name = file.map_or("(foreign inode)", |(name, _)| name);
        self.deny(principal.as_deref(), file.map(|(_, file)| file), name, caller, why);
    }
}

impl<B, R> std::fmt::Debug for Local<B, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("registry", &self.registry).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::secret::SecretBytes;

    /// A vault with one value, which may be revoked at any moment.
    #[derive(Default)]
    struct OneValue(std::sync::atomic::AtomicBool);

    impl Backend for OneValue {
        fn value(&self, _: &str) -> Result<SecretBytes, Refusal> {
            Ok(SecretBytes::copy_of(b"old value"))
        }
        fn is_revoked(&self, _: &str) -> bool {
            self.0.load(std::sync::atomic::Ordering::Acquire)
        }
        fn name_exists(&self, _: &str) -> bool {
            true
        }
    }

    /// A log that takes each record when it is told to.
    struct Parked {
        waits: Mutex<std::sync::mpsc::Sender<Outcome>>,
        go: Mutex<std::sync::mpsc::Receiver<Result<(), Refusal>>>,
    }

    impl Recorder for Parked {
        fn record(&self, access: &Access<'_>) -> Result<(), Refusal> {
            self.waits.lock().unwrap().send(access.outcome).unwrap();
            if access.outcome == Outcome::Granted {
                return self.go.lock().unwrap().recv().unwrap();
            }
            Ok(())
        }
        fn has_recorded(&self, _: u64) -> bool {
            false
        }
    }

    struct Everybody(PrincipalNumber);

    impl Attestor for Everybody {
        fn name(&self) -> &'static str {
            "everybody"
        }
        fn attest(
            &self,
            _: u32,
            _: &Facts,
            _: &dyn crate::identity::attestor::Members,
        ) -> Option<PrincipalNumber> {
            Some(self.0)
        }
    }

    #[test]
    fn a_reader_that_waits_for_its_record_during_a_revoke_gets_nothing_and_has_obtained_nothing() {
        use crate::execution::journal::Journal;
        use crate::execution::state::State;
        use std::sync::atomic::Ordering;
        use std::sync::mpsc::channel;

        let state = State::create().unwrap();
        let registry = Arc::new(Registry::open(Journal::open(&state)));
        let (principal, file) = crate::execution::registry::fixture(&registry);
        let (waits, parked) = channel();
        let (go, told) = channel();
        let backend = Arc::new(OneValue::default());
        let broker = Arc::new(Local::new(
            Resolver::new(true),
            vec![Box::new(Everybody(principal.number))],
            registry.clone(),
            Arc::new(Handles::open(&state)),
            backend.clone(),
            Arc::new(Parked { waits: Mutex::new(waits), go: Mutex::new(told) }),
            Arc::new(crate::clock::SystemClock),
        ));
        let knows = || registry.ledger().knows(&file.value, &principal.execution, Channel::File);
        // Whatever becomes of the record, a revoked version is told as revoked.
        for outcome in [Ok(()), Err(Refusal::AuditUnavailable)] {
            backend.0.store(false, Ordering::Release);
            let (reader, number) = (broker.clone(), principal.number);
            let (inode, uid, gid) = (file.inode, principal.uid, principal.gid);
            let read = std::thread::spawn(move || {
                let tid = nix::unistd::gettid().as_raw().cast_unsigned();
                let caller = Caller { tid, uid, gid };
                let request = Request { id: 1, resent: false };
                let handle = reader.open(number, inode, caller, request).unwrap();
                let mut got = Vec::new();
                let range = Range { offset: 0, size: 4096 };
                let mut reply = |bytes: &[u8]| got.extend_from_slice(bytes);
                let answer = reader.read(handle, caller, range, request, &mut reply);
                (answer, got)
            });
            assert_eq!(parked.recv().unwrap(), Outcome::Granted);
            backend.0.store(true, Ordering::Release);
            go.send(outcome).unwrap();
            assert_eq!(read.join().unwrap(), (Err(Refusal::Revoked), Vec::new()));
            broker.settle_requests();
            assert!(!knows());
        }
        // Its record came later, once for both.
        assert!(parked.try_recv().is_err(), "the answer waited for no second record");
        broker.record_counts(true);
        assert_eq!(parked.recv().unwrap(), Outcome::Denied(Refusal::Revoked));
        assert_eq!(broker.last_refusals(principal.number).len(), 1);
    }
}
