//! Requests for parts of blocks are granted, returned, refused and removed by the nodes within seconds. Each write in
//! between is for nobody, and in the way of who removes the request under its version.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long a request has to be what it is until that is said.
const STANDS: Duration = Duration::from_secs(5);

/// What is to be said of requests, by name: the reason, and since when.
#[derive(Debug, Default)]
pub(super) struct Passing(BTreeMap<String, (String, Instant)>);

impl Passing {
    /// Whether a request has been what it is for a while.
    pub(super) fn stands(&mut self, name: &str, reason: &str, now: Instant) -> bool {
        let (known, since) =
            self.0.entry(name.to_owned()).or_insert_with(|| (reason.to_owned(), now));
        if known != reason {
            (*known, *since) = (reason.to_owned(), now);
        }
        now.duration_since(*since) >= STANDS
    }

    /// Forgets the others.
    pub(super) fn keep(&mut self, is_known: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_known(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_is_said() {
        let (mut passing, start) = (Passing::default(), Instant::now());
        let second = Duration::from_secs(1);
        for (at, reason, stands) in [
            (0, "Waiting", false),
            (4, "Waiting", false),
            (5, "Granted", false),
            (9, "Granted", false),
            (10, "Granted", true),
            (60, "Granted", true),
            (61, "Returned", false),
            (62, "Refused", false),
        ] {
            assert_eq!(
                passing.stands("r", reason, start + second * at),
                stands,
                "{at} s: {reason}"
            );
        }
        passing.keep(|name| name != "r");
        assert!(passing.0.is_empty());
        assert!(!passing.stands("r", "Refused", start + second * 67), "it is another one");
    }
}
