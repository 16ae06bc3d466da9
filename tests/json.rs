//! `--json` on every command that prints a result, and tables that fit a terminal of 80 columns:
//! a walk over the whole tree on a home that holds something of everything.
#![forbid(unsafe_code)]

mod common;

use std::collections::BTreeMap;
use std::process::Stdio;

use common::{Home, OPENAI, at_a_terminal, may_mount, text};

/// Commands that print no result of their own, and why.
const WITHOUT: &[(&str, &str)] = &[
    ("completions", "prints a script for a shell"),
    ("redact", "prints the text; its summary goes beside it"),
    ("run", "prints what its command prints"),
    ("serve", "stays in the foreground and logs"),
];

/// All commands that have none below them.
fn leaves(home: &Home, path: &mut Vec<String>, found: &mut Vec<String>) {
    let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
    args.push("--help");
    let help = home.ok(&args);
    let below: Vec<_> = help
        .lines()
        .skip_while(|l| *l != "Commands:")
        .skip(1)
        .take_while(|l| !l.is_empty())
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    if below.is_empty() {
        found.push(path.join(" "));
    }
    for name in below {
        path.push(name.to_owned());
        leaves(home, path, found);
        path.pop();
    }
}

/// What each command is given, in this order: what stands after `<` is its input.
const CALLS: &[&str] = &[
    "status",
    "doctor",
    "wait",
    "config check",
    "config show",
    "access --chain deploy-pipeline",
    "setup --dry-run",
    "man secret set",
    "prompt",
    "secret set EXTRA < extra-value-0123456789",
    "secret edit EXTRA --description x",
    "secret get EXTRA --reveal",
    "secret list",
    "secret show EXTRA",
    "secret exposures EXTRA",
    "secret rotate EXTRA --generate hex:32 --valid-from 2999-01-01T00:00:00Z",
    "secret promote EXTRA --force",
    "secret rollback EXTRA",
    "secret revoke EXTRA --reason test --no-replacement --dry-run",
    "group list",
    "group show aws-deploy",
    "group set other < {\"O_ONE\": \"one-0123456789\", \"O_TWO\": \"two-0123456789\"}",
    "group rotate other --valid-from 2999-01-01T00:00:00Z < {\"O_ONE\": \"one-9876543210\", \"O_TWO\": \"two-9876543210\"}",
    "group promote other --force",
    "group rollback other",
    "group revoke other --reason test --no-replacement",
    "group rm other",
    "project set p --chain a/b",
    "project add p --chain a/c",
    "project list",
    "project remove p --chain a/c",
    "project rm p",
    "chain list",
    "chain show deploy-pipeline",
    "chain check deploy-pipeline.json --env prod",
    "chain apply deploy-pipeline.json",
    "chain apply trial.json",
    "chain run trial",
    "chain rm trial",
    "execution start --chain deploy-pipeline --env prod --id e-1",
    "execution list",
    "execution show e-1",
    "execution extend e-1 --deadline 2h",
    "events list",
    "events path e-1",
    "execution end e-1",
    "events prune --keep 0 --dry-run",
    "explain --pid 1",
    "chain apply rotate.json",
    "rotation apply policy.json",
    "rotation run OPENAI_API_KEY",
    "rotation list",
    "rotation rm OPENAI_API_KEY",
    "import - --dry-run < A_NAME=value-0123456789",
    "key list",
    "key add recovery",
    "key rekey 2",
    "key rm 2",
    "alert test",
    "backup create b.backup < a long passphrase",
    "backup verify b.backup < a long passphrase",
    "backup restore b.backup --replace < a long passphrase",
    "allow < a-token-0123456789",
    "scan deploy-pipeline.json",
    "audit head",
    "audit query",
    "audit tail --limit 3",
    "audit export all.jsonl",
    "audit verify",
    "audit prune --keep-days 30",
    "drill revoke",
    "secret destroy EXTRA --version 2",
    "secret rm EXTRA",
    "lock",
    "unlock",
    "reload",
    "down",
    "up",
    "demo",
    // `init` is for a home of its own.
    "init",
];

const POLICY: &str = r#"{"rotation_policy": {"OPENAI_API_KEY":
    {"rotate_every_days": 30, "rotation_chain": "rotate"}}}"#;
/// A rotation chain: what it makes, it prints.
const ROTATE: &str = r#"{"chain": "rotate", "agents": [
    {"name": "create", "rotates": ["OPENAI_API_KEY"], "command": ["/bin/echo", "made-0123456789"]},
    {"name": "test", "rotates": ["OPENAI_API_KEY"], "command": ["/bin/true"]}]}"#;
const TRIAL: &str = r#"{"chain": "trial", "agents":
    [{"name": "A", "secrets": ["OPENAI_API_KEY"], "command": ["true"]}]}"#;

fn filled() -> Home {
    let home = Home::deployed();
    std::fs::write(home.dir.path().join("policy.json"), POLICY).unwrap();
    std::fs::write(home.dir.path().join("trial.json"), TRIAL).unwrap();
    std::fs::write(home.dir.path().join("rotate.json"), ROTATE).unwrap();
    let alert = "[[alert]]\nname = \"t\"\ncommand = [\"/bin/true\"]\n";
    home.configure(alert);
    home
}

#[test]
fn every_command_that_prints_a_result_prints_it_as_json() {
    if !may_mount() {
        return;
    }
    let home = filled();
    let mut all = Vec::new();
    leaves(&home, &mut Vec::new(), &mut all);
    let mut called: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for call in CALLS {
        let (words, input) = call.split_once(" < ").unwrap_or((call, ""));
        let path = all
            .iter()
            .filter(|path| words == path.as_str() || words.starts_with(&format!("{path} ")))
            .max_by_key(|path| path.len());
        let path = path.unwrap_or_else(|| panic!("{call} is no command"));
        let mut args: Vec<&str> = words.split_whitespace().collect();
        args.push("--json");
        let fresh;
        let at = if *call == "init" {
            fresh = Home::new();
            &fresh
        } else {
            &home
        };
        let input = if *call == "init" { "nine blue horses 47" } else { input };
        let output = match input {
            "" => at.command(&args).stdin(Stdio::null()).output().unwrap(),
            input => at.run_with(&args, input),
        };
        let told = text(&output);
        let status = output.status.code().unwrap();
        // A check may have found something; a refusal is one line of error and one hint.
        if !matches!(status, 0 | 8) {
            panic!("{call}: {status}: {told}");
        }
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(!stdout.trim().is_empty(), "{call} prints nothing: {told}");
        let lines = || stdout.lines().map(serde_json::from_str::<serde_json::Value>);
        let whole = serde_json::from_str::<serde_json::Value>(&stdout);
        assert!(whole.is_ok() || lines().all(|l| l.is_ok()), "{call}: {told}");
        called.entry(path).or_default().push(told);
    }
    let missing: Vec<_> = all
        .iter()
        .filter(|path| !called.contains_key(path.as_str()))
        .filter(|path| WITHOUT.iter().all(|(without, _)| without != path))
        .collect();
    assert!(missing.is_empty(), "not called: {missing:?}");
}

#[test]
fn tables_fit_a_terminal_of_80_columns_and_stay_whole_in_a_pipe() {
    if !may_mount() {
        return;
    }
    let home = filled();
    home.ok(&["chain", "apply", "rotate.json"]);
    home.ok(&["rotation", "apply", "policy.json"]);
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", "e-1"]);
    let read = home.agent("Deployer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
    assert_eq!(text(&read), OPENAI);
    for call in [
        "status",
        "doctor",
        "access",
        "secret list",
        "secret show OPENAI_API_KEY",
        "secret exposures OPENAI_API_KEY",
        "group list",
        "chain list",
        "execution list",
        "execution show e-1",
        "key list",
        "rotation list",
        "events list",
        "explain --pid 1",
        "setup --dry-run --yes",
    ] {
        let told = at_a_terminal(&home, &format!("strongroom {call}"), &[]);
        let (shown, _) = told.rsplit_once("unanswered").unwrap();
        let place = home.dir.path().to_str().unwrap();
        for line in shown.lines() {
            // A path has no blanks to be broken at.
            let short = line.chars().count() <= 80 || line.contains(place);
            assert!(short, "{call}: {} columns: {line}", line.chars().count());
        }
        let args: Vec<_> = call.split(' ').collect();
        let piped = text(&home.run(&args));
        assert!(piped.lines().count() <= shown.lines().count(), "{call}: {piped}\n{shown}");
    }
}
