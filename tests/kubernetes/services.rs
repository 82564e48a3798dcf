//! Addresses of services, announced by real daemons to a router.

use std::fs;

use anyhow::{Result, ensure};
use twill_tests::{
    kubernetes::ApiServer,
    wait::{wait_for, wait_until},
};

use super::{
    LONG,
    nodes::{PEER, POOL, STRICT, Site},
};

/// A range of each kind; each beside the API server's own.
const RANGES: &str = "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\n\
     spec:\n  serviceClusterIPs: [{cidr: 10.96.0.0/16}]\n  serviceExternalIPs: [{cidr: 192.0.2.0/24}]\n  \
     serviceLoadBalancerIPs: [{cidr: 198.51.100.0/24}]\n  serviceLoadBalancerAggregation: Disabled\n";

/// Without a selector, so that its endpoints are what the test says.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: default}\n\
     spec: {type: LoadBalancer, externalTrafficPolicy: Local, externalIPs: [192.0.2.9], ports: [{port: 80}]}\n";

fn slice(ready: [bool; 2]) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
         endpoints:\n\
         - {{addresses: [10.10.0.1], nodeName: node1, conditions: {{ready: {}}}}}\n\
         - {{addresses: [10.10.0.33], nodeName: node2, conditions: {{ready: {}}}}}\n\
         ports: [{{port: 80}}]\n",
        ready[0], ready[1]
    )
}

/// Which nodes announce a prefix to the router, in the end.
fn wait_announced(site: &Site, prefix: &str, by: &[&str]) -> Result<()> {
    wait_for(&format!("{prefix} of {by:?}"), LONG, || {
        let routes = site.lab.bird("tor")?.routes(prefix)?;
        let mut from: Vec<String> = routes.into_iter().map(|route| route.protocol).collect();
        from.sort();
        ensure!(from == by, "{prefix} comes from {from:?}");
        Ok(())
    })
}

/// Ranges come from every node; a service with the policy Local from nodes with ready endpoints; after a
/// restart without the API server as before; from a node that is excluded nothing.
pub(crate) fn addresses_of_services_are_announced(_: &ApiServer) -> Result<()> {
    let both = &["node1", "node2"][..];
    let mut site = Site::start_with(&[POOL, PEER, STRICT, RANGES], "", &[])?;
    site.lab.bird("tor")?.wait_established(both, LONG)?;
    wait_announced(&site, "10.96.0.0/16", both)?;
    wait_announced(&site, "192.0.2.0/24", both)?;
    wait_announced(&site, "198.51.100.0/24", &[])?;

    site.apply(SERVICE)?;
    site.apply(&slice([true, false]))?;
    let kubectl = site.api.kubectl();
    let given = r#"{"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}}}"#;
    kubectl.run(&[
        "patch",
        "service",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        given,
    ])?;
    wait_announced(&site, "192.0.2.9/32", &["node1"])?;
    wait_announced(&site, "198.51.100.7/32", &["node1"])?;
    site.apply(&slice([false, true]))?;
    wait_announced(&site, "192.0.2.9/32", &["node2"])?;
    wait_announced(&site, "198.51.100.7/32", &["node2"])?;

    // With any node's endpoints all nodes serve it: an address of a range that is not announced whole
    // goes out from both.
    site.apply(&SERVICE.replace("externalTrafficPolicy: Local, ", ""))?;
    wait_announced(&site, "198.51.100.7/32", both)?;
    wait_announced(&site, "192.0.2.9/32", &[])?;
    site.apply(&slice([false, false]))?;
    wait_announced(&site, "198.51.100.7/32", &[])?;

    site.apply(&slice([true, true]))?;
    wait_announced(&site, "198.51.100.7/32", both)?;
    // A slice that goes alone takes the addresses of its service along, and brings them back.
    kubectl.run(&["delete", "endpointslice", "web-1"])?;
    wait_announced(&site, "198.51.100.7/32", &[])?;
    site.apply(&slice([true, true]))?;
    wait_announced(&site, "198.51.100.7/32", both)?;
    let exclude = "node.kubernetes.io/exclude-from-external-load-balancers=";
    kubectl.run(&["label", "node", "node2", exclude])?;
    wait_announced(&site, "10.96.0.0/16", &["node1"])?;
    wait_announced(&site, "198.51.100.7/32", &["node1"])?;

    // Nothing is forgotten over a restart without the API server, on a node without a block, whose services
    // somebody else forwards.
    ensure!(site.claims()?.is_empty(), "{:?}", site.claims()?);
    let copy = site.lab.node("node1")?.dir().join("state/last-known-services.json");
    wait_until("the copy of the services", LONG, || {
        Ok(fs::read_to_string(&copy).is_ok_and(|text| text.contains("198.51.100.7/32")))
    })?;
    site.api.set_reachable(false)?;
    let before = site.lab.bird("tor")?.log().len();
    site.lab.node_mut("node1")?.stop()?;
    site.lab.node_mut("node1")?.start()?;
    site.lab.bird("tor")?.wait_established(&["node1"], LONG)?;
    wait_announced(&site, "198.51.100.7/32", &["node1"])?;
    let withdrawn = site.lab.bird("tor")?.withdrawals("node1", before);
    ensure!(withdrawn.is_empty(), "{withdrawn:?}");
    site.api.set_reachable(true)
}
