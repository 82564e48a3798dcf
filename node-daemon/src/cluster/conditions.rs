//! Conditions as they stand in an object's own status.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use twill_k8s_api::Condition;

/// The longest message, in octets: the definitions allow more, but nobody reads it.
const MESSAGE: usize = 4096;

/// A condition in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stated {
    #[serde(flatten)]
    pub(super) condition: Condition,
    /// The generation of the object that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) observed_generation: Option<i64>,
    /// Since when the status is what it is, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_transition_time: Option<String>,
}

/// How many nodes say what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Counts {
    /// Nodes that use the object as it stands.
    pub(super) accepted: u32,
    /// Nodes that refuse it, or a part of it.
    pub(super) refused: u32,
}

/// How much differs between two statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    Nothing,
    /// Messages, numbers, generations.
    Details,
    /// What is said at all.
    Turn,
}

/// What is to stand in the status of an object of this generation, in the order of types. The time of a
/// transition stays while the status is the same.
pub(super) fn state(
    before: &[Stated],
    wanted: Vec<Condition>,
    generation: Option<i64>,
    now: &str,
) -> Vec<Stated> {
    let mut stated: Vec<Stated> = wanted
        .into_iter()
        .map(|mut condition| {
            shorten(&mut condition.message, MESSAGE);
            let same = before.iter().find(|known| known.condition.kind == condition.kind);
            let since = same
                .filter(|known| known.condition.status == condition.status)
                .and_then(|known| known.last_transition_time.clone());
            let last_transition_time = Some(since.unwrap_or_else(|| now.to_owned()));
            Stated { condition, observed_generation: generation, last_transition_time }
        })
        .collect();
    stated.sort_by(|a, b| a.condition.kind.cmp(&b.condition.kind));
    stated
}

/// How much differs.
pub(super) fn compare(before: &[Stated], after: &[Stated]) -> Change {
    let gist = |all: &[Stated]| -> BTreeSet<(String, u8, String)> {
        let one = |stated: &Stated| {
            let Condition { kind, status, reason, .. } = &stated.condition;
            (kind.clone(), *status as u8, reason.clone())
        };
        all.iter().map(one).collect()
    };
    let mut sorted = before.to_vec();
    sorted.sort_by(|a, b| a.condition.kind.cmp(&b.condition.kind));
    if gist(before) != gist(after) {
        Change::Turn
    } else if sorted == after {
        Change::Nothing
    } else {
        Change::Details
    }
}

/// Bad news that were none before.
pub(super) fn new_faults<'a>(before: &[Stated], after: &'a [Stated]) -> Vec<&'a Condition> {
    let is_known = |condition: &Condition| {
        before.iter().any(|known| {
            let known = &known.condition;
            known.is_bad() && known.kind == condition.kind && known.reason == condition.reason
        })
    };
    let bad = after.iter().map(|stated| &stated.condition).filter(|condition| condition.is_bad());
    bad.filter(|condition| !is_known(condition)).collect()
}

/// Cuts a text to so many octets.
pub(super) fn shorten(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most.saturating_sub('…'.len_utf8())));
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::ConditionStatus;

    use super::*;

    fn condition(kind: &str, holds: bool, reason: &str, message: &str) -> Condition {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        Condition { status, ..Condition::holds(kind, reason, message) }
    }

    #[test]
    fn the_time_of_a_transition_stays_while_nothing_turns() {
        let first =
            state(&[], vec![condition("Accepted", true, "Accepted", "1 node")], Some(1), "t1");
        assert_eq!(first[0].last_transition_time.as_deref(), Some("t1"));
        assert_eq!(compare(&[], &first), Change::Turn);
        let same =
            state(&first, vec![condition("Accepted", true, "Accepted", "1 node")], Some(1), "t2");
        assert_eq!(compare(&first, &same), Change::Nothing);
        let more =
            state(&first, vec![condition("Accepted", true, "Accepted", "2 nodes")], Some(2), "t3");
        assert_eq!(compare(&first, &more), Change::Details);
        assert_eq!(more[0].last_transition_time.as_deref(), Some("t1"));
        assert_eq!(more[0].observed_generation, Some(2));
        let turned = state(&more, vec![condition("Accepted", false, "Invalid", "")], Some(2), "t4");
        assert_eq!(compare(&more, &turned), Change::Turn);
        assert_eq!(turned[0].last_transition_time.as_deref(), Some("t4"));
    }

    #[test]
    fn bad_news_are_told_once() {
        let good = state(&[], vec![condition("Accepted", true, "Accepted", "")], None, "t");
        let bad = vec![
            condition("Accepted", false, "Invalid", "a"),
            condition("Conflicted", true, "DuplicatePeer", "b"),
        ];
        let bad = state(&good, bad, None, "t");
        let kinds = |before: &[Stated], after: &[Stated]| -> Vec<String> {
            new_faults(before, after).iter().map(|found| found.reason.clone()).collect()
        };
        assert_eq!(kinds(&good, &bad), ["Invalid", "DuplicatePeer"]);
        assert_eq!(kinds(&bad, &bad), [""; 0]);
        assert_eq!(kinds(&bad, &good), [""; 0]);
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let mut text = "ä".repeat(10);
        shorten(&mut text, 10);
        assert_eq!(text, "äää…");
        shorten(&mut text, 10);
        assert_eq!(text, "äää…");
    }

    #[test]
    fn a_status_reads_back() {
        let stated = state(&[], vec![condition("Accepted", true, "Accepted", "m")], Some(3), "t");
        let value = serde_json::to_value(&stated).unwrap();
        assert_eq!(value[0]["type"], "Accepted");
        assert_eq!(value[0]["observedGeneration"], 3);
        assert_eq!(serde_json::from_value::<Vec<Stated>>(value).unwrap(), stated);
    }
}
