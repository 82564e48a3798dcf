//! What the account of a node daemon may not do.

use anyhow::{Result, ensure};
use serde_json::json;
use twill_tests::{
    kubernetes::{ApiServer, Kubectl},
    wait::wait_for,
};

use super::{
    LONG,
    nodes::{NODES, POOL, STRICT, Site, block_of},
};

fn claim(node: &str, block: &str, name: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {{name: {name}}}\n\
         spec: {{node: {node}, cidr: {block}, pool: app}}\n"
    )
}

/// kubectl with the token of node1's daemon.
struct AsNode<'a> {
    kubectl: Kubectl<'a>,
    kubeconfig: String,
}

impl AsNode<'_> {
    fn arguments<'b>(&'b self, arguments: &[&'b str]) -> Vec<&'b str> {
        [&["--kubeconfig", &self.kubeconfig], arguments].concat()
    }

    fn refused(&self, arguments: &[&str], input: &str, expected: &str) -> Result<()> {
        let said = self.kubectl.refused(&self.arguments(arguments), input)?;
        ensure!(said.contains("Forbidden") || said.contains("forbidden"), "{arguments:?}: {said}");
        ensure!(said.contains(expected), "{arguments:?}: {said}");
        Ok(())
    }

    fn allowed(&self, arguments: &[&str], input: &str) -> Result<()> {
        self.kubectl.run_with_input(&self.arguments(arguments), input).map(drop)
    }
}

fn request(name: &str, node: &str, owner: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: BlockRequest\nmetadata: {{name: {name}}}\n\
         spec: {{node: {node}, owner: {owner}, block: 10.99.0.0/26, pool: app, length: 29}}\n"
    )
}

/// Requests are written by who asks, and answered by who is asked.
fn requests(site: &Site, node1: &AsNode<'_>) -> Result<()> {
    // Nobody is of these names, so that nobody answers meanwhile.
    let (own, asked, others) = ("own", "asked", "others");
    for (name, node, owner) in
        [(own, "node1", "node8"), (asked, "node9", "node1"), (others, "node9", "node8")]
    {
        site.apply(&request(name, node, owner))?;
    }
    let create = ["create", "--dry-run=server", "-f", "-"];
    node1.allowed(&create, &request("new", "node1", "node8"))?;
    node1.refused(&create, &request("new", "node9", "node1"), "what is of node node9")?;
    // A patch by kubectl reads first, which a node may not.
    let apply = ["apply", "--server-side", "--force-conflicts", "--subresource=status"];
    let apply = [&apply[..], &["--dry-run=server", "-f", "-"]].concat();
    let status = |name: &str, status: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: BlockRequest\nmetadata: {{name: {name}}}\n\
             status: {{{status}}}\n"
        )
    };
    let (returned, refused) = ("returned: true", "refused: 'none is free'");
    let granted = "granted: 10.99.0.0/29";
    node1.allowed(&apply, &status(own, returned))?;
    node1.refused(&apply, &status(own, granted), "only the node that is asked")?;
    node1.allowed(&apply, &status(asked, refused))?;
    node1.allowed(&apply, &status(asked, granted))?;
    node1.refused(&apply, &status(asked, returned), "only the node that asked")?;
    node1.refused(&apply, &status(others, refused), "what is of node node9")?;
    let delete = ["delete", "blockrequest", "--dry-run=server"];
    node1.allowed(&[&delete[..], &[own]].concat(), "")?;
    node1.refused(&[&delete[..], &[asked]].concat(), "", "what is of node node9")?;
    let kubectl = site.api.kubectl();
    kubectl.run(&["delete", "blockrequest", own, asked, others]).map(drop)
}

/// The role lets it make and change any Lease of the namespace, so who is told to live only the policy guards; and
/// it tells of no node but its own.
fn leases_and_reports(site: &Site, node1: &AsNode<'_>) -> Result<()> {
    let object = |api: &str, kind: &str, name: &str, spec: &str| {
        format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    let lease = |name: &str| object("coordination.k8s.io/v1", "Lease", name, "holderIdentity: me");
    let in_ours = ["-n", "twill-system", "-f", "-"];
    let (create, replace) = (["create", "--dry-run=server"], ["replace", "--dry-run=server"]);
    let kubectl = site.api.kubectl();
    // No controller runs here.
    kubectl.run_with_input(&[&["create"], &in_ours[..]].concat(), &lease("twill-controller"))?;
    let replace = [&replace[..], &in_ours].concat();
    for name in NODES.map(|(node, _)| format!("twill-node-{node}")) {
        let get = ["get", "lease", "-n", "twill-system", &name];
        wait_for(&format!("the Lease {name}"), LONG, || kubectl.run(&get))?;
    }
    // The daemon of each may write it at the same moment.
    wait_for("its own Lease", LONG, || node1.allowed(&replace, &lease("twill-node-node1")))?;
    let others = "may not write what is of node";
    let node2 = format!("{others} node2");
    wait_for("the Lease of node2", LONG, || {
        node1.refused(&replace, &lease("twill-node-node2"), &node2)
    })?;
    node1.refused(&replace, &lease("twill-controller"), others)?;
    let create_here = [&create[..], &in_ours].concat();
    node1.refused(&create_here, &lease("twill-node-node9"), &format!("{others} node9"))?;
    node1.refused(&create_here, &lease("somebodys"), others)?;

    let report = |node: &str| {
        object("projectcalico.org/v3", "CalicoNodeStatus", node, &format!("node: {node}"))
    };
    let create = [&create[..], &["-f", "-"]].concat();
    node1.refused(&create, &report("node9"), &format!("{others} node9"))
}

/// By our definitions nobody changes of which node a claim or a request is, and the API server looks at them before any
/// policy. Without these rules the policy is alone: node1 takes nothing over, and gives nothing away.
fn takeovers(site: &Site, node1: &AsNode<'_>, own: &str, others: &str) -> Result<()> {
    let kubectl = site.api.kubectl();
    for (name, rules) in [("blockaffinities", "/properties/node"), ("blockrequests", "")] {
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
        let path = format!("{spec}{rules}/x-kubernetes-validations");
        let patch = json!([{"op": "remove", "path": path}]).to_string();
        let name = format!("{name}.projectcalico.org");
        kubectl.run(&["patch", "crd", &name, "--type=json", "-p", &patch])?;
    }
    let (mine, theirs) = ("mine", "theirs");
    site.apply(&request(mine, "node1", "node8"))?;
    site.apply(&request(theirs, "node9", "node8"))?;
    for (kind, name, node, why) in [
        ("blockaffinity", others, "node1", "may not write what is of node node2"),
        ("blockrequest", theirs, "node1", "may not write what is of node node9"),
        ("blockaffinity", own, "node2", "of which node a claim or a request is"),
        ("blockrequest", mine, "node9", "of which node a claim or a request is"),
    ] {
        let merge = json!({"spec": {"node": node}}).to_string();
        let patch = ["patch", kind, name, "--type=merge", "--dry-run=server", "-p", &merge];
        // The API server takes a moment to forget the rules.
        wait_for(&format!("the refusal of {kind} {name} for {node}"), LONG, || {
            node1.refused(&patch, "", why)
        })?;
    }
    // What does not change hands is its own to write.
    let merge = r#"{"metadata": {"annotations": {"example.com/looked": "at"}}}"#;
    let patch = ["--type=merge", "--dry-run=server", "-p", merge];
    node1.allowed(&[&["patch", "blockaffinity", own][..], &patch].concat(), "")?;
    kubectl.run(&["delete", "blockrequest", mine, theirs]).map(drop)
}

/// The name of the claim that a node has since a pod is on it.
fn claim_of(site: &mut Site, node: &str, pod: &str) -> Result<String> {
    let pod = site.lab.add_pod(node, pod)?;
    let (block, owner) = block_of(site, &pod)?;
    ensure!(owner == node, "{block} is of {owner}");
    let block = block.parse::<twill_types::Block>().map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(block.claim_name())
}

/// The token of node1 tries what is node2's, and what is nobody's but the users'.
pub(crate) fn a_node_writes_only_what_is_its_own(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, STRICT], "", &[])?;
    let [own, others] =
        [("node1", "own"), ("node2", "others")].map(|(node, pod)| claim_of(&mut site, node, pod));
    let (own, others) = (own?, others?);
    let kubeconfig = site.api.node_kubeconfigs().join("node1.kubeconfig").display().to_string();
    let node1 = AsNode { kubectl: site.api.kubectl(), kubeconfig };
    let create = ["create", "--dry-run=server", "-f", "-"];
    let of_node2 = "may not write what is of node node2";

    // A policy works a moment after it was made.
    wait_for("the policy", LONG, || {
        node1.refused(&create, &claim("node2", "10.99.0.0/26", "0a630000-26"), of_node2)
    })?;
    node1.allowed(&create, &claim("node1", "10.99.0.0/26", "0a630000-26"))?;
    let labelled = |label: &str| {
        let labels = format!("labels: {{twill.projectcalico.org/{label}}}, name: ");
        claim("node1", "10.99.0.0/26", "0a630000-26").replace("name: ", &labels)
    };
    node1.allowed(&create, &labelled("ipv4-block-size: '26'"))?;
    for wrong in ["ipv4-block-size: '28'", "ipv4-block-size: '6'", "ipv6-block-size: '26'"] {
        node1.refused(&create, &labelled(wrong), "is that of another block")?;
    }
    node1.refused(&["delete", "blockaffinity", &others], "", of_node2)?;
    let finalizers = r#"{"metadata": {"finalizers": null}}"#;
    let patch = ["patch", "blockaffinity", &others, "--type=merge", "-p", finalizers];
    node1.refused(&patch, "", of_node2)?;
    wait_for("the status of node2", LONG, || site.condition("node2", "IPPool", "app"))?;
    // A patch by kubectl reads first, which a node may not.
    let status = "apiVersion: projectcalico.org/v3\nkind: CalicoNodeStatus\nmetadata: {name: node2}\n\
                  status: {objects: []}\n";
    let apply = ["apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-"];
    node1.refused(&apply, status, of_node2)?;
    let lease = ["delete", "lease", "-n", "twill-system", "twill-node-node2"];
    node1.refused(&lease, "", "cannot delete resource \"leases\"")?;
    // Its own goes with its Node, and the controller does that.
    let lease = ["delete", "lease", "-n", "twill-system", "twill-node-node1"];
    node1.refused(&lease, "", "cannot delete resource \"leases\"")?;

    requests(&site, &node1)?;
    takeovers(&site, &node1, &own, &others)?;
    leases_and_reports(&site, &node1)?;

    node1.refused(&["delete", "ippool", "app"], "", "cannot delete resource \"ippools\"")?;
    node1.refused(&["get", "secrets", "-n", "default"], "", "cannot list resource \"secrets\"")?;
    let pool = r#"{"status": {"conditions": []}}"#;
    let patch = ["patch", "ippool", "app", "--subresource=status", "--type=merge", "-p", pool];
    node1.refused(&patch, "", "cannot")?;
    let unbound = ["create", "token", "twill-node", "-n", "twill-system"];
    let token = site.api.kubectl().run(&unbound)?;
    let token = ["--token", token.trim()];
    let said = site.api.kubectl().refused(
        &[&["--kubeconfig", &node1.kubeconfig], &token[..], &create].concat(),
        &claim("node1", "10.99.0.0/26", "0a630000-26"),
    )?;
    ensure!(said.contains("bound to no node"), "{said}");
    Ok(())
}
