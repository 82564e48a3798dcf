//! What the daemon asks of a datastore, whichever it is: docs/adr/0020-datastore-seam.md.
//!
//! All of it may block, for [`kubernetes`](super::kubernetes) as long as one request may take, so it is
//! called where blocking is allowed. Nothing of it is on the way of an ADD while a block has space.

use std::{collections::BTreeMap, fs::File, time::Duration};

use nix::fcntl::Flock;
use twill_ipam::Taken;
use twill_k8s_api::{
    BlockRequestSpec, Condition, Delegation, ObjectId,
    files::{Claim, Claims, FileError, Lease, NodeFill},
};
use twill_types::{Block, Dedication};

use super::{Requests, Snapshot, kubernetes::ApiError};

/// A datastore cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatastoreError {
    /// One of files.
    #[error(transparent)]
    File(#[from] FileError),
    /// Kubernetes' API server.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Who claims, and what for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claimant<'a> {
    pub(crate) node: &'a str,
    pub(crate) pool: &'a str,
    pub(crate) dedication: Option<&'a Dedication>,
}

/// How an attempt to claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClaimOutcome {
    /// The block is this node's, now or already.
    Won(Claim),
    /// Another node has it, or a part of it, or more than it.
    Lost(Claim),
}

/// What became of the wish to give a claim back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// The block can be claimed by anybody.
    Done,
    /// The claim is gone, or another's by now.
    Anothers,
    /// Another node has a part of it.
    Lent,
    /// It is not to go any more.
    Kept,
}

/// What changes whenever a claim is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// File number, time of the last change in seconds and nanoseconds, size.
    File(u64, i64, i64, u64),
    /// The object's `metadata.resourceVersion`.
    Version(String),
}

/// What became of a part that was to be lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Grant {
    /// It stands in the claim.
    Done(Claim),
    /// Who asked does not want it any more.
    Unwanted,
    /// The claim is another's by now.
    Lost,
}

/// Who may lend a part of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lender {
    pub(crate) block: Block,
    pub(crate) node: String,
    pub(crate) pool: String,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing yet, or nothing that could be read.
    None,
    /// This part is lent.
    Granted(Block),
    /// Nothing is, and why not.
    Refused(String),
    /// The block is not the owner's any more.
    Freed,
}

/// Something that is asked while nobody else can claim.
pub(crate) type Still<'a> = &'a dyn Fn() -> Result<bool, DatastoreError>;

/// Which node owns which block.
pub(crate) trait ClaimStore: Send + Sync {
    /// Claims the block that `choose` takes, knowing which cannot be had; `None` if it takes none.
    fn claim(
        &self,
        who: Claimant<'_>,
        choose: &dyn Fn(&Taken) -> Option<Block>,
    ) -> Result<Option<Claim>, DatastoreError>;

    /// Claims one block.
    fn try_claim(&self, block: Block, who: Claimant<'_>) -> Result<ClaimOutcome, DatastoreError>;

    /// Gives a claim back, if it still is the one that is meant, nobody else has a part of it, and
    /// something is `still` so.
    fn release_if(&self, claim: &Claim, still: Still<'_>) -> Result<Release, DatastoreError>;

    /// What tells whether a claim has changed since, without asking for it; `None` if there is none.
    fn stamp(&self, block: Block) -> Option<Stamp>;

    /// One claim.
    fn get(&self, block: Block) -> Result<Option<Claim>, DatastoreError>;

    /// All claims, with what is wrong with those that cannot be read.
    fn list(&self) -> Result<Claims, DatastoreError>;

    /// At least the claims of this node, and those in the way of the blocks that it holds.
    fn known(&self, held: &[Block]) -> Result<Claims, DatastoreError>;

    /// The blocks that cannot be claimed, a damaged claim's included.
    fn taken(&self) -> Result<Taken, DatastoreError>;

    /// The pools that stay usable where others overlap them.
    fn settled_pools(&self, resources: &Snapshot, known: &Claims) -> Vec<String>;

    /// How long what failed again and again may wait, at the longest, until it is tried once more.
    fn patience(&self) -> Duration;

    /// Parts of blocks for other nodes, where the datastore has that.
    fn lending(&self) -> Option<&dyn Lending>;
}

/// A part of another node's block that a node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Borrowed {
    pub(crate) part: Delegation,
    /// The block, and its pool.
    pub(crate) of: Block,
    pub(crate) pool: String,
    /// Who owns that.
    pub(crate) owner: String,
}

/// Parts of blocks that nodes lend each other, and how full their blocks are.
pub(crate) trait Lending: Send + Sync {
    /// Addresses that can be had in blocks, as their owners say.
    fn free_addresses(&self) -> Result<BTreeMap<Block, u32>, DatastoreError>;

    /// Forgets how full the blocks of a node that is gone were.
    fn forget_fill(&self, node: &str) -> Result<bool, DatastoreError>;

    /// Who may lend a part of a block of one of these pools.
    fn lenders(&self, node: &str, pools: &[String]) -> Result<Vec<Lender>, DatastoreError>;

    /// Whether what a node has borrowed stands in its requests alone: it does not see others' claims.
    fn is_by_request(&self) -> bool;

    /// What a node has borrowed.
    fn borrowed(&self, node: &str, all: &Claims, requests: &Requests) -> Vec<Borrowed>;

    /// What became of a request.
    fn answer(&self, name: &str, spec: &BlockRequestSpec, requests: &Requests) -> Answer;

    /// Removes the requests of this node that their owners have done with.
    fn settle(&self) -> Result<(), DatastoreError>;

    /// Tells who asked what stands in the claim, where the process before this one did not come to it.
    fn confirm(&self, part: &Delegation) -> Result<(), DatastoreError>;

    /// All requests that this node has to see.
    fn requests(&self) -> Result<Requests, DatastoreError>;

    /// Asks; the request's name.
    fn ask(&self, spec: BlockRequestSpec) -> Result<String, DatastoreError>;

    /// Makes a request again that somebody has removed or damaged although its part is in use.
    fn ask_again(
        &self,
        part: &Delegation,
        block: Block,
        pool: &str,
        owner: &str,
    ) -> Result<(), DatastoreError>;

    /// The owner's answer, if it is no.
    fn refuse(&self, name: &str, why: &str) -> Result<(), DatastoreError>;

    /// The owner's answer, if it is yes.
    fn grant(&self, claim: &Claim, part: &Delegation) -> Result<Grant, DatastoreError>;

    /// The borrower does not use a part any more, or does not want one.
    fn give_up(&self, name: &str, spec: &BlockRequestSpec) -> Result<(), DatastoreError>;

    /// The owner takes the parts of a claim back that were returned; `None` if the claim is another's
    /// by now.
    fn take_back(&self, claim: &Claim) -> Result<Option<Claim>, DatastoreError>;
}

/// Which nodes' daemons live.
pub(crate) trait Leases: Send + Sync {
    /// Writes a lease; what it was before.
    fn renew(&self, lease: Lease) -> Result<Option<Lease>, DatastoreError>;

    /// What a node said last.
    fn get(&self, node: &str) -> Result<Option<Lease>, DatastoreError>;

    /// What each node said last.
    fn list(&self) -> Result<BTreeMap<String, Lease>, DatastoreError>;

    /// Forgets a node that is gone.
    fn remove(&self, node: &str) -> Result<bool, DatastoreError>;

    /// Whether node daemons look after nodes that are gone.
    fn clears_up(&self) -> bool;

    /// The right to do that, held until dropped; `None` if another daemon has it.
    fn try_lead(&self) -> Result<Option<Flock<File>>, DatastoreError>;
}

/// The time in which this process is the node's daemon. Around it there may be another one.
pub(crate) trait Tenure: Send + Sync {
    /// It has the node's store now, and so all that is kept for the node beside it.
    fn begin(&self);

    /// It is about to let go of that: from now on it writes nothing there, and waits for no answer.
    fn end(&self);
}

/// What this node makes of each object.
pub(crate) trait Reports: Send + Sync {
    /// Writes it. `said` is what tasks have to say beside what reading has found.
    fn report(
        &self,
        snapshot: &Snapshot,
        said: BTreeMap<ObjectId, Vec<Condition>>,
    ) -> Result<(), DatastoreError>;

    /// Over how long the nodes of a cluster spread what all of them have to say about one change.
    fn spread(&self) -> Duration;
}

/// How full each node's blocks are, told to all.
pub(crate) trait Fills: Send + Sync {
    /// The least time between two writes.
    fn period(&self) -> Duration;

    /// What stands there of a node, where that costs nothing.
    fn read(&self, node: &str) -> Option<NodeFill>;

    /// Writes it; whether it could: there may be no place for it yet.
    fn write(&self, fill: &NodeFill) -> Result<bool, DatastoreError>;

    /// Whether it still stands there, as far as that can be told without asking.
    fn stands(&self, fill: Option<&NodeFill>, node: &str) -> bool;

    /// Removes what a node says that is none of the cluster's any more; whether there was anything.
    fn remove(&self, node: &str) -> Result<bool, DatastoreError>;
}
