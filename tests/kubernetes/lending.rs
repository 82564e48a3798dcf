//! Parts of blocks that nodes lend each other on the API server.

use std::{collections::BTreeSet, thread};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use twill_tests::{
    kubernetes::ApiServer,
    lab::Pod,
    ping,
    wait::{wait_for, wait_until},
};
use twill_types::Prefix;

use super::{
    LONG,
    nodes::{NODES, PEER, Site},
    twillctl::Ctl,
};

const HASTY: &str = "ipam: {emptyBlockGraceSeconds: 1}\n";

/// One block for all nodes.
const ONE_BLOCK: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: app}\n\
                         spec: {cidr: 10.10.0.0/28, blockSize: 28, nodeSelector: all()}\n";

/// What Calico's default is.
const LENDS: &str = "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\n\
                     metadata: {name: default}\nspec: {strictAffinity: false}\n";

/// The block is node1's.
fn one_block(nodes: &[(&str, &str)]) -> Result<(Site, Pod)> {
    let mut site = Site::start_nodes(nodes, &[ONE_BLOCK, LENDS, PEER], HASTY, &[])?;
    site.lab.bird("tor")?.wait_established(&["node1"], LONG)?;
    let pod = site.lab.add_pod("node1", "owner")?;
    Ok((site, pod))
}

/// The parts that the claims name, each with who has it.
fn parts(site: &Site) -> Result<Vec<(String, String)>> {
    let claims = site.api.kubectl().json(&["get", "blockaffinities"])?;
    let claims = claims["items"].as_array().cloned().unwrap_or_default();
    let delegations = claims.iter().filter_map(|claim| claim["spec"]["delegations"].as_array());
    let part =
        |part: &Value| Some((part["cidr"].as_str()?.to_owned(), part["node"].as_str()?.to_owned()));
    Ok(delegations.flatten().filter_map(part).collect())
}

fn requests(site: &Site) -> Result<Vec<Value>> {
    let found = site.api.kubectl().json(&["get", "blockrequests"])?;
    Ok(found["items"].as_array().cloned().unwrap_or_default())
}

fn wait_for_the_end_of_all(site: &Site) -> Result<()> {
    wait_for("all parts to be back, and their requests gone", LONG, || {
        let (parts, requests) = (parts(site)?, requests(site)?);
        ensure!(parts.is_empty() && requests.is_empty(), "{parts:?}, {requests:?}");
        Ok(())
    })
}

/// Both ways, through restarts of both daemons, and back.
pub(crate) fn a_borrowed_part_routes_and_comes_back(_: &ApiServer) -> Result<()> {
    let (mut site, owner) = one_block(&NODES)?;
    let borrower = site.lab.add_pod("node2", "borrower")?;
    ensure!(site.lab.node("node2")?.blocks()? == ["10.10.0.8/29"], "{:?}", parts(&site)?);
    let expected = [("10.10.0.8/29".to_owned(), "node2".to_owned())];
    ensure!(parts(&site)? == expected, "{:?}", parts(&site)?);
    let request = requests(&site)?.pop().context("there is no request")?;
    ensure!(request["status"]["granted"] == "10.10.0.8/29", "{request}");
    ensure!(request["spec"]["owner"] == "node1", "{request}");
    site.lab.bird("tor")?.wait_route("10.10.0.8/29", "node2", LONG)?;
    site.lab.node("node1")?.wait_route("10.10.0.8/29", LONG)?;
    site.lab.node("node2")?.wait_route("10.10.0.0/28", LONG)?;
    ping::reaches(owner.namespace(), borrower.address()?)?;
    ping::reaches(borrower.namespace(), owner.address()?)?;
    let status = site.api.kubectl().run(&["get", "caliconodestatus", "node2", "-o", "yaml"])?;
    ensure!(!status.contains("strictAffinity"), "{status}");

    for node in ["node1", "node2"] {
        site.lab.node_mut(node)?.kill9()?;
        site.lab.node_mut(node)?.start()?;
    }
    ensure!(parts(&site)? == expected, "{:?}", parts(&site)?);
    let second = site.lab.add_pod("node2", "second")?;
    ping::reaches(second.namespace(), owner.address()?)?;

    // A start without the API server knows of the part as well.
    site.api.set_reachable(false)?;
    site.lab.node_mut("node2")?.stop()?;
    site.lab.node_mut("node2")?.start()?;
    let third = site.lab.add_pod("node2", "third")?;
    ping::reaches(third.namespace(), owner.address()?)?;
    site.api.set_reachable(true)?;

    for pod in [borrower, second, third] {
        site.lab.delete_pod(pod)?;
    }
    wait_for_the_end_of_all(&site)?;
    ensure!(site.lab.node("node2")?.blocks()?.is_empty(), "node2 has no block");
    site.lab.delete_pod(owner)
}

/// It is named in the error, and takes the request back when it lives again.
pub(crate) fn an_owner_that_is_dead_is_named(_: &ApiServer) -> Result<()> {
    let (mut site, _owner) = one_block(&NODES)?;
    site.lab.node_mut("node1")?.kill9()?;
    let mut pod = site.lab.bare_pod("node2", "borrower")?;
    let patient = site.lab.node_mut("node2")?.runtime_mut().set_timeout(5);
    // For as long as the other has time to answer.
    wait_for("a word of whom is waited for", LONG, || {
        let error = refused(site.lab.attach(&mut pod))?;
        ensure!(error.contains("node node1 was asked for a part"), "{error}");
        Ok(())
    })?;
    wait_for("an end of the patience", LONG, || {
        let error = refused(site.lab.attach(&mut pod))?;
        ensure!(error.contains("node1") && error.contains("its daemon does not answer"), "{error}");
        Ok(())
    })?;
    let left = requests(&site)?;
    ensure!(left.len() == 1 && left[0]["status"]["returned"] == true, "{left:?}");
    site.lab.node_mut("node2")?.runtime_mut().set_conflist(patient);
    site.lab.node_mut("node1")?.start()?;
    wait_for_the_end_of_all(&site)
}

/// The block is another node's by the time its owner sees that it was asked: the request ends, and nothing is lent.
pub(crate) fn a_block_that_changes_hands_meanwhile_is_not_lent(_: &ApiServer) -> Result<()> {
    let (mut site, owner) = one_block(&NODES)?;
    let block = "blockaffinity/0a0a0000-28";
    let mut pod = site.lab.bare_pod("node2", "borrower")?;
    site.lab.node("node1")?.daemon()?.signal(Signal::SIGSTOP)?;
    let lab = &site.lab;
    thread::scope(|scope| -> Result<()> {
        let adding = scope.spawn(|| lab.attach(&mut pod));
        wait_until("the request", LONG, || Ok(requests(&site)?.len() == 1))?;
        // As its owner does: the finalizer, then the claim.
        let patch = r#"{"metadata": {"finalizers": null}}"#;
        let kubectl = site.api.kubectl();
        kubectl.run(&["patch", block, "--type=merge", "-p", patch])?;
        kubectl.run(&["delete", block])?;
        site.apply(
            "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: 0a0a0000-28}\n\
             spec: {node: node3, cidr: 10.10.0.0/28, pool: app}\n",
        )?;
        lab.node("node1")?.daemon()?.signal(Signal::SIGCONT)?;
        let outcome = adding.join().map_err(|_| anyhow::anyhow!("the ADD panicked"))?;
        ensure!(outcome.is_err(), "{outcome:?}");
        Ok(())
    })?;
    wait_until("the answer to be taken", LONG, || {
        let of_node1 = |request: &Value| request["spec"]["owner"] == "node1";
        Ok(!requests(&site)?.iter().any(of_node1))
    })?;
    ensure!(parts(&site)?.is_empty(), "{:?}", parts(&site)?);
    site.lab.delete_pod(owner)
}

/// Two nodes ask for parts of one block at the same moment.
pub(crate) fn two_borrowers_get_parts_of_their_own(_: &ApiServer) -> Result<()> {
    let nodes = [NODES[0], NODES[1], ("node3", "192.168.2.13")];
    let (mut site, owner) = one_block(&nodes)?;
    let mut pods = Vec::new();
    for node in ["node2", "node3"] {
        pods.push(site.lab.bare_pod(node, node)?);
    }
    let lab = &site.lab;
    let outcomes: Vec<Result<Value>> = thread::scope(|scope| {
        let threads: Vec<_> =
            pods.iter_mut().map(|pod| scope.spawn(move || lab.attach(pod))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    for outcome in outcomes {
        outcome?;
    }
    let parts = parts(&site)?;
    let prefixes: Vec<Prefix> = parts.iter().filter_map(|(part, _)| part.parse().ok()).collect();
    ensure!(prefixes.len() == 2 && !prefixes[0].overlaps(prefixes[1]), "{parts:?}");
    pods.push(owner);
    let mut addresses = BTreeSet::new();
    for pod in &pods {
        addresses.insert(pod.address()?);
    }
    ensure!(addresses.len() == 3, "{addresses:?}");
    for pod in pods.drain(..2) {
        site.lab.detach(&pod)?;
    }
    wait_for_the_end_of_all(&site)
}

/// Its part is in use: deleted, it stays; taken away by force, it is made again.
pub(crate) fn a_request_that_somebody_removes_returns_nothing(_: &ApiServer) -> Result<()> {
    let (mut site, owner) = one_block(&NODES)?;
    let borrower = site.lab.add_pod("node2", "borrower")?;
    let name =
        |request: &Value| request["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let before = requests(&site)?.pop().context("there is no request")?;
    let kubectl = site.api.kubectl();
    kubectl.run(&["delete", "blockrequest", &name(&before), "--wait=false"])?;
    ensure!(requests(&site)?.len() == 1, "its finalizer keeps it");
    let patch = r#"{"metadata": {"finalizers": null}}"#;
    kubectl.run(&["patch", "blockrequest", &name(&before), "--type=merge", "-p", patch])?;
    wait_for("the request to be made again", LONG, || {
        let found = requests(&site)?.pop().context("it is gone")?;
        ensure!(found["metadata"]["uid"] != before["metadata"]["uid"], "{found}");
        ensure!(name(&found) == name(&before), "{found}");
        ensure!(found["status"]["granted"] == "10.10.0.8/29", "{found}");
        Ok(())
    })?;
    ensure!(parts(&site)?.len() == 1, "{:?}", parts(&site)?);
    ping::reaches(borrower.namespace(), owner.address()?)?;
    site.lab.delete_pod(borrower)?;
    wait_for_the_end_of_all(&site)
}

/// Without a controller `twillctl` ends what a node that is gone has asked for, and what it was asked.
pub(crate) fn what_a_gone_node_asked_for_is_settled_by_hand(_: &ApiServer) -> Result<()> {
    let (mut site, owner) = one_block(&NODES)?;
    site.lab.add_pod("node2", "borrower")?;
    ensure!(parts(&site)?.len() == 1, "{:?}", parts(&site)?);
    site.lab.node_mut("node2")?.kill9()?;
    site.api.kubectl().run(&["delete", "node", "node2"])?;
    let ctl = Ctl::new(&site.api);
    let done = ctl.run(&["ipam", "release", "--node", "node2", "--force"], "")?;
    let expected = "Returned 10.10.0.8/29 that node node2 had borrowed\n\
                    Settled 1 request for a part of a block\n";
    ensure!(done == expected, "{done}");
    ensure!(parts(&site)?.is_empty() && requests(&site)?.is_empty(), "something is left");

    // Somebody waits for an answer of a node that is gone.
    site.apply(
        "apiVersion: projectcalico.org/v3\nkind: BlockRequest\n\
         metadata: {name: asking, finalizers: [twill.projectcalico.org/request]}\n\
         spec: {node: node8, owner: node9, block: 10.99.0.0/26, pool: app, length: 29}\n",
    )?;
    let done = Ctl::new(&site.api).run(&["ipam", "release", "--node", "node9"], "")?;
    ensure!(done == "Settled 1 request for a part of a block\n", "{done}");
    let left = requests(&site)?.pop().context("the answer has to stay for who asked")?;
    ensure!(left["status"]["refused"] == "the block is not this node's any more", "{left}");

    // The owner gives addresses of the part again: more than there are without it.
    let mut pods = vec![owner];
    for n in 0..8 {
        let mut pod = site.lab.bare_pod("node1", &format!("more{n}"))?;
        wait_for("an address of the part", LONG, || site.lab.attach(&mut pod).map(drop))?;
        pods.push(pod);
    }
    pods.into_iter().try_for_each(|pod| site.lab.delete_pod(pod))
}

/// The text of an error that has to be one.
fn refused<T: std::fmt::Debug>(outcome: Result<T>) -> Result<String> {
    match outcome {
        Ok(done) => anyhow::bail!("it was done: {done:?}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}
