//! Choices that come from a seed and nothing else.

/// xorshift64.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// `path` distinguishes streams of choices: the number of a process, how often it was started.
    pub(super) fn new(seed: u64, path: &[u64]) -> Self {
        let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
        for step in path {
            // splitmix64, so that neighbouring numbers have nothing in common.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_add(*step);
            state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            state ^= state >> 31;
        }
        Self(state | 1)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }

    /// True once in `n` times.
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }
}
