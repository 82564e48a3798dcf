//! V: versions of the specification.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::programs;

use super::Site;

/// A route with what a result of 1.1.0 alone has a place for.
fn measured() -> Value {
    json!([{"dst": "192.0.2.0/24", "mtu": 1400, "advmss": 1360, "priority": 10}])
}

/// A result has that route, and of its fields these alone.
fn has_route(result: &Value, keys: &[&str]) -> Result<()> {
    let routes = result["routes"].as_array().context("no routes")?;
    let route = routes.iter().find(|route| route["dst"] == "192.0.2.0/24");
    let fields = route.and_then(Value::as_object).with_context(|| format!("{result}"))?;
    let mut found: Vec<&str> = fields.keys().map(String::as_str).collect();
    found.sort_unstable();
    ensure!(found == keys, "{found:?} in {result}");
    Ok(())
}

/// All that there are.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

pub(crate) fn v_01_version_prints_what_is_supported() -> Result<()> {
    let answer = Site::new()?.call("VERSION")?.run()?.object()?;
    ensure!(answer["cniVersion"].is_string(), "{answer}");
    ensure!(answer["supportedVersions"].is_array(), "{answer}");
    Ok(())
}

pub(crate) fn v_02_version_needs_nothing_but_its_name() -> Result<()> {
    let site = Site::new()?;
    let mut call = site.call("VERSION")?.stdin("");
    call.environment.retain(|variable, _| variable == "CNI_COMMAND");
    ensure!(call.run()?.object()?["cniVersion"] == "1.1.0");
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$0\" <&-"]).arg(programs::find("twill")?);
    call.run_as(closed)?.object()?;
    ensure!(call.stdin("no JSON").run()?.object()?["cniVersion"] == "1.1.0");
    Ok(())
}

pub(crate) fn v_03_version_echoes_the_callers_version() -> Result<()> {
    let site = Site::new()?;
    for version in VERSIONS.into_iter().chain(["9.9.9"]) {
        let call = site.call("VERSION")?.stdin(&json!({"cniVersion": version}).to_string());
        ensure!(call.run()?.object()?["cniVersion"] == version);
    }
    Ok(())
}

pub(crate) fn v_04_supported_versions_are_exact() -> Result<()> {
    let answer = Site::new()?.call("VERSION")?.run()?.object()?;
    ensure!(answer["supportedVersions"] == json!(VERSIONS), "{answer}");
    Ok(())
}

pub(crate) fn v_05_no_version_is_the_first_one() -> Result<()> {
    let site = Site::new()?;
    let result = site.call("ADD")?.config("/cniVersion", Value::Null).run()?.object()?;
    ensure!(result["cniVersion"] == "0.1.0" && result["ip4"]["ip"].is_string(), "{result}");
    site.call("DEL")?.config("/cniVersion", Value::Null).run()?.silent()?;
    // So is one that is `null` or empty.
    for none in [Value::Null, json!("")] {
        let mut call = site.call("ADD")?;
        call.netconf["cniVersion"] = none;
        ensure!(call.run()?.object()?["cniVersion"] == "0.1.0", "{}", call.netconf);
        call.set("CNI_COMMAND", "DEL").run()?.silent()?;
    }
    site.untouched()
}

pub(crate) fn v_06_an_unknown_version_is_refused_with_those_known() -> Result<()> {
    let site = Site::new()?;
    for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        let answer = site.call(verb)?.config("/cniVersion", json!("9.9.9")).run()?;
        answer.refused(1, &["incompatible CNI versions", "9.9.9", "0.3.1", "1.1.0"])?;
        ensure!(answer.error()?.message == "incompatible CNI versions");
    }
    site.untouched()
}

pub(crate) fn v_07_a_result_has_the_version_of_its_configuration() -> Result<()> {
    let site = Site::new()?;
    for version in VERSIONS {
        let call = site.call("ADD")?.config("/cniVersion", json!(version));
        ensure!(call.run()?.object()?["cniVersion"] == version);
        let error = call.clone().config("/mtu", json!("big")).run()?;
        error.refused(7, &["mtu"])?;
        let error: Value = serde_json::from_str(&error.stdout())?;
        ensure!(error["cniVersion"] == version, "{error}");
        // Those of variables, too, for which the configuration is not looked at.
        for wrong in [
            call.clone().unset("CNI_COMMAND"),
            call.clone().set("CNI_COMMAND", "FROB"),
            call.clone().unset("CNI_IFNAME"),
            call.set("CNI_CONTAINERID", "-a"),
        ] {
            let error = wrong.run()?;
            error.refused(4, &[])?;
            let error: Value = serde_json::from_str(&error.stdout())?;
            ensure!(error["cniVersion"] == version, "{error}");
        }
    }
    // Where there is none that can be read, it is the newest.
    for text in ["", "{", "{\"cniVersion\": \"9.9.9\"}"] {
        let error = site.call("ADD")?.unset("CNI_COMMAND").stdin(text).run()?;
        error.refused(4, &["CNI_COMMAND"])?;
        let error: Value = serde_json::from_str(&error.stdout())?;
        ensure!(error["cniVersion"] == "1.1.0", "{error}");
    }
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn v_08_the_oldest_results_have_one_address_of_each_family() -> Result<()> {
    let site = Site::new()?;
    for version in ["0.1.0", "0.2.0"] {
        let result = site.call("ADD")?.config("/cniVersion", json!(version)).run()?.object()?;
        for (key, length, gateway, route) in
            [("ip4", "/32", "169.254.1.1", "0.0.0.0/0"), ("ip6", "/128", "fe80::1", "::/0")]
        {
            let family = &result[key];
            ensure!(family["ip"].as_str().is_some_and(|ip| ip.ends_with(length)), "{result}");
            ensure!(family["gateway"] == gateway, "{result}");
            ensure!(family["routes"] == json!([{"dst": route, "gw": gateway}]), "{result}");
        }
        let keys = result.as_object().context("no object")?.keys();
        let newer = ["interfaces", "ips", "routes"];
        ensure!(keys.into_iter().all(|key| !newer.contains(&key.as_str())), "{result}");
    }
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn v_09_results_up_to_0_4_tell_the_family_and_no_mtu() -> Result<()> {
    let site = Site::new()?;
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        let call = site.call("ADD")?.config("/cniVersion", json!(version));
        let result = call.config("/ipam/routes", measured()).run()?.object()?;
        has_route(&result, &["dst", "gw"])?;
        ensure!(result["ips"][0]["version"] == "4", "{result}");
        ensure!(result["ips"][1]["version"] == "6", "{result}");
        for interface in result["interfaces"].as_array().context("no interfaces")? {
            for key in ["mtu", "socketPath", "pciID"] {
                ensure!(interface.get(key).is_none(), "{result}");
            }
        }
    }
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn v_10_a_result_of_1_0_has_no_field_of_1_1() -> Result<()> {
    let site = Site::new()?;
    let call = site.call("ADD")?.config("/ipam/routes", measured());
    let result = call.clone().config("/cniVersion", json!("1.0.0")).run()?.object()?;
    has_route(&result, &["dst", "gw"])?;
    // The same pod's, as the newest version has it.
    has_route(&call.run()?.object()?, &["advmss", "dst", "gw", "mtu", "priority"])?;
    for ip in result["ips"].as_array().context("no ips")? {
        ensure!(ip.get("version").is_none(), "{result}");
    }
    for interface in result["interfaces"].as_array().context("no interfaces")? {
        ensure!(interface.get("mtu").is_none(), "{result}");
    }
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn v_11_a_previous_result_without_version_has_the_configurations() -> Result<()> {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let site = Site::of_version(version)?;
        site.add()?;
        let check = site.call("CHECK")?;
        ensure!(check.netconf["prevResult"]["cniVersion"] == version);
        check.config("/prevResult/cniVersion", Value::Null).run()?.silent()?;
        site.call("DEL")?.config("/prevResult/cniVersion", Value::Null).run()?.silent()?;
    }
    Ok(())
}
