//! Which blocks this node owns: the one task that claims, lends, borrows and gives back, and that
//! tells the store, the speaker and the kernel about it.

mod borrow;
mod claim;
mod exhaustion;
mod give_back;
mod lend;
mod load;
mod said;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::block_in_place,
};
use tracing::warn;
use twill_ipam::Refusal;
use twill_ipam_store::{Service, StoreError};
use twill_k8s_api::{Condition, ObjectId, files::Claim};
use twill_rpc::message::RpcError;
use twill_types::{Block, Family, error_chain};

use self::{borrow::Borrowing, give_back::Leaving};
use crate::{
    backoff::Backoff,
    datastore::{
        ClaimStore, DatastoreError, Lending, Requests, Snapshot, Stamp, kubernetes::ApiError,
    },
    ipam::View,
    problems,
    routes::{KernelRoutes, OriginConflict},
};

/// Poll interval for other daemons' writes and for our own unfinished steps, on a shared datastore.
const LOOK: Duration = Duration::from_secs(1);

/// Poll interval for an owner's answer while an ADD waits for it.
const IMPATIENT_LOOK: Duration = Duration::from_millis(200);

/// Poll interval where nobody else writes and no step is unfinished.
const IDLE_LOOK: Duration = Duration::from_secs(5);

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
    /// Look at the claims again, as after a change of the resources.
    BringInLine {
        /// Told when that is done.
        reply: oneshot::Sender<()>,
    },
    /// Is there no address left for those who name no pool?
    Exhausted {
        /// Told the answer.
        reply: oneshot::Sender<bool>,
    },
}

/// The blocks of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnedBlocks {
    /// Each with whether it is announced; parts of others' blocks, too.
    pub(crate) blocks: BTreeMap<Block, bool>,
    /// Parts of them that other nodes have.
    pub(crate) lent: BTreeSet<Block>,
}

/// Why something cannot be done now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimsError {
    #[error("the datastore cannot be used")]
    Datastore(#[from] DatastoreError),
    #[error("the address store failed")]
    Store(#[from] StoreError),
}

impl ClaimsError {
    /// Whether it may pass: a file system that is full or away is no reason to take down what works.
    const fn may_pass(&self) -> bool {
        matches!(self, Self::Datastore(_) | Self::Store(StoreError::Batch(_)))
    }

    /// Whether a right is missing: that is said where it was met, once.
    const fn is_refusal(&self) -> bool {
        matches!(self, Self::Datastore(DatastoreError::Api(ApiError::Forbidden { .. })))
    }
}

/// The task.
pub(crate) struct Claims {
    pub(crate) node: String,
    /// Several daemons use the datastore.
    pub(crate) shared: bool,
    /// How long a block has to be empty until it is given back.
    pub(crate) grace: Duration,
    pub(crate) store: Arc<dyn ClaimStore>,
    pub(crate) service: Arc<Service>,
    pub(crate) resources: watch::Receiver<Arc<Snapshot>>,
    /// What peers announce of this node's blocks.
    pub(crate) conflicts: watch::Receiver<Vec<OriginConflict>>,
    /// What others announce, as far as it is in the kernel.
    pub(crate) learned: watch::Receiver<Arc<KernelRoutes>>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) view: watch::Sender<Arc<View>>,
    pub(crate) owned: watch::Sender<Option<OwnedBlocks>>,
    pub(crate) problems: watch::Sender<Vec<String>>,
    /// What there is to say about pools and claims, for their status.
    pub(crate) conditions: watch::Sender<BTreeMap<ObjectId, Vec<Condition>>>,
    pub(crate) state: State,
}

/// What the task knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// The claims of this node, as they were last read or written.
    mine: BTreeMap<Block, Claim>,
    /// Those of them whose claims cannot be read, or are gone while pods live there and nobody else has
    /// claimed them: they stay announced, and no address is given.
    unsure: BTreeSet<Block>,
    /// The claims that matter to this node as they were, to see when somebody changes one.
    stamps: BTreeMap<Block, Option<Stamp>>,
    /// Parts of other nodes' blocks.
    borrowing: Borrowing,
    /// Families in which somebody who named no pool got no address.
    refused: BTreeSet<Family>,
    /// Blocks that are to go as soon as they are empty.
    draining: BTreeSet<Block>,
    /// Since when those are empty that are to go.
    empty_since: BTreeMap<Block, Instant>,
    /// Parts that may stand in a claim, although writing it failed.
    lent_unsure: BTreeSet<Block>,
    /// Not in use any more, withdrawn, and about to be given back.
    leaving: BTreeMap<Block, Leaving>,
    /// What is known may not be what there is: everything has to be read again.
    behind: bool,
    /// When that is done, if it was done before and in vain.
    retry: Option<Backoff>,
    /// When lending and borrowing are looked at again after a failure.
    lending_retry: Option<Backoff>,
}

impl Claims {
    /// Runs until the store is gone.
    pub(crate) async fn run(mut self) -> Result<(), ClaimsError> {
        block_in_place(|| self.bring_in_line())?;
        let mut last_look = tokio::time::Instant::now();
        loop {
            let next_look = last_look + self.pause();
            tokio::select! {
                () = tokio::time::sleep_until(next_look) => {
                    block_in_place(|| self.look())?;
                    last_look = tokio::time::Instant::now();
                }
                changed = self.resources.changed() => {
                    if changed.is_err() { return Ok(()) }
                    block_in_place(|| self.bring_in_line())?;
                }
                changed = self.conflicts.changed() => {
                    if changed.is_err() { return Ok(()) }
                    block_in_place(|| self.bring_in_line())?;
                }
                command = self.commands.recv() => match command {
                    None => return Ok(()),
                    Some(command) => block_in_place(|| self.obey(command)),
                }
            }
        }
    }

    /// Until the next look at what changes without a word.
    fn pause(&self) -> Duration {
        let State { draining, empty_since, leaving, borrowing, behind, .. } = &self.state;
        let waits = !draining.is_empty() || !empty_since.is_empty() || !leaving.is_empty();
        if borrowing.is_waiting() {
            IMPATIENT_LOOK
        } else if *behind || self.shared || waits {
            LOOK
        } else {
            IDLE_LOOK
        }
    }

    fn look(&mut self) -> Result<(), ClaimsError> {
        let is_due = self.state.retry.as_ref().is_none_or(Backoff::is_due);
        if (self.state.behind && is_due) || self.has_changed() {
            self.bring_in_line()?;
        }
        let looked = self.look_around();
        self.bear(looked)
    }

    fn look_around(&mut self) -> Result<(), ClaimsError> {
        if self.shared {
            self.look_at_lending()?;
        }
        self.part_with_leaving()?;
        self.give_back()
    }

    /// Lends and borrows. What fails is tried again later each time, and keeps nothing else up.
    fn look_at_lending(&mut self) -> Result<(), ClaimsError> {
        if !self.state.lending_retry.as_ref().is_none_or(Backoff::is_due) {
            return Ok(());
        }
        let looked = self.lend().and_then(|()| {
            let _freed = self.take_what_was_lent()?;
            Ok(self.store.lending().map_or(Ok(()), Lending::settle)?)
        });
        let patience = self.store.patience();
        let retry = self.state.lending_retry.get_or_insert_with(|| Backoff::new(LOOK, patience));
        if looked.is_err() {
            retry.failed();
        } else {
            retry.succeeded();
        }
        looked
    }

    /// Whether somebody else has written a claim that matters to this node.
    fn has_changed(&self) -> bool {
        self.state.stamps.iter().any(|(block, stamp)| self.store.stamp(*block) != *stamp)
    }

    /// All requests for parts of blocks; none where the datastore has no such thing.
    fn requests(&self) -> Result<Requests, DatastoreError> {
        self.store.lending().map_or_else(|| Ok(Requests::new()), Lending::requests)
    }

    /// Notes how a claim looks now.
    fn stamp(&mut self, block: Block) {
        self.state.stamps.insert(block, self.store.stamp(block));
    }

    fn obey(&mut self, command: Command) {
        match command {
            // Nobody would use the block.
            Command::Claim { reply, .. } if reply.is_closed() => {}
            Command::Claim { refusal, reply } => {
                let _ = reply.send(self.claim(&refusal));
            }
            Command::Ahead { pool } => {
                if let Err(error) = self.ahead(&pool) {
                    self.state.behind = true;
                    if !error.is_refusal() {
                        let error = error_chain(&error);
                        warn!(pool, error, "no block could be claimed ahead of need");
                    }
                }
            }
            Command::BringInLine { reply } => {
                if let Err(error) = self.bring_in_line() {
                    warn!(error = %error_chain(&error), "the claims cannot be looked at");
                }
                let _ = reply.send(());
            }
            Command::Exhausted { reply } => {
                let exhausted = self.exhausted().unwrap_or_else(|error| {
                    warn!(error = %error_chain(&error), "cannot tell what is left to claim");
                    false
                });
                let _ = reply.send(exhausted);
            }
        }
    }

    /// [`Claims::load`], as often as it takes.
    fn bring_in_line(&mut self) -> Result<(), ClaimsError> {
        let loaded = self.load();
        let borne = self.bear(loaded);
        let retry =
            self.state.retry.get_or_insert_with(|| Backoff::new(LOOK, self.store.patience()));
        if self.state.behind {
            retry.failed();
        } else {
            retry.succeeded();
        }
        borne
    }

    /// What may pass is told, and everything is read again a little later.
    fn bear(&mut self, outcome: Result<(), ClaimsError>) -> Result<(), ClaimsError> {
        match outcome {
            Err(error) if error.may_pass() => {
                self.state.behind = true;
                let text = format!("blocks stay as they are: {}", error_chain(&error));
                let mut found = self.problems.borrow().clone();
                if !found.contains(&text) {
                    found.push(text);
                    problems::tell(&self.problems, found);
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Tells the speaker and the kernel what this node has.
    fn publish_owned(&self) {
        let resources = self.resources.borrow();
        let is_quiet = |pool: &str| {
            let pool = resources.pools.get(pool);
            pool.is_some_and(|pool| pool.spec.disable_bgp_export == Some(true))
        };
        let claimed = self.state.mine.values().map(|claim| {
            // A network of another main plugin says itself whether its blocks are announced.
            let wanted = claim.dedication.as_ref().is_none_or(|dedication| dedication.advertise);
            (claim.block, wanted && !is_quiet(&claim.pool))
        });
        let borrowed = self.state.borrowing.parts().map(|(part, pool)| (part, !is_quiet(pool)));
        let parts = self.state.mine.values().flat_map(|claim| &claim.delegations);
        let blocks = OwnedBlocks {
            blocks: claimed.chain(borrowed).collect(),
            lent: parts.map(|delegation| delegation.cidr).collect(),
        };
        drop(resources);
        self.owned.send_if_modified(|owned| {
            let changed = owned.as_ref() != Some(&blocks);
            *owned = Some(blocks);
            changed
        });
    }
}

#[cfg(test)]
mod tests;
