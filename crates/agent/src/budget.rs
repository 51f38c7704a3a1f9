//! How much is reported of an account's actions, so that nobody can fill the log.
//!
//! Each account has a number of lines a second; all accounts except root's together have a few times as many. An event
//! that repeats fades. A program that is refused again and again gets a few lines at once, then one after ten seconds,
//! one after a minute, and then one every ten minutes. Grants and ends are no complaints, so one a second is always
//! reported. Every event is counted: each line contains the number of omitted events before it.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    time::{Duration, Instant},
};

const SECOND: Duration = Duration::from_secs(1);
/// So many lines of a fading event are reported at once; the later ones come after the gaps.
const AT_ONCE: u32 = 5;
/// So many lines of an event that does not fade are reported at once, and then one a second.
const STEADY_AT_ONCE: u32 = 100;
const GAPS: [Duration; 4] = [SECOND, Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600)];
/// The limit for all accounts together is so many times the limit for one.
const TOGETHER: u32 = 4;
/// How many kinds of event are remembered, and how many for one account. Beyond that the quiet ones are forgotten. If
/// there are still too many, new events are no longer reported one by one, except root's.
const KNOWN: usize = 1024;
const KNOWN_OF_AN_ACCOUNT: usize = 64;
const ROOT: u32 = 0;

/// How a repeated event is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// More and more rarely.
    Fading,
    /// At least once a second.
    Steady,
}

impl Pace {
    fn at_once(self) -> u32 {
        match self {
            Self::Fading => AT_ONCE,
            Self::Steady => STEADY_AT_ONCE,
        }
    }
}

/// Lines in this second.
#[derive(Debug)]
struct Second {
    since: Instant,
    lines: u32,
}

impl Second {
    fn new(now: Instant) -> Self {
        Self { since: now, lines: 0 }
    }

    /// Whether one more line is below a limit.
    fn fits(&mut self, now: Instant, limit: u32) -> bool {
        if now.duration_since(self.since) >= SECOND {
            *self = Self::new(now);
        }
        self.lines < limit
    }
}

/// An event that repeats.
#[derive(Debug)]
struct Repeat<T> {
    account: u32,
    pace: Pace,
    /// When the next line may come, after `at_once` lines.
    next: Instant,
    at_once: u32,
    gap: usize,
    unreported: u32,
    last: Instant,
    /// The last event.
    sample: T,
}

/// Omitted events of one kind, for a line of their own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut<K, T> {
    pub(super) what: K,
    pub(super) last: T,
    pub(super) count: u32,
}

/// Counts events. `K` is the kind of an event, `T` one occurrence of it.
#[derive(Debug)]
pub(super) struct Budget<K, T> {
    limit: u32,
    accounts: HashMap<u32, Second>,
    together: Second,
    repeats: HashMap<K, Repeat<T>>,
    /// The number of events that could not be remembered.
    unknown: u32,
}

impl<K: Hash + Eq + Clone, T: Clone> Budget<K, T> {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            accounts: HashMap::new(),
            together: Second::new(Instant::now()),
            repeats: HashMap::new(),
            unknown: 0,
        }
    }

    pub(super) fn limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// Whether to report `what` by `account` now. If so, the number of events that were omitted before it. `more` is
    /// the number of omitted events that the event itself contains.
    pub(super) fn report(
        &mut self,
        now: Instant,
        (account, pace): (u32, Pace),
        what: &K,
        more: u32,
        occurrence: T,
    ) -> Option<u32> {
        self.forget_quiet(now);
        if !self.repeats.contains_key(what) && !self.can_remember(account) {
            self.unknown = self.unknown.saturating_add(more).saturating_add(1);
            return None;
        }
        let fits = self.fits(now, account);
        let repeat = match self.repeats.entry(what.clone()) {
            Entry::Occupied(entry) => {
                let repeat = entry.into_mut();
                repeat.sample = occurrence;
                repeat
            }
            Entry::Vacant(entry) => entry.insert(Repeat::new(now, (account, pace), occurrence)),
        };
        let comes = fits && repeat.may_come(now);
        repeat.last = now;
        if comes {
            let unreported = std::mem::take(&mut repeat.unreported).saturating_add(more);
            self.spend(now, account);
            return Some(unreported);
        }
        repeat.unreported = repeat.unreported.saturating_add(more).saturating_add(1);
        None
    }

    /// Count more omitted events of a kind that was reported.
    pub(super) fn add(&mut self, now: Instant, what: Option<&K>, more: u32) {
        match what.and_then(|what| self.repeats.get_mut(what)) {
            Some(repeat) => {
                repeat.unreported = repeat.unreported.saturating_add(more);
                repeat.last = now;
            }
            None => self.unknown = self.unknown.saturating_add(more),
        }
    }

    /// The last event of a kind.
    pub(super) fn last(&self, what: &K) -> Option<&T> {
        self.repeats.get(what).map(|repeat| &repeat.sample)
    }

    /// Omitted events that are due for a line, although no event of the kind came since.
    pub(super) fn due(&mut self, now: Instant) -> Vec<LeftOut<K, T>> {
        let waiting: Vec<(K, u32)> = self
            .repeats
            .iter()
            .filter(|(_, repeat)| repeat.unreported > 0 && now >= repeat.next)
            .map(|(what, repeat)| (what.clone(), repeat.account))
            .collect();
        let mut due = Vec::new();
        for (what, account) in waiting {
            if !self.summary_fits(now, account) {
                continue;
            }
            let Some(repeat) = self.repeats.get_mut(&what) else { continue };
            repeat.wait_longer(now);
            let count = std::mem::take(&mut repeat.unreported);
            due.push(LeftOut { what, last: repeat.sample.clone(), count });
            self.spend(now, account);
        }
        due
    }

    /// The number of events that could not be remembered.
    pub(super) fn unknown(&mut self) -> u32 {
        std::mem::take(&mut self.unknown)
    }

    /// Whether a new kind of event of this account can be remembered.
    pub(super) fn can_remember(&self, account: u32) -> bool {
        let own = self.repeats.values().filter(|repeat| repeat.account == account).count();
        account == ROOT || self.repeats.len() < KNOWN && own < KNOWN_OF_AN_ACCOUNT
    }

    fn fits(&mut self, now: Instant, account: u32) -> bool {
        let limit = self.limit;
        self.fits_under(now, account, limit)
    }

    /// A summary is reported even if events are not reported one by one.
    fn summary_fits(&mut self, now: Instant, account: u32) -> bool {
        let limit = self.limit.max(1);
        self.fits_under(now, account, limit)
    }

    fn fits_under(&mut self, now: Instant, account: u32, limit: u32) -> bool {
        let own = self.accounts.entry(account).or_insert_with(|| Second::new(now)).fits(now, limit);
        own && (account == ROOT || self.together.fits(now, limit.saturating_mul(TOGETHER)))
    }

    fn spend(&mut self, now: Instant, account: u32) {
        self.accounts.entry(account).or_insert_with(|| Second::new(now)).lines += 1;
        if account != ROOT {
            self.together.lines += 1;
        }
    }

    fn forget_quiet(&mut self, now: Instant) {
        if self.accounts.len() > KNOWN {
            self.accounts.retain(|_, second| now.duration_since(second.since) < SECOND);
        }
        if self.repeats.len() >= KNOWN / 2 {
            self.repeats.retain(|_, repeat| repeat.unreported > 0 || now.duration_since(repeat.last) < GAPS[1]);
        }
    }
}

impl<T> Repeat<T> {
    fn new(now: Instant, (account, pace): (u32, Pace), sample: T) -> Self {
        Self { account, pace, next: now, at_once: pace.at_once(), gap: 0, unreported: 0, last: now, sample }
    }

    fn may_come(&mut self, now: Instant) -> bool {
        // After a long enough pause, the event counts as new.
        if self.unreported == 0 && now >= self.next + GAPS[1] {
            self.at_once = self.pace.at_once();
            self.gap = 0;
        }
        if self.at_once > 0 {
            self.at_once -= 1;
            self.next = now + GAPS[self.gap];
            return true;
        }
        if now < self.next {
            return false;
        }
        self.wait_longer(now);
        true
    }

    fn wait_longer(&mut self, now: Instant) {
        if self.pace == Pace::Fading {
            self.gap = (self.gap + 1).min(GAPS.len() - 1);
        }
        self.next = now + GAPS[self.gap];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `milliseconds` times the same event, and the lines that it gets.
    fn lines(budget: &mut Budget<&'static str, u32>, begin: Instant, account: u32, milliseconds: u64) -> (u32, u32) {
        let (mut lines, mut counted) = (0, 0);
        for after in 0..milliseconds {
            let now = begin + Duration::from_millis(after);
            if let Some(left_out) = budget.report(now, (account, Pace::Fading), &"refused", 9, 0) {
                lines += 1;
                counted += left_out + 1;
            }
            for left_out in budget.due(now) {
                lines += 1;
                counted += left_out.count;
            }
        }
        (lines, counted)
    }

    #[test]
    fn a_storm_fades_and_is_counted_in_full() {
        let (mut budget, begin) = (Budget::new(20), Instant::now());
        let (first, counted) = lines(&mut budget, begin, 7, 1000);
        assert_eq!((first, counted), (AT_ONCE, 10 * AT_ONCE));
        let (more, counted) = lines(&mut budget, begin + SECOND, 7, 75_000);
        assert!(more <= 4, "{more} lines");
        assert!(counted > 700_000, "{counted}");
        // The last omitted events are reported as well.
        let end = begin + Duration::from_secs(3600);
        let rest: u32 = budget.due(end).iter().map(|left_out| left_out.count).sum();
        assert_eq!(counted + rest + 10 * AT_ONCE, 10 * 76_000);
        assert_eq!(budget.due(end + SECOND), []);
    }

    #[test]
    fn a_quiet_event_is_reported_again() {
        let (mut budget, begin) = (Budget::new(20), Instant::now());
        lines(&mut budget, begin, 7, 100);
        let later = begin + Duration::from_secs(3600);
        budget.due(later);
        assert_eq!(budget.report(later + GAPS[3] + GAPS[1], (7, Pace::Fading), &"refused", 0, 0), Some(0));
    }

    #[test]
    fn one_account_has_its_share_and_root_its_own() {
        let (mut budget, now) = (Budget::new(3), Instant::now());
        let reported = |budget: &mut Budget<u32, ()>, account: u32, things: std::ops::Range<u32>| {
            things.filter(|thing| budget.report(now, (account, Pace::Fading), thing, 0, ()).is_some()).count()
        };
        assert_eq!(reported(&mut budget, 7, 0..50), 3);
        assert_eq!(
            (8..100).map(|account| reported(&mut budget, account, account * 100..account * 100 + 5)).sum::<usize>(),
            9
        );
        assert_eq!(reported(&mut budget, 0, 20_000..20_005), 3);
    }

    #[test]
    fn the_memory_of_events_is_bounded() {
        let (mut budget, now) = (Budget::new(20), Instant::now());
        for thing in 0..5000u32 {
            budget.report(now, (thing, Pace::Fading), &thing, 0, ());
        }
        assert!(budget.repeats.len() <= KNOWN && budget.unknown() > 0);
    }

    #[test]
    fn a_steady_event_is_reported_once_a_second() {
        let (mut budget, begin) = (Budget::new(1000), Instant::now());
        let reported = (0..100_000u64).filter(|after| {
            let now = begin + Duration::from_millis(*after);
            let reported = budget.report(now, (7, Pace::Steady), &"granted", 0, ()).is_some();
            budget.due(now);
            reported
        });
        assert!(reported.count() as u32 <= STEADY_AT_ONCE + 101);
        // At a low rate every event is reported, without end.
        let mut budget = Budget::new(20);
        assert!((0..1000u64).all(|after| {
            budget.report(begin + SECOND * after as u32, (7, Pace::Steady), &"granted", 0, ()).is_some()
        }));
    }

    #[test]
    fn events_that_are_counted_later_are_reported() {
        let (mut budget, begin) = (Budget::new(20), Instant::now());
        assert_eq!(budget.report(begin, (7, Pace::Fading), &"refused", 0, 1), Some(0));
        budget.add(begin, Some(&"refused"), 290);
        budget.add(begin, Some(&"unknown"), 3);
        budget.add(begin, None, 2);
        assert_eq!(budget.due(begin + SECOND), [LeftOut { what: "refused", last: 1, count: 290 }]);
        assert_eq!((budget.due(begin + 2 * SECOND), budget.unknown()), (vec![], 5));
    }

    #[test]
    fn without_lines_there_are_summaries() {
        let (mut budget, now) = (Budget::new(0), Instant::now());
        assert_eq!(budget.report(now, (7, Pace::Fading), &"refused", 4, 0), None);
        assert_eq!(budget.due(now + SECOND), [LeftOut { what: "refused", last: 0, count: 5 }]);
    }
}
