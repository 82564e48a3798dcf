//! The other codec that has the dispositions of RFC 7606.

use std::net::IpAddr;

use bytes::Bytes;
use rustbgpd_wire::{
    Afi, Safi, UpdateMessage,
    attribute::{AsPathSegment, Origin, PathAttribute},
    nlri::{NlriEntry, Prefix as Theirs},
    validate::{ErrorDisposition, validate_update_attributes},
};
use twill_bgp_proto::wire::Session;
use twill_types::{Family, Prefix};

use crate::view::{Class, Key, View, path_text};

pub(crate) fn view(body: &[u8], session: &Session) -> View {
    let mut bytes = Bytes::copy_from_slice(body);
    let Ok(raw) = UpdateMessage::decode(&mut bytes, body.len()) else {
        return View::new(Class::Reset);
    };
    let mut families = Vec::new();
    if session.add_path.receive_ipv4 {
        families.push((Afi::Ipv4, Safi::Unicast));
    }
    if session.add_path.receive_ipv6 {
        families.push((Afi::Ipv6, Safi::Unicast));
    }
    let parsed = raw.parse_revised(
        session.four_octet_as,
        session.internal,
        session.add_path.receive_ipv4,
        &families,
    );
    let Ok(parsed) = parsed else {
        return View::new(Class::Reset);
    };
    let update = parsed.update;
    let reach = update.attributes.iter().find_map(|attribute| match attribute {
        PathAttribute::MpReachNlri(reach) => Some(reach),
        _ => None,
    });
    let mp = reach.is_some_and(|reach| !reach.announced.is_empty());
    let classic = !update.announced.is_empty();
    // The crate leaves the requirement for internal sessions to its caller.
    let valid = validate_update_attributes(&update.attributes, classic || mp, classic, true);
    let worst = parsed.malformed.iter().map(|malformed| malformed.disposition);
    let worst = worst.chain(valid.err().map(|error| error.disposition)).max();
    let class = match worst {
        Some(ErrorDisposition::SessionReset) => Class::Reset,
        Some(ErrorDisposition::TreatAsWithdraw) => Class::Withdraw,
        Some(ErrorDisposition::AttributeDiscard) | None => Class::Accept,
    };
    let mut view = View::new(class);
    view.flawed = worst.is_some();
    view.withdrawn
        .extend(update.withdrawn.iter().map(|e| v4(e.path_id, e.prefix.addr, e.prefix.len)));
    let mut announced: Vec<Key> =
        update.announced.iter().map(|e| v4(e.path_id, e.prefix.addr, e.prefix.len)).collect();
    announced.extend(reach.iter().flat_map(|reach| reach.announced.iter().map(key)));
    for attribute in &update.attributes {
        if let PathAttribute::MpUnreachNlri(unreach) = attribute {
            view.withdrawn.extend(unreach.withdrawn.iter().map(key));
        }
    }
    match class {
        Class::Accept => {
            view.announced.extend(announced);
            if classic || mp {
                update.attributes.iter().for_each(|attribute| note(attribute, &mut view, classic));
            }
        }
        Class::Withdraw => view.withdrawn.extend(announced),
        Class::Reset => return View::new(Class::Reset),
    }
    view
}

fn v4(path_id: u32, address: std::net::Ipv4Addr, length: u8) -> Key {
    (Prefix::masked(IpAddr::V4(address), length).unwrap(), path_id)
}

fn key(entry: &NlriEntry) -> Key {
    match entry.prefix {
        Theirs::V4(prefix) => v4(entry.path_id, prefix.addr, prefix.len),
        Theirs::V6(p) => (Prefix::masked(IpAddr::V6(p.addr), p.len).unwrap(), entry.path_id),
    }
}

fn note(attribute: &PathAttribute, view: &mut View, classic: bool) {
    match attribute {
        PathAttribute::Origin(origin) => view.one(
            "origin",
            Some(match origin {
                Origin::Igp => "IGP",
                Origin::Egp => "EGP",
                Origin::Incomplete => "incomplete",
            }),
        ),
        PathAttribute::AsPath(path) => {
            let segments = path.segments.iter().map(|segment| match segment {
                AsPathSegment::AsSet(asns) => (true, asns.clone()),
                AsPathSegment::AsSequence(asns) => (false, asns.clone()),
            });
            view.one("path", Some(path_text(segments)));
        }
        PathAttribute::Aggregator(a) => {
            view.one("aggregator", Some(format!("{} {}", a.asn, a.router_id)));
        }
        PathAttribute::AtomicAggregate => view.one("atomic", Some("yes")),
        PathAttribute::NextHop(address) if classic => {
            view.next_hops.insert((Family::V4, IpAddr::V4(*address)));
        }
        PathAttribute::LocalPref(value) => view.one("local-pref", Some(value)),
        PathAttribute::Med(value) => view.one("med", Some(value)),
        PathAttribute::Communities(all) | PathAttribute::CommunitiesPartial(all) => {
            view.set("communities", all.iter().map(u32::to_string));
        }
        PathAttribute::ExtendedCommunities(all)
        | PathAttribute::ExtendedCommunitiesPartial(all) => {
            view.set("extended", all.iter().map(|c| format!("{:02x?}", c.as_u64().to_be_bytes())));
        }
        PathAttribute::LargeCommunities(all) | PathAttribute::LargeCommunitiesPartial(all) => {
            let all = all.iter().map(|c| [c.global_admin, c.local_data1, c.local_data2]);
            view.set("large", all.map(|c| format!("{c:?}")));
        }
        PathAttribute::OriginatorId(id) => view.one("originator", Some(id)),
        PathAttribute::ClusterList(all) => {
            view.one("clusters", Some(format!("{all:?}")));
        }
        PathAttribute::OnlyToCustomer(asn) | PathAttribute::OnlyToCustomerPartial(asn) => {
            view.one("otc", Some(asn));
        }
        PathAttribute::MpReachNlri(reach) if !reach.announced.is_empty() => {
            let family = if reach.afi == Afi::Ipv6 { Family::V6 } else { Family::V4 };
            view.next_hops.insert((family, reach.next_hop));
        }
        PathAttribute::Unknown(raw) if raw.flags & 0x40 != 0 => {
            view.unknown.insert((raw.type_code, raw.data.to_vec()));
        }
        _ => {}
    }
}
