//! What Twill reads of an address.

use std::net::IpAddr;

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
};

use crate::{Error, message, netlink::Socket};

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) ifindex: u32,
    pub(crate) ip: IpAddr,
    pub(crate) length: u8,
}

impl Address {
    pub(crate) fn from_message(message: &AddressMessage) -> Option<Self> {
        // On a point-to-point link ADDRESS is the other side; LOCAL, where it is, is always ours.
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                _ => {}
            }
        }
        let header = &message.header;
        Some(Self { ifindex: header.index, ip: local.or(address)?, length: header.prefix_len })
    }
}

impl Socket {
    /// The addresses of one link, or of all links (`index` 0).
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<Address>, Error> {
        self.dump(&message::list_addresses(index), "addresses", |message| match message {
            RouteNetlinkMessage::NewAddress(message) => Address::from_message(&message),
            _ => None,
        })
    }
}
