//! Addresses of services that this node announces: which of them, by what the cluster's Services and
//! EndpointSlices say. Nothing here knows where they come from.
//!
//! As Calico does it: ranges are announced whole by every node, since kube-proxy serves each address on
//! each node. A single address is announced where a range is not enough: by the nodes that have a ready
//! endpoint of a service whose policy is `Local`, and by all nodes where load balancers' ranges are not
//! to be announced whole.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use twill_k8s_api::{BgpConfigurationSpec, LoadBalancerAggregation, ServiceCidr};
use twill_types::{Family, Prefix};

use crate::datastore::Snapshot;

/// The label of a node that gets no traffic from outside (Kubernetes' own; its value does not matter).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What this node announces of the cluster's services; `None` until it may be acted upon.
pub(crate) type Announced = watch::Sender<Option<BTreeSet<Prefix>>>;

/// What is known of the cluster's services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Services {
    /// By `namespace/name`.
    pub(crate) services: BTreeMap<String, Service>,
    /// By `namespace/name` of the slice: one service may have many.
    pub(crate) slices: BTreeMap<String, Slice>,
}

/// What counts of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Service {
    /// Its addresses within the cluster.
    pub(crate) cluster: BTreeSet<IpAddr>,
    /// Its `externalIPs`.
    pub(crate) external: BTreeSet<IpAddr>,
    /// What a load balancer's controller gave it.
    pub(crate) load_balancer: BTreeSet<IpAddr>,
    /// Traffic from outside goes to endpoints of the node that it comes to (`externalTrafficPolicy: Local`).
    pub(crate) local: bool,
}

/// What counts of an EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Slice {
    /// Whose endpoints they are, `namespace/name`.
    pub(crate) service: String,
    /// One of this node's is ready.
    pub(crate) ready_here: bool,
    /// One is ready anywhere.
    pub(crate) ready: bool,
}

/// Which addresses are to be announced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    cluster: Vec<Prefix>,
    external: Vec<Prefix>,
    load_balancer: Vec<Prefix>,
    /// Load balancers' ranges are announced whole.
    aggregates: bool,
}

impl Ranges {
    /// What the BGPConfiguration `default` says.
    pub(crate) fn of(spec: Option<&BgpConfigurationSpec>) -> Self {
        let Some(spec) = spec else { return Self::default() };
        let prefixes = |ranges: &[ServiceCidr]| ranges.iter().map(|range| range.cidr).collect();
        Self {
            cluster: prefixes(&spec.service_cluster_ips),
            external: prefixes(&spec.service_external_ips),
            load_balancer: prefixes(&spec.service_load_balancer_ips),
            aggregates: spec.service_load_balancer_aggregation
                != Some(LoadBalancerAggregation::Disabled),
        }
    }

    /// Nothing is to be announced, whatever services there are.
    pub(crate) fn is_empty(&self) -> bool {
        self.cluster.is_empty() && self.external.is_empty() && self.load_balancer.is_empty()
    }

    /// What every node announces, whatever services there are.
    fn whole(&self) -> impl Iterator<Item = Prefix> {
        let balanced = self.load_balancer.iter().filter(|_| self.aggregates);
        // A range of one address means that address, where somebody serves it.
        let ranges = self.cluster.iter().chain(&self.external).chain(balanced);
        ranges.copied().filter(|range| !is_single(*range))
    }
}

impl Services {
    /// What a node announces by what is configured and by its Node's labels.
    pub(crate) fn announced_by(&self, node: &str, resources: &Snapshot) -> BTreeSet<Prefix> {
        let default = resources.bgp_default();
        let none = BTreeMap::new();
        let labels = resources.nodes.get(node).map_or(&none, |own| &own.metadata.labels);
        self.announced(&Ranges::of(default), labels)
    }

    /// What a node with these labels announces. Without `endpoints` nothing is known of them, and only
    /// whole ranges are sure.
    pub(crate) fn announced(
        &self,
        ranges: &Ranges,
        labels: &BTreeMap<String, String>,
    ) -> BTreeSet<Prefix> {
        if labels.contains_key(EXCLUDED) {
            return BTreeSet::new();
        }
        let mut announced: BTreeSet<Prefix> = ranges.whole().collect();
        if ranges.is_empty() {
            return announced;
        }
        let mut ready: BTreeMap<&str, (bool, bool)> = BTreeMap::new();
        for slice in self.slices.values() {
            let (here, anywhere) = ready.entry(&slice.service).or_default();
            *here |= slice.ready_here;
            *anywhere |= slice.ready;
        }
        for (name, service) in &self.services {
            let (here, anywhere) = ready.get(name.as_str()).copied().unwrap_or_default();
            if if service.local { here } else { anywhere } {
                announced.extend(service.singles(ranges));
            }
        }
        announced
    }
}

/// Tells which ranges a node announces where there are no Services: all of them, whole. Runs as long as the
/// resources do.
pub(crate) async fn follow_ranges(
    node: String,
    mut resources: watch::Receiver<Arc<Snapshot>>,
    announced: Announced,
) {
    loop {
        let now = Services::default().announced_by(&node, &resources.borrow_and_update());
        tell(&announced, now);
        if resources.changed().await.is_err() {
            return;
        }
    }
}

/// Tells what is announced, if that is anything new; whether it is.
pub(crate) fn tell(announced: &Announced, now: BTreeSet<Prefix>) -> bool {
    announced.send_if_modified(|before| {
        let is_new = before.as_ref() != Some(&now);
        if is_new {
            *before = Some(now);
        }
        is_new
    })
}

impl Service {
    /// The addresses of it that are announced one by one as long as it has endpoints.
    fn singles(&self, ranges: &Ranges) -> impl Iterator<Item = Prefix> {
        let kinds = [
            (&self.cluster, &ranges.cluster, true),
            (&self.external, &ranges.external, true),
            (&self.load_balancer, &ranges.load_balancer, ranges.aggregates),
        ];
        kinds.into_iter().flat_map(move |(addresses, ranges, aggregates)| {
            addresses.iter().filter_map(move |&address| {
                let range = ranges.iter().filter(|range| range.contains(address)).copied();
                let is_alone = range.clone().any(|range| is_single(range) || !aggregates);
                let is_in_any = range.clone().next().is_some();
                (is_in_any && (self.local || is_alone)).then(|| Prefix::host(address))
            })
        })
    }
}

fn is_single(range: Prefix) -> bool {
    range.length() == Family::of(range.address()).bits()
}
