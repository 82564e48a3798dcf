//! What decides on a host whether pods' packets get through, and that others may need as it is: it is
//! told of, and not changed. What is wrong is a standing problem of the node, a condition and a metric;
//! `twillctl node check` shows all of it.

mod gather;
mod verdict;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::block_in_place,
    time::timeout,
};
use twill_dataplane::{
    Link,
    host::{DroppingChain, dropping_chains, has_old_tables, look},
    pod::host_links,
};
use twill_k8s_api::Condition;
use twill_rpc::message::{HostCheck, HostOutcome};
use twill_types::{Family, error_chain};

pub(crate) use self::gather::gather;
use self::verdict::{Facts, PodLink, verdict};
use crate::{datastore::Snapshot, metrics::Metrics, problems::tell, routes::KernelRoutes};

/// Interval between two rounds of checks: the kernel reports changes of only some settings.
const LOOK: Duration = Duration::from_secs(5);

/// The condition that sums the checks up, in what a node says of its Node and on the Node itself.
pub(crate) const DATAPLANE_READY: &str = "TwillDataplaneReady";

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What costs next to nothing.
    Settings,
    /// Every pod's link, and the whole packet filter.
    Everything,
}

/// Looks at the host.
pub(crate) struct Host {
    pub(crate) node: String,
    pub(crate) resources: watch::Receiver<Arc<Snapshot>>,
    pub(crate) installed: watch::Receiver<Arc<KernelRoutes>>,
    pub(crate) mtu: watch::Receiver<u32>,
    pub(crate) nat_problems: watch::Receiver<Vec<String>>,
    pub(crate) metrics: Metrics,
    /// Notified when a setting has changed.
    pub(crate) changed: Arc<Notify>,
    /// Set when the packet filter has changed.
    pub(crate) rules_changed: Arc<AtomicBool>,
    /// The chains as they were found last: a large packet filter is not read for nothing.
    pub(crate) chains: Mutex<Result<Vec<DroppingChain>, String>>,
}

impl Host {
    /// Looks for ever.
    pub(crate) async fn watch(
        self: Arc<Self>,
        problems: watch::Sender<Vec<String>>,
        said: watch::Sender<Option<Condition>>,
    ) {
        loop {
            let checks = block_in_place(|| self.look(Depth::Settings));
            for check in &checks {
                self.metrics.host_check(&check.name, check.outcome == HostOutcome::Failed);
            }
            let found = Some(condition(&checks));
            said.send_if_modified(|known| {
                let changed = *known != found;
                *known = found;
                changed
            });
            let failed = checks.iter().filter(|check| check.outcome == HostOutcome::Failed);
            // What the task of the packet filter tells by itself is not told twice.
            let failed = failed.filter(|check| check.name != verdict::NAT_OUTGOING);
            tell(&problems, failed.map(text).collect());
            let _ = timeout(LOOK, self.changed.notified()).await;
        }
    }

    /// What there is to say now.
    pub(crate) fn look(&self, depth: Depth) -> Vec<HostCheck> {
        verdict(&self.facts(depth))
    }

    fn facts(&self, depth: Depth) -> Facts {
        let snapshot = Arc::clone(&self.resources.borrow());
        let own = snapshot.nodes.get(&self.node);
        let addresses: Vec<_> = [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|family| own?.address(family))
            .collect();
        let of_pools = snapshot.pools.values().map(|pool| pool.spec.cidr.family());
        let families: BTreeSet<Family> =
            of_pools.chain(addresses.iter().map(|address| Family::of(*address))).collect();
        let resolved = Arc::clone(&self.installed.borrow().resolved);
        let hops = resolved.values().flatten().flat_map(|way| &way.hops);
        let uplinks = hops.map(|hop| hop.ifindex).collect();
        Facts {
            families,
            host: look(&uplinks, &addresses).map_err(|error| error_chain(&error)),
            addresses,
            chains: self.chains(depth),
            mtu: *self.mtu.borrow(),
            pods: match depth {
                Depth::Settings => None,
                Depth::Everything => host_links().ok().map(pods),
            },
            nat_problems: self.nat_problems.borrow().clone(),
        }
    }

    fn chains(&self, depth: Depth) -> Result<Vec<DroppingChain>, String> {
        let mut known = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = self.rules_changed.swap(false, Ordering::Relaxed);
        if changed || depth == Depth::Everything || has_old_tables() {
            *known = dropping_chains().map_err(|error| error_chain(&error));
        }
        known.clone()
    }
}

/// A link that is down belongs to an ADD or a DEL under way.
fn pods(links: Vec<Link>) -> Vec<PodLink> {
    let pod =
        |link: Link| PodLink { source_check: link.source_check(), name: link.name, mtu: link.mtu };
    links.into_iter().filter(|link| link.up).map(pod).collect()
}

/// A check as a standing problem.
fn text(check: &HostCheck) -> String {
    match check.remedy.as_str() {
        "" => check.detail.clone(),
        remedy => format!("{}; {remedy}", check.detail),
    }
}

/// All checks as one condition. A warning is no failure.
pub(crate) fn condition(checks: &[HostCheck]) -> Condition {
    let failed = checks.iter().filter(|check| check.outcome == HostOutcome::Failed);
    let failed: Vec<String> =
        failed.map(|check| format!("{}: {}", check.name, text(check))).collect();
    if failed.is_empty() {
        let message = "nothing on this node is in the way of pods' packets";
        return Condition::holds(DATAPLANE_READY, "ChecksPass", message);
    }
    Condition::fails(DATAPLANE_READY, "ChecksFailed", failed.join(". "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checks_are_one_condition() {
        let check = |name: &str, outcome, detail: &str, remedy: &str| {
            let [name, detail, remedy] = [name, detail, remedy].map(str::to_owned);
            HostCheck { name, outcome, detail, remedy }
        };
        let fine = check("mtu", HostOutcome::Ok, "1500", "");
        let warning = check("uplink-source-check", HostOutcome::Warning, "strict", "2");
        let good = condition(&[fine.clone(), warning.clone()]);
        assert_eq!((good.reason.as_str(), good.is_bad()), ("ChecksPass", false));
        let off = check("forwarding", HostOutcome::Failed, "it is 0", "set it to 1");
        let nat = check(verdict::NAT_OUTGOING, HostOutcome::Failed, "no table", "");
        let bad = condition(&[fine, off, warning, nat]);
        assert!(bad.is_bad());
        assert_eq!(
            (bad.reason.as_str(), bad.message.as_str()),
            ("ChecksFailed", "forwarding: it is 0; set it to 1. nat-outgoing: no table")
        );
    }
}
