//! The codec of a collector: strict in syntax, without a notion of sessions.

use std::{collections::HashMap, net::IpAddr};

use netgauze_bgp_pkt::{
    path_attribute::{
        Aggregator, Aigp, AsPath, AsPathSegmentType, MpReach, MpUnreach, Origin, PathAttributeValue,
    },
    update::BgpUpdateMessage,
    wire::deserializer::BgpParsingContext,
};
use netgauze_iana::address_family::AddressType;
use netgauze_parse_utils::{WritablePdu, reader::SliceReader, traits::ParseFromWithOneInput};
use twill_bgp_proto::wire::Session;
use twill_types::{Family, Prefix};

use crate::view::{Class, Key, View, path_text};

/// `Accept` if it found nothing wrong with it, `Withdraw` if it left attributes or prefixes out,
/// `Reset` if it could not read it.
pub(crate) fn view(body: &[u8], session: &Session) -> View {
    let add_path = HashMap::from([
        (AddressType::Ipv4Unicast, session.add_path.receive_ipv4),
        (AddressType::Ipv6Unicast, session.add_path.receive_ipv6),
    ]);
    let four = session.four_octet_as;
    let mut context =
        BgpParsingContext::new(four, HashMap::new(), add_path, false, false, false, false);
    let mut reader = SliceReader::new(body);
    let Ok(update) = BgpUpdateMessage::parse(&mut reader, &mut context) else {
        return View::new(Class::Reset);
    };
    let errors = context.parsing_errors();
    let left_out = !errors.path_attr_errors().is_empty()
        || !errors.non_unicast_update_nlri().is_empty()
        || !errors.non_unicast_withdraw_nlri().is_empty();
    if left_out {
        return View::new(Class::Withdraw);
    }
    let mut view = View::new(Class::Accept);
    let v4 =
        |id: Option<u32>, net: ipnet::Ipv4Net| key(id, IpAddr::V4(net.addr()), net.prefix_len());
    view.withdrawn
        .extend(update.withdraw_routes().iter().map(|e| v4(e.path_id(), e.network().address())));
    view.announced.extend(update.nlri().iter().map(|e| v4(e.path_id(), e.network().address())));
    let classic = !update.nlri().is_empty();
    for attribute in update.path_attributes() {
        note(attribute.value(), classic, &mut view);
        if let PathAttributeValue::UnknownAttribute(raw) = attribute.value()
            && attribute.transitive()
        {
            view.unknown.insert((raw.code(), raw.value().to_vec()));
        }
    }
    view
}

fn key(id: Option<u32>, address: IpAddr, length: u8) -> Key {
    (Prefix::masked(address, length).unwrap(), id.unwrap_or(0))
}

fn routes(value: &PathAttributeValue, view: &mut View) {
    let v6 =
        |id: Option<u32>, net: ipnet::Ipv6Net| key(id, IpAddr::V6(net.addr()), net.prefix_len());
    let v4 =
        |id: Option<u32>, net: ipnet::Ipv4Net| key(id, IpAddr::V4(net.addr()), net.prefix_len());
    match value {
        PathAttributeValue::MpReach(MpReach::Ipv6Unicast { next_hop_global, nlri, .. }) => {
            view.announced.extend(nlri.iter().map(|e| v6(e.path_id(), e.network().address())));
            if !nlri.is_empty() {
                view.next_hops.insert((Family::V6, IpAddr::V6(*next_hop_global)));
            }
        }
        PathAttributeValue::MpReach(MpReach::Ipv4Unicast { next_hop, nlri, .. }) => {
            view.announced.extend(nlri.iter().map(|e| v4(e.path_id(), e.network().address())));
            if !nlri.is_empty() {
                view.next_hops.insert((Family::V4, *next_hop));
            }
        }
        PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
            view.withdrawn.extend(nlri.iter().map(|e| v6(e.path_id(), e.network().address())));
        }
        PathAttributeValue::MpUnreach(MpUnreach::Ipv4Unicast { nlri }) => {
            view.withdrawn.extend(nlri.iter().map(|e| v4(e.path_id(), e.network().address())));
        }
        _ => {}
    }
}

fn note(value: &PathAttributeValue, classic: bool, view: &mut View) {
    routes(value, view);
    match value {
        PathAttributeValue::Origin(origin) => view.one(
            "origin",
            Some(match origin {
                Origin::IGP => "IGP",
                Origin::EGP => "EGP",
                Origin::Incomplete => "incomplete",
            }),
        ),
        PathAttributeValue::AsPath(AsPath::As2PathSegments(all)) => {
            let all = all.iter().map(|segment| {
                let asns = segment.as_numbers().iter().map(|asn| u32::from(*asn)).collect();
                (segment.segment_type() == AsPathSegmentType::AsSet, asns)
            });
            view.one("path", Some(path_text(all)));
        }
        PathAttributeValue::AsPath(AsPath::As4PathSegments(all)) => {
            let all = all.iter().map(|segment| {
                let set = segment.segment_type() == AsPathSegmentType::AsSet;
                (set, segment.as_numbers().to_vec())
            });
            view.one("path", Some(path_text(all)));
        }
        PathAttributeValue::NextHop(hop) if classic => {
            view.next_hops.insert((Family::V4, IpAddr::V4(hop.next_hop())));
        }
        PathAttributeValue::MultiExitDiscriminator(med) => view.one("med", Some(med.metric())),
        PathAttributeValue::LocalPreference(value) => view.one("local-pref", Some(value.metric())),
        PathAttributeValue::AtomicAggregate(_) => view.one("atomic", Some("yes")),
        PathAttributeValue::Aggregator(Aggregator::As2Aggregator(a)) => {
            view.one("aggregator", Some(format!("{} {}", a.asn(), a.origin())));
        }
        PathAttributeValue::Aggregator(Aggregator::As4Aggregator(a)) => {
            view.one("aggregator", Some(format!("{} {}", a.asn(), a.origin())));
        }
        PathAttributeValue::Communities(all) => {
            view.set("communities", all.communities().iter().map(|c| c.value().to_string()));
        }
        PathAttributeValue::ExtendedCommunities(all) => {
            let octets = all.communities().iter().map(|community| {
                let mut octets = Vec::new();
                community.write(&mut octets).unwrap();
                format!("{octets:02x?}")
            });
            view.set("extended", octets);
        }
        PathAttributeValue::LargeCommunities(all) => {
            let all = all.communities().iter();
            let all = all.map(|c| [c.global_admin(), c.local_data1(), c.local_data2()]);
            view.set("large", all.map(|c| format!("{c:?}")));
        }
        PathAttributeValue::Originator(id) => view.one("originator", Some(id.id())),
        PathAttributeValue::ClusterList(all) => {
            let all: Vec<_> = all.cluster_list().iter().map(|id| id.id()).collect();
            view.one("clusters", (!all.is_empty()).then(|| format!("{all:?}")));
        }
        PathAttributeValue::OnlyToCustomer(otc) => view.one("otc", Some(otc.asn())),
        PathAttributeValue::Aigp(Aigp::AccumulatedIgpMetric(metric)) => {
            view.one("aigp", Some(metric));
        }
        _ => {}
    }
}
