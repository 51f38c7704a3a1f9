//! The documents and the rest of the repository agree: rule numbers exist, links resolve, the README stays short, and the
//! language is plain.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use portkeep_tool::repository;

/// Folders whose files are sources or documents of the project.
const FOLDERS: [&str; 5] = ["crates", "docs", "packaging", "python", "tools"];
const SOURCES: [&str; 16] =
    ["rs", "h", "c", "md", "py", "toml", "sh", "service", "socket", "conf", "js", "mjs", "css", "html", "yml", "5"];

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
    found.extend(top.filter(|path| path.extension().is_some_and(|extension| extension == "md" || extension == "toml")));
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// `R7`, or `r7` at the beginning of a test's name.
fn cited(text: &str) -> BTreeSet<String> {
    let bytes = text.as_bytes();
    let mut rules = BTreeSet::new();
    for (start, letter) in text.char_indices().filter(|(_, letter)| matches!(letter, 'R' | 'A' | 'N' | 'E' | 'L' | 'F'))
    {
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
        if matches!(letter, "r" | "a" | "n" | "e" | "l" | "f") && is_number && name[word.len()..].starts_with('_') {
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

#[test]
fn every_rule_has_a_test_that_cites_it() {
    let tests = texts().into_iter().filter(|(path, _)| path.components().any(|part| part.as_os_str() == "tests"));
    let cited: BTreeSet<String> = tests.flat_map(|(_, text)| cited(&text)).collect();
    let without: Vec<String> = rules().into_iter().filter(|rule| !cited.contains(rule)).collect();
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

/// The files of the code tour and of the table of parts exist. A name without a folder is beside the file before it.
#[test]
fn the_code_tour_names_files_that_exist() {
    let tour = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let mut seen = 0;
    for row in tour.lines().filter(|line| line.starts_with("| ")) {
        let mut folder = PathBuf::new();
        for name in row.split('`').skip(1).step_by(2) {
            let is_file = name.ends_with(".rs") || name.ends_with(".h");
            let path = match name.starts_with("crates/") || name.starts_with("tools/") {
                true => PathBuf::from(name),
                false if is_file && !name.contains('/') => folder.join(name),
                false => continue,
            };
            assert!(repository().join(&path).exists(), "{}: {row}", path.display());
            if is_file {
                folder = path.parent().unwrap().to_owned();
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "{seen}");
}

/// The Python package and Arch's recipe name the version of the workspace.
#[test]
fn there_is_one_version() {
    let version = env!("CARGO_PKG_VERSION");
    for (path, line) in [
        ("python/pyproject.toml", format!("version = \"{version}\"")),
        ("packaging/arch/PKGBUILD", format!("pkgver={version}")),
    ] {
        let text = fs::read_to_string(repository().join(path)).unwrap();
        assert!(text.lines().any(|each| each == line), "{path} has no line {line}");
    }
}

#[test]
fn the_readme_is_short_and_every_document_is_narrow() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 120);
    let is_prose = |path: &Path| path.extension().is_some_and(|extension| extension == "md" || extension == "5");
    for (path, text) in texts().into_iter().filter(|(path, _)| is_prose(path)) {
        // Tables, the output of commands, and what the benchmarks write are as wide as they are.
        let (mut is_output, mut is_written) = (false, false);
        for line in text.lines() {
            is_output ^= line.trim_start().starts_with("```");
            is_written = (is_written || line.starts_with("<!-- begin")) && !line.starts_with("<!-- end");
            let is_free = is_output || is_written || line.starts_with('|');
            assert!(is_free || line.chars().count() <= 120, "{}: {line}", path.display());
        }
    }
}

#[test]
fn the_citations_are_found() {
    let text = "/* R7, A3: see N1. */ fn e8_run() {} fn r10_x() fn a() {} RFC1 XR2 E1x EACCES L_3 R123 A4_x";
    let found: Vec<String> = cited(text).into_iter().collect();
    assert_eq!(found, ["A3", "E8", "N1", "R10", "R7"]);
}

/// Words that the glossary replaces by others.
const BANNED: [&str; 9] = [
    concat!("nobody", "'s"),
    concat!("stran", "ger"),
    concat!("kernel", " part"),
    concat!("look ", "whether"),
    concat!("looks ", "whether"),
    concat!("happen", "ings"),
    concat!("she", "lf"),
    // Tests have a sentence as their name.
    concat!("fn what", "_"),
    concat!("test_what", "_"),
];
/// A sentence that begins so has a relative clause as its subject. Questions may.
const RELATIVES: [&str; 6] = ["Who", "Whoever", "Whose", "Whom", "What", "Whatever"];

/// The prose of a file, in paragraphs with the line each begins on: comments and texts of a program, and a document
/// without its headings and listings.
fn prose(path: &Path, text: &str) -> Vec<(usize, String)> {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "md" => paragraphs(text),
        "rs" | "c" | "h" | "js" | "mjs" => comments_and_texts(text, "//"),
        _ => comments_and_texts(text, "#"),
    }
}

fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let (mut listing, mut continues) = (false, false);
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        listing ^= line.starts_with("```");
        if listing || line.is_empty() || line.starts_with(['#', '`']) {
            continues = false;
        } else if line.starts_with('|') {
            found.extend(line.split('|').map(|cell| (number, cell.trim().to_owned())));
            continues = false;
        } else {
            let item = line
                .strip_prefix("- ")
                .or_else(|| line.split_once(". ").filter(|(n, _)| n.parse::<u8>().is_ok()).map(|x| x.1));
            match found.last_mut().filter(|_| continues && item.is_none()) {
                Some((_, paragraph)) => *paragraph += &format!(" {line}"),
                None => found.push((number, item.unwrap_or(line).to_owned())),
            }
            continues = true;
        }
    }
    found
}

fn comments_and_texts(text: &str, comment: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let (mut number, mut rest) = (1, text);
    let mut last = 0;
    while let Some(letter) = rest.chars().next() {
        let c_like = comment == "//";
        let (kind, length) = if rest.starts_with(comment) {
            ("line", rest.find('\n').unwrap_or(rest.len()))
        } else if c_like && rest.starts_with("/*") {
            ("block", rest.find("*/").map_or(rest.len(), |end| end + 2))
        } else if !c_like && rest.starts_with("\"\"\"") {
            ("text", rest[3..].find("\"\"\"").map_or(rest.len(), |end| end + 6))
        } else if letter == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|next| {
                let ends = next == '"' && !escaped;
                escaped = next == '\\' && !escaped;
                ends
            });
            ("text", end.map_or(rest.len(), |end| end + 2))
        } else if c_like && letter == '\'' && rest.chars().nth(1) == Some('\\') {
            ("code", rest[3..].find('\'').map_or(rest.len(), |end| end + 4))
        } else if c_like && letter == '\'' && rest.chars().nth(2) == Some('\'') {
            ("code", rest.char_indices().nth(3).map_or(rest.len(), |(end, _)| end))
        } else {
            ("code", letter.len_utf8())
        };
        let piece = &rest[..length];
        let words = |piece: &str| {
            let lines = piece.lines().map(|line| {
                line.trim().trim_start_matches(['/', '!', '*', '#', '"', ' ']).trim_end_matches(['\\', '"'])
            });
            lines.collect::<Vec<_>>().join(" ").trim().to_owned()
        };
        match kind {
            "line" => match found.last_mut().filter(|_| number == last + 1 && !words(piece).is_empty()) {
                Some((_, paragraph)) => *paragraph += &format!(" {}", words(piece)),
                None => found.push((number, words(piece))),
            },
            // A single word is a value, and a heading is no sentence.
            "block" | "text" if words(piece).contains(' ') && !piece.starts_with("\"# ") => {
                found.push((number, words(piece)))
            }
            _ => {}
        }
        if kind == "line" && !words(piece).is_empty() {
            last = number;
        }
        number += piece.matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// The sentences of a paragraph that begin with a bare relative.
fn relatives(paragraph: &str) -> Vec<&str> {
    let mut sentences = Vec::new();
    let mut begin = 0;
    for (at, _) in paragraph.match_indices([' ']) {
        if paragraph[..at].ends_with(['.', '!', '?', ':', ';']) {
            sentences.push(paragraph[begin..at].trim_start());
            begin = at + 1;
        }
    }
    sentences.push(paragraph[begin..].trim_start());
    sentences.retain(|sentence| {
        let word = sentence.trim_start_matches(['"', '\'', '(', '`', '[', '*', '-', ' ']).split(' ').next();
        word.is_some_and(|word| RELATIVES.contains(&word)) && !sentence.contains('?')
    });
    sentences
}

#[test]
fn the_language_is_plain() {
    let mut found = Vec::new();
    for (path, text) in texts() {
        // The history keeps its words, and the test below has such sentences.
        if path.ends_with("CHANGELOG.md") || path.ends_with(file!()) {
            continue;
        }
        let place = path.strip_prefix(repository()).unwrap_or(&path).display().to_string();
        for (number, paragraph) in prose(&path, &text) {
            found.extend(relatives(&paragraph).iter().map(|sentence| format!("{place}:{number}: {sentence}")));
        }
        for (number, line) in (1..).zip(text.lines().map(str::to_lowercase)) {
            let banned = BANNED.iter().filter(|word| line.contains(**word));
            found.extend(banned.map(|word| format!("{place}:{number}: the word \"{word}\"")));
        }
    }
    assert!(found.is_empty(), "{} places:\n{}", found.len(), found.join("\n"));
}

#[test]
fn relatives_are_found_in_comments_texts_and_documents() {
    let rust = "//! Fine.\n//! What is\n//! this.\nfn a() { say(\"It ends. Who asks\"); b('\"'); /* Whose it is: fine. */ }\n// What?\nlet a: &'a str = \"What\";\n";
    let of = |name: &str, text: &str| {
        let prose = prose(Path::new(name), text);
        prose
            .iter()
            .flat_map(|(line, text)| relatives(text).into_iter().map(|s| format!("{line} {s}")).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    assert_eq!(of("a.rs", rust), ["1 What is this.", "4 Who asks", "4 Whose it is:"]);
    assert_eq!(
        of("a.md", "# What\n\nFine, what.\n- What is\n  that\n\n```\nWhat\n```\n| Who asks | a |\n"),
        ["4 What is that", "10 Who asks"]
    );
    assert_eq!(
        of("a.py", "x = 1  # Who asks\n\"\"\"Fine.\n\nWhat it does.\"\"\"\n"),
        ["1 Who asks", "2 What it does."]
    );
}
