//! Ways in and out: annotations choose a pool, pods leave by their node's address, services are reached from
//! outside.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use twill_tests::{
    kubernetes::Tor,
    netns::Namespace,
    wait::{wait_for, wait_until},
};
use twill_types::Prefix;

use super::{
    LONG,
    addresses::ON_SELECTED,
    site::{POOLS, SELECTED, Site, lock},
};

/// Pools that nobody gets who does not ask.
const MANUAL: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: out}
spec: {cidr: 10.30.0.0/24, blockSize: 28, nodeSelector: env == 'prod', assignmentMode: Manual, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: named}
spec: {cidr: 10.31.0.0/24, blockSize: 28, nodeSelector: env == 'prod', assignmentMode: Manual}
";

/// A host behind the router that knows the nodes and no pool.
const WORLD: &str = "203.0.113.10";

const SERVICES: &str = "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\n\
                        spec: {serviceClusterIPs: [{cidr: 10.96.0.0/16}]}\n";
const SERVICE_RANGE: &str = "10.96.0.0/16";

const PORT: u16 = 8080;

fn world(tor: &Tor) -> Result<Namespace> {
    let world = Namespace::create("world")?;
    tor.namespace().ip_batch(
        "link add world type veth peer name eth0 netns world\n\
         addr add 203.0.113.1/24 dev world\nlink set world up\n",
    )?;
    world.ip_batch(&format!(
        "addr add {WORLD}/24 dev eth0\nlink set eth0 up\nroute add 192.168.0.0/16 via 203.0.113.1\n"
    ))?;
    Ok(world)
}

/// The namespace's annotation chooses for its pods, a pod's own goes before. Those of a pool with
/// `natOutgoing` reach who has no route back to them.
pub(crate) fn annotated_pods_leave_by_their_nodes_address(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    site.apply(MANUAL)?;
    let world = world(site.cluster.tor())?;
    let annotate = |value: &str| {
        let annotation = format!("{POOLS}{value}");
        site.kubectl().run(&["annotate", "--overwrite", "namespace", "default", &annotation])
    };
    annotate("=[\"out\"]")?;
    // The daemons hear of the annotation a moment after the API server has it.
    let out: Prefix = "10.30.0.0/24".parse()?;
    let pods = wait_for("pods of the namespace's pool", LONG, || {
        site.deploy("app", 2, ON_SELECTED)?;
        let pods = site.wait_ready("app", 2)?;
        let chosen = pods.iter().all(|pod| out.contains(pod.address));
        if !chosen {
            site.remove("app")?;
        }
        ensure!(chosen, "{pods:?}");
        Ok(pods)
    })?;
    for pod in &pods {
        let way = world.ip(&format!("route get {}", pod.address));
        ensure!(way.is_err(), "there is a route back: {way:?}");
        wait_for("the pod to reach the world", LONG, || {
            site.exec(&pod.name, &["ping", "-c", "1", "-W", "5", WORLD])
        })?;
    }
    // Between pools they keep their addresses, and need no table.
    wait_for("the pods to reach each other", LONG, || site.pings(&pods[0], &pods[1]))?;
    site.remove("app")?;

    let named: Prefix = "10.31.0.0/24".parse()?;
    site.deploy_annotated("app", 2, &format!("{POOLS}: '[\"named\"]'"), ON_SELECTED)?;
    let pods = site.wait_ready("app", 2)?;
    ensure!(pods.iter().all(|pod| named.contains(pod.address)), "{pods:?}");
    site.remove("app")?;
    annotate("-")?;
    // The pools themselves go with their last claims, which is later.
    let no_nat = r#"{"spec": {"natOutgoing": false}}"#;
    site.kubectl().run(&["patch", "ippool", "out", "--type=merge", "-p", no_nat])?;
    site.kubectl().run(&["delete", "ippool", "out", "named", "--wait=false"])?;
    wait_until("the nodes to have no table any more", LONG, || {
        let mut tables = String::new();
        for node in SELECTED {
            tables += &site.cluster.node(node)?.run("nft", &["list", "tables"])?;
        }
        Ok(!tables.contains("inet twill"))
    })
}

/// The range of the services' addresses comes to the router from each node, and a service is reached there by it.
pub(crate) fn a_service_is_reached_from_the_router(site: &Mutex<Site>) -> Result<()> {
    let site = lock(site)?;
    site.deploy("web", 2, ON_SELECTED)?;
    for pod in site.wait_ready("web", 2)? {
        let port = format!("{PORT}");
        let httpd = ["/bin/busybox", "httpd", "-p", &port, "-h", "/bin"];
        site.exec(&pod.name, &httpd)?;
    }
    let port = format!("--target-port={PORT}");
    site.kubectl().run(&["expose", "deployment", "web", "--port=80", &port])?;
    let service = site.kubectl().json(&["get", "service", "web"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
    site.apply(SERVICES)?;
    let tor = site.cluster.tor();
    for node in SELECTED {
        tor.bird().wait_route(SERVICE_RANGE, node, LONG)?;
    }
    wait_for("an answer of the service", LONG, || {
        let answer = tor.namespace().enter(|| get(&address))??;
        ensure!(answer.starts_with("HTTP/1."), "{answer}");
        Ok(())
    })?;
    site.kubectl().run(&["delete", "bgpconfiguration", "default"])?;
    tor.bird().wait_no_route(SERVICE_RANGE, LONG)?;
    site.kubectl().run(&["delete", "service", "web"])?;
    site.remove("web")
}

/// What a server on port 80 answers.
pub(crate) fn get(address: &str) -> Result<String> {
    const LIMIT: Duration = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&format!("{address}:80").parse()?, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET /nothing HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
