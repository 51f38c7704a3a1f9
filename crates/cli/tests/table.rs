//! The table of commands and what is wrong with arguments. In-process, so nothing here may ever get as far as doing
//! something: only `--help` is run.

use portkeep_cli::{Exit, Io};

fn run(words: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = {
        let mut io = Io::new(&mut out, &mut err);
        portkeep_cli::run([&["portkeep"], words].concat(), &mut io)
    };
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn every_command_has_help_with_examples() {
    let mut commands: Vec<String> = Vec::new();
    for command in portkeep_cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        commands.push(command.get_name().to_owned());
        // `persist add`, as one.
        commands.extend(command.get_subcommands().map(|inner| format!("{} {}", command.get_name(), inner.get_name())));
    }
    assert!(commands.len() >= 24, "{commands:?}");
    for name in commands {
        let words: Vec<&str> = name.split(' ').chain(["--help"]).collect();
        let (code, help, _) = run(&words);
        assert_eq!(code, 0, "{name}");
        assert!(help.contains("Examples:"), "{name} shows no example");
        assert!(help.contains(&format!("portkeep {name}")), "{name}: {help}");
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{name} is wider than a screen");
    }
    let (code, help, _) = run(&["--help"]);
    assert!(code == 0 && help.contains("Exit status:"));
}

#[test]
fn wrong_arguments_have_another_exit_status_than_failures() {
    for words in [
        &["run"][..],
        &["run", "--count", "0", "--", "true"],
        &["run", "--count", "x", "--", "true"],
        &["run", "--tcp", "--udp", "--", "true"],
        &["run", "--align", "3", "--", "true"],
        &["run", "--label", "longer than twenty-four bytes", "--", "true"],
        &["acquire", "--ports", "0"],
        &["acquire", "--ports", "80,"],
        &["acquire", "--ports", "80", "--count", "2"],
        &["up", "--deny-errno", "EPERM"],
        &["up", "--pool", "9-8"],
        &["who"],
        &["who", "80/sctp"],
        &["list", "--sort", "size"],
        &["list", "--columns", "ports,size"],
        &["release", "6f1d"],
        &["persist"],
        &["persist", "add", "--name", "x"],
        &["persist", "add", "--tcp", "80"],
        &["persist", "add", "--name", "-x", "--tcp", "80"],
        &["persist", "add", "--name", "x", "--tcp", "0"],
        &["persist", "add", "--name", "x", "--tcp", "80,80"],
        &["persist", "add", "--name", "x", "--tcp", "80", "--udp", "80"],
        &["persist", "add", "--name", "x", "--tcp"],
        &["persist", "add", "--name", "x", "--any", "3", "--udp", "5"],
        &["persist", "add", "--name", "x", "--any", "0"],
        &["persist", "add", "--name", "x", "--tcp", "80", "--align", "2"],
        &["persist", "add", "--name", "x", "--any", "4", "--align", "3"],
        &["persist", "add", "--name", "x", "--tcp", "80", "--user", "a", "--administrators"],
        &["persist", "add", "--name", "x", "--tcp", "80", "--user", "a:b"],
        &["persist", "add", "--name", "x", "--tcp", "80", "--unit", "nginx"],
        &["persist", "add", "--name", "x", "--tcp", "80", "--cgroup", "x"],
        &["persist", "add", "--name", "x", "--tcp", "80", "--description", "a\nb"],
        &["persist", "delete"],
        &["persist", "delete", "x", "--tcp", "80"],
        &["persist", "show", "a/b"],
        &["persist", "import"],
        &["excludedportrange"],
        &["excludedportrange", "show"],
        &["excludedportrange", "reset", "tcp"],
        &["no-such-command"],
    ] {
        // Only parsed, not run: if one of them were accepted, it must not change this machine.
        let parsed = portkeep_cli::command().try_get_matches_from([&["portkeep"], words].concat());
        let error = parsed.expect_err(&format!("{words:?}"));
        assert!(error.use_stderr() && error.exit_code() == i32::from(Exit::Usage.code()), "{words:?}");
    }
}

#[test]
fn exit_statuses_are_one_table() {
    let page = include_str!("../../../docs/reference/exit-status.md");
    let rows: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit()).collect();
    let table = Exit::ALL.map(|exit| format!("| {} | {} |", exit.code(), exit.meaning()));
    assert_eq!(rows, table);
    // A request for too many ports exits with 2, as a usage error. `run` has statuses of its own, apart from the
    // command's.
    assert_eq!(run(&["acquire", "--ports", "65535-65536"]).0, Exit::Usage.code());
    assert_eq!(run(&["acquire", "--ports", "61001", "--align", "2"]).0, Exit::Usage.code());
    assert_eq!(run(&["run", "--ports", "65535-65536", "--", "true"]).0, Exit::RunFailed.code());
    assert_eq!(run(&["run", "--no-such-option", "--", "true"]).0, Exit::RunFailed.code());
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&["check", folder.path().to_str().unwrap()]).0, Exit::Nothing.code());
    assert_eq!(run(&["--help"]).0, Exit::Done.code());
}

/// Errors that clap alone cannot see are reported the same way. None of these gets as far as asking an agent.
#[test]
fn contradictions_between_arguments_are_wrong_usage() {
    for (words, shown) in [
        (&["persist", "add", "80/udp", "--name", "x", "--tcp"][..], "says udp, and tcp is said beside it"),
        (&["persist", "add", "80,82", "--name", "x", "--user", "a", "--ephemeral"], "has to be one block"),
        (&["acquire", "--ports", "80/udp", "--tcp"], "says udp, and tcp is said beside it"),
        (&["excludedportrange", "show", "store=active"], "protocol is missing"),
        (&["excludedportrange", "add", "tcp", "0", "1"], "startport is a number from 1 to 65535"),
        (&["netsh", "interface", "ipv4"], "only `netsh interface ipv4 show|add|delete excludedportrange`"),
    ] {
        let (code, out, err) = run(words);
        assert_eq!((code, out.as_str()), (Exit::Usage.code(), ""), "{words:?}");
        assert!(err.contains(shown), "{words:?}: {err}");
    }
}

#[test]
fn advice_fits_a_command_line() {
    let shown = |who: &[&str]| run(&[&["persist", "add", "--name", "x", "--tcp", "80"], who].concat()).2;
    assert!(shown(&["--unit", "nginx"]).contains("write \"nginx.service\""));
    assert!(shown(&["--unit", "a/b.service"]).contains("use --cgroup"));
    assert!(shown(&["--cgroup", "/sys/fs/cgroup/x.slice"]).contains("write \"/x.slice\""));
}

/// People who come from other tools type these.
#[test]
fn usual_spellings_are_understood() {
    assert_eq!(run(&["version"]), run(&["--version"]));
    for (words, same) in [
        (&["ls", "--help"][..], &["list", "--help"][..]),
        (&["persist", "ls", "--help"], &["persist", "list", "--help"]),
        (&["persist", "rm", "--help"], &["persist", "delete", "--help"]),
        (&["persist", "remove", "--help"], &["persist", "delete", "--help"]),
    ] {
        assert_eq!((run(words), run(words).0), (run(same), 0), "{words:?}");
    }
    for words in [&["up", "--quota", "unlimited"][..], &["who", "61000/TCP"], &["acquire", "--ports", "80/Tcp+Udp"]] {
        let parsed = portkeep_cli::command().try_get_matches_from([&["portkeep"], words].concat());
        assert!(parsed.is_ok(), "{words:?}: {parsed:?}");
    }
    let (code, _, err) = run(&["release", "0123456789abcdeg"]);
    assert!(code == Exit::Usage.code() && err.contains("16 hexadecimal digits"), "{err}");
    // A file of another kind: its first mistakes.
    let (code, out, _) = run(&["check", "/etc/passwd"]);
    assert!(code == Exit::Failed.code() && out.matches("not TOML: ").count() == 5 && out.contains("left out"), "{out}");
}

#[test]
fn version_skew_names_both_versions_and_the_way_out() {
    let error = portkeep_kernel::InstanceError::Skew { loaded_abi: 1, loaded_build: 0xaa, own_abi: 2, own_build: 0xbb };
    let text = error.to_string();
    for part in ["abi 1", "00000000000000aa", "abi 2", "00000000000000bb", "portkeep upgrade"] {
        assert!(text.contains(part), "{text}");
    }
}
