//! What Twill reads of a link.

use std::fmt::Display;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute, LinkFlags, LinkMessage, Prop},
};
use nix::errno::Errno;
use twill_types::{AttachmentId, DELETE_GROUP, LinkAlias};

use crate::{
    Error, message,
    netlink::{Reply, Socket},
};

/// The group into which links are put directly before the group is deleted.
pub(crate) const BATCH_GROUP: u32 = DELETE_GROUP + 1;

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
    /// For a veth: the index of its peer, in the peer's namespace.
    pub peer: Option<u32>,
    /// Its hardware address.
    pub mac: Vec<u8>,
    /// Its IPv4 settings.
    pub(crate) ipv4: Option<InetDevConf>,
}

impl Link {
    pub(crate) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: None,
            altnames: Vec::new(),
            mtu: 0,
            group: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            peer: None,
            mac: Vec::new(),
            ipv4: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::Link(peer) => link.peer = Some(*peer),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::PropList(props) => {
                    link.altnames.extend(props.iter().filter_map(|prop| match prop {
                        Prop::AltIfName(name) => Some(name.clone()),
                        _ => None,
                    }));
                }
                LinkAttribute::AfSpecUnspec(families) => link.ipv4 = ipv4_settings(families),
                _ => {}
            }
        }
        link
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
        self.ipv4.map_or(0, |conf| u32::try_from(conf.rp_filter).unwrap_or_default())
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
            (alias, _) => Owner::Other(alias.to_owned()),
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
    /// Somebody else's, with this alias.
    Other(String),
}

fn ipv4_settings(families: &[AfSpecUnspec]) -> Option<InetDevConf> {
    families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet(settings) => settings.iter().find_map(|setting| match setting {
            AfSpecInet::DevConf(conf) => Some(*conf),
            _ => None,
        }),
        _ => None,
    })
}

impl Reply {
    /// The link in the answer to a question for the link `which`; `None` if there is none.
    pub(crate) fn link(self, which: impl Display) -> Result<Option<Link>, Error> {
        match self.answer(&[Errno::ENODEV], format_args!("link show {which}"))? {
            Some(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::from_message(&message))),
            _ => Ok(None),
        }
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
        self.dump(&message::list_links(), "links", |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from_message(&message)),
            _ => None,
        })
    }

    /// The veth links that fulfil a condition.
    pub(crate) fn links(&mut self, is_wanted: impl Fn(&Link) -> bool) -> Result<Vec<Link>, Error> {
        self.dump(&message::list_veths(), "links", |message| match message {
            RouteNetlinkMessage::NewLink(message) => {
                Some(Link::from_message(&message)).filter(&is_wanted)
            }
            _ => None,
        })
    }
}
