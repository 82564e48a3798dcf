//! E: what stands on standard input.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use twill_tests::programs;

use super::Site;

pub(crate) fn e_09_a_network_has_a_name() -> Result<()> {
    let site = Site::new()?;
    for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        let call = |name: Value| -> Result<_> { Ok(site.call(verb)?.config("/name", name)) };
        call(Value::Null)?.run()?.refused(7, &["missing network name"])?;
        call(json!(""))?.run()?.refused(7, &["missing network name"])?;
        // As libcni reads it.
        let mut null = site.call(verb)?;
        null.netconf["name"] = Value::Null;
        null.run()?.refused(7, &["missing network name"])?;
        for name in ["a b", "-a", "a/b", "../a"] {
            let answer = call(json!(name))?.run()?;
            answer.refused(7, &["invalid characters in network name", name])?;
        }
    }
    site.call("VERSION")?.config("/name", Value::Null).run()?.object()?;
    site.untouched()
}

/// Each with its code, the field, the value and what would be right.
pub(crate) fn e_10_a_configuration_that_cannot_be_used_says_why() -> Result<()> {
    let site = Site::new()?;
    // A directory can be opened and not read.
    let mut unreadable = Command::new("sh");
    unreadable.args(["-c", "exec \"$0\" < /"]).arg(programs::find("twill")?);
    site.call("ADD")?.run_as(unreadable)?.refused(5, &["standard input"])?;
    for text in ["", "{", "[1, 2]", "null", "\"text\"", "{} {}"] {
        site.call("ADD")?.stdin(text).run()?.refused(6, &["JSON object"])?;
    }
    for (pointer, value, code, words) in [
        ("/cniVersion", json!(1), 6, vec!["cniVersion", "1"]),
        ("/mtu", json!("big"), 7, vec!["mtu", "\"big\"", "68 to 65535"]),
        ("/mtu", json!(1000), 7, vec!["mtu", "1000", "1280"]),
        ("/timeoutSeconds", json!(0), 7, vec!["timeoutSeconds", "1 to 120"]),
        ("/runDir", json!("run"), 7, vec!["runDir", "absolute"]),
        ("/ipam/mode", json!("deamon"), 7, vec!["ipam.mode", "deamon", "standalone"]),
        ("/ipam/pools", json!([]), 7, vec!["ipam.pools", "10.10.0.0/24"]),
        (
            "/ipam/pools",
            json!([{"cidr": "10.0.0.1/24"}]),
            7,
            vec!["ipam.pools[0].cidr", "10.0.0.0/24"],
        ),
    ] {
        site.call("ADD")?.config(pointer, value).run()?.refused(code, &words)?;
    }
    // All at once.
    let call = site.call("ADD")?.config("/mtu", json!("big")).config("/runDir", json!(7));
    call.run()?.refused(7, &["mtu", "runDir"])?;
    site.untouched()
}

pub(crate) fn e_17_unknown_fields_are_no_error() -> Result<()> {
    let site = Site::new()?;
    let call = site.call("ADD")?.config("/future", json!({"a": 1}));
    let answer = call.config("/ipam/asignIPv4", json!(true)).run()?;
    answer.object()?;
    // They are told, with the key that was probably meant.
    let said = answer.stderr();
    ensure!(said.contains("future") && said.contains("ipam.asignIPv4"), "{said}");
    ensure!(said.contains("assignIPv4"), "{said}");
    site.call("DEL")?.config("/future", json!({"a": 1})).run()?.silent()?;
    // What is asked for and not done is refused with key and value.
    let ranges = json!({"ipRanges": [[{"subnet": "10.20.0.0/24"}]]});
    let answer = site.call("ADD")?.config("/runtimeConfig", ranges).run()?;
    answer.refused(2, &["runtimeConfig.ipRanges", "10.20.0.0/24"])?;
    site.untouched()
}

pub(crate) fn e_18_the_runtimes_keys_are_the_runtimes() -> Result<()> {
    let site = Site::new()?;
    for verb in ["ADD", "DEL"] {
        let mut call = site
            .call(verb)?
            .config("/cniVersions", json!(["1.0.0", "1.1.0"]))
            .config("/args", json!({"cni": {"labels": [{"key": "a", "value": "b"}]}}))
            .config("/capabilities", json!({"portMappings": true}))
            .config("/runtimeConfig", json!({"portMappings": [], "dns": {"servers": []}}))
            .config("/disableCheck", json!("true"))
            .config("/disableGC", json!(true));
        call.netconf["cni.dev/valid-attachments"] = json!([]);
        let answer = call.run()?;
        ensure!(answer.0.status.success(), "{answer:?}");
        ensure!(answer.stderr().is_empty(), "{answer:?}");
    }
    site.untouched()
}
