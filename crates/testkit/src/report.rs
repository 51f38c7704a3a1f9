//! Puts measurements where people read them.

use std::{fs, io, path::Path};

/// The kernel and the processors on which a table was made.
pub fn machine() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {cores} cores", release.trim())
}

/// The middle value, or the upper of the two in the middle.
///
/// # Panics
///
/// If there is none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Put `text` into a Markdown file, between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`; it replaces the
/// text there. A file without these lines gets them at its end.
pub fn put(file: &Path, name: &str, text: &str) -> io::Result<()> {
    let old = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        old => old?,
    };
    fs::write(file, replaced(&old, name, text))
}

/// Put it into docs/internals/benchmarks.md as the section with this name.
pub fn put_into_benchmarks(name: &str, text: &str) -> io::Result<()> {
    put(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/internals/benchmarks.md"), name, text)
}

fn replaced(old: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->\n"));
    let section = format!("{begin}{}\n{end}", text.trim_end());
    let place = old.find(&begin).and_then(|from| Some((from, from + old[from..].find(&end)? + end.len())));
    match place {
        Some((from, to)) => format!("{}{section}{}", &old[..from], &old[to..]),
        None if old.is_empty() => section,
        None => format!("{}\n\n{section}", old.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_replaces_its_predecessor_and_nothing_else() {
        let first = replaced("# Head\n", "a", "one\n");
        assert_eq!(first, "# Head\n\n<!-- begin a -->\none\n<!-- end a -->\n");
        let both = replaced(&first, "b", "two");
        let again = replaced(&both, "a", "three\nfour\n\n");
        assert_eq!(
            again,
            "# Head\n\n<!-- begin a -->\nthree\nfour\n<!-- end a -->\n\n<!-- begin b -->\ntwo\n<!-- end b -->\n"
        );
        assert_eq!(replaced("", "a", "one"), "<!-- begin a -->\none\n<!-- end a -->\n");
    }

    #[test]
    fn the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 4.0);
    }
}
