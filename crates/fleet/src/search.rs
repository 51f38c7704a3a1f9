//! Which block a request gets: next-fit over the fleet's range, so that a number that was just given up is the last to
//! be given again.

use portkeep::{Align, PortRange};

/// The first free block at or after `cursor`, or else from the beginning. `taken` is in any order. Ports are in host
/// byte order.
pub(crate) fn next_fit(
    range: PortRange,
    cursor: u16,
    taken: &[PortRange],
    count: u16,
    align: Align,
) -> Option<PortRange> {
    let cursor = if range.contains(cursor) { cursor } else { range.start() };
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    first_fit(range, cursor, &taken, count, align).or_else(|| first_fit(range, range.start(), &taken, count, align))
}

fn first_fit(range: PortRange, from: u16, taken: &[PortRange], count: u16, align: Align) -> Option<PortRange> {
    let aligned = |start: u32| start.next_multiple_of(u32::from(align.get()));
    let mut start = aligned(from.into());
    for block in taken {
        if start + u32::from(count) <= u32::from(block.start()) {
            break;
        }
        if start <= u32::from(block.last()) {
            start = aligned(u32::from(block.last()) + 1);
        }
    }
    let found = PortRange::new(u16::try_from(start).ok()?, count).ok()?;
    (found.last() <= range.last()).then_some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    #[test]
    fn the_search_goes_round() {
        let range = block("100-109");
        let next = |cursor, taken: &[PortRange], count| next_fit(range, cursor, taken, count, Align::ANY);
        assert_eq!(next(0, &[], 4), Some(block("100-103")));
        assert_eq!(next(104, &[], 4), Some(block("104-107")));
        assert_eq!(next(108, &[], 4), Some(block("100-103")));
        assert_eq!(next(108, &[block("101")], 4), Some(block("102-105")));
        assert_eq!(next(0, &[block("103"), block("107")], 4), None);
    }

    proptest! {
        #[test]
        fn a_block_is_found_if_and_only_if_there_is_one(
            taken in proptest::collection::vec((1u16..60, 1u16..6), 0..12),
            cursor in 0u16..80, count in 1u16..9, shift in 0u32..4,
        ) {
            let range = block("10-60");
            let taken: Vec<_> =
                taken.into_iter().map(|(start, count)| PortRange::new(start, count).unwrap()).collect();
            let align = Align::new(1 << shift).unwrap();
            let fits = |start: u16| {
                let wanted = PortRange::new(start, count).unwrap();
                let free = !taken.iter().any(|block| block.overlaps(wanted));
                free && align.allows(start) && wanted.last() <= range.last()
            };
            let found = next_fit(range, cursor, &taken, count, align);
            let after = (cursor.max(10)..=60).filter(|_| cursor <= 60).find(|start| fits(*start));
            let expected = after.or_else(|| (10..=60).find(|start| fits(*start)));
            prop_assert_eq!(found.map(PortRange::start), expected);
        }
    }
}
