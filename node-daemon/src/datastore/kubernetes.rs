//! Kubernetes' API server as the datastore: docs/kubernetes.md says what a node asks of it.
//!
//! One task per watched list passes events to one task that makes the snapshot of them and keeps the
//! last known good copy. Claims are written by who claims, and known from a watch of this node's own.

mod access;
mod cache;
mod claims;
mod collector;
mod deaths;
#[cfg(test)]
mod fake;
mod fills;
mod foreign_definitions;
mod gate;
mod labels;
mod leases;
mod lending;
mod names;
mod own_node;
mod owned;
mod pods;
mod pools;
mod read;
mod refusals;
mod removal;
mod reports;
mod requests;
mod services;
mod subject;
mod version;
mod watching;

use std::{
    future::pending,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};

pub(crate) use access::{Access, Account, ApiError, Line, OF_A_NODE, in_time};
pub(crate) use claims::first_made;
pub(crate) use foreign_definitions::{REMEDY, foreign_definitions};
pub(crate) use leases::{OF_NODES, name as lease_name, read as read_lease};
pub(crate) use own_node::ApiNode;
pub(crate) use pods::{ApiPods, PATIENCE, Unknown};
pub(crate) use removal::{Found, Removal};
pub(crate) use version::Version;
pub(crate) use watching::{News, describe, pass_on, whole};

use self::{
    cache::{Cache, Known},
    claims::ApiClaims,
    collector::{Collector, Progress},
    fills::ApiFills,
    leases::ApiLeases,
    owned::OwnClaims,
    reports::ApiReports,
    requests::NodeRequests,
    services::ServiceWatch,
};
use super::{Datastore, Snapshot, Tenure};
use crate::tasks::Tasks;

/// How long a node that has a copy of what was last known waits for the API server at its start.
const FRESH: Duration = Duration::from_millis(800);

/// How long if it has begun to answer: what it says of claims is right, and the copy may not be. A server that is asked
/// for one list at a time, since each takes it over a second, has told of claims by then, and the rest is out of the
/// copy until it comes: it is in nobody's way, and pods would wait for it.
const ANSWERING: Duration = Duration::from_secs(5);

/// Connects, and waits until everything was told once, or takes what was last known.
pub(crate) async fn open(
    kubeconfig: Option<&Path>,
    state_dir: &Path,
    node: &str,
    problems: watch::Sender<Vec<String>>,
    tasks: &mut Tasks,
) -> Result<Datastore, ApiError> {
    let access = Arc::new(Access::open(kubeconfig, OF_A_NODE).await?);
    let cache = Cache::open(state_dir, node)?;
    let mut known = cache.read();
    let cache = Arc::new(Mutex::new(cache));
    let own_node = ApiNode::new(&access, node);
    let owned = watch::Sender::new(Arc::new(OwnClaims::default()));
    let requests = watch::Sender::new(Arc::new(NodeRequests::new(node)));
    let objects = known.as_mut().map(|known| std::mem::take(&mut known.objects));
    let mut collector = Collector::new(
        node,
        &access,
        Arc::clone(&cache),
        objects.unwrap_or_default(),
        (owned.clone(), requests.clone()),
        problems.clone(),
    );
    if let Some(known) = &known {
        collector.expect(&known.snapshot);
    }
    let (resources, progress) = collector.start(tasks);
    // Behind what is waited for here: an ADD waits for its own pod.
    let pods = ApiPods::start(&access, state_dir, node, tasks);
    let is_fresh = tokio::select! {
        is_fresh = wait(progress.clone(), known.as_ref().map(|_| [FRESH, ANSWERING])) => is_fresh?,
        _ = access.deaths().first() => return Err(ApiError::Died),
    };
    let mourner = Arc::clone(&access);
    tasks.spawn("watches", async move { mourner.deaths().first().await });
    if let (false, Some(known)) = (is_fresh, known) {
        warn!("the API server has not told everything yet: starting with what was last known");
        take_known(known, &progress, &resources, &owned, &requests);
    }
    let (labeller, told) = (Arc::clone(&access), owned.subscribe());
    tasks.endless("labels of claims", async move {
        labels::add_missing(&labeller, told).await;
        pending().await
    });
    let services = ServiceWatch::new(node, &access, state_dir, resources.subscribe());
    let served_before = services.served_before();
    let (services, service_problems) = services.start(tasks);
    Ok(Datastore {
        resources: resources.subscribe(),
        services,
        served_before,
        service_problems,
        refusals: Some(access.refused()),
        claims: Arc::new(ApiClaims::new(
            Arc::clone(&access),
            owned,
            requests,
            Arc::clone(&cache),
            node,
        )),
        leases: Arc::new(ApiLeases::new(Arc::clone(&access))),
        fills: Some(Arc::new(ApiFills::new(Arc::clone(&access)))),
        reports: Arc::new(ApiReports::new(Arc::clone(&access), node)),
        tenure: Arc::new(ApiTenure { access, cache }),
        pods: Some(Arc::new(pods)),
        own_node: Some(Arc::new(own_node)),
        shared: true,
        problems: problems.subscribe(),
    })
}

/// Takes what was last known for what the API server has not told yet: that is newer.
fn take_known(
    known: Known,
    progress: &watch::Receiver<Progress>,
    resources: &watch::Sender<Arc<Snapshot>>,
    owned: &watch::Sender<Arc<OwnClaims>>,
    requests: &watch::Sender<Arc<NodeRequests>>,
) {
    owned.send_if_modified(|claims| {
        let is_older = !claims.is_complete();
        if is_older {
            Arc::make_mut(claims).set_known(known.claims);
        }
        is_older
    });
    if *progress.borrow() != Progress::Complete {
        requests.send_modify(|requests| Arc::make_mut(requests).set_known(&known.own));
    }
    // Asked where nobody can tell anything at the same time.
    resources.send_if_modified(|snapshot| {
        let is_older = *progress.borrow() != Progress::Complete;
        if is_older {
            *snapshot = Arc::new(known.snapshot);
        }
        is_older
    });
}

/// Waits until everything was told once; with a copy as long as a server may be silent, and may take
/// once it has begun: `false` if what was last known has to do. That the task which
/// is told has died is an error: nothing it would have told is nothing that there is.
async fn wait(
    mut progress: watch::Receiver<Progress>,
    with_copy: Option<[Duration; 2]>,
) -> Result<bool, ApiError> {
    let Some([fresh, answering]) = with_copy else {
        info!("waiting for the API server to tell everything once");
        progress.wait_for(|at| *at == Progress::Complete).await.map_err(|_| ApiError::Died)?;
        return Ok(true);
    };
    let mut comes_to = async |least: Progress, patience: Duration| match timeout(
        patience,
        progress.wait_for(|at| *at >= least),
    )
    .await
    {
        Err(_) => Ok(false),
        Ok(Err(_)) => Err(ApiError::Died),
        Ok(Ok(_)) => Ok(true),
    };
    let is_at_its_end =
        comes_to(Progress::Begun, fresh).await? && comes_to(Progress::Stuck, answering).await?;
    Ok(is_at_its_end && *progress.borrow() == Progress::Complete)
}

/// The copy is this process's to write between the two, and requests are carried until the second.
struct ApiTenure {
    access: Arc<Access>,
    cache: Arc<Mutex<Cache>>,
}

impl Tenure for ApiTenure {
    fn begin(&self) {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).begin();
    }

    fn end(&self) {
        self.access.end();
        // Waits for one that is being written.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_has_a_copy_waits_longer_for_a_server_that_answers() {
        let progress = watch::Sender::new(Progress::Silent);
        let wait = |patience| tokio::spawn(wait(progress.subscribe(), Some(patience)));
        assert!(!wait([Duration::ZERO, LONG]).await.unwrap().unwrap(), "it is silent");
        progress.send_replace(Progress::Begun);
        assert!(!wait([Duration::ZERO; 2]).await.unwrap().unwrap(), "it takes too long");
        progress.send_replace(Progress::Stuck);
        assert!(!wait([LONG; 2]).await.unwrap().unwrap(), "it refuses what is needed");
        progress.send_replace(Progress::Begun);
        let waiting = wait([Duration::ZERO, LONG]);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "it answers");
        progress.send_replace(Progress::Complete);
        assert!(waiting.await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn the_death_of_who_is_told_is_no_empty_snapshot() {
        for with_copy in [None, Some([LONG; 2])] {
            let progress = watch::Sender::new(Progress::Silent);
            let waiting = tokio::spawn(wait(progress.subscribe(), with_copy));
            drop(progress);
            assert!(matches!(waiting.await.unwrap(), Err(ApiError::Died)), "{with_copy:?}");
        }
    }
}
