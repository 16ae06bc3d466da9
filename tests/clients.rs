//! Clients that are not ours: curl, Python and Node over the socket, as the examples have them.

mod common;

use std::process::Command;

use common::{Home, OPENAI, cannot_run, may_mount, text};

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        cannot_run(&format!("needs {program}"));
    }
    found
}

fn example(name: &str) -> String {
    format!("{}/examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn each_example_is_run_by_a_test() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = String::new();
    for entry in std::fs::read_dir(root.join("tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "rs") {
            tests.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
    for entry in std::fs::read_dir(root.join("examples")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(tests.contains(&name), "no test names examples/{name}");
    }
}

#[test]
fn curl_starts_shows_and_ends_an_execution() {
    if !may_mount() || !has("curl") {
        return;
    }
    let home = Home::deployed();
    let curl = |path: &str, body: Option<&str>| -> serde_json::Value {
        let mut command = Command::new("curl");
        command.args(["-s", "--max-time", "120", "--unix-socket"]).arg(home.socket());
        if let Some(body) = body {
            command.args(["-H", "content-type: application/json", "-d", body]);
        }
        let output = command.arg(format!("http://strongroom{path}")).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    };
    let body = r#"{"chain": "deploy-pipeline", "environment": "prod", "id": "c1"}"#;
    assert_eq!(curl("/v1/executions", Some(body))["created"], true);
    assert_eq!(curl("/v1/executions", Some(body))["created"], false);
    assert_eq!(curl("/v1/executions/show?id=c1", None)["state"], "active");
    assert_eq!(curl("/v1/executions/end", Some(r#"{"id": "c1"}"#))["state"], "ended");
    let gone = curl("/v1/executions/show?id=c2", None);
    assert_eq!(gone["code"], "not_found");
    assert!(gone["hint"].is_string());
    let unknown = curl("/v1/executions", Some(r#"{"chian": "deploy-pipeline"}"#));
    assert!(unknown["status"].as_u64().unwrap() >= 400);
    let document = curl("/v1/openapi.json", None);
    assert!(document["paths"]["/v1/executions"].is_object());
}

#[test]
fn a_python_orchestrator_attaches_a_stopped_child_of_its_own() {
    if !may_mount() || !has("python3") {
        return;
    }
    let home = Home::deployed();
    let script = "cat \"$(cat dir)\"/OPENAI_API_KEY";
    // The child learns its directory from what the orchestrator printed.
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "python3 {} {} deploy-pipeline CodeAnalyzer prod sh -c 'until test -s dir; do \
             sleep 0.05; done; {script}' | tee out | sed -un 's/^directory //w dir'; \
             cat out",
            example("orchestrator.py"),
            home.socket().display()
        ))
        .current_dir(home.dir.path())
        .output()
        .unwrap();
    let told = text(&output);
    assert!(told.contains(OPENAI), "{told}");
    assert!(told.contains("execution ended"), "{told}");
    let accessed = home.records("secret_accessed");
    assert_eq!(accessed.len(), 1);
    assert_eq!(accessed[0]["agent"], "CodeAnalyzer");
}

#[test]
fn a_node_orchestrator_attaches_a_stopped_child_of_its_own() {
    if !may_mount() || !has("node") {
        return;
    }
    let home = Home::deployed();
    let run = |script: &str| {
        Command::new("timeout")
            .args(["120", "node", &example("orchestrator.js")])
            .arg(home.socket())
            .args(["deploy-pipeline", "CodeAnalyzer", "prod", "sh", "-c", script])
            .output()
            .unwrap()
    };
    let output = run("cat \"$CREDENTIALS_DIRECTORY\"/OPENAI_API_KEY; exit 7");
    let told = text(&output);
    assert!(told.contains(OPENAI) && told.contains("execution ended"), "{told}");
    assert_eq!(output.status.code(), Some(7), "the child's own status: {told}");
    let accessed = home.records("secret_accessed");
    assert_eq!(accessed.len(), 1);
    assert_eq!(accessed[0]["agent"], "CodeAnalyzer");
    home.ok(&["lock"]);
    let locked = run("true");
    assert_eq!(locked.status.code(), Some(1));
    assert!(text(&locked).contains("\nhint: strongroom unlock"), "{}", text(&locked));
}

/// The manual's own lines, word for word.
#[test]
fn what_the_manual_asks_by_curl_is_answered() {
    if !may_mount() || !has("curl") {
        return;
    }
    let home = Home::deployed();
    let manual = include_str!("../src/manual/control.md");
    let script = manual.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    // Each answer is checked: a problem ends it.
    let script = script.replace("ask() { curl --silent", "ask() { curl --silent --fail");
    let output = Command::new("sh")
        .args(["-ec", &script])
        .env("SOCKET", home.socket())
        .current_dir(home.dir.path())
        .output()
        .unwrap();
    let told = text(&output);
    assert!(output.status.success(), "{told}");
    for part in [
        "\"created\":true",
        "\"created\":false",
        "\"state\":\"ended\"",
        "prod/DATABASE_URL",
        "execution_started",
        "strongroom_mount_requests_total",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(home.dir.path().join("openapi.json").exists());
}

#[test]
fn a_node_client_watches() {
    if !may_mount() || !has("node") {
        return;
    }
    let home = Home::deployed();
    home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
    let accessed = home.records("secret_accessed")[0]["seq"].to_string();
    let output = Command::new("timeout")
        .args(["120", "node", &example("watch.js")])
        .arg(home.socket())
        .args(["0", &accessed])
        .output()
        .unwrap();
    let told = text(&output);
    assert!(told.contains("secret_accessed CodeAnalyzer"), "{told}");
}

#[test]
fn another_user_redeems_a_ticket_once_and_nobody_else_does() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    let body = r#"{"chain": "deploy-pipeline", "agent": "CodeAnalyzer", "environment": "prod",
        "as_user": "nobody"}"#;
    let output = Command::new("curl")
        .args(["-s", "--max-time", "120", "--unix-socket"])
        .arg(home.socket())
        .args(["-H", "content-type: application/json", "-d", body, "http://strongroom/v1/tickets"])
        .output()
        .unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let ticket = home.dir.path().join("ticket");
    std::fs::write(&ticket, answer["ticket"].as_str().unwrap()).unwrap();
    for dir in [home.home(), home.home().join("run"), home.mount()] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        // The mount refuses, and needs no change.
        let _changed = std::fs::set_permissions(dir, open);
    }
    let redeem = |user: &str| {
        Command::new("runuser")
            .args(["-u", user, "--", env!("CARGO_BIN_EXE_strongroom"), "--home"])
            .arg(home.home())
            .args(["run", "--no-redact", "--ticket-file"])
            .arg(&ticket)
            .args(["--", "sh", "-c", "id -un; cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY"])
            .output()
            .unwrap()
    };
    let stranger = redeem("daemon");
    assert!(!stranger.status.success());
    assert!(!text(&stranger).contains(OPENAI));
    let told = text(&redeem("nobody"));
    assert!(told.contains(&format!("nobody\n{OPENAI}")), "{told}");
    let again = redeem("nobody");
    assert!(!again.status.success());
    assert!(text(&again).contains("not good"), "{}", text(&again));
}

#[test]
fn a_python_supervisor_has_its_agent_redeem_a_ticket_as_another_user_and_watches_it() {
    if !may_mount() || !has("python3") {
        return;
    }
    let home = Home::deployed();
    for dir in [home.dir.path(), &home.home(), &home.home().join("run")] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, open).unwrap();
    }
    let run = |user: &str, script: &str| {
        Command::new("timeout")
            .args(["120", "python3", &example("supervisor.py")])
            .arg(home.socket())
            .args(["deploy-pipeline", "CodeAnalyzer", "prod", user, "sh", "-c", script])
            .current_dir("/")
            .output()
            .unwrap()
    };
    let output = run("nobody", "id -un; cat \"$CREDENTIALS_DIRECTORY\"/OPENAI_API_KEY; exit 7");
    let told = text(&output);
    assert!(told.contains(&format!("nobody\n{OPENAI}")), "{told}");
    assert_eq!(output.status.code(), Some(7), "{told}");
    let started = told.find("execution_started -").unwrap();
    let accessed = told.find("secret_accessed CodeAnalyzer").unwrap();
    assert!(started < accessed && accessed < told.find("execution_ended -").unwrap(), "{told}");
    // Its user sees nothing without a ticket.
    let socket = home.socket();
    let refused = Command::new("runuser")
        .args(["-u", "nobody", "--", "curl", "-s", "--max-time", "120", "--unix-socket"])
        .arg(&socket)
        .args(["-d", r#"{"ticket": "AAAA", "how": "move-peer"}"#])
        .args(["-H", "content-type: application/json"])
        .arg("http://strongroom/v1/tickets/redeem")
        .output()
        .unwrap();
    assert!(text(&refused).contains("\"hint\""), "{}", text(&refused));
}

/// An orchestrator that may only launch follows what it launches, and nothing of other chains.
#[test]
fn whoever_may_launch_in_a_chain_watches_it_and_no_other() {
    if !may_mount() || !has("node") {
        return;
    }
    let home = Home::deployed();
    let other = home.dir.path().join("other.json");
    std::fs::write(
        &other,
        r#"{"chain": "other", "agents": [{"name": "A", "secrets": ["OPENAI_API_KEY"]}]}"#,
    )
    .unwrap();
    home.ok(&["chain", "apply", other.to_str().unwrap()]);
    let roles = "[[role]]\nname = \"root\"\nuids = [0]\nmay = [\"launch\", \"operate\", \"audit\"]\n\
        [[role]]\nname = \"orchestrator\"\nuids = [54322]\nmay = [\"launch\"]\n\
        chains = [\"deploy-pipeline\"]\n";
    home.configure(roles);
    home.ok(&["run", "--chain", "other", "--agent", "A", "--", "true"]);
    home.agent("CodeAnalyzer", "cat $CREDENTIALS_DIRECTORY/OPENAI_API_KEY");
    for dir in [home.home(), home.home().join("run")] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir, open).unwrap();
    }
    let watch = std::fs::read_to_string(example("watch.js")).unwrap();
    let script = home.dir.path().join("watch.js");
    std::fs::write(&script, watch).unwrap();
    // As many as the chain has: started, agent started, accessed, and what ends them.
    let output = Command::new("setpriv")
        .args(["--reuid", "54322", "--regid", "54322", "--clear-groups", "timeout", "120", "node"])
        .arg(&script)
        .arg(home.socket())
        .args(["0", "4"])
        .output()
        .unwrap();
    let told = text(&output);
    assert!(told.contains("secret_accessed CodeAnalyzer"), "{told}");
    assert!(!told.contains(" A\n") && !told.contains("secret_set"), "{told}");
}
