//! Kubernetes' API server as the datastore: docs/kubernetes.md says what a node asks of it.
//!
//! One task per watched list passes events to one task that makes the snapshot of them and keeps the
//! last known good copy. Claims are written by who claims, and known from a watch of this node's own.

mod access;
mod cache;
mod claims;
mod collector;
mod leases;
mod owned;
mod read;
mod reports;
mod subject;
mod watching;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::{info, warn};

pub(crate) use access::ApiError;

use self::{
    access::Access, cache::Cache, claims::ApiClaims, collector::Collector, leases::ApiLeases,
    owned::OwnClaims, reports::ApiReports,
};
use super::Datastore;

/// How long a node that has a copy of what was last known waits for the API server at its start.
const FRESH: Duration = Duration::from_millis(800);

/// Connects, and waits until everything was told once, or takes what was last known.
pub(super) async fn open(
    kubeconfig: Option<&Path>,
    state_dir: &Path,
    node: &str,
) -> Result<Datastore, ApiError> {
    let access = Arc::new(Access::open(kubeconfig).await?);
    let cache = Cache::open(state_dir, node)?;
    let known = cache.read();
    let owned = watch::Sender::new(Arc::new(OwnClaims::default()));
    let problems = watch::Sender::new(Vec::new());
    let collector = Collector::new(node, &access, cache, owned.clone(), problems.clone());
    let (resources, mut in_sync) = collector.start();
    let has_copy = known.is_some();
    let wait = in_sync.wait_for(|in_sync| *in_sync);
    let is_fresh = if has_copy {
        tokio::time::timeout(FRESH, wait).await.is_ok_and(|waited| waited.is_ok())
    } else {
        info!("waiting for the API server to tell everything once");
        wait.await.is_ok()
    };
    if let (false, Some(known)) = (is_fresh, known) {
        warn!("the API server has not told everything yet: starting with what was last known");
        owned.send_if_modified(|claims| {
            // What it has told meanwhile is newer.
            let is_older = !claims.is_complete();
            if is_older {
                Arc::make_mut(claims).set_known(known.claims);
            }
            is_older
        });
        resources.send_if_modified(|snapshot| {
            let is_older = !*in_sync.borrow();
            if is_older {
                *snapshot = Arc::new(known.snapshot);
            }
            is_older
        });
    }
    Ok(Datastore {
        resources: resources.subscribe(),
        claims: Arc::new(ApiClaims::new(Arc::clone(&access), owned, node)),
        leases: Arc::new(ApiLeases::new(Arc::clone(&access))),
        reports: Arc::new(ApiReports::new(access, node)),
        fills: None,
        shared: true,
        problems: problems.subscribe(),
    })
}
