//! What there is on a host that decides whether pods' packets get through, and that others decide about:
//! read, and never changed.

mod forward;
mod legacy;

use std::{collections::BTreeSet, net::IpAddr};

pub use forward::{DroppingChain, dropping_chains};
pub use legacy::has_old_tables;
use nix::errno::Errno;
use twill_types::Family;

use crate::{
    Error,
    netlink::{RawRequest, Socket, push_attribute},
    sysctl,
};

/// A link by which the node reaches others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it takes IPv4 packets only if the way back to their source leads out of it.
    pub strict_source_check: bool,
}

/// The settings of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The families of which it forwards packets.
    pub forwards: Vec<Family>,
    /// Whether the kernel runs IPv6 at all (it does not with `ipv6.disable=1`).
    pub has_ipv6: bool,
    /// `net.ipv4.conf.all.rp_filter`.
    pub source_check: u32,
    /// Of those asked for, the ones that exist.
    pub uplinks: Vec<Uplink>,
    /// Of those asked for, the ones that a link has which is up.
    pub addresses: Vec<IpAddr>,
    /// Whether the kernel has nexthop objects (Linux 5.3).
    pub nexthop_objects: bool,
}

/// Whether a link takes IPv4 packets only if the way back to their source leads out of it, by the `rp_filter` of
/// all links and its own: the kernel goes by the higher one, and 2 is loose.
pub fn is_strict(all: u32, link: u32) -> bool {
    const STRICT: u32 = 1;
    all.max(link) == STRICT
}

/// Reads the settings of the namespace that the calling thread is in.
pub fn look(uplinks: &BTreeSet<u32>, addresses: &[IpAddr]) -> Result<HostFacts, Error> {
    const ALL: &str = "ipv4/conf/all/rp_filter";
    let mut socket = Socket::open()?;
    let mut facts = HostFacts { has_ipv6: sysctl::has_ipv6(), ..HostFacts::default() };
    for family in [Family::V4, Family::V6] {
        if (family == Family::V4 || facts.has_ipv6) && socket.forwards(family)? {
            facts.forwards.push(family);
        }
    }
    let failed = |source| Error::SysctlRead { path: format!("/proc/sys/net/{ALL}").into(), source };
    facts.source_check = sysctl::read(ALL).map_err(failed)?.unwrap_or_default();
    for index in uplinks {
        if let Some(link) = socket.link(*index)? {
            facts.uplinks.push(Uplink {
                strict_source_check: is_strict(facts.source_check, link.source_check()),
                name: link.name,
                mtu: link.mtu,
            });
        }
    }
    for found in socket.addresses(0)?.into_iter().filter(|found| addresses.contains(&found.ip)) {
        if socket.link(found.ifindex)?.is_some_and(|link| link.up) {
            facts.addresses.push(found.ip);
        }
    }
    facts.nexthop_objects = has_nexthop_objects(&mut socket)?;
    Ok(facts)
}

/// Asks for an object that cannot be there.
fn has_nexthop_objects(socket: &mut Socket) -> Result<bool, Error> {
    const RTM_GETNEXTHOP: u16 = 106;
    /// `struct nhmsg` of `linux/nexthop.h`.
    const HEADER: usize = 8;
    const NHA_ID: u16 = 1;
    let mut payload = vec![0; HEADER];
    push_attribute(&mut payload, NHA_ID, &u32::MAX.to_ne_bytes());
    let request = RawRequest { kind: RTM_GETNEXTHOP, flags: 0, payload };
    let reply = socket.run_raw(&[request])?.pop().unwrap_or_default();
    Ok(reply.error.is_none_or(|error| error.errno == Errno::ENOENT))
}
