//! What changes in the kernel, as it happens. For the daemon alone.
//!
//! The state of links is the only source for whether routes still work: on a link that goes down
//! the kernel removes IPv4 routes without a word. So a reader takes an event as a reason to look,
//! never as the whole truth, and [`Event::Resync`] as a reason to look at everything.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io,
    net::IpAddr,
    task::{Context, Poll, ready},
};

use netlink_packet_core::{NLM_F_REPLACE, NetlinkBuffer, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteType};
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use twill_sys::ignore_netlink;
use twill_types::{Prefix, is_host_link_name};

use crate::{
    Error, Link,
    address::Address,
    link::{IFF_UP, ifla, is_doomed_group},
    netlink::{attributes, decode, for_each_raw, link_attributes, number},
    nexthop::{self, RTM_DELNEXTHOP, RTM_NEWNEXTHOP, RTM_NEWNEXTHOPBUCKET},
    route::Route,
};

/// Multicast groups of `linux/rtnetlink.h`: RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR,
/// IPV6_ROUTE, IPV4_NETCONF, IPV6_NETCONF, NEXTHOP.
const GROUPS: [u32; 8] = [1, 5, 7, 9, 11, 24, 25, 32];

/// What no reader needs: a resilient group tells of each of its buckets.
const IGNORED: [u16; 1] = [RTM_NEWNEXTHOPBUCKET];

// Of `linux/rtnetlink.h`.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
/// A link has another setting.
const RTM_NEWNETCONF: u16 = 80;

/// Room for a burst of events (a table of 10,000 routes that goes at once), in bytes.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;

/// The kernel's event datagrams are of at most a page or two.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The most datagrams that are read in one go.
const MAX_READS: usize = 256;

/// A change in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new or has changed (up, carrier, name, group, ...). Those of pods are left out:
    /// there are many of them, and each changes six times in an ADD.
    LinkChanged(Link),
    /// A link is gone.
    LinkDeleted(Link),
    /// A link got an address.
    AddressAdded {
        /// The link's index.
        ifindex: u32,
        /// The address.
        address: IpAddr,
    },
    /// A link lost an address.
    AddressRemoved {
        /// The link's index.
        ifindex: u32,
        /// The address.
        address: IpAddr,
    },
    /// A route of ours, learned or of a block, was removed by somebody else.
    RouteRemoved {
        /// Its prefix.
        prefix: Prefix,
        /// Its metric, which tells what it was.
        metric: u32,
    },
    /// A route of ours, learned or of a block, was replaced by somebody else, by one with our protocol
    /// number.
    RouteChanged {
        /// Its prefix.
        prefix: Prefix,
        /// Its metric, which tells what it was.
        metric: u32,
    },
    /// A route of ours to an address directly behind a link was removed by somebody else, a DEL for one: a
    /// pod's host route, or the one to the gateway of all pods.
    HostRouteRemoved {
        /// The address.
        address: IpAddr,
        /// The link's index.
        ifindex: u32,
    },
    /// The link of a pod has come up: for the first time in an ADD, and again when somebody has set it
    /// down before.
    PodLinkUp {
        /// The link's index.
        ifindex: u32,
    },
    /// Somebody wrote a setting of a link or of all (`forwarding`, `rp_filter`, `proxy_arp`).
    SettingsChanged {
        /// The link's index; `None` for the settings of all links.
        ifindex: Option<u32>,
    },
    /// Nexthop objects of ours were changed or removed by somebody else, and the routes that named
    /// them are gone without a word. Many changes make one event.
    ObjectsChanged,
    /// Routes that are not ours have changed, so next hops may resolve differently. Many changes
    /// make one event.
    ForeignRoutesChanged,
    /// Events were lost: everything may have changed.
    Resync,
}

/// The stream of events of the namespace in which it was opened.
pub struct Events {
    socket: TokioSocket,
    pending: VecDeque<Event>,
    buffer: Vec<u8>,
}

impl Events {
    /// Subscribes. What the sockets with `own_ports` ([`crate::fib::Fib::port`]) do is not reported;
    /// the kernel drops it, so that a large table that is written leaves room for what matters. Must
    /// be called within a tokio runtime with I/O.
    pub fn open(own_ports: impl IntoIterator<Item = u32>) -> Result<Self, Error> {
        let own_ports: Vec<u32> = own_ports.into_iter().collect();
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            ignore_netlink(socket.socket_ref(), &own_ports, &IGNORED)?;
            // Past net.core.rmem_max, which is 208 KiB on most machines; NET_ADMIN may.
            setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_QUEUE)?;
            for group in GROUPS {
                socket.socket_ref().add_membership(group)?;
            }
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(Error::Socket)?,
            pending: VecDeque::new(),
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// The next event. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Event, Error> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The next event of those that were read together with the last one.
    pub fn queued(&mut self) -> Option<Event> {
        self.pending.pop_front()
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Event, Error>> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Poll::Ready(Ok(event));
            }
            let mut free = &mut self.buffer[..];
            let received = ready!(self.socket.poll_recv(context, &mut free));
            let length = RECEIVE_BUFFER - free.len();
            if let Err(error) = self.read_burst(received.map(|()| length)) {
                return Poll::Ready(Err(Error::Socket(error)));
            }
        }
    }

    /// Queues the events of a first datagram and of those behind it, so that many changes of
    /// foreign routes become one event.
    fn read_burst(&mut self, mut received: io::Result<usize>) -> io::Result<()> {
        let (mut many, mut overrun) = (Many::default(), false);
        let mut reads = 0;
        loop {
            match received {
                // From an overrun on the kernel drops events until the queue is empty: looking at
                // everything is of use only then, and it covers all that was queued.
                Ok(_) if overrun => {}
                Ok(length) => {
                    let datagram = &self.buffer[..length];
                    many.add(read_events(datagram, &mut self.pending));
                }
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => overrun = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            reads += 1;
            if reads >= MAX_READS && !overrun {
                break;
            }
            received = self.socket.socket_ref().recv(&mut &mut self.buffer[..], 0);
        }
        if overrun {
            self.pending = [Event::Resync].into();
            return Ok(());
        }
        // First what has taken routes away.
        if many.objects {
            self.pending.push_front(Event::ObjectsChanged);
        }
        if many.foreign {
            self.pending.push_back(Event::ForeignRoutesChanged);
        }
        Ok(())
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("pending", &self.pending).finish_non_exhaustive()
    }
}

/// Changes of which many make one event.
#[derive(Debug, Clone, Copy, Default)]
struct Many {
    foreign: bool,
    objects: bool,
}

impl Many {
    const fn add(&mut self, other: Self) {
        self.foreign |= other.foreign;
        self.objects |= other.objects;
    }
}

/// Queues the events in a datagram; answers what else has changed.
fn read_events(datagram: &[u8], events: &mut VecDeque<Event>) -> Many {
    let mut many = Many::default();
    let result = for_each_raw(datagram, &mut |raw| {
        if is_change_of_a_pods_link(&raw) {
            events.extend(pod_link_up(&raw));
            return Ok(());
        }
        if raw.message_type() == RTM_NEWNETCONF {
            events.extend(setting(&raw));
            return Ok(());
        }
        if matches!(raw.message_type(), RTM_NEWNEXTHOP | RTM_DELNEXTHOP) {
            many.objects |= nexthop::is_ours(raw.payload());
            return Ok(());
        }
        if matches!(raw.message_type(), RTM_NEWLINK | RTM_DELLINK) {
            let event = if raw.message_type() == RTM_NEWLINK {
                Event::LinkChanged
            } else {
                Event::LinkDeleted
            };
            events.extend(Link::read(&raw).map(event));
            return Ok(());
        }
        let (header, payload) = decode(raw)?;
        let NetlinkPayload::InnerMessage(message) = payload else {
            return Ok(());
        };
        match message {
            RouteNetlinkMessage::NewRoute(route) => match Route::from_message(&route) {
                Some(route) if is_foreign(&route) => many.foreign = true,
                Some(Route { ours: true, prefix, metric, .. })
                    if header.flags & NLM_F_REPLACE != 0 =>
                {
                    events.push_back(Event::RouteChanged { prefix, metric });
                }
                _ => {}
            },
            RouteNetlinkMessage::DelRoute(route) => match Route::from_message(&route) {
                Some(route) if is_foreign(&route) => many.foreign = true,
                Some(route) if route.ours => events.push_back(removed(&route)),
                _ => {}
            },
            other => events.extend(event(&other)),
        }
        Ok(())
    });
    if let Err(error) = result {
        // A kind of message that this program is too old for; all of ours it can read.
        tracing::debug!(%error, "a netlink event is left out");
    }
    many
}

/// Whether it tells of a link of a pod, or of one that waits to be deleted. Seen without decoding it.
fn is_change_of_a_pods_link(message: &NetlinkBuffer<&[u8]>) -> bool {
    message.message_type() == RTM_NEWLINK
        && link_attributes(message).any(|attribute| match attribute.kind() {
            ifla::IFNAME => std::str::from_utf8(attribute.value())
                .is_ok_and(|name| is_host_link_name(name.trim_end_matches('\0'))),
            ifla::GROUP => number(attribute.value()).is_some_and(is_doomed_group),
            _ => false,
        })
}

/// When it tells that this link has come up.
fn pod_link_up(message: &NetlinkBuffer<&[u8]>) -> Option<Event> {
    // `struct ifinfomsg` of `linux/rtnetlink.h`: the index, the flags, which of them have changed.
    let field = |offset: usize| message.payload().get(offset..).and_then(number);
    let (ifindex, flags, changed) = (field(4)?, field(8)?, field(12)?);
    (flags & changed & IFF_UP != 0).then_some(Event::PodLinkUp { ifindex })
}

/// When one setting was written. A new link tells all of its settings, which is nobody's change.
fn setting(message: &NetlinkBuffer<&[u8]>) -> Option<Event> {
    /// `struct netconfmsg` of `linux/netconf.h`, padded.
    const HEADER: usize = 4;
    const IFINDEX: u16 = 1;
    const ALL: u32 = -1_i32 as u32;
    const DEFAULT: u32 = -2_i32 as u32;
    let (mut ifindex, mut others) = (None, 0);
    for attribute in attributes(message.payload().get(HEADER..)?) {
        match attribute.kind() {
            IFINDEX => ifindex = number(attribute.value()),
            _ => others += 1,
        }
    }
    match ifindex? {
        _ if others != 1 => None,
        // What links get that are made later is no business of those that there are.
        DEFAULT => None,
        ALL => Some(Event::SettingsChanged { ifindex: None }),
        ifindex => Some(Event::SettingsChanged { ifindex: Some(ifindex) }),
    }
}

/// A route of ours was removed.
fn removed(route: &Route) -> Event {
    let direct = route.next_hops.iter().find(|hop| hop.gateway.is_none());
    let is_host = route.prefix.length() == route.prefix.family().bits();
    match direct {
        Some(hop) if is_host && route.kind == RouteType::Unicast => {
            Event::HostRouteRemoved { address: route.prefix.address(), ifindex: hop.ifindex }
        }
        _ => Event::RouteRemoved { prefix: route.prefix, metric: route.metric },
    }
}

/// Routes that come with an address have the address's own event.
fn is_foreign(route: &Route) -> bool {
    use netlink_packet_route::route::RouteType::{Anycast, Broadcast, Local, Multicast};
    !route.ours && !matches!(route.kind, Local | Broadcast | Anycast | Multicast)
}

fn event(message: &RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewAddress(message) => {
            let Address { ifindex, ip: address, .. } = Address::from_message(message)?;
            Some(Event::AddressAdded { ifindex, address })
        }
        RouteNetlinkMessage::DelAddress(message) => {
            let Address { ifindex, ip: address, .. } = Address::from_message(message)?;
            Some(Event::AddressRemoved { ifindex, address })
        }
        _ => None,
    }
}
