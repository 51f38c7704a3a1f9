//! The documents and the rest of the repository agree: rule numbers exist, links resolve, and the README stays short.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use portkeep_tool::repository;

/// Folders whose files are sources or documents of the project.
const FOLDERS: [&str; 6] = ["crates", "docs", "packaging", "python", "tools", "fuzz"];
const SOURCES: [&str; 7] = ["rs", "h", "c", "md", "py", "toml", "sh"];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            // Only what git keeps.
            if !matches!(name.as_str(), "target" | "corpus" | "artifacts" | "node_modules") && !name.starts_with('.') {
                files(&path, found);
            }
        } else if path.extension().is_some_and(|extension| SOURCES.iter().any(|known| extension == *known)) {
            found.push(path);
        }
    }
}

/// Every source and document with its text.
fn texts() -> Vec<(PathBuf, String)> {
    let root = repository();
    let mut found: Vec<PathBuf> =
        FOLDERS.iter().map(|folder| root.join(folder)).fold(Vec::new(), |mut found, folder| {
            files(&folder, &mut found);
            found
        });
    let top = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
    found.extend(top.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// `R7`, or `r7` at the beginning of a test's name.
fn cited(text: &str) -> BTreeSet<String> {
    let bytes = text.as_bytes();
    let mut rules = BTreeSet::new();
    for (start, letter) in text.char_indices().filter(|(_, letter)| matches!(letter, 'R' | 'A' | 'N' | 'E' | 'L')) {
        let digits = text[start + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let part_of_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let before = start.checked_sub(1).is_some_and(|index| part_of_word(bytes[index]));
        let after = bytes.get(start + 1 + digits).is_some_and(|byte| part_of_word(*byte));
        if (1..=2).contains(&digits) && !before && !after {
            rules.insert(format!("{letter}{}", &text[start + 1..start + 1 + digits]));
        }
    }
    for name in text.split("fn ").skip(1) {
        let word = name.split(|letter: char| !letter.is_ascii_alphanumeric()).next().unwrap();
        let Some((letter, digits)) = word.split_at_checked(1) else { continue };
        let is_number = (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        if matches!(letter, "r" | "a" | "n" | "e" | "l") && is_number && name[word.len()..].starts_with('_') {
            rules.insert(word.to_uppercase());
        }
    }
    rules
}

/// The rules of the page, in its order.
fn rules() -> Vec<String> {
    let page = fs::read_to_string(repository().join("docs/reference/rules.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    rows.filter(|cell| cited(cell).len() == 1 && cell.len() <= 3).map(str::to_owned).collect()
}

#[test]
fn every_cited_rule_is_on_the_page() {
    let rules = rules();
    let distinct: BTreeSet<&String> = rules.iter().collect();
    assert!(rules.len() > 30 && distinct.len() == rules.len(), "{rules:?}");
    for (path, text) in texts() {
        let unknown: Vec<String> = cited(&text).into_iter().filter(|rule| !rules.contains(rule)).collect();
        assert!(unknown.is_empty(), "{} cites {unknown:?}", path.display());
    }
}

/// Each rule of these three kinds has a test that cites it.
#[test]
fn the_rules_of_reservations_binds_and_ranges_have_tests() {
    let tests = texts().into_iter().filter(|(path, _)| path.components().any(|part| part.as_os_str() == "tests"));
    let cited: BTreeSet<String> = tests.flat_map(|(_, text)| cited(&text)).collect();
    let first = (1..=10).map(|number| format!("R{number}")).chain((1..=9).map(|number| format!("A{number}")));
    let first = first.chain((1..=8).map(|number| format!("E{number}")));
    let without: Vec<String> = first.filter(|rule| !cited.contains(rule)).collect();
    assert!(without.is_empty(), "{without:?}");
}

/// The targets of links in a Markdown file, without those to the web.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.contains(char::is_whitespace))
}

/// A heading as GitHub makes it an anchor.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_')).collect()
}

#[test]
fn every_link_between_documents_resolves() {
    let mut seen = 0;
    for (path, text) in texts().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "md")) {
        for link in links(&text) {
            let (file, fragment) = link.split_once('#').map_or((link, None), |(file, rest)| (file, Some(rest)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: there is no {link}", path.display());
            if let Some(fragment) = fragment {
                let text = fs::read_to_string(&target).unwrap();
                let mut headings =
                    text.lines().filter_map(|line| Some(anchor(line.strip_prefix('#')?.trim_matches(['#', ' ']))));
                assert!(headings.any(|heading| heading == fragment), "{}: {link} has no heading", path.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn the_readme_is_short_and_narrow() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 120);
    let wide: Vec<&str> = readme.lines().filter(|line| line.chars().count() > 120).collect();
    assert!(wide.is_empty(), "{wide:#?}");
}

#[test]
fn the_citations_are_found() {
    let text = "/* R7, A3: see N1. */ fn e8_run() {} fn r10_x() fn a() {} RFC1 XR2 E1x EACCES L_3 R123 A4_x";
    let found: Vec<String> = cited(text).into_iter().collect();
    assert_eq!(found, ["A3", "E8", "N1", "R10", "R7"]);
}
