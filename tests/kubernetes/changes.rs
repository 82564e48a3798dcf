//! What may change, by whom.

use anyhow::{Result, ensure};
use serde_json::json;
use twill_tests::kubernetes::ApiServer;

/// A pool of this name, a claim of its first block, and a request for a part of that.
fn objects(name: &str, octet: u8) -> String {
    format!(
        "apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {{name: {name}}}
spec: {{cidr: 10.{octet}.0.0/16}}
---
apiVersion: projectcalico.org/v3
kind: BlockAffinity
metadata: {{name: 0a{octet:02x}0000-26}}
spec: {{node: node1, cidr: 10.{octet}.0.0/26, pool: {name}}}
---
apiVersion: projectcalico.org/v3
kind: BlockRequest
metadata: {{name: {name}}}
spec: {{node: node2, block: 10.{octet}.0.0/26, pool: {name}, length: 29}}
"
    )
}

pub(crate) fn what_never_changes_is_refused(api: &ApiServer) -> Result<()> {
    let kubectl = api.kubectl();
    let objects = objects("never", 78);
    kubectl.run_with_input(&["create", "-f", "-"], &objects)?;
    for (object, patch, expected) in [
        (
            "ippool/never",
            r#"{"spec": {"cidr": "10.178.0.0/16"}}"#,
            "spec.cidr: Invalid value: \"10.178.0.0/16\": cannot change while the pool exists; make \
             another pool",
        ),
        (
            "ippool/never",
            r#"{"spec": {"blockSize": 28}}"#,
            "spec.blockSize: Invalid value: cannot change from 26 to 28 while the pool exists; make another pool",
        ),
        (
            "blockaffinity/0a4e0000-26",
            r#"{"spec": {"cidr": "10.78.0.64/26"}}"#,
            "spec.cidr: Invalid value: \"10.78.0.64/26\": a claim is of one block for ever",
        ),
        (
            "blockaffinity/0a4e0000-26",
            r#"{"spec": {"node": "node2"}}"#,
            "spec.node: Invalid value: \"node2\": a claim does not change hands",
        ),
        (
            "blockrequest/never",
            r#"{"spec": {"length": 30}}"#,
            "a request does not change; make another one",
        ),
    ] {
        let said = kubectl.refused(&["patch", object, "--type=merge", "-p", patch], "")?;
        ensure!(said.contains(expected), "{object} {patch}: {said}");
    }
    // Who is asked lends of what it was asked for.
    let status = ["patch", "blockrequest/never", "--subresource=status", "--type=merge", "-p"];
    for part in ["10.78.0.64/29", "10.78.0.0/26", "10.0.0.0/20"] {
        let patch = format!(r#"{{"status": {{"granted": "{part}"}}}}"#);
        let said = kubectl.refused(&[&status[..], &[&patch]].concat(), "")?;
        ensure!(said.contains(&format!("{part} is no part of 10.78.0.0/26")), "{said}");
    }
    kubectl.run(&[&status[..], &[r#"{"status": {"granted": "10.78.0.8/29"}}"#]].concat())?;
    kubectl.run_with_input(&["delete", "-f", "-"], &objects).map(drop)
}

pub(crate) fn what_may_change_changes(api: &ApiServer) -> Result<()> {
    let kubectl = api.kubectl();
    let objects = objects("may", 79);
    kubectl.run_with_input(&["create", "-f", "-"], &objects)?;
    for (object, patch) in [
        // 26 is what it is without the field.
        (
            "ippool/may",
            r#"{"spec": {"blockSize": 26, "disabled": true, "nodeSelector": "has(rack)"}}"#,
        ),
        ("ippool/may", r#"{"spec": {"blockSize": null}}"#),
        (
            "blockaffinity/0a4f0000-26",
            concat!(
                r#"{"spec": {"state": "pendingDeletion", "delegations": "#,
                r#"[{"cidr": "10.79.0.8/29", "node": "node2", "request": "may"}]}}"#
            ),
        ),
    ] {
        let said = kubectl.run(&["patch", object, "--type=merge", "-p", patch])?;
        ensure!(said.ends_with(" patched\n"), "{object} {patch}: {said}");
    }
    kubectl.run_with_input(&["delete", "-f", "-"], &objects).map(drop)
}

/// A write of the object leaves its status alone, a write of the status leaves the rest alone, and
/// conditions of different types stand side by side.
pub(crate) fn status_is_a_thing_apart(api: &ApiServer) -> Result<()> {
    let kubectl = api.kubectl();
    let objects = objects("status", 80);
    kubectl.run_with_input(&["create", "-f", "-"], &objects)?;
    let patch = |part: &[&str], object: &str, patch: &str| {
        kubectl.run(&[&["patch", object, "--type=merge", "-p", patch], part].concat())
    };
    let condition = |status: &str| json!({"type": "Allocatable", "status": status, "reason": "OK", "message": ""});
    let status = json!({"nodes": {"accepted": 3, "refused": 1}, "conditions": [condition("True")]});
    let both =
        |disabled: bool| json!({"spec": {"disabled": disabled}, "status": status}).to_string();

    patch(&[], "ippool/status", &both(true))?;
    let pool = kubectl.json(&["get", "ippool/status"])?;
    ensure!(pool["status"].is_null() && pool["spec"]["disabled"] == true, "{pool:#}");

    patch(&["--subresource=status"], "ippool/status", &both(false))?;
    let pool = kubectl.json(&["get", "ippool/status"])?;
    ensure!(pool["status"]["nodes"]["accepted"] == 3, "{pool:#}");
    ensure!(pool["spec"]["disabled"] == true, "{pool:#}");

    let other = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: status}\nstatus: \
                 {conditions: [{type: Drained, status: Unknown, reason: Busy, message: ''}]}\n";
    let apply =
        ["apply", "--server-side", "--subresource=status", "--field-manager=test", "-f", "-"];
    kubectl.run_with_input(&apply, other)?;
    let pool = kubectl.json(&["get", "ippool/status"])?;
    let conditions = pool["status"]["conditions"].as_array().map(Vec::len);
    ensure!(conditions == Some(2), "{pool:#}");

    let twice = json!({"status": {"conditions": [condition("True"), condition("False")]}});
    let twice = twice.to_string();
    let arguments =
        ["patch", "ippool/status", "--type=merge", "--subresource=status", "-p", &twice];
    let said = kubectl.refused(&arguments, "")?;
    ensure!(said.contains("Duplicate value"), "{said}");

    patch(
        &["--subresource=status"],
        "blockrequest/status",
        r#"{"status": {"granted": "10.80.0.8/29"}}"#,
    )?;
    let arguments = ["get", "blockrequest/status", "-o", "jsonpath={.status.granted}"];
    let granted = kubectl.run(&arguments)?;
    ensure!(granted == "10.80.0.8/29", "{granted}");
    kubectl.run_with_input(&["delete", "-f", "-"], &objects).map(drop)
}
