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
//! | [`crate::events`] | files that agents write: drafts, what is held back, the store on the disk |
//! | [`crate::broker`] | attest, decide, record, open, reply, wipe |
//! | [`crate::execution`] | executions, principals, inodes, handles in memory that outlives a worker |
//! | [`crate::redact`] | finds values, formats and random text in a stream; markers |
//! | [`crate::rotation`] | when versions change their stage and rotations are due: pure |
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
//! **How a WRITE travels.** `fs::tree` hands it to [`crate::events`]: the writer must be of the folder's
//! execution, the file's draft is locked, and the redactor takes the bytes if they continue the file.
//! What it has decided goes to the store; what could still become a secret, and what was written
//! elsewhere, goes sealed into the runtime state, with the request's id, before the answer. When the
//! last writer closes the file, its end is decided and it is complete.
//!
//! **What outlives what.** The keeper outlives workers: device, socket, runtime state (executions,
//! principals, inodes, open handles, records on their way) and root key are its own. A worker maps
//! them, and may die at any instruction. The vault file and the audit log outlive the keeper.
//! Executions do not: they end with it, unless a service manager keeps its descriptors.
//!
//! **Service manager.** Where `NOTIFY_SOCKET` names one (sd_notify(3)), the keeper stores
//! `strongroom-device`, `strongroom-socket` and `strongroom-state` there, and takes them back from
//! `LISTEN_FDS` and `LISTEN_FDNAMES` when it is started anew: mount, executions, pins and open files go
//! on, requests meanwhile wait. The root key is not stored: it is unlocked as at any start, and until
//! then reads get `ENOKEY`. SIGUSR1 (`RestartKillSignal=` of the unit) has the keeper leave all that
//! behind; SIGTERM unmounts and takes the descriptors out of the store. A worker whose keeper died then
//! goes without unmounting; each holds `worker.lock` to its certain end, so that two never serve. What
//! was kept but has lost its mount is dropped, and the start is a new one. `READY=1` comes when the
//! vault is unlocked, `STATUS=` says how things are, `RELOADING=1` begins a reload, and every second
//! the housekeeping thread's word becomes `WATCHDOG=1` where that is wanted. `tests/store.rs` shows
//! it with a manager that speaks the protocol, `tests/systemd.rs` both units under systemd itself,
//! all under running agents; `tests/unit.rs` checks what the units set. A managed daemon of root's
//! asks systemd for the delegated scope `strongroom-agents.scope` (systemd-run(1)) and makes agents'
//! control groups there, so that no stop or restart of the unit ends them; a process of ours holds it,
//! and it goes with its last process. Else they are made at the top of the v2 hierarchy.
//!
//! **Down.** `down` asks who runs and ends nothing while somebody does (status 7, with a line for each
//! execution); `--end-agents` ends the executions first, as `execution end` does; `--force` leaves the
//! processes alive. Those have lost their view at once: the connection is aborted, every bind of the
//! mount answers `ENOTCONN`, and nobody looks after them any more; a later daemon does not know them. A
//! `run` that redacts their output closes it after 15 s without a daemon and leaves with 125. A daemon
//! that does not answer within 5 s is not asked any longer. SIGTERM and the stop of a unit are as
//! `--force`.
//!
//! **Takeover.** The kernel's INIT is kept; each worker shows it to fuser over a socket pair, puts the
//! real device in the pair's place, and asks for the requests that its predecessor left unanswered
//! (`FUSE_NOTIFY_RESEND`, Linux 6.9; before that the keeper mounts anew: requests in flight fail, and an
//! agent whose directory is bound in its own namespace finds it dead until it is started anew, while the
//! shared directory serves it on). A repeated OPEN finds its
//! handle by request id; a repeated READ is not recorded twice.
//!
//! # The vault's format
//!
//! One redb file. Table `meta`: `format` (u32, 2), `vault-id` (16 bytes), `revision` (u64), `slots`
//! (JSON), `seal`. Table `records`: kind (1 byte) and random id (16) to version (u64) and sealed bytes.
//! Sealed is nonce (12), ciphertext, tag (16) of AES-256-GCM. The root key gives by HKDF-SHA-256 the keys
//! `records`, `set` and `seal`; each record version is sealed under
//! `HKDF(records, kind, id, version)` with vault id, the number 1 (u32), kind, id and version as
//! associated data. `seal` holds revision, format, number of records, the XOR of a keyed digest of each
//! record, and the digest of the slots. Format 2 brought the kinds 10 and 11, and the format into the
//! seal; a vault of format 1 gets it with its next change. Programs refuse a format that is newer than
//! theirs before they look at anything else.
//!
//! # The audit log
//!
//! `audit/YYYY-MM-DD.jsonl`, one JSON object a line: `event`, `secret_key`, `chain`, `agent`, `user`,
//! `timestamp`, `workspace`, then `seq` and what applies of `scope`, `environment`, `version`,
//! `execution`, `uid`, `login_uid`, `pid`, `exe`, `via`, `decision`, `reason`, `count`, `revision`, `took_us`, and
//! `link`: SHA-256 in hex over the previous link and the line up to it. A handle's first read, each read
//! from the start, and every 15 minutes of continued reading are recorded; repeated refusals are counted
//! and written once a minute. An entry for `[redaction] allow` is an `allow_made` record before it is
//! given out, with the token's length and the key's id as `reason`; a refused one is `role_denied`.
//!
//! A `checkpoint` record seals all up to `sealed_seq`: its `signature` (Ed25519) by `public_key`, which
//! the one before announced as its `next_key`, is over its other own fields. Keys live in the vault;
//! each is forgotten when its checkpoint is written. `first.pub` beside the log is the first key,
//! `anchor.json` the signed start of a pruned log, `reserve` (1 MiB) what a full disk leaves for
//! revokes, ends and alerts. `[audit] sync` is `each`, `batch` or `os`; `checkpoint` ("300s") and
//! `checkpoint_records` (10000) say when one is due.
//!
//! # Versions, rotation, revoke
//!
//! A version is `pending`, `current`, `previous`, `retired` or `revoked`. `secret rotate` stages a
//! pending one; executions that start from its `valid_from` on are pinned to it. It becomes current
//! when no running execution is pinned to the old one, or after `[rotation] drain`. Old versions stay
//! `previous`, readable by those that hold them; the newest can be brought back for `keep_previous`.
//! When nobody holds one it is retired, and destroyed after `keep_retired`. A group changes in one
//! commit; its versions carry a generation, and an execution never gets members of two. `rollback`
//! while a version is pending gives that one up; a second `rollback` goes back one version. A secret
//! that is `floating` is not pinned: agents' files follow its current version at the next open.
//!
//! `[rotation] drain`, `keep_previous`, `step_timeout` and `[redaction] keep_retired` are periods like
//! `"24h"`.
//!
//! **Rotation chains.** Agents `create` and `test`, if wanted `set`, `finish`, `revoke`, each with a
//! command (absolute paths; the working directory is the home of the user who applied the chain, and
//! that is who it runs as). `create` prints the value, for a group a JSON object. Until `test` has
//! passed nobody else gets it. The definition's `"rotates": ["NAME"]` gives an agent the files
//! `NAME@current` and `NAME@pending`; `STRONGROOM_ROTATION_NAME`, `_TOKEN` and `_STEP` are set.
//! `finish` runs when nobody holds the old version any more, `revoke` after an emergency revoke; both
//! are kept in the vault until they succeed, and tried again after 15 minutes, doubled up to a day.
//!
//! What a step says on stderr is passed on when the step is over: its redacted end (4 KiB) to whoever runs
//! `rotation run`, a line of it (320 bytes) into log, record and alert of a failure. It is redacted at
//! level `all`, with all names, and against what the step printed on its stdout. It is withheld where that
//! is not certain (longer than 1 MiB, a `create` whose value is not known or weak). Of a `create` that
//! failed without having printed anything only the person sees it: what it may have made is not known.
//! `finish` removes the old key at its provider: before it is begun, the old version is marked
//! (`withdrawn_at`), and `rollback` brings it back by `--force` alone.
//!
//! **Exposures.** Who obtained a version (`file`, `env`, `rotation`, `reveal`) is noted in the runtime
//! state before the bytes leave; those by `env`, `rotation` and `reveal` are in the vault as well before
//! they leave, those by `file` within about a second. The death of workers loses none. When keeper *and*
//! worker are killed at once (or the host stops), the ledger may lack files that were first read in the
//! last second; their records are in the audit log (`[audit] sync = "each"`: all of them). When the
//! keeper alone dies, its worker stores what is left before it goes.
//!
//! **The next keeper** knows no executions of the one before; agents' processes may live on. They see
//! nothing of the mount, and are nobody to it. A revoke still finds and ends those that had obtained the
//! value, by group and by the environment of their launch, and names all others that had (`over`).
//!
//! **Revoke**, in this order: intent in the runtime state; denial, from which every read fails
//! (`EKEYREVOKED`); requests in work answered, those that wait for their record at once and without the
//! value; launches in work waited for; exposed executions taken
//! off the register and killed by their cgroup, and with them processes outside it that descend from
//! their launcher or bear its environment; one durable commit with the replacement; executions that
//! never obtained it pinned anew; emptiness awaited, 5 s at most; records; alert. Launches wait
//! meanwhile. A later worker denies again before it serves, and finishes the rest. Where the vault
//! cannot be written, the verb fails and says that the denial holds and who was ended; the commit is
//! tried again every second. Of each revoked version a keyed fingerprint stays, also when its secret is
//! removed: its value is taken for no other version again. A backup takes fingerprints and their key
//! along, and a restore adds to those that are there. What an agent had obtained when it redeems a ticket counts as obtained by
//! the new execution as well.
//!
//! **Alerts** (`[[alert]] name, on, command | webhook, timeout`): `rotation_due`, `rotation_failed`,
//! `secret_revoked`, `secret_expired`, `verify_failed`, `unlock_failed`, `redaction_probe` (see the event
//! store), `denied_burst` (20 refusals of one agent within a minute). `secret_expired` is of `expires_at`, and of a `valid_until` that leaves new
//! executions without a version; like due notices it is told once, also when the end came while no
//! daemon ran. Three tries each, recorded as `alert_sent` or `alert_failed`. Each place
//! has a bounded queue and a thread of its own; what a killed worker did not deliver, the next one does.
//!
//! **Schedule.** A period counts from the last rotation by the host's clock (UTC); suspend and downtime
//! count as time. Where the clock is found to be behind the last rotation, the period counts from that
//! moment, until the clock is past it again.
//!
//! # Isolation
//!
//! `run --isolate` starts the agent in pid and mount namespaces of its own (a plain user's in a user
//! namespace), led by a small process of ours that is its process 1: the command is process 2. It has
//! its own `/proc`; state, runtime and configuration paths, the key file, the mount's shared root and
//! `/run/user/UID/{bus,systemd}` are covered; its secrets are at `$CREDENTIALS_DIRECTORY` as ever.
//! Control groups are read-only, nothing that it executes gains rights (no `sudo`), Landlock keeps
//! signals and abstract sockets inside. A working directory beneath a cover becomes `/`. Hence it
//! reaches no control socket: `may_launch` is not for isolated agents.
//!
//! The launcher tries it out in a child first and tells the daemon what this host gives, which goes on
//! record (`reason` of `agent_started`), into `execution show` and `.identity`; the agent then finds
//! the same, or does not run. `"isolate": true` in an agent's definition refuses every other launch on
//! the host (code `not_isolated`); `run` and `chain run` isolate it unasked. Where no namespace can be
//! made, `run --isolate` fails. `--redact off` does not make `run` become an isolated command, and a
//! shell that is left on the caller's terminal that way has no job control.
//!
//! # Requests that are repeated
//!
//! A `POST` under an `Idempotency-Key` (1 to 128 characters, a new one for each request) is done once: the
//! same uid, verb, key and body get the first answer again for ten minutes, with the header
//! `idempotency-replayed: true`; another body is refused (409), and so is a repetition while the first is
//! in work (503). Keys (256 at most, answers up to 16 KiB) are in the runtime state: the next worker knows
//! them, the next keeper does not. Of a request a keyed digest is kept. A key whose worker died in the
//! middle, or whose answer was too long, is told of (409): look what took effect. A refused request is not
//! remembered. Verbs whose answers hold a value, a key or a ticket, streams, and those of agents take no
//! key (400).
//!
//! The command line does this by itself, so that a worker that dies or is replaced fails no command: what
//! may be done twice is asked again, a change is asked again under its key, and a launch is undone by the
//! id that the launcher chose for it (`launch`) and made anew. Redeeming a ticket, unlocking, and what
//! reveals a value or a key are asked once.
//!
//! An agent or an execution whose end had begun is in the runtime state until its processes are gone and
//! the end is on record: the next worker ends and records it, once, and whoever asks again waits for that.
//! An execution that `run` made for a launch which was cut short ends as well.
//!
//! # The output of `run`
//!
//! The agent's stdout and stderr go through the worker: what its chain's agents can see is hidden by
//! name, what of others cannot be guessed as `[REDACTED]`, and known formats (`--redact values`,
//! `formats`, `all`, `off`). Pipes stay pipes; outputs that are one open file stay one, so that their
//! order stays; `/dev/null` is left alone. Where stdin and stdout are one terminal the agent gets a
//! terminal and a session of its own, led by a small process of ours that tells the launcher of stops;
//! the caller's terminal passes keys on meanwhile, and is given back at stops and at the end (not
//! when the launcher is killed by SIGKILL). Where only an output is a terminal, that output becomes a
//! terminal of its own, and keys and job control stay the caller's; what is written to `/dev/tty` is
//! not redacted then.
//!
//! No clock lets held bytes go. What could become a value of the agent's own chain is held; on a
//! terminal fewer than 4 bytes of it never are, so that keys are seen as they are typed. Of values of
//! others nothing is held, because that could be watched and would give them away byte by byte: one
//! that comes in two pieces shows its first. At the end of the main process what is left of the agent
//! is ended and its last output passed on; with `--keep-background` `run` stays until the output is
//! closed. A daemon that is gone for 15 s, or a locked vault, stops the output: the agent meets a closed
//! pipe (or a terminal that hung up), `run` says so and leaves with 125. `--redact off` (`--no-redact`)
//! makes `run` become the command (`tree` identity and `--keep-background` excepted); its end is then
//! noticed as that of a process.
//!
//! `POST /v1/redact?level=L[&launch=ID]` is how: bytes for bytes, or after
//! `Upgrade: strongroom-redact` frames ([`crate::proto::stream`]). Each answer carries what the next
//! worker needs, sealed with a key of the vault and bound to the session and the uid, so that a client
//! loses and doubles nothing when a worker dies. Peers with `operate` or `audit` for the whole daemon have
//! every value looked for; whoever made a launch, what is looked for in its events; all others, agents
//! among them, known formats. The answer's `strongroom-scope` says which. Records: `output_redacted`,
//! by name and count, with `reason` `stdout`, `stderr`, `output` or `terminal`.
//!
//! # The event store
//!
//! `events/CHAIN/ENV/EXECUTION/` (a `/` of the chain's name is `%2F`, no environment `-`) holds what
//! the agents of one execution wrote; `CHAIN/ENV/@chain` what all of them wrote, where the definition
//! says `"events": "chain"`. `.strongroom` beside them is the daemon's own. `events path` prints an
//! execution's folder, which is there from its start on. `events prune`, and housekeeping by `[events]
//! keep`, remove a folder when its execution has ended, no file in it is open, and nothing in it
//! changed (by ctime, which agents cannot set) for so long; of a shared folder they remove the old
//! files while no execution of the chain runs. Each removal is an `events_pruned` record.
//!
//! **What an agent sees in `events`.** A directory as any other: create, write, append, truncate,
//! rename (`RENAME_NOREPLACE` too), unlink, mkdir, rmdir, fsync, `fallocate` (without holes), reading
//! back. While a file is open for writing, its sizes, offsets and bytes are its writers' own, held
//! bytes included; what is redacted reads as `*`, also a whole value that is only held back. When the
//! last writer has closed it the file is complete: it has a new inode number if anything was redacted,
//! and shows what is stored; who had it open before goes on seeing what it saw, until a worker dies
//! (`ESTALE` from then on). Opened anew, it starts
//! from its stored bytes, and a secret that a later append completes is still caught.
//! Appending is judged by each write: `O_APPEND` as the descriptor has it now, `RWF_APPEND`,
//! and `RWF_NOAPPEND` by its offset, unless that is a length that the file had before: the kernel may
//! append there when several processes do so, and that goes to the end. A size that is changed by name is complete when it is answered.
//!
//! Refused: symbolic and hard links, devices, fifos (`EPERM`), extended attributes (`EOPNOTSUPP`),
//! shared mmap (`ENODEV`), a read that would fill the page cache (`EINVAL`), moving anything in or out
//! (`EROFS`), holes and other ranges that the kernel would cut, zero, insert or share (fallocate(2),
//! `FICLONE`; `EOPNOTSUPP`: those bytes would change behind the redactor), copy_file_range and sendfile out of
//! a file (`EINVAL`), names with a secret of the writer's own chain (`EPERM`), more than `[events] max_file` or
//! `max_total` (`EDQUOT`), everything while the vault is locked (`ENOKEY`). Owner and group cannot be
//! changed and nobody is told; modes of stored files are never less than `[events] mode`.
//!
//! **What the store gets.** The bytes that the redactor has decided, at once; a finished line needs no
//! close. What is written elsewhere than at the end, or cut, is collected in the runtime state, sealed,
//! and applied in one pass to a file in `.strongroom` that then takes the name: at fsync, at completion,
//! and when more than `[events] max_held` (16 MiB unless told otherwise, 32 at most) of a file is
//! collected. Nothing is ever refused for its order, no write gets `EFBIG`: the same bytes in another
//! order would be taken, and the bound is on memory, for which another pass pays as well
//! (`writes_in_any_order_are_applied_when_they_are_much_and_none_is_refused`). What is left of a match that
//! a later write cut stays redacted. A file that its writer has closed and then renames is whole when
//! the new name appears. inotify tells of `CLOSE_WRITE` when the file is complete; a worker that died
//! closes its files early. Hidden ranges, which writers' offsets and a later pass need, stay in the
//! runtime state for 512 of them, then go sealed into a file in `.strongroom`, about 8 bytes each, until
//! the file is complete. All drafts together use half of the runtime state; then collected writes are
//! applied at once, and where that does not help writers get `ENOSPC`.
//!
//! **Values that come later.** A change that stores values (`secret set`, `rotate`, `group`, `import`,
//! a restore, `secret edit --plain false`) stores with them, in the vault, that the store is to be
//! searched for them; the note goes when every file was looked at, so that a worker or daemon that
//! dies leaves it to the next. What is written is judged by the new values from the change's commit
//! on. The search goes through all files that have a name, one after the other, at the level of
//! `[events] redact` without formats; agents that move files meanwhile tell it where to. A complete
//! file that has one is redacted into a new file, which takes its place by rename, with owner, mode,
//! and times of the old one and a new inode number; who had it open goes on seeing what it saw. One
//! that is being written is searched and made anew under its lock, also where it ends in the
//! beginning of a value, and where its name was removed meanwhile. One without a name that is only read
//! any more is left: it goes with its last reader, who goes on seeing what it saw. Each file that had
//! something is an `event_redacted` record, and no `redaction_probe` counts it.
//! `status` (`events_search`) shows how far it is; a file that cannot be read, or has a second name from
//! outside, is told there and in the log, and tried again with the next change, or after 30 s,
//! doubled up to an hour.
//!
//! **How much.** `[events] redact` is `"all"` (the default), `"formats"` or `"values"`, for agents
//! that are launched from then on. There is no `"off"`.
//!
//! **A slow store.** At most half of the mount's threads carry out requests of events; the rest go to
//! a bounded pool, and whatever is not done after `[events] patience` (20 s) gets `EIO`. Such a request
//! may still be carried out when the store answers again.
//!
//! **Who guesses.** Twenty values of others in what an execution writes within a minute raise the alert
//! `redaction_probe`. So do twenty beginnings of such values (of 32 bits and more; words, and what all of
//! a kind begin with, count for nothing) that agents of one chain wrote and did not go on with, or that
//! they had read, made durable or opened; one is forgiven each hour. The events of that chain are slow
//! from then on, about twenty requests a second for all of its agents together, so that the clock tells
//! nothing; `status` warns of it, and `strongroom reload` ends it. An agent that reports tokens of other
//! chains in whole is not slowed down.
//!
//! **The oracle.** `tests/events` plays random steps of several agents on the mount and on a tmpfs, with
//! values of a two-letter alphabet, and compares every complete file with what the redactor makes of
//! the plain one; again while workers are killed. `STRONGROOM_SEEDS=N` plays more of them,
//! `STRONGROOM_SEED=S` one again, which a failing run names.
//!
//! **Suites of others** run on `events` as well (`tests/events/suites.rs`, `volume.rs`): fio's own checks (in
//! order, at random, mixed, synced, direct), `fsx` and `pjdfstest` from crates.io. Of `fsx` these are left
//! out: mapped reads and writes and msync, sendfile and copy_file_range (they would fill the page
//! cache, or have no process behind them), and holes. Of `pjdfstest` all cases run, and these fail, each
//! listed with its reason in the test: what makes links, devices, fifos or sockets (refused); modes of
//! new files and of directories, and modes less than `[events] mode` (the configuration's); a file of 2
//! GiB (there are no holes, and `max_file`); what a process does as another user (who is nobody here).
//! Remounting read-only, another file system and flags of files are not asked for.
//!
//! # Redaction
//!
//! Every occurrence of every needle counts, also overlapping ones. Ranges that share a byte become one
//! marker, named by the longest of the best grade (the value as it is, then its other forms, then
//! formats, then what looks random); touching ranges stay apart. Of
//! ranges as long the leftmost names, and all names of that in order, whatever the stages of their
//! versions. The output is a function of the whole text and of what is looked for, however the text is
//! cut into writes and whatever process goes on with it.
//!
//! **Looked for** of each value: itself without white space around it; the password of a URL; strings
//! of a JSON or YAML value (block mappings and lists, no escapes) and values of a dotenv text; lines of
//! at least 16 bytes that look random. Each of these also as base64 (three alignments, both alphabets), base32, hex (also `\x..` and with colons),
//! UTF-16 and its base64, and, where it differs, in the escapes of JSON (once, twice, ASCII, `\/`,
//! HTML-safe), URLs (each set of reserved characters, forms, twice), POSIX shell, SQL, CSV, Python, Go
//! and XML, and quoted-printable (not across its soft line breaks). Hex, base32 and the digits of percent escapes in either case. A form shorter than 8 bytes is not looked for.
//!
//! Characters of base64 that a value shares with its neighbours (up to four bits of its first and of
//! its last byte) stay at levels `values` and `formats`, where a line that ends there must not wait for
//! what follows; at level `all`, which decodes runs of at least 16 characters, they go too.
//!
//! **Line breaks.** A newline, as it is or escaped (`\n`, `\r\n`, up to four backslashes), with white
//! space around it and `>`, `+ `, `| ` or `# ` behind it, 64 bytes in all, counts as one break. Values of
//! several lines are found with any breaks between their lines. Any needle made of base64's characters
//! is found with breaks in it, where at least 16 such characters stand before a break; fewer than four
//! of its own characters before its first break stay as they are, so that lines that end in a word or a
//! digest do not wait for the next line.
//!
//! **Prefixes.** A value of several lines, the first of at least 8 bytes, is also found where each of
//! its lines stands behind what a logger writes: at most 64 bytes, on each line as many and the same but
//! for digits. The prefixes between its lines go with it.
//!
//! **Weak values.** 4 bytes and fewer, and what stands in markers: never looked for. 5 to 7 bytes, fewer
//! than 8 digits, one repeated character, ordinary words: only between bytes that are no part of a word.
//! `secret set` and `rotate` say so; `status` counts values that are never looked for.
//!
//! **Held back** is the longest end of the text that is the beginning of a needle, or stands in a range
//! that is still open: at most the longest needle less one byte, more only by the breaks in it. There
//! is no timer. At the text's end, at least 8 bytes of a named value beyond what all of its kind begin
//! with become a marker; else the bytes stay.
//!
//! **JSON** that parsed parses after: a backslash that a range would leave alone goes with it, and a
//! number that is a value becomes a string. A document that is nothing but a number is not told from a
//! line of a log. A text that was redacted is redacted to itself, but for a weak value beside a marker.
//!
//! **Formats and entropy** have a page of their own: [`redaction`].
//!
//! **Nested.** At level `all`, runs of at least 16 characters of base64 are decoded at each of the four
//! alignments, twice at most, and what comes out is searched for all forms and for known formats: base64
//! of JSON of base64, a token or a key in a manifest of Kubernetes. Lines of at least 48 characters with
//! at most 32 bytes between them (newline, as it is or escaped, indent, quote marks) count as one. A key,
//! and a token whose length no rule fixes, take the rest of their base64 with them, in its lines and no
//! further. The work for each byte is bounded by a constant, so nothing passes unseen because it is much.
//! Where a write ends inside a word, one or two more characters may wait.
//!
//! **Not found**: what is compressed or encrypted (an event file that begins so is on record as
//! `event_unchecked`, with what it is, each time that it is complete); encodings within others than these; what looks random
//! in decoded base64; nested base64 in lines of less than 48 characters; values split by anything but a
//! break or a prefix of each line.
//!
//! `STRONGROOM_CASES=20000 cargo test --release --test redact` compares 20,000 texts with a second
//! statement of these rules; without it 1,000 to 2,000 of each kind. `tests/fuzz` has the same as
//! targets for `cargo fuzz`.
//!
//! # Outputs
//!
//! `"outputs": ["./out"]` of an agent names files and directories beneath the directory that its
//! launcher was started in. When the agent has ended (also by its execution's end, a deadline, or its
//! launcher's death) they are searched at level `all` for what is looked for in its events. That is done
//! with its user's rights on files (setfsuid(2) of one thread), through no link and onto no other file
//! system, and each finding is an `output_found` record. `"on_finding"`: `"report"` (the default),
//! `"redact"` (a file without secrets takes its place by rename, with its permission bits), or `"fail"`:
//! `run` then leaves with 125 where the command itself succeeded, also when something could not be
//! searched, or no daemon is there to tell. `run` waits for the search; where the agent ends otherwise
//! it goes on behind.
//! Findings are on record before a file is replaced, and once: a worker that dies over it leaves the
//! search to the next, which begins it anew, records what is not on record yet, and tells `run` of all.
//! After 1,000 findings of an agent one record says that there are more. What cannot be recorded stays
//! as it is, is told as not searched, and searched again when records can be written; of a locked
//! vault it is on record as not searched, and done when it is unlocked.
//!
//! `chain run` runs agents with a command in order, in one execution that ends with it. Each command
//! is the child of a `tee` within the agent, which writes `AGENT.log` through the agent's own mount.
//!
//! # Filter and scan
//!
//! `redact` and `scan --values` send their text to the worker and get it back with markers; the values
//! never come to their process. They are for `operate` and `audit` without a limit to chains; for
//! others, and without a daemon, they refuse, but for `redact --level formats`, which says so and goes
//! on with known formats, and `--local`. `scan` without `--values` asks nobody.
//!
//! In a git work tree `scan` leaves out what git ignores (`.gitignore`, `info/exclude`, the user's own
//! list), but not what git's index tracks all the same; it reads the index itself and never runs git.
//! Hidden files are searched, `.git` is not. Links are followed where a person named them. A finding
//! has path, line, column in characters, and the rule's id or secret's name: no length, no digest. A
//! report in JSON can be the next scan's `--baseline`: as many findings of one kind in one file as it
//! has are passed over. Statuses: 0, 8 (found), 10 (none found, but something could not be read).
//!
//! # Numbers
//!
//! `STRONGROOM_KILLS=1000 cargo test --test mount no_read_or_write -- --nocapture` kills the worker a
//! thousand times under eight readers and two writers of 128 KiB: no failed request, as many records
//! as reads, and each file as its writer made it.
//!
//! `cargo bench --bench mount [-- ROW...]` (root; rows `read`, `fresh`, `peers`, `kill`, `run`,
//! `events`, `start`, `scale`) prints each figure with its baseline of the same run and whether the aim of the
//! design is met. The following were measured on 2 virtual CPUs of an AMD EPYC, calm, Linux 6.18,
//! `sync = "batch"`; ratios with client and servers on one CPU. "Work" is open + read + close of one
//! secret of 41 bytes; it costs four requests, which `tests/requests.rs` counts by the metric
//! `strongroom_mount_requests_total`.
//!
//! | what | measured | aim |
//! | --- | --- | --- |
//! | work against a bare fuser server, p50 | 32.7 : 30.6 us = 1.06 to 1.08 | 1.3 |
//! | the same, p99 | 1.29, 1.29 and 1.48 in three runs | 1.3, met in two |
//! | the same by a fresh process each time, p50 | 68 : 43 us = 1.57, 1.60 and 1.68 | 1.6, missed in one |
//! | the same, p99 | 1.3 to 2.3 | 1.6, missed |
//! | work in the large home against 1 secret, 1 execution: p50, p99 | 1.00, 1.04 | 1.1 |
//! | gocryptfs (`-sharedstorage`) against ours, p50 | 1.58 | 1.5 |
//! | bindfs (timeouts 0) against ours, p50 | 1.52 | 1.5 |
//! | longest stall in 100 kills of the worker, four readers, 10 secrets | 40 ms | 100 ms |
//! | the same, 1,000 secrets | 42 ms | 100 ms |
//! | `run -- true` more than `true`, into the cgroup by clone3 | 4.2 ms | 10 ms |
//! | the same, moved by the daemon | 4.3 ms | 30 ms |
//! | start to mounted and unlocked, key file, 10 secrets | 0.016 s | |
//! | the same, 100,000 secrets | 0.57 s | 1 s |
//! | resident memory of worker and keeper, 100,000 secrets | 224 MB | 600 MB with events |
//! | the same in the large home | 569 MB | 600 MB |
//!
//! The bare server checks and records nothing. The large home has 100,000 secrets, 10,000 executions
//! of 50 pins each and 1,000 agents.
//!
//! Where the rest goes: the log's writer shares the CPU. Where records come fast it takes a turn every
//! 10 ms, which stands in the way of one read in some hundred, and of one in six fresh processes (p99).
//! A fresh process makes the worker open a pidfd, and `exe` below a directory of `/proc` that nobody has
//! asked for before (about 15 us of its READ and LOOKUP);
//! threads of the kernel alone are asked for their `stat` as well. Starts read neither the whole audit
//! log (only its newest files, for the vault's revision) nor repair the vault file (each commit keeps
//! what a reader after a kill needs).
//!
//! `cargo bench --bench mount -- revoke promote` (same host, calm, all CPUs; readers, forking, stopped
//! and sleeping processes): revoke of 1, 100 and 1,000 exposed executions: first denial 0.03 to 0.05 ms;
//! all dead, stored and on record after 3, 62 and 604 ms (`cgroup.kill` of as many groups alone: 0.2, 19
//! and 156 ms; aim: all of 1,000 within a second); it looks for processes that left their group as
//! well. A promotion while 10,000 executions are pinned takes 3.1 ms, with one 0.7 ms.
//!
//! `cargo bench --bench redact [-- ROW...]` (rows `log`, `random`, `hostile`, `secrets`, `small`,
//! `levels`, `scan`, `build`, `add`) measures the redaction engine against memcpy and `aho-corasick`. The
//! following on the same machine, others at work on it but no compiler, one thread, 64 KiB writes, level
//! `values`; log text of which a tenth of the lines end in base64 or a digest. [`redaction`] has the
//! other levels, and Vectorscan.
//!
//! | what | measured | aim |
//! | --- | --- | --- |
//! | log text, 10; 1,000; 10,000; 100,000 needles | 4.9; 4.7; 4.1 to 4.4; 3.4 GB/s | |
//! | the same against `stream_find` of `aho-corasick` | 17; 26; 27; 27 x | 20 x at 10,000 |
//! | the same against memcpy from memory (23 to 24 GB/s), 10,000 needles | 0.18 | 0.25, missed |
//! | random text, 10,000 needles | 5.2 GB/s, 33 x `stream_find`, 0.27 of memcpy | |
//! | probing alone, 10,000; 100,000 needles (memchr 40 GB/s) | 11.3; 10.4 GB/s, 0.28; 0.26 of memchr | 0.6; 0.3, missed |
//! | hostile text, 10,000; 100,000 needles | 0.75; 0.19 to 0.21 GB/s (`aho-corasick` 0.13; 0.05) | 0.5 at 10,000 |
//! | nothing but secrets, 10,000; 100,000 needles | 0.27; 0.09 GB/s (`aho-corasick` 0.25 to 0.27; 0.07) | |
//! | a write of 200 bytes, 10,000 needles | 230 to 276 ns | 250 ns, on the line |
//! | build of 10,000; 100,000; 1,000,000 needles | 3.4; 44; 973 to 1,250 ms | 1,000 ms, on the line |
//! | memory for each needle beside its own bytes, 10,000; 1,000,000 | 157; 143 bytes | 160 |
//! | adding one value to 100,000 needles; one of 500 that follow each other, at worst | 0.006; 0.23 to 0.27 ms | 1 ms |
//!
//! `cargo bench --bench mount -- events` (same host, calm, one CPU; 1,000 secrets, the store on a tmpfs,
//! one writer of a log without secrets; medians of three), against a bare fuser server that writes
//! through to a file of the tmpfs. A daemon writes events at `all` here; `values` was
//! measured without one, on a bare server that hands the writes to the same code but judges no caller:
//!
//! | what | bare : ours | share of the bare speed | aim |
//! | --- | --- | --- | --- |
//! | 512 MiB in writes of 128 KiB, daemon, `all` | 2.11 : 0.51 GB/s | 0.24 | 0.15 |
//! | the same without a daemon, `all` | 2.14 : 0.53 GB/s | 0.25 | |
//! | the same without a daemon, `values` | 2.16 : 1.43 GB/s | 0.66 | 0.3 (of a daemon) |
//! | 50,000 appends of 200 bytes, daemon, `all` | 9.2 : 15.9 us | 0.58 | |
//! | the same without a daemon, `all` | 9.0 : 12.6 us | 0.71 | |
//! | the same without a daemon, `values` | 8.9 : 11.1 us | 0.81 | |
//!
//! A stream of 2.3 GB into one file of a daemon (`STRONGROOM_STREAM_MB=2300` of the test
//! `a_long_stream_and_many_appends_cost_no_memory` does the same) took worker and keeper from 4.5 to 5.1 MB
//! of memory of their own.
//!
//! # Limits of this version
//!
//! See `SECURITY.md`, last section. Of a value in base64
//! up to four bits of its first and last byte may stay at the levels `values` and `formats`, in the
//! characters that it shares with its neighbours. Without a service manager a dead keeper's mount is cleared by the next `up`. Processes
//! that an execution left are found by descent or by their launch's environment; an
//! agent that is root can hide from both. Lookup counts of the kernel are not kept: inodes of secrets live as
//! long as the keeper, those of a principal as long as its registration.
#![forbid(unsafe_code)]

pub mod control;
pub mod pitfalls;
pub mod redaction;
pub mod verbs;
