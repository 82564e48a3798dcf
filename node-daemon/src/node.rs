//! Which tasks there are, and what they tell each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::block_in_place,
};
use tracing::{info, warn};
use twill_bgp_speaker::{Handle, Report};
use twill_dataplane::{
    fib::{Fib, FibConfig, set_compat},
    node::{SysctlChange, ensure_forwarding, ensure_gateway, uplink_mtu},
    watch::Events,
};
use twill_ipam_store::{Service, now_ms};
use twill_k8s_api::{Condition, Kind, ObjectId};
use twill_types::{Family, error_chain};

use crate::{
    api::Api,
    backoff::spread,
    bgp::{Bgp, COPY_AGAIN, Conditions, Identity},
    caretaker::Caretaker,
    claims::{self, Claims, OwnedBlocks},
    config::{Config, Toggle},
    datastore::{Datastore, Reports, Snapshot, new_uid},
    filters::FilterCopy,
    heartbeat,
    host::{Host, gather},
    ipam::{Ipam, View},
    look::{Looker, patiently},
    metrics::Metrics,
    namespaces,
    nat::OutgoingNat,
    problems,
    publish::Publisher,
    reaper::{self, Parked},
    reconcile::Reconcile,
    repair::{Damage, Repair},
    routes::{KernelRoutes, OriginConflict, Routes, Sources, State},
    spool::Tombstones,
    tasks::Tasks,
};

/// What the tasks of a node are made of.
pub(crate) struct Node<'a> {
    pub(crate) config: &'a Config,
    pub(crate) name: String,
    pub(crate) service: Arc<Service>,
    /// Where the store of the process before was moved to, if it was damaged.
    pub(crate) set_aside: Option<PathBuf>,
    pub(crate) datastore: Datastore,
    /// How long the looks of the start may be repeated.
    pub(crate) until: Instant,
}

/// The latest values that tasks pass on: each is written by one task alone.
struct Wires {
    /// By `claims`: blocks that are claimed and confirmed; `None` until the claims were read.
    owned: watch::Sender<Option<OwnedBlocks>>,
    /// By `claims`: which pools give addresses here.
    view: watch::Sender<Arc<View>>,
    claim_problems: watch::Sender<Vec<String>>,
    lease_problems: watch::Sender<Vec<String>>,
    /// By the follower of the node's addresses.
    sources: watch::Sender<Sources>,
    mtu: watch::Sender<u32>,
    /// By `routes`: links or routes have changed, and so may have the one towards the world.
    uplink_changed: Arc<Notify>,
    /// By `bgp`: the running speaker.
    speaker: watch::Sender<Option<(Identity, Handle)>>,
    bgp_problems: watch::Sender<Vec<String>>,
    bgp_conditions: Conditions,
    /// By `routes`: what is in the kernel, and who else claims to be where our blocks are.
    installed: watch::Sender<Arc<KernelRoutes>>,
    conflicts: watch::Sender<Vec<OriginConflict>>,
    /// By `claims`: what there is to say about pools and claims.
    conditions: watch::Sender<BTreeMap<ObjectId, Vec<Condition>>>,
    reconcile_problems: watch::Sender<Vec<String>>,
    host_problems: watch::Sender<Vec<String>>,
    /// By `host`: what was found on the machine.
    host_condition: watch::Sender<Option<Condition>>,
    nat_problems: watch::Sender<Vec<String>>,
    report_problems: watch::Sender<Vec<String>>,
    repair_problems: watch::Sender<Vec<String>>,
    /// By `routes`: what somebody else may have taken from pods.
    damage: Arc<Damage>,
    /// The links that wait to be deleted.
    parked: Arc<Parked>,
    /// By `routes`: the kernel took a pod's link away.
    pod_links_lost: Arc<Notify>,
    tombstones: Arc<Tombstones>,
    metrics: Metrics,
}

impl Wires {
    fn new(tombstones: Tombstones, parked: Arc<Parked>, mtu: u32) -> Self {
        Self {
            owned: watch::Sender::new(None),
            view: watch::Sender::default(),
            claim_problems: watch::Sender::default(),
            lease_problems: watch::Sender::default(),
            sources: watch::Sender::default(),
            mtu: watch::Sender::new(mtu),
            uplink_changed: Arc::new(Notify::new()),
            speaker: watch::Sender::new(None),
            bgp_problems: watch::Sender::default(),
            bgp_conditions: Conditions::default(),
            installed: watch::Sender::default(),
            conflicts: watch::Sender::default(),
            conditions: watch::Sender::default(),
            reconcile_problems: watch::Sender::default(),
            host_problems: watch::Sender::default(),
            host_condition: watch::Sender::default(),
            nat_problems: watch::Sender::default(),
            report_problems: watch::Sender::default(),
            repair_problems: watch::Sender::default(),
            damage: Arc::default(),
            parked,
            pod_links_lost: Arc::new(Notify::new()),
            tombstones: Arc::new(tombstones),
            metrics: Metrics::new(),
        }
    }
}

impl Wires {
    /// Ends when pods can be given addresses that the peers hear of: configuration and claims are read,
    /// the node's blocks are routed, and BGP is spoken.
    fn works(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut view, mut owned) = (self.view.subscribe(), self.owned.subscribe());
        let mut speaker = self.speaker.subscribe();
        async move {
            let works = async {
                view.wait_for(|view| view.ready).await.ok()?;
                owned.wait_for(Option::is_some).await.ok()?;
                speaker.wait_for(Option::is_some).await.ok().map(drop)
            };
            if works.await.is_none() {
                // The process is ending.
                std::future::pending().await
            }
        }
    }
}

/// The kernel's side, made ready.
struct Kernel {
    fib: Fib,
    /// With the routes of the process before.
    routes: State,
    /// The families that the process before left routes of, learned ones or those of its blocks: only
    /// for these is it true that forwarding went on (the F bit, RFC 4724 section 4.1).
    forwarding: BTreeSet<Family>,
    events: Events,
}

impl Kernel {
    fn prepare(config: &Config, until: Instant) -> anyhow::Result<Self> {
        let mut fib = Fib::open(FibConfig { metric: config.fib.metric })?;
        if config.fib.nexthop_compat == Toggle::Off && set_compat(false)?.is_some() {
            info!("sysctl changed: net/ipv4/nexthop_compat_mode = 0");
        }
        // Before anything is read, so that no change after that is missed.
        let events = Events::open([fib.port()?])?;
        let (objects, adopted) = patiently(until, || Ok((fib.objects()?, fib.learned()?)))?;
        let routes = State::adopt(config.fib.nexthop_objects, &adopted, &objects);
        if !adopted.is_empty() {
            info!(routes = adopted.len(), "adopted the routes of the process before");
        }
        let blocks = fib.blocks()?;
        let forwarding = adopted.keys().chain(&blocks).map(|prefix| prefix.family()).collect();
        ensure_gateway()?;
        for family in [Family::V4, Family::V6] {
            let forwards = ensure_forwarding(family, |change| {
                let SysctlChange { key, before, after } = change;
                info!(key, before, after, "sysctl changed");
            });
            // That is a problem and a condition, of which nobody would hear if this ended.
            if let Err(error) = forwards {
                warn!(error = error_chain(&error), "forwarding cannot be set");
            }
        }
        Ok(Self { fib, routes, forwarding, events })
    }
}

impl Node<'_> {
    /// Starts the tasks that own the node's state.
    pub(crate) fn start(&self, tasks: &mut Tasks) -> anyhow::Result<Arc<Api>> {
        let kernel = Kernel::prepare(self.config, self.until)?;
        // Before anybody is served: the first pods have it for life. Its changes are told from here
        // on, since the kernel's events are already listened to.
        let mtu =
            uplink_mtu(addresses(&self.name, &self.datastore.resources.borrow()).into_values())?;
        info!(mtu, "the MTU of new pods");
        let parked = Arc::<Parked>::default();
        let service = Arc::clone(&self.service);
        let tombstones = Tombstones::new(&self.config.run_dir, service, Arc::clone(&parked));
        let wires = Wires::new(tombstones, parked, mtu);
        let forwarding = &kernel.forwarding | &self.datastore.served_before;
        let (commands, queue) = mpsc::channel(256);
        let (reports, report_queue) = mpsc::unbounded_channel();

        let looker = Arc::new(self.looker(&wires)?);
        let publisher = Arc::new(Publisher::new(
            self.name.clone(),
            self.datastore.fills.clone(),
            Arc::clone(&self.service),
            self.datastore.resources.clone(),
        ));
        tasks.endless("publisher", Arc::clone(&publisher).run(wires.view.subscribe()));
        let caretaker = Arc::new(self.caretaker(&wires));
        let parts = (Arc::clone(&looker), publisher, Arc::clone(&caretaker));
        let host = Arc::new(self.host(&wires));
        let api = Arc::new(self.api(&wires, commands, parts, Arc::clone(&host)));
        // Before the claims are read: who looks after nodes that are gone takes a daemon for gone
        // whose lease is old.
        if self.datastore.leases.clears_up()
            && let Err(error) = block_in_place(|| caretaker.renew())
        {
            warn!(error = %error_chain(&error), "the lease of this node cannot be renewed");
        }
        let claims = self.claims(&wires, queue);
        let routes = self.routes(&wires, kernel, report_queue);
        let bgp = self.bgp(&wires, forwarding, reports);
        let reconcile = self.reconcile(&wires, looker);
        tasks.spawn("claims", claims.run());
        tasks.spawn("routes", routes.run());
        tasks.spawn("BGP", bgp.run());
        tasks.endless("reconcile", reconcile.run());
        tasks.endless("lease", caretaker.run());
        self.start_helpers(wires, host, tasks);
        Ok(api)
    }

    /// The tasks that cannot fail.
    fn start_helpers(&self, wires: Wires, host: Arc<Host>, tasks: &mut Tasks) {
        let run_dir = &self.config.run_dir;
        let resources = self.datastore.resources.clone();
        let reports = Arc::clone(&self.datastore.reports);
        let conditions = [wires.conditions.subscribe(), wires.bgp_conditions.subscribe()];
        let found = watch::Sender::default();
        let of_host = (self.name.clone(), found.subscribe());
        let of_node = found.subscribe();
        tasks.endless(
            "conditions of the host",
            gather(wires.host_condition.subscribe(), found, wires.works()),
        );
        let problems = wires.report_problems.clone();
        tasks.endless("status", report_status(reports, resources, conditions, of_host, problems));
        let (view, service) = (wires.view.subscribe(), Arc::clone(&self.service));
        let tombstones = Arc::clone(&wires.tombstones);
        tasks.endless("heartbeat", heartbeat::run(run_dir.clone(), view, service, tombstones));
        tasks.endless("reaper", reaper::run(Arc::clone(&self.service), Arc::clone(&wires.parked)));
        tasks.endless("tombstones", Arc::clone(&wires.tombstones).watch());
        if let Some(own_node) = &self.datastore.own_node {
            let resources = self.datastore.resources.clone();
            tasks.endless("own Node", Arc::clone(own_node).run(resources, of_node, wires.works()));
        }
        let (name, resources) = (self.name.clone(), self.datastore.resources.clone());
        let rules = Arc::clone(&host.rules_changed);
        let repair = Repair {
            damage: wires.damage,
            service: Arc::clone(&self.service),
            problems: wires.repair_problems,
            metrics: wires.metrics.clone(),
            host_changed: Arc::clone(&host.changed),
        };
        tasks.endless("repair", repair.run());
        tasks.endless("host", host.watch(wires.host_problems, wires.host_condition));
        let nat = OutgoingNat {
            resources: resources.clone(),
            problems: wires.nat_problems,
            metrics: wires.metrics,
            rules_changed: rules,
        };
        tasks.endless("outgoing NAT", nat.run());
        let Wires { sources, mtu, uplink_changed, .. } = wires;
        tasks.endless("addresses", follow_addresses(name, resources, uplink_changed, sources, mtu));
    }

    fn api(
        &self,
        wires: &Wires,
        commands: mpsc::Sender<claims::Command>,
        (looker, publisher, caretaker): (Arc<Looker>, Arc<Publisher>, Arc<Caretaker>),
        host: Arc<Host>,
    ) -> Api {
        Api {
            node: self.name.clone(),
            started_ms: now_ms(),
            ipam: Ipam {
                node: self.name.clone(),
                service: Arc::clone(&self.service),
                view: wires.view.subscribe(),
                claims: commands,
                mtu: wires.mtu.subscribe(),
                tombstones: Arc::clone(&wires.tombstones),
                parked: Arc::clone(&wires.parked),
                pods: self.datastore.pods.clone(),
            },
            claims: Arc::clone(&self.datastore.claims),
            speaker: wires.speaker.subscribe(),
            resources: self.datastore.resources.clone(),
            installed: wires.installed.subscribe(),
            problems: [
                &wires.claim_problems,
                &wires.lease_problems,
                &wires.bgp_problems,
                &wires.reconcile_problems,
                &wires.host_problems,
                &wires.nat_problems,
                &wires.report_problems,
                &wires.repair_problems,
            ]
            .map(watch::Sender::subscribe)
            .into_iter()
            .chain([self.datastore.problems.clone(), self.datastore.service_problems.clone()])
            .chain(self.datastore.pods.as_ref().map(|pods| pods.problems()))
            .chain(self.datastore.own_node.iter().flat_map(|own| own.problems()))
            .chain([namespaces::look()])
            .collect(),
            refusals: self.datastore.refusals.clone(),
            conflicts: wires.conflicts.subscribe(),
            metrics: wires.metrics.clone(),
            parked: Arc::clone(&wires.parked),
            looker,
            publisher,
            caretaker,
            host,
        }
    }

    fn host(&self, wires: &Wires) -> Host {
        Host {
            node: self.name.clone(),
            resources: self.datastore.resources.clone(),
            installed: wires.installed.subscribe(),
            mtu: wires.mtu.subscribe(),
            nat_problems: wires.nat_problems.subscribe(),
            metrics: wires.metrics.clone(),
            changed: Arc::new(Notify::new()),
            rules_changed: Arc::new(AtomicBool::new(true)),
            chains: Mutex::new(Ok(Vec::new())),
        }
    }

    fn claims(&self, wires: &Wires, commands: mpsc::Receiver<claims::Command>) -> Claims {
        Claims {
            node: self.name.clone(),
            shared: self.datastore.shared,
            grace: Duration::from_secs(self.config.ipam.empty_block_grace_seconds),
            store: Arc::clone(&self.datastore.claims),
            service: Arc::clone(&self.service),
            resources: self.datastore.resources.clone(),
            commands,
            view: wires.view.clone(),
            owned: wires.owned.clone(),
            conflicts: wires.conflicts.subscribe(),
            learned: wires.installed.subscribe(),
            problems: wires.claim_problems.clone(),
            conditions: wires.conditions.clone(),
            state: claims::State::default(),
        }
    }

    fn caretaker(&self, wires: &Wires) -> Caretaker {
        Caretaker {
            node: self.name.clone(),
            instance: new_uid(),
            leases: Arc::clone(&self.datastore.leases),
            grace: Duration::from_secs(self.config.ipam.gone_node_grace_seconds),
            claims: Arc::clone(&self.datastore.claims),
            resources: self.datastore.resources.clone(),
            problems: wires.lease_problems.clone(),
            others: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    fn routes(
        &self,
        wires: &Wires,
        kernel: Kernel,
        reports: mpsc::UnboundedReceiver<Report>,
    ) -> Routes {
        Routes {
            fib: kernel.fib,
            metric: self.config.fib.metric,
            events: kernel.events,
            reports,
            owned: wires.owned.subscribe(),
            sources: wires.sources.subscribe(),
            speaker: wires.speaker.subscribe(),
            installed: wires.installed.clone(),
            conflicts: wires.conflicts.clone(),
            pod_links_lost: Arc::clone(&wires.pod_links_lost),
            damage: Arc::clone(&wires.damage),
            uplink_changed: Arc::clone(&wires.uplink_changed),
            metrics: wires.metrics.clone(),
            state: kernel.routes,
        }
    }

    fn looker(&self, wires: &Wires) -> anyhow::Result<Looker> {
        let grace = Duration::from_secs(self.config.reconcile.grace_seconds);
        let (service, parked) = (Arc::clone(&self.service), Arc::clone(&wires.parked));
        let pods = self.datastore.pods.as_ref().map(|pods| pods.known());
        Looker::begin(service, parked, grace, wires.metrics.clone(), pods, self.until)
    }

    fn reconcile(&self, wires: &Wires, looker: Arc<Looker>) -> Reconcile {
        if self.set_aside.is_some() {
            wires.metrics.store_set_aside();
        }
        Reconcile {
            service: Arc::clone(&self.service),
            looker,
            tombstones: Arc::clone(&wires.tombstones),
            interval: Duration::from_secs(self.config.reconcile.interval_seconds),
            pod_links_lost: Arc::clone(&wires.pod_links_lost),
            parked: Arc::clone(&wires.parked),
            set_aside: self.set_aside.clone(),
            problems: wires.reconcile_problems.clone(),
        }
    }

    fn bgp(
        &self,
        wires: &Wires,
        forwarding: BTreeSet<Family>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Bgp {
        Bgp {
            node: self.name.clone(),
            listen_port: self.config.bgp.listen_port.map(Into::into),
            forwarding,
            resources: self.datastore.resources.clone(),
            filters: FilterCopy::new(&self.config.state_dir, &self.name),
            patience: COPY_AGAIN,
            owned: wires.owned.subscribe(),
            services: self.datastore.services.clone(),
            reports,
            current: wires.speaker.clone(),
            problems: wires.bgp_problems.clone(),
            conditions: wires.bgp_conditions.clone(),
        }
    }
}

/// Pause before a status that could not be written is tried again.
const STATUS_PAUSE: Duration = Duration::from_secs(10);

/// Interval at which an unchanged status is reported again, in case somebody deleted it.
const STATUS_AGAIN: Duration = Duration::from_secs(600);

/// Keeps what this node says about each object up to date.
pub(crate) async fn report_status(
    reports: Arc<dyn Reports>,
    mut resources: watch::Receiver<Arc<Snapshot>>,
    [mut claims, mut bgp]: [watch::Receiver<BTreeMap<ObjectId, Vec<Condition>>>; 2],
    (node, mut host): (String, watch::Receiver<Option<Condition>>),
    problems: watch::Sender<Vec<String>>,
) {
    let own = ObjectId { kind: Kind::Node.singular().to_owned(), namespace: None, name: node };
    loop {
        let snapshot = Arc::clone(&resources.borrow_and_update());
        let mut said = claims.borrow_and_update().clone();
        for (object, conditions) in &*bgp.borrow_and_update() {
            said.entry(object.clone()).or_default().extend(conditions.iter().cloned());
        }
        let found = host.borrow_and_update().clone();
        if let Some(condition) = found.filter(|_| snapshot.nodes.contains_key(&own.name)) {
            said.entry(own.clone()).or_default().push(condition);
        }
        let written = block_in_place(|| reports.report(&snapshot, said));
        let failed = written.is_err();
        // Nothing else depends on it.
        let said = written.err().map(|error| {
            format!("the status of the resources cannot be written: {}", error_chain(&error))
        });
        problems::tell(&problems, said.into_iter().collect());
        let changed = tokio::select! {
            changed = resources.changed() => changed,
            changed = claims.changed() => changed,
            changed = bgp.changed() => changed,
            changed = host.changed() => changed,
            () = tokio::time::sleep(if failed { STATUS_PAUSE } else { STATUS_AGAIN }) => continue,
        };
        if changed.is_err() {
            return;
        }
        // All nodes hear of a change within milliseconds.
        tokio::time::sleep(spread(reports.spread())).await;
    }
}

/// The addresses that the node's manifest gives it.
fn addresses(node: &str, snapshot: &Snapshot) -> Sources {
    let own = snapshot.nodes.get(node);
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| Some((family, own?.address(family)?)))
        .collect()
}

/// Keeps the node's own addresses, and the MTU that pods get from the link that has them.
async fn follow_addresses(
    node: String,
    mut resources: watch::Receiver<Arc<Snapshot>>,
    uplink_changed: Arc<Notify>,
    sources: watch::Sender<Sources>,
    mtu: watch::Sender<u32>,
) {
    loop {
        let addresses = addresses(&node, &resources.borrow_and_update());
        match block_in_place(|| uplink_mtu(addresses.values().copied())) {
            Ok(found) => {
                if mtu.send_replace(found) != found {
                    info!(mtu = found, "the uplink has changed, and the MTU of new pods");
                }
            }
            Err(error) => warn!(error = %error_chain(&error), "cannot tell the uplink's MTU"),
        }
        sources.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
        tokio::select! {
            changed = resources.changed() => if changed.is_err() { return },
            () = uplink_changed.notified() => {}
        }
    }
}
