//! `cargo xtask pages`: manual pages and shell completions, made at install time from the table of commands and the table
//! of configuration keys. So they cannot differ from the program. portkeep-ports.d(5) is written by hand.

mod command;
mod configuration;
mod section;

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Command, Parser};
use clap_complete::Shell;

/// Write the manual pages and shell completions below a prefix
#[derive(Parser)]
#[command(name = "cargo xtask pages")]
struct Options {
    /// Prefix of the installation: pages go to its share/man, completions to where each shell reads them
    prefix: PathBuf,
    /// Only those of one package
    #[arg(long, value_name = "PACKAGE", value_parser = PACKAGES)]
    of: Option<String>,
}

/// Path below the prefix, content.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Programs that have a package, pages and completions of their own.
const PACKAGES: [&str; 3] = [PORTKEEP, WEB, FLEET];
const PORTKEEP: &str = "portkeep";
const WEB: &str = "portkeep-web";
const FLEET: &str = "portkeep-fleet";

/// The page about the format of drop-in files.
const DROP_INS: &str = include_str!("../portkeep-ports.d.5");

/// The names that bash completes besides.
const NAMES: &[u8] = include_bytes!("names.bash");

/// Each shell reads its completions from a folder and a name of its own: the text before the name of the program and
/// the text after it.
const COMPLETIONS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions/", ""),
    (Shell::Zsh, "share/zsh/site-functions/_", ""),
    (Shell::Fish, "share/fish/vendor_completions.d/", ".fish"),
];

fn main() -> ExitCode {
    portkeep_tool::exit(write(&Options::parse()))
}

fn write(Options { prefix, of }: &Options) -> Result<()> {
    for package in PACKAGES.iter().filter(|name| of.as_ref().is_none_or(|of| of == *name)) {
        for (path, content) in make(package)? {
            let path = prefix.join(path);
            let folder = path.parent().context("a path without a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

fn page_path(name: &str, section: u8) -> PathBuf {
    format!("share/man/man{section}/{name}.{section}").into()
}

/// The files of a package.
fn make(package: &str) -> Result<Files> {
    let mut files = Files::new();
    match package {
        PORTKEEP => {
            completions(&without_hidden(&portkeep_cli::command()), package, &mut files);
            pages(&portkeep_cli::command(), &[], &mut files)?;
            files.insert(page_path("portkeep.toml", 5), configuration::page().into_bytes());
            let drop_ins = DROP_INS.replace("@VERSION@", env!("CARGO_PKG_VERSION"));
            files.insert(page_path("portkeep-ports.d", 5), drop_ins.into_bytes());
        }
        WEB => {
            files.insert(page_path(WEB, 1), command::page(&built(portkeep_web::command()), &["portkeep", "web"])?);
        }
        FLEET => {
            completions(&portkeep_fleet::command(), package, &mut files);
            pages(&fleet(), &["portkeep"], &mut files)?;
        }
        _ => bail!("there is no package {package}"),
    }
    Ok(files)
}

fn completions(table: &Command, program: &str, files: &mut Files) {
    for (shell, before, behind) in COMPLETIONS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut table.clone(), program, &mut text);
        if (shell, program) == (Shell::Bash, PORTKEEP) {
            text.extend(NAMES);
        }
        files.insert(format!("{before}{program}{behind}").into(), text);
    }
}

/// `portkeep help` and `--help` need no page of their own.
fn built(table: Command) -> Command {
    let mut table = table.disable_help_subcommand(true);
    table.build();
    table
}

/// The commands of portkeep-fleet, as if it were a command of `portkeep`.
fn fleet() -> Command {
    built(portkeep_fleet::command().name("fleet").bin_name(FLEET))
}

/// The same commands without the hidden ones, which completions would offer.
fn without_hidden(table: &Command) -> Command {
    let shown = table.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("portkeep").version(env!("CARGO_PKG_VERSION")).subcommands(shown)
}

/// The page of a command and of those below it. `above` are the names of the commands it belongs to.
fn pages(command: &Command, above: &[&str], files: &mut Files) -> Result<()> {
    let words: Vec<&str> = above.iter().copied().chain([command.get_name()]).collect();
    files.insert(page_path(&words.join("-"), 1), command::page(command, &words)?);
    command::visible(command).try_for_each(|inner| pages(inner, &words, files))
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use portkeep_cli::command::ADVANCED;

    use super::*;

    fn page<'a>(files: &'a Files, name: &str, section: u8) -> &'a str {
        std::str::from_utf8(&files[&page_path(name, section)]).unwrap()
    }

    /// Every page of a command has every section, and names all options.
    fn whole(command: &Command, above: &[&str], files: &Files) -> usize {
        let words: Vec<&str> = above.iter().copied().chain([command.get_name()]).collect();
        let text = page(files, &words.join("-"), 1);
        let sections = [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "FILES",
            "ENVIRONMENT",
            "\"EXIT STATUS\"",
            "EXAMPLES",
            "\"SEE ALSO\"",
        ];
        for section in sections {
            let (_, body) = text.split_once(&format!(".SH {section}\n")).unwrap_or_default();
            assert!(!body.is_empty() && !body.starts_with(".SH"), "{words:?}: {section}\n{text}");
        }
        for option in command.get_arguments().filter(|arg| !arg.is_hide_set()).filter_map(clap::Arg::get_long) {
            assert!(text.contains(&option.replace('-', "\\-")), "{words:?}: --{option}");
        }
        1 + command::visible(command).map(|inner| whole(inner, &words, files)).sum::<usize>()
    }

    #[test]
    fn every_command_has_a_page_with_every_section() {
        let files = make(PORTKEEP).unwrap();
        assert!(whole(&portkeep_cli::command(), &[], &files) > 20);
        assert!(!files.keys().any(|path| path.to_string_lossy().contains("netsh")));
        assert_eq!(whole(&portkeep_web::command(), &[], &make(WEB).unwrap()), 1);
        assert!(whole(&fleet(), &["portkeep"], &make(FLEET).unwrap()) > 8);
    }

    /// A command and all commands below it that people see, with their names.
    fn all(command: &Command) -> Vec<Command> {
        let below = command::visible(command).flat_map(all);
        std::iter::once(command.clone().term_width(80)).chain(below).collect()
    }

    /// The commands of all programs.
    fn of_all_programs() -> Vec<Command> {
        [portkeep_cli::command(), built(portkeep_web::command()), fleet()].iter().flat_map(all).collect()
    }

    fn name(command: &Command) -> &str {
        command.get_bin_name().unwrap_or_else(|| command.get_name())
    }

    #[test]
    fn the_short_help_of_each_command_fits_on_one_screen() {
        let mut larger = Vec::new();
        for mut command in of_all_programs() {
            let text = command.render_help().to_string();
            let (lines, columns) = (text.lines().count(), text.lines().map(|line| line.chars().count()).max());
            if lines > 24 || columns > Some(80) {
                larger.push(format!("{}: {lines} lines of {columns:?} columns\n{text}", name(&command)));
            }
        }
        assert!(larger.is_empty(), "{}", larger.join("\n"));
    }

    #[test]
    fn places_and_connections_are_in_the_long_help_only() {
        let places = ["--pin-dir", "--enforce", "--serve", "--config", "--root"];
        let connections =
            ["--endpoints", "--ca", "--certificate", "--key", "--etcd-user", "--password-file", "--range"];
        for option in places.into_iter().chain(connections) {
            let has = |text: &str| text.split([' ', '\n']).any(|word| word == option);
            let mut shown = false;
            for mut command in of_all_programs() {
                assert!(!has(&command.render_help().to_string()), "{} shows {option}", name(&command));
                let long = command.render_long_help().to_string();
                shown |= long.split_once(&format!("{ADVANCED}:")).is_some_and(|(_, rest)| has(rest));
            }
            assert!(shown, "{option}");
        }
    }

    /// If there is no name to complete, the table of commands is used. The names are tested with the commands.
    #[test]
    fn bash_completes_options_and_names() {
        let folder = tempfile::tempdir().unwrap();
        write(&Options { prefix: folder.path().into(), of: Some(PORTKEEP.into()) }).unwrap();
        let script = "source share/bash-completion/completions/portkeep
            COMP_WORDS=(portkeep persist show --js) COMP_CWORD=3
            _portkeep_names portkeep --js show && echo ${COMPREPLY[@]} && complete -p portkeep";
        let said = Process::new("bash").args(["-c", script]).current_dir(&folder).output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        assert!(text.starts_with("--json\n") && text.contains("-F _portkeep_names portkeep"), "{text}");
    }

    /// Packages with the same file cannot be installed together.
    #[test]
    fn no_file_is_in_two_packages() {
        let names: Vec<PathBuf> = PACKAGES.iter().flat_map(|package| make(package).unwrap().into_keys()).collect();
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    }

    #[test]
    fn every_key_is_in_its_page() {
        let files = make(PORTKEEP).unwrap();
        let has = |section: &str, key: &str| {
            section.contains(&format!(".B {key} = ")) || section.contains(&format!("\\fB{key}\\fR = "))
        };
        let text = page(&files, "portkeep-ports.d", 5).to_owned();
        for key in portkeep_persist::dropin::KEYS {
            assert!(has(&text, key), "{key}\n{text}");
        }
        let text = page(&files, "portkeep.toml", 5);
        for key in portkeep_persist::config::KEYS {
            assert!(has(text, key.name), "{}\n{text}", key.name);
        }
    }

    /// The stanzas that portkeep-ports.d(5) shows are right.
    #[test]
    fn the_example_of_drop_ins_is_one() {
        let (_, example) = DROP_INS.split_once(".SH EXAMPLES\n.nf\n").unwrap();
        let text = example.split_once(".fi").unwrap().0.replace("\\-", "-");
        let services = portkeep_persist::Services::parse("https 443/tcp\n");
        assert_eq!(portkeep_persist::import("page".as_ref(), &text, &services).unwrap().len(), 2);
    }

    /// Both formatters find nothing to complain about.
    #[test]
    fn the_pages_are_clean() {
        let folder = tempfile::tempdir().unwrap();
        write(&Options { prefix: folder.path().into(), of: None }).unwrap();
        let files = PACKAGES.iter().flat_map(|package| make(package).unwrap().into_keys());
        let pages: Vec<PathBuf> =
            files.filter(|path| path.starts_with("share/man")).map(|path| folder.path().join(path)).collect();
        for (program, options) in
            [("groff", &["-man", "-ww", "-z", "-Tutf8"][..]), ("mandoc", &["-T", "lint", "-W", "warning"])]
        {
            for page in &pages {
                let Ok(said) = Process::new(program).args(options).arg(page).output() else {
                    println!("SKIPPED: no {program}");
                    break;
                };
                let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
                let found: Vec<&str> = text.lines().filter(|line| !line.contains("missing date")).collect();
                assert!(found.is_empty(), "{program} {}: {found:#?}", page.display());
            }
        }
    }
}
