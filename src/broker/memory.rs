//! A broker without vault, identity or records: files for everybody.
//!
//! It is the baseline that benches compare with, and the fake that tests of the mount's semantics
//! use: callers whose uid is listed are agents, all others strangers.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Timestamp;
use crate::identity::Caller;
use crate::identity::attestor::PrincipalNumber;

use super::{Broker, FileFact, Node, Range, Refusal, Request, Standing, Writer};

/// Inode of the first file; directories and identities of principals lie below.
const FIRST_FILE: u64 = 1 << 32;
const FIRST_DIRECTORY: u64 = 1 << 20;
const FIRST_IDENTITY: u64 = 1 << 21;

/// See the module.
#[derive(Debug, Default)]
pub struct MemoryBroker {
    agents: BTreeMap<u32, BTreeMap<String, Vec<u8>>>,
    handles: AtomicU64,
    reads: AtomicU64,
}

impl MemoryBroker {
    /// A broker with nobody in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes callers of `uid` an agent with these files.
    #[must_use]
    pub fn with_agent<'a>(
        mut self,
        uid: u32,
        files: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Self {
        let files = files.into_iter().map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
        self.agents.insert(uid, files);
        self
    }

    /// Reads answered so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// The uid behind a principal's number.
    fn uid(principal: PrincipalNumber) -> u32 {
        u32::try_from(principal.0 - 1).unwrap_or(u32::MAX)
    }

    fn fact(uid: u32, index: usize, name: &str, value: &[u8]) -> FileFact {
        FileFact {
            name: name.to_owned(),
            inode: FIRST_FILE + u64::from(uid) * 4096 + index as u64,
            size_bytes: value.len() as u64,
            uid,
            gid: uid,
            modified: Timestamp::UNIX_EPOCH,
        }
    }

    fn find(&self, inode: u64) -> Option<(FileFact, &[u8])> {
        let below = inode.checked_sub(FIRST_FILE)?;
        let uid = u32::try_from(below / 4096).ok()?;
        let index = usize::try_from(below % 4096).ok()?;
        let (name, value) = self.agents.get(&uid)?.iter().nth(index)?;
        Some((Self::fact(uid, index, name, value), value))
    }
}

impl Broker for MemoryBroker {
    fn standing(&self, caller: Caller) -> Result<Standing, Refusal> {
        if caller.tid == 0 {
            return Err(Refusal::Unattributable);
        }
        Ok(if self.agents.contains_key(&caller.uid) {
            Standing::Agent(PrincipalNumber(u64::from(caller.uid) + 1))
        } else {
            Standing::Stranger
        })
    }

    fn directory(&self, token: &str) -> Option<u64> {
        let uid = token.parse::<u32>().ok()?;
        self.agents.contains_key(&uid).then_some(FIRST_DIRECTORY + u64::from(uid))
    }

    fn inodes(&self, principal: PrincipalNumber) -> Option<(u64, u64)> {
        let uid = u64::from(Self::uid(principal));
        Some((FIRST_DIRECTORY + uid, FIRST_IDENTITY + uid))
    }

    fn files(&self, principal: PrincipalNumber) -> Vec<FileFact> {
        let uid = Self::uid(principal);
        let Some(files) = self.agents.get(&uid) else { return Vec::new() };
        files.iter().enumerate().map(|(i, (n, v))| Self::fact(uid, i, n, v)).collect()
    }

    fn file(&self, principal: PrincipalNumber, name: &str, _caller: Caller) -> Option<FileFact> {
        let uid = Self::uid(principal);
        let files = self.agents.get(&uid)?;
        let index = files.keys().position(|n| n == name)?;
        Some(Self::fact(uid, index, name, files.get(name)?))
    }

    fn node(&self, inode: u64) -> Option<Node> {
        if let Some((fact, _)) = self.find(inode) {
            return Some(Node::Secret(fact));
        }
        let uid = |first: u64| {
            let uid = u32::try_from(inode.checked_sub(first)?).ok()?;
            self.agents.contains_key(&uid).then_some(PrincipalNumber(u64::from(uid) + 1))
        };
        if inode >= FIRST_IDENTITY {
            return uid(FIRST_IDENTITY).map(Node::Identity);
        }
        uid(FIRST_DIRECTORY).map(Node::Directory)
    }

    fn writer(&self, _principal: PrincipalNumber) -> Option<Arc<Writer>> {
        None
    }

    fn owner(&self, principal: PrincipalNumber) -> Option<(u32, u32)> {
        let uid = Self::uid(principal);
        Some((uid, uid))
    }

    fn open(
        &self,
        principal: PrincipalNumber,
        inode: u64,
        _caller: Caller,
        _request: Request,
    ) -> Result<u64, Refusal> {
        let (fact, _) = self.find(inode).ok_or(Refusal::Missing)?;
        if fact.uid != Self::uid(principal) {
            return Err(Refusal::ForeignHandle);
        }
        self.handles.fetch_add(1, Ordering::Relaxed);
        Ok(inode)
    }

    fn read(
        &self,
        handle: u64,
        caller: Caller,
        range: Range,
        _request: Request,
        reply: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        let (fact, value) = self.find(handle).ok_or(Refusal::ForeignHandle)?;
        if caller.tid == 0 {
            return Err(Refusal::Unattributable);
        }
        if fact.uid != caller.uid {
            return Err(Refusal::ForeignHandle);
        }
        self.reads.fetch_add(1, Ordering::Relaxed);
        reply(range.of(value));
        Ok(())
    }

    fn release(&self, _handle: u64) {}

    fn identity(&self, principal: PrincipalNumber) -> Vec<u8> {
        format!("{{\"uid\": {}}}\n", Self::uid(principal)).into_bytes()
    }

    fn refused(
        &self,
        _principal: Option<PrincipalNumber>,
        _inode: u64,
        _caller: Caller,
        _why: Refusal,
    ) {
    }
}
