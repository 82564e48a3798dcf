//! The codec of a collector.

use std::{collections::HashMap, net::Ipv4Addr};

use netgauze_bgp_pkt::{
    capabilities::BgpCapability, open::BgpOpenMessage, wire::deserializer::BgpParsingContext,
};
use netgauze_iana::address_family::AddressType;
use netgauze_parse_utils::{WritablePdu, reader::SliceReader, traits::ParseFromWithOneInput};
use twill_bgp_proto::wire::{Notification, open_error};

use super::{Other, Said, Theirs, View, is_judgement};

pub(super) const OTHER: Other = Other {
    name: "netgauze",
    read,
    lost: Some("netgauze-open-lost"),
    refusal,
    acceptance,
    reading,
};

fn read(body: &[u8]) -> Theirs {
    let none = HashMap::new;
    let mut context =
        BgpParsingContext::new(true, none(), HashMap::new(), false, false, false, false);
    let open = match BgpOpenMessage::parse(&mut SliceReader::new(body), &mut context) {
        Ok(open) => open,
        Err(error) => return Theirs::Refused(error.to_string()),
    };
    let capabilities = open.capabilities();
    // That one is read to the end of all, whatever its length says.
    let is_labels = |one: &&BgpCapability| matches!(one, BgpCapability::MultipleLabels(_));
    let errors = context.parsing_errors().capability_errors();
    if !errors.is_empty() || capabilities.iter().any(is_labels) {
        return Theirs::Lost;
    }
    Theirs::Read(View {
        hold_time: open.hold_time(),
        identifier: open.bgp_id().to_bits(),
        asn: open.my_asn4(),
        capabilities: capabilities.into_iter().map(said).collect(),
    })
}

fn afi(address: AddressType) -> u16 {
    address.address_family().into()
}

fn safi(address: AddressType) -> u8 {
    address.subsequent_address_family().into()
}

fn is_ours(address: AddressType) -> bool {
    matches!(address, AddressType::Ipv4Unicast | AddressType::Ipv6Unicast)
}

fn said(capability: &BgpCapability) -> Said {
    match capability {
        BgpCapability::MultiProtocolExtensions(one) => {
            let [high, low] = afi(one.address_type()).to_be_bytes();
            Said::family([0, 0, high, low], safi(one.address_type()))
        }
        BgpCapability::RouteRefresh => Said::known(2, ""),
        BgpCapability::ExtendedNextHopEncoding(all) => Said::list(
            5,
            all.encodings().iter().map(|one| {
                let over: u16 = one.next_hop_afi().into();
                format!("{}/{} over {over}", afi(one.address_type()), safi(one.address_type()))
            }),
        ),
        BgpCapability::ExtendedMessage => Said::known(6, ""),
        BgpCapability::BgpRole(one) => Said::known(9, u8::from(one.role())),
        BgpCapability::GracefulRestartCapability(restart) => {
            let all = restart.address_families().iter();
            let ours = all.filter(|one| is_ours(one.address_type()));
            let text =
                ours.map(|one| format!("{} F {}", afi(one.address_type()), one.forwarding_state()));
            let bits = [restart.restart(), restart.graceful_notification()];
            Said::restart(bits, restart.time(), text)
        }
        BgpCapability::FourOctetAs(one) => Said::known(65, one.asn4()),
        BgpCapability::AddPath(all) => {
            let ours = all.address_families().iter().filter(|one| is_ours(one.address_type()));
            let text = ours.map(|one| {
                let (receive, send) = (one.receive(), one.send());
                format!("{} receive {receive} send {send}", afi(one.address_type()))
            });
            Said::list(69, text)
        }
        BgpCapability::EnhancedRouteRefresh => Said::known(70, ""),
        BgpCapability::LongLivedGracefulRestart(all) => {
            let ours = all.address_families().iter().filter(|one| is_ours(one.address_type()));
            let text = ours.map(|one| {
                let (forwarding, time) = (one.forwarding_state(), one.stale_time());
                format!("{} F {forwarding} {time} s", afi(one.address_type()))
            });
            Said::list(71, text)
        }
        BgpCapability::Fqdn(names) => Said::names(names.hostname(), names.domain_name()),
        BgpCapability::Unrecognized(one) => Said::raw(*one.code(), one.value()),
        other => {
            let mut octets = Vec::new();
            other.write(&mut octets).unwrap();
            Said::raw(octets[0], &octets[2..])
        }
    }
}

fn refusal(body: &[u8]) -> Option<&'static str> {
    let identifier = Ipv4Addr::from([body[5], body[6], body[7], body[8]]);
    if identifier.is_multicast() || identifier.is_broadcast() {
        return Some("netgauze-open-identifier");
    }
    (body[9] != 0 && body.get(10) == Some(&255)).then_some("netgauze-open-extended")
}

fn acceptance(body: &[u8], ours: &Notification) -> Option<&'static str> {
    if is_judgement(ours, &[open_error::BAD_PEER_AS]) {
        return Some("netgauze-open-asn");
    }
    let is_tail = is_judgement(ours, &[open_error::UNSPECIFIC]);
    (is_tail && body.len() > 10 + usize::from(body[9])).then_some("netgauze-open-tail")
}

fn reading(ours: &Said, theirs: &Said) -> Option<&'static str> {
    match (ours.code, ours.known) {
        _ if ours.code != theirs.code => None,
        (5, true) => Some("netgauze-open-next-hop"),
        (69, false) => Some("netgauze-open-add-path"),
        (73, false) => Some("netgauze-open-names"),
        _ => None,
    }
}
