//! The alignment of a block.

use std::{fmt, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Serialize};

/// The first port of a block is a multiple of this power of two. With 1, the default, it is any port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Align(u16);

/// Why an alignment does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AlignError {
    /// Use 2, 4, 8 and so on.
    #[error("an alignment of {0} is not a power of two")]
    NotPowerOfTwo(u16),
    /// Change one of them.
    #[error("port {start} is not a multiple of {align}")]
    Unaligned {
        /// The first port of the block, host byte order.
        start: u16,
        /// The alignment asked for.
        align: u16,
    },
}

impl Align {
    /// Any port.
    pub const ANY: Self = Self(1);

    /// Multiples of `align`. 0 is any port, as on the wire.
    ///
    /// # Errors
    ///
    /// If it is not a power of two.
    pub const fn new(align: u16) -> Result<Self, AlignError> {
        match align {
            0 => Ok(Self::ANY),
            _ if align.is_power_of_two() => Ok(Self(align)),
            _ => Err(AlignError::NotPowerOfTwo(align)),
        }
    }

    /// The power of two, at least 1.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The number on the wire: 0 for any port, so that a short request stays short.
    pub const fn to_wire(self) -> u16 {
        if self.0 == 1 { 0 } else { self.0 }
    }

    /// Whether a block can begin at the port `start` (host byte order).
    pub const fn allows(self, start: u16) -> bool {
        start.is_multiple_of(self.0)
    }

    /// Check whether a block can begin at the port `start` (host byte order).
    ///
    /// # Errors
    ///
    /// If `start` is not a multiple.
    pub const fn check(self, start: u16) -> Result<(), AlignError> {
        if self.allows(start) { Ok(()) } else { Err(AlignError::Unaligned { start, align: self.0 }) }
    }
}

impl Default for Align {
    fn default() -> Self {
        Self::ANY
    }
}

impl TryFrom<u16> for Align {
    type Error = AlignError;

    fn try_from(align: u16) -> Result<Self, AlignError> {
        Self::new(align)
    }
}

impl From<Align> for u16 {
    fn from(align: Align) -> Self {
        align.to_wire()
    }
}

impl FromStr for Align {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse::<NonZeroU16>().ok().and_then(|number| Self::new(number.get()).ok());
        number.ok_or_else(|| "must be 1, 2, 4, 8, ...".into())
    }
}

impl fmt::Display for Align {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_alignments_and_nothing_else_is() {
        let all: Vec<u16> = (1..=u16::MAX).filter(|n| Align::new(*n).is_ok()).collect();
        assert_eq!(all, (0..16).map(|bit| 1 << bit).collect::<Vec<u16>>());
        assert_eq!(Align::new(0), Ok(Align::ANY));
        assert_eq!(Align::new(6), Err(AlignError::NotPowerOfTwo(6)));
        assert_eq!("8".parse(), Align::new(8).map_err(|error| error.to_string()));
        for wrong in ["", "0", "3", "-2", "65536", "x"] {
            assert!(wrong.parse::<Align>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn any_port_is_0_on_the_wire() {
        assert_eq!((Align::ANY.to_wire(), Align::new(2).unwrap().to_wire()), (0, 2));
        let read = |text: &str| serde_json::from_str::<Align>(text).ok();
        assert_eq!(
            (read("0"), read("1"), read("64"), read("3")),
            (Some(Align::ANY), Some(Align::ANY), Some(Align(64)), None)
        );
        assert_eq!(serde_json::to_string(&Align::ANY).unwrap(), "0");
    }

    #[test]
    fn a_start_is_a_multiple() {
        let four = Align::new(4).unwrap();
        assert!(four.allows(0) && four.allows(61000) && !four.allows(61002));
        assert_eq!(four.check(61002), Err(AlignError::Unaligned { start: 61002, align: 4 }));
    }
}
