use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use twill_types::{Family, Prefix};

use crate::{
    ConnId, Explanation, Input, Output, Own, PeerConfig, PeerEvent, PeerKey, PeerSnapshot,
    RouteSnapshot, SpeakerConfig, Time,
    adj_out::{AdjRibsOut, ExportView, Messages},
    connection::Negotiated,
    peer::{Loss, Peer, Session, Sink},
    rib::{PeerFacts, Rib},
    time::Jitter,
    wire::{self, GracefulRestart, Notification, RouteRefresh, UpdateIn, cease, code},
};

/// A peer that is back but does not finish sending its routes keeps its stale ones no longer than
/// this (RFC 4724 section 4.2 asks for an upper bound).
const LONGEST_RESYNC: Duration = Duration::from_secs(360);

/// What is kept beside the session of a peer.
#[derive(Debug, Default)]
struct Exchange {
    /// When its stale routes go.
    stale_until: Option<Time>,
    /// Families whose End-of-RIB has not come since the session is up.
    awaited: BTreeSet<Family>,
    /// After our restart its routes are waited for before old kernel routes go.
    holds_convergence: bool,
}

/// The speaker.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    peers: BTreeMap<PeerKey, Peer>,
    exchanges: BTreeMap<PeerKey, Exchange>,
    rib: Rib,
    adj_out: AdjRibsOut,
    outputs: VecDeque<Output>,
    jitter: Jitter,
    next_conn: u64,
    /// When the restart is over at the latest; `None` once it is.
    converge_by: Option<Time>,
    configured: bool,
}

impl Speaker {
    /// A speaker without peers.
    pub fn new(config: SpeakerConfig, now: Time) -> Self {
        Self {
            rib: Rib::new(config.max_paths),
            adj_out: AdjRibsOut::new(config.asn),
            jitter: Jitter::new(config.seed),
            converge_by: Some(now + config.selection_deferral),
            config,
            peers: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            outputs: VecDeque::new(),
            next_conn: 1,
            configured: false,
        }
    }

    /// Takes one input. What follows from it is in [`Speaker::poll_output`].
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Tick => self.tick(now),
            Input::SetPeers(peers) => self.set_peers(now, peers),
            Input::SetOwn(own) => self.set_own(now, own),
            Input::Connected { conn, local } => {
                self.with_owner(now, conn, |peer, sink| peer.connected(conn, local, sink));
            }
            Input::ConnectFailed { conn, reason } => {
                self.with_owner(now, conn, |peer, sink| peer.connect_failed(conn, &reason, sink));
            }
            Input::Accepted { conn, local, remote } => self.accepted(now, conn, local, remote),
            Input::Received { conn, bytes } => {
                self.with_owner(now, conn, |peer, sink| peer.received(conn, &bytes, sink));
            }
            Input::Written { conn, count } => {
                self.with_owner(now, conn, |peer, sink| peer.written(conn, count, sink.now));
            }
            Input::Closed { conn, reason } => {
                self.with_owner(now, conn, |peer, sink| peer.closed(conn, &reason, sink));
            }
            Input::NextHops(states) => self.rib.set_next_hops(states),
        }
        self.settle(now);
    }

    /// When [`Input::Tick`] is due next, and for what.
    pub fn poll_timeout(&self) -> Option<(Time, &'static str)> {
        let peers = self.peers.values().filter_map(Peer::next_deadline);
        let stale = self.exchanges.values().filter_map(|exchange| exchange.stale_until);
        let stale = stale.map(|deadline| (deadline, "restart timer"));
        let converge = self.converge_by.map(|deadline| (deadline, "selection deferral timer"));
        peers.chain(stale).chain(converge).min()
    }

    /// The next thing to be done outside.
    pub fn poll_output(&mut self) -> Option<Output> {
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
    pub fn explain(&self, prefix: Prefix) -> Option<Explanation> {
        // The more specific of two that cover one prefix is the greater.
        let found = self.rib.covering(prefix).max(self.rib.own_covering(prefix))?;
        Some(self.rib.explain(found))
    }

    /// Runs `act` on the peer that a connection belongs to.
    fn with_owner(&mut self, now: Time, conn: ConnId, act: impl FnOnce(&mut Peer, &mut Sink<'_>)) {
        let owner = self.peers.values().find(|peer| peer.owns(conn)).map(|peer| peer.key);
        if let Some(key) = owner {
            self.with_peer(now, key, act);
        }
    }

    /// Runs `act` on a peer, then does what its session events ask for.
    fn with_peer(&mut self, now: Time, key: PeerKey, act: impl FnOnce(&mut Peer, &mut Sink<'_>)) {
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
            restarting: self.config.restarting && self.converge_by.is_some(),
        };
        act(peer, &mut sink);
        self.outputs.extend(outputs);
        for event in sessions {
            match event {
                Session::Up => self.up(now, key),
                Session::Down { loss, negotiated } => self.down(now, key, &loss, &negotiated),
                Session::Update(update) => self.update(key, update),
                Session::Refresh(refresh) => self.refresh(now, key, refresh),
            }
        }
    }

    fn tick(&mut self, now: Time) {
        let due: Vec<PeerKey> = self
            .peers
            .values()
            .filter(|peer| peer.next_deadline().is_some_and(|(deadline, _)| deadline <= now))
            .map(|peer| peer.key)
            .collect();
        for key in due {
            self.with_peer(now, key, Peer::tick);
        }
        let expired: Vec<PeerKey> = self
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.stale_until.is_some_and(|deadline| deadline <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in expired {
            self.flush_stale(key, &[Family::V4, Family::V6]);
        }
    }

    /// Who is to be spoken to. Sessions whose configuration stays are left alone.
    fn set_peers(&mut self, now: Time, configs: BTreeMap<PeerKey, PeerConfig>) {
        let gone: Vec<PeerKey> =
            self.peers.keys().filter(|key| !configs.contains_key(key)).copied().collect();
        for key in gone {
            self.with_peer(now, key, Peer::deconfigure);
            self.peers.remove(&key);
            self.exchanges.remove(&key);
            self.adj_out.leave(key);
            self.rib.forget_peer(key);
        }
        let mut started = Vec::new();
        for (key, config) in configs {
            match self.peers.get(&key) {
                None => {
                    let stopped = config.shutdown.is_some();
                    self.peers.insert(key, Peer::new(key, config, now));
                    started.push(key);
                    let holds_convergence =
                        self.converge_by.is_some() && self.config.restarting && !stopped;
                    let exchange = Exchange { holds_convergence, ..Exchange::default() };
                    self.exchanges.insert(key, exchange);
                }
                Some(peer) if peer.config != config => {
                    let stopped = config.shutdown.is_some();
                    self.with_peer(now, key, |peer, sink| peer.reconfigure(config, sink));
                    if let Some(exchange) = self.exchanges.get_mut(&key) {
                        exchange.holds_convergence &= !stopped;
                    }
                    if let Some(view) = self.export_view(key) {
                        let messages = self.adj_out.regroup(key, view);
                        self.send_established(now, key, messages);
                    }
                }
                Some(_) => {}
            }
        }
        for key in started {
            self.with_peer(now, key, Peer::start);
        }
        self.configured = true;
    }

    /// An unknown caller is told so, and closed (RFC 4486 subcode 5).
    fn accepted(&mut self, now: Time, conn: ConnId, local: SocketAddr, remote: SocketAddr) {
        let key = self.peers.keys().find(|key| key.address == remote.ip()).copied();
        match key {
            Some(key) => {
                self.with_peer(now, key, |peer, sink| peer.accepted(conn, local, sink));
            }
            None => {
                let notification = Notification::new(code::CEASE, cease::REJECTED);
                let bytes = wire::encode_notification(&notification);
                self.outputs.push_back(Output::Send { conn, bytes });
                self.outputs.push_back(Output::Close { conn });
            }
        }
    }

    fn up(&mut self, now: Time, key: PeerKey) {
        let Some((_, negotiated)) = self.peers.get(&key).and_then(Peer::established) else {
            return;
        };
        let facts = PeerFacts {
            external: !negotiated.session.internal,
            router_id: negotiated.open.identifier,
        };
        let families: BTreeSet<Family> = negotiated.families().collect();
        let restart = negotiated.graceful_restart().cloned();
        self.rib.set_peer(key, facts);
        // RFC 4724 section 4.2: what the peer did not keep forwarding for is not kept.
        let kept: Vec<Family> = kept_families(restart.as_ref());
        let lost: Vec<Family> =
            [Family::V4, Family::V6].into_iter().filter(|f| !kept.contains(f)).collect();
        let flushed = self.rib.flush_stale(key, &lost);
        self.report_flushed(key, flushed);
        let (_, stale) = self.rib.count(key);
        let waits = match &restart {
            // RFC 4724 section 4.1: one that has restarted too waits for us.
            Some(restart) => !restart.restarting,
            None => false,
        };
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.stale_until = (stale > 0).then(|| now + LONGEST_RESYNC);
            exchange.awaited = families.clone();
            exchange.holds_convergence &= waits;
        }
        let mut messages = match self.export_view(key) {
            Some(view) => self.adj_out.join(key, view),
            None => Messages::default(),
        };
        for family in &families {
            wire::encode_end_of_rib(*family, &mut messages.bytes);
            messages.count += 1;
        }
        self.send_established(now, key, messages);
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
        Some(ExportView { session: negotiated.session, next_hops })
    }

    /// The end of a session (RFC 4724 section 4.2, RFC 8538 section 4).
    fn down(&mut self, now: Time, key: PeerKey, loss: &Loss, negotiated: &Negotiated) {
        let restart = negotiated.graceful_restart();
        let keeps = match loss {
            Loss::Connection(_) => true,
            Loss::Notification(n) => {
                negotiated.notification_restart
                    && !(n.code == code::CEASE && n.subcode == cease::HARD_RESET)
            }
            Loss::Stopped(_) => false,
        };
        let kept_for = restart
            .filter(|restart| keeps && restart.restart_time > 0)
            .map(|restart| Duration::from_secs(restart.restart_time.into()));
        match (kept_for, restart) {
            (Some(_), Some(restart)) => {
                let families: Vec<Family> = restart.families.iter().map(|f| f.family).collect();
                self.rib.keep_stale(key, &families);
            }
            _ => self.rib.flush(key),
        }
        self.adj_out.leave(key);
        if let Some(exchange) = self.exchanges.get_mut(&key) {
            exchange.awaited.clear();
            exchange.stale_until = kept_for.map(|time| now + time);
        }
        let reason = match loss {
            Loss::Connection(reason) => reason.clone(),
            Loss::Notification(notification) => notification.to_string(),
            Loss::Stopped(reason) => reason.clone(),
        };
        self.outputs.push_back(Output::Event(key, PeerEvent::Down { reason, kept_for }));
    }

    fn update(&mut self, key: PeerKey, update: UpdateIn) {
        for fault in &update.faults {
            let text = fault.to_string();
            self.outputs.push_back(Output::Event(key, PeerEvent::BadUpdate { text }));
        }
        self.rib.withdraw(key, update.withdrawn.iter());
        for (attributes, routes) in update.announced {
            let loops = attributes.as_path.contains(self.config.asn)
                || attributes.originator_id == Some(self.config.router_id);
            // What replaces an accepted route without being acceptable withdraws it.
            if loops {
                self.rib.withdraw(key, routes.iter());
            } else {
                self.rib.announce(key, attributes, routes.iter());
            }
        }
        if let Some(family) = update.end_of_rib {
            self.outputs.push_back(Output::Event(key, PeerEvent::EndOfRib(family)));
            self.flush_stale(key, &[family]);
            if let Some(exchange) = self.exchanges.get_mut(&key) {
                exchange.awaited.remove(&family);
                exchange.holds_convergence &= !exchange.awaited.is_empty();
            }
        }
    }

    fn flush_stale(&mut self, key: PeerKey, families: &[Family]) {
        let count = self.rib.flush_stale(key, families);
        self.report_flushed(key, count);
        let (_, left) = self.rib.count(key);
        if let Some(exchange) = self.exchanges.get_mut(&key)
            && left == 0
        {
            exchange.stale_until = None;
        }
    }

    fn report_flushed(&mut self, key: PeerKey, count: usize) {
        if count > 0 {
            self.outputs.push_back(Output::Event(key, PeerEvent::StaleFlushed { count }));
        }
    }

    fn set_own(&mut self, now: Time, own: Own) {
        let announced = own.prefixes.iter().filter(|(_, announced)| **announced);
        let originated = announced.map(|(prefix, _)| *prefix).collect();
        self.rib.set_own(own);
        for (key, messages) in self.adj_out.originate(originated) {
            self.send_established(now, key, messages);
        }
    }

    /// The peer asks for everything again (RFC 2918 section 4).
    fn refresh(&mut self, now: Time, key: PeerKey, refresh: RouteRefresh) {
        if refresh.subtype == 0 {
            let messages = self.adj_out.refresh(key, refresh.family);
            self.send_established(now, key, messages);
        }
    }

    /// What follows from an input as a whole.
    fn settle(&mut self, now: Time) {
        let changes = self.rib.recompute();
        if let Some(next_hops) = self.rib.take_next_hops() {
            self.outputs.push_back(Output::TrackNextHops(next_hops));
        }
        if !changes.is_empty() {
            self.outputs.push_back(Output::Routes(changes));
        }
        if let Some(conflicts) = self.rib.take_conflicts() {
            self.outputs.push_back(Output::Conflicts(conflicts));
        }
        let Some(deadline) = self.converge_by else {
            return;
        };
        // A next hop that is still looked for stands for routes that are not out yet.
        let waiting = self.exchanges.values().any(|exchange| exchange.holds_convergence)
            || self.rib.has_unknown_next_hops();
        if (self.configured && !waiting) || deadline <= now {
            self.converge_by = None;
            self.outputs.push_back(Output::Converged);
        }
    }

    fn snapshot(&self, peer: &Peer) -> PeerSnapshot {
        let (prefixes_in, prefixes_stale) = self.rib.count(peer.key);
        let negotiated = peer.established().map(|(_, negotiated)| negotiated);
        PeerSnapshot {
            key: peer.key,
            config: peer.config.clone(),
            state: peer.state(),
            since: peer.since,
            info: peer.info.clone(),
            hold_time: negotiated.map_or(0, |n| n.hold_time),
            router_id: negotiated.map(|n| n.open.identifier),
            capabilities: negotiated.map(capability_names).unwrap_or_default(),
            prefixes_in,
            prefixes_stale,
            prefixes_out: self.adj_out.count(peer.key),
            messages_in: peer.messages_in,
            messages_out: peer.messages_out,
            flaps: peer.flaps,
        }
    }
}

/// The families for which the peer kept forwarding (the F bit).
fn kept_families(restart: Option<&GracefulRestart>) -> Vec<Family> {
    let families = restart.map(|restart| restart.families.as_slice()).unwrap_or_default();
    families.iter().filter(|entry| entry.forwarding).map(|entry| entry.family).collect()
}

/// This node's address of a family: the session's own end, else the configured one.
fn next_hop(family: Family, local: IpAddr, other: Option<IpAddr>) -> Option<IpAddr> {
    [Some(local), other].into_iter().flatten().find(|address| Family::of(*address) == family)
}

fn capability_names(negotiated: &Negotiated) -> Vec<&'static str> {
    use wire::Capability::{FourOctetAs, MultiProtocol, RouteRefresh};
    let session = negotiated.session;
    let shared = negotiated.open.capabilities.iter().filter_map(|capability| match capability {
        MultiProtocol(family) if session.has(*family) => Some(match family {
            Family::V4 => "IPv4 unicast",
            Family::V6 => "IPv6 unicast",
        }),
        RouteRefresh => Some("route refresh"),
        FourOctetAs(_) => Some("4-octet AS"),
        wire::Capability::GracefulRestart(_) => Some("graceful restart"),
        _ => None,
    });
    shared.collect()
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
