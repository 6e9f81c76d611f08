//! What the documentation says of tests is so: every rule has one, and it exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How many rules there are of each kind.
const RULES: [(&str, u32); 5] = [("O", 8), ("S", 10), ("P", 7), ("T", 10), ("D", 8)];

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// The names of all functions in Rust files below a folder.
fn functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let after = text.split("fn ").skip(1);
            names.extend(
                after.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()),
            );
        }
    }
}

#[test]
fn every_rule_has_a_test_and_every_test_that_is_named_exists() {
    let mut known = BTreeSet::new();
    for folder in ["src", "tests"] {
        functions(&root().join(folder), &mut known);
    }
    let text = std::fs::read_to_string(root().join("src/docs/testing.md")).unwrap();
    let (_, table) = text.split_once("## Every rule\n").expect("there is a table of rules");
    let table = table.split("\n## ").next().unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    for (kind, count) in RULES {
        for number in 1..=count {
            let rule = format!("{kind}{number}");
            assert!(rows.iter().any(|row| row.get(1) == Some(&rule.as_str())), "{rule} has no row in docs/testing.md");
        }
    }
    for row in rows {
        // Every second piece between backticks is a name; one with dots stands for several.
        for name in row.join("|").split('`').skip(1).step_by(2) {
            let name = name.rsplit("::").next().unwrap();
            let is_test =
                name.contains('_') && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            assert!(!is_test || known.contains(name), "docs/testing.md names {name}, and there is no such test");
        }
    }
}
