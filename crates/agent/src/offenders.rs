//! Counts the refusals that the BPF programs count and do not report.
//!
//! The programs report ten refused binds of a process in a second. The others they count in the element of the process
//! in the map `offenders`, and add the number to its next event. This event may be long in coming, or never come. So
//! the elements are read from time to time. They are not changed: that could lose a refusal of the same moment. The
//! number that was counted here is subtracted from the event instead.

use std::{collections::HashMap, time::Duration};

use portkeep_kernel::{MapAccessError, Maps};

/// How many processes are remembered: as many as the map has elements. A change during a reading may show one twice.
const KNOWN: usize = 4096;
/// The programs begin to report again after this time.
const PERIOD: u64 = Duration::from_secs(1).as_nanos() as u64;

/// A process that was refused. `K` is the kind of its refusals.
#[derive(Debug)]
struct Known<K> {
    /// When the period began that was read last, nanoseconds of `CLOCK_MONOTONIC`.
    second: u64,
    /// How many unreported refusals of this period have been counted.
    counted: u32,
    /// The same of the period before. The event that ends it has not been read.
    before: u32,
    kind: Option<K>,
}

/// Processes by their numbers.
#[derive(Debug)]
pub(super) struct Offenders<K> {
    known: HashMap<u32, Known<K>>,
    /// The programs' counter of all refusals when the map was read last.
    refused: u64,
    /// The programs count a refusal there first and in the map later. So the map is read once more.
    again: bool,
}

impl<K: Clone> Offenders<K> {
    /// Refusals up to now were for an earlier agent.
    pub(super) fn new(maps: &Maps) -> Self {
        let mut offenders = Self { known: HashMap::new(), refused: 0, again: true };
        // Refusals that cannot be read now are counted later.
        let _ = offenders.read(maps);
        offenders
    }

    /// An event of a process: how many refusals before it have neither been reported nor counted.
    pub(super) fn event(&mut self, pid: u32, when: u64, untold: u32, kind: &K) -> u32 {
        if !self.known.contains_key(&pid) && self.known.len() >= 2 * KNOWN {
            return untold;
        }
        let known = self.known.entry(pid).or_insert(Known { second: 0, counted: 0, before: 0, kind: None });
        known.kind = Some(kind.clone());
        if untold == 0 {
            return 0;
        }
        // The event has the number of the period before its own.
        let counted = std::mem::take(&mut known.before);
        let counted =
            if when >= known.second.saturating_add(PERIOD) { std::mem::take(&mut known.counted) } else { counted };
        untold.saturating_sub(counted)
    }

    /// Read the map, if a bind was refused since the last time. Returns how many refusals came to each kind; `None` is
    /// the kind of processes whose events were lost.
    pub(super) fn read(&mut self, maps: &Maps) -> Result<Vec<(Option<K>, u32)>, MapAccessError> {
        let refused = maps.counters()?.refused;
        let changed = std::mem::replace(&mut self.refused, refused) != refused;
        if !std::mem::replace(&mut self.again, changed) && !changed {
            return Ok(Vec::new());
        }
        let mut elements = maps.offenders();
        let mut seen = HashMap::new();
        for element in elements.by_ref().take(2 * KNOWN) {
            let (pid, element) = element?;
            seen.insert(pid, element);
        }
        // The kernel begins again where an element was replaced. Then not all have been seen.
        if elements.next().is_none() {
            self.known.retain(|pid, _| seen.contains_key(pid));
        }
        Ok(seen
            .into_iter()
            .filter_map(|(pid, offender)| self.count(pid, offender.second, offender.unreported()))
            .collect())
    }

    fn count(&mut self, pid: u32, second: u64, untold: u32) -> Option<(Option<K>, u32)> {
        let known = self.known.entry(pid).or_insert(Known { second, counted: 0, before: 0, kind: None });
        if known.second != second {
            known.before = std::mem::take(&mut known.counted);
            known.second = second;
        }
        let more = untold.saturating_sub(known.counted);
        known.counted = known.counted.max(untold);
        (more > 0).then(|| (known.kind.clone(), more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 7;

    fn offenders() -> Offenders<&'static str> {
        Offenders { known: HashMap::new(), refused: 0, again: true }
    }

    /// A process is refused 15 times in one second and 12 times in the next, whenever the map and the events are read.
    #[test]
    fn each_refusal_is_counted_once() {
        let (first, second) = (5 * PERIOD, 6 * PERIOD + 3);
        // Whether the map is read: in the middle of the first second, at its end, before the event that begins the
        // second one is read, and after it.
        for reads in 0..16 {
            let mut offenders = offenders();
            let mut counted = 0;
            let mut read = |offenders: &mut Offenders<_>, bit: u32, second, untold| {
                if reads >> bit & 1 == 1 {
                    counted += offenders.count(PID, second, untold).map_or(0, |(_, more)| more);
                }
            };
            let mut reported = 0;
            for _ in 0..10 {
                reported += 1 + offenders.event(PID, first, 0, &"nginx");
            }
            read(&mut offenders, 0, first, 2);
            read(&mut offenders, 1, first, 5);
            read(&mut offenders, 2, second, 2);
            reported += 1 + offenders.event(PID, second + 1, 5, &"nginx");
            for _ in 1..10 {
                reported += 1 + offenders.event(PID, second + 1, 0, &"nginx");
            }
            read(&mut offenders, 3, second, 2);
            let rest = offenders.count(PID, second, 2).map_or(0, |(_, more)| more);
            assert_eq!(counted + reported + rest, 15 + 12, "{reads:b}");
        }
    }

    #[test]
    fn the_refusals_of_a_process_without_events_are_counted_once() {
        let mut offenders = offenders();
        assert_eq!(offenders.count(PID, 9, 3), Some((None, 3)));
        assert_eq!(offenders.count(PID, 9, 3), None);
        // Another process with its number.
        assert_eq!(offenders.event(PID, 9 + PERIOD, 3, &"nginx"), 0);
        assert_eq!(offenders.count(PID, 9 + PERIOD, 4), Some((Some("nginx"), 4)));
    }
}
