//! Learned routes and block routes: what the speaker wants, made true in the kernel.
//!
//! Desired and actual are compared where something has changed, and only the difference is written:
//! `table.rs` says how. After a start the routes of the process before are adopted: they are kept until
//! the speaker says that it knows all. From then on events alone tell what happens in the kernel; the
//! table is read again only when some of them were lost.

mod due;
mod entry;
mod groups;
mod plan;
mod table;
#[cfg(test)]
mod tests;
mod ways;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use nix::errno::Errno;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::{block_in_place, yield_now},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};
use twill_bgp_proto::{Conflict, NextHopState, RouteChange};
use twill_bgp_speaker::{Command, Report};
use twill_dataplane::{
    Error, KernelError,
    fib::{BLOCK_METRIC, Fib, FibChange, LearnedRoute, Object, ObjectChange, ObjectId, Resolved},
    watch::{Event, Events},
};
use twill_types::{BgpNextHop, Family, Prefix, PrefixList, error_chain, is_host_link_name};

use self::{
    plan::{Plan, Refusal},
    table::Table,
};
use crate::{
    bgp::Current,
    claims::OwnedBlocks,
    config::Switch,
    look::{PATIENCE, patiently},
    metrics::Metrics,
    repair::Damage,
};

/// Events or reports handled in one turn.
const BUDGET: usize = 256;

/// Routes written in one turn, which takes less than ten milliseconds. A next hop or a link that is lost
/// meanwhile does not wait for the rest of a table.
const WRITES: usize = 2048;

/// Of so many destinations a picture for others costs little, and is made at each change: claims look
/// at it for what others announce.
const FEW: usize = 4096;

/// How old the picture of more of them may be while much is going on: it is made of all routes.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);

/// The same while a table is being written, when each picture is soon out of date.
const PUBLISH_INTERVAL_BUSY: Duration = Duration::from_millis(500);

/// This node's addresses: preferred sources of learned routes.
pub(crate) type Sources = BTreeMap<Family, IpAddr>;

/// Learned routes, as far as they are in the kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct KernelRoutes {
    /// In order.
    installed: Arc<PrefixList>,
    /// How many that the speaker wants are not.
    pub(crate) missing: usize,
    /// Where each tracked BGP next hop is.
    pub(crate) resolved: Arc<BTreeMap<BgpNextHop, Option<Resolved>>>,
}

impl KernelRoutes {
    /// How many are there.
    pub(crate) fn count(&self) -> usize {
        self.installed.len()
    }

    /// Whether the route of a destination is there.
    pub(crate) fn has(&self, prefix: Prefix) -> bool {
        self.installed.has(prefix)
    }

    /// The destinations inside a prefix, in order.
    pub(crate) fn within(&self, outer: Prefix) -> impl Iterator<Item = Prefix> {
        self.installed.within(outer)
    }
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
    /// Somebody else may have taken something from pods.
    pub(crate) damage: Arc<Damage>,
    /// Links, addresses or routes of the node itself have changed.
    pub(crate) uplink_changed: Arc<Notify>,
    pub(crate) metrics: Metrics,
    pub(crate) state: State,
}

/// What the task knows.
#[derive(Debug)]
pub(crate) struct State {
    table: Table,
    /// Repairs that the metric has.
    repairs: u64,
    /// When the picture for others is due, if it is not what there is.
    publish_at: Option<Instant>,
    published: Option<Instant>,
    /// Routes of a metric before may be there.
    former_left: bool,
}

impl State {
    /// A state that keeps these routes until the speaker has converged.
    pub(crate) fn adopt(
        objects: Switch,
        routes: &BTreeMap<Prefix, LearnedRoute>,
        found: &BTreeMap<ObjectId, Object>,
    ) -> Self {
        let table = Table::adopt(objects, routes, found);
        Self { table, repairs: 0, publish_at: None, published: None, former_left: false }
    }
}

/// Until when one look may be repeated.
fn patience() -> std::time::Instant {
    std::time::Instant::now() + PATIENCE
}

impl Routes {
    /// Runs until the kernel fails us.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        self.sync_blocks()?;
        let dead = block_in_place(|| patiently(patience(), || self.fib.dead_links()))?;
        self.state.table.set_dead_links(dead);
        let sources = self.sources.borrow_and_update().clone();
        if !sources.is_empty() {
            self.state.table.set_sources(sources);
        }
        self.publish();
        loop {
            let publish_at = self.state.publish_at;
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
                    let sources = self.sources.borrow_and_update().clone();
                    self.state.table.set_sources(sources);
                }
                changed = self.speaker.changed() => {
                    if changed.is_err() { return Ok(()) }
                    // A new speaker knows no next hop yet.
                    self.tell_speaker(self.states()).await;
                }
                event = self.events.next() => self.events(event?).await?,
                () = async { sleep_until(publish_at.unwrap_or_else(Instant::now)).await },
                    if publish_at.is_some() => self.publish(),
                // The rest of what is to be written, after whatever else there is.
                () = yield_now(), if self.state.table.is_behind() => {}
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
                    debug!(?change, "routes");
                    let RouteChange { prefixes, next_hops, backup } = change;
                    self.state.table.want(&prefixes, &next_hops, backup);
                }
            }
            Report::TrackNextHops(addresses) => {
                let new = self.state.table.track(&addresses);
                let found = block_in_place(|| self.fib.resolve_all(new))?;
                let states = found.iter().map(|(hop, way)| (*hop, state(way.as_ref()))).collect();
                self.state.table.resolve(found);
                // A next hop that is gone moves traffic before each route is looked at.
                self.move_groups()?;
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
                self.state.table.converged();
                self.state.former_left = true;
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

    fn states(&self) -> BTreeMap<BgpNextHop, NextHopState> {
        let known = self.state.table.tracked();
        known.map(|(address, way)| (address, state(way))).collect()
    }

    async fn tell_speaker(&self, states: BTreeMap<BgpNextHop, NextHopState>) {
        let current = self.speaker.borrow().clone();
        if let Some((_, speaker)) = current {
            speaker.send(Command::NextHops(states)).await;
        }
    }

    /// Takes what was read with the first one, so that what many events ask for is written together.
    async fn events(&mut self, first: Event) -> Result<(), Error> {
        self.event(first).await?;
        for _ in 1..BUDGET {
            let Some(event) = self.events.queued() else {
                break;
            };
            self.event(event).await?;
        }
        Ok(())
    }

    /// Something in the kernel has changed.
    async fn event(&mut self, event: Event) -> Result<(), Error> {
        if self.damage.note(&event) {
            return Ok(());
        }
        let table = &mut self.state.table;
        match &event {
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
            Event::RouteRemoved { metric, prefix } | Event::RouteChanged { metric, prefix } => {
                if *metric == BLOCK_METRIC {
                    self.sync_blocks()?;
                } else if *metric == self.metric {
                    table.touched(*prefix);
                }
                return Ok(());
            }
            Event::AddressAdded { address, .. } | Event::AddressRemoved { address, .. }
                if table.sources.values().any(|source| source == address) =>
            {
                table.source_lost(Family::of(*address));
            }
            // The last IPv4 address of a link takes routes by it along, without a word.
            Event::AddressRemoved { ifindex, address } if address.is_ipv4() => {
                table.link_lost(*ifindex);
            }
            Event::AddressAdded { .. }
            | Event::AddressRemoved { .. }
            | Event::HostRouteRemoved { .. }
            | Event::PodLinkUp { .. }
            | Event::SettingsChanged { .. } => return Ok(()),
            Event::LinkChanged(link) if link.up => self.link(link.index, link.carrier)?,
            Event::LinkChanged(link) | Event::LinkDeleted(link) => {
                table.link_lost(link.index);
                self.link(link.index, false)?;
            }
            Event::ObjectsChanged => self.look(true)?,
            Event::ForeignRoutesChanged => {}
            Event::Resync => {
                self.pod_links_lost.notify_one();
                self.sync_blocks()?;
                self.reload()?;
            }
        }
        debug!(?event, "the kernel has changed");
        self.uplink_changed.notify_one();
        self.state.table.retry();
        self.resolve_again().await?;
        if let Event::LinkDeleted(link) = event {
            self.state.table.forget_link(link.index);
        }
        Ok(())
    }

    /// A link has another state. One that goes down, or loses its carrier, takes nexthop objects and
    /// the routes by them along without a word.
    fn link(&mut self, ifindex: u32, live: bool) -> Result<(), Error> {
        self.state.table.link(ifindex, live);
        self.look(false)
    }

    /// Looks what is left of the nexthop objects, and moves traffic to what works.
    fn look(&mut self, others: bool) -> Result<(), Error> {
        if !self.state.table.groups.is_empty() {
            let found = block_in_place(|| patiently(patience(), || self.fib.objects()))?;
            self.state.table.look(&found, others);
            self.move_groups()?;
        }
        Ok(())
    }

    fn reload(&mut self) -> Result<(), Error> {
        warn!("events of the kernel were lost: its routes are read again");
        let (dead, objects, routes) = block_in_place(|| {
            patiently(patience(), || {
                Ok((self.fib.dead_links()?, self.fib.objects()?, self.fib.learned()?))
            })
        })?;
        self.state.table.set_dead_links(dead);
        self.state.table.reload(&routes, &objects);
        Ok(())
    }

    /// Looks where all next hops are.
    async fn resolve_again(&mut self) -> Result<(), Error> {
        let next_hops: Vec<BgpNextHop> =
            self.state.table.tracked().map(|(next_hop, _)| next_hop).collect();
        let found = block_in_place(|| self.fib.resolve_all(next_hops))?;
        let changed = self.state.table.resolve(found);
        if !changed.is_empty() {
            self.move_groups()?;
            self.publish_next_hops();
            let states = changed.iter().map(|(hop, way)| (*hop, state(way.as_ref())));
            self.tell_speaker(states.collect()).await;
        }
        Ok(())
    }

    /// Makes groups lead where they should, which moves all their routes at once. What has no way at
    /// all is left for the end of the turn: the speaker may know another one.
    fn move_groups(&mut self) -> Result<(), Error> {
        if self.state.table.groups.is_empty() {
            return Ok(());
        }
        let plan = self.plan(Plan::moves_only)?;
        self.change_groups(&plan)
    }

    /// What is to happen to groups, with all the hops there that it takes.
    fn plan(&mut self, part: impl Fn(Plan) -> Plan) -> Result<Plan, Error> {
        loop {
            let plan = part(self.state.table.plan());
            let hops = self.state.table.missing_hops(&plan);
            let refused = self.apply_objects(&hops)?;
            // Each round has a hop less to try.
            if refused.is_empty() {
                return Ok(plan);
            }
            for (id, error) in refused {
                self.state.table.hop_refused(id, refusal(&error));
            }
        }
    }

    fn change_groups(&mut self, plan: &Plan) -> Result<(), Error> {
        let changes = self.state.table.change_groups(plan);
        let mut others = false;
        for (id, error) in self.apply_objects(&changes)? {
            let new = |change: &ObjectChange| matches!(change, ObjectChange::Create(created, _) if *created == id);
            match changes.iter().any(new) {
                true => self.state.table.group_refused(id, refusal(&error)),
                false => others = true,
            }
        }
        // One that did not become what it should be is looked at: what it is now is not known.
        if others {
            let found = block_in_place(|| self.fib.objects())?;
            self.state.table.look(&found, false);
        }
        Ok(())
    }

    /// Answers what was refused.
    fn apply_objects(
        &mut self,
        changes: &[ObjectChange],
    ) -> Result<Vec<(ObjectId, KernelError)>, Error> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        debug!(?changes, "nexthop objects");
        self.metrics.fib_requests("nexthop", changes.len());
        let refused = block_in_place(|| self.fib.apply_objects(changes))?;
        for (id, error) in &refused {
            let change = changes.iter().find(|change| change.id() == *id);
            warn!(?change, error = %error_chain(error), "nexthop object refused");
        }
        Ok(refused)
    }

    fn apply(&mut self) -> Result<(), Error> {
        let table = &mut self.state.table;
        let nothing_new = table.dirty.is_empty() && table.due.is_empty() && !table.ways_stale;
        if nothing_new && !self.state.former_left {
            return Ok(());
        }
        let plan = self.plan(|plan| plan)?;
        self.change_groups(&plan)?;
        let changes = self.state.table.change_routes(WRITES);
        self.apply_routes(&changes)?;
        let mut interval = PUBLISH_INTERVAL_BUSY;
        if self.state.table.due.is_empty() {
            self.remove_former()?;
            let idle = self.state.table.sweep();
            self.apply_objects(&idle)?;
            // The way to the world may be a learned one.
            self.uplink_changed.notify_one();
            let is_small = self.state.table.entries.len() <= FEW;
            interval = if is_small { Duration::ZERO } else { PUBLISH_INTERVAL };
        }
        let repairs = self.state.table.repairs;
        self.metrics.routes_repaired(repairs - std::mem::replace(&mut self.state.repairs, repairs));
        let due = self.state.published.map(|published| published + interval);
        match due.filter(|due| *due > Instant::now()) {
            Some(due) => self.state.publish_at = Some(due),
            None => self.publish(),
        }
        Ok(())
    }

    /// Routes of a metric before go once those of the present one are there.
    fn remove_former(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.state.former_left) {
            let former = block_in_place(|| self.fib.remove_former())?;
            if former > 0 {
                info!(routes = former, "removed learned routes of another metric (fib.metric)");
            }
        }
        Ok(())
    }

    fn apply_routes(&mut self, changes: &[FibChange]) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        self.metrics.fib_requests("route", changes.len());
        for (prefix, error) in block_in_place(|| self.fib.apply(changes))? {
            // The next event on the link or address that is missing brings it up again.
            warn!(%prefix, error = %error_chain(&error), "route refused");
            self.state.table.refuse(prefix);
        }
        Ok(())
    }

    fn publish(&mut self) {
        let (installed, missing) = self.state.table.installed();
        self.state.publish_at = None;
        self.state.published = Some(Instant::now());
        self.installed.send_modify(|told| {
            let resolved = Arc::clone(&told.resolved);
            *told = Arc::new(KernelRoutes { installed: Arc::new(installed), missing, resolved });
        });
    }

    fn publish_next_hops(&self) {
        let known = self.state.table.tracked().map(|(hop, way)| (hop, way.cloned()));
        let resolved = Arc::new(known.collect());
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

fn refusal(error: &KernelError) -> Refusal {
    match error.errno {
        Errno::EEXIST => Refusal::NumberTaken,
        Errno::EOPNOTSUPP => Refusal::Unknown,
        _ => Refusal::Other,
    }
}

/// One hop is nearer than two. The kernel's metrics are no costs (ADR 0013).
fn state(resolved: Option<&Resolved>) -> NextHopState {
    match resolved {
        None => NextHopState::Unreachable,
        Some(resolved) => NextHopState::Reachable { metric: u32::from(!resolved.is_direct()) },
    }
}
