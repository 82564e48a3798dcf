//! Who gets which address, and how long: the block allocator, the choice of pools, where to claim
//! blocks, and which allocations have outlived their pods.
//!
//! Promise: plans, no effects. Everything that changes is a [`Change`], the same value that the
//! store writes and that [`Allocator::apply`] takes, so memory and disk cannot differ. Time is an
//! argument.

mod allocator;
mod block;
mod check;
mod claim;
mod cooling;
mod liveness;
mod pool;
mod request;

pub use allocator::{AddressLook, Allocator, Change, Plan, is_nearly_full};
pub use block::BlockState;
pub use check::{
    ClaimFact, ClusterFacts, NodeFacts, NumbersFact, PoolFact, check_cluster, check_node, in_both,
};
pub use claim::{Taken, next_candidate};
pub use liveness::{
    Death, Facts, Leftover, LinkFact, Liveness, PathFact, PodFact, RecordFact, Start, Trouble,
    Verdict, dead_at_one_look, links_of,
};
pub use pool::{Eligibility, PoolView, Unusable, eligibility};
pub use request::{
    AssignRequest, Assignment, BlockSummary, OwnedBlock, Record, Refusal, ReleaseOutcome, Shortage,
};
pub use twill_types::{ForeignUse, ReleaseRequest};
