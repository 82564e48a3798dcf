//! Callers that are no peers: all of them are counted, and one a minute is told of.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use tracing::warn;

/// Anybody may connect as often as he likes, and the log is not his to fill.
const REMINDER: Duration = Duration::from_secs(60);

/// How many there were.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    refused: u64,
    /// Since the last one that was told of.
    untold: u64,
    told: Option<Instant>,
}

impl Strangers {
    /// One more was refused.
    pub(crate) fn refuse(&mut self, remote: IpAddr, now: Instant) {
        if let Some(count) = self.next(now) {
            warn!(
                %remote, count,
                "a caller was told Cease/Connection Rejected (6/5), as no peer has its address; make a \
                 BGPPeer for it if it should be one"
            );
        }
    }

    /// One more: if it is to be told of, how many were refused since the one before it that was.
    fn next(&mut self, now: Instant) -> Option<u64> {
        self.refused += 1;
        self.untold += 1;
        if self.told.is_some_and(|told| now.duration_since(told) < REMINDER) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }

    /// All that were refused.
    pub(crate) const fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_counted_and_one_a_minute_is_told_of() {
        let start = Instant::now();
        let mut strangers = Strangers::default();
        let seconds = [0, 1, 59, 60, 61, 300];
        let told = seconds.map(|at| strangers.next(start + Duration::from_secs(at)));
        assert_eq!(told, [Some(1), None, None, Some(3), None, Some(2)]);
        assert_eq!(strangers.refused(), 6);
    }
}
