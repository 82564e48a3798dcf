//! Whether there is no address left on this node. What the configuration may make NotReady by it is
//! the whole node, so it counts only what any pod would meet, and is looked at anew for each answer:
//! a node that is NotReady gets no ADD that could show the end of it.

use std::sync::Arc;

use twill_ipam::{BlockSummary, Shortage};
use twill_types::Family;

use super::{Claims, ClaimsError};
use crate::ipam::View;

impl Claims {
    /// Notes that there was no address, if the node's own pools are the ones that have none: who
    /// names a pool, or has blocks set aside, says nothing about the others.
    pub(super) fn note_refused(&mut self, shortage: &Shortage) {
        if is_any_pods(shortage, &self.view.borrow()) {
            self.state.refused.insert(shortage.family);
        }
    }

    /// Whether somebody got no address, and nobody would get one now. What has come to an end is
    /// forgotten.
    pub(super) fn exhausted(&mut self) -> Result<bool, ClaimsError> {
        if self.state.refused.is_empty() {
            return Ok(false);
        }
        let blocks = self.service.blocks()?;
        let resources = Arc::clone(&self.resources.borrow());
        let taken = self.store.taken()?;
        let has_block = |family: Family, pools: &[String]| {
            let mut pools = pools.iter().filter_map(|name| resources.pools.get(name));
            self.may_claim(&resources, family).is_ok()
                && pools.any(|pool| self.next_block(&resources, pool, &blocks, &taken).is_some())
        };
        let mut refused = self.state.refused.clone();
        refused.retain(|family| {
            let pools = self.view.borrow().eligible(*family, None);
            // Without any pool ADD fails for another reason, which is told.
            !pools.is_empty()
                && !has_free(&blocks, *family, &pools)
                && !has_block(*family, &pools)
                && !self.might_borrow(&resources, &pools)
        });
        self.state.refused = refused;
        Ok(!self.state.refused.is_empty())
    }
}

fn is_any_pods(shortage: &Shortage, view: &View) -> bool {
    shortage.dedication.is_none() && shortage.pools == view.eligible(shortage.family, None)
}

/// An address that waits for its link to go counts as well: it is had in a moment. One that rests does
/// not: that can be twenty minutes.
fn has_free(blocks: &[BlockSummary], family: Family, pools: &[String]) -> bool {
    blocks.iter().any(|block| {
        block.assignable
            && block.dedication.is_none()
            && block.block.family() == family
            && pools.contains(&block.pool)
            && block.free + block.held > 0
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use twill_types::Dedication;

    use super::*;
    use crate::ipam::PoolView;

    #[test]
    fn only_the_nodes_own_pools_count() {
        let pool = |name: &str, refusal: Option<&str>| {
            let cidr = "10.10.0.0/24".parse().unwrap();
            (
                name.to_owned(),
                PoolView {
                    cidr,
                    namespaces: None,
                    refusal: refusal.map(str::to_owned),
                    unusable: None,
                },
            )
        };
        let pools = [pool("a", None), pool("b", None), pool("c", Some("not for this node"))];
        let view = View { ready: true, pools: BTreeMap::from(pools), ..View::default() };
        let check = |names: &[&str], family, network: Option<&str>, expected| {
            let shortage = Shortage {
                family,
                pools: names.iter().map(ToString::to_string).collect(),
                dedication: network
                    .map(|network| Dedication { network: network.into(), advertise: false }),
                blocks: 1,
                held: 0,
                rested_in: None,
            };
            assert_eq!(is_any_pods(&shortage, &view), expected, "{shortage:?}");
        };
        check(&["a", "b"], Family::V4, None, true);
        check(&["a"], Family::V4, None, false);
        check(&["c"], Family::V4, None, false);
        check(&["a", "b"], Family::V6, None, false);
        check(&["a", "b"], Family::V4, Some("lan"), false);
    }

    #[test]
    fn blocks_that_any_pod_gets_addresses_from_count() {
        let block = |pool: &str, free, assignable| BlockSummary {
            block: "10.10.0.0/31".parse().unwrap(),
            pool: pool.into(),
            used: 2 - free,
            free,
            held: 0,
            resting: 0,
            reserved: 0,
            delegated: 0,
            assignable,
            dedication: None,
        };
        let pools = ["a".to_owned()];
        let check = |block: BlockSummary, expected| {
            let blocks = [block];
            assert_eq!(has_free(&blocks, Family::V4, &pools), expected, "{blocks:?}");
        };
        check(block("a", 1, true), true);
        check(block("a", 0, true), false);
        check(BlockSummary { held: 1, ..block("a", 0, true) }, true);
        check(BlockSummary { resting: 1, ..block("a", 0, true) }, false);
        check(block("a", 1, false), false);
        check(block("b", 1, true), false);
        let dedication = Some(Dedication { network: "lan".into(), advertise: false });
        check(BlockSummary { dedication, ..block("a", 1, true) }, false);
    }
}
