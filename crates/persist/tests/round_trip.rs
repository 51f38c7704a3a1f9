//! Declarations of any kind survive writing and reading, and a file that nests deeply is refused.

use std::path::Path;

use portkeep_core::{PortList, PortRange, Transports};
use portkeep_persist::{Account, Audience, Config, Declaration, Services, Stored, export, import};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

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
            // The second block is left out if it overlaps the first.
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

#[test]
fn nests_and_long_lines_come_to_an_end() {
    for text in
        ["[".repeat(100_000), "a = ".to_owned() + &"[".repeat(100_000), "a.".repeat(100_000), "{".repeat(100_000)]
    {
        for text in [format!("x = {text}"), text] {
            let _ = import(Path::new("f"), &text, &Services::default());
            let _ = Config::parse(Path::new("f"), &text);
            let _ = serde_json::from_str::<Stored>(&text);
        }
    }
    assert!(import(Path::new("f"), &"[[reservation]]\n".repeat(20_000), &Services::default()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    })]

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
