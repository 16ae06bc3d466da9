//! The `OpenAPI` document and the manual's table of verbs by role, from the table of verbs.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::Needs;
use super::route::{JSON, Method, NDJSON, OCTETS, OPEN_METRICS, Route, Run};
use super::verbs::table;
use crate::config::Permission;
use crate::proto::{Code, Problem};

/// The path of the document.
pub const PATH: &str = "/v1/openapi.json";

/// The document (`OpenAPI` 3.1, whose schemas are JSON Schema 2020-12).
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.definitions_path = "/components/schemas".into();
        s.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    // Named by every problem response.
    let _problem = schemas.subschema_for::<Problem>();
    let mut paths = Map::new();
    for route in table() {
        let response = (route.response)(&mut schemas);
        let content_type = match (&route.run, route.verb) {
            (Run::Bytes(_), _) => OCTETS,
            (Run::Stream(_), _) => NDJSON,
            (Run::Once(_), "metrics") => OPEN_METRICS,
            (Run::Once(_), _) => JSON,
        };
        let mut operation = json!({
            "operationId": route.verb.replace(' ', "_"),
            "summary": route.about,
            "description": described(route),
            "x-needs": route.needs.text(),
            "x-idempotent": route.idempotent,
            "responses": problem_responses(route),
        });
        operation["responses"]["200"] = json!({
            "description": "done",
            "content": {content_type: {"schema": response}},
        });
        let request = (route.request)(&mut schemas);
        match (&route.run, route.method) {
            (Run::Bytes(_), _) => {
                operation["parameters"] = parameters(&request, &mut schemas);
                operation["requestBody"] =
                    json!({"required": true, "content": {OCTETS: {"schema": {"type": "string"}}}});
            }
            (_, Method::Get) => operation["parameters"] = parameters(&request, &mut schemas),
            (_, Method::Post) => {
                operation["requestBody"] =
                    json!({"required": true, "content": {JSON: {"schema": request}}});
                if route.kept {
                    operation["parameters"] = json!([{
                        "name": "Idempotency-Key",
                        "in": "header",
                        "description": "The same key and body within ten minutes get the first answer.",
                        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
                    }]);
                }
                if let Some(example) = example(route.verb) {
                    operation["requestBody"]["content"][JSON]["example"] = example;
                }
            }
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.word().to_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "strongroom control interface",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
            "description": INTRODUCTION,
            "x-permissions": permissions(),
        },
        "servers": [{"url": "http://localhost", "description": "the unix socket"}],
        "paths": paths,
        "components": {
            "responses": problems(),
            "schemas": schemas.take_definitions(true),
        },
    })
}

const INTRODUCTION: &str = "HTTP/1.1 over the daemon's unix socket: \
    `curl --unix-socket /run/strongroom/control.sock http://localhost/v1/status`. Who asks is told by \
    the kernel, not by a header; what they may is in the configuration's `[[role]]`, and \
    `x-needs` says which permission a verb wants. Processes of executions have no role, whatever \
    their uid. Every problem is `application/problem+json` (RFC 9457): match on `code`.";

/// What each permission of a role allows.
fn permissions() -> Value {
    let about = |permission| match permission {
        Permission::Audit => "reads records, access, explain and doctor; never values",
        Permission::Launch => "starts executions and agents",
        Permission::Operate => "changes secrets, groups, projects, chains and keys",
        Permission::Reveal => "sees a value in clear",
        Permission::Revoke => "revokes a version and ends who has it",
    };
    let rows = Permission::ALL.map(|p| (p.word().to_owned(), json!(about(p))));
    Value::Object(rows.into_iter().collect())
}

/// What an operation needs beside its parameters, in words.
fn described(route: &Route) -> String {
    let needs = match route.needs {
        Needs::Anyone => "Anybody may ask, agents too.".to_owned(),
        needs => format!("Needs {}.", needs.text()),
    };
    let confirmed = match route.confirmed {
        true => " May want the passphrase again first (`confirm_needed`, then POST /v1/confirm).",
        false => "",
    };
    let again = match route.idempotent {
        true => " Asking twice does what asking once does.",
        false => "",
    };
    format!("{needs}{confirmed}{again}")
}

/// The responses of an operation that are problems: by status those that it can answer with, and
/// `default` for all.
fn problem_responses(route: &Route) -> Value {
    let may = |code: Code| match code {
        Code::AgentRefused | Code::NoRole => route.needs != Needs::Anyone,
        Code::ConfirmNeeded => route.confirmed,
        Code::MethodNotAllowed => false,
        Code::UnlockFailed => matches!(route.verb, "unlock" | "confirm" | "key add" | "key rekey"),
        Code::RollbackRefused => route.verb == "unlock",
        Code::Widens => route.verb == "chain apply",
        Code::NotIsolated | Code::Unresolved => {
            matches!(route.method, Method::Post) && route.path.starts_with("/v1/")
        }
        Code::DiskFull | Code::Exists | Code::Unsupported => matches!(route.method, Method::Post),
        Code::Locked => !matches!(route.verb, "health" | "self" | "lock" | "unlock" | "metrics"),
        _ => true,
    };
    let mut responses = Map::new();
    for code in Code::ALL.into_iter().filter(|code| may(*code)) {
        let status = code.status().to_string();
        let reference = format!("#/components/responses/{}", response_name(code.status()));
        responses.insert(status, json!({ "$ref": reference }));
    }
    responses.insert("default".to_owned(), json!({"$ref": "#/components/responses/problem"}));
    Value::Object(responses)
}

fn response_name(status: u16) -> String {
    format!("problem-{status}")
}

/// All problem responses: one for each status, with its codes, and one for all.
fn problems() -> Value {
    let content = |examples: Value| {
        json!({"application/problem+json": {
            "schema": {"$ref": "#/components/schemas/Problem"},
            "examples": examples,
        }})
    };
    let example = |code: Code| {
        let problem = Problem::new(code, code.title()).with_hint("the next step, in one sentence");
        json!({"summary": code.title(), "value": problem})
    };
    let of = |codes: &[Code]| {
        let text: Vec<_> = codes.iter().map(|c| format!("`{}`: {}", c.word(), c.title())).collect();
        let examples: Map<_, _> =
            codes.iter().map(|c| (c.word().to_owned(), example(*c))).collect();
        json!({"description": text.join("; "), "content": content(Value::Object(examples))})
    };
    let mut responses = Map::new();
    for code in Code::ALL {
        let status = code.status();
        let codes: Vec<_> = Code::ALL.into_iter().filter(|c| c.status() == status).collect();
        responses.insert(response_name(status), of(&codes));
    }
    responses.insert("problem".to_owned(), of(&Code::ALL));
    Value::Object(responses)
}

/// The body of a request as one would send it; values are base64 or text, as `Value` says.
fn example(verb: &str) -> Option<Value> {
    Some(match verb {
        "agent attach" => json!({"launch": "k98e7nggwkr2nras", "pid": 4711}),
        "chain apply" => json!({"definition": "{\"chain\": \"deploy\", \"agents\": \
            [{\"name\": \"Deployer\", \"secrets\": [\"DATABASE_URL\"]}]}"}),
        "execution end" => json!({"id": "nightly-4711", "reason": "done"}),
        "execution start" => {
            json!({"chain": "deploy", "environment": "prod", "id": "nightly-4711", "deadline": "2h"})
        }
        "secret revoke" => json!({"name": "prod/API_KEY", "reason": "on a forum", "dry_run": true}),
        "unlock" => json!({}),
        _ => return None,
    })
}

/// The query parameters of a request type: its properties.
fn parameters(request: &schemars::Schema, schemas: &mut SchemaGenerator) -> Value {
    let name = request
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| r.rsplit('/').next())
        .unwrap_or_default();
    let schema = schemas.definitions().get(name).cloned().unwrap_or_default();
    let required: Vec<&str> = schema["required"]
        .as_array()
        .map(|r| r.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let properties = schema["properties"].as_object();
    properties
        .into_iter()
        .flatten()
        .map(|(name, schema)| {
            json!({
                "name": name,
                "in": "query",
                "required": required.contains(&name.as_str()),
                "schema": schema,
            })
        })
        .collect()
}

/// The manual's table of verbs by role, in Markdown.
pub fn roles_table() -> String {
    let mut text = String::from("| verb |");
    for permission in Permission::ALL {
        let _ = write!(text, " {permission} |");
    }
    text.push_str(" no role | agent |\n| --- |");
    text.push_str(&" --- |".repeat(Permission::ALL.len() + 2));
    text.push('\n');
    for route in table() {
        let _ = write!(text, "| `{}` |", route.verb);
        for permission in Permission::ALL {
            let cell = match route.needs {
                super::Needs::AllOf(all) if all.contains(&permission) => {
                    format!("with {}", others(all, permission))
                }
                needs if needs.cell(permission) => "yes".to_owned(),
                _ => "-".to_owned(),
            };
            let _ = write!(text, " {cell} |");
        }
        let (nobody, agent) = match route.needs {
            super::Needs::Anyone => ("yes", "yes"),
            super::Needs::LaunchOrAgent => ("-", "may_launch"),
            _ => ("-", "-"),
        };
        let _ = writeln!(text, " {nobody} | {agent} |");
    }
    text
}

fn others(all: &[Permission], but: Permission) -> String {
    all.iter().filter(|p| **p != but).map(|p| p.word()).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_in_the_document_and_every_reference_resolves() {
        let document = document();
        for route in table() {
            let operation = &document["paths"][route.path][route.method.word().to_lowercase()];
            assert_eq!(operation["summary"], route.about, "{}", route.verb);
        }
        let text = document.to_string();
        for reference in text.split("\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
        let list = &document["paths"]["/v1/executions"]["get"]["parameters"];
        assert!(list.as_array().unwrap().iter().any(|p| p["name"] == "chain"), "{list}");
    }

    #[test]
    fn no_two_verbs_share_a_name_or_a_method_and_path() {
        let mut seen = std::collections::BTreeSet::new();
        for route in table() {
            assert!(seen.insert(route.verb.to_owned()));
            assert!(seen.insert(format!("{} {}", route.method.word(), route.path)));
        }
    }

    #[test]
    fn the_roles_table_has_a_row_for_each_verb() {
        let table_text = roles_table();
        assert_eq!(table_text.lines().count(), table().len() + 2);
        assert!(table_text.contains("| `secret get` | - | - | yes | - | - | - | - |"));
    }

    /// The manual prints this table; `STRONGROOM_UPDATE=1 cargo test --lib manual_prints` writes it.
    #[test]
    fn the_manual_prints_the_table_as_it_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/manual/verbs.md");
        if std::env::var_os("STRONGROOM_UPDATE").is_some() {
            std::fs::write(path, roles_table()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), roles_table());
    }
}
