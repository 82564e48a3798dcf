//! A peer by itself: what goes in and what comes out, one input at a time.

use std::{collections::BTreeSet, net::Ipv4Addr};

use twill_types::{Asn, Family};

use super::*;
use crate::{
    PeerKind,
    wire::{Capability, GracefulRestart, MessageType, Open},
};

mod events;
mod rules;
mod table;

/// A peer and everything around it.
struct Rig {
    peer: Peer,
    speaker: SpeakerConfig,
    now: Time,
    jitter: Jitter,
    next_conn: u64,
    next_accepted: u64,
    /// Connections that are being opened.
    opening: BTreeSet<ConnId>,
    /// Connections that are open.
    open: BTreeSet<ConnId>,
    /// What was done since it was last asked for.
    actions: Vec<String>,
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 179))
}

fn config() -> PeerConfig {
    PeerConfig {
        families: [Family::V4].into(),
        ..PeerConfig::new("tor", PeerKind::Global, Asn::new(64513).unwrap())
    }
}

/// What a peer sends. Its identifier is the higher one: connections that it opens stay.
fn their_open() -> Open {
    let restart = GracefulRestart {
        restarting: false,
        notification: true,
        restart_time: 120,
        families: Vec::new(),
    };
    let asn = Asn::new(64513).unwrap();
    let capabilities = vec![
        Capability::MultiProtocol(Family::V4),
        Capability::FourOctetAs(asn),
        Capability::GracefulRestart(restart),
    ];
    Open { asn, hold_time: 90, identifier: Ipv4Addr::new(192, 0, 2, 2), capabilities }
}

fn notification(code: u8, subcode: u8) -> Vec<u8> {
    wire::encode_notification(&Notification::new(code, subcode))
}

fn end_of_rib() -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::encode_end_of_rib(Family::V4, &mut bytes);
    bytes
}

impl Rig {
    fn new(config: PeerConfig) -> Self {
        let key = PeerKey { address: Ipv4Addr::new(192, 0, 2, 2).into(), port: 179 };
        Self {
            peer: Peer::new(key, config, Time::ZERO),
            speaker: SpeakerConfig {
                router_id: Ipv4Addr::new(192, 0, 2, 1),
                asn: Asn::new(64512).unwrap(),
                hostname: String::new(),
                seed: 1,
                forwarding: BTreeSet::new(),
                selection_deferral: Duration::from_secs(60),
                max_paths: 16,
            },
            now: Time::ZERO,
            jitter: Jitter::new(7),
            next_conn: 1,
            next_accepted: u64::MAX,
            opening: BTreeSet::new(),
            open: BTreeSet::new(),
            actions: Vec::new(),
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut Peer, &mut Sink<'_>)) {
        let (mut outputs, mut sessions) = (Vec::new(), Vec::new());
        let mut sink = Sink {
            speaker: &self.speaker,
            now: self.now,
            jitter: &mut self.jitter,
            next_conn: &mut self.next_conn,
            outputs: &mut outputs,
            sessions: &mut sessions,
            restarting: false,
        };
        act(&mut self.peer, &mut sink);
        for output in outputs {
            self.output(output);
        }
        for session in sessions {
            self.actions.push(match session {
                Session::Up => "session up".to_owned(),
                Session::Down { .. } => "session down".to_owned(),
                Session::Update(_) => "routes".to_owned(),
                Session::Refresh(_) => "refresh".to_owned(),
            });
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Connect { conn, .. } => {
                assert!(self.opening.insert(conn), "{conn:?} is opened twice");
                self.actions.push("connect".to_owned());
            }
            Output::Send { conn, bytes } => {
                assert!(self.open.contains(&conn), "sent on {conn:?}, which is not open");
                let frame = wire::frame(&bytes, wire::MAX_MESSAGE).unwrap().unwrap();
                self.actions.push(match frame.kind {
                    MessageType::Open => "OPEN".to_owned(),
                    MessageType::Keepalive => "KEEPALIVE".to_owned(),
                    MessageType::Notification => {
                        let said = Notification::decode(frame.body);
                        format!("NOTIFICATION {}/{}", said.code, said.subcode)
                    }
                    other => format!("{other:?}"),
                });
            }
            Output::Close { conn } => {
                let known = self.open.remove(&conn) | self.opening.remove(&conn);
                assert!(known, "{conn:?} is closed twice");
                self.actions.push("close".to_owned());
            }
            Output::Abort { conn } => {
                assert!(self.open.remove(&conn), "{conn:?} is closed twice");
                self.actions.push("abort".to_owned());
            }
            Output::Event(..) => {}
            other => panic!("a peer does not {other:?}"),
        }
    }

    fn tick(&mut self) {
        self.act(Peer::tick);
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn start(&mut self) {
        self.act(Peer::start);
    }

    /// The connection that is being opened, or one that is not.
    fn dialling(&self) -> ConnId {
        self.opening.iter().next().copied().unwrap_or(ConnId(999))
    }

    fn connected(&mut self) -> ConnId {
        let conn = self.dialling();
        if self.opening.remove(&conn) {
            self.open.insert(conn);
        }
        self.act(|peer, sink| peer.connected(conn, local(), sink));
        conn
    }

    fn connect_failed(&mut self) {
        let conn = self.dialling();
        self.opening.remove(&conn);
        self.act(|peer, sink| peer.connect_failed(conn, "refused", sink));
    }

    fn accepted(&mut self) -> ConnId {
        let conn = ConnId(self.next_accepted);
        self.next_accepted -= 1;
        self.open.insert(conn);
        self.act(|peer, sink| peer.accepted(conn, local(), sink));
        conn
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        self.act(|peer, sink| peer.received(conn, bytes.to_vec(), sink));
    }

    fn closed(&mut self, conn: ConnId) {
        self.open.remove(&conn);
        self.act(|peer, sink| peer.closed(conn, "closed", sink));
    }

    fn reconfigure(&mut self, change: impl FnOnce(&mut PeerConfig)) {
        let mut config = self.peer.config.clone();
        change(&mut config);
        self.act(|peer, sink| peer.reconfigure(config, sink));
    }

    /// When the timer of this name expires.
    fn deadline(&self, name: &str) -> Option<Time> {
        self.peer.timers().find(|(_, timer)| *timer == name).map(|(deadline, _)| deadline)
    }

    fn expire(&mut self, name: &str) {
        if let Some(deadline) = self.deadline(name) {
            self.now = deadline;
        }
        self.tick();
    }

    fn take_actions(&mut self) -> Vec<String> {
        std::mem::take(&mut self.actions)
    }

    /// Brings up a session on `conn`.
    fn establish(&mut self, conn: ConnId) {
        self.receive(conn, &wire::encode_open(&their_open()));
        self.receive(conn, &wire::encode_keepalive());
    }

    /// One with a session on a connection of its own.
    fn established() -> (Self, ConnId) {
        let mut rig = Self::new(config());
        rig.start();
        let conn = rig.connected();
        rig.establish(conn);
        assert_eq!(rig.peer.state(), State::Established);
        rig.take_actions();
        (rig, conn)
    }
}

/// An OPEN of another AS.
fn stranger() -> Open {
    let asn = Asn::new(64999).unwrap();
    Open { asn, capabilities: vec![Capability::FourOctetAs(asn)], ..their_open() }
}
