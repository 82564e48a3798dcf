//! A pod's packets have the pod's own addresses: the node drops others as they come in.

use std::{
    fs,
    net::{IpAddr, UdpSocket},
};

use anyhow::{Context, Result, ensure};
use twill_tests::{lab::Pod, netns::Namespace, ping, wait::wait_for};

use crate::{LONG, SECONDS, nat};

/// How many packets the strict reverse path has dropped in a namespace.
fn dropped(node: &Namespace) -> Result<u64> {
    let text = node.enter(|| fs::read_to_string("/proc/thread-self/net/netstat"))??;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = lines.next().zip(lines.next()).context("no counters")?;
    let mut counters = names.split(' ').zip(values.split(' '));
    let counter = counters.find(|(name, _)| *name == "IPReversePathFilter");
    Ok(counter.context("no such counter")?.1.parse()?)
}

/// Sends a datagram with this source, which the pod has on its link.
fn send(pod: &Pod, source: IpAddr, socket: &UdpSocket) -> Result<()> {
    let to = socket.local_addr()?;
    pod.namespace().enter(|| UdpSocket::bind((source, 0))?.send_to(b"it is me", to))??;
    Ok(())
}

/// Another pod's, one of the node's block that is nobody's, and one of no pool: to a pod of the node, to a
/// pod of another node, and to the node.
pub(crate) fn a_pod_sends_from_its_own_address_alone() -> Result<()> {
    let mut lab = nat::up(false)?;
    let pod = lab.add_pod("node1", "pod")?;
    let (near, far) = (lab.add_pod("node1", "near")?, lab.add_pod("node2", "far")?);
    let (own, node) = (pod.address()?, lab.node("node1")?.namespace());
    wait_for("a way to the other node", LONG, || ping::reaches(pod.namespace(), far.address()?))?;
    let block = lab.node("node1")?.blocks()?.into_iter().find(|block| block.contains('.'));
    let block = block.context("no block")?;
    let IpAddr::V4(first) = block.split('/').next().context("no address")?.parse()? else {
        anyhow::bail!("{block}")
    };
    // Pods have the first of its 64 addresses.
    let nobodys = IpAddr::from((u32::from(first) + 63).to_be_bytes());
    let foreign = [near.address()?, far.address()?, nobodys, "198.51.100.7".parse()?];
    for source in foreign {
        pod.namespace().ip(&format!("address add {source}/32 dev eth0"))?;
        let targets = [
            (near.namespace(), near.address()?),
            (far.namespace(), far.address()?),
            (node, "192.168.2.11".parse()?),
        ];
        // What is sent to an address that the sender has stays with it.
        for (machine, address) in targets.into_iter().filter(|(_, address)| *address != source) {
            let socket = machine.enter(|| UdpSocket::bind((address, 0)))??;
            socket.set_read_timeout(Some(SECONDS))?;
            let before = dropped(node)?;
            send(&pod, source, &socket)?;
            wait_for("the packet to be dropped", SECONDS, || {
                ensure!(dropped(node)? > before, "{source} to {address} is not");
                Ok(())
            })?;
            // It has gone the same way before this one, which comes first.
            send(&pod, own, &socket)?;
            let (_, from) = socket
                .recv_from(&mut [0; 64])
                .with_context(|| format!("nothing of {own} at {address}"))?;
            ensure!(from.ip() == own, "{address} has got a packet of {}", from.ip());
        }
        pod.namespace().ip(&format!("address delete {source}/32 dev eth0"))?;
    }
    Ok(())
}
