//! One speaker and a peer that says exactly what a test wants it to say: what is negotiated, and what
//! follows from it.

use std::ops::{Deref, DerefMut};

use super::{script::Script, *};
use crate::{
    RefreshError, UpdateErrorCount,
    wire::{
        self, AddPathFamily, AsPath, Capability, GracefulRestart, GracefulRestartFamily,
        LongLivedFamily, MessageType, NextHopEncoding, Nlri, Notification, Open, Origin,
        PathAttributes, Role, RouteRefresh, Segment, Session, cease, code, open_error,
    },
};

mod changed;
mod contained;
mod lost;
mod negotiated;

const PEER: u32 = 64513;

/// What a peer of today offers.
fn everything() -> Vec<Capability> {
    let families = [Family::V4, Family::V6];
    let send = |family| AddPathFamily { family, receive: true, send: true };
    let forwards = |family| GracefulRestartFamily { family, forwarding: true };
    let mut all = families.map(Capability::MultiProtocol).to_vec();
    all.extend([
        Capability::RouteRefresh,
        Capability::ExtendedNextHop(vec![NextHopEncoding::IPV4_OVER_IPV6]),
        Capability::ExtendedMessage,
        Capability::GracefulRestart(GracefulRestart {
            restarting: false,
            notification: true,
            restart_time: 120,
            families: families.map(forwards).to_vec(),
        }),
        Capability::FourOctetAs(Asn::new(PEER).unwrap()),
        Capability::AddPath(families.map(send).to_vec()),
        Capability::EnhancedRouteRefresh,
        Capability::Fqdn { host: "tor1".to_owned(), domain: "example".to_owned() },
    ]);
    all
}

/// Without those that a test is not about.
fn without(unwanted: fn(&Capability) -> bool) -> Vec<Capability> {
    everything().into_iter().filter(|capability| !unwanted(capability)).collect()
}

fn plain() -> Vec<Capability> {
    without(|c| !matches!(c, Capability::MultiProtocol(_) | Capability::FourOctetAs(_)))
}

fn is_add_path(capability: &Capability) -> bool {
    matches!(capability, Capability::AddPath(_))
}

fn nlri(text: &str, path_id: u32) -> Nlri {
    Nlri { prefix: prefix(text), path_id }
}

fn attributes(next_hop: &str) -> PathAttributes {
    let path = AsPath::sequence([Asn::new(PEER).unwrap()]);
    PathAttributes::new(Origin::Igp, path, next_hop.parse().unwrap())
}

/// A script with one peer, which says what was negotiated.
struct Single {
    script: Script,
    key: PeerKey,
    /// The address of the speaker that the peer dials.
    local: IpAddr,
    /// What the peer may send by what was negotiated: the mirror image of the speaker's.
    session: Session,
}

/// The number of its peer.
const ONE: usize = 1;

impl Deref for Single {
    type Target = Script;

    fn deref(&self) -> &Script {
        &self.script
    }
}

impl DerefMut for Single {
    fn deref_mut(&mut self) -> &mut Script {
        &mut self.script
    }
}

impl Single {
    /// With a passive peer, so that all connections are the peer's.
    fn new(change: impl Fn(&mut PeerConfig)) -> Self {
        let (key, _) = peer(ONE, PEER);
        let script = Script::new(&[], 1, change);
        Self { script, key, local: address(0), session: Session::default() }
    }

    fn say(&mut self, bytes: Vec<u8>) {
        self.send(ONE, bytes);
    }

    /// The connection breaks without a word.
    fn break_off(&mut self) {
        self.lose(ONE);
    }

    fn is_closed(&mut self) -> bool {
        self.end(ONE).closed
    }

    /// What came and was not taken out.
    fn sent(&mut self) -> &mut Vec<u8> {
        &mut self.end(ONE).sent
    }

    /// The first UPDATE among it.
    fn first_update(&self) -> wire::UpdateIn {
        let told = self.told(ONE);
        let (_, body) = told.iter().find(|(kind, _)| *kind == MessageType::Update).unwrap();
        wire::decode_update(body, &self.session).unwrap()
    }

    /// Dials, and returns the OPEN that comes.
    fn dial(&mut self) -> Open {
        let local = self.local;
        self.script.dial(ONE, local);
        self.opened(ONE)
    }

    /// Dials and answers with an OPEN of these capabilities.
    fn open(&mut self, capabilities: Vec<Capability>) {
        let theirs = self.dial();
        let asn = Asn::new(PEER).unwrap();
        let identifier = [192, 0, 2, 2].into();
        let open = Open { asn, hold_time: 0, identifier, capabilities };
        self.session = Session::negotiate(&open.capabilities, &theirs, false);
        self.sent().clear();
        self.say(wire::encode_open(&open));
    }

    /// Brings up a session.
    fn establish(&mut self, capabilities: Vec<Capability>) {
        self.open(capabilities);
        self.say(wire::encode_keepalive());
        assert_eq!(self.state(), State::Established, "{:?}", self.speaker.peers());
    }

    /// One with a session on which the initial exchange is over.
    fn established(capabilities: Vec<Capability>) -> Self {
        let mut script = Self::new(|_| ());
        script.establish(capabilities);
        script.end_of_rib();
        script.sent().clear();
        script
    }

    fn end_of_rib(&mut self) {
        let mut bytes = Vec::new();
        for family in [Family::V4, Family::V6] {
            wire::encode_end_of_rib(family, &mut bytes);
        }
        self.say(bytes);
    }

    fn state(&self) -> State {
        self.speaker.peers()[0].state
    }

    fn announce(&mut self, attributes: &PathAttributes, routes: &[Nlri]) {
        let mut bytes = Vec::new();
        for family in [Family::V4, Family::V6] {
            let of_it = routes.iter().filter(|nlri| nlri.prefix.family() == family);
            let of_it: Vec<Nlri> = of_it.copied().collect();
            let fits = wire::encode_updates(attributes, family, &of_it, &self.session, &mut bytes);
            assert!(fits || of_it.is_empty(), "it cannot be said on this session");
        }
        self.say(bytes);
    }

    fn withdraw(&mut self, routes: &[Nlri]) {
        let mut bytes = Vec::new();
        wire::encode_withdrawals(Family::V4, routes, &self.session, &mut bytes);
        self.say(bytes);
    }

    fn refresh(&mut self, subtype: u8) {
        self.say(wire::encode_route_refresh(RouteRefresh { family: Family::V4, subtype }));
    }

    /// The messages that came since the last call, in short.
    fn heard(&mut self) -> Vec<String> {
        let sent = std::mem::take(self.sent());
        let mut rest = sent.as_slice();
        let mut heard = Vec::new();
        while let Some(frame) = wire::frame(rest, wire::MAX_EXTENDED).unwrap() {
            heard.push(match frame.kind {
                MessageType::Notification => Notification::decode(frame.body).to_string(),
                MessageType::RouteRefresh => format!("RouteRefresh {}", frame.body[2]),
                MessageType::Update => {
                    let update = wire::decode_update(frame.body, &self.session).unwrap();
                    let of = |(a, r): (PathAttributes, wire::Routes)| {
                        format!("{r:?} via {}", a.next_hop)
                    };
                    let told: Vec<String> = update.announced.into_iter().map(of).collect();
                    match update.end_of_rib {
                        Some(family) => format!("End-of-RIB {family}"),
                        None => told.join(" "),
                    }
                }
                other => format!("{other:?}"),
            });
            rest = &rest[frame.length..];
        }
        heard
    }
}
