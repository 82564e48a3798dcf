use std::collections::BTreeMap;

use twill_types::{AttachmentId, Block, LinkAlias, host_link_name};

use super::*;
use crate::{
    BlockSummary, Death, Facts, Leftover, LinkFact, PathFact, PodFact, Record, RecordFact, Verdict,
};

fn id(n: u8) -> AttachmentId {
    AttachmentId { network: "n".into(), container_id: format!("c{n}"), ifname: "eth0".into() }
}

/// A record of 10.0.0.n, long ago.
fn record(n: u8) -> Record {
    Record {
        attachment: id(n),
        addresses: vec![[10, 0, 0, n].into()],
        sequence: n.into(),
        netns: String::new(),
        netns_cookie: None,
        pod: Some(format!("prod/p{n}")),
        pod_uid: None,
        foreign: false,
        created_ms: 0,
    }
}

fn link(n: u8) -> LinkFact {
    LinkFact {
        index: n.into(),
        name: host_link_name(&id(n)),
        alias: Some(LinkAlias::new(&id(n), n.into())),
        overwritten: false,
        up: true,
    }
}

fn claim(node: &str, pool: &str) -> ClaimFact {
    ClaimFact {
        node: node.into(),
        pool: pool.into(),
        uid: "u".into(),
        age: Some(1000),
        parts: BTreeMap::new(),
    }
}

fn block(text: &str, used: u16) -> BlockSummary {
    let block: Block = text.parse().unwrap();
    BlockSummary {
        block,
        pool: "a".into(),
        used,
        free: block.size() - used,
        held: 0,
        resting: 0,
        reserved: 0,
        delegated: 0,
        assignable: true,
        dedication: None,
    }
}

/// A node on which all is well: the pods 1 and 2, in one block.
fn healthy() -> NodeFacts {
    let records = [1, 2].map(|n| RecordFact {
        record: record(n),
        path: PathFact::Same,
        pod: PodFact::Unknown,
    });
    NodeFacts {
        node: "node1".into(),
        facts: Facts { records: records.into(), links: vec![link(1), link(2)] },
        verdict: Verdict::default(),
        routes: [1u8, 2].map(|n| (n.into(), vec![[10, 0, 0, n].into()])).into(),
        blocks: vec![block("10.0.0.0/26", 2)],
        claims: BTreeMap::from([("10.0.0.0/26".parse().unwrap(), claim("node1", "a"))]),
        told: true,
        now_ms: 1_000_000,
        grace_ms: 1000,
    }
}

/// `kind range`, with a question mark where it is not confirmed.
fn short(findings: &[Finding]) -> Vec<String> {
    let text = |finding: &Finding| {
        let range = finding.range.map_or("-".to_owned(), |range| range.to_string());
        let doubt = if finding.confirmed { "" } else { " ?" };
        format!("{} {range}{doubt}", finding.kind.as_str())
    };
    findings.iter().map(text).collect()
}

#[test]
fn each_kind_of_difference_on_a_node_has_its_finding() {
    type Change = fn(&mut NodeFacts);
    let table: [(&str, Change, &[&str]); 23] = [
        ("all is well", |_| {}, &[]),
        (
            "a pod that is gone for long",
            |f| {
                f.facts.links.pop();
                f.verdict.dead.push((record(2), Death::LinkGone));
            },
            &["leakedAddress 10.0.0.2/32"],
        ),
        (
            "a sandbox that outlives its pod",
            |f| f.facts.records[1].pod = PodFact::Gone,
            &["leakedAddress 10.0.0.2/32 ?"],
        ),
        (
            "a pod that is gone with its sandbox",
            |f| {
                f.facts.records[1].pod = PodFact::Gone;
                f.facts.links.pop();
                f.verdict.suspects.push((record(2), Death::LinkGone, 500));
            },
            &["leakedAddress 10.0.0.2/32 ?"],
        ),
        (
            "one that may just be made",
            |f| {
                f.facts.links.pop();
                f.verdict.suspects.push((record(2), Death::LinkGone, 500));
            },
            &["leakedAddress 10.0.0.2/32 ?"],
        ),
        (
            "an ADD that has not made its link yet",
            |f| {
                f.facts.links.pop();
                f.facts.records[1].record.created_ms = f.now_ms - 10;
            },
            &[],
        ),
        (
            "an ADD that has not brought its link up yet",
            |f| {
                f.facts.links[1].up = false;
                f.facts.records[1].record.created_ms = f.now_ms - 10;
            },
            &[],
        ),
        (
            "a link that somebody set down",
            |f| f.facts.links[1].up = false,
            &["missingRoute 10.0.0.2/32"],
        ),
        (
            "a route that somebody removed",
            |f| drop(f.routes.remove(&2)),
            &["missingRoute 10.0.0.2/32"],
        ),
        (
            "a route too many",
            |f| f.routes.get_mut(&2).unwrap().push([10, 0, 0, 9].into()),
            &["inUseNotAllocated 10.0.0.9/32"],
        ),
        (
            "a record that is lost",
            |f| {
                f.facts.records.pop();
                f.blocks[0].used = 1;
            },
            &["inUseNotAllocated 10.0.0.2/32"],
        ),
        (
            "a link whose addresses are another plugin's",
            |f| {
                f.facts.links.push(LinkFact {
                    alias: Some(LinkAlias::new(&id(3), LinkAlias::WITHOUT_STORE)),
                    ..link(3)
                });
            },
            &[],
        ),
        (
            "a link with somebody else's alias",
            |f| {
                f.facts.links[1].alias = None;
                f.facts.links[1].overwritten = true;
            },
            &[],
        ),
        (
            "a link whose alias is emptied, and whose route is gone",
            |f| {
                f.facts.links[1].alias = None;
                f.routes.remove(&2);
            },
            &["missingRoute 10.0.0.2/32"],
        ),
        (
            "a link whose alias and record are gone",
            |f| f.facts.links.push(LinkFact { alias: None, ..link(3) }),
            &["inUseNotAllocated -"],
        ),
        (
            "a link that is left of an ADD",
            |f| {
                f.facts.links.push(LinkFact { alias: None, up: false, ..link(3) });
                f.verdict.leftovers.push((3, Leftover::Unnamed));
            },
            &["leftoverLink -"],
        ),
        (
            "another main plugin's pod has no link of ours",
            |f| {
                f.facts.records[1].record.foreign = true;
                f.facts.links.pop();
            },
            &[],
        ),
        (
            "an address that is another's",
            |f| f.facts.records[1].record.addresses.push([10, 0, 0, 1].into()),
            &["missingRoute 10.0.0.2/32", "allocatedTwice 10.0.0.2/32", "countDiffers 10.0.0.0/26"],
        ),
        (
            "no block at all",
            |f| {
                f.blocks.clear();
                f.claims.clear();
            },
            &["outsideBlocks 10.0.0.1/32", "outsideBlocks 10.0.0.2/32"],
        ),
        ("a claim that somebody removed", |f| f.claims.clear(), &["blockWithoutClaim 10.0.0.0/26"]),
        (
            "another node's block, and a claim that was not noticed",
            |f| {
                f.claims.insert("10.0.0.0/26".parse().unwrap(), claim("node2", "a"));
                f.claims.insert("10.0.0.64/26".parse().unwrap(), claim("node1", "a"));
            },
            &["blockWithoutClaim 10.0.0.0/26", "claimNotTaken 10.0.0.64/26"],
        ),
        (
            "a borrowed part",
            |f| {
                let mut other = claim("node2", "a");
                other.parts.insert("10.0.0.64/29".parse().unwrap(), "node1".into());
                f.claims.insert("10.0.0.64/26".parse().unwrap(), other);
                f.blocks.push(block("10.0.0.64/29", 0));
            },
            &[],
        ),
        (
            "wrong numbers",
            |f| {
                f.blocks[0].used = 3;
                f.told = false;
            },
            &["countDiffers 10.0.0.0/26", "publishedDiffers -"],
        ),
    ];
    for (name, change, expected) in table {
        let mut facts = healthy();
        change(&mut facts);
        let found = check_node(&facts);
        assert_eq!(short(&found), expected, "{name}: {found:#?}");
        assert!(found.iter().all(|f| !f.message.is_empty() && !f.remedy.is_empty()), "{found:#?}");
        assert!(found.iter().all(|f| f.node.as_deref() == Some("node1")), "{found:#?}");
    }
}

#[test]
fn a_leak_names_what_fences_its_release() {
    let mut facts = healthy();
    facts.verdict.dead.push((record(2), Death::LinkGone));
    let leak = &check_node(&facts)[0];
    assert_eq!((leak.sequence, leak.attachment.clone()), (Some(2), Some(id(2))));
    assert_eq!(leak.addresses, record(2).addresses);
    assert_eq!(leak.message, "10.0.0.2 of prod/p2, n/c2/eth0: the pod has no link any more");
}

#[test]
fn what_one_look_alone_found_is_none() {
    let mut first = healthy();
    first.facts.records.pop();
    let mut second = first.clone();
    // Another ADD of the same attachment in between.
    second.facts.links[1].alias = Some(LinkAlias::new(&id(2), 9));
    let (first, second) = (check_node(&first), check_node(&second));
    assert_eq!((first.len(), second.len()), (2, 2), "{first:?}");
    assert_eq!(short(&in_both(&first, second)), ["countDiffers 10.0.0.0/26"]);
}

impl ClusterFacts {
    fn pool(&mut self) -> &mut PoolFact {
        self.pools.get_mut("a").unwrap().as_mut().unwrap()
    }
}

fn cluster() -> ClusterFacts {
    let block = |text: &str| text.parse::<Block>().unwrap();
    let pool = PoolFact { cidr: "10.0.0.0/24".parse().unwrap(), block_size: 26 };
    let numbers = |text: &str| vec![NumbersFact { block: block(text), sum: 64 }];
    ClusterFacts {
        nodes: BTreeMap::from([("node1".into(), [].into()), ("node2".into(), [].into())]),
        pools: BTreeMap::from([("a".into(), Some(pool))]),
        claims: BTreeMap::from([
            (block("10.0.0.0/26"), claim("node1", "a")),
            (block("10.0.0.64/26"), claim("node2", "a")),
        ]),
        damaged: Vec::new(),
        damaged_requests: Vec::new(),
        numbers: BTreeMap::from([
            ("node1".into(), numbers("10.0.0.0/26")),
            ("node2".into(), numbers("10.0.0.64/26")),
        ]),
        settled: true,
    }
}

#[test]
fn each_kind_of_difference_in_the_datastore_has_its_finding() {
    type Change = fn(&mut ClusterFacts);
    let table: [(&str, Change, &[&str]); 15] = [
        ("all is well", |_| {}, &[]),
        (
            "a node that is gone",
            |f| drop(f.nodes.remove("node2")),
            &["claimWithoutNode 10.0.0.64/26", "staleNumbers -"],
        ),
        (
            "a pool that is gone",
            |f| f.pools.clear(),
            &["claimWithoutPool 10.0.0.0/26", "claimWithoutPool 10.0.0.64/26"],
        ),
        (
            "a block that the Node itself names",
            |f| {
                f.pools.clear();
                f.nodes.get_mut("node1").unwrap().insert("10.0.0.0/26".parse().unwrap());
            },
            &["claimWithoutPool 10.0.0.64/26"],
        ),
        ("a pool whose manifest is wrong", |f| *f.pools.get_mut("a").unwrap() = None, &[]),
        (
            "a pool that moved",
            |f| f.pool().cidr = "10.0.0.0/26".parse().unwrap(),
            &["claimOutsidePool 10.0.0.64/26"],
        ),
        (
            "a pool with other blocks",
            |f| f.pool().block_size = 27,
            &["claimOutsidePool 10.0.0.0/26", "claimOutsidePool 10.0.0.64/26"],
        ),
        (
            "claims in each other, three deep",
            |f| {
                for text in ["10.0.0.0/25", "10.0.0.64/27"] {
                    f.nodes.get_mut("node1").unwrap().insert(text.parse().unwrap());
                    f.claims.insert(
                        text.parse().unwrap(),
                        ClaimFact { age: None, ..claim("node1", "a") },
                    );
                }
                let told = ["10.0.0.0/25", "10.0.0.64/27"].map(|text| {
                    let block: Block = text.parse().unwrap();
                    NumbersFact { block, sum: block.size().into() }
                });
                f.numbers.get_mut("node1").unwrap().extend(told);
            },
            &[
                "overlappingClaims 10.0.0.0/26",
                "overlappingClaims 10.0.0.64/26",
                "overlappingClaims 10.0.0.64/27",
            ],
        ),
        ("a claim that is damaged", |f| f.damaged.push("x".into()), &["damagedClaim -"]),
        (
            "a request that is damaged",
            |f| f.damaged_requests.push("x".into()),
            &["damagedRequest -"],
        ),
        (
            "a node that says nothing",
            |f| drop(f.numbers.remove("node2")),
            &["missingNumbers 10.0.0.64/26"],
        ),
        (
            "one that had no time to say anything",
            |f| {
                f.numbers.remove("node2");
                f.claims.get_mut(&"10.0.0.64/26".parse().unwrap()).unwrap().age = Some(5);
            },
            &[],
        ),
        (
            "a block that was given back a moment ago",
            |f| {
                f.claims.remove(&"10.0.0.64/26".parse().unwrap());
                f.settled = false;
            },
            &["staleNumbers 10.0.0.64/26 ?"],
        ),
        (
            "parts that are lent, to a node and to one that is gone",
            |f| {
                let claim = f.claims.get_mut(&"10.0.0.64/26".parse().unwrap()).unwrap();
                claim.parts.insert("10.0.0.64/29".parse().unwrap(), "node1".into());
                claim.parts.insert("10.0.0.72/29".parse().unwrap(), "node9".into());
                let part = NumbersFact { block: "10.0.0.64/29".parse().unwrap(), sum: 8 };
                f.numbers.get_mut("node1").unwrap().push(part);
            },
            &["claimWithoutNode 10.0.0.72/29"],
        ),
        (
            "numbers that do not make up the block",
            |f| f.numbers.get_mut("node2").unwrap()[0].sum = 63,
            &["publishedDiffers 10.0.0.64/26"],
        ),
    ];
    for (name, change, expected) in table {
        let mut facts = cluster();
        change(&mut facts);
        let found = check_cluster(&facts);
        assert_eq!(short(&found), expected, "{name}: {found:#?}");
    }
}
