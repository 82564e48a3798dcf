//! Learned routes and block routes: what the speaker wants, made true in the kernel.
//!
//! Desired and actual are compared, and only the difference is written. After a start the routes
//! of the process before are adopted: they are kept until the speaker says that it knows all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::block_in_place,
};
use tracing::{debug, info, warn};
use twill_bgp_proto::{Conflict, NextHopState};
use twill_bgp_speaker::{Command, Report};
use twill_dataplane::{
    Error, NextHop,
    fib::{BLOCK_METRIC, Fib, FibChange, LearnedRoute, Resolved, diff},
    watch::{Event, Events},
};
use twill_types::{Family, Prefix, error_chain, is_host_link_name};

use crate::{bgp::Current, claims::OwnedBlocks};

/// Events or reports handled in one turn.
const BUDGET: usize = 256;

/// This node's addresses: preferred sources of learned routes.
pub(crate) type Sources = BTreeMap<Family, IpAddr>;

/// Learned routes, as far as they are in the kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct KernelRoutes {
    pub(crate) installed: Arc<BTreeSet<Prefix>>,
    /// How many that the speaker wants are not.
    pub(crate) missing: usize,
    /// Where each tracked BGP next hop is.
    pub(crate) resolved: Arc<BTreeMap<IpAddr, Option<Resolved>>>,
}

/// Somebody else announces what this node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OriginConflict {
    /// What of this node's.
    pub(crate) ours: Prefix,
    /// For people.
    pub(crate) text: String,
}

/// The task.
pub(crate) struct Routes {
    pub(crate) fib: Fib,
    /// The metric of learned routes.
    pub(crate) metric: u32,
    pub(crate) events: Events,
    pub(crate) reports: mpsc::UnboundedReceiver<Report>,
    pub(crate) owned: watch::Receiver<Option<OwnedBlocks>>,
    pub(crate) sources: watch::Receiver<Sources>,
    pub(crate) speaker: Current,
    /// What is in the kernel, for those who want to know.
    pub(crate) installed: watch::Sender<Arc<KernelRoutes>>,
    pub(crate) conflicts: watch::Sender<Vec<OriginConflict>>,
    /// The kernel took a pod's link away.
    pub(crate) pod_links_lost: Arc<Notify>,
    /// Links, addresses or routes of the node itself have changed.
    pub(crate) uplink_changed: Arc<Notify>,
    pub(crate) state: State,
}

/// What the task knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// BGP next hops of each prefix.
    wanted: BTreeMap<Prefix, Vec<IpAddr>>,
    /// Where each tracked BGP next hop is.
    resolved: BTreeMap<IpAddr, Option<Resolved>>,
    /// What is in the kernel.
    actual: BTreeMap<Prefix, LearnedRoute>,
    /// Routes of the process before are still kept.
    adopting: bool,
}

impl State {
    /// A state that keeps these routes until the speaker has converged.
    pub(crate) fn adopt(actual: BTreeMap<Prefix, LearnedRoute>) -> Self {
        Self { actual, adopting: true, ..Self::default() }
    }

    /// The routes that follow from next hops and where they are.
    fn desired(&self, sources: &Sources) -> BTreeMap<Prefix, LearnedRoute> {
        let route = |(prefix, addresses): (&Prefix, &Vec<IpAddr>)| {
            let next_hops: BTreeSet<NextHop> = addresses
                .iter()
                .filter_map(|address| Some((*self.resolved.get(address)?)?.next_hop(*address)))
                .collect();
            let source = sources.get(&prefix.family()).copied();
            let route = LearnedRoute { prefix: *prefix, next_hops, source };
            (!route.next_hops.is_empty()).then_some((*prefix, route))
        };
        self.wanted.iter().filter_map(route).collect()
    }

    /// What has to change in the kernel.
    fn changes(&self, sources: &Sources) -> Vec<FibChange> {
        let mut changes = diff(&self.desired(sources), &self.actual);
        if self.adopting {
            changes.retain(|change| match change {
                FibChange::Replace(_) => true,
                // A prefix that the speaker has had its say about is no longer adopted.
                FibChange::Delete(prefix) => self.wanted.contains_key(prefix),
            });
        }
        changes
    }
}

impl Routes {
    /// Runs until the kernel fails us.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        self.sync_blocks()?;
        self.publish();
        loop {
            tokio::select! {
                report = self.reports.recv() => {
                    let Some(report) = report else { return Ok(()) };
                    self.reports(report).await?;
                }
                changed = self.owned.changed() => {
                    if changed.is_err() { return Ok(()) }
                    self.sync_blocks()?;
                }
                changed = self.sources.changed() => {
                    if changed.is_err() { return Ok(()) }
                }
                changed = self.speaker.changed() => {
                    if changed.is_err() { return Ok(()) }
                    // A new speaker knows no next hop yet.
                    self.tell_speaker(self.states()).await;
                }
                event = self.events.next() => self.event(event?).await?,
            }
            self.apply()?;
        }
    }

    async fn reports(&mut self, first: Report) -> Result<(), Error> {
        self.report(first).await?;
        for _ in 1..BUDGET {
            let Ok(report) = self.reports.try_recv() else {
                break;
            };
            self.report(report).await?;
        }
        Ok(())
    }

    async fn report(&mut self, report: Report) -> Result<(), Error> {
        match report {
            Report::Routes(changes) => {
                for change in changes {
                    debug!(prefix = %change.prefix, next_hops = ?change.next_hops, "route");
                    // An empty list stays as an entry while old routes are adopted: it says that
                    // this one can go.
                    if change.next_hops.is_empty() && !self.state.adopting {
                        self.state.wanted.remove(&change.prefix);
                    } else {
                        self.state.wanted.insert(change.prefix, change.next_hops);
                    }
                }
            }
            Report::TrackNextHops(addresses) => {
                self.state.resolved.retain(|address, _| addresses.contains(address));
                let mut states = BTreeMap::new();
                for address in addresses {
                    let resolved = block_in_place(|| self.fib.resolve(address))?;
                    self.state.resolved.insert(address, resolved);
                    states.insert(address, state(resolved));
                }
                self.publish_next_hops();
                self.tell_speaker(states).await;
            }
            Report::Converged { unheard } => {
                if unheard.is_empty() {
                    info!("converged: routes that nobody announces any more are removed");
                } else {
                    let peers: Vec<String> = unheard.iter().map(ToString::to_string).collect();
                    warn!(
                        peers = peers.join(", "),
                        "converged without these peers: what they alone announced is removed"
                    );
                }
                self.state.adopting = false;
                self.state.wanted.retain(|_, next_hops| !next_hops.is_empty());
            }
            Report::Conflicts(conflicts) => self.tell_conflicts(conflicts),
        }
        Ok(())
    }

    fn tell_conflicts(&self, conflicts: Vec<Conflict>) {
        let text = |Conflict { prefix, ours, peer }: Conflict| OriginConflict {
            ours,
            text: format!(
                "peer {peer} announces {prefix}, a part of this node's {ours}; the route is not \
                 used, and no pod gets an address of {ours}: find out who else owns it"
            ),
        };
        let conflicts: Vec<OriginConflict> = conflicts.into_iter().map(text).collect();
        for conflict in conflicts.iter().filter(|c| !self.conflicts.borrow().contains(c)) {
            warn!("{}", conflict.text);
        }
        self.conflicts.send_replace(conflicts);
    }

    fn states(&self) -> BTreeMap<IpAddr, NextHopState> {
        self.state.resolved.iter().map(|(address, r)| (*address, state(*r))).collect()
    }

    async fn tell_speaker(&self, states: BTreeMap<IpAddr, NextHopState>) {
        let current = self.speaker.borrow().clone();
        if let Some((_, speaker)) = current {
            speaker.send(Command::NextHops(states)).await;
        }
    }

    /// Something in the kernel has changed. A link that goes down takes IPv4 routes with it without
    /// a word, so then what was written is not what is there, and all of it is read again.
    async fn event(&mut self, event: Event) -> Result<(), Error> {
        let (blocks, routes) = match &event {
            // Pods come and go; their links and host routes carry nothing that is learned.
            Event::LinkDeleted(link) if is_host_link_name(&link.name) => {
                // Without a DEL, which gives it another name: its namespace is gone.
                self.pod_links_lost.notify_one();
                return Ok(());
            }
            Event::LinkChanged(link) | Event::LinkDeleted(link)
                if is_host_link_name(&link.name) || link.is_doomed() =>
            {
                return Ok(());
            }
            Event::RouteRemoved { metric, .. } if *metric == BLOCK_METRIC => (true, false),
            Event::RouteRemoved { metric, .. } if *metric != self.metric => return Ok(()),
            Event::AddressAdded { address, .. } | Event::AddressRemoved { address, .. }
                if !self.sources.borrow().values().any(|source| source == address) =>
            {
                return Ok(());
            }
            Event::ForeignRoutesChanged => (false, false),
            Event::Resync | Event::LinkDeleted(_) => (true, true),
            Event::LinkChanged(_)
            | Event::RouteRemoved { .. }
            | Event::AddressAdded { .. }
            | Event::AddressRemoved { .. } => (false, true),
        };
        debug!(?event, "the kernel has changed");
        self.uplink_changed.notify_one();
        if event == Event::Resync {
            self.pod_links_lost.notify_one();
        }
        if blocks {
            self.sync_blocks()?;
        }
        if routes {
            self.state.actual = block_in_place(|| self.fib.learned())?;
        }
        let mut changed = BTreeMap::new();
        for (address, known) in &mut self.state.resolved {
            let resolved = block_in_place(|| self.fib.resolve(*address))?;
            if *known != resolved {
                *known = resolved;
                changed.insert(*address, state(resolved));
            }
        }
        if !changed.is_empty() {
            self.publish_next_hops();
            self.tell_speaker(changed).await;
        }
        Ok(())
    }

    fn apply(&mut self) -> Result<(), Error> {
        let sources = self.sources.borrow().clone();
        let changes = self.state.changes(&sources);
        if changes.is_empty() {
            return Ok(());
        }
        let refused = block_in_place(|| self.fib.apply(&changes))?;
        // The way to the world may be a learned one.
        self.uplink_changed.notify_one();
        let refused: BTreeMap<Prefix, _> = refused.into_iter().collect();
        for change in changes {
            let prefix = change.prefix();
            match (refused.get(&prefix), change) {
                // The next event on the link or address that is missing brings it up again.
                (Some(error), _) => warn!(%prefix, error = %error_chain(error), "route refused"),
                (None, FibChange::Replace(route)) => {
                    self.state.actual.insert(prefix, route);
                }
                (None, FibChange::Delete(_)) => {
                    self.state.actual.remove(&prefix);
                }
            }
        }
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        let installed: BTreeSet<Prefix> = self.state.actual.keys().copied().collect();
        let wanted = self.state.wanted.iter().filter(|(_, next_hops)| !next_hops.is_empty());
        let missing = wanted.filter(|(prefix, _)| !installed.contains(prefix)).count();
        self.installed.send_modify(|told| {
            let resolved = Arc::clone(&told.resolved);
            *told = Arc::new(KernelRoutes { installed: Arc::new(installed), missing, resolved });
        });
    }

    fn publish_next_hops(&self) {
        let resolved = Arc::new(self.state.resolved.clone());
        self.installed.send_modify(|told| {
            *told = Arc::new(KernelRoutes { resolved, ..KernelRoutes::clone(told) });
        });
    }

    fn sync_blocks(&mut self) -> Result<(), Error> {
        let blocks: Vec<Prefix> = match &*self.owned.borrow_and_update() {
            Some(owned) => owned.blocks.keys().map(|block| block.prefix()).collect(),
            // Not known yet: what is there stays.
            None => return Ok(()),
        };
        for (prefix, error) in block_in_place(|| self.fib.sync_blocks(&blocks))? {
            warn!(%prefix, error = %error_chain(&error), "block route refused");
        }
        Ok(())
    }
}

/// One hop is nearer than two.
fn state(resolved: Option<Resolved>) -> NextHopState {
    match resolved {
        None => NextHopState::Unreachable,
        Some(resolved) => NextHopState::Reachable { metric: u32::from(resolved.gateway.is_some()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn learned(text: &str) -> (Prefix, LearnedRoute) {
        let hop =
            NextHop { gateway: Some(IpAddr::from([192, 0, 2, 9])), ifindex: 2, onlink: false };
        let route = LearnedRoute { prefix: prefix(text), next_hops: [hop].into(), source: None };
        (prefix(text), route)
    }

    #[test]
    fn adopted_routes_stay_until_the_speaker_has_converged() {
        let mut state = State::adopt([learned("10.0.0.0/24"), learned("10.0.1.0/24")].into());
        let sources = Sources::new();
        assert_eq!(state.changes(&sources), []);
        state.wanted.insert(prefix("10.0.1.0/24"), vec![]);
        assert_eq!(state.changes(&sources), [FibChange::Delete(prefix("10.0.1.0/24"))]);
        state.adopting = false;
        assert_eq!(state.changes(&sources).len(), 2);
    }

    #[test]
    fn next_hops_behind_one_router_make_one_way() {
        let mut state = State::default();
        let router = IpAddr::from([192, 0, 2, 1]);
        let behind = |gateway| Some(Resolved { gateway, ifindex: 3, source: None, onlink: false });
        let hops = [IpAddr::from([198, 51, 100, 1]), IpAddr::from([198, 51, 100, 2])];
        state.wanted.insert(prefix("10.0.0.0/24"), hops.to_vec());
        state.resolved.insert(hops[0], behind(Some(router)));
        state.resolved.insert(hops[1], behind(Some(router)));
        let desired = state.desired(&Sources::new());
        assert_eq!(desired[&prefix("10.0.0.0/24")].next_hops.len(), 1);
        state.resolved.insert(hops[1], behind(None));
        assert_eq!(state.desired(&Sources::new())[&prefix("10.0.0.0/24")].next_hops.len(), 2);
        state.resolved.insert(hops[0], None);
        state.resolved.insert(hops[1], None);
        assert!(state.desired(&Sources::new()).is_empty());
    }
}
