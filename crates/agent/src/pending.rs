//! Requests that wait for the agent, in turn by account.
//!
//! An account may have as many requests waiting as its quota has ports, and each may cost a walk through `/proc`. So each
//! account has one request handled before the next account's turn, and root's come first.

use std::collections::{BTreeMap, HashSet, VecDeque};

/// A request, and threads or processes that are probably in its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Id of the reservation.
    pub(super) id: u32,
    pub(super) hints: Vec<u32>,
}

/// The waiting claims. Bounded by the number of reservations there can be: each is in it once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: BTreeMap<u64, VecDeque<Waiting>>,
    known: HashSet<u32>,
    /// The account whose turn was last.
    last: u64,
}

/// Root's account.
const ROOT: u64 = 0;

impl Queue {
    pub(super) fn push(&mut self, account: u64, waiting: Waiting) {
        if self.known.insert(waiting.id) {
            self.lines.entry(account).or_default().push_back(waiting);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The next one.
    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let account = if self.lines.contains_key(&ROOT) {
            ROOT
        } else {
            let after = self.last.checked_add(1).and_then(|next| self.lines.range(next..).next());
            *after.or_else(|| self.lines.first_key_value())?.0
        };
        if account != ROOT {
            self.last = account;
        }
        let line = self.lines.get_mut(&account)?;
        let waiting = line.pop_front()?;
        if line.is_empty() {
            self.lines.remove(&account);
        }
        self.known.remove(&waiting.id);
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(requests: &[(u64, u32)]) -> Vec<u32> {
        let mut queue = Queue::default();
        for (account, id) in requests {
            queue.push(*account, Waiting { id: *id, hints: Vec::new() });
        }
        std::iter::from_fn(|| queue.pop()).map(|waiting| waiting.id).collect()
    }

    #[test]
    fn accounts_take_turns_and_root_is_first() {
        assert_eq!(order(&[(7, 1), (7, 2), (7, 3), (8, 4), (9, 5), (0, 6)]), [6, 1, 4, 5, 2, 3]);
        assert_eq!(order(&[(u64::MAX, 1), (u64::MAX, 2), (7, 3)]), [3, 1, 2]);
    }

    #[test]
    fn a_request_is_in_it_once() {
        let mut queue = Queue::default();
        let waiting = Waiting { id: 1, hints: vec![5] };
        queue.push(7, waiting.clone());
        queue.push(7, Waiting { id: 1, hints: Vec::new() });
        assert_eq!((queue.pop(), queue.pop(), queue.is_empty()), (Some(waiting.clone()), None, true));
        queue.push(7, waiting.clone());
        assert_eq!(queue.pop(), Some(waiting));
    }
}
