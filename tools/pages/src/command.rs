//! The page of a command, from the table of commands.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Arg, Command};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};

use crate::section::{list, title, verbatim};

/// A row of a section: what it is about, its text, and the commands that it concerns, those below them included.
type Row = (&'static str, &'static str, &'static [&'static str]);

/// Commands that ask the agent.
const ASKING: &[&str] =
    &["agent", "persist", "reload", "watch", "excludedportrange", "doctor", "status", "list", "who", "release", "web"];
/// Commands that read drop-in files.
const READING: &[&str] = &["adopt", "agent", "check", "reload", "persist", "excludedportrange", "doctor"];
/// Commands that read the store, where no agent runs, and those that keep it.
const STORING: &[&str] = &["adopt", "agent", "check", "persist", "excludedportrange", "doctor"];
/// All of them.
const ALL: &[&str] = &[""];

const FILES: &[Row] = &[
    (
        "/etc/portkeep/portkeep.toml",
        "The configuration, see portkeep.toml(5).",
        &["agent", "check", "reload", "persist", "excludedportrange", "doctor", "run", "acquire", "up", "web"],
    ),
    ("/etc/portkeep/fleet.toml", "The configuration of portkeep-fleet.", &["fleet"]),
    ("/var/lib/portkeep-fleet", "Which etcd cluster this host belongs to, and how far it has seen.", &["fleet"]),
    ("/etc/portkeep/ports.d/*.toml", "Reservations of the administrator, see portkeep-ports.d(5).", READING),
    ("/run/portkeep/ports.d/*.toml", "Reservations that are generated at run time.", READING),
    ("/usr/lib/portkeep/ports.d/*.toml", "Reservations of packages.", READING),
    ("/var/lib/portkeep/persistent.redb", "The store: reservations that commands created.", STORING),
    ("/run/portkeep/agent.sock", "The agent's socket.", ASKING),
    ("/sys/fs/bpf/portkeep", "The pins of the BPF programs.", ALL),
    (
        "$XDG_RUNTIME_DIR/portkeep-warned",
        "The jobs of this user that were warned about limits of the enforcement; /tmp/portkeep-warned-UID without a folder.",
        &["run"],
    ),
];

/// Variables that have no option.
const ENVIRONMENT: &[Row] = &[
    ("PORTKEEP_REQUIRE", "kernel: the same as --require-kernel.", &["run", "acquire"]),
    (
        "PORTKEEP_TIMEOUT",
        "Seconds to wait for an agent that does not answer; 30.",
        &["persist", "reload", "watch", "excludedportrange"],
    ),
    (
        "PORTKEEP_RUNTIME_DIR",
        "The folder of the agent's socket, and of what lives until the next reboot; /run/portkeep.",
        ALL,
    ),
    ("PORTKEEP_STATE_DIR", "The folder of the store, whatever the configuration says; /var/lib/portkeep.", STORING),
    (
        "PORTKEEP_TOKEN, PORTKEEP_TOKENS, PORTKEEP_ENFORCEMENT, PORTKEEP_EPHEMERAL",
        "Set for the command of portkeep-run(1).",
        &[],
    ),
    ("PORTKEEP_LOG", "The agent's log level: error, warn, info or debug.", &["agent"]),
];

/// Commands that belong together.
const RELATED: [&[&str]; 4] = [
    &["run", "acquire", "release", "fleet"],
    &["adopt", "persist", "check", "reload", "excludedportrange"],
    &["up", "down", "upgrade", "agent"],
    &["doctor", "status", "list", "who", "watch", "web"],
];

/// The page of a command, whose names are `words`.
pub(crate) fn page(command: &Command, words: &[&str]) -> Result<Vec<u8>> {
    let name = words.join("-");
    let help = AfterHelp::of(command);
    let man = Man::new(command.clone().display_name(&name));
    let mut page = title(&name, 1).into_bytes();
    man.render_name_section(&mut page)?;
    let mut rest = synopsis(command, words);
    rest.control("SH", ["DESCRIPTION"]);
    for (index, paragraph) in description(command, &help).into_iter().enumerate() {
        if index > 0 {
            rest.control("PP", []);
        }
        rest.text([roman(paragraph)]);
    }
    page.extend(rest.to_roff().bytes());
    man.render_options_section(&mut page)?;

    let mut rest = Roff::new();
    let below: Vec<_> =
        visible(command).map(|inner| (format!("{name}-{}(1)", inner.get_name()), about(inner))).collect();
    list(&mut rest, "COMMANDS", bold, below);
    list(&mut rest, "FILES", italic, rows(FILES, words));
    let options = of_options(command, words);
    list(&mut rest, "ENVIRONMENT", bold, options.into_iter().chain(rows(ENVIRONMENT, words)));
    rest.control("SH", ["EXIT STATUS"]);
    verbatim(&mut rest, &help.status);
    // `run` exits as its command does, and portkeep-web is a program of its own.
    if words.get(1).is_some_and(|word| !["run", "web"].contains(word)) {
        for exit in portkeep_cli::Exit::ALL {
            rest.control("TP", []).text([bold(exit.code().to_string())]).text([roman(exit.meaning())]);
        }
    }
    rest.control("SH", ["EXAMPLES"]);
    verbatim(&mut rest, &help.examples);
    rest.control("SH", ["SEE ALSO"]).text([roman(see_also(words))]);
    page.extend(rest.to_roff().bytes());
    // Formatters complain about an empty line between two breaks.
    Ok(String::from_utf8(page)?.replace(".br\n\n.br\n", ".sp\n").replace("\n\n.br\n", "\n.br\n").into_bytes())
}

/// The commands below a command that people see.
pub(crate) fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|inner| !inner.is_hide_set())
}

/// The variables that are the same as an option. The page of `portkeep` has those of all commands.
fn of_options(command: &Command, words: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    if words.len() == 1 {
        let below = visible(command).flat_map(|inner| of_options(inner, &[words[0], inner.get_name()]));
        let known = |variable: &str| ENVIRONMENT.iter().any(|(name, ..)| *name == variable);
        found.extend(below.filter(|(variable, _)| !known(variable)));
    }
    found.extend(command.get_arguments().filter_map(|arg| {
        let variable = arg.get_env()?.to_string_lossy().into_owned();
        Some((variable, format!("The same as --{}.", arg.get_long()?)))
    }));
    found
}

fn about(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// Every way to call it.
fn synopsis(command: &Command, words: &[&str]) -> Roff {
    let mut line = vec![bold(command.get_bin_name().map_or_else(|| words.join(" "), str::to_owned))];
    let shown = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().filter(shown).partition(|arg| arg.is_positional());
    let mut done = Vec::new();
    for arg in options.iter().chain(&positional) {
        if done.contains(arg.get_id()) {
            continue;
        }
        // Groups of options of which one can be given.
        let mut groups = command.get_groups().filter(|group| group.get_args().any(|id| id == arg.get_id()));
        let choice = groups.find(|group| group.is_required_set() || !(*group).clone().is_multiple());
        let is_one_of = |other: &&&Arg| choice.is_some_and(|group| group.get_args().any(|id| id == other.get_id()));
        let members: Vec<&Arg> = match choice {
            Some(_) => options.iter().chain(&positional).filter(is_one_of).copied().collect(),
            None => vec![*arg],
        };
        let required = choice.is_some_and(|group| group.is_required_set()) || arg.is_required_set();
        let (open, close) = match (required, members.len()) {
            (true, 1) => (" ", ""),
            (true, _) => (" {", "}"),
            (false, _) => (" [", "]"),
        };
        line.push(roman(open));
        for (index, member) in members.iter().enumerate() {
            line.extend((index > 0).then(|| roman(" | ")));
            line.extend(call(member));
        }
        line.push(roman(close));
        done.extend(members.iter().map(|member| member.get_id().clone()));
    }
    if visible(command).next().is_some() {
        line.extend([roman(" "), italic("COMMAND"), roman(" ...")]);
    }
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).text(line);
    roff
}

/// An argument as it is written on a command line.
fn call(arg: &Arg) -> Vec<Inline> {
    let mut parts = Vec::new();
    match (arg.get_short(), arg.get_long()) {
        (Some(short), _) => parts.push(bold(format!("-{short}"))),
        (None, Some(long)) => parts.push(bold(format!("--{long}"))),
        (None, None) if arg.is_trailing_var_arg_set() => parts.push(roman("[--]")),
        (None, None) => {}
    }
    if !arg.get_action().takes_values() {
        return parts;
    }
    if !parts.is_empty() {
        parts.push(roman(" "));
    }
    let numbers = arg.get_num_args().unwrap_or_default();
    let value = arg.get_value_names().map_or_else(|| arg.get_id().to_string(), |names| names.join(" "));
    let (open, close) = if numbers.min_values() == 0 { ("[", "]") } else { ("", "") };
    let more = if numbers.max_values() > 1 { " ..." } else { "" };
    parts.extend([roman(open), italic(value), roman(close), roman(more)]);
    parts
}

/// The text behind the summary, which is in NAME already.
fn description(command: &Command, help: &AfterHelp) -> Vec<String> {
    let long = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    let mut paragraphs: Vec<String> = long.split("\n\n").skip(1).map(str::to_owned).collect();
    paragraphs.extend(help.paragraphs.iter().cloned());
    if paragraphs.is_empty() {
        paragraphs.push(format!("{}.", about(command)));
    }
    paragraphs
}

/// The rows that concern a command; the first page has all.
fn rows(rows: &'static [Row], words: &[&str]) -> impl Iterator<Item = (String, String)> {
    let command = words.get(1).copied();
    let concerns = move |(_, _, commands): &&Row| match command {
        Some(command) => *commands == ALL || commands.contains(&command),
        None => true,
    };
    rows.iter().filter(concerns).map(|(subject, text, _)| ((*subject).to_owned(), (*text).to_owned()))
}

fn see_also(words: &[&str]) -> String {
    let related = words.get(1).and_then(|word| RELATED.iter().find(|group| group.contains(word)));
    let mut pages: Vec<String> = match related {
        Some(group) => group.iter().map(|word| format!("portkeep-{word}(1)")).collect(),
        None => Vec::new(),
    };
    pages.push("portkeep(1)".to_owned());
    pages.retain(|page| *page != format!("{}(1)", words.join("-")));
    pages.sort();
    pages.extend(["portkeep-ports.d(5)".to_owned(), "portkeep.toml(5)".to_owned()]);
    pages.join(", ")
}

/// The text behind the options in a help text, in its parts.
#[derive(Default)]
struct AfterHelp {
    paragraphs: Vec<String>,
    examples: Vec<String>,
    status: Vec<String>,
}

impl AfterHelp {
    fn of(command: &Command) -> Self {
        let mut help = Self::default();
        let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        for part in text.split("\n\n") {
            let lines = || part.lines().map(str::to_owned);
            if part.starts_with("Examples:") {
                help.examples.extend(lines().skip(1));
            } else if let Some(rest) = part.strip_prefix("Exit status:") {
                help.status.extend(rest.trim_start_matches('\n').lines().map(|line| line.trim_start().to_owned()));
            } else if !part.is_empty() {
                help.paragraphs.push(part.to_owned());
            }
        }
        help
    }
}
