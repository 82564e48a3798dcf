//! Which pods the kernel knows of: what the store is rebuilt from.

use std::net::IpAddr;

use twill_types::{
    Alias, AttachmentId, Family, LinkAlias, LivingPod, host_link_name, is_host_link_name,
};

use crate::{Error, Link, message::RouteFilter, netlink::Socket, route::Route};

/// A host end that Twill made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPodLink {
    /// The link.
    pub link: Link,
    /// Whose it is; `None` if the ADD that made it died before it could say so, or somebody overwrote it.
    pub alias: Option<LinkAlias>,
    /// The addresses that the node routes to it.
    pub addresses: Vec<IpAddr>,
}

impl FoundPodLink {
    /// The pod, if its link is in use and says whose it is. Addresses that no store of ours gave are
    /// none of its business.
    fn pod(&self) -> Option<LivingPod> {
        let alias = self.alias.as_ref()?;
        let Alias::Full(attachment) = &alias.owner else {
            return None;
        };
        let in_use = self.link.up && !self.addresses.is_empty();
        (in_use && alias.sequence != LinkAlias::WITHOUT_STORE).then(|| LivingPod {
            attachment: attachment.clone(),
            sequence: alias.sequence,
            addresses: self.addresses.clone(),
            pod: self.link.altnames.iter().find_map(|name| pod_of(name)),
        })
    }
}

/// `<pod>.<namespace>`, as an alternative name has it, in the way of records.
fn pod_of(name: &str) -> Option<String> {
    let (pod, namespace) = name.rsplit_once('.')?;
    Some(format!("{namespace}/{pod}"))
}

/// The host ends of pods, without those that only wait to be deleted: by their alias, or by their name where
/// they have none, or where somebody has overwritten it ([`Link::is_overwritten`]). One dump of the kernel.
pub fn host_links() -> Result<Vec<Link>, Error> {
    ours(&mut Socket::open()?)
}

/// The host end of this attachment's link, as [`host_links`] has it: whatever its alias says. No dump.
pub fn host_link(attachment: &AttachmentId) -> Result<Option<Link>, Error> {
    let found = Socket::open()?.link_by_name(&host_link_name(attachment))?;
    Ok(found.filter(|link| !link.is_doomed()))
}

fn ours(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    socket.links(|link| {
        !link.is_doomed() && (link.twill_alias().is_some() || is_host_link_name(&link.name))
    })
}

/// The host ends of pods with the addresses that the node routes to each.
pub fn pod_links() -> Result<Vec<FoundPodLink>, Error> {
    let mut socket = Socket::open()?;
    let links = ours(&mut socket)?;
    let mut routes: Vec<Route> = Vec::new();
    for family in [Family::V4, Family::V6] {
        routes.extend(socket.routes(family, RouteFilter { ours: true, link: None })?);
    }
    let found = links.into_iter().map(|link| FoundPodLink {
        alias: link.twill_alias(),
        addresses: host_routes(&routes, link.index),
        link,
    });
    Ok(found.collect())
}

/// The pods of all links that are in use.
pub fn living_pods() -> Result<Vec<LivingPod>, Error> {
    Ok(pod_links()?.iter().filter_map(FoundPodLink::pod).collect())
}

/// The addresses that these routes lead to directly behind a link.
pub(super) fn host_routes(routes: &[Route], index: u32) -> Vec<IpAddr> {
    let host_route = |route: &&Route| {
        route.prefix.length() == route.prefix.family().bits()
            && route.next_hops.iter().any(|hop| hop.ifindex == index && hop.gateway.is_none())
    };
    routes.iter().filter(host_route).map(|route| route.prefix.address()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_may_have_dots_and_its_namespace_has_none() {
        assert_eq!(pod_of("web-1.prod").as_deref(), Some("prod/web-1"));
        assert_eq!(pod_of("web.v2.prod").as_deref(), Some("prod/web.v2"));
        assert_eq!(pod_of("eth5"), None);
    }
}
