//! When a node counts as gone: its Node was removed, and its daemon has said nothing since for the grace
//! period. The same for both datastores; the clock is the caller's.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use twill_k8s_api::files::Lease;

/// How many renewals a daemon has to have missed at the least, however short the grace period is.
const RENEWALS: u64 = 3;

/// The nodes without a Node, each with how long it was seen to be silent.
#[derive(Debug, Default)]
pub(crate) struct Absences {
    missing: BTreeMap<String, Absence>,
}

/// A node without a Node, as far as it was seen.
#[derive(Debug)]
struct Absence {
    since: Instant,
    /// What its daemon said last: a change means that it lives.
    lease: Option<Lease>,
}

impl Absences {
    /// Notes who has no Node now, with what their daemons said last, and forgets who has one again.
    /// Answers who is new among them.
    pub(crate) fn note(
        &mut self,
        now: Instant,
        absent: BTreeMap<String, Option<Lease>>,
    ) -> Vec<String> {
        self.missing.retain(|node, _| absent.contains_key(node));
        let mut new = Vec::new();
        for (node, lease) in absent {
            match self.missing.get_mut(&node) {
                Some(seen) if seen.lease == lease => {}
                Some(seen) => *seen = Absence { since: now, lease },
                None => {
                    new.push(node.clone());
                    self.missing.insert(node, Absence { since: now, lease });
                }
            }
        }
        new
    }

    /// Who has been gone for the grace period, with the lease that was not renewed for it.
    pub(crate) fn gone(&self, now: Instant, grace: Duration) -> Vec<(String, Option<Lease>)> {
        let is_gone = |seen: &Absence| {
            let seconds = seen.lease.as_ref().map_or(0, |lease| lease.seconds);
            let renewals = Duration::from_secs(seconds.saturating_mul(RENEWALS));
            now.saturating_duration_since(seen.since) >= grace.max(renewals)
        };
        let gone = self.missing.iter().filter(|(_, seen)| is_gone(seen));
        gone.map(|(node, seen)| (node.clone(), seen.lease.clone())).collect()
    }

    /// Nothing of this one is left.
    pub(crate) fn forget(&mut self, node: &str) {
        self.missing.remove(node);
    }

    /// As if nobody had been looked at yet.
    pub(crate) fn clear(&mut self) {
        self.missing.clear();
    }
}

/// Whether there was ever a Node of this name, as far as can be told: who never had one does without.
pub(crate) fn had_node(lease: Option<&Lease>) -> bool {
    lease.is_none_or(|lease| lease.had_node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(seconds: u64, renewed: &str) -> Option<Lease> {
        let (node, instance) = ("a".to_owned(), "i".to_owned());
        Some(Lease { node, instance, seconds, had_node: true, renewed: renewed.to_owned() })
    }

    #[test]
    fn who_is_gone_in_virtual_time() {
        /// What is seen at a second: no Node and this lease; or a Node.
        type Seen = (u64, Option<Option<Lease>>);
        let cases: &[(&str, u64, &[Seen], Option<u64>)] = &[
            (
                "never had a lease",
                10,
                &[(0, Some(None)), (9, Some(None)), (10, Some(None))],
                Some(10),
            ),
            (
                "renewed until 8",
                10,
                &[
                    (0, Some(lease(1, "0"))),
                    (8, Some(lease(1, "8"))),
                    (17, Some(lease(1, "8"))),
                    (18, Some(lease(1, "8"))),
                ],
                Some(18),
            ),
            (
                "a short grace waits for three renewals",
                1,
                &[
                    (0, Some(lease(60, "0"))),
                    (179, Some(lease(60, "0"))),
                    (180, Some(lease(60, "0"))),
                ],
                Some(180),
            ),
            (
                "a Node that comes back begins again",
                10,
                &[(0, Some(None)), (9, None), (10, Some(None)), (19, Some(None))],
                None,
            ),
            (
                "a lease that is removed is a change",
                10,
                &[(0, Some(lease(1, "0"))), (10, Some(None))],
                None,
            ),
        ];
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        for (what, grace, seen, expected) in cases {
            let mut absences = Absences::default();
            let mut found = None;
            for (second, absent) in *seen {
                let absent = absent.clone().map(|lease| ("a".to_owned(), lease));
                absences.note(at(*second), absent.into_iter().collect());
                let gone = absences.gone(at(*second), Duration::from_secs(*grace));
                if !gone.is_empty() && found.is_none() {
                    found = Some(*second);
                }
            }
            assert_eq!(found, *expected, "{what}");
        }
    }

    #[test]
    fn who_never_had_a_node_does_without() {
        assert!(had_node(None));
        let shy = lease(1, "0").map(|lease| Lease { had_node: false, ..lease });
        assert!(!had_node(shy.as_ref()));
    }
}
