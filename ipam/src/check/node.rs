use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use twill_types::{Alias, Block, Finding, FindingKind, LinkAlias, Prefix};

use super::{ClaimFact, finding};
use crate::{
    BlockSummary, Facts, Leftover, LinkFact, PodFact, Record, RecordFact, Verdict,
    liveness::{Death, Owners},
};

/// What one look at a node found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node.
    pub node: String,
    /// Records and links.
    pub facts: Facts,
    /// What the liveness rule says of them.
    pub verdict: Verdict,
    /// The addresses that the node routes to each link, by its index.
    pub routes: BTreeMap<u32, Vec<IpAddr>>,
    /// The blocks of the store.
    pub blocks: Vec<BlockSummary>,
    /// All claims.
    pub claims: BTreeMap<Block, ClaimFact>,
    /// Whether the datastore says of this node's blocks what the node told it.
    pub told: bool,
    /// Milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// How long an ADD may take.
    pub grace_ms: u64,
}

/// Compares store, kernel and claims of one node.
pub fn check_node(facts: &NodeFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    leaks(facts, &mut findings);
    let linked = links(facts, &mut findings);
    unlinked(facts, &linked, &mut findings);
    addresses(facts, &mut findings);
    blocks(facts, &mut findings);
    if !facts.told {
        findings.push(finding(
            FindingKind::PublishedDiffers,
            &facts.node,
            None,
            format!("status/{}/ipam.json is not what the node wrote", facts.node),
            "--fix writes it again",
        ));
    }
    findings
}

fn of_record(kind: FindingKind, node: &str, record: &Record, why: &str, remedy: &str) -> Finding {
    let list: Vec<String> = record.addresses.iter().map(ToString::to_string).collect();
    let owner = record.pod.as_ref().map_or(String::new(), |pod| format!("{pod}, "));
    let message = format!("{} of {owner}{}: {why}", list.join(", "), record.attachment);
    Finding {
        addresses: record.addresses.clone(),
        attachment: Some(record.attachment.clone()),
        pod: record.pod.clone(),
        sequence: Some(record.sequence),
        ..finding(kind, node, record.addresses.first().map(|ip| Prefix::host(*ip)), message, remedy)
    }
}

fn leaks(facts: &NodeFacts, findings: &mut Vec<Finding>) {
    const REMEDY: &str = "--fix releases it, and so does the next round of the node's own";
    let kind = FindingKind::LeakedAddress;
    let why = |death: &Death| match death {
        Death::LinkGone => "the pod has no link any more",
        Death::NamespaceReplaced => "another namespace is at its path",
        Death::NamespaceGone => "its namespace is gone",
    };
    for (record, death) in &facts.verdict.dead {
        findings.push(of_record(kind, &facts.node, record, why(death), REMEDY));
    }
    for (record, death, left_ms) in &facts.verdict.suspects {
        let seconds = left_ms.div_ceil(1000);
        let remedy = format!("an ADD or a DEL may be under way; look again in {seconds} s");
        let found = of_record(kind, &facts.node, record, why(death), &remedy);
        findings.push(Finding { confirmed: false, ..found });
    }
    podless(facts, findings);
    for (index, why) in &facts.verdict.leftovers {
        let name = facts.facts.links.iter().find(|link| link.index == *index);
        let name = name.map_or_else(|| format!("link {index}"), |link| link.name.clone());
        let why = match why {
            Leftover::Unnamed => "its ADD died before it said whose it is",
            Leftover::Superseded => "a later ADD has taken its place",
            Leftover::Unrecorded => "its pod has no address, and it never came up",
        };
        let message = format!("{name} is left over: {why}");
        let found = finding(
            FindingKind::LeftoverLink,
            &facts.node,
            None,
            message,
            "--fix removes it, and so does the next round of the node's own",
        );
        findings.push(Finding { link: Some(name), ..found });
    }
}

/// Sandboxes that outlive their pods. What the kernel has is never taken from it, whatever a cluster says,
/// and the runtime may be about to.
fn podless(facts: &NodeFacts, findings: &mut Vec<Finding>) {
    let verdict = &facts.verdict;
    let records = facts.facts.records.iter().filter(|fact| fact.pod == PodFact::Gone);
    for RecordFact { record, .. } in records {
        let is_it = |other: &Record| other.attachment == record.attachment;
        let is_told = verdict.dead.iter().any(|(other, _)| is_it(other))
            || verdict.suspects.iter().any(|(other, ..)| is_it(other));
        if !is_told {
            let found = of_record(
                FindingKind::LeakedAddress,
                &facts.node,
                record,
                "the cluster has no such pod any more, and its sandbox is still there",
                "the runtime removes it; if it does not, see to it (crictl pods, crictl stopp, crictl rmp)",
            );
            findings.push(Finding { confirmed: false, ..found });
        }
    }
}

/// Compares links that are in use with the records; answers which records have one.
fn links(facts: &NodeFacts, findings: &mut Vec<Finding>) -> BTreeSet<u64> {
    let owners = Owners::of(&facts.facts.records);
    let mut linked = BTreeSet::new();
    let none = Vec::new();
    for link in facts.facts.links.iter().filter(|link| link.up) {
        let routed = facts.routes.get(&link.index).unwrap_or(&none);
        // One that is up and has no alias has lost it.
        let sequence = link.alias.as_ref().map(|alias| alias.sequence);
        if sequence == Some(LinkAlias::WITHOUT_STORE) {
            continue;
        }
        match owners.find(link) {
            // A later ADD has the record, and this link is left over.
            Some(record) if sequence.is_some_and(|sequence| sequence < record.sequence) => {}
            Some(record) => {
                linked.insert(record.sequence);
                with_record(facts, link, record, routed, findings);
            }
            None => without_record(facts, link, routed, findings),
        }
    }
    linked
}

fn with_record(
    facts: &NodeFacts,
    link: &LinkFact,
    record: &Record,
    routed: &[IpAddr],
    findings: &mut Vec<Finding>,
) {
    let missing: Vec<_> = record.addresses.iter().filter(|ip| !routed.contains(ip)).collect();
    if !missing.is_empty() {
        let why = format!("{} has no route for {missing:?}", link.name);
        let found = of_record(
            FindingKind::MissingRoute,
            &facts.node,
            record,
            &why,
            "nothing reaches the pod: delete it, so that it is made again",
        );
        findings.push(Finding { link: Some(link.name.clone()), ..found });
    }
    for address in routed.iter().filter(|ip| !record.addresses.contains(ip)) {
        let found = finding(
            FindingKind::InUseNotAllocated,
            &facts.node,
            Some(Prefix::host(*address)),
            format!(
                "{address} is routed to {} of {}, which does not have it",
                link.name, record.attachment
            ),
            format!("remove the route (ip route del {address} dev {})", link.name),
        );
        findings.push(Finding {
            link: Some(link.name.clone()),
            attachment: Some(record.attachment.clone()),
            pod: record.pod.clone(),
            ..found
        });
    }
}

fn without_record(
    facts: &NodeFacts,
    link: &LinkFact,
    routed: &[IpAddr],
    findings: &mut Vec<Finding>,
) {
    let has = |record: &&Record| routed.iter().any(|ip| record.addresses.contains(ip));
    let other = facts.facts.records.iter().map(|fact| &fact.record).find(has);
    let (owner, attachment) = match link.alias.as_ref().map(|alias| &alias.owner) {
        Some(Alias::Full(attachment)) => (attachment.to_string(), Some(attachment.clone())),
        Some(Alias::Hashed(hash)) => (format!("somebody with the hash {hash}"), None),
        None => ("somebody whose alias is lost".to_owned(), None),
    };
    let remedy = match (&attachment, other) {
        (_, Some(other)) => format!("{} has the address now; delete this pod", other.attachment),
        (Some(_), None) if !routed.is_empty() => "--fix writes it down again".to_owned(),
        (None, _) if link.alias.is_none() => {
            "delete the pod, unless another IPAM plugin gave its address".to_owned()
        }
        _ => "what the link says is not enough to write it down: delete the pod".to_owned(),
    };
    let found = finding(
        FindingKind::InUseNotAllocated,
        &facts.node,
        routed.first().map(|ip| Prefix::host(*ip)),
        format!("{} of {owner} is up with {routed:?}, and nothing is allocated to it", link.name),
        remedy,
    );
    findings.push(Finding {
        addresses: routed.to_vec(),
        link: Some(link.name.clone()),
        attachment,
        sequence: link.alias.as_ref().map(|alias| alias.sequence),
        ..found
    });
}

/// Pods that live, and whose link is not in use. That is so in the middle of each ADD, too.
fn unlinked(facts: &NodeFacts, linked: &BTreeSet<u64>, findings: &mut Vec<Finding>) {
    let dead = facts.verdict.dead.iter().map(|(record, _)| record.sequence);
    let suspects = facts.verdict.suspects.iter().map(|(record, ..)| record.sequence);
    let dead: BTreeSet<u64> = dead.chain(suspects).collect();
    for record in facts.facts.records.iter().map(|fact| &fact.record) {
        let is_young = facts.now_ms.saturating_sub(record.created_ms) < facts.grace_ms;
        let is_fine = record.foreign || linked.contains(&record.sequence);
        if !is_young && !is_fine && !dead.contains(&record.sequence) {
            findings.push(of_record(
                FindingKind::MissingRoute,
                &facts.node,
                record,
                "the pod lives, and its link is gone or down",
                "nothing reaches the pod: delete it, so that it is made again",
            ));
        }
    }
}

/// Whether each address is allocated once, and out of a block of the node.
fn addresses(facts: &NodeFacts, findings: &mut Vec<Finding>) {
    let mut seen: BTreeMap<IpAddr, &Record> = BTreeMap::new();
    for record in facts.facts.records.iter().map(|fact| &fact.record) {
        for address in &record.addresses {
            if let Some(other) = seen.insert(*address, record) {
                let why = format!("{address} is also that of {}", other.attachment);
                findings.push(of_record(
                    FindingKind::AllocatedTwice,
                    &facts.node,
                    record,
                    &why,
                    "delete both pods",
                ));
            }
        }
        let inside = |ip: &IpAddr| facts.blocks.iter().any(|b| b.block.prefix().contains(*ip));
        if let Some(outside) = record.addresses.iter().find(|ip| !inside(ip)) {
            let why = format!("{outside} is in no block of this node");
            findings.push(of_record(
                FindingKind::OutsideBlocks,
                &facts.node,
                record,
                &why,
                "it is not announced, so nobody reaches the pod: delete it",
            ));
        }
    }
}

/// Compares the blocks of the store with records and claims.
fn blocks(facts: &NodeFacts, findings: &mut Vec<Finding>) {
    let addresses: Vec<IpAddr> =
        facts.facts.records.iter().flat_map(|fact| fact.record.addresses.clone()).collect();
    for summary in &facts.blocks {
        let range = summary.block.prefix();
        let count = addresses.iter().filter(|ip| range.contains(**ip)).count();
        if count != usize::from(summary.used) {
            findings.push(finding(
                FindingKind::CountDiffers,
                &facts.node,
                Some(range),
                format!("{range}: {} addresses count as used, and {count} are allocated", summary.used),
                "move <runDir>/ipam/store away and restart twilld: it is rebuilt from the pods' links",
            ));
        }
        let lent_to = facts.claims.values().find_map(|claim| claim.parts.get(&summary.block));
        let remedy = match facts.claims.get(&summary.block) {
            _ if lent_to == Some(&facts.node) => continue,
            Some(claim) if claim.node == facts.node => continue,
            Some(claim) => format!(
                "it is node {}'s: delete the pods in it here, and --fix forgets it",
                claim.node
            ),
            None if summary.used == 0 => "--fix forgets it".to_owned(),
            None => "--fix claims it again".to_owned(),
        };
        let message = format!(
            "{range} ({} in use) is used here, and this node has no claim for it",
            summary.used
        );
        let found =
            finding(FindingKind::BlockWithoutClaim, &facts.node, Some(range), message, remedy);
        findings.push(Finding { pool: Some(summary.pool.clone()), ..found });
    }
    for (block, claim) in facts.claims.iter().filter(|(_, claim)| claim.node == facts.node) {
        if !facts.blocks.iter().any(|summary| summary.block == *block) {
            let found = finding(
                FindingKind::ClaimNotTaken,
                &facts.node,
                Some(block.prefix()),
                format!("{block} is claimed for this node, which does not use it"),
                "--fix takes it into use, or gives it back if its pool is gone",
            );
            let (pool, uid) = (Some(claim.pool.clone()), Some(claim.uid.clone()));
            findings.push(Finding { pool, uid, ..found });
        }
    }
}
