//! The table of commands and what is wrong with arguments. In-process, so nothing here may ever get as far as doing
//! something: only `--help` is run.

use portkeep_cli::{Io, USAGE};

fn run(words: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = {
        let mut io = Io { out: Box::new(&mut out), err: Box::new(&mut err) };
        portkeep_cli::run([&["portkeep"], words].concat(), &mut io)
    };
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn every_command_has_help_with_examples() {
    let commands: Vec<String> = portkeep_cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
    assert!(commands.len() >= 10);
    for name in commands {
        let (code, help, _) = run(&[&name, "--help"]);
        assert_eq!(code, 0, "{name}");
        assert!(help.contains("Examples:"), "{name} shows no example");
        assert!(help.contains(&format!("portkeep {name}")), "{name}: {help}");
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{name} is wider than a screen");
    }
    let (code, help, _) = run(&["--help"]);
    assert!(code == 0 && help.contains("Exit status:"));
}

#[test]
fn wrong_arguments_are_told_apart_from_failures() {
    for words in [
        &["run"][..],
        &["run", "--count", "0", "--", "true"],
        &["run", "--tcp", "--udp", "--", "true"],
        &["run", "--align", "3", "--", "true"],
        &["run", "--label", "longer than twenty-four bytes", "--", "true"],
        &["acquire", "--at", "0"],
        &["up", "--deny-errno", "EPERM"],
        &["up", "--pool", "9-8"],
        &["who"],
        &["who", "80/sctp"],
        &["release", "6f1d"],
        &["no-such-command"],
    ] {
        // Parsed and not run: should one of them turn out to be right, nothing must happen to this machine.
        let parsed = portkeep_cli::command().try_get_matches_from([&["portkeep"], words].concat());
        let error = parsed.expect_err(&format!("{words:?}"));
        assert!(error.use_stderr() && error.exit_code() == i32::from(USAGE), "{words:?}");
    }
}

#[test]
fn version_skew_names_both_versions_and_the_way_out() {
    let error = portkeep_kernel::InstanceError::Skew { loaded_abi: 1, loaded_build: 0xaa, own_abi: 2, own_build: 0xbb };
    let text = error.to_string();
    for part in ["abi 1", "00000000000000aa", "abi 2", "00000000000000bb", "portkeep upgrade"] {
        assert!(text.contains(part), "{text}");
    }
}
