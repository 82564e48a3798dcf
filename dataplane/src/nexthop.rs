//! Nexthop objects on the wire (`linux/nexthop.h`), which `netlink-packet-route` does not have.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{
    NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlaBuffer, NlasIterator,
};
use twill_types::{Family, ROUTE_PROTOCOL};

use crate::{
    NextHop,
    fib::{Group, Object, ObjectChange, ObjectId},
    message::address_family,
    netlink::{RawRequest, number, push_attribute},
};

pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
/// Tells of a bucket of a resilient group that has another next hop now.
#[cfg(feature = "watch")]
pub(crate) const RTM_NEWNEXTHOPBUCKET: u16 = 116;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_RES_GROUP: u16 = 12;
const NHA_RES_GROUP_BUCKETS: u16 = 1;
const NHA_RES_GROUP_IDLE_TIMER: u16 = 2;

/// The two types of group: by hash, and resilient.
const TYPE_HASH: u16 = 0;
const TYPE_RESILIENT: u16 = 1;

/// `RTNH_F_ONLINK`.
const FLAG_ONLINK: u32 = 4;

/// `struct nhmsg`: family, scope, protocol, a reserved octet, flags.
const HEADER: usize = 8;

/// `struct nexthop_grp`: the object's number, its weight less one, three reserved octets.
const ENTRY: usize = 8;

/// Buckets of a guarded group. With these, a member has [`MEMBER_WEIGHT`] : 1 of all against a backup,
/// which is rounded to none for the backup; and 2, 3, 4, 5, 6 or 8 members get the same each.
const BUCKETS: u16 = 120;

/// The greatest weight that every kernel takes.
const MEMBER_WEIGHT: u8 = 255;

fn header(family: u8, flags: u32) -> Vec<u8> {
    let mut payload = vec![family, 0, ROUTE_PROTOCOL, 0];
    payload.extend(flags.to_ne_bytes());
    payload
}

/// The request that makes a change.
pub(crate) fn request(change: &ObjectChange) -> RawRequest {
    match change {
        ObjectChange::Create(id, object) => RawRequest {
            kind: RTM_NEWNEXTHOP,
            // Never somebody else's object in its place.
            flags: NLM_F_CREATE | NLM_F_EXCL,
            payload: match object {
                Object::Hop(hop) => hop_payload(*id, hop),
                Object::Group(group) => group_payload(*id, group, true),
            },
        },
        ObjectChange::Replace(id, group) => RawRequest {
            kind: RTM_NEWNEXTHOP,
            flags: NLM_F_REPLACE,
            payload: group_payload(*id, group, false),
        },
        ObjectChange::Delete(id) => {
            // The kernel takes no protocol here. What has a number of our range and was not refused to
            // us is ours.
            let mut payload = vec![0; HEADER];
            push_attribute(&mut payload, NHA_ID, &id.0.to_ne_bytes());
            RawRequest { kind: RTM_DELNEXTHOP, flags: 0, payload }
        }
    }
}

fn hop_payload(id: ObjectId, hop: &NextHop) -> Vec<u8> {
    let family = hop.gateway.map_or(Family::V4, Family::of);
    let flags = if hop.onlink { FLAG_ONLINK } else { 0 };
    let mut payload = header(address_family(family).into(), flags);
    push_attribute(&mut payload, NHA_ID, &id.0.to_ne_bytes());
    push_attribute(&mut payload, NHA_OIF, &hop.ifindex.to_ne_bytes());
    match hop.gateway {
        Some(IpAddr::V4(v4)) => push_attribute(&mut payload, NHA_GATEWAY, &v4.octets()),
        Some(IpAddr::V6(v6)) => push_attribute(&mut payload, NHA_GATEWAY, &v6.octets()),
        None => {}
    }
    payload
}

fn group_payload(id: ObjectId, group: &Group, new: bool) -> Vec<u8> {
    let mut payload = header(0, 0);
    push_attribute(&mut payload, NHA_ID, &id.0.to_ne_bytes());
    let member_weight = if group.guarded { MEMBER_WEIGHT } else { 1 };
    let members = group.members.iter().map(|member| (member, member_weight));
    let mut entries = Vec::new();
    for (member, weight) in members.chain(group.backup.iter().map(|backup| (backup, 1))) {
        entries.extend(member.0.to_ne_bytes());
        entries.extend([weight - 1, 0, 0, 0]);
    }
    push_attribute(&mut payload, NHA_GROUP, &entries);
    let kind = if group.guarded { TYPE_RESILIENT } else { TYPE_HASH };
    push_attribute(&mut payload, NHA_GROUP_TYPE, &kind.to_ne_bytes());
    // Their number stays for a group's life.
    if group.guarded && new {
        let mut settings = Vec::new();
        push_attribute(&mut settings, NHA_RES_GROUP_BUCKETS, &BUCKETS.to_ne_bytes());
        // A member that is back gets its share at once, as in a group by hash.
        push_attribute(&mut settings, NHA_RES_GROUP_IDLE_TIMER, &0u32.to_ne_bytes());
        push_attribute(&mut payload, NHA_RES_GROUP | NLA_F_NESTED, &settings);
    }
    payload
}

/// Asks for all objects: the kernel has no filter for the protocol.
pub(crate) fn list() -> RawRequest {
    RawRequest { kind: RTM_GETNEXTHOP, flags: 0, payload: vec![0; HEADER] }
}

/// Whether a message about a nexthop object is about one with our protocol number.
pub(crate) fn is_ours(payload: &[u8]) -> bool {
    payload.get(2) == Some(&ROUTE_PROTOCOL)
}

/// Reads a message about an object of ours; `None` for others, and for what Twill never makes.
pub(crate) fn read(payload: &[u8]) -> Option<(ObjectId, Object)> {
    let found = Some(payload).filter(|payload| is_ours(payload)).and_then(Attributes::read)?;
    let object = match &found.entries {
        Some(entries) => Object::Group(read_group(entries, found.guarded)?),
        None => Object::Hop(found.hop()?),
    };
    Some((found.id.and_then(ObjectId::new)?, object))
}

/// Any object, by its number: somebody else's, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AnyObject {
    Hop(NextHop),
    /// Of these, whatever their weights are.
    Group(Vec<u32>),
}

/// Reads a message about any object; `None` for what leads nowhere.
pub(crate) fn read_any(payload: &[u8]) -> Option<(u32, AnyObject)> {
    let found = Attributes::read(payload)?;
    let object = match &found.entries {
        Some(entries) => AnyObject::Group(entries.chunks_exact(ENTRY).filter_map(number).collect()),
        None => AnyObject::Hop(found.hop()?),
    };
    Some((found.id?, object))
}

/// What a message says of an object.
#[derive(Debug, Default)]
struct Attributes {
    id: Option<u32>,
    ifindex: Option<u32>,
    gateway: Option<IpAddr>,
    onlink: bool,
    /// Those of a group, as they came.
    entries: Option<Vec<u8>>,
    guarded: bool,
}

impl Attributes {
    fn read(payload: &[u8]) -> Option<Self> {
        let onlink = number(payload.get(4..HEADER)?)? & FLAG_ONLINK != 0;
        let mut found = Self { onlink, ..Self::default() };
        for attribute in NlasIterator::new(payload.get(HEADER..)?).map_while(Result::ok) {
            let value = attribute.value();
            match attribute.kind() {
                NHA_ID => found.id = number(value),
                NHA_OIF => found.ifindex = number(value),
                NHA_GATEWAY => found.gateway = read_gateway(&attribute),
                NHA_GROUP => found.entries = Some(value.to_vec()),
                NHA_GROUP_TYPE => found.guarded = value.starts_with(&TYPE_RESILIENT.to_ne_bytes()),
                _ => {}
            }
        }
        Some(found)
    }

    fn hop(&self) -> Option<NextHop> {
        Some(NextHop { gateway: self.gateway, ifindex: self.ifindex?, onlink: self.onlink })
    }
}

fn read_gateway(attribute: &NlaBuffer<&[u8]>) -> Option<IpAddr> {
    let value = attribute.value();
    let v4 = || <[u8; 4]>::try_from(value).ok().map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into());
    v4().or_else(v6)
}

fn read_group(entries: &[u8], guarded: bool) -> Option<Group> {
    let mut group = Group { members: BTreeSet::new(), backup: None, guarded };
    for entry in entries.chunks_exact(ENTRY) {
        let member = number(entry).and_then(ObjectId::new)?;
        match entry.get(4) {
            Some(0) if guarded => group.backup = Some(member),
            _ => _ = group.members.insert(member),
        }
    }
    // A backup that is left alone has all the traffic.
    if group.members.is_empty() {
        group.members.extend(group.backup.take());
    }
    Some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> ObjectId {
        ObjectId::new(ObjectId::FIRST + number).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let hop = |gateway: &str, onlink| {
            Object::Hop(NextHop { gateway: Some(gateway.parse().unwrap()), ifindex: 7, onlink })
        };
        let group = |members: &[u32], backup: Option<u32>, guarded| {
            let members = members.iter().map(|number| id(*number)).collect();
            Object::Group(Group { members, backup: backup.map(id), guarded })
        };
        for object in [
            hop("192.0.2.1", false),
            hop("fe80::1", true),
            group(&[1], None, false),
            group(&[1, 2, 3], None, false),
            group(&[2], Some(1), true),
            group(&[1, 2], None, true),
        ] {
            let written = request(&ObjectChange::Create(id(9), object.clone()));
            assert_eq!(written.payload.len() % 4, 0);
            assert_eq!(read(&written.payload), Some((id(9), object)));
        }
    }

    #[test]
    fn others_objects_and_cut_ones_are_none() {
        let hop = NextHop { gateway: None, ifindex: 7, onlink: false };
        let written = request(&ObjectChange::Create(id(9), Object::Hop(hop)));
        let mut foreign = written.payload.clone();
        foreign[2] = 4;
        assert_eq!(read(&foreign), None);
        assert_eq!(read_any(&foreign), Some((id(9).0, AnyObject::Hop(hop))));
        let members = [id(1), id(2)].into();
        let group = Object::Group(Group { members, backup: None, guarded: false });
        let group = request(&ObjectChange::Create(id(7), group));
        let members = vec![id(1).0, id(2).0];
        assert_eq!(read_any(&group.payload), Some((id(7).0, AnyObject::Group(members))));
        for length in 0..written.payload.len() {
            assert_eq!(read(&written.payload[..length]), None, "{length} octets");
        }
    }
}
