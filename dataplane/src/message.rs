//! Builders for the few netlink messages that Twill sends, and readers for what it gets back.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    os::fd::RawFd,
};

use netlink_packet_core::{DefaultNla, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth,
        LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkInfo, LinkMessage, Prop,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
        RouteProtocol, RouteScope, RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use twill_types::{Family, Prefix};

use crate::netlink::Request;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a text is no hardware address for an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six bytes.
    #[error("six bytes in hexadecimal with colons, such as 02:00:00:00:00:01")]
    Syntax,
    /// Nobody may have it: it is a group's, or zero.
    #[error("the address of one interface: not a multicast address, and not zero")]
    NotUnicast,
}

impl std::str::FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(MacError::Syntax)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacError::Syntax)?;
        }
        if parts.next().is_some() {
            return Err(MacError::Syntax);
        }
        // IEEE 802: bit 0 of the first octet says group.
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(MacError::NotUnicast);
        }
        Ok(Self(bytes))
    }
}

/// IPv4 settings of a link that `IFLA_INET_CONF` sets: the numbers of `IPV4_DEVCONF_*` in
/// `linux/ip.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ipv4Conf {
    Forwarding = 1,
    ProxyArp = 3,
    RpFilter = 8,
}

pub(crate) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// One end of a veth pair at its creation.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: MacAddress,
    pub(crate) mtu: u32,
}

/// Both ends in one message, the peer born in the namespace `peer_netns`.
///
/// A veth has one queue unless it is asked for more. But one whose creation does not say so is made with one for
/// each processor, and then has the rest taken away: for that the kernel waits for all processors, once
/// for each end, while nobody else can change a link (`veth_init_queues` in `drivers/net/veth.c`).
pub(crate) fn create_veth(host: &VethEnd<'_>, peer: &VethEnd<'_>, peer_netns: RawFd) -> Request {
    let end = |end: &VethEnd<'_>| {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(end.name.to_owned()),
            LinkAttribute::Mtu(end.mtu),
            LinkAttribute::Address(end.mac.0.to_vec()),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ];
        message
    };
    let mut peer = end(peer);
    peer.attributes.push(LinkAttribute::NetNsFd(peer_netns));
    let mut message = end(host);
    message.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

fn link(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

/// Asks for one link, without its counters.
pub(crate) fn get_link_by_name(name: &str) -> Request {
    let attributes = vec![LinkAttribute::IfName(name.to_owned()), skip_stats()];
    RouteNetlinkMessage::GetLink(link(0, attributes)).into()
}

/// Asks for one link, without its counters.
pub(crate) fn get_link(index: u32) -> Request {
    RouteNetlinkMessage::GetLink(link(index, vec![skip_stats()])).into()
}

/// Asks for all links, without their counters.
pub(crate) fn list_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(link(0, vec![skip_stats()]))
}

/// Asks for all veth links.
pub(crate) fn list_veths() -> RouteNetlinkMessage {
    let kind = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]);
    RouteNetlinkMessage::GetLink(link(0, vec![skip_stats(), kind]))
}

fn skip_stats() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

pub(crate) fn set_link(index: u32, attributes: Vec<LinkAttribute>) -> Request {
    RouteNetlinkMessage::SetLink(link(index, attributes)).into()
}

/// Brings a link up or down, with other changes in the same message.
pub(crate) fn set_link_up(index: u32, up: bool, attributes: Vec<LinkAttribute>) -> Request {
    let mut message = link(index, attributes);
    message.header = LinkHeader {
        flags: if up { LinkFlags::Up } else { LinkFlags::empty() },
        change_mask: LinkFlags::Up,
        ..message.header
    };
    RouteNetlinkMessage::SetLink(message).into()
}

/// Per-link protocol settings (`IFLA_AF_SPEC`).
pub(crate) fn af_spec(ipv4: &[(Ipv4Conf, u32)], no_link_local: bool) -> LinkAttribute {
    const IFLA_INET_CONF: u16 = 1;
    let mut conf = Vec::new();
    for (setting, value) in ipv4 {
        // One nested attribute per setting: length 8, type, value.
        conf.extend_from_slice(&8u16.to_ne_bytes());
        conf.extend_from_slice(&(*setting as u16).to_ne_bytes());
        conf.extend_from_slice(&value.to_ne_bytes());
    }
    // The typed form of netlink-packet-route leaves out zeroes, and zero is a value here.
    let conf = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, conf));
    let mut families = vec![AfSpecUnspec::Inet(vec![conf])];
    if no_link_local {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        families.push(AfSpecUnspec::Inet6(vec![mode]));
    }
    LinkAttribute::AfSpecUnspec(families)
}

/// Adds or removes an alternative name.
pub(crate) fn altname(index: u32, name: &str, add: bool) -> Request {
    let names = LinkAttribute::PropList(vec![Prop::AltIfName(name.to_owned())]);
    let message = link(index, vec![names]);
    match add {
        true => {
            let message = RouteNetlinkMessage::NewLinkProp(message);
            Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
        }
        false => RouteNetlinkMessage::DelLinkProp(message).into(),
    }
}

pub(crate) fn del_link(index: u32) -> Request {
    RouteNetlinkMessage::DelLink(link(index, Vec::new())).into()
}

/// Deletes every link of a group at once.
pub(crate) fn del_group(group: u32) -> Request {
    RouteNetlinkMessage::DelLink(link(0, vec![LinkAttribute::Group(group)])).into()
}

/// How long this link waits before it answers ARP for others, in milliseconds.
pub(crate) fn set_proxy_delay(index: u32, delay: u64) -> Request {
    set_neighbour_table(Family::V4, index, vec![NeighbourTableParameter::ProxyDelay(delay)])
}

/// How often this link asks for a neighbour's hardware address, and with how many milliseconds
/// between.
pub(crate) fn set_solicitations(family: Family, index: u32, interval: u64, count: u32) -> Request {
    let parameters = vec![
        NeighbourTableParameter::RetransTime(interval),
        NeighbourTableParameter::McastProbes(count),
    ];
    set_neighbour_table(family, index, parameters)
}

fn set_neighbour_table(
    family: Family,
    index: u32,
    parameters: Vec<NeighbourTableParameter>,
) -> Request {
    let table = match family {
        Family::V4 => "arp_cache",
        Family::V6 => "ndisc_cache",
    };
    let mut message = NeighbourTableMessage::default();
    message.header.family = address_family(family);
    let mut all = vec![NeighbourTableParameter::Ifindex(index)];
    all.extend(parameters);
    message.attributes =
        vec![NeighbourTableAttribute::Name(table.to_owned()), NeighbourTableAttribute::Parms(all)];
    RouteNetlinkMessage::SetNeighbourTable(message).into()
}

/// An address of a link; IPv6 ones without duplicate address detection.
fn address(index: u32, address: IpAddr, length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.prefix_len = length;
    message.header.index = index;
    message.header.scope = match address {
        IpAddr::V6(v6) if is_link_local(v6) => AddressScope::Link,
        _ => AddressScope::Universe,
    };
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.is_unicast_link_local()
}

pub(crate) fn add_address(index: u32, ip: IpAddr, length: u8) -> Request {
    let message = RouteNetlinkMessage::NewAddress(address(index, ip, length));
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

pub(crate) fn del_address(index: u32, ip: IpAddr, length: u8) -> Request {
    RouteNetlinkMessage::DelAddress(address(index, ip, length)).into()
}

/// Asks for the addresses of one link, or of all (`index` 0).
pub(crate) fn list_addresses(index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::GetAddress(message)
}

/// A permanent neighbour entry.
pub(crate) fn add_neighbour(index: u32, address: IpAddr, mac: MacAddress) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(address));
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let destination = match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    let message = RouteNetlinkMessage::NewNeighbour(message);
    Request { message, flags: NLM_F_CREATE | NLM_F_REPLACE }
}

/// A route in the main table with our protocol number, without next hops.
pub(crate) fn route(prefix: Prefix, kind: RouteType, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(prefix.family());
    message.header.destination_prefix_length = prefix.length();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(twill_types::ROUTE_PROTOCOL);
    message.header.scope = scope;
    message.header.kind = kind;
    message.attributes = vec![RouteAttribute::Destination(prefix.address().into())];
    message
}

/// A route out of a link, directly or through a gateway.
pub(crate) fn link_route(prefix: Prefix, index: u32, gateway: Option<IpAddr>) -> RouteMessage {
    let scope = match (prefix.family(), gateway) {
        (Family::V4, None) => RouteScope::Link,
        // IPv6 has no scopes of routes.
        (Family::V4, Some(_)) | (Family::V6, _) => RouteScope::Universe,
    };
    let mut message = route(prefix, RouteType::Unicast, scope);
    message.attributes.extend(gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

/// What a route says about the packets on it.
pub(crate) fn route_metrics(mtu: Option<u32>, advmss: Option<u32>) -> Option<RouteAttribute> {
    let metrics: Vec<RouteMetric> =
        mtu.map(RouteMetric::Mtu).into_iter().chain(advmss.map(RouteMetric::Advmss)).collect();
    (!metrics.is_empty()).then_some(RouteAttribute::Metrics(metrics))
}

pub(crate) fn add_route(message: RouteMessage) -> Request {
    let message = RouteNetlinkMessage::NewRoute(message);
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// Removes our route out of a link, whatever its scope.
pub(crate) fn del_link_route(prefix: Prefix, index: u32) -> Request {
    // Scope NOWHERE is the wildcard; any other has to match.
    let mut message = route(prefix, RouteType::Unspec, RouteScope::NoWhere);
    message.attributes.push(RouteAttribute::Oif(index));
    RouteNetlinkMessage::DelRoute(message).into()
}

/// A rule of ours: what comes from an address is looked up in a table first.
fn rule(source: IpAddr, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(Family::of(source));
    message.header.src_len = Family::of(source).bits();
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(source),
        RuleAttribute::Table(table),
        RuleAttribute::Protocol(RouteProtocol::Other(twill_types::ROUTE_PROTOCOL)),
    ];
    message
}

pub(crate) fn add_rule(source: IpAddr, table: u32, priority: u32) -> Request {
    let mut message = rule(source, table);
    message.attributes.push(RuleAttribute::Priority(priority));
    let message = RouteNetlinkMessage::NewRule(message);
    Request { message, flags: NLM_F_CREATE | NLM_F_EXCL }
}

pub(crate) fn del_rule(source: IpAddr, table: u32) -> Request {
    RouteNetlinkMessage::DelRule(rule(source, table)).into()
}

/// Asks for the rules of a family.
pub(crate) fn list_rules(family: Family) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(family);
    RouteNetlinkMessage::GetRule(message)
}

/// Asks which route the kernel would take to `address`; with `entry` for the table's entry (and
/// who made it) instead of the way that results. `link` is the one that the way has to go by.
pub(crate) fn get_route(address: IpAddr, link: Option<u32>, entry: bool) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(Family::of(address));
    message.header.destination_prefix_length = Family::of(address).bits();
    if entry {
        message.header.flags = RouteFlags::FibMatch;
    }
    message.attributes = vec![RouteAttribute::Destination(address.into())];
    message.attributes.extend(link.map(RouteAttribute::Oif));
    RouteNetlinkMessage::GetRoute(message).into()
}

/// What to list of the routes in the main table.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RouteFilter {
    /// Only routes that Twill made.
    pub(crate) ours: bool,
    /// Only routes out of this link.
    pub(crate) link: Option<u32>,
}

pub(crate) fn list_routes(family: Family, filter: RouteFilter) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    if filter.ours {
        message.header.protocol = RouteProtocol::Other(twill_types::ROUTE_PROTOCOL);
    }
    message.attributes = filter.link.map(RouteAttribute::Oif).into_iter().collect();
    RouteNetlinkMessage::GetRoute(message)
}

/// The address in a route's attribute.
pub(crate) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
