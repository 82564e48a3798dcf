//! DEL: cuts a pod off at once and leaves the slow part, the deletion of its link, to the daemon.

use std::net::IpAddr;

use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;
use twill_sys::Netns;
use twill_types::{AttachmentId, DELETE_GROUP, Family, Prefix, host_link_name};

use super::{behind, list::host_routes};
use crate::{
    Error,
    link::{BATCH_GROUP, Link, Owner},
    message::{self, RouteFilter},
    netlink::{MAX_BATCH, Socket},
};

/// What happens to the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelMode {
    /// It is cut off, renamed and put into the group that the daemon deletes in batches
    /// ([`delete_group_links`]): a deletion waits for a grace period of the kernel, a batch for one.
    Deferred,
    /// It is deleted at once: there is no daemon.
    Immediate,
}

/// What a DEL found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelOutcome {
    /// No link of this attachment.
    Absent,
    /// The link is gone, or as good as.
    Removed {
        /// The sequence number in its alias; `None` if its ADD died before it wrote one, or somebody overwrote it.
        sequence: Option<u64>,
        /// The link's index, if it waits to be deleted, for [`delete_parked_links`].
        parked: Option<u32>,
    },
    /// The link is there and does not lead to the namespace that was given. It was not touched.
    Elsewhere {
        /// The sequence number in its alias, if it has one.
        sequence: Option<u64>,
    },
    /// The link belongs to a later ADD and was not touched.
    Newer {
        /// That ADD's sequence number.
        sequence: u64,
    },
}

/// Why a step of a DEL may fail: what it takes away has gone already.
const GONE: &[Errno] = &[Errno::ENODEV, Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL];

/// Removes the link of an attachment and everything on it.
///
/// With `sequence` only if the link is of that ADD or an earlier one, and with the pod's namespace
/// only if that is the one at the other end of the link: a caller that means whatever there is
/// gives none, and means a link whose alias somebody has overwritten, too. What is missing is success.
pub fn del_pod(
    attachment: &AttachmentId,
    sequence: Option<u64>,
    netns: Option<&Netns>,
    mode: DelMode,
) -> Result<DelOutcome, Error> {
    let mut socket = Socket::open()?;
    let Some(host) = socket.link_by_name(&host_link_name(attachment))? else {
        return Ok(DelOutcome::Absent);
    };
    let found = match host.owner(attachment) {
        Owner::DeadAdd => None,
        Owner::Add(found) if sequence.is_some_and(|wanted| wanted < found) => {
            return Ok(DelOutcome::Newer { sequence: found });
        }
        Owner::Add(found) => Some(found),
        // The name is a hash of the attachment, so who means whatever there is means this one. Its address stays in
        // use as long as it is there.
        Owner::Overwritten(_) if host.is_veth && sequence.is_none() => None,
        Owner::Overwritten(alias) | Owner::Other(alias) => {
            tracing::warn!(
                link = host.name,
                alias,
                "this link is not of the attachment; left alone"
            );
            return Ok(DelOutcome::Absent);
        }
    };
    // What is inside the pod is the pod's; it cannot keep the node from cutting it off.
    let cannot = |error| tracing::warn!(link = host.name, %error, "cannot clear the pod's end");
    let end = match netns.map(|netns| PodEnd::find(netns, &host)) {
        None => None,
        // Also one without an alias: an ADD for another namespace may have made it this moment.
        Some(Ok(None)) => return Ok(DelOutcome::Elsewhere { sequence: found }),
        Some(Ok(end)) => end,
        Some(Err(error)) => {
            cannot(error);
            None
        }
    };
    let parked = match mode {
        DelMode::Immediate => {
            if let Some(Err(error)) = end.map(|end| end.clear_rules(&host)) {
                cannot(error);
            }
            socket.delete_link(host.index)?;
            None
        }
        DelMode::Deferred => {
            let addresses = end.map_or(Ok(Vec::new()), |end| end.clear(&host));
            let addresses = addresses.unwrap_or_else(|error| {
                cannot(error);
                Vec::new()
            });
            clear_host(&mut socket, &host, &addresses)?;
            Some(host.index)
        }
    };
    Ok(DelOutcome::Removed { sequence: found, parked })
}

/// Removes a link that [`super::host_links`] found, as a deferred DEL does, for those that no DEL
/// comes for. By its index, so no later link of the same name is hit. `false` if it is gone, or if
/// somebody is at work on it: it has another name, alias or state by now.
pub fn remove_leftover(found: &Link) -> Result<bool, Error> {
    let mut socket = Socket::open()?;
    let state = |link: &Link| (link.name.clone(), link.alias.clone(), link.up, link.group);
    let link = match socket.link(found.index)? {
        Some(link) if state(&link) == state(found) => link,
        _ => return Ok(false),
    };
    let mut addresses = Vec::new();
    for family in [Family::V4, Family::V6] {
        let filter = RouteFilter { ours: true, link: Some(link.index) };
        addresses.extend(host_routes(&socket.routes(family, filter)?, link.index));
    }
    clear_host(&mut socket, &link, &addresses)?;
    Ok(true)
}

/// Takes away the rules that an ADD may have made in the pod for the addresses of this link, for who deletes it
/// without a look at the namespace.
pub(super) fn clear_rules(host: &Link, netns: &Netns) -> Result<(), Error> {
    PodEnd::find(netns, host)?.map_or(Ok(()), |end| end.clear_rules(host))
}

/// The other end of a host link, in the pod.
struct PodEnd {
    socket: Socket,
    index: u32,
}

impl PodEnd {
    /// `None` if it is not in this namespace: a runtime may use the path of a namespace again, and
    /// a container may have another namespace by now.
    fn find(netns: &Netns, host: &Link) -> Result<Option<Self>, Error> {
        let mut socket = netns.enter(Socket::open)??;
        let Some(index) = host.peer else {
            return Ok(None);
        };
        // Only the real peer points back at our link.
        let end = socket.link(index)?.filter(|end| end.peer == Some(host.index));
        Ok(end.map(|_| Self { socket, index }))
    }

    /// Takes addresses and name off, so that an ADD for the same namespace and interface name works
    /// at once. Answers the addresses, some of them if the pod has given itself very many.
    fn clear(mut self, host: &Link) -> Result<Vec<IpAddr>, Error> {
        let (pod, index) = (&mut self.socket, self.index);
        let mut found = pod.addresses(index)?;
        found.truncate(MAX_BATCH);
        let addresses: Vec<IpAddr> = found.iter().map(|found| found.ip).collect();
        let mut requests: Vec<_> = behind::rules_away(&host.name, &addresses).collect();
        requests
            .extend(found.iter().map(|found| message::del_address(index, found.ip, found.length)));
        requests.push(message::set_link_up(index, false, Vec::new()));
        let name = LinkAttribute::IfName(parked_name(index));
        requests.push(message::set_link(index, vec![name]));
        for reply in pod.run(requests)? {
            // The pod's processes may hold on to what they like; the link is cut on the other side.
            if let Some(error) = reply.error.filter(|error| !GONE.contains(&error.errno)) {
                tracing::warn!(link = host.name, %error, "cannot clear the pod's end");
            }
        }
        Ok(addresses)
    }

    /// Takes away the rules of a link behind another. There are none of any other.
    fn clear_rules(mut self, host: &Link) -> Result<(), Error> {
        let mut found = self.socket.addresses(self.index)?;
        found.truncate(MAX_BATCH);
        let addresses: Vec<IpAddr> = found.into_iter().map(|found| found.ip).collect();
        for reply in self.socket.run(behind::rules_away(&host.name, &addresses))? {
            reply.check_except(GONE, "rule del")?;
        }
        Ok(())
    }
}

fn clear_host(socket: &mut Socket, host: &Link, addresses: &[IpAddr]) -> Result<(), Error> {
    // Link down flushes routes too, but then the kernel walks through the whole IPv4 table.
    let mut requests: Vec<_> =
        addresses.iter().map(|ip| message::del_link_route(Prefix::host(*ip), host.index)).collect();
    requests.extend(host.altnames.iter().map(|name| message::altname(host.index, name, false)));
    // On its own: in one message with a rename that fails, the link would stay up.
    requests.push(message::set_link_up(host.index, false, Vec::new()));
    let park =
        vec![LinkAttribute::IfName(parked_name(host.index)), LinkAttribute::Group(DELETE_GROUP)];
    requests.push(message::set_link(host.index, park));
    let mut replies = socket.run(requests)?;
    let parked = replies.pop().and_then(|reply| reply.error);
    let downed = replies.pop().and_then(|reply| reply.error);
    match downed.or(parked) {
        None => Ok(()),
        Some(error) if GONE.contains(&error.errno) => Ok(()),
        Some(error) => {
            tracing::warn!(link = host.name, %error, "cannot park the link; deleting it at once");
            socket.delete_link(host.index)
        }
    }
}

/// A name that no other link has: indexes are unique in a namespace.
fn parked_name(index: u32) -> String {
    format!("twd{index}")
}

/// Deletes these links as far as they wait for it, `batch` at once, as [`delete_group_links`] does
/// without a look at all others.
pub fn delete_parked_links(indexes: &[u32], batch: usize) -> Result<usize, Error> {
    let mut socket = Socket::open()?;
    let mut deleted = 0;
    for indexes in indexes.chunks(batch.clamp(1, MAX_BATCH)) {
        let replies = socket.run(indexes.iter().map(|index| message::get_link(*index)))?;
        let found = replies.into_iter().zip(indexes);
        let found = found.map(|(reply, index)| reply.link(format_args!("if{index}")));
        let links: Vec<Link> = found.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        let doomed: Vec<Link> = links.into_iter().filter(Link::is_doomed).collect();
        if !doomed.is_empty() {
            socket.delete_together(&doomed)?;
            deleted += doomed.len();
        }
    }
    Ok(deleted)
}

/// Deletes the links that wait for it, `batch` at once, as long as `go_on` says so before each batch;
/// says how many. `batch` should be at most 10 while ADDs run: others wait for the kernel's lock as long
/// as a batch takes. The kernel is asked for them once, which takes long where there are thousands.
pub fn delete_group_links(batch: usize, mut go_on: impl FnMut() -> bool) -> Result<usize, Error> {
    let mut socket = Socket::open()?;
    let doomed = socket.links(Link::is_doomed)?;
    let mut deleted = 0;
    for links in doomed.chunks(batch.clamp(1, MAX_BATCH)) {
        if !go_on() {
            break;
        }
        socket.delete_together(links)?;
        deleted += links.len();
    }
    Ok(deleted)
}

impl Socket {
    /// Deletes links that wait for it.
    fn delete_together(&mut self, links: &[Link]) -> Result<(), Error> {
        // A group delete takes every link of a group, so those of this batch get one of their own.
        let group = |link: &Link| {
            let group = vec![LinkAttribute::Group(BATCH_GROUP)];
            message::set_link(link.index, group)
        };
        for reply in self.run(links.iter().map(group))? {
            reply.check_except(GONE, "link set group")?;
        }
        match self.one(message::del_group(BATCH_GROUP))?.error {
            None => Ok(()),
            Some(error) if error.errno == Errno::ENODEV => Ok(()),
            // One of them cannot be deleted (it is not ours, then): the others can.
            Some(error) if error.errno == Errno::EOPNOTSUPP => {
                for link in links {
                    if let Err(error) = self.delete_link(link.index) {
                        tracing::warn!(link = link.name, %error, "cannot delete a link");
                    }
                }
                Ok(())
            }
            Some(error) => Err(Error::kernel("link delete group", error)),
        }
    }
}
