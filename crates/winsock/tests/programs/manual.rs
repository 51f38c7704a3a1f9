//! The programs in the documentation, compiled and run.

use std::fs;

use portkeep_testkit::World;

use crate::{
    compiler::{kit, start_agent, text},
    symbols::declared,
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guides/porting-from-windows.md");

#[test]
fn the_programs_of_the_manual_run() {
    let test = "the_programs_of_the_manual_run";
    let Some(kit) = kit(test) else { return };
    let Some(world) = World::enter(test) else { return };
    let _agent = start_agent(&world);
    let page = fs::read_to_string(PAGE).expect("the page");
    let programs: Vec<&str> = page.split("```c\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!programs.is_empty());
    for (index, program) in programs.iter().enumerate() {
        let source = kit.folder().join(format!("manual{index}.c"));
        fs::write(&source, program).expect("a file");
        let output =
            kit.command(kit.build("cc", &["-Wall", "-Wextra", "-Werror"], &source)).output().expect("it starts");
        assert!(output.status.success(), "program {index}: {} {}", output.status, text(&output));
    }
}

#[test]
fn the_manual_names_every_function() {
    let page = fs::read_to_string(PAGE).expect("the page");
    let plumbing = ["portkeep_ws_wide_arguments"];
    let missing: Vec<String> = declared()
        .into_iter()
        .filter(|symbol| !plumbing.contains(&symbol.as_str()))
        .map(|symbol| symbol.trim_start_matches("portkeep_ws_").to_owned())
        .filter(|name| !page.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == name))
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}
