//! The life of a block: claimed, announced, drained, given back, lost and borrowed.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Pod, Topology},
    ping,
    wait::wait_for,
};

use crate::{LONG, SECONDS, plugin::refusal};

const ADDRESSES: [&str; 2] = ["192.168.2.11", "192.168.2.12"];

pub(crate) fn pool(name: &str, cidr: &str, more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: \
         {cidr}, {more}}}\n"
    )
}

/// Nodes on one segment, in one mesh, with settings that give blocks back at once.
pub(crate) fn nodes(count: usize, manifests: &[(&str, &str)]) -> Result<Lab> {
    let mut topology = Topology::new();
    for (number, address) in (1..).zip(&ADDRESSES[..count]) {
        topology
            .node(&format!("node{number}"))
            .label("env", "prod")
            .on("seg-a", &format!("{address}/24"))
            .settings("ipam: {emptyBlockGraceSeconds: 1, goneNodeGraceSeconds: 1}\n");
    }
    for (file, text) in manifests {
        topology.resource(file, text);
    }
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

fn wait_blocks(lab: &Lab, node: &str, expected: &[&str]) -> Result<()> {
    wait_for(&format!("the blocks of {node}"), LONG, || {
        let blocks = lab.node(node)?.blocks()?;
        ensure!(blocks == expected, "{blocks:?}");
        Ok(())
    })
}

pub(crate) fn problems(lab: &Lab, node: &str, text: &str) -> Result<()> {
    wait_for(&format!("word of {text:?}"), LONG, || {
        let status = lab.node(node)?.status()?;
        ensure!(status["problems"].to_string().contains(text), "{}", status["problems"]);
        Ok(())
    })
}

pub(crate) fn claims(lab: &Lab) -> Result<Vec<String>> {
    let directory = lab.resource("claims");
    let entries = fs::read_dir(&directory)?.map(|entry| Ok(entry?.file_name()));
    let names = entries.collect::<Result<Vec<_>>>()?;
    let mut names: Vec<String> =
        names.into_iter().filter_map(|name| name.into_string().ok()).collect();
    names.retain(|name| name.ends_with(".yaml"));
    names.sort();
    Ok(names)
}

/// A condition of an object, as `twillctl get -o json` merges it.
pub(crate) fn condition(lab: &Lab, object: &str, kind: &str) -> Result<Value> {
    let name = format!("{kind} of {object}");
    let file = lab.resource("status").join("node1").join(format!("{object}.json"));
    wait_for(&name, SECONDS, || {
        let status: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind);
        found.with_context(|| format!("{status}"))
    })
}

pub(crate) fn empty_blocks_go_back_and_never_the_last() -> Result<()> {
    let small = pool("small", "10.60.0.0/28", "blockSize: 30");
    let mut lab = nodes(2, &[("small.yaml", &small)])?;
    let mut pods: Vec<Pod> = Vec::new();
    for n in 0..10 {
        pods.push(lab.add_pod("node1", &format!("p{n}"))?);
    }
    ensure!(lab.node("node1")?.blocks()?.len() >= 3, "{:?}", lab.node("node1")?.blocks()?);
    let keeper = pods.pop().context("no pods")?;
    for pod in pods {
        lab.delete_pod(pod)?;
    }
    let block = wait_for("all blocks but one to be given back", LONG, || {
        let blocks = lab.node("node1")?.blocks()?;
        ensure!(blocks.len() == 1, "{blocks:?}");
        Ok(blocks[0].clone())
    })?;
    wait_for("the claims to go after them", SECONDS, || {
        let claims = claims(&lab)?;
        ensure!(claims.len() == 1, "{claims:?}");
        Ok(())
    })?;
    let node2 = lab.node("node2")?;
    node2.wait_route(&block, LONG)?;
    // The others are withdrawn, and their unreachable routes are gone.
    wait_for("the others to be withdrawn", LONG, || {
        for node in lab.nodes() {
            let mut routes = node.own_routes("-4")?;
            routes.retain(|route| route["dst"].as_str().is_some_and(|dst| dst.ends_with("/30")));
            ensure!(routes.len() == 1, "{routes:?}");
        }
        Ok(())
    })?;
    ping::reaches(node2.namespace(), keeper.address()?)?;
    // The last one stays, also when it is empty; a pod gets an address at once.
    lab.delete_pod(keeper)?;
    let again = lab.add_pod("node1", "again")?;
    ensure!(lab.node("node1")?.blocks()? == [block], "{:?}", lab.node("node1")?.blocks()?);
    // Another node can have what was given back.
    for n in 0..12 {
        pods_on(&mut lab, "node2", n)?;
    }
    drop(again);
    Ok(())
}

fn pods_on(lab: &mut Lab, node: &str, n: usize) -> Result<()> {
    lab.add_pod(node, &format!("{node}-{n}")).map(drop)
}

pub(crate) fn a_pool_that_no_longer_selects_the_node_is_drained() -> Result<()> {
    let old = |selector: &str| {
        pool("a", "10.60.0.0/29", &format!("blockSize: 29, nodeSelector: \"{selector}\""))
    };
    let other = pool("b", "10.61.0.0/29", "blockSize: 29");
    let mut lab = nodes(1, &[("a.yaml", &old("env == 'prod'")), ("b.yaml", &other)])?;
    let pod = lab.add_pod("node1", "first")?;
    ensure!(pod.address()?.to_string().starts_with("10.60."), "{:?}", pod.addresses());
    lab.write_resource("a.yaml", &old("env == 'dev'"))?;
    let next = wait_for("a pod of the other pool", SECONDS, || {
        let next = lab.add_pod("node1", "next")?;
        if next.address()?.to_string().starts_with("10.61.") {
            return Ok(next);
        }
        let address = next.address()?;
        lab.delete_pod(next)?;
        anyhow::bail!("{address}");
    })?;
    // The pod that lives there is not cut off, and the block goes with it.
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    wait_blocks(&lab, "node1", &["10.60.0.0/29", "10.61.0.0/29"])?;
    lab.delete_pod(pod)?;
    wait_blocks(&lab, "node1", &["10.61.0.0/29"])?;
    drop(next);
    Ok(())
}

pub(crate) fn a_changed_cidr_drains_the_blocks_outside() -> Result<()> {
    let a = pool("a", "10.60.0.0/28", "blockSize: 29");
    let mut lab = nodes(1, &[("a.yaml", &a)])?;
    let pod = lab.add_pod("node1", "first")?;
    let block = lab.node("node1")?.blocks()?[0].clone();
    lab.write_resource("a.yaml", &pool("a", "10.70.0.0/28", "blockSize: 29"))?;
    problems(&lab, "node1", "was claimed before the cidr was changed")?;
    let drained = condition(&lab, "ippool.a", "Drained")?;
    ensure!(drained["reason"] == "CidrChanged", "{drained}");
    ensure!(drained["message"].to_string().contains(&block), "{drained}");
    let next = lab.add_pod("node1", "next")?;
    ensure!(next.address()?.to_string().starts_with("10.70."), "{:?}", next.addresses());
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    lab.delete_pod(pod)?;
    wait_for("the old block to be given back", LONG, || {
        let blocks = lab.node("node1")?.blocks()?;
        ensure!(!blocks.contains(&block), "{blocks:?}");
        Ok(())
    })
}

pub(crate) fn of_pools_that_overlap_the_one_in_use_stays() -> Result<()> {
    let b = pool("b", "10.60.0.0/28", "blockSize: 30");
    let mut lab = nodes(1, &[("b.yaml", &b)])?;
    let _pod = lab.add_pod("node1", "first")?;
    // By name it would come first, and it covers the other one as a whole.
    lab.write_resource("a.yaml", &pool("a", "10.60.0.0/24", "blockSize: 26"))?;
    let refused = condition(&lab, "ippool.a", "Allocatable")?;
    ensure!(refused["status"] == "False" && refused["reason"] == "Overlaps", "{refused}");
    ensure!(refused["message"].to_string().contains("pool b (10.60.0.0/28)"), "{refused}");
    let used = condition(&lab, "ippool.b", "Allocatable")?;
    ensure!(used["status"] == "True", "{used}");
    let next = lab.add_pod("node1", "next")?;
    ensure!(next.address()?.to_string().starts_with("10.60.0."), "{:?}", next.addresses());
    let shown = lab.node("node1")?.blocks()?;
    ensure!(shown.iter().all(|block| block.ends_with("/30")), "{shown:?}");
    Ok(())
}

pub(crate) fn pools_choose_namespaces_and_uses() -> Result<()> {
    let manual = pool("a-manual", "10.60.0.0/28", "blockSize: 30, assignmentMode: Manual");
    let tunnel = pool("b-tunnel", "10.61.0.0/28", "blockSize: 30, allowedUses: [Tunnel]");
    let prod =
        pool("c-prod", "10.62.0.0/28", "blockSize: 30, namespaceSelector: \"tier == 'prod'\"");
    let rest = pool("d-rest", "10.63.0.0/28", "blockSize: 30");
    let manifests =
        [("a.yaml", manual.as_str()), ("b.yaml", &tunnel), ("c.yaml", &prod), ("d.yaml", &rest)];
    let mut lab = nodes(1, &manifests)?;
    // Pods of the lab are in the namespace `prod`, of which nothing is known: no pool of others is
    // taken instead.
    let mut pod = lab.bare_pod("node1", "first")?;
    let patient = lab.node_mut("node1")?.runtime_mut().set_timeout(3);
    let error = refusal(lab.attach(&mut pod))?;
    ensure!(error.code == 11 && error.message.contains("namespace prod"), "{error}");
    let namespace = |tier: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: prod, labels: {{tier: {tier}}}}}\n"
        )
    };
    lab.node_mut("node1")?.runtime_mut().set_conflist(patient.clone());
    lab.write_resource("prod.yaml", &namespace("prod"))?;
    lab.attach(&mut pod)?;
    ensure!(pod.address()?.to_string().starts_with("10.62."), "{:?}", pod.addresses());
    lab.write_resource("prod.yaml", &namespace("dev"))?;
    wait_for("a pod of another pool", SECONDS, || {
        let next = lab.add_pod("node1", "next")?;
        let address = next.address()?.to_string();
        lab.delete_pod(next)?;
        ensure!(address.starts_with("10.63."), "{address}");
        Ok(())
    })?;
    // By name the manual one can be had, the one for tunnels cannot.
    for (name, expected) in [("a-manual", Ok("10.60.")), ("b-tunnel", Err("allowedUses"))] {
        let mut asking = patient.clone();
        asking["plugins"][0]["ipam"]["ipv4Pools"] = json!([name]);
        lab.node_mut("node1")?.runtime_mut().set_conflist(asking);
        let got = lab.add_pod("node1", name);
        match expected {
            Ok(prefix) => {
                let pod = got?;
                ensure!(pod.address()?.to_string().starts_with(prefix), "{:?}", pod.addresses());
            }
            Err(word) => {
                let error = refusal(got)?;
                ensure!(error.message.contains(word), "{error}");
            }
        }
    }
    Ok(())
}

pub(crate) fn a_pool_that_keeps_quiet_is_not_announced() -> Result<()> {
    let quiet =
        |on: bool| pool("a", "10.60.0.0/29", &format!("blockSize: 29, disableBGPExport: {on}"));
    let mut lab = nodes(2, &[("a.yaml", &quiet(false))])?;
    let pod = lab.add_pod("node1", "first")?;
    let session = |lab: &Lab| lab.node("node2")?.peer(ADDRESSES[0]);
    lab.node("node2")?.wait_route("10.60.0.0/29", LONG)?;
    let before = session(&lab)?;
    lab.write_resource("a.yaml", &quiet(true))?;
    lab.node("node2")?.wait_no_route("10.60.0.0/29", LONG)?;
    ensure!(session(&lab)?["flaps"] == before["flaps"], "the session was reset");
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    lab.write_resource("a.yaml", &quiet(false))?;
    lab.node("node2")?.wait_route("10.60.0.0/29", LONG)?;
    Ok(())
}

pub(crate) fn the_blocks_of_a_node_that_is_gone_return() -> Result<()> {
    let small = pool("small", "10.60.0.0/29", "blockSize: 30");
    let mut lab = nodes(2, &[("small.yaml", &small)])?;
    let _pods = (lab.add_pod("node1", "p1")?, lab.add_pod("node2", "p2")?);
    ensure!(claims(&lab)?.len() == 2, "{:?}", claims(&lab)?);
    // As long as its daemon lives, a node that was removed by mistake keeps what it has.
    lab.remove_resource("node2.yaml")?;
    // Eight renewals are twice the grace period.
    for _ in 0..8 {
        let lease = lab.resource("leases/node2.json");
        let before = fs::read_to_string(&lease)?;
        wait_for("its daemon to renew its lease", SECONDS, || {
            ensure!(fs::read_to_string(&lease)? != before);
            Ok(())
        })?;
    }
    ensure!(claims(&lab)?.len() == 2, "{:?}", claims(&lab)?);
    // Nor can it be taken from it by hand without saying so.
    let output = lab.node("node1")?.ctl_output(&["ipam", "release", "--node", "node2"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("not certain"), "{said}");
    lab.node_mut("node2")?.kill9()?;
    wait_for("its block to return", LONG, || {
        let claims = claims(&lab)?;
        ensure!(claims.len() == 1, "{claims:?}");
        Ok(())
    })?;
    // Others can have it, and the node learns of its loss when it comes back.
    for n in 0..7 {
        pods_on(&mut lab, "node1", n)?;
    }
    lab.node_mut("node2")?.start()?;
    problems(&lab, "node2", "ClaimLost")
}

pub(crate) fn a_claim_that_was_removed_by_hand_is_made_again() -> Result<()> {
    let small = pool("small", "10.60.0.0/29", "blockSize: 29");
    let mut lab = nodes(1, &[("small.yaml", &small)])?;
    let pod = lab.add_pod("node1", "p1")?;
    lab.node_mut("node1")?.kill9()?;
    let name = claims(&lab)?.pop().context("no claim")?;
    fs::remove_file(lab.resource("claims").join(&name))?;
    lab.node_mut("node1")?.start()?;
    ensure!(claims(&lab)? == [name.clone()], "{:?}", claims(&lab)?);
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    // One that is another's by now is lost: the pod stays, and nobody else gets an address there.
    lab.node_mut("node1")?.kill9()?;
    let other = fs::read_to_string(lab.resource("node1.yaml"))?.replace("node1", "node9");
    lab.write_resource("node9.yaml", &other)?;
    let file = lab.resource("claims").join(&name);
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace("node: node1", "node: node9"))?;
    lab.node_mut("node1")?.start()?;
    problems(&lab, "node1", "ClaimLost")?;
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    let lost = condition(&lab, "node.node1", "ClaimLost")?;
    ensure!(lost["status"] == "True", "{lost}");
    let error = refusal(lab.add_pod("node1", "p2"))?;
    ensure!(error.code != 0, "{error}");
    Ok(())
}

/// A node with a session to a ToR, and one pool.
fn behind_a_tor(pool: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    let neighbor = Neighbor::new("node1", ADDRESSES[0], 64512).local("192.168.2.1");
    topology
        .router("tor")
        .on("seg-a", "192.168.2.1/24")
        .bird(BirdConfig::new("192.168.2.1", 64513).neighbor(neighbor));
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    topology.resource("a.yaml", pool).resource(
        "tor.yaml",
        "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor}\nspec: {peerIP: \
         192.168.2.1, asNumber: 64513}\n",
    );
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.2.1"], LONG)?;
    Ok(lab)
}

/// What somebody announces without a claim is not claimed, and is no block that a pod could get: the
/// node is full beside it, and says so where that counts.
pub(crate) fn what_is_announced_is_no_block_to_have() -> Result<()> {
    let mut lab = behind_a_tor(&pool("a", "10.60.0.0/30", "blockSize: 31"))?;
    let announced = lab.bird("tor")?.config().clone().announce("10.60.0.2/31");
    lab.bird_mut("tor")?.configure(announced)?;
    lab.node("node1")?.wait_route("10.60.0.2/31", LONG)?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["statusOnExhaustion"] = json!(true);
    runtime.set_conflist(conflist);
    let _pods = [lab.add_pod("node1", "p1")?, lab.add_pod("node1", "p2")?];
    ensure!(lab.node("node1")?.blocks()? == ["10.60.0.0/31"], "{:?}", lab.node("node1")?.blocks()?);
    let error = refusal(lab.add_pod("node1", "p3"))?;
    ensure!(error.code == 101 && error.message.contains("announces 10.60.0.2/31"), "{error}");
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().status(node.namespace()))?;
    ensure!(error.code == 50, "{error}");
    Ok(())
}

pub(crate) fn a_second_origin_stops_the_block() -> Result<()> {
    let mut lab = behind_a_tor(&pool("a", "10.60.0.0/29", "blockSize: 29"))?;
    let pod = lab.add_pod("node1", "p1")?;
    let plain = lab.bird("tor")?.config().clone();
    lab.bird_mut("tor")?.configure(plain.clone().announce("10.60.0.4/30"))?;
    problems(&lab, "node1", "announces 10.60.0.4/30")?;
    let stopped = condition(&lab, "blockaffinity.0a3c0000-29", "Assigning")?;
    ensure!(stopped["reason"] == "SecondOrigin", "{stopped}");
    let error = refusal(lab.add_pod("node1", "p2"))?;
    ensure!(error.code == 101, "{error}");
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    // It is over when the other one is gone.
    lab.bird_mut("tor")?.configure(plain)?;
    wait_for("an address again", LONG, || lab.add_pod("node1", "p3"))?;
    let status = lab.node("node1")?.status()?;
    ensure!(status["problems"].as_array().is_none_or(Vec::is_empty), "{status}");
    Ok(())
}

pub(crate) fn a_changed_block_size_never_overlaps() -> Result<()> {
    let a = |size: u8| pool("a", "10.60.0.0/27", &format!("blockSize: {size}"));
    let mut lab = nodes(2, &[("a.yaml", &a(30))])?;
    for n in 0..6 {
        pods_on(&mut lab, "node1", n)?;
    }
    let of_before = lab.node("node1")?.blocks()?;
    lab.write_resource("a.yaml", &a(28))?;
    let mixed = condition(&lab, "ippool.a", "MixedBlockSizes")?;
    ensure!(mixed["status"] == "True" && mixed["reason"] == "BlockSizeChanged", "{mixed}");
    let message = mixed["message"].to_string();
    ensure!(of_before.iter().all(|block| message.contains(block)), "{mixed}, not {of_before:?}");
    // Blocks of both sizes side by side, as far as there is room, and no address twice.
    for n in 0..10 {
        pods_on(&mut lab, "node2", n)?;
    }
    let all = claims(&lab)?;
    ensure!(all.iter().any(|name| name.contains("-28")), "{all:?}");
    ensure!(all.iter().any(|name| name.contains("-30")), "{all:?}");
    let blocks = [lab.node("node1")?.blocks()?, lab.node("node2")?.blocks()?].concat();
    let prefixes: Vec<twill_types::Prefix> =
        blocks.iter().map(|block| Ok(block.parse()?)).collect::<Result<_>>()?;
    for (n, prefix) in prefixes.iter().enumerate() {
        let clash = prefixes[..n].iter().find(|other| other.overlaps(*prefix));
        ensure!(clash.is_none(), "{prefix} and {clash:?}");
    }
    Ok(())
}

/// 4,096 blocks that another node has: the next pool gives an address in the same call.
pub(crate) fn a_pool_that_others_have_filled_is_passed_over() -> Result<()> {
    let a = pool("a", "10.64.0.0/14", "blockSize: 26");
    let b = pool("b", "10.61.0.0/28", "blockSize: 30");
    let mut lab = nodes(1, &[("a.yaml", &a), ("b.yaml", &b)])?;
    let other = fs::read_to_string(lab.resource("node1.yaml"))?.replace("node1", "node9");
    lab.write_resource("node9.yaml", &other)?;
    let pool: twill_types::Prefix = "10.64.0.0/14".parse()?;
    for index in 0..4096 {
        let prefix = pool.subnet(26, index).context("the pool has 4,096 blocks")?;
        let block = twill_types::Block::new(prefix)?;
        let name = block.claim_name();
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {{name: {name}, uid: \
             u{index}}}\nspec: {{state: confirmed, node: node9, cidr: {block}, pool: a}}\n"
        );
        fs::write(lab.resource("claims").join(format!("{name}.yaml")), text)?;
    }
    let pod = lab.add_pod("node1", "first")?;
    ensure!(pod.address()?.to_string().starts_with("10.61."), "{:?}", pod.addresses());
    // And the last free one of 4,096 is found.
    let free = "10.65.7.64/26";
    let block: twill_types::Block = free.parse().map_err(anyhow::Error::from_boxed)?;
    fs::remove_file(lab.resource("claims").join(format!("{}.yaml", block.claim_name())))?;
    let mut asking = lab.node("node1")?.runtime().conflist().clone();
    asking["plugins"][0]["ipam"]["ipv4Pools"] = json!(["a"]);
    lab.node_mut("node1")?.runtime_mut().set_conflist(asking);
    let pod = lab.add_pod("node1", "second")?;
    ensure!(lab.node("node1")?.blocks()?.contains(&free.to_owned()), "{:?}", pod.addresses());
    Ok(())
}

/// Both nodes want their first blocks at the same moment, of a pool that has just enough.
pub(crate) fn nodes_that_start_at_once_share_no_block() -> Result<()> {
    let a = pool("a", "10.60.0.0/28", "blockSize: 31");
    let mut lab = nodes(2, &[("a.yaml", &a)])?;
    let mut pods = Vec::new();
    for n in 0..16 {
        pods.push(lab.bare_pod(["node1", "node2"][n % 2], &format!("p{n}"))?);
    }
    let lab = &lab;
    let results: Vec<Result<Value>> = std::thread::scope(|scope| {
        let add = |pod: &'_ mut Pod| lab.attach(pod);
        let threads: Vec<_> = pods.iter_mut().map(|pod| scope.spawn(move || add(pod))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    ensure!(failed.is_empty() && results.len() == 16, "{failed:?}");
    let mut addresses: Vec<_> = pods.iter().flat_map(Pod::addresses).collect();
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == 16, "{addresses:?}");
    Ok(())
}

/// While a block has space, an ADD and a DEL are the node's own business.
pub(crate) fn a_pod_writes_nothing_to_the_datastore() -> Result<()> {
    let a = pool("a", "10.60.0.0/26", "blockSize: 26");
    let mut lab = nodes(1, &[("a.yaml", &a)])?;
    lab.add_pod("node1", "first").map(drop)?;
    let written = |lab: &Lab| -> Result<Vec<_>> {
        let mut found = Vec::new();
        for directory in [".", "claims", "requests"] {
            for entry in fs::read_dir(lab.resource(directory))? {
                let entry = entry?;
                let (path, data) = (entry.path(), entry.metadata()?);
                if data.is_file() || directory != "." {
                    found.push((path, data.modified()?, data.len()));
                }
            }
            found.push((
                lab.resource(directory),
                fs::metadata(lab.resource(directory))?.modified()?,
                0,
            ));
        }
        found.sort();
        Ok(found)
    };
    let before = written(&lab)?;
    for n in 0..8 {
        let pod = lab.add_pod("node1", &format!("p{n}"))?;
        lab.delete_pod(pod)?;
    }
    let after = written(&lab)?;
    ensure!(after == before, "{before:#?}\n{after:#?}");
    Ok(())
}

/// What others do to a claim of a node that runs is seen, and so is its end.
pub(crate) fn a_claim_that_somebody_changes_is_seen() -> Result<()> {
    let small = pool("small", "10.60.0.0/29", "blockSize: 29");
    let mut lab = nodes(2, &[("small.yaml", &small)])?;
    let other = fs::read_to_string(lab.resource("node1.yaml"))?.replace("node1", "node9");
    lab.write_resource("node9.yaml", &other)?;
    let pod = lab.add_pod("node1", "p1")?;
    lab.node("node2")?.wait_route("10.60.0.0/29", LONG)?;
    let file = lab.resource("claims/0a3c0000-29.yaml");
    let text = fs::read_to_string(&file)?;
    let refused = |lab: &mut Lab| {
        let error = refusal(lab.add_pod("node1", "more"))?;
        ensure!(error.code == 101 || error.code == 11, "{error}");
        Ok(())
    };
    // Another node's: it is not announced any more, and nobody gets an address of it.
    fs::write(&file, text.replace("node: node1", "node: node9"))?;
    problems(&lab, "node1", "ClaimLost")?;
    lab.node("node2")?.wait_no_route("10.60.0.0/29", LONG)?;
    refused(&mut lab)?;
    fs::write(&file, &text)?;
    lab.node("node2")?.wait_route("10.60.0.0/29", LONG)?;
    // One that cannot be read stays what it was, and gives nothing.
    fs::write(&file, "")?;
    problems(&lab, "node1", "0a3c0000-29.yaml")?;
    refused(&mut lab)?;
    let status = lab.node("node1")?.status()?;
    ensure!(!status["problems"].to_string().contains("ClaimLost"), "{status}");
    lab.node("node2")?.wait_route("10.60.0.0/29", SECONDS)?;
    ping::reaches(lab.node("node2")?.namespace(), pod.address()?)?;
    fs::write(&file, &text)?;
    wait_for("an address", LONG, || lab.add_pod("node1", "next"))?;
    Ok(())
}

pub(crate) fn a_datastore_that_is_away_ends_no_daemon() -> Result<()> {
    let small = pool("small", "10.60.0.0/29", "blockSize: 29");
    let mut lab = nodes(2, &[("small.yaml", &small)])?;
    let pod = lab.add_pod("node1", "p1")?;
    lab.node("node2")?.wait_route("10.60.0.0/29", LONG)?;
    let away = ["claims", "requests", "leases"];
    for directory in away {
        fs::rename(lab.resource(directory), lab.resource(&format!("{directory}-away")))?;
    }
    problems(&lab, "node1", "blocks stay as they are")?;
    lab.node("node2")?.wait_route("10.60.0.0/29", SECONDS)?;
    // A file in its place cannot be listed, whoever asks.
    for directory in away {
        fs::write(lab.resource(directory), "")?;
    }
    problems(&lab, "node1", "blocks stay as they are")?;
    problems(&lab, "node1", "the lease of this node cannot be renewed")?;
    let next = lab.add_pod("node1", "next")?;
    ping::reaches(lab.node("node2")?.namespace(), next.address()?)?;
    for directory in ["claims", "requests", "leases"] {
        fs::remove_file(lab.resource(directory))?;
        fs::rename(lab.resource(&format!("{directory}-away")), lab.resource(directory))?;
    }
    wait_for("no problem any more", LONG, || {
        for node in lab.nodes() {
            let status = node.status()?;
            ensure!(status["problems"].as_array().is_none_or(Vec::is_empty), "{status}");
        }
        Ok(())
    })?;
    ping::reaches(lab.node("node2")?.namespace(), pod.address()?)
}

pub(crate) fn the_blocks_of_a_node_that_is_gone_are_released_by_hand() -> Result<()> {
    let small = pool("small", "10.60.0.0/29", "blockSize: 30");
    let mut lab = nodes(2, &[("small.yaml", &small)])?;
    let _pods = (lab.add_pod("node1", "p1")?, lab.add_pod("node2", "p2")?);
    lab.node_mut("node2")?.kill9()?;
    let node = lab.node("node1")?;
    let release = |more: &[&str]| -> Result<(bool, String)> {
        let output = node.ctl_output(&[&["ipam", "release", "--node"], more].concat())?;
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        Ok((output.status.success(), text.into_owned()))
    };
    for (node, word) in [("node1", "ask another one"), ("node2", "has a Node")] {
        let (done, said) = release(&[node])?;
        ensure!(!done && said.contains(word), "{said}");
    }
    let (done, said) = release(&["node2", "--force"])?;
    ensure!(done && said.contains("Released 10.60.0."), "{said}");
    ensure!(claims(&lab)?.len() == 1, "{:?}", claims(&lab)?);
    let (done, said) = release(&["node2", "--force"])?;
    ensure!(!done && said.contains("there is no node node2"), "{said}");
    Ok(())
}

/// A share that is not mounted is an empty directory.
pub(crate) fn an_empty_datastore_costs_no_pod_its_route() -> Result<()> {
    let small = pool("small", "10.60.0.0/29", "blockSize: 29");
    let mut lab = nodes(2, &[("small.yaml", &small)])?;
    let pod = lab.add_pod("node1", "p1")?;
    lab.node("node2")?.wait_route("10.60.0.0/29", LONG)?;
    let away = lab.dir().join("away");
    fs::create_dir(&away)?;
    let mut moved = Vec::new();
    for entry in fs::read_dir(lab.resource("."))? {
        let path = entry?.path();
        let to = away.join(path.file_name().context("a file has a name")?);
        fs::rename(&path, &to)?;
        moved.push((path, to));
    }
    for directory in ["claims", "requests", "leases"] {
        fs::create_dir(lab.resource(directory))?;
    }
    problems(&lab, "node1", "the claim of 10.60.0.0/29 cannot be read, or is gone")?;
    ping::reaches(lab.node("node2")?.namespace(), pod.address()?)?;
    lab.node("node2")?.wait_route("10.60.0.0/29", SECONDS)?;
    for directory in ["claims", "requests", "leases"] {
        fs::remove_dir_all(lab.resource(directory))?;
    }
    for (path, from) in moved {
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::rename(&from, &path)?;
    }
    wait_for("an address", LONG, || lab.add_pod("node1", "next"))?;
    ping::reaches(lab.node("node2")?.namespace(), pod.address()?)
}

pub(crate) fn a_block_is_claimed_before_it_is_needed() -> Result<()> {
    let a = pool("a", "10.60.0.0/28", "blockSize: 29");
    let mut lab = nodes(1, &[("a.yaml", &a)])?;
    for n in 0..6 {
        pods_on(&mut lab, "node1", n)?;
    }
    ensure!(lab.node("node1")?.blocks()?.len() == 1, "{:?}", lab.node("node1")?.blocks()?);
    // One of eight is less than a quarter.
    pods_on(&mut lab, "node1", 6)?;
    wait_for("another block", SECONDS, || {
        let blocks = lab.node("node1")?.blocks()?;
        ensure!(blocks.len() == 2, "{blocks:?}");
        Ok(())
    })
}
