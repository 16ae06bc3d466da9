//! The design's session line by line, as root and as a plain user through fusermount3, and the README's
//! as it is, in a clone. Every line must succeed; what some print is looked at.

mod common;

use std::process::{Command, Output};

use common::{Home, may_mount, text};

/// The lines as a person types them.
const SESSION: &str = r#"
export STRONGROOM_HOME=$PWD/home
export OPENAI=sk-proj-words-0123456789abcdef DB_PROD=postgres://app:words-hunter2@db/prod
export SSH="-----BEGIN OPENSSH PRIVATE KEY-----
wordsKEY
-----END-----"
head -c 32 /dev/urandom > key && chmod 600 key
strongroom init --unlock key-file:$PWD/key
strongroom up
printf %s "$OPENAI"  | strongroom secret set OPENAI_API_KEY --scope org
printf %s "$DB_PROD" | strongroom secret set prod/DATABASE_URL --scope chain:deploy-pipeline
printf %s "$SSH"     | strongroom secret set SSH_DEPLOY_KEY --scope agent:deploy-pipeline/Deployer
strongroom group set aws-deploy --scope chain:deploy-pipeline < group.json
strongroom project set billing-system --chain billing/invoice-generator --chain billing/payment-processor
strongroom chain apply deploy-pipeline.json
echo == run
strongroom run --chain deploy-pipeline --agent TestRunner --env prod -- sh -c 'ls "$CREDENTIALS_DIRECTORY"; cat SECRETS/DATABASE_URL'
echo
echo == access
strongroom access --chain deploy-pipeline            # agents x secrets
echo == adhoc
strongroom run -s OPENAI_API_KEY -- python3 -c 'import os; print(len(os.environ["OPENAI_API_KEY"]))'
echo == query
strongroom audit query --event secret_accessed --json; strongroom audit verify
echo == status
strongroom status; strongroom doctor || test $? = 8; strongroom down
echo == end
"#;

const GROUP: &str =
    r#"{"AWS_ACCESS_KEY_ID": "AKIAwords", "AWS_SECRET_ACCESS_KEY": "words/K7MDENG/bPxRfi"}"#;

fn prepare(home: &Home, secrets: &str) -> String {
    let dir = home.dir.path();
    std::fs::write(dir.join("group.json"), GROUP).unwrap();
    std::fs::write(dir.join("deploy-pipeline.json"), common::DEFINITION).unwrap();
    std::fs::create_dir(dir.join("bin")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_strongroom"), dir.join("bin/strongroom"))
        .unwrap();
    let session = SESSION.replace("SECRETS", secrets);
    format!("set -e\ncd {0}\nPATH={0}/bin:$PATH\n{session}", dir.display())
}

fn section<'a>(told: &'a str, name: &str) -> &'a str {
    let from = told.find(&format!("== {name}\n")).unwrap_or_else(|| panic!("no {name}: {told}"));
    let rest = &told[from + name.len() + 4..];
    rest.split("\n== ").next().unwrap()
}

fn check(output: &Output, root: bool) {
    let all = text(output);
    assert!(output.status.success(), "{all}");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    // The output of `run` is stripped of what was read: the marker says that it was there.
    let run = section(&told, "run");
    assert_eq!(
        run.trim(),
        "DATABASE_URL\nOPENAI_API_KEY\nevents\n[REDACTED:DATABASE_URL]",
        "{all}"
    );
    let access = section(&told, "access");
    for row in ["CodeAnalyzer", "TestRunner", "Deployer", "prod/DATABASE_URL", "SSH_DEPLOY_KEY"] {
        assert!(access.contains(row), "{row}: {access}");
    }
    assert_eq!(section(&told, "adhoc").trim(), "30", "{all}");
    let query = section(&told, "query");
    let records: Vec<serde_json::Value> =
        query.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(records.len(), 1, "{query}");
    assert_eq!(records[0]["secret_key"], "prod/DATABASE_URL");
    assert_eq!(records[0]["agent"], "TestRunner");
    assert!(query.lines().any(|line| line.starts_with("ok: ")), "{query}");
    let status = section(&told, "status");
    for line in ["ready", "secrets", "redaction", "survival", "down"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert!(told.trim_end().ends_with("== end"), "{all}");
    assert!(!all.contains("words-hunter2"), "{all}");
    let promise = status.lines().find(|line| line.contains("identity")).unwrap();
    assert!(promise.contains(if root { "full" } else { "partial" }), "{promise}");
}

#[test]
fn the_session_works_word_for_word_as_root() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let script = prepare(&home, "/run/secrets");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    check(&output, true);
    assert!(!std::path::Path::new("/run/secrets/DATABASE_URL").exists());
}

#[test]
fn the_session_works_word_for_word_as_a_plain_user() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let script = prepare(&home, "\"$CREDENTIALS_DIRECTORY\"");
    let dir = home.dir.path();
    std::fs::write(dir.join("session.sh"), &script).unwrap();
    std::os::unix::fs::chown(dir, Some(65534), Some(65534)).unwrap();
    let device_dir = format!("{}.dev", dir.display());
    std::fs::create_dir(&device_dir).unwrap();
    // A namespace of its own with a device that everybody may open, as distributions have it.
    let outer = format!(
        "set -e; mount -t tmpfs dev {device_dir}; mknod -m 666 {device_dir}/fuse c 10 229; \
         mount --bind {device_dir}/fuse /dev/fuse; \
         HOME={0} exec setpriv --reuid 65534 --regid 65534 --clear-groups sh {0}/session.sh",
        dir.display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sh", "-c", &outer])
        .output()
        .unwrap();
    std::fs::remove_dir(&device_dir).unwrap();
    check(&output, false);
}

/// Lines that a test cannot type: it has its own build, and no agent of the reader's.
const OF_THE_READERS: [&str; 2] = ["cargo install --path .", "./old-agent.sh "];

/// The lines of the README's sessions, each told when it fails.
fn sessions() -> String {
    let readme = include_str!("../README.md");
    let mut lines = String::new();
    for title in ["Ten minutes with", "Rotate, and revoke", "Nothing leaves with"] {
        let chapter = readme.split("\n## ").find(|chapter| chapter.starts_with(title));
        let block = chapter.and_then(|c| c.split("```sh\n").nth(1)?.split("```").next());
        for line in block.unwrap_or_else(|| panic!("no session in: {title}")).lines() {
            if OF_THE_READERS.iter().any(|start| line.starts_with(start)) {
                continue;
            }
            let command = line.split(" #").next().unwrap().trim_end();
            // It tells by its status what a host does not have.
            let also = if command.contains("doctor") { 8 } else { 0 };
            lines.push_str(&format!(
                "echo == {}\n{line}\ncase $? in 0|{also}) ;; *) exit 1;; esac\n",
                command.replace(['"', '\'', '$', '|', ';', '>', '<', '&', '(', ')', '*'], "")
            ));
        }
    }
    lines
}

#[test]
fn the_readmes_sessions_work_as_they_are_in_a_clone() {
    if !may_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (clone, bin) = (dir.path().join("clone"), dir.path().join("bin"));
    for made in [&clone, &clone.join("examples"), &bin] {
        std::fs::create_dir(made).unwrap();
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(root.join("examples")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, clone.join("examples").join(from.file_name().unwrap())).unwrap();
    }
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_strongroom"), bin.join("strongroom")).unwrap();
    // Whatever fails, nothing is left that serves.
    let script = format!(
        "trap 'strongroom down --force >/dev/null 2>&1' EXIT\nPATH={}:$PATH\n{}echo == end\n",
        bin.display(),
        sessions()
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(&clone)
        .envs([
            ("TMPDIR", dir.path().to_str().unwrap()),
            ("OPENAI", "sk-proj-readme-0123456789abcdef"),
            ("DB_DEV", "postgres://app:readme-dev-hunter2@db/dev"),
            ("DB_PROD", "postgres://app:readme-prod-hunter2@db/prod"),
            ("NEW", "postgres://app:readme-new-hunter2@db/prod"),
        ])
        .output()
        .unwrap();
    let all = text(&output);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.trim_end().ends_with("== end"), "{all}");
    assert!(!all.contains("readme-"), "{all}");
    // What the agents of the example print, and what is kept of it.
    let trial = section(&told, "strongroom chain run deploy-pipeline --env dev --id trial");
    for shown in ["a key of 41 bytes", "tests run against [REDACTED:DATABASE_URL]"] {
        assert!(trial.contains(shown), "{all}");
    }
    let kept = section(&told, "cat strongroom events path trial/.log");
    assert!(kept.contains("tests run against [REDACTED:DATABASE_URL]"), "{all}");
}
