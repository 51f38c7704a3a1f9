//! Blocks of consecutive ports.

use std::{fmt, ops::RangeInclusive, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::shown;

/// A non-empty block `[start, start + count)` of ports, all between 1 and 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    start: u16,
    count: u16,
}

/// Why a start and a count do not make a [`PortRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortRangeError {
    /// Port 0 cannot be reserved: it means "any".
    #[error("port 0 cannot be part of a block")]
    Zero,
    /// A block has at least one port.
    #[error("a block needs at least one port")]
    Empty,
    /// The block runs past the last port.
    #[error("{count} ports from {start} run past 65535")]
    PastEnd {
        /// First port, host byte order.
        start: u16,
        /// Number of ports.
        count: u16,
    },
}

/// Why a text does not name ports. [`Display`](fmt::Display) is a sentence; [`help`](Self::help) says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParsePortsError {
    message: String,
    help: Option<String>,
}

impl ParsePortsError {
    pub(crate) fn new(message: impl Into<String>, help: impl Into<Option<String>>) -> Self {
        Self { message: message.into(), help: help.into() }
    }

    /// The correction, where it is known.
    pub fn help(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// The sentence and the correction on one line.
    pub fn on_one_line(&self) -> String {
        match &self.help {
            Some(help) => format!("{}; {help}", self.message),
            None => self.message.clone(),
        }
    }
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { start: 1, count: u16::MAX };

    /// The block of `count` ports from `start` (host byte order).
    pub const fn new(start: u16, count: u16) -> Result<Self, PortRangeError> {
        if start == 0 {
            return Err(PortRangeError::Zero);
        }
        if count == 0 {
            return Err(PortRangeError::Empty);
        }
        if start as u32 + count as u32 > 65536 {
            return Err(PortRangeError::PastEnd { start, count });
        }
        Ok(Self { start, count })
    }

    /// The block from `first` to `last`, both included.
    pub const fn inclusive(first: u16, last: u16) -> Result<Self, PortRangeError> {
        if first > last {
            return Err(PortRangeError::Empty);
        }
        if first == 0 {
            return Err(PortRangeError::Zero);
        }
        Self::new(first, last - first + 1)
    }

    /// The block of the one port `port`.
    pub const fn single(port: u16) -> Result<Self, PortRangeError> {
        Self::new(port, 1)
    }

    /// First port, host byte order.
    pub const fn start(self) -> u16 {
        self.start
    }

    /// Number of ports, at least 1.
    pub const fn count(self) -> u16 {
        self.count
    }

    /// Last port, host byte order.
    pub const fn last(self) -> u16 {
        self.start + (self.count - 1)
    }

    /// Whether `port` belongs to the block.
    pub const fn contains(self, port: u16) -> bool {
        port >= self.start && port <= self.last()
    }

    /// Whether the two blocks share a port.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }

    /// The ports that both have.
    pub fn common(self, other: Self) -> Option<Self> {
        Self::inclusive(self.start.max(other.start), self.last().min(other.last())).ok()
    }

    /// The ports, lowest first.
    pub fn iter(self) -> RangeInclusive<u16> {
        self.start..=self.last()
    }
}

impl IntoIterator for PortRange {
    type Item = u16;
    type IntoIter = RangeInclusive<u16>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 1 { write!(f, "{}", self.start) } else { write!(f, "{}-{}", self.start, self.last()) }
    }
}

impl FromStr for PortRange {
    type Err = ParsePortsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let quoted = format!("\"{}\"", shown(text.trim()));
        let syntax =
            || ParsePortsError::new(format!("{quoted} is not a port or a range; write 8080 or 8080-8089"), None);
        let number = |part: &str| part.trim().parse::<u16>().map_err(|_| syntax());
        let (first, last) = match text.split_once(['-', ':']) {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(text)?, number(text)?),
        };
        if last < first {
            return Err(ParsePortsError::new(format!("{quoted} ends before it begins"), None));
        }
        Self::inclusive(first, last).map_err(|error| ParsePortsError::new(format!("{quoted}: {error}"), None))
    }
}

impl TryFrom<String> for PortRange {
    type Error = ParsePortsError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_where_the_ports_end() {
        assert_eq!(PortRange::new(65535, 1).unwrap().last(), 65535);
        assert_eq!(PortRange::new(1, 65535).unwrap().last(), 65535);
        assert_eq!(PortRange::new(65535, 2), Err(PortRangeError::PastEnd { start: 65535, count: 2 }));
        assert_eq!(PortRange::new(0, 1), Err(PortRangeError::Zero));
        assert_eq!(PortRange::new(1, 0), Err(PortRangeError::Empty));
    }

    #[test]
    fn both_spellings_of_a_range_are_read_and_one_is_written() {
        for text in ["5000-5019", "5000:5019", " 5000 - 5019 "] {
            let range: PortRange = text.parse().unwrap();
            assert_eq!((range.start(), range.count()), (5000, 20));
            assert_eq!(range.to_string(), "5000-5019");
        }
        assert_eq!("80".parse::<PortRange>().unwrap().to_string(), "80");
        for (wrong, why) in [
            ("9-8", "ends before it begins"),
            ("http", "is not a port or a range"),
            ("0-8", "port 0 cannot"),
            ("65536", "is not a port or a range"),
        ] {
            let error = wrong.parse::<PortRange>().unwrap_err();
            assert!(error.to_string().contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn overlap_is_symmetric_and_exact_at_the_edges() {
        let a = PortRange::new(100, 10).unwrap();
        let b = PortRange::new(110, 1).unwrap();
        let c = PortRange::new(109, 1).unwrap();
        assert!(!a.overlaps(b) && !b.overlaps(a));
        assert!(a.overlaps(c) && c.overlaps(a));
    }
}
