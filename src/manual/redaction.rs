//! # Known formats and entropy
//!
//! What nobody put into the vault is found by how it looks. Three kinds, which never depend on how the
//! text was cut:
//!
//! **Formats** (levels `formats` and `all`): about 220 rules for tokens of model providers, clouds, code
//! hosts, chat, payment, registries, monitoring and other services, and for private keys (PEM, OpenSSH,
//! PGP and PuTTY; on lines of their own, indented, quoted, behind a log's prefix, with `\n` for line ends or
//! on one line), JSON web tokens, `scheme://user:PASSWORD@host`, `Basic` and `Bearer`, headers and
//! parameters of URLs that carry a secret. The marker has the rule's id: `[REDACTED:github-token]`. The
//! table is in `src/redact/detect/rules`, each rule with texts that it finds and texts that it does not.
//! A token of a provider that cannot be told by itself is found as the value of a name that holds the
//! provider's (`MISTRAL_API_KEY=`). Checksums inside tokens are not looked at. What stands in
//! documents for a token (`EXAMPLE`, `xxxx`, `your`, `1234567`, ...) is none.
//!
//! **`keyword-secret`** (level `all`): a value of 16 bytes and more with a digit and 3.3 bits a byte
//! (Shannon) after a name like `password`, `api_key`, `client_secret` or `--token`, at most 40 bytes
//! before it on the same line, also in running text. Not: references (`${VAR}`, paths, URLs), UUIDs, names made of
//! words.
//!
//! **`high-entropy`** (level `all`): runs of base64 of 40 characters and more, either alphabet, with small
//! letters, capitals and digits, 4.5 bits a byte, whose neighbours differ in kind as often as in random
//! text. Judged in blocks of 256 bytes. Not: hexadecimal (commits, digests, traces), integrity digests
//! (`sha512-`, `h1:`, a name such as `integrity` or `etag`), data URLs and what begins as an image, font,
//! archive or public key does, certificates, paths, mangled symbols of C++ and Rust, and base64 of readable text.
//!
//! A hit holds no white space, quote or backslash (armoured keys hold white space and escaped line
//! ends), so JSON that parsed parses after. At most about 600 bytes are held back,
//! twice as many in base64.
//!
//! ```toml
//! [redaction]
//! off = ["high-entropy", "figma-token"]   # ids, as they stand in markers
//!
//! [[redaction.rule]]
//! id = "acme-api-key"                      # a-z, 0-9 and -
//! pattern = "acme_[A-Za-z0-9]{32}"
//! ```
//!
//! A pattern is fixed text (at least two characters first) and classes with counts `{n}`, `{n,m}` or, at its end,
//! `{n,}`; `\` makes the next character itself. It matches 15 to 400 bytes, begins where no letter or
//! digit stands before it, and, unless it ends with `{n,}`, ends where none follows. An unknown id
//! or a pattern that is none is an error of every command (`strongroom config check` shows it).
//!
//! **The allow list** shows a token that a rule finds and that is no secret: a test key that stands in
//! documents, an identifier that looks random. An entry is a tag of exactly its bytes, never the token:
//!
//! ```toml
//! [redaction]
//! allow = ["allow1:1f0a3c55:40:0d2c1e..."]  # what `strongroom allow` prints; then: strongroom reload
//! ```
//!
//! `strongroom allow` reads the token from stdin, or asks for it; it needs `operate`, unlimited, and the
//! passphrase where `[operator] confirm` asks for it. The tag is HMAC-SHA-256 (HKDF) by a key of the
//! vault's root key, cut to 128 bits, beside it the key's id and the token's length (8 to 8192 bytes).
//! `key rekey` leaves entries as they are; those of another vault allow nothing, which `status` and
//! `doctor` say. What is shown is a token that was found and ends where the allowed one does: one that
//! goes on is another one. A value of the vault is hidden wherever it is and in each of its forms,
//! whatever is allowed, and so is a token in base64 at level `all`. While there is a list, a token is
//! held back until its end is known, or until it is longer than any that is allowed. The list counts
//! where an agent's output and events are redacted and for `operate` and `audit`, not for whoever has
//! no role, nor for `redact --local`; files that are stored already stay as they are.
//!
//! `scan` takes lists of its own, without a daemon: `.strongroom-allow` in each directory that is named,
//! for what lies below it, and `--allow FILE` for all; `--no-allow` goes without. `strongroom allow --to
//! .strongroom-allow --at docs/setup.md:12:8` adds what `scan` reports there. The file has a salt; a tag is
//! Argon2id of the finding's bytes (64 MiB, 3 passes), cut to 128 bits. At most 100 different findings of
//! lengths that a list has are compared with it, in the order of the report; the others are reported,
//! which a warning says. The text ends with `N allowed`, JSON counts them as `allowed`, SARIF has
//! them with `suppressions`. With `--values`, what holds a value of the vault is reported all the same, and
//! what the daemon's own list shows is neither reported nor counted.
//!
//! `cargo test --test detection -- --nocapture` prints recall and false hits on the labelled corpus in
//! `tests/corpus`: forms of tokens from the providers' documents, in lines of logs, configurations, code,
//! diffs and transcripts, and ordinary text. It was written by the same hands as the rules, but apart
//! from them. Measured: tokens of known formats 100 %, keys, JWT and passwords of URLs 100 %, entropy
//! 99.8 %, keyword 94 %; false hits in 0 % of 773 ordinary texts. Of forms that others collected (tokens drawn
//! from the expressions of the scanner betterleaks, as the crate `kingfisher-rules` 3.0.1 has them; not among
//! the tests): of 210 kinds of secrets that can be told by themselves 96 % at level `all`, 88 % at `formats`; of 203
//! that need the provider's name beside them 88 % at `all`. In 107 MB of sources of Rust crates: 150
//! hits, most of them keys and hashes in tests.
//!
//! Speed: the tables of [the manual](super) have the figures of values. `cargo bench --bench redact --
//! scan` probes alone, also of text that no cache holds; a processor with AVX2 but without AVX-512
//! probes at three quarters of that.
//!
//! `cargo bench --bench redact -- levels` (same machine), 10,000 needles: `values` 4.1 GB/s, `formats`
//! 1.0, `all` 0.5; a tenth less of each while others use the machine; memcpy 23. The aim for `all` is a
//! tenth of memcpy and 1 GB/s: missed, at 0.02 of it. Of the 2.0 ns that a byte costs at `all`, about 0.2
//! go to values, 0.5 to masks and the runs in them, 0.25 to the names before values, 0.35 to guesses (0.2 of
//! it to whether base64 is random), 0.4 to base64 that is decoded, 0.2 to lines that are wrapped.
//! Logs of builds, mostly paths and names of modules, take 1.7 times as long.
//!
//! Vectorscan 5.4.9 (Debian's `libvectorscan-dev`), which is no part of the product, as streams of 64 KiB
//! writes over the same 192 MiB, in a program of its own that counts matches and copies nothing, in one
//! run with ours on a machine that others used (memcpy 23.5; `values` 4.1, `formats` 0.94, `all` 0.42):
//!
//! | what Vectorscan looks for | GB/s | `formats` | `all` |
//! | --- | --- | --- | --- |
//! | the 10,000 needles as literals | 3.4 | (`values`: 1.2 x) | |
//! | 390 patterns of the tables' rules | 1.48 | 0.6 x | 0.3 x |
//! | 389 of them, and where a match begins | 1.87 | 0.5 x | 0.2 x |
//! | 469 of the 472 expressions of betterleaks, the successor of gitleaks | 0.37 | 2.5 x | 1.1 x |
//! | 430 of them, and where a match begins | 0.070 | 13 x | 6 x |
//!
//! Our own patterns are there as regular expressions: none of the rules that need a name before or a parser,
//! and no test of what stands around them. Those of betterleaks are as its configuration has them (for
//! version 2.0.0-rc.1; 205 of 472 look for a provider's name before the token, as ours do with labels),
//! without its search for keywords first; the others are too large for Vectorscan, among them those for any name
//! like `password`. A redactor must know where a match begins. So the aim of three times the rules of
//! gitleaks is met against expressions of that kind where beginnings are told, missed by `all` where they
//! are not, and missed against our own, simpler patterns.
#![forbid(unsafe_code)]
