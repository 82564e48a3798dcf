//! Synchronous rtnetlink: several requests in one send, errors by sequence number.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use twill_types::Family;

use crate::{Error, KernelError, message::address_family};

/// The most requests in one send: each error answer waits in the socket's receive buffer, which
/// overflows at about 300.
pub(crate) const MAX_BATCH: usize = 128;

/// The kernel builds dump answers in pieces of at most 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// How long a dump that the kernel calls inconsistent is tried again. Each link that comes or goes makes
/// a dump of links so, and one of thousands takes long enough to meet some of them.
const DUMP_PATIENCE: Duration = Duration::from_secs(2);

/// One request: a message and its `NLM_F_*` flags (CREATE, EXCL, REPLACE).
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
}

impl From<RouteNetlinkMessage> for Request {
    fn from(message: RouteNetlinkMessage) -> Self {
        Self { message, flags: 0 }
    }
}

/// A request of a kind that `netlink-packet-route` does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawRequest {
    /// `RTM_*` of `linux/rtnetlink.h`.
    pub(crate) kind: u16,
    /// `NLM_F_*`.
    pub(crate) flags: u16,
    /// What follows the netlink header, its length a multiple of 4.
    pub(crate) payload: Vec<u8>,
}

/// What came back for one request.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) error: Option<KernelError>,
    /// The answer to a question, not yet decoded: some only ask for what asking does.
    answer: Option<Vec<u8>>,
}

impl Reply {
    /// The error as a result.
    pub(crate) fn check(self, step: impl ToString) -> Result<(), Error> {
        self.check_except(&[], step)
    }

    /// Like `check`, but an error of `accepted` is as good as success.
    pub(crate) fn check_except(self, accepted: &[Errno], step: impl ToString) -> Result<(), Error> {
        match self.error {
            Some(error) if !accepted.contains(&error.errno) => Err(Error::kernel(step, error)),
            _ => Ok(()),
        }
    }

    /// What `read` makes of the answer to a question; none if there was none, or an error of `accepted`.
    pub(crate) fn read<T>(
        mut self,
        accepted: &[Errno],
        step: impl ToString,
        read: impl Fn(&NetlinkBuffer<&[u8]>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let answer = self.answer.take();
        self.check_except(accepted, step)?;
        let mut found = None;
        for_each_raw(&answer.unwrap_or_default(), &mut |message| {
            found = read(&message);
            Ok(())
        })?;
        Ok(found)
    }

    /// The answer to a question; none if there was none, or an error of `accepted`.
    pub(crate) fn answer(
        mut self,
        accepted: &[Errno],
        step: impl ToString,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        let answer = self.answer.take();
        self.check_except(accepted, step)?;
        let mut decoded = None;
        for_each_message(&answer.unwrap_or_default(), &mut |_, payload| {
            if let NetlinkPayload::InnerMessage(message) = payload {
                decoded = Some(message);
            }
            Ok(())
        })?;
        Ok(decoded)
    }
}

/// A netlink socket. It keeps to the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// The number by which the kernel marks the events that a socket causes.
#[cfg(feature = "watch")]
pub(crate) fn port_of(socket: &netlink_sys::Socket) -> Result<u32, Error> {
    let mut address = SocketAddr::new(0, 0);
    socket.get_address(&mut address).map_err(Error::Socket)?;
    Ok(address.port_number())
}

/// Appends an attribute to a payload.
pub(crate) fn push_attribute(payload: &mut Vec<u8>, kind: u16, value: &[u8]) {
    const HEADER: usize = 4;
    // Values are a few octets, groups of nexthops at most some hundred.
    let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
    payload.extend(length.to_ne_bytes());
    payload.extend(kind.to_ne_bytes());
    payload.extend_from_slice(value);
    payload.resize(payload.len().next_multiple_of(4), 0);
}

impl Socket {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE).map_err(Error::Socket)?;
        // Errors in words, without the request quoted back; dumps filtered by the kernel.
        inner.set_ext_ack(true).map_err(Error::Socket)?;
        inner.set_cap_ack(true).map_err(Error::Socket)?;
        inner.set_netlink_get_strict_chk(true).map_err(Error::Socket)?;
        inner.bind(&SocketAddr::new(0, 0)).map_err(Error::Socket)?;
        Ok(Self { inner, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The port number by which the kernel marks the events that this socket causes.
    #[cfg(feature = "watch")]
    pub(crate) fn port(&self) -> Result<u32, Error> {
        port_of(&self.inner)
    }

    /// Executes one request.
    pub(crate) fn one(&mut self, request: impl Into<Request>) -> Result<Reply, Error> {
        Ok(self.run([request.into()])?.pop().unwrap_or_default())
    }

    /// Executes two requests in one send.
    pub(crate) fn two(&mut self, first: Request, second: Request) -> Result<(Reply, Reply), Error> {
        let mut replies = self.run([first, second])?.into_iter();
        Ok((replies.next().unwrap_or_default(), replies.next().unwrap_or_default()))
    }

    /// Executes requests in their order, [`MAX_BATCH`] in a send, and answers one reply for each.
    /// The kernel goes on after an error, so requests that depend on others belong in a later call.
    pub(crate) fn run(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Reply>, Error> {
        let mut replies = Vec::new();
        let mut requests = requests.into_iter();
        loop {
            let batch: Vec<Request> = requests.by_ref().take(MAX_BATCH).collect();
            if batch.is_empty() {
                return Ok(replies);
            }
            replies.append(&mut self.run_batch(batch)?);
        }
    }

    fn run_batch(&mut self, requests: Vec<Request>) -> Result<Vec<Reply>, Error> {
        let count = requests.len();
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(count * 128);
        for (index, request) in requests.into_iter().enumerate() {
            // Only the last is acknowledged: its answer tells that all before it are done.
            let ack = if index + 1 == count { NLM_F_ACK } else { 0 };
            self.append(&mut bytes, request.message, NLM_F_REQUEST | ack | request.flags);
        }
        self.exchange(&bytes, first)
    }

    /// Like [`Socket::run`].
    pub(crate) fn run_raw(&mut self, requests: &[RawRequest]) -> Result<Vec<Reply>, Error> {
        let mut replies = Vec::with_capacity(requests.len());
        for batch in requests.chunks(MAX_BATCH) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::with_capacity(batch.len() * 64);
            for (index, request) in batch.iter().enumerate() {
                let ack = if index + 1 == batch.len() { NLM_F_ACK } else { 0 };
                self.append_raw(&mut bytes, request, NLM_F_REQUEST | ack);
            }
            replies.append(&mut self.exchange(&bytes, first)?);
        }
        Ok(replies)
    }

    /// Executes one request for each of the items, which `write` fills into an empty one; answers the
    /// errors, each with the index of its item. Nothing is kept of a request but its error.
    pub(crate) fn run_each<T>(
        &mut self,
        items: &[T],
        write: impl Fn(&T, &mut RawRequest),
    ) -> Result<Vec<(usize, KernelError)>, Error> {
        let mut errors = Vec::new();
        let mut request = RawRequest { kind: 0, flags: 0, payload: Vec::new() };
        let mut bytes = Vec::new();
        for (number, batch) in items.chunks(MAX_BATCH).enumerate() {
            let first = self.sequence.wrapping_add(1);
            bytes.clear();
            for (index, item) in batch.iter().enumerate() {
                request.payload.clear();
                write(item, &mut request);
                let ack = if index + 1 == batch.len() { NLM_F_ACK } else { 0 };
                self.append_raw(&mut bytes, &request, NLM_F_REQUEST | ack);
            }
            let replies = self.exchange(&bytes, first)?.into_iter().enumerate();
            let of_item =
                |(index, reply): (usize, Reply)| Some((number * MAX_BATCH + index, reply.error?));
            errors.extend(replies.filter_map(of_item));
        }
        Ok(errors)
    }

    /// Sends the requests from number `first` to the last one, which asks for an acknowledgement.
    fn exchange(&mut self, bytes: &[u8], first: u32) -> Result<Vec<Reply>, Error> {
        self.send(bytes)?;
        let last = self.sequence;
        let mut replies: Vec<Reply> = Vec::new();
        replies.resize_with(last.wrapping_sub(first) as usize + 1, Reply::default);
        loop {
            let mut done = false;
            let datagram = self.receive()?;
            for_each_raw(datagram, &mut |message| {
                let index = message.sequence_number().wrapping_sub(first) as usize;
                // What an earlier, failed read left in the socket answers none of these.
                let Some(reply) = replies.get_mut(index) else {
                    return Ok(());
                };
                if message.message_type() == NLMSG_ERROR {
                    reply.error = acknowledgement(message.payload())?;
                    done |= message.sequence_number() == last;
                } else {
                    reply.answer = Some(message.into_inner().to_vec());
                }
                Ok(())
            })?;
            if done {
                return Ok(replies);
            }
        }
    }

    /// Whether the socket's namespace forwards packets of a family. It is what the `forwarding`
    /// settings of all links say; but to open those, the kernel compares the files of that name of
    /// all namespaces, one by one.
    pub(crate) fn forwards(&mut self, family: Family) -> Result<bool, Error> {
        let mut request = netconf_request(family);
        push_attribute(&mut request.payload, NETCONFA_IFINDEX, &NETCONFA_ALL.to_ne_bytes());
        let reply = self.run_raw(&[request])?.pop().unwrap_or_default();
        let found = reply
            .answer
            .as_deref()
            .and_then(|answer| Netconf::read(NetlinkBuffer::new_checked(answer).ok()?.payload()));
        reply.check(format_args!("netconf show {family}"))?;
        found.map(|found| found.forwarding).ok_or_else(untold)
    }

    /// Whether the socket's namespace forwards packets of IPv4, and which links it has: the same question as
    /// [`Socket::forwards`], about all at once.
    pub(crate) fn forwards_between(&mut self) -> Result<(bool, Vec<u32>), Error> {
        let found = self.dump_raw(&netconf_request(Family::V4), "netconf", Netconf::read)?;
        let all = found.iter().find(|found| found.index == NETCONFA_ALL).ok_or_else(untold)?;
        // What is said of all links, and of those to come, has a negative index.
        let links = found.iter().filter_map(|found| u32::try_from(found.index).ok());
        Ok((all.forwarding, links.collect()))
    }

    /// Reads a table, and keeps what `pick` makes of its messages: of thousands of links those are
    /// many megabytes. `what` names the table in errors. The kernel applies the filters in `message`.
    pub(crate) fn dump<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        what: &'static str,
        pick: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let append = |socket: &mut Self, bytes: &mut _| {
            socket.append(bytes, message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
        };
        self.dump_with(append, what, |message| match decode(message)? {
            (_, NetlinkPayload::InnerMessage(message)) => Ok(pick(message)),
            _ => Ok(None),
        })
    }

    /// Like [`Socket::dump`]; the messages are not decoded.
    pub(crate) fn dump_read<T>(
        &mut self,
        message: &RouteNetlinkMessage,
        what: &'static str,
        read: impl Fn(&NetlinkBuffer<&[u8]>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let append = |socket: &mut Self, bytes: &mut _| {
            socket.append(bytes, message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
        };
        self.dump_with(append, what, |message| Ok(read(&message)))
    }

    fn dump_with<T>(
        &mut self,
        append: impl Fn(&mut Self, &mut Vec<u8>),
        what: &'static str,
        pick: impl Fn(NetlinkBuffer<&[u8]>) -> Result<Option<T>, Error>,
    ) -> Result<Vec<T>, Error> {
        until_consistent(what, || {
            let mut bytes = Vec::with_capacity(128);
            append(self, &mut bytes);
            let mut found = Vec::new();
            let consistent = self.read_dump(&bytes, what, |message| {
                found.extend(pick(message)?);
                Ok(())
            })?;
            Ok(consistent.then_some(found))
        })
    }

    /// Like [`Socket::dump`].
    pub(crate) fn dump_raw<T>(
        &mut self,
        request: &RawRequest,
        what: &'static str,
        pick: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let append = |socket: &mut Self, bytes: &mut _| {
            socket.append_raw(bytes, request, NLM_F_REQUEST | NLM_F_DUMP);
        };
        self.dump_with(append, what, |message| Ok(pick(message.payload())))
    }

    /// Sends the request for a table, the last that was numbered, and hands over each of its
    /// messages; answers whether the table stayed the same meanwhile.
    fn read_dump(
        &mut self,
        request: &[u8],
        what: &'static str,
        mut handle: impl FnMut(NetlinkBuffer<&[u8]>) -> Result<(), Error>,
    ) -> Result<bool, Error> {
        self.send(request)?;
        let mut dump = Dump::new(self.sequence);
        while !dump.done {
            for_each_raw(self.receive()?, &mut |message| match dump.is_entry(&message)? {
                true => handle(message),
                false => Ok(()),
            })?;
        }
        match dump.failed {
            None => Ok(dump.consistent),
            Some(source) => Err(Error::kernel(format_args!("list {what}"), source)),
        }
    }

    fn append_raw(&mut self, bytes: &mut Vec<u8>, request: &RawRequest, flags: u16) {
        const HEADER: usize = 16;
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + request.payload.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(request.kind.to_ne_bytes());
        bytes.extend((flags | request.flags).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend_from_slice(&request.payload);
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let kernel = SocketAddr::new(0, 0);
        self.inner.send_to(bytes, &kernel, 0).map(drop).map_err(Error::Socket)
    }

    /// Reads one datagram.
    fn receive(&mut self) -> Result<&[u8], Error> {
        let length = loop {
            match self.inner.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Socket(error)),
            }
        };
        Ok(&self.buffer[..length])
    }
}

const NETCONFA_IFINDEX: u16 = 1;

/// The index that stands for all links.
const NETCONFA_ALL: i32 = -1;

/// Settings of a link: what is read of `RTM_NEWNETCONF`.
struct Netconf {
    index: i32,
    forwarding: bool,
}

impl Netconf {
    fn read(payload: &[u8]) -> Option<Self> {
        /// `struct netconfmsg` of `linux/netconf.h`, padded.
        const HEADER: usize = 4;
        const NETCONFA_FORWARDING: u16 = 2;
        let value = |kind| {
            attributes(payload.get(HEADER..)?)
                .find(|attribute| attribute.kind() == kind)
                .and_then(|attribute| attribute.value().first_chunk().copied())
                .map(i32::from_ne_bytes)
        };
        let forwarding = value(NETCONFA_FORWARDING)? != 0;
        Some(Self { index: value(NETCONFA_IFINDEX)?, forwarding })
    }
}

fn netconf_request(family: Family) -> RawRequest {
    const RTM_GETNETCONF: u16 = 82;
    let payload = vec![u8::from(address_family(family)), 0, 0, 0];
    RawRequest { kind: RTM_GETNETCONF, flags: 0, payload }
}

fn untold() -> Error {
    Error::Decode("an answer about the forwarding of packets does not tell it".to_owned())
}

/// How far a dump has come, by what its messages say.
#[derive(Debug)]
pub(crate) struct Dump {
    sequence: u32,
    /// Whether the table has stayed the same so far. If not, entries may be missing that were there all along.
    pub(crate) consistent: bool,
    /// Whether there is nothing more to come.
    pub(crate) done: bool,
    pub(crate) failed: Option<KernelError>,
}

impl Dump {
    /// Of the answers to the request of this number.
    pub(crate) fn new(sequence: u32) -> Self {
        Self { sequence, consistent: true, done: false, failed: None }
    }

    /// Takes note of a message; whether it is an entry of the table.
    pub(crate) fn is_entry(&mut self, message: &NetlinkBuffer<&[u8]>) -> Result<bool, Error> {
        if message.sequence_number() != self.sequence {
            return Ok(false);
        }
        self.consistent &= message.flags() & NLM_F_DUMP_INTR == 0;
        match message.message_type() {
            NLMSG_ERROR => self.failed = acknowledgement(message.payload())?,
            // The dump's own error number, if it has one.
            NLMSG_DONE => {
                let code = message.payload().first_chunk();
                self.failed = code.and_then(|code| kernel_error(i32::from_ne_bytes(*code), &[]));
            }
            _ => return Ok(true),
        }
        self.done = true;
        Ok(false)
    }
}

/// Reads a table until it stays the same meanwhile. Of one that did not, nothing is believed: what has
/// been there all along may be missing, and would be taken for gone.
pub(crate) fn until_consistent<T>(
    what: &'static str,
    mut read: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(20);
    let began = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        if let Some(found) = read()? {
            return Ok(found);
        }
        if began.elapsed() >= DUMP_PATIENCE {
            return Err(Error::Interrupted(what));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Hands over each netlink message in a datagram, decoded.
fn for_each_message(
    datagram: &[u8],
    handle: &mut impl FnMut(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>) -> Result<(), Error>,
) -> Result<(), Error> {
    for_each_raw(datagram, &mut |message| {
        let (header, payload) = decode(message)?;
        handle(header, payload)
    })
}

/// Hands over each netlink message in a datagram, as it came.
pub(crate) fn for_each_raw<'a>(
    mut datagram: &'a [u8],
    handle: &mut impl FnMut(NetlinkBuffer<&'a [u8]>) -> Result<(), Error>,
) -> Result<(), Error> {
    while !datagram.is_empty() {
        let length = NetlinkBuffer::new_checked(datagram).map_err(undecodable)?.length() as usize;
        handle(NetlinkBuffer::new(&datagram[..length]))?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

pub(crate) fn decode(
    message: NetlinkBuffer<&[u8]>,
) -> Result<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>), Error> {
    let message = NetlinkMessage::deserialize(message.into_inner()).map_err(undecodable)?;
    Ok(message.into_parts())
}

/// The attributes of a message about a link.
pub(crate) fn link_attributes<'a>(
    message: &NetlinkBuffer<&'a [u8]>,
) -> impl Iterator<Item = NlaBuffer<&'a [u8]>> {
    const LINK_HEADER: usize = 16;
    attributes(message.payload().get(LINK_HEADER..).unwrap_or_default())
}

/// The attributes that stand one after the other in a message, or nested in one.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

/// The number in an attribute.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn undecodable(error: netlink_packet_core::DecodeError) -> Error {
    Error::Decode(error.to_string())
}

/// What an acknowledgement says: the error number, and what follows it.
pub(crate) fn acknowledgement(payload: &[u8]) -> Result<Option<KernelError>, Error> {
    match payload.split_first_chunk() {
        Some((code, rest)) => Ok(kernel_error(i32::from_ne_bytes(*code), rest)),
        None => Err(Error::Decode("an acknowledgement without error number".to_owned())),
    }
}

/// `rest` is what follows the error number: the request's header, then the extended ACK.
fn kernel_error(code: i32, rest: &[u8]) -> Option<KernelError> {
    const REQUEST_HEADER: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    if code == 0 {
        return None;
    }
    let message = attributes(rest.get(REQUEST_HEADER..).unwrap_or_default())
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|text| String::from_utf8_lossy(text.value()).trim_end_matches('\0').to_owned());
    Some(KernelError { errno: Errno::from_raw(code.saturating_abs()), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of `nlmsghdr` and payload.
    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let parts = [
            &length.to_ne_bytes()[..],
            &kind.to_ne_bytes(),
            &flags.to_ne_bytes(),
            &sequence.to_ne_bytes(),
            &[0; 4],
            payload,
        ];
        parts.concat()
    }

    #[test]
    fn what_the_messages_of_a_dump_say() {
        const ENTRY: u16 = 16;
        let busy = (-(Errno::EBUSY as i32)).to_ne_bytes();
        let (entry, done) = (message(ENTRY, 2, 7, &[0; 4]), message(NLMSG_DONE, 2, 7, &[0; 4]));
        let changed = message(ENTRY, NLM_F_DUMP_INTR, 7, &[0; 4]);
        let cut = message(NLMSG_DONE, NLM_F_DUMP_INTR, 7, &[0; 4]);
        let [refused, broken] = [NLMSG_ERROR, NLMSG_DONE].map(|kind| message(kind, 2, 7, &busy));
        let of_another = message(NLMSG_DONE, NLM_F_DUMP_INTR, 6, &busy);
        let cases = [
            (vec![&of_another, &entry, &entry, &done], (2, true, true, None)),
            (vec![&entry], (1, true, false, None)),
            (vec![&entry, &changed, &done], (2, false, true, None)),
            (vec![&entry, &cut], (1, false, true, None)),
            (vec![&entry, &broken], (1, true, true, Some(Errno::EBUSY))),
            (vec![&refused], (0, true, true, Some(Errno::EBUSY))),
        ];
        for (messages, expected) in cases {
            let mut dump = Dump::new(7);
            let entries = messages
                .iter()
                .filter(|bytes| dump.is_entry(&NetlinkBuffer::new(&bytes[..])).unwrap())
                .count();
            let failed = dump.failed.map(|error| error.errno);
            assert_eq!((entries, dump.consistent, dump.done, failed), expected);
        }
    }

    #[test]
    fn a_table_is_read_until_it_stays_the_same() {
        let mut tries = 0;
        let found = until_consistent("links", || {
            tries += 1;
            Ok((tries > 20).then_some(tries))
        });
        assert_eq!(found.unwrap(), 21);
    }
}
