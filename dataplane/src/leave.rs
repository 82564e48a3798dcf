//! Twill leaves a node: all that it has put into the kernel goes.
//!
//! Settings of the whole namespace stay as they are, forwarding for one: whoever gives pods a network next
//! needs them, too.

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteScope},
};
use nix::errno::Errno;
use twill_types::Family;

use crate::{
    Error,
    fib::{Fib, FibConfig, Object, ObjectChange},
    message::{self, RouteFilter},
    nat::{Masquerade, Nat},
    netlink::{Request, Socket},
    pod::{delete_group_links, host_links, remove_leftover},
    route::Route,
};

/// How many links go at once: nobody waits for the kernel's lock any more.
const BATCH: usize = 100;

/// What there was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Host ends of pods.
    pub links: usize,
    /// Nexthop objects.
    pub objects: usize,
    /// Routes of pods, blocks and peers, but for those that went with links and objects.
    pub routes: usize,
}

/// Removes links, nexthop objects, routes and the table of nftables in the calling thread's namespace. Nobody
/// else of Twill may be at work there.
pub fn remove_all() -> Result<Removed, Error> {
    // A link with somebody else's alias may be somebody else's.
    for link in host_links()?.iter().filter(|link| !link.is_overwritten()) {
        remove_leftover(link)?;
    }
    let links = delete_group_links(BATCH, || true)?;
    let objects = remove_objects()?;
    let routes = remove_routes()?;
    Nat::open()?.apply(&Masquerade::default())?;
    Ok(Removed { links, objects, routes })
}

fn remove_objects() -> Result<usize, Error> {
    let mut fib = Fib::open(FibConfig::default())?;
    let found = fib.objects()?;
    // A group takes its routes along, a hop only itself.
    let is_group = |object: &Object| matches!(object, Object::Group(_));
    let (groups, hops): (Vec<_>, Vec<_>) = found.iter().partition(|(_, object)| is_group(object));
    let deletes: Vec<_> =
        groups.into_iter().chain(hops).map(|(id, _)| ObjectChange::Delete(*id)).collect();
    match fib.apply_objects(&deletes)?.into_iter().next() {
        Some((id, error)) => Err(Error::kernel(format_args!("nexthop del id {id}"), error)),
        None => Ok(deletes.len()),
    }
}

fn remove_routes() -> Result<usize, Error> {
    let mut socket = Socket::open()?;
    let filter = RouteFilter { ours: true, link: None };
    let mut routes = socket.routes(Family::V4, filter)?;
    routes.extend(socket.routes(Family::V6, filter)?);
    routes.retain(|route| route.ours);
    let replies = socket.run(routes.iter().map(delete))?;
    for (route, reply) in routes.iter().zip(replies) {
        reply.check_except(&[Errno::ESRCH], format_args!("route del {}", route.prefix))?;
    }
    Ok(routes.len())
}

/// Deletes the route of this destination and metric with our protocol number, wherever it leads.
fn delete(route: &Route) -> Request {
    let mut message = message::route(route.prefix, route.kind, RouteScope::NoWhere);
    message.attributes.push(RouteAttribute::Priority(route.metric));
    RouteNetlinkMessage::DelRoute(message).into()
}
