//! What Twill reads of a link.

use std::fmt::Display;

use netlink_packet_core::NetlinkBuffer;
use nix::errno::Errno;
use twill_types::{AttachmentId, DELETE_GROUP, LinkAlias};

use crate::{
    Error,
    message::{self, Ipv4Conf},
    netlink::{Reply, Socket, attributes, link_attributes, number},
};

/// The group into which links are put directly before the group is deleted.
pub(crate) const BATCH_GROUP: u32 = DELETE_GROUP + 1;

/// The loopback link's index: the first in every namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// The flag of `linux/if.h` for a link that is administratively up.
pub(crate) const IFF_UP: u32 = 1;

/// A link of the node or of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The free text that says whose it is.
    pub alias: Option<String>,
    /// Alternative names.
    pub altnames: Vec<String>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its group (0: the default one).
    pub group: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Whether it is one end of a veth pair.
    pub(crate) is_veth: bool,
    /// For a veth: the index of its peer, in the peer's namespace.
    pub peer: Option<u32>,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Its IPv4 settings.
    pub(crate) ipv4: Option<Ipv4Settings>,
}

/// Settings of `net/ipv4/conf/<link>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ipv4Settings {
    pub(crate) forwarding: u32,
    pub(crate) proxy_arp: u32,
    pub(crate) rp_filter: u32,
}

/// `IFLA_*` of `linux/if_link.h`.
pub(crate) mod ifla {
    pub(crate) const ADDRESS: u16 = 1;
    pub(crate) const IFNAME: u16 = 3;
    pub(crate) const MTU: u16 = 4;
    pub(crate) const LINK: u16 = 5;
    pub(crate) const LINKINFO: u16 = 18;
    pub(crate) const IFALIAS: u16 = 20;
    pub(crate) const AF_SPEC: u16 = 26;
    pub(crate) const GROUP: u16 = 27;
    pub(crate) const PROP_LIST: u16 = 52;
    pub(crate) const ALT_IFNAME: u16 = 53;
}

impl Link {
    /// Reads a message about a link. There are some forty attributes, and to decode all of them into their types
    /// costs more than anything else that is done with a link; a node has thousands.
    pub(crate) fn read(message: &NetlinkBuffer<&[u8]>) -> Option<Self> {
        const IFF_LOWER_UP: u32 = 1 << 16;
        // `struct ifinfomsg` of `linux/rtnetlink.h`: the index, and the flags.
        let field = |offset: usize| message.payload().get(offset..).and_then(number);
        let (index, flags) = (field(4)?, field(8)?);
        let mut link = Self {
            index,
            name: String::new(),
            alias: None,
            altnames: Vec::new(),
            mtu: 0,
            group: 0,
            up: flags & IFF_UP != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            is_veth: false,
            peer: None,
            mac: Vec::new(),
            ipv4: None,
        };
        for attribute in link_attributes(message) {
            let value = attribute.value();
            match attribute.kind() {
                ifla::ADDRESS => link.mac = value.to_vec(),
                ifla::IFNAME => link.name = text(value),
                ifla::MTU => link.mtu = number(value).unwrap_or_default(),
                ifla::LINK => link.peer = number(value),
                ifla::LINKINFO => link.is_veth = is_veth(value),
                ifla::IFALIAS => link.alias = Some(text(value)),
                ifla::GROUP => link.group = number(value).unwrap_or_default(),
                ifla::AF_SPEC => link.ipv4 = Ipv4Settings::read(value),
                ifla::PROP_LIST => link.altnames.extend(
                    attributes(value)
                        .filter(|name| name.kind() == ifla::ALT_IFNAME)
                        .map(|n| text(n.value())),
                ),
                _ => {}
            }
        }
        Some(link)
    }

    /// Whether it only waits to be deleted. Such a link does not count as existing.
    pub fn is_doomed(&self) -> bool {
        is_doomed_group(self.group)
    }

    /// Whether somebody else's text stands where Twill writes whose it is.
    pub fn is_overwritten(&self) -> bool {
        self.alias.is_some() && self.twill_alias().is_none()
    }

    /// Its `rp_filter`. The kernel goes by the higher of this and that of all links.
    pub fn source_check(&self) -> u32 {
        self.ipv4.map_or(0, |conf| conf.rp_filter)
    }

    /// What its alias says, if Twill wrote it.
    pub fn twill_alias(&self) -> Option<LinkAlias> {
        self.alias.as_deref()?.parse().ok()
    }

    /// Whose a link with the name of this attachment's host end is.
    pub(crate) fn owner(&self, attachment: &AttachmentId) -> Owner {
        match (self.alias.as_deref().unwrap_or_default(), self.twill_alias()) {
            ("", _) => Owner::DeadAdd,
            (_, Some(alias)) if alias.is_of(attachment) => Owner::Add(alias.sequence),
            (alias, Some(_)) => Owner::Other(alias.to_owned()),
            (alias, None) => Owner::Overwritten(alias.to_owned()),
        }
    }
}

/// Whether the links of a group only wait to be deleted.
pub(crate) const fn is_doomed_group(group: u32) -> bool {
    matches!(group, DELETE_GROUP | BATCH_GROUP)
}

/// Whose a link is that has the name of an attachment's host end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody's: an ADD died between its creation and its alias.
    DeadAdd,
    /// The attachment's, by the ADD with this sequence number.
    Add(u64),
    /// Another attachment's of the same hash, with this alias.
    Other(String),
    /// Somebody has written this in the place of whose it is.
    Overwritten(String),
}

impl Ipv4Settings {
    /// `IFLA_AF_SPEC`, in it `AF_INET`, in it `IFLA_INET_CONF`: one number for each `IPV4_DEVCONF_*`, which count
    /// from 1.
    fn read(families: &[u8]) -> Option<Self> {
        const AF_INET: u16 = 2;
        const IFLA_INET_CONF: u16 = 1;
        let family = attributes(families).find(|family| family.kind() == AF_INET)?;
        let settings = attributes(family.value()).find(|conf| conf.kind() == IFLA_INET_CONF)?;
        let setting =
            |which: Ipv4Conf| settings.value().get((which as usize - 1) * 4..).and_then(number);
        Some(Self {
            forwarding: setting(Ipv4Conf::Forwarding)?,
            proxy_arp: setting(Ipv4Conf::ProxyArp)?,
            rp_filter: setting(Ipv4Conf::RpFilter)?,
        })
    }
}

/// By `IFLA_LINKINFO`.
fn is_veth(info: &[u8]) -> bool {
    const IFLA_INFO_KIND: u16 = 1;
    let is_it = |value: &[u8]| value.strip_suffix(&[0]).unwrap_or(value) == b"veth";
    attributes(info).any(|attribute| attribute.kind() == IFLA_INFO_KIND && is_it(attribute.value()))
}

/// A text, which ends with a zero.
fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

impl Reply {
    /// The link in the answer to a question for the link `which`; `None` if there is none.
    pub(crate) fn link(self, which: impl Display) -> Result<Option<Link>, Error> {
        self.read(&[Errno::ENODEV], format_args!("link show {which}"), Link::read)
    }
}

impl Socket {
    pub(crate) fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, Error> {
        self.one(message::get_link_by_name(name))?.link(name)
    }

    pub(crate) fn link(&mut self, index: u32) -> Result<Option<Link>, Error> {
        self.one(message::get_link(index))?.link(format_args!("if{index}"))
    }

    /// The name of a link, or its number if it has gone.
    pub(crate) fn link_name(&mut self, index: u32) -> Result<String, Error> {
        Ok(self.link(index)?.map_or_else(|| format!("if{index}"), |link| link.name))
    }

    /// All links.
    pub(crate) fn all_links(&mut self) -> Result<Vec<Link>, Error> {
        self.dump_read(&message::list_links(), "links", Link::read)
    }

    /// The veth links that fulfil a condition.
    pub(crate) fn links(&mut self, is_wanted: impl Fn(&Link) -> bool) -> Result<Vec<Link>, Error> {
        self.dump_read(&message::list_veths(), "links", |message| {
            Link::read(message).filter(&is_wanted)
        })
    }
}
