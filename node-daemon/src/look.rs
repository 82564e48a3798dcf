//! Looks at records, links and namespaces, and has [`twill_ipam::Liveness`] judge them: for the
//! reconcile that goes on by itself, and for who asks about one pod or checks all of them.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::sync::watch;
use tracing::{debug, info, warn};
use twill_dataplane::{
    Error, Link,
    pod::{FoundPodLink, host_links, pod_links, remove_leftover},
};
use twill_ipam::{
    BlockSummary, Death, Facts, Leftover, LinkFact, Liveness, PodFact, Record, RecordFact,
    ReleaseRequest, Start, Verdict,
};
use twill_ipam_store::{Service, has_host_view, record_fact};
use twill_types::{AttachmentId, error_chain};

use crate::{datastore::pods::KnownPods, metrics::Metrics, reaper::Parked};

/// What has been seen so far, and how to see more.
pub(crate) struct Looker {
    service: Arc<Service>,
    /// For the reaper, which ends what is begun here.
    parked: Arc<Parked>,
    metrics: Metrics,
    grace: Duration,
    started: Instant,
    /// The cluster's pods on this node, where there is a cluster.
    pods: Option<watch::Receiver<Arc<KnownPods>>>,
    /// Held while looking: what is judged later is seen later.
    liveness: Mutex<Liveness>,
}

/// What one look found.
pub(crate) struct Look {
    pub(crate) facts: Facts,
    pub(crate) verdict: Verdict,
    pub(crate) links: Vec<Link>,
    /// The blocks, of the same moment as the records.
    pub(crate) blocks: Vec<BlockSummary>,
    /// The addresses that the node routes to each link, if it was looked for them.
    pub(crate) routes: BTreeMap<u32, Vec<IpAddr>>,
}

/// How long links may come and go under [`patiently`]: in one look, or in all those of a start.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A look at the kernel without which the daemon ends, and which is not to fail because links come and go: whoever starts
/// the daemon again has it look again.
pub(crate) fn patiently<T>(
    until: Instant,
    mut look: impl FnMut() -> Result<T, Error>,
) -> Result<T, Error> {
    loop {
        match look() {
            // It has taken seconds.
            Err(Error::Interrupted(_)) if Instant::now() < until => {}
            found => return found,
        }
    }
}

/// Whether a pod lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lives {
    Yes,
    No,
    Unclear,
}

impl Look {
    /// What this look says of the pod of an attachment that has a record.
    pub(crate) fn lives(&self, attachment: &AttachmentId) -> Lives {
        let is_it = |record: &Record| record.attachment == *attachment;
        let Verdict { dead, suspects, unclear, .. } = &self.verdict;
        if dead.iter().any(|(record, _)| is_it(record)) {
            return Lives::No;
        }
        // Of one that looks dead at one look, an ADD may be under way.
        let is_suspect = suspects.iter().any(|(record, ..)| is_it(record));
        if is_suspect || unclear.contains(attachment) { Lives::Unclear } else { Lives::Yes }
    }
}

impl Looker {
    /// Takes down what there is, before this process serves anybody.
    pub(crate) fn begin(
        service: Arc<Service>,
        parked: Arc<Parked>,
        grace: Duration,
        metrics: Metrics,
        pods: Option<watch::Receiver<Arc<KnownPods>>>,
        until: Instant,
    ) -> anyhow::Result<Self> {
        let links = patiently(until, host_links).context("cannot list the pods' links")?;
        let start = Start {
            sequence: service.sequence()?,
            links: links.iter().map(|link| link.index).collect(),
            host_view: has_host_view(),
        };
        debug!(links = links.len(), host_view = start.host_view, "what is there at the start");
        let liveness = Mutex::new(Liveness::new(milliseconds(grace), start));
        Ok(Self { service, parked, metrics, grace, started: Instant::now(), pods, liveness })
    }

    /// Whether a cluster says which pods there are.
    pub(crate) const fn hears_of_pods(&self) -> bool {
        self.pods.is_some()
    }

    /// How long an ADD may take.
    pub(crate) fn grace_ms(&self) -> u64 {
        milliseconds(self.grace)
    }

    /// Looks at everything; at routes only if told so.
    pub(crate) fn look(&self, routes: bool) -> anyhow::Result<Look> {
        let began = Instant::now();
        let mut liveness = self.liveness.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match routes {
            true => pod_links().context("cannot list the pods' links and routes")?,
            false => {
                let links = host_links().context("cannot list the pods' links")?.into_iter();
                links
                    .map(|link| FoundPodLink { alias: None, addresses: Vec::new(), link })
                    .collect()
            }
        };
        // After the links: an ADD has its record before its link.
        let (records, blocks) = self.service.census()?;
        let routes = found.iter().map(|f| (f.link.index, f.addresses.clone())).collect();
        let links: Vec<Link> = found.into_iter().map(|found| found.link).collect();
        let facts = Facts {
            records: records.into_iter().map(|record| self.record_fact(record)).collect(),
            links: links.iter().map(link_fact).collect(),
        };
        let verdict = liveness.look(&facts, milliseconds(self.started.elapsed()));
        debug!(
            links = facts.links.len(),
            records = facts.records.len(),
            took = ?began.elapsed(),
            "compared the addresses with the pods"
        );
        Ok(Look { facts, verdict, links, blocks, routes })
    }

    fn record_fact(&self, record: Record) -> RecordFact {
        let pod = self.pods.as_ref().map_or(PodFact::Unknown, |pods| {
            pods.borrow().fact(record.pod.as_deref(), record.pod_uid.as_deref())
        });
        record_fact(record, pod)
    }

    /// Releases the records of pods that are gone, all in as few batches as can be; answers those
    /// that were released.
    pub(crate) fn release(&self, dead: &[(Record, Death)]) -> Vec<Record> {
        let request = |(record, _): &(Record, Death)| ReleaseRequest {
            attachment: record.attachment.clone(),
            // A newer ADD of the same attachment has a higher number and is not touched.
            sequence: Some(record.sequence),
            netns_cookie: None,
        };
        if !dead.is_empty() {
            // The link of one may wait since a DEL that was killed.
            self.parked.note_any();
        }
        let results = self.service.release_all(dead.iter().map(request));
        let mut done = Vec::new();
        for ((record, death), result) in dead.iter().zip(results) {
            let attachment = &record.attachment;
            match result {
                Ok(outcome) if outcome.addresses.is_empty() => {
                    debug!(%attachment, "released by a DEL in the meantime");
                }
                Ok(outcome) => {
                    info!(
                        %attachment,
                        addresses = ?outcome.addresses,
                        pod = record.pod,
                        netns = record.netns,
                        why = death.as_str(),
                        "released: the pod is gone, and no DEL came for it"
                    );
                    self.metrics.reclaimed(*death, outcome.addresses.len());
                    done.push(record.clone());
                }
                Err(error) => {
                    warn!(%attachment, error = %error_chain(&error), "cannot release a pod that is gone");
                }
            }
        }
        done
    }

    /// Removes a link that an ADD left; whether it did.
    pub(crate) fn remove(&self, link: &Link, why: Leftover) -> bool {
        let (name, alias) = (&link.name, link.alias.as_deref().unwrap_or_default());
        match remove_leftover(link) {
            Ok(true) => {
                self.parked.note(link.index);
                info!(link = name, alias, why = why.as_str(), "removed a link that an ADD left");
                self.metrics.link_reclaimed(why);
                true
            }
            Ok(false) => {
                debug!(link = name, "gone or changed in the meantime; left alone");
                false
            }
            Err(error) => {
                warn!(link = name, error = %error_chain(&error), "cannot remove a link that an ADD left");
                false
            }
        }
    }
}

fn link_fact(link: &Link) -> LinkFact {
    LinkFact {
        index: link.index,
        name: link.name.clone(),
        alias: link.twill_alias(),
        overwritten: link.is_overwritten(),
        up: link.up,
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_too_fast_is_looked_at_again() {
        let interrupted = || Err(Error::Interrupted("links"));
        let until = Instant::now() + PATIENCE;
        let mut answers = vec![Ok(7), interrupted(), interrupted()];
        assert!(matches!(patiently(until, || answers.pop().unwrap_or_else(interrupted)), Ok(7)));
        let mut answers = vec![Ok(7), Err(Error::Decode(String::new()))];
        assert!(patiently(until, || answers.pop().unwrap_or_else(interrupted)).is_err());
        // Those before have taken all the time.
        let mut answers = vec![Ok(7), interrupted()];
        let late = patiently(Instant::now(), || answers.pop().unwrap_or_else(interrupted));
        assert!(late.is_err() && answers.len() == 1);
    }
}
