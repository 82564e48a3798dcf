//! What becomes of claims on the API server.

use anyhow::{Result, anyhow, ensure};
use twill_tests::{
    kubernetes::ApiServer,
    wait::{wait_for, wait_until},
};
use twill_types::Block;

use super::{
    LONG,
    nodes::{POOL, STRICT, Site, block_of},
};

const HASTY: &str = "ipam: {emptyBlockGraceSeconds: 1}\n";

/// The name of a block's claim.
fn name(block: &str) -> Result<String> {
    let parsed = block.parse::<Block>().map_err(|error| anyhow!("{block}: {error}"))?;
    Ok(parsed.claim_name())
}

/// Takes a claim away, as somebody does who knows how.
fn take_away(site: &Site, block: &str) -> Result<()> {
    let (kubectl, name) = (site.api.kubectl(), name(block)?);
    let patch = r#"{"metadata": {"finalizers": null}}"#;
    kubectl.run(&["patch", "blockaffinity", &name, "--type=merge", "-p", patch])?;
    kubectl.run(&["delete", "blockaffinity", &name]).map(drop)
}

/// Empty blocks go but the last of a pool, and that one with its pool; a claim that somebody deletes
/// stays as long as pods live in it.
pub(crate) fn what_is_not_needed_is_given_back(_: &ApiServer) -> Result<()> {
    let pool = POOL.replace("blockSize: 27", "blockSize: 30");
    let mut site = Site::start_with(&[&pool, STRICT], HASTY, &[])?;
    let mut pods = Vec::new();
    for number in 0..6 {
        pods.push(site.lab.add_pod("node1", &format!("pod{number}"))?);
    }
    let last = pods.swap_remove(0);
    let (block, _) = block_of(&site, &last)?;
    ensure!(site.claims()?.len() >= 2, "{:?}", site.claims()?);
    for pod in pods {
        site.lab.delete_pod(pod)?;
    }
    wait_until("the empty blocks to be given back", LONG, || Ok(site.claims()?.len() == 1))?;

    let kubectl = site.api.kubectl();
    kubectl.run(&["delete", "blockaffinity", &name(&block)?, "--wait=false"])?;
    let another = site.lab.add_pod("node1", "another")?;
    ensure!(site.claims()?.contains_key(&block), "{:?}", site.claims()?);
    site.lab.delete_pod(another)?;
    site.lab.delete_pod(last)?;
    site.api.kubectl().run(&["delete", "ippool", "app"])?;
    wait_until("the last block to be given back", LONG, || Ok(site.claims()?.is_empty()))
}

/// Nobody has the claim of a block that pods live in: its node claims it again.
pub(crate) fn a_claim_that_is_taken_away_is_made_again(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, STRICT], HASTY, &[])?;
    let pod = site.lab.add_pod("node1", "a")?;
    let (block, _) = block_of(&site, &pod)?;
    take_away(&site, &block)?;
    wait_until("the block to be claimed again", LONG, || {
        Ok(site.claims()?.get(&block).is_some_and(|owner| owner == "node1"))
    })?;
    site.lab.add_pod("node1", "b").map(drop)
}

/// Another node has the block by now: the pods stay, nobody gets an address of it, and that is said.
pub(crate) fn a_claim_that_another_node_has_is_lost(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, STRICT], HASTY, &[])?;
    let pod = site.lab.add_pod("node1", "a")?;
    let (block, _) = block_of(&site, &pod)?;
    site.lab.node_mut("node1")?.stop()?;
    take_away(&site, &block)?;
    site.apply(&format!(
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {{name: {}}}\n\
         spec: {{node: node2, cidr: {block}, pool: app}}\n",
        name(&block)?
    ))?;
    site.lab.node_mut("node1")?.start()?;
    wait_for("node1 to say that it lost a block", LONG, || {
        let status = site.lab.node("node1")?.status()?.to_string();
        ensure!(status.contains("ClaimLost"), "{status}");
        Ok(())
    })?;
    let other = site.lab.add_pod("node1", "b")?;
    let (own, owner) = block_of(&site, &other)?;
    ensure!(own != block && owner == "node1", "{own} of {owner}");
    ensure!(site.claims()?.get(&block).is_some_and(|owner| owner == "node2"), "it is node2's");
    Ok(())
}

/// A claim that an older release made has no label of its size: its node adds it, and writes nothing else.
pub(crate) fn a_claim_of_an_older_release_gets_its_label(_: &ApiServer) -> Result<()> {
    const LABEL: &str = "twill.projectcalico.org/ipv4-block-size";
    let mut site = Site::start(&[POOL, STRICT])?;
    let pod = site.lab.add_pod("node1", "a")?;
    let (block, _) = block_of(&site, &pod)?;
    let name = name(&block)?;
    let claim = |site: &Site| site.api.kubectl().json(&["get", "blockaffinity", &name]);
    site.lab.node_mut("node1")?.stop()?;
    site.api.kubectl().run(&["label", "blockaffinity", &name, &format!("{LABEL}-")])?;
    let before = claim(&site)?;
    ensure!(before["metadata"]["labels"].is_null(), "{before}");
    site.lab.node_mut("node1")?.start()?;
    wait_until("the label", LONG, || Ok(claim(&site)?["metadata"]["labels"][LABEL] == "27"))?;
    let after = claim(&site)?;
    let same = |key: &str| before["metadata"][key] == after["metadata"][key];
    ensure!(before["spec"] == after["spec"] && same("uid") && same("finalizers"), "{after}");
    let written = |request: &&String| request.as_str() == "patch blockaffinities";
    let written = site.api.node_requests()?.iter().filter(written).count();
    ensure!(written == 1, "it was written {written} times");
    site.lab.delete_pod(pod)
}
