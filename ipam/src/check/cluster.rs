use std::collections::{BTreeMap, BTreeSet};

use twill_types::{Block, Finding, FindingKind, Prefix};

use super::finding;

/// A claim, as far as a check goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimFact {
    /// Whose it is.
    pub node: String,
    /// The pool it was taken from.
    pub pool: String,
    /// What tells it from another claim of the block.
    pub uid: String,
    /// For how many seconds it has been there; `None` if it does not say.
    pub age: Option<u64>,
    /// Parts of it that other nodes have.
    pub parts: BTreeMap<Block, String>,
}

/// A pool, as far as a check goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolFact {
    /// All its addresses.
    pub cidr: Prefix,
    /// The prefix length of a block.
    pub block_size: u8,
}

/// What a node says of one of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumbersFact {
    /// The block.
    pub block: Block,
    /// All numbers together.
    pub sum: u32,
}

/// What the datastore says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterFacts {
    /// The nodes, each with the blocks that its manifest gives it; those that do without a manifest
    /// are among them.
    pub nodes: BTreeMap<String, BTreeSet<Block>>,
    /// The pools; nothing is known of one whose manifest is wrong.
    pub pools: BTreeMap<String, Option<PoolFact>>,
    /// The claims.
    pub claims: BTreeMap<Block, ClaimFact>,
    /// What is wrong with those that cannot be read.
    pub damaged: Vec<String>,
    /// BlockRequests that cannot be read, by name.
    pub damaged_requests: Vec<String>,
    /// What nodes say of their blocks.
    pub numbers: BTreeMap<String, Vec<NumbersFact>>,
    /// Whether claims have been as they are for so long that all nodes had the time to say so.
    pub settled: bool,
}

impl ClusterFacts {
    /// Who has a block, or a part of one.
    fn owner(&self, block: Block) -> Option<&str> {
        let lent = || self.claims.values().find_map(|claim| claim.parts.get(&block));
        let owner = self.claims.get(&block).map(|claim| &claim.node);
        owner.or_else(lent).map(String::as_str)
    }
}

/// How long a claim may be there before its node says how full the block is, seconds.
const TOLD_AFTER: u64 = 60;

/// Compares nodes, pools, claims and numbers of the cluster.
pub fn check_cluster(facts: &ClusterFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for message in &facts.damaged {
        findings.push(Finding::new(
            FindingKind::DamagedClaim,
            message,
            "restore it, or remove it if no pod has an address of its block",
        ));
    }
    for name in &facts.damaged_requests {
        findings.push(Finding::new(
            FindingKind::DamagedRequest,
            format!("request {name} cannot be read: the part that answers it stays with its node"),
            "restore it, or remove it once that node has no pod in the part",
        ));
    }
    for (block, claim) in &facts.claims {
        findings.extend(of_claim(facts, *block, claim));
    }
    overlaps(&facts.claims, &mut findings);
    for (node, blocks) in &facts.numbers {
        findings.extend(of_numbers(facts, node, blocks));
    }
    findings
}

fn of_claim(facts: &ClusterFacts, block: Block, claim: &ClaimFact) -> Vec<Finding> {
    let ClaimFact { node, pool, uid, age, parts } = claim;
    let of = |kind, message: String, remedy: String| Finding {
        pool: Some(pool.clone()),
        uid: Some(uid.clone()),
        ..finding(kind, node, Some(block.prefix()), message, remedy)
    };
    let mut findings = Vec::new();
    match facts.nodes.get(node) {
        None => findings.push(of(
            FindingKind::ClaimWithoutNode,
            format!("{block} is claimed by node {node}, which does not exist"),
            format!(
                "apply its Node; if {node} is gone for good, its blocks come back by themselves \
                 (ipam.goneNodeGraceSeconds)"
            ),
        )),
        Some(own) if own.contains(&block) => {}
        Some(_) => findings.extend(misfit(facts, block, claim).map(|(kind, message)| {
            of(
                kind,
                message,
                format!("node {node} gives it back once it is empty: run check --fix there"),
            )
        })),
    }
    for (part, borrower) in parts {
        if !facts.nodes.contains_key(borrower) {
            let message =
                format!("{part} of {block} is lent to node {borrower}, which does not exist");
            let remedy = format!(
                "apply the Node of {borrower}; if it is gone for good, the part comes back by itself"
            );
            let range = Some(part.prefix());
            findings.push(finding(FindingKind::ClaimWithoutNode, borrower, range, message, remedy));
        }
    }
    let told = facts.numbers.get(node).is_some_and(|told| told.iter().any(|b| b.block == block));
    if facts.nodes.contains_key(node) && !told && age.is_some_and(|age| age > TOLD_AFTER) {
        findings.push(of(
            FindingKind::MissingNumbers,
            format!("node {node} does not say how full {block} is"),
            format!("see whether twilld runs on {node}, and whether it can write the datastore"),
        ));
    }
    findings
}

fn misfit(facts: &ClusterFacts, block: Block, claim: &ClaimFact) -> Option<(FindingKind, String)> {
    let ClaimFact { node, pool, .. } = claim;
    match facts.pools.get(pool) {
        None => Some((
            FindingKind::ClaimWithoutPool,
            format!("{block} of node {node} is of pool {pool}, which does not exist"),
        )),
        Some(Some(found)) if !found.cidr.covers(block.prefix()) => Some((
            FindingKind::ClaimOutsidePool,
            format!("{block} of node {node} is not in its pool {pool} ({})", found.cidr),
        )),
        Some(Some(found)) if found.block_size != block.prefix().length() => Some((
            FindingKind::ClaimOutsidePool,
            format!("{block} of node {node} is no /{} as blocks of {pool} are", found.block_size),
        )),
        Some(_) => None,
    }
}

/// Blocks are in the order of their addresses, and each is in all of another or in none of it, so
/// those around one that are not over yet are the ones that it overlaps.
fn overlaps(claims: &BTreeMap<Block, ClaimFact>, findings: &mut Vec<Finding>) {
    let mut around: Vec<(Block, &ClaimFact)> = Vec::new();
    for (block, claim) in claims {
        while around.last().is_some_and(|(outer, _)| !outer.prefix().covers(block.prefix())) {
            around.pop();
        }
        if let Some((outer, other)) = around.last() {
            let message =
                format!("{block} of node {} lies in {outer} of node {}", claim.node, other.node);
            let found = finding(
                FindingKind::OverlappingClaims,
                &claim.node,
                Some(block.prefix()),
                message,
                "an address may be given twice: empty one of the two and remove its claim",
            );
            let (pool, uid) = (Some(claim.pool.clone()), Some(claim.uid.clone()));
            findings.push(Finding { pool, uid, ..found });
        }
        around.push((*block, claim));
    }
}

fn of_numbers(facts: &ClusterFacts, node: &str, blocks: &[NumbersFact]) -> Vec<Finding> {
    if !facts.nodes.contains_key(node) {
        let message = format!("there are numbers of node {node}, which does not exist");
        let remedy = format!("nobody reads them; remove status/{node}");
        return vec![finding(FindingKind::StaleNumbers, node, None, message, remedy)];
    }
    let mut findings = Vec::new();
    for NumbersFact { block, sum } in blocks {
        let owner = facts.owner(*block);
        let again = format!("run check --fix on {node}");
        if owner != Some(node) {
            let whose = owner.map_or("nobody's".to_owned(), |owner| format!("node {owner}'s"));
            let message = format!("node {node} tells numbers of {block}, which is {whose}");
            let range = Some(block.prefix());
            let found = finding(FindingKind::StaleNumbers, node, range, message, again);
            findings.push(Finding { confirmed: facts.settled, ..found });
        } else if *sum != u32::from(block.size()) {
            let message = format!(
                "the numbers that node {node} tells of {block} make {sum} addresses, not {}",
                block.size()
            );
            let range = Some(block.prefix());
            findings.push(finding(FindingKind::PublishedDiffers, node, range, message, again));
        }
    }
    findings
}
