//! Pods that are gone without a DEL, and links that an ADD left behind when it died.
//!
//! containerd calls no GC, podman calls no DEL for a namespace that is gone, and a plugin can be
//! killed at any instruction. So the daemon compares now and then what the store says with what
//! the kernel has. [`twill_ipam::Liveness`] judges; here is the looking and the doing.

use std::{
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    sync::{Notify, watch},
    task::block_in_place,
};
use tracing::{debug, info, warn};
use twill_dataplane::{
    Link,
    pod::{host_links, remove_leftover},
};
use twill_ipam::{
    Death, Facts, Leftover, LinkFact, Liveness, PathFact, Record, RecordFact, ReleaseRequest,
    Start, Trouble,
};
use twill_ipam_store::Service;
use twill_sys::AtPath;
use twill_types::error_chain;

use crate::{metrics::Metrics, problems, reaper::Parked};

/// The least time between two looks, however many links go at once.
const PAUSE: Duration = Duration::from_secs(1);

/// As multiples of what a look takes: the least time between two, and the usual one at the least.
const PAUSE_FACTOR: u32 = 10;
const REST_FACTOR: u32 = 50;

/// The task.
pub(crate) struct Reconcile {
    pub(crate) service: Arc<Service>,
    pub(crate) liveness: Liveness,
    pub(crate) interval: Duration,
    pub(crate) started: Instant,
    /// Notified when the kernel took a pod's link away: the first look need not wait.
    pub(crate) pod_links_lost: Arc<Notify>,
    /// For the reaper, which ends what is begun here.
    pub(crate) parked: Arc<Parked>,
    /// Where a damaged store was moved to.
    pub(crate) set_aside: Option<PathBuf>,
    pub(crate) problems: watch::Sender<Vec<String>>,
    pub(crate) metrics: Metrics,
}

/// Takes down what there is, before this process serves anybody.
pub(crate) fn begin(service: &Service, grace: Duration) -> anyhow::Result<Liveness> {
    let links = host_links().context("cannot list the pods' links")?;
    let start = Start {
        sequence: service.sequence()?,
        links: links.iter().map(|link| link.index).collect(),
        host_view: has_host_view(),
    };
    debug!(links = links.len(), host_view = start.host_view, "what is there at the start");
    Ok(Liveness::new(milliseconds(grace), start))
}

impl Reconcile {
    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        loop {
            let began = Instant::now();
            if let Err(error) = block_in_place(|| self.round()) {
                warn!(error = %format!("{error:#}"), "cannot compare the addresses with the pods");
            }
            // With thousands of pods the kernel takes a second to list their links, and ADDs wait
            // for it meanwhile.
            let took = began.elapsed();
            let pause = PAUSE.max(took * PAUSE_FACTOR);
            tokio::time::sleep(pause).await;
            let rest = self.interval.max(took * REST_FACTOR).saturating_sub(pause);
            let _ = tokio::time::timeout(rest, self.pod_links_lost.notified()).await;
        }
    }

    fn round(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let links = host_links().context("cannot list the pods' links")?;
        let records = self.service.records()?;
        let facts = Facts {
            records: records.into_iter().map(record_fact).collect(),
            links: links.iter().map(link_fact).collect(),
        };
        let verdict = self.liveness.look(&facts, milliseconds(self.started.elapsed()));
        debug!(
            links = facts.links.len(),
            records = facts.records.len(),
            took = ?began.elapsed(),
            "compared the addresses with the pods"
        );
        self.tell(&verdict.troubles)?;
        let mut done = self.release(verdict.dead);
        for (index, why) in verdict.leftovers {
            let found = links.iter().find(|link| link.index == index);
            done |= found.is_some_and(|link| self.remove(link, why));
        }
        if done {
            self.parked.reap();
        }
        Ok(())
    }

    /// Puts what people have to look at into the node's status, and what is new into the log.
    fn tell(&self, found: &[Trouble]) -> anyhow::Result<()> {
        let mut troubles: Vec<String> = found.iter().map(ToString::to_string).collect();
        troubles.extend(self.set_aside.as_deref().map(|aside| {
            format!(
                "the address store was damaged and moved to {}; the records of pods were read from \
                 their links again, but the addresses of pods that another plugin attached are \
                 not known and may be given to others: restart such pods, then twilld",
                aside.display()
            )
        }));
        troubles.extend(self.service.failure()?.map(|error| {
            format!(
                "nothing can be written to the address store, so every ADD fails with code 11 \
                 ({}); free some space in runDir",
                error_chain(&error)
            )
        }));
        problems::tell(&self.problems, troubles);
        Ok(())
    }

    /// Releases the records of pods that are gone, all in as few batches as can be. Whether one
    /// was released.
    fn release(&self, dead: Vec<(Record, Death)>) -> bool {
        let request = |(record, _): &(Record, Death)| ReleaseRequest {
            attachment: record.attachment.clone(),
            // A newer ADD of the same attachment has a higher number and is not touched.
            sequence: Some(record.sequence),
            netns_cookie: None,
        };
        if !dead.is_empty() {
            // The link of one may wait since a DEL that was killed.
            self.parked.expect_any();
        }
        let results = self.service.release_all(dead.iter().map(request));
        let mut done = false;
        for ((record, death), result) in dead.into_iter().zip(results) {
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
                    self.metrics.reclaimed(death, outcome.addresses.len());
                    done = true;
                }
                Err(error) => {
                    warn!(%attachment, error = %error_chain(&error), "cannot release a pod that is gone");
                }
            }
        }
        done
    }

    fn remove(&self, link: &Link, why: Leftover) -> bool {
        let (name, alias) = (&link.name, link.alias.as_deref().unwrap_or_default());
        match remove_leftover(link) {
            Ok(true) => {
                self.parked.expect(link.index);
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

fn record_fact(record: Record) -> RecordFact {
    let path = path_fact(Path::new(&record.netns), record.netns_cookie);
    RecordFact { record, path }
}

fn path_fact(path: &Path, cookie: Option<u64>) -> PathFact {
    if path.as_os_str().is_empty() {
        return PathFact::Unknown;
    }
    let fact = match twill_sys::look(path) {
        Ok(AtPath::Namespace(found)) => match (found, cookie) {
            (Some(found), Some(cookie)) if found != cookie => PathFact::Another,
            _ => PathFact::Same,
        },
        Ok(AtPath::Plain) => PathFact::Plain,
        Ok(AtPath::Nothing) => PathFact::Nothing,
        Err(error) => {
            debug!(error = %error_chain(&error), "nothing can be told from a namespace's path");
            PathFact::Unknown
        }
    };
    match fact {
        // A process's path ends with the process, not with the namespace, its number may name
        // another process by now, and /proc may be that of other processes altogether.
        PathFact::Another | PathFact::Nothing | PathFact::Plain if path.starts_with("/proc") => {
            PathFact::Unknown
        }
        fact => fact,
    }
}

fn link_fact(link: &Link) -> LinkFact {
    LinkFact { index: link.index, name: link.name.clone(), alias: link.twill_alias(), up: link.up }
}

/// Whether this process sees the mounts that the host's first process sees: it is in the host's
/// process namespace (else process 1 is another one), and in its mount namespace.
fn has_host_view() -> bool {
    /// `PROC_PID_INIT_INO`, the inode of the first process namespace.
    const FIRST: u64 = 0xEFFF_FFFC;
    let namespace = |path: &str| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.st_dev(), file.st_ino()))
    };
    let own = namespace("/proc/self/ns/mnt");
    namespace("/proc/self/ns/pid").is_some_and(|(_, inode)| inode == FIRST)
        && own.is_some()
        && own == namespace("/proc/1/ns/mnt")
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
