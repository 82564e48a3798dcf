//! What an operator says about addresses and blocks: reservations, how many blocks a node has, and
//! how long an address rests.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use twill_tests::{
    lab::{Lab, Pod, Topology},
    wait::wait_for,
};

use crate::{SECONDS, claims::condition, plugin::refusal};

const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: small}\n\
                    spec: {cidr: 10.60.0.0/28, blockSize: 30}\n";

/// A node with a pool of four blocks of four addresses.
fn node_with(file: &str, text: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    topology.resource("small.yaml", POOL).resource(file, text);
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

/// Adds pods until none gets an address.
fn fill(lab: &mut Lab, message: &str) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    loop {
        let mut pod = lab.bare_pod("node1", &format!("pod{}", pods.len()))?;
        match lab.attach(&mut pod) {
            Ok(_) => pods.push(pod),
            Err(error) => {
                let error = refusal::<()>(Err(error))?;
                ensure!(error.code == 101 && error.message.contains(message), "{error}");
                return Ok(pods);
            }
        }
    }
}

pub(crate) fn a_reserved_address_is_nobodys() -> Result<()> {
    // A whole block, and one address of another.
    let mut lab = node_with(
        "reservation.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPReservation\nmetadata: {name: printers}\n\
         spec: {reservedCIDRs: [10.60.0.4/30, 10.60.0.9/32]}\n",
    )?;
    let mut asking = lab.bare_pod("node1", "asking")?;
    asking.attachment_mut().args.push(("IP".into(), "10.60.0.9".into()));
    let error = refusal(lab.attach(&mut asking))?;
    ensure!(error.code == 103 && error.message.contains("IPReservation (10.60.0.9/32)"), "{error}");

    // Unless the configuration says so, and then only by name.
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let plain = runtime.conflist().clone();
    let mut overriding = plain.clone();
    overriding["plugins"][0]["ipam"]["allowReserved"] = json!(true);
    runtime.set_conflist(overriding);
    lab.attach(&mut asking)?;
    ensure!(asking.address()?.to_string() == "10.60.0.9", "{:?}", asking.addresses());
    lab.detach(&asking)?;
    lab.node_mut("node1")?.runtime_mut().set_conflist(plain);

    let pods = fill(&mut lab, "pools small")?;
    let mut addresses = Vec::new();
    for pod in &pods {
        addresses.push(pod.address()?.to_string());
    }
    ensure!(addresses.len() == 11, "{addresses:?}");
    let reserved = ["10.60.0.4", "10.60.0.5", "10.60.0.6", "10.60.0.7", "10.60.0.9"];
    ensure!(addresses.iter().all(|ip| !reserved.contains(&ip.as_str())), "{addresses:?}");
    let node = lab.node("node1")?;
    ensure!(!node.blocks()?.contains(&"10.60.0.4/30".to_owned()), "claimed for nobody");

    // Who has an address keeps it when it is reserved, and what is not reserved any more can be had.
    let file = lab.resource("reservation.yaml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("10.60.0.9/32", &format!("{}/32", addresses[0])))?;
    wait_for("the reservation to be read", SECONDS, || lab.attach(&mut asking))?;
    node_check(&lab, &pods[0])?;
    Ok(())
}

fn node_check(lab: &Lab, pod: &Pod) -> Result<()> {
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), pod.attachment())
}

pub(crate) fn a_node_has_no_more_blocks_than_it_may() -> Result<()> {
    let mut lab = node_with(
        "config.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\nmetadata: {name: default}\n\
         spec: {strictAffinity: true, maxBlocksPerHost: 2}\n",
    )?;
    let pods = fill(&mut lab, "maxBlocksPerHost")?;
    ensure!(pods.len() == 8, "{} pods", pods.len());
    ensure!(lab.node("node1")?.blocks()?.len() == 2, "{:?}", lab.node("node1")?.blocks()?);
    let limit = condition(&lab, "ipamconfig.default", "BlockLimitReached")?;
    ensure!(limit["status"] == "True" && limit["reason"] == "MaxBlocksPerHost", "{limit}");
    let message = limit["message"].to_string();
    ensure!(message.contains("node1 has 2 IPv4 blocks and may have 2"), "{limit}");
    // An address of a third block cannot be had by name, either.
    let mut asking = lab.bare_pod("node1", "asking")?;
    let blocks = lab.node("node1")?.blocks()?;
    let other = (0..4).map(|n| n * 4).find(|n| !blocks.contains(&format!("10.60.0.{n}/30")));
    let wanted = format!("10.60.0.{}", other.context("all blocks are its own")?);
    asking.attachment_mut().args.push(("IP".into(), wanted));
    let error = refusal(lab.attach(&mut asking))?;
    ensure!(error.code == 101 && error.message.contains("maxBlocksPerHost"), "{error}");
    Ok(())
}

pub(crate) fn an_address_rests_after_use() -> Result<()> {
    const REST: Duration = Duration::from_secs(2);
    let mut lab = node_with(
        "config.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\nmetadata: {name: default}\n\
         spec: {strictAffinity: true, maxBlocksPerHost: 1, ipCooldownSeconds: 2}\n",
    )?;
    let mut pods = fill(&mut lab, "maxBlocksPerHost")?;
    let last = pods.pop().context("no pods")?;
    let (address, freed) = (last.address()?, Instant::now());
    lab.delete_pod(last)?;
    // It waits for the only address there is.
    let next = lab.add_pod("node1", "next")?;
    ensure!(next.address()? == address, "{}", next.address()?);
    ensure!(freed.elapsed() >= REST, "after {:?}", freed.elapsed());
    Ok(())
}

/// What rests can take twenty minutes, so a node on which everything else is in use is full.
pub(crate) fn a_node_whose_last_addresses_rest_is_full() -> Result<()> {
    let config = |rest: u32| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\nmetadata: {{name: default}}\n\
             spec: {{strictAffinity: true, maxBlocksPerHost: 1, ipCooldownSeconds: {rest}}}\n"
        )
    };
    let mut lab = node_with("config.yaml", &config(600))?;
    let mut pods = fill(&mut lab, "maxBlocksPerHost")?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["statusOnExhaustion"] = json!(true);
    conflist["plugins"][0]["timeoutSeconds"] = json!(1);
    runtime.set_conflist(conflist);
    lab.delete_pod(pods.pop().context("no pods")?)?;
    wait_for("its link to go, and it to rest", SECONDS, || {
        let error = refusal(lab.add_pod("node1", "next"))?;
        ensure!(error.code == 11 && error.message.contains("rests after use"), "{error}");
        Ok(())
    })?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().status(node.namespace()))?;
    ensure!(error.code == 50, "{error}");
    // A shorter time is for those at rest, too.
    lab.write_resource("config.yaml", &config(1))?;
    let node = lab.node("node1")?;
    wait_for("readiness", SECONDS, || node.runtime().status(node.namespace()))?;
    lab.add_pod("node1", "next").map(drop)
}
