//! A node as the API server sees it, without kernel, store and BGP: many of them in one process are a large
//! cluster. `twill-bench-scale` measures with it; the daemon has no use for it.
//!
//! Promise: what a [`Member`] asks of the API server, it asks by the code of the daemon. It watches what a
//! node watches, claims blocks, renews its Lease, and tells what it makes of each object and how full its
//! blocks are. What is missing is only what pods would bring.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{pending, ready},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{sync::watch, task::block_in_place};
use twill_ipam::next_candidate;
use twill_k8s_api::{
    Condition, IpPool, Kind, ObjectId,
    files::{BlockFill, Claim, NodeFill},
};
use twill_types::Block;

use crate::{
    backoff::Backoff,
    caretaker::Caretaker,
    datastore::{ClaimStore, Claimant, Datastore, Fills, Snapshot, kubernetes, new_uid},
    host::DATAPLANE_READY,
    node::report_status,
    tasks::Tasks,
};

/// The pause before something is tried again: the daemon's own look at its blocks.
const AGAIN: Duration = Duration::from_secs(1);

/// As the configuration has it where it says nothing.
const GONE_NODE_GRACE: Duration = Duration::from_secs(900);

/// One node.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name, which the token in the kubeconfig has to be bound to.
    pub node: String,
    /// How it reaches the API server.
    pub kubeconfig: PathBuf,
    /// Where its copy of what was last known is kept. The directory is made.
    pub state_dir: PathBuf,
    /// How many blocks it claims, at the least, of the pool that comes first by name.
    pub blocks: usize,
}

/// A node that has its blocks.
#[derive(Debug)]
pub struct Running {
    /// What it has.
    blocks: Vec<Block>,
    tasks: Tasks,
}

impl Running {
    /// The blocks that it has claimed.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Runs on, until something fails that may not.
    pub async fn run(mut self) -> anyhow::Result<()> {
        Err(self.tasks.first_to_end().await)
    }
}

impl Member {
    /// Starts the node's tasks, and waits until it has its blocks. It has to be called in a
    /// runtime of several threads, which needs one that may block for each node that starts.
    pub async fn start(&self) -> anyhow::Result<Running> {
        let mut tasks = Tasks::default();
        let (kubeconfig, problems) = (Some(self.kubeconfig.as_path()), watch::Sender::default());
        let datastore =
            kubernetes::open(kubeconfig, &self.state_dir, &self.node, problems, &mut tasks);
        let datastore = datastore.await.with_context(|| format!("{} cannot start", self.node))?;
        datastore.tenure.begin();
        let found = Condition::holds(DATAPLANE_READY, "ChecksPass", "");
        let host = watch::Sender::new(Some(found));
        let conditions = self.start_tasks(&datastore, &host, &mut tasks);
        let claims = self.claims(&datastore, &conditions).await?;
        let fills = datastore.fills.clone().context("nobody wants to know how full blocks are")?;
        tasks.endless("fill", tell_fill(fills, self.fill(&claims)));
        let blocks = claims.iter().map(|claim| claim.block).collect();
        // The problems' receivers and the rest of it live as long as the tasks.
        tasks.endless("datastore", async move {
            let _kept = (datastore, conditions, host);
            pending().await
        });
        Ok(Running { blocks, tasks })
    }

    /// The tasks that have nothing to do with kernel and store; where they are told what to say about pools.
    fn start_tasks(
        &self,
        datastore: &Datastore,
        host: &watch::Sender<Option<Condition>>,
        tasks: &mut Tasks,
    ) -> watch::Sender<BTreeMap<ObjectId, Vec<Condition>>> {
        let conditions = watch::Sender::new(BTreeMap::new());
        let resources = &datastore.resources;
        // Of BGP there is nothing to say, and its sender is the first's.
        let said = [conditions.subscribe(), conditions.subscribe()];
        let of_host = (self.node.clone(), host.subscribe());
        let reports = Arc::clone(&datastore.reports);
        let problems = watch::Sender::default();
        tasks.endless("status", report_status(reports, resources.clone(), said, of_host, problems));
        if let Some(own_node) = &datastore.own_node {
            tasks.endless(
                "own Node",
                Arc::clone(own_node).run(resources.clone(), host.subscribe(), ready(())),
            );
        }
        let caretaker = Caretaker {
            node: self.node.clone(),
            instance: new_uid(),
            leases: Arc::clone(&datastore.leases),
            grace: GONE_NODE_GRACE,
            claims: Arc::clone(&datastore.claims),
            resources: resources.clone(),
            problems: watch::Sender::default(),
            others: Mutex::default(),
            seen: Mutex::default(),
        };
        tasks.endless("lease", Arc::new(caretaker).run());
        conditions
    }

    /// The claims of the process before, and as many more as are missing.
    async fn claims(
        &self,
        datastore: &Datastore,
        conditions: &watch::Sender<BTreeMap<ObjectId, Vec<Condition>>>,
    ) -> anyhow::Result<Vec<Claim>> {
        let resources = Arc::clone(&datastore.resources.borrow());
        let store = &datastore.claims;
        let (name, pool) = resources.pools.first_key_value().context("there is no pool")?;
        let own = || -> anyhow::Result<Vec<Claim>> {
            let known = block_in_place(|| store.known(&[]))?.claims.into_values();
            Ok(known.filter(|claim| claim.node == self.node).collect())
        };
        block_in_place(|| store.settled_pools(&resources, &Default::default()));
        let mut retry = Backoff::new(AGAIN, store.patience());
        let mut claims = own()?;
        while claims.len() < self.blocks {
            match block_in_place(|| self.claim(store.as_ref(), &resources, pool)) {
                Ok(claim) => {
                    claim.with_context(|| format!("{name} has no space"))?;
                    retry.succeeded();
                }
                // As a daemon does that finds others faster, or the server slow. It may be there all the same.
                Err(_) => tokio::time::sleep(retry.failed()).await,
            }
            claims = own()?;
        }
        let distinct: BTreeSet<Block> = claims.iter().map(|claim| claim.block).collect();
        ensure!(distinct.len() == claims.len(), "{} has a block twice: {claims:?}", self.node);
        let id = ObjectId {
            kind: Kind::IpPool.singular().to_owned(),
            namespace: None,
            name: name.clone(),
        };
        let usable = Condition::holds("Allocatable", "Usable", "");
        conditions.send_replace(BTreeMap::from([(id, vec![usable])]));
        Ok(claims)
    }

    fn claim(
        &self,
        store: &dyn ClaimStore,
        resources: &Snapshot,
        pool: &IpPool,
    ) -> anyhow::Result<Option<Claim>> {
        let (cidr, size) = (pool.spec.cidr, pool.spec.block_size());
        let who = Claimant { node: &self.node, pool: &pool.metadata.name, dedication: None };
        let reserved = || resources.reservations.clone();
        Ok(store.claim(who, &|taken| {
            next_candidate(cidr, size, &self.node, &taken.clone().without(reserved()))
        })?)
    }

    /// Its blocks are empty, and stay so.
    fn fill(&self, claims: &[Claim]) -> NodeFill {
        NodeFill {
            node: self.node.clone(),
            since: jiff::Timestamp::now().to_string(),
            blocks: claims.iter().map(empty).collect(),
        }
    }
}

/// Writes it when there is a status object, which another task makes; after a failure as late as the daemon.
async fn tell_fill(fills: Arc<dyn Fills>, fill: NodeFill) {
    loop {
        match block_in_place(|| fills.write(&fill)) {
            Ok(true) => return pending().await,
            Ok(false) => tokio::time::sleep(AGAIN).await,
            Err(_) => tokio::time::sleep(fills.period()).await,
        }
    }
}

fn empty(claim: &Claim) -> BlockFill {
    let size: u32 = claim.block.size().into();
    BlockFill {
        block: claim.block,
        pool: claim.pool.clone(),
        size,
        used: 0,
        free: size,
        cooling: 0,
        reserved: 0,
        lent: 0,
        dedication: None,
    }
}
