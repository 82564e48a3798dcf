//! What the kernel knows of pods whose records are lost: whose a link is stands in its alias, and
//! its addresses are those that the node routes to it. To be done before anybody is served: until
//! then every address looks free.

use std::collections::BTreeSet;

use tracing::{info, warn};
use twill_ipam::Record;
use twill_types::{Alias, LinkAlias, LivingPod};

use crate::{Service, StoreError, now_ms};

impl Service {
    /// Whether a link says that it belongs to an attachment without a record. The numbers of
    /// assignments go on after those of the links: one with a higher number than the next ADD of
    /// its attachment would be in its way.
    ///
    /// # Errors
    /// The service has ended.
    pub fn misses(&self, links: Vec<LinkAlias>) -> Result<bool, StoreError> {
        self.with(move |allocator| {
            let highest = links.iter().map(|alias| alias.sequence).max();
            allocator.number_after(highest.unwrap_or_default());
            // The addresses of others are of no store.
            let ours = |alias: &&LinkAlias| alias.sequence != LinkAlias::WITHOUT_STORE;
            links.iter().filter(ours).any(|alias| match &alias.owner {
                Alias::Full(attachment) => allocator.lookup(attachment).is_none(),
                Alias::Hashed(_) => false,
            })
        })
    }

    /// Writes the records of pods that have none; says how many.
    ///
    /// # Errors
    /// The store failed.
    pub fn rebuild(&self, pods: Vec<LivingPod>) -> Result<usize, StoreError> {
        let records = self.records()?;
        let known: BTreeSet<_> = records.iter().map(|record| &record.attachment).collect();
        let mut count = 0;
        for pod in pods.into_iter().filter(|pod| !known.contains(&pod.attachment)) {
            let LivingPod { attachment, addresses, .. } = pod.clone();
            if self.adopt(record(pod))? {
                info!(%attachment, ?addresses, "record read from the link");
                count += 1;
            } else {
                warn!(%attachment, ?addresses, "another pod has the address");
            }
        }
        Ok(count)
    }
}

fn record(pod: LivingPod) -> Record {
    let LivingPod { attachment, sequence, addresses, pod } = pod;
    Record {
        attachment,
        addresses,
        sequence,
        // The namespace is not known: the link alone says whether the pod lives.
        netns: String::new(),
        netns_cookie: None,
        pod,
        pod_uid: None,
        foreign: false,
        created_ms: now_ms(),
    }
}
