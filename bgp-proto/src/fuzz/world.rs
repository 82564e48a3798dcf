//! A shell without sockets, a kernel without routes, and peers without processes: all that a speaker
//! sees of the world, and what it has promised to each of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use twill_types::{BgpNextHop, Family, Prefix};

use super::{Observe, remote::Remote};
use crate::{
    Conflict, ConnId, Input, NextHopState, Output, Own, PeerConfig, PeerEvent, PeerKey, Reflection,
    RouteChange, RouteSnapshot, Speaker, SpeakerConfig, State, Time,
    policy::{Direction, Route, RoutePolicy},
    wire::{AsPath, HEADER_LENGTH, MAX_MESSAGE, Origin, PathAttributes},
};

/// The speaker's addresses.
pub(super) const V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100));
pub(super) const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100));
/// The speaker's AS.
pub(super) const ASN: u32 = 64512;

/// So many outputs, and two for each message, may follow from one input, whatever it is.
const OUTPUTS: usize = 64;
/// After so many ticks at one time no timer is due any more.
const TICKS: usize = 16;
/// Timers in one step of time that are waited for one by one.
const TIMERS: usize = 200;

pub(super) struct World<'a> {
    pub(super) speaker: Speaker,
    pub(super) now: Time,
    pub(super) peers: BTreeMap<PeerKey, PeerConfig>,
    pub(super) own: Own,
    pub(super) reflects: bool,
    /// The far ends of open connections.
    pub(super) ends: BTreeMap<ConnId, Remote>,
    /// Connections that the speaker has asked for.
    pub(super) dialling: BTreeMap<ConnId, PeerKey>,
    /// Next hops that the speaker wants to know about, and what it was told.
    pub(super) tracked: BTreeMap<BgpNextHop, Option<NextHopState>>,
    /// It is told at once.
    pub(super) answers: bool,
    /// The kernel's routes.
    pub(super) kernel: BTreeMap<Prefix, (Arc<[BgpNextHop]>, Option<BgpNextHop>)>,
    /// What was sent on each connection.
    pub(super) sent: BTreeMap<ConnId, Vec<u8>>,
    dialled: u64,
    accepted: u64,
    conflicts: Vec<Conflict>,
    converged: bool,
    up: BTreeSet<PeerKey>,
    /// Octets that peers have sent.
    octets: usize,
    observe: Observe<'a>,
}

impl<'a> World<'a> {
    pub(super) fn new(forwarding: BTreeSet<Family>, observe: Observe<'a>) -> Self {
        let config = SpeakerConfig {
            router_id: Ipv4Addr::new(192, 0, 2, 100),
            asn: super::say::asn(ASN),
            hostname: "node".to_owned(),
            seed: 7,
            forwarding,
            selection_deferral: Duration::from_secs(60),
            max_paths: 4,
        };
        Self {
            speaker: Speaker::new(config, Time::ZERO),
            now: Time::ZERO,
            peers: BTreeMap::new(),
            own: Own::default(),
            reflects: false,
            ends: BTreeMap::new(),
            dialling: BTreeMap::new(),
            tracked: BTreeMap::new(),
            answers: true,
            kernel: BTreeMap::new(),
            sent: BTreeMap::new(),
            dialled: 0,
            accepted: u64::MAX,
            conflicts: Vec::new(),
            converged: false,
            up: BTreeSet::new(),
            octets: 0,
            observe,
        }
    }

    /// Hands one input over, does what the speaker wants done, and holds it to its promises.
    pub(super) fn input(&mut self, input: Input) {
        self.turn(input);
        self.settle();
    }

    /// The kernel says what it knows of next hops.
    pub(super) fn learn(&mut self, states: BTreeMap<BgpNextHop, NextHopState>) {
        self.answer(states);
        self.settle();
    }

    fn settle(&mut self) {
        while self.answers && self.tracked.values().any(Option::is_none) {
            let unknown = self.tracked.iter().filter(|(_, state)| state.is_none());
            let state = NextHopState::Reachable { metric: 0 };
            let states = unknown.map(|(address, _)| (*address, state)).collect();
            self.answer(states);
        }
        self.check();
    }

    fn answer(&mut self, states: BTreeMap<BgpNextHop, NextHopState>) {
        for (address, state) in &states {
            if let Some(known) = self.tracked.get_mut(address) {
                *known = Some(*state);
            }
        }
        self.turn(Input::NextHops(states));
    }

    fn turn(&mut self, input: Input) {
        let most = OUTPUTS + self.messages_in(&input) * 2;
        let octets = match &input {
            Input::Received { bytes, .. } => bytes.len(),
            _ => 0,
        };
        self.octets += octets;
        let (speaker, now, mut input) = (&mut self.speaker, self.now, Some(input));
        let mut outputs = Vec::new();
        (self.observe)(self.octets, &mut || {
            if let Some(input) = input.take() {
                speaker.handle(now, input);
            }
            while let Some(output) = speaker.poll_output() {
                outputs.push(output);
                assert!(outputs.len() <= most, "no end of outputs: {:?}", outputs.last());
            }
        });
        for output in outputs {
            self.output(output);
        }
    }

    /// How many messages may become whole by an input.
    fn messages_in(&self, input: &Input) -> usize {
        match input {
            // What has come before is less than a message.
            Input::Received { bytes, .. } => 1 + bytes.len() / HEADER_LENGTH,
            Input::SetOwn(_) | Input::SetPeers(_) | Input::SetReflection(_) => self.peers.len(),
            _ => 0,
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Connect { conn, remote, local } => self.connect(conn, remote, local),
            Output::Send { conn, bytes } => match self.ends.get_mut(&conn) {
                Some(end) => {
                    end.read(&bytes);
                    self.sent.entry(conn).or_default().extend(bytes);
                }
                None => panic!("octets are sent on {conn:?}, which is not open"),
            },
            Output::Close { conn } | Output::Abort { conn } => {
                let known =
                    self.ends.remove(&conn).is_some() | self.dialling.remove(&conn).is_some();
                assert!(known, "{conn:?} is closed, which is not open");
            }
            Output::Routes(changes) => changes.iter().for_each(|change| self.route(change)),
            Output::TrackNextHops(addresses) => {
                let old = std::mem::take(&mut self.tracked);
                let known = |address: &BgpNextHop| old.get(address).copied().flatten();
                self.tracked = addresses.iter().map(|a| (*a, known(a))).collect();
            }
            Output::Converged { .. } => {
                assert!(!self.converged, "a restart is over twice");
                self.converged = true;
            }
            Output::Conflicts(conflicts) => self.conflicts = conflicts,
            Output::Event(peer, PeerEvent::Up) => {
                assert!(self.up.insert(peer), "{peer} is up twice");
            }
            Output::Event(peer, PeerEvent::Down { .. }) => {
                assert!(self.up.remove(&peer), "{peer} is down twice");
            }
            Output::Event(..) => {}
            Output::Refused { remote } => {
                assert!(self.peers.keys().all(|key| key.address != remote), "{remote} is a peer");
            }
        }
    }

    fn connect(&mut self, conn: ConnId, remote: SocketAddr, local: Option<IpAddr>) {
        assert!(conn.0 > self.dialled, "{conn:?} has been before");
        self.dialled = conn.0;
        let key = PeerKey { address: remote.ip(), port: remote.port() };
        let Some(config) = self.peers.get(&key) else {
            panic!("{remote} is no peer");
        };
        assert!(!config.passive && config.shutdown.is_none(), "{remote} is not to be dialled");
        assert_eq!(local, config.local_address, "the wrong address");
        assert!(!self.dialling.values().any(|other| *other == key), "{remote} is dialled twice");
        self.dialling.insert(conn, key);
    }

    fn route(&mut self, change: &RouteChange) {
        let RouteChange { prefixes, next_hops, backup } = change;
        assert!(!prefixes.is_empty(), "a change of nothing");
        for prefix in prefixes.iter() {
            let new = (Arc::clone(next_hops), *backup);
            let old = self.kernel.get(&prefix);
            assert_ne!(old, Some(&new), "a route that is there is set");
            if next_hops.is_empty() {
                assert!(old.is_some(), "{prefix}: a route that is not there is removed");
                self.kernel.remove(&prefix);
            } else {
                assert!(next_hops.is_sorted_by(|a, b| a < b), "{next_hops:?}");
                self.kernel.insert(prefix, new);
            }
        }
    }

    /// A peer, or a stranger, connects.
    pub(super) fn accept(&mut self, address: IpAddr, local: IpAddr) -> ConnId {
        let conn = ConnId(self.accepted);
        self.accepted -= 1;
        let key = self.peers.keys().find(|key| key.address == address).copied();
        let local = SocketAddr::new(local, 179);
        self.ends.insert(conn, Remote::new(key, local, self.is_internal(key)));
        self.input(Input::Accepted { conn, local, remote: SocketAddr::new(address, 40000) });
        conn
    }

    /// A connection that was asked for opens.
    pub(super) fn connected(&mut self, conn: ConnId) {
        let Some(key) = self.dialling.remove(&conn) else {
            return;
        };
        let local = if key.address.is_ipv4() { V4 } else { V6 };
        let local = SocketAddr::new(local, 50000);
        self.ends.insert(conn, Remote::new(Some(key), local, self.is_internal(Some(key))));
        self.input(Input::Connected { conn, local });
    }

    fn is_internal(&self, key: Option<PeerKey>) -> bool {
        let config = key.and_then(|key| self.peers.get(&key));
        config.is_some_and(|config| {
            config.policy.local_asn.map_or(ASN, twill_types::Asn::get) == config.asn.get()
        })
    }

    /// Delivers up to `count` octets of what an end has to say.
    pub(super) fn deliver(&mut self, conn: ConnId, count: usize) {
        let bytes = self.ends.get_mut(&conn).map(|end| end.deliver(count)).unwrap_or_default();
        if !bytes.is_empty() {
            self.input(Input::Received { conn, bytes });
        }
    }

    /// Lets time pass, timer by timer; where there are very many of them, the last ones are late.
    pub(super) fn elapse(&mut self, time: Duration) {
        let end = self.now + time;
        let mut timers = 0;
        while let Some((deadline, _)) = self.speaker.poll_timeout().filter(|(at, _)| *at <= end) {
            timers += 1;
            self.now = if timers > TIMERS { end } else { self.now.max(deadline) };
            self.tick();
        }
        self.now = end;
    }

    /// Timers that are due end.
    pub(super) fn tick(&mut self) {
        for _ in 0..TICKS {
            self.input(Input::Tick);
            if self.speaker.poll_timeout().is_none_or(|(at, _)| at > self.now) {
                return;
            }
        }
        panic!("{:?} is due again and again", self.speaker.poll_timeout());
    }

    fn check(&self) {
        self.check_peers();
        self.check_kernel();
        for conflict in &self.conflicts {
            assert!(self.own.prefixes.contains_key(&conflict.ours), "{conflict:?}");
            assert!(conflict.ours.covers(conflict.prefix), "{conflict:?}");
        }
    }

    fn check_peers(&self) {
        let (snapshots, routes) = (self.speaker.peers(), self.speaker.routes());
        let long = routes.iter().filter(|route| is_long(route)).count();
        assert!(snapshots.iter().map(|peer| &peer.key).eq(self.peers.keys()), "other peers");
        for peer in snapshots {
            let key = peer.key;
            let is_up = peer.state == State::Established;
            assert_eq!(is_up, self.up.contains(&key), "{key} is {}", peer.state);
            let of_it = routes.iter().filter(|route| route.from == Some(key));
            let (all, stale) =
                of_it.fold((0, 0), |(all, stale), r| (all + 1, stale + usize::from(r.stale)));
            let counted = peer.prefixes_in + peer.prefixes_refused;
            assert_eq!((counted, peer.prefixes_stale), (all, stale), "{key}");
            assert!(peer.stale_until.is_none() || stale > 0, "{key}: nothing is kept");
            let mut told = self.ends.values().filter(|end| end.peer == Some(key) && end.told);
            let end = told.next();
            assert!(told.next().is_none(), "two sessions with {key}");
            assert!(is_up || end.is_none(), "{key} is told something without a session");
            let known = end.map_or(0, |end| end.table.len());
            // What fits into no message is not told, and counts all the same.
            let missed = peer.prefixes_out.saturating_sub(known);
            let told = format!("{} to {key}, knows {end:?}", peer.prefixes_out);
            assert!(peer.prefixes_out >= known && missed <= long, "announced are {told}");
            if let Some(end) = end {
                self.check_table(end, &peer.config);
                let ours = peer.config.policy.local_asn.map_or(ASN, twill_types::Asn::get);
                end.check_marks(peer.config.policy.role, ours);
            }
        }
    }

    /// A peer knows what is announced and not kept from it by a filter, and nothing beside it from who passes
    /// nothing on.
    fn check_table(&self, end: &Remote, config: &PeerConfig) {
        let Some(session) = end.session() else {
            panic!("a session without an OPEN");
        };
        let has = |family| {
            let ends = [Some(end.local.ip()), config.other_next_hop];
            ends.into_iter().flatten().any(|address| Family::of(address) == family)
        };
        let announced = self.own.prefixes.iter().filter(|(_, announced)| **announced);
        let expressible = announced.map(|(prefix, _)| *prefix).filter(|prefix| {
            let family = prefix.family();
            let over_v6 = family == Family::V4 && session.extended_next_hop && has(Family::V6);
            session.has(family) && (has(family) || over_v6)
        });
        let policy = config.policy.routes.as_deref();
        let is_refused = |prefix: &Prefix| {
            policy.is_some_and(|policy| refuses_own(policy, *prefix, session.internal))
        };
        let (refused, wanted): (BTreeSet<Prefix>, BTreeSet<Prefix>) =
            expressible.partition(is_refused);
        let known: BTreeSet<Prefix> = end.table.keys().copied().collect();
        let passes = self.reflects || policy.is_some_and(RoutePolicy::passes_learned_on);
        let text = format!("wanted are {wanted:?}, refused {refused:?}, known {known:?}");
        assert!(wanted.is_subset(&known) && known.is_disjoint(&refused), "{text}");
        assert!(passes || known == wanted, "{text}");
    }

    /// The kernel has what the paths in use say, over next hops that can be reached.
    fn check_kernel(&self) {
        let mut wanted: BTreeMap<Prefix, BTreeSet<BgpNextHop>> = BTreeMap::new();
        for route in self.speaker.routes().into_iter().filter(|route| route.best) {
            if let (Some(attributes), Some(from)) = (route.attributes, route.from) {
                let next_hop = BgpNextHop::new(attributes.next_hop, from.address);
                wanted.entry(route.prefix).or_default().insert(next_hop);
            }
        }
        assert!(self.kernel.keys().eq(wanted.keys()), "{:?} instead of {wanted:?}", self.kernel);
        for (prefix, next_hops) in &wanted {
            let (known, backup) = &self.kernel[prefix];
            assert!(known.iter().eq(next_hops), "{known:?} instead of {next_hops:?}");
            for next_hop in next_hops.iter().chain(backup) {
                let known = self.tracked.get(next_hop);
                let reachable = matches!(known, Some(Some(NextHopState::Reachable { .. })));
                assert!(reachable, "{next_hops:?} over {next_hop}: {known:?}");
            }
        }
    }

    /// Sets what the node has.
    pub(super) fn set_own(&mut self, own: Own) {
        self.own = own.clone();
        self.input(Input::SetOwn(own));
    }

    pub(super) fn set_peers(&mut self, peers: BTreeMap<PeerKey, PeerConfig>) {
        self.peers.clone_from(&peers);
        self.input(Input::SetPeers(peers));
    }

    pub(super) fn set_reflection(&mut self, reflection: Option<Reflection>) {
        self.reflects = reflection.is_some();
        self.input(Input::SetReflection(reflection));
    }
}

/// Whether filters keep a prefix that the node originates from a peer. There is nothing about it that a rule
/// could ask for but the prefix itself.
fn refuses_own(policy: &RoutePolicy, prefix: Prefix, internal: bool) -> bool {
    let attributes = &PathAttributes::new(Origin::Igp, AsPath::default(), V4);
    let route = Route { prefix, attributes, learned: false, internal };
    policy.verdict(Direction::Export, &route).is_rejected()
}

/// Whether attributes leave no room for a prefix in a message that is not extended.
fn is_long(route: &RouteSnapshot) -> bool {
    let attributes = route.attributes.iter().flat_map(|attributes| &attributes.unknown);
    attributes.map(|attribute| attribute.value.len()).sum::<usize>() > MAX_MESSAGE - 256
}
