//! A GC that cannot do all of its work: it does the rest.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use twill_tests::{
    cni::{self, Attachment, Runtime},
    lab::Pod,
    netns::Namespace,
    ping, programs,
    wait::wait_for,
};
use twill_types::{AttachmentId, LinkAlias, host_link_name};

use crate::{
    SECONDS,
    plugin::{one_node, refusal, standalone},
};

/// What is not listed is stale whatever the store says, so its link goes, and the daemon finds a
/// tombstone.
pub(crate) fn g_04_links_go_without_a_daemon() -> Result<()> {
    let mut lab = one_node()?;
    let (keep, lost) = (lab.add_pod("node1", "keep")?, lab.add_pod("node1", "lost")?);
    let (address, kept) = (lost.address()?, keep.address()?);
    lab.node_mut("node1")?.kill9()?;
    let patient = lab.node_mut("node1")?.runtime_mut().set_timeout(4);
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().gc(node.namespace(), &[keep.attachment()]))?;
    ensure!(error.code == 11 && error.message.contains("twilld.sock"), "{error}");
    let route = node.namespace().route_to(address);
    ensure!(route.is_err(), "the stale pod has a route still: {route:?}");
    let links = node.namespace().ip("-oneline link show type veth")?;
    let left = links.lines().filter(|line| line.contains(": tw")).count();
    ensure!(left == 1, "{left} links of pods: {links}");
    ping::reaches(node.namespace(), kept)?;

    lab.node_mut("node1")?.runtime_mut().set_conflist(patient);
    lab.node_mut("node1")?.start()?;
    let node = lab.node("node1")?;
    wait_for("the spool to be worked off", SECONDS, || {
        let used = node.addresses_in_use()?;
        ensure!(used == 1, "{used} addresses are in use");
        Ok(())
    })?;
    node.runtime().check(node.namespace(), keep.attachment())?;
    node.runtime().gc(node.namespace(), &[keep.attachment()])?;
    ping::reaches(node.namespace(), kept)
}

/// The first of two cannot be removed. It is told, and the second goes with its address.
pub(crate) fn g_04_one_that_stays_keeps_no_other() -> Result<()> {
    let node = Namespace::create("node")?;
    let pods = [Namespace::create("stuck")?, Namespace::create("gone")?];
    let run_dir = tempfile::tempdir_in("/run")?;
    let two_addresses = json!([{"cidr": "10.20.0.0/31", "blockSize": 31}]);
    let conflist = standalone("1.1.0", run_dir.path(), &two_addresses);
    let runtime = Runtime::new(conflist, vec![programs::directory()?]);
    let attachment = |container: &str, pod: &Namespace| {
        Attachment::pod("prod", "web", container, &pod.path().display().to_string())
    };
    runtime.add(&node, &attachment("a-stuck", &pods[0]))?;
    let result = runtime.add(&node, &attachment("b-gone", &pods[1]))?;
    let address = *cni::addresses(&result)?.first().context("no address")?;
    // In the place of its link comes one that the kernel never deletes, the loopback link. To be put
    // aside it would need a name, which is taken.
    let stuck = AttachmentId {
        network: "lab".to_owned(),
        container_id: "a-stuck".to_owned(),
        ifname: "eth0".to_owned(),
    };
    let (name, alias) = (host_link_name(&stuck), LinkAlias::new(&stuck, LinkAlias::WITHOUT_STORE));
    node.ip(&format!("link del {name}"))?;
    node.ip("link set lo down")?;
    node.ip(&format!("link set lo name {name}"))?;
    node.ip(&format!("link set {name} alias {alias}"))?;
    node.ip("link add twd1 type veth peer name other")?;

    let error = refusal(runtime.gc(&node, &[]))?;
    ensure!(error.code == 11 && error.message.contains("a-stuck"), "{error}");
    ensure!(!error.message.contains("b-gone"), "{error}");
    let route = node.route_to(address);
    ensure!(route.is_err(), "the stale pod has a route still: {route:?}");
    let links = node.ip("-oneline link show type veth")?;
    ensure!(!links.contains("twl"), "{links}");
    ensure!(!run_dir.path().join("spool").exists(), "the address was left to somebody else");
    // Its address is free, the other's is not.
    node.ip(&format!("link set {name} up alias loopback"))?;
    let again = runtime.add(&node, &attachment("next", &pods[1]))?;
    ensure!(cni::addresses(&again)? == [address], "{again}");
    runtime.del(&node, &attachment("next", &pods[1]))
}

/// Somebody has written over the alias of a pod that is not listed: nobody can say that the link is the pod's, so
/// it stays with its address, and GC does not say that all is done.
pub(crate) fn g_04_a_link_with_the_alias_of_another_is_told() -> Result<()> {
    let mut lab = one_node()?;
    let (lost, gone) = (lab.add_pod("node1", "lost")?, lab.add_pod("node1", "gone")?);
    let id = |pod: &Pod| AttachmentId {
        network: "pods".to_owned(),
        container_id: pod.attachment().container_id.clone(),
        ifname: "eth0".to_owned(),
    };
    let name = host_link_name(&id(&lost));
    let node = lab.node("node1")?;
    node.namespace().ip(&format!("link set dev {name} alias somebody"))?;
    let error = refusal(node.runtime().gc(node.namespace(), &[]))?;
    ensure!(error.code == 11, "{error}");
    for told in [&lost.attachment().container_id, &name, "somebody"] {
        ensure!(error.message.contains(told), "no {told}: {error}");
    }
    ensure!(!error.message.contains(&gone.attachment().container_id), "{error}");
    ensure!(node.addresses_in_use()? == 1, "{} addresses are in use", node.addresses_in_use()?);
    ping::reaches(node.namespace(), lost.address()?)
}
