//! What an ADD does, as data.

use std::{fmt, net::IpAddr, os::fd::RawFd};

use netlink_packet_route::{
    link::LinkAttribute,
    route::{RouteAttribute, RouteMessage},
};
use twill_types::{Family, LinkAlias, Prefix};

use super::{GATEWAY_V6, HOST_MAC, PodLink, PodRoute, gateway};
use crate::{
    Error, MacAddress,
    link::LOOPBACK,
    message::{self, Ipv4Conf, VethEnd},
    netlink::Request,
    sysctl,
};

/// The least MTU with which the kernel runs IPv6 on a link (RFC 8200 section 5).
const IPV6_MIN_MTU: u32 = 1280;

/// The metric of IPv6 host routes. The kernel would take 1024, behind learned routes; a pod on
/// this node goes before whatever a peer says about its address. (IPv4's default is 0.)
pub const HOST_ROUTE_METRIC_V6: u32 = 256;

/// How the node asks for an IPv6 pod's hardware address: for three seconds in all, as with the
/// kernel's own three times in a second's distance (RFC 4861 section 10).
const SOLICITATION_INTERVAL_MS: u64 = 20;
const SOLICITATIONS: u32 = 150;

/// The longest alternative name that the kernel takes (`ALTIFNAMSIZ` - 1).
const MAX_ALTNAME: usize = 127;

/// What the node's side of a pod's link is for IPv4: a router that answers for the gateway, and takes from
/// the pod what the pod may send.
pub(super) const HOST_END_SETTINGS: [(Ipv4Conf, u32); 3] =
    [(Ipv4Conf::Forwarding, 1), (Ipv4Conf::ProxyArp, 1), (Ipv4Conf::RpFilter, 1)];

/// An end of the veth pair, and with it a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Host,
    Pod,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// An alternative name of the host end. May fail.
    AltName(String),
    /// Alias and settings of the host end.
    Identify {
        alias: String,
        no_link_local: bool,
    },
    /// Proxy ARP without the delay of up to 0.8 s that the kernel has by default.
    NoProxyDelay,
    /// The node asks for an IPv6 pod at short intervals, as long as it would at long ones: the
    /// kernel makes the pod listen for that by a task in the background, and the first question
    /// may come before.
    AskOften,
    LoopbackUp,
    LinkUp(End),
    /// The pod's end, where the namespace is a router already: it takes part in that.
    RouterUp,
    Address {
        end: End,
        address: IpAddr,
        length: u8,
    },
    /// The pod's route to its gateway.
    GatewayRoute(IpAddr),
    /// A route of the pod through its gateway.
    PodRoute(PodRoute),
    /// The node's route to the pod.
    HostRoute(IpAddr),
    Neighbour {
        address: IpAddr,
        mac: MacAddress,
    },
}

/// One kernel setting that has no netlink message: the file's path under `/proc/sys/net`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) key: String,
    pub(super) value: u32,
    pub(super) kind: SettingKind,
}

/// What is known of a setting before it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SettingKind {
    /// It mostly has another value.
    Changed,
    /// It mostly has this value already.
    Usual,
    /// It is the namespace's forwarding of a family, which can be asked for without opening it.
    Forwarding(Family),
}

/// Everything that an ADD does, in its order. Each list of operations is one send to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// The pair is made first, alone: only then are its indexes known.
    pub(super) host_name: String,
    pub(super) pod_name: String,
    pub(super) pod_mac: MacAddress,
    pub(super) mtu: u32,
    /// By index, after the creation is acknowledged: by name, in the same send, it would hit a
    /// link that was there before.
    pub(super) identify: Vec<Op>,
    pub(super) host_settings: Vec<Setting>,
    pub(super) pod_settings: Vec<Setting>,
    pub(super) pod: Vec<Op>,
    /// The host end comes up last, and only then takes a route.
    pub(super) host: Vec<Op>,
    /// Whether the pod has an IPv6 address.
    pub(super) has_ipv6_pod: bool,
}

/// What only the creation tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Indexes {
    pub(super) host: u32,
    pub(super) pod: u32,
}

impl Plan {
    /// `ipv6`: whether the node's kernel runs IPv6.
    pub(super) fn new(link: &PodLink, ipv6: bool) -> Result<Self, Error> {
        if let Some(address) = link.addresses.iter().find(|ip| ip.is_ipv6()) {
            if !ipv6 {
                return Err(Error::NoIpv6(*address));
            }
            if link.mtu < IPV6_MIN_MTU {
                return Err(Error::MtuTooSmall { mtu: link.mtu });
            }
        }
        let host_name = link.host_ifname();
        let ipv6 = ipv6 && link.mtu >= IPV6_MIN_MTU;
        let alias = LinkAlias::new(&link.attachment, link.sequence).to_string();
        let mut identify = vec![Op::Identify { alias, no_link_local: ipv6 }, Op::NoProxyDelay];
        let has_ipv6_pod = link.families().any(|family| family == Family::V6);
        if has_ipv6_pod {
            identify.push(Op::AskOften);
        }
        identify.extend(link.pod_name.clone().filter(|name| is_altname(name)).map(Op::AltName));
        Ok(Self {
            identify,
            host_settings: host_settings(link, &host_name, ipv6),
            pod_settings: pod_settings(link),
            pod: pod_ops(link),
            host: host_ops(link),
            host_name,
            pod_name: link.attachment.ifname.clone(),
            pod_mac: link.pod_mac(),
            mtu: link.mtu,
            has_ipv6_pod,
        })
    }

    /// The namespace is a router of IPv4 for other links, and stays one.
    pub(super) fn leave_router(&mut self) {
        let up = self.pod.iter_mut().filter(|op| **op == Op::LinkUp(End::Pod));
        up.for_each(|op| *op = Op::RouterUp);
    }

    /// The request that makes the pair.
    pub(super) fn create(&self, pod_netns: RawFd) -> Request {
        let host = VethEnd { name: &self.host_name, mac: HOST_MAC, mtu: self.mtu };
        let pod = VethEnd { name: &self.pod_name, mac: self.pod_mac, mtu: self.mtu };
        message::create_veth(&host, &pod, pod_netns)
    }

    /// The creation in the words of `ip`.
    pub(super) fn create_text(&self) -> String {
        format!(
            "link add {} address {HOST_MAC} mtu {} type veth peer {} address {} netns POD",
            self.host_name, self.mtu, self.pod_name, self.pod_mac
        )
    }
}

fn setting(key: String, value: u32, kind: SettingKind) -> Setting {
    Setting { key, value, kind }
}

/// A pod that may send raw packets could otherwise make itself the node's IPv6 router by a router
/// advertisement, on nodes without IPv6 pods too.
fn host_settings(link: &PodLink, name: &str, ipv6: bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    if link.families().any(|family| family == Family::V6) {
        settings.push(setting(format!("ipv6/conf/{name}/disable_ipv6"), 0, SettingKind::Usual));
    }
    if ipv6 {
        settings.push(setting(format!("ipv6/conf/{name}/accept_ra"), 0, SettingKind::Changed));
    }
    settings
}

/// A new namespace takes over the initial one's IPv4 settings, a router's; a pod is none.
fn pod_settings(link: &PodLink) -> Vec<Setting> {
    let forwarding =
        |family, key: &str| setting(key.to_owned(), 0, SettingKind::Forwarding(family));
    let name = &link.attachment.ifname;
    let mut settings = vec![forwarding(Family::V4, "ipv4/ip_forward")];
    if link.families().any(|family| family == Family::V6) {
        settings.push(forwarding(Family::V6, "ipv6/conf/all/forwarding"));
        settings.push(setting(format!("ipv6/conf/{name}/disable_ipv6"), 0, SettingKind::Usual));
        settings.push(setting(format!("ipv6/conf/{name}/accept_ra"), 0, SettingKind::Changed));
    }
    settings
}

fn pod_ops(link: &PodLink) -> Vec<Op> {
    let mut ops = vec![Op::LoopbackUp];
    ops.extend(link.addresses.iter().map(|address| Op::Address {
        end: End::Pod,
        address: *address,
        length: Family::of(*address).bits(),
    }));
    ops.push(Op::LinkUp(End::Pod));
    for family in link.families() {
        let gateway = gateway(family);
        if family == Family::V4 {
            ops.push(Op::GatewayRoute(gateway));
        }
        let of_family = |route: &PodRoute| route.destination.family() == family;
        ops.extend(link.routes().into_iter().filter(of_family).map(Op::PodRoute));
        ops.push(Op::Neighbour { address: gateway, mac: HOST_MAC });
    }
    ops
}

fn host_ops(link: &PodLink) -> Vec<Op> {
    let mut ops = vec![Op::LinkUp(End::Host)];
    if link.families().any(|family| family == Family::V6) {
        // Without it the node could not ask for the pod's hardware address for three seconds.
        ops.push(Op::Address { end: End::Host, address: GATEWAY_V6.into(), length: 64 });
    }
    ops.extend(link.addresses.iter().map(|address| Op::HostRoute(*address)));
    ops
}

fn is_altname(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
    let is_legal = (1..=MAX_ALTNAME).contains(&name.len()) && name.bytes().all(legal);
    is_legal && !is_vlan_name(name)
}

/// Whether a VLAN's interface may be meant to have this name, such as `bond0.100`: pod `bond0` in the namespace
/// `100` would take it, as names of interfaces and alternative names must differ from each other.
fn is_vlan_name(name: &str) -> bool {
    /// `IFNAMSIZ` - 1.
    const LONGEST: usize = 15;
    let is_number =
        |text: &str| (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    name.len() <= LONGEST && name.rsplit_once('.').is_some_and(|(_, number)| is_number(number))
}

impl Op {
    /// The request, now that the links' indexes are known.
    pub(super) fn request(&self, indexes: Indexes) -> Request {
        let index = |end: &End| match end {
            End::Host => indexes.host,
            End::Pod => indexes.pod,
        };
        match self {
            Self::AltName(name) => message::altname(indexes.host, name, true),
            Self::Identify { alias, no_link_local } => {
                let attributes = vec![
                    LinkAttribute::IfAlias(alias.clone()),
                    message::af_spec(&HOST_END_SETTINGS, *no_link_local),
                ];
                message::set_link(indexes.host, attributes)
            }
            Self::NoProxyDelay => message::set_proxy_delay(indexes.host, 0),
            Self::AskOften => message::set_solicitations(
                Family::V6,
                indexes.host,
                SOLICITATION_INTERVAL_MS,
                SOLICITATIONS,
            ),
            Self::LoopbackUp => message::set_link_up(LOOPBACK, true, Vec::new()),
            Self::LinkUp(End::Host) => message::set_link_up(indexes.host, true, Vec::new()),
            Self::LinkUp(End::Pod) => {
                let not_a_router = message::af_spec(&[(Ipv4Conf::Forwarding, 0)], false);
                message::set_link_up(indexes.pod, true, vec![not_a_router])
            }
            Self::RouterUp => message::set_link_up(indexes.pod, true, Vec::new()),
            Self::Address { end, address, length } => {
                message::add_address(index(end), *address, *length)
            }
            Self::GatewayRoute(gateway) => {
                message::add_route(message::link_route(Prefix::host(*gateway), indexes.pod, None))
            }
            Self::PodRoute(route) => message::add_route(pod_route(route, indexes.pod)),
            Self::HostRoute(address) => message::add_route(host_route(*address, indexes.host)),
            Self::Neighbour { address, mac } => message::add_neighbour(indexes.pod, *address, *mac),
        }
    }
}

pub(super) fn pod_route(route: &PodRoute, index: u32) -> RouteMessage {
    let gateway = gateway(route.destination.family());
    let mut message = message::link_route(route.destination, index, Some(gateway));
    message.attributes.extend(route.priority.map(RouteAttribute::Priority));
    message.attributes.extend(message::route_metrics(route.mtu, route.advmss));
    message
}

pub(super) fn host_route(address: IpAddr, index: u32) -> RouteMessage {
    let mut route = message::link_route(Prefix::host(address), index, None);
    if address.is_ipv6() {
        route.attributes.push(RouteAttribute::Priority(HOST_ROUTE_METRIC_V6));
    }
    route
}

impl Setting {
    /// Applies it in the calling thread's namespace.
    pub(super) fn apply(&self) -> Result<(), Error> {
        match self.kind {
            SettingKind::Usual => sysctl::ensure(&self.key, self.value).map(drop),
            SettingKind::Changed | SettingKind::Forwarding(_) => sysctl::set(&self.key, self.value),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "HOST",
            Self::Pod => "POD",
        })
    }
}

impl fmt::Display for Op {
    /// In the words of `ip`, with HOST and POD for the two ends.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AltName(name) => write!(f, "link property add dev HOST altname {name}"),
            Self::Identify { alias, no_link_local } => {
                write!(f, "link set HOST alias {alias} forwarding 1 proxy_arp 1 rp_filter 1")?;
                if *no_link_local { f.write_str(" addrgenmode none") } else { Ok(()) }
            }
            Self::NoProxyDelay => {
                f.write_str("ntable change name arp_cache dev HOST proxy_delay 0")
            }
            Self::AskOften => write!(
                f,
                "ntable change name ndisc_cache dev HOST retrans {SOLICITATION_INTERVAL_MS} \
                 mcast_probes {SOLICITATIONS}"
            ),
            Self::LoopbackUp => f.write_str("link set lo up"),
            Self::LinkUp(End::Host) => f.write_str("link set HOST up"),
            Self::LinkUp(End::Pod) => f.write_str("link set POD up forwarding 0"),
            Self::RouterUp => f.write_str("link set POD up"),
            Self::Address { end, address, length } => {
                write!(f, "address add {address}/{length} dev {end}")?;
                if address.is_ipv6() { f.write_str(" nodad") } else { Ok(()) }
            }
            Self::GatewayRoute(gateway) => {
                write!(f, "route add {} dev POD scope link", Prefix::host(*gateway))
            }
            Self::PodRoute(PodRoute { destination, priority, mtu, advmss }) => {
                let gateway = gateway(destination.family());
                write!(f, "route add {destination} via {gateway} dev POD")?;
                for (word, value) in [("metric", priority), ("mtu", mtu), ("advmss", advmss)] {
                    if let Some(value) = value {
                        write!(f, " {word} {value}")?;
                    }
                }
                Ok(())
            }
            Self::HostRoute(address) => {
                write!(f, "route add {} dev HOST scope link", Prefix::host(*address))
            }
            Self::Neighbour { address, mac } => {
                write!(f, "neighbour replace {address} lladdr {mac} dev POD nud permanent")
            }
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net/{} = {}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests;
