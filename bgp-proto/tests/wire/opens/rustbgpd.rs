//! The codec of a speaker, which leaves it to its caller to judge what it has read (RFC 4271 section 6.2).

use bytes::Bytes;
use rustbgpd_wire::{Afi, Capability, OpenMessage, Safi};
use twill_bgp_proto::wire::{Notification, code, open_error};

use super::{Other, Said, Theirs, View, is_judgement};

pub(super) const OTHER: Other =
    Other { name: "rustbgpd", read, lost: None, refusal: |_| None, acceptance, reading };

fn read(body: &[u8]) -> Theirs {
    match OpenMessage::decode(&mut Bytes::copy_from_slice(body), body.len()) {
        Ok(open) => Theirs::Read(View {
            hold_time: open.hold_time,
            identifier: open.bgp_identifier.to_bits(),
            asn: open.four_byte_as(),
            capabilities: open.capabilities.iter().map(said).collect(),
        }),
        Err(error) => Theirs::Refused(error.to_string()),
    }
}

const fn is_ours(afi: Afi, safi: Safi) -> bool {
    matches!((afi, safi), (Afi::Ipv4 | Afi::Ipv6, Safi::Unicast))
}

fn said(capability: &Capability) -> Said {
    match capability {
        Capability::MultiProtocol { afi, safi } => {
            let [high, low] = (*afi as u16).to_be_bytes();
            Said::family([0, 0, high, low], *safi as u8)
        }
        Capability::RouteRefresh => Said::known(2, ""),
        Capability::ExtendedNextHop(all) => Said::list(
            5,
            all.iter().map(|one| {
                let (afi, safi) = (one.nlri_afi as u16, one.nlri_safi as u8);
                format!("{afi}/{safi} over {}", one.next_hop_afi as u16)
            }),
        ),
        Capability::ExtendedMessage => Said::known(6, ""),
        Capability::Role { role } => Said::known(9, role.to_u8()),
        Capability::GracefulRestart { restart_state, notification, restart_time, families } => {
            let ours = families.iter().filter(|one| is_ours(one.afi, one.safi));
            let text = ours.map(|one| format!("{} F {}", one.afi as u16, one.forwarding_preserved));
            Said::restart([*restart_state, *notification], *restart_time, text)
        }
        Capability::FourOctetAs { asn } => Said::known(65, asn),
        Capability::AddPath(all) => {
            let ours = all.iter().filter(|one| is_ours(one.afi, one.safi));
            let text = ours.map(|one| {
                let mode = one.send_receive as u8;
                let (receive, send) = (mode & 1 != 0, mode & 2 != 0);
                format!("{} receive {receive} send {send}", one.afi as u16)
            });
            Said::list(69, text)
        }
        Capability::EnhancedRouteRefresh => Said::known(70, ""),
        Capability::LongLivedGracefulRestart(all) => {
            let ours = all.iter().filter(|one| is_ours(one.afi, one.safi));
            let text = ours.map(|one| {
                format!("{} F {} {} s", one.afi as u16, one.forwarding_preserved, one.stale_time)
            });
            Said::list(71, text)
        }
        Capability::LinkLocalNextHop => Said::known(77, "theirs"),
        Capability::PathsLimit(_) => Said::known(76, "theirs"),
        Capability::OutboundRouteFilter(_) => Said::known(3, "theirs"),
        Capability::Unknown { code, data } => Said::raw(*code, data),
        // There may be more in another version.
        other => Said::known(0, format!("{other:?}")),
    }
}

fn acceptance(body: &[u8], ours: &Notification) -> Option<&'static str> {
    let fields = [open_error::BAD_PEER_AS, open_error::BAD_IDENTIFIER, open_error::HOLD_TIME];
    let broken_as = || {
        let open = OpenMessage::decode(&mut Bytes::copy_from_slice(body), body.len());
        let is_broken = |one: &Capability| matches!(one, Capability::Unknown { code: 65, .. });
        ours.code == code::OPEN
            && ours.subcode == open_error::UNSPECIFIC
            && open.is_ok_and(|open| open.capabilities.iter().any(is_broken))
    };
    (is_judgement(ours, &fields) || broken_as()).then_some("rustbgpd-open-judged")
}

fn reading(ours: &Said, theirs: &Said) -> Option<&'static str> {
    match (ours.code, ours.known, theirs.known) {
        // One entry of a family that it does not know, or none at all, and it keeps octets alone.
        (5 | 69 | 71, true, false) if theirs.code == ours.code => Some("rustbgpd-open-families"),
        (3 | 76 | 77, false, true) if theirs.code == ours.code => Some("rustbgpd-open-others"),
        _ => None,
    }
}
