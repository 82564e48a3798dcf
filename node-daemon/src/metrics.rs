//! What Prometheus sees.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use twill_ipam::{Death, Leftover};
use twill_rpc::message::{IpamStatus, NodeStatus};

/// The kinds of request that the plugin makes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    request: String,
    result: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: String,
    asn: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotificationLabels {
    peer: String,
    direction: &'static str,
    code: u32,
    subcode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpdateErrorLabels {
    peer: String,
    disposition: String,
    attribute: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ObjectLabels {
    object: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    check: String,
}

type HistogramFamily = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// The metrics of this process. Counters live as long as it; gauges are set from a status at each
/// scrape, so a peer or pool that is gone has no stale series. Clones are the same metrics.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: HistogramFamily,
    reclaimed: Family<ReasonLabels, Counter>,
    links_reclaimed: Family<ReasonLabels, Counter>,
    set_aside: Counter,
    fib_requests: Family<ObjectLabels, Counter>,
    routes_repaired: Counter,
    nat_repaired: Counter,
    host_repaired: Family<ObjectLabels, Counter>,
    host_checks: Family<CheckLabels, Gauge>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        // 50 microseconds to 1.6 seconds.
        let requests = HistogramFamily::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_05, 2.0, 16))
        });
        Self {
            requests,
            reclaimed: Family::default(),
            links_reclaimed: Family::default(),
            set_aside: Counter::default(),
            fib_requests: Family::default(),
            routes_repaired: Counter::default(),
            nat_repaired: Counter::default(),
            host_repaired: Family::default(),
            host_checks: Family::default(),
        }
    }

    /// Counts a store that was damaged.
    pub(crate) fn store_set_aside(&self) {
        self.set_aside.inc();
    }

    /// Counts messages to the kernel about learned routes, and about nexthop objects.
    pub(crate) fn fib_requests(&self, object: &'static str, messages: usize) {
        let count = u64::try_from(messages).unwrap_or(u64::MAX);
        self.fib_requests.get_or_create(&ObjectLabels { object }).inc_by(count);
    }

    /// Counts learned routes that others removed or changed.
    pub(crate) fn routes_repaired(&self, routes: u64) {
        self.routes_repaired.inc_by(routes);
    }

    /// Counts the times that others removed or changed the table of nftables.
    pub(crate) fn nat_repaired(&self) {
        self.nat_repaired.inc();
    }

    /// Counts what others took away on the node's side: of a pod's link (`pod`; `source-check`, where it is
    /// loose and nothing else is missing), the route to the gateway (`gateway`), `forwarding`.
    pub(crate) fn host_repaired(&self, object: &'static str) {
        self.host_repaired.get_or_create(&ObjectLabels { object }).inc();
    }

    /// How something on the host is that decides whether pods' packets get through.
    pub(crate) fn host_check(&self, check: &str, failed: bool) {
        let labels = CheckLabels { check: check.to_owned() };
        self.host_checks.get_or_create(&labels).set(failed.into());
    }

    /// Counts addresses that came back without a DEL.
    pub(crate) fn reclaimed(&self, reason: Death, addresses: usize) {
        let labels = ReasonLabels { reason: reason.as_str() };
        let count = u64::try_from(addresses).unwrap_or(u64::MAX);
        self.reclaimed.get_or_create(&labels).inc_by(count);
    }

    /// Counts one link that was removed without a DEL.
    pub(crate) fn link_reclaimed(&self, reason: Leftover) {
        let labels = ReasonLabels { reason: reason.as_str() };
        self.links_reclaimed.get_or_create(&labels).inc();
    }

    /// Counts and times one request of the plugin.
    pub(crate) fn observe(&self, request: &str, ok: bool, seconds: f64) {
        let result = if ok { "ok" } else { "error" };
        self.requests
            .get_or_create(&RequestLabels { request: request.into(), result: result.into() })
            .observe(seconds);
    }

    /// The text exposition of everything.
    pub(crate) fn render(&self, status: &NodeStatus, ipam: &IpamStatus) -> String {
        let mut registry = Registry::with_prefix("twill");
        registry.register("request_seconds", "Requests of the CNI plugin", self.requests.clone());
        registry.register(
            "ipam_reclaimed",
            "Addresses of pods that were gone without a DEL",
            self.reclaimed.clone(),
        );
        registry.register(
            "links_reclaimed",
            "Links of ADDs that died, removed without a DEL",
            self.links_reclaimed.clone(),
        );
        registry.register(
            "ipam_stores_set_aside",
            "Address stores that were damaged when this process opened them",
            self.set_aside.clone(),
        );
        registry.register(
            "fib_requests",
            "Messages to the kernel about learned routes (route) and nexthop objects (nexthop)",
            self.fib_requests.clone(),
        );
        registry.register(
            "routes_repaired",
            "Learned routes that somebody else removed or changed, and that were put back",
            self.routes_repaired.clone(),
        );
        registry.register(
            "nat_repaired",
            "How often somebody else removed or changed the table inet twill, and it was put back",
            self.nat_repaired.clone(),
        );
        registry.register(
            "host_repaired",
            "What somebody else took from a pod's link, the gateway's route or forwarding, and was put back",
            self.host_repaired.clone(),
        );
        registry.register(
            "host_check_failed",
            "1 where something on the host stops pods' packets, as twillctl node check tells",
            self.host_checks.clone(),
        );
        register_peers(&mut registry, status);
        register_faults(&mut registry, status);
        register_ipam(&mut registry, ipam);
        let routes: Gauge = Gauge::default();
        routes.set(i64::from(status.kernel_routes));
        registry.register("kernel_routes", "Learned routes in the kernel", routes);
        let in_sync: Gauge = Gauge::default();
        in_sync.set(i64::from(status.in_sync));
        registry.register("in_sync", "1 once the configuration has been read", in_sync);
        let problems: Gauge = Gauge::default();
        problems.set(i64::try_from(status.problems.len()).unwrap_or(i64::MAX));
        registry.register(
            "problems",
            "Standing problems, listed by twillctl node status",
            problems,
        );
        let mut text = String::new();
        // Writing into a `String` cannot fail; a custom collector could, and there is none.
        let _ = encode(&mut text, &registry);
        text
    }
}

fn register_peers(registry: &mut Registry, status: &NodeStatus) {
    let up: Family<PeerLabels, Gauge> = Family::default();
    let prefixes_in: Family<PeerLabels, Gauge> = Family::default();
    let prefixes_refused: Family<PeerLabels, Gauge> = Family::default();
    let prefixes_stale: Family<PeerLabels, Gauge> = Family::default();
    let prefixes_out: Family<PeerLabels, Gauge> = Family::default();
    let flaps: Family<PeerLabels, Counter<u64, AtomicU64>> = Family::default();
    for peer in &status.peers {
        let labels = PeerLabels { peer: peer.address.to_string(), asn: peer.asn.get() };
        up.get_or_create(&labels).set(i64::from(peer.state == "Established"));
        prefixes_in.get_or_create(&labels).set(i64::from(peer.prefixes_in));
        prefixes_refused.get_or_create(&labels).set(i64::from(peer.prefixes_refused));
        prefixes_stale.get_or_create(&labels).set(i64::from(peer.prefixes_stale));
        prefixes_out.get_or_create(&labels).set(i64::from(peer.prefixes_out));
        flaps.get_or_create(&labels).inc_by(u64::from(peer.flaps));
    }
    registry.register("bgp_session_up", "1 while the session is Established", up);
    registry.register("bgp_prefixes_received", "Prefixes accepted from the peer", prefixes_in);
    registry.register(
        "bgp_prefixes_refused",
        "Prefixes that the peer tells and a filter refuses",
        prefixes_refused,
    );
    registry.register(
        "bgp_prefixes_stale",
        "Prefixes kept while the peer restarts or is away",
        prefixes_stale,
    );
    registry.register("bgp_prefixes_announced", "Prefixes announced to the peer", prefixes_out);
    registry.register("bgp_session_flaps", "How often the session was lost", flaps);
}

/// What went wrong on each session, by its code.
fn register_faults(registry: &mut Registry, status: &NodeStatus) {
    let notifications: Family<NotificationLabels, Counter> = Family::default();
    let update_errors: Family<UpdateErrorLabels, Counter> = Family::default();
    for peer in &status.peers {
        for counted in &peer.notifications {
            let labels = NotificationLabels {
                peer: peer.address.to_string(),
                direction: if counted.sent { "sent" } else { "received" },
                code: counted.code.into(),
                subcode: counted.subcode.into(),
            };
            notifications.get_or_create(&labels).inc_by(counted.count);
        }
        for counted in &peer.update_errors {
            let labels = UpdateErrorLabels {
                peer: peer.address.to_string(),
                disposition: counted.disposition.clone(),
                attribute: counted.attribute.into(),
            };
            update_errors.get_or_create(&labels).inc_by(counted.count);
        }
    }
    registry.register(
        "bgp_notifications",
        "NOTIFICATION messages by code and subcode; 255 is all that no RFC names",
        notifications,
    );
    let strangers: Counter = Counter::default();
    strangers.inc_by(status.strangers_refused);
    registry.register(
        "bgp_strangers_refused",
        "Callers that are no peers, refused with a NOTIFICATION 6/5",
        strangers,
    );
    registry.register(
        "bgp_update_errors",
        "Errors in UPDATE messages by what was done and attribute type; 0 is none, 255 an unknown one",
        update_errors,
    );
}

fn register_ipam(registry: &mut Registry, ipam: &IpamStatus) {
    let used: Family<PoolLabels, Gauge> = Family::default();
    let free: Family<PoolLabels, Gauge> = Family::default();
    let blocks: Family<PoolLabels, Gauge> = Family::default();
    for block in &ipam.blocks {
        let labels = PoolLabels { pool: block.pool.clone() };
        used.get_or_create(&labels).inc_by(i64::from(block.used));
        free.get_or_create(&labels).inc_by(i64::from(block.free));
        blocks.get_or_create(&labels).inc();
    }
    registry.register("ipam_addresses_in_use", "Addresses given to pods of this node", used);
    registry.register("ipam_addresses_free", "Addresses free in this node's blocks", free);
    registry.register("ipam_blocks", "Blocks that this node owns", blocks);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_session_has_its_counters() {
        let peer = json!({
            "address": "192.0.2.1", "port": 179, "kind": "global", "name": "tor", "asn": 64513,
            "state": "Established", "sinceMs": 0, "info": "", "holdTime": 90, "routerId": null,
            "capabilities": [], "prefixesIn": 2, "prefixesRefused": 12, "prefixesStale": 1,
            "prefixesOut": 3, "messagesIn": 0, "messagesOut": 0, "flaps": 4,
        });
        let status = json!({
            "node": "n1", "version": "0", "pid": 1, "startedMs": 0, "addresses": [], "labels": {},
            "asn": 64512, "routerId": "192.0.2.11", "inSync": true, "peers": [peer],
            "strangersRefused": 7, "blocks": 0, "kernelRoutes": 0, "problems": [],
        });
        let status: NodeStatus = serde_json::from_value(status).unwrap();
        let ipam = IpamStatus { pools: Vec::new(), blocks: Vec::new(), claims: Vec::new() };
        let text = Metrics::new().render(&status, &ipam);
        for (name, value) in [
            ("session_up", 1),
            ("prefixes_received", 2),
            ("prefixes_refused", 12),
            ("prefixes_stale", 1),
            ("prefixes_announced", 3),
            ("session_flaps_total", 4),
        ] {
            let line = format!("twill_bgp_{name}{{peer=\"192.0.2.1\",asn=\"64513\"}} {value}");
            assert!(text.lines().any(|found| found == line), "{text} lacks {line}");
        }
        assert!(text.contains("\ntwill_bgp_strangers_refused_total 7\n"), "{text}");
    }
}
