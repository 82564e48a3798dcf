//! The move of a cluster from Calico, by the commands of docs/install.md.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use twill_tests::{
    kubernetes::ApiServer,
    process::{check, output_with_input},
    programs,
    sandbox::LABS,
    wait::wait_for,
};

use super::{LONG, served};

/// The kinds that Calico's own manifest defines in its older API group, and that Twill uses.
const KINDS: [(&str, &str); 6] = [
    ("IPPool", "ippools"),
    ("IPReservation", "ipreservations"),
    ("BGPPeer", "bgppeers"),
    ("BGPConfiguration", "bgpconfigurations"),
    ("BGPFilter", "bgpfilters"),
    ("IPAMConfig", "ipamconfigs"),
];

/// As that cluster has them, annotations of Calico's included.
const OBJECTS: &str = "\
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata:
  name: default-ipv4-ippool
  annotations: {projectcalico.org/metadata: '{\"uid\":\"6d3c\",\"creationTimestamp\":\"2026-01-01T00:00:00Z\"}'}
spec:
  allowedUses: [Workload, Tunnel]
  blockSize: 26
  cidr: 10.66.0.0/16
  ipipMode: Always
  natOutgoing: true
  nodeSelector: all()
  vxlanMode: Never
---
apiVersion: crd.projectcalico.org/v1
kind: IPReservation
metadata: {name: printers}
spec: {reservedCIDRs: [10.66.0.0/29]}
---
apiVersion: crd.projectcalico.org/v1
kind: BGPPeer
metadata: {name: rack1}
spec: {asNumber: 64513, filters: [ours], nodeSelector: rack == 'r1', peerIP: 192.0.2.1}
---
apiVersion: crd.projectcalico.org/v1
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64512, logSeverityScreen: Info, nodeToNodeMeshEnabled: false}
---
apiVersion: crd.projectcalico.org/v1
kind: BGPFilter
metadata: {name: ours}
spec: {exportV4: [{action: Accept, cidr: 10.66.0.0/16, matchOperator: In}]}
---
apiVersion: crd.projectcalico.org/v1
kind: IPAMConfig
metadata: {name: default}
spec: {autoAllocateBlocks: true, maxBlocksPerHost: 0, strictAffinity: true}
";

fn definition((kind, plural): (&str, &str)) -> String {
    let singular = kind.to_lowercase();
    format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
         metadata: {{name: {plural}.crd.projectcalico.org}}\nspec:\n  group: crd.projectcalico.org\n  \
         scope: Cluster\n  names: {{kind: {kind}, plural: {plural}, singular: {singular}, \
         listKind: {kind}List}}\n  versions:\n  - name: v1\n    served: true\n    storage: true\n    \
         schema:\n      openAPIV3Schema: {{type: object, x-kubernetes-preserve-unknown-fields: true}}\n---\n"
    )
}

/// Objects of Calico's older API group, which its plain manifest uses, are taken out, checked, and made again under
/// Twill's definitions.
pub(crate) fn a_cluster_of_calicos_keeps_its_objects(_: &ApiServer) -> Result<()> {
    let page = "docs/install.md";
    let take_out = programs::documented(page, "for kind in ippools")?;
    let make_again = programs::documented(page, "kubectl twill create")?;
    let directory = Path::new(LABS).join("moving");
    let api = ApiServer::start("moving", &directory.join("api"))?;
    for (name, program) in [
        ("kubectl", programs::go_tool("kubernetes", "kubectl")?),
        ("kubectl-twill", programs::find("twillctl")?),
    ] {
        symlink(program, directory.join(name)).with_context(|| format!("cannot link {name}"))?;
    }
    let shell = |script: &str| -> Result<String> {
        let mut command = Command::new("/bin/sh");
        command.env_clear().env("PATH", format!("{}:/usr/bin:/bin", directory.display()));
        command.env("HOME", &directory).env("KUBECONFIG", api.kubeconfig());
        command.current_dir(&directory).args(["-c", script]);
        let output = api.namespace().enter(|| output_with_input(&mut command, b""))??;
        check(script, &output)
    };
    let kubectl = api.kubectl();
    let definitions = KINDS.map(definition).concat();
    kubectl.run_with_input(&["create", "-f", "-"], &definitions)?;
    wait_for("the older kinds to be served", LONG, || {
        kubectl.run_with_input(&["apply", "-f", "-"], OBJECTS)
    })?;
    let said = shell(&take_out)?;
    let valid = said.lines().filter(|line| line.ends_with(" is valid")).count();
    ensure!(valid == KINDS.len(), "{said}");

    kubectl.run_with_input(&["delete", "-f", "-"], &definitions)?;
    let manifest = programs::source("conf/install/twill.yaml");
    kubectl.run(&["apply", "--server-side", "-f", &manifest.to_string_lossy()])?;
    served(&api)?;
    // What people would try first.
    let objects = fs::canonicalize(directory.join("objects.yaml"))?;
    let said = kubectl.refused(&["apply", "-f", &objects.to_string_lossy()], "")?;
    ensure!(said.contains("no matches for kind"), "{said}");
    let said = shell(&make_again)?;
    let made = said.lines().filter(|line| line.ends_with(" created")).count();
    ensure!(made == KINDS.len(), "{said}");
    let pool = kubectl.json(&["get", "ippool", "default-ipv4-ippool"])?;
    ensure!(
        pool["spec"]["cidr"] == "10.66.0.0/16" && pool["spec"]["ipipMode"] == "Always",
        "{pool}"
    );
    let config = kubectl.json(&["get", "ipamconfig", "default"])?;
    ensure!(config["spec"]["strictAffinity"] == true, "{config}");
    let filter = kubectl.json(&["get", "bgpfilter", "ours"])?;
    let rules = json!([{"action": "Accept", "cidr": "10.66.0.0/16", "matchOperator": "In"}]);
    ensure!(filter["spec"]["exportV4"] == rules, "{filter}");
    kubectl
        .run(&["get", "ipreservation/printers", "bgppeer/rack1", "bgpconfiguration/default"])
        .map(drop)
}
