//! What `SECURITY.md` and the README point at is there: a claim whose test was renamed or removed is
//! no claim any more.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Names of all functions that are marked as tests.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    sources(&root().join("tests"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("fn ") {
                if is_test {
                    names.insert(rest.split(['(', '<']).next().unwrap().to_owned());
                }
                is_test = false;
            } else if line == "#[test]" {
                is_test = true;
            }
        }
    }
    names
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_test_name(word: &str) -> bool {
    word.len() >= 20
        && word.matches('_').count() >= 3
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[test]
fn every_test_and_file_that_the_documents_name_exists() {
    let tests = tests();
    let mut missing = Vec::new();
    for document in ["README.md", "SECURITY.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        for word in quoted(&text) {
            let path = word.split_whitespace().next().unwrap_or("");
            let is_path =
                ["src/", "tests/", "examples/", "contrib/"].iter().any(|dir| path.starts_with(dir));
            if is_path && !path.contains('*') && !root().join(path).exists() {
                missing.push(format!("{document}: {path}"));
            }
            let (name, is_start) = match word.strip_suffix("...") {
                Some(start) => (start, true),
                None => (word, false),
            };
            let known = |t: &String| if is_start { t.starts_with(name) } else { t == name };
            if is_test_name(name) && !tests.iter().any(known) {
                missing.push(format!("{document}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_case_of_the_manuals_pitfalls_has_its_tests() {
    let tests = tests();
    let text = fs::read_to_string(root().join("src/manual/pitfalls.rs")).unwrap();
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("//! | ")).skip(2).collect();
    assert!(rows.len() > 60, "{}", rows.len());
    for row in rows {
        let named: Vec<_> = quoted(row).filter(|word| is_test_name(word)).collect();
        assert!(!named.is_empty(), "{row} names no test");
        for name in named {
            assert!(tests.contains(name), "{row}: there is no test {name}");
        }
    }
}

#[test]
fn each_promise_has_tests_that_are_named() {
    let text = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let sections: Vec<_> = text.split("\n## ").skip(1).collect();
    assert!(sections.len() >= 6);
    for section in sections {
        let title = section.lines().next().unwrap();
        let names_test = quoted(section).any(|word| {
            word.starts_with("tests/")
                || word.starts_with("src/")
                || is_test_name(word.trim_end_matches("..."))
        });
        assert!(names_test || title == "Not in this version", "{title} names no test");
    }
}
