//! `docs/guides/small-machines.md` names its tests, and all of them.

use std::collections::BTreeSet;

const SOURCES: [(&str, &str); 7] = [
    ("user", include_str!("user.rs")),
    ("container", include_str!("container.rs")),
    ("cgroup1", include_str!("cgroup1.rs")),
    ("sys", include_str!("sys.rs")),
    ("no_agent", include_str!("no_agent.rs")),
    ("descriptors", include_str!("descriptors.rs")),
    ("disk", include_str!("disk.rs")),
];

#[test]
fn the_page_and_the_tests_are_one() {
    let tests: BTreeSet<String> = SOURCES
        .iter()
        .flat_map(|(module, text)| {
            let names = text.split("#[test]\nfn ").skip(1).filter_map(|rest| rest.split('(').next());
            names.map(move |name| format!("{module}::{name}"))
        })
        .collect();
    let page = include_str!("../../../../docs/guides/small-machines.md");
    let named: BTreeSet<String> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| SOURCES.iter().any(|(module, _)| word.starts_with(&format!("{module}::"))))
        .map(str::to_owned)
        .collect();
    assert_eq!(named, tests);
}
