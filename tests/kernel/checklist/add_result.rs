//! A: what the result of an ADD says, and whether it is true.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{cni, ping, programs};

use super::{
    Call, Site,
    delegate::{WITNESS, plugin},
};

/// The fields of a result, as far as they are lists.
fn list<'a>(result: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    result[key].as_array().with_context(|| format!("no {key} in {result}"))
}

pub(crate) fn a_04_both_ends_are_listed() -> Result<()> {
    for version in ["0.3.1", "1.0.0", "1.1.0"] {
        let site = Site::of_version(version)?;
        let result = site.add()?;
        let [host, inside] = list(&result, "interfaces")?.as_slice() else {
            anyhow::bail!("not two interfaces: {result}")
        };
        ensure!(host.get("sandbox").is_none_or(|sandbox| sandbox == ""), "{result}");
        ensure!(inside["sandbox"] == site.attachment("c1").netns.as_str(), "{result}");
        ensure!(inside["name"] == "eth0", "{result}");
        let name = host["name"].as_str().context("no name")?;
        let link = site.host.ip(&format!("link show dev {name}"))?;
        // Whose it is can be read there.
        ensure!(link.contains("alias") && link.contains("c1"), "{link}");
        site.call("DEL")?.run()?.silent()?;
    }
    Ok(())
}

pub(crate) fn a_05_addresses_belong_to_the_pods_end() -> Result<()> {
    let site = Site::new()?;
    let result = site.add()?;
    let ips = list(&result, "ips")?;
    ensure!(ips.len() == 2, "{result}");
    let shown = site.pod.ip_json("address show dev eth0")?;
    for (ip, length) in ips.iter().zip(["/32", "/128"]) {
        ensure!(ip["interface"] == 1, "{result}");
        let address = ip["address"].as_str().context("no address")?;
        let plain =
            address.strip_suffix(length).with_context(|| format!("{address} is no host"))?;
        let infos = shown[0]["addr_info"].as_array().context("no addresses")?;
        ensure!(infos.iter().any(|info| info["local"] == plain), "{address} is not in {infos:?}");
    }
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn a_06_a_pod_has_eth0_with_an_address() -> Result<()> {
    let site = Site::new()?;
    let result = site.add()?;
    ensure!(list(&result, "interfaces")?[1]["name"] == "eth0", "{result}");
    for address in cni::addresses(&result)? {
        ping::reaches(&site.host, address)?;
    }
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn a_07_routes_are_default_routes_with_their_gateway() -> Result<()> {
    let site = Site::new()?;
    let result = site.add()?;
    let expected = json!([
        {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
        {"dst": "::/0", "gw": "fe80::1"},
    ]);
    ensure!(result["routes"] == expected, "{result}");
    ensure!(result["ips"][0]["gateway"] == "169.254.1.1", "{result}");
    ensure!(result["ips"][1]["gateway"] == "fe80::1", "{result}");
    let routes = site.pod.ip("route show")?;
    ensure!(routes.contains("default via 169.254.1.1 dev eth0"), "{routes}");
    let routes = site.pod.ip("-6 route show")?;
    ensure!(routes.contains("default via fe80::1 dev eth0"), "{routes}");
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn a_08_dns_is_passed_on_or_left_out() -> Result<()> {
    let site = Site::new()?;
    let dns = json!({"nameservers": ["192.0.2.53"], "search": ["example.org"]});
    let call = || site.call("ADD");
    ensure!(call()?.run()?.object()?.get("dns").is_none());
    ensure!(call()?.config("/dns", json!({})).run()?.object()?.get("dns").is_none());
    ensure!(call()?.config("/dns", dns.clone()).run()?.object()?["dns"] == dns);
    // A runtime has other names for it, and sends empty lists where the pod has nothing to say.
    let empty = json!({"servers": [], "searches": [], "options": []});
    for (said, expected) in [
        (
            json!({"servers": ["192.0.2.54"], "searches": ["example.net"], "options": ["ndots:2"]}),
            json!({"nameservers": ["192.0.2.54"], "search": ["example.net"], "options": ["ndots:2"]}),
        ),
        (
            json!({"servers": ["192.0.2.54"], "searches": []}),
            json!({"nameservers": ["192.0.2.54"]}),
        ),
        (empty, dns.clone()),
        (json!({}), dns.clone()),
    ] {
        let call =
            call()?.config("/dns", dns.clone()).config("/runtimeConfig", json!({"dns": said}));
        let result = call.run()?.object()?;
        ensure!(result["dns"] == expected, "{said}: {result}");
    }
    let call = call()?.config("/runtimeConfig", json!({"dns": {"servers": "192.0.2.54"}}));
    call.run()?.refused(7, &["runtimeConfig.dns.servers", "192.0.2.54"])?;
    site.call("DEL")?.run()?.silent()
}

/// The MTU and the hardware address of both ends are the links'; the MTUs, the node's first.
fn says_what_is(site: &Site, result: &Value) -> Result<[u64; 2]> {
    let [host, inside] = list(result, "interfaces")?.as_slice() else {
        anyhow::bail!("not two interfaces: {result}")
    };
    let name = host["name"].as_str().context("no name")?;
    for (said, link) in [
        (host, site.host.ip_json(&format!("link show dev {name}"))?),
        (inside, site.pod.ip_json("link show dev eth0")?),
    ] {
        ensure!(said["mac"] == link[0]["address"], "{said} is not {link:?}");
        ensure!(said["mtu"] == link[0]["mtu"], "{said} is not {link:?}");
    }
    let mtu = |interface: &Value| interface["mtu"].as_u64().context("no mtu");
    Ok([mtu(host)?, mtu(inside)?])
}

pub(crate) fn a_14_the_result_is_what_the_kernel_has() -> Result<()> {
    let site = Site::new()?;
    for (asked, given) in [(0, 1500), (1400, 1400)] {
        let result = site.call("ADD")?.config("/mtu", json!(asked)).run()?.object()?;
        ensure!(says_what_is(&site, &result)? == [given; 2], "{result}");
        site.call("CHECK")?.config("/prevResult", result).run()?.silent()?;
        site.call("DEL")?.run()?.silent()?;
    }
    Ok(())
}

/// Without `mtu` it is the uplink's, whoever gives the address; with it, the uplink's does not matter.
pub(crate) fn a_14_the_mtu_is_the_uplinks_in_every_mode() -> Result<()> {
    let site = Site::new()?;
    // The uplink of a node without a daemon is where it sends what is for the world.
    site.host.ip("route add default via 192.168.2.1 dev uplink")?;
    let witness = plugin(&site, WITNESS)?.display().to_string();
    let host_local = json!({"type": "host-local", "dataDir": site.run_dir.path().join("theirs"),
        "subnet": "10.77.0.0/24"});
    // Debian's knows no 1.1.0, and a result of 1.0.0 has no place for an MTU.
    let modes = [
        ("1.1.0", Value::Null, ""),
        ("1.1.0", json!({"type": "witness"}), witness.as_str()),
        ("1.0.0", host_local, programs::REFERENCE_PLUGINS),
    ];
    for uplink in [9000, 1400] {
        site.host.ip(&format!("link set uplink mtu {uplink}"))?;
        for (version, ipam, path) in &modes {
            for (asked, given) in [(Value::Null, uplink), (json!(0), uplink), (json!(1300), 1300)] {
                let call = |verb: &str| -> Result<Call<'_>> {
                    let call = site.call(verb)?.config("/cniVersion", json!(version));
                    let call = call.config("/mtu", asked.clone()).set("CNI_PATH", path);
                    Ok(if ipam.is_null() { call } else { call.config("/ipam", ipam.clone()) })
                };
                let result = call("ADD")?.run()?.object()?;
                let mtus = if *version == "1.1.0" {
                    says_what_is(&site, &result)?
                } else {
                    mtus_of_links(&site, &result)?
                };
                ensure!(mtus == [given; 2], "{ipam} and mtu {asked}: {mtus:?}");
                call("DEL")?.run()?.silent()?;
            }
        }
    }
    site.host.ip("link set uplink mtu 1500")?;
    site.host.ip("route del default")?;
    site.as_new()
}

/// The MTU of a pod's link at both ends, the node's first.
fn mtus_of_links(site: &Site, result: &Value) -> Result<[u64; 2]> {
    let name = result["interfaces"][0]["name"].as_str().context("no name")?;
    let mtu = |links: Vec<Value>| links[0]["mtu"].as_u64().context("no mtu");
    Ok([
        mtu(site.host.ip_json(&format!("link show dev {name}"))?)?,
        mtu(site.pod.ip_json("link show dev eth0")?)?,
    ])
}

/// The configuration, the uplink, or a later plugin: what has changed since the first ADD is not made again.
pub(crate) fn a_14_a_repeated_add_tells_what_the_link_has_by_now() -> Result<()> {
    let site = Site::new()?;
    let add = |mtu: u32| site.call("ADD")?.config("/mtu", json!(mtu)).run()?.object();
    ensure!(says_what_is(&site, &add(1400)?)? == [1400; 2]);
    ensure!(says_what_is(&site, &add(0)?)? == [1400; 2]);
    let asked = json!({"mac": "02:00:00:00:00:05"});
    let again = site.call("ADD")?.config("/mtu", json!(1400)).config("/runtimeConfig", asked);
    says_what_is(&site, &again.run()?.object()?)?;
    // As `tuning` does it.
    site.pod.ip("link set eth0 mtu 1300 address 02:00:00:00:00:07")?;
    let result = add(1400)?;
    ensure!(says_what_is(&site, &result)? == [1400, 1300], "{result}");
    site.call("CHECK")?.config("/prevResult", result).run()?.silent()?;
    site.call("DEL")?.run()?.silent()?;
    site.as_new()
}
