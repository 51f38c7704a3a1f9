//! Sets of ports, as `ip_local_reserved_ports` writes them.

use std::{fmt, iter, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::PortRange;

const WORDS: usize = 65536 / 64;

/// A set of ports. Its text is that of the sysctl: `8080,9000-9009`.
///
/// Port 0 can be in it, unlike in a [`PortRange`]: the sysctl accepts it, and what others wrote there is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortSet {
    words: Box<[u64; WORDS]>,
}

impl Default for PortSet {
    fn default() -> Self {
        Self { words: Box::new([0; WORDS]) }
    }
}

impl PortSet {
    /// Add the ports of a block.
    pub fn insert(&mut self, ports: PortRange) {
        self.insert_span(ports.start(), ports.last());
    }

    fn insert_span(&mut self, first: u16, last: u16) {
        for port in first..=last {
            self.words[usize::from(port / 64)] |= 1 << (port % 64);
        }
    }

    /// Whether no port is in it.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many ports are in it.
    pub fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether a port is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.words[usize::from(port / 64)] & 1 << (port % 64) != 0
    }

    fn combined(&self, other: &Self, with: impl Fn(u64, u64) -> u64) -> Self {
        let mut result = self.clone();
        for (word, other) in result.words.iter_mut().zip(other.words.iter()) {
            *word = with(*word, *other);
        }
        result
    }

    /// The ports that are in at least one of the two.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a | b)
    }

    /// The ports that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a & b)
    }

    /// The ports of this set that are not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.combined(other, |a, b| a & !b)
    }

    /// First and last port of each run, lowest first.
    pub fn spans(&self) -> impl Iterator<Item = (u16, u16)> {
        let mut next = 0;
        iter::from_fn(move || {
            let first = (next..=u16::MAX.into()).find(|port| self.contains(*port as u16))?;
            let end = (first..=u16::MAX.into()).find(|port| !self.contains(*port as u16)).unwrap_or(65536);
            next = end;
            Some((first as u16, (end - 1) as u16))
        })
    }
}

impl From<PortRange> for PortSet {
    fn from(ports: PortRange) -> Self {
        let mut set = Self::default();
        set.insert(ports);
        set
    }
}

impl FromIterator<PortRange> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortRange>>(blocks: I) -> Self {
        let mut set = Self::default();
        blocks.into_iter().for_each(|ports| set.insert(ports));
        set
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.spans().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match PortRange::inclusive(first, last) {
                Ok(ports) => write!(f, "{comma}{ports}")?,
                Err(_) if last == 0 => write!(f, "{comma}0")?,
                Err(_) => write!(f, "{comma}0-{last}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

/// Why a text is not a set of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a list of ports and ranges such as 8080,9000-9009")]
pub struct ParsePortSetError(String);

impl FromStr for PortSet {
    type Err = ParsePortSetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut set = Self::default();
        for item in text.split([',', '\n']).map(str::trim).filter(|item| !item.is_empty()) {
            let wrong = || ParsePortSetError(item.to_owned());
            let (first, last) = match item.split_once('-') {
                Some((first, last)) => (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?),
                None => {
                    let port: u16 = item.parse().map_err(|_| wrong())?;
                    (port, port)
                }
            };
            if first > last {
                return Err(wrong());
            }
            set.insert_span(first, last);
        }
        Ok(set)
    }
}

impl TryFrom<String> for PortSet {
    type Error = ParsePortSetError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortSet> for String {
    fn from(set: PortSet) -> Self {
        set.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_set() -> impl Strategy<Value = PortSet> {
        let span = (any::<u16>(), 0u16..300).prop_map(|(first, more)| (first, first.saturating_add(more)));
        // Few distinct ports, so that sets often have ports in common.
        let close = (0u16..40, 0u16..6).prop_map(|(first, more)| (first, first + more));
        prop::collection::vec(prop_oneof![span, close], 0..8).prop_map(|spans| {
            let mut set = PortSet::default();
            spans.into_iter().for_each(|(first, last)| set.insert_span(first, last));
            set
        })
    }

    #[test]
    fn the_sysctls_text_is_read_and_written() {
        for (text, written) in [
            ("", ""),
            ("\n", ""),
            ("8080\n", "8080"),
            ("8080,9000-9009\n", "8080,9000-9009"),
            ("5,3,4", "3-5"),
            ("0", "0"),
            ("0-3,65535", "0-3,65535"),
            ("0-65535", "0-65535"),
        ] {
            let set: PortSet = text.parse().unwrap();
            assert_eq!(set.to_string(), written);
            assert_eq!(set.is_empty(), written.is_empty());
        }
        for text in ["http", "9-8", "65536", "1-2-3", "-1"] {
            assert!(text.parse::<PortSet>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_written_set_reads_as_the_same_set(set in any_set()) {
            prop_assert_eq!(set.to_string().parse::<PortSet>().unwrap(), set);
        }

        #[test]
        fn spans_are_apart_and_ascending(set in any_set()) {
            let spans: Vec<_> = set.spans().collect();
            prop_assert!(spans.windows(2).all(|pair| u32::from(pair[0].1) + 1 < u32::from(pair[1].0)));
        }

        #[test]
        fn operations_are_those_of_sets(a in any_set(), b in any_set(), port in any::<u16>()) {
            prop_assert_eq!(a.union(&b).contains(port), a.contains(port) || b.contains(port));
            prop_assert_eq!(a.minus(&b).contains(port), a.contains(port) && !b.contains(port));
            prop_assert_eq!(a.intersection(&b).contains(port), a.contains(port) && b.contains(port));
            prop_assert_eq!(a.minus(&b).union(&a.intersection(&b)), a);
        }
    }
}
