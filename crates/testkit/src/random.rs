//! Choices that follow from a seed only, so that a run can be repeated.

use fastrand::Rng;

/// The one generator of all tests and tools.
#[derive(Clone, Debug)]
pub struct Random(Rng);

impl Random {
    /// Choices from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// Separate choices for each `path` from one seed: for example the number of a process, and how often it was
    /// started.
    pub fn stream(seed: u64, path: &[u64]) -> Self {
        path.iter().fold(Self::new(seed), |mut random, step| Self::new(random.number() ^ step))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// A number below `limit`, 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(..limit.max(1))
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// An index of a slice of this length.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// One of these.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }
}
