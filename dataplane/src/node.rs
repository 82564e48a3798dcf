//! The node's own part: the route to the pods' gateway, forwarding, and facts about its links.

use std::{
    fs,
    io::{self, ErrorKind::NotFound},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::errno::Errno;
use twill_types::{Family, Prefix};

use crate::{
    Error, Link,
    link::LOOPBACK,
    message,
    netlink::Socket,
    pod::{GATEWAY_V4, gateway},
    sysctl,
};

/// Makes `169.254.1.1/32 dev lo`, without which proxy ARP is silent on a node that has no default
/// route; answers whether it had to. The uplink does not answer for it: it has no proxy ARP.
pub fn ensure_gateway() -> Result<bool, Error> {
    let prefix = Prefix::host(gateway(Family::V4));
    let mut socket = Socket::open()?;
    let route = message::add_route(message::link_route(prefix, LOOPBACK, None));
    let reply = socket.one(route)?;
    if reply.error.as_ref().is_none_or(|error| error.errno != Errno::EEXIST) {
        return reply.check(format_args!("route add {prefix} dev lo scope link")).map(|()| true);
    }
    let entry = socket.route_entry(prefix.address())?;
    match entry.as_ref().and_then(|route| route.next_hops.first()) {
        Some(hop) if hop.ifindex != LOOPBACK => {
            let link = socket.link_name(hop.ifindex)?;
            Err(Error::GatewayTaken { gateway: GATEWAY_V4.into(), link })
        }
        _ => Ok(false),
    }
}

/// A kernel setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysctlChange {
    /// The file, relative to `/proc/sys`.
    pub key: String,
    /// What it was.
    pub before: u32,
    /// What it is now.
    pub after: u32,
}

/// Makes the node a router for a family. `tell` hears of each setting that was changed for it, also of those before one
/// that cannot be changed. A kernel without IPv6 has nothing to change for it.
///
/// With IPv6 forwarding the kernel stops listening to router advertisements, and the node would
/// lose a default route that it has from one. So each link that listens now is told to go on
/// (`accept_ra` = 2) first.
pub fn ensure_forwarding(family: Family, mut tell: impl FnMut(SysctlChange)) -> Result<(), Error> {
    let mut ensure = |key: &str, after: u32| -> Result<(), Error> {
        if let Some(before) = sysctl::ensure(key, after)? {
            tell(SysctlChange { key: format!("net/{key}"), before, after });
        }
        Ok(())
    };
    if family == Family::V4 {
        return ensure("ipv4/ip_forward", 1);
    }
    const FORWARDING: &str = "ipv6/conf/all/forwarding";
    match sysctl::read(FORWARDING) {
        // There is no IPv6 (`ipv6.disable=1`).
        Ok(None) => return Ok(()),
        Ok(Some(1)) => {}
        _ => {
            for link in links_that_listen_to_routers()? {
                match ensure(&format!("ipv6/conf/{link}/accept_ra"), 2) {
                    // The link has gone meanwhile, as links of pods do all the time.
                    Err(Error::Sysctl { source, .. }) if source.kind() == NotFound => {}
                    done => done?,
                }
            }
        }
    }
    ensure(FORWARDING, 1)
}

fn links_that_listen_to_routers() -> Result<Vec<String>, Error> {
    let directory = "/proc/sys/net/ipv6/conf";
    let failed = |source: io::Error| Error::Sysctl { path: directory.into(), value: 2, source };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        // Not the defaults: they are for links that do not exist yet, pods' among them.
        let is_link = !matches!(name.as_str(), "all" | "default" | "lo");
        if is_link && sysctl::read(&format!("ipv6/conf/{name}/accept_ra")).ok() == Some(Some(1)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The link that has this address; `None` if the node does not have it.
pub fn link_for_address(address: IpAddr) -> Result<Option<Link>, Error> {
    let mut socket = Socket::open()?;
    let addresses = socket.addresses(0)?;
    match addresses.into_iter().find(|found| found.ip == address) {
        Some(found) => socket.link(found.ifindex),
        None => Ok(None),
    }
}

/// The length of the prefix that an address has on its link; `None` if the node does not have it.
pub fn prefix_length(address: IpAddr) -> Result<Option<u8>, Error> {
    let addresses = Socket::open()?.addresses(0)?;
    Ok(addresses.into_iter().find(|found| found.ip == address).map(|found| found.length))
}

/// The MTU in bytes that pods should have: that of the link with the first of the node's addresses
/// that is on one (`lo` does not count), or else of the links towards the world, in IPv4 or without
/// a route there in IPv6; 1500 if there are none. A route that rejects or drops leads nowhere.
pub fn uplink_mtu(node_ips: impl IntoIterator<Item = IpAddr>) -> Result<u32, Error> {
    /// TEST-NET-1 (RFC 5737) and its like (RFC 3849): routed as the world is, and nothing is sent.
    const WORLD: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    ];
    const ETHERNET: u32 = 1500;
    /// The kernel's answers for routes of the kinds prohibit, blackhole and throw.
    const NOWHERE: [Errno; 3] = [Errno::EACCES, Errno::EINVAL, Errno::EAGAIN];
    for address in node_ips {
        match link_for_address(address)? {
            Some(link) if link.index != LOOPBACK => return Ok(link.mtu),
            _ => {}
        }
    }
    let mut socket = Socket::open()?;
    for address in WORLD {
        if address.is_ipv6() && !sysctl::has_ipv6() {
            continue;
        }
        let entry = match socket.route_entry(address) {
            Err(error) if error.errno().is_some_and(|errno| NOWHERE.contains(&errno)) => None,
            entry => entry?,
        };
        let mut mtu = None;
        for hop in entry.into_iter().flat_map(|route| route.next_hops) {
            if hop.ifindex != LOOPBACK {
                let found = socket.link(hop.ifindex)?.map(|link| link.mtu);
                // What a pod sends may leave by each of them.
                mtu = [mtu, found].into_iter().flatten().min();
            }
        }
        if let Some(mtu) = mtu {
            return Ok(mtu);
        }
    }
    Ok(ETHERNET)
}
