//! The end of a call's patience.

use std::time::{Duration, Instant};

/// A moment by which something has to be over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// `time` after something began.
    pub(crate) fn since(began: Instant, time: Duration) -> Self {
        Self(began + time)
    }

    /// `time` from now.
    pub(crate) fn after(time: Duration) -> Self {
        Self::since(Instant::now(), time)
    }

    /// This one, or one that is `time` away if that is sooner.
    pub(crate) fn at_most(self, time: Duration) -> Self {
        Self(self.0.min(Instant::now() + time))
    }

    /// `time` before this one, for work that another has to follow; never less than half of what is
    /// left.
    pub(crate) fn before(self, time: Duration) -> Self {
        Self(self.0 - time.min(self.left() / 2))
    }

    /// This one, or one that is `time` away if that is later.
    pub(crate) fn at_least(self, time: Duration) -> Self {
        Self(self.0.max(Instant::now() + time))
    }

    /// Zero when it is over.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_deadline_counts_from_the_beginning() {
        let began = Instant::now() - 5 * SECOND;
        assert_eq!(Deadline::since(began, 2 * SECOND).left(), Duration::ZERO);
        let left = Deadline::since(began, 60 * SECOND).left();
        assert!(left <= 55 * SECOND && left > 50 * SECOND, "{left:?}");
    }

    #[test]
    fn what_follows_has_its_share() {
        let Deadline(end) = Deadline::after(60 * SECOND);
        assert_eq!(Deadline(end).before(2 * SECOND).0, end - 2 * SECOND);
        let left = Deadline(end).before(100 * SECOND).left();
        assert!(left > 29 * SECOND && left <= 30 * SECOND, "{left:?}");
        let over = Deadline(Instant::now());
        assert_eq!(over.before(SECOND).0, over.0);
        assert!(over.at_least(SECOND).0 > over.0);
        assert_eq!(Deadline(end).at_least(SECOND).0, end);
    }
}
