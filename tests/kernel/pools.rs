//! Pools that are taken away under running pods.

use anyhow::{Result, ensure};
use twill_tests::{ping, wait::wait_for};

use crate::{
    LONG, SECONDS,
    claims::{claims, condition, nodes, pool, problems},
};

/// Who has an address of it keeps it, nobody gets another, and the last one takes the block along.
pub(crate) fn a_pool_that_is_removed_is_drained() -> Result<()> {
    let a = pool("a", "10.60.0.0/28", "blockSize: 29");
    let b = pool("b", "10.70.0.0/28", "blockSize: 29");
    let mut lab = nodes(1, &[("a.yaml", &a), ("b.yaml", &b)])?;
    let pod = lab.add_pod("node1", "first")?;
    let block = lab.node("node1")?.blocks()?[0].clone();
    ensure!(block.starts_with("10.60."), "{block}");
    lab.remove_resource("a.yaml")?;
    problems(&lab, "node1", "was removed")?;
    let drained = condition(&lab, "ippool.a", "Drained")?;
    ensure!(drained["status"] == "False" && drained["reason"] == "PoolRemoved", "{drained}");
    ensure!(drained["message"].to_string().contains(&block), "{drained}");
    let next = lab.add_pod("node1", "next")?;
    ensure!(next.address()?.to_string().starts_with("10.70."), "{:?}", next.addresses());
    // A restart finds it as it was.
    lab.node_mut("node1")?.kill9()?;
    lab.node_mut("node1")?.start()?;
    condition(&lab, "ippool.a", "Drained")?;
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), pod.attachment())?;
    ensure!(claims(&lab)?.len() == 2, "{:?}", claims(&lab)?);
    lab.delete_pod(pod)?;
    wait_for("the block to be given back", LONG, || {
        let blocks = lab.node("node1")?.blocks()?;
        ensure!(!blocks.contains(&block), "{blocks:?}");
        ensure!(claims(&lab)?.len() == 1, "{:?}", claims(&lab)?);
        Ok(())
    })?;
    wait_for("nothing to be said of the pool any more", SECONDS, || {
        let file = lab.resource("status").join("node1/ippool.a.json");
        ensure!(!file.exists(), "{}", std::fs::read_to_string(file)?);
        Ok(())
    })
}
