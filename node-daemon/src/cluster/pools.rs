//! Whether pools give addresses, how full they are, and whether they may go.

use std::collections::BTreeMap;

use twill_k8s_api::{Condition, IpPool, Resource, files::BlockFill};
use twill_types::{Block, Prefix};

use super::{
    conditions::Stated,
    kinds::List,
    world::{Entry, World},
};
use crate::datastore::kubernetes::first_made;

/// Keeps a pool as long as claims are left.
pub(super) const FINALIZER: &str = "twill.projectcalico.org/pool";

/// The condition of a pool that has few addresses left.
const PRESSURE: &str = "AddressPressure";

/// Below how many percent of its addresses a pool is nearly full, and from how many on it is not any
/// more.
const PERCENT: [u128; 2] = [10, 15];

/// What there is to know of a pool.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PoolView {
    pub(super) conditions: Vec<Condition>,
    /// How many claims hold it.
    pub(super) claims: usize,
    /// Addresses in all, and those that can still be had, as far as nodes have told.
    pub(super) addresses: Option<(u128, u128)>,
}

/// Looks at all pools.
pub(super) fn look(world: &World) -> BTreeMap<String, PoolView> {
    let pool = |(name, entry): (&String, &Entry)| match &entry.value {
        Some(Resource::IpPool(pool)) => Some((name.clone(), pool.clone())),
        _ => None,
    };
    let pools: BTreeMap<String, IpPool> = world.entries(List::Pools).filter_map(pool).collect();
    // The nodes' own rule.
    let first = first_made(&pools);
    let fills = fills(world);
    let one = |(name, entry): (&String, &Entry)| {
        let mut view = PoolView { claims: claims(world, name).count(), ..PoolView::default() };
        if let Some(pool) = pools.get(name) {
            let overlaps = first
                .iter()
                .filter(|other| *other != name)
                .find(|other| {
                    pools.get(*other).is_some_and(|o| o.spec.cidr.overlaps(pool.spec.cidr))
                })
                .filter(|_| !first.contains(name));
            let allocatable = allocatable(entry, pool, view.claims, overlaps, &pools);
            view.conditions.extend(allocatable);
            view.addresses = addresses(world, name, pool, &fills);
            if let Some(addresses) = view.addresses {
                view.conditions.push(pressure(&entry.conditions, addresses));
            }
        } else if entry.meta.is_deleting {
            view.conditions.push(deleting(view.claims));
        }
        (name.clone(), view)
    };
    world.entries(List::Pools).map(one).collect()
}

/// How full blocks are, as their owners say: what another node says of a block is not believed.
fn fills(world: &World) -> BTreeMap<Block, &BlockFill> {
    let told = world
        .statuses
        .iter()
        .flat_map(|(node, status)| status.fills().iter().map(move |fill| (node, fill)));
    let is_owner = |(node, fill): &(&String, &BlockFill)| {
        let claim = world.claims.get(&fill.block.claim_name());
        claim.is_some_and(|entry| entry.claim.as_ref().is_ok_and(|claim| claim.node == **node))
    };
    told.filter(is_owner).map(|(_, fill)| (fill.block, fill)).collect()
}

/// The claims that hold a pool, by name.
fn claims<'a>(world: &'a World, pool: &'a str) -> impl Iterator<Item = &'a String> {
    let cidr = cidr(world, pool);
    let holds = move |(name, entry): (&'a String, &'a super::world::ClaimEntry)| {
        let is_of_it = match &entry.claim {
            Ok(claim) => claim.pool == pool,
            // Whose it is cannot be told: by its name it may be this one's.
            Err(_) => Block::from_claim_name(name)
                .is_ok_and(|block| cidr.is_some_and(|cidr| cidr.covers(block.prefix()))),
        };
        is_of_it.then_some(name)
    };
    world.claims.iter().filter_map(holds)
}

/// A pool's addresses.
pub(super) fn cidr(world: &World, pool: &str) -> Option<Prefix> {
    match &world.configuration.get(&List::Pools)?.get(pool)?.value {
        Some(Resource::IpPool(pool)) => Some(pool.spec.cidr),
        _ => None,
    }
}

fn deleting(claims: usize) -> Condition {
    let message = match claims {
        0 => "it is being deleted".to_owned(),
        1 => "it is being deleted, and goes with the 1 claim that holds it".to_owned(),
        claims => {
            format!("it is being deleted, and goes with the last of {claims} claims that hold it")
        }
    };
    Condition::fails("Allocatable", "Deleting", message)
}

/// Whether nodes take blocks of it; `None` if only they can tell.
fn allocatable(
    entry: &Entry,
    pool: &IpPool,
    claims: usize,
    overlaps: Option<&String>,
    pools: &BTreeMap<String, IpPool>,
) -> Option<Condition> {
    let no = |reason, message| Some(Condition::fails("Allocatable", reason, message));
    if entry.meta.is_deleting {
        return Some(deleting(claims));
    }
    if let Some(other) = overlaps {
        let cidr = pools.get(other).map(|other| other.spec.cidr.to_string()).unwrap_or_default();
        let message = format!(
            "{} overlaps IPPool {other} ({cidr}), which was made first: no address of this one is given",
            pool.spec.cidr
        );
        return no("Overlaps", message);
    }
    if pool.spec.disabled {
        return no("Disabled", "spec.disabled is true".to_owned());
    }
    if !pool.spec.is_for_workloads() {
        return no("NotForWorkloads", "spec.allowedUses has no Workload".to_owned());
    }
    // A node that cannot use it says so.
    let by_nodes = "nodes that it selects take blocks of it";
    entry.problems.is_empty().then(|| Condition::holds("Allocatable", "Usable", by_nodes))
}

/// How many addresses it has, and how many can still be had: what nobody has claimed, and what is free in
/// the nodes' blocks as they say; where none has said anything yet, a block counts as free.
fn addresses(
    world: &World,
    name: &str,
    pool: &IpPool,
    fills: &BTreeMap<Block, &BlockFill>,
) -> Option<(u128, u128)> {
    let all = pool.spec.cidr.size();
    let mut taken: u128 = 0;
    let mut is_told = false;
    for claim in claims(world, name) {
        let Ok(block) = Block::from_claim_name(claim) else { continue };
        let Some(fill) = fills.get(&block) else { continue };
        is_told = true;
        taken += u128::from(block.size()) - u128::from(fill.free.min(block.size().into()));
    }
    is_told.then(|| (all, all.saturating_sub(taken)))
}

/// Whether a pool has few addresses left. What was said stays as it is until it turns: numbers change all
/// the time.
fn pressure(before: &[Stated], (all, left): (u128, u128)) -> Condition {
    let known = before.iter().map(|stated| &stated.condition).find(|known| known.kind == PRESSURE);
    let was = known.is_some_and(|known| known.reason != "Sufficient");
    let percent = PERCENT[usize::from(was)];
    // Of a huge pool, a percent is counted first.
    let limit =
        if all > u128::MAX / 100 { all / 100 * percent } else { (all * percent).div_ceil(100) };
    let condition = if left == 0 {
        let message = "no address is left: add another pool, or free addresses of this one";
        Condition::holds(PRESSURE, "Exhausted", message)
    } else if left < limit {
        let message = format!(
            "fewer than {percent} percent of {all} addresses are left: add another pool before it is full"
        );
        Condition::holds(PRESSURE, "NearlyFull", message)
    } else {
        Condition::fails(PRESSURE, "Sufficient", "")
    };
    match known {
        Some(known) if (known.status, &known.reason) == (condition.status, &condition.reason) => {
            known.clone()
        }
        _ => condition,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::DynamicObject;
    use serde_json::{Value, json};

    use super::{
        super::samples::{self, object},
        *,
    };

    type Told = (List, DynamicObject);

    fn pool(name: &str, spec: Value, second: u8) -> Told {
        let mut pool = object(List::Pools, name, spec);
        let time = format!("2026-01-01T00:00:{second:02}Z");
        pool.metadata.creation_timestamp = serde_json::from_value(json!(time)).unwrap();
        (List::Pools, pool)
    }

    fn claim(cidr: &str, pool: &str) -> Told {
        let name = cidr.parse::<Block>().unwrap().claim_name();
        let spec = json!({"node": "n", "cidr": cidr, "pool": pool});
        (List::Claims, object(List::Claims, &name, spec))
    }

    fn fill(blocks: &[(&str, u32)]) -> Told {
        fill_by("n", blocks)
    }

    fn fill_by(node: &str, blocks: &[(&str, u32)]) -> Told {
        let mut status = object(List::NodeStatuses, node, json!({"node": node}));
        let block = |(block, free): &(&str, u32)| {
            let size = block.parse::<Block>().unwrap().size();
            json!({
                "block": block, "pool": "a", "size": size, "free": free,
                "used": u32::from(size) - free, "cooling": 0, "reserved": 0,
            })
        };
        let blocks: Vec<Value> = blocks.iter().map(block).collect();
        status.data["status"] =
            json!({"ipam": {"since": "2026-01-01T00:00:00Z", "blocks": blocks}});
        (List::NodeStatuses, status)
    }

    fn reasons(objects: &[Told]) -> Vec<String> {
        let one = |(name, view): (&String, &PoolView)| {
            let said: Vec<_> = view.conditions.iter().map(|c| c.reason.clone()).collect();
            format!("{name} {} {}", said.join(" "), view.claims)
        };
        look(&samples::world(objects)).iter().map(one).collect()
    }

    #[test]
    fn pools_that_give_no_addresses_say_why() {
        let mut deleted = pool("d", json!({"cidr": "10.3.0.0/16"}), 1);
        deleted.1.metadata.deletion_timestamp = deleted.1.metadata.creation_timestamp.clone();
        let pools = [
            pool("a", json!({"cidr": "10.0.0.0/16"}), 5),
            pool("b", json!({"cidr": "10.0.0.0/8"}), 6),
            pool("c", json!({"cidr": "11.0.0.0/16", "disabled": true}), 1),
            deleted,
            pool("e", json!({"cidr": "12.0.0.0/16", "allowedUses": ["Tunnel"]}), 1),
            pool("f", json!({"cidr": "10.0.0.0/17", "nodeSelector": "rack =="}), 1),
            claim("10.3.0.0/26", "d"),
        ];
        assert_eq!(
            reasons(&pools),
            [
                "a Usable 0",
                // Of d and b, d was made first, too; a is not in its way.
                "b Overlaps 0",
                "c Disabled 0",
                "d Deleting 1",
                "e NotForWorkloads 0",
                // Broken, it is in nobody's way.
                "f  0",
            ]
        );
        let world = samples::world(&pools);
        let message = &look(&world)["b"].conditions[0].message;
        assert!(message.contains("overlaps IPPool"), "{message}");
    }

    #[test]
    fn a_claim_that_cannot_be_read_holds_its_pool() {
        let mut damaged = claim("10.0.0.0/26", "a");
        damaged.1.data["spec"]["pool"] = Value::Null;
        let pools = [
            pool("a", json!({"cidr": "10.0.0.0/16"}), 1),
            pool("b", json!({"cidr": "11.0.0.0/16"}), 1),
            damaged,
            claim("11.0.0.0/26", "b"),
            claim("11.0.0.64/26", "b"),
        ];
        assert_eq!(reasons(&pools), ["a Usable 1", "b Usable 2"]);
    }

    #[test]
    fn pools_that_run_out_of_addresses_say_so_before() {
        let spec = json!({"cidr": "10.0.0.0/25", "blockSize": 26});
        let said = |before: Option<&str>, told: &[(&str, u32)]| {
            let mut pool = pool("a", spec.clone(), 1);
            if let Some(reason) = before {
                let status = if reason == "Sufficient" { "False" } else { "True" };
                pool.1.data["status"] = json!({"conditions": [{
                    "type": PRESSURE, "status": status, "reason": reason, "message": "as it was",
                }]});
            }
            let blocks: Vec<&str> = told.iter().map(|(block, _)| *block).collect();
            let mut objects = vec![pool, fill(told)];
            objects.extend(blocks.iter().map(|block| claim(block, "a")));
            let view = look(&samples::world(&objects))["a"].clone();
            let pressure = view.conditions.into_iter().find(|c| c.kind == PRESSURE);
            pressure.map(|c| (c.reason, c.message == "as it was"))
        };
        let (one, two) = ("10.0.0.0/26", "10.0.0.64/26");
        let is = |reason: &str, kept: bool| Some((reason.to_owned(), kept));
        assert_eq!(said(None, &[]), None, "nobody has said anything");
        assert_eq!(said(None, &[(one, 0)]), is("Sufficient", false), "a block is left");
        // 10 percent of 128 are 12.8.
        assert_eq!(said(None, &[(one, 0), (two, 13)]), is("Sufficient", false));
        assert_eq!(said(Some("Sufficient"), &[(one, 0), (two, 13)]), is("Sufficient", true));
        assert_eq!(said(Some("Sufficient"), &[(one, 0), (two, 12)]), is("NearlyFull", false));
        // 15 percent are 19.2.
        assert_eq!(said(Some("NearlyFull"), &[(one, 0), (two, 19)]), is("NearlyFull", true));
        assert_eq!(said(Some("NearlyFull"), &[(one, 10), (two, 10)]), is("Sufficient", false));
        assert_eq!(said(Some("NearlyFull"), &[(one, 0), (two, 0)]), is("Exhausted", false));
    }

    #[test]
    fn only_the_owner_of_a_block_is_believed() {
        let (one, two) = ("10.0.0.0/26", "10.0.0.64/26");
        let spec = json!({"cidr": "10.0.0.0/25", "blockSize": 26});
        let said = |told: &[Told]| {
            let mut objects = vec![pool("a", spec.clone(), 1), claim(one, "a"), claim(two, "a")];
            objects.extend(told.iter().cloned());
            look(&samples::world(&objects))["a"].addresses
        };
        let own = fill(&[(one, 60), (two, 60)]);
        assert_eq!(said(std::slice::from_ref(&own)), Some((128, 120)));
        // By names before and behind the owner's.
        for liar in ["liar", "zealot"] {
            let lie = fill_by(liar, &[(one, 0), (two, 0)]);
            assert_eq!(said(&[own.clone(), lie.clone()]), Some((128, 120)));
            assert_eq!(said(&[lie]), None, "nobody has said anything");
        }
    }

    #[test]
    fn a_pool_larger_than_any_number_has_addresses() {
        let huge = (u128::MAX, u128::MAX - 5);
        assert_eq!(pressure(&[], huge).reason, "Sufficient");
    }
}
