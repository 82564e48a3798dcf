//! Addresses of pods that are gone without a DEL, where no daemon finds them.

use std::path::Path;

use twill_dataplane::{
    Link,
    pod::{delete_group_links, host_links},
};
use twill_ipam::{Death, Facts, LinkFact, PodFact, Record, dead_at_one_look, links_of};
use twill_ipam_store::{has_host_view, now_ms, record_fact};
use twill_types::{AttachmentId, ReleaseRequest, error_chain};

use super::{Owned, StandaloneError};
use crate::{deadline::Deadline, verbs::BATCH};

/// The links of pods on this node.
pub(super) fn host_link_facts() -> Result<Vec<LinkFact>, twill_dataplane::Error> {
    let fact = |link: Link| LinkFact {
        index: link.index,
        alias: link.twill_alias(),
        overwritten: link.is_overwritten(),
        name: link.name,
        up: link.up,
    };
    Ok(host_links()?.into_iter().map(fact).collect())
}

/// Whether an attachment has one of these links.
pub(super) fn is_linked(links: &[LinkFact], attachment: &AttachmentId) -> bool {
    links_of(links, attachment).next().is_some()
}

impl Owned {
    /// Releases what pods have that are certainly gone; whether there was any. For when nothing else
    /// is free: it looks at every link and at every record's namespace. Where it fails, nothing is free, which is what
    /// its caller has to say.
    pub(super) fn reclaims(&self, run_dir: &Path, deadline: Deadline) -> bool {
        self.reclaim(run_dir, deadline).unwrap_or_else(|error| {
            tracing::warn!(error = error_chain(&error), "cannot look for pods that are gone");
            false
        })
    }

    fn reclaim(&self, run_dir: &Path, deadline: Deadline) -> Result<bool, StandaloneError> {
        if self.dead()?.is_empty() {
            return Ok(false);
        }
        // An ADD that is at it looks at the mark after its link is made. So the links are read after the
        // mark is: either it sees the mark, or its link is seen.
        self.mark_collected(run_dir)?;
        let dead = self.dead()?;
        // What a DEL has cut off before it died may have the address of one of them.
        delete_group_links(BATCH, || !deadline.left().is_zero())?;
        if deadline.left().is_zero() {
            return Ok(false);
        }
        let requests = dead.iter().map(|(record, _)| ReleaseRequest {
            attachment: record.attachment.clone(),
            sequence: Some(record.sequence),
            netns_cookie: None,
        });
        let outcomes = self.store.service().release_all(requests);
        let mut released = false;
        for ((record, death), outcome) in dead.iter().zip(outcomes) {
            match outcome {
                Ok(outcome) => released |= !outcome.addresses.is_empty(),
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::warn!(attachment = %record.attachment, error, "cannot be released");
                    continue;
                }
            }
            tracing::info!(
                attachment = %record.attachment,
                addresses = ?record.addresses,
                why = death.as_str(),
                "released: the pod is gone, and no DEL came for it"
            );
        }
        Ok(released)
    }

    fn dead(&self) -> Result<Vec<(Record, Death)>, StandaloneError> {
        let links = host_link_facts()?;
        let records = self.store.service().records().map_err(|source| self.failed(source))?;
        let records = records.into_iter().map(|record| record_fact(record, PodFact::Unknown));
        let facts = Facts { records: records.collect(), links };
        Ok(dead_at_one_look(&facts, has_host_view(), now_ms()))
    }
}
