//! The signs of readiness for those who do not ask: a file for the plugin's STATUS, which goes by
//! its age and the boot in it, and a message for systemd.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{sync::watch, task::block_in_place};
use tracing::warn;
use twill_ipam_store::{HEARTBEAT, Service, boot_id};

use crate::{ipam::View, problems, spool::Tombstones};

/// How often the file is touched. STATUS bears 120 s without.
const PERIOD: Duration = Duration::from_secs(10);

/// Gives the signs once claims and resources are read, and the file's from then on, as long as an ADD could
/// be written down, and DELs be read.
pub(crate) async fn run(
    run_dir: PathBuf,
    mut view: watch::Receiver<Arc<View>>,
    service: Arc<Service>,
    tombstones: Arc<Tombstones>,
) {
    if view.wait_for(|view| view.ready).await.is_err() {
        return;
    }
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        warn!(%error, "cannot tell systemd that the daemon is ready");
    }
    let file = run_dir.join(HEARTBEAT);
    // Where it cannot be told, STATUS goes by the age alone.
    let boot = boot_id().unwrap_or_default();
    let mut beats = tokio::time::interval(PERIOD);
    loop {
        beats.tick().await;
        if !matches!(block_in_place(|| problems::of_store(&service, &tombstones)), Ok(None)) {
            continue;
        }
        if let Err(error) = fs::write(&file, &boot) {
            warn!(file = %file.display(), %error, "cannot touch the heartbeat file");
        }
    }
}
