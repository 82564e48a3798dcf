//! What values of the Helm chart, and overlays, make of the objects.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{kubernetes::ApiServer, programs, sandbox::LABS, wait::wait_for};

use super::{
    LONG,
    packages::{Objects, RELEASE, chart, helm, helm_done, objects},
};

/// Nobody makes it here, where no controllers are.
const ACCOUNT: &str =
    "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: secured}\n";

const NO_CRDS: &str = "crds.install=false";

/// The objects of the chart with these settings.
fn rendered(api: &ApiServer, name: &str, settings: &[&str]) -> Result<Objects> {
    let chart = chart();
    let template = ["template", "twill", &chart, RELEASE, "--set", NO_CRDS];
    let text = helm_done(api, &[&template[..], settings].concat())?;
    let path = Path::new(LABS).join(format!("{name}.yaml"));
    fs::write(&path, text)?;
    objects(api, &path)
}

fn of<'a>(objects: &'a Objects, kind: &str, name: &str) -> Result<&'a Value> {
    let mut objects = objects.values();
    let found = objects.find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.with_context(|| format!("there is no {kind} {name}"))
}

fn pod(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]
}

/// The network configuration: MTU, families, versions, and plugins behind ours, in their order. Daemons are
/// replaced when it changes, and then alone.
pub(crate) fn the_network_is_of_the_values(api: &ApiServer) -> Result<()> {
    let plain = rendered(api, "plain", &[])?;
    let chained = r#"cni.chained=[{"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "tuning"}]"#;
    let settings = [
        ["--set", "cni.mtu=1450"],
        ["--set", "cni.assignIPv4=false"],
        ["--set", "cni.assignIPv6=true"],
        ["--set-json", r#"cni.versions=["1.0.0"]"#],
        ["--set-json", chained],
    ];
    let other = rendered(api, "network", &settings.concat())?;
    let conflist = &of(&other, "ConfigMap", "twill")?["data"]["05-twill.conflist"];
    let wanted = json!({
        "cniVersion": "1.0.0", "cniVersions": ["1.0.0"], "name": "twill",
        "plugins": [
            {"type": "twill", "mtu": 1450,
             "capabilities": {"io.kubernetes.cri.pod-annotations": true, "ips": true, "mac": true},
             "ipam": {
                "type": "twill-ipam", "mode": "daemon", "assignIPv4": false, "assignIPv6": true,
            }},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "tuning"},
        ],
    });
    ensure!(*conflist == wanted, "{conflist}");
    let checksum = |objects: &Objects, kind: &str, name: &str| -> Result<Value> {
        let object = of(objects, kind, name)?;
        Ok(object["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone())
    };
    for (kind, name, changes) in
        [("DaemonSet", "twill-node", true), ("Deployment", "twill-controller", false)]
    {
        let (before, after) = (checksum(&plain, kind, name)?, checksum(&other, kind, name)?);
        ensure!(before.is_string() && (before != after) == changes, "{name}: {before}, {after}");
    }
    Ok(())
}

/// The values of an older release hide the defaults of this chart, where `--reuse-values` has them. A daemon without
/// rights, or a network configuration that nothing can read, would come of that.
pub(crate) fn what_there_is_no_doing_without_has_to_have_a_value(api: &ApiServer) -> Result<()> {
    let chart = chart();
    for name in ["node.capabilities", "cni.versions", "cni.assignIPv4", "cni.assignIPv6"] {
        let setting = format!("{name}=null");
        let template = ["template", "twill", &chart, RELEASE, "--set", &setting];
        let (succeeded, said) = helm(api, &template)?;
        let is_told = said.contains(&format!("{name} has no value"))
            && said.contains("take --reset-then-reuse-values");
        ensure!(!succeeded && is_told, "{name}: {said}");
    }
    Ok(())
}

/// Rights, the pace of an upgrade, and the ports that keep two of a kind off one node.
pub(crate) fn pods_are_of_the_values(api: &ApiServer) -> Result<()> {
    let settings = [
        ["--set-json", r#"node.capabilities=["NET_ADMIN", "NET_BIND_SERVICE", "SYS_ADMIN"]"#],
        ["--set", "node.seLinuxOptions.type=spc_t"],
        ["--set", "node.updateStrategy.rollingUpdate.maxUnavailable=10%"],
        ["--set", "controller.replicas=2"],
        ["--set", "config.metrics.listen=0.0.0.0:9290"],
        ["--set", "config.controller.listen=[::]:9291"],
    ];
    let found = rendered(api, "pods", &settings.concat())?;
    let node = of(&found, "DaemonSet", "twill-node")?;
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}});
    ensure!(node["spec"]["updateStrategy"] == strategy, "{}", node["spec"]["updateStrategy"]);
    ensure!(pod(node)["securityContext"]["seLinuxOptions"]["type"] == "spc_t", "{}", pod(node));
    let daemon = &pod(node)["containers"][0];
    let rights = json!({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_BIND_SERVICE", "SYS_ADMIN"]});
    ensure!(daemon["securityContext"]["capabilities"] == rights, "{daemon}");
    let installer = &pod(node)["initContainers"][0]["securityContext"]["capabilities"];
    ensure!(*installer == json!({"drop": ["ALL"]}), "{installer}");
    let controller = of(&found, "Deployment", "twill-controller")?;
    ensure!(controller["spec"]["replicas"] == 2, "{controller}");
    for (object, port) in [(node, 9290), (controller, 9291)] {
        let container = &pod(object)["containers"][0];
        // The port of a pod on the host's network is one of the host.
        ensure!(pod(object)["hostNetwork"] == true, "{}", pod(object));
        ensure!(container["ports"][0]["containerPort"] == port, "{container}");
        for probe in ["readinessProbe", "livenessProbe"] {
            ensure!(container[probe]["httpGet"]["port"] == port, "{container}");
        }
    }

    let chart = chart();
    for listen in ["10.0.0.5:9190", "[2001:db8::5]:9190", "[::1]:9190", "9190"] {
        let setting = format!("config.metrics.listen={listen}");
        let template = ["template", "twill", &chart, RELEASE, "--set", &setting];
        let (succeeded, said) = helm(api, &template)?;
        ensure!(!succeeded && said.contains("no probe would reach it"), "{listen}: {said}");
    }
    Ok(())
}

/// Where Pod Security holds a namespace to `baseline`, no pod of ours comes; the label that the documentation names
/// is enough, and the manifest's own namespace has it. Such a pod has a port of its host, so there is one on a node.
pub(crate) fn a_namespace_has_to_allow_our_pods(api: &ApiServer) -> Result<()> {
    const ENFORCE: &str = "pod-security.kubernetes.io/enforce";
    let kubectl = api.kubectl();
    let found = rendered(api, "security", &[])?;
    let installed = objects(api, &programs::source("conf/install/twill.yaml"))?;
    let label = &of(&installed, "Namespace", "twill-system")?["metadata"]["labels"][ENFORCE];
    ensure!(label == "privileged", "{label}");
    kubectl.run(&["create", "namespace", "secured"])?;
    let both = [("DaemonSet", "twill-node", 9190), ("Deployment", "twill-controller", 9191)];
    for (kind, name, port) in both {
        // The controller that makes the pods is not there, and what it would make is asked for here.
        let mut spec = pod(of(&found, kind, name)?).clone();
        spec["serviceAccountName"] = json!("default");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "secured"},
            "spec": spec,
        });
        let label = |level: &str| {
            let label = format!("{ENFORCE}={level}");
            kubectl.run(&["label", "--overwrite", "namespace", "secured", &label])
        };
        let create = ["create", "--dry-run=server", "-o", "json", "-f", "-"];
        label("privileged")?;
        let made = wait_for("the account of the namespace", LONG, || {
            kubectl.run_with_input(&["apply", "-f", "-"], ACCOUNT)?;
            kubectl.run_with_input(&create, &pod.to_string())
        })?;
        let made: Value = serde_json::from_str(&made)?;
        let ports = &made["spec"]["containers"][0]["ports"];
        ensure!(ports[0]["hostPort"] == port, "{ports}");
        label("baseline")?;
        wait_for("the refusal", LONG, || {
            let said = kubectl.refused(&create, &pod.to_string())?;
            ensure!(said.contains("violates PodSecurity"), "{said}");
            Ok(())
        })?;
    }
    Ok(())
}

/// What takes Twill off the nodes has the image, the namespace and the directories that daemons had: by a value of the
/// chart, in their place, and by an overlay.
pub(crate) fn what_uninstalls_is_as_what_was_installed(api: &ApiServer) -> Result<()> {
    let settings = [
        ["--set", "uninstall=true"],
        ["--set", "image.repository=registry.example.com/twill"],
        ["--set", "image.tag=v9"],
        ["--set", "cni.confDir=/k3s/net.d"],
        ["--set", "imagePullSecrets[0].name=pull"],
    ];
    let found = rendered(api, "leave", &settings.concat())?;
    let forced = [&settings.concat()[..], &["--set", "uninstallForce=true"]].concat();
    let forced = rendered(api, "force", &forced)?;
    let stays = [("initContainers", &[][..]), ("containers", &["--stay"][..])];
    for (objects, force) in [(&found, &[][..]), (&forced, &["--force"][..])] {
        let leave = pod(of(objects, "DaemonSet", "twill-uninstall")?);
        for (containers, stay) in stays {
            let wanted = [&["/usr/bin/twilld", "--role", "uninstall"][..], force, stay].concat();
            ensure!(leave[containers][0]["command"] == json!(wanted), "{leave}");
        }
    }
    let pods: Vec<_> = found.values().filter(|o| o["spec"]["template"].is_object()).collect();
    ensure!(pods.len() == 1, "{:?}", found.keys());
    let leave = of(&found, "DaemonSet", "twill-uninstall")?;
    ensure!(leave["metadata"]["namespace"] == "twill-system", "{leave}");
    for containers in ["initContainers", "containers"] {
        let image = &pod(leave)[containers][0]["image"];
        ensure!(*image == "registry.example.com/twill:v9", "{image}");
    }
    ensure!(pod(leave)["imagePullSecrets"][0]["name"] == "pull", "{}", pod(leave));
    ensure!(pod(leave).to_string().contains(r#""path":"/k3s/net.d""#), "{}", pod(leave));

    let overlay = Path::new(LABS).join("leave");
    fs::create_dir_all(overlay.join("base"))?;
    for file in ["kustomization.yaml", "uninstall.yaml"] {
        let from = programs::source("conf/uninstall").join(file);
        fs::copy(&from, overlay.join("base").join(file))?;
    }
    let text = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [base]\n\
                namespace: net\nimages: [{name: localhost/twill, newName: registry.example.com/twill, \
                newTag: v9}]\n";
    fs::write(overlay.join("kustomization.yaml"), text)?;
    let text = api.kubectl().run(&["kustomize", &overlay.to_string_lossy()])?;
    let images = text.matches("image: registry.example.com/twill:v9\n").count();
    ensure!(images == 2 && text.contains("namespace: net\n"), "{text}");
    Ok(())
}
