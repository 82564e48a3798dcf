//! The newest reference plugins with addresses from `twill-ipam`, and `twill` with addresses from them.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni::{self, Attachment, Runtime},
    netns::Namespace,
    ping, programs,
    wait::wait_for,
};

use crate::{LONG, tool::Site};

/// Unlike Debian's it knows STATUS, and passes it on; GC is libcni's own DELs to it.
pub(crate) fn the_newest_ptp_works_with_every_verb() -> Result<()> {
    let under_ptp = |grace: u64| {
        move |list: &mut serde_json::Value| {
            let run_dir = list["plugins"][0]["runDir"].clone();
            let ipam = json!({
                "type": "twill-ipam",
                "mode": "daemon",
                "runDir": run_dir,
                "statusGraceSeconds": grace,
            });
            list["plugins"] = json!([{"type": "ptp", "ipam": ipam}]);
        }
    };
    let mut site = Site::new(under_ptp(120))?;
    let [one, _two] = two_pods(&site, true)?;
    ensure!(site.used()? == 2, "{} addresses are in use", site.used()?);
    // libcni calls DEL for all that it knows, and then a GC that ptp passes on to nobody.
    site.call("gc", one.path())?;
    ensure!(site.used()? == 0, "{} addresses are in use", site.used()?);

    site.lab.node_mut("node1")?.kill9()?;
    site.call("status", "/unused".as_ref())?;
    site.configure(under_ptp(1))?;
    let error =
        wait_for("the grace to end", LONG, || match site.call("status", "/unused".as_ref()) {
            Ok(_) => anyhow::bail!("it is ready still"),
            Err(error) => Ok(error.to_string()),
        })?;
    ensure!(error.contains("twilld.sock"), "{error}");
    Ok(())
}

/// Two pods that reach each other, and are reached from the node, after a STATUS; CHECK finds both right.
fn two_pods(site: &Site, from_node: bool) -> Result<[Namespace; 2]> {
    site.call("status", "/unused".as_ref())?;
    let ((one, first), (two, second)) = (site.add("one")?, site.add("two")?);
    ensure!(first["cniVersion"] == "1.1.0", "{first}");
    let (here, there) = (cni::addresses(&first)?[0], cni::addresses(&second)?[0]);
    ping::reaches(&one, there)?;
    ping::reaches(&two, here)?;
    if from_node {
        ping::reaches(site.node()?, here)?;
    }
    for pod in [&one, &two] {
        site.call("check", pod.path())?;
    }
    Ok([one, two])
}

pub(crate) fn the_newest_bridge_and_macvlan_work_with_every_verb() -> Result<()> {
    let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true});
    let macvlan = json!({"type": "macvlan", "master": "eth0", "mode": "bridge"});
    // A node does not reach what is on its own macvlan.
    for (main, from_node) in [(bridge, true), (macvlan, false)] {
        lives_under(&main, from_node).with_context(|| main["type"].to_string())?;
    }
    Ok(())
}

fn lives_under(main: &Value, from_node: bool) -> Result<()> {
    let site = Site::new(|list| {
        let mut main = main.clone();
        main["ipam"] = json!({
            "type": "twill-ipam",
            "mode": "daemon",
            "runDir": list["plugins"][0]["runDir"],
            "routes": [{"dst": "0.0.0.0/0"}],
        });
        list["plugins"] = json!([main]);
    })?;
    let [one, two] = two_pods(&site, from_node)?;
    site.del(&one)?;
    ensure!(site.used()? == 1, "{} addresses are in use", site.used()?);
    site.call("gc", two.path())?;
    ensure!(site.used()? == 0, "{} addresses are in use", site.used()?);
    Ok(())
}

/// Every verb at 1.1.0, and no daemon: libcni's calls by cnitool, and a GC with a list, which that has not.
pub(crate) fn twill_works_over_the_newest_host_local_and_static() -> Result<()> {
    let data = tempfile::tempdir_in("/run")?;
    let host_local =
        json!({"type": "host-local", "dataDir": data.path(), "subnet": "10.77.0.0/24"});
    let fixed = json!({"type": "static", "addresses": [{"address": "10.78.0.5/24"}]});
    for (ipam, first, next) in
        [(host_local, "10.77.0.2", "10.77.0.3"), (fixed, "10.78.0.5", "10.78.0.5")]
    {
        let mut site = Site::new(|list| list["plugins"][0]["ipam"] = ipam.clone())?;
        site.lab.node_mut("node1")?.stop()?;
        lives_over(&site, [first, next]).with_context(|| ipam["type"].to_string())?;
        let reserved = reserved(data.path())?;
        ensure!(reserved.is_empty(), "reserved still: {reserved:?}");
    }
    Ok(())
}

fn lives_over(site: &Site, [first, next]: [&str; 2]) -> Result<()> {
    let has = |result: &Value, address: &str| -> Result<()> {
        ensure!(result["cniVersion"] == "1.1.0", "{result}");
        ensure!(result["ips"][0]["address"] == format!("{address}/32"), "{result}");
        ping::reaches(site.node()?, address.parse()?)
    };
    site.call("status", "/unused".as_ref())?;
    let (pod, result) = site.add("one")?;
    has(&result, first)?;
    site.call("check", pod.path())?;
    site.del(&pod)?;

    let list = fs::read_to_string(site.list_directory().join("05-twill.conflist"))?;
    let newest = programs::go_tool("cni", "host-local")?;
    let newest = newest.parent().context("a program without a directory")?;
    let runtime =
        Runtime::new(serde_json::from_str(&list)?, vec![programs::directory()?, newest.to_owned()]);
    let (node, pod) = (site.node()?, Namespace::create("two")?);
    let attachment = Attachment::pod("prod", "two", "c2", &pod.path().display().to_string());
    runtime.status(node)?;
    has(&runtime.add(node, &attachment)?, next)?;
    runtime.gc(node, &[&attachment])?;
    runtime.check(node, &attachment)?;
    ping::reaches(node, next.parse()?)?;
    runtime.gc(node, &[])?;
    ensure!(pod.ip("link show dev eth0").is_err(), "its link is there after a GC without it");
    runtime.del(node, &attachment)
}

/// The addresses that `host-local` has given away: a file for each.
fn reserved(data: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(data.join("twill"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.parse::<IpAddr>().is_ok());
    Ok(names)
}
