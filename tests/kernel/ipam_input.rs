//! What people ask of pools and addresses and cannot have: the field, the value and the reason, and
//! nothing is half done.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    lab::{Lab, Topology},
    wait::wait_for,
};

use crate::{LONG, plugin::refusal};

fn lab_with(manifests: &[(&str, &str)]) -> Result<Lab> {
    let mut topology = Topology::new();
    topology.node("node1").on("seg-a", "192.168.2.11/24");
    for (file, text) in manifests {
        topology.resource(file, text);
    }
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

fn pool(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

pub(crate) fn a_pool_that_cannot_be_used_says_why() -> Result<()> {
    let good = pool("good", "cidr: 10.60.0.0/28, blockSize: 30");
    let mut lab = lab_with(&[("good.yaml", &good)])?;
    for (spec, words) in [
        ("cidr: 10.61.0.0/28", ["spec.cidr", "10.61.0.0/28", "block of /26"]),
        ("cidr: 10.61.0.0/28, blockSize: 27", ["spec.blockSize", "27", "10.61.0.0/28"]),
        ("cidr: 10.61.0.0/31", ["spec.cidr", "10.61.0.0/31", "blockSize to 31"]),
        ("cidr: 10.61.0.0/32", ["spec.cidr", "10.61.0.0/32", "blockSize to 32"]),
        ("cidr: 10.61.0.0/16, blockSize: 19", ["spec.blockSize", "19", "/20 to /32"]),
        ("cidr: 10.61.0.0/16, blockSize: 33", ["spec.blockSize", "33", "/20 to /32"]),
        ("cidr: \"fd00::/64\", blockSize: 115", ["spec.blockSize", "115", "/116 to /128"]),
        ("cidr: \"::ffff:10.61.0.0/112\"", ["spec.cidr", "IPv4-mapped", "another range"]),
        ("cidr: 10.61.0.1/16", ["spec.cidr", "10.61.0.1/16", "host bits"]),
        ("cidr: 10.61.0.0/33", ["spec.cidr", "10.61.0.0/33", "0 to 32"]),
        ("cidr: 10.61.0.0", ["spec.cidr", "10.61.0.0", "address/length"]),
        ("cidr: 224.0.0.0/24", ["spec.cidr", "multicast", "224.0.0.0"]),
        ("cidr: 127.0.0.0/24", ["spec.cidr", "loopback", "127.0.0.0"]),
        ("cidr: 169.254.7.0/24", ["spec.cidr", "link-local", "169.254.0.0"]),
        ("cidr: 10.60.0.0/24", ["", "overlaps pool good", "10.60.0.0/28"]),
    ] {
        // One that overlaps is no mistake in a file, and what it means depends on what is in use.
        let pods = lab.node("node1")?.addresses_in_use()?;
        if words[0].is_empty() && pods == 0 {
            lab.add_pod("node1", "first").map(drop)?;
        }
        lab.write_resource("bad.yaml", &pool("bad", spec))?;
        wait_for(&format!("word of {spec}"), LONG, || {
            let node = lab.node("node1")?;
            let told = node.status()?["problems"].to_string() + &node.ctl(&["ipam", "show"])?;
            for word in words {
                ensure!(told.contains(word), "no {word:?} in {told}");
            }
            Ok(())
        })?;
        lab.remove_resource("bad.yaml")?;
    }
    let pod = lab.add_pod("node1", "last")?;
    ensure!(pod.address()?.to_string().starts_with("10.60.0."), "{:?}", pod.addresses());
    Ok(())
}

pub(crate) fn the_smallest_pools_give_what_they_have() -> Result<()> {
    let two = pool("two", "cidr: 10.60.0.0/31, blockSize: 31");
    let one = pool("one", "cidr: 10.61.0.0/32, blockSize: 32");
    let six = pool("six", "cidr: \"fd00:61::7/128\", blockSize: 128");
    let mut lab = lab_with(&[("two.yaml", &two), ("one.yaml", &one), ("six.yaml", &six)])?;
    let mut addresses = Vec::new();
    for n in 0..3 {
        addresses.push(lab.add_pod("node1", &format!("p{n}"))?.address()?.to_string());
    }
    addresses.sort();
    ensure!(addresses == ["10.60.0.0", "10.60.0.1", "10.61.0.0"], "{addresses:?}");
    let error = refusal(lab.add_pod("node1", "more"))?;
    ensure!(error.code == 101 && error.message.contains("one, two"), "{error}");
    let mut conflist = lab.node("node1")?.runtime().conflist().clone();
    conflist["plugins"][0]["ipam"]["assignIPv4"] = json!(false);
    conflist["plugins"][0]["ipam"]["assignIPv6"] = json!(true);
    lab.node_mut("node1")?.runtime_mut().set_conflist(conflist);
    let pod = lab.add_pod("node1", "v6")?;
    ensure!(pod.address()?.to_string() == "fd00:61::7", "{:?}", pod.addresses());
    Ok(())
}

pub(crate) fn an_address_that_cannot_be_had_says_why_and_leaves_nothing() -> Result<()> {
    let four = pool("four", "cidr: 10.60.0.0/28, blockSize: 30");
    let other = pool("other", "cidr: 10.62.0.0/28, blockSize: 30");
    let six = pool("six", "cidr: \"fd00:60::/120\", blockSize: 122");
    let reservation = "apiVersion: projectcalico.org/v3\nkind: IPReservation\nmetadata: {name: r}\n\
                       spec: {reservedCIDRs: [10.60.0.9/32]}\n";
    let mut lab = lab_with(&[
        ("four.yaml", &four),
        ("other.yaml", &other),
        ("six.yaml", &six),
        ("reservation.yaml", reservation),
    ])?;
    let holder = lab.add_pod("node1", "holder")?;
    let taken = holder.address()?.to_string();
    let before = lab.node("node1")?.addresses_in_use()?;
    let plain = lab.node("node1")?.runtime().conflist().clone();
    let ask = |ips: Value, pools: &[&str], ipv4: bool| {
        let mut conflist = plain.clone();
        let plugin = &mut conflist["plugins"][0];
        plugin["capabilities"] = json!({"ips": true});
        plugin["runtimeConfig"] = json!({"ips": ips});
        plugin["ipam"]["ipv4Pools"] = json!(pools);
        plugin["ipam"]["assignIPv4"] = json!(ipv4);
        plugin["ipam"]["assignIPv6"] = json!(!ipv4);
        conflist
    };
    for (ips, pools, ipv4, code, words) in [
        (json!(["10.99.0.1"]), vec![], true, 7, vec!["10.99.0.1", "no pool holds it"]),
        (json!(["10.62.0.1"]), vec!["four"], true, 7, vec!["10.62.0.1", "four"]),
        (
            json!(["10.60.0.9"]),
            vec![],
            true,
            103,
            vec!["10.60.0.9", "IPReservation (10.60.0.9/32)"],
        ),
        (json!([taken]), vec![], true, 103, vec![taken.as_str(), "in use by"]),
        (json!(["fd00:99::1"]), vec![], true, 7, vec!["fd00:99::1", "no pool holds it"]),
        (
            json!(["10.60.0.5", "10.60.0.5"]),
            vec![],
            true,
            7,
            vec!["ips", "10.60.0.5", "at most one"],
        ),
        (
            json!(["10.60.0.5", "10.60.0.6"]),
            vec![],
            true,
            7,
            vec!["ips", "10.60.0.6", "at most one"],
        ),
        (json!(["::ffff:10.60.0.5"]), vec![], true, 7, vec!["ips", "::ffff:10.60.0.5", "one host"]),
        (json!(["10.60.0.5/33x"]), vec![], true, 7, vec!["ips", "10.60.0.5/33x"]),
        (json!(["224.0.0.5"]), vec![], true, 7, vec!["ips", "224.0.0.5", "one host"]),
        (json!([]), vec!["six"], true, 100, vec!["six", "other family"]),
        (json!([]), vec!["nine"], true, 100, vec!["nine", "no such pool"]),
        // One of two cannot be had, so the other one is not taken either.
        (json!(["10.60.0.6", "fd00:99::1"]), vec![], true, 7, vec!["fd00:99::1"]),
        (json!([taken, "fd00:60::5"]), vec![], true, 103, vec![taken.as_str()]),
    ] {
        lab.node_mut("node1")?.runtime_mut().set_conflist(ask(ips.clone(), &pools, ipv4));
        let error = refusal(lab.add_pod("node1", "asking"))?;
        let text = error.to_string();
        ensure!(error.code == code, "{ips} {pools:?}: {text}");
        for word in words {
            ensure!(text.contains(word), "{ips} {pools:?}: no {word:?} in {text}");
        }
        let after = lab.node("node1")?.addresses_in_use()?;
        ensure!(after == before, "{ips}: {before} addresses were in use, and {after} are");
    }
    // And they can still be had.
    lab.node_mut("node1")?.runtime_mut().set_conflist(ask(
        json!(["10.60.0.6", "fd00:60::5"]),
        &[],
        true,
    ));
    let pod = lab.add_pod("node1", "both")?;
    ensure!(pod.addresses().len() == 2, "{:?}", pod.addresses());
    Ok(())
}
