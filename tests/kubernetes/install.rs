//! What an installation does where the cluster is somebody else's.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use twill_tests::{
    kubernetes::ApiServer, process::output_with_input, programs, sandbox::LABS, wait::wait_for,
};

use super::{
    LONG,
    controller::{Controller, with_log},
};

/// A definition as Calico has it, with a field that ours does not have.
pub(crate) fn calicos(group: &str) -> String {
    format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
         metadata: {{name: ippools.{group}}}\nspec:\n  group: {group}\n  scope: Cluster\n  \
         names: {{kind: IPPool, plural: ippools, singular: ippool, listKind: IPPoolList}}\n  \
         versions:\n  - name: v3\n    served: true\n    storage: true\n    \
         subresources: {{status: {{}}}}\n    schema:\n      \
         openAPIV3Schema:\n        type: object\n        properties:\n          \
         status: {{type: object, x-kubernetes-preserve-unknown-fields: true}}\n          spec:\n            \
         type: object\n            properties:\n              cidr: {{type: string}}\n              \
         newer: {{type: string}}\n"
    )
}

const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: theirs}\n\
                    spec: {cidr: 10.66.0.0/16, newer: kept}\n";

const SERVICE: &str = "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\n\
                       metadata: {name: v3.projectcalico.org}\n\
                       spec: {group: projectcalico.org, version: v3, groupPriorityMinimum: 1500, \
                       versionPriority: 200, service: {name: calico-api, namespace: calico}}\n";

/// A node of a cluster.
struct Host<'a> {
    api: &'a ApiServer,
    directory: std::path::PathBuf,
}

impl<'a> Host<'a> {
    fn new(api: &'a ApiServer, name: &str) -> Result<Self> {
        let directory = Path::new(LABS).join(name);
        for made in ["bin", "net.d"] {
            fs::create_dir_all(directory.join(made))?;
        }
        let kubeconfig = api.directory().join("admin.kubeconfig");
        let config =
            format!("datastore: {{type: kubernetes, kubeconfig: {}}}\n", kubeconfig.display());
        fs::write(directory.join("twilld.yaml"), config)?;
        Ok(Self { api, directory })
    }

    /// What the init container does; whether it succeeded, and what it said.
    fn install(&self) -> Result<(bool, String)> {
        let mut command = Command::new(programs::find("twilld")?);
        command.args(["--role", "install", "--config"]).arg(self.directory.join("twilld.yaml"));
        command.arg("--plugin-from").arg(programs::directory()?);
        command.arg("--conflist-from").arg(programs::source("conf/cni/05-twill.conflist"));
        command.arg("--plugin-to").arg(self.directory.join("bin"));
        command.arg("--conflist-to").arg(self.directory.join("net.d"));
        let output = self.api.namespace().enter(|| output_with_input(&mut command, b""))??;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    fn files(&self) -> Result<usize> {
        let count =
            |name: &str| -> Result<usize> { Ok(fs::read_dir(self.directory.join(name))?.count()) };
        Ok(count("bin")? + count("net.d")?)
    }
}

/// Calico's definitions or its API server keep the plugin off the nodes; without them it comes.
pub(crate) fn nothing_comes_onto_a_node_where_calico_is(_: &ApiServer) -> Result<()> {
    let api = ApiServer::start("calico", &Path::new(LABS).join("calico"))?;
    let host = Host::new(&api, "calico-host")?;
    let kubectl = api.kubectl();
    for (kind, name, manifest) in [
        ("crd", "ippools.crd.projectcalico.org", calicos("crd.projectcalico.org")),
        ("crd", "ippools.projectcalico.org", calicos("projectcalico.org")),
        ("apiservice", "v3.projectcalico.org", SERVICE.to_owned()),
    ] {
        // The API server has an APIService of this name by itself for a definition, and takes it away a moment after that.
        wait_for(&format!("{name} to be made"), LONG, || {
            kubectl.run_with_input(&["create", "-f", "-"], &manifest)
        })?;
        wait_for(&format!("{name} to be found"), LONG, || {
            let (succeeded, said) = host.install()?;
            ensure!(!succeeded && said.contains(name), "{said}");
            ensure!(said.contains("remove Calico"), "no remedy: {said}");
            Ok(())
        })?;
        ensure!(host.files()? == 0, "something was installed beside {name}");
        kubectl.run(&["delete", kind, name])?;
    }
    wait_for("the installation", LONG, || {
        let (succeeded, said) = host.install()?;
        ensure!(succeeded, "{said}");
        Ok(())
    })?;
    ensure!(host.files()? == 3, "{} files", host.files()?);

    // A node that has Twill goes on when somebody brings one later: its pods need the daemon.
    let name = "ippools.crd.projectcalico.org";
    kubectl.run_with_input(&["create", "-f", "-"], &calicos("crd.projectcalico.org"))?;
    wait_for(&format!("{name} to be told"), LONG, || {
        let (succeeded, said) = host.install()?;
        ensure!(succeeded, "it was refused: {said}");
        ensure!(said.contains(name) && said.contains("goes on"), "{said}");
        Ok(())
    })
}

/// An API server with a definition of Calico's, and a pool by it.
fn calicos_cluster(name: &str) -> Result<ApiServer> {
    let api = ApiServer::start(name, &Path::new(LABS).join(name))?;
    let kubectl = api.kubectl();
    kubectl.run_with_input(&["create", "-f", "-"], &calicos("projectcalico.org"))?;
    wait_for("the definition to be served", LONG, || {
        kubectl.run_with_input(&["apply", "-f", "-"], POOL)
    })?;
    Ok(api)
}

/// `kubectl apply --server-side` of the manifest leaves a definition of somebody else's as it is, and with it
/// what his objects say.
pub(crate) fn a_definition_of_somebody_else_is_not_taken_over(_: &ApiServer) -> Result<()> {
    let api = calicos_cluster("conflict")?;
    let kubectl = api.kubectl();
    let manifest = programs::source("conf/install/twill.yaml");
    let said =
        kubectl.refused(&["apply", "--server-side", "-f", &manifest.to_string_lossy()], "")?;
    ensure!(said.contains("conflict") && said.contains(".spec.versions"), "{said}");
    let pool = kubectl.json(&["get", "ippool", "theirs"])?;
    ensure!(pool["spec"]["newer"] == "kept", "{pool}");
    let definition = kubectl.json(&["get", "crd", "ippools.projectcalico.org"])?;
    let label = &definition["metadata"]["labels"]["app.kubernetes.io/part-of"];
    ensure!(label.is_null(), "it passes for ours: {label}");
    Ok(())
}

/// A plain `kubectl apply`, which nothing refuses, puts our definition over another's. Nodes are told all the same,
/// and what nobody has written meanwhile comes back with the definition.
pub(crate) fn a_definition_that_was_applied_over_is_told(_: &ApiServer) -> Result<()> {
    let api = calicos_cluster("over")?;
    let host = Host::new(&api, "over-host")?;
    let kubectl = api.kubectl();
    let name = "ippools.projectcalico.org";
    let manifest = programs::source("conf/install/twill.yaml");
    kubectl.run(&["apply", "-f", &manifest.to_string_lossy()])?;
    let definition = kubectl.json(&["get", "crd", name])?;
    let label = &definition["metadata"]["labels"]["app.kubernetes.io/part-of"];
    ensure!(label == "twill", "it was not taken over: {label}");
    let newer = || -> Result<serde_json::Value> {
        Ok(kubectl.json(&["get", "ippool", "theirs"])?["spec"]["newer"].clone())
    };
    wait_for("our definition to count", LONG, || {
        let newer = newer()?;
        ensure!(newer.is_null(), "{newer}");
        Ok(())
    })?;
    let (succeeded, said) = host.install()?;
    let told = format!("the definition {name} (Twill's, applied over one that was there)");
    ensure!(!succeeded && said.contains(&told), "{said}");
    ensure!(host.files()? == 0, "something was installed");
    let controller = Controller::start_beside(&api, "controller1", 9191)?;
    let result = wait_for("the controller to say so", LONG, || {
        let status = controller.get_beside(&api, "/statusz")?;
        ensure!(status.contains(&told), "{status}");
        Ok(())
    });
    with_log(&controller, result)?;

    kubectl.run_with_input(&["replace", "-f", "-"], &calicos("projectcalico.org"))?;
    wait_for("the field to be there again", LONG, || {
        let newer = newer()?;
        ensure!(newer == "kept", "{newer}");
        Ok(())
    })
}

/// A manifest that was refused in part has brought the controller. It writes nothing into Calico's objects, says
/// why, and begins when Calico is gone.
pub(crate) fn the_controller_waits_until_calico_is_gone(_: &ApiServer) -> Result<()> {
    let api = calicos_cluster("waiting")?;
    let kubectl = api.kubectl();
    let manifest = programs::source("conf/install/twill.yaml");
    let apply = ["apply", "--server-side", "-f", &manifest.to_string_lossy()];
    kubectl.refused(&apply, "")?;
    let theirs = kubectl.json(&["get", "ippool", "theirs"])?;
    let controller = Controller::start_beside(&api, "controller1", 9191)?;
    let result = (|| {
        wait_for("the controller to say what is in the way", LONG, || {
            let status = controller.get_beside(&api, "/statusz")?;
            ensure!(status.contains("the definition ippools.projectcalico.org"), "{status}");
            ensure!(status.contains("\"leads\":false"), "{status}");
            Ok(())
        })?;
        let ready = controller.get_beside(&api, "/readyz")?;
        ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        let lease = ["get", "lease", "-n", "twill-system", "twill-controller"];
        let said = kubectl.refused(&lease, "")?;
        ensure!(said.contains("NotFound"), "{said}");
        let now = kubectl.json(&["get", "ippool", "theirs"])?;
        ensure!(now == theirs, "{now} was {theirs}");

        kubectl.run(&["delete", "crd", "ippools.projectcalico.org"])?;
        kubectl.run(&apply)?;
        let own = POOL.replace("theirs", "own").replace(", newer: kept", "");
        wait_for("our definition to be served", LONG, || {
            kubectl.run_with_input(&["apply", "-f", "-"], &own)
        })?;
        wait_for("the controller to begin", LONG, || {
            let pool = kubectl.json(&["get", "ippool", "own"])?;
            let conditions = pool["status"]["conditions"].to_string();
            ensure!(conditions.contains("NoReports"), "{pool}");
            let status = controller.get_beside(&api, "/statusz")?;
            let is_well = status.contains("\"leads\":true") && status.contains("\"problems\":[]");
            ensure!(is_well, "{status}");
            Ok(())
        })
    })();
    with_log(&controller, result)
}

/// The manifest as a whole is right, in both ways that kubectl has, and applying it again changes nothing.
pub(crate) fn the_manifest_can_be_applied_again(_: &ApiServer) -> Result<()> {
    let api = ApiServer::start("manifest", &Path::new(LABS).join("manifest"))?;
    let manifest = programs::source("conf/install/twill.yaml");
    let manifest = manifest.to_string_lossy();
    let versions = || -> Result<String> {
        let columns = "custom-columns=K:.kind,N:.metadata.name,G:.metadata.generation";
        api.kubectl().run(&["get", "-f", &manifest, "--no-headers", "-o", columns])
    };
    let definitions = programs::source("conf/crds");
    let definitions = definitions.to_string_lossy();
    // As people write it who do not read on. A definition is not served at once, but no object of it is in the manifest.
    api.kubectl().run(&["apply", "-f", &manifest])?;
    let wait = ["wait", "--for=condition=Established", "--timeout=60s", "-f", &definitions];
    api.kubectl().run(&wait)?;
    let plain = versions()?;
    api.kubectl().run(&["apply", "-f", &manifest])?;
    ensure!(versions()? == plain, "{} after {plain}", versions()?);
    // The server takes kubectl for somebody else then, once.
    let apply = ["apply", "--server-side", "-f", &manifest];
    let said = api.kubectl().refused(&apply, "")?;
    ensure!(said.contains("kubectl-client-side-apply"), "{said}");
    api.kubectl().run(&[&apply[..], &["--force-conflicts"]].concat())?;
    let before = versions()?;
    ensure!(before.contains("DaemonSet") && before.contains("ConfigMap"), "{before}");
    api.kubectl().run(&["apply", "--server-side", "-f", &manifest])?;
    ensure!(versions()? == before, "{} after {before}", versions()?);
    let base = programs::source("conf/install");
    let apply = ["apply", "--server-side", "--dry-run=server", "-k", &base.to_string_lossy()];
    api.kubectl().run(&apply)?;
    // However often and in whichever way: the definitions pass for ours.
    let (succeeded, said) = Host::new(&api, "manifest-host")?.install()?;
    ensure!(succeeded, "{said}");
    Ok(())
}
