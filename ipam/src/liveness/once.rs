//! For who looks once: a plugin without a daemon, which cannot wait for a second look.

use twill_types::{AttachmentId, host_link_name};

use super::{Death, Facts, LinkFact, Liveness, Start};
use crate::Record;

/// How long an ADD takes at the most, in milliseconds: a network configuration's `timeoutSeconds` goes
/// up to 120.
const LONGEST_ADD_MS: u64 = 120_000;

impl LinkFact {
    /// Whether an ADD of this attachment has made it, as far as can be told: any ADD, whatever its number.
    /// `name` is [`host_link_name`] of it, which takes longer than the comparison with many links.
    fn may_be_of(&self, attachment: &AttachmentId, name: &str) -> bool {
        self.name == name || self.alias.as_ref().is_some_and(|alias| alias.is_of(attachment))
    }
}

/// Those of the links that an ADD of this attachment may have made, whatever its number.
pub fn links_of<'a>(
    links: &'a [LinkFact],
    attachment: &'a AttachmentId,
) -> impl Iterator<Item = &'a LinkFact> {
    let name = host_link_name(attachment);
    links.iter().filter(move |link| link.may_be_of(attachment, &name))
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
            && links_of(&facts.links, &record.attachment).next().is_none()
    });
    dead
}
