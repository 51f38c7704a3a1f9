//! Requests that wait for the agent, handled in turn by account.
//!
//! An account may have as many waiting requests as its quota has ports, and each may require a search through `/proc`.
//! So one request of each account is handled before the next account's turn, and root's come first.

use std::collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry};

use portkeep_core::Token;

/// A request, and threads or processes that are probably in its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Id of the reservation's entry.
    pub(super) id: u32,
    /// The request itself: once it has ended, another request can have its entry.
    pub(super) token: Token,
    pub(super) hints: Vec<u32>,
}

/// The requests that wait. The number of entries in the kernel limits it, since each entry is in it once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Ids, by account.
    lines: BTreeMap<u64, VecDeque<u32>>,
    /// The latest request of each id.
    latest: HashMap<u32, Waiting>,
    /// The account whose turn was last.
    last: u64,
}

/// Root's account.
const ROOT: u64 = 0;

impl Queue {
    pub(super) fn push(&mut self, account: u64, waiting: Waiting) {
        match self.latest.entry(waiting.id) {
            Entry::Vacant(vacant) => {
                self.lines.entry(account).or_default().push_back(waiting.id);
                vacant.insert(waiting);
            }
            Entry::Occupied(mut known) if known.get().token == waiting.token => {
                let hints = &mut known.get_mut().hints;
                let more = waiting.hints.into_iter().filter(|hint| !hints.contains(hint)).collect::<Vec<u32>>();
                hints.extend(more);
            }
            Entry::Occupied(mut earlier) => _ = earlier.insert(waiting),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The next request.
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
        let id = line.pop_front()?;
        if line.is_empty() {
            self.lines.remove(&account);
        }
        self.latest.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(id: u32, token: u64, hints: &[u32]) -> Waiting {
        Waiting { id, token: Token::new(token).unwrap(), hints: hints.to_vec() }
    }

    fn order(requests: &[(u64, u32)]) -> Vec<u32> {
        let mut queue = Queue::default();
        for (account, id) in requests {
            queue.push(*account, waiting(*id, 1, &[]));
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
        queue.push(7, waiting(1, 1, &[5]));
        queue.push(7, waiting(1, 1, &[6, 5]));
        assert_eq!((queue.pop(), queue.pop(), queue.is_empty()), (Some(waiting(1, 1, &[5, 6])), None, true));
        queue.push(7, waiting(1, 1, &[5]));
        assert_eq!(queue.pop(), Some(waiting(1, 1, &[5])));
    }

    #[test]
    fn a_later_request_of_an_entry_takes_the_place_of_the_earlier() {
        let mut queue = Queue::default();
        queue.push(7, waiting(1, 1, &[5]));
        queue.push(7, waiting(1, 2, &[6]));
        assert_eq!((queue.pop(), queue.pop()), (Some(waiting(1, 2, &[6])), None));
    }
}
