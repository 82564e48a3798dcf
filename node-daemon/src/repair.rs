//! Puts back what others take away of what pods need on the node: host routes, the gateway's route and
//! addresses, proxy ARP and forwarding. Learned routes and blocks are the business of `routes.rs`.
//!
//! The kernel tells what has gone, and nothing else is looked at. A DEL takes the same things away, so it
//! is looked a moment later whether the link is still there for a pod that runs.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::block_in_place,
    time::sleep,
};
use tracing::{debug, info, warn};
use twill_dataplane::{
    Error,
    node::{SysctlChange, ensure_forwarding, ensure_gateway},
    pod::{GATEWAY_V4, GATEWAY_V6, HostEnd},
    watch::Event,
};
use twill_ipam_store::Service;
use twill_types::{Alias, Family, LinkAlias, error_chain};

use crate::{metrics::Metrics, problems::tell};

/// After the first event, for the others of the same change, and for a DEL to come to its end. Also the
/// least time between two repairs, should somebody else insist.
const SETTLE: Duration = Duration::from_millis(100);

/// When is tried again what the kernel did not take.
const RETRY: Duration = Duration::from_secs(10);

/// What may have been damaged, and nobody has looked at yet.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    found: Mutex<Found>,
    changed: Notify,
    /// The links of pods that have come up once: what an ADD does is no damage.
    known: Mutex<BTreeSet<u32>>,
}

#[derive(Debug, Default)]
struct Found {
    links: BTreeSet<u32>,
    /// Forwarding, and the route to the gateway.
    node: bool,
    /// Settings were written, of pods' links or of others.
    settings: bool,
    everything: bool,
}

impl Found {
    fn is_any(&self) -> bool {
        self.node || self.everything || !self.links.is_empty()
    }

    fn add(&mut self, other: Self) {
        self.links.extend(other.links);
        self.node |= other.node;
        self.settings |= other.settings;
        self.everything |= other.everything;
    }
}

impl Damage {
    /// Takes note of an event if it tells of damage; whether it was one that is only for this.
    pub(crate) fn note(&self, event: &Event) -> bool {
        match event {
            Event::HostRouteRemoved { address, .. } if *address == GATEWAY_V4 => {
                self.add(|found| found.node = true);
            }
            Event::HostRouteRemoved { ifindex, .. } => {
                self.add(|found| found.links.extend([*ifindex]));
            }
            Event::SettingsChanged { ifindex } => self.add(|found| {
                found.settings = true;
                match ifindex {
                    Some(ifindex) => found.links.extend([*ifindex]),
                    None => found.node = true,
                }
            }),
            Event::AddressRemoved { ifindex, address } if *address == GATEWAY_V6 => {
                self.add(|found| found.links.extend([*ifindex]));
            }
            Event::PodLinkUp { ifindex } => {
                // Up again: the kernel took its routes away without a word.
                if !self.known().insert(*ifindex) {
                    self.add(|found| found.links.extend([*ifindex]));
                }
            }
            Event::LinkDeleted(link) => {
                self.known().remove(&link.index);
                return false;
            }
            Event::Resync => {
                self.add(|found| found.everything = true);
                return false;
            }
            _ => return false,
        }
        true
    }

    fn add(&self, change: impl FnOnce(&mut Found)) {
        change(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn take(&self) -> Found {
        std::mem::take(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task.
pub(crate) struct Repair {
    pub(crate) damage: Arc<Damage>,
    pub(crate) service: Arc<Service>,
    pub(crate) problems: watch::Sender<Vec<String>>,
    pub(crate) metrics: Metrics,
    /// Told when a setting has changed.
    pub(crate) host_changed: Arc<Notify>,
}

impl Repair {
    /// Runs for ever; begins with a look at all that a process before may have missed.
    pub(crate) async fn run(self) {
        let mut found = Found { everything: true, ..Found::default() };
        loop {
            let (problems, failed) = block_in_place(|| self.repair(&found));
            tell(&self.problems, problems);
            if found.settings {
                self.host_changed.notify_one();
            }
            tokio::select! {
                () = self.damage.changed.notified() => sleep(SETTLE).await,
                () = sleep(RETRY), if failed.is_any() => {}
            }
            found = self.damage.take();
            // What failed is looked at again with what is new, or its problem would be told no more.
            found.add(failed);
        }
    }

    /// Puts back what is missing; answers what cannot be put back, in words and where to look again.
    fn repair(&self, found: &Found) -> (Vec<String>, Found) {
        let (mut problems, mut failed) = (Vec::new(), Found::default());
        if found.node || found.everything {
            problems.extend(self.repair_node());
            failed.node = !problems.is_empty();
        }
        match self.links(found) {
            Ok(links) => {
                for link in &links {
                    if let Err(problem) = self.repair_link(link) {
                        problems.push(problem);
                        failed.links.insert(link.link().index);
                    }
                }
            }
            Err(error) => {
                problems.push(format!("cannot list the pods' links: {}", error_chain(&error)));
                failed.links.clone_from(&found.links);
                failed.everything = found.everything;
            }
        }
        (problems, failed)
    }

    fn repair_node(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for family in [Family::V4, Family::V6] {
            let mut repaired = false;
            let forwards = ensure_forwarding(family, |change| {
                let SysctlChange { key, before, after } = change;
                info!(key, before, after, "sysctl changed back");
                repaired = true;
            });
            if repaired {
                self.metrics.host_repaired("forwarding");
            }
            if let Err(error) = forwards {
                problems.push(format!(
                    "forwarding is off, and twilld cannot set it ({}); set it by hand, or run twilld \
                     with a writable /proc/sys",
                    error_chain(&error)
                ));
            }
        }
        match ensure_gateway() {
            Ok(false) => {}
            Ok(true) => {
                info!("made the route to the pods' gateway again");
                self.metrics.host_repaired("gateway");
            }
            Err(error) => problems.push(error_chain(&error)),
        }
        problems
    }

    /// The links to look at.
    fn links(&self, found: &Found) -> Result<Vec<HostEnd>, Error> {
        if found.everything {
            let links = HostEnd::all()?;
            let up = links.iter().map(HostEnd::link).filter(|link| link.up);
            self.damage.known().extend(up.map(|link| link.index));
            return Ok(links);
        }
        found.links.iter().filter_map(|ifindex| HostEnd::find(*ifindex).transpose()).collect()
    }

    fn repair_link(&self, end: &HostEnd) -> Result<(), String> {
        let Some(addresses) = self.addresses(end.alias()) else {
            return Ok(());
        };
        let failed = |error: Error| {
            format!("the pod's link {} cannot be mended: {}", end.link().name, error_chain(&error))
        };
        let done = end.restore(&addresses).map_err(failed)?;
        if end.is_loosened() && done.len() == 1 {
            // As on each node where systemd has its defaults, once for each pod: no news.
            debug!(step = done.join("; "), "put a new link's source check back");
            self.metrics.host_repaired("source-check");
        } else if !done.is_empty() {
            info!(steps = done.join("; "), "put back what somebody took from a pod's link");
            self.metrics.host_repaired("pod");
        }
        Ok(())
    }

    /// The addresses of the pod whose link has this alias; `None` if the link is not that of the last ADD,
    /// or the store cannot tell. Links without a record have addresses of another plugin, which are not
    /// known here.
    fn addresses(&self, alias: &LinkAlias) -> Option<Vec<std::net::IpAddr>> {
        if alias.sequence == LinkAlias::WITHOUT_STORE {
            return Some(Vec::new());
        }
        let record = match &alias.owner {
            Alias::Full(attachment) => self.service.lookup(attachment),
            Alias::Hashed(_) => self.service.census().map(|(records, _)| {
                records.into_iter().find(|record| alias.is_of(&record.attachment))
            }),
        };
        match record {
            Ok(record) => record.filter(|r| r.sequence == alias.sequence).map(|r| r.addresses),
            Err(error) => {
                warn!(error = %error_chain(&error), "cannot tell whose a pod's link is");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(damage: &Damage) -> BTreeSet<u32> {
        damage.take().links
    }

    #[test]
    fn a_link_that_comes_up_for_the_first_time_is_no_damage() {
        let damage = Damage::default();
        assert!(damage.note(&Event::PodLinkUp { ifindex: 7 }));
        assert_eq!(links(&damage), BTreeSet::new());
        damage.note(&Event::PodLinkUp { ifindex: 7 });
        assert_eq!(links(&damage), [7].into());
        // What was taken note of is looked at once.
        assert_eq!(links(&damage), BTreeSet::new());
    }

    #[test]
    fn what_is_gone_is_looked_at_where_it_was() {
        let damage = Damage::default();
        let (pod, gateway) = ("10.10.0.5".parse().unwrap(), GATEWAY_V4.into());
        damage.note(&Event::HostRouteRemoved { address: pod, ifindex: 7 });
        damage.note(&Event::AddressRemoved { ifindex: 8, address: GATEWAY_V6.into() });
        damage.note(&Event::SettingsChanged { ifindex: Some(9) });
        let found = damage.take();
        assert!(found.settings && !found.node && !found.everything);
        assert_eq!(found.links, [7, 8, 9].into());
        damage.note(&Event::HostRouteRemoved { address: gateway, ifindex: 1 });
        assert!(damage.take().node);
        damage.note(&Event::SettingsChanged { ifindex: None });
        assert!(damage.take().node);
        // These mean more to others, who see them too.
        assert!(!damage.note(&Event::Resync));
        assert!(damage.take().everything);
        assert!(!damage.note(&Event::AddressRemoved { ifindex: 8, address: pod }));
        assert!(!damage.note(&Event::ForeignRoutesChanged));
        assert_eq!(links(&damage), BTreeSet::new());
    }
}
