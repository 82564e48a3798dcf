use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use twill_types::{Family, Prefix};

use crate::{
    PeerKey,
    wire::{
        self, Frame, MAX_EXTENDED, MessageType, Open, PathAttributes, Role, RouteRefresh, Session,
        decode_open, decode_route_refresh, decode_update,
    },
};

/// The far end of one connection: what it has said, and what it makes of what it is told.
#[derive(Debug)]
pub(super) struct Remote {
    /// The peer, or nobody's.
    pub(super) peer: Option<PeerKey>,
    /// The speaker's end.
    pub(super) local: SocketAddr,
    /// The session is within one AS.
    pub(super) internal: bool,
    /// What is about to be delivered to the speaker.
    pub(super) outbox: Vec<u8>,
    /// What was delivered until there was an OPEN.
    delivered: Vec<u8>,
    /// Its own OPEN, as the speaker reads it.
    said: Option<Open>,
    /// The speaker's.
    heard: Option<Open>,
    /// What it was told.
    pub(super) table: BTreeMap<Prefix, PathAttributes>,
    /// Families in a refresh, and what of them was not told again yet.
    refreshing: BTreeMap<Family, BTreeSet<Prefix>>,
    /// It was told what only an Established session carries.
    pub(super) told: bool,
    /// The speaker's last word was said.
    notified: bool,
}

impl Remote {
    pub(super) const fn new(peer: Option<PeerKey>, local: SocketAddr, internal: bool) -> Self {
        Self {
            peer,
            local,
            internal,
            outbox: Vec::new(),
            delivered: Vec::new(),
            said: None,
            heard: None,
            table: BTreeMap::new(),
            refreshing: BTreeMap::new(),
            told: false,
            notified: false,
        }
    }

    /// What this end may say, and how it reads what it is told, once both have sent an OPEN.
    pub(super) fn session(&self) -> Option<Session> {
        let (said, heard) = (self.said.as_ref()?, self.heard.as_ref()?);
        let session = Session::negotiate(&said.capabilities, heard, self.internal);
        Some(Session { as_sets: true, ..session })
    }

    /// Takes up to `count` octets out of the outbox.
    pub(super) fn deliver(&mut self, count: usize) -> Vec<u8> {
        let bytes: Vec<u8> = self.outbox.drain(..count.min(self.outbox.len())).collect();
        if self.said.is_none() && self.delivered.len() < MAX_EXTENDED {
            self.delivered.extend_from_slice(&bytes);
            if let Ok(Some(Frame { kind: MessageType::Open, body, .. })) =
                wire::frame(&self.delivered, wire::MAX_MESSAGE)
            {
                self.said = decode_open(body).ok();
            }
        }
        bytes
    }

    /// Reads what the speaker has sent: whole messages, in order, that mean something here.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        let max = |remote: &Self| remote.session().unwrap_or_default().longest_received();
        assert!(!bytes.is_empty(), "nothing is sent");
        while !bytes.is_empty() {
            assert!(!self.notified, "a message after the NOTIFICATION");
            let frame = match wire::frame(bytes, max(self)) {
                Ok(Some(frame)) => frame,
                Ok(None) => panic!("a part of a message is sent: {bytes:02x?}"),
                Err(error) => panic!("no message is sent: {error}: {bytes:02x?}"),
            };
            self.message(&frame);
            bytes = bytes.get(frame.length..).unwrap_or_default();
        }
    }

    /// The egress rules of RFC 9234 section 5: how what it was told is marked for customers alone, by what
    /// the speaker is to it and in which AS.
    pub(super) fn check_marks(&self, role: Option<Role>, ours: u32) {
        for (prefix, attributes) in self.table.iter().filter(|_| !self.internal) {
            let mark = attributes.only_to_customer;
            let is_right = match role {
                Some(Role::Provider | Role::RouteServer) => mark.is_some(),
                Some(Role::Peer) => mark == Some(ours),
                Some(Role::Customer | Role::RouteServerClient) => mark.is_none(),
                Some(Role::Unassigned(_)) | None => true,
            };
            assert!(is_right, "{prefix} is told with {mark:?} by one that is {role:?}");
        }
    }

    fn message(&mut self, frame: &Frame<'_>) {
        match frame.kind {
            MessageType::Open => {
                assert!(self.heard.is_none(), "a second OPEN is sent");
                match decode_open(frame.body) {
                    Ok(open) => self.heard = Some(open),
                    Err(error) => panic!("a malformed OPEN is sent: {error}"),
                }
            }
            MessageType::Keepalive => assert!(self.heard.is_some(), "a KEEPALIVE before the OPEN"),
            MessageType::Notification => self.notified = true,
            MessageType::Update => self.update(frame.body),
            MessageType::RouteRefresh => self.refresh(frame.body),
        }
    }

    fn update(&mut self, body: &[u8]) {
        let Some(session) = self.session() else {
            panic!("an UPDATE without a session: {body:02x?}");
        };
        let update = match decode_update(body, &session) {
            Ok(update) => update,
            Err(reset) => panic!("an UPDATE that resets is sent: {reset}: {body:02x?}"),
        };
        assert!(update.faults.is_empty(), "a faulty UPDATE is sent: {:?}", update.faults);
        self.told = true;
        for prefix in update.withdrawn.prefixes() {
            self.table.remove(&prefix);
        }
        for (attributes, routes) in update.announced {
            for prefix in routes.prefixes() {
                assert!(session.has(prefix.family()), "{prefix} is of no family of the session");
                if let Some(left) = self.refreshing.get_mut(&prefix.family()) {
                    left.remove(&prefix);
                }
                self.table.insert(prefix, attributes.clone());
            }
        }
    }

    fn refresh(&mut self, body: &[u8]) {
        let session = self.session().unwrap_or_default();
        let Ok(Some(RouteRefresh { family, subtype })) = decode_route_refresh(body, &session)
        else {
            panic!("a ROUTE-REFRESH that means nothing is sent: {body:02x?}");
        };
        match subtype {
            RouteRefresh::BEGIN => {
                let of_it = self.table.keys().filter(|prefix| prefix.family() == family);
                self.refreshing.insert(family, of_it.copied().collect());
            }
            // RFC 7313 section 4: what was not told again is gone.
            RouteRefresh::END => {
                for prefix in self.refreshing.remove(&family).unwrap_or_default() {
                    self.table.remove(&prefix);
                }
            }
            _ => {}
        }
    }
}
