//! The node's routes: those learned by BGP, and an unreachable one for each block that it owns.
//!
//! All have our protocol number; learned ones have a metric that is ours alone, so that a REPLACE
//! never takes over somebody else's route. They are plain gateway routes (and `RTA_MULTIPATH` for
//! several next hops), which outlive a flap of the carrier, or name a nexthop object, which one message
//! changes for all of them.

mod change;
mod object;
mod resolve;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub use change::FibChange;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteScope, RouteType},
};
use nix::errno::Errno;
pub use object::{Group, Object, ObjectChange, ObjectId};
pub use resolve::Resolved;
use twill_types::{Family, Prefix, is_host_link_name};

use crate::{
    Error, KernelError, Link, NextHop, message,
    message::RouteFilter,
    netlink::{Request, Socket},
    route::Route,
    sysctl,
};

/// The metric of the routes of owned blocks: the highest there is, so that the host routes of the
/// pods inside, delegated blocks and connected networks all go before.
pub const BLOCK_METRIC: u32 = u32::MAX;

/// Settings of the [`Fib`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FibConfig {
    /// The metric of learned routes, which no one else on the node may use.
    pub metric: u32,
}

impl Default for FibConfig {
    fn default() -> Self {
        Self { metric: 512 }
    }
}

/// A learned route. Two are equal if the kernel would hold the same for both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedRoute {
    /// Where it leads.
    pub prefix: Prefix,
    /// The way there.
    pub via: Via,
    /// The source address for packets that this node itself sends.
    pub source: Option<IpAddr>,
}

/// How a learned route says where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// By its own next hops; several share the traffic (ECMP).
    Hops(Arc<BTreeSet<NextHop>>),
    /// By a group of nexthop objects.
    Object(ObjectId),
}

/// Whether the kernel spells out the next hops of routes by nexthop object in lists and events (its
/// `nexthop_compat_mode`); then it also has a message for each route of a group that is replaced. In the
/// calling thread's namespace. Answers what it was before, if that was something else.
pub fn set_compat(on: bool) -> Result<Option<bool>, Error> {
    let before = sysctl::ensure("ipv4/nexthop_compat_mode", on.into())?;
    Ok(before.map(|before| before != 0))
}

/// The kernel's main routing table, as far as it is ours.
#[derive(Debug)]
pub struct Fib {
    socket: Socket,
    config: FibConfig,
}

impl Fib {
    /// Opens it in the calling thread's namespace. Nothing is changed yet.
    pub fn open(config: FibConfig) -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()?, config })
    }

    /// The learned routes that are in the kernel, to be adopted at a start.
    pub fn learned(&mut self) -> Result<BTreeMap<Prefix, LearnedRoute>, Error> {
        let metric = self.config.metric;
        let is_present = |route: &Route| is_learned(route, metric) && route.metric == metric;
        let learned = self.ours()?.into_iter().filter(is_present);
        Ok(learned
            .map(|Route { prefix, next_hops, source, object, .. }| {
                let via = match object.and_then(ObjectId::new) {
                    Some(object) => Via::Object(object),
                    None => Via::Hops(Arc::new(next_hops)),
                };
                (prefix, LearnedRoute { prefix, via, source })
            })
            .collect())
    }

    /// The links, but for those of pods, that carry nothing: down, or without a carrier.
    pub fn dead_links(&mut self) -> Result<BTreeSet<u32>, Error> {
        let dead = |link: &Link| !link.up || !link.carrier;
        let links = self.socket.all_links()?.into_iter();
        let links = links.filter(|link| !is_host_link_name(&link.name) && !link.is_doomed());
        Ok(links.filter(dead).map(|link| link.index).collect())
    }

    /// Makes the changes, in order; answers those that the kernel refused. A route to delete that
    /// has gone is no error.
    pub fn apply(&mut self, changes: &[FibChange]) -> Result<Vec<(Prefix, KernelError)>, Error> {
        let metric = self.config.metric;
        let write = |change: &FibChange, request: &mut _| wire::write(change, metric, request);
        let errors = self.socket.run_each(changes, write)?;
        let refused = errors.into_iter().filter_map(|(index, error)| {
            let change = changes.get(index)?;
            let gone = matches!(change, FibChange::Delete(_)) && error.errno == Errno::ESRCH;
            (!gone).then_some((change.prefix(), error))
        });
        Ok(refused.collect())
    }

    /// Removes learned routes of another metric than the present one, which a process before has left:
    /// with a lower one they would win for ever. Answers how many there were.
    pub fn remove_former(&mut self) -> Result<usize, Error> {
        let metric = self.config.metric;
        let mut former = self.ours()?;
        former.retain(|route| is_learned(route, metric) && route.metric != metric);
        let write = |route: &Route, request: &mut _| {
            wire::write(&FibChange::Delete(route.prefix), route.metric, request);
        };
        // What somebody else has removed meanwhile is gone as well.
        self.socket.run_each(&former, write)?;
        Ok(former.len())
    }

    /// The blocks that have their unreachable route.
    pub fn blocks(&mut self) -> Result<BTreeSet<Prefix>, Error> {
        let ours = self.ours()?.into_iter().filter(is_block);
        Ok(ours.map(|route| route.prefix).collect())
    }

    /// Makes the unreachable routes of owned blocks be exactly those of `blocks`: addresses that no
    /// pod has are refused here, instead of going back to the router that sent them. Answers those
    /// that the kernel refused.
    pub fn sync_blocks(&mut self, blocks: &[Prefix]) -> Result<Vec<(Prefix, KernelError)>, Error> {
        let desired: BTreeSet<Prefix> = blocks.iter().copied().collect();
        let actual = self.blocks()?;
        let missing = desired.difference(&actual).map(|block| {
            let message = RouteNetlinkMessage::NewRoute(block_route(*block));
            (*block, Request { message, flags: NLM_F_CREATE | NLM_F_EXCL })
        });
        let surplus = actual
            .difference(&desired)
            .map(|block| (*block, RouteNetlinkMessage::DelRoute(block_route(*block)).into()));
        let (prefixes, requests): (Vec<_>, Vec<_>) = missing.chain(surplus).unzip();
        let replies = self.socket.run(requests)?;
        let settled = |e: &KernelError| matches!(e.errno, Errno::EEXIST | Errno::ESRCH);
        let refused = prefixes.into_iter().zip(replies).filter_map(|(prefix, reply)| {
            Some((prefix, reply.error.filter(|error| !settled(error))?))
        });
        Ok(refused.collect())
    }

    /// The port number that marks the kernel's events about changes of this `Fib`.
    #[cfg(feature = "watch")]
    pub fn port(&self) -> Result<u32, Error> {
        self.socket.port()
    }

    fn ours(&mut self) -> Result<Vec<Route>, Error> {
        let filter = RouteFilter { ours: true, link: None };
        let mut routes = self.socket.routes(Family::V4, filter)?;
        routes.extend(self.socket.routes(Family::V6, filter)?);
        Ok(routes)
    }
}

/// Whether a route is a learned one, also by a metric of a process before. Host routes of pods have our
/// protocol number, too, and lead to a link without a router.
fn is_learned(route: &Route, metric: u32) -> bool {
    let by_router =
        route.object.is_some() || route.next_hops.iter().any(|hop| hop.gateway.is_some());
    route.ours && route.kind == RouteType::Unicast && (route.metric == metric || by_router)
}

fn is_block(route: &Route) -> bool {
    route.ours && route.kind == RouteType::Unreachable && route.metric == BLOCK_METRIC
}

fn block_route(block: Prefix) -> RouteMessage {
    let mut message = message::route(block, RouteType::Unreachable, RouteScope::Universe);
    message.attributes.push(RouteAttribute::Priority(BLOCK_METRIC));
    message
}
