//! A node that boots while the API server is away: of what it had, only the disk is left.

use std::fs;

use anyhow::{Result, ensure};
use twill_tests::{
    kubernetes::ApiServer,
    lab::Pod,
    netns::Namespace,
    ping,
    wait::{wait_for, wait_until},
};

use super::{
    LONG,
    nodes::{PEER, POOL, STRICT, Site, block_of, wait_announced},
};

/// What the kernel of a node has lost when it boots: the links of pods, which go with their namespaces, and
/// all that a daemon has written.
fn lose_power(node: &Namespace, pods: Vec<Pod>) -> Result<()> {
    drop(pods);
    wait_for("the pods' links to go", LONG, || {
        let links = node.ip_json("link show type veth")?;
        ensure!(links.iter().all(|link| link["ifname"] == "eth0"), "{links:?}");
        Ok(())
    })?;
    for family in ["-4", "-6"] {
        node.ip(&format!("{family} route flush table all proto 116"))?;
    }
    node.ip("nexthop flush proto 116")?;
    let left = node.ip("route show table all proto 116")?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

/// With the copy on its disk alone it has its block again, gives an address of it, and the router has a way there;
/// once the API server is back it hears of what is new.
pub(crate) fn a_node_boots_without_the_api_server(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, PEER, STRICT])?;
    let before = site.lab.add_pod("node1", "before")?;
    let (block, _) = block_of(&site, &before)?;
    site.lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
    site.wait_settled("node1")?;
    let claims = site.claims()?;

    site.api.set_reachable(false)?;
    let node = site.lab.node_mut("node1")?;
    node.stop()?;
    lose_power(node.namespace(), vec![before])?;
    // It is on a tmpfs.
    fs::remove_dir_all(node.dir().join("run"))?;
    fs::create_dir(node.dir().join("run"))?;
    node.start()?;
    wait_until("the block", LONG, || Ok(site.lab.node("node1")?.blocks()? == [block.clone()]))?;
    let used = site.lab.node("node1")?.addresses_in_use()?;
    ensure!(used == 0, "{used} addresses in use, and no pod");

    let after = site.lab.add_pod("node1", "after")?;
    let (again, owner) = block_of(&site, &after)?;
    ensure!((again.as_str(), owner.as_str()) == (block.as_str(), "node1"), "{again} of {owner}");
    // The router may have kept the route of the session before.
    wait_announced(&site, 1)?;
    site.lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
    let address = after.address()?;
    wait_for("the router to reach the pod", LONG, || {
        ping::reaches(site.lab.router("tor")?, address)
    })?;

    site.api.set_reachable(true)?;
    site.apply(&POOL.replace("name: app", "name: second").replace("10.10.", "10.20."))?;
    wait_for("node1 to hear of a pool", LONG, || site.condition("node1", "IPPool", "second"))?;
    let now = site.claims()?;
    ensure!(now == claims, "{claims:?} became {now:?}");
    ping::reaches(site.lab.router("tor")?, address)?;
    site.lab.delete_pod(after)
}
