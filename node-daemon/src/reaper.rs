//! Deletes the links that DELs left behind, a few at a time.
//!
//! A DEL only takes a link out of use: destroying one makes the kernel wait, and many at once wait
//! together. An address can be given out again when its link is gone.
//!
//! A DEL says which link that is. To look for such links takes the kernel long where there are
//! thousands of pods, so that is for the start, for those who do not know, and for what nobody said.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task::block_in_place};
use tracing::{debug, info, warn};
use twill_dataplane::pod::{delete_group_links, delete_parked_links};
use twill_ipam_store::Service;
use twill_types::error_chain;

use crate::look::patiently;

/// Links destroyed in one go: others wait for the kernel's lock as long (10 take about 2 ms).
const BATCH: usize = 10;
/// DELs that come in a burst are answered before their links are destroyed.
const GATHER: Duration = Duration::from_millis(20);
/// A round that failed is repeated after this, if nothing comes before.
const AGAIN: Duration = Duration::from_secs(30);
/// Interval at which all links are searched for ones nobody announced, such as those of a killed DEL.
const SWEEP: Duration = Duration::from_secs(300);
/// The most links that are kept in mind. Where more wait, one look is not longer.
const MOST: usize = 4096;

/// The links that wait to be deleted.
///
/// One is named here *before* the addresses on it are released. So the list that is taken after a
/// round has begun has the links of all that was freed before, and at the round's end they are gone.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    known: Vec<u32>,
    /// There may be others, which have to be looked for.
    others: bool,
}

impl Parked {
    /// A link waits that has this index.
    pub(crate) fn note(&self, index: u32) {
        let mut waiting = self.waiting();
        if waiting.known.len() < MOST {
            waiting.known.push(index);
        } else {
            waiting.others = true;
        }
    }

    /// Links may wait of which nothing else is known.
    pub(crate) fn note_any(&self) {
        self.waiting().others = true;
    }

    /// Has them deleted, now that their addresses are released.
    pub(crate) fn reap(&self) {
        self.changed.notify_one();
    }

    fn take(&self) -> Waiting {
        mem::take(&mut self.waiting())
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing can panic while it is locked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes what the process before has left. Before anybody is given an address: which of them wait
/// for a link is not known any more.
pub(crate) fn begin(until: Instant) -> Result<(), twill_dataplane::Error> {
    let deleted = patiently(until, || delete_group_links(BATCH, || true))?;
    if deleted > 0 {
        info!(links = deleted, "deleted the links of pods that went while no daemon ran");
    }
    Ok(())
}

/// Runs for ever.
pub(crate) async fn run(service: Arc<Service>, parked: Arc<Parked>) {
    let mut swept: Option<Instant> = None;
    loop {
        let mut result = block_in_place(|| round(&service, &parked));
        // By itself, as nobody waits for an address of these.
        if result == Ok(false) && swept.is_none_or(|last| last.elapsed() >= SWEEP) {
            result = block_in_place(sweep);
            // One that failed took as long, and the next would fail as soon.
            swept = Some(Instant::now());
        }
        match result {
            Ok(true) => swept = Some(Instant::now()),
            Ok(false) => {}
            Err(error) => warn!(%error, "cannot delete the links of pods that are gone"),
        }
        let _ = tokio::time::timeout(AGAIN, parked.changed.notified()).await;
        tokio::time::sleep(GATHER).await;
    }
}

/// Deletes what nobody announced.
fn sweep() -> Result<bool, String> {
    let deleted = delete_group_links(BATCH, || true).map_err(|error| error_chain(&error))?;
    debug!(links = deleted, looked_for_all = true, "deleted the links of pods that are gone");
    Ok(true)
}

/// Whether it has looked for all.
fn round(service: &Service, parked: &Parked) -> Result<bool, String> {
    let round = service.begin_round().map_err(|error| error_chain(&error))?;
    let (deleted, others) = delete(
        parked,
        |known| delete_parked_links(known, BATCH),
        || delete_group_links(BATCH, || true),
    )
    .map_err(|error| error_chain(&error))?;
    if others || deleted > 0 {
        debug!(links = deleted, looked_for_all = others, "deleted the links of pods that are gone");
    }
    service.end_round(round).map_err(|error| error_chain(&error))?;
    Ok(others)
}

/// Deletes what waits; says how many, and whether it has looked for all. What fails stays in mind.
///
/// First those that are known. To look for others can fail while links come and go, and the more links
/// wait the longer it takes.
fn delete<E>(
    parked: &Parked,
    by_index: impl FnOnce(&[u32]) -> Result<usize, E>,
    all: impl FnOnce() -> Result<usize, E>,
) -> Result<(usize, bool), E> {
    let Waiting { known, others } = parked.take();
    let named = by_index(&known).inspect_err(|_| {
        let mut waiting = parked.waiting();
        // More than `MOST` only if DELs came meanwhile; the next round takes them all the same.
        waiting.known.extend(&known);
        waiting.others |= others;
    })?;
    let found = match others {
        true => all().inspect_err(|_| parked.note_any())?,
        false => 0,
    };
    Ok((named + found, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_deleted_stays_in_mind() {
        let parked = Parked::default();
        parked.note(7);
        parked.note(8);
        let failed: Result<_, &str> = delete(&parked, |_| Err("busy"), || Ok(0));
        assert_eq!(failed, Err("busy"));
        // Others that cannot be looked for keep nobody from deleting these.
        parked.note_any();
        parked.note(9);
        let mut gone = Vec::new();
        let by_index = |known: &[u32]| {
            gone.extend_from_slice(known);
            Ok(known.len())
        };
        let failed = delete(&parked, by_index, || Err("the kernel's links changed"));
        assert!(failed.is_err());
        gone.sort_unstable();
        assert_eq!(gone, [7, 8, 9]);
        // They are looked for again.
        let by_index = |known: &[u32]| Ok::<_, &str>(known.len());
        assert_eq!(delete(&parked, by_index, || Ok(2)), Ok((2, true)));
        assert_eq!(delete(&parked, by_index, || Ok(2)), Ok((0, false)));
    }
}
