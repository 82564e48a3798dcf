//! Which blocks this node owns: the one task that claims, and that tells the store, the speaker
//! and the kernel about it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};
use twill_ipam_store::{OwnedBlock, Service};
use twill_rpc::message::{ErrorKind, RpcError};
use twill_types::{Block, Prefix};

use crate::{
    datastore::{Snapshot, claims::{ClaimOutcome, ClaimStore}},
    ipam::{PoolView, View},
    server::chain,
};

/// What the task is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// All blocks in `pools` are full: get one more, in the first pool that has one.
    Claim {
        /// Eligible pools, in the order to try.
        pools: Vec<String>,
        /// Told once it is worth trying again, or why it is not.
        reply: oneshot::Sender<Result<(), RpcError>>,
    },
    /// A block in `pools` is nearly full: get one ahead of need.
    ClaimAhead {
        /// As above.
        pools: Vec<String>,
    },
}
