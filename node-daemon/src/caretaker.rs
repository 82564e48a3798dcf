//! What each daemon does for the nodes that share its datastore: it says by a Lease that it lives, and the one that
//! holds the lock frees what nodes that are gone have left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use nix::fcntl::Flock;
use tokio::{sync::watch, task::block_in_place};
use tracing::info;
use twill_k8s_api::{BlockRequest, BlockRequestSpec, Severity, files::Lease};
use twill_rpc::message::{ErrorKind, IpamNodeReleased, IpamReleaseNode, RpcError};
use twill_types::{Block, error_chain};

use crate::{
    datastore::{ClaimStore, DatastoreError, Leases, Lending, Release, Requests, Snapshot},
    gone::{Absences, had_node},
    ipam::again,
    problems,
};

/// How often a daemon says that it lives, at the most.
const RENEWAL: Duration = Duration::from_secs(60);

/// The task.
pub(crate) struct Caretaker {
    pub(crate) node: String,
    /// Tells this process from the one before, and from another one of the same name.
    pub(crate) instance: String,
    /// How long a node has to be gone, its Node removed and its daemon silent, until what it owned
    /// can be had by others.
    pub(crate) grace: Duration,
    pub(crate) claims: Arc<dyn ClaimStore>,
    pub(crate) leases: Arc<dyn Leases>,
    pub(crate) resources: watch::Receiver<Arc<Snapshot>>,
    pub(crate) problems: watch::Sender<Vec<String>>,
    /// Processes that have renewed the same lease, once it was renewed here.
    pub(crate) others: Mutex<Option<BTreeSet<String>>>,
    /// What each node's lease was last, and since when.
    pub(crate) seen: Mutex<BTreeMap<String, (Lease, Instant)>>,
}

/// What is known of the nodes without a Node.
#[derive(Debug, Default)]
struct Watch {
    lock: Option<Flock<File>>,
    absences: Absences,
}

impl Caretaker {
    /// Renews this node's lease, and looks after the others' as long as the lock can be had.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut watch = Watch::default();
        let mut ticks = tokio::time::interval(self.period());
        loop {
            ticks.tick().await;
            let found = block_in_place(|| {
                let renewed = self.renew().map_err(|error| {
                    let error = error_chain(&error);
                    format!("the lease of this node cannot be renewed; others may take it for gone: {error}")
                });
                let looked = self.look(&mut watch).map_err(|error| {
                    format!("cannot look after nodes that are gone: {}", error_chain(&error))
                });
                [renewed, looked.map(|()| None)]
            });
            let said = found.into_iter().filter_map(|outcome| outcome.unwrap_or_else(Some));
            problems::tell(&self.problems, said.collect());
        }
    }

    fn period(&self) -> Duration {
        RENEWAL.min(self.grace / 4)
    }

    /// Says that this daemon lives; what is wrong with that, if anything is.
    pub(crate) fn renew(&self) -> Result<Option<String>, DatastoreError> {
        let lease = Lease {
            node: self.node.clone(),
            instance: self.instance.clone(),
            seconds: self.period().as_secs().max(1),
            had_node: self.resources.borrow().nodes.contains_key(&self.node),
            renewed: jiff::Timestamp::now().to_string(),
        };
        let before = self.leases.renew(lease)?;
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = others.is_none();
        let known = others.get_or_insert_with(BTreeSet::new);
        let Some(before) = before.filter(|before| before.instance != self.instance) else {
            return Ok(None);
        };
        // What the process before has left does not change any more.
        let twice = !known.insert(before.instance) || !is_first;
        Ok(twice.then(|| {
            format!(
                "another daemon calls itself node {} as well, and both use the same blocks; give one \
                 of them another nodeName",
                self.node
            )
        }))
    }

    /// Frees what nodes owned that are gone, if it is this daemon that does it.
    fn look(&self, watch: &mut Watch) -> Result<(), DatastoreError> {
        if !self.leases.clears_up() {
            return Ok(());
        }
        let leases = self.leases.list()?;
        self.note(&leases);
        if watch.lock.is_none() {
            watch.lock = self.leases.try_lead()?;
            watch.absences.clear();
        }
        let resources = Arc::clone(&self.resources.borrow());
        // A Node may be missing because its file cannot be read.
        let is_sure = resources.problems().iter().all(|p| p.severity != Severity::Error);
        if watch.lock.is_none() || !is_sure {
            return Ok(());
        }
        let owners = self.owners()?;
        let has_node = |node: &str| resources.nodes.contains_key(node) || node == self.node;
        let candidates = owners.iter().chain(leases.keys()).filter(|node| !has_node(node));
        let absent = candidates.map(|node| (node.clone(), leases.get(node).cloned()));
        let absent = absent.filter(|(_, lease)| had_node(lease.as_ref())).collect();
        let now = Instant::now();
        for node in watch.absences.note(now, absent) {
            info!(node, "a node that owns blocks has no Node any more");
        }
        for (node, lease) in watch.absences.gone(now, self.grace) {
            if self.clear_up(&node, lease.as_ref())?.lent.is_empty() {
                watch.absences.forget(&node);
            }
        }
        Ok(())
    }

    /// Notes since when each lease is what it is.
    fn note(&self, leases: &BTreeMap<String, Lease>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|node, (lease, _)| leases.get(node) == Some(lease));
        for (node, lease) in leases {
            seen.entry(node.clone()).or_insert_with(|| (lease.clone(), Instant::now()));
        }
    }

    fn requests(&self) -> Result<Requests, DatastoreError> {
        self.claims.lending().map_or_else(|| Ok(Requests::new()), Lending::requests)
    }

    /// Who owns blocks, or parts of blocks.
    fn owners(&self) -> Result<BTreeSet<String>, DatastoreError> {
        let claims = self.claims.list()?.claims;
        let mut owners: BTreeSet<String> =
            claims.values().map(|claim| claim.node.clone()).collect();
        owners.extend(claims.into_values().flat_map(|c| c.delegations).map(|part| part.node));
        let requests = self.requests()?;
        owners.extend(requests.into_values().flatten().map(|request| request.spec.node));
        Ok(owners)
    }

    /// Frees what a node owned that is gone, as long as its lease is this one. Blocks of which others
    /// have parts stay.
    fn clear_up(
        &self,
        node: &str,
        lease: Option<&Lease>,
    ) -> Result<IpamNodeReleased, DatastoreError> {
        let mut released = IpamNodeReleased::default();
        let still = || Ok(self.leases.get(node)?.as_ref() == lease);
        if !still()? {
            return Ok(released);
        }
        released.parts = self.return_borrowed(node)?;
        for claim in self.claims.list()?.claims.into_values().filter(|claim| claim.node == node) {
            // Nobody else does it any more.
            let claim = match self.claims.lending() {
                Some(lending) => lending.take_back(&claim)?,
                None => Some(claim),
            };
            let Some(claim) = claim else { continue };
            match self.claims.release_if(&claim, &still)? {
                Release::Done => {
                    info!(node, block = %claim.block, "the node is gone: its block is free");
                    released.blocks.push(claim.block);
                }
                Release::Lent => released.lent.push(claim.block),
                Release::Kept | Release::Anothers => {}
            }
        }
        if released.lent.is_empty() && still()? {
            self.leases.remove(node)?;
            if let Some(lending) = self.claims.lending() {
                lending.forget_fill(node)?;
            }
        }
        Ok(released)
    }

    /// The same because somebody says so, without waiting for the grace period.
    pub(crate) fn release_node(
        &self,
        request: &IpamReleaseNode,
    ) -> Result<IpamNodeReleased, RpcError> {
        let IpamReleaseNode { node, force } = request;
        let refuse = |why: String| Err(RpcError { kind: ErrorKind::Invalid, message: why });
        if *node == self.node {
            return refuse(format!("{node} is the node that is asked; ask another one"));
        }
        let lease = self.leases.get(node).map_err(|error| again(&error))?;
        if !force && self.resources.borrow().nodes.contains_key(node) {
            return refuse(format!("{node} has a Node; remove that, or say --force"));
        }
        // By this node's own clock.
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = lease.as_ref().and_then(|lease| {
            let (known, since) = seen.get(node)?;
            let long_enough = since.elapsed() >= Duration::from_secs(lease.seconds * 2);
            (known == lease).then_some(long_enough)
        });
        drop(seen);
        if !force && silent != Some(true) {
            let wait = lease.as_ref().map(|lease| format!("wait {} s, or ", lease.seconds * 2));
            return refuse(format!(
                "it is not certain that the daemon of {node} is gone: nothing says so yet; {}say \
                 --force if it certainly does not run",
                wait.unwrap_or_default()
            ));
        }
        if lease.is_none() && !self.owners().map_err(|error| again(&error))?.contains(node) {
            return refuse(format!("there is no node {node} that owns anything"));
        }
        self.clear_up(node, lease.as_ref()).map_err(|error| again(&error))
    }

    /// Says for a node that is gone that it does not use what it has borrowed.
    fn return_borrowed(&self, node: &str) -> Result<Vec<Block>, DatastoreError> {
        let mut parts = Vec::new();
        let Some(lending) = self.claims.lending() else { return Ok(parts) };
        for claim in self.claims.list()?.claims.into_values() {
            for part in claim.delegations.iter().filter(|part| part.node == node) {
                let spec = BlockRequestSpec {
                    node: node.to_owned(),
                    owner: Some(claim.node.clone()),
                    block: claim.block,
                    pool: claim.pool.clone(),
                    length: part.cidr.prefix().length(),
                    address: None,
                };
                lending.give_up(&part.request, &spec)?;
                parts.push(part.cidr);
            }
        }
        let of_node = |(name, request): (String, Option<BlockRequest>)| {
            let request = request.filter(|request| request.spec.node == node)?;
            (!request.outcome().returned).then_some((name, request.spec))
        };
        for (name, spec) in self.requests()?.into_iter().filter_map(of_node) {
            info!(
                node,
                request = name,
                "the node is gone: what it asked for is not wanted any more"
            );
            lending.give_up(&name, &spec)?;
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests;
