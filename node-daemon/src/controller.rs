//! The work for the cluster as a whole: what nodes that are gone have left behind. One daemon of those
//! that share a datastore does it, the one that holds the lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::{sync::watch, task::block_in_place};
use tracing::{info, warn};
use twill_ipam_store::private_file;
use twill_k8s_api::files::FileError;
use twill_types::error_chain;

use crate::datastore::{ClaimStore, Leases, Requests, Snapshot};

/// How often a daemon says that it lives, at the most.
const RENEWAL: Duration = Duration::from_secs(60);

/// The task.
pub(crate) struct Controller {
    pub(crate) node: String,
    pub(crate) directory: PathBuf,
    /// How long a node has to be gone, its Node removed and its daemon silent, until what it owned
    /// can be had by others.
    pub(crate) grace: Duration,
    pub(crate) claims: ClaimStore,
    pub(crate) requests: Requests,
    pub(crate) leases: Leases,
    pub(crate) resources: watch::Receiver<Arc<Snapshot>>,
}

/// A node without a Node, as far as it was seen.
#[derive(Debug)]
struct Missing {
    since: Instant,
    /// What its daemon said last: a change means that it lives.
    lease: Option<String>,
}

impl Controller {
    /// Renews this node's lease, and looks after the others' as long as the lock can be had.
    pub(crate) async fn run(self) {
        let mut missing = BTreeMap::new();
        let mut lock = None;
        let mut told = String::new();
        let mut ticks = tokio::time::interval(RENEWAL.min(self.grace / 4));
        loop {
            ticks.tick().await;
            let done = block_in_place(|| self.turn(&mut lock, &mut missing));
            let fault = done.map_err(|error| error_chain(&error).to_string()).err();
            let fault = fault.unwrap_or_default();
            if !fault.is_empty() && fault != told {
                warn!(error = fault, "cannot look after the nodes that are gone; trying again");
            }
            told = fault;
        }
    }

    fn turn(
        &self,
        lock: &mut Option<Flock<File>>,
        missing: &mut BTreeMap<String, Missing>,
    ) -> Result<(), FileError> {
        self.leases.renew(&self.node)?;
        if lock.is_none() {
            *lock = try_lock(&self.directory)?;
            missing.clear();
        }
        if lock.is_none() {
            return Ok(());
        }
        let nodes = Arc::clone(&self.resources.borrow());
        let leases = self.leases.list()?;
        let owners = self.owners()?;
        missing.retain(|node, _| owners.contains(node) || leases.contains_key(node));
        let known = |node: &String| nodes.nodes.contains_key(node) || *node == self.node;
        for node in owners.iter().chain(leases.keys()) {
            if known(node) {
                missing.remove(node);
                continue;
            }
            let lease = leases.get(node).cloned();
            let seen = missing.entry(node.clone()).or_insert_with(|| {
                info!(node, "a node that owns blocks has no Node");
                Missing { since: Instant::now(), lease: lease.clone() }
            });
            if seen.lease != lease {
                *seen = Missing { since: Instant::now(), lease };
            }
        }
        let gone: Vec<String> = missing
            .iter()
            .filter(|(_, seen)| seen.since.elapsed() >= self.grace)
            .map(|(node, _)| node.clone())
            .collect();
        for node in gone {
            if self.clear_up(&node)? {
                missing.remove(&node);
            }
        }
        Ok(())
    }

    /// Who owns blocks, or parts of blocks.
    fn owners(&self) -> Result<BTreeSet<String>, FileError> {
        let claims = self.claims.list()?;
        let owners = claims.claims.into_values().map(|claim| claim.node);
        let requests = self.requests.list()?;
        let borrowers = requests.into_values().flatten().map(|request| request.spec.node);
        Ok(owners.chain(borrowers).collect())
    }

    /// Frees what a node owned that is gone; false as long as others have parts of its blocks.
    fn clear_up(&self, node: &str) -> Result<bool, FileError> {
        for (name, request) in self.requests.list()? {
            if request.is_some_and(|request| request.spec.node == node) {
                info!(node, request = name, "the node is gone: what it borrowed goes back");
                self.requests.withdraw(&name)?;
            }
        }
        let requests = self.requests.list()?;
        let mut all = true;
        for claim in self.claims.list()?.claims.into_values().filter(|claim| claim.node == node) {
            let in_use = claim.delegations.iter().any(|part| requests.contains_key(&part.request));
            if in_use {
                all = false;
                continue;
            }
            // Nobody else writes it any more.
            let Some(claim) = self.claims.delegate(&claim, Vec::clear)? else {
                continue;
            };
            if self.claims.release(&claim)? {
                info!(node, block = %claim.block, "the node is gone: its block is free");
            }
        }
        if all {
            self.leases.remove(node)?;
        }
        Ok(all)
    }
}

/// The lock of the one daemon that does this; `None` if another one has it.
fn try_lock(directory: &Path) -> Result<Option<Flock<File>>, FileError> {
    let path = directory.join("leases").join(".controller");
    let failed = |source| FileError::Io { action: "lock", path: path.clone(), source };
    let file = private_file(&path).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::BlockRequestSpec;
    use twill_types::Block;

    use super::*;
    use crate::datastore::Claimant;

    struct Site {
        root: tempfile::TempDir,
        claims: ClaimStore,
        missing: BTreeMap<String, Missing>,
        lock: Option<Flock<File>>,
    }

    impl Site {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let claims = ClaimStore::open(root.path()).unwrap();
            Self { root, claims, missing: BTreeMap::new(), lock: None }
        }

        fn controller(&self, grace: Duration) -> Controller {
            let (sender, resources) = watch::channel(Arc::new(Snapshot::default()));
            drop(sender);
            Controller {
                node: "node1".to_owned(),
                directory: self.root.path().to_owned(),
                grace,
                claims: self.claims.clone(),
                requests: Requests::open(self.root.path()).unwrap(),
                leases: Leases::open(self.root.path()).unwrap(),
                resources,
            }
        }

        fn claim(&self, node: &str, block: &str) -> Block {
            let block = block.parse().unwrap();
            let who = Claimant { node, pool: "a", dedication: None };
            self.claims.claim(who, |_| Some(block)).unwrap().unwrap();
            block
        }

        fn turn(&mut self, controller: &Controller) -> Vec<Block> {
            controller.turn(&mut self.lock, &mut self.missing).unwrap();
            self.claims.list().unwrap().claims.into_keys().collect()
        }
    }

    #[test]
    fn the_blocks_of_a_node_that_is_gone_return_after_the_grace_period() {
        let mut site = Site::new();
        let own = site.claim("node1", "10.0.0.0/26");
        let gone = site.claim("gone", "10.0.0.64/26");
        let patient = site.controller(Duration::from_secs(3600));
        assert_eq!(site.turn(&patient), [own, gone], "before the grace period is over");
        let hasty = site.controller(Duration::ZERO);
        // Its daemon has said something since, so it lives.
        hasty.leases.renew("gone").unwrap();
        let changed = site.missing["gone"].since;
        site.turn(&patient);
        assert!(site.missing["gone"].since > changed);
        assert_eq!(site.turn(&hasty), [own]);
        assert!(!hasty.leases.list().unwrap().contains_key("gone"));
    }

    #[test]
    fn one_daemon_does_it() {
        let mut site = Site::new();
        let gone = site.claim("gone", "10.0.0.64/26");
        let other = try_lock(site.controller(Duration::ZERO).directory.as_path()).unwrap();
        assert!(other.is_some());
        let hasty = site.controller(Duration::ZERO);
        assert_eq!(site.turn(&hasty), [gone]);
        drop(other);
        assert_eq!(site.turn(&hasty), []);
    }

    #[test]
    fn a_block_stays_as_long_as_another_node_has_a_part_of_it() {
        let mut site = Site::new();
        let hasty = site.controller(Duration::ZERO);
        let block = site.claim("gone", "10.0.0.64/26");
        let spec = BlockRequestSpec {
            node: "node1".to_owned(),
            block,
            pool: "a".to_owned(),
            length: 29,
            address: None,
        };
        let request = hasty.requests.ask(spec).unwrap();
        let claim = site.claims.get(block).unwrap().unwrap();
        let part = twill_k8s_api::Delegation {
            cidr: "10.0.0.64/29".parse().unwrap(),
            node: "node1".to_owned(),
            request: request.clone(),
        };
        let claim = site.claims.delegate(&claim, |parts| parts.push(part)).unwrap().unwrap();
        assert!(!site.claims.release(&claim).unwrap(), "nobody can release it");
        assert_eq!(site.turn(&hasty), [block]);
        hasty.requests.withdraw(&request).unwrap();
        assert_eq!(site.turn(&hasty), []);
    }
}
