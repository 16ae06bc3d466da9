//! The command line as people meet it: every `--help`, kept as a snapshot, so that a change of words
//! is seen and meant. `STRONGROOM_UPDATE=1 cargo test --test cli` writes it anew.
#![forbid(unsafe_code)]

mod common;

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
    assert_eq!(told, "error: unrecognized subcommand 'secrte'\nhint: did you mean `secret`?\n");
}

/// Whether a program is there; says loudly when a test cannot do without.
fn may_use(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        common::cannot_run(&format!("needs {program}"));
    }
    found.status.success()
}

/// What `shell` prints after it has loaded its completions by `script`; `FILE` stands for them.
fn completed(shell: &str, script: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let own = Command::new(env!("CARGO_BIN_EXE_strongroom"))
        .args(["completions", shell])
        .output()
        .unwrap();
    assert!(own.status.success());
    let file = dir.path().join("_strongroom");
    std::fs::write(&file, own.stdout).unwrap();
    let script = script.replace("FILE", file.to_str().unwrap());
    let output = Command::new(shell)
        .args(["-c", &script])
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{shell}: {}", common::text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_options_and_choices() {
    let at = |words: &str, count: usize| {
        completed(
            "bash",
            &format!(
                "source FILE; COMP_WORDS=({words}); COMP_CWORD={count}; COMP_LINE='{words}'; \
                 COMP_POINT=${{#COMP_LINE}}; last=${{COMP_WORDS[$COMP_CWORD]}}; \
                 $(complete -p strongroom | sed 's/.*-F \\([^ ]*\\).*/\\1/') strongroom \"$last\" \
                 \"${{COMP_WORDS[$COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\""
            ),
        )
    };
    assert_eq!(at("strongroom secret ro", 2).trim(), "rollback rotate");
    assert!(at("strongroom secret rotate --gen", 3).contains("--generate"));
    assert!(at("strongroom import x --on-conflict ''", 4).contains("rotate"));
    assert!(!at("strongroom ''", 1).contains("worker"), "what is hidden is not offered");
}

#[test]
fn zsh_and_fish_load_their_completions() {
    if may_use("zsh") {
        let told = completed(
            "zsh",
            "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -d $PWD/dump; \
             echo $_comps[strongroom]; autoload +X _strongroom && whence -w _strongroom",
        );
        assert_eq!(told, "_strongroom\n_strongroom: function\n");
    }
    if may_use("fish") {
        let told = completed("fish", "source FILE; complete -C 'strongroom secret ro'");
        let words: Vec<_> = told.lines().filter_map(|l| l.split_whitespace().next()).collect();
        assert_eq!(words, ["rollback", "rotate"]);
    }
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

#[test]
fn every_man_page_is_there_and_is_what_formatters_take_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let strongroom =
        |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_strongroom")).args(args).output().unwrap();
    let written = strongroom(&["man", "--dir", dir.path().to_str().unwrap(), "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&written.stdout).unwrap();
    let mut found = Vec::new();
    all(&mut Vec::new(), &mut found);
    for (path, _) in &found {
        let words = std::iter::once("strongroom").chain(path.split_whitespace());
        let name = format!("{}.1", words.collect::<Vec<_>>().join("-"));
        assert!(told["pages"].as_array().unwrap().contains(&name.clone().into()), "{name}");
        let page = std::fs::read_to_string(dir.path().join(&name)).unwrap();
        // What it refers to is there.
        for other in page.split("\\fB").skip(1).filter_map(|rest| rest.split_once("\\fR(1)")) {
            let other = other.0.replace("\\-", "-");
            assert!(dir.path().join(format!("{other}.1")).exists(), "{name} names {other}(1)");
        }
    }
    let one = strongroom(&["man", "secret", "rotate"]);
    let page = std::fs::read(dir.path().join("strongroom-secret-rotate.1")).unwrap();
    assert_eq!(one.stdout.trim_ascii(), page.trim_ascii());
    assert_eq!(strongroom(&["man", "secret", "nothing"]).status.code(), Some(6));
    for (program, args) in
        [("groff", &["-man", "-ww", "-z"][..]), ("mandoc", &["-T", "lint", "-W", "error"])]
    {
        if !may_use(program) {
            continue;
        }
        for page in told["pages"].as_array().unwrap() {
            let path = dir.path().join(page.as_str().unwrap());
            let output = Command::new(program).args(args).arg(path).output().unwrap();
            assert!(
                common::text(&output).is_empty(),
                "{program} {page}: {}",
                common::text(&output)
            );
        }
    }
    let shown = Command::new("groff")
        .args(["-man", "-Tascii", "-P-cbou"])
        .arg(dir.path().join("strongroom-scan.1"))
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for line in ["8      a check found something", "10     scan: nothing was found"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
}
