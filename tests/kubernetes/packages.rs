//! The ways to install beside the manifest: kustomize and Helm.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use serde_json::Value;
use twill_tests::{
    kubernetes::ApiServer,
    process::output_with_input,
    programs,
    sandbox::LABS,
    wait::{wait_for, wait_until},
};

use super::{LONG, install::calicos};

/// What Helm takes the cluster for when it only writes manifests.
pub(crate) const RELEASE: &str = "--kube-version=1.36.3";

/// Objects by kind and name.
pub(crate) type Objects = BTreeMap<String, Value>;

/// helm as the user who may do everything; whether it succeeded, and what it wrote or complained about.
pub(crate) fn helm(api: &ApiServer, arguments: &[&str]) -> Result<(bool, String)> {
    let home = Path::new(LABS).join("helm");
    fs::create_dir_all(&home)?;
    let mut command = Command::new(programs::go_tool("helm", "helm")?);
    command.env_clear().env("HOME", &home).arg("--kubeconfig").arg(api.kubeconfig());
    command.args(arguments).args(["--namespace", "twill-system"]);
    let output = api.namespace().enter(|| output_with_input(&mut command, b""))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let succeeded = output.status.success();
    Ok((succeeded, if succeeded { text(&output.stdout) } else { text(&output.stderr) }))
}

pub(crate) fn helm_done(api: &ApiServer, arguments: &[&str]) -> Result<String> {
    let (succeeded, said) = helm(api, arguments)?;
    ensure!(succeeded, "helm {}: {said}", arguments.join(" "));
    Ok(said)
}

pub(crate) fn chart() -> String {
    programs::source("conf/helm/twill").to_string_lossy().into_owned()
}

/// The objects of a manifest, as kubectl reads them.
pub(crate) fn objects(api: &ApiServer, manifest: &Path) -> Result<Objects> {
    let create = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f"];
    let text = api.kubectl().run(&[&create[..], &[&manifest.to_string_lossy()]].concat())?;
    let mut objects = Objects::new();
    for object in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
        let object = object?;
        for mut object in object["items"].as_array().cloned().unwrap_or_else(|| vec![object]) {
            // kubectl create gives everything a namespace.
            let of = object["metadata"]["namespace"].as_str().unwrap_or_default();
            let name = format!("{} {of}/{}", object["kind"], object["metadata"]["name"]);
            // The same text in another form.
            for key in ["twilld.yaml", "05-twill.conflist"] {
                if let Some(config) = object["data"][key].as_str() {
                    object["data"][key] = serde_saphyr::from_str(config)?;
                }
            }
            ensure!(objects.insert(name.clone(), object).is_none(), "{name} is there twice");
        }
    }
    Ok(objects)
}

/// Fails with the first object that differs.
fn compare(what: &str, found: &Objects, wanted: &Objects) -> Result<()> {
    ensure!(found.keys().eq(wanted.keys()), "{what}: {:?}", found.keys());
    for (name, object) in found {
        ensure!(*object == wanted[name], "{what}: {name} is {object} instead of {}", wanted[name]);
    }
    Ok(())
}

/// `kubectl kustomize` and `helm template` write the objects of the manifest; Helm all but the namespace, and
/// two annotations of its own.
pub(crate) fn kustomize_and_helm_write_the_objects_of_the_manifest(api: &ApiServer) -> Result<()> {
    let written = |name: &str, text: &str| -> Result<Objects> {
        let path = Path::new(LABS).join(name);
        fs::write(&path, text)?;
        objects(api, &path)
    };
    let mut wanted = objects(api, &programs::source("conf/install/twill.yaml"))?;
    ensure!(wanted.len() > 20, "{:?}", wanted.keys());
    let base = programs::source("conf/install");
    let text = api.kubectl().run(&["kustomize", &base.to_string_lossy()])?;
    compare("kustomize", &written("kustomize.yaml", &text)?, &wanted)?;

    wanted.retain(|name, _| !name.starts_with("\"Namespace\""));
    let text = helm_done(api, &["template", "twill", &chart(), RELEASE])?;
    let mut found = written("helm.yaml", &text)?;
    let (mut kept, mut summed) = (0, 0);
    for object in found.values_mut() {
        kept += usize::from(take(object, "/metadata", "helm.sh/resource-policy"));
        summed += usize::from(take(object, "/spec/template/metadata", "checksum/config"));
    }
    ensure!((kept, summed) == (10, 2), "{kept} definitions are kept, {summed} pods have a sum");
    compare("helm", &found, &wanted)?;

    let settings = ["image.tag=v9", "cni.confDir=/k3s/net.d", "apiServer.host=192.0.2.1"];
    let settings: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let less = ["--set", "controller.enabled=false", "--set", "crds.install=false"];
    let other = ["template", "twill", &chart(), RELEASE];
    let text = helm_done(api, &[&other[..], &settings, &less].concat())?;
    for wanted in ["localhost/twill:v9", "/k3s/net.d", "192.0.2.1"] {
        ensure!(text.contains(wanted), "{wanted} is missing: {text}");
    }
    // The installer and the daemon.
    ensure!(text.matches("192.0.2.1").count() == 2, "{text}");
    let absent = ["kind: Deployment", "kind: CustomResourceDefinition", ":0.1.0"];
    ensure!(!absent.iter().any(|absent| text.contains(absent)), "{text}");
    Ok(())
}

/// Takes away an annotation of the metadata there, and the annotations if it was the only one; whether it was
/// there.
fn take(object: &mut Value, metadata: &str, annotation: &str) -> bool {
    let metadata = object.pointer_mut(metadata).and_then(Value::as_object_mut);
    let Some(metadata) = metadata else { return false };
    let annotations = metadata.get_mut("annotations").and_then(Value::as_object_mut);
    let Some(annotations) = annotations else { return false };
    let was_there = annotations.remove(annotation).is_some();
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    was_there
}

/// A release comes, is upgraded, goes and comes again; definitions and pools stay. One over definitions of
/// somebody else is refused.
pub(crate) fn a_release_leaves_definitions_and_pools(_: &ApiServer) -> Result<()> {
    const POOL: [&str; 2] = ["--set", "pool.enabled=true"];
    let api = ApiServer::start("helm", &Path::new(LABS).join("helm-api"))?;
    let kubectl = api.kubectl();
    let chart = chart();
    let install = ["install", "twill", &chart, "--create-namespace"];

    kubectl.run_with_input(&["create", "-f", "-"], &calicos("projectcalico.org"))?;
    let (succeeded, said) = helm(&api, &install)?;
    let is_told = said.contains("ippools.projectcalico.org") && said.contains("ownership");
    ensure!(!succeeded && is_told, "{said}");
    kubectl.run(&["delete", "crd", "ippools.projectcalico.org"])?;
    let has_pools = || -> Result<bool> {
        let kinds = ["api-resources", "--api-group=projectcalico.org", "-o", "name"];
        Ok(kubectl.run(&kinds)?.contains("ippools"))
    };
    wait_until("the kind to be served no more", LONG, || Ok(!has_pools()?))?;

    let (succeeded, said) = helm(&api, &[&install[..], &POOL].concat())?;
    ensure!(!succeeded && said.contains("install the release first"), "{said}");
    let notes = helm_done(&api, &install)?;
    // The namespace is Helm's, without the label that ours has.
    let label =
        "kubectl label namespace twill-system pod-security.kubernetes.io/enforce=privileged";
    ensure!(notes.contains(label), "{notes}");
    let upgrade = ["upgrade", "twill", &chart];
    wait_until("the kind to be served", LONG, has_pools)?;
    helm_done(&api, &[&upgrade[..], &POOL].concat())?;
    let pool = || kubectl.json(&["get", "ippool", "default"]);
    ensure!(pool()?["spec"]["natOutgoing"] == true, "{}", pool()?);
    let manifest = programs::source("conf/install/twill.yaml");
    kubectl.run(&["get", "-f", &manifest.to_string_lossy()])?;

    let daemon_sets = || kubectl.run(&["get", "daemonset", "-n", "twill-system", "-o", "name"]);
    let leave = ["--reset-then-reuse-values", "--set", "uninstall=true"];
    let notes = helm_done(&api, &[&upgrade[..], &leave].concat())?;
    ensure!(notes.contains("drain first") && notes.contains("uninstallForce=true"), "{notes}");
    ensure!(daemon_sets()?.trim() == "daemonset.apps/twill-uninstall", "{}", daemon_sets()?);
    helm_done(&api, &["uninstall", "twill"])?;
    let left = kubectl.run(&["get", "daemonset,deployment,configmap", "-n", "twill-system"])?;
    ensure!(!left.contains("twill"), "{left}");
    ensure!(pool()?["metadata"]["deletionTimestamp"].is_null(), "{}", pool()?);
    helm_done(&api, &install)?;
    kubectl.run(&["get", "-f", &manifest.to_string_lossy()]).map(drop)
}

/// A claim for a node, by whoever creates it.
const CLAIM: &str = "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: 0a630000-26}\n\
                     spec: {node: node1, cidr: 10.99.0.0/26, pool: app}\n";

const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: app}\n\
                    spec: {cidr: 10.99.0.0/16}\n";

/// An Event about that pool, or in another namespace about a pod there.
fn event(namespace: &str) -> String {
    let about = match namespace {
        "default" => "apiVersion: projectcalico.org/v3, kind: IPPool, name: app".to_owned(),
        _ => format!("apiVersion: v1, kind: Pod, name: app, namespace: {namespace}"),
    };
    format!(
        "apiVersion: events.k8s.io/v1\nkind: Event\nmetadata: {{name: told, namespace: {namespace}}}\n\
         eventTime: \"2026-01-01T00:00:00.000000Z\"\naction: Look\nreason: Looked\ntype: Warning\n\
         reportingController: twill\nreportingInstance: twill\n\
         regarding: {{{about}}}\n"
    )
}

/// An overlay with another namespace: everything that has one is there, and the accounts of that namespace may do,
/// and may not do, what those of ours do.
pub(crate) fn an_overlay_has_another_namespace(_: &ApiServer) -> Result<()> {
    let overlay = Path::new(LABS).join("overlay");
    fs::create_dir_all(overlay.join("base"))?;
    for file in ["kustomization.yaml", "twill.yaml"] {
        fs::copy(programs::source("conf/install").join(file), overlay.join("base").join(file))?;
    }
    fs::write(overlay.join("kustomization.yaml"), "resources: [base]\nnamespace: net\n")?;
    let api = ApiServer::start("overlay", &Path::new(LABS).join("overlay-api"))?;
    let kubectl = api.kubectl();
    let overlay = overlay.to_string_lossy();
    let text = kubectl.run(&["kustomize", &overlay])?;
    let namespaces = text.lines().filter_map(|line| line.trim().strip_prefix("namespace: "));
    let namespaces: Vec<_> = namespaces.collect();
    ensure!(
        namespaces.len() > 10 && namespaces.iter().all(|name| *name == "net"),
        "{namespaces:?}"
    );
    ensure!(!text.contains(":twill-system:"), "an expression names the namespace: {text}");

    kubectl.run(&["apply", "--server-side", "-k", &overlay])?;
    wait_for("the kinds to be served", LONG, || {
        kubectl.run_with_input(&["apply", "-f", "-"], POOL)
    })?;
    let account =
        |namespace: &str, name: &str| format!("--as=system:serviceaccount:{namespace}:{name}");
    let create = ["create", "--dry-run=server", "-f", "-"];
    let refused = |who: &str, arguments: &[&str], input: &str, why: &str| -> Result<()> {
        let said = kubectl.refused(&[&[who], arguments].concat(), input)?;
        ensure!(said.contains(why), "{who} {arguments:?}: {said}");
        Ok(())
    };
    let daemon = account("net", "twill-node");
    wait_for("the policies", LONG, || refused(&daemon, &create, CLAIM, "bound to no node"))?;
    let controller = account("net", "twill-controller");
    let change = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"];
    let changed = POOL.replace("/16}", "/16, disabled: true}");
    let what = "may not change what an IPPool says";
    wait_for("the policies", LONG, || refused(&controller, &change, &changed, what))?;
    kubectl.run_with_input(&[&[controller.as_str()], &create[..]].concat(), &event("default"))?;
    refused(&controller, &create, &event("net"), "which are in default")?;
    // The name alone gives nobody a right.
    for (who, what) in [("twill-node", CLAIM), ("twill-controller", &event("default"))] {
        refused(&account("default", who), &create, what, "cannot create resource")?;
    }
    Ok(())
}
