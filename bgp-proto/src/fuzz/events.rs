//! Everything that can happen to a speaker with three peers, in any order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use twill_types::{BgpNextHop, Family, Prefix};

use super::{
    Observe,
    choices::Choices,
    policy::any_policy,
    say, unobserved,
    world::{ASN, V4, V6, World},
};
use crate::{
    ConnId, Input, NextHopState, Own, PeerConfig, PeerKey, PeerKind, PeerPolicy, Reflection,
    wire::{Notification, Role, cease, code, encode_keepalive, encode_notification},
};

/// More does not happen in one run.
const STEPS: usize = 400;
/// The AS of each peer. The third is reached over IPv6.
const ASNS: [u32; 3] = [ASN, 64513, ASN];

/// A stream of events. The first octet says how the speaker starts.
///
/// # Panics
/// If the speaker breaks a promise.
pub fn events(input: &[u8]) {
    events_observed(input, &mut unobserved);
}

/// [`events`], turn by turn.
///
/// # Panics
/// If the speaker breaks a promise.
pub fn events_observed(input: &[u8], observe: Observe<'_>) {
    let mut choices = Choices::new(input);
    let start = choices.octet();
    let families = [(1, Family::V4), (2, Family::V6)];
    let found = families.into_iter().filter(|(bit, _)| start & bit != 0);
    let mut world = World::new(found.map(|(_, family)| family).collect(), observe);
    world.set_own(Own::announced([say::prefix(0)]));
    world.set_reflection((start & 4 != 0).then(reflection));
    let mut peers: BTreeMap<PeerKey, PeerConfig> = (0..ASNS.len()).map(peer).collect();
    if start & 8 != 0 {
        peers.values_mut().for_each(|peer| peer.passive = true);
    }
    if start >> 6 == 2 {
        peers.values_mut().for_each(|peer| filter(peer, &mut choices));
    }
    world.set_peers(peers);
    for _ in 0..STEPS {
        let Some(what) = choices.next() else {
            return;
        };
        step(&mut world, &mut choices, what);
    }
}

pub(super) fn address(number: usize) -> IpAddr {
    match number {
        0 => Ipv4Addr::new(192, 0, 2, 1).into(),
        1 => Ipv4Addr::new(192, 0, 2, 2).into(),
        2 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3).into(),
        // A stranger.
        _ => Ipv4Addr::new(192, 0, 2, 99).into(),
    }
}

pub(super) fn key(number: usize) -> PeerKey {
    PeerKey { address: address(number), port: 179 }
}

pub(super) fn peer(number: usize) -> (PeerKey, PeerConfig) {
    let config = PeerConfig {
        name: format!("peer{number}"),
        kind: PeerKind::Node,
        asn: say::asn(ASNS[number]),
        local_address: None,
        passive: false,
        takes_connections: true,
        delay_open: Duration::ZERO,
        shutdown: None,
        hold_time: 9,
        restart_time: 120,
        long_lived: BTreeMap::from([(Family::V4, 600)]),
        families: BTreeSet::from([Family::V4, Family::V6]),
        other_next_hop: None,
        client: number == 2,
        on_link: None,
        policy: PeerPolicy::default(),
        tcp_key: 0,
        ttl_security: None,
    };
    (key(number), config)
}

/// Gives a peer filters of its own.
pub(super) fn filter(peer: &mut PeerConfig, choices: &mut Choices<'_>) {
    peer.policy.routes = Some(Arc::new(any_policy(choices)));
}

fn reflection() -> Reflection {
    let pools = [say::prefix(0), say::prefix(2), say::prefix(8), say::prefix(10)];
    Reflection { cluster_id: Ipv4Addr::new(0, 0, 0, 1), pools: pools.into() }
}

/// An open connection.
fn end(world: &World<'_>, choices: &mut Choices<'_>) -> Option<ConnId> {
    let chosen = choices.below(world.ends.len());
    world.ends.keys().nth(chosen).copied()
}

fn step(world: &mut World<'_>, choices: &mut Choices<'_>, what: u8) {
    match what % 24 {
        0 => {
            let number = choices.below(4);
            let local = if number == 2 { V6 } else { V4 };
            world.accept(address(number), local);
        }
        1 => dialled(world, choices),
        2 | 3 => handshake(world, choices),
        4..=7 => update(world, choices),
        8 | 9 => message(world, choices),
        10 => raw(world, choices),
        11 => damaged(world, choices),
        12 => written(world, choices),
        13 => closed(world, choices),
        14..=16 => {
            let time = choices.pick([0, 1, 50, 100, 1000, 3000, 9000, 60_000, 400_000]);
            world.elapse(Duration::from_millis(time));
        }
        17 => late(world, choices),
        18 | 19 => configure(world, choices),
        20 => own(world, choices),
        21 => {
            let reflection = choices.flag().then(reflection);
            world.set_reflection(reflection);
        }
        22 => next_hops(world, choices),
        _ => {
            if let Some(conn) = end(world, choices) {
                let count = usize::from(choices.octet()) + 1;
                world.deliver(conn, count);
            }
        }
    }
}

/// What becomes of a connection that the speaker has asked for.
fn dialled(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let chosen = choices.below(world.dialling.len());
    let Some(conn) = world.dialling.keys().nth(chosen).copied() else {
        return;
    };
    if choices.octet() & 3 == 3 {
        world.dialling.remove(&conn);
        world.input(Input::ConnectFailed { conn, reason: "refused".to_owned() });
    } else {
        world.connected(conn);
    }
}

/// Delivers all of it, or a part, or one octet at a time.
fn say_on(world: &mut World<'_>, choices: &mut Choices<'_>, conn: ConnId, bytes: &[u8]) {
    let Some(remote) = world.ends.get_mut(&conn) else {
        return;
    };
    remote.outbox.extend_from_slice(bytes);
    let length = remote.outbox.len();
    match choices.octet() {
        part @ 192..=254 => world.deliver(conn, usize::from(part - 191)),
        255 if length < 200 => (0..length).for_each(|_| world.deliver(conn, 1)),
        _ => world.deliver(conn, length),
    }
}

/// An OPEN, and mostly the KEEPALIVE behind it.
fn handshake(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let Some(conn) = end(world, choices) else {
        return;
    };
    let (number, asn) = speaks_for(world, conn);
    let mut bytes = say::open(choices, asn, number);
    if choices.octet() & 3 != 3 {
        bytes.extend(encode_keepalive());
    }
    say_on(world, choices, conn, &bytes);
}

/// The last octet of the identifier, and the AS, of who is at the far end.
fn speaks_for(world: &World<'_>, conn: ConnId) -> (u8, u32) {
    let key = world.ends.get(&conn).and_then(|end| end.peer);
    let known = (1..).zip(ASNS).zip(0..).find(|(_, number)| Some(self::key(*number)) == key);
    known.map_or((99, 64599), |(known, _)| known)
}

fn update(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let Some(conn) = end(world, choices) else {
        return;
    };
    let session = world.ends.get(&conn).and_then(|end| end.session()).unwrap_or_default();
    let (_, asn) = speaks_for(world, conn);
    let bytes = say::update(choices, asn, &session);
    say_on(world, choices, conn, &bytes);
}

fn message(world: &mut World<'_>, choices: &mut Choices<'_>) {
    if let Some(conn) = end(world, choices) {
        let bytes = say::short(choices);
        say_on(world, choices, conn, &bytes);
    }
}

/// Octets as they are, mostly behind a header.
fn raw(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let Some(conn) = end(world, choices) else {
        return;
    };
    let kind = choices.octet();
    let length = choices.octet();
    let body = choices.octets(usize::from(length));
    let mut bytes = Vec::new();
    if kind & 0xf0 == 0 {
        let length = u16::try_from(19 + body.len()).unwrap_or(u16::MAX);
        bytes.extend([0xff; 16]);
        bytes.extend(length.to_be_bytes());
        bytes.push(kind);
    }
    bytes.extend_from_slice(body);
    say_on(world, choices, conn, &bytes);
}

/// A message with an octet that is wrong.
fn damaged(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let Some(conn) = end(world, choices) else {
        return;
    };
    let (number, asn) = speaks_for(world, conn);
    let session = world.ends.get(&conn).and_then(|end| end.session());
    let mut bytes = match session {
        Some(session) => say::update(choices, asn, &session),
        None => say::open(choices, asn, number),
    };
    let (place, by) = (choices.short(), choices.octet());
    let place = usize::from(place).checked_rem(bytes.len()).unwrap_or_default();
    if let Some(octet) = bytes.get_mut(place) {
        *octet ^= by;
    }
    say_on(world, choices, conn, &bytes);
}

/// The kernel takes what was sent, or so it says: the speaker may hear of more than it has sent.
fn written(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let conn = end(world, choices);
    let conn = conn.unwrap_or(ConnId(u64::from(choices.octet())));
    let count = usize::from(choices.short());
    world.input(Input::Written { conn, count });
}

fn closed(world: &mut World<'_>, choices: &mut Choices<'_>) {
    if let Some(conn) = end(world, choices) {
        world.ends.remove(&conn);
        world.input(Input::Closed { conn, reason: "reset".to_owned() });
    }
}

/// What the shell says of a connection may cross what the speaker does with it: it is about one that
/// is gone.
fn late(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let mut number = u64::from(choices.octet());
    if choices.flag() {
        number = u64::MAX - number;
    }
    let conn = ConnId(number);
    if world.ends.contains_key(&conn) || world.dialling.contains_key(&conn) {
        return;
    }
    let reason = "late".to_owned();
    world.input(match choices.below(5) {
        0 => Input::Closed { conn, reason },
        1 => Input::ConnectFailed { conn, reason },
        2 => Input::Written { conn, count: 7 },
        3 => {
            let bytes = encode_notification(&Notification::new(code::CEASE, cease::CONFIGURATION));
            Input::Received { conn, bytes }
        }
        _ => Input::Tick,
    });
}

fn configure(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let number = choices.below(ASNS.len());
    let mut peers = world.peers.clone();
    let what = choices.octet() & 15;
    let mut config = peers.remove(&key(number)).unwrap_or_else(|| peer(number).1);
    match what {
        13 => config.policy.routes = None,
        14 => filter(&mut config, choices),
        15 => {}
        _ => change(&mut config, choices, number),
    }
    if what != 15 {
        peers.insert(key(number), config);
    }
    world.set_peers(peers);
}

fn change(config: &mut PeerConfig, choices: &mut Choices<'_>, number: usize) {
    match choices.below(17) {
        0 => config.shutdown = choices.flag().then(|| "drained".to_owned()),
        1 => config.passive = choices.flag(),
        2 => config.delay_open = Duration::from_millis(choices.pick([0, 10, 5000])),
        3 => config.hold_time = choices.pick([0, 3, 9, 90]),
        4 => config.restart_time = choices.pick([0, 5, 120]),
        5 => {
            let times = [Family::V4, Family::V6].into_iter().zip([7, 3600]);
            config.long_lived = times.filter(|_| choices.flag()).collect();
        }
        6 => {
            config.families =
                choices.pick([&[Family::V4][..], &[Family::V6], &[]]).iter().copied().collect()
        }
        7 => config.families = [Family::V4, Family::V6].into(),
        8 => config.other_next_hop = choices.pick([None, Some(V4), Some(V6)]),
        9 => config.client = choices.flag(),
        10 => config.on_link = choices.flag().then(|| on_link(config)),
        11 => config.policy.max_prefixes = choices.pick([None, Some(0), Some(2), Some(5)]),
        12 => config.policy.allowed_own_as = choices.octet() & 3,
        13 => config.policy.as_sets = choices.flag(),
        14 => {
            config.policy.role =
                choices.pick([None, Some(Role::Customer), Some(Role::Provider), Some(Role::Peer)])
        }
        15 => config.tcp_key = u64::from(choices.octet()),
        _ => {
            let asns = [ASNS[number], ASNS[number], 64999];
            config.asn = say::asn(choices.pick(asns));
        }
    }
}

/// The link that a peer is on.
fn on_link(config: &PeerConfig) -> Prefix {
    let (address, length) = if config.client { (V6, 64) } else { (V4, 24) };
    match Prefix::masked(address, length) {
        Ok(prefix) => prefix,
        Err(error) => panic!("{error}"),
    }
}

/// Blocks, parts of them that are lent, and nothing that overlaps.
fn own(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let bits = choices.short();
    let bit = |n: u16| bits & (1 << n) != 0;
    let mut own = Own::default();
    for (n, number) in (0..).zip([0, 2, 8, 10]) {
        if bit(n) {
            own.prefixes.insert(say::prefix(number), bit(n + 4));
        }
        // The part of each.
        if bit(n) && bit(n + 8) {
            own.lent.insert(say::prefix(number | 1));
        }
    }
    world.set_own(own);
}

fn next_hops(world: &mut World<'_>, choices: &mut Choices<'_>) {
    let how = choices.octet();
    world.answers = how & 1 == 0;
    let mut states: BTreeMap<BgpNextHop, NextHopState> = BTreeMap::new();
    for address in world.tracked.keys() {
        match choices.octet() & 3 {
            0 => {}
            1 => drop(states.insert(*address, NextHopState::Unreachable)),
            metric => {
                let state = NextHopState::Reachable { metric: u32::from(metric - 2) };
                states.insert(*address, state);
            }
        }
    }
    // One that nobody has asked about.
    states.insert(address(3).into(), NextHopState::Reachable { metric: 1 });
    world.learn(states);
}
