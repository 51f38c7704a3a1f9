//! How messages show words that others wrote.

/// A word, fit for a line of a message: escaped, and not longer than a line.
pub fn shown(word: &str) -> String {
    let mut shown: String = word.chars().take(64).flat_map(char::escape_debug).collect();
    if word.chars().nth(64).is_some() {
        shown.push('…');
    }
    shown
}

/// The one of `known` that `word` most likely was meant to be.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A long word is no misspelling, and comparing it takes time.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_guessed_and_garbage_is_not() {
        let keys = ["name", "strict", "around", "description"];
        assert_eq!(nearest("strickt", keys), Some("strict"));
        assert_eq!(nearest("Strict", keys), Some("strict"));
        assert_eq!(nearest("decription", keys), Some("description"));
        assert_eq!(nearest("xyzzy", keys), None);
        assert_eq!(nearest(&"strict".repeat(1000), keys), None);
    }
}
