//! What Prometheus sees of the controller.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub(super) struct FaultLabels {
    pub(super) kind: &'static str,
    pub(super) condition: String,
    pub(super) reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// What the last look at everything has found.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    /// How many objects have a condition that is bad news.
    pub(super) faults: BTreeMap<FaultLabels, u64>,
    /// Addresses in all, and those that can still be had.
    pub(super) pools: BTreeMap<String, (u128, u128)>,
    pub(super) nodes: u64,
    pub(super) gone_nodes: u64,
}

/// The metrics of this process. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    events: Counter,
    freed: Family<KindLabels, Counter>,
    leads: Gauge,
    gauges: Arc<Mutex<Gauges>>,
}

impl Metrics {
    /// Counts one request to the API server.
    pub(super) fn request(&self, verb: &'static str, resource: &'static str, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.requests.get_or_create(&RequestLabels { verb, resource, result }).inc();
    }

    /// Counts an Event.
    pub(super) fn event(&self) {
        self.events.inc();
    }

    /// Counts what a node that is gone had left.
    pub(super) fn freed(&self, kind: &'static str) {
        self.freed.get_or_create(&KindLabels { kind }).inc();
    }

    /// Whether this process leads.
    pub(super) fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }

    /// What was found at the last look.
    pub(super) fn found(&self, gauges: Gauges) {
        *self.gauges.lock().unwrap_or_else(PoisonError::into_inner) = gauges;
    }

    /// The text exposition of everything.
    pub(super) fn render(&self) -> String {
        let mut registry = Registry::with_prefix("twill_controller");
        registry.register("leads", "Whether this process leads", self.leads.clone());
        registry.register("requests", "Requests to the API server", self.requests.clone());
        registry.register("events", "Events about objects", self.events.clone());
        registry.register("freed", "Objects of nodes that are gone, removed", self.freed.clone());
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        let faults = Family::<FaultLabels, Gauge<u64, AtomicU64>>::default();
        for (labels, count) in &gauges.faults {
            faults.get_or_create(labels).set(*count);
        }
        registry.register("faults", "Objects with a condition that is bad news", faults);
        let (all, left) = (
            Family::<PoolLabels, Gauge<f64, AtomicU64>>::default(),
            Family::<PoolLabels, Gauge<f64, AtomicU64>>::default(),
        );
        for (pool, (addresses, available)) in &gauges.pools {
            let labels = PoolLabels { pool: pool.clone() };
            all.get_or_create(&labels).set(about(*addresses));
            left.get_or_create(&labels).set(about(*available));
        }
        registry.register("pool_addresses", "Addresses of pools", all);
        registry.register("pool_addresses_left", "Addresses of pools that can be had", left);
        for (name, help, value) in [
            ("nodes", "Nodes that say anything about objects", gauges.nodes),
            ("gone_nodes", "Nodes without a Node that have left something", gauges.gone_nodes),
        ] {
            let gauge = Gauge::<u64, AtomicU64>::default();
            gauge.set(value);
            registry.register(name, help, gauge);
        }
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "of a pool of IPv6, 53 bits are enough")]
fn about(addresses: u128) -> f64 {
    addresses as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_shown() {
        let metrics = Metrics::default();
        metrics.leads(true);
        metrics.request("patch", "ippools/status", true);
        let labels = FaultLabels {
            kind: "BGPPeer",
            condition: "Conflicted".to_owned(),
            reason: "DuplicatePeer".to_owned(),
        };
        let (faults, pools) = ([(labels, 2)].into(), [("a".to_owned(), (1024, 12))].into());
        metrics.found(Gauges { faults, pools, nodes: 3, gone_nodes: 1 });
        let text = metrics.render();
        for line in [
            "twill_controller_leads 1",
            "twill_controller_requests_total{verb=\"patch\",resource=\"ippools/status\",result=\"ok\"} 1",
            "twill_controller_faults{kind=\"BGPPeer\",condition=\"Conflicted\",reason=\"DuplicatePeer\"} 2",
            "twill_controller_pool_addresses_left{pool=\"a\"} 12.0",
            "twill_controller_nodes 3",
        ] {
            assert!(text.contains(line), "{text} lacks {line}");
        }
    }
}
