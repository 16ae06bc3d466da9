//! `redact` and `scan --values` on the real binary, with the vault's values and without.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};

use common::{AWS_SECRET, DB_PROD, Home, OPENAI, SSH_KEY, may_mount, text};

fn start(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn feed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = start(command);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // One that refuses at once does not read.
        let _written = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn redact(home: &Home, args: &[&str], input: &[u8]) -> Output {
    feed(home.command(&["redact"]).args(args), input)
}

/// Runs the program as somebody without a role.
fn stranger(home: &Home, args: &[&str]) -> Command {
    let open = |path: std::path::PathBuf, mode| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    open(home.home(), 0o755);
    open(home.home().join("run"), 0o755);
    let program = home.dir.path().join("strongroom");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_strongroom"), &program).unwrap();
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", "54321", "--regid", "54321", "--clear-groups"])
        .arg(program)
        .args(args)
        .env("STRONGROOM_HOME", home.home())
        .current_dir(home.dir.path());
    command
}

#[test]
fn values_leave_markers_whole_and_encoded_and_everything_else_passes() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let hex: String = DB_PROD.bytes().map(|b| format!("{b:02x}")).collect();
    let input = format!("a {OPENAI} b\n{hex}\n{SSH_KEY}x{AWS_SECRET}\0\u{1b}[1m\n");
    let output = redact(&home, &["--level", "values"], input.as_bytes());
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "a [REDACTED:OPENAI_API_KEY] b\n[REDACTED:DATABASE_URL]\n[REDACTED:SSH_DEPLOY_KEY]\n\
         x[REDACTED:AWS_SECRET_ACCESS_KEY]\0\u{1b}[1m\n"
    );
    let checked = redact(&home, &["--check"], input.as_bytes());
    assert_eq!(checked.status.code(), Some(8), "{}", text(&checked));
    let same = redact(&home, &["--exit-code"], b"nothing here\n");
    assert_eq!(
        (same.status.code(), same.stdout.as_slice()),
        (Some(0), b"nothing here\n".as_slice())
    );
    // Any bytes: not one is changed.
    let bytes: Vec<u8> =
        (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(redact(&home, &["--level", "values"], &bytes).stdout == bytes);
    let told = redact(&home, &["--json"], input.as_bytes());
    let summary: serde_json::Value = serde_json::from_slice(&told.stderr).unwrap();
    assert_eq!(summary["redacted"]["[REDACTED:OPENAI_API_KEY]"], 1);
    let records = home.records("output_redacted");
    assert!(records.iter().any(|r| r["secret_key"] == "OPENAI_API_KEY" && r["via"] == "redact"));
}

#[test]
fn each_byte_is_out_as_soon_as_it_is_decided() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    for args in [["redact", "--level=values"], ["redact", "--local"]] {
        let mut child = start(&mut home.command(&args));
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        for number in 0..3 {
            writeln!(input, "line {number}").unwrap();
            line.clear();
            output.read_line(&mut line).unwrap();
            assert_eq!(line, format!("line {number}\n"));
        }
        if args[1] != "--local" {
            let (start, end) = OPENAI.split_at(20);
            write!(input, "ask> {start}").unwrap();
            let mut prompt = [0; 5];
            output.read_exact(&mut prompt).unwrap();
            assert_eq!(&prompt, b"ask> ", "a prompt does not wait for its newline");
            writeln!(input, "{end}").unwrap();
            line.clear();
            output.read_line(&mut line).unwrap();
            assert_eq!(line, "[REDACTED:OPENAI_API_KEY]\n");
        }
        drop(input);
        assert!(child.wait().unwrap().success());
    }
}

/// The most memory that a process has had, in KiB.
fn peak(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sends so many MiB in which `secret` comes again and again, at every place in a chunk; counts
/// markers.
fn stream(mut command: Command, mib: usize, secret: &str) -> (u64, u64) {
    let mut child = start(&mut command);
    let mut input = child.stdin.take().unwrap();
    let secret = secret.to_owned();
    let writer = std::thread::spawn(move || {
        let filler = "the quick brown fox jumps over the lazy dog. ".repeat(1457);
        let mut sent = 0;
        let mut secrets = 0;
        while sent < mib << 20 {
            let piece = format!("{}{secret} ", &filler[..filler.len() - secrets % 997]);
            input.write_all(piece.as_bytes()).unwrap();
            sent += piece.len();
            secrets += 1;
        }
        (secrets as u64, input)
    });
    let mut output = child.stdout.take().unwrap();
    let (mut buffer, mut tail, mut markers) = (vec![0; 1 << 20], Vec::new(), 0_u64);
    let mut pushed = None;
    let mut writer = Some(writer);
    loop {
        // All is written: what the process has had by then is told before it ends.
        if writer.as_ref().is_some_and(std::thread::JoinHandle::is_finished) {
            let (secrets, input) = writer.take().unwrap().join().unwrap();
            pushed = Some((secrets, peak(&child)));
            drop(input);
        }
        let count = output.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        tail.extend_from_slice(&buffer[..count]);
        assert!(!tail.windows(14).any(|w| w == b"sk-proj-canary"));
        let found = tail.windows(10).filter(|w| w == b"[REDACTED:").count();
        markers += found as u64;
        let keep = tail.len() - tail.len().min(13);
        // Of a marker that was counted, nothing stays that would be counted again.
        let cut = tail[keep..].iter().position(|b| *b == b'[').map_or(keep, |at| keep + at);
        let whole = tail[cut..].starts_with(b"[REDACTED:");
        tail.drain(..if whole { cut + 1 } else { cut.min(keep) });
    }
    let _ended = child.wait().unwrap();
    let (secrets, peak) = pushed.expect("the writer ended before the output");
    assert_eq!(markers, secrets);
    (secrets, peak)
}

#[test]
fn a_long_stream_takes_no_more_memory_than_a_short_one() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut command = home.command(&["redact", "--level", "values"]);
    command.env("RUST_BACKTRACE", "0");
    let (secrets, peak) = stream(command, 200, OPENAI);
    assert!(secrets > 3000, "{secrets}");
    assert!(peak < 40 << 10, "{peak} KiB");
}

#[test]
fn a_reader_that_has_enough_ends_the_filter_quietly() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let mut child = start(&mut home.command(&["redact"]));
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    writeln!(input, "first").unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    drop(output);
    // Until the filter has gone.
    while input.write_all(&[b'x'; 4096]).is_ok() {}
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told, "");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn it_never_quietly_looks_for_less_than_was_asked() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let input = format!("{OPENAI}\n");
    // Somebody without a role, and an agent, who could try out guesses.
    for args in [vec!["redact"], vec!["redact", "--level", "values"]] {
        let output = feed(&mut stranger(&home, &args), input.as_bytes());
        assert_eq!(output.status.code(), Some(5), "{args:?}: {}", text(&output));
        assert!(output.stdout.is_empty(), "nothing passes");
    }
    let weaker = feed(&mut stranger(&home, &["redact", "--level", "formats"]), b"x\n");
    assert_eq!(weaker.stdout, b"x\n");
    assert!(text(&weaker).contains("values are not looked for"), "{}", text(&weaker));
    let program = env!("CARGO_BIN_EXE_strongroom");
    // An agent is not told where the home is; this one knows.
    let home_dir = home.home();
    let script = format!(
        "echo {OPENAI} | {program} --home {} redact --level values; echo $?",
        home_dir.display()
    );
    let told = text(&home.agent("CodeAnalyzer", &script));
    assert!(told.contains("\n5\n") || told.starts_with("5\n"), "{told}");
    let scan = feed(&mut stranger(&home, &["scan", "--values", "-"]), input.as_bytes());
    assert_eq!(scan.status.code(), Some(5), "{}", text(&scan));
    home.ok(&["lock"]);
    let locked = redact(&home, &[], input.as_bytes());
    assert_eq!(locked.status.code(), Some(4), "{}", text(&locked));
    assert!(locked.stdout.is_empty());
    home.ok(&["down"]);
    let down = redact(&home, &[], input.as_bytes());
    assert_eq!(down.status.code(), Some(3), "{}", text(&down));
    assert!(text(&down).contains("--local"), "{}", text(&down));
    assert!(down.stdout.is_empty());
    let formats = redact(&home, &["--level", "formats"], b"x\n");
    assert_eq!(formats.stdout, b"x\n");
    assert!(text(&formats).contains("values are not looked for"));
    assert_eq!(redact(&home, &["--local"], b"x\n").stderr, b"");
}

#[test]
fn files_come_one_after_the_other_and_a_missing_one_is_told() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    fs::write(home.dir.path().join("a"), format!("a {OPENAI}")).unwrap();
    fs::write(home.dir.path().join("b"), " b\n").unwrap();
    let output = redact(&home, &["a", "-", "b", "missing"], b" stdin");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "a [REDACTED:OPENAI_API_KEY] stdin b\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("missing"), "{}", text(&output));
}

#[test]
fn a_list_allows_no_value_of_the_vault() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let token = "ghp_q7Zk2Wm9Lx4Tb8Rv3Yd6Nc1Jf5Hg0Ps8UaEo";
    let value = "ghp_X3vLm4TnB8sRd3WfY7Kq2ZpH9c1Jg5Ua0EoQ";
    home.ok_with(&["secret", "set", "github-token", "--scope", "org"], value);
    let tree = home.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), format!("x {token}\ny {value}\n")).unwrap();
    for token in [token, value] {
        home.ok_with(&["allow", "--to", "tree/.strongroom-allow"], token);
    }
    let local = home.run(&["scan", "tree"]);
    assert_eq!(local.status.code(), Some(0), "{}", text(&local));
    let output = home.run(&["scan", "--values", "tree"]);
    assert_eq!(output.status.code(), Some(8), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "tree/a:2:3: github-token\n");
    assert!(text(&output).contains("1 allowed"), "{}", text(&output));
}

#[test]
fn a_scan_with_values_names_them_by_place() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let tree = home.dir.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/log"), format!("x\n\u{e4} {DB_PROD} {OPENAI}\n{SSH_KEY}y {OPENAI}\n"))
        .unwrap();
    fs::write(tree.join("half"), &OPENAI[..OPENAI.len() / 2]).unwrap();
    fs::write(tree.join("other half"), &OPENAI[OPENAI.len() / 2..]).unwrap();
    fs::write(tree.join(format!("{OPENAI}.txt")), "x").unwrap();
    let output = home.run(&["scan", "--values", "--level", "values", "tree"]);
    assert_eq!(output.status.code(), Some(8), "{}", text(&output));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Vec<_> = told.lines().filter(|l| !l.starts_with("tree/half")).collect();
    assert_eq!(
        found,
        [
            "tree/[REDACTED:OPENAI_API_KEY].txt: in its name: OPENAI_API_KEY",
            "tree/sub/log:2:3: DATABASE_URL",
            &format!("tree/sub/log:2:{}: OPENAI_API_KEY", 4 + DB_PROD.len()),
            "tree/sub/log:3:1: SSH_DEPLOY_KEY",
            "tree/sub/log:6:3: OPENAI_API_KEY",
        ]
    );
    assert!(!text(&output).contains("canary"), "{}", text(&output));
    let clean = home.run(&["scan", "--values", "--level", "values", "strongroom.toml", "key"]);
    assert_eq!(clean.status.code(), Some(10), "{}", text(&clean));
}

/// What is looked for only in some places, or never, is said when it is stored.
#[test]
fn values_that_redaction_can_hardly_find_are_told_of_when_they_are_stored() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let cases = [
        ("tiny", "abc4", "never looked for"),
        ("short", "x7Kq2z", "fewer than 8 bytes"),
        ("digits", "7413962", "fewer than 8 digits"),
        ("word", "administrator", "an ordinary word"),
        ("repeated", "zzzzzzzzzzzz", "one character repeated"),
        ("marker", "REDACTED", "redaction's own markers"),
    ];
    for (name, value, note) in cases {
        for args in
            [["secret", "set", name, "--scope", "org"], ["secret", "rotate", name, "--json", "-v"]]
        {
            let rotates = args[1] == "rotate";
            let args = if rotates { &args[..3] } else { &args[..] };
            let stored = home.run_with(args, value);
            assert!(stored.status.success(), "{name}: {}", text(&stored));
            let told = String::from_utf8(stored.stderr).unwrap();
            assert!(told.contains(note), "{name} {args:?}: {told}");
            assert!(!told.contains(value) || name == "marker", "{told}");
        }
    }
    let strong = home.run_with(&["secret", "set", "strong", "--scope", "org"], "k7Hq2ZpX9vLm4TnB");
    assert!(!text(&strong).contains("redaction"), "{}", text(&strong));
    let plain = home.run_with(&["secret", "set", "plain", "--scope", "org", "--plain"], "abc");
    assert!(!text(&plain).contains("redaction"), "{}", text(&plain));
    // In the text they leave what was said: where they stand alone, or not at all.
    let input = b"abc4 x7Kq2z ax7Kq2zb 7413962 17413962 administrator zzzzzzzzzzzz REDACTED\n";
    let output = redact(&home, &["--level", "values"], input);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "abc4 [REDACTED:short] ax7Kq2zb [REDACTED:digits] 17413962 [REDACTED:word] \
         [REDACTED:repeated] REDACTED\n"
    );
    // Both versions of each that is never looked for.
    let status = home.ok(&["status"]);
    assert!(status.contains("4 values are too weak to be looked for"), "{status}");
}
