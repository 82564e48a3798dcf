use std::collections::BTreeMap;

use twill_selector::Selector;
use twill_types::{Block, Prefix};

/// A pool as the choice sees it.
#[derive(Debug, Clone)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Its range.
    pub cidr: Prefix,
    /// Prefix length of its blocks.
    pub block_size: u8,
    /// Which nodes give addresses from it.
    pub node_selector: Selector,
    /// Why no pod gets an address from it, if none does: it is disabled, or for something else.
    pub closed: Option<String>,
    /// Only those who ask for it by name get addresses from it.
    pub manual: bool,
    /// Some node owns a block of it.
    pub in_use: bool,
}

/// What a pool means to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eligibility {
    /// Why the node gives no address from it to a pod that asks for none in particular.
    pub refusal: Option<String>,
    /// Why it gives none even to a pod that asks for it.
    pub unusable: Option<Unusable>,
}

/// Why a pool gives no address at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Another pool has some of its addresses.
    #[error("it overlaps pool {name} ({cidr})")]
    Overlaps {
        /// The other one.
        name: String,
        /// Its range.
        cidr: Prefix,
    },
    /// It is disabled, or for something else.
    #[error("{0}")]
    Closed(String),
    /// It is smaller than one block.
    #[error("its cidr {cidr} holds no block of /{block_size}")]
    NoBlock {
        /// Its range.
        cidr: Prefix,
        /// Prefix length of its blocks.
        block_size: u8,
    },
}

/// What each pool means to a node with these labels. Of pools that overlap only one is used, whatever
/// their lengths: an address must not be in two of them. That is the first by name of those with
/// blocks in use; without any, the first by name. So a pool that is added does no harm to one that is
/// used.
pub fn eligibility(
    pools: &BTreeMap<String, PoolView>,
    labels: &BTreeMap<String, String>,
) -> BTreeMap<String, Eligibility> {
    let mut result = BTreeMap::new();
    let mut usable: Vec<&PoolView> = Vec::new();
    let mut order: Vec<_> = pools.iter().collect();
    order.sort_by_key(|(_, pool)| !pool.in_use);
    for (name, pool) in order {
        let unusable = unusable(pool, &usable);
        let manual = || {
            pool.manual
                .then(|| "assignmentMode is Manual: it has to be asked for by name".to_owned())
        };
        let refusal = unusable.as_ref().map(ToString::to_string).or_else(manual).or_else(|| {
            (!pool.node_selector.matches(labels)).then(|| {
                format!("nodeSelector {} does not match the node's labels", pool.node_selector)
            })
        });
        if unusable.is_none() {
            usable.push(pool);
        }
        result.insert(name.clone(), Eligibility { refusal, unusable });
    }
    result
}

fn unusable(pool: &PoolView, before: &[&PoolView]) -> Option<Unusable> {
    if let Some(other) = before.iter().find(|other| other.cidr.overlaps(pool.cidr)) {
        return Some(Unusable::Overlaps { name: other.name.clone(), cidr: other.cidr });
    }
    if let Some(why) = &pool.closed {
        return Some(Unusable::Closed(why.clone()));
    }
    let first = Prefix::masked(pool.cidr.address(), pool.block_size).ok();
    match first.and_then(|first| Block::new(first).ok()) {
        Some(block) if pool.cidr.covers(block.prefix()) => None,
        _ => Some(Unusable::NoBlock { cidr: pool.cidr, block_size: pool.block_size }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, cidr: &str, selector: &str) -> (String, PoolView) {
        let view = PoolView {
            name: name.into(),
            cidr: cidr.parse().unwrap(),
            block_size: 26,
            node_selector: Selector::parse(selector).unwrap(),
            closed: None,
            manual: false,
            in_use: false,
        };
        (name.into(), view)
    }

    #[test]
    fn says_why_a_pool_gives_nothing() {
        let mut pools = BTreeMap::from([
            pool("a", "10.0.0.0/20", "env == 'prod'"),
            pool("b", "10.0.1.0/24", "all()"),
            pool("c", "10.1.0.0/20", "env == 'dev'"),
            pool("d", "10.2.0.0/27", "all()"),
            pool("e", "10.3.0.0/20", "all()"),
        ]);
        pools.get_mut("e").unwrap().closed = Some("it is disabled".to_owned());
        let labels = BTreeMap::from([("env".to_owned(), "prod".to_owned())]);
        let result = eligibility(&pools, &labels);
        let refusal = |name: &str| result[name].refusal.clone().unwrap_or_default();
        assert_eq!(refusal("a"), "");
        assert_eq!(refusal("b"), "it overlaps pool a (10.0.0.0/20)");
        assert!(refusal("c").contains("does not match"), "{}", refusal("c"));
        assert_eq!(result["c"].unusable, None);
        assert_eq!(refusal("d"), "its cidr 10.2.0.0/27 holds no block of /26");
        assert_eq!(refusal("e"), "it is disabled");
    }

    #[test]
    fn of_pools_that_overlap_the_one_in_use_stays() {
        let mut pools = BTreeMap::from([
            pool("a", "10.0.0.0/20", "all()"),
            pool("b", "10.0.1.0/24", "all()"),
            pool("c", "10.0.0.0/16", "all()"),
        ]);
        let usable = |pools: &BTreeMap<String, PoolView>| -> Vec<String> {
            let result = eligibility(pools, &BTreeMap::new());
            result.into_iter().filter(|(_, e)| e.unusable.is_none()).map(|(name, _)| name).collect()
        };
        assert_eq!(usable(&pools), ["a"]);
        pools.get_mut("b").unwrap().in_use = true;
        assert_eq!(usable(&pools), ["b"]);
        pools.get_mut("a").unwrap().in_use = true;
        assert_eq!(usable(&pools), ["a"]);
    }

    #[test]
    fn a_manual_pool_is_for_those_who_ask_for_it() {
        let mut pools = BTreeMap::from([pool("a", "10.0.0.0/20", "all()")]);
        pools.get_mut("a").unwrap().manual = true;
        let result = eligibility(&pools, &BTreeMap::new());
        assert!(result["a"].refusal.as_ref().is_some_and(|why| why.contains("by name")));
        assert_eq!(result["a"].unusable, None);
    }
}
