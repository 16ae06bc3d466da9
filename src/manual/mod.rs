//! The manual, as rustdoc.
//!
//! # Architecture
//!
//! | module | holds |
//! | --- | --- |
//! | [`crate::cli`] | the command line; one file per noun |
//! | [`crate::worker`] | puts the daemon together: state, log, vault, mount, socket |
//! | [`crate::keeper`] | owns the device, socket, runtime state and key box; starts workers |
//! | [`crate::workspace`] | starts an agent on the host |
//! | [`crate::daemon`] | what the verbs do |
//! | [`crate::control`], [`crate::proto`] | HTTP over the socket: table of verbs, roles, types |
//! | [`crate::fuse`], [`crate::fs`] | fuser's trait; the mount's semantics; the errno table |
//! | [`crate::broker`] | attest, decide, record, open, reply, wipe |
//! | [`crate::execution`] | executions, principals, inodes, handles in memory that outlives a worker |
//! | [`crate::identity`] | from a thread id to a principal |
//! | [`crate::audit`] | records, links, verification |
//! | [`crate::catalog`] | names, scopes, definitions, resolution: pure |
//! | [`crate::vault`] | sealed records, key slots, backup |
//! | [`crate::sys`] | system calls: the only unsafe code |
//!
//! **How a READ travels.** The kernel hands the request to one of four threads of fuser;
//! `fuse::adapter` turns it into `fs::tree::Tree::read`; that refuses page-cache fills and asks
//! `broker::local::Local::read`: the handle's slot is looked up, the calling thread resolved by its
//! pidfd and attested by its cgroup, the reader compared with the opener, the version checked, the
//! record pushed to the ring, the value taken from the open values (or decrypted), and the bytes
//! sent.
//!
//! **What outlives what.** The keeper outlives workers: device, socket, runtime state (executions,
//! principals, inodes, open handles, records on their way) and root key are its own. A worker maps
//! them, and may die at any instruction. The vault file and the audit log outlive the keeper.
//! Executions do not: they end with it.
//!
//! **Takeover.** The kernel's INIT is kept; each worker shows it to fuser over a socket pair, puts the
//! real device in the pair's place, and asks for the requests that its predecessor left unanswered
//! (`FUSE_NOTIFY_RESEND`, Linux 6.9; before that the keeper mounts anew). A repeated OPEN finds its
//! handle by request id; a repeated READ is not recorded twice.
//!
//! # The vault's format
//!
//! One redb file. Table `meta`: `format` (u32, 1), `vault-id` (16 bytes), `revision` (u64), `slots`
//! (JSON), `seal`. Table `records`: kind (1 byte) and random id (16) to version (u64) and sealed bytes.
//! Sealed is nonce (12), ciphertext, tag (16) of AES-256-GCM. The root key gives by HKDF-SHA-256 the keys
//! `records`, `set` and `seal`; each record version is sealed under
//! `HKDF(records, kind, id, version)` with vault id, format, kind, id and version as associated data.
//! `seal` holds revision, number of records, the XOR of a keyed digest of each record, and the digest of
//! the slots.
//!
//! # The audit log
//!
//! `audit/YYYY-MM-DD.jsonl`, one JSON object a line: `event`, `secret_key`, `chain`, `agent`, `user`,
//! `timestamp`, `workspace`, then `seq` and what applies of `scope`, `environment`, `version`,
//! `execution`, `uid`, `login_uid`, `pid`, `exe`, `via`, `decision`, `reason`, `count`, `revision`, and
//! `link`: SHA-256 in hex over the previous link and the line up to it. A handle's first read, each read
//! from the start, and every 15 minutes of continued reading are recorded; repeated refusals are counted
//! and written once a minute.
//!
//! # Numbers
//!
//! `STRONGROOM_KILLS=1000 cargo test --test mount no_read_fails -- --nocapture` kills the worker a
//! thousand times under four readers: no failed read, as many records as reads.
//!
//! `cargo bench --bench mount` (root, 2 virtual CPUs, Linux 6.18, all on one CPU, `sync = "batch"`):
//! open + read + close of one secret against a bare fuser server that checks and records nothing, in
//! the same run: p50 42.3 us against 35.1 (ratio 1.2), p99 127 us against 53 (ratio 2.4; the log's
//! writer shares the CPU).
//!
//! # Limits of this version
//!
//! See `SECURITY.md`, last section. Lookup counts of the kernel are not kept: inodes of secrets live as
//! long as the keeper, those of a principal as long as its registration.
#![forbid(unsafe_code)]
