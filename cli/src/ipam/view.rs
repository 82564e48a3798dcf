//! The addresses of the cluster: who has which block says the datastore; how full it is says its
//! node, there, and this one by its socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::SystemTime,
};

use serde::Serialize;
use twill_k8s_api::{
    IpamConfigSpec, Kind, Resource, Severity,
    files::{
        BlockFill, CLAIMS, Claims, FileError, NodeFill, load_directory, read_claims, read_fills,
        read_leases, read_requests,
    },
};
use twill_rpc::message::{BlockStatus, IpamStatus};
use twill_types::{Block, Dedication, Prefix};

/// What the datastore says.
#[derive(Debug, Default)]
pub(crate) struct Datastore {
    pub(crate) pools: BTreeMap<String, Pool>,
    /// Those whose manifests are wrong now.
    pub(crate) broken_pools: BTreeSet<String>,
    pub(crate) manifest_problems: Vec<String>,
    /// Each with the blocks that its manifest names.
    pub(crate) nodes: BTreeMap<String, BTreeSet<Block>>,
    /// By name.
    pub(crate) reservations: Vec<(String, Prefix)>,
    pub(crate) config: Option<IpamConfigSpec>,
    pub(crate) claims: Claims,
    pub(crate) fills: BTreeMap<String, NodeFill>,
    /// Requests that cannot be read.
    pub(crate) damaged_requests: Vec<String>,
    /// Nodes that tell of themselves, and not how full their blocks are.
    pub(crate) silent: BTreeSet<String>,
    /// Whether claims have been as they are for so long that all nodes had the time to say so.
    pub(crate) settled: bool,
}

/// A pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pool {
    pub(crate) cidr: Prefix,
    pub(crate) block_size: u8,
}

/// How long after the last claim or release all nodes have said what they make of it, seconds.
const SETTLED: u64 = 60;

/// How long ago something changed; `None` if it is not there.
fn age_of(path: &Path) -> Option<u64> {
    let changed = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    Some(SystemTime::now().duration_since(changed).unwrap_or_default().as_secs())
}

impl Datastore {
    /// From files.
    pub(crate) fn read(directory: &Path) -> Result<Self, FileError> {
        let mut all = Self {
            claims: read_claims(directory)?,
            fills: read_fills(directory)?,
            damaged_requests: read_requests(directory)?
                .into_iter()
                .filter_map(|(name, request)| request.is_none().then_some(name))
                .collect(),
            settled: age_of(&directory.join(CLAIMS)).is_none_or(|age| age > SETTLED),
            ..Self::default()
        };
        let manifests = load_directory(directory)?;
        for problem in manifests.problems.iter().filter(|p| p.severity == Severity::Error) {
            all.manifest_problems.push(problem.to_string());
            // The daemons go on with what was right last.
            match &problem.object {
                Some(id) if id.kind == Kind::Node.singular() => {
                    all.nodes.entry(id.name.clone()).or_default();
                }
                Some(id) if id.kind == Kind::IpPool.singular() => {
                    all.broken_pools.insert(id.name.clone());
                }
                _ => {}
            }
        }
        for found in manifests.resources.into_values() {
            let name = found.value.name().to_owned();
            match found.value {
                Resource::IpPool(pool) => {
                    let (cidr, block_size) = (pool.spec.cidr, pool.spec.block_size());
                    all.pools.insert(name, Pool { cidr, block_size });
                }
                Resource::Node(node) => {
                    all.nodes.insert(name, node.spec.blocks.into_iter().collect());
                }
                Resource::IpReservation(reservation) => {
                    let ranges = reservation.spec.reserved_cidrs.into_iter();
                    all.reservations.extend(ranges.map(|range| (name.clone(), range)));
                }
                Resource::IpamConfig(config) if name == "default" => all.config = Some(config.spec),
                _ => {}
            }
        }
        // Daemons that never had a Node do without one.
        let leases = read_leases(directory)?.into_iter();
        for (node, _) in leases.filter(|(_, lease)| !lease.had_node) {
            all.nodes.entry(node).or_default();
        }
        Ok(all)
    }
}

/// What the daemon of this node says.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) node: String,
    pub(super) status: IpamStatus,
}

/// Pools and blocks of the cluster.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    /// Whose daemon was asked.
    pub(super) node: Option<String>,
    pub(super) pools: Vec<PoolView>,
    pub(super) blocks: Vec<BlockView>,
    /// What is wrong with claims that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) problems: Vec<String>,
}

/// One pool. What is not in use, cooling, reserved or free is not told by the owners of blocks.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PoolView {
    pub(super) name: String,
    pub(super) cidr: Prefix,
    pub(super) block_size: u8,
    pub(super) total: u128,
    pub(super) used: u128,
    pub(super) free: u128,
    pub(super) cooling: u128,
    pub(super) reserved: u128,
    /// Whether it gives addresses on this node, and if not, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) eligible: Option<Result<(), String>>,
}

/// One block, or a part of one that another node has.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BlockView {
    pub(super) block: Block,
    pub(super) pool: String,
    pub(super) node: String,
    /// Whether there is such a node.
    pub(super) node_exists: bool,
    pub(super) size: u32,
    /// Unless nobody tells.
    #[serde(flatten)]
    pub(super) numbers: Option<Numbers>,
    /// Since when the numbers are these; those of this node are of now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<String>,
    /// Whether new addresses come from it; only of this node's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) assignable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dedication: Option<Dedication>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lent_by: Option<Lender>,
}

/// Whose block a part is of.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Lender {
    pub(super) node: String,
    pub(super) block: Block,
}

/// How full a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Numbers {
    pub(super) used: u32,
    pub(super) free: u32,
    pub(super) cooling: u32,
    pub(super) reserved: u32,
    pub(super) lent: u32,
}

impl From<&BlockStatus> for Numbers {
    fn from(own: &BlockStatus) -> Self {
        let BlockStatus { used, free, cooling, reserved, lent, .. } = *own;
        Self { used, free, cooling, reserved, lent }
    }
}

impl From<&BlockFill> for Numbers {
    fn from(told: &BlockFill) -> Self {
        let BlockFill { used, free, cooling, reserved, lent, .. } = *told;
        Self { used, free, cooling, reserved, lent }
    }
}

impl View {
    /// Puts together what both say. A node that does not exist says nothing any more.
    pub(super) fn new(all: &Datastore, own: Option<&Own>) -> Self {
        let mut blocks: BTreeMap<Block, BlockView> = BTreeMap::new();
        for claim in all.claims.claims.values() {
            let mut view = block_view(all, claim.block, &claim.node, &claim.pool);
            view.dedication.clone_from(&claim.dedication);
            blocks.insert(claim.block, view);
            for part in &claim.delegations {
                let lent_by = Some(Lender { node: claim.node.clone(), block: claim.block });
                let part_view = block_view(all, part.cidr, &part.node, &claim.pool);
                blocks.insert(part.cidr, BlockView { lent_by, ..part_view });
            }
        }
        if let Some(own) = own {
            for status in &own.status.blocks {
                let fresh = block_view(all, status.block, &own.node, &status.pool);
                let view = blocks.entry(status.block).or_insert(fresh);
                // What another node claims is no concern of its numbers.
                if view.node == own.node {
                    view.numbers = Some(status.into());
                    view.assignable = Some(status.assignable);
                    view.since = None;
                }
            }
        }
        let blocks: Vec<BlockView> = blocks.into_values().collect();
        Self {
            node: own.map(|own| own.node.clone()),
            pools: pools(all, own, &blocks),
            blocks,
            problems: all.claims.problems.iter().map(ToString::to_string).collect(),
        }
    }
}

fn block_view(all: &Datastore, block: Block, node: &str, pool: &str) -> BlockView {
    let node_exists = all.nodes.contains_key(node);
    let fill = all.fills.get(node).filter(|_| node_exists);
    let told = fill.and_then(|fill| fill.blocks.iter().find(|told| told.block == block));
    BlockView {
        block,
        pool: pool.to_owned(),
        node: node.to_owned(),
        node_exists,
        size: block.size().into(),
        numbers: told.map(Numbers::from),
        since: fill.filter(|_| told.is_some()).map(|fill| fill.since.clone()),
        assignable: None,
        dedication: None,
        lent_by: None,
    }
}

fn pools(all: &Datastore, own: Option<&Own>, blocks: &[BlockView]) -> Vec<PoolView> {
    let mut pools = all.pools.clone();
    let told = || own.into_iter().flat_map(|own| &own.status.pools);
    for status in told() {
        // One whose manifest is broken now; the daemon goes on with what it said before.
        let standard = if status.cidr.family().bits() == 32 { 26 } else { 122 };
        pools
            .entry(status.name.clone())
            .or_insert(Pool { cidr: status.cidr, block_size: standard });
    }
    let view = |(name, Pool { cidr, block_size }): (String, Pool)| {
        let own: Vec<&BlockView> = blocks.iter().filter(|block| block.pool == name).collect();
        let sum = |number: fn(&Numbers) -> u32| -> u128 {
            own.iter().filter_map(|b| b.numbers.as_ref()).map(|n| u128::from(number(n))).sum()
        };
        let claimed: Vec<Prefix> =
            own.iter().filter(|b| b.lent_by.is_none()).map(|b| b.block.prefix()).collect();
        let spare = reserved_outside(all, cidr, &claimed);
        let taken: u128 = claimed.iter().map(|block| block.size()).sum();
        PoolView {
            cidr,
            block_size,
            total: cidr.size(),
            used: sum(|n| n.used),
            free: cidr.size().saturating_sub(taken).saturating_sub(spare) + sum(|n| n.free),
            cooling: sum(|n| n.cooling),
            reserved: sum(|n| n.reserved) + spare,
            eligible: told().find(|status| status.name == name).map(|s| s.eligible.clone()),
            name,
        }
    };
    pools.into_iter().map(view).collect()
}

/// How many addresses of a pool are reserved, and in no claimed block.
fn reserved_outside(all: &Datastore, cidr: Prefix, claimed: &[Prefix]) -> u128 {
    let smaller = |a: Prefix, b: Prefix| if a.length() > b.length() { a } else { b };
    let ranges: BTreeSet<Prefix> = all
        .reservations
        .iter()
        .filter(|(_, range)| range.overlaps(cidr))
        .map(|(_, range)| smaller(*range, cidr))
        .collect();
    let is_outermost =
        |range: &&Prefix| !ranges.iter().any(|other| other != *range && other.covers(**range));
    let outside = |range: &Prefix| {
        let inside = claimed.iter().filter(|block| block.overlaps(*range));
        let inside: u128 = inside.map(|block| smaller(*block, *range).size()).sum();
        range.size().saturating_sub(inside)
    };
    ranges.iter().filter(is_outermost).map(outside).sum()
}
