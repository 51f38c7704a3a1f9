//! The files that packages install are valid, and the configuration file shows the true defaults.

use std::path::Path;

use portkeep_persist::{
    Account, Config, Services,
    config::{KEYS, Limit},
    import,
};

const CONFIGURATION: &str = include_str!("../../../packaging/etc/portkeep.toml");
const EXAMPLE: &str = include_str!("../../../packaging/examples/postgresql.toml");

fn parse(text: &str) -> Config {
    Config::parse(Path::new("portkeep.toml"), text).unwrap_or_else(|wrong| panic!("{wrong:#?}\nin\n{text}"))
}

/// The configuration file with its settings in force. A setting that is commented out has no space after the `#`.
fn uncommented() -> String {
    let lines = CONFIGURATION.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
        _ => line,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn as_installed_nothing_is_set() {
    assert_eq!(parse(CONFIGURATION), Config::default());
}

/// Removing the `#` changes nothing, except for keys whose default cannot be written in the file.
#[test]
fn every_default_is_the_one_that_is_shown() {
    let config = parse(&uncommented());
    assert_eq!(config.administrators, Some(Account::Name("portkeep".into())));
    assert_eq!(config.watchers, Some(Account::Name("portkeep-watch".into())));
    assert_eq!(config.quota.groups.get(&Account::Name("portkeep".into())), Some(&Limit::Unlimited));
    assert_eq!(config.quota.users.len(), 1);
    let mut rest = config.clone();
    rest.administrators = None;
    rest.watchers = None;
    rest.enforce = None;
    rest.serve = None;
    rest.quota.users.clear();
    rest.quota.groups.clear();
    assert_eq!(rest, Config::default());
}

#[test]
fn every_key_is_shown() {
    let text = uncommented();
    let mut table = String::new();
    let mut shown = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            table = format!("{name}.");
        } else if let Some((key, _)) = line.split_once(" = ") {
            shown.push(format!("{table}{key}"));
        }
    }
    for key in KEYS {
        let (stem, any) = key.name.split_once("NAME").map_or((key.name, false), |(stem, _)| (stem, true));
        assert!(shown.iter().any(|s| if any { s.starts_with(stem) } else { s == stem }), "{} in {shown:?}", key.name);
    }
}

#[test]
fn the_example_is_valid() {
    let declared = import(Path::new("postgresql.toml"), EXAMPLE, &Services::parse("")).unwrap();
    assert_eq!(declared.len(), 1);
}
