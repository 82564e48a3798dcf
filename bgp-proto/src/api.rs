use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use twill_types::{Asn, BgpNextHop, Family, Prefix, PrefixList};

use crate::{
    Time,
    policy::RoutePolicy,
    wire::{Notification, PathAttributes, Role},
};

/// A neighbour: its address and the port that it listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey {
    /// Its address.
    pub address: IpAddr,
    /// Its TCP port, usually 179.
    pub port: u16,
}

impl PeerKey {
    /// Where to connect to.
    pub const fn socket(self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            179 => self.address.fmt(f),
            _ => self.socket().fmt(f),
        }
    }
}

/// A path: who announced it, and under which of its identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathKey {
    /// The peer.
    pub peer: PeerKey,
    /// The peer's path identifier (RFC 7911 section 3); 0 without ADD-PATH.
    pub path_id: u32,
}

impl fmt::Display for PathKey {
    /// `192.0.2.1`, and `192.0.2.1 path 7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)?;
        if self.path_id == 0 { Ok(()) } else { write!(f, " path {}", self.path_id) }
    }
}

/// A connection, as the shell and the speaker call it. The speaker numbers those that it opens
/// upwards from 1, the shell those that it accepts downwards from the top.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What does not change while the process lives.
#[derive(Debug, Clone)]
pub struct SpeakerConfig {
    /// BGP identifier, not 0.0.0.0.
    pub router_id: Ipv4Addr,
    /// The AS of this node.
    pub asn: Asn,
    /// What peers are told that this node is called; empty tells them nothing. At most 126 octets count.
    pub hostname: String,
    /// Spreads timers; any number.
    pub seed: u64,
    /// Families whose routes were found in the kernel at the start: OPENs then say that forwarding went
    /// on for them (the F bits of RFC 4724 section 3). That the speaker has just started they say anyway
    /// (the R bit).
    pub forwarding: BTreeSet<Family>,
    /// After this time a start is over even if a peer has not finished (the Selection_Deferral_Timer of
    /// RFC 4724 section 4.1); after 5 s at the latest if `forwarding` is empty.
    pub selection_deferral: Duration,
    /// The most paths that one route uses at once.
    pub max_paths: usize,
}

/// Where a session comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerKind {
    /// From the full mesh.
    Mesh,
    /// From a BGPPeer that names nodes.
    Node,
    /// From a BGPPeer for all nodes.
    Global,
}

/// One session as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Name of the resource that it comes from.
    pub name: String,
    /// Where it comes from.
    pub kind: PeerKind,
    /// The peer's AS.
    pub asn: Asn,
    /// The address to connect from.
    pub local_address: Option<IpAddr>,
    /// Never connect, only accept.
    pub passive: bool,
    /// Connections from its address are this session's. At most one of the sessions with an address has
    /// them: the port that one comes from does not say which it is for.
    pub takes_connections: bool,
    /// How long an open connection waits for the peer's OPEN before ours goes out (DelayOpenTime);
    /// zero sends it at once.
    pub delay_open: Duration,
    /// Stopped by its administrator, with this text for the peer's (RFC 9003; may be empty).
    pub shutdown: Option<String>,
    /// Proposed hold time in seconds: 0 (off), or 3 and more.
    pub hold_time: u16,
    /// How long the peer shall keep our routes over a restart, in seconds, 0 to 4095.
    pub restart_time: u16,
    /// Families with long-lived graceful restart, and for how long the peer shall keep our routes of
    /// each after the restart time, in seconds, 0 to 16777215 (RFC 9494). For other families the
    /// peer's routes are not kept for long either; without any the capability is not offered.
    pub long_lived: BTreeMap<Family, u32>,
    /// Families to negotiate.
    pub families: BTreeSet<Family>,
    /// This node's address of the family that the session itself does not run over, as the next
    /// hop of that family's routes.
    pub other_next_hop: Option<IpAddr>,
    /// As an internal peer it is a client of this node's, if that is a route reflector: it is told of
    /// all other internal peers' routes, and all are told of its own (RFC 4456 section 6).
    pub client: bool,
    /// The subnet that it is on together with this node: a next hop in there is told as it is to an
    /// external peer (RFC 4271 section 5.1.3).
    pub on_link: Option<Prefix>,
    /// What is taken from it.
    pub policy: PeerPolicy,
    /// Number of the key that the peer's TCP segments are signed with (RFC 2385), which the shell
    /// alone has: another number is another key, and 0 is none.
    pub tcp_key: u64,
    /// How many links away the peer is at the most (RFC 5082), 1 to 255; `None` looks at no TTL.
    pub ttl_security: Option<u8>,
}

/// What a peer is to this node, and what is taken from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerPolicy {
    /// What this node is to the peer (RFC 9234 section 4.1). Internal sessions have no roles.
    pub role: Option<Role>,
    /// The most paths of one family that the peer may announce; one more ends the session with a Cease
    /// (RFC 4486 section 4). `None` is no limit.
    pub max_prefixes: Option<u32>,
    /// How often the AS of this node may stand in the path of a route that is used (RFC 4271 section
    /// 9.1.2); 0 refuses all that have passed it.
    pub allowed_own_as: u8,
    /// Whether routes with AS_SETs are used, which RFC 9774 section 3 withdraws.
    pub as_sets: bool,
    /// The AS that this node is in towards the peer, if that is not its own. It is the only one that
    /// the peer sees.
    pub local_asn: Option<Asn>,
    /// What the peer is told and what is taken from it, by filters; `None` has none.
    pub routes: Option<Arc<RoutePolicy>>,
    /// The next hop of what is passed on to it. What the node originates has always the node's own.
    pub next_hop: NextHopMode,
}

/// Which next hop is told with a route that was learned from another peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NextHopMode {
    /// The learned one inside the AS, and outside where the peer is on one link with it; else this node's
    /// (RFC 4271 section 5.1.3).
    #[default]
    Auto,
    /// This node's.
    Own,
    /// The learned one, also outside the AS.
    Keep,
}

impl PeerConfig {
    /// A session that dials at once and has nothing special: both families, a hold time of 90 s (RFC
    /// 4271 section 10: three lost KEEPALIVEs; who needs it sooner has a link that tells), a restart
    /// time of 120 s (BIRD's), no long-lived restart, no limit and no role ([`PeerPolicy::default`]),
    /// unsigned segments of any TTL.
    pub fn new(name: &str, kind: PeerKind, asn: Asn) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            asn,
            local_address: None,
            passive: false,
            takes_connections: true,
            delay_open: Duration::ZERO,
            shutdown: None,
            hold_time: 90,
            restart_time: 120,
            long_lived: BTreeMap::new(),
            families: [Family::V4, Family::V6].into(),
            other_next_hop: None,
            client: false,
            on_link: None,
            policy: PeerPolicy::default(),
            tcp_key: 0,
            ttl_security: None,
        }
    }

    /// The AS that the node `speaker` is in towards this peer.
    pub(crate) fn local_asn(&self, speaker: &SpeakerConfig) -> Asn {
        self.policy.local_asn.unwrap_or(speaker.asn)
    }

    /// Whether the session is within one AS.
    pub(crate) fn is_internal(&self, speaker: &SpeakerConfig) -> bool {
        self.local_asn(speaker) == self.asn
    }

    /// Whether going from `self` to `new` needs a new session: what was said in the OPEN, and
    /// where the session runs, cannot change under it.
    pub(crate) fn needs_reset(&self, new: &Self) -> bool {
        self.asn != new.asn
            || self.local_address != new.local_address
            || self.hold_time != new.hold_time
            || self.restart_time != new.restart_time
            || self.long_lived != new.long_lived
            || self.families != new.families
            || self.client != new.client
            || self.policy.role != new.policy.role
            || self.policy.local_asn != new.policy.local_asn
            || self.policy.as_sets != new.policy.as_sets
            || self.tcp_key != new.tcp_key
            || self.ttl_security != new.ttl_security
    }

    /// Whether what a peer has announced under `self` is as good under `new`, also while it is away.
    /// Another password or timer changes nothing about routes; another AS or role does.
    pub(crate) fn keeps_paths(&self, new: &Self) -> bool {
        self.asn == new.asn
            && self.families == new.families
            && self.client == new.client
            && self.policy.role == new.policy.role
            && self.policy.local_asn == new.policy.local_asn
            && self.policy.as_sets == new.policy.as_sets
            && new.shutdown.is_none()
    }
}

/// Whether and how well a next hop can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHopState {
    /// At this cost, for the step of the interior route (RFC 4271 section 9.1.2.2 e).
    Reachable {
        /// Lower is nearer; the daemon has 0 on a link of the node, and 1 behind a router.
        metric: u32,
    },
    /// Not at all.
    Unreachable,
}

/// What this node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// Its prefixes, and whether each is announced. A route of a peer to one of them, or to a part of
    /// it, is not used.
    pub prefixes: BTreeMap<Prefix, bool>,
    /// Parts of them that others have: what is in these is learned as everywhere else.
    pub lent: BTreeSet<Prefix>,
    /// What it announces together with other nodes (anycast, RFC 4786), such as services' addresses. A
    /// route of a peer to exactly one of them is not used and no conflict; one to a part of it is
    /// used as any other.
    pub anycast: BTreeSet<Prefix>,
}

impl Own {
    /// Prefixes that are all announced.
    pub fn announced(prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        let prefixes = prefixes.into_iter().map(|prefix| (prefix, true)).collect();
        Self { prefixes, ..Self::default() }
    }

    /// Everything that is announced.
    pub(crate) fn originated(&self) -> BTreeSet<Prefix> {
        let announced = self.prefixes.iter().filter(|(_, announced)| **announced);
        announced.map(|(prefix, _)| *prefix).chain(self.anycast.iter().copied()).collect()
    }

    /// The prefix of this node that a route would take something from.
    pub(crate) fn covering(&self, prefix: Prefix) -> Option<Prefix> {
        // Neither these nor those overlap each other.
        if self.lent_part(prefix).is_some() {
            return None;
        }
        let (ours, _) = self.prefixes.range(..=prefix).next_back()?;
        ours.covers(prefix).then_some(*ours)
    }

    /// The lent part that a prefix lies in.
    pub(crate) fn lent_part(&self, prefix: Prefix) -> Option<Prefix> {
        self.lent.range(..=prefix).next_back().copied().filter(|lent| lent.covers(prefix))
    }
}

/// Whose routes this node passes on as a route reflector (RFC 4456).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reflection {
    /// The cluster of which it is a reflector.
    pub cluster_id: Ipv4Addr,
    /// Only routes to these prefixes and parts of them are passed on.
    pub pools: BTreeSet<Prefix>,
}

/// A peer announces what this node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// What is announced.
    pub prefix: Prefix,
    /// What of ours it lies in.
    pub ours: Prefix,
    /// By whom; the first of several.
    pub peer: PeerKey,
}

/// What happens outside.
#[derive(Debug)]
pub enum Input {
    /// A deadline of [`crate::Speaker::poll_timeout`] has come.
    Tick,
    /// The sessions there are to be, all of them.
    SetPeers(BTreeMap<PeerKey, PeerConfig>),
    /// What this node has, all of it.
    SetOwn(Own),
    /// Whose routes it passes on; at first nobody's.
    SetReflection(Option<Reflection>),
    /// An [`Output::Connect`] succeeded.
    Connected {
        /// As in the output.
        conn: ConnId,
        /// Our end.
        local: SocketAddr,
    },
    /// An [`Output::Connect`] failed.
    ConnectFailed {
        /// As in the output.
        conn: ConnId,
        /// For people.
        reason: String,
    },
    /// Someone connected to us.
    Accepted {
        /// Chosen by the shell.
        conn: ConnId,
        /// Our end.
        local: SocketAddr,
        /// Their end.
        remote: SocketAddr,
    },
    /// Bytes came in.
    Received {
        /// On which connection.
        conn: ConnId,
        /// As they came, cut anywhere.
        bytes: Vec<u8>,
    },
    /// The kernel took bytes that an [`Output::Send`] handed over.
    Written {
        /// On which connection.
        conn: ConnId,
        /// How many.
        count: usize,
    },
    /// A connection is gone, and not by an [`Output::Close`].
    Closed {
        /// Which.
        conn: ConnId,
        /// For people.
        reason: String,
    },
    /// What is known of the next hops of [`Output::TrackNextHops`]; those not named are as before.
    NextHops(BTreeMap<BgpNextHop, NextHopState>),
}

/// What is to be done outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open a connection; answered by `Connected` or `ConnectFailed`.
    Connect {
        /// Its name from now on.
        conn: ConnId,
        /// To where.
        remote: SocketAddr,
        /// From where.
        local: Option<IpAddr>,
    },
    /// Send bytes.
    Send {
        /// On which connection.
        conn: ConnId,
        /// Whole messages.
        bytes: Vec<u8>,
    },
    /// Close a connection, or give up opening it. What was sent before is still delivered.
    Close {
        /// Which.
        conn: ConnId,
    },
    /// Close a connection at once; what was sent and has not left is thrown away.
    Abort {
        /// Which.
        conn: ConnId,
    },
    /// What should be in the kernel has changed; no destination is named twice.
    Routes(Vec<RouteChange>),
    /// The next hops whose reachability matters, all of them.
    TrackNextHops(BTreeSet<BgpNextHop>),
    /// The start is over: routes in the kernel that no [`Output::Routes`] named can go.
    Converged {
        /// Peers that had not sent everything when the time for it was over; none if
        /// [`SpeakerConfig::forwarding`] was empty, as nothing of theirs was kept.
        unheard: Vec<PeerKey>,
    },
    /// What peers announce of what this node has, all of it, whenever that changes. These routes are
    /// not used.
    Conflicts(Vec<Conflict>),
    /// For logs.
    Event(PeerKey, PeerEvent),
    /// For logs: a caller that is no peer was told so by a NOTIFICATION (RFC 4486 subcode 5), and its
    /// connection closed.
    Refused {
        /// From where it called.
        remote: IpAddr,
    },
}

/// Routes to install or to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteChange {
    /// The destinations, at least one and each once.
    pub prefixes: PrefixList,
    /// BGP next hops to share the traffic, sorted; none means remove.
    pub next_hops: Arc<[BgpNextHop]>,
    /// With one next hop: that of the path which would be the best without it, if there is any.
    pub backup: Option<BgpNextHop>,
}

/// What happened to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerEvent {
    /// It is Established.
    Up,
    /// It is no longer Established.
    Down {
        /// For people.
        reason: String,
        /// Its routes are kept as stale for this long at the most, the long-lived time included
        /// (RFC 4724 section 4.2, RFC 9494 section 4.2).
        kept_for: Option<Duration>,
    },
    /// An attempt failed before Established.
    Failed {
        /// For people.
        reason: String,
    },
    /// The peer's UPDATE was not as it should be. What was done about it is part of the text.
    BadUpdate {
        /// For people.
        text: String,
        /// The routes that it was about, at most 20 by name; empty if they could not be read.
        routes: String,
        /// The body of the UPDATE, at most 4096 octets of it, in hexadecimal digits (RFC 7606 section 6); empty
        /// where it is about several UPDATEs together.
        message: String,
    },
    /// There were more of them in the last minute than were told one by one.
    MoreBadUpdates {
        /// How many were not told.
        count: u64,
    },
    /// The initial routes of a family are in.
    EndOfRib(Family),
    /// The restart time is over, and stale routes of a family stay as the last resort (RFC 9494).
    LongLived(Family),
    /// Stale routes are gone.
    StaleFlushed {
        /// How many.
        count: usize,
    },
    /// A NOTIFICATION came or went.
    Notification {
        /// Sent by us, or received.
        sent: bool,
        /// What it says.
        notification: Notification,
    },
}

/// The states of RFC 4271 section 8.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Waits before it tries again.
    Idle,
    /// Opens a connection.
    Connect,
    /// Waits for the peer to connect, or for the next attempt.
    Active,
    /// Has sent an OPEN.
    OpenSent,
    /// Has an OPEN, waits for the KEEPALIVE that confirms ours.
    OpenConfirm,
    /// Exchanges routes.
    Established,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a peer is not asked for its routes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefreshError {
    /// Nobody is configured with that address and port.
    #[error("there is no such session on this node; `twillctl bgp peers` lists them")]
    NoPeer,
    /// There is nobody to ask.
    #[error("the session is {0}; a peer can be asked when it is Established")]
    NotEstablished(State),
    /// Only a new session brings the routes again.
    #[error(
        "the peer has not announced route refresh (RFC 2918); its routes come again with a new \
         session"
    )]
    NoRouteRefresh,
    /// The family was not negotiated.
    #[error("the session does not carry {0} routes; ask for the other family, or for all")]
    NoFamily(Family),
}

/// One session, for people.
#[derive(Debug, Clone)]
pub struct PeerSnapshot {
    /// Which.
    pub key: PeerKey,
    /// As configured.
    pub config: PeerConfig,
    /// Its state: that of the connection that is farthest.
    pub state: State,
    /// When it entered or left Established.
    pub since: Time,
    /// What happened last.
    pub info: String,
    /// Negotiated, in seconds.
    pub hold_time: u16,
    /// The peer's identifier.
    pub router_id: Option<Ipv4Addr>,
    /// Capabilities that both sides have.
    pub capabilities: Vec<&'static str>,
    /// Prefixes accepted, stale ones included.
    pub prefixes_in: usize,
    /// Prefixes that a filter refuses. They count for [`PeerPolicy::max_prefixes`].
    pub prefixes_refused: usize,
    /// Prefixes kept over a restart of the peer.
    pub prefixes_stale: usize,
    /// When the first of these go or become long-lived, unless the peer is back before.
    pub stale_until: Option<Time>,
    /// Some of these are long-lived stale: used only where there is nothing else (RFC 9494).
    pub long_lived_stale: bool,
    /// After our restart, old kernel routes wait for what it has to say. Never after a start that found
    /// none.
    pub awaited: bool,
    /// Prefixes announced. Learned ones that are passed on are counted also where their attributes leave no
    /// room in a message of the session.
    pub prefixes_out: usize,
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// How often it left Established.
    pub flaps: u32,
    /// What the peer says that it is called, if it does.
    pub hostname: Option<String>,
    /// NOTIFICATIONs, counted.
    pub notifications: Vec<NotificationCount>,
    /// Errors in the peer's UPDATEs, counted.
    pub update_errors: Vec<UpdateErrorCount>,
}

/// How often a NOTIFICATION came or went since the peer was configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotificationCount {
    /// Sent by us, or received.
    pub sent: bool,
    /// Error code; 255, with the subcode 255, stands for all that no RFC names.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// How often.
    pub count: u64,
}

/// How often UPDATEs were wrong in one way since the peer was configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateErrorCount {
    /// What was done, as [`crate::wire::Disposition::name`] says it.
    pub disposition: &'static str,
    /// Type code of the attribute; 0 where it is none, 255 for all that are unknown.
    pub attribute: u8,
    /// How often.
    pub count: u64,
}

/// One path, for people.
#[derive(Debug, Clone)]
pub struct RouteSnapshot {
    /// The destination.
    pub prefix: Prefix,
    /// Where it came from; `None` for what this node originates.
    pub from: Option<PeerKey>,
    /// The peer's path identifier (RFC 7911 section 3); 0 without ADD-PATH.
    pub path_id: u32,
    /// Its attributes; `None` for what this node originates.
    pub attributes: Option<Arc<PathAttributes>>,
    /// Used for forwarding.
    pub best: bool,
    /// Kept over a restart of the peer.
    pub stale: bool,
}
