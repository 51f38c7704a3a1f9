//! For any content of a file: values or complaints, never a panic.

use std::path::Path;

use portkeep_core::{PortList, PortRange, Transports};
use portkeep_persist::{
    Account, Audience, Config, Declaration, Diagnostic, Services, Stored,
    config::{KEYS, Key},
    dropin, export, import,
};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

const STANZAS: &str = r#"# Drop-in.
[[reservation]]
name = "web"
tcp = "https"
unit = "nginx.service"
description = "the front door"

[[reservation]]
name = "rtp"
both = "5000-5019"
group = 33
strict = true
around = false

[[reservation]]
name = "admin"
ports = "1,7/udp"
administrators = true

[[reservation]]
name = "c"
tcp = 2
cgroup = "/system.slice/a.service"
"#;

const CONFIG: &str = r#"pool = "20000-20999"
deny_errno = "EACCES"
administrators = "wheel"
[quota]
default = 7
users = { alice = 4096, 1000 = "unlimited" }
[privileged]
users = ["www-data", 33]
[events]
per_second = 3
"#;

fn services() -> Services {
    Services::parse("https 443/tcp\ndomain 53/tcp\ndomain 53/udp\n")
}

/// Each complaint has a place in the text and a sentence.
fn sound(text: &str, diagnostics: &[Diagnostic]) {
    let lines = text.split('\n').count();
    for shown in diagnostics {
        assert!(!shown.message.is_empty() && !shown.message.contains('\n'), "{shown:?}");
        assert!(shown.line.is_some_and(|line| (1..=lines).contains(&line)), "{shown:?} of {lines} lines");
        let line = text.split('\n').nth(shown.line.unwrap() - 1).unwrap();
        assert!(
            shown.column.is_some_and(|column| (1..=line.chars().count() + 1).contains(&column)),
            "{shown:?}: {line:?}"
        );
        assert!(!shown.to_string().is_empty());
    }
}

fn all_parsers(text: &str) {
    match import(Path::new("f"), text, &services()) {
        Ok(declarations) => {
            let again = import(Path::new("f"), &export(&declarations), &Services::default()).unwrap();
            assert_eq!(again, declarations);
        }
        Err(wrong) => {
            assert!(!wrong.is_empty());
            sound(text, &wrong);
        }
    }
    if let Err(wrong) = Config::parse(Path::new("f"), text) {
        assert!(!wrong.is_empty());
        sound(text, &wrong);
    }
    let _ = Services::parse(text);
    let _ = serde_json::from_str::<Stored>(text);
    let _ = serde_json::from_str::<Declaration>(text);
}

/// Pieces that parsers trip over.
fn piece() -> impl Strategy<Value = String> {
    let keys: Vec<&str> = "name ports tcp udp both user group unit cgroup administrators strict around description"
        .split(' ')
        .chain(KEYS.iter().map(|Key { name, .. }| *name))
        .collect();
    let values = [
        "0",
        "-1",
        "65535",
        "65536",
        "1e9",
        "0x10",
        "99999999999999999999",
        "true",
        "\"\"",
        "\"5000-5019\"",
        "\"9-1\"",
        "\"80,443\"",
        "[80, \"443/tcp\"]",
        "\"https\"",
        "\"a.service\"",
        "\"/a/..\"",
        "[1, [2]]",
        "{ a = 1 }",
        "1979-05-27",
        "nan",
        "'''x\ny'''",
        "\"\\u0000\"",
        "\"ä\u{202e}\"",
        "\"\\",
        "[",
        "",
    ];
    prop_oneof![
        (prop::sample::select(keys), prop::sample::select(values.to_vec()))
            .prop_map(|(key, value)| format!("{key} = {value}\n")),
        prop::sample::select(vec![
            "[[reservation]]\n",
            "[reservation]\n",
            "[quota]\n",
            "[quota.users]\n",
            "# c\n",
            "\r\n",
            "\u{feff}",
            "]",
            "\""
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ]
}

fn account() -> impl Strategy<Value = Account> {
    prop_oneof![(0..u32::MAX).prop_map(Account::Id), "[a-z_][a-z0-9_.$-]{0,30}".prop_map(Account::Name)]
}

fn audience() -> impl Strategy<Value = Audience> {
    prop_oneof![
        Just(Audience::Administrators),
        account().prop_map(Audience::User),
        account().prop_map(Audience::Group),
        "[A-Za-z0-9:_.\\\\-]{1,40}(@[a-z0-9]{1,8})?\\.(service|scope)".prop_map(Audience::Unit),
        "(/[^/.\\p{Cc}][^/\\p{Cc}]{0,30}){1,16}".prop_map(Audience::Cgroup),
    ]
}

prop_compose! {
    fn block()(first in 1u16..=65535, last in 1u16..=65535) -> PortRange {
        PortRange::inclusive(first.min(last), first.max(last)).unwrap()
    }
}

prop_compose! {
    fn declaration()(
        name in "[A-Za-z0-9][A-Za-z0-9._@:+-]{0,63}",
        block in block(),
        other in block(),
        bits in 1u8..4,
        audience in audience(),
        strict: bool,
        around: bool,
        description in "\\PC{0,60}",
    ) -> Declaration {
        let mut declaration = Declaration::new(
            name.parse().unwrap(),
            // The second block, where it is apart from the first.
            PortList::new([block, other].into_iter().take(if block.overlaps(other) { 1 } else { 2 })).unwrap(),
            Transports::from_bits(bits).unwrap(),
        );
        (declaration.audience, declaration.strict, declaration.around) = (audience, strict, around);
        declaration.description = description.chars().filter(|c| !c.is_control()).collect();
        while declaration.description.len() > Declaration::DESCRIPTION_MAX {
            declaration.description.pop();
        }
        declaration
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    }
}

#[test]
fn what_the_mutations_start_from_is_valid() {
    assert_eq!(import(Path::new("f"), STANZAS, &services()).unwrap().len(), 4);
    Config::parse(Path::new("f"), CONFIG).unwrap();
}

#[test]
fn nests_and_long_lines_come_to_an_end() {
    for text in
        ["[".repeat(100_000), "a = ".to_owned() + &"[".repeat(100_000), "a.".repeat(100_000), "{".repeat(100_000)]
    {
        all_parsers(&text);
        all_parsers(&format!("x = {text}"));
    }
    all_parsers(&"\"\u{0}".repeat(50_000));
    all_parsers(&"[[reservation]]\n".repeat(20_000));
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn any_text(text: String) {
        all_parsers(&text);
    }

    #[test]
    fn pieces_of_stanzas_and_settings(pieces in prop::collection::vec(piece(), 0..12)) {
        all_parsers(&pieces.concat());
    }

    #[test]
    fn mutated_valid_files(
        config: bool,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..8, piece()), 1..4),
    ) {
        let mut text: Vec<char> = if config { CONFIG } else { STANZAS }.chars().collect();
        for (at, cut, put) in edits {
            let from = at.index(text.len() + 1);
            let until = (from + cut).min(text.len());
            text.splice(from..until, put.chars().take(12));
        }
        all_parsers(&text.into_iter().collect::<String>());
    }

    #[test]
    fn declarations_come_back_from_toml_and_json(declarations in prop::collection::vec(declaration(), 0..4)) {
        let mut unique = Vec::<Declaration>::new();
        for declaration in declarations {
            if unique.iter().all(|one| one.name != declaration.name && !one.overlaps(&declaration)) {
                unique.push(declaration);
            }
        }
        let text = export(&unique);
        prop_assert_eq!(&import(Path::new("f"), &text, &Services::default()).unwrap(), &unique, "{}", text);
        for declaration in unique {
            let json = serde_json::to_string(&declaration).unwrap();
            prop_assert_eq!(serde_json::from_str::<Declaration>(&json).unwrap(), declaration);
        }
    }
}

proptest! {
    #![proptest_config(config(300))]

    /// Bytes in files, as drop-ins, as portreserve's files and as the configuration.
    #[test]
    fn any_bytes_in_any_file(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let root = tempfile::tempdir().unwrap();
        for file in ["etc/portkeep/ports.d/a.toml", "etc/portreserve/a", "etc/services", "etc/portkeep/portkeep.toml"] {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &bytes).unwrap();
        }
        let loaded = dropin::load(root.path());
        prop_assert_eq!(loaded.files.len(), 2);
        let _ = Config::load(&root.path().join("etc/portkeep/portkeep.toml"));
    }
}
