//! OPENs beside `rustbgpd-wire`: taken or refused, and what they say. `netgauze-bgp-pkt` knows no
//! extended parameters (RFC 9072) and has other numbers for roles, so it says little about them.

use bytes::Bytes;
use rustbgpd_wire::{Afi, BgpRole, Capability as Theirs, OpenMessage, Safi};
use twill_bgp_proto::wire::{Capability, Open, Role, code, decode_open, open_error};
use twill_types::Family;

use crate::messages::{Random, damage, open};

/// What both say in the same words.
#[derive(Debug, PartialEq, Eq)]
struct View {
    hold_time: u16,
    identifier: u32,
    asn: u32,
    families: Vec<Family>,
    names: Vec<String>,
}

fn ours(open: &Open) -> View {
    let name = |capability: &Capability| match capability {
        Capability::RouteRefresh => Some("refresh".to_owned()),
        Capability::EnhancedRouteRefresh => Some("enhanced refresh".to_owned()),
        Capability::ExtendedMessage => Some("extended message".to_owned()),
        Capability::Role(Role::Unassigned(_)) => None,
        Capability::Role(role) => Some(format!("{role:?}")),
        Capability::GracefulRestart(r) => {
            Some(format!("restart {} {} {}", r.restarting, r.notification, r.restart_time))
        }
        _ => None,
    };
    View {
        hold_time: open.hold_time,
        identifier: open.identifier.to_bits(),
        asn: open.asn.get(),
        families: families(open.capabilities.iter().filter_map(|capability| match capability {
            Capability::MultiProtocol(family) => Some(*family),
            _ => None,
        })),
        names: open.capabilities.iter().filter_map(name).collect(),
    }
}

fn families(all: impl Iterator<Item = Family>) -> Vec<Family> {
    let mut all: Vec<Family> = all.collect();
    all.sort();
    all.dedup();
    all
}

fn theirs(open: &OpenMessage) -> View {
    let name = |capability: &Theirs| match capability {
        Theirs::RouteRefresh => Some("refresh".to_owned()),
        Theirs::EnhancedRouteRefresh => Some("enhanced refresh".to_owned()),
        Theirs::ExtendedMessage => Some("extended message".to_owned()),
        Theirs::Role { role: BgpRole::Provider } => Some("Provider".to_owned()),
        Theirs::Role { role: BgpRole::RouteServer } => Some("RouteServer".to_owned()),
        Theirs::Role { role: BgpRole::RouteServerClient } => Some("RouteServerClient".to_owned()),
        Theirs::Role { role: BgpRole::Customer } => Some("Customer".to_owned()),
        Theirs::Role { role: BgpRole::Peer } => Some("Peer".to_owned()),
        Theirs::GracefulRestart { restart_state, notification, restart_time, .. } => {
            Some(format!("restart {restart_state} {notification} {restart_time}"))
        }
        _ => None,
    };
    View {
        hold_time: open.hold_time,
        identifier: open.bgp_identifier.to_bits(),
        asn: open.four_byte_as(),
        families: families(open.capabilities.iter().filter_map(|capability| match capability {
            Theirs::MultiProtocol { afi: Afi::Ipv4, safi: Safi::Unicast } => Some(Family::V4),
            Theirs::MultiProtocol { afi: Afi::Ipv6, safi: Safi::Unicast } => Some(Family::V6),
            _ => None,
        })),
        names: open.capabilities.iter().filter_map(name).collect(),
    }
}

#[test]
fn opens_are_read_alike() {
    let count = if cfg!(debug_assertions) { 50_000 } else { 500_000 };
    let mut random = Random::new(9072);
    let (mut both, mut neither, mut semantic) = (0, 0, 0);
    for index in 0..count {
        let mut body = open(&mut random);
        if index % 3 != 0 {
            damage(&mut random, &mut body);
        }
        // Shorter ones do not get through the header.
        if body.len() < 10 {
            continue;
        }
        let other = OpenMessage::decode(&mut Bytes::copy_from_slice(&body), body.len());
        match (decode_open(&body), other) {
            (Ok(open), Ok(other)) => {
                both += 1;
                assert_eq!(ours(&open), theirs(&other), "{body:02x?}");
            }
            (Err(_), Err(_)) => neither += 1,
            // It reads fields and leaves it to its caller to judge them (RFC 4271 section 6.2).
            (Err(error), Ok(other)) => {
                let judged = match error.subcode {
                    open_error::BAD_PEER_AS
                    | open_error::BAD_IDENTIFIER
                    | open_error::HOLD_TIME => true,
                    open_error::UNSPECIFIC => other
                        .capabilities
                        .iter()
                        .any(|capability| matches!(capability, Theirs::Unknown { code: 65, .. })),
                    _ => false,
                };
                assert!(judged && error.code == code::OPEN, "{error:?} {body:02x?}");
                semantic += 1;
            }
            (Ok(_), Err(error)) => panic!("{error}: {body:02x?}"),
        }
    }
    println!("both {both}, neither {neither}, we alone refuse {semantic}");
}
