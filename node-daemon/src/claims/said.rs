//! What there is to say about pools and claims.

use std::collections::BTreeMap;

use twill_k8s_api::{Condition, ConditionStatus, Kind, ObjectId, files::Claim};

use super::Claims;
use crate::datastore::Snapshot;

/// How many blocks a message names.
const NAMED: usize = 8;

/// What is said while the claims are looked at.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) problems: Vec<String>,
    pub(super) conditions: BTreeMap<ObjectId, Vec<Condition>>,
}

impl Said {
    /// A condition of an object. Of several of one type the first one counts, with the messages of
    /// all.
    pub(super) fn about(
        &mut self,
        kind: Kind,
        name: &str,
        (condition, holds): (&str, bool),
        reason: &str,
        message: &str,
    ) {
        let id =
            ObjectId { kind: kind.singular().to_owned(), namespace: None, name: name.to_owned() };
        let conditions = self.conditions.entry(id).or_default();
        if let Some(other) = conditions.iter_mut().find(|other| other.kind == condition) {
            other.message = format!("{}; {message}", other.message);
            return;
        }
        conditions.push(Condition {
            kind: condition.to_owned(),
            status: if holds { ConditionStatus::True } else { ConditionStatus::False },
            reason: reason.to_owned(),
            message: message.to_owned(),
        });
    }
}

/// Conditions that change with the blocks of a node, and not only with resources.
const OF_BLOCKS: [&str; 3] = ["Drained", "BlockLimitReached", "MixedBlockSizes"];

impl Claims {
    /// Whether something is said that another number of blocks may make untrue.
    pub(super) fn speaks_of_blocks(&self) -> bool {
        let said = self.conditions.borrow();
        said.values().flatten().any(|condition| OF_BLOCKS.contains(&condition.kind.as_str()))
    }

    /// Blocks that were claimed before the block size of their pool was changed. They stay in use; what
    /// is claimed next has the new size, wherever it overlaps none of them.
    pub(super) fn say_sizes(&self, resources: &Snapshot, said: &mut Said) {
        for (name, pool) in &resources.pools {
            let size = pool.spec.block_size();
            let is_of_before = |claim: &&Claim| {
                claim.pool == *name
                    && claim.block.prefix().length() != size
                    && pool.spec.cidr.covers(claim.block.prefix())
                    && !self.is_static(resources, claim.block)
            };
            let blocks: Vec<String> = self
                .state
                .mine
                .values()
                .filter(is_of_before)
                .map(|c| c.block.to_string())
                .collect();
            if blocks.is_empty() {
                continue;
            }
            let named = blocks.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let more = match blocks.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let message = format!(
                "{named}{more} of node {} are not of the blockSize {size}: they were claimed before it was \
                 changed, and stay in use until they are empty",
                self.node
            );
            let about = ("MixedBlockSizes", true);
            said.about(Kind::IpPool, name, about, "BlockSizeChanged", &message);
        }
    }
}
