//! The shared library exports exactly what the headers declare.

use std::{collections::BTreeSet, process::Command};

use portkeep_tool::winsock::headers;

use crate::{
    compiler::{has, kit},
    skipped,
};

/// Names in front of a parenthesis, in the parts of the headers with C linkage.
pub(crate) fn declared() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in headers().expect("the headers") {
        for part in text.split("PORTKEEP_BEGIN\n").skip(1) {
            let part = part.split("PORTKEEP_END").next().unwrap_or_default();
            for declaration in part.split(';') {
                // An assembler label is the symbol; without one the name is.
                let symbol = match declaration.split_once("__asm__(\"") {
                    Some((_, label)) => label.split('"').next(),
                    None => {
                        declaration.split_once('(').and_then(|(before, _)| before.split([' ', '*', '\n']).next_back())
                    }
                };
                names.extend(symbol.filter(|name| !name.is_empty()).map(str::to_owned));
            }
        }
    }
    names
}

#[test]
fn every_declared_function_is_exported_and_nothing_else() {
    let test = "every_declared_function_is_exported_and_nothing_else";
    let Some(kit) = kit(test) else { return };
    if !has("nm") {
        skipped(test, "no nm");
        return;
    }
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(kit.shared_library()).output().expect("nm runs");
    let exported: BTreeSet<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .map(str::to_owned)
        .collect();
    let declared = declared();
    assert!(declared.contains("WSAIoctl") && declared.contains("portkeep_ws_socket"), "{declared:?}");
    assert_eq!(declared.difference(&exported).collect::<Vec<_>>(), Vec::<&String>::new(), "declared, not exported");
    // The unwinder's and the standard library's own begin with an underscore.
    let extra: Vec<_> = exported
        .difference(&declared)
        .filter(|name| !name.starts_with("_R") && *name != "rust_eh_personality")
        .collect();
    assert_eq!(extra, Vec::<&String>::new(), "exported, not declared");
}
