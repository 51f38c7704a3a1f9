//! portkeep.toml(5), from the table of keys.

use clap_mangen::roff::{Roff, bold, italic, roman};
use portkeep_persist::config::{KEYS, PATH};

use crate::section::{list, title, verbatim};

pub(crate) fn page() -> String {
    let mut roff = Roff::new();
    roff.control("SH", ["NAME"]).text([roman("portkeep.toml - the configuration of Portkeep")]);
    roff.control("SH", ["SYNOPSIS"]).text([italic(PATH)]);
    roff.control("SH", ["DESCRIPTION"]);
    for (index, paragraph) in [
        "The agent reads this file, in TOML, when it starts, on SIGHUP and at `portkeep reload`. `portkeep up`, and \
         `portkeep run` and `portkeep acquire` of root, read it when they bring kernel enforcement up. It need not \
         exist; every key has a default.",
        "A file with a mistake is refused as a whole, and what was in effect stays. `portkeep check` shows each mistake \
         with its line. A key that is not known is a mistake.",
        "A key with a dot is in the table before the dot: `quota.default` is `default` below `[quota]`. A change of \
         `enforce` and `serve` requires `portkeep down` and `portkeep up`; the other keys take effect at once. A key \
         that the file does not have stays as an option of `portkeep up` has set it.",
    ]
    .into_iter()
    .enumerate()
    {
        if index > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(paragraph)]);
    }
    roff.control("SH", ["KEYS"]);
    for key in KEYS {
        roff.control("TP", []);
        roff.text([bold(key.name), roman(" = "), italic(key.kind)]);
        roff.text([roman(format!("{} Default: {}.", key.text, key.default))]);
    }
    list(
        &mut roff,
        "FILES",
        italic,
        [
            (PATH, "This file."),
            ("/var/lib/portkeep/persistent.redb", "The store, unless state_dir names another folder."),
        ],
    );
    list(
        &mut roff,
        "ENVIRONMENT",
        bold,
        [
            ("PORTKEEP_CONFIG", "Another file, the same as --config of the commands."),
            ("PORTKEEP_STATE_DIR", "The folder of the store, whatever state_dir says."),
        ],
    );
    roff.control("SH", ["EXAMPLES"]);
    verbatim(&mut roff, &example());
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(
        "portkeep(1), portkeep-agent(1), portkeep-check(1), portkeep-reload(1), portkeep-up(1), portkeep-ports.d(5)",
    )]);
    title("portkeep.toml", 5) + &roff.to_roff()
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
    use std::path::Path;

    use super::example;

    #[test]
    fn the_example_of_the_page_is_a_configuration() {
        let text = example().join("\n");
        let config = portkeep_persist::Config::parse(Path::new("example"), &text).unwrap();
        assert_ne!(config, portkeep_persist::Config::default());
    }
}
