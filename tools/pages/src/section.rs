//! Parts that every page has.

use clap_mangen::roff::{Inline, Roff, roman};

const SOURCE: &str = concat!("portkeep ", env!("CARGO_PKG_VERSION"));

/// The title of a page, behind the string that stands for an apostrophe. There is no date: it would make each build another.
pub(crate) fn title(name: &str, section: u8) -> String {
    let name = name.to_uppercase().replace('-', "\\-");
    format!(".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n.TH {name} {section} \"\" \"{SOURCE}\" Portkeep\n")
}

/// A section of subjects with their texts.
pub(crate) fn list<S: Into<String>>(
    roff: &mut Roff,
    heading: &str,
    style: impl Fn(String) -> Inline,
    rows: impl IntoIterator<Item = (S, S)>,
) {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_some() {
        roff.control("SH", [heading]);
    }
    for (subject, text) in rows {
        roff.control("TP", []).text([style(subject.into())]).text([roman(text.into())]);
    }
}

/// Lines that stay as they are.
pub(crate) fn verbatim(roff: &mut Roff, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    roff.control("nf", []);
    for line in lines {
        roff.text([roman(line.clone())]);
    }
    roff.control("fi", []);
}
