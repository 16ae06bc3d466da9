//! The fuzz targets, with numbers that look random: `STRONGROOM_CASES` of them for each, from
//! `STRONGROOM_SEED`. What fails is printed with both, and kept as a file, to be run again:
//! `STRONGROOM_INPUT=FILE cargo test --test fuzzed`.

mod common;

#[path = "fuzz/parsers.rs"]
mod parsers;
#[path = "fuzz/redaction.rs"]
mod redaction;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Unless the environment says another.
const SEED: u64 = 0x5eed;
/// A case that takes longer has no bound; far above what a busy machine adds.
const LIMIT: Duration = Duration::from_secs(60);
/// What all targets together may use at their most: the largest input has 100 KiB.
const MOST_MEMORY_KIB: u64 = 2 << 20;

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|n| n.parse().ok())
}

fn cases(usual: u64) -> u64 {
    number_of("STRONGROOM_CASES").unwrap_or(usual)
}

/// splitmix64
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Calls `target` with texts in which small alphabets and arbitrary bytes take turns.
fn run(target: fn(&[u8])) {
    let mut numbers = Numbers(number_of("STRONGROOM_SEED").unwrap_or(SEED));
    for case in 0..cases(1_500) {
        let len = numbers.next() % 400;
        let alphabet: &[u8] = match case % 4 {
            0 => b"ab\n\\r> +\x85\x10",
            1 => b"aZ0+/-_=\n \x90\x08\x20",
            2 => b"{}[]:,\"\\01 n\n\x81\x1f",
            _ => &[],
        };
        let data: Vec<u8> = (0..len)
            .map(|_| {
                let number = numbers.next();
                match alphabet.get((number % alphabet.len().max(1) as u64) as usize) {
                    Some(byte) if number >> 32 & 15 != 0 => *byte,
                    _ => (number >> 40) as u8,
                }
            })
            .collect();
        target(&data);
    }
}

#[test]
fn any_values_in_any_text_are_hidden_however_it_is_cut() {
    run(redaction::redact);
}

#[test]
fn any_bytes_in_the_place_of_a_saved_state_are_refused_or_harmless() {
    run(redaction::resume);
}

/// The stored samples of a target.
fn samples(target: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = std::fs::read_dir(root.join("tests/fuzz/samples").join(target))
        .unwrap_or_else(|e| panic!("{target} has no samples: {e}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    if target == "vault" {
        files.extend([1, 2].map(|format| root.join(format!("tests/format/v{format}.redb"))));
    }
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// What numbers, ends and beginnings of texts look like.
const PIECES: &[&[u8]] = &[
    b"",
    b"\0",
    b"\n",
    b"\r\n",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551616",
    b"99999999999999999999999999",
    b"\xff\xfe",
    b"\xe2\x80\xae",
    b"\\u0000",
    b"\\ud800",
    b"$",
    b"%00",
    b"../",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"expected ",
];

/// A sample with some changes.
fn changed(samples: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut data = samples[numbers.below(samples.len())].clone();
    for _ in 0..=numbers.below(6) {
        let at = numbers.below(data.len() + 1);
        let len = numbers.below(64).min(data.len() - at);
        match numbers.below(9) {
            0 => data.truncate(at),
            1 => drop(data.drain(at..at + len)),
            2 => {
                let piece = data[at..at + len].to_vec();
                let to = numbers.below(data.len() + 1);
                data.splice(to..to, piece);
            }
            3 => {
                let other = &samples[numbers.below(samples.len())];
                let from = numbers.below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            4 | 5 => {
                let piece = PIECES[numbers.below(PIECES.len())];
                let over = numbers.below(4).min(data.len() - at);
                data.splice(at..at + over, piece.iter().copied());
            }
            6 if at < data.len() => data[at] = numbers.next() as u8,
            _ if at < data.len() => data[at] ^= 1 << numbers.below(8),
            _ => {}
        }
    }
    data
}

/// Says how to run a case again when it fails.
struct Case<'a> {
    target: &'a str,
    seed: u64,
    number: u64,
    data: &'a [u8],
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let file = std::env::temp_dir().join(format!("strongroom-fuzz-{}", self.target));
            let kept = std::fs::write(&file, self.data);
            eprintln!(
                "target {}, case {} from STRONGROOM_SEED={}: STRONGROOM_INPUT={} ({kept:?})",
                self.target,
                self.number,
                self.seed,
                file.display()
            );
        }
    }
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn any_bytes_in_the_place_of_what_a_parser_reads_are_refused_or_read_and_no_value_is_told() {
    let only = std::env::var_os("STRONGROOM_INPUT").map(PathBuf::from);
    let seed = number_of("STRONGROOM_SEED").unwrap_or(SEED);
    for (target, call) in parsers::TARGETS {
        if let Some(file) = &only {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(target) {
                call(&std::fs::read(file).unwrap());
            }
            continue;
        }
        let samples = samples(target);
        let mut numbers = Numbers(seed);
        let start = Instant::now();
        // The samples as they are come first.
        let count = samples.len() as u64 + cases(3_000);
        for number in 0..count {
            let data = match samples.get(number as usize) {
                Some(sample) => sample.clone(),
                None => changed(&samples, &mut numbers),
            };
            let _case = Case { target, seed, number, data: &data };
            let begun = Instant::now();
            call(&data);
            assert!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
        }
        eprintln!("{target}: {count} cases in {:?}", start.elapsed());
    }
    assert!(peak_kib() < MOST_MEMORY_KIB, "{} KiB", peak_kib());
}

#[test]
fn any_bytes_on_the_control_socket_are_answered_or_refused_and_the_worker_goes_on() {
    if !common::may_mount() {
        return;
    }
    let home = common::Home::deployed();
    let worker = home.worker_pid();
    let samples = samples("http");
    let seed = number_of("STRONGROOM_SEED").unwrap_or(SEED);
    let mut numbers = Numbers(seed);
    for number in 0..samples.len() as u64 + cases(400) {
        let data = match samples.get(number as usize) {
            Some(sample) => sample.clone(),
            None => changed(&samples, &mut numbers),
        };
        let _case = Case { target: "http", seed, number, data: &data };
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        // It may refuse before it has read all.
        let _sent = stream.write_all(&data);
        let _half = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let told = stream.read_to_end(&mut answer);
        let late = told.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!late, "no answer and no end");
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains(parsers::VALUE), "{answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "{answer}");
        assert!(!answer.contains(" 500 "), "{answer}");
    }
    // Some of it may have locked the vault, as it was asked to.
    assert_eq!(home.worker_pid(), worker, "no worker died of it");
    let log = std::fs::read_to_string(home.home().join("daemon.log")).unwrap();
    assert!(!log.contains(parsers::VALUE) && !log.contains("panicked"), "{log}");
}
