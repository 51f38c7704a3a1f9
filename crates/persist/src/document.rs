//! TOML with the place of every key and value.
//!
//! `serde` stops at the first mistake and often does not report its place. Here a file is read as a tree. Every key and
//! value in the tree has its place in the text. Each is checked by itself, so that all mistakes are reported at once.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeArray, DeString, DeTable, DeValue},
};

use portkeep_core::{nearest, shown};

use crate::diagnostic::Report;

/// The largest number of errors that are reported of a text that is not TOML. A file of another kind has an error in
/// each line.
const MOST: usize = 5;

/// The document, or `None` and complaints if it is not TOML.
pub(crate) fn parse<'i>(report: &mut Report<'_>, text: &'i str) -> Option<DeTable<'i>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors.iter().take(MOST) {
        report.say(error.span().unwrap_or(0..0), format!("not TOML: {}", error.message().replace('\n', ", ")));
    }
    if let Some(next) = errors.get(MOST) {
        let more = errors.len() - MOST;
        report.say(next.span().unwrap_or(0..0), format!("{more} more places that are not TOML are left out"));
    }
    errors.is_empty().then(|| document.into_inner())
}

/// A key with its value.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'t, 'i> {
    key: &'t Spanned<DeString<'i>>,
    value: &'t Spanned<DeValue<'i>>,
}

/// The entries of a table, in the order of the file.
pub(crate) fn entries<'t, 'i>(table: &'t DeTable<'i>) -> Vec<Entry<'t, 'i>> {
    let mut all: Vec<_> = table.iter().map(|(key, value)| Entry { key, value }).collect();
    all.sort_by_key(|entry| entry.key.span().start);
    all
}

impl<'t, 'i> Entry<'t, 'i> {
    pub(crate) fn key(&self) -> &'t str {
        self.key.get_ref()
    }

    pub(crate) fn key_at(&self) -> Range<usize> {
        self.key.span()
    }

    pub(crate) fn at(&self) -> Range<usize> {
        self.value.span()
    }

    pub(crate) fn value(&self) -> &'t Spanned<DeValue<'i>> {
        self.value
    }

    /// Complain that this key is unknown.
    pub(crate) fn unknown<'k>(&self, report: &mut Report<'_>, known: impl IntoIterator<Item = &'k str> + Clone) {
        let help = match nearest(self.key(), known.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the keys here are {}", known.into_iter().collect::<Vec<_>>().join(", ")),
        };
        report.advise(self.key_at(), format!("unknown key `{}`", shown(self.key())), help);
    }

    pub(crate) fn string(&self, report: &mut Report<'_>) -> Option<&'t str> {
        let text = self.value.get_ref().as_str();
        if text.is_none() {
            self.wrong_kind(report, "a text in quotes");
        }
        text
    }

    pub(crate) fn boolean(&self, report: &mut Report<'_>) -> Option<bool> {
        let flag = self.value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_kind(report, "true or false");
        }
        flag
    }

    pub(crate) fn table(&self, report: &mut Report<'_>) -> Option<&'t DeTable<'i>> {
        let table = self.value.get_ref().as_table();
        if table.is_none() {
            let help = format!("write `[{}]` on a line of its own and the keys below it", shown(self.key()));
            report.advise(self.at(), self.complaint("a table"), help);
        }
        table
    }

    pub(crate) fn array(&self, report: &mut Report<'_>) -> Option<&'t DeArray<'i>> {
        let array = self.value.get_ref().as_array();
        if array.is_none() {
            self.wrong_kind(report, "a list, [\"a\", \"b\"]");
        }
        array
    }

    /// Complain that the value is not of the kind that belongs here.
    pub(crate) fn wrong_kind(&self, report: &mut Report<'_>, wanted: &str) {
        report.say(self.at(), self.complaint(wanted));
    }

    fn complaint(&self, wanted: &str) -> String {
        format!("`{}` wants {wanted}, not {}", shown(self.key()), kind(self.value.get_ref()))
    }
}

/// The value as a whole number. `None` if it is not a whole number, or does not fit into 64 bits.
pub(crate) fn integer(value: &DeValue<'_>) -> Option<i64> {
    let number = value.as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
