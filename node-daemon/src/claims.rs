//! Which blocks this node owns: the one task that claims, and that tells the store, the speaker
//! and the kernel about it.

mod exhaustion;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::block_in_place,
};
use tracing::{info, warn};
use twill_ipam::{
    BlockSummary, Eligibility, OwnedBlock, Refusal, Shortage, Taken, eligibility, next_candidate,
};

use twill_ipam_store::{Service, StoreError};
use twill_k8s_api::files::{Claim, FileError};
use twill_rpc::message::{ErrorKind, RpcError};
use twill_types::{Block, Dedication, Family, Prefix, error_chain};

use crate::{
    datastore::{ClaimOutcome, ClaimStore, Snapshot},
    ipam::{PoolView, View, again},
};

/// How often a block without a pool is looked at until its last pod is gone.
const DRAIN_PERIOD: Duration = Duration::from_secs(1);

/// What the task is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// An assignment lacks a block: get it.
    Claim {
        /// What was refused, and for lack of which block.
        refusal: Refusal,
        /// Told once it is worth asking the store again, or why it is not.
        reply: oneshot::Sender<Result<(), RpcError>>,
    },
    /// The blocks of a pool are nearly full: get one before it is needed.
    Ahead {
        /// The pool.
        pool: String,
    },
    /// Is there no address left for those who name no pool?
    Exhausted {
        /// Told the answer.
        reply: oneshot::Sender<bool>,
    },
}

/// The blocks of this node, each with whether it is announced.
pub(crate) type OwnedBlocks = BTreeMap<Block, bool>;

/// Why the task cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimsError {
    #[error("cannot read the claims")]
    Read(#[source] FileError),
    #[error("the address store failed")]
    Store(#[from] StoreError),
}

/// The task.
pub(crate) struct Claims {
    pub(crate) node: String,
    /// Several daemons use the datastore.
    pub(crate) shared: bool,
    pub(crate) store: ClaimStore,
    pub(crate) service: Arc<Service>,
    pub(crate) resources: watch::Receiver<Arc<Snapshot>>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) view: watch::Sender<Arc<View>>,
    pub(crate) owned: watch::Sender<Option<OwnedBlocks>>,
    pub(crate) problems: watch::Sender<Vec<String>>,
    /// Families in which somebody who named no pool got no address.
    pub(crate) refused: BTreeSet<Family>,
    /// Some block waits for its last pod to go.
    pub(crate) draining: bool,
    /// The store could not take over what the claims say.
    pub(crate) behind: bool,
}

/// The pools as the choice of pools sees them.
fn pool_views(resources: &Snapshot) -> BTreeMap<String, twill_ipam::PoolView> {
    let view = |(name, pool): (&String, &twill_k8s_api::IpPool)| {
        let view = twill_ipam::PoolView {
            name: name.clone(),
            cidr: pool.spec.cidr,
            block_size: pool.spec.block_size(),
            node_selector: pool.spec.node_selector.clone().unwrap_or_default(),
            disabled: pool.spec.disabled || !pool.spec.is_for_workloads(),
        };
        (name.clone(), view)
    };
    resources.pools.iter().map(view).collect()
}

impl Claims {
    /// Runs until a file or the store fails.
    pub(crate) async fn run(mut self) -> Result<(), ClaimsError> {
        block_in_place(|| self.bring_in_line())?;
        let mut again = tokio::time::interval(DRAIN_PERIOD);
        loop {
            tokio::select! {
                _ = again.tick(), if self.draining || self.behind => {
                    block_in_place(|| self.bring_in_line())?;
                }
                changed = self.resources.changed() => {
                    if changed.is_err() { return Ok(()) }
                    block_in_place(|| self.bring_in_line())?;
                }
                command = self.commands.recv() => match command {
                    None => return Ok(()),
                    Some(Command::Claim { refusal, reply }) => {
                        let result = block_in_place(|| self.claim(&refusal));
                        let _ = reply.send(result);
                    }
                    Some(Command::Ahead { pool }) => {
                        if let Err(error) = block_in_place(|| self.ahead(&pool)) {
                            warn!(pool, %error, "no block could be claimed ahead of need");
                        }
                    }
                    Some(Command::Exhausted { reply }) => {
                        let exhausted = block_in_place(|| self.exhausted()).unwrap_or_else(|error| {
                            warn!(error = %error_chain(&error), "cannot tell what is left to claim");
                            false
                        });
                        let _ = reply.send(exhausted);
                    }
                }
            }
        }
    }

    /// [`Claims::load`], as often as it takes where the store cannot be written: a file system that
    /// is full is no reason to take down what works.
    fn bring_in_line(&mut self) -> Result<(), ClaimsError> {
        match self.load() {
            Err(ClaimsError::Store(error @ StoreError::Batch(_))) => {
                if !self.behind {
                    warn!(error = %error_chain(&error), "the claims cannot be taken over yet");
                }
                self.behind = true;
                Ok(())
            }
            other => {
                self.behind = false;
                other
            }
        }
    }

    /// Brings store, view and announcements in line with claims and resources.
    fn load(&mut self) -> Result<(), ClaimsError> {
        let resources = Arc::clone(&self.resources.borrow_and_update());
        let pools = pool_views(&resources);
        let labels = resources.nodes.get(&self.node).map(|node| node.metadata.labels.clone());
        let eligible = eligibility(&pools, &labels.unwrap_or_default());
        self.claim_static(&resources, &pools);
        self.service.reserve(resources.reservations.clone())?;
        let rest = resources.ipam_config().ip_cooldown_seconds;
        self.service.set_rest(Duration::from_secs(rest.into()))?;

        let claims = self.store.list().map_err(ClaimsError::Read)?;
        let mut problems: Vec<String> = claims.problems.iter().map(ToString::to_string).collect();
        let mine = claims.claims.into_values().filter(|claim| claim.node == self.node);
        let mut mine: BTreeMap<Block, Claim> = mine.map(|claim| (claim.block, claim)).collect();
        let unused = self.take_unused(&mut mine, &resources, &mut problems)?;
        for (block, claim) in &mine {
            let assignable = eligible.get(&claim.pool).is_some_and(gives);
            let dedication = claim.dedication.clone();
            let owned = OwnedBlock { block: *block, pool: claim.pool.clone(), dedication };
            self.service.set_block(owned, assignable)?;
        }
        for summary in self.service.blocks()? {
            if mine.contains_key(&summary.block) || self.service.remove_block(summary.block)? {
                continue;
            }
            // Pods live on addresses that this node does not own, or not any more: they keep
            // them, and nobody else gets one.
            problems.push(format!(
                "{} addresses of {} are in use here, and this node has no claim for it; it is \
                 not announced: delete these pods",
                summary.used, summary.block
            ));
            let BlockSummary { block, pool, dedication, .. } = summary;
            let owned = OwnedBlock { block, pool, dedication };
            self.service.set_block(owned, false)?;
        }
        self.problems.send_replace(problems);
        let owned = mine.values().map(|claim| (claim.block, is_announced(claim)));
        self.publish_owned(owned.collect());
        self.publish_view(&pools, eligible);
        // Withdrawn before it is released.
        for claim in unused {
            if self.store.release(&claim).map_err(ClaimsError::Read)? {
                info!(block = %claim.block, pool = claim.pool, "the pool is gone: released a block");
            }
        }
        Ok(())
    }

    /// Takes the blocks out of `mine` whose pool no longer exists and that no pod is in. Those
    /// with pods are drained: they are looked at again until the last pod is gone.
    fn take_unused(
        &mut self,
        mine: &mut BTreeMap<Block, Claim>,
        resources: &Snapshot,
        problems: &mut Vec<String>,
    ) -> Result<Vec<Claim>, ClaimsError> {
        let node = resources.nodes.get(&self.node);
        let is_static = |block| node.is_some_and(|node| node.spec.blocks.contains(block));
        let orphans: Vec<Block> = mine
            .values()
            .filter(|claim| !resources.pools.contains_key(&claim.pool) && !is_static(&claim.block))
            .map(|claim| claim.block)
            .collect();
        let mut unused = Vec::new();
        self.draining = false;
        for block in orphans {
            if self.service.remove_block(block)? {
                unused.extend(mine.remove(&block));
                continue;
            }
            self.draining = true;
            problems.push(format!(
                "the pool of {block} was removed, and pods still live in it; no new one gets an \
                 address there, and the block goes with the last of them"
            ));
        }
        Ok(unused)
    }

    fn publish_owned(&self, blocks: OwnedBlocks) {
        self.owned.send_if_modified(|owned| {
            let changed = owned.as_ref() != Some(&blocks);
            *owned = Some(blocks);
            changed
        });
    }

    fn publish_view(
        &self,
        pools: &BTreeMap<String, twill_ipam::PoolView>,
        eligible: BTreeMap<String, Eligibility>,
    ) {
        let view = |(name, eligibility): (String, Eligibility)| {
            let cidr = pools.get(&name)?.cidr;
            let Eligibility { refusal, unusable } = eligibility;
            Some((name, PoolView { cidr, refusal, unusable }))
        };
        let pools = eligible.into_iter().filter_map(view).collect();
        self.view.send_replace(Arc::new(View { ready: true, pools }));
    }

    /// Claims the `blocks:` of the node's own manifest.
    fn claim_static(&self, resources: &Snapshot, pools: &BTreeMap<String, twill_ipam::PoolView>) {
        let Some(node) = resources.nodes.get(&self.node) else {
            return;
        };
        for block in &node.spec.blocks {
            let pool = pools.values().find(|pool| pool.cidr.covers(block.prefix()));
            let name = pool.map_or("static", |pool| pool.name.as_str());
            match self.store.try_claim(*block, &self.node, name, None) {
                Ok(ClaimOutcome::Won(_)) => {}
                Ok(ClaimOutcome::Lost(other)) => {
                    warn!(%block, owner = other.node, "a static block belongs to another node");
                }
                Err(error) => {
                    warn!(%block, error = %error_chain(&error), "cannot claim a static block")
                }
            }
        }
    }

    /// Claims the block that an assignment lacks, unless there is one by now: of many requests that
    /// wait, one claim serves them all.
    fn claim(&mut self, refusal: &Refusal) -> Result<(), RpcError> {
        let blocks = self.service.blocks().map_err(|error| again(&error))?;
        match refusal {
            Refusal::Full(shortage) => self.claim_any(shortage, &blocks),
            Refusal::NoBlock { address, pools, dedication } => {
                self.claim_around(*address, pools, dedication.as_ref(), &blocks)
            }
            // No block would help.
            Refusal::Taken { .. }
            | Refusal::Cooling { .. }
            | Refusal::Resting { .. }
            | Refusal::Reserved { .. }
            | Refusal::Withheld { .. } => Ok(()),
        }
    }

    /// Claims one block in the first of the pools that has one.
    fn claim_any(&mut self, shortage: &Shortage, blocks: &[BlockSummary]) -> Result<(), RpcError> {
        let Shortage { family, pools, dedication, .. } = shortage;
        let would_do = |block: &&BlockSummary| {
            block.assignable
                && block.block.family() == *family
                && pools.contains(&block.pool)
                && block.dedication == *dedication
        };
        if blocks.iter().filter(would_do).count() > shortage.blocks {
            return Ok(());
        }
        let resources = Arc::clone(&self.resources.borrow());
        let allowed = self.may_claim(&resources, *family, blocks);
        if allowed.is_ok() {
            for name in pools {
                let claimed = self.claim_in(&resources, name, dedication.as_ref());
                if claimed.map_err(|error| again(&error))? {
                    return Ok(());
                }
            }
        }
        let try_again = |message| Err(RpcError { kind: ErrorKind::TryAgain, message });
        if shortage.held > 0 {
            let message =
                "addresses of pods that were deleted can be had once their links are gone";
            return try_again(format!("{} {message}", shortage.held));
        }
        self.note_refused(shortage);
        if let Some(seconds) = shortage.rested_in {
            return try_again(format!(
                "every address that is left rests after use; the first can be had in {seconds} s \
                 (ipCooldownSeconds)"
            ));
        }
        let message = allowed.err().unwrap_or_else(|| {
            format!(
                "every address of pools {} that node {} can have is in use; add a pool, or delete \
                 pods",
                pools.join(", "),
                self.node
            )
        });
        Err(RpcError { kind: ErrorKind::Exhausted, message })
    }

    /// Claims the block that an address lies in.
    fn claim_around(
        &mut self,
        address: IpAddr,
        pools: &[String],
        dedication: Option<&Dedication>,
        blocks: &[BlockSummary],
    ) -> Result<(), RpcError> {
        let refuse = |kind, why: String| {
            Err(RpcError { kind, message: format!("{address} cannot be had: {why}") })
        };
        if let Some(owned) = blocks.iter().find(|block| block.block.prefix().contains(address)) {
            if owned.assignable && owned.dedication.as_ref() == dedication {
                return Ok(());
            }
            let why = match &owned.dedication {
                Some(other) => {
                    format!("{} is set aside for network {}", owned.block, other.network)
                }
                None if owned.assignable => format!("{} is for pods of twill itself", owned.block),
                None => format!("{} gives no new addresses", owned.block),
            };
            return refuse(ErrorKind::Taken, format!("{why}; ask for another one"));
        }
        let resources = Arc::clone(&self.resources.borrow());
        if let Err(why) = self.may_claim(&resources, Family::of(address), blocks) {
            return refuse(ErrorKind::Exhausted, why);
        }
        let pool = pools
            .iter()
            .filter_map(|name| Some((name, resources.pools.get(name)?)))
            .find(|(_, pool)| pool.spec.cidr.contains(address));
        let block = pool.and_then(|(name, pool)| {
            Some((name, Block::new(Prefix::masked(address, pool.spec.block_size()).ok()?).ok()?))
        });
        let Some((name, block)) = block else {
            return refuse(ErrorKind::Invalid, "no pool of it has blocks".to_owned());
        };
        match self.take(block, name, dedication).map_err(|error| again(&error))? {
            None => Ok(()),
            Some(owner) => refuse(
                ErrorKind::Taken,
                format!("its block {block} belongs to node {owner}; ask for an address of another"),
            ),
        }
    }

    fn ahead(&mut self, pool: &str) -> Result<(), ClaimsError> {
        let resources = Arc::clone(&self.resources.borrow());
        let family = resources.pools.get(pool).map(|pool| pool.spec.cidr.family());
        let blocks = self.service.blocks()?;
        if family.is_some_and(|family| self.may_claim(&resources, family, &blocks).is_ok()) {
            self.claim_in(&resources, pool, None)?;
        }
        Ok(())
    }

    /// Whether this node, with these blocks, may take another one by itself.
    fn may_claim(
        &self,
        resources: &Snapshot,
        family: Family,
        blocks: &[BlockSummary],
    ) -> Result<(), String> {
        let config = resources.ipam_config();
        let limit = config.max_blocks_per_host as usize;
        let count = blocks.iter().filter(|block| block.block.family() == family).count();
        if limit > 0 && count >= limit {
            return Err(format!(
                "node {} has {count} {family} blocks and may have {limit}; raise maxBlocksPerHost in \
                 the IPAMConfiguration, or delete pods",
                self.node
            ));
        }
        if !config.auto_allocate_blocks {
            return Err(
                "autoAllocateBlocks of the IPAMConfiguration is false, so this node takes no \
                        block by itself; list more blocks in its Node"
                    .to_owned(),
            );
        }
        if !self.shared && resources.nodes.len() > 1 {
            return Err(format!(
                "the datastore has {} nodes and is not shared, so node {} takes no block by \
                 itself; list blocks in its Node, or set datastore.shared",
                resources.nodes.len(),
                self.node
            ));
        }
        Ok(())
    }

    fn claim_in(
        &self,
        resources: &Snapshot,
        name: &str,
        dedication: Option<&Dedication>,
    ) -> Result<bool, ClaimsError> {
        let Some(pool) = resources.pools.get(name) else {
            return Ok(false);
        };
        loop {
            let taken = self.taken(resources)?;
            let (cidr, size) = (pool.spec.cidr, pool.spec.block_size());
            let Some(block) = next_candidate(cidr, size, &self.node, &taken) else {
                return Ok(false);
            };
            match self.take(block, name, dedication)? {
                None => return Ok(true),
                Some(owner) => {
                    info!(%block, owner, "another node was faster; trying the next");
                }
            }
        }
    }

    /// What this node cannot claim, or need not.
    fn taken(&self, resources: &Snapshot) -> Result<Taken, ClaimsError> {
        let taken = self.store.taken().map_err(ClaimsError::Read)?;
        Ok(taken.without(resources.reservations.clone()))
    }

    /// Claims one block and takes it into use; answers the owner if that is another node.
    fn take(
        &self,
        block: Block,
        pool: &str,
        dedication: Option<&Dedication>,
    ) -> Result<Option<String>, ClaimsError> {
        let outcome = self.store.try_claim(block, &self.node, pool, dedication);
        match outcome.map_err(ClaimsError::Read)? {
            ClaimOutcome::Won(claim) => {
                info!(%block, pool, ?dedication, "claimed a block");
                let announced = is_announced(&claim);
                let Claim { pool, dedication, .. } = claim;
                self.service.set_block(OwnedBlock { block, pool, dedication }, true)?;
                let mut blocks = self.owned.borrow().clone().unwrap_or_default();
                blocks.insert(block, announced);
                self.publish_owned(blocks);
                Ok(None)
            }
            ClaimOutcome::Lost(other) => Ok(Some(other.node)),
        }
    }
}

/// A network of another main plugin says itself whether its blocks are announced.
fn is_announced(claim: &Claim) -> bool {
    claim.dedication.as_ref().is_none_or(|dedication| dedication.advertise)
}

/// Whether blocks of a pool give addresses: also where the pool does not select this node, for
/// those who ask for the pool or for an address by name.
fn gives(eligibility: &Eligibility) -> bool {
    eligibility.unusable.is_none()
}
