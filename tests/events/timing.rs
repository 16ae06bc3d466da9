//! What the clock tells a writer about secrets that are not its own.
//!
//! Right and wrong guesses are tried in turns by one process, in random order within each pair, and the
//! two sets of times are compared by their ranks (how often a right guess took longer than a wrong one;
//! half means that nothing can be told from one try) and by their medians. Load on the machine falls on
//! both alike, so the bounds are wide and still far from what a sync or a write of its own would make.
//! That nothing else is done at all, whatever it takes, is for the test of `src/events/tests.rs`. Longer
//! beginnings are answered at even times after a few tries (`foreign.rs`).

use std::fs;

use crate::common::{Home, may_mount};
use crate::tools::{execution, good, script};

/// Guessable, and not.
const WORDS: &str = "summer-2024-holiday";
const STRONG: &str = "Zk8Wq2LmN5rT7yU0pX3cVb9sQ1dF4gH6";
/// Nothing else than the value itself has a reason to wait for what follows.
const SIGNS: &str = "Zk8!Wq2 %mN5,rT7 (U0;X3c =b9?Q1d )4g";

/// For each guess and operation the share of pairs in which the right one took longer, and the ratio of
/// the medians.
const GUESSER: &str = r#"
import os, random, sys, time
d = os.environ["STRONGROOM_EVENTS_DIR"]
ROUNDS = int(sys.argv[1])
STEPS = ("write", "pread", "fsync", "close", "reopen", "append", "last")
def timed(do):
    before = time.perf_counter_ns()
    got = do()
    return time.perf_counter_ns() - before, got
def tried(guess):
    name = d + "/probe"
    f = os.open(name, os.O_CREAT | os.O_RDWR)
    times = []
    times.append(timed(lambda: os.write(f, guess))[0])
    times.append(timed(lambda: os.pread(f, 4096, 0))[0])
    times.append(timed(lambda: os.fsync(f))[0])
    times.append(timed(lambda: os.close(f))[0])
    took, f = timed(lambda: os.open(name, os.O_RDWR | os.O_APPEND))
    times.append(took)
    times.append(timed(lambda: os.write(f, b"\n"))[0])
    times.append(timed(lambda: os.close(f))[0])
    os.unlink(name)
    return times
def longer(right, wrong):
    # The share of all pairs (Mann and Whitney 1947), ties by halves.
    both = sorted([(t, 1) for t in right] + [(t, 0) for t in wrong])
    ranks, at = 0.0, 0
    while at < len(both):
        end = at
        while end < len(both) and both[end][0] == both[at][0]:
            end += 1
        ranks += sum(b for _, b in both[at:end]) * (at + end + 1) / 2
        at = end
    n, m = len(right), len(wrong)
    return (ranks - n * (n + 1) / 2) / (n * m)
for right, wrong in zip(sys.argv[2::2], sys.argv[3::2]):
    samples = {True: [], False: []}
    for n in range(ROUNDS + 20):
        for which in random.sample([True, False], 2):
            times = tried((right if which else wrong).encode())
            # The first find nothing warm.
            if n >= 20:
                samples[which].append(times)
    shares = [longer(*[[t[step] for t in samples[w]] for w in (True, False)])
              for step in range(len(STEPS))]
    middle = lambda which, step: sorted(t[step] for t in samples[which])[ROUNDS // 2]
    ratios = [middle(True, step) / middle(False, step) for step in range(len(STEPS))]
    print(right, " ".join("%s=%.3f:%.3f" % pair for pair in zip(STEPS, shares, ratios)))
"#;

#[test]
fn the_clock_does_not_tell_a_right_guess_from_a_wrong_one() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let definition = r#"{"chain": "other", "agents": [{"name": "A", "secrets": []}]}"#;
    let file = home.dir.path().join("other.json");
    fs::write(&file, definition).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap()]);
    for (name, value) in [("WORDS", WORDS), ("STRONG", STRONG), ("SIGNS", SIGNS)] {
        home.ok_with(&["secret", "set", name, "--scope", "chain:other"], value);
    }
    execution(&home, "t");
    let guesser = script(&home, "guesser.py", GUESSER);
    let view = home.dir.path().join("view");
    let mut command = home.command(&["run", "--no-redact", "--execution", "t"]);
    command.args(["--agent", "TestRunner", "--secrets-path"]).arg(&view);
    command.args(["--", "/usr/bin/python3"]).arg(guesser);
    let rounds = std::env::var("STRONGROOM_ROUNDS").unwrap_or_else(|_| "150".to_owned());
    command.arg(rounds);
    // Another character of the same kind: what is looked at as base64 takes longer than a sign does,
    // whatever is held back.
    let wrong = |value: &str, at: usize| {
        let last = match value.as_bytes()[at - 1] {
            byte if byte.is_ascii_alphanumeric() => 'q',
            b';' => ',',
            _ => ';',
        };
        format!("{}{last}", &value[..at - 1])
    };
    for (value, at) in [(WORDS, WORDS.len()), (WORDS, 14), (STRONG, 8), (SIGNS, 8), (SIGNS, 11)] {
        command.args([&value[..at], &wrong(value, at)]);
    }
    let told = good(&command.output().unwrap());
    println!("{told}");
    let mut compared = 0;
    for line in told.lines() {
        for word in line.split(' ').filter(|word| word.contains("=0.") || word.contains("=1.")) {
            let (operation, numbers) = word.split_once('=').unwrap();
            let (share, ratio) = numbers.split_once(':').unwrap();
            let (share, ratio): (f64, f64) = (share.parse().unwrap(), ratio.parse().unwrap());
            // A sync that has nothing to do, of what is held back, is a share below 0.1 and a ratio
            // below 0.7.
            let is_alike = (0.25..=0.75).contains(&share);
            assert!(is_alike || (0.75..=1.33).contains(&ratio), "{operation}: {told}");
            compared += 1;
        }
    }
    assert_eq!(compared, 5 * 7, "{told}");
    home.ok(&["execution", "end", "t"]);
}
