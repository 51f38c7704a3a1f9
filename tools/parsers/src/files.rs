//! Files that administrators and packages write.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use portkeep_observe::subordinate::{Owners, parse};
use portkeep_persist::{Config, Diagnostic, Services, dropin, export, import};
use tempfile::TempDir;

use crate::text;

/// A refusal has mistakes, each with a place in the text and a sentence.
fn sound(text: &str, mistakes: &[Diagnostic]) {
    assert!(!mistakes.is_empty());
    let lines: Vec<&str> = text.split('\n').collect();
    for mistake in mistakes {
        assert!(!mistake.message.is_empty() && !mistake.message.contains('\n'), "{mistake:?}");
        let line = mistake.line.and_then(|line| lines.get(line.checked_sub(1)?));
        let line = line.unwrap_or_else(|| panic!("{mistake:?} of {} lines", lines.len()));
        let columns = 1..=line.chars().count() + 1;
        assert!(mistake.column.is_some_and(|column| columns.contains(&column)), "{mistake:?}: {line:?}");
    }
}

/// A configuration is read, or refused with its mistakes.
pub fn configuration(bytes: &[u8]) {
    let text = text(bytes);
    if let Err(mistakes) = Config::parse(Path::new("portkeep.toml"), text) {
        sound(text, &mistakes);
    }
}

/// A drop-in file is refused with its mistakes, or it survives export and import.
pub fn drop_in(bytes: &[u8]) {
    let (text, services) = (text(bytes), Services::parse("https 443/tcp\ndomain 53/tcp\ndomain 53/udp\n"));
    match import(Path::new("f.toml"), text, &services) {
        Ok(read) => {
            let again = import(Path::new("f.toml"), &export(&read), &services).expect("an export can be imported");
            assert_eq!(again, read);
        }
        Err(mistakes) => sound(text, &mistakes),
    }
}

/// A configuration of the fleet, or what etcd answers, is read or refused.
pub fn fleet(bytes: &[u8]) {
    let text = text(bytes);
    if let Err(mistake) = portkeep_fleet::fuzz::configuration(text) {
        assert!(!mistake.is_empty());
    }
    portkeep_fleet::fuzz::answer(text);
}

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("portreserve")).expect("a folder in it");
    folder
});
static FILE: LazyLock<PathBuf> = LazyLock::new(|| FOLDER.path().join("portreserve/cups"));

/// A file of portreserve: everything read from it can be exported as a drop-in and imported again.
pub fn portreserve(bytes: &[u8]) {
    fs::write(&*FILE, bytes).expect("writing the file");
    let services = Services::parse("ipp 631/tcp\nipp 631/udp\nhttps 443/tcp\n");
    let loaded = dropin::check(&FILE, &services);
    let declarations: Vec<_> = loaded.declared.into_iter().map(|declared| declared.declaration).collect();
    let names: BTreeSet<_> = declarations.iter().map(|each| each.name.to_string()).collect();
    // A port that is named twice has one name: such a file is read, and import refuses it.
    if names.len() == declarations.len() && !declarations.is_empty() {
        assert_eq!(import(&FILE, &export(&declarations), &services).ok(), Some(declarations));
    }
}

/// Lines of /etc/subuid: each is a range of uids, or it is complained about with its number.
pub fn subordinate(bytes: &[u8]) {
    let text = text(bytes);
    let (ranges, complaints) = parse(Path::new("subuid"), text);
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).count();
    assert_eq!(ranges.len() + complaints.len(), lines);
    assert!(complaints.iter().all(|complaint| complaint.starts_with("subuid:")));
    let owners = Owners::new(ranges.clone());
    for (range, user) in ranges {
        assert!(range.start() <= range.end());
        // Of several ranges the first counts, and those of root share no account.
        let account = owners.account(*range.start());
        assert!(user == 0 || owners.ranges().iter().any(|(_, user)| *user == account));
    }
}
