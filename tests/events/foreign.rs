//! What a writer can learn about secrets that are not its own: nothing, if they can be guessed.
//!
//! Two worlds, alike but for one foreign secret in the second; an agent does the same in both, tries
//! out guesses in every way that the events directory has, and must not be able to tell which it is in.

use std::fs;
use std::path::Path;

use crate::common::{Home, may_mount};
use crate::tools::{execution, good, member, script};

/// Values that a person could guess, as they are and by trying byte after byte.
const PIN: &str = "481516";
const WORDS: &str = "summer-2024-holiday";
const NUMBER: &str = "4815162342108";

/// Tries guesses, and prints all that can be seen of each.
const GUESSER: &str = r#"
import os, sys
d = os.environ["STRONGROOM_EVENTS_DIR"]
out = []
def seen(name):
    s = os.stat(name)
    with open(name, "rb", buffering=0) as f:
        return (s.st_size, f.read())
def attempt(do):
    try:
        return do()
    except OSError as e:
        return e.errno
import socket, subprocess
SOCKET, PROGRAM, HOME = sys.argv[1:4]
def asked(level, text):
    # The verb, as any peer of the socket may try it.
    s = socket.socket(socket.AF_UNIX)
    s.connect(SOCKET)
    s.sendall(b"POST /v1/redact?level=%s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
              b"content-length: %d\r\n\r\n%s" % (level.encode(), len(text), text))
    answer = b""
    while chunk := s.recv(65536):
        answer += chunk
    return b"\n".join(l for l in answer.split(b"\r\n")
                      if not l.lower().startswith((b"date", b"strongroom-state")))
def filtered(level, text):
    done = subprocess.run([PROGRAM, "--home", HOME, "redact", "--level", level], input=text,
                          capture_output=True)
    return (done.returncode, done.stdout, done.stderr)
def guesses():
    for value in sys.argv[4:]:
        for end in range(1, len(value) + 1):
            yield value[:end]
            yield value[:end - 1] + "~"
        yield " " + value + " "
        yield value + value
        yield value.encode().hex()
for n, guess in enumerate(guesses()):
    name = "%s/f%d" % (d, n)
    f = os.open(name, os.O_CREAT | os.O_RDWR)
    # While it is open: sizes, bytes, positions.
    for byte in guess.encode():
        os.write(f, bytes([byte]))
    out.append((os.fstat(f).st_size, os.pread(f, 4096, 0), os.lseek(f, 0, os.SEEK_CUR)))
    os.fsync(f)
    out.append(os.pread(f, 4096, 0))
    os.close(f)
    # Again, collected instead of streamed, and cut.
    f = os.open(name + ".p", os.O_CREAT | os.O_RDWR)
    os.pwrite(f, guess.encode()[1:], 1)
    os.pwrite(f, guess.encode()[:1], 0)
    out.append(os.pread(f, 4096, 0))
    os.ftruncate(f, max(1, len(guess) - 1))
    out.append(os.pread(f, 4096, 0))
    os.close(f)
    # As a name.
    out.append(attempt(lambda: os.mkdir(d + "/n" + guess.replace(" ", "_") + str(n))))
for value in sys.argv[4:]:
    for guess in (value, value[:-1], "x " + value + " y", value.encode().hex()):
        for level in ("values", "formats", "all"):
            out.append(asked(level, guess.encode()))
            out.append(filtered(level, guess.encode()))
for name in sorted(os.listdir(d)):
    out.append(name)
print(repr(out))
"#;

/// What the agent printed, and what the store holds in the end.
fn world(foreign: &[(&str, &str)]) -> (String, Vec<(String, Vec<u8>)>) {
    let home = Home::deployed();
    let definition = r#"{"chain": "other", "agents": [{"name": "A", "secrets": []}]}"#;
    let file = home.dir.path().join("other.json");
    fs::write(&file, definition).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap()]);
    for (name, value) in foreign {
        home.ok_with(&["secret", "set", name, "--scope", "chain:other"], value);
    }
    execution(&home, "g");
    let guesser = script(&home, "guesser.py", GUESSER);
    let view = home.dir.path().join("view");
    let mut command = home.command(&["run", "--no-redact", "--execution", "g"]);
    command.args(["--agent", "TestRunner", "--secrets-path"]).arg(&view);
    command.args(["--", "/usr/bin/python3"]).arg(guesser).arg(home.socket());
    command.arg(env!("CARGO_BIN_EXE_strongroom")).arg(home.home()).args([PIN, WORDS, NUMBER]);
    let told = good(&command.output().unwrap());
    // Each world lies in a directory of its own.
    let told = told.replace(home.dir.path().to_str().unwrap(), "HOME");
    home.ok(&["execution", "end", "g"]);
    let store = home.home().join("events/deploy-pipeline/prod/g");
    let mut files: Vec<_> = fs::read_dir(&store)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (name_of(&path), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    assert!(home.records("event_redacted").is_empty());
    (told, files)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn nothing_tells_a_writer_that_it_guessed_a_foreign_value() {
    if !may_mount() {
        return;
    }
    let without = world(&[]);
    let with = world(&[("PIN", PIN), ("WORDS", WORDS), ("NUMBER", NUMBER)]);
    assert_eq!(without.0, with.0, "the agent saw a difference");
    assert!(without.1 == with.1, "the store differs");
}

/// What is in the store after each byte of a guess.
fn stored_after_each_byte(foreign: &[(&str, &str)]) -> (Home, Vec<Vec<u8>>) {
    let home = Home::deployed();
    let definition = r#"{"chain": "other", "agents": [{"name": "A", "secrets": []}]}"#;
    let file = home.dir.path().join("other.json");
    fs::write(&file, definition).unwrap();
    home.ok(&["chain", "apply", file.to_str().unwrap()]);
    for (name, value) in foreign {
        home.ok_with(&["secret", "set", name, "--scope", "chain:other"], value);
    }
    execution(&home, "h");
    let stored = home.home().join("events/deploy-pipeline/prod/h/f");
    let mut agent = member(&home, "h", "TestRunner", &[]);
    let open = "keep('f', os.open(d + '/events/f', os.O_CREAT | os.O_RDWR)) > 0";
    assert_eq!(agent.ask(open), "True");
    let mut seen = Vec::new();
    for byte in WORDS.bytes() {
        assert_eq!(agent.ask(&format!("os.write(held['f'], bytes([{byte}]))")), "1");
        seen.push(fs::read(&stored).unwrap());
    }
    (home, seen)
}

#[test]
fn no_byte_is_held_back_for_a_foreign_value_and_names_with_it_are_not_refused() {
    if !may_mount() {
        return;
    }
    // Nobody can guess this one.
    let strong = "Zk8Wq2LmN5rT7yU0pX3cVb9sQ1dF4gH6";
    let (_without, expected) = stored_after_each_byte(&[]);
    let (home, seen) = stored_after_each_byte(&[("WORDS", WORDS), ("STRONG", strong)]);
    assert_eq!(seen, expected);
    let mut agent = member(&home, "h", "TestRunner", &[]);
    assert_eq!(agent.ask(&format!("os.mkdir(d + '/events/{WORDS}')")), "None");
    // A name is judged by the writer's own secrets alone.
    assert_eq!(agent.ask(&format!("os.mkdir(d + '/events/{strong}')")), "None");
    // In a file it is hidden all the same, and without its name.
    let write = format!("open(d + '/events/g', 'w').write('it is {strong} now')");
    assert_eq!(agent.ask(&write), (strong.len() + 10).to_string());
    drop(agent);
    home.ok(&["execution", "end", "h"]);
    let stored = home.home().join("events/deploy-pipeline/prod/h/g");
    assert_eq!(fs::read_to_string(stored).unwrap(), "it is [REDACTED] now");
}

/// Who writes what it cannot know again and again is told of, and what it wrote is not.
#[test]
fn values_of_others_in_number_raise_an_alert() {
    if !may_mount() {
        return;
    }
    let strong = "Zk8Wq2LmN5rT7yU0pX3cVb9sQ1dF4gH6";
    let home = Home::new();
    home.start();
    let config = home.home().join("strongroom.toml");
    let own = fs::read_to_string(&config).unwrap();
    let alerts = home.dir.path().join("alerts");
    let place = format!(
        "[[alert]]\nname = \"file\"\non = [\"redaction_probe\"]\n\
         command = ['sh', '-c', 'cat >> {}']\n",
        alerts.display()
    );
    fs::write(&config, own + "\n" + &place).unwrap();
    home.ok(&["reload"]);
    home.fill();
    home.ok_with(&["secret", "set", "STRONG", "--scope", "chain:elsewhere"], strong);
    execution(&home, "p");
    let mut agent = member(&home, "p", "TestRunner", &[]);
    let write = |agent: &mut crate::tools::Talker, file: &str, count: usize| {
        let line =
            format!("open(d + '/events/{file}', 'w').write('{strong} ' * {count}) and 'written'");
        assert_eq!(agent.ask(&line), "written");
    };
    // Its own values are nothing to be told, however many; some of others may be chance.
    let own = "open(d + '/events/own', 'w').write((read(path) + ' ') * 100) and 'written'";
    assert_eq!(agent.ask(own), "written");
    write(&mut agent, "few", 19);
    std::thread::park_timeout(std::time::Duration::from_millis(500));
    assert!(!alerts.exists());
    write(&mut agent, "more", 1);
    crate::common::wait_until("the alert", crate::common::LIMIT, || {
        alerts.exists() && !fs::read(&alerts).unwrap().is_empty()
    });
    write(&mut agent, "again", 40);
    drop(agent);
    home.ok(&["execution", "end", "p"]);
    let told = fs::read_to_string(&alerts).unwrap();
    assert!(told.contains("redaction_probe") && told.contains("execution p"), "{told}");
    assert!(told.contains("deploy-pipeline"), "{told}");
    assert!(!told.contains(strong) && !told.contains("STRONG"), "{told}");
    assert_eq!(told.matches("redaction_probe").count(), 1, "once for a burst: {told}");
    // The record comes when the command has ended, which is after it wrote.
    crate::common::wait_until("its record", crate::common::LIMIT, || {
        !home.records("alert_sent").is_empty()
    });
    assert_eq!(home.records("alert_sent").len(), 1);
}

/// Who tries beginnings of what it cannot know is told of, and learns nothing from the clock any more.
#[test]
fn who_tries_beginnings_of_foreign_values_is_answered_at_even_times_and_told_of() {
    if !may_mount() {
        return;
    }
    // Nothing else than the value itself has a reason to wait for what follows.
    let signs = "Zk8!Wq2 %mN5,rT7 (U0;X3c =b9?Q1d )4g";
    let home = Home::new();
    home.start();
    home.fill();
    home.ok_with(&["secret", "set", "SIGNS", "--scope", "chain:elsewhere"], signs);
    execution(&home, "p");
    let mut agent = member(&home, "p", "TestRunner", &[]);
    let warned = || home.ok(&["status"]).contains("chain deploy-pipeline guesses");
    // What it takes to write to a file so often, and to close it; in milliseconds.
    let mut tried = |file: &str, guess: &str, times: usize| -> u128 {
        let script = format!(
            "exec('import os, time\\nbegun = time.monotonic()\\nfor n in range({times}):\\n \
             f = os.open(d + \"/events/{file}%d\" % n, os.O_CREAT | os.O_WRONLY)\\n \
             os.write(f, b\"{guess}\")\\n os.close(f)\\n\
             took = time.monotonic() - begun', globals()) or int(took * 1000)"
        );
        agent.ask(&script).parse().unwrap()
    };
    // Wrong guesses, and right ones that may be chance.
    tried("wrong", &format!("{}q", &signs[..15]), 40);
    tried("short", &signs[..6], 40);
    tried("few", &signs[..16], 19);
    assert!(!warned());
    tried("one", &signs[..16], 1);
    crate::common::wait_until("the warning", crate::common::LIMIT, warned);
    // A creation, a write and a close each begin at a beat and are answered at the next, whatever
    // they are; half a second is the least that these can take then.
    for (file, text) in [("right", &signs[..17]), ("other", "0123456789abcdefg")] {
        let took = tried(file, text, 10);
        assert!(took >= 500, "{took} ms");
    }
    let status = home.ok(&["status"]);
    assert_eq!(status.matches("guesses values of others").count(), 1, "{status}");
    // A new worker begins anew.
    home.ok(&["reload"]);
    assert!(!warned());
    drop(agent);
    home.ok(&["execution", "end", "p"]);
    let stored = |name: &str| {
        fs::read_to_string(home.home().join("events/deploy-pipeline/prod/p").join(name)).unwrap()
    };
    assert_eq!(stored("few18"), signs[..16], "what is no value is stored");
    assert_eq!(stored("right9"), signs[..17]);
    assert_eq!(stored("other0"), "0123456789abcdefg");
}
