//! Manifests that people have already.

use anyhow::{Result, ensure};
use twill_tests::{kubernetes::ApiServer, programs};

/// Namespaces that the manifests name.
const NAMESPACES: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: dev}\n---\n\
                          apiVersion: v1\nkind: Namespace\nmetadata: {name: prod}\n";

/// The manifests that every release has to take as they stand, byte by byte. The one of kind
/// CiliumNetworkPolicy is not among them: its kind is not ours to define, and without Cilium's CRDs
/// no API server takes it.
const SEEDS: [(&str, &str); 7] = [
    ("ippool app-pool", include_str!("seeds/ippool-app.yaml")),
    ("bgppeer peer-rack1", include_str!("seeds/bgppeer-rack1.yaml")),
    ("bgppeer peer-tor-switch", include_str!("seeds/bgppeer-tor-switch.yaml")),
    ("ipamconfig default", include_str!("seeds/ipamconfig-default.yaml")),
    (
        "-n dev networkpolicy allow-frontend-to-backend",
        include_str!("seeds/networkpolicy-allow-frontend-to-backend.yaml"),
    ),
    (
        "-n prod networkpolicy cross-ns-access",
        include_str!("seeds/networkpolicy-cross-ns-access.yaml"),
    ),
    (
        "-n dev networkpolicy deny-all-ingress",
        include_str!("seeds/networkpolicy-deny-all-ingress.yaml"),
    ),
];

pub(crate) fn seed_manifests_apply(api: &ApiServer) -> Result<()> {
    let kubectl = api.kubectl();
    kubectl.run_with_input(&["apply", "-f", "-"], NAMESPACES)?;
    for (object, text) in SEEDS {
        let output = kubectl.output(&["apply", "-f", "-"], text)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && complaint.is_empty(), "{object}: {complaint}");
        let object: Vec<_> = object.split(' ').collect();
        kubectl.json(&[&["get"], &object[..]].concat())?;
        let again = kubectl.run_with_input(&["apply", "-f", "-"], text)?;
        ensure!(again.ends_with("unchanged\n"), "{object:?}: {again}");
        kubectl.run(&[&["delete"], &object[..]].concat())?;
    }
    Ok(())
}

pub(crate) fn samples_apply(api: &ApiServer) -> Result<()> {
    let samples = programs::source("conf/samples");
    let arguments = ["apply", "--dry-run=server", "--filename", &samples.to_string_lossy()];
    api.kubectl().run(&arguments).map(drop)
}
