//! A router that is no speaker of ours. It takes connections and opens none, and may send several paths to one prefix
//! (RFC 7911), which none of ours does.

use super::*;
use crate::wire::{
    self, AddPathFamily, AsPath, Capability, GracefulRestart, GracefulRestartFamily, MessageType,
    Nlri, Open, Origin, PathAttributes, Session,
};

/// What a router is like.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Plan {
    /// Of which it sends several paths.
    pub(super) add_path: BTreeSet<Family>,
    /// It has graceful restart, and has always kept forwarding.
    graceful: bool,
    /// By prefix and path identifier, how often its AS number stands in the path. Without ADD-PATH the one with the
    /// lowest identifier is sent.
    pub(super) paths: BTreeMap<(Prefix, u32), usize>,
}

/// Identifiers of its paths.
const IDS: std::ops::RangeInclusive<u32> = 1..=3;

impl Plan {
    pub(super) fn random(index: usize, random: &mut Random) -> Self {
        let families = [Family::V4, Family::V6];
        let add_path = families.into_iter().filter(|_| random.below(4) > 0).collect();
        let graceful = random.below(2) == 0;
        let mut plan = Self { add_path, graceful, paths: BTreeMap::new() };
        for _ in 0..8 {
            plan.toggle(index, random);
        }
        plan
    }

    /// One path comes or goes.
    pub(super) fn toggle(&mut self, index: usize, random: &mut Random) {
        let prefixes = if random.below(3) > 0 { blocks(index) } else { shared() };
        let prefix = prefixes[random.index(2)];
        let id = IDS.start() + u32::try_from(random.below(3)).unwrap();
        let length = 1 + random.index(2);
        if self.paths.remove(&(prefix, id)).is_none() {
            self.paths.insert((prefix, id), length);
        }
    }

    /// What is sent of a prefix: identifiers as they are on the wire, the number of the path, and its length.
    pub(super) fn told(&self, prefix: Prefix) -> Vec<(u32, u32, usize)> {
        let all = self.paths.range((prefix, 0)..=(prefix, u32::MAX));
        let all = all.map(|((_, id), length)| (*id, *length));
        match self.add_path.contains(&prefix.family()) {
            true => all.map(|(id, length)| (id, id, length)).collect(),
            false => all.take(1).map(|(id, length)| (0, id, length)).collect(),
        }
    }

    pub(super) fn prefixes(&self) -> BTreeSet<Prefix> {
        self.paths.keys().map(|(prefix, _)| *prefix).collect()
    }
}

/// One end of a session.
#[derive(Debug)]
struct Heard {
    from: IpAddr,
    bytes: Vec<u8>,
    /// Once the other's OPEN is here.
    session: Option<Session>,
}

/// A running one.
#[derive(Debug)]
pub(in crate::sim) struct Router {
    index: usize,
    asn: Asn,
    plan: Plan,
    /// What it has configured for each peer.
    families: BTreeMap<IpAddr, BTreeSet<Family>>,
    heard: BTreeMap<ConnId, Heard>,
}

impl Router {
    pub(super) fn new(shape: &Shape, index: usize) -> Self {
        let asn = Asn::new(shape.asns[index]).unwrap();
        let ends = shape.ends.iter().filter(|((at, _), _)| *at == index);
        let families = ends.map(|((_, other), end)| (address(*other), end.families.clone()));
        let plan = shape.routers[&index].clone();
        Self { index, asn, plan, families: families.collect(), heard: BTreeMap::new() }
    }

    /// What it does about something that happens to one of its connections.
    pub(in crate::sim) fn hear(&mut self, input: Input) -> Vec<Output> {
        match input {
            Input::Accepted { conn, remote, .. } => self.accepted(conn, remote.ip()),
            Input::Received { conn, bytes } => self.received(conn, &bytes),
            Input::Closed { conn, .. } => {
                self.heard.remove(&conn);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// A new connection takes the place of an older one from there.
    fn accepted(&mut self, conn: ConnId, from: IpAddr) -> Vec<Output> {
        let older = self.heard.iter().filter(|(_, heard)| heard.from == from);
        let older: Vec<ConnId> = older.map(|(conn, _)| *conn).collect();
        older.iter().for_each(|conn| drop(self.heard.remove(conn)));
        let mut outputs: Vec<Output> =
            older.into_iter().map(|conn| Output::Close { conn }).collect();
        self.heard.insert(conn, Heard { from, bytes: Vec::new(), session: None });
        let IpAddr::V4(identifier) = address(self.index) else { unreachable!() };
        let capabilities = self.capabilities(from);
        let open = Open { asn: self.asn, hold_time: 0, identifier, capabilities };
        let bytes = [wire::encode_open(&open), wire::encode_keepalive()].concat();
        outputs.push(Output::Send { conn, bytes });
        outputs
    }

    fn capabilities(&self, peer: IpAddr) -> Vec<Capability> {
        let families = &self.families[&peer];
        let mut all: Vec<Capability> =
            families.iter().map(|family| Capability::MultiProtocol(*family)).collect();
        all.extend([Capability::RouteRefresh, Capability::FourOctetAs(self.asn)]);
        let send = |family: &Family| AddPathFamily { family: *family, receive: false, send: true };
        if !self.plan.add_path.is_empty() {
            all.push(Capability::AddPath(self.plan.add_path.iter().map(send).collect()));
        }
        if self.plan.graceful {
            let kept =
                |family: &Family| GracefulRestartFamily { family: *family, forwarding: true };
            all.push(Capability::GracefulRestart(GracefulRestart {
                restarting: false,
                notification: true,
                restart_time: 120,
                families: families.iter().map(kept).collect(),
            }));
        }
        all
    }

    fn received(&mut self, conn: ConnId, bytes: &[u8]) -> Vec<Output> {
        let Some(mut heard) = self.heard.remove(&conn) else {
            return Vec::new();
        };
        heard.bytes.extend_from_slice(bytes);
        let mut outputs = Vec::new();
        while let Some(frame) = wire::frame(&heard.bytes, wire::MAX_EXTENDED).unwrap() {
            let mut tells = false;
            match frame.kind {
                MessageType::Open => {
                    let theirs = wire::decode_open(frame.body).unwrap();
                    let ours = self.capabilities(heard.from);
                    heard.session = Some(Session::negotiate(&ours, &theirs, false));
                    tells = true;
                }
                MessageType::RouteRefresh => tells = true,
                // It closes behind it.
                MessageType::Notification => return outputs,
                MessageType::Update | MessageType::Keepalive => {}
            }
            let length = frame.length;
            heard.bytes.drain(..length);
            let session = heard.session.as_ref().filter(|_| tells);
            let bytes = session.map(|session| self.everything(session)).unwrap_or_default();
            if !bytes.is_empty() {
                outputs.push(Output::Send { conn, bytes });
            }
        }
        self.heard.insert(conn, heard);
        outputs
    }

    /// All its paths, and that this was all.
    fn everything(&self, session: &Session) -> Vec<u8> {
        let mut bytes = Vec::new();
        for prefix in self.plan.prefixes() {
            for path in self.plan.told(prefix) {
                self.announce(prefix, path, session, &mut bytes);
            }
        }
        for family in [Family::V4, Family::V6] {
            if session.has(family) {
                wire::encode_end_of_rib(family, &mut bytes);
            }
        }
        bytes
    }

    fn announce(
        &self,
        prefix: Prefix,
        (path_id, number, length): (u32, u32, usize),
        session: &Session,
        bytes: &mut Vec<u8>,
    ) {
        let family = prefix.family();
        if session.has(family) {
            let path = AsPath::sequence(vec![self.asn; length]);
            let hop = next_hop(family, hop_of(self.index, number));
            let attributes = PathAttributes::new(Origin::Igp, path, hop);
            let route = [Nlri { prefix, path_id }];
            assert!(wire::encode_updates(&attributes, family, &route, session, bytes));
        }
    }

    /// Its paths are these from now on: what has changed is told.
    pub(super) fn change(&mut self, plan: &Plan) -> Vec<Output> {
        let old = std::mem::replace(&mut self.plan, plan.clone());
        let prefixes: BTreeSet<Prefix> = old.prefixes().union(&plan.prefixes()).copied().collect();
        let mut outputs = Vec::new();
        for (conn, heard) in &self.heard {
            let Some(session) = &heard.session else { continue };
            let mut bytes = Vec::new();
            for prefix in prefixes.iter().filter(|prefix| session.has(prefix.family())) {
                let (before, after) = (old.told(*prefix), plan.told(*prefix));
                let stays = |id: u32| after.iter().any(|(other, ..)| *other == id);
                let gone = before.iter().filter(|(id, ..)| !stays(*id));
                let gone: Vec<Nlri> =
                    gone.map(|(id, ..)| Nlri { prefix: *prefix, path_id: *id }).collect();
                if !gone.is_empty() {
                    wire::encode_withdrawals(prefix.family(), &gone, session, &mut bytes);
                }
                for path in after.into_iter().filter(|path| !before.contains(path)) {
                    self.announce(*prefix, path, session, &mut bytes);
                }
            }
            if !bytes.is_empty() {
                outputs.push(Output::Send { conn: *conn, bytes });
            }
        }
        outputs
    }
}

/// Each of its paths has a next hop of its own, which is a number of its own, too, and is at the router.
pub(super) fn hop_of(index: usize, number: u32) -> usize {
    index + HOPS * usize::try_from(number - IDS.start()).unwrap()
}

/// At whom a next hop is.
pub(super) const fn node_of(hop: usize) -> usize {
    hop % HOPS
}

/// More than there are nodes.
const HOPS: usize = 50;
