use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use twill_selector::{Labels, Selector};
use twill_types::Asn;

use super::{
    Effects, Report, Rules,
    restart_time::{LongLivedRestartTime, RestartTime},
};
use crate::{Object, Unsupported};

/// A router that nodes speak BGP with.
pub type BgpPeer = Object<BgpPeerSpec>;

/// What a BGPPeer says. With neither `node` nor `nodeSelector` every node has this peer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct BgpPeerSpec {
    /// The one node that has this peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub node: Option<String>,
    /// The nodes that have this peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Selector>"))]
    pub node_selector: Option<Selector>,
    /// Where the peer is.
    #[serde(rename = "peerIP", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::PeerAddress>"))]
    pub peer_ip: Option<PeerAddress>,
    /// The nodes that are the peers, in place of an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Selector>"))]
    pub peer_selector: Option<Selector>,
    /// The peer's AS number; unset beside `peerIP`: that of the Node with this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::AsNumber>"))]
    pub as_number: Option<Asn>,
    /// The AS number that this peer sees instead of ours.
    #[serde(rename = "localASNumber", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::AsNumber>"))]
    pub local_as_number: Option<Asn>,
    /// The older way to say `nextHopMode: Keep`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_original_next_hop: bool,
    /// Which next hop is announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop_mode: Option<NextHopMode>,
    /// The TCP MD5 password (RFC 2385).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<BgpPassword>,
    /// Which address sessions come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_address: Option<SourceAddress>,
    /// How long the peer keeps our routes over a restart, such as `120s`, which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Duration>"))]
    pub max_restart_time: Option<RestartTime>,
    /// How long the peer keeps stale routes of each family after the restart time (RFC 9494). Ours, not
    /// Calico's; unset: long-lived graceful restart is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_lived_restart_time: Option<LongLivedRestartTime>,
    /// Time between keepalives, such as `30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Duration>"))]
    pub keepalive_time: Option<String>,
    /// How often our own AS number may stand in a received path.
    #[serde(rename = "numAllowedLocalASNumbers", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 10)))]
    pub num_allowed_local_as_numbers: Option<i32>,
    /// How many links away the peer is at the most (RFC 5082); 0 looks at no TTL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_security: Option<u8>,
    /// The gateway that leads to the peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Address>"))]
    pub reachable_by: Option<IpAddr>,
    /// BGPFilters by name, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 100), inner(length(max = 253))))]
    pub filters: Vec<String>,
    /// Pods on the node that are the peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Selector>"))]
    pub local_workload_selector: Option<Selector>,
    /// Whether the nodes of `peerSelector` have this peer, too, in the other direction; unset: they do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverse_peering: Option<ReversePeering>,
    /// Twill's own: the session is stopped, and the peer's operator told this (RFC 9003), at most 255
    /// octets; it may be empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 255)))]
    pub shutdown: Option<String>,
    /// Twill's own: the node waits for the peer to connect.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub passive: bool,
    /// Twill's own: how long an open connection waits for the peer's OPEN before the node sends its
    /// own (DelayOpenTime of RFC 4271 section 8.1.1), 0 to 120 seconds; unset: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 120)))]
    pub delay_open_seconds: Option<u16>,
    /// Twill's own: the most paths of one family that the peer may announce, from 1; unset: two
    /// million.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub max_prefixes: Option<u32>,
    /// Twill's own: what the node is to the peer (RFC 9234); unset: nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_role: Option<LocalRole>,
    /// Twill's own: routes with AS_SETs are used, which RFC 9774 withdraws.
    #[serde(rename = "acceptASSets", skip_serializing_if = "std::ops::Not::not")]
    pub accept_as_sets: bool,
}

/// What a node is to a peer of another AS (RFC 9234 section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum LocalRole {
    /// It lets the peer's traffic through.
    Provider,
    /// It serves routes to the peer.
    RouteServer,
    /// The peer serves routes to it.
    RouteServerClient,
    /// The peer lets its traffic through.
    Customer,
    /// Each reaches the other, and nobody beyond it.
    Peer,
}

/// Which next hop is announced to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum NextHopMode {
    /// As RFC 4271 section 5.1.3 says.
    Auto,
    /// Always the node itself.
    #[serde(rename = "Self")]
    Own,
    /// The one that was learned.
    Keep,
}

/// Which address sessions come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum SourceAddress {
    /// The node's own.
    UseNodeIP,
    /// What the kernel chooses.
    None,
}

/// Whether a mirror session is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ReversePeering {
    /// It is.
    Auto,
    /// It is not.
    Manual,
}

/// Where a password is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BgpPassword {
    /// In a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
}

/// A key of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SecretKeyRef {
    /// The Secret.
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub name: String,
    /// The key in it.
    #[cfg_attr(feature = "schema", schemars(length(max = 253)))]
    pub key: String,
    /// Whether it may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// Address and, unless it is the usual one, port of a peer: `ip`, `v4:port` or `[v6]:port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// The address.
    pub ip: IpAddr,
    /// The TCP port, when one was given.
    pub port: Option<u16>,
}

/// Why a text is no [`PeerAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerAddressError {
    /// Not one of the forms.
    #[error(
        "`{0}` is not a peer's address; write 192.0.2.1, 192.0.2.1:1179, 2001:db8::1 or [2001:db8::1]:1179"
    )]
    Syntax(String),
    /// An address of one link only.
    #[error("`{0}` names an interface; a peer's address has no `%` part")]
    Zone(String),
    /// Nobody can be there.
    #[error("`{0}` is no address of a router; write the one it listens on")]
    Unusable(String),
    /// Port 0.
    #[error("`{0}` has port 0; ports are 1 to 65535")]
    Port(String),
}

impl FromStr for PeerAddress {
    type Err = PeerAddressError;

    fn from_str(text: &str) -> Result<Self, PeerAddressError> {
        if text.contains('%') {
            return Err(PeerAddressError::Zone(text.to_owned()));
        }
        let address = if let Ok(ip) = text.parse() {
            Self { ip, port: None }
        } else if let Ok(socket) = text.parse::<SocketAddr>() {
            Self { ip: socket.ip(), port: Some(socket.port()) }
        } else {
            let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            match inside.map(Ipv6Addr::from_str) {
                Some(Ok(ip)) => Self { ip: ip.into(), port: None },
                _ => return Err(PeerAddressError::Syntax(text.to_owned())),
            }
        };
        if address.port == Some(0) {
            return Err(PeerAddressError::Port(text.to_owned()));
        }
        let broadcast = address.ip == IpAddr::from([255; 4]);
        if address.ip.is_unspecified() || address.ip.is_multicast() || broadcast {
            return Err(PeerAddressError::Unusable(text.to_owned()));
        }
        Ok(address)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => self.ip.fmt(f),
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
        }
    }
}

impl Serialize for PeerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl BgpPeerSpec {
    /// The most paths of one family from a peer for which no number is set. Twice what the whole
    /// Internet has: only a peer that has gone wrong announces more.
    pub const DEFAULT_MAX_PREFIXES: u32 = 2_000_000;

    /// Whether a node of this name and with these labels has this peer.
    pub fn selects(&self, node: &str, labels: &impl Labels) -> bool {
        match (&self.node, &self.node_selector) {
            (Some(name), _) => name == node,
            (None, Some(selector)) => selector.matches(labels),
            (None, None) => true,
        }
    }

    /// Whether other nodes say who the peers are, or which AS they are in.
    pub const fn depends_on_nodes(&self) -> bool {
        self.peer_selector.is_some() || self.peer_ip.is_some() && self.as_number.is_none()
    }
}

impl Rules for BgpPeer {
    fn check(&self, report: &mut Report) {
        let spec = &self.spec;
        let (by_node, by_selector) = (spec.node.is_some(), spec.node_selector.is_some());
        report.exclusive(("spec.node", by_node), ("spec.nodeSelector", by_selector));
        let peer_ip = ("spec.peerIP", spec.peer_ip.is_some());
        let peer_selector = ("spec.peerSelector", spec.peer_selector.is_some());
        let workloads = ("spec.localWorkloadSelector", spec.local_workload_selector.is_some());
        report.exclusive(peer_ip, peer_selector);
        report.exclusive(peer_ip, workloads);
        report.exclusive(peer_selector, workloads);
        if !peer_ip.1 && !peer_selector.1 && !workloads.1 {
            report.error("spec.peerIP", "the peer has no address; write peerIP: 192.0.2.1");
        }
        if workloads.1 && spec.as_number.is_none() {
            report.error("spec.asNumber", "the peer's AS number is missing; add asNumber: 64512");
        }
        if peer_selector.1 && spec.as_number.is_some() {
            report.error(
                "spec.asNumber",
                "nodes know their AS numbers; remove it beside peerSelector",
            );
        }
        report.at_most("spec.filters", 100, spec.filters.len(), "write one BGPFilter for several");
        report.exclusive(
            ("spec.nextHopMode", spec.next_hop_mode.is_some()),
            ("spec.keepOriginalNextHop", spec.keep_original_next_hop),
        );
        if spec.reachable_by.is_some() && !peer_ip.1 {
            report.error("spec.reachableBy", "needs peerIP: it is the way to that address");
        }
        if let (Some(gateway), Some(peer)) = (spec.reachable_by, spec.peer_ip)
            && gateway.is_ipv4() != peer.ip.is_ipv4()
        {
            report.error("spec.reachableBy", format!("must be of the same family as {}", peer.ip));
        }
        if spec.max_prefixes == Some(0) {
            report.error(
                "spec.maxPrefixes",
                "is at least 1; to stop the session write shutdown: \"\"",
            );
        }
        if spec.delay_open_seconds.is_some_and(|seconds| seconds > 120) {
            report.error("spec.delayOpenSeconds", "is 0 to 120 seconds");
        }
        if spec.shutdown.as_ref().is_some_and(|text| text.len() > 255) {
            report.error("spec.shutdown", "has more than 255 octets, which is all that fits");
        }
        if spec.num_allowed_local_as_numbers.is_some_and(|number| !(0..=10).contains(&number)) {
            report.error("spec.numAllowedLocalASNumbers", "is 0 to 10");
        }
        spec.long_lived_restart_time.unwrap_or_default().check("spec.longLivedRestartTime", report);
        report.selector("spec.nodeSelector", spec.node_selector.as_ref());
        report.selector("spec.peerSelector", spec.peer_selector.as_ref());
        report.selector("spec.localWorkloadSelector", spec.local_workload_selector.as_ref());
    }

    /// The next hop modes are about what a reflector or a filter passes on; what a node owns has the node as
    /// its next hop with each of them.
    fn unsupported(&self) -> Vec<Unsupported> {
        let spec = &self.spec;
        Effects::new()
            .when(
                spec.local_workload_selector.is_some(),
                "spec.localWorkloadSelector",
                "no session is made; name the peer by peerIP",
            )
            .when(
                spec.keepalive_time.is_some(),
                "spec.keepaliveTime",
                "keepalives come at a third of the hold time",
            )
            .when(spec.reachable_by.is_some(), "spec.reachableBy", "no route to the peer is made")
            .done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_addresses() {
        for (text, ip, port) in [
            ("192.168.2.1", "192.168.2.1", None),
            ("192.168.2.1:1179", "192.168.2.1", Some(1179)),
            ("fd00::1", "fd00::1", None),
            ("[fd00::1]:1179", "fd00::1", Some(1179)),
            ("[fd00::1]", "fd00::1", None),
        ] {
            let address: PeerAddress = text.parse().unwrap();
            assert_eq!((address.ip.to_string().as_str(), address.port), (ip, port), "{text}");
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        for text in [
            "",
            "tor",
            "192.168.2.1:",
            "192.168.2.1:0",
            "192.168.2.1:65536",
            "192.168.2.1/24",
            "fe80::1%eth0",
            "[192.168.2.1]:179",
            "0.0.0.0",
            "::",
            "224.0.0.5",
            "255.255.255.255",
        ] {
            assert!(text.parse::<PeerAddress>().is_err(), "{text}");
        }
    }
}
