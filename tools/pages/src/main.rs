//! `cargo xtask pages`: manual pages and shell completions, made at install time from the table of commands and the table
//! of configuration keys. They cannot differ from the program, and nobody has to check them in.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Command, Parser};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};
use portkeep_persist::config::{KEYS, PATH};

/// Write the manual pages and shell completions below a prefix
#[derive(Parser)]
#[command(name = "cargo xtask pages")]
struct Options {
    /// Prefix of the installation: pages go to its share/man, completions to where each shell reads them
    prefix: PathBuf,
}

/// Path below the prefix, content.
type Files = BTreeMap<PathBuf, Vec<u8>>;

const SOURCE: &str = concat!("portkeep ", env!("CARGO_PKG_VERSION"));

/// Each shell reads its completions from a folder and a name of its own.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions/portkeep"),
    (Shell::Zsh, "share/zsh/site-functions/_portkeep"),
    (Shell::Fish, "share/fish/vendor_completions.d/portkeep.fish"),
];

fn main() -> ExitCode {
    portkeep_tool::exit(write(&Options::parse().prefix))
}

fn write(prefix: &Path) -> Result<()> {
    for (path, content) in make()? {
        let path = prefix.join(path);
        let folder = path.parent().context("a path without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn page_path(name: &str, section: u8) -> PathBuf {
    format!("share/man/man{section}/{name}.{section}").into()
}

fn make() -> Result<Files> {
    let mut files = Files::new();
    let mut table = portkeep_cli::command();
    let shown = without_hidden(&table);
    for (shell, path) in COMPLETIONS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut shown.clone(), "portkeep", &mut text);
        files.insert(path.into(), text);
    }
    // `portkeep help` and `--help` need no page of their own.
    table = table.disable_help_subcommand(true);
    table.build();
    pages(&table, &[], &mut files)?;
    files.insert(page_path("portkeep.toml", 5), configuration().into_bytes());
    Ok(files)
}

/// The same commands without the hidden ones, which completions would offer.
fn without_hidden(table: &Command) -> Command {
    let shown = table.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("portkeep").version(env!("CARGO_PKG_VERSION")).subcommands(shown)
}

/// The page of a command and of those below it. `above` are the names of the commands it belongs to.
fn pages(command: &Command, above: &[&str], files: &mut Files) -> Result<()> {
    let words: Vec<&str> = above.iter().copied().chain([command.get_name()]).collect();
    let name = words.join("-");
    let below: Vec<&Command> = command.get_subcommands().filter(|inner| !inner.is_hide_set()).collect();

    let man = Man::new(command.clone().display_name(&name));
    let man = man.manual("Portkeep").title(name.to_uppercase()).source(SOURCE);
    let help = AfterHelp::of(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    for paragraph in help.paragraphs {
        page.extend(Roff::new().control("PP", []).text([roman(paragraph)]).to_roff().bytes());
    }
    man.render_options_section(&mut page)?;
    if !below.is_empty() {
        let mut list = Roff::new();
        list.control("SH", ["COMMANDS"]);
        for inner in &below {
            let about = inner.get_about().map(ToString::to_string).unwrap_or_default();
            list.control("TP", [])
                .text([bold(format!("{name}-{}", inner.get_name())), roman("(1)")])
                .text([roman(about)]);
        }
        page.extend(list.to_roff().bytes());
    }
    page.extend(environment(command, above.is_empty()).bytes());
    for (heading, lines) in [("EXAMPLES", &help.examples), ("EXIT STATUS", &help.status)] {
        if !lines.is_empty() {
            page.extend(section(heading, lines).bytes());
        }
    }
    page.extend(see_also(&words).bytes());
    files.insert(page_path(&name, 1), page);
    below.into_iter().try_for_each(|inner| pages(inner, &words, files))
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
        let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
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

/// The variables that options can be given by, and of the first page those that all commands understand.
fn environment(command: &Command, is_first: bool) -> String {
    let options = command.get_arguments().filter_map(|arg| {
        let variable = arg.get_env()?.to_string_lossy().into_owned();
        Some((variable, format!("The same as --{}.", arg.get_long()?)))
    });
    let common = if is_first { COMMON } else { &[] };
    let common = common.iter().map(|(variable, text)| ((*variable).to_owned(), (*text).to_owned()));
    let all: Vec<(String, String)> = options.chain(common).collect();
    if all.is_empty() {
        return String::new();
    }
    let mut roff = Roff::new();
    roff.control("SH", ["ENVIRONMENT"]);
    for (variable, text) in all {
        roff.control("TP", []).text([bold(variable)]).text([roman(text)]);
    }
    roff.to_roff()
}

/// Variables that have no option.
const COMMON: &[(&str, &str)] = &[
    (
        "PORTKEEP_RUNTIME_DIR",
        "Where the agent's socket is, and what it remembers until the next reboot; /run/portkeep.",
    ),
    ("PORTKEEP_STATE_DIR", "Where the store is, whatever the configuration says; /var/lib/portkeep."),
    ("PORTKEEP_LOG", "What the agent logs: error, warn, info or debug."),
];

/// Lines that stay as they are.
fn section(heading: &str, lines: &[String]) -> String {
    let mut roff = Roff::new();
    roff.control("SH", [heading]).control("nf", []);
    for line in lines {
        roff.text([roman(line.clone())]);
    }
    roff.control("fi", []);
    roff.to_roff()
}

fn see_also(words: &[&str]) -> String {
    let mut pages = vec!["portkeep(1)".to_owned(), "portkeep.toml(5)".to_owned()];
    if let [.., above, _] = words
        && words.len() > 2
    {
        pages.insert(0, format!("{}-{above}(1)", words[0]));
    }
    if words.len() == 1 {
        pages.remove(0);
    }
    Roff::new().control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]).to_roff()
}

/// portkeep.toml(5).
fn configuration() -> String {
    let mut roff = Roff::new();
    roff.control("TH", ["PORTKEEP.TOML", "5", "", SOURCE, "Portkeep"]);
    roff.control("SH", ["NAME"]).text([roman("portkeep.toml - the configuration of Portkeep")]);
    roff.control("SH", ["SYNOPSIS"]).text([italic(PATH)]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "The agent reads this file, in TOML, when it starts, on SIGHUP and at `portkeep reload`. It need not exist; \
         every key has a default. A file with a mistake is refused as a whole, and what was in effect stays. `portkeep \
         check` says what is wrong with it, and where.",
    )]);
    roff.control("PP", []);
    roff.text([roman(
        "A key with a dot is in the table before the dot: `quota.default` is `default` below `[quota]`.",
    )]);
    roff.control("SH", ["KEYS"]);
    for key in KEYS {
        roff.control("TP", []);
        roff.text([bold(key.name), roman(" = "), italic(key.kind)]);
        roff.text([roman(format!("{} Default: {}.", key.text, key.default))]);
    }
    roff.control("SH", ["EXAMPLE"]).control("nf", []);
    for line in example() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("SH", ["FILES"]);
    for (path, text) in [
        (PATH, "This file."),
        ("/etc/portkeep/ports.d/*.toml", "Reservations of the administrator."),
        ("/run/portkeep/ports.d/*.toml", "Reservations that are generated at run time."),
        ("/usr/lib/portkeep/ports.d/*.toml", "Reservations of packages."),
        ("/var/lib/portkeep/persistent.redb", "Reservations that commands created."),
    ] {
        roff.control("TP", []).text([italic(path)]).text([roman(text)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("portkeep-agent(1), portkeep-check(1), portkeep-reload(1), portkeep-persist(1)")]);
    roff.to_roff()
}

/// Every key with its example: the keys of a table are together in [`KEYS`].
fn example() -> Vec<String> {
    let mut lines = Vec::new();
    let mut table = "";
    for key in KEYS {
        let (its_table, name) = key.name.rsplit_once('.').unwrap_or(("", key.name));
        if its_table != table {
            lines.extend([String::new(), format!("[{its_table}]")]);
            table = its_table;
        }
        let name = match (table, name) {
            ("quota.users", "NAME") => "alice",
            (_, "NAME") => "web",
            (_, name) => name,
        };
        lines.push(format!("{name} = {}", key.example));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_page_is_a_configuration() {
        let text = example().join("\n");
        let config = portkeep_persist::Config::parse(Path::new("example"), &text).unwrap();
        assert_ne!(config, portkeep_persist::Config::default());
    }

    #[test]
    fn there_is_a_page_for_every_command_and_none_for_what_is_hidden() {
        let files = make().unwrap();
        for name in [
            "share/man/man1/portkeep.1",
            "share/man/man1/portkeep-run.1",
            "share/man/man1/portkeep-persist-add.1",
            "share/man/man5/portkeep.toml.5",
        ] {
            assert!(files.contains_key(Path::new(name)), "{name}");
        }
        assert!(!files.keys().any(|path| path.to_string_lossy().contains("netsh")));
        let page = String::from_utf8(files[Path::new("share/man/man1/portkeep-persist-add.1")].clone()).unwrap();
        assert!(page.contains(".SH EXAMPLES") && page.contains(".SH \"SEE ALSO\""), "{page}");
    }
}
