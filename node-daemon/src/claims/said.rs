//! What there is to say about pools and claims.

use std::collections::BTreeMap;

use twill_k8s_api::{Condition, ConditionStatus, Kind, ObjectId};

/// What is said while the claims are looked at.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) problems: Vec<String>,
    pub(super) conditions: BTreeMap<ObjectId, Vec<Condition>>,
}

impl Said {
    /// A condition of an object. Of several of one type the first one counts, with the messages of
    /// all.
    pub(super) fn about(
        &mut self,
        kind: Kind,
        name: &str,
        (condition, holds): (&str, bool),
        reason: &str,
        message: &str,
    ) {
        let id =
            ObjectId { kind: kind.singular().to_owned(), namespace: None, name: name.to_owned() };
        let conditions = self.conditions.entry(id).or_default();
        if let Some(other) = conditions.iter_mut().find(|other| other.kind == condition) {
            other.message = format!("{}; {message}", other.message);
            return;
        }
        conditions.push(Condition {
            kind: condition.to_owned(),
            status: if holds { ConditionStatus::True } else { ConditionStatus::False },
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }
}
