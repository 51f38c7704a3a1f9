//! A file of portreserve, of any bytes: what is read of it can be exported as a drop-in and imported again.
#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use portkeep_persist::{Services, dropin, export, import};
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(folder.path().join("portreserve")).expect("a folder in it");
    folder
});
static FILE: LazyLock<PathBuf> = LazyLock::new(|| FOLDER.path().join("portreserve/cups"));

fuzz_target!(|bytes: &[u8]| {
    fs::write(&*FILE, bytes).expect("writing the file");
    let services = Services::parse("ipp 631/tcp\nipp 631/udp\nhttps 443/tcp\n");
    let loaded = dropin::check(&FILE, &services);
    let declarations: Vec<_> = loaded.declared.into_iter().map(|declared| declared.declaration).collect();
    let names: std::collections::BTreeSet<_> = declarations.iter().map(|each| each.name.to_string()).collect();
    // A port that is named twice has one name: such a file is read, and import refuses it.
    if names.len() == declarations.len() && !declarations.is_empty() {
        assert_eq!(import(&FILE, &export(&declarations), &services).ok(), Some(declarations));
    }
});
