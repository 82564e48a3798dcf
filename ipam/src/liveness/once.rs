//! For who looks once: a plugin without a daemon, which cannot wait for a second look.

use twill_types::{AttachmentId, host_link_name};

use super::{Death, Facts, LinkFact, Liveness, Start};
use crate::Record;

/// How long an ADD takes at the most, in milliseconds: a network configuration's `timeoutSeconds` goes
/// up to 120.
const LONGEST_ADD_MS: u64 = 120_000;

impl LinkFact {
    /// Whether an ADD of this attachment has made it, as far as can be told: any ADD, whatever its number.
    pub fn may_be_of(&self, attachment: &AttachmentId) -> bool {
        self.name == host_link_name(attachment)
            || self.alias.as_ref().is_some_and(|alias| alias.is_of(attachment))
    }
}

/// Whose pods are gone, by what one look found; `now_ms` is the time since the Unix epoch, as in records.
///
/// In the place of the second look stands the record's age: no ADD can be at work on it any more. Beside
/// the evidence that [`Liveness`] wants, there is no link of any ADD of its attachment: nobody removes one
/// that an earlier ADD has left with its addresses, as the daemon does. A time in the future is of no age.
pub fn dead_at_one_look(facts: &Facts, host_view: bool, now_ms: u64) -> Vec<(Record, Death)> {
    // Nothing is newer than this look, so no namespace proves anything about others.
    let links = facts.links.iter().map(|link| link.index).collect();
    let start = Start { sequence: u64::MAX, links, host_view };
    let mut dead = Liveness::new(0, start).look(facts, 0).dead;
    dead.retain(|(record, _)| {
        now_ms.saturating_sub(record.created_ms) > LONGEST_ADD_MS
            && !facts.links.iter().any(|link| link.may_be_of(&record.attachment))
    });
    dead
}
