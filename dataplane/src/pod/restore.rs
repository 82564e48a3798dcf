//! Puts back what somebody took from a pod's link on the node's side, while the pod runs.

use std::net::IpAddr;

use nix::errno::Errno;
use twill_types::{LinkAlias, Prefix, is_host_link_name};

use super::{
    GATEWAY_V6, host_links,
    plan::{HOST_END_SETTINGS, host_route},
};
use crate::{
    Error, Link,
    host::is_strict,
    link::Ipv4Settings,
    message,
    netlink::{Request, Socket},
};

/// A host end that says whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEnd {
    link: Link,
    alias: LinkAlias,
}

impl HostEnd {
    /// The host end with this index; `None` if there is none, if it only waits to be deleted, or if the
    /// ADD that makes it is not that far yet.
    pub fn find(ifindex: u32) -> Result<Option<Self>, Error> {
        Ok(Socket::open()?.link(ifindex)?.and_then(Self::of))
    }

    /// All of them.
    pub fn all() -> Result<Vec<Self>, Error> {
        Ok(host_links()?.into_iter().filter_map(Self::of).collect())
    }

    fn of(link: Link) -> Option<Self> {
        let alias = link.twill_alias()?;
        let is_ours = !link.is_doomed() && is_host_link_name(&link.name);
        is_ours.then_some(Self { link, alias })
    }

    /// Its link.
    pub const fn link(&self) -> &Link {
        &self.link
    }

    /// What its alias says.
    pub const fn alias(&self) -> &LinkAlias {
        &self.alias
    }

    /// Whether its source check is loose and its other settings are as the ADD made them: systemd does that to
    /// each new link, a moment after the ADD.
    pub fn is_loosened(&self) -> bool {
        const LOOSE: u32 = 2;
        let loosened = Ipv4Settings { forwarding: 1, proxy_arp: 1, rp_filter: LOOSE };
        self.link.ipv4 == Some(loosened)
    }

    /// Puts back what it lacks, for a pod with these addresses; answers what that was, in the words of
    /// `ip`. A link that is down belongs to an ADD or a DEL under way: it gets its settings alone.
    pub fn restore(&self, addresses: &[IpAddr]) -> Result<Vec<String>, Error> {
        let (name, index) = (&self.link.name, self.link.index);
        let mut steps: Vec<(String, Request)> = Vec::new();
        let lacks_one = |conf: &Ipv4Settings| {
            [conf.forwarding, conf.proxy_arp].contains(&0) || !is_strict(0, conf.rp_filter)
        };
        if self.link.ipv4.as_ref().is_none_or(lacks_one) {
            let attributes = vec![message::af_spec(&HOST_END_SETTINGS, false)];
            steps.push((
                format!("link set {name} forwarding 1 proxy_arp 1 rp_filter 1"),
                message::set_link(index, attributes),
            ));
        }
        // What is there already is refused, which costs less than to look for it in a large table.
        if self.link.up {
            if addresses.iter().any(IpAddr::is_ipv6) {
                let gateway = message::add_address(index, GATEWAY_V6.into(), 64);
                steps.push((format!("address add {GATEWAY_V6}/64 dev {name}"), gateway));
            }
            steps.extend(addresses.iter().map(|ip| {
                let step = format!("route add {} dev {name} scope link", Prefix::host(*ip));
                (step, message::add_route(host_route(*ip, index)))
            }));
        }
        let (texts, requests): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
        let replies = Socket::open()?.run(requests)?;
        let mut done = Vec::new();
        for (text, reply) in texts.into_iter().zip(replies) {
            match reply.error.as_ref().map(|error| error.errno) {
                None => done.push(text),
                // It is there; or the link went down or away, and what was to be put back with it.
                Some(Errno::EEXIST | Errno::ENETDOWN | Errno::ENODEV) => {}
                Some(_) => reply.check(text)?,
            }
        }
        Ok(done)
    }
}
