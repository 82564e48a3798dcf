//! The definitions themselves.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{kubernetes::ApiServer, programs};

/// The definitions as the API server has them.
fn definitions(api: &ApiServer) -> Result<Vec<Value>> {
    let list = api.kubectl().json(&["get", "crds"])?;
    let items = list["items"].as_array().context("no list")?.iter();
    Ok(items.filter(|item| item["spec"]["group"] == "projectcalico.org").cloned().collect())
}

pub(crate) fn every_definition_is_established(api: &ApiServer) -> Result<()> {
    let definitions = definitions(api)?;
    ensure!(definitions.len() == 10, "{} definitions", definitions.len());
    for definition in definitions {
        let name = &definition["metadata"]["name"];
        let conditions = definition["status"]["conditions"].as_array().context("no conditions")?;
        let holds = |kind: &str| {
            let condition = conditions.iter().find(|condition| condition["type"] == kind);
            condition.is_some_and(|condition| condition["status"] == "True")
        };
        ensure!(holds("Established") && holds("NamesAccepted"), "{name}: {conditions:?}");
        ensure!(!holds("NonStructuralSchema"), "{name}: {conditions:?}");
    }
    Ok(())
}

/// By what an install tells ours from Calico's: the label, and an APIService without a server.
pub(crate) fn definitions_can_be_told_from_calicos(api: &ApiServer) -> Result<()> {
    for definition in definitions(api)? {
        let label = &definition["metadata"]["labels"]["app.kubernetes.io/part-of"];
        ensure!(label == "twill", "{}: {label}", definition["metadata"]["name"]);
    }
    let service = api.kubectl().json(&["get", "apiservice", "v3.projectcalico.org"])?;
    let label = &service["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"];
    ensure!(label == "true" && service["spec"]["service"].is_null(), "{service:#}");
    Ok(())
}

/// Warnings are how the API server tells of formats that it does not know, and of the like.
pub(crate) fn the_api_server_warns_of_nothing(api: &ApiServer) -> Result<()> {
    let directory = programs::source("conf/crds");
    let definitions = directory.to_string_lossy();
    let arguments =
        ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "--filename"];
    let arguments = [&arguments[..], &[&definitions]].concat();
    let output = api.kubectl().output(&arguments, "")?;
    let warnings = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && warnings.is_empty(), "{warnings}");
    Ok(())
}

pub(crate) fn explain_shows_the_documentation(api: &ApiServer) -> Result<()> {
    for (path, text) in [
        ("ippool.spec.cidr", "with no bit set behind the prefix length"),
        ("bgppeer.spec.peerIP", "Where the peer is."),
        ("bgppeer.spec.nextHopMode", "Keep: The one that was learned."),
        ("caliconodestatus.status.objects", "What the node makes of each object"),
        ("blockrequest.status.granted", "The part that it got."),
    ] {
        let shown = api.kubectl().run(&["explain", path])?;
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(shown.contains(text), "{path}: {shown}");
    }
    Ok(())
}
