//! O: what a call prints.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::json;
use twill_tests::{netns::Namespace, programs};

use super::Site;
use crate::plugin::one_node;

pub(crate) fn o_01_add_prints_one_object_and_logs_elsewhere() -> Result<()> {
    let site = Site::new()?;
    let log = site.run_dir.path().join("twill.log");
    let call = site.call("ADD")?.config("/logLevel", json!("trace"));
    let answer = call.config("/logFile", json!(log)).run()?;
    answer.object()?;
    ensure!(answer.stdout().lines().count() == 1, "{answer:?}");
    ensure!(answer.stderr().contains("ADD lab/c1/eth0"), "{answer:?}");
    ensure!(std::fs::read_to_string(log)?.contains("ADD lab/c1/eth0"));
    // One that nobody reads is none.
    let fifo = site.run_dir.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let call = site.call("STATUS")?.config("/logLevel", json!("trace"));
    let mut limited = Command::new("timeout");
    limited.arg("10").arg(programs::find("twill")?);
    let answer = call.config("/logFile", json!(fifo)).run_as(limited)?;
    answer.silent()?;
    ensure!(answer.stderr().contains("STATUS lab/"), "{answer:?}");
    site.call("DEL")?.run()?.silent()
}

pub(crate) fn o_02_the_other_verbs_print_nothing() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    for verb in ["CHECK", "STATUS", "GC", "DEL"] {
        let mut call = site.call(verb)?;
        if verb == "GC" {
            // With a pod to be removed.
            call.netconf["cni.dev/valid-attachments"] = json!([]);
        }
        let answer = call.run()?;
        answer.silent().with_context(|| verb.to_owned())?;
        ensure!(answer.stderr().is_empty(), "{answer:?}");
        if verb == "GC" {
            site.untouched()?;
            site.add()?;
        }
    }
    site.as_new()
}

pub(crate) fn o_03_any_failure_is_one_error_object() -> Result<()> {
    let site = Site::new()?;
    let nowhere = site.call("ADD")?.set("CNI_NETNS", "/run/netns/nobody");
    nowhere.run()?.refused(4, &["/run/netns/nobody"])?;
    site.call("ADD")?.stdin("{").run()?.refused(6, &[])?;
    site.call("CHECK")?.run()?.refused(7, &["prevResult"])?;
    // Variables that are no text at all.
    let call = site.call("ADD")?;
    let mut bytes = Command::new("sh");
    bytes
        .args(["-c", "CNI_CONTAINERID=$(printf 'a\\377') exec \"$0\""])
        .arg(programs::find("twill")?);
    call.run_as(bytes)?.refused(4, &["CNI_CONTAINERID", "UTF-8"])?;
    // A directory that cannot be used.
    let call = site.call("ADD")?.config("/runDir", json!("/proc/twill"));
    call.run()?.refused(5, &["runDir"])?;
    site.untouched()
}

pub(crate) fn o_04_an_answer_that_nobody_reads_is_a_failure() -> Result<()> {
    let site = Site::new()?;
    let mut full = Command::new("sh");
    full.args(["-c", "exec \"$0\" >/dev/full"]).arg(programs::find("twill")?);
    let answer = site.call("ADD")?.run_as(full)?;
    ensure!(!answer.0.status.success(), "{answer:?}");
    for word in ["standard output", "No space left", "10.20.0."] {
        ensure!(answer.stderr().contains(word), "no {word:?} in {answer:?}");
    }
    // The runtime calls DEL then.
    site.call("DEL")?.run()?.silent()?;
    site.as_new()
}

/// The codes that the specification defines, and those from 100 on which are ours.
pub(crate) fn o_05_each_failure_has_its_code() -> Result<()> {
    let site = Site::new()?;
    let absent = json!({"type": "twill-ipam", "mode": "daemon"});
    let own = site.host.path().display().to_string();
    let add = || site.call("ADD");
    for (call, code) in [
        (add()?.config("/cniVersion", json!("2.0.0")), 1),
        (site.call("CHECK")?.config("/cniVersion", json!("0.3.1")), 1),
        (add()?.config("/runtimeConfig", json!({"ipRanges": [[{"subnet": "10.0.0.0/8"}]]})), 2),
        (add()?.unset("CNI_IFNAME"), 4),
        (add()?.config("/runDir", json!("/proc/twill")), 5),
        (add()?.stdin("text"), 6),
        (add()?.config("/mtu", json!(1)), 7),
        (add()?.set("CNI_ARGS", "IP=10.99.0.1"), 7),
        (add()?.set("CNI_NETNS", &own), 8),
        (add()?.config("/ipam", absent.clone()).config("/timeoutSeconds", json!(1)), 11),
        (site.call("STATUS")?.config("/ipam", absent), 50),
        (add()?.config("/ipam/ipv4Pools", json!(["10.99.0.0/24"])), 100),
        (add()?.set("CNI_IFNAME", "lo"), 103),
    ] {
        call.run()?.refused(code, &[])?;
    }
    site.untouched()?;
    let pods = (0..3)
        .map(|number| Namespace::create(format!("full{number}")))
        .collect::<Result<Vec<_>>>()?;
    for (number, pod) in pods.iter().enumerate() {
        let mut attachment = site.attachment(&format!("full{number}"));
        attachment.netns = pod.path().display().to_string();
        let answer = site.call_for("ADD", &attachment)?.run()?;
        if number < 2 {
            answer.object()?;
        } else {
            answer.refused(101, &["10.20.0.0/31"])?;
        }
    }
    Ok(())
}

/// Code 11 is for the runtime to pass on; before that the plugin has waited itself.
pub(crate) fn o_06_add_waits_for_a_daemon_before_it_says_try_again() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.bare_pod("node1", "web")?;
    lab.node_mut("node1")?.kill9()?;
    let node = lab.node("node1")?;
    let call = super::Call::of(node.runtime(), node.namespace(), "ADD", pod.attachment())?;
    let start = std::time::Instant::now();
    let answer = call.config("/timeoutSeconds", json!(2)).run()?;
    answer.refused(11, &["twilld.sock"])?;
    let took = start.elapsed();
    ensure!((1..2 + 10).contains(&took.as_secs()), "it gave up after {took:?}");
    Ok(())
}
