//! The OpenAPI document, read by others than its maker: a parser of OpenAPI 3.1 and a validator of JSON
//! Schema 2020-12. Every route and problem is described, its examples are what its schemas say, and
//! so is what the daemon answers.
#![forbid(unsafe_code)]

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::{Home, may_mount, text};
use serde_json::{Value, json};
use strongroom::config::Permission;
use strongroom::control::openapi;
use strongroom::proto::Code;

/// A validator of `schema`, whose references are those of the document.
fn validator(document: &Value, schema: &Value) -> jsonschema::Validator {
    let whole = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "allOf": [schema],
        "components": document["components"],
    });
    jsonschema::draft202012::new(&whole).unwrap_or_else(|e| panic!("{e}: {schema}"))
}

fn check(document: &Value, schema: &Value, what: &str, value: &Value) {
    let told: Vec<_> = validator(document, schema)
        .iter_errors(value)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(told.is_empty(), "{what}: {told:#?}\n{value:#}");
}

fn operations(document: &Value) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            all.push((format!("{method} {path}"), operation));
        }
    }
    all
}

#[test]
fn another_parser_reads_it_as_it_is_meant() {
    let document = openapi::document();
    let read = oas3::from_json(document.to_string()).unwrap();
    assert_eq!(read.openapi, "3.1.0");
    let found: BTreeSet<_> = read
        .operations()
        .map(|(path, method, operation)| {
            assert!(operation.operation_id.is_some(), "{path}");
            format!("{} {path}", method.as_str().to_lowercase())
        })
        .collect();
    let ours: BTreeSet<_> = operations(&document).into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, ours);
}

#[test]
fn every_schema_is_one_and_every_example_is_what_its_schema_says() {
    let document = openapi::document();
    for (name, _) in document["components"]["schemas"].as_object().unwrap() {
        validator(&document, &json!({"$ref": format!("#/components/schemas/{name}")}));
    }
    let mut examples = 0;
    let mut contents: Vec<(String, &Value)> = Vec::new();
    for (name, operation) in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            validator(&document, &parameter["schema"]);
        }
        contents.push((name, &operation["requestBody"]["content"]));
    }
    for (name, response) in document["components"]["responses"].as_object().unwrap() {
        contents.push((name.clone(), &response["content"]));
    }
    for (name, content) in contents {
        for media in content.as_object().into_iter().flat_map(|c| c.values()) {
            let many = media["examples"].as_object().into_iter().flat_map(|e| e.values());
            let all = many.map(|example| &example["value"]).chain(media.get("example"));
            for example in all {
                check(&document, &media["schema"], &name, example);
                examples += 1;
            }
        }
    }
    // Each problem twice, and requests.
    assert!(examples > 2 * Code::ALL.len() + 4, "{examples}");
}

#[test]
fn every_route_says_who_may_and_every_problem_has_its_response() {
    let document = openapi::document();
    let mut seen = BTreeSet::new();
    for (name, operation) in operations(&document) {
        assert!(seen.insert(operation["operationId"].as_str().unwrap()), "{name}");
        for field in ["summary", "description", "x-needs"] {
            assert!(!operation[field].as_str().unwrap_or_default().is_empty(), "{name} {field}");
        }
        let responses = operation["responses"].as_object().unwrap();
        for status in ["200", "400", "default"] {
            assert!(responses.contains_key(status), "{name} {status}");
        }
        let open = operation["x-needs"] == "nothing";
        let confirmed = operation["description"].as_str().unwrap().contains("passphrase");
        assert!(responses.contains_key("403") || open, "{name}");
        assert!(
            !responses.contains_key("403")
                || !open
                || confirmed
                || name.contains("unlock")
                || name.contains("confirm"),
            "{name}"
        );
        for response in responses.values() {
            if let Some(reference) = response["$ref"].as_str() {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{name}: {reference}");
            }
        }
    }
    for permission in Permission::ALL {
        assert!(document["info"]["x-permissions"][permission.word()].is_string(), "{permission}");
    }
    for code in Code::ALL {
        let response = &document["components"]["responses"][format!("problem-{}", code.status())];
        assert!(response["description"].as_str().unwrap().contains(code.word()), "{code:?}");
    }
}

/// Status and body of an answer.
fn ask(home: &Home, method: &str, path: &str, body: &Value) -> (u16, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--max-time", "120", "--write-out", "\n%{http_code}", "--unix-socket"])
        .arg(home.socket())
        .arg(format!("http://localhost{path}"));
    if method == "post" {
        curl.args(["--header", "content-type: application/json", "--data", &body.to_string()]);
    }
    let output = curl.output().unwrap();
    assert!(output.status.success(), "{path}: {}", text(&output));
    let told = String::from_utf8(output.stdout).unwrap();
    let (body, status) = told.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[test]
fn what_the_daemon_answers_is_what_the_document_says() {
    if !may_mount() {
        return;
    }
    let home = Home::deployed();
    home.ok(&["execution", "start", "--chain", "deploy-pipeline", "--env", "prod", "--id", "e-1"]);
    let document = openapi::document();
    let served = ask(&home, "get", openapi::PATH, &Value::Null);
    assert_eq!(serde_json::from_str::<Value>(&served.1).unwrap(), document);
    let mut answered = 0;
    for (name, operation) in operations(&document) {
        let (method, path) = name.split_once(' ').unwrap();
        let query = match path {
            "/v1/secrets/show" | "/v1/secrets/exposures" => "?name=OPENAI_API_KEY",
            "/v1/groups/show" => "?name=aws-deploy",
            "/v1/chains/show" => "?chain=deploy-pipeline",
            "/v1/executions/show" | "/v1/events/path" => "?id=e-1",
            "/v1/explain" => "?pid=1",
            // It goes on until the client goes.
            "/v1/watch" => continue,
            _ => "",
        };
        // A changing verb is asked for nothing: its problem is what is looked at.
        let (status, body) = ask(&home, method, &format!("{path}{query}"), &json!({"no": 1}));
        let response = match operation["responses"].get(status.to_string()) {
            Some(response) => response,
            None => panic!("{name} answers {status}, which is not described: {body}"),
        };
        let response = match response["$ref"].as_str() {
            Some(reference) => document.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
            None => response,
        };
        let (media, content) = response["content"].as_object().unwrap().iter().next().unwrap();
        if media.contains("json") {
            let values = match media.as_str() {
                "application/x-ndjson" => body.lines().map(ToOwned::to_owned).collect(),
                _ => vec![body],
            };
            for value in values {
                let value = serde_json::from_str(&value).unwrap_or_else(|e| panic!("{name}: {e}"));
                check(&document, &content["schema"], &name, &value);
            }
        }
        answered += usize::from(status == 200);
    }
    assert!(answered >= 15, "{answered}");
}
