//! `twillctl ipam`: every kind of difference, made for real, found, and mended where it can be; and no
//! living pod loses its address by it. What people complain of elsewhere has a test each.

mod storm;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    lab::{Lab, Node, Topology},
    ping,
    wait::wait_for,
};

pub(crate) use self::storm::a_living_pod_keeps_its_address_whatever_is_mended_meanwhile;
use crate::{LONG, SECONDS};

/// The node finds nothing by itself as long as the test runs, but what it saw counts.
const SETTINGS: &str = "reconcile: {intervalSeconds: 3600, graceSeconds: 1}\n";

fn nodes(count: u8) -> Result<Lab> {
    nodes_with(count, SETTINGS)
}

fn nodes_with(count: u8, settings: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    for number in 1..=count {
        topology
            .node(&format!("node{number}"))
            .label("rack", "rack1")
            .label("env", "prod")
            .on("seg-a", &format!("192.168.2.1{number}/24"))
            .settings(settings);
    }
    topology.samples(&["ippool-app.yaml", "ipamconfig-default.yaml"])?;
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

/// `twillctl ipam check`: its report. The exit status has to fit it.
fn check(node: &Node, more: &[&str]) -> Result<Value> {
    let output = node.ctl_output(&[&["ipam", "check", "-o", "json"], more].concat())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_str(&text).with_context(|| format!("{text} {said}"))?;
    let clean = report["counts"].as_object().is_some_and(serde_json::Map::is_empty);
    ensure!(output.status.code() == Some(i32::from(!clean)), "{} {report}", output.status);
    Ok(report)
}

/// Waits until a check finds just these kinds.
fn finds(node: &Node, kinds: &[&str]) -> Result<Value> {
    wait_for(&format!("{kinds:?} to be found"), LONG, || {
        let report = check(node, &[])?;
        let counts = report["counts"].as_object().context("no counts")?;
        let found: Vec<_> = counts.keys().map(String::as_str).collect();
        ensure!(found == kinds, "{report:#}");
        Ok(report)
    })
}

/// Mends, and says of which kinds something was mended; nothing else is wrong then.
fn fixes(node: &Node) -> Result<Vec<String>> {
    let report = check(node, &["--fix"])?;
    ensure!(report["counts"] == json!({}), "{report:#}");
    let kinds = report["fixed"].as_array().into_iter().flatten();
    let mut kinds: Vec<String> =
        kinds.filter_map(|fixed| fixed["kind"].as_str().map(str::to_owned)).collect();
    kinds.dedup();
    finds(node, &[])?;
    Ok(kinds)
}

fn claim_file(lab: &Lab, block: &str) -> Result<PathBuf> {
    let block: twill_types::Block =
        block.parse().map_err(|error| anyhow::anyhow!("{block}: {error}"))?;
    Ok(lab.resource("claims").join(format!("{}.yaml", block.claim_name())))
}

/// Writes a claim by hand, as from a backup of the datastore.
fn claim(lab: &Lab, block: &str, node: &str, pool: &str) -> Result<()> {
    let file = claim_file(lab, block)?;
    let name = file.file_stem().context("no name")?.to_string_lossy().into_owned();
    let text = format!(
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {{name: {name}, uid: \
         by-hand}}\nspec: {{state: confirmed, node: {node}, cidr: {block}, pool: {pool}}}\n"
    );
    Ok(fs::write(file, text)?)
}

/// projectcalico/calico#8548 and #7839: addresses of pods that are gone pile up, and nobody tells.
pub(crate) fn leaked_addresses_are_found_named_and_given_back() -> Result<()> {
    let mut lab = nodes(1)?;
    let (web, lost) = (lab.add_pod("node1", "web")?, lab.add_pod("node1", "lost")?);
    finds(lab.node("node1")?, &[])?;
    let address = lost.address()?.to_string();
    drop(lost);
    let node = lab.node("node1")?;
    let report = finds(node, &["leakedAddress"])?;
    let leak = &report["findings"][0];
    ensure!(leak["addresses"] == json!([address]) && leak["pod"] == "prod/lost", "{leak}");
    let shown = node.ctl(&["ipam", "show", "--ip", &address])?;
    ensure!(shown.contains("prod/lost") && shown.contains("leaked"), "{shown}");
    ensure!(fixes(node)? == ["leakedAddress"]);
    ensure!(node.addresses_in_use()? == 1);
    let shown = node.ctl(&["ipam", "show", "--ip", &address])?;
    ensure!(shown.contains(&format!("{address} is ")) && !shown.contains("in use"), "{shown}");

    // The other way: a report, looked through by a person, and given back by hand.
    let other = lab.add_pod("node1", "other")?;
    drop(other);
    let node = lab.node("node1")?;
    finds(node, &["leakedAddress"])?;
    let file = node.dir().join("report.json").display().to_string();
    check(node, &["--report", &file])?;
    let said = node.ctl(&["ipam", "release", "--from-report", &file])?;
    ensure!(said.contains("Released ") && said.contains("prod/other"), "{said}");
    finds(node, &[])?;
    // The report is old by now, and does no harm.
    let output = node.ctl_output(&["ipam", "release", "--from-report", &file])?;
    ensure!(!output.status.success() && node.addresses_in_use()? == 1);
    ping::reaches(node.namespace(), web.address()?)
}

/// An ADD that has its address and no link yet looks just like a leak, until no ADD can take so long.
pub(crate) fn what_may_be_an_add_under_way_is_shown_and_left_alone() -> Result<()> {
    let mut lab = nodes_with(1, "reconcile: {intervalSeconds: 1, graceSeconds: 86400}\n")?;
    let lost = lab.add_pod("node1", "lost")?;
    let address = lost.address()?.to_string();
    drop(lost);
    let node = lab.node("node1")?;
    wait_for("a suspicion", LONG, || {
        let report = check(node, &["--fix"])?;
        let found = &report["findings"][0];
        ensure!(found["kind"] == "leakedAddress" && found["confirmed"] == false, "{report}");
        ensure!(report["counts"] == json!({}) && report["fixed"] == json!([]), "{report}");
        Ok(())
    })?;
    ensure!(node.addresses_in_use()? == 1);
    let output = node.ctl_output(&["ipam", "release", "--ip", &address])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains("--force"), "{said}");
    ensure!(node.addresses_in_use()? == 1);
    // Who knows better can say so; an ADD that is under way after all is told before its link goes up.
    let said = node.ctl(&["ipam", "release", "--ip", &address, "--force"])?;
    ensure!(said.contains(&format!("Released {address}")), "{said}");
    ensure!(node.addresses_in_use()? == 0);
    Ok(())
}

/// projectcalico/calico#5044 and #12257: the address of a pod that runs is given to another one.
pub(crate) fn a_release_by_hand_spares_the_living() -> Result<()> {
    let mut lab = nodes(1)?;
    let web = lab.add_pod("node1", "web")?;
    let address = web.address()?.to_string();
    let node = lab.node("node1")?;
    let refused = |more: &[&str], needle: &str| -> Result<()> {
        let output = node.ctl_output(&[&["ipam", "release"], more].concat())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains(needle), "{more:?}: {said}");
        ensure!(node.addresses_in_use()? == 1, "{more:?} released it: {said}");
        Ok(())
    };
    let handle = format!("pods/{}/eth0", web.attachment().container_id);
    refused(&["--ip", &address], "its pod lives")?;
    refused(&["--handle", &handle], "its pod lives")?;
    refused(&["--ip", "10.10.15.254"], "not allocated")?;
    refused(&["--ip", &address, "--sequence", "4711", "--force"], "not of 4711")?;
    let found = node.ctl_json(&["ipam", "show", "--ip", &address])?;
    let sequence = found["holder"]["sequence"].clone();
    ensure!(found["holder"]["life"] == "lives" && found["state"] == "inUse", "{found}");
    let said = node.ctl(&["ipam", "release", "--handle", &handle, "--force"])?;
    ensure!(said.contains(&address), "{said}");

    // Somebody said --force, and the pod runs on: projectcalico/calico#3940, #11755.
    let report = finds(node, &["inUseNotAllocated"])?;
    ensure!(report["findings"][0]["addresses"] == json!([address]), "{report}");
    ensure!(fixes(node)? == ["inUseNotAllocated"]);
    let found = node.ctl_json(&["ipam", "show", "--ip", &address])?;
    ensure!(found["holder"]["sequence"] == sequence, "{found}");
    ping::reaches(node.namespace(), web.address()?)?;
    let other = lab.add_pod("node1", "other")?;
    ensure!(other.address()? != web.address()?);
    lab.delete_pod(web)?;
    ensure!(lab.node("node1")?.addresses_in_use()? == 1);
    Ok(())
}

/// projectcalico/calico#1550: what does not agree has to be found without stopping the cluster.
pub(crate) fn what_does_not_agree_on_a_node_is_found_and_mended() -> Result<()> {
    let mut lab = nodes(1)?;
    let web = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let host = node.namespace();
    finds(node, &[])?;
    // A route that somebody removes comes back by itself, and is nothing to find.
    let address = web.address()?;
    let routes = node.own_routes("-4")?;
    let route = routes.iter().find(|route| route["dst"] == address.to_string());
    let link = route.context("no route")?["dev"].as_str().context("no link")?.to_owned();
    host.ip(&format!("route del {address} dev {link}"))?;
    node.wait_route(&address.to_string(), SECONDS)?;
    finds(node, &[])?;
    host.ip(&format!("route add 10.10.9.9 dev {link} proto 116 scope link"))?;
    finds(node, &["inUseNotAllocated"])?;
    host.ip(&format!("route del 10.10.9.9 dev {link}"))?;
    // What an ADD leaves that dies between two sends to the kernel.
    host.ip("link add twl0123456789ab type veth peer name nobody")?;
    finds(node, &["leftoverLink"])?;
    ensure!(fixes(node)? == ["leftoverLink"]);

    // Claims that are put back from a backup, or lost with it.
    let block = node.blocks()?.first().context("no block")?.clone();
    fs::remove_file(claim_file(&lab, &block)?)?;
    // The daemon sees that by itself.
    let file = claim_file(&lab, &block)?;
    wait_for("the claim to be made again", SECONDS, || {
        ensure!(file.exists());
        Ok(())
    })?;
    finds(node, &[])?;
    claim(&lab, "10.10.14.0/26", "node1", "app-pool")?;
    finds(node, &["claimNotTaken"])?;
    ensure!(fixes(node)? == ["claimNotTaken"]);
    ensure!(node.blocks()?.contains(&"10.10.14.0/26".to_owned()));
    claim(&lab, "10.77.0.0/26", "node1", "gone")?;
    finds(node, &["claimNotTaken", "claimWithoutPool"])?;
    let file = claim_file(&lab, "10.77.0.0/26")?;
    wait_for("it to be given back", SECONDS, || {
        check(node, &["--fix"])?;
        ensure!(!file.exists());
        Ok(())
    })?;

    // What the cluster is told.
    let told = lab.resource("status/node1/ipam.json");
    fs::write(&told, "{}")?;
    finds(node, &["publishedDiffers"])?;
    ensure!(fixes(node)? == ["publishedDiffers"]);
    ping::reaches(host, address)?;
    ensure!(node.addresses_in_use()? == 1);
    Ok(())
}

/// projectcalico/calico#6486 and #10778: blocks of two owners, blocks in blocks, blocks of nobody.
pub(crate) fn claims_that_cannot_be_right_are_named_with_their_owner() -> Result<()> {
    let mut lab = nodes(1)?;
    let web = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let block: twill_types::Prefix = node.blocks()?.first().context("no block")?.parse()?;
    finds(node, &[])?;
    claim(&lab, "10.10.14.0/26", "node9", "app-pool")?;
    let report = finds(node, &["claimWithoutNode"])?;
    ensure!(report["findings"][0]["node"] == "node9", "{report}");
    // Its daemon may yet live, so that is not ours to mend.
    let fixed = check(node, &["--fix"])?;
    ensure!(fixed["counts"] == json!({"claimWithoutNode": 1}), "{fixed}");
    fs::remove_file(claim_file(&lab, "10.10.14.0/26")?)?;

    let half = block.subnet(27, 1).context("no half")?.to_string();
    claim(&lab, &half, "node1", "app-pool")?;
    let report = check(node, &[])?;
    let wrong = json!({"claimNotTaken": 1, "claimOutsidePool": 1, "overlappingClaims": 1});
    ensure!(report["counts"] == wrong, "{report}");
    fs::remove_file(claim_file(&lab, &half)?)?;
    let file = claim_file(&lab, "10.10.13.0/26")?;
    fs::write(&file, "rubbish: [")?;
    let report = finds(node, &["damagedClaim"])?;
    ensure!(report["findings"][0]["message"].to_string().contains("0a0a0d00-26"), "{report}");
    fs::remove_file(file)?;

    let numbers = lab.resource("status/node9/ipam.json");
    fs::create_dir_all(numbers.parent().context("no parent")?)?;
    fs::write(&numbers, "{\"node\": \"node9\", \"since\": \"\", \"blocks\": []}")?;
    finds(node, &["staleNumbers"])?;
    ensure!(fixes(node)? == ["staleNumbers"] && !numbers.exists());
    // Without the daemon, the datastore can be looked at all the same.
    lab.node_mut("node1")?.stop()?;
    claim(&lab, "10.10.14.0/26", "node9", "app-pool")?;
    let report = check(lab.node("node1")?, &["--datastore-only"])?;
    ensure!(report["counts"]["claimWithoutNode"] == 1 && report["node"].is_null(), "{report}");
    drop(web);
    Ok(())
}

/// projectcalico/calico#5664: to see the addresses of the cluster asks neither a server nor a node.
pub(crate) fn the_cluster_is_seen_without_asking_its_nodes() -> Result<()> {
    let mut lab = nodes(2)?;
    let mut pods = Vec::new();
    for (node, name) in [("node1", "a"), ("node2", "b"), ("node2", "c")] {
        pods.push(lab.add_pod(node, name)?);
    }
    let seen = |lab: &Lab, used: u64| {
        wait_for("node2's numbers on node1", LONG, || {
            let view = lab.node("node1")?.ctl_json(&["ipam", "show", "--show-blocks"])?;
            let blocks = view["blocks"].as_array().context("no blocks")?;
            let block = blocks.iter().find(|block| block["node"] == "node2");
            let block = block.context("node2 has no block")?;
            ensure!(block["used"] == used, "{view}");
            let sum = ["used", "free", "cooling", "reserved", "lent"];
            let sum: u64 = sum.iter().filter_map(|key| block[key].as_u64()).sum();
            ensure!(sum == 64, "{block}");
            Ok(view)
        })
    };
    let view = seen(&lab, 2)?;
    ensure!(view["pools"][0]["used"] == 3, "{view}");
    // Whether it runs or not.
    lab.node_mut("node2")?.stop()?;
    seen(&lab, 2)?;
    lab.node_mut("node1")?.stop()?;
    let output = lab.node("node1")?.ctl_output(&["ipam", "show", "--show-blocks"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && said.contains("2 (3%)"), "{said}");
    lab.node_mut("node1")?.start()?;

    let node = lab.node("node1")?;
    let address = pods[1].address()?.to_string();
    let said = node.ctl(&["ipam", "show", "--ip", &address])?;
    ensure!(said.contains("known to node node2 alone"), "{said}");
    let map = node.ctl(&["ipam", "show", "--map", "--width", "80"])?;
    ensure!(map.contains("a node1: 1 block") && map.contains("b1"), "{map}");
    let file = node.dir().join("map.svg").display().to_string();
    node.ctl(&["ipam", "show", "--map", "app-pool", "--svg", &file])?;
    let picture = fs::read_to_string(&file)?;
    ensure!(picture.contains("node2, 2 of 64 in use</title>"), "{picture}");
    // A node that is gone says nothing any more.
    lab.remove_resource("node2.yaml")?;
    wait_for("node2 to be gone", SECONDS, || {
        let shown = lab.node("node1")?.ctl(&["ipam", "show", "--show-blocks"])?;
        ensure!(shown.contains("claimed by node2, which does not exist"), "{shown}");
        ensure!(!shown.contains("2 (3%)"), "{shown}");
        Ok(())
    })
}

/// projectcalico/calico#9462: the limits that hold are the ones that are shown.
pub(crate) fn what_is_configured_is_shown_and_holds() -> Result<()> {
    let mut lab = nodes(1)?;
    let node = lab.node("node1")?;
    let said = node.ctl(&[
        "ipam",
        "configure",
        "--strict-affinity=true",
        "--max-blocks-per-host=1",
        "--ip-cooldown-seconds=600",
    ])?;
    ensure!(said.contains("configured") && said.contains("MaxBlocksPerHost"), "{said}");
    let shown = node.ctl_json(&["ipam", "show", "--configuration"])?;
    ensure!(shown["maxBlocksPerHost"] == 1 && shown["ipCooldownSeconds"] == 600, "{shown}");
    let output = node.ctl_output(&["ipam", "configure", "--strict-affinity=false"])?;
    ensure!(output.status.code() == Some(1), "a limit without strict affinity was written");
    let address = wait_for("an address at rest", LONG, || {
        let pod = lab.add_pod("node1", "web")?;
        let address = pod.address()?.to_string();
        lab.delete_pod(pod)?;
        let found = wait_for("its link to go", SECONDS, || {
            let found = lab.node("node1")?.ctl_json(&["ipam", "show", "--ip", &address])?;
            ensure!(found["state"] != "held", "{found}");
            Ok(found)
        })?;
        ensure!(found["state"] == "resting", "not configured yet: {found}");
        Ok(address)
    })?;
    let node = lab.node("node1")?;
    wait_for("it to wait for nothing else", SECONDS, || {
        let shown = node.ctl(&["ipam", "show", "--ip", &address])?;
        ensure!(shown.contains("at rest after use, for another"), "{shown}");
        Ok(())
    })?;
    finds(node, &[]).map(drop)
}
