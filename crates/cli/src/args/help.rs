//! The two helps of each command: `-h` fits on one screen, `--help` has everything.

use clap::Command;

use crate::Exit;

/// The heading of options about places. Few people need them, so `-h` leaves them out.
pub const ADVANCED: &str = "Advanced";

/// Other options that only `--help` shows.
const RARE: [&str; 16] = [
    "align",
    "timeout",
    "scope",
    "strict",
    "force",
    "around",
    "description",
    "until_reboot",
    "env_file",
    "cgroup",
    "administrators",
    "also",
    "deny_errno",
    "main",
    "no_substitute",
    "quiet",
];
/// Examples that `-h` shows.
const EXAMPLES: usize = 2;

/// Each command has its text after the options as `after_long_help`. For `-h`, make a part of it `after_help`.
pub fn arrange(command: Command) -> Command {
    let command = command.mut_subcommands(arrange).mut_args(|arg| {
        let rare = arg.get_help_heading() == Some(ADVANCED) || RARE.contains(&arg.get_id().as_str());
        if rare { arg.hide_short_help(true) } else { arg }
    });
    let Some(text) = command.get_after_long_help().map(ToString::to_string) else { return command };
    let examples: Vec<&str> = text.lines().skip_while(|line| *line != "Examples:").take(1 + EXAMPLES).collect();
    let short = examples.join("\n");
    command.after_help(short)
}

/// The text behind the commands in `portkeep --help`.
pub(crate) fn of_all_commands() -> String {
    let examples = "Examples:\n  portkeep up\n  portkeep run -- ./server --listen 127.0.0.1:{PORT}\n  portkeep who 8443\n\nExit status:";
    let run = "\n  `run` exits with the status of its command, or with 128+N if signal N ended it";
    [examples, &Exit::help(), run].concat()
}
