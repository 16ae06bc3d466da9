//! `scan` on the real binary: trees, git work trees, reports, statuses.
#![forbid(unsafe_code)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{cannot_run, text};

/// As a provider's key looks; of no account.
const TOKEN: &str = "ghp_16C7e42F292c6912E7710c838347Ae178B4a";
const ID: &str = "AKIAIOSFODNN7QXAMPLE";

/// Without a home, a daemon or a configuration, as in a CI job.
fn scan(dir: &Path, args: &[&str]) -> Output {
    scan_with(dir, args, b"")
}

fn scan_with(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    alone(dir, "scan", args, input)
}

/// The program without a home, a daemon, or anything else of its environment.
fn alone(dir: &Path, verb: &str, args: &[&str], input: &[u8]) -> Output {
    use std::io::Write;
    let mut child = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .arg(verb)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _written = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(ToOwned::to_owned).collect()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(output)))
}

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn git(dir: &Path, args: &[&str]) {
    let output = Command::new("git")
        .args(["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=m"])
        .args(args)
        .current_dir(dir)
        .env("HOME", dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output));
}

#[test]
fn a_finding_tells_where_and_what_and_never_the_value() {
    let dir = tree(&[
        ("clean.txt", "nothing here\n"),
        ("src/config.py", &format!("import os\n\ntoken = \"{TOKEN}\"\n")),
        ("two.txt", &format!("\u{e4}\u{e4} {TOKEN} and {TOKEN}\n")),
    ]);
    let output = scan(dir.path(), &["."]);
    assert_eq!(output.status.code(), Some(8), "{}", text(&output));
    let found = lines(&output);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("src/config.py:3:10: github"), "{found:?}");
    assert!(found[1].starts_with("two.txt:1:4: "), "{found:?}");
    assert!(found[2].starts_with("two.txt:1:49: "), "{found:?}");
    for format in ["text", "json", "sarif"] {
        let output = scan(dir.path(), &["--format", format, "."]);
        assert_eq!(output.status.code(), Some(8));
        let told = text(&output);
        // Not in part, either.
        for part in [&TOKEN[..12], &TOKEN[20..], "16C7e42F"] {
            assert!(!told.contains(part), "{told}");
        }
    }
    let clean = scan(dir.path(), &["clean.txt"]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean));
    assert!(clean.stdout.is_empty());
    assert!(text(&clean).contains("0 found in 1 files"), "{}", text(&clean));
}

#[test]
fn a_report_is_the_same_however_often_it_is_made() {
    let names: Vec<String> = (0..300).map(|n| format!("d{}/f{n}.txt", n % 17)).collect();
    let content = format!("x\nkey {TOKEN}\n");
    let files: Vec<(&str, &str)> =
        names.iter().map(|name| (name.as_str(), content.as_str())).collect();
    let dir = tree(&files);
    let first = scan(dir.path(), &["--json", "."]);
    let report = json(&first);
    assert_eq!(report["findings"].as_array().unwrap().len(), 300);
    assert_eq!(report["files"], 300);
    let mut sorted = names.clone();
    sorted.sort_by(|a, b| Path::new(a).cmp(Path::new(b)));
    let told: Vec<_> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["path"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, sorted);
    for _ in 0..5 {
        assert_eq!(scan(dir.path(), &["--json", "."]).stdout, first.stdout);
    }
}

#[test]
fn in_a_work_tree_what_git_ignores_is_left_out_unless_it_is_tracked() {
    if Command::new("git").arg("--version").output().is_err() {
        cannot_run("needs git");
        return;
    }
    let key = format!("key = {TOKEN}\n");
    for version in ["2", "4"] {
        let dir = tree(&[
            (".gitignore", "*.log\nbuild/\n"),
            ("app.py", &key),
            ("debug.log", &key),
            ("build/out.js", &key),
            ("tracked.log", &key),
            ("a/deep/tracked.log", &key),
            (".env", &key),
            ("sub/.gitignore", "!kept.log\nlocal\n"),
            ("sub/kept.log", &key),
            ("sub/local", &key),
        ]);
        git(dir.path(), &["init", "-q"]);
        git(dir.path(), &["config", "index.version", version]);
        git(dir.path(), &["add", "."]);
        git(dir.path(), &["add", "-f", "tracked.log", "a/deep/tracked.log"]);
        git(dir.path(), &["commit", "-q", "-m", "x"]);
        let paths = |args: &[&str]| {
            let mut paths: Vec<_> = lines(&scan(dir.path(), args))
                .iter()
                .map(|line| line.split(':').next().unwrap().to_owned())
                .collect();
            paths.dedup();
            paths
        };
        let seen = [".env", "a/deep/tracked.log", "app.py", "sub/kept.log", "tracked.log"];
        assert_eq!(paths(&["."]), seen, "index version {version}");
        assert_eq!(paths(&["a"]), ["a/deep/tracked.log"]);
        assert_eq!(paths(&["--skip-hidden", "."]), seen[1..]);
        let all = paths(&["--no-ignore", "."]);
        for ignored in ["debug.log", "build/out.js", "sub/local"] {
            assert!(all.contains(&ignored.to_owned()), "{ignored} in {all:?}");
        }
        // A file that is named is searched, whatever git ignores.
        assert_eq!(paths(&["debug.log"]), ["debug.log"]);
        // A work tree beside the repository has its index elsewhere.
        let other = tempfile::tempdir().unwrap();
        let place = other.path().join("tree");
        git(dir.path(), &["worktree", "add", "-q", place.to_str().unwrap()]);
        let found = lines(&scan(&place, &["."]));
        assert!(found.iter().any(|l| l.starts_with("tracked.log:")), "{found:?}");
        assert!(!found.iter().any(|l| l.starts_with(".git")), "{found:?}");
    }
}

#[test]
fn what_cannot_be_read_is_told_and_shows_in_the_status() {
    let dir = tree(&[("a", "nothing\n"), ("closed/b", "nothing\n")]);
    let missing = scan(dir.path(), &["a", "missing"]);
    assert_eq!(missing.status.code(), Some(10), "{}", text(&missing));
    assert!(text(&missing).contains("missing: No such file"), "{}", text(&missing));
    let found = scan_with(dir.path(), &["--json", "-", "missing"], TOKEN.as_bytes());
    assert_eq!(found.status.code(), Some(8), "a finding is worse");
    assert_eq!(json(&found)["unreadable"][0]["path"], "missing");
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // Root reads everything: as somebody else.
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    open(dir.path(), 0o755);
    open(&dir.path().join("closed"), 0o700);
    fs::write(dir.path().join("secret"), "x").unwrap();
    open(&dir.path().join("secret"), 0o600);
    let program = dir.path().join("strongroom");
    fs::copy(env!("CARGO_BIN_EXE_strongroom"), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "54321", "--regid", "54321", "--clear-groups"])
        .arg(&program)
        .args(["scan", "--json", "a", "closed", "secret"])
        .current_dir(dir.path())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", text(&output));
    let report = json(&output);
    let paths: Vec<_> =
        report["unreadable"].as_array().unwrap().iter().map(|u| u["path"].clone()).collect();
    assert_eq!(paths, ["closed", "secret"]);
    assert_eq!(report["files"], 1);
}

#[test]
fn links_pipes_and_large_files_are_passed_by_and_binary_ones_are_not() {
    let dir = tree(&[("real/key", TOKEN), ("large", &format!("{}{TOKEN}", "x ".repeat(10_000)))]);
    fs::write(dir.path().join("binary"), [b"\0\x01\xff ".as_slice(), TOKEN.as_bytes()].concat())
        .unwrap();
    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let outside = tree(&[("other", TOKEN)]);
    std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("other"), dir.path().join("file")).unwrap();
    let output = scan(dir.path(), &["--max-size", "10K", "."]);
    let found = lines(&output);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("binary: byte 4: "), "{found:?}");
    assert!(found[1].starts_with("real/key:1:1: "), "{found:?}");
    assert!(text(&output).contains("1 too large"), "{}", text(&output));
    // Named by a person, a link is followed.
    assert_eq!(lines(&scan(dir.path(), &["file"])).len(), 1);
}

#[test]
fn stdin_is_a_file_like_any_other() {
    let dir = tree(&[]);
    let output = scan_with(dir.path(), &["-"], format!("a\nb {TOKEN}\n").as_bytes());
    assert_eq!(output.status.code(), Some(8));
    assert!(lines(&output)[0].starts_with("(stdin):2:3: "), "{}", text(&output));
    assert_eq!(scan_with(dir.path(), &["-"], b"nothing\n").status.code(), Some(0));
}

#[test]
fn a_name_with_a_secret_in_it_is_found_and_not_shown() {
    let dir = tree(&[]);
    fs::write(dir.path().join(format!("{TOKEN}.txt")), "nothing\n").unwrap();
    fs::write(dir.path().join("esc\u{1b}[2J"), TOKEN).unwrap();
    let output = scan(dir.path(), &["."]);
    let found = lines(&output);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("esc\\u{1b}[2J:1:1: "), "{found:?}");
    assert!(found[1].contains("].txt: in its name: "), "{found:?}");
    assert!(!text(&output).contains(TOKEN));
}

#[test]
fn known_findings_are_passed_over_by_their_place_alone() {
    let dir = tree(&[("a", &format!("{TOKEN}\n")), ("b", &format!("{ID}\n"))]);
    let report = scan(dir.path(), &["--json", "a", "b"]);
    let known = dir.path().join("known.json");
    fs::write(&known, &report.stdout).unwrap();
    let args = ["--baseline", "known.json", "a", "b"];
    let again = scan(dir.path(), &args);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again));
    assert!(text(&again).contains("known"), "{}", text(&again));
    // Moved within its file it is still known; one more is not.
    fs::write(dir.path().join("a"), format!("\n\n{TOKEN}\n")).unwrap();
    assert_eq!(scan(dir.path(), &args).status.code(), Some(0));
    fs::write(dir.path().join("a"), format!("{TOKEN}\n{TOKEN}\n")).unwrap();
    let more = scan(dir.path(), &args);
    assert_eq!(lines(&more).len(), 1, "{}", text(&more));
    let bad = scan(dir.path(), &["--baseline", "a", "b"]);
    assert!(text(&bad).contains("hint:"), "{}", text(&bad));
    assert_eq!(bad.status.code(), Some(1));
}

#[test]
fn sarif_is_as_its_standard_has_it() {
    let dir = tree(&[("a b/\u{e4}.txt", &format!("x\n  {TOKEN}\n{ID}\n"))]);
    fs::write(dir.path().join("bin"), [b"\0", TOKEN.as_bytes()].concat()).unwrap();
    let output = scan(dir.path(), &["--format", "sarif", ".", "missing"]);
    let log = json(&output);
    assert_eq!(log["version"], "2.1.0");
    assert!(log["$schema"].as_str().unwrap().ends_with("sarif-schema-2.1.0.json"));
    let run = &log["runs"][0];
    assert_eq!(log["runs"].as_array().unwrap().len(), 1);
    let driver = &run["tool"]["driver"];
    assert_eq!(driver["name"], "strongroom");
    assert_eq!(run["columnKind"], "unicodeCodePoints");
    let rules = driver["rules"].as_array().unwrap();
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), 3, "{log:#}");
    for rule in rules {
        assert!(rule["id"].is_string() && rule["shortDescription"]["text"].is_string());
    }
    for result in results {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"], "an index leads to its rule");
        assert!(["error", "warning", "note"].contains(&result["level"].as_str().unwrap()));
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        let place = &result["locations"][0]["physicalLocation"];
        let uri = place["artifactLocation"]["uri"].as_str().unwrap();
        assert!(uri.is_ascii() && !uri.contains(' ') && !uri.starts_with('/'), "{uri}");
        let region = place["region"].as_object().unwrap();
        let text = region.get("startLine").is_some_and(|l| l.as_u64() >= Some(1));
        assert!(text || region.contains_key("byteOffset"), "{region:?}");
        assert!(!region.contains_key("endColumn") && !region.contains_key("byteLength"));
        assert!(
            result.get("fingerprints").is_none() && result.get("partialFingerprints").is_none()
        );
    }
    let first = &results[0]["locations"][0]["physicalLocation"];
    assert_eq!(first["artifactLocation"]["uri"], "a%20b/%C3%A4.txt");
    assert_eq!(first["region"], serde_json::json!({"startLine": 2, "startColumn": 3}));
    let invocation = &run["invocations"][0];
    assert_eq!(invocation["executionSuccessful"], false, "a file is missing");
    assert_eq!(invocation["toolExecutionNotifications"].as_array().unwrap().len(), 1);
}

/// Makes an entry in a list, without home or daemon.
fn allow(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    alone(dir, "allow", args, input)
}

/// Another one, of no account either.
const SECOND: &str = "ghp_q7Zk2Wm9Lx4Tb8Rv3Yd6Nc1Jf5Hg0Ps8UaEo";

#[test]
fn what_the_list_in_the_root_has_is_counted_and_not_reported() {
    let content = format!("token = \"{TOKEN}\"\nother = \"{SECOND}\"\n");
    let dir = tree(&[("sub/a", &content), ("b", &format!("x {TOKEN}\n"))]);
    let root = dir.path();
    let places = lines(&scan(root, &["."]));
    assert_eq!(places.len(), 3, "{places:?}");
    let at = places[1].rsplit_once(": ").unwrap().0;
    assert_eq!(at, "sub/a:1:10");
    let added = allow(root, &["--to", ".strongroom-allow", "--at", at, "--reason", "docs"], b"");
    assert!(added.status.success(), "{}", text(&added));
    assert!(text(&added).contains("found by: github-token"), "{}", text(&added));
    let list = fs::read_to_string(root.join(".strongroom-allow")).unwrap();
    assert!(list.contains("allow1:") && list.contains("# docs"), "{list}");
    assert!(!list.contains(&TOKEN[4..12]), "{list}");
    let again = allow(root, &["--to", ".strongroom-allow"], format!("{TOKEN}\n").as_bytes());
    assert!(text(&again).contains("already"), "{}", text(&again));

    let output = scan(root, &["."]);
    assert_eq!(output.status.code(), Some(8), "{}", text(&output));
    assert_eq!(lines(&output).len(), 1, "{}", text(&output));
    assert!(lines(&output)[0].starts_with("sub/a:2:10: "), "the list itself has none");
    assert!(text(&output).contains("1 found in 3 files") && text(&output).contains("2 allowed"));
    let report = json(&scan(root, &["--json", "."]));
    assert_eq!((&report["allowed"], report["findings"].as_array().unwrap().len()), (&2.into(), 1));
    let log = json(&scan(root, &["--format", "sarif", "."]));
    let results = log["runs"][0]["results"].as_array().unwrap();
    let suppressed = |result: &&serde_json::Value| {
        let all = result["suppressions"].as_array().unwrap();
        all.iter().any(|one| one["kind"] == "external")
    };
    assert_eq!((results.len(), results.iter().filter(suppressed).count()), (3, 2), "{log:#}");

    // In a directory below, or by another root, that list does not count; a named one does.
    for (args, found) in [
        (&["sub"][..], 2),
        (&["--no-allow", "."], 3),
        (&["--allow", ".strongroom-allow", "sub"], 1),
        (&["./", root.to_str().unwrap()], 2),
    ] {
        let output = scan(root, args);
        assert_eq!(lines(&output).len(), found, "{args:?}: {}", text(&output));
    }
    let input = format!("{TOKEN} {SECOND}\n");
    assert_eq!(lines(&scan_with(root, &["-"], input.as_bytes())).len(), 2);
    let named = scan_with(root, &["--allow", ".strongroom-allow", "-"], input.as_bytes());
    assert_eq!(lines(&named).len(), 1, "{}", text(&named));
    // All of it allowed: nothing was found.
    allow(root, &["--to", ".strongroom-allow"], SECOND.as_bytes());
    let clean = scan(root, &["."]);
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean));
    // What goes on is another token.
    fs::write(root.join("b"), format!("x {TOKEN}0 y\npassword = {SECOND}/k7Hq2ZpX9vLm\n")).unwrap();
    assert_ne!(scan(root, &["."]).status.code(), Some(0));
}

#[test]
fn a_list_that_is_none_ends_the_scan_with_a_hint_and_is_not_quoted() {
    let dir = tree(&[("a", "x\n"), (".strongroom-allow", &format!("{TOKEN}\n"))]);
    let output = scan(dir.path(), &["."]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let told = text(&output);
    assert!(told.contains(".strongroom-allow line 1: this is no entry"), "{told}");
    assert!(told.contains("hint: ") && !told.contains(&TOKEN[4..12]), "{told}");
    let without = scan(dir.path(), &["--no-allow", "a"]);
    assert_eq!(without.status.code(), Some(0), "{}", text(&without));
    let missing = scan(dir.path(), &["--allow", "nowhere", "a"]);
    assert_eq!(missing.status.code(), Some(1), "{}", text(&missing));
    for (place, what) in [
        ("a:1:1", "nothing is found at a:1:1"),
        ("a", "no PATH:LINE:COLUMN"),
        ("nowhere:1:1", "nowhere"),
    ] {
        let refused = allow(dir.path(), &["--to", "list", "--at", place], b"");
        assert!(!refused.status.success() && text(&refused).contains(what), "{}", text(&refused));
        assert!(!dir.path().join("list").exists());
    }
}

#[test]
fn rules_of_the_configuration_hold_without_a_daemon_too() {
    let dir = tree(&[
        ("a", &format!("{TOKEN}\nacme_3f9a1c7be20d4586\n")),
        (
            "home/strongroom.toml",
            "[[redaction.rule]]\nid = \"acme-key\"\npattern = \"acme_[a-f0-9]{16}\"\n",
        ),
    ]);
    let found = lines(&scan(dir.path(), &["--home", "home", "a"]));
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[1], "a:2:1: acme-key");
}
