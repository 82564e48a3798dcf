//! Deletes the links that DELs left behind, a few at a time.
//!
//! A DEL only takes a link out of use: destroying one makes the kernel wait, and many at once wait
//! together. An address can be given out again when its link is gone.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, task::block_in_place};
use tracing::warn;
use twill_dataplane::pod::delete_group_links;
use twill_ipam_store::Service;
use twill_types::error_chain;

/// Links destroyed in one go: others wait for the kernel's lock as long (10 take about 2 ms).
const BATCH: usize = 10;
/// DELs that come in a burst are answered before their links are destroyed.
const GATHER: Duration = Duration::from_millis(20);
/// Links of DELs that found no daemon are seen at the latest after this.
const SWEEP: Duration = Duration::from_secs(30);

/// Runs for ever. `released` is notified after each DEL.
pub(crate) async fn run(service: Arc<Service>, released: Arc<Notify>) {
    loop {
        if let Err(error) = block_in_place(|| round(&service)) {
            warn!(%error, "cannot delete the links of pods that are gone");
        }
        let _ = tokio::time::timeout(SWEEP, released.notified()).await;
        tokio::time::sleep(GATHER).await;
    }
}

fn round(service: &Service) -> Result<(), String> {
    let round = service.begin_round().map_err(|error| error_chain(&error))?;
    delete_group_links(BATCH, || true).map_err(|error| error_chain(&error))?;
    service.end_round(round).map_err(|error| error_chain(&error))
}
