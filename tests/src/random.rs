//! Random choices that can be made again: the seed is in the messages of failures.

use std::{
    env, fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// Names the seed to use again.
const SEED: &str = "TWILL_SEED";

/// A small generator (xorshift), good enough to pick moments and candidates.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// With the seed of `TWILL_SEED`, else another one each time.
    pub fn from_environment() -> Self {
        let given = env::var(SEED).ok().and_then(|text| text.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::new(given.unwrap_or_else(|| u64::from(now().subsec_nanos())))
    }

    /// With this seed.
    pub fn new(seed: u64) -> Self {
        // Never zero, which would stay zero; and seeds close together begin far apart.
        Self { seed, state: (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1 }
    }

    /// A generator of its own for the `number`-th of several threads.
    pub fn fork(&self, number: u64) -> Self {
        let mut fork = Self::new(self.seed.wrapping_add(number.wrapping_mul(0x1000_0001)));
        fork.seed = self.seed;
        fork
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// One of 0 to `end` - 1; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let number = self.next() >> 11;
        usize::try_from(number).unwrap_or_default().checked_rem(end).unwrap_or_default()
    }

    /// True in one of `times` cases.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

impl fmt::Display for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "repeat with {SEED}={}", self.seed)
    }
}
