//! `docs/internals/bypass-catalogue.md` lists exactly the tests.

use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../../docs/internals/bypass-catalogue.md");

/// Every test in a source file, as the page names it, without the tests that only help other tests.
fn tests(module: &str, source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[test]" {
            continue;
        }
        let next = lines.next().unwrap_or_default().trim();
        if let Some(name) = next.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
            names.push(format!("{module}::{name}"));
        }
    }
    names
}

macro_rules! sources {
    ($folder:literal: $($module:ident)*) => {
        [$((stringify!($module), include_str!(concat!($folder, stringify!($module), ".rs")))),*]
    };
}

/// The names on the page: `module::test` in backticks.
fn named() -> BTreeSet<String> {
    let quoted = PAGE.split('`').skip(1).step_by(2);
    quoted.filter(|text| text.contains("::") && !text.contains(' ')).map(str::to_owned).collect()
}

#[test]
fn every_test_named_on_the_page_exists_and_every_bypass_test_is_on_the_page() {
    let bypass = sources!("": addresses automatic cgroups compat descriptors exhaustion options processes programs protocols
        races remains tokens uring);
    let others = sources!("../": also do_no_harm ephemeral errors fuzz instance property rules storm);
    let here: BTreeSet<String> = bypass.iter().flat_map(|(module, source)| tests(module, source)).collect();
    let elsewhere: BTreeSet<String> = others.iter().flat_map(|(module, source)| tests(module, source)).collect();
    let named = named();
    let missing: Vec<_> = here.difference(&named).collect();
    assert!(missing.is_empty(), "not on the page: {missing:#?}");
    let unknown: Vec<_> = named.iter().filter(|name| !here.contains(*name) && !elsewhere.contains(*name)).collect();
    assert!(unknown.is_empty(), "on the page, and no tests: {unknown:#?}");
    assert!(here.len() > 30 && elsewhere.len() > 30);
}
