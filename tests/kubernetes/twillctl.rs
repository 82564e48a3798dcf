//! `twillctl` on the API server, and as kubectl's plugin.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    kubernetes::ApiServer,
    netns::Namespace,
    process::{check, output_with_input},
    programs,
    wait::wait_for,
};

use super::{
    LONG,
    nodes::{PEER, POOL, STRICT, Site, block_of},
};

/// `twillctl` as one user, in a namespace that reaches the API server.
pub(crate) struct Ctl<'a> {
    namespace: &'a Namespace,
    /// What every command line begins with.
    options: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl<'a> Ctl<'a> {
    pub(crate) fn new(api: &'a ApiServer) -> Self {
        Self::with(api.namespace(), api.kubeconfig())
    }

    pub(crate) fn with(namespace: &'a Namespace, kubeconfig: &Path) -> Self {
        let option = |name: &str, value: String| vec![name.to_owned(), value];
        let kubeconfig = option("--kubeconfig", kubeconfig.display().to_string());
        // No daemon is to be found there.
        let socket = option("--socket", "/nonexistent/twilld.sock".to_owned());
        Self { namespace, options: [kubeconfig, socket].concat(), environment: Vec::new() }
    }

    /// With a variable in its environment, which is empty else.
    pub(crate) fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    fn output(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = Command::new(programs::find("twillctl")?);
        command.env_clear().envs(self.environment.iter().cloned());
        command.args(&self.options).args(arguments);
        self.namespace.enter(|| output_with_input(&mut command, input.as_bytes()))?
    }

    pub(crate) fn run(&self, arguments: &[&str], input: &str) -> Result<String> {
        check(&format!("twillctl {}", arguments.join(" ")), &self.output(arguments, input)?)
    }

    /// One call that has to fail with status 1; all that it printed.
    pub(crate) fn refused(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.output(arguments, input)?;
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        let text = text.concat();
        ensure!(output.status.code() == Some(1), "{arguments:?}: {:?}: {text}", output.status);
        Ok(text)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat(), "")?;
        serde_json::from_str(&text)
            .with_context(|| format!("{arguments:?} printed no JSON: {text}"))
    }
}

/// Below the API server's directory, which goes with the server.
pub(crate) fn scratch(api: &ApiServer, name: &str) -> Result<PathBuf> {
    let path = api.directory().join(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// The manifests of `conf/samples`, by names of this test's own, and those of kinds that they lack.
fn manifests() -> Result<String> {
    let mut all = String::new();
    for file in fs::read_dir(programs::source("conf/samples"))? {
        let text = fs::read_to_string(file?.path())?;
        let name = text.lines().find(|line| line.starts_with("  name: ")).unwrap_or_default();
        all += &text.replacen(name, &name.replace("name: ", "name: ctl-"), 1);
        all += "---\n";
    }
    all += "apiVersion: v1\nkind: Node\nmetadata:\n  name: ctl-node\n  annotations:\n    \
            projectcalico.org/IPv4Address: 192.168.2.11/24\n    projectcalico.org/ASNumber: '64512'\n---\n\
            apiVersion: projectcalico.org/v3\nkind: IPReservation\nmetadata: {name: ctl-printers}\n\
            spec: {reservedCIDRs: [10.10.0.1/32, 10.10.1.0/24]}\n---\n\
            apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: node.ctl}\n\
            spec: {logSeverityScreen: Info, asNumber: '1.1'}\n---\n\
            apiVersion: v1\nkind: Secret\nmetadata: {name: ctl-bgp}\nstringData: {tor: s3cret}\n";
    Ok(all)
}

/// The same manifests look the same, wherever they are.
pub(crate) fn tables_are_those_of_files(api: &ApiServer) -> Result<()> {
    let ctl = Ctl::new(api);
    let manifests = manifests()?;
    let resources = scratch(api, "ctl-files")?.display().to_string();
    let files = Ctl { options: vec!["--resources".to_owned(), resources], ..Ctl::new(api) };
    let applied = ctl.run(&["apply", "-f", "-"], &manifests)?;
    ensure!(applied == files.run(&["apply", "-f", "-"], &manifests)?, "{applied}");
    ensure!(applied.lines().count() == 8 && !applied.contains("unchanged"), "{applied}");
    let again = ctl.run(&["apply", "-f", "-"], &manifests)?;
    ensure!(again.lines().all(|line| line.ends_with(" unchanged")), "{again}");

    for object in [
        "ippool ctl-app-pool",
        "bgppeers ctl-peer-rack1 ctl-peer-tor-switch",
        "ipamconfig ctl-default",
        "nodes ctl-node",
        "ipreservation ctl-printers",
        "bgpconfig node.ctl",
        "secret ctl-bgp",
    ] {
        for format in ["table", "wide", "name"] {
            let line: Vec<_> =
                ["get"].into_iter().chain(object.split(' ')).chain(["-o", format]).collect();
            let (there, here) = (ctl.run(&line, "")?, files.run(&line, "")?);
            ensure!(there == here, "{line:?}:\n{there}of files:\n{here}");
        }
    }
    let node = ctl.run(&["get", "node", "ctl-node", "-o", "wide"], "")?;
    ensure!(node.contains("64512") && node.contains("192.168.2.11"), "{node}");
    // A name as it is printed names the object.
    let names =
        ctl.run(&["get", "bgppeers", "ctl-peer-rack1", "ctl-peer-tor-switch", "-o", "name"], "")?;
    let peers: Vec<&str> = names.lines().collect();
    let again = [&["get"], &peers[..], &["ippool/ctl-app-pool", "-o", "name"]].concat();
    ensure!(ctl.run(&again, "")? == format!("{names}IPPool/ctl-app-pool\n"), "{names}");
    ctl.run(&["label", peers[0], "rack=r1"], "")?;
    ctl.run(&["patch", peers[0], "-p", "metadata: {labels: {rack: null}}"], "")?;
    // What is printed can be applied.
    let pool = ctl.run(&["get", "ippool", "ctl-app-pool", "-o", "yaml"], "")?;
    ensure!(pool.contains("resourceVersion") && !pool.contains("managedFields"), "{pool}");
    ctl.run(&["apply", "-f", "-"], &pool)?;
    let deleted = ctl.run(&["delete", "-f", "-"], &manifests)?;
    ensure!(deleted.lines().all(|line| line.ends_with(" deleted")), "{deleted}");
    ensure!(ctl.run(&["delete", "-f", "-", "--skip-not-exists"], &manifests)?.is_empty(), "again");
    Ok(())
}

fn pool(name: &str, cidr: &str, more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
         spec: {{cidr: {cidr}{more}}}\n---\n"
    )
}

/// create, apply, delete; several objects, of which one is refused; a namespace; a dry run.
pub(crate) fn manifests_are_written_and_taken_away(api: &ApiServer) -> Result<()> {
    let ctl = Ctl::new(api);
    let first = pool("ctl-one", "10.61.0.0/24", "");
    let both = first.clone() + &pool("ctl-two", "10.62.0.0/24", "");
    let done = ctl.run(&["create", "-f", "-", "--dry-run"], &first)?;
    ensure!(done == "IPPool/ctl-one created (dry run)\n", "{done}");
    ensure!(ctl.run(&["create", "-f", "-"], &first)? == "IPPool/ctl-one created\n", "first");
    let done = ctl.refused(&["create", "-f", "-"], &both)?;
    ensure!(done.starts_with("IPPool/ctl-two created\n"), "{done}");
    ensure!(done.contains("error: <stdin>:1: IPPool/ctl-one: it is there already"), "{done}");
    ensure!(done.contains("1 of 2 objects failed"), "{done}");

    // What is wrong is told by our reader, with its line, before the server is asked.
    let wrong = both.replace("10.62.0.0/24", "10.62.0.1/24");
    let done = ctl.refused(&["apply", "-f", "-"], &wrong)?;
    ensure!(
        done.contains("error: <stdin>:9: spec.cidr") && done.contains("10.62.0.0/24"),
        "{done}"
    );
    ensure!(done.contains("nothing was done"), "{done}");
    // What only the server knows: the others are applied.
    let moved =
        pool("ctl-one", "10.63.0.0/24", "") + &pool("ctl-two", "10.62.0.0/24", ", disabled: true");
    let done = ctl.refused(&["apply", "-f", "-"], &moved)?;
    ensure!(
        done.contains("IPPool/ctl-two configured") && done.contains("IPPool/ctl-one: "),
        "{done}"
    );

    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                  metadata: {name: ctl-deny}\nspec: {podSelector: {}, policyTypes: [Ingress]}\n";
    // Kinds that Twill does not use have a namespace, which the command line may name.
    let done = ctl.run(&["apply", "-n", "kube-public", "-f", "-"], policy)?;
    ensure!(done == "NetworkPolicy/ctl-deny created\n", "{done}");
    api.kubectl().run(&["get", "-n", "kube-public", "networkpolicy", "ctl-deny"])?;
    ctl.run(&["delete", "-n", "kube-public", "-f", "-"], policy)?;
    let done = ctl.refused(&["apply", "-n", "nowhere", "-f", "-"], policy)?;
    ensure!(done.contains("namespaces \"nowhere\" not found"), "{done}");

    // A claim is held until its node gives it back.
    let claim = "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\n\
                 metadata: {name: 0a3d0000-26, finalizers: [twill.projectcalico.org/claim]}\n\
                 spec: {node: ctl-gone, cidr: 10.61.0.0/26, pool: ctl-one}\n";
    ctl.run(&["create", "-f", "-"], claim)?;
    let done = ctl.run(&["delete", "blockaffinity", "0a3d0000-26"], "")?;
    ensure!(
        done.contains("marked for deletion") && done.contains("twill.projectcalico.org/claim"),
        "{done}"
    );
    ensure!(ctl.run(&["get", "affinity", "0a3d0000-26"], "")?.contains("ctl-gone"), "it is there");
    // The node is no node any more.
    let done = ctl.run(&["ipam", "release", "--node", "ctl-gone"], "")?;
    ensure!(done == "Released 10.61.0.0/26 of node ctl-gone\n", "{done}");
    let done = ctl.refused(&["get", "affinity", "0a3d0000-26"], "")?;
    ensure!(done.contains("no BlockAffinity 0a3d0000-26 in https://"), "{done}");
    ctl.run(&["delete", "pool", "ctl-one", "ctl-two"], "").map(drop)
}

/// patch, label, `ipam configure`: only what is named changes.
pub(crate) fn a_part_of_an_object_is_changed(api: &ApiServer) -> Result<()> {
    let ctl = Ctl::new(api);
    ctl.run(&["apply", "-f", "-"], &pool("ctl-part", "10.64.0.0/24", ""))?;
    let patch = ["patch", "ippool", "ctl-part", "-p"];
    let done = ctl.run(&[&patch[..], &["spec: {disabled: true}"]].concat(), "")?;
    ensure!(done == "IPPool/ctl-part patched\n", "{done}");
    let done = ctl.run(&[&patch[..], &["spec: {disabled: true}"]].concat(), "")?;
    ensure!(done == "IPPool/ctl-part unchanged\n", "{done}");
    let operations = r#"[{"op": "remove", "path": "/spec/disabled"}]"#;
    ctl.run(&[&patch[..], &[operations, "--type", "json"]].concat(), "")?;
    let done = ctl.refused(&[&patch[..], &["spec: {blockSize: 99}"]].concat(), "")?;
    ensure!(done.contains("spec.blockSize: 99: a block of an IPv4 pool is /20 to /32"), "{done}");

    let label = ["label", "ippool", "ctl-part"];
    ctl.run(&[&label[..], &["rack=r1", "env=prod"]].concat(), "")?;
    let done = ctl.refused(&[&label[..], &["rack=r2"]].concat(), "")?;
    ensure!(done.contains("--overwrite"), "{done}");
    ctl.run(&[&label[..], &["rack=r2", "--overwrite"]].concat(), "")?;
    ctl.run(&[&label[..], &["env-"]].concat(), "")?;
    let pool_now = ctl.json(&["get", "ippool", "ctl-part"])?;
    ensure!(pool_now["metadata"]["labels"] == json!({"rack": "r2"}), "{pool_now}");
    ensure!(pool_now["spec"]["cidr"] == "10.64.0.0/24", "{pool_now}");
    ensure!(pool_now["spec"]["disabled"] != true, "{pool_now}");

    // What patch wrote is this program's own: apply may change it again.
    ctl.run(&[&patch[..], &["spec: {disabled: true}"]].concat(), "")?;
    let enabled = pool("ctl-part", "10.64.0.0/24", ", disabled: false");
    let done = ctl.run(&["apply", "-f", "-"], &enabled)?;
    ensure!(done == "IPPool/ctl-part configured\n", "{done}");
    ctl.run(&["delete", "pool", "ctl-part"], "").map(drop)
}

/// replace with a version that is outdated, and apply over fields of others.
pub(crate) fn what_others_changed_is_not_lost(api: &ApiServer) -> Result<()> {
    let ctl = Ctl::new(api);
    ctl.run(&["create", "-f", "-"], &pool("ctl-race", "10.65.0.0/24", ""))?;
    let read = ctl.run(&["get", "ippool", "ctl-race", "-o", "yaml"], "")?;
    let patch = r#"{"spec": {"disabled": true}}"#;
    api.kubectl().run(&["patch", "ippool", "ctl-race", "--type=merge", "-p", patch])?;
    let done = ctl.refused(&["replace", "-f", "-"], &read)?;
    ensure!(done.contains("IPPool/ctl-race: it has changed since it was read"), "{done}");

    let enabled = pool("ctl-race", "10.65.0.0/24", ", disabled: false, nodeSelector: has(a)");
    let done = ctl.refused(&["apply", "-f", "-"], &enabled)?;
    ensure!(done.contains("kubectl-patch") && done.contains("--force-conflicts"), "{done}");
    ctl.run(&["apply", "--force-conflicts", "-f", "-"], &enabled)?;
    // Without a version it replaces what is there now, and takes away what the manifest lacks.
    let done = ctl.run(&["replace", "-f", "-"], &pool("ctl-race", "10.65.0.0/24", ""))?;
    ensure!(done == "IPPool/ctl-race replaced\n", "{done}");
    let pool_now = ctl.json(&["get", "ippool", "ctl-race"])?;
    ensure!(pool_now["spec"]["nodeSelector"] != "has(a)", "{pool_now}");
    ctl.run(&["delete", "pool", "ctl-race"], "")?;
    let done = ctl.refused(&["replace", "-f", "-"], &pool("ctl-race", "10.65.0.0/24", ""))?;
    ensure!(done.contains("there is no IPPool/ctl-race in https://"), "{done}");
    Ok(())
}

/// What `get` printed can be applied: also when the objects are gone, and when the controller has written their status
/// since. `replace` minds which object it was.
pub(crate) fn what_was_printed_can_be_applied(api: &ApiServer) -> Result<()> {
    let ctl = Ctl::new(api);
    let both = pool("ctl-back", "10.69.0.0/24", "") + &pool("ctl-again", "10.69.1.0/24", "");
    ctl.run(&["create", "-f", "-"], &both)?;
    let one = ctl.run(&["get", "ippool", "ctl-back", "-o", "yaml"], "")?;
    let list = ctl.run(&["get", "ippool", "ctl-back", "ctl-again", "-o", "json"], "")?;
    ensure!(one.contains("uid: ") && list.contains("\"uid\""), "{one}{list}");
    ctl.run(&["delete", "-f", "-"], &both)?;
    let done = ctl.run(&["apply", "-f", "-"], &one)?;
    ensure!(done == "IPPool/ctl-back created\n", "{done}");
    let done = ctl.run(&["apply", "-f", "-"], &list)?;
    ensure!(done.contains("IPPool/ctl-again created\n"), "{done}");
    let said = ctl.refused(&["replace", "-f", "-"], &one)?;
    ensure!(said.contains("IPPool/ctl-back: it was deleted, and made anew"), "{said}");

    let one = ctl.run(&["get", "ippool", "ctl-back", "-o", "yaml"], "")?;
    let status = r#"{"status": {"nodes": {"accepted": 1}}}"#;
    let patch = ["patch", "ippool", "ctl-back", "--subresource=status", "--type=merge", "-p"];
    api.kubectl().run(&[&patch[..], &[status]].concat())?;
    ensure!(one.contains("disabled: false"), "{one}");
    ctl.run(&["apply", "-f", "-"], &one.replace("disabled: false", "disabled: true"))?;
    let pool_now = ctl.json(&["get", "ippool", "ctl-back"])?;
    ensure!(pool_now["spec"]["disabled"] == true, "{pool_now}");
    ensure!(pool_now["status"]["nodes"]["accepted"] == 1, "{pool_now}");
    ctl.run(&["delete", "-f", "-"], &both).map(drop)
}

/// What nodes and the controller have against an object is in the wide table, before what they have not.
pub(crate) fn refusals_are_in_the_wide_table(api: &ApiServer) -> Result<()> {
    let ctl = Ctl::new(api);
    let own = "apiVersion: projectcalico.org/v3\nkind: CalicoNodeStatus\nmetadata: {name: ctl-n1}\n\
               spec: {node: ctl-n1}\n";
    let objects = pool("ctl-bad", "10.70.0.0/24", "") + own;
    ctl.run(&["create", "-f", "-"], &objects)?;
    let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "message": ""});
    let (refused, full) = (
        condition("Accepted", "False", "Invalid"),
        condition("AddressPressure", "True", "NearlyFull"),
    );
    let report = json!({"kind": "IPPool", "name": "ctl-bad", "conditions": [refused]});
    for (object, status) in [
        ("caliconodestatus/ctl-n1", json!({"objects": [report]})),
        (
            "ippool/ctl-bad",
            json!({"conditions": [condition("Allocatable", "True", "Usable"), refused, full]}),
        ),
    ] {
        let patch = json!({"status": status}).to_string();
        let line = ["patch", object, "--subresource=status", "--type=merge", "-p", &patch];
        api.kubectl().run(&line)?;
    }
    let table = ctl.run(&["get", "ippool", "ctl-bad", "-o", "wide"], "")?;
    let expected =
        "Accepted=False Invalid (ctl-n1), AddressPressure=True NearlyFull, Allocatable\n";
    ensure!(table.ends_with(expected), "{table}");
    ctl.run(&["delete", "-f", "-"], &objects).map(drop)
}

/// A namespace is made before what is in it, and Secrets of one name in two namespaces are two.
pub(crate) fn objects_are_written_in_their_order(api: &ApiServer) -> Result<()> {
    let ctl = Ctl::new(api);
    let inner = |kind: &str, namespace: &str| {
        format!(
            "---\napiVersion: v1\nkind: {kind}\n\
             metadata: {{name: ctl-inner, namespace: {namespace}}}\n"
        )
    };
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ctl-space}\n".to_owned();
    let objects = [
        inner("ConfigMap", "ctl-space"),
        inner("Secret", "ctl-space"),
        inner("Secret", "kube-public"),
    ]
    .concat();
    let done = ctl.run(&["apply", "-f", "-"], &(namespace.clone() + &objects))?;
    let expected = "Namespace/ctl-space created\nConfigMap/ctl-inner created\n\
                    Secret/ctl-inner created\nSecret/ctl-inner created\n";
    ensure!(done == expected, "{done}");
    for namespace in ["ctl-space", "kube-public"] {
        api.kubectl().run(&["get", "secret", "ctl-inner", "-n", namespace])?;
    }
    ctl.run(&["delete", "-f", "-"], &objects)?;
    ctl.run(&["delete", "-f", "-"], &namespace).map(drop)
}

/// No rights, no server, no such context, another cluster's credentials.
pub(crate) fn what_is_refused_is_told_with_its_remedy(api: &ApiServer) -> Result<()> {
    let kubectl = api.kubectl();
    kubectl.run(&["create", "serviceaccount", "ctl-nobody", "-n", "default"])?;
    let token = kubectl.run(&["create", "token", "ctl-nobody", "-n", "default"])?;
    let directory = scratch(api, "ctl-nobody")?;
    let account = |name: &str, token: &str| -> Result<PathBuf> {
        let file = directory.join(name);
        fs::copy(api.kubeconfig(), &file).context("cannot copy the kubeconfig")?;
        let path = file.display().to_string();
        let config = ["--kubeconfig", &path, "config"];
        let token = format!("--token={token}");
        kubectl.run(&[&config[..], &["set-credentials", name, &token]].concat())?;
        let user = format!("--user={name}");
        kubectl.run(&[&config[..], &["set-context", "--current", &user]].concat())?;
        Ok(file)
    };
    let file = account("nobody", token.trim())?;
    let nobody = Ctl::with(api.namespace(), &file);
    let said = nobody.refused(&["get", "ippools"], "")?;
    ensure!(said.contains("you may not list ippools: ") && said.contains("ctl-nobody"), "{said}");
    let said = nobody.refused(&["create", "-f", "-"], &pool("ctl-no", "10.66.0.0/24", ""))?;
    ensure!(said.contains("you may not create ippools/ctl-no: "), "{said}");
    let said = nobody.refused(&["get", "secrets", "-n", "kube-system"], "")?;
    ensure!(said.contains("you may not list secrets in namespace kube-system: "), "{said}");
    let file = account("stranger", "nonsense")?;
    let said = Ctl::with(api.namespace(), &file).refused(&["ipam", "show"], "")?;
    ensure!(said.contains("does not accept your credentials"), "{said}");

    let said = Ctl::new(api).refused(&["get", "ippools", "--context", "nowhere"], "")?;
    ensure!(said.contains("cannot use the kubeconfig") && said.contains("nowhere"), "{said}");
    let elsewhere = directory.join("elsewhere");
    let text = fs::read_to_string(api.kubeconfig())?.replace(":6443", ":6444");
    fs::write(&elsewhere, text)?;
    let said = Ctl::with(api.namespace(), &elsewhere).refused(&["get", "ippools"], "")?;
    ensure!(said.contains("cannot reach the API server https://127.0.0.1:6444"), "{said}");
    ensure!(said.to_lowercase().contains("connection refused"), "{said}");
    kubectl.run(&["delete", "serviceaccount", "ctl-nobody", "-n", "default"]).map(drop)
}

/// On a machine without a daemon the cluster is the one that kubectl would ask, and nothing is read or written where
/// there is none.
pub(crate) fn the_cluster_of_the_user_is_asked(api: &ApiServer) -> Result<()> {
    let user = |home: &Path| {
        let options = vec!["--socket".to_owned(), "/nonexistent/twilld.sock".to_owned()];
        let home = ("HOME", home.display().to_string());
        Ctl { namespace: api.namespace(), options, environment: vec![home] }
    };
    let manifest = pool("ctl-user", "10.68.0.0/24", "");
    api.kubectl().run_with_input(&["create", "-f", "-"], &manifest)?;
    let get = ["get", "ippool", "ctl-user", "-o", "name"];
    let (nobody, somebody) = (scratch(api, "ctl-nobody-home")?, scratch(api, "ctl-home")?);
    let kubeconfig = api.kubeconfig().display().to_string();
    fs::create_dir(somebody.join(".kube")).context("cannot make the user's directory")?;
    fs::copy(api.kubeconfig(), somebody.join(".kube/config")).context("cannot copy")?;
    for user in [user(&nobody).variable("KUBECONFIG", &kubeconfig), user(&somebody)] {
        let names = user.run(&get, "")?;
        ensure!(names == "IPPool/ctl-user\n", "{names}");
    }
    for (line, input) in [(&get[..], ""), (&["apply", "--dry-run", "-f", "-"], &manifest)] {
        let said = user(&nobody).refused(line, input)?;
        ensure!(said.contains("say --datastore kubernetes"), "{said}");
    }
    api.kubectl().run(&["delete", "ippool", "ctl-user"]).map(drop)
}

/// `kubectl twill`, found by kubectl itself.
pub(crate) fn kubectl_finds_the_plugin(api: &ApiServer) -> Result<()> {
    let directory = scratch(api, "ctl-plugin")?;
    symlink(programs::find("twillctl")?, directory.join("kubectl-twill"))
        .context("cannot make the plugin's link")?;
    let kubectl = programs::go_tool("kubernetes", "kubectl")?;
    let plugin = |kubeconfig: Option<&Path>, arguments: &[&str], input: &str| -> Result<Output> {
        let mut command = Command::new(&kubectl);
        command.env_clear().env("PATH", &directory).arg("twill").args(arguments);
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        api.namespace().enter(|| output_with_input(&mut command, input.as_bytes()))?
    };
    let own = Some(api.kubeconfig());
    let manifest = pool("ctl-plugin", "10.67.0.0/24", "");
    check("kubectl twill apply", &plugin(own, &["apply", "-f", "-"], &manifest)?)?;
    let table = plugin(own, &["get", "ippools", "ctl-plugin"], "")?;
    let table = check("kubectl twill get ippools", &table)?;
    ensure!(table.contains("ctl-plugin") && table.contains("10.67.0.0/24"), "{table}");
    let kubeconfig = api.kubeconfig().display().to_string();
    let context = api.kubectl().run(&["config", "current-context"])?;
    let options = ["--kubeconfig", &kubeconfig, "--context", context.trim(), "-n", "default"];
    let line = [&["get", "ippool", "ctl-plugin", "-o", "name"], &options[..]].concat();
    let names = check("kubectl twill get", &plugin(None, &line, "")?)?;
    ensure!(names == "IPPool/ctl-plugin\n", "{names}");
    // No daemon is here.
    let status = plugin(own, &["node", "status", "--socket", "/nonexistent/twilld.sock"], "")?;
    let said = String::from_utf8_lossy(&status.stderr);
    ensure!(status.status.code() == Some(1) && said.contains("kubectl exec"), "{said}");
    let usage = plugin(own, &["get", "pods"], "")?;
    let said = String::from_utf8_lossy(&usage.stderr);
    ensure!(usage.status.code() == Some(2) && said.contains("ippool"), "{said}");
    check("kubectl twill delete", &plugin(own, &["delete", "-f", "-"], &manifest)?).map(drop)
}

/// `ipam show`, `check`, `configure` and `release --node` of a cluster with two daemons.
pub(crate) fn addresses_of_two_nodes(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, PEER, STRICT], "", &[])?;
    let (one, two) = (site.lab.add_pod("node1", "a")?, site.lab.add_pod("node2", "b")?);
    let ((first, _), (second, _)) = (block_of(&site, &one)?, block_of(&site, &two)?);
    {
        let ctl = Ctl::new(&site.api);
        let shown = ctl.json(&["ipam", "show", "--show-blocks"])?;
        let owner = |block: &str| {
            let blocks = shown["blocks"].as_array().into_iter().flatten();
            blocks.filter(|b| b["block"] == *block).map(|b| b["node"].clone()).next()
        };
        ensure!(owner(&first) == Some("node1".into()), "{shown}");
        ensure!(owner(&second) == Some("node2".into()), "{shown}");
        ensure!(shown["pools"][0]["name"] == "app" && shown["pools"][0]["total"] == 64, "{shown}");
        let address = one.address()?.to_string();
        let found = ctl.json(&["ipam", "show", "--ip", &address])?;
        ensure!(found["node"] == "node1" && found["state"] == "elsewhere", "{found}");
        let map = ctl.run(&["ipam", "show", "--map"], "")?;
        ensure!(map.contains("node1: 1 block") && map.contains("node2: 1 block"), "{map}");
        ensure!(
            ctl.run(&["ipam", "show", "--show-borrowed", "-o", "json"], "")? == "[]\n",
            "parts"
        );
        let report = ctl.run(&["ipam", "check"], "")?;
        ensure!(report.contains("Looked at 2 claims, 2 nodes and 1 pools."), "{report}");

        let done = ctl.run(&["ipam", "configure", "--max-blocks-per-host", "7"], "")?;
        ensure!(done.starts_with("IPAMConfiguration/default configured\n"), "{done}");
        let config = ctl.json(&["ipam", "show", "--configuration"])?;
        ensure!(config["maxBlocksPerHost"] == 7 && config["strictAffinity"] == true, "{config}");
        let done = ctl.refused(&["ipam", "release", "--node", "node2"], "")?;
        ensure!(done.contains("node2 has a Node"), "{done}");
    }
    // Where a daemon runs, it tells its own, with numbers; twillctl goes by its configuration.
    let node = site.lab.node("node1")?;
    let kubeconfig = site.api.kubeconfig().display().to_string();
    let ctl = Ctl {
        namespace: site.api.namespace(),
        options: ["--kubeconfig", &kubeconfig, "--socket", &node.socket().display().to_string()]
            .map(str::to_owned)
            .to_vec(),
        environment: Vec::new(),
    };
    let shown = ctl.json(&["ipam", "show", "--show-blocks"])?;
    let blocks = shown["blocks"].as_array().cloned().unwrap_or_default();
    let own = blocks.iter().find(|block| block["block"] == first.as_str());
    ensure!(own.is_some_and(|block| block["used"] == 1 && block["assignable"] == true), "{shown}");
    let address = one.address()?.to_string();
    let found = ctl.json(&["ipam", "show", "--ip", &address])?;
    ensure!(found["state"] == "inUse", "{found}");
    let report = ctl.run(&["ipam", "check"], "")?;
    ensure!(report.contains("On node1: looked at 1 allocations"), "{report}");

    // A node that is gone: its Node is deleted, and its daemon silent or ended by force of word.
    site.lab.node_mut("node2")?.kill9()?;
    site.api.kubectl().run(&["delete", "node", "node2"])?;
    let ctl = Ctl::new(&site.api);
    let done = ctl.refused(&["ipam", "release", "--node", "node2"], "")?;
    ensure!(done.contains("sign of life") && done.contains("--force"), "{done}");
    let done = ctl.refused(&["ipam", "check"], "")?;
    ensure!(done.contains("claimed by node node2, which does not exist"), "{done}");
    let done = ctl.run(&["ipam", "release", "--node", "node2", "--force"], "")?;
    ensure!(done == format!("Released {second} of node node2\n"), "{done}");
    wait_for("the claim to be gone", LONG, || {
        let claims = site.claims()?;
        ensure!(!claims.contains_key(&second) && claims.contains_key(&first), "{claims:?}");
        Ok(())
    })?;
    let status = ["get", "caliconodestatus", "node2"];
    let said = ctl.refused(&status, "")?;
    ensure!(said.contains("no CalicoNodeStatus node2"), "{said}");
    let conditions = ctl.run(&["get", "ippool", "app", "-o", "wide"], "")?;
    ensure!(conditions.contains("Accepted (node1)"), "{conditions}");
    // A cluster without our definitions.
    site.api.kubectl().run(&["delete", "crd", "bgpfilters.projectcalico.org"])?;
    wait_for("the kind to be served no more", LONG, || {
        let said = ctl.refused(&["get", "bgpfilters"], "")?;
        ensure!(said.contains("has no bgpfilters") && said.contains("conf/crds"), "{said}");
        Ok(())
    })
}
