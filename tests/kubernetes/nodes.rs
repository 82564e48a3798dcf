//! Node daemons on the API server: each test has one of its own, which it may stop, and a rack of two
//! nodes and a router.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    kubernetes::ApiServer,
    lab::{Lab, Pod, Topology},
    ping,
    process::check,
    programs,
    sandbox::LABS,
    snapshot::Snapshot,
    wait::{wait_for, wait_until},
};

use super::{
    LONG, define,
    permission::{wait_right, wait_rights},
};

/// That of the daemons.
pub(crate) const ACCOUNT: &str = "twill-node";

pub(crate) const TOR: &str = "192.168.2.1";
pub(crate) const NODES: [(&str, &str); 2] = [("node1", "192.168.2.11"), ("node2", "192.168.2.12")];
const API: &str = "192.168.2.250";

/// Two blocks of 32 addresses.
pub(crate) const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: app}\n\
                    spec: {cidr: 10.10.0.0/26, blockSize: 27, nodeSelector: all()}\n";
pub(crate) const PEER: &str = "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor}\n\
                    spec: {peerIP: 192.168.2.1, asNumber: 64513}\n";
pub(crate) const STRICT: &str = "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\n\
                      metadata: {name: default}\nspec: {strictAffinity: true}\n";

const LIST_POOLS: [&str; 2] = ["list", "ippools.projectcalico.org"];

/// A cluster without kubelets.
pub(crate) struct Site {
    // The daemons end before the API server.
    pub(crate) lab: Lab,
    pub(crate) api: ApiServer,
}

impl Site {
    /// Starts an API server with our definitions, the account of node daemons, these manifests and the
    /// two Nodes; then the daemons.
    pub(crate) fn start(manifests: &[&str]) -> Result<Self> {
        Self::start_with(manifests, "", &[])
    }

    /// The same with more lines for each `twilld.yaml`, and for each of the router's neighbors.
    pub(crate) fn start_with(manifests: &[&str], settings: &str, options: &[&str]) -> Result<Self> {
        Self::start_nodes(&NODES, manifests, settings, options)
    }

    /// The same with other nodes: names and addresses.
    pub(crate) fn start_nodes(
        nodes: &[(&str, &str)],
        manifests: &[&str],
        settings: &str,
        options: &[&str],
    ) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("api{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let api = ApiServer::start(&name, &Path::new(LABS).join(&name))?;
        define(&api)?;
        let account = programs::source("conf/rbac");
        api.kubectl().run(&["create", "-f", &account.to_string_lossy()])?;
        wait_rights(&api, ACCOUNT)?;
        let mut topology = Topology::new();
        let neighbors = nodes.iter().map(|(name, address)| {
            let neighbor = Neighbor::new(name, address, 64512).local(TOR);
            options.iter().fold(neighbor, |neighbor, line| neighbor.option(line))
        });
        let bird = neighbors.fold(BirdConfig::new(TOR, 64513), BirdConfig::neighbor);
        topology.router("tor").on("seg-a", &format!("{TOR}/24")).bird(bird);
        for (name, address) in nodes {
            let node = topology.node(name).on("seg-a", &format!("{address}/24")).gateway(TOR);
            node.settings(settings);
        }
        for (number, text) in manifests.iter().enumerate() {
            topology.resource(&format!("{number}.yaml"), text);
        }
        topology.kubernetes(&api.node_kubeconfigs());
        let lab = topology.build()?;
        api.join(lab.fabric(), "seg-a", &format!("{API}/24"))?;
        let resources = lab.dir().join("resources");
        api.kubectl().run(&["create", "-f", &resources.to_string_lossy()])?;
        for (node, _) in nodes {
            api.write_node_kubeconfig(node, API)?;
        }
        let mut site = Self { lab, api };
        site.lab.start_all()?;
        Ok(site)
    }

    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        self.api.kubectl().run_with_input(&["apply", "-f", "-"], manifest).map(drop)
    }

    /// The owners of all claimed blocks.
    pub(crate) fn claims(&self) -> Result<BTreeMap<String, String>> {
        let found = self.api.kubectl().json(&["get", "blockaffinities"])?;
        let claim = |claim: &Value| {
            let spec = &claim["spec"];
            Some((spec["cidr"].as_str()?.to_owned(), spec["node"].as_str()?.to_owned()))
        };
        Ok(found["items"].as_array().into_iter().flatten().filter_map(claim).collect())
    }

    /// Waits until a node has written all that it writes after its start and its first pod.
    pub(crate) fn wait_settled(&self, node: &str) -> Result<()> {
        // What is told about the first block is told before.
        wait_for(&format!("the status of {node}"), LONG, || self.condition(node, "IPPool", "app"))?;
        // Of its machine it says it at the same time, or as soon as it has looked.
        wait_for(&format!("{node} to be up"), LONG, || {
            let found = self.api.kubectl().json(&["get", "node", node])?;
            let conditions = found["status"]["conditions"].as_array().into_iter().flatten();
            let reasons: Vec<_> = conditions.filter_map(|c| c["reason"].as_str()).collect();
            let is_said = |reason| reasons.contains(&reason);
            ensure!(is_said("TwillIsUp") && is_said("ChecksPass"), "{reasons:?}");
            Ok(())
        })
    }

    /// The same of [`NODES`]: what is counted is what all have asked for.
    pub(crate) fn wait_all_settled(&self) -> Result<()> {
        NODES.iter().try_for_each(|(node, _)| self.wait_settled(node))
    }

    /// What a node says about an object in its own status.
    pub(crate) fn condition(&self, node: &str, kind: &str, name: &str) -> Result<Value> {
        let mut accepted = self.conditions(node, kind, name)?.into_iter();
        let accepted = accepted.find(|condition| condition["type"] == "Accepted");
        accepted.with_context(|| format!("{kind} {name} is not accepted by {node}"))
    }

    /// All that a node says about an object.
    pub(crate) fn conditions(&self, node: &str, kind: &str, name: &str) -> Result<Vec<Value>> {
        let status = self.api.kubectl().json(&["get", "caliconodestatus", node])?;
        let objects = status["status"]["objects"].as_array().cloned().unwrap_or_default();
        let found = objects.iter().find(|object| object["kind"] == kind && object["name"] == name);
        let conditions = found.and_then(|object| object["conditions"].as_array());
        conditions.cloned().with_context(|| format!("nothing about {kind} {name} in {status}"))
    }
}

pub(crate) fn block_of(site: &Site, pod: &Pod) -> Result<(String, String)> {
    let address = pod.address()?;
    let claims = site.claims()?;
    let found = claims.iter().find(|(cidr, _)| {
        cidr.parse::<twill_types::Prefix>().is_ok_and(|block| block.contains(address))
    });
    let (block, owner) = found.with_context(|| format!("no claim has {address}: {claims:?}"))?;
    Ok((block.clone(), owner.clone()))
}

/// kubectl makes a pool and a peer; a pod gets an address of a claim that kubectl shows, and the router
/// hears of the block. A damaged object is told and harms nobody.
pub(crate) fn pods_get_addresses_of_claims_that_kubectl_shows(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, PEER, STRICT])?;
    let pod = site.lab.add_pod("node1", "a")?;
    let (block, owner) = block_of(&site, &pod)?;
    ensure!(owner == "node1", "{block} is {owner}'s");
    let claims = site.api.kubectl().json(&["get", "blockaffinities"])?;
    let metadata = &claims["items"][0]["metadata"];
    ensure!(metadata["finalizers"][0] == "twill.projectcalico.org/claim", "{metadata}");
    ensure!(metadata["ownerReferences"].is_null(), "{metadata}");
    site.lab.bird("tor")?.wait_established(&["node1", "node2"], LONG)?;
    // The mesh is on without a BGPConfiguration, so each node knows of the other.
    site.lab.node("node1")?.wait_established(&["192.168.2.12"], LONG)?;
    site.lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
    let lease = ["get", "lease", "-n", "twill-system", "twill-node-node1"];
    wait_for("the Lease of node1", LONG, || site.api.kubectl().run(&lease))?;

    // A selector's syntax is not the schema's to check.
    let damaged = PEER.replace("asNumber: 64513", "asNumber: 64513, nodeSelector: 'rack =='");
    site.apply(&damaged)?;
    wait_for("the condition of the damaged peer", LONG, || {
        let condition = site.condition("node1", "BGPPeer", "tor")?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(condition["status"] == "False" && message.contains("rack =="), "{condition}");
        Ok(())
    })?;
    let accepted = site.condition("node1", "IPPool", "app")?;
    ensure!(accepted["status"] == "True", "{accepted}");
    site.lab.bird("tor")?.wait_established(&["node1"], Duration::from_secs(1))?;
    site.apply(PEER)?;
    wait_until("the peer to be right again", LONG, || {
        Ok(site.condition("node1", "BGPPeer", "tor")?["status"] == "True")
    })?;
    site.lab.delete_pod(pod)
}

/// The pool and the peer of docs/install.md are taken as they stand. With the router's address in the place of the
/// example's, pods get addresses on nodes without a label, and the router learns of their blocks.
pub(crate) fn the_documented_network_is_enough(_: &ApiServer) -> Result<()> {
    const EXAMPLE: &str = "192.0.2.1";
    let written = programs::documented("docs/install.md", "# network.yaml\n")?;
    ensure!(written.contains(EXAMPLE), "{written}");
    let mut site = Site::start(&[&written.replace(EXAMPLE, TOR)])?;
    for (node, _) in NODES {
        let pod = site.lab.add_pod(node, &format!("of-{node}"))?;
        let (block, owner) = block_of(&site, &pod)?;
        ensure!(owner == node, "{block} is {owner}'s");
        site.lab.bird("tor")?.wait_route(&block, node, LONG)?;
    }
    let said = site.api.kubectl().run_with_input(&["apply", "-f", "-"], &written)?;
    ensure!(said.contains("/router configured"), "{said}");
    Ok(())
}

/// While its blocks have space, a node asks the API server for nothing.
pub(crate) fn an_add_asks_the_api_server_for_nothing(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, STRICT])?;
    let first = site.lab.add_pod("node1", "first")?;
    site.wait_all_settled()?;
    let watches = |requests: &[String]| {
        requests.iter().filter(|request| request.starts_with("watch")).count()
    };
    let before = site.api.node_requests()?;
    for number in 0..8 {
        let pod = site.lab.add_pod("node1", &format!("pod{number}"))?;
        site.lab.delete_pod(pod)?;
    }
    let after = site.api.node_requests()?;
    let new: Vec<_> = after[before.len()..]
        .iter()
        // The lease is renewed and numbers are told by the clock, and a watch that ends is taken up again.
        .filter(|request| !request.ends_with(" leases") && !request.starts_with("watch"))
        .filter(|request| !request.ends_with(" caliconodestatuses"))
        .collect();
    ensure!(new.is_empty(), "8 ADDs and DELs made {new:?}");
    ensure!(watches(&before) > 0, "the audit log is of no use: {before:?}");
    site.lab.delete_pod(first)
}

/// Two nodes want the last block at the same moment: one gets it, the other says what is the matter.
pub(crate) fn two_nodes_race_for_the_last_block(_: &ApiServer) -> Result<()> {
    let pool = POOL.replace("10.10.0.0/26", "10.10.0.0/27");
    let mut site = Site::start(&[&pool, STRICT])?;
    let mut pods = Vec::new();
    for (node, _) in NODES {
        pods.push(site.lab.bare_pod(node, node)?);
    }
    let lab = &site.lab;
    let outcomes: Vec<Result<Value>> = thread::scope(|scope| {
        let add = |pod: &mut Pod| lab.attach(pod);
        let threads: Vec<_> = pods.iter_mut().map(|pod| scope.spawn(move || add(pod))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let claims = site.claims()?;
    ensure!(claims.len() == 1, "{claims:?}");
    let mut lost = 0;
    for ((node, _), outcome) in NODES.iter().zip(outcomes) {
        let is_owner = claims.values().any(|owner| owner == node);
        match outcome {
            Ok(_) => ensure!(is_owner, "{node} has an address, and the block is another's"),
            Err(error) => {
                lost += 1;
                let text = format!("{error:#}");
                ensure!(!is_owner && text.contains("is in use"), "{node}: {text}");
            }
        }
    }
    ensure!(lost == 1, "{lost} of two nodes got nothing");
    Ok(())
}

/// How long a start without the API server may take on a machine that is busy: by design it waits for that for less than
/// a second.
const WITHOUT_SERVER: Duration = Duration::from_secs(30);

/// Pods come and go while the API server is away, the daemon restarts meanwhile, and catches up after.
pub(crate) fn nodes_do_without_the_api_server_for_a_while(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, PEER, STRICT])?;
    let kept = site.lab.add_pod("node1", "kept")?;
    let (block, _) = block_of(&site, &kept)?;
    site.lab.bird("tor")?.wait_route(&block, "node1", LONG)?;

    // Without a word, and then a start.
    site.api.set_reachable(false)?;
    churn(&mut site, "away")?;
    site.lab.node_mut("node1")?.stop()?;
    let (before, start) = (site.lab.node("node1")?.log().len(), Instant::now());
    site.lab.node_mut("node1")?.start()?;
    let (took, log) = (start.elapsed(), site.lab.node("node1")?.log());
    ensure!(took < WITHOUT_SERVER, "a start without the API server took {took:?}");
    let said = log.get(before..).unwrap_or_default();
    ensure!(said.contains("starting with what was last known"), "{said}");
    let used = site.lab.node("node1")?.addresses_in_use()?;
    ensure!(used == 1, "{used} addresses in use after a restart");
    churn(&mut site, "restarted")?;
    site.lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
    site.api.set_reachable(true)?;
    let second = POOL.replace("name: app", "name: second").replace("10.10.", "10.20.");
    site.apply(&second)?;
    wait_for("node1 to hear of a pool", LONG, || site.condition("node1", "IPPool", "second"))?;

    // Killed, and started again.
    site.api.kill_server()?;
    churn(&mut site, "killed")?;
    site.api.start_server()?;
    let third = POOL.replace("name: app", "name: third").replace("10.10.", "10.30.");
    site.apply(&third)?;
    wait_for("node1 to hear of a pool", LONG, || site.condition("node1", "IPPool", "third"))?;
    let claims = site.claims()?;
    ensure!(claims.get(&block).is_some_and(|owner| owner == "node1"), "{claims:?}");
    site.lab.delete_pod(kept)
}

/// Pods come, are reached, and go.
fn churn(site: &mut Site, name: &str) -> Result<()> {
    for number in 0..3 {
        let pod = site.lab.add_pod("node1", &format!("{name}{number}"))?;
        let address = pod.address()?;
        wait_for("the router to reach the pod", LONG, || {
            ping::reaches(site.lab.router("tor")?, address)
        })?;
        site.lab.delete_pod(pod)?;
    }
    Ok(())
}

/// A BGPFilter that is gone holds as it was last, also for a daemon that starts after that, whether or not it can
/// ask. One that a node has never seen lets nothing pass.
pub(crate) fn a_filter_that_is_gone_holds(_: &ApiServer) -> Result<()> {
    let peer = PEER.replace("64513}", "64513, filters: [racks]}");
    let filter = "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: racks}\n\
                  spec: {exportV4: [{action: Accept}]}\n";
    let mut site = Site::start(&[POOL, &peer, STRICT])?;
    let pod = site.lab.add_pod("node1", "a")?;
    let (block, _) = block_of(&site, &pod)?;
    wait_announced(&site, 0)?;
    site.lab.bird("tor")?.wait_no_route(&block, LONG)?;
    site.apply(filter)?;
    site.lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
    wait_announced(&site, 1)?;

    site.lab.node_mut("node1")?.stop()?;
    site.api.kubectl().run(&["delete", "bgpfilter", "racks"])?;
    site.lab.node_mut("node1")?.start()?;
    wait_announced(&site, 1)?;
    site.lab.node_mut("node1")?.stop()?;
    site.api.set_reachable(false)?;
    site.lab.node_mut("node1")?.start()?;
    wait_announced(&site, 1)?;
    site.lab.bird("tor")?.wait_route(&block, "node1", LONG)?;
    site.api.set_reachable(true)?;
    site.lab.delete_pod(pod)
}

/// Waits until node1 tells the router so many prefixes.
pub(crate) fn wait_announced(site: &Site, prefixes: u64) -> Result<()> {
    wait_for(&format!("{prefixes} prefixes told"), LONG, || {
        let peer = site.lab.node("node1")?.peer(TOR)?;
        ensure!(peer["state"] == "Established" && peer["prefixesOut"] == prefixes, "{peer}");
        Ok(())
    })
}

/// What a node may not see is said with verb and resource.
pub(crate) fn a_forbidden_request_is_said(_: &ApiServer) -> Result<()> {
    let mut site = Site::start(&[POOL, STRICT])?;
    let rights = ["patch", "clusterrole", "twill-node", "--type=json", "-p"];
    let patch = r#"[{"op": "remove", "path": "/rules/0"}]"#;
    site.api.kubectl().run(&[&rights[..], &[patch]].concat())?;
    wait_right(&site.api, ACCOUNT, &LIST_POOLS, false)?;
    site.lab.node_mut("node1")?.stop()?;
    site.lab.node_mut("node1")?.start()?;
    wait_for("node1 to say what it may not do", LONG, || {
        let status = site.lab.node("node1")?.status()?.to_string();
        ensure!(status.contains("may not list ippools"), "{status}");
        Ok(())
    })?;
    // It goes on with what it knew.
    let pod = site.lab.add_pod("node1", "a")?;
    site.lab.delete_pod(pod)
}

/// What a daemon answers to a GET, status line and all.
fn ask(site: &Site, node: &str, path: &str) -> Result<String> {
    let get = || -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", 9190))?;
        stream.set_read_timeout(Some(LONG))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    site.lab.node(node)?.namespace().enter(get)?
}

/// All of a node's kernel that a daemon may write to.
fn kernel_of(site: &Site, node: &str) -> Result<(Snapshot, String)> {
    let namespace = site.lab.node(node)?.namespace();
    let tables = namespace.output(Command::new("nft").args(["list", "ruleset"]))?;
    Ok((Snapshot::namespace(namespace)?, check("nft", &tables)?))
}

/// A first start without a right that it needs: the daemon lives, and says what it waits for. Until it knows
/// everything, all in the kernel stays as it was, also what is not the daemon's any more.
pub(crate) fn a_first_start_says_what_it_waits_for(_: &ApiServer) -> Result<()> {
    const STALE: &str = "10.99.0.0/24";
    let settings = "metrics: {listen: \"127.0.0.1:9190\"}\n";
    let pool = POOL.replace("blockSize: 27,", "blockSize: 27, natOutgoing: true,");
    let mut site = Site::start_with(&[&pool, STRICT], settings, &[])?;
    ensure!(ask(&site, "node1", "/readyz")?.contains(" 200 "), "it is ready");
    let pod = site.lab.add_pod("node1", "kept")?;
    wait_for("the table of nftables", LONG, || {
        let (_, tables) = kernel_of(&site, "node1")?;
        ensure!(tables.contains("table inet twill"), "{tables}");
        Ok(())
    })?;
    let rights = ["patch", "clusterrole", "twill-node", "--type=json", "-p"];
    let patch = r#"[{"op": "remove", "path": "/rules/0"}]"#;
    site.api.kubectl().run(&[&rights[..], &[patch]].concat())?;
    wait_right(&site.api, ACCOUNT, &LIST_POOLS, false)?;
    let node = site.lab.node_mut("node1")?;
    node.stop()?;
    fs::remove_file(node.dir().join("state/last-known-good.json"))?;
    // Of a daemon that is no more: the first thing that a sweep would take.
    node.namespace().ip(&format!("route add {STALE} via {TOR} proto 116 metric 512"))?;
    let before = kernel_of(&site, "node1")?;
    ensure!(before.0.lines().any(|line| line.contains(STALE)), "no stale route");
    site.lab.node_mut("node1")?.launch()?;
    for path in ["/readyz", "/statusz", "/metrics"] {
        wait_for(&format!("{path} to say what is missing"), LONG, || {
            let answer = ask(&site, "node1", path)?;
            ensure!(
                answer.contains(" 503 ") && answer.contains("may not list ippools"),
                "{answer}"
            );
            Ok(())
        })?;
    }
    let answer = ask(&site, "node1", "/healthz")?;
    ensure!(answer.contains(" 200 "), "a probe would restart it: {answer}");
    let now = kernel_of(&site, "node1")?;
    let changed = before.0.differences(&now.0);
    ensure!(changed.is_empty(), "before anything is known: {changed:#?}");
    ensure!(now.1 == before.1, "{} instead of {}", now.1, before.1);
    ping::reaches(site.lab.node("node1")?.namespace(), pod.address()?)?;

    let account = programs::source("conf/rbac");
    site.api.kubectl().run(&["apply", "-f", &account.to_string_lossy()])?;
    // What is refused is asked for every half a minute.
    wait_for("node1 to be ready", LONG, || {
        let answer = ask(&site, "node1", "/readyz")?;
        ensure!(answer.contains(" 200 "), "{answer}");
        Ok(())
    })?;
    site.lab.node_mut("node1")?.wait_ready()?;
    wait_for("the stale route to be swept", LONG, || {
        let (kernel, _) = kernel_of(&site, "node1")?;
        ensure!(!kernel.lines().any(|line| line.contains(STALE)), "it is there");
        Ok(())
    })?;
    site.lab.delete_pod(pod)
}

/// The API server has forgotten what the nodes saw last: it has started anew over a store that was compacted. They
/// list again, and hear of what has changed and of what has gone; pods go on.
pub(crate) fn a_watch_that_is_too_old_begins_again(_: &ApiServer) -> Result<()> {
    let other = POOL.replace("name: app", "name: other").replace("10.10.", "10.20.");
    let mut site = Site::start(&[POOL, &other, STRICT])?;
    let kept = site.lab.add_pod("node1", "kept")?;
    site.wait_settled("node1")?;
    site.api.set_reachable(false)?;
    let lists = |site: &Site| -> Result<usize> {
        let requests = site.api.node_requests()?;
        Ok(requests.iter().filter(|request| *request == "list ippools").count())
    };
    let before = lists(&site)?;
    site.api.kubectl().run(&["delete", "ippool", "other", "--wait=false"])?;
    site.apply(&POOL.replace("name: app", "name: late").replace("10.10.", "10.30."))?;
    site.api.kill_server()?;
    site.api.compact()?;
    site.api.start_server()?;
    site.api.set_reachable(true)?;
    wait_for("node1 to hear of a pool", LONG, || site.condition("node1", "IPPool", "late"))?;
    ensure!(lists(&site)? > before, "the watch went on: nothing was too old");
    wait_for("node1 to hear that a pool is gone", LONG, || {
        let other = site.condition("node1", "IPPool", "other");
        ensure!(other.is_err(), "{other:?}");
        Ok(())
    })?;
    let used = site.lab.node("node1")?.addresses_in_use()?;
    ensure!(used == 1, "{used} addresses in use");
    let more = site.lab.add_pod("node1", "more")?;
    site.lab.delete_pod(more)?;
    site.lab.delete_pod(kept)
}

/// The password of a session stands in a Secret of the daemons' own namespace.
pub(crate) fn a_password_comes_from_a_secret(_: &ApiServer) -> Result<()> {
    let reference = "asNumber: 64513, password: {secretKeyRef: {name: bgp, key: tor}}";
    let peer = PEER.replace("asNumber: 64513", reference);
    let site = Site::start_with(&[POOL, &peer, STRICT], "", &["password \"s3cret\""])?;
    let kubectl = site.api.kubectl();
    wait_for("node1 to miss the Secret", LONG, || {
        let status = kubectl.run(&["get", "caliconodestatus", "node1", "-o", "yaml"])?;
        ensure!(status.contains("there is no Secret bgp"), "{status}");
        Ok(())
    })?;
    let secret = ["create", "secret", "generic", "bgp", "--from-literal=tor=s3cret", "-n"];
    // One of another namespace is nobody's business.
    kubectl.run(&[&secret[..], &["default"]].concat())?;
    kubectl.run(&[&secret[..], &["twill-system"]].concat())?;
    site.lab.bird("tor")?.wait_established(&["node1", "node2"], LONG)
}
