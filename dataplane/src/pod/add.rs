//! ADD: executes the plan, and takes everything back if a step fails.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use nix::errno::Errno;
use twill_sys::Netns;
use twill_types::{Family, Prefix};

use super::{
    Difference, HOST_MAC, PodLink, PodRoute, behind, check_pod,
    del::clear_rules,
    plan::{Indexes, Op, Plan, Setting, SettingKind},
};
use crate::{
    Error, MacAddress,
    link::{LOOPBACK, Link, Owner},
    message,
    netlink::{Reply, Socket},
    sysctl,
};

/// A pod's link as it is, for the answer to the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLinkUp {
    /// The host end's name.
    pub host_ifname: String,
    /// The host end's index on the node.
    pub host_ifindex: u32,
    /// The host end.
    pub host: Hardware,
    /// The pod end.
    pub pod: Hardware,
    /// The metrics of routes that another link had before: default routes, and those to the same destination.
    pub metrics: Vec<(Prefix, u32)>,
}

/// What one end of a link is beneath its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Its hardware address.
    pub mac: MacAddress,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl Hardware {
    /// `None` if the link has a hardware address of another length, as no veth has.
    fn of(link: &Link) -> Option<Self> {
        let mac = MacAddress(link.mac.as_slice().try_into().ok()?);
        Some(Self { mac, mtu: link.mtu })
    }
}

impl PodLinkUp {
    /// The metric that a route without one of its own was given, if it was not left to the kernel.
    pub fn metric(&self, route: &PodRoute) -> Option<u32> {
        let found = self.metrics.iter().find(|(to, _)| *to == route.destination);
        found.map(|(_, metric)| *metric)
    }
}

/// A pod's link that is complete but for the host end, which is down and has no routes: nothing
/// reaches the pod or leaves it. Dropping it removes the link; [`Prepared::activate`] finishes it.
#[derive(Debug)]
pub struct Prepared {
    socket: Socket,
    /// A socket in the pod.
    pod: Socket,
    plan: Plan,
    indexes: Indexes,
    /// The host's end and the pod's.
    ends: [Hardware; 2],
    /// The metrics of routes that another link had before.
    metrics: Vec<(Prefix, u32)>,
    /// The addresses that rules were made for.
    ruled: Vec<IpAddr>,
    /// Whether the link goes if this is dropped: this call has made it, and it is not complete.
    undo: bool,
}

/// The ways to both sides of a link.
#[derive(Debug)]
pub struct Sides {
    node: Socket,
    pod: Socket,
}

impl Sides {
    /// Opens them. Nothing is changed, so there need be no addresses yet.
    ///
    /// Enters the pod's namespace for a moment with the calling thread, see [`Netns::enter`].
    pub fn open(netns: &Netns) -> Result<Self, Error> {
        Ok(Self { node: Socket::open()?, pod: netns.enter(Socket::open)?? })
    }
}

/// Makes the link of a pod up to the point where others (the daemon, policy) have to know of it
/// before traffic flows. The same ADD again finds the link that is there.
///
/// `tell` is told the index of the host's end of a new link as soon as that says whose it is, so that
/// others can prepare for it while the pod's side is made.
///
/// Enters the pod's namespace for a moment with the calling thread, see [`Netns::enter`].
pub fn prepare(
    link: &PodLink,
    netns: &Netns,
    sides: Sides,
    tell: impl FnOnce(u32),
) -> Result<Prepared, Error> {
    let plan = Plan::new(link, sysctl::has_ipv6())?;
    let Sides { node: mut socket, mut pod } = sides;
    let planned = [HOST_MAC, plan.pod_mac].map(|mac| Hardware { mac, mtu: plan.mtu });
    let (indexes, ends, metrics, undo) = match create(&mut socket, &plan, link, netns)? {
        Created::New(indexes) => (indexes, planned, Vec::new(), true),
        Created::Existing(host) => {
            let indexes = Indexes { host: host.index, pod: host.peer.unwrap_or_default() };
            let metrics = behind::look(&mut pod, link, indexes.pod)?;
            // The configuration may be another by now, and a later plugin may have changed them.
            let found = [Some(*host), pod.link(indexes.pod)?].map(|link| Hardware::of(&link?));
            let ends = [0, 1].map(|end| found[end].unwrap_or(planned[end]));
            (indexes, ends, metrics, false)
        }
    };
    let ruled = Vec::new();
    let mut prepared = Prepared { socket, pod, plan, indexes, ends, metrics, ruled, undo };
    if undo && let Err(error) = prepared.set_up(link, netns, tell) {
        return Err(prepared.reason(error));
    }
    Ok(prepared)
}

enum Created {
    New(Indexes),
    /// The same ADD has made it, complete: the host's end.
    Existing(Box<Link>),
}

fn create(
    socket: &mut Socket,
    plan: &Plan,
    link: &PodLink,
    netns: &Netns,
) -> Result<Created, Error> {
    let fd = netns.as_fd().as_raw_fd();
    // The second time, what an earlier ADD left behind is out of the way.
    for last_time in [false, true] {
        let create = plan.create(fd);
        let show = message::get_link_by_name(&plan.host_name);
        let (made, found) = socket.two(create, show)?;
        let found = found.link(&plan.host_name)?;
        let Some(refused) = made.error else {
            match found {
                Some(Link { index: host, peer: Some(pod), .. }) => {
                    return Ok(Created::New(Indexes { host, pod }));
                }
                // Created and deleted by somebody else before it could be looked at.
                _ => break,
            }
        };
        match (refused, found) {
            (error, Some(found)) if error.errno == Errno::EEXIST && !last_time => {
                if is_complete(&found, link, netns)? {
                    return Ok(Created::Existing(Box::new(found)));
                }
                // Rules do not go with the link.
                if let Err(error) = clear_rules(&found, netns) {
                    tracing::warn!(link = found.name, %error, "cannot take away a leftover's rules");
                }
                socket.delete_link(found.index)?;
            }
            // The kernel has taken an earlier ADD's away in between, with its namespace.
            (error, None) if error.errno == Errno::EEXIST && !last_time => {}
            (error, None) if error.errno == Errno::EEXIST => {
                return Err(Error::PodInterfaceTaken {
                    ifname: plan.pod_name.clone(),
                    netns: netns.path().to_owned(),
                });
            }
            (error, _) => return Err(Error::kernel(plan.create_text(), error)),
        }
    }
    Err(Error::LinkTakenAway { name: plan.host_name.clone() })
}

/// Judges a link that has the name of our host end: `true` if it is this very ADD's and complete,
/// `false` if it is a leftover that may be deleted, an error if it is neither.
fn is_complete(found: &Link, link: &PodLink, netns: &Netns) -> Result<bool, Error> {
    let name = || found.name.clone();
    match found.owner(&link.attachment) {
        _ if found.is_doomed() => Ok(false),
        Owner::DeadAdd => Ok(false),
        Owner::Other(alias) | Owner::Overwritten(alias) => {
            Err(Error::HostLinkTaken { name: name(), alias })
        }
        Owner::Add(sequence) if sequence > link.sequence => {
            Err(Error::Superseded { name: name(), found: sequence, wanted: link.sequence })
        }
        Owner::Add(sequence) if sequence < link.sequence => Ok(false),
        // The way to the gateway is the node's, and made good without touching a pod.
        Owner::Add(_) => Ok(check_pod(&link.expected(), netns)?
            .iter()
            .all(|difference| matches!(difference, Difference::GatewayUnrouted(_)))),
    }
}

impl Prepared {
    /// The link, for the answer to the runtime.
    pub fn link(&self) -> PodLinkUp {
        let [host, pod] = self.ends;
        PodLinkUp {
            host_ifname: self.plan.host_name.clone(),
            host_ifindex: self.indexes.host,
            host,
            pod,
            metrics: self.metrics.clone(),
        }
    }

    /// Brings the host end up and routes the pod's addresses to it.
    pub fn activate(mut self) -> Result<PodLinkUp, Error> {
        if self.undo {
            if let Err(error) = self.bring_up() {
                return Err(self.reason(error));
            }
            self.undo = false;
        }
        Ok(self.link())
    }

    fn set_up(
        &mut self,
        link: &PodLink,
        netns: &Netns,
        tell: impl FnOnce(u32),
    ) -> Result<(), Error> {
        tracing::trace!("step: pair of links made");
        self.identify()?;
        tracing::trace!("step: host's side identified and set");
        tell(self.indexes.host);
        let is_router = self.apply_settings(netns)?;
        self.set_up_pod(link, is_router)
    }

    fn bring_up(&mut self) -> Result<(), Error> {
        let replies = run(&mut self.socket, &self.plan.host, self.indexes)?;
        for (op, reply) in self.plan.host.iter().zip(replies) {
            match op {
                Op::HostRoute(address) => {
                    let taken = reply.error.as_ref().is_some_and(|e| e.errno == Errno::EEXIST);
                    if taken {
                        return Err(self.address_in_use(*address)?);
                    }
                    reply.check(op)?;
                }
                _ => reply.check(op)?,
            }
        }
        self.settle_carrier()
    }

    /// Why a step has failed. For a moment a new link does not say whose it is, and looks like one that a dead ADD
    /// has left; another ADD or a DEL may have taken it away.
    fn reason(&mut self, error: Error) -> Error {
        match self.socket.link(self.indexes.host) {
            Ok(found) if found.as_ref().is_none_or(Link::is_doomed) => {
                Error::LinkTakenAway { name: self.plan.host_name.clone() }
            }
            _ => error,
        }
    }

    /// The pod's end, which came up first, got its carrier only now, and until the kernel's link
    /// watch has run it drops what it sends: the pod's first answers. To be asked for the link
    /// makes the kernel do that at once (since 6.9; others do it within milliseconds).
    ///
    /// The host's end, which comes up with its carrier, sends at once. Only its IPv6 begins with the
    /// link watch.
    fn settle_carrier(&mut self) -> Result<(), Error> {
        if self.plan.has_ipv6_pod {
            self.socket.one(message::get_link(self.indexes.host))?;
        }
        self.pod.one(message::get_link(self.indexes.pod)).map(drop)
    }

    fn identify(&mut self) -> Result<(), Error> {
        let replies = run(&mut self.socket, &self.plan.identify, self.indexes)?;
        for (op, reply) in self.plan.identify.iter().zip(replies) {
            match (op, reply.error) {
                (Op::AltName(name), Some(error)) => {
                    tracing::debug!(name, %error, "the pod's name cannot be an alternative name");
                }
                (op, Some(error)) => return Err(Error::kernel(op, error)),
                (_, None) => {}
            }
        }
        self.plan.host_settings.iter().try_for_each(Setting::apply)
    }

    /// Applies the settings of the pod's namespace; answers whether it is a router of IPv4 that has to stay one.
    ///
    /// A namespace in which another link is up has been set up by somebody, and what it forwards is their business.
    /// One without has begun with the IPv4 settings of the node's first namespace, mostly a router's. To write a
    /// setting takes the longer the more namespaces there are, so it is asked for first.
    fn apply_settings(&mut self, netns: &Netns) -> Result<bool, Error> {
        let (forwards_ipv4, links) = self.pod.forwards_between()?;
        let mut is_router = false;
        let mut to_apply = Vec::new();
        for setting in &self.plan.pod_settings {
            let wanted = match setting.kind {
                SettingKind::Forwarding(family) => {
                    let forwards = match family {
                        Family::V4 => forwards_ipv4,
                        Family::V6 => self.pod.forwards(family)?,
                    };
                    let stays = forwards && is_in_use(&mut self.pod, &links, self.indexes.pod)?;
                    is_router |= stays && family == Family::V4;
                    forwards && !stays
                }
                SettingKind::Changed | SettingKind::Usual => true,
            };
            to_apply.extend(wanted.then_some(setting));
        }
        if !to_apply.is_empty() {
            netns.enter(|| to_apply.into_iter().try_for_each(Setting::apply))??;
        }
        Ok(is_router)
    }

    fn set_up_pod(&mut self, link: &PodLink, is_router: bool) -> Result<(), Error> {
        if is_router {
            self.plan.leave_router();
        }
        let replies = run(&mut self.pod, &self.plan.pod, self.indexes)?;
        let behind = behind::families(&self.plan.pod, &replies, self.indexes.pod);
        let mut failed = Vec::new();
        for (op, reply) in self.plan.pod.iter().zip(replies) {
            if reply.error.is_some() && behind::is_done_behind(op, &behind) {
                failed.push(op);
            } else {
                reply.check(op)?;
            }
        }
        let steps = behind::steps(link, &failed, &behind, self.indexes);
        self.metrics = behind::metrics(&failed, &behind);
        if !steps.is_empty() {
            self.ruled.clone_from(&link.addresses);
            let requests: Vec<_> = steps.iter().map(|step| step.request.clone()).collect();
            let replies = self.pod.run(requests)?;
            return replies
                .into_iter()
                .zip(steps)
                .try_for_each(|(reply, step)| reply.check_except(step.accepted, step.text));
        }
        Ok(())
    }

    fn address_in_use(&mut self, address: IpAddr) -> Result<Error, Error> {
        let entry = self.socket.route_entry(address)?;
        let link = match entry.as_ref().and_then(|route| route.next_hops.first()) {
            Some(hop) => self.socket.link_name(hop.ifindex)?,
            None => "another link".to_owned(),
        };
        Ok(Error::AddressInUse { address, link })
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.undo {
            return;
        }
        if !self.ruled.is_empty()
            && let Err(error) = self.pod.run(behind::rules_away(&self.plan.host_name, &self.ruled))
        {
            tracing::warn!(link = self.plan.host_name, %error, "cannot take back a pod's rules");
        }
        if let Err(error) = self.socket.delete_link(self.indexes.host) {
            tracing::warn!(link = self.plan.host_name, %error, "cannot take back a pod's link");
        }
    }
}

/// Whether one of the `links` of a namespace is up that is neither the loopback nor ours. Tunnel drivers have links that
/// are down in every namespace.
fn is_in_use(socket: &mut Socket, links: &[u32], pod_index: u32) -> Result<bool, Error> {
    let is_other = |index: u32| ![LOOPBACK, pod_index].contains(&index);
    if !links.iter().any(|index| is_other(*index)) {
        return Ok(false);
    }
    Ok(socket.all_links()?.iter().any(|link| link.up && is_other(link.index)))
}

fn run(socket: &mut Socket, ops: &[Op], indexes: Indexes) -> Result<Vec<Reply>, Error> {
    socket.run(ops.iter().map(|op| op.request(indexes)))
}

impl Socket {
    /// Deletes a link and with it its peer, its addresses and its routes. One that has gone
    /// already is success.
    pub(crate) fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let reply = self.one(message::del_link(index))?;
        reply.check_except(&[Errno::ENODEV], format_args!("link delete if{index}"))
    }
}
