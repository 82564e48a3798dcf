//! Pods that are gone without a DEL, and links that an ADD left behind when it died.
//!
//! containerd calls no GC, podman calls no DEL for a namespace that is gone, and a plugin can be
//! killed at any instruction. So the daemon compares now and then what the store says with what
//! the kernel has. [`twill_ipam::Liveness`] judges; here is the looking and the doing.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    task::block_in_place,
};
use tracing::warn;
use twill_ipam::Trouble;
use twill_ipam_store::Service;

use crate::{look::Looker, problems, reaper::Parked, spool::Tombstones};

/// The least time between two looks, however many links go at once.
const PAUSE: Duration = Duration::from_secs(1);

/// As multiples of what a look takes: the least time between two, and the usual one at the least.
const PAUSE_FACTOR: u32 = 10;
const REST_FACTOR: u32 = 50;

/// The task.
pub(crate) struct Reconcile {
    pub(crate) service: Arc<Service>,
    pub(crate) looker: Arc<Looker>,
    pub(crate) tombstones: Arc<Tombstones>,
    pub(crate) interval: Duration,
    /// Notified when the kernel took a pod's link away: the first look need not wait.
    pub(crate) pod_links_lost: Arc<Notify>,
    /// For the reaper, which ends what is begun here.
    pub(crate) parked: Arc<Parked>,
    /// Where a damaged store was moved to.
    pub(crate) set_aside: Option<PathBuf>,
    pub(crate) problems: watch::Sender<Vec<String>>,
}

impl Reconcile {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        loop {
            let began = Instant::now();
            let due = block_in_place(|| self.round()).unwrap_or_else(|error| {
                warn!(error = %format!("{error:#}"), "cannot compare the addresses with the pods");
                None
            });
            // With thousands of pods the kernel takes a second to list their links, and ADDs wait
            // for it meanwhile.
            let took = began.elapsed();
            let pause = PAUSE.max(took * PAUSE_FACTOR);
            tokio::time::sleep(pause).await;
            let rest = self.interval.max(took * REST_FACTOR).saturating_sub(pause);
            let rest = rest.min(due.map_or(rest, |due| due.saturating_sub(pause)));
            let _ = tokio::time::timeout(rest, self.pod_links_lost.notified()).await;
        }
    }

    /// One look; where a cluster tells of pods, also when the first of those that look dead will have for
    /// long enough. Elsewhere the next round is early enough.
    fn round(&self) -> anyhow::Result<Option<Duration>> {
        let look = self.looker.look(false)?;
        self.tell(&look.verdict.troubles)?;
        let mut done = !self.looker.release(&look.verdict.dead).is_empty();
        for (index, why) in &look.verdict.leftovers {
            let found = look.links.iter().find(|link| link.index == *index);
            done |= found.is_some_and(|link| self.looker.remove(link, *why));
        }
        if done {
            self.parked.reap();
        }
        let due = look.verdict.suspects.iter().map(|(.., left_ms)| *left_ms).min();
        Ok(due.filter(|_| self.looker.hears_of_pods()).map(Duration::from_millis))
    }

    /// Puts what people have to look at into the node's status, and what is new into the log.
    fn tell(&self, found: &[Trouble]) -> anyhow::Result<()> {
        let mut troubles: Vec<String> = found.iter().map(ToString::to_string).collect();
        troubles.extend(self.set_aside.as_deref().map(|aside| {
            format!(
                "the address store was damaged and moved to {}; the records of pods were read from \
                 their links again, and those of pods that another plugin attached from the runtime's \
                 cache (ipam.resultCache). Addresses of such pods that are not there may be given to \
                 others: restart those that twillctl ipam show --ip does not know, then twilld",
                aside.display()
            )
        }));
        troubles.extend(problems::of_store(&self.service, &self.tombstones)?);
        problems::tell(&self.problems, troubles);
        Ok(())
    }
}
