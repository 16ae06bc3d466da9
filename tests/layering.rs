//! The layers of the house: a module names only what stands below it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// From top to bottom. Modules on one line may name each other.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["worker"],
    &["keeper"],
    &["workspace"],
    &["daemon"],
    &["control"],
    &["proto"],
    &["fuse"],
    &["fs"],
    &["events"],
    &["broker"],
    &["execution"],
    &["identity"],
    &["audit"],
    &["scan"],
    &["redact"],
    &["rotation"],
    &["catalog"],
    &["vault"],
    &["config", "log"],
    &["clock", "secret"],
    &["sys"],
];

/// Crates that one module alone may name, since it alone answers for their use.
const ALONE: &[(&str, &[&str])] = &[
    ("fuser", &["fuse"]),
    ("argon2", &["vault"]),
    ("redb", &["vault"]),
    ("landlock", &["workspace"]),
    ("libc", &["sys", "fs", "fuse"]),
    ("axum", &["control", "proto"]),
    ("clap", &["cli"]),
    ("anyhow", &["cli", "daemon", "worker", "keeper", "workspace", "main"]),
];

fn level(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("module {module} has no layer: give it one in {}", file!()))
}

fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.insert(path.clone(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

fn module_of(path: &Path) -> String {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The code without comments and without the tests at its bottom.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    body.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_module_names_only_what_stands_below_it() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        if module == "lib" || module == "manual" {
            continue;
        }
        let own = level(&module);
        let code = code(&text);
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let named: String =
                rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if !named.is_empty() && named != module && level(&named) < own {
                wrong.push(format!("{} names {named}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_crate_with_one_door_is_named_there_alone() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        for (name, doors) in ALONE {
            // A module of ours may have the crate's name: it comes behind a path.
            let code = code(&text);
            let needle = format!("{name}::");
            let mut named = code.match_indices(&needle).map(|(at, _)| &code[..at]);
            if !doors.contains(&module.as_str())
                && named.any(|before| !before.ends_with([':', '_']))
            {
                wrong.push(format!("{} names {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    for (path, text) in sources() {
        let module = module_of(&path);
        let forbids = text.contains("#![forbid(unsafe_code)]");
        let may = matches!(module.as_str(), "sys" | "lib");
        assert!(forbids || may, "{} must forbid unsafe code", path.display());
    }
}
