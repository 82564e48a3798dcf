//! When a hold timer that has expired may end its session.

use std::time::{Duration, Instant};

/// How long what a peer has said may take from its socket to the speaker, once this process runs: readers are
/// tasks of their own, on other threads too, and wait for the runtime to look at the socket.
const GRACE: Duration = Duration::from_millis(100);

/// Since when hold timers are seen to have expired. A process that was stopped, or had too much to do, finds the
/// timer expired and the KEEPALIVE unread, so the time starts when it looks, not when the timer expired.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    since: Option<Instant>,
}

impl Grace {
    /// How much longer peers are to be heard before timers are acted on; zero if no longer, or if no hold timer
    /// `has_expired`. `now` never goes back.
    pub(crate) fn left(&mut self, has_expired: bool, now: Instant) -> Duration {
        if !has_expired {
            self.since = None;
            return Duration::ZERO;
        }
        let since = *self.since.get_or_insert(now);
        GRACE.saturating_sub(now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_heard_for_a_while_each_time_that_a_hold_timer_is_seen_to_have_expired() {
        let start = Instant::now();
        let mut grace = Grace::default();
        let mut left = |expired, at| {
            let left = grace.left(expired, start + Duration::from_millis(at));
            u64::try_from(left.as_millis()).unwrap()
        };
        assert_eq!(left(false, 0), 0);
        assert_eq!(left(true, 5000), 100);
        assert_eq!(left(true, 5030), 70);
        assert_eq!(left(true, 5100), 0);
        assert_eq!(left(true, 9000), 0, "no other one before the timer was acted on");
        assert_eq!(left(false, 9001), 0);
        assert_eq!(left(true, 9002), 100);
    }
}
