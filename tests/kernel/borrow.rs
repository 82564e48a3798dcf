//! `strictAffinity: false`: a node without a block of its own borrows a part of another's.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use twill_tests::{
    lab::{Lab, Pod, Topology},
    ping,
    wait::wait_for,
};

use crate::{LONG, SECONDS, plugin::refusal};

/// One block for two nodes.
const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\n\
                    spec: {cidr: 10.60.0.0/28, blockSize: 28}\n";

fn config(strict: bool) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\nmetadata: {{name: default}}\n\
         spec: {{strictAffinity: {strict}}}\n"
    )
}

/// Two nodes and one block, which node1 owns.
fn two_nodes() -> Result<Lab> {
    with_affinity(false)
}

fn with_affinity(strict: bool) -> Result<Lab> {
    let mut topology = Topology::new();
    for (node, address) in [("node1", "192.168.2.11/24"), ("node2", "192.168.2.12/24")] {
        topology
            .node(node)
            .on("seg-a", address)
            .settings("ipam: {emptyBlockGraceSeconds: 1, goneNodeGraceSeconds: 2}\n");
    }
    topology.resource("a.yaml", POOL).resource("config.yaml", &config(strict));
    let mut lab = topology.build()?;
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.2.12"], LONG)?;
    lab.add_pod("node1", "owner").map(drop)?;
    Ok(lab)
}

fn claim(lab: &Lab) -> Result<String> {
    Ok(fs::read_to_string(lab.resource("claims/0a3c0000-28.yaml"))?)
}

fn wait_delegated(lab: &Lab, is: bool) -> Result<()> {
    wait_for(&format!("a delegation: {is}"), LONG, || {
        let text = claim(lab)?;
        ensure!(text.contains("delegations:") == is, "{text}");
        Ok(())
    })
}

fn requests(lab: &Lab) -> Result<usize> {
    let entries = fs::read_dir(lab.resource("requests"))?;
    Ok(entries.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "yaml")).count())
}

pub(crate) fn a_borrowed_part_is_a_smaller_block() -> Result<()> {
    let mut lab = two_nodes()?;
    let first = lab.add_pod("node1", "p1")?;
    let borrower = lab.add_pod("node2", "p2")?;
    let part = lab.node("node2")?.blocks()?;
    ensure!(part == ["10.60.0.8/29"], "{part:?}");
    let claim = claim(&lab)?;
    ensure!(claim.contains("10.60.0.8/29") && claim.contains("node2"), "{claim}");
    // The more specific route leads there, and both ways work.
    lab.node("node1")?.wait_route("10.60.0.8/29", LONG)?;
    lab.node("node2")?.wait_route("10.60.0.0/28", LONG)?;
    ping::reaches(first.namespace(), borrower.address()?)?;
    ping::reaches(borrower.namespace(), first.address()?)?;
    let status = lab.node("node1")?.status()?;
    ensure!(status["problems"].as_array().is_none_or(Vec::is_empty), "{status}");
    // The owner keeps its hands off: what is left of 16 is 7, and node1 has 2 of its 8.
    let mut more = Vec::new();
    for n in 0..6 {
        let pod = lab.add_pod("node1", &format!("more{n}"))?;
        ensure!(pod.address()?.to_string().as_str() < "10.60.0.8", "{:?}", pod.addresses());
        more.push(pod);
    }
    // Both daemons start again, and nothing changes.
    for node in ["node1", "node2"] {
        lab.node_mut(node)?.kill9()?;
        lab.node_mut(node)?.start()?;
    }
    ensure!(lab.node("node2")?.blocks()? == part, "{:?}", lab.node("node2")?.blocks()?);
    let shown = lab.node("node1")?.ctl(&["ipam", "show", "--show-borrowed"])?;
    ensure!(shown.contains("10.60.0.8/29 | node2"), "{shown}");
    for node in ["node1", "node2"] {
        let said = lab.node(node)?.ctl(&["ipam", "check"])?;
        ensure!(said.contains("Nothing is wrong"), "{said}");
    }
    let second = lab.add_pod("node2", "p3")?;
    ping::reaches(second.namespace(), first.address()?)?;
    let asking = lab.bare_pod("node1", "asking")?;
    let mut attachment = asking.attachment().clone();
    attachment.args.push(("IP".into(), "10.60.0.10".into()));
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), &attachment))?;
    ensure!(error.code == 103 && error.message.contains("borrowed"), "{error}");
    // It comes back when it is empty.
    lab.delete_pod(borrower)?;
    lab.delete_pod(second)?;
    wait_delegated(&lab, false)?;
    ensure!(requests(&lab)? == 0);
    ensure!(lab.node("node2")?.blocks()?.is_empty());
    let _again = lab.add_pod("node1", "again")?;
    Ok(())
}

pub(crate) fn an_owner_that_is_dead_is_named() -> Result<()> {
    let mut lab = two_nodes()?;
    lab.node_mut("node1")?.kill9()?;
    let mut pod = lab.bare_pod("node2", "p2")?;
    lab.node_mut("node2")?.runtime_mut().set_timeout(2);
    let error = refusal(lab.attach(&mut pod))?;
    ensure!(error.code == 11 && error.message.contains("node node1 was asked"), "{error}");
    // After a while nobody waits for it any more.
    let error = wait_for("an end of the patience", LONG, || {
        let error = refusal(lab.attach(&mut pod))?;
        ensure!(error.code == 101, "{error}");
        Ok(error)
    })?;
    ensure!(
        error.message.contains("node1") && error.message.contains("does not answer"),
        "{error}"
    );
    ensure!(requests(&lab)? == 0, "the request stays");
    Ok(())
}

/// The owner stops in the middle: whatever it has done by then, one of the two has each address.
pub(crate) fn an_owner_that_restarts_in_between_lends_or_does_not() -> Result<()> {
    let mut lab = two_nodes()?;
    lab.node("node1")?.daemon()?.signal(Signal::SIGSTOP)?;
    let mut pod = lab.bare_pod("node2", "p2")?;
    let patient = lab.node_mut("node2")?.runtime_mut().set_timeout(2);
    let error = refusal(lab.attach(&mut pod))?;
    ensure!(error.code == 11, "{error}");
    ensure!(requests(&lab)? == 1, "{}", requests(&lab)?);
    lab.node_mut("node2")?.runtime_mut().set_conflist(patient);
    lab.node_mut("node1")?.kill9()?;
    lab.node_mut("node1")?.start()?;
    lab.attach(&mut pod)?;
    wait_delegated(&lab, true)?;
    // The borrower dies with what it has: its pod keeps its address, and so does the request.
    lab.node_mut("node2")?.kill9()?;
    lab.node_mut("node2")?.start()?;
    ping::reaches(pod.namespace(), "192.168.2.12".parse()?)?;
    lab.delete_pod(pod)?;
    wait_delegated(&lab, false)
}

/// The owner gives its block back while another one asks for a part of it: then it can be claimed.
pub(crate) fn a_block_that_its_owner_releases_is_claimed_instead() -> Result<()> {
    let mut lab = two_nodes()?;
    // Who gives a block back withdraws it first.
    lab.write_resource(
        "a.yaml",
        &POOL.replace("blockSize: 28", "blockSize: 28, disableBGPExport: true"),
    )?;
    lab.node("node2")?.wait_no_route("10.60.0.0/28", LONG)?;
    lab.node_mut("node1")?.stop()?;
    let mut pod = lab.bare_pod("node2", "p2")?;
    let asked = std::thread::scope(|scope| -> Result<()> {
        let node = lab.node("node2")?;
        let (runtime, namespace) = (node.runtime(), node.namespace());
        let add = scope.spawn(|| runtime.add(namespace, pod.attachment()));
        wait_for("the request", SECONDS, || {
            ensure!(requests(&lab)? == 1);
            Ok(())
        })?;
        fs::remove_file(lab.resource("claims/0a3c0000-28.yaml"))?;
        let result = add.join().map_err(|_| anyhow::anyhow!("the ADD panicked"))?;
        result.map(drop)
    });
    asked?;
    ensure!(lab.node("node2")?.blocks()? == ["10.60.0.0/28"], "{:?}", lab.node("node2")?.blocks()?);
    wait_for("the request to be taken back", SECONDS, || {
        ensure!(requests(&lab)? == 0);
        Ok(())
    })?;
    lab.detach(&pod)?;
    pod.attachment_mut().args.clear();
    Ok(())
}

pub(crate) fn the_borrower_that_is_gone_gives_all_back() -> Result<()> {
    let mut lab = two_nodes()?;
    let _pod = lab.add_pod("node2", "p2")?;
    wait_delegated(&lab, true)?;
    lab.node_mut("node2")?.kill9()?;
    lab.remove_resource("node2.yaml")?;
    wait_delegated(&lab, false)?;
    lab.node("node1")?.wait_no_route("10.60.0.8/29", LONG)
}

pub(crate) fn nobody_lends_where_affinity_is_strict() -> Result<()> {
    let mut lab = with_affinity(true)?;
    let error = refusal(lab.add_pod("node2", "p2"))?;
    ensure!(error.code == 101 && error.message.contains("add a pool"), "{error}");
    ensure!(requests(&lab)? == 0 && !claim(&lab)?.contains("delegations"));
    Ok(())
}

/// An address that is asked for by name and lies in another node's block is borrowed alone.
pub(crate) fn an_address_of_another_nodes_block_can_be_borrowed() -> Result<()> {
    let mut lab = two_nodes()?;
    let mut pod = lab.bare_pod("node2", "p2")?;
    pod.attachment_mut().args.push(("IP".into(), "10.60.0.9".into()));
    lab.attach(&mut pod)?;
    ensure!(lab.node("node2")?.blocks()? == ["10.60.0.9/32"], "{:?}", lab.node("node2")?.blocks()?);
    let mut taken = lab.bare_pod("node2", "p3")?;
    taken.attachment_mut().args.push(("IP".into(), "10.60.0.0".into()));
    let error = wait_for("a refusal", LONG, || {
        let error = refusal(lab.attach(&mut taken))?;
        ensure!(error.code == 103, "{error}");
        Ok(error)
    })?;
    ensure!(error.message.contains("10.60.0.0 is not free"), "{error}");
    lab.node("node1")?.wait_route("10.60.0.9", LONG)?;
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?).context("the borrowed address")
}

/// The addresses of all pods, each of which has to be another one.
fn all_different(pods: &[&Pod]) -> Result<()> {
    let mut addresses: Vec<_> = pods.iter().flat_map(|pod| pod.addresses()).collect();
    let count = addresses.len();
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == count, "{addresses:?}");
    Ok(())
}

/// Adds pods to a node until it has no address.
fn fill(lab: &mut Lab, node: &str) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    loop {
        match lab.add_pod(node, &format!("fill{}", pods.len())) {
            Ok(pod) => pods.push(pod),
            Err(error) => {
                let error = refusal::<()>(Err(error))?;
                ensure!(error.code == 101 || error.code == 11, "{error}");
                return Ok(pods);
            }
        }
    }
}

/// Has every daemon read everything again.
fn touch(lab: &Lab, turn: u32) -> Result<()> {
    lab.write_resource(
        "touch.yaml",
        &format!(
            "apiVersion: projectcalico.org/v3\nkind: IPReservation\nmetadata: {{name: touch}}\n\
             spec: {{reservedCIDRs: [192.0.2.{turn}/32]}}\n"
        ),
    )
}

/// The claim that says what a node has borrowed cannot be read for a while, and its owner is away.
pub(crate) fn what_cannot_be_read_is_not_returned() -> Result<()> {
    let mut lab = two_nodes()?;
    let pod = lab.add_pod("node2", "p2")?;
    wait_delegated(&lab, true)?;
    let owner = lab.node("node1")?.daemon()?;
    owner.signal(Signal::SIGSTOP)?;
    let (file, text) = (lab.resource("claims/0a3c0000-28.yaml"), claim(&lab)?);
    fs::write(&file, "")?;
    touch(&lab, 1)?;
    wait_for("word of the damage", LONG, || {
        let status = lab.node("node2")?.status()?;
        ensure!(status["problems"].to_string().contains("0a3c0000-28.yaml"), "{status}");
        Ok(())
    })?;
    lab.node("node1")?.wait_route("10.60.0.8/29", SECONDS)?;
    ensure!(requests(&lab)? == 1, "the request went");
    // A node that starts knows no more than that.
    lab.node_mut("node2")?.kill9()?;
    lab.node_mut("node2")?.start()?;
    ensure!(requests(&lab)? == 1, "the request went with a start");
    fs::write(&file, &text)?;
    lab.node("node1")?.daemon()?.signal(Signal::SIGCONT)?;
    let more = fill(&mut lab, "node1")?;
    ensure!(more.len() == 7, "{} pods", more.len());
    let mut all: Vec<&Pod> = more.iter().collect();
    all.push(&pod);
    all_different(&all)?;
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)
}

pub(crate) fn a_request_that_somebody_removes_returns_nothing() -> Result<()> {
    let mut lab = two_nodes()?;
    let pod = lab.add_pod("node2", "p2")?;
    for entry in fs::read_dir(lab.resource("requests"))?.flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "yaml") {
            fs::remove_file(entry.path())?;
        }
    }
    let more = fill(&mut lab, "node1")?;
    let mut all: Vec<&Pod> = more.iter().collect();
    all.push(&pod);
    all_different(&all)?;
    ensure!(claim(&lab)?.contains("10.60.0.8/29"), "{}", claim(&lab)?);
    // It is made again, and with it the part can be returned.
    touch(&lab, 1)?;
    wait_for("the request", LONG, || {
        ensure!(requests(&lab)? == 1);
        Ok(())
    })?;
    lab.delete_pod(pod)?;
    wait_delegated(&lab, false)
}

pub(crate) fn a_claim_that_somebody_removes_keeps_its_parts() -> Result<()> {
    let mut lab = two_nodes()?;
    let keeper = lab.add_pod("node1", "keeper")?;
    let pod = lab.add_pod("node2", "p2")?;
    wait_delegated(&lab, true)?;
    // The borrower sees it first, and does not take the part for its own.
    lab.node("node1")?.daemon()?.signal(Signal::SIGSTOP)?;
    fs::remove_file(lab.resource("claims/0a3c0000-28.yaml"))?;
    touch(&lab, 1)?;
    wait_for("the borrower to have seen it", LONG, || {
        let error = refusal(lab.add_pod("node2", "next"))?;
        ensure!(error.code == 11 || error.code == 101, "{error}");
        Ok(())
    })?;
    ensure!(!lab.resource("claims/0a3c0008-29.yaml").exists(), "the borrower claims its part");
    lab.node("node1")?.daemon()?.signal(Signal::SIGCONT)?;
    wait_for("the owner's claim with its part", LONG, || {
        let text = claim(&lab)?;
        ensure!(text.contains("node: node1") && text.contains("10.60.0.8/29"), "{text}");
        Ok(())
    })?;
    ping::reaches(pod.namespace(), keeper.address()?)?;
    let more = fill(&mut lab, "node1")?;
    let mut all: Vec<&Pod> = more.iter().collect();
    all.extend([&pod, &keeper]);
    all_different(&all)
}

/// Whoever claims the block again, by whatever way, leaves the part to who has it.
pub(crate) fn a_static_block_that_is_claimed_again_keeps_its_parts() -> Result<()> {
    let mut lab = two_nodes()?;
    let pod = lab.add_pod("node2", "p2")?;
    wait_delegated(&lab, true)?;
    let node = fs::read_to_string(lab.resource("node1.yaml"))?;
    lab.write_resource("node1.yaml", &format!("{node}spec: {{blocks: [10.60.0.0/28]}}\n"))?;
    fs::remove_file(lab.resource("claims/0a3c0000-28.yaml"))?;
    wait_for("the claim with its part", LONG, || {
        let text = claim(&lab)?;
        ensure!(text.contains("node: node1") && text.contains("10.60.0.8/29"), "{text}");
        Ok(())
    })?;
    let mut asking = lab.bare_pod("node1", "asking")?;
    asking.attachment_mut().args.push(("IP".into(), pod.address()?.to_string()));
    let error = refusal(lab.attach(&mut asking))?;
    ensure!(error.code == 103, "{error}");
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)
}
