//! The part of nftables' netlink protocol that Twill speaks (`linux/netfilter/nf_tables.h`): batches
//! that the kernel takes as a whole or not at all, and lists.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::{SocketAddr, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use crate::{
    Error, KernelError,
    netlink::{Dump, acknowledgement, for_each_raw, push_attribute, until_consistent},
};

/// `NFNL_SUBSYS_NFTABLES`, the high octet of each message type.
pub(crate) const SUBSYSTEM: u16 = 10;

/// `NFPROTO_INET`: a table for both families.
pub(crate) const INET: u8 = 1;

/// Room for a batch with thousands of prefixes, in bytes; past net.core.wmem_max, as NET_ADMIN may.
const SEND_BUFFER: usize = 16 * 1024 * 1024;

/// The kernel's answers come in pieces of at most 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;

/// What a message does: `NFT_MSG_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    NewElements = 12,
    GetGeneration = 16,
}

/// Attributes, one behind the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.0, kind, value);
        self
    }

    /// A text with the zero that ends it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// A number, which is in network order in all of nftables.
    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The elements of a list (`NFTA_LIST_ELEM`).
    pub(crate) fn list(self, kind: u16, elements: impl IntoIterator<Item = Self>) -> Self {
        const NFTA_LIST_ELEM: u16 = 1;
        let join = |list: Self, element: Self| list.nest(NFTA_LIST_ELEM, &element);
        let inner = elements.into_iter().fold(Self::new(), join);
        self.nest(kind, &inner)
    }
}

/// One change or question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    /// `NLM_F_*` beside `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    pub(crate) attributes: Attributes,
}

/// The attributes in an answer or an event, as kind and value, up to one that cannot be read.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEADER: usize = 4;
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let kind = rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & !NESTED, value))
    })
}

/// The value of the first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text without the zero that ends it.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

/// A number in network order.
pub(crate) fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// What follows the netlink header: the family, and the attributes.
pub(crate) fn payload<'a>(message: &NetlinkBuffer<&'a [u8]>) -> Option<(u8, &'a [u8])> {
    /// `struct nfgenmsg`.
    const HEADER: usize = 4;
    let payload = message.payload();
    Some((*payload.first()?, payload.get(HEADER..)?))
}

/// A netlink socket for nftables. It keeps to the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open() -> Result<Self, Error> {
        let open = || -> io::Result<netlink_sys::Socket> {
            let mut inner = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
            inner.set_ext_ack(true)?;
            inner.set_cap_ack(true)?;
            inner.bind(&SocketAddr::new(0, 0))?;
            setsockopt(&inner, sockopt::SndBufForce, &SEND_BUFFER)?;
            Ok(inner)
        };
        let inner = open().map_err(Error::Socket)?;
        Ok(Self { inner, sequence: 0, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The number by which the kernel marks the events that this socket causes.
    #[cfg(feature = "watch")]
    pub(crate) fn port(&self) -> Result<u32, Error> {
        crate::netlink::port_of(&self.inner)
    }

    /// Makes all changes at once, or none; `step` names them in errors. No packet sees a part of them.
    pub(crate) fn commit(&mut self, changes: &[Message], step: &str) -> Result<(), Error> {
        const BATCH_BEGIN: u16 = 0x10;
        const BATCH_END: u16 = 0x11;
        let mut bytes = Vec::new();
        let first = self.append_boundary(&mut bytes, BATCH_BEGIN);
        for (index, change) in changes.iter().enumerate() {
            let ack = if index + 1 == changes.len() { NLM_F_ACK } else { 0 };
            self.append(&mut bytes, change, ack);
        }
        let last = self.sequence;
        self.append_boundary(&mut bytes, BATCH_END);
        self.send(&bytes)?;
        let mut failed = None;
        let mut done = false;
        while !done {
            for_each_raw(self.receive()?, &mut |message| {
                let sequence = message.sequence_number();
                let in_batch = sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if !in_batch || message.message_type() != NLMSG_ERROR {
                    return Ok(());
                }
                let error = acknowledgement(message.payload())?;
                // The batch as a whole is refused by an error on its beginning.
                done |= sequence == last || (sequence == first && error.is_some());
                failed = failed.take().or(error);
                Ok(())
            })?;
        }
        failed.map_or(Ok(()), |error: KernelError| Err(Error::kernel(step, error)))
    }

    /// Whatever `pick` makes of the answers to one question; empty if what it asks for is not there.
    pub(crate) fn ask<T>(
        &mut self,
        question: &Message,
        what: &'static str,
        mut pick: impl FnMut(u8, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let is_dump = question.flags & NLM_F_DUMP == NLM_F_DUMP;
        // The end of a list tells that it is done; the one answer to another question does not.
        let ack = if is_dump { 0 } else { NLM_F_ACK };
        until_consistent(what, || {
            let mut bytes = Vec::new();
            self.append(&mut bytes, question, ack);
            self.send(&bytes)?;
            let mut dump = Dump::new(self.sequence);
            let mut found = Vec::new();
            while !dump.done {
                for_each_raw(self.receive()?, &mut |message| {
                    if dump.is_entry(&message)? {
                        found.extend(payload(&message).and_then(|(f, rest)| pick(f, rest)));
                    }
                    Ok(())
                })?;
            }
            match dump.failed {
                None => Ok(dump.consistent.then_some(found)),
                Some(error) if error.errno == Errno::ENOENT => Ok(Some(Vec::new())),
                Some(error) => Err(Error::kernel(format_args!("list {what}"), error)),
            }
        })
    }

    /// A number that is another after each change by anybody.
    pub(crate) fn generation(&mut self) -> Result<u32, Error> {
        const NFTA_GEN_ID: u16 = 1;
        let (kind, attributes) = (Kind::GetGeneration, Attributes::new());
        let question = Message { kind, family: 0, flags: 0, attributes };
        let found = self.ask(&question, "generation", |_, bytes| number(find(bytes, NFTA_GEN_ID)?));
        found?.pop().ok_or_else(|| Error::Decode("no generation of nftables' tables".to_owned()))
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: &Message, flags: u16) {
        let kind = SUBSYSTEM << 8 | message.kind as u16;
        let flags = NLM_F_REQUEST | message.flags | flags;
        self.append_raw(bytes, (kind, flags), [message.family, 0, 0, 0], &message.attributes.0);
    }

    fn append_boundary(&mut self, bytes: &mut Vec<u8>, kind: u16) -> u32 {
        let [high, low] = SUBSYSTEM.to_be_bytes();
        self.append_raw(bytes, (kind, NLM_F_REQUEST), [0, 0, high, low], &[]);
        self.sequence
    }

    fn append_raw(
        &mut self,
        bytes: &mut Vec<u8>,
        (kind, flags): (u16, u16),
        header: [u8; 4],
        attributes: &[u8],
    ) {
        const HEADERS: usize = 20;
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(header);
        bytes.extend_from_slice(attributes);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        self.inner.send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop).map_err(Error::Socket)
    }

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
