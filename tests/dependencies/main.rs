//! That every dependency is one that `deny.toml` allows: its licence, its source, and one version where there must be one.
//!
//! `cargo deny` says more about what is wrong; this needs nothing but cargo.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;
use toml_edit::ImDocument;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn rules() -> ImDocument<String> {
    ImDocument::parse(std::fs::read_to_string(format!("{ROOT}/deny.toml")).unwrap()).unwrap()
}

fn texts(rules: &ImDocument<String>, section: &str, key: &str) -> Vec<String> {
    rules[section][key].as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// What is linked or run on this kind of machine, but for the packages of this repository, which come from no registry.
fn dependencies() -> Vec<Value> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let arguments = ["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", &target];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(ROOT).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let used = |package: &&Value| !package["source"].is_null();
    metadata["packages"].as_array().unwrap().iter().filter(used).cloned().collect()
}

/// Whether `licence` (SPDX, or older with `/` for `OR`) can be met with licences that are `allowed`.
fn is_met(licence: &str, allowed: &[String]) -> bool {
    let spaced = licence.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    let met = any(&mut words, allowed);
    assert!(words.is_empty(), "not read to its end: {licence}");
    met
}

fn any(words: &mut Vec<&str>, allowed: &[String]) -> bool {
    let mut met = all(words, allowed);
    while words.pop_if(|word| *word == "OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Vec<&str>, allowed: &[String]) -> bool {
    let mut met = one(words, allowed);
    while words.pop_if(|word| *word == "AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Vec<&str>, allowed: &[String]) -> bool {
    let mut name = words.pop().expect("a licence after each word").to_owned();
    if name == "(" {
        let met = any(words, allowed);
        assert_eq!(words.pop(), Some(")"));
        return met;
    }
    if words.pop_if(|word| *word == "WITH").is_some() {
        name = format!("{name} WITH {}", words.pop().expect("an exception after WITH"));
    }
    allowed.contains(&name)
}

#[test]
fn a_licence_is_met_by_any_side_of_or_and_every_side_of_and() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];

    for (licence, met) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-2.0-only OR MIT", true),
        ("GPL-2.0-only/MIT", true),
        ("MIT AND GPL-2.0-only", false),
        ("MIT OR ISC AND GPL-2.0-only", true),
        ("(MIT OR GPL-2.0-only) AND ISC", true),
        ("(MIT OR ISC) AND GPL-2.0-only", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
    ] {
        assert_eq!(is_met(licence, &allowed), met, "{licence}");
    }
}

#[test]
fn dependencies_have_licences_and_sources_that_are_allowed() {
    let rules = rules();
    let licences = texts(&rules, "licenses", "allow");
    let registries = texts(&rules, "sources", "allow-registry");

    for package in dependencies() {
        let name = format!("{} {}", package["name"], package["version"]);
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_met(licence, &licences), "{name}: {licence}");
        let source = package["source"].as_str().unwrap_or_default();
        let known = source.strip_prefix("registry+").is_some_and(|from| registries.iter().any(|known| known == from));
        assert!(known, "{name} comes from {source}");
    }
}

#[test]
fn dependencies_that_are_banned_are_not_there_and_others_are_there_once() {
    let rules = rules();
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in dependencies() {
        let text = |key: &str| package[key].as_str().unwrap().to_owned();
        versions.entry(text("name")).or_default().push(text("version"));
    }

    for ban in rules["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban.as_inline_table().unwrap()) {
        let name = ban.get("crate").unwrap().as_str().unwrap();
        let found = versions.get(name).map(Vec::as_slice).unwrap_or_default();
        match ban.get("deny-multiple-versions") {
            Some(_) => assert_eq!(found.len(), 1, "{name}: {found:?}"),
            None => assert!(found.is_empty(), "{name}: {found:?}"),
        }
    }
}
