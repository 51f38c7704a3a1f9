//! The ports that automatic choices come from, and how many of them reservations may use up (N3, N5).
//!
//! `ip_local_reserved_ports` takes ports out of `ip_local_port_range`, for TCP and UDP alike. If too few ports are
//! left, the namespace cannot make outgoing connections. So the number of ports that Portkeep enters there is limited.
//!
//! ```
//! use portkeep_core::{PortRange, PortSet, ephemeral::Ephemeral};
//!
//! let range = PortRange::inclusive(32768, 60999)?;
//! let ephemeral = Ephemeral { range, foreign: PortSet::default() };
//! assert!(ephemeral.check(&PortRange::new(40000, 100)?.into()).is_ok());
//! assert_eq!(ephemeral.check(&range.into()).unwrap_err().left, 0);
//! # Ok::<(), portkeep_core::PortRangeError>(())
//! ```

use std::fmt;

use crate::{PortRange, PortSet};

/// Ephemeral ports that a namespace keeps.
pub const KEPT: u32 = 4096;

/// The ephemeral ports of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ephemeral {
    /// `ip_local_port_range`.
    pub range: PortRange,
    /// The ports that others than Portkeep have in `ip_local_reserved_ports`.
    pub foreign: PortSet,
}

/// Why reservations would use up too many ephemeral ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Exhausted {
    /// `ip_local_port_range`.
    pub range: PortRange,
    /// How many there are without Portkeep.
    pub all: u32,
    /// How many would be left.
    pub left: u32,
    /// How many have to be left.
    pub kept: u32,
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, all, left, kept } = self;
        write!(
            f,
            "this would leave {left} of the {all} ephemeral ports (net.ipv4.ip_local_port_range is {range}), and outgoing \
             connections need at least {kept}"
        )
    }
}

/// How a pool and a namespace's ephemeral range share their ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// The ports to enter into `ip_local_reserved_ports`. Automatic choices no longer get them.
    pub enter: Option<PortRange>,
    /// The ports that are left to automatic choices. Wildcard requests get them last.
    pub avoid: Option<PortRange>,
}

impl Ephemeral {
    /// The ports that automatic choices came from without Portkeep.
    fn choices(&self) -> PortSet {
        PortSet::from(self.range).minus(&self.foreign)
    }

    /// How many of `all` have to be left: 4,096, or half of them if there are fewer than 8,192, but at least one.
    fn kept_of(all: u32) -> u32 {
        KEPT.min(all / 2).max(all.min(1))
    }

    /// Whether automatic choices have enough ports left when Portkeep has `entered` in `ip_local_reserved_ports`.
    ///
    /// # Errors
    ///
    /// The numbers, if too few are left.
    pub fn check(&self, entered: &PortSet) -> Result<(), Exhausted> {
        let choices = self.choices();
        let (all, left) = (choices.len(), choices.minus(entered).len());
        let kept = Self::kept_of(all);
        if left < kept { Err(Exhausted { range: self.range, all, left, kept }) } else { Ok(()) }
    }

    /// The same, with `more` added to what is entered. A change that uses up no ephemeral port is always accepted.
    ///
    /// # Errors
    ///
    /// The numbers, if too few are left.
    pub fn check_more(&self, entered: &PortSet, more: &PortSet) -> Result<(), Exhausted> {
        if self.choices().minus(entered).intersection(more).is_empty() {
            return Ok(());
        }
        self.check(&entered.union(more))
    }

    /// The part of a pool that is entered, and the rest, so that enough ports remain for automatic choices. The upper
    /// part is entered, because the kernel's choices and the pool's search both begin at the lower ports.
    pub fn shared_with(&self, pool: PortRange) -> Shared {
        let (first, last) = (pool.start().max(self.range.start()), pool.last().min(self.range.last()));
        let Ok(both) = PortRange::inclusive(first, last) else { return Shared::default() };
        let choices = self.choices();
        let mut left = choices.len();
        let kept = Self::kept_of(left);
        let mut lowest = None;
        for port in both.iter().rev() {
            if choices.contains(port) {
                if left == kept {
                    break;
                }
                left -= 1;
            }
            lowest = Some(port);
        }
        match lowest {
            None => Shared { enter: None, avoid: Some(both) },
            Some(lowest) => Shared {
                enter: PortRange::inclusive(lowest, last).ok(),
                avoid: lowest.checked_sub(1).and_then(|below| PortRange::inclusive(first, below).ok()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::inclusive(first, last).unwrap()
    }

    fn ephemeral(first: u16, last: u16, foreign: &str) -> Ephemeral {
        Ephemeral { range: range(first, last), foreign: foreign.parse().unwrap() }
    }

    fn entered(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn at_least_4096_ephemeral_ports_are_left() {
        let normal = ephemeral(32768, 60999, "");
        assert_eq!(normal.check(&entered("32768-56903")), Ok(()));
        let refused = normal.check(&entered("32768-56904")).unwrap_err();
        assert_eq!((refused.all, refused.left, refused.kept), (28232, 4095, 4096));
        assert_eq!(
            refused.to_string(),
            "this would leave 4095 of the 28232 ephemeral ports (net.ipv4.ip_local_port_range is 32768-60999), and outgoing \
             connections need at least 4096"
        );
        assert_eq!(normal.check(&entered("1-32767,61000-65535")), Ok(()));
    }

    #[test]
    fn of_a_small_range_half_is_left() {
        let small = ephemeral(40000, 40999, "");
        assert_eq!(small.check(&entered("40000-40499")), Ok(()));
        assert!(small.check(&entered("40000-40500")).is_err());
        // The kernel never chooses ports that others reserved, with or without Portkeep.
        let smaller = ephemeral(40000, 40999, "40100-40999");
        assert_eq!(smaller.check(&entered("40000-40049,40500-40999")), Ok(()));
        assert_eq!(smaller.check(&entered("40000-40050")).unwrap_err().kept, 50);
        assert_eq!(ephemeral(40000, 40000, "").check(&entered("40000")).unwrap_err().kept, 1);
    }

    #[test]
    fn a_request_that_uses_up_nothing_is_not_refused_for_what_others_did() {
        let small = ephemeral(40000, 40999, "");
        let much = entered("40000-40900");
        assert!(small.check(&much).is_err());
        assert_eq!(small.check_more(&much, &entered("80,40900")), Ok(()));
        assert!(small.check_more(&much, &entered("40901")).is_err());
    }

    #[test]
    fn a_pool_beside_the_range_shares_nothing_with_it() {
        assert_eq!(ephemeral(32768, 60999, "").shared_with(range(61000, 65535)), Shared::default());
    }

    #[test]
    fn a_wide_range_leaves_the_whole_pool_alone() {
        let shared = ephemeral(1024, 65535, "").shared_with(range(61000, 65535));
        assert_eq!(shared, Shared { enter: Some(range(61000, 65535)), avoid: None });
        let shared = ephemeral(60000, 62000, "").shared_with(range(61000, 65535));
        assert_eq!(shared, Shared { enter: Some(range(61000, 62000)), avoid: None });
    }

    #[test]
    fn a_range_inside_the_pool_keeps_its_lower_half() {
        let shared = ephemeral(61000, 65535, "").shared_with(range(61000, 65535));
        assert_eq!(shared, Shared { enter: Some(range(63268, 65535)), avoid: Some(range(61000, 63267)) });
        let shared = ephemeral(32768, 60999, "").shared_with(range(32768, 60999));
        assert_eq!(shared, Shared { enter: Some(range(36864, 60999)), avoid: Some(range(32768, 36863)) });
        let shared = ephemeral(61000, 61000, "").shared_with(range(61000, 65535));
        assert_eq!(shared, Shared { enter: None, avoid: Some(range(61000, 61000)) });
    }

    proptest! {
        #[test]
        fn sharing_never_leaves_too_few_and_covers_what_both_have(
            (a, b, c, d) in (1u16.., 1u16.., 1u16.., 1u16..),
            foreign in prop::collection::vec((1u16.., 0u16..3000), 0..4),
        ) {
            let foreign = foreign.iter().filter_map(|(first, more)| PortRange::inclusive(*first, first.saturating_add(*more)).ok());
            let ephemeral = Ephemeral { range: range(a.min(b), a.max(b)), foreign: foreign.collect() };
            let pool = range(c.min(d), c.max(d));
            let shared = ephemeral.shared_with(pool);
            let of = |part: Option<PortRange>| part.map(PortSet::from).unwrap_or_default();
            prop_assert!(ephemeral.check(&of(shared.enter)).is_ok());
            let both = PortSet::from(pool).intersection(&ephemeral.range.into());
            prop_assert_eq!(of(shared.enter).union(&of(shared.avoid)), both);
            prop_assert!(of(shared.enter).intersection(&of(shared.avoid)).is_empty());
            // As many ports as possible are entered.
            if let Some(avoid) = shared.avoid {
                let more = of(shared.enter).union(&PortRange::single(avoid.last()).unwrap().into());
                prop_assert!(ephemeral.check(&more).is_err());
            }
        }
    }
}
