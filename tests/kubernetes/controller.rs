//! The controller on an API server, beside two node daemons.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use twill_tests::{
    kubernetes::ApiServer,
    process::Daemon,
    programs,
    wait::{wait_for, wait_until},
};

use super::{
    LONG,
    nodes::{PEER, POOL, STRICT, Site, block_of},
    permission::{wait_right, wait_rights},
};

const ACCOUNT: &str = "twill-controller";

/// Daemons that say often that they live, and part with empty blocks at once.
pub(crate) const HASTY: &str = "ipam: {emptyBlockGraceSeconds: 1, goneNodeGraceSeconds: 4}\n";

/// How long a controller waits for a node that is gone.
const GRACE: Duration = Duration::from_secs(4);

/// How long another may take to lead: the Lease runs out, and a machine is busy.
pub(crate) const TAKE_OVER: Duration = Duration::from_secs(60);

/// A controller that runs.
pub(crate) struct Controller {
    daemon: Daemon,
    port: u16,
}

impl Controller {
    pub(crate) fn start(site: &Site, name: &str, port: u16) -> Result<Self> {
        Self::start_beside(&site.api, name, port)
    }

    /// Starts one beside an API server that has its account.
    pub(crate) fn start_beside(api: &ApiServer, name: &str, port: u16) -> Result<Self> {
        Self::start_patient(api, name, port, GRACE)
    }

    /// The same with another grace period of nodes that are gone.
    pub(crate) fn start_patient(
        api: &ApiServer,
        name: &str,
        port: u16,
        grace: Duration,
    ) -> Result<Self> {
        wait_rights(api, ACCOUNT)?;
        let kubeconfig = api.write_account_kubeconfig(ACCOUNT)?;
        let directory = api.directory();
        let path = directory.join(format!("{name}.yaml"));
        // No directory of it may be needed.
        let text = format!(
            "nodeName: {name}\nstateDir: /nonexistent\nrunDir: /nonexistent\n\
             datastore: {{type: kubernetes, kubeconfig: {}}}\n\
             ipam: {{goneNodeGraceSeconds: {}}}\ncontroller: {{listen: \"127.0.0.1:{port}\"}}\n\
             log: {{level: debug, format: text}}\n",
            kubeconfig.display(),
            grace.as_secs()
        );
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = Command::new(programs::find("twilld")?);
        command.args(["--role", "controller", "--config"]).arg(&path);
        let log = directory.join(format!("{name}.log"));
        let daemon = Daemon::start(name, api.namespace(), &mut command, &log)?;
        Ok(Self { daemon, port })
    }

    /// What it serves: the first line and the body.
    pub(crate) fn get(&self, site: &Site, path: &str) -> Result<String> {
        self.get_beside(&site.api, path)
    }

    /// The same without nodes.
    pub(crate) fn get_beside(&self, api: &ApiServer, path: &str) -> Result<String> {
        let (port, path) = (self.port, path.to_owned());
        api.namespace().enter(move || -> Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(LONG))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?
    }
}

/// Does something, and adds the controller's log to what goes wrong.
pub(crate) fn with_log(controller: &Controller, result: Result<()>) -> Result<()> {
    result.with_context(|| format!("the controller's log:\n{}", controller.daemon.log()))
}

/// A condition in an object's own status.
fn condition(site: &Site, kind: &str, name: &str, condition: &str) -> Result<Value> {
    let object = site.api.kubectl().json(&["get", kind, name])?;
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|found| found["type"] == condition);
    found.cloned().with_context(|| format!("no {condition} in {object}"))
}

pub(crate) fn wait_condition(
    site: &Site,
    (kind, name, which): (&str, &str, &str),
    (status, reason, message): (&str, &str, &str),
) -> Result<Value> {
    wait_for(&format!("{which} of {kind} {name}"), LONG, || {
        let found = condition(site, kind, name, which)?;
        let text = found["message"].as_str().unwrap_or_default();
        ensure!(
            found["status"] == status && found["reason"] == reason && text.contains(message),
            "{found}"
        );
        Ok(found)
    })
}

/// The kinds that no other part of this test has: right objects, one claim that nobody can read, and a
/// status object that asks for what is told elsewhere.
fn every_kind_has_conditions(site: &Site) -> Result<()> {
    let by_all = ("True", "Accepted", "accepted by 2 of 2 nodes");
    let good = [
        (
            "BGPFilter",
            "good",
            "{exportV4: [{cidr: 10.10.0.0/16, matchOperator: In, action: Accept}]}",
        ),
        ("BGPConfiguration", "default", "{asNumber: 64512}"),
        ("IPReservation", "good", "{reservedCIDRs: [10.77.0.0/24]}"),
        ("IPAMConfig", "second", "{strictAffinity: true}"),
    ];
    for (kind, name, spec) in good {
        site.apply(&format!(
            "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        ))?;
    }
    site.apply(
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: 0a630000-26}\n\
         spec: {node: node1, cidr: 10.99.0.0/26}\n",
    )?;
    let damaged = ("False", "Damaged", "spec.pool is missing");
    wait_condition(site, ("blockaffinity", "0a630000-26", "Accepted"), damaged)?;
    site.apply(
        "apiVersion: projectcalico.org/v3\nkind: CalicoNodeStatus\nmetadata: {name: sessions}\n\
         spec: {node: node1, classes: [BGP]}\n",
    )?;
    for (kind, name, _) in good {
        wait_condition(site, (&kind.to_lowercase(), name, "Accepted"), by_all)?;
    }
    let elsewhere = ("True", "NotImplemented", "`twillctl node status`");
    wait_condition(site, ("caliconodestatus", "sessions", "Unsupported"), elsewhere)?;
    Ok(())
}

/// The Events of a reason about an object.
fn events(site: &Site, kind: &str, name: &str, reason: &str) -> Result<Vec<Value>> {
    let found = site.api.kubectl().json(&["get", "events.events.k8s.io", "-n", "default"])?;
    let is_it = |event: &&Value| {
        let about = &event["regarding"];
        about["kind"] == kind && about["name"] == name && event["reason"] == reason
    };
    Ok(found["items"].as_array().into_iter().flatten().filter(is_it).cloned().collect())
}

fn holder(site: &Site) -> Result<(String, i64)> {
    let lease = ["get", "lease", "-n", "twill-system", "twill-controller"];
    let lease = site.api.kubectl().json(&lease)?;
    let spec = &lease["spec"];
    let holder = spec["holderIdentity"].as_str().unwrap_or_default();
    let name = holder.split('_').next().unwrap_or_default();
    Ok((name.to_owned(), spec["leaseTransitions"].as_i64().unwrap_or_default()))
}

pub(crate) fn finalizers(site: &Site, pool: &str) -> Result<String> {
    let path = "jsonpath={.metadata.finalizers}";
    site.api.kubectl().run(&["get", "ippool", pool, "-o", path])
}

/// What nodes say is counted in each object's own status; what makes no sense has a condition, an Event
/// and a metric; and nothing is written where nothing changes.
pub(crate) fn objects_say_what_nodes_make_of_them(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, PEER, STRICT], "", &[])?;
    let tor = site.lab.bird("tor")?;
    tor.wait_established(&["node1", "node2"], LONG)?;
    let since = tor.protocol("node1")?.since;
    let mut controller = Controller::start(&site, "controller1", 9191)?;
    let result = say_what_nodes_make_of_them(&site, &controller)
        .and_then(|()| go_on_beside_bad_objects(&mut site, &mut controller, &since));
    with_log(&controller, result)
}

/// Nobody has ended, the sessions have gone on, and pods come, while everything that makes no sense is there.
fn go_on_beside_bad_objects(
    site: &mut Site,
    controller: &mut Controller,
    since: &str,
) -> Result<()> {
    site.apply(&PEER.replace("name: tor", "name: tor2"))?;
    wait_condition(site, ("bgppeer", "tor2", "Conflicted"), ("True", "DuplicatePeer", ""))?;
    wait_condition(site, ("ippool", "wider", "Allocatable"), ("False", "Overlaps", ""))?;
    wait_condition(site, ("bgppeer", "damaged", "Accepted"), ("False", "Invalid", ""))?;
    let no_secret = ("False", "SecretNotFound", "");
    wait_condition(site, ("bgppeer", "missing", "PasswordFound"), no_secret)?;
    let pod = site.lab.add_pod("node1", "beside")?;
    let pool: twill_types::Prefix = "10.10.0.0/26".parse()?;
    ensure!(pool.contains(pod.address()?), "{pod:?}");
    let (block, _) = block_of(site, &pod)?;
    site.lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
    site.lab.delete_pod(pod)?;
    let session = site.lab.bird("tor")?.protocol("node1")?;
    ensure!(session.info == "Established" && session.since == since, "{session:?} since {since}");
    // Nobody starts them again.
    for node in ["node1", "node2"] {
        site.lab.node_mut(node)?.wait_ready()?;
    }
    controller.daemon.alive()
}

fn say_what_nodes_make_of_them(site: &Site, controller: &Controller) -> Result<()> {
    let by_all = ("True", "Accepted", "accepted by 2 of 2 nodes");
    let accepted = wait_condition(site, ("ippool", "app", "Accepted"), by_all)?;
    ensure!(accepted["observedGeneration"] == 1, "{accepted}");
    ensure!(accepted["lastTransitionTime"].is_string(), "{accepted}");
    wait_condition(site, ("ipamconfiguration", "default", "Accepted"), by_all)?;
    wait_condition(site, ("bgppeer", "tor", "Accepted"), by_all)?;
    wait_condition(site, ("ippool", "app", "Allocatable"), ("True", "Usable", ""))?;
    every_kind_has_conditions(site)?;
    let pool = site.api.kubectl().json(&["get", "ippool", "app"])?;
    ensure!(pool["status"]["nodes"]["accepted"] == 2, "{pool}");

    // Made later, so it is not used.
    site.apply(&POOL.replace("name: app", "name: wider").replace("10.10.0.0/26", "10.10.0.0/16"))?;
    let overlaps =
        ("False", "Overlaps", "overlaps IPPool app (10.10.0.0/26), which was made first");
    wait_condition(site, ("ippool", "wider", "Allocatable"), overlaps)?;
    let again = PEER.replace("name: tor", "name: tor2");
    site.apply(&again)?;
    let duplicate = ("True", "DuplicatePeer", "nodes use tor");
    wait_condition(site, ("bgppeer", "tor2", "Conflicted"), duplicate)?;
    wait_condition(site, ("bgppeer", "tor", "Conflicted"), duplicate)?;
    // The schema does not know selectors.
    let damaged = PEER
        .replace("name: tor", "name: damaged")
        .replace("192.168.2.1,", "192.168.2.99, nodeSelector: 'rack ==', filters: [f],");
    site.apply(&damaged)?;
    let refused = ("False", "Invalid", "refused by 2 of 2 nodes: node1, node2: ");
    let refused = wait_condition(site, ("bgppeer", "damaged", "Accepted"), refused)?;
    ensure!(refused["message"].to_string().contains("rack =="), "{refused}");
    let missing = PEER
        .replace("name: tor", "name: missing")
        .replace("192.168.2.1,", "192.168.2.98, filters: [f],")
        .replace("64513", "64513, password: {secretKeyRef: {name: nothing, key: k}}");
    site.apply(&missing)?;
    let no_filter = ("False", "FilterNotFound", "there is no BGPFilter f");
    wait_condition(site, ("bgppeer", "missing", "FiltersFound"), no_filter)?;
    let no_secret = ("False", "SecretNotFound", "there is no Secret nothing");
    wait_condition(site, ("bgppeer", "missing", "PasswordFound"), no_secret)?;
    for (kind, name, reason) in [
        ("IPPool", "wider", "Overlaps"),
        ("BGPPeer", "tor2", "DuplicatePeer"),
        ("BGPPeer", "damaged", "Invalid"),
        ("BGPPeer", "missing", "FilterNotFound"),
        ("BGPPeer", "missing", "SecretNotFound"),
        ("BlockAffinity", "0a630000-26", "Damaged"),
    ] {
        let events = events(site, kind, name, reason)?;
        ensure!(events.len() == 1, "{kind} {name} {reason}: {events:?}");
        ensure!(events[0]["type"] == "Warning", "{events:?}");
    }

    ensure!(controller.get(site, "/healthz")?.starts_with("HTTP/1.1 200"), "healthz");
    ensure!(controller.get(site, "/readyz")?.starts_with("HTTP/1.1 200"), "readyz");
    wait_for("the metrics", LONG, || {
        let metrics = controller.get(site, "/metrics")?;
        for line in [
            "twill_controller_leads 1",
            "kind=\"BGPPeer\",condition=\"Conflicted\",reason=\"DuplicatePeer\"} 2",
            "kind=\"IPPool\",condition=\"Allocatable\",reason=\"Overlaps\"} 1",
            "kind=\"BGPPeer\",condition=\"Accepted\",reason=\"Invalid\"} 1",
            "kind=\"BGPPeer\",condition=\"PasswordFound\",reason=\"SecretNotFound\"} 1",
            "twill_controller_nodes 2",
        ] {
            ensure!(metrics.contains(line), "{metrics} lacks {line}");
        }
        Ok(())
    })?;

    // What is mended is said no more, and what has nothing to do with it is not written again.
    let version = |name: &str| {
        let path = "jsonpath={.metadata.resourceVersion}";
        site.api.kubectl().run(&["get", "ippool", name, "-o", path])
    };
    let before = version("app")?;
    site.api.kubectl().run(&["delete", "bgppeer", "tor2"])?;
    wait_until("the conflict to be over", LONG, || {
        Ok(condition(site, "bgppeer", "tor", "Conflicted").is_err())
    })?;
    let after = wait_condition(site, ("ippool", "app", "Accepted"), by_all)?;
    ensure!(after == accepted, "{after} was {accepted}");
    ensure!(version("app")? == before, "it was written without need");
    let log = controller.daemon.log();
    ensure!(!log.contains("the controller may not"), "rights are missing");
    Ok(())
}

/// A pool that is deleted stays until its last claim is gone, and gives no address meanwhile.
pub(crate) fn a_pool_is_held_by_its_claims(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, STRICT], HASTY, &[])?;
    let controller = Controller::start(&site, "controller1", 9191)?;
    let result = hold_a_pool(&mut site);
    with_log(&controller, result)
}

fn hold_a_pool(site: &mut Site) -> Result<()> {
    let pod = site.lab.add_pod("node1", "a")?;
    wait_until("the finalizer", LONG, || {
        Ok(finalizers(site, "app")?.contains("twill.projectcalico.org/pool"))
    })?;
    site.api.kubectl().run(&["delete", "ippool", "app", "--wait=false"])?;
    let held = ("False", "Deleting", "goes with the");
    wait_condition(site, ("ippool", "app", "Allocatable"), held)?;
    // Nodes hear of it as well, and give nothing more of it.
    let mut late = site.lab.bare_pod("node1", "late")?;
    wait_for("node1 to refuse a pod", LONG, || {
        let outcome = site.lab.attach(&mut late);
        if outcome.is_ok() {
            site.lab.detach(&late)?;
        }
        ensure!(outcome.is_err(), "a pool that is being deleted gives an address");
        Ok(())
    })?;
    let (block, _) = block_of(site, &pod)?;
    ensure!(site.claims()?.contains_key(&block), "the pod's claim is gone");
    finalizers(site, "app")?;
    site.lab.delete_pod(pod)?;
    wait_until("the claim and the pool to go", LONG, || {
        let pools = site.api.kubectl().json(&["get", "ippools"])?;
        Ok(site.claims()?.is_empty() && pools["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    // Now it may be made again with blocks of another size.
    site.apply(&POOL.replace("blockSize: 27", "blockSize: 28"))?;
    let pod = wait_for("a pod of the new pool", LONG, || site.lab.add_pod("node1", "b"))?;
    ensure!(block_of(site, &pod)?.0.ends_with("/28"), "{:?}", site.claims()?);
    // One without claims is held by nobody.
    site.apply(&POOL.replace("name: app", "name: empty").replace("10.10.", "10.20."))?;
    wait_condition(site, ("ippool", "empty", "Allocatable"), ("True", "Usable", ""))?;
    ensure!(finalizers(site, "empty")?.is_empty(), "nobody has a claim of it");
    Ok(())
}

/// Of two, one leads; the other takes over when that is killed, and when it is told to stop. Nodes do
/// without either.
pub(crate) fn one_leads_and_the_other_takes_over(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, STRICT], "", &[])?;
    let first = Controller::start(&site, "controller1", 9191)?;
    wait_until("one to lead", LONG, || Ok(holder(&site)? == ("controller1".to_owned(), 0)))?;
    let second = Controller::start(&site, "controller2", 9192)?;
    wait_for("the second to be ready", LONG, || {
        let ready = second.get(&site, "/readyz")?;
        ensure!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        Ok(())
    })?;
    let status = second.get(&site, "/statusz")?;
    ensure!(status.contains("\"leads\":false"), "{status}");
    wait_condition(&site, ("ippool", "app", "Accepted"), ("True", "Accepted", ""))?;

    first.daemon.kill9()?;
    wait_until("the other to lead", TAKE_OVER, || {
        Ok(holder(&site)? == ("controller2".to_owned(), 1))
    })?;
    let two = POOL.replace("name: app", "name: two").replace("10.10.", "10.20.");
    site.apply(&two)?;
    wait_condition(&site, ("ippool", "two", "Accepted"), ("True", "Accepted", "2 of 2"))?;

    let third = Controller::start(&site, "controller3", 9193)?;
    wait_for("the third to be ready", LONG, || third.get(&site, "/readyz"))?;
    let mut second = second;
    second.daemon.signal(Signal::SIGTERM)?;
    ensure!(second.daemon.wait(LONG)?.success(), "{}", second.daemon.log());
    wait_until("the third to lead", TAKE_OVER, || {
        Ok(holder(&site)? == ("controller3".to_owned(), 2))
    })?;
    third.daemon.kill9()?;

    let pod = site.lab.add_pod("node1", "a")?;
    site.lab.node_mut("node1")?.stop()?;
    site.lab.node_mut("node1")?.start()?;
    site.lab.delete_pod(pod)
}

/// What the account of the controller may not do.
pub(crate) fn its_account_may_do_no_more(_: &ApiServer) -> Result<()> {
    let mut site = Site::start_with(&[POOL, STRICT], "", &[])?;
    let pod = site.lab.add_pod("node1", "a")?;
    let (block, _) = block_of(&site, &pod)?;
    let claim = block.parse::<twill_types::Block>().map_err(|error| anyhow::anyhow!("{error}"))?;
    let claim = claim.claim_name();
    let kubeconfig = site.api.write_account_kubeconfig(ACCOUNT)?.display().to_string();
    let kubectl = site.api.kubectl();
    let refused = |arguments: &[&str], input: &str| -> Result<String> {
        let said = kubectl.refused(&[&["--kubeconfig", &kubeconfig], arguments].concat(), input)?;
        ensure!(said.contains("orbidden"), "{arguments:?}: {said}");
        Ok(said)
    };
    let merge = ["--type=merge", "-p"];
    refused(&["create", "-f", "-"], &POOL.replace("name: app", "name: own"))?;
    refused(&["delete", "ippool", "app"], "")?;
    refused(&["get", "secrets", "-n", "twill-system"], "")?;
    refused(&["delete", "node", "node1"], "")?;
    let create = "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: 0a630000-26}\n\
                  spec: {node: node1, cidr: 10.99.0.0/26, pool: app}\n";
    refused(&["create", "-f", "-"], create)?;
    // It reads the Leases of nodes, and changes none but its own.
    let lease = "apiVersion: coordination.k8s.io/v1\nkind: Lease\n\
                 metadata: {name: twill-node-node1, namespace: twill-system}\n\
                 spec: {holderIdentity: me}\n";
    wait_for("the Lease of node1", LONG, || {
        kubectl.run(&["get", "lease", "-n", "twill-system", "twill-node-node1"])
    })?;
    let said = refused(&["replace", "-f", "-"], lease)?;
    ensure!(said.contains("cannot update resource \"leases\""), "{said}");

    // A policy works a moment after it was made. kubectl's patch reads first, which it may not of pools.
    let peer =
        r#"{"spec": {"delegations": [{"cidr": "10.10.0.0/32", "node": "me", "request": "r"}]}}"#;
    let patch = ["patch", "blockaffinity", &claim];
    wait_for("the policy", LONG, || refused(&[&patch[..], &merge, &[peer]].concat(), ""))?;
    let label = r#"{"metadata": {"labels": {"twill.projectcalico.org/ipv4-block-size": "26"}}}"#;
    let said = refused(&[&patch[..], &merge, &[label]].concat(), "")?;
    ensure!(said.contains("by what label a claim is found"), "{said}");
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    refused(&apply, &POOL.replace("blockSize: 27,", "blockSize: 27, disabled: true,"))?;
    let of_status = [&apply[..], &["--subresource=status"]].concat();
    let status = "apiVersion: projectcalico.org/v3\nkind: CalicoNodeStatus\nmetadata: {name: node1}\n\
                  status: {lastUpdated: \"2026-01-01T00:00:00Z\"}\n";
    refused(&of_status, status)?;
    let held = "apiVersion: projectcalico.org/v3\nkind: IPPool\n\
                metadata: {name: app, finalizers: [twill.projectcalico.org/pool]}\n";
    kubectl
        .run_with_input(&[&["--kubeconfig", &kubeconfig], &apply[..]].concat(), held)
        .context("the finalizer of a pool is the controller's to write")
        .map(drop)
}

/// A node tells how full its blocks are, and the pool says when nothing is left.
pub(crate) fn a_pool_that_is_full_says_so(_: &ApiServer) -> Result<()> {
    let pool = POOL.replace("10.10.0.0/26, blockSize: 27", "10.10.0.0/30, blockSize: 30");
    let mut site = Site::start_with(&[&pool, STRICT], "", &[])?;
    for number in 0..4 {
        site.lab.add_pod("node1", &format!("pod{number}"))?;
    }
    // At its start a daemon tells at once, later about once a minute.
    site.lab.node_mut("node1")?.stop()?;
    site.lab.node_mut("node1")?.start()?;
    wait_for("the numbers of node1", LONG, || {
        let status = site.api.kubectl().json(&["get", "caliconodestatus", "node1"])?;
        let block = &status["status"]["ipam"]["blocks"][0];
        ensure!(block["block"] == "10.10.0.0/30" && block["pool"] == "app", "{status}");
        ensure!(block["used"] == 4 && block["free"] == 0 && block["size"] == 4, "{status}");
        ensure!(status["status"]["objects"].is_array(), "the rest of it is gone: {status}");
        Ok(())
    })?;
    let controller = Controller::start(&site, "controller1", 9191)?;
    let result = (|| {
        let full = ("True", "Exhausted", "no address is left");
        wait_condition(&site, ("ippool", "app", "AddressPressure"), full)?;
        let events = events(&site, "IPPool", "app", "Exhausted")?;
        ensure!(events.len() == 1, "{events:?}");
        Ok(())
    })();
    with_log(&controller, result)
}

/// What is refused is said with verb and resource, and done when it is granted; an Event is told once.
pub(crate) fn what_it_may_not_do_is_said(_: &ApiServer) -> Result<()> {
    let site = Site::start_with(&[POOL, STRICT], "", &[])?;
    let role = site.api.kubectl().json(&["get", "clusterrole", "twill-controller"])?;
    let statuses = role["rules"][2]["resources"].as_array().context("no resources")?;
    let at = statuses.iter().position(|resource| resource == "ippools/status");
    let at = at.with_context(|| format!("{role}"))?;
    let rights = ["patch", "clusterrole", "twill-controller", "--type=json", "-p"];
    let rights = |resource: &str| {
        let patch = format!(
            r#"[{{"op": "replace", "path": "/rules/2/resources/{at}", "value": "{resource}/status"}}]"#
        );
        site.api.kubectl().run(&[&rights[..], &[&patch]].concat()).map(drop)
    };
    rights("nothings")?;
    let right = ["patch", "ippools.projectcalico.org", "--subresource=status"];
    wait_right(&site.api, ACCOUNT, &right, false)?;
    let controller = Controller::start(&site, "controller1", 9191)?;
    let result = (|| {
        wait_for("the refusal", LONG, || {
            let status = controller.get(&site, "/statusz")?;
            ensure!(status.contains("may not patch ippools/status"), "{status}");
            Ok(())
        })?;
        // The rest goes on.
        let by_all = ("True", "Accepted", "accepted by 2 of 2 nodes");
        wait_condition(&site, ("ipamconfiguration", "default", "Accepted"), by_all)?;
        let wider =
            POOL.replace("name: app", "name: wider").replace("10.10.0.0/26", "10.10.0.0/16");
        site.apply(&wider)?;
        wait_until("the Event", LONG, || {
            Ok(!events(&site, "IPPool", "wider", "Overlaps")?.is_empty())
        })?;
        rights("ippools")?;
        wait_until("the condition", LONG, || {
            Ok(condition(&site, "ippool", "wider", "Allocatable").is_ok())
        })?;
        let events = events(&site, "IPPool", "wider", "Overlaps")?;
        ensure!(events.len() == 1 && events[0]["series"].is_null(), "{events:?}");
        Ok(())
    })();
    with_log(&controller, result)
}
