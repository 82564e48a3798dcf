//! E: what stands in the environment.

use std::process::Command;

use anyhow::{Result, ensure};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};
use twill_tests::{ping, programs};

use super::Site;

pub(crate) fn e_01_no_command_is_an_error() -> Result<()> {
    let site = Site::new()?;
    site.call("ADD")?.unset("CNI_COMMAND").run()?.refused(4, &["CNI_COMMAND"])?;
    site.call("ADD")?.set("CNI_COMMAND", "").run()?.refused(4, &["CNI_COMMAND"])?;
    site.untouched()
}

pub(crate) fn e_02_an_unknown_command_is_named() -> Result<()> {
    let site = Site::new()?;
    for command in ["FROB", "add", "ADD "] {
        let answer = site.call("ADD")?.set("CNI_COMMAND", command).run()?;
        answer.refused(4, &[&format!("unknown CNI_COMMAND: {command}")])?;
    }
    site.untouched()
}

pub(crate) fn e_03_missing_variables_are_listed() -> Result<()> {
    let site = Site::new()?;
    let needed = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
    for verb in ["ADD", "CHECK"] {
        for missing in [vec![0], vec![1], vec![2], vec![1, 2], vec![0, 1, 2]] {
            let missing: Vec<_> = missing.into_iter().map(|index: usize| needed[index]).collect();
            let listed = format!("required env variables [{}] missing", missing.join(","));
            let unset = missing.iter().fold(site.call(verb)?, |call, name| call.unset(name));
            unset.run()?.refused(4, &[&listed])?;
            let empty = missing.iter().fold(site.call(verb)?, |call, name| call.set(name, ""));
            empty.run()?.refused(4, &[&listed])?;
        }
    }
    site.untouched()
}

pub(crate) fn e_04_del_needs_no_namespace() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    let listed = "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing";
    let call = site.call("DEL")?.unset("CNI_CONTAINERID").unset("CNI_IFNAME");
    call.run()?.refused(4, &[listed])?;
    site.call("DEL")?.unset("CNI_NETNS").run()?.silent()?;
    site.as_new()
}

pub(crate) fn e_05_status_needs_no_path() -> Result<()> {
    let site = Site::new()?;
    let mut call = site.call("STATUS")?;
    call.environment.retain(|variable, _| variable == "CNI_COMMAND");
    call.run()?.silent()
}

pub(crate) fn e_06_nothing_needs_a_path_that_executes_nothing() -> Result<()> {
    let site = Site::new()?;
    let result = site.call("ADD")?.unset("CNI_PATH").run()?.object()?;
    let check = site.call("CHECK")?.unset("CNI_PATH").config("/prevResult", result);
    check.run()?.silent()?;
    site.call("DEL")?.unset("CNI_PATH").run()?.silent()
}

pub(crate) fn e_07_a_container_id_has_its_alphabet() -> Result<()> {
    let site = Site::new()?;
    for verb in ["ADD", "DEL", "CHECK"] {
        for id in ["-a", ".a", "_a", "a b", "a/b", "../a", "ä", "a\n"] {
            let answer = site.call(verb)?.set("CNI_CONTAINERID", id).run()?;
            answer.refused(4, &["invalid characters in containerID"])?;
        }
    }
    site.untouched()?;
    // Those that do not need it do not look at it.
    site.call("STATUS")?.set("CNI_CONTAINERID", "-a").run()?.silent()?;
    site.call("VERSION")?.set("CNI_CONTAINERID", "-a").run()?.object()?;
    for id in ["0", "A.b_c-d", &"f".repeat(200)] {
        site.call("ADD")?.set("CNI_CONTAINERID", id).run()?.object()?;
        site.call("DEL")?.set("CNI_CONTAINERID", id).run()?.silent()?;
    }
    Ok(())
}

pub(crate) fn e_08_an_interface_name_is_one() -> Result<()> {
    let site = Site::new()?;
    for verb in ["ADD", "DEL", "CHECK"] {
        for name in [".", "..", "a/b", "a:b", "a b", "a\tb", "abcdefghijklmnop"] {
            let answer = site.call(verb)?.set("CNI_IFNAME", name).run()?;
            answer.refused(4, &["interface name", "CNI_IFNAME"])?;
        }
    }
    site.untouched()?;
    for name in ["a", "abcdefghijklmno", "eth0.100", "net-1", "a;b", ";if=x", "a=b"] {
        site.call("ADD")?.set("CNI_IFNAME", name).run()?.object()?;
        site.pod.ip(&format!("link show dev {name}"))?;
        site.call("DEL")?.set("CNI_IFNAME", name).run()?.silent()?;
        site.untouched()?;
    }
    site.as_new()
}

pub(crate) fn e_11_the_nodes_own_namespace_is_refused_before_anything_is_done() -> Result<()> {
    let site = Site::new()?;
    let own = site.host.path().display().to_string();
    for verb in ["ADD", "CHECK"] {
        let call = site.call(verb)?.set("CNI_NETNS", &own).set("CNI_IFNAME", "pod0");
        call.run()?.refused(8, &[&own, "CNI_NETNS_OVERRIDE"])?;
        call.set("CNI_NETNS_OVERRIDE", "0").run()?.refused(8, &[])?;
    }
    site.untouched()?;
    // Who allows it gets to the next obstacle: the pod's route to the gateway, on the node.
    for allowed in ["1", "true", "TRUE"] {
        let call = |verb: &str| -> Result<_> {
            let call = site.call(verb)?.set("CNI_NETNS", &own).set("CNI_IFNAME", "pod0");
            Ok(call.set("CNI_NETNS_OVERRIDE", allowed))
        };
        call("ADD")?.run()?.refused(103, &["169.254.1.1", "pod0"])?;
        call("DEL")?.run()?.silent()?;
    }
    site.as_new()
}

/// A runtime has a lock while it waits. What nobody writes to is the worst that can be at the path.
pub(crate) fn e_11_what_is_no_namespace_keeps_no_call_waiting() -> Result<()> {
    let site = Site::new()?;
    let path = site.run_dir.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU)?;
    let fifo = path.display().to_string();
    let other_kind = "/proc/self/ns/mnt";
    for (path, word) in [(fifo.as_str(), "is not a namespace"), (other_kind, "of another kind")] {
        site.add()?;
        for verb in ["ADD", "CHECK", "DEL"] {
            let call = site.call(verb)?.set("CNI_NETNS", path);
            let mut limited = Command::new("timeout");
            limited.arg("10").arg(programs::find("twill")?);
            let answer = call.run_as(limited)?;
            match verb {
                "DEL" => answer.silent()?,
                _ => answer.refused(4, &[path, word])?,
            }
        }
        site.as_new()?;
    }
    Ok(())
}

pub(crate) fn e_12_arguments_are_pairs_of_known_keys() -> Result<()> {
    let site = Site::new()?;
    for arguments in [
        "FUTURE=1",
        "IgnoreUnknown=0;FUTURE=1",
        "K8S_POD_NAME",
        "IgnoreUnknown=1;A=b=c",
        "ignoreunknown=1;FUTURE=1",
        "k8s_pod_name=web",
        ";",
    ] {
        let answer = site.call("ADD")?.set("CNI_ARGS", arguments).run()?;
        answer.refused(4, &["CNI_ARGS", arguments])?;
    }
    site.untouched()?;
    for arguments in
        ["", "IgnoreUnknown=1;FUTURE=1", "FUTURE=1;IgnoreUnknown=TRUE", "K8S_POD_NAME="]
    {
        site.call("ADD")?.set("CNI_ARGS", arguments).run()?.object()?;
        site.call("DEL")?.set("CNI_ARGS", arguments).run()?.silent()?;
    }
    Ok(())
}

pub(crate) fn e_13_the_pods_name_comes_in_any_order() -> Result<()> {
    let site = Site::new()?;
    for arguments in [
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=dev;K8S_POD_NAME=api;K8S_POD_INFRA_CONTAINER_ID=c1;\
         K8S_POD_UID=7",
        "K8S_POD_UID=7;K8S_POD_NAME=api;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_NAMESPACE=dev;\
         IgnoreUnknown=1",
    ] {
        site.call("ADD")?.set("CNI_ARGS", arguments).run()?.object()?;
        site.host.ip("link show dev api.dev")?;
        site.call("DEL")?.set("CNI_ARGS", arguments).run()?.silent()?;
    }
    Ok(())
}

pub(crate) fn e_14_what_is_asked_for_is_given_by_precedence() -> Result<()> {
    let site = Site::new()?;
    let given = |result: &Value| result["ips"][0]["address"].clone();
    let answer = site.call("ADD")?.set("CNI_ARGS", "IP=10.20.0.1;MAC=02:00:00:00:00:01").run()?;
    let result = answer.object()?;
    ensure!(given(&result) == "10.20.0.1/32", "{result}");
    ensure!(result["interfaces"][1]["mac"] == "02:00:00:00:00:01", "{result}");
    site.call("DEL")?.set("CNI_ARGS", "IP=10.20.0.1").run()?.silent()?;
    // What the configuration says goes before the variable.
    for (pointer, wish) in [
        ("/runtimeConfig", json!({"ips": ["10.20.0.0/24"]})),
        ("/args", json!({"cni": {"ips": ["10.20.0.0"]}})),
    ] {
        let call = site.call("ADD")?.set("CNI_ARGS", "IP=10.20.0.1").config(pointer, wish);
        let result = call.run()?.object()?;
        ensure!(given(&result) == "10.20.0.0/32", "{result}");
        site.call("DEL")?.run()?.silent()?;
    }
    // So it is with the hardware address: the runtime, the caller's arguments, the pod's annotation.
    let annotation = json!({"cni.projectcalico.org/hwAddr": "02:00:00:00:00:03"});
    let annotated = json!({"io.kubernetes.cri.pod-annotations": annotation});
    let mut both = annotated.clone();
    both["mac"] = json!("02:00:00:00:00:01");
    let argument = json!({"cni": {"mac": "02:00:00:00:00:02"}});
    for (runtime, argument, mac) in [
        (both, argument.clone(), "02:00:00:00:00:01"),
        (annotated.clone(), argument, "02:00:00:00:00:02"),
        (annotated, Value::Null, "02:00:00:00:00:03"),
        (Value::Null, Value::Null, "02:00:00:00:00:04"),
    ] {
        let call = site.call("ADD")?.set("CNI_ARGS", "MAC=02:00:00:00:00:04");
        let call = call.config("/runtimeConfig", runtime).config("/args", argument);
        let result = call.run()?.object()?;
        ensure!(result["interfaces"][1]["mac"] == mac, "{mac}: {result}");
        let link = site.pod.ip("link show dev eth0")?;
        ensure!(link.contains(mac), "{mac}: {link}");
        site.call("DEL")?.run()?.silent()?;
    }
    // What cannot be had is an error that says where it was asked for.
    for (arguments, code, words) in [
        ("IP=10.99.0.1", 7, ["10.99.0.1", "no block"]),
        ("IP=10.20.0", 7, ["CNI_ARGS IP", "10.20.0"]),
        ("MAC=01:00:5e:00:00:01", 7, ["CNI_ARGS MAC", "multicast"]),
    ] {
        site.call("ADD")?.set("CNI_ARGS", arguments).run()?.refused(code, &words)?;
    }
    // DEL has to work whatever was wished.
    site.call("DEL")?.set("CNI_ARGS", "IP=10.20.0").run()?.silent()?;
    site.as_new()
}

pub(crate) fn e_15_unknown_variables_mean_nothing() -> Result<()> {
    let site = Site::new()?;
    for verb in ["ADD", "DEL"] {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let call = site.call(verb)?.set("TRACEPARENT", parent).set("BAGGAGE", "a=b");
        let answer = call.set("CNI_FUTURE", "x").set("CNI_VERSION", "9.9.9").run()?;
        ensure!(answer.0.status.success() && answer.stderr().is_empty(), "{answer:?}");
    }
    site.untouched()
}

pub(crate) fn e_16_the_plugin_works_in_the_callers_namespace() -> Result<()> {
    let site = Site::new()?;
    let result = site.add()?;
    let name = result["interfaces"][0]["name"].as_str().unwrap_or_default();
    site.host.ip(&format!("link show dev {name}"))?;
    ensure!(site.pod.ip(&format!("link show dev {name}")).is_err());
    // What comes after the pod's part is the node's again: routes, and the gateway.
    let routes = site.host.ip("route show")?;
    ensure!(routes.contains(&format!("dev {name}")) && routes.contains("169.254.1.1 dev lo"));
    for address in twill_tests::cni::addresses(&result)? {
        ping::reaches(&site.host, address)?;
    }
    site.call("DEL")?.run()?.silent()?;
    site.untouched()
}
