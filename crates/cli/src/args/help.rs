//! The two helps of each command: `-h` fits on one screen, `--help` has everything.

use clap::Command;

use crate::Exit;

/// The heading of options about places. Few people need them, so `-h` leaves them out.
pub(crate) const ADVANCED: &str = "Advanced";

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
pub(crate) fn arrange(command: Command) -> Command {
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

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::ADVANCED;

    /// All commands that people see, with the commands below them, and their names.
    fn all(command: &Command, name: &str) -> Vec<(String, Command)> {
        let inner = command.get_subcommands().filter(|inner| !inner.is_hide_set());
        let below = inner.flat_map(|inner| all(inner, &format!("{name} {}", inner.get_name())));
        std::iter::once((name.to_owned(), command.clone())).chain(below).collect()
    }

    #[test]
    fn the_short_help_of_each_command_fits_on_one_screen() {
        let mut table = crate::command().term_width(80);
        table.build();
        let mut larger = Vec::new();
        for (name, command) in all(&table, "portkeep") {
            let text = command.term_width(80).render_help().to_string();
            let (lines, columns) = (text.lines().count(), text.lines().map(|line| line.chars().count()).max());
            if lines > 24 || columns > Some(80) {
                larger.push(format!("{name}: {lines} lines of {columns:?} columns\n{text}"));
            }
        }
        assert!(larger.is_empty(), "{}", larger.join("\n"));
    }

    #[test]
    fn places_are_in_the_long_help_only() {
        let mut table = crate::command();
        table.build();
        for option in ["--pin-dir", "--enforce", "--serve", "--config", "--root"] {
            let has = |text: String| text.contains(option);
            let mut shown = false;
            for (name, mut command) in all(&table, "portkeep") {
                assert!(!has(command.render_help().to_string()), "{name} shows {option}");
                let long = command.render_long_help().to_string();
                let advanced = long.split_once(&format!("{ADVANCED}:")).map(|(_, rest)| rest.to_owned());
                shown |= advanced.is_some_and(has);
            }
            assert!(shown, "{option}");
        }
    }
}
