//! One peer that says anything at all, beside one that does not notice.

use std::{collections::BTreeSet, net::IpAddr};

use twill_types::Family;

use super::{
    Observe,
    choices::Choices,
    events, say, unobserved,
    world::{V4, World},
};
use crate::{
    ConnId, Own, PeerConfig, PeerKey, PeerSnapshot, State,
    wire::{self, MAX_EXTENDED, Role, Session},
};

/// The external peer that talks, and the internal one that is calm.
const TALKER: usize = 1;
const CALM: usize = 0;
/// A stream is no longer than this.
const LONGEST: usize = 2 * MAX_EXTENDED;

/// An established session on which a stream of octets comes, cut anywhere. However it is cut, the same
/// comes of it, and another session beside it stays as it is.
///
/// # Panics
/// If the speaker breaks a promise.
pub fn session(input: &[u8]) {
    session_observed(input, &mut unobserved);
}

/// [`session`], turn by turn.
///
/// # Panics
/// If the speaker breaks a promise.
pub fn session_observed(input: &[u8], observe: Observe<'_>) {
    let mut choices = Choices::new(input);
    let how = choices.octet();
    let open = say::open(&mut choices, 64513, 2);
    let cuts = choices.octets(4);
    let peers = [configured(CALM), talker(how, &mut choices)];
    let mut scene = Scene::new(peers.clone(), &open, &mut *observe);
    let Some(session) = scene.talks() else {
        return;
    };
    let stream = stream(&mut choices, &session);
    scene.hear(&stream, &[]);
    let expected = scene.end();
    let mut scene = Scene::new(peers, &open, observe);
    scene.hear(&stream, cuts);
    assert_eq!(scene.end(), expected, "it depends on how {stream:02x?} is cut");
}

/// Messages of all kinds, some of them damaged, and what is no message.
fn stream(choices: &mut Choices<'_>, session: &Session) -> Vec<u8> {
    let mut stream = Vec::new();
    while let Some(what) = choices.next() {
        let start = stream.len();
        match what & 7 {
            0..=3 => stream.extend(say::update(choices, 64513, session)),
            4 | 5 => stream.extend(say::short(choices)),
            6 => {
                let (kind, length) = (choices.octet(), choices.octet());
                let body = choices.octets(usize::from(length));
                stream.extend([0xff; 16]);
                stream.extend((19 + u16::from(length)).to_be_bytes());
                stream.push(kind);
                stream.extend_from_slice(body);
            }
            _ => {
                let length = choices.octet();
                stream.extend_from_slice(choices.octets(usize::from(length)));
            }
        }
        if what & 0xe0 == 0xe0 {
            let (place, by) = (choices.short(), choices.octet());
            let length = stream.len() - start;
            let place = usize::from(place).checked_rem(length).unwrap_or_default();
            if let Some(octet) = stream.get_mut(start + place) {
                *octet ^= by;
            }
        }
        if stream.len() >= LONGEST {
            break;
        }
    }
    stream
}

/// What is left at the end.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    routes: BTreeSet<String>,
    kernel: Vec<String>,
    peers: Vec<String>,
    /// What the talker was sent, unless its session has ended: what comes before the end in the same
    /// piece is not answered. Where filters pass routes on it is not looked at either: requests for a refresh are
    /// answered behind the End-of-RIB, which waits, and those of one piece at once.
    sent: Option<Vec<u8>>,
}

struct Scene<'a> {
    world: World<'a>,
    talker: ConnId,
    calm: ConnId,
    /// What the calm one was sent when the other began to talk.
    before: usize,
}

impl<'a> Scene<'a> {
    /// Both sessions are Established, if the OPEN allows it.
    fn new(peers: [(PeerKey, PeerConfig); 2], open: &[u8], observe: Observe<'a>) -> Self {
        let mut world = World::new(BTreeSet::new(), observe);
        world.set_own(Own::announced([say::prefix(0), say::prefix(8)]));
        world.set_peers(peers.into());
        let calm = connect(&mut world, CALM);
        // It has every capability, and no hold time.
        let mut bytes = say::open(&mut Choices::new(&[0xff, 0xf8, 0, 0, 0, 0]), 64512, 1);
        bytes.extend(wire::encode_keepalive());
        say(&mut world, calm, &bytes);
        let mut scene = Self { world, talker: calm, calm, before: 0 };
        scene.announce();
        scene.talker = connect(&mut scene.world, TALKER);
        say(&mut scene.world, scene.talker, &[open, &wire::encode_keepalive()].concat());
        scene.before = scene.sent(calm).len();
        scene
    }

    /// The calm one's only route.
    fn announce(&mut self) {
        let session = self.world.ends.get(&self.calm).and_then(|end| end.session());
        let session = session.unwrap_or_default();
        // 10.0.3.0/24 by way of one AS.
        let chosen = [0, 6, 0, 0, 4, 0];
        let bytes = say::update(&mut Choices::new(&chosen), 64512, &session);
        say(&mut self.world, self.calm, &bytes);
    }

    /// What the talker may say.
    fn talks(&self) -> Option<Session> {
        let up = self.peer(TALKER)?.state == State::Established;
        self.world.ends.get(&self.talker)?.session().filter(|_| up)
    }

    fn peer(&self, number: usize) -> Option<PeerSnapshot> {
        let key = events::key(number);
        self.world.speaker.peers().into_iter().find(|peer| peer.key == key)
    }

    fn sent(&self, conn: ConnId) -> &[u8] {
        self.world.sent.get(&conn).map_or(&[], Vec::as_slice)
    }

    /// Delivers the stream in pieces of these lengths, again and again.
    fn hear(&mut self, stream: &[u8], cuts: &[u8]) {
        if let Some(end) = self.world.ends.get_mut(&self.talker) {
            end.outbox.extend_from_slice(stream);
        }
        // Very many turns are not worth their time.
        let least = stream.len() / 512 + 1;
        let mut lengths = cuts.iter().map(|cut| usize::from(*cut).max(least)).cycle();
        while self.world.ends.get(&self.talker).is_some_and(|end| !end.outbox.is_empty()) {
            self.world.deliver(self.talker, lengths.next().unwrap_or(stream.len()));
        }
    }

    fn end(&self) -> Outcome {
        self.check_calm();
        let routes = self.world.speaker.routes();
        let mut peers = self.world.speaker.peers();
        let sent = self.talks().filter(|_| !self.passes()).map(|_| self.sent(self.talker).to_vec());
        if sent.is_none() {
            peers.iter_mut().for_each(|peer| peer.messages_out = 0);
        }
        Outcome {
            routes: routes.iter().map(|route| format!("{route:?}")).collect(),
            kernel: self.world.kernel.values().map(|change| format!("{change:?}")).collect(),
            peers: peers.iter().map(|peer| format!("{peer:?}")).collect(),
            sent,
        }
    }

    /// Whether the talker's filters pass routes on.
    fn passes(&self) -> bool {
        let talker = self.world.peers.get(&events::key(TALKER));
        let filters = talker.and_then(|config| config.policy.routes.as_ref());
        filters.is_some_and(|filters| filters.passes_learned_on())
    }

    /// The other peer is where it was, and was told nothing but that it knows everything: where filters pass routes
    /// on, that waits for what the talker says.
    fn check_calm(&self) {
        let Some(peer) = self.peer(CALM) else {
            panic!("the calm peer is gone");
        };
        assert_eq!((peer.state, peer.flaps), (State::Established, 0), "{peer:?}");
        assert_eq!((peer.prefixes_in, peer.prefixes_stale), (1, 0), "{peer:?}");
        let mut all = Vec::new();
        for family in [Family::V4, Family::V6] {
            wire::encode_end_of_rib(family, &mut all);
        }
        let sent = self.sent(self.calm).get(self.before..).unwrap_or_default();
        let is_as_ever = sent.is_empty() || self.passes() && sent == all;
        assert!(is_as_ever, "the calm peer was told {sent:02x?}");
        assert!(self.world.ends.contains_key(&self.calm), "the calm peer was closed");
    }
}

fn configured(number: usize) -> (PeerKey, PeerConfig) {
    let (key, config) = events::peer(number);
    (key, PeerConfig { passive: true, ..config })
}

/// The talker, with filters of its own or without.
fn talker(how: u8, choices: &mut Choices<'_>) -> (PeerKey, PeerConfig) {
    let (key, mut config) = configured(TALKER);
    let roles = [None, Some(Role::Customer), Some(Role::Provider), Some(Role::Peer)];
    config.policy.role = roles[usize::from(how & 3)];
    config.policy.as_sets = how & 4 != 0;
    config.policy.allowed_own_as = how >> 3 & 1;
    config.restart_time = if how & 16 == 0 { 120 } else { 0 };
    if how >> 6 == 2 {
        events::filter(&mut config, choices);
    }
    (key, config)
}

fn connect(world: &mut World<'_>, number: usize) -> ConnId {
    let address: IpAddr = events::address(number);
    world.accept(address, V4)
}

fn say(world: &mut World<'_>, conn: ConnId, bytes: &[u8]) {
    if let Some(end) = world.ends.get_mut(&conn) {
        end.outbox.extend_from_slice(bytes);
    }
    world.deliver(conn, bytes.len());
}
