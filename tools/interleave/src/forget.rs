//! User space removes the words of a quiet namespace: it checks that there is no reservation and nothing in the word, seals
//! the word by the administrator's program, waits until all programs that run have ended, looks once more, and removes
//! the word or opens it again. At commit 9edba43 it waited first, looked, and removed. The quota of an account goes in the
//! same way, but the program that seals it makes the first check.

use crate::{
    machine::Machine,
    memory::Access,
    scenario::{Call, Line, Scenario},
    state::State,
};

impl Machine {
    /// The map and the element that are forgotten: the TCP word of a port, or the quota of an account.
    fn forgotten(&mut self, scenario: &Scenario, line: &Line) -> (&'static str, u32) {
        let (map, key) = match line.call {
            Call::Forget { port } => {
                let mut key = netns_of(scenario).to_le_bytes().to_vec();
                key.extend((port / 64).to_le_bytes());
                key.extend([1, 0, 0, 0, 0, 0]);
                ("words", key)
            }
            Call::ForgetQuota { account } => ("quotas", account.to_le_bytes().to_vec()),
            _ => return ("words", 0),
        };
        let number = self.program.map(map).unwrap_or(0);
        (map, self.names.number(number as u16, &key))
    }

    pub(crate) fn forget_cells(
        &mut self,
        scenario: &Scenario,
        line: &Line,
        removes: bool,
    ) -> Vec<(u32, usize, Access)> {
        let (map, element) = self.forgotten(scenario, line);
        let spaces = self.program.map("spaces").unwrap_or(0);
        let space = self.names.number(spaces as u16, &netns_of(scenario).to_le_bytes());
        let size =
            |map: &str| self.program.map(map).map_or(0, |n| self.program.maps[n].value_size.div_ceil(8) as usize);
        let (of_element, of_space) = (size(map), size("spaces"));
        let mut cells: Vec<_> = (0..=of_element).map(|cell| (element, cell, Access::Load)).collect();
        if removes {
            cells.push((element, of_element, Access::Store));
            return cells;
        }
        cells.extend((0..=of_space).map(|cell| (space, cell, Access::Load)));
        cells
    }

    /// True if nothing has been counted in it meanwhile. If something has, the word is opened again.
    pub(crate) fn remove_word(&mut self, state: &mut State, scenario: &Scenario, line: &Line) -> bool {
        let (_, word) = self.forgotten(scenario, line);
        let key = self.names.list[word as usize].1.clone();
        let unused = self.get(state, "words", &key, "bound") == 0 && self.get(state, "words", &key, "aside") == 0;
        if unused || !self.requests_lose {
            state.shared.remove(word);
        }
        unused || !self.requests_lose
    }

    /// True if nothing is charged to it. If something is, the quota is opened again.
    pub(crate) fn remove_quota(&mut self, state: &mut State, scenario: &Scenario, line: &Line) -> bool {
        let (_, quota) = self.forgotten(scenario, line);
        let key = self.names.list[quota as usize].1.clone();
        let unused = ["words", "pending", "limit"].iter().all(|field| self.get(state, "quotas", &key, field) == 0);
        if unused {
            state.shared.remove(quota);
        }
        unused
    }

    pub(crate) fn last_use(&mut self, state: &State, scenario: &Scenario) -> u64 {
        self.get(state, "spaces", &netns_of(scenario).to_le_bytes(), "last")
    }

    /// As user space looks: not used since, no reservation, and nothing in the word.
    pub(crate) fn is_quiet(&mut self, state: &State, scenario: &Scenario, line: &Line, noted: u64) -> bool {
        let netns = netns_of(scenario);
        let reserved = (1..8u32).any(|id| {
            let key = id.to_le_bytes();
            self.get(state, "reservations", &key, "token") != 0
                && self.get(state, "reservations", &key, "netns") == netns
        });
        let (_, word) = self.forgotten(scenario, line);
        let key = self.names.list[word as usize].1.clone();
        let vacant = ["reserved", "lingering", "aside", "bound"].iter().all(|f| self.get(state, "words", &key, f) == 0);
        !reserved && vacant && state.shared.present(word) && self.last_use(state, scenario) == noted
    }
}

/// The namespace that `forget` is about: that of the scenario's first socket.
pub(crate) fn netns_of(scenario: &Scenario) -> u64 {
    scenario.sockets.first().map_or(crate::world::HOME, |socket| socket.netns)
}
