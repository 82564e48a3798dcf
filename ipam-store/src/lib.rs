//! The node's address store, and the one service that runs on it: in the daemon, and in the
//! plugin when there is no daemon. Both ask here, too, what is left of a record's namespace.
//!
//! Promise: what was answered is in the store, what was released does not come back, and what
//! cannot be read is put aside and never guessed at. One at a time works on the store; requests that
//! wait together are written together.

mod codec;
mod committer;
mod error;
mod host;
mod lock;
mod private;
mod rebuild;
mod service;
mod sight;
mod sled_store;
mod standalone;
mod store;
mod tombstones;

pub use error::StoreError;
pub use host::{HEARTBEAT, boot_id, now_ms};
pub use lock::{LockError, OwnerLock};
pub use private::{lock_alone, private_directory, private_file};
pub use service::{AssignError, OpenReport, Options, Service};
pub use sight::{has_host_view, record_fact};
pub use sled_store::SledStore;
pub use standalone::{STANDALONE_MARK, Standalone, StandalonePool};
pub use store::{Entry, MemoryStore, Store, Write};
pub use tombstones::{
    SPOOL_LOCK, names_any, release_tombstones, spool, tombstone_name, tombstone_prefix,
};
pub use twill_ipam::{
    Assignment, BlockSummary, OwnedBlock, Record, Refusal, ReleaseOutcome, ReleaseRequest, Shortage,
};
