//! One speaker, and peers that say exactly what a test wants.

use super::*;
use crate::{
    PeerSnapshot, RouteSnapshot,
    wire::{
        self, AsPath, Capability, Community, GracefulRestart, GracefulRestartFamily,
        LongLivedFamily, MessageType, Notification, Open, Origin, PathAttributes, Session,
    },
};

/// One family of a peer's graceful restart, and whether it kept forwarding.
pub(super) type Forwarding = (Family, bool);

/// What a peer's OPEN says of restarts.
#[derive(Debug, Clone, Default)]
pub(super) struct Says {
    /// Multiprotocol families; both if empty.
    pub(super) families: Vec<Family>,
    /// Restart time in seconds and families with their F bits; `None` without the capability.
    pub(super) restart: Option<(u16, Vec<Forwarding>)>,
    pub(super) restarting: bool,
    /// N: RFC 8538.
    pub(super) notification: bool,
    /// Families with their F bits and long-lived stale times in seconds.
    pub(super) long_lived: Vec<(Family, bool, u32)>,
}

impl Says {
    /// Graceful restart for both families, with F and N, for 120 s.
    pub(super) fn restart() -> Self {
        let families = vec![(Family::V4, true), (Family::V6, true)];
        Self { restart: Some((120, families)), notification: true, ..Self::default() }
    }

    pub(super) fn forwarding(mut self, families: &[Forwarding]) -> Self {
        self.restart = self.restart.map(|(time, _)| (time, families.to_vec()));
        self
    }

    pub(super) fn time(mut self, seconds: u16) -> Self {
        self.restart = self.restart.map(|(_, families)| (seconds, families));
        self
    }

    /// Long-lived graceful restart for both families.
    pub(super) fn long_lived(mut self, forwarding: bool, seconds: u32) -> Self {
        self.long_lived =
            [Family::V4, Family::V6].map(|family| (family, forwarding, seconds)).to_vec();
        self
    }

    fn open(&self, index: usize) -> Open {
        let IpAddr::V4(identifier) = address(index) else { unreachable!() };
        let asn = Asn::new(64513).unwrap();
        let families = match self.families.is_empty() {
            true => vec![Family::V4, Family::V6],
            false => self.families.clone(),
        };
        let mut capabilities: Vec<Capability> =
            families.into_iter().map(Capability::MultiProtocol).collect();
        capabilities.push(Capability::FourOctetAs(asn));
        if let Some((restart_time, families)) = &self.restart {
            let family =
                |&(family, forwarding): &Forwarding| GracefulRestartFamily { family, forwarding };
            capabilities.push(Capability::GracefulRestart(GracefulRestart {
                restarting: self.restarting,
                notification: self.notification,
                restart_time: *restart_time,
                families: families.iter().map(family).collect(),
            }));
        }
        if !self.long_lived.is_empty() {
            let family = |&(family, forwarding, stale_time): &(Family, bool, u32)| {
                LongLivedFamily { family, forwarding, stale_time }
            };
            let families = self.long_lived.iter().map(family).collect();
            capabilities.push(Capability::LongLivedGracefulRestart(families));
        }
        Open { asn, hold_time: 0, identifier, capabilities }
    }
}

/// A peer's end of its last connection.
#[derive(Debug)]
pub(super) struct End {
    pub(super) conn: ConnId,
    /// The speaker has closed it, or the peer has.
    pub(super) closed: bool,
    /// Everything that came, but for what a test has taken out.
    pub(super) sent: Vec<u8>,
}

/// The speaker is node 0; peers are 1, 2, ...
pub(super) struct Script {
    pub(super) speaker: Speaker,
    pub(super) now: Time,
    /// Peers read nothing, so that what is sent stays on its way.
    pub(super) deaf: bool,
    /// What is configured.
    peers: BTreeMap<PeerKey, PeerConfig>,
    /// The last connection of each peer.
    ends: BTreeMap<usize, End>,
    next: u64,
    pub(super) routes: BTreeMap<Prefix, Vec<IpAddr>>,
    pub(super) converged: Option<Vec<PeerKey>>,
    pub(super) events: Vec<PeerEvent>,
    /// Callers that are no peers.
    pub(super) refused: Vec<IpAddr>,
}

impl Script {
    /// A speaker that found routes of these families in the kernel, with so many peers; `change` may
    /// change what is configured of each.
    pub(super) fn new(
        forwarding: &[Family],
        peers: usize,
        change: impl Fn(&mut PeerConfig),
    ) -> Self {
        let forwarding = forwarding.iter().copied().collect();
        let config = SpeakerConfig { forwarding, ..config(0, 64512, false, 1) };
        let mut script = Self {
            speaker: Speaker::new(config, Time::ZERO),
            now: Time::ZERO,
            deaf: false,
            peers: BTreeMap::new(),
            ends: BTreeMap::new(),
            next: u64::MAX,
            routes: BTreeMap::new(),
            converged: None,
            events: Vec::new(),
            refused: Vec::new(),
        };
        script.input(Input::SetOwn(Own::announced([block(0)])));
        let configured = |index| {
            let (key, mut config) = peer(index, 64513);
            config.passive = true;
            change(&mut config);
            (key, config)
        };
        script.peers = (1..=peers).map(configured).collect();
        script.input(Input::SetPeers(script.peers.clone()));
        script
    }

    /// Changes what is configured of each peer.
    pub(super) fn configure(&mut self, change: impl Fn(&mut PeerConfig)) {
        self.peers.values_mut().for_each(change);
        self.input(Input::SetPeers(self.peers.clone()));
    }

    pub(super) fn input(&mut self, input: Input) {
        self.speaker.handle(self.now, input);
        while let Some(output) = self.speaker.poll_output() {
            match output {
                Output::Send { conn, bytes } => {
                    let count = bytes.len();
                    if !self.deaf {
                        self.speaker.handle(self.now, Input::Written { conn, count });
                    }
                    let end = self.ends.values_mut().find(|end| end.conn == conn);
                    if let Some(end) = end {
                        end.sent.extend(bytes);
                    }
                }
                Output::Close { conn } | Output::Abort { conn } => {
                    let end = self.ends.values_mut().find(|end| end.conn == conn);
                    if let Some(end) = end {
                        end.closed = true;
                    }
                }
                Output::Routes(changes) => {
                    for change in changes {
                        for prefix in change.prefixes.iter() {
                            let next_hops = change.next_hops.iter().map(|hop| hop.address);
                            self.routes.insert(prefix, next_hops.collect());
                        }
                    }
                    self.routes.retain(|_, next_hops| !next_hops.is_empty());
                }
                Output::TrackNextHops(addresses) => {
                    let state = NextHopState::Reachable { metric: 0 };
                    let states = addresses.into_iter().map(|address| (address, state)).collect();
                    self.speaker.handle(self.now, Input::NextHops(states));
                }
                Output::Converged { unheard } => self.converged = Some(unheard),
                Output::Event(_, event) => self.events.push(event),
                Output::Refused { remote } => self.refused.push(remote),
                Output::Connect { .. } | Output::Conflicts(_) => {}
            }
        }
    }

    /// The peer connects to this address of the speaker.
    pub(super) fn dial(&mut self, peer: usize, to: IpAddr) {
        let conn = ConnId(self.next);
        self.next -= 1;
        self.ends.insert(peer, End { conn, closed: false, sent: Vec::new() });
        let local = SocketAddr::new(to, 179);
        let remote = SocketAddr::new(address(peer), 40000);
        self.input(Input::Accepted { conn, local, remote });
    }

    /// The peer connects, says this, and confirms.
    pub(super) fn connect(&mut self, peer: usize, says: &Says) {
        self.dial(peer, address(0));
        self.send(peer, wire::encode_open(&says.open(peer)));
        self.send(peer, wire::encode_keepalive());
        assert_eq!(self.snapshot(peer).state, State::Established);
    }

    pub(super) fn end(&mut self, peer: usize) -> &mut End {
        self.ends.get_mut(&peer).unwrap()
    }

    pub(super) fn send(&mut self, peer: usize, bytes: Vec<u8>) {
        let conn = self.ends[&peer].conn;
        self.input(Input::Received { conn, bytes });
    }

    /// The peer announces prefixes with a path that is so long, and these communities.
    pub(super) fn announce_with(
        &mut self,
        peer: usize,
        prefixes: &[&str],
        length: usize,
        communities: &[Community],
    ) {
        let session = Session { four_octet_as: true, ipv4: true, ipv6: true, ..Session::default() };
        for text in prefixes {
            let prefix = prefix(text);
            let next_hop = match prefix.family() {
                Family::V4 => address(peer),
                Family::V6 => format!("2001:db8:ffff::{peer}").parse().unwrap(),
            };
            let path = AsPath::sequence(vec![Asn::new(64513).unwrap(); length]);
            let mut attributes = PathAttributes::new(Origin::Igp, path, next_hop);
            attributes.communities = communities.to_vec();
            let mut bytes = Vec::new();
            let (family, one) = (prefix.family(), [prefix]);
            assert!(wire::encode_updates(&attributes, family, &one, &session, &mut bytes));
            self.send(peer, bytes);
        }
    }

    pub(super) fn announce(&mut self, peer: usize, prefixes: &[&str]) {
        self.announce_with(peer, prefixes, 1, &[]);
    }

    pub(super) fn end_of_rib(&mut self, peer: usize, family: Family) {
        let mut bytes = Vec::new();
        wire::encode_end_of_rib(family, &mut bytes);
        self.send(peer, bytes);
    }

    /// The peer's connection breaks without a word.
    pub(super) fn lose(&mut self, peer: usize) {
        let end = self.end(peer);
        end.closed = true;
        let conn = end.conn;
        self.input(Input::Closed { conn, reason: "reset".to_owned() });
    }

    /// The peer says this and closes.
    pub(super) fn notify(&mut self, peer: usize, notification: &Notification) {
        self.send(peer, wire::encode_notification(notification));
    }

    /// Lets time pass, timer by timer.
    pub(super) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some((deadline, _)) = self.speaker.poll_timeout().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(deadline);
            self.input(Input::Tick);
        }
        self.now = end;
    }

    pub(super) fn snapshot(&self, index: usize) -> PeerSnapshot {
        let (key, _) = peer(index, 64513);
        self.speaker.peers().into_iter().find(|peer| peer.key == key).unwrap()
    }

    /// The prefixes with a route, as text.
    pub(super) fn reachable(&self) -> Vec<String> {
        self.routes.keys().map(ToString::to_string).collect()
    }

    /// Communities of a peer's path.
    pub(super) fn communities(&self, index: usize, text: &str) -> Vec<Community> {
        let (key, _) = peer(index, 64513);
        let routes = self.speaker.routes();
        let of = |route: &&RouteSnapshot| route.from == Some(key) && route.prefix == prefix(text);
        let route = routes.iter().find(of).unwrap();
        route.attributes.as_ref().unwrap().communities.clone()
    }

    /// What the peer was told since it connected, message by message.
    pub(super) fn told(&self, peer: usize) -> Vec<(MessageType, Vec<u8>)> {
        let mut rest = self.ends.get(&peer).map_or(&[][..], |end| end.sent.as_slice());
        let mut all = Vec::new();
        while let Some(frame) = wire::frame(rest, wire::MAX_MESSAGE).unwrap() {
            all.push((frame.kind, frame.body.to_vec()));
            rest = &rest[frame.length..];
        }
        all
    }

    /// The OPEN that the peer got.
    pub(super) fn opened(&self, peer: usize) -> Open {
        wire::decode_open(&self.told(peer)[0].1).unwrap()
    }
}
