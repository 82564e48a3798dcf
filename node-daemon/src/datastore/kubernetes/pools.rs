//! What claims have to know about pools: where two of them share addresses and have blocks of different
//! sizes, making a claim under its name is not enough. Two nodes that use different ones of them for a
//! moment, since the one is behind the other by a change, make claims of different names.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use twill_k8s_api::IpPool;
use twill_types::{Block, Prefix};

/// For how long after a change other nodes may use what was before.
const SETTLING: Duration = Duration::from_secs(60);

/// The pools as they were seen last.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// The addresses of each, and the prefix length of its blocks.
    known: BTreeMap<String, (Prefix, u8)>,
    /// When they became others. What they were at the start is no change.
    changed: Option<Instant>,
}

impl Pools {
    /// Takes over what pools there are; whether they are others than before.
    pub(super) fn see(&mut self, pools: &BTreeMap<String, IpPool>) -> bool {
        let blocks = |(name, pool): (&String, &IpPool)| {
            (name.clone(), (pool.spec.cidr, pool.spec.block_size()))
        };
        let found: BTreeMap<_, _> = pools.iter().map(blocks).collect();
        if found == self.known {
            return false;
        }
        let is_first = self.known.is_empty();
        self.known = found;
        if !is_first {
            self.changed = Some(Instant::now());
        }
        !is_first
    }

    /// Whether another node may claim a part of a block, or more than it, at the same moment.
    pub(super) fn may_contest(&self, block: Block) -> bool {
        let is_other = |(cidr, length): &(Prefix, u8)| {
            cidr.overlaps(block.prefix()) && *length != block.prefix().length()
        };
        let is_of_a_pool = |(cidr, _): &(Prefix, u8)| cidr.covers(block.prefix());
        self.changed.is_some_and(|when| when.elapsed() < SETTLING)
            || self.known.values().any(is_other)
            || !self.known.values().any(is_of_a_pool)
    }
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::{files::catalog, load_manifests};

    use super::*;
    use crate::datastore::Snapshot;

    fn pools(of: &[(&str, &str, u8, bool)]) -> BTreeMap<String, IpPool> {
        let text: String = of
            .iter()
            .map(|(name, cidr, size, disabled)| {
                format!(
                    "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
                     spec: {{cidr: {cidr}, blockSize: {size}, disabled: {disabled}}}\n---\n"
                )
            })
            .collect();
        Snapshot::new(catalog([&load_manifests(&text, "test")])).pools
    }

    #[test]
    fn blocks_of_pools_that_overlap_in_another_size_may_be_contested() {
        let block: Block = "10.0.0.0/26".parse().unwrap();
        let mut seen = Pools::default();
        assert!(seen.may_contest(block), "nothing is known yet");
        let alone = [("a", "10.0.0.0/16", 26, false)];
        assert!(!seen.see(&pools(&alone)), "the first look is no change");
        assert!(!seen.may_contest(block));
        assert!(seen.may_contest("10.0.0.0/28".parse().unwrap()), "no block of that pool");
        assert!(seen.may_contest("10.9.0.0/26".parse().unwrap()), "of no pool");

        let two = [("a", "10.0.0.0/16", 26, true), ("b", "10.0.0.0/20", 28, false)];
        assert!(seen.see(&pools(&two)) && !seen.see(&pools(&two)));
        seen.changed = None;
        assert!(seen.may_contest(block), "one that is disabled is used by who does not know yet");
        assert!(!seen.may_contest("10.0.128.0/26".parse().unwrap()), "the other has none of it");
        assert!(seen.see(&pools(&alone)));
        assert!(seen.may_contest(block), "others may be behind");
    }
}
