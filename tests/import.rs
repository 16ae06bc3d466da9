//! `import`: each shape that it reads, and what it does with what exists.

mod common;

use common::{Home, LIMIT, may_mount, text};

fn actions(answer: &serde_json::Value) -> Vec<(String, String)> {
    let items = answer["items"].as_array().unwrap();
    items
        .iter()
        .map(|i| (i["key"].as_str().unwrap().to_owned(), i["action"].as_str().unwrap().to_owned()))
        .collect()
}

fn import(home: &Home, args: &[&str], input: &str) -> serde_json::Value {
    let mut all = vec!["import", "-", "--json"];
    all.extend(args);
    serde_json::from_str(&home.ok_with(&all, input)).unwrap()
}

fn reveal(home: &Home, name: &str) -> String {
    home.ok(&["secret", "get", name, "--reveal"])
}

#[test]
fn secrets_groups_plain_members_and_policies_come_in_one_commit() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    let source = r#"{"secrets": {"API_KEY": "canary-api-1"},
        "secret_groups": {"aws-deploy": {"AWS_KEY": "canary-aws-1", "AWS_SECRET": "canary-aws-2",
            "AWS_DEFAULT_REGION": "eu-central-1"}},
        "plain": ["AWS_DEFAULT_REGION"],
        "rotation_policy": {"API_KEY": {"rotate_every_days": 30, "notify_before_days": 5},
            "aws-deploy": {"rotate_every_days": 90}}}"#;
    let told = import(&home, &["--env", "prod"], source);
    assert_eq!(actions(&told).len(), 4);
    assert!(actions(&told).iter().all(|(_, action)| action == "create"));
    let group = home.json(&["group", "show", "prod/aws-deploy"]);
    assert_eq!(group["members"].as_array().unwrap().len(), 3, "{group}");
    let listed = home.json(&["rotation", "list"]);
    let names: Vec<_> = listed["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{listed}");
    assert!(names.contains(&"prod/API_KEY") && names.contains(&"prod/aws-deploy"), "{names:?}");
    // A policy that cannot hold takes the values with it.
    for bad in [
        r#"{"secrets": {"LATER": "canary-later"}, "rotation_policy": {"NOBODY": {"rotate_every_days": 3}}}"#,
        r#"{"secrets": {"LATER": "canary-later"}, "rotation_policy": {"LATER": {"rotate_every_days": 0}}}"#,
        r#"{"secrets": {"LATER": "canary-later"}, "rotation_policy": {"LATER": {"rotate_evry": 3}}}"#,
        r#"{"secrets": {"LATER": "canary-later"}, "rotation_policy": {"LATER":
            {"rotate_every_days": 3, "auto_rotate": true, "rotation_chain": "none"}}}"#,
    ] {
        let output = home.run_with(&["import", "-"], bad);
        assert!(!output.status.success(), "{bad}");
        let message = text(&output);
        assert!(message.contains("error: ") && message.contains("\nhint: "), "{message}");
        assert!(!message.contains("canary-later"), "{message}");
        home.refused(&["secret", "show", "LATER"]);
    }
}

#[test]
fn what_exists_is_refused_left_or_rotated_as_a_whole() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    let first = r#"{"secrets": {"API_KEY": "canary-api-1"},
        "secret_groups": {"aws": {"AWS_KEY": "canary-aws-1", "AWS_SECRET": "canary-aws-2"}}}"#;
    import(&home, &[], first);
    let second = first.replace("-1\"", "-9\"").replace("{\"API", "{\"NEW\": \"canary-new\", \"API");
    let refused = text(&home.run_with(&["import", "-"], &second));
    assert!(refused.contains("exists already") && refused.contains("rotate"), "{refused}");
    let told = import(&home, &["--on-conflict", "rotate"], &second);
    let of = |name: &str| {
        let all = actions(&told);
        all.into_iter().find(|(key, _)| key == name).unwrap().1
    };
    assert_eq!(
        (of("NEW"), of("API_KEY"), of("AWS_KEY")),
        ("create".into(), "rotate".into(), "rotate".into())
    );
    // No execution holds the old ones, so the staged versions are current soon, the group's at once.
    common::wait_until("promotion", LIMIT, || {
        reveal(&home, "API_KEY") == "canary-api-9" && reveal(&home, "AWS_KEY") == "canary-aws-9"
    });
    assert_eq!(reveal(&home, "AWS_SECRET"), "canary-aws-2");
    assert_eq!(home.json(&["secret", "show", "API_KEY"])["versions"]["current"]["version"], 2);
    let rotated = home.records("secret_rotated");
    assert_eq!(rotated.iter().filter(|r| r["via"] == "import").count(), 3, "{rotated:?}");
    // A group changes with all its members or not at all.
    let partial = r#"{"secrets": {"OTHER": "canary-other", "AWS_KEY": "canary-half"}}"#;
    let message = text(&home.run_with(&["import", "-", "--on-conflict", "rotate"], partial));
    assert!(message.contains("no value for AWS_SECRET"), "{message}");
    home.refused(&["secret", "show", "OTHER"]);
    let skipped = import(&home, &["--on-conflict", "skip"], partial);
    assert!(actions(&skipped).contains(&("AWS_KEY".to_owned(), "skip".to_owned())));
    assert_eq!(reveal(&home, "AWS_KEY"), "canary-aws-9");
}

#[test]
fn flat_json_vault_kv_and_a_directory_are_read() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.start();
    // As `sops -d` prints it.
    import(&home, &[], r#"{"FLAT": "canary-flat", "PORT": 8080, "DEBUG": true}"#);
    assert_eq!(reveal(&home, "FLAT"), "canary-flat");
    assert_eq!(reveal(&home, "PORT"), "8080");
    // As `vault kv get -format=json` prints it.
    let kv = r#"{"request_id": "x", "lease_id": "", "data": {"data": {"KV": "canary-kv"},
        "metadata": {"version": 3}}, "warnings": null}"#;
    let told = import(&home, &["--plain", "NOTHING"], kv);
    assert_eq!(actions(&told), [("KV".to_owned(), "create".to_owned())]);
    assert_eq!(reveal(&home, "KV"), "canary-kv");
    let dir = home.dir.path().join("values");
    std::fs::create_dir_all(dir.join("nested")).unwrap();
    std::fs::write(dir.join("FROM_FILE"), [0xff, 0, 1]).unwrap();
    std::fs::write(dir.join(".hidden"), "x").unwrap();
    let told = home.json(&["import", dir.to_str().unwrap()]);
    assert_eq!(actions(&told), [("FROM_FILE".to_owned(), "create".to_owned())]);
    let raw = home.run(&["secret", "get", "FROM_FILE", "--reveal"]).stdout;
    assert_eq!(raw, [0xff, 0, 1]);
    for bad in ["[1]", "{\"A\": [\"x\"]}", "{\"A\": ", "{\"A\": \"\"}"] {
        let output = home.run_with(&["import", "-"], bad);
        assert!(!output.status.success() && text(&output).contains("\nhint: "), "{bad}");
    }
}
