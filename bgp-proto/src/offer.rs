//! What our OPEN offers, and what it leaves out for a peer that refused it (RFC 5492).

use std::{collections::BTreeSet, fmt};

use twill_types::Family;

use crate::{
    PeerConfig, SpeakerConfig,
    connection::Negotiated,
    wire::{
        AddPathFamily, Capability, GracefulRestart, GracefulRestartFamily, LongLivedFamily,
        NextHopEncoding, Notification, Role, code, open_error,
    },
};

/// All that goes into an OPEN of ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer<'a> {
    pub(crate) speaker: &'a SpeakerConfig,
    pub(crate) peer: &'a PeerConfig,
    /// What it says of our own restarts.
    pub(crate) restart: OwnRestart,
    pub(crate) withheld: &'a Withheld,
}

impl Offer<'_> {
    /// The session is internal.
    pub(crate) fn internal(&self) -> bool {
        self.peer.is_internal(self.speaker)
    }

    /// Our role, where roles mean something (RFC 9234 section 4: external sessions).
    pub(crate) fn role(&self) -> Option<Role> {
        self.peer.policy.role.filter(|_| !self.internal())
    }

    /// The capabilities, in the order in which they are sent.
    pub(crate) fn capabilities(&self) -> Vec<Capability> {
        let families = &self.peer.families;
        let mut all: Vec<Capability> =
            families.iter().map(|family| Capability::MultiProtocol(*family)).collect();
        all.push(Capability::RouteRefresh);
        if families.contains(&Family::V4) {
            all.push(Capability::ExtendedNextHop(vec![NextHopEncoding::IPV4_OVER_IPV6]));
        }
        all.push(Capability::ExtendedMessage);
        all.extend(self.role().map(Capability::Role));
        all.push(Capability::GracefulRestart(self.graceful_restart()));
        // RFC 9494 section 5: only where it is asked for.
        let long_lived = self.long_lived();
        if !long_lived.is_empty() {
            all.push(Capability::LongLivedGracefulRestart(long_lived));
        }
        all.push(Capability::FourOctetAs(self.peer.local_asn(self.speaker)));
        // There is one path at most to what is announced here: what the node originates.
        let receive =
            |family: &Family| AddPathFamily { family: *family, receive: true, send: false };
        all.push(Capability::AddPath(families.iter().map(receive).collect()));
        all.push(Capability::EnhancedRouteRefresh);
        if !self.speaker.hostname.is_empty() {
            let host = self.speaker.hostname.clone();
            all.push(Capability::Fqdn { host, domain: String::new() });
        }
        all.retain(|capability| self.withheld.allows(capability));
        all
    }

    /// Whether we have kept forwarding for a family (the F bit).
    fn forwarding(&self, family: Family) -> bool {
        self.restart.forwarding || self.speaker.forwarding.contains(&family)
    }

    fn graceful_restart(&self) -> GracefulRestart {
        let kept = |&family: &Family| GracefulRestartFamily {
            family,
            forwarding: self.forwarding(family),
        };
        GracefulRestart {
            restarting: self.restart.restarting,
            notification: true,
            restart_time: self.peer.restart_time,
            families: self.peer.families.iter().map(kept).collect(),
        }
    }

    fn long_lived(&self) -> Vec<LongLivedFamily> {
        let wanted = self.peer.long_lived.iter();
        let wanted = wanted.filter(|(family, _)| self.peer.families.contains(family));
        let kept = |(&family, &stale_time): (&Family, &u32)| LongLivedFamily {
            family,
            forwarding: self.forwarding(family),
            stale_time,
        };
        wanted.map(kept).collect()
    }
}

/// What our OPEN says of our own restarts (RFC 4724 section 3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OwnRestart {
    /// R: we have restarted, and our End-of-RIB is not to be waited for.
    pub(crate) restarting: bool,
    /// The peer has had a session with this process, which has not stopped forwarding since.
    pub(crate) forwarding: bool,
}

/// What a peer does not want to see in an OPEN of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Withheld {
    kinds: BTreeSet<Kind>,
    rest: Rest,
}

/// What tells capabilities apart: the code, and of the multiprotocol capability its family.
type Kind = (u8, Option<Family>);

fn kind(capability: &Capability) -> Kind {
    match capability {
        Capability::MultiProtocol(family) => (capability.code(), Some(*family)),
        _ => (capability.code(), None),
    }
}

/// What of the others is offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Rest {
    /// All.
    #[default]
    All,
    /// Families and the four-octet AS number, without which there are no routes, or wrong ones.
    Needed,
    /// None: the OPEN has no optional parameter.
    Nothing,
}

impl Withheld {
    fn allows(&self, capability: &Capability) -> bool {
        let needed =
            matches!(capability, Capability::MultiProtocol(_) | Capability::FourOctetAs(_));
        let rest = match self.rest {
            Rest::All => true,
            Rest::Needed => needed,
            Rest::Nothing => false,
        };
        rest && !self.kinds.contains(&kind(capability))
    }

    /// Learns from the answer to an OPEN with these capabilities (RFC 5492 sections 3 and 5). Says
    /// whether the next OPEN will be another one.
    pub(crate) fn learn(&mut self, answer: &Notification, offered: &[Capability]) -> bool {
        let before = self.clone();
        match (answer.code, answer.subcode) {
            // A peer from before RFC 5492: it does not know the parameter.
            (code::OPEN, open_error::OPTIONAL_PARAMETER) => self.rest = Rest::Nothing,
            (code::OPEN, open_error::CAPABILITY) => self.refused(&answer.data, offered),
            _ => return false,
        }
        if offered.is_empty() {
            // There is nothing left to leave out, so that was not the reason.
            *self = Self::default();
        }
        *self != before
    }

    fn refused(&mut self, data: &[u8], offered: &[Capability]) {
        let mut named = Vec::new();
        if Capability::decode_all(data, &mut named).is_none() || named.is_empty() {
            self.rest = match self.rest {
                Rest::All => Rest::Needed,
                Rest::Needed | Rest::Nothing => Rest::Nothing,
            };
            return;
        }
        let offered: BTreeSet<Kind> = offered.iter().map(kind).collect();
        let unwanted: BTreeSet<Kind> =
            named.iter().map(kind).filter(|kind| offered.contains(kind)).collect();
        if unwanted.is_empty() {
            // Section 5: it names what it misses. What we have of that is offered again.
            *self = Self::default();
        }
        self.kinds.extend(unwanted);
    }
}

impl fmt::Display for Withheld {
    /// What the next OPEN is like, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rest {
            Rest::All if self.kinds.is_empty() => return f.write_str("with all capabilities"),
            Rest::All => f.write_str("without capability")?,
            Rest::Needed => return f.write_str("with families and AS number alone"),
            Rest::Nothing => return f.write_str("without capabilities"),
        }
        for (code, family) in &self.kinds {
            write!(f, " {code}")?;
            if let Some(family) = family {
                write!(f, " ({family})")?;
            }
        }
        Ok(())
    }
}

/// The capabilities that are in force on a session, for people.
pub(crate) fn names(negotiated: &Negotiated) -> Vec<&'static str> {
    let session = &negotiated.session;
    let role = |role: &Role| match role {
        Role::Provider => "peer is provider",
        Role::RouteServer => "peer is route server",
        Role::RouteServerClient => "peer is route server client",
        Role::Customer => "peer is customer",
        Role::Peer => "peer is peer",
        Role::Unassigned(_) => "peer has an unknown role",
    };
    let mut names = Vec::new();
    let mut add = |holds: bool, name| names.extend(holds.then_some(name));
    add(session.ipv4, "IPv4 unicast");
    add(session.ipv6, "IPv6 unicast");
    add(session.four_octet_as, "4-octet AS");
    add(negotiated.route_refresh, "route refresh");
    add(session.enhanced_refresh, "enhanced route refresh");
    add(negotiated.graceful_restart().is_some(), "graceful restart");
    add(!negotiated.long_lived.is_empty(), "long-lived graceful restart");
    add(session.add_path.receive_ipv4, "ADD-PATH receive IPv4");
    add(session.add_path.receive_ipv6, "ADD-PATH receive IPv6");
    add(session.send_extended, "extended messages");
    add(session.extended_next_hop, "IPv4 over IPv6 next hops");
    if let Some(theirs) = &negotiated.role {
        names.push(role(theirs));
    }
    names
}

#[cfg(test)]
mod tests {
    use twill_types::Asn;

    use super::*;

    fn offered() -> Vec<Capability> {
        vec![
            Capability::MultiProtocol(Family::V4),
            Capability::MultiProtocol(Family::V6),
            Capability::RouteRefresh,
            Capability::FourOctetAs(Asn::new(64512).unwrap()),
            Capability::ExtendedMessage,
        ]
    }

    /// A row of answers, and what the OPEN after the last one is like.
    #[test]
    fn what_is_refused_is_left_out() {
        let refused =
            |data: &[u8]| Notification::new(code::OPEN, open_error::CAPABILITY).with_data(data);
        let no_parameter = Notification::new(code::OPEN, open_error::OPTIONAL_PARAMETER);
        let other = Notification::new(code::OPEN, open_error::BAD_PEER_AS);
        let ipv6 = [1, 4, 0, 2, 0, 1];
        let rows: [(&[Notification], &[u8], &str); 9] = [
            (&[], &[1, 1, 2, 65, 6], "with all capabilities"),
            (&[other], &[1, 1, 2, 65, 6], "with all capabilities"),
            (&[refused(&[6, 0])], &[1, 1, 2, 65], "without capability 6"),
            (&[refused(&ipv6)], &[1, 2, 65, 6], "without capability 1 (IPv6)"),
            (&[refused(&[6, 0]), refused(&[2, 0])], &[1, 1, 65], "without capability 2 6"),
            (&[refused(&[])], &[1, 1, 65], "with families and AS number alone"),
            (&[refused(&[]), refused(&[])], &[], "without capabilities"),
            (&[no_parameter], &[], "without capabilities"),
            // It misses what we do not have: nothing is left out for that.
            (&[refused(&[6, 0]), refused(&[200, 0])], &[1, 1, 2, 65, 6], "with all capabilities"),
        ];
        for (answers, codes, text) in rows {
            let mut withheld = Withheld::default();
            for answer in answers {
                let now: Vec<_> = offered().into_iter().filter(|c| withheld.allows(c)).collect();
                withheld.learn(answer, &now);
            }
            let left = offered().into_iter().filter(|c| withheld.allows(c));
            assert_eq!(left.map(|c| c.code()).collect::<Vec<_>>(), codes, "{answers:?}");
            assert_eq!(withheld.to_string(), text);
        }
    }

    /// One that refuses the barest OPEN has another reason: what was left out is offered again.
    #[test]
    fn nothing_is_left_out_for_ever() {
        let mut withheld = Withheld::default();
        let refusal = Notification::new(code::OPEN, open_error::CAPABILITY);
        let mut sizes = Vec::new();
        for _ in 0..4 {
            let now: Vec<_> = offered().into_iter().filter(|c| withheld.allows(c)).collect();
            sizes.push(now.len());
            assert!(withheld.learn(&refusal, &now));
        }
        assert_eq!(sizes, [5, 3, 0, 5]);
    }
}
