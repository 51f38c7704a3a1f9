//! The examples in the guides about services are valid, and they mean what the guides say.

use std::path::Path;

use portkeep_persist::{Services, dropin, import};

const SERVICES: &str = include_str!("../../../docs/guides/services.md");
const MEDIA: &str = include_str!("../../../docs/guides/media-and-firewalls.md");

/// The code blocks of a language, with the line each begins on.
fn blocks(page: &str, language: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut block: Option<(usize, String)> = None;
    for (number, line) in page.lines().enumerate() {
        match &mut block {
            None if line == format!("```{language}") => block = Some((number + 2, String::new())),
            None => {}
            Some(_) if line.starts_with("```") => found.extend(block.take()),
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    found
}

fn services() -> Services {
    Services::parse("https 443/tcp\ndomain 53/tcp\ndomain 53/udp\nipp 631/tcp\nipp 631/udp\n")
}

#[test]
fn every_toml_example_is_valid() {
    for (page, number, all) in [(SERVICES, 4, 8), (MEDIA, 2, 4)] {
        let examples = blocks(page, "toml");
        assert_eq!(examples.len(), number);
        let mut stanzas = 0;
        for (line, text) in examples {
            match import(Path::new("example"), &text, &services()) {
                Ok(read) => stanzas += read.len(),
                Err(wrong) => panic!("the example on line {line}: {wrong:#?}"),
            }
        }
        assert_eq!(stanzas, all);
    }
}

/// The stanza that the guide shows for a file of portreserve is the declaration that is read from that file.
#[test]
fn the_portreserve_example_is_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("portreserve/cups");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "ipp\n").unwrap();
    let read = dropin::check(&file, &services());
    let (_, example) = blocks(SERVICES, "toml").into_iter().find(|(_, text)| text.contains("portreserve:")).unwrap();
    assert_eq!(read.declared[0].declaration, import(&file, &example, &services()).unwrap()[0]);
}

/// The guide shows the complaints that are reported.
#[test]
fn the_mistakes_are_reported_as_shown() {
    let text = "[[reservation]]\nname = \"web\"\ntcp = 443\nunit = \"nginx\"\nstrickt = true\n";
    let wrong = import(Path::new("/etc/portkeep/ports.d/web.toml"), text, &services()).unwrap_err();
    let printed: String = wrong.iter().map(|one| format!("{one}\n")).collect();
    // `check` and `reload` print `error:` behind the place of each.
    let plain = |text: &str| text.replace(": error: ", ": ");
    assert!(blocks(SERVICES, "text").iter().any(|(_, block)| plain(block) == printed), "{printed}");
}

/// The table in the guide has exactly the keys of a stanza.
#[test]
fn the_table_has_the_keys() {
    let rows = SERVICES.lines().skip_while(|line| *line != "| key | what it says |").skip(2);
    let mut shown = Vec::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let first = row.split('|').nth(1).unwrap();
        shown.extend(first.split('`').skip(1).step_by(2).map(|key| key.split(' ').next().unwrap().to_owned()));
    }
    let wrong = import(Path::new("f"), "[[reservation]]\nzzzzzzzz = 1\n", &services()).unwrap_err();
    let help = wrong.iter().find_map(|one| one.help.as_deref()?.strip_prefix("the keys here are ")).unwrap();
    let mut known: Vec<&str> = help.split(", ").collect();
    known.sort_unstable();
    shown.sort_unstable();
    assert_eq!(shown, known);
}
