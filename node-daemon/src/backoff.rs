//! Pauses that grow while something fails, each a little different from node to node: what many nodes
//! lost at one moment they do not ask for at one moment.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

/// When to try again what failed.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    /// The next pause, before it is made uneven.
    pause: Duration,
    /// When it may be tried again; `None` at once.
    due: Option<Instant>,
}

impl Backoff {
    /// A pause of about `first` after a failure, twice as long after each further one in a row, up to
    /// `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest: longest.max(first), pause: first, due: None }
    }

    /// It failed: the pause that is to be made now.
    pub(crate) fn failed(&mut self) -> Duration {
        let pause = jittered(self.pause);
        self.pause = (self.pause * 2).min(self.longest);
        self.due = Some(Instant::now() + pause);
        pause
    }

    /// It works again.
    pub(crate) fn succeeded(&mut self) {
        self.pause = self.first;
        self.due = None;
    }

    /// Whether the pause is over, if there is one.
    pub(crate) fn is_due(&self) -> bool {
        self.due.is_none_or(|due| Instant::now() >= due)
    }
}

/// Half of a pause to all of it.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause / 2 + spread(pause / 2)
}

/// Any part of a time, so that what happens to all nodes at one moment is not told by all at one moment.
pub(crate) fn spread(over: Duration) -> Duration {
    // The seed of the standard library's hash tables: another one for each.
    let random = RandomState::new().hash_one(0_u8);
    let share = (random % 1000) as u32;
    over * share / 1000
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_start_again() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 30);
        assert!(backoff.is_due());
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            let pause = backoff.failed();
            let most = second * expected;
            assert!(pause >= most / 2 && pause <= most, "{pause:?} of {most:?}");
            assert!(!backoff.is_due());
        }
        backoff.succeeded();
        assert!(backoff.is_due());
        assert!(backoff.failed() <= second);
    }

    #[test]
    fn a_moment_is_spread_over_the_time_and_no_longer() {
        let over = Duration::from_secs(1000);
        let parts: BTreeSet<_> = (0..64).map(|_| spread(over)).collect();
        assert!(parts.len() > 32, "{parts:?}");
        assert!(parts.iter().all(|part| *part < over), "{parts:?}");
        let halves = parts.iter().filter(|part| **part < over / 2).count();
        assert!((1..parts.len()).contains(&halves), "one half alone: {parts:?}");
        assert_eq!(spread(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn no_two_pauses_are_the_same() {
        let pauses: BTreeSet<_> = (0..32).map(|_| jittered(Duration::from_secs(1000))).collect();
        assert!(pauses.len() > 16, "{pauses:?}");
    }
}
