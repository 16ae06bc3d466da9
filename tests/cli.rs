//! The command line as people meet it: every `--help`, kept as a snapshot, so that a change of words
//! is seen and meant. `STRONGROOM_UPDATE=1 cargo test --test cli` writes it anew.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::process::Command;

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/help.txt");

fn help(path: &[String]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(path)
        .arg("--help")
        .env("COLUMNS", "100")
        .env_remove("STRONGROOM_HOME")
        .output()
        .unwrap();
    assert!(output.status.success(), "{path:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Names below `Commands:`.
fn commands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|l| *l != "Commands:").skip(1);
    lines
        .take_while(|l| !l.is_empty())
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(ToOwned::to_owned)
        .collect()
}

/// All commands with their help, depth first.
fn all(path: &mut Vec<String>, found: &mut Vec<(String, String)>) {
    let text = help(path);
    let below = commands(&text);
    found.push((path.join(" "), text));
    for name in below {
        path.push(name);
        all(path, found);
        path.pop();
    }
}

#[test]
fn every_help_is_as_it_was_meant() {
    let mut found = Vec::new();
    all(&mut Vec::new(), &mut found);
    assert!(found.len() > 60, "{}", found.len());
    let mut text = String::new();
    for (path, help) in &found {
        // Blanks at line ends come from wrapping.
        let help: Vec<_> = help.lines().map(str::trim_end).collect();
        writeln!(text, "$ strongroom {path} --help\n{}\n", help.join("\n")).unwrap();
    }
    if std::env::var_os("STRONGROOM_UPDATE").is_some() {
        std::fs::write(SNAPSHOT, &text).unwrap();
    }
    let kept = std::fs::read_to_string(SNAPSHOT).unwrap();
    for (now, then) in text.lines().zip(kept.lines()) {
        assert_eq!(
            now, then,
            "changed; if it was meant: STRONGROOM_UPDATE=1 cargo test --test cli"
        );
    }
    assert_eq!(text.lines().count(), kept.lines().count());
}

#[test]
fn every_command_takes_json_and_a_wrong_one_is_told_in_two_lines() {
    let mut found = Vec::new();
    all(&mut Vec::new(), &mut found);
    for (path, help) in &found {
        assert!(help.contains("--json"), "{path}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_strongroom")).arg("secrte").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("error: ") && told.contains("secret"), "{told}");
}

#[test]
fn completions_of_each_shell_know_the_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = Command::new(env!("CARGO_BIN_EXE_strongroom"))
            .args(["completions", shell])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for word in ["rotate", "exposures", "redact", "execution"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
}
