//! Which pods the kernel knows of: what the store is rebuilt from.

use std::net::IpAddr;

use twill_types::{Family, LinkAlias};

use crate::{Error, Link, message::RouteFilter, netlink::Socket, route::Route};

/// A host end that Twill made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPodLink {
    /// The link.
    pub link: Link,
    /// Whose it is; `None` if the ADD that made it died before it could say so.
    pub alias: Option<LinkAlias>,
    /// The addresses that the node routes to it.
    pub addresses: Vec<IpAddr>,
}

/// The host ends of pods, without those that only wait to be deleted.
pub fn pod_links() -> Result<Vec<FoundPodLink>, Error> {
    let mut socket = Socket::open()?;
    let links = socket.links(true)?;
    let mut routes: Vec<Route> = Vec::new();
    for family in [Family::V4, Family::V6] {
        routes.extend(socket.routes(family, RouteFilter { ours: true, link: None })?);
    }
    let ours = |link: &Link| {
        !link.is_doomed()
            && (link.twill_alias().is_some()
                || link.alias.is_none() && link.name.starts_with(HOST_LINK_PREFIX))
    };
    let found = links.into_iter().filter(ours).map(|link| {
        let host_route = |route: &&Route| {
            route.prefix.length() == route.prefix.family().bits()
                && route
                    .next_hops
                    .iter()
                    .any(|hop| hop.ifindex == link.index && hop.gateway.is_none())
        };
        let addresses = routes.iter().filter(host_route).map(|r| r.prefix.address()).collect();
        FoundPodLink { alias: link.twill_alias(), addresses, link }
    });
    Ok(found.collect())
}

/// How the names of host ends begin.
const HOST_LINK_PREFIX: &str = "twl";
