use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use twill_types::{Family, Prefix};

use crate::{
    ConnId, Explanation, Input, Output, Own, PeerConfig, PeerKey, PeerSnapshot, Reflection,
    RouteSnapshot, SpeakerConfig, Time,
    adj_out::{AdjRibsOut, ExportView, Messages},
    offer,
    peer::{Peer, Session, Sink},
    rib::Rib,
    time::Jitter,
    wire::{self, Notification, Role, cease, code},
};

mod import;
mod lookup;
mod refresh;
mod restart;

use self::{lookup::Lookup, restart::Exchange};

/// The speaker.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    peers: BTreeMap<PeerKey, Peer>,
    exchanges: BTreeMap<PeerKey, Exchange>,
    /// Refreshes of peers that have begun (RFC 7313), and when they end at the latest.
    refreshes: BTreeMap<(PeerKey, Family), Time>,
    lookup: Lookup,
    rib: Rib,
    adj_out: AdjRibsOut,
    outputs: VecDeque<Output>,
    jitter: Jitter,
    next_conn: u64,
    /// When the start is over at the latest; `None` once it is.
    converge_by: Option<Time>,
    /// When routes are passed on at the latest; `None` once they are.
    pass_by: Option<Time>,
    configured: bool,
    /// When the last input came whose consequences for routes are not drawn yet.
    unsettled: Option<Time>,
}

impl Speaker {
    /// A speaker without peers.
    pub fn new(config: SpeakerConfig, now: Time) -> Self {
        let mut rib = Rib::new(config.max_paths);
        // RFC 4724 section 4.1: for so long nobody hears of a choice out of half of what there is.
        rib.defer_passing_on();
        Self {
            rib,
            adj_out: AdjRibsOut::default(),
            jitter: Jitter::new(config.seed),
            converge_by: Some(now + restart::deferral(&config)),
            pass_by: Some(now + restart::passing(&config)),
            config,
            peers: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            refreshes: BTreeMap::new(),
            lookup: Lookup::default(),
            outputs: VecDeque::new(),
            next_conn: 1,
            configured: false,
            unsettled: None,
        }
    }

    /// Takes one input. What follows from it is in [`Speaker::poll_output`].
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Tick => self.tick(now),
            Input::SetPeers(peers) => self.set_peers(now, peers),
            Input::SetOwn(own) => self.set_own(now, own),
            Input::SetReflection(reflection) => self.set_reflection(now, reflection),
            Input::Connected { conn, local } => {
                self.with_owner(now, conn, |peer, sink| peer.connected(conn, local, sink));
            }
            Input::ConnectFailed { conn, reason } => {
                self.with_owner(now, conn, |peer, sink| peer.connect_failed(conn, &reason, sink));
            }
            Input::Accepted { conn, local, remote } => self.accepted(now, conn, local, remote),
            Input::Received { conn, bytes } => {
                self.with_owner(now, conn, |peer, sink| peer.received(conn, bytes, sink));
            }
            Input::Written { conn, count } => {
                self.with_owner(now, conn, |peer, sink| peer.written(conn, count, sink.now));
                if let Some(key) = self.lookup.owner(conn) {
                    self.answer_refresh(now, key);
                }
            }
            Input::Closed { conn, reason } => {
                self.with_owner(now, conn, |peer, sink| peer.closed(conn, &reason, sink));
            }
            Input::NextHops(states) => self.rib.set_next_hops(states),
        }
        self.unsettled = Some(now);
    }

    /// When [`Input::Tick`] is due next, and for what, once all outputs are taken.
    pub fn poll_timeout(&self) -> Option<(Time, &'static str)> {
        let next = self.lookup.next().and_then(|key| self.peers.get(&key));
        let peers = next.and_then(Peer::next_deadline).into_iter();
        let restarts = self.exchanges.values().flat_map(Exchange::timers);
        let refreshes = self.refreshes.values().map(|deadline| (*deadline, "refresh timer"));
        let start = self.converge_by.into_iter().chain(self.pass_by);
        let converge = start.map(|deadline| (deadline, "selection deferral timer"));
        peers.chain(restarts).chain(refreshes).chain(converge).min()
    }

    /// Whether [`Input::Tick`] would end a session because its peer has said nothing for the hold time: whoever
    /// may have something of that peer unread is to look for it first.
    pub fn has_expired_hold(&self, now: Time) -> bool {
        let due = self.lookup.due(now);
        due.iter().filter_map(|key| self.peers.get(key)).any(|peer| peer.has_expired_hold(now))
    }

    /// The next thing to be done outside. Routes are decided on here: whoever hands several inputs over
    /// before it asks has peers told, and the kernel changed, once for all of them.
    ///
    /// Next hops that are lost with their peer are told before the decision, which takes time in
    /// proportion to what the peer had announced. So what is answered is best done before more is
    /// asked for.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(next_hops) = self.rib.surviving_next_hops() {
            return Some(Output::TrackNextHops(next_hops));
        }
        if let Some(now) = self.unsettled.take() {
            self.settle(now);
        }
        self.outputs.pop_front()
    }

    /// All sessions.
    pub fn peers(&self) -> Vec<PeerSnapshot> {
        self.peers.values().map(|peer| self.snapshot(peer)).collect()
    }

    /// All paths, the own ones first.
    pub fn routes(&self) -> Vec<RouteSnapshot> {
        let own = self.adj_out.originated().iter().map(|prefix| RouteSnapshot {
            prefix: *prefix,
            from: None,
            path_id: 0,
            attributes: None,
            best: true,
            stale: false,
        });
        own.chain(self.rib.snapshot()).collect()
    }

    /// All that is known of a prefix: of itself, else of the most specific one that covers it and is
    /// known.
    pub fn explain(&self, now: Time, prefix: Prefix) -> Option<Explanation> {
        // The more specific of two that cover one prefix is the greater.
        let found = self.rib.covering(prefix).max(self.rib.own_covering(prefix))?;
        let mut explanation = self.rib.explain(found);
        explanation.withheld = self.adj_out.withheld(&self.rib, found);
        for path in explanation.paths.iter_mut().filter(|path| path.stale) {
            let exchange = self.exchanges.get(&path.from);
            let until = exchange.and_then(|exchange| exchange.kept_until(found.family()));
            path.stale_for = until.map(|until| until.since(now));
        }
        Some(explanation)
    }

    /// Runs `act` on the peer that a connection belongs to.
    fn with_owner(&mut self, now: Time, conn: ConnId, act: impl FnOnce(&mut Peer, &mut Sink<'_>)) {
        if let Some(key) = self.lookup.owner(conn) {
            self.with_peer(now, key, act);
        }
    }

    /// Runs `act` on a peer, then does what its session events ask for.
    fn with_peer(&mut self, now: Time, key: PeerKey, act: impl FnOnce(&mut Peer, &mut Sink<'_>)) {
        let restarting = self.is_restarting();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let mut outputs = Vec::new();
        let mut sessions = Vec::new();
        let mut sink = Sink {
            speaker: &self.config,
            now,
            jitter: &mut self.jitter,
            next_conn: &mut self.next_conn,
            outputs: &mut outputs,
            sessions: &mut sessions,
            restarting,
        };
        act(peer, &mut sink);
        self.lookup.note(peer);
        self.outputs.extend(outputs);
        // Of a peer that has gone over its limit no more is taken until it is back.
        let mut within = true;
        for event in sessions {
            match event {
                Session::Up => {
                    within = true;
                    self.up(now, key);
                }
                Session::Down { loss, negotiated } => self.down(now, key, &loss, &negotiated),
                Session::Update(update) if within => within = self.update(now, key, update),
                Session::Refresh(refresh) if within => self.refresh(now, key, refresh),
                Session::Update(_) | Session::Refresh(_) => {}
            }
        }
    }

    /// Who is to be spoken to. Sessions whose configuration stays are left alone.
    fn set_peers(&mut self, now: Time, configs: BTreeMap<PeerKey, PeerConfig>) {
        let gone: Vec<PeerKey> =
            self.peers.keys().filter(|key| !configs.contains_key(key)).copied().collect();
        for key in gone {
            self.with_peer(now, key, Peer::deconfigure);
            self.peers.remove(&key);
            self.lookup.forget(key);
            self.exchanges.remove(&key);
            self.adj_out.leave(key);
            self.rib.forget_peer(key);
        }
        let mut started = Vec::new();
        for (key, config) in configs {
            match self.peers.get(&key) {
                None => {
                    let stopped = config.shutdown.is_some();
                    let peer = Peer::new(key, config, now);
                    self.lookup.note(&peer);
                    self.peers.insert(key, peer);
                    started.push(key);
                    let exchange = Exchange::new(self.is_restarting() && !stopped);
                    self.exchanges.insert(key, exchange);
                }
                Some(peer) if peer.config != config => {
                    let stopped = config.shutdown.is_some();
                    let policy = peer.config.policy.clone();
                    let keeps = peer.config.keeps_paths(&config);
                    self.with_peer(now, key, |peer, sink| peer.reconfigure(config, sink));
                    if !keeps {
                        // Those of a session that was up are gone with it.
                        self.flush_stale(key, &[Family::V4, Family::V6]);
                    }
                    self.policy_changed(now, key, &policy);
                    if let (true, Some(exchange)) = (stopped, self.exchanges.get_mut(&key)) {
                        exchange.release();
                    }
                    if let Some(view) = self.export_view(key) {
                        let messages = self.adj_out.regroup(&self.rib, key, view);
                        self.send_established(now, key, messages);
                    }
                }
                Some(_) => {}
            }
        }
        let passed_by_filter = self.peers.values().any(|peer| {
            let policy = &peer.config.policy.routes;
            policy.as_ref().is_some_and(|policy| policy.passes_learned_on())
        });
        self.rib.set_passed_by_filter(passed_by_filter);
        for key in started {
            self.set_import(key);
            self.with_peer(now, key, Peer::start);
        }
        self.configured = true;
    }

    /// An unknown caller is told so, and closed (RFC 4486 subcode 5).
    fn accepted(&mut self, now: Time, conn: ConnId, local: SocketAddr, remote: SocketAddr) {
        let at = |port| PeerKey { address: remote.ip(), port };
        let mut known = self.peers.range(at(0)..=at(u16::MAX)).peekable();
        let is_known = known.peek().is_some();
        let key = known.find(|(_, peer)| peer.config.takes_connections).map(|(key, _)| *key);
        match key {
            Some(key) => {
                self.with_peer(now, key, |peer, sink| peer.accepted(conn, local, sink));
            }
            // Without a NOTIFICATION, as it may be for a session that is well.
            None if is_known => self.outputs.push_back(Output::Close { conn }),
            None => {
                let notification = Notification::new(code::CEASE, cease::REJECTED);
                let bytes = wire::encode_notification(&notification);
                self.outputs.push_back(Output::Send { conn, bytes });
                self.outputs.push_back(Output::Close { conn });
                self.outputs.push_back(Output::Refused { remote: remote.ip() });
            }
        }
    }

    fn send_established(&mut self, now: Time, key: PeerKey, messages: Messages) {
        if messages.count == 0 {
            return;
        }
        self.with_peer(now, key, |peer, sink| {
            if let Some(conn) = peer.established().map(|(connection, _)| connection.id) {
                peer.send_many(conn, messages.bytes, messages.count, sink);
            }
        });
    }

    /// What makes a difference to what a peer is told; `None` without a session.
    fn export_view(&self, key: PeerKey) -> Option<ExportView> {
        let peer = self.peers.get(&key)?;
        let (connection, negotiated) = peer.established()?;
        let next_hop = |family| next_hop(family, connection.local.ip(), peer.config.other_next_hop);
        let next_hops = [next_hop(Family::V4), next_hop(Family::V6)];
        let role = peer.config.policy.role.filter(|_| !negotiated.session.internal);
        Some(ExportView {
            asn: peer.config.local_asn(&self.config),
            session: negotiated.session,
            next_hops,
            client: peer.config.client,
            long_lived: !negotiated.long_lived.is_empty(),
            on_link: peer.config.on_link,
            policy: peer.config.policy.routes.clone(),
            next_hop_mode: peer.config.policy.next_hop,
            // RFC 9234 section 5, egress 1 and 2.
            only_to_customer: matches!(role, Some(Role::Provider | Role::RouteServer | Role::Peer)),
            no_customer: matches!(
                role,
                Some(Role::Customer | Role::RouteServerClient | Role::Peer)
            ),
        })
    }

    /// Whose routes are passed on. What has passed a cluster is refused by it (RFC 4456 section 8), so
    /// in another cluster all is asked for again.
    fn set_reflection(&mut self, now: Time, reflection: Option<Reflection>) {
        let before = self.rib.cluster_id();
        self.rib.set_reflection(reflection);
        if self.rib.cluster_id() == before {
            return;
        }
        let internal = self.peers.values().filter(|peer| peer.config.is_internal(&self.config));
        for key in internal.map(|peer| peer.key).collect::<Vec<_>>() {
            self.ask_again(now, key);
        }
    }

    fn set_own(&mut self, now: Time, own: Own) {
        let originated = own.originated();
        // What becomes another's is withdrawn before a reflector passes the other's path on, and the
        // other's is withdrawn before what becomes this node's is announced.
        self.originate(now, &originated & self.adj_out.originated());
        self.rib.set_own(own);
        self.settle(now);
        self.originate(now, originated);
    }

    fn originate(&mut self, now: Time, originated: BTreeSet<Prefix>) {
        for (key, messages) in self.adj_out.originate(originated) {
            self.send_established(now, key, messages);
        }
    }

    /// What follows from an input as a whole.
    fn settle(&mut self, now: Time) {
        let changes = self.rib.recompute();
        self.pass_on(now);
        if let Some(next_hops) = self.rib.take_next_hops() {
            self.outputs.push_back(Output::TrackNextHops(next_hops));
        }
        if !changes.is_empty() {
            self.outputs.push_back(Output::Routes(changes));
        }
        if let Some(conflicts) = self.rib.take_conflicts() {
            self.outputs.push_back(Output::Conflicts(conflicts));
        }
        self.converge(now);
    }

    /// Tells peers what is passed on to them.
    fn pass_on(&mut self, now: Time) {
        let passes = self.rib.take_passes();
        if !passes.is_empty() {
            for (key, messages) in self.adj_out.pass(&self.rib, &passes) {
                self.send_established(now, key, messages);
            }
        }
        self.rib.forget_passes(&passes);
    }

    fn snapshot(&self, peer: &Peer) -> PeerSnapshot {
        let (prefixes_all, prefixes_stale) = self.rib.count(peer.key);
        let prefixes_refused = self.rib.refused(peer.key);
        let negotiated = peer.established().map(|(_, negotiated)| negotiated);
        let exchange = self.exchanges.get(&peer.key);
        // What was announced again is fresh before End-of-RIB says that this is all.
        let kept = exchange.filter(|_| prefixes_stale > 0);
        PeerSnapshot {
            key: peer.key,
            config: peer.config.clone(),
            state: peer.state(),
            since: peer.since,
            info: peer.info.clone(),
            hold_time: negotiated.map_or(0, |n| n.hold_time),
            router_id: negotiated.map(|n| n.open.identifier),
            capabilities: negotiated.map(offer::names).unwrap_or_default(),
            prefixes_in: prefixes_all.saturating_sub(prefixes_refused),
            prefixes_refused,
            prefixes_stale,
            stale_until: kept.and_then(Exchange::stale_until),
            long_lived_stale: kept.is_some_and(Exchange::is_long_lived),
            awaited: self.keeps_old_routes() && exchange.is_some_and(Exchange::is_awaited),
            prefixes_out: self.adj_out.count(peer.key),
            messages_in: peer.messages_in,
            messages_out: peer.messages_out,
            flaps: peer.flaps,
            hostname: negotiated.and_then(|n| n.hostname()).map(str::to_owned),
            notifications: peer.tally.notifications(),
            update_errors: peer.tally.update_errors(),
        }
    }
}

/// This node's address of a family: the session's own end, else the configured one.
fn next_hop(family: Family, local: IpAddr, other: Option<IpAddr>) -> Option<IpAddr> {
    [Some(local), other].into_iter().flatten().find(|address| Family::of(*address) == family)
}

/// A router id for a node without an IPv4 address: any number that differs between nodes will do
/// (RFC 6286), so it is made from the name.
impl SpeakerConfig {
    /// A stable, non-zero identifier from a node's name (FNV-1a).
    pub fn router_id_from_name(name: &str) -> Ipv4Addr {
        let hash = name
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Ipv4Addr::from_bits(hash.max(1))
    }
}
