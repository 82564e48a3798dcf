//! The known differences. Each one says exactly when it may appear.

use twill_bgp_proto::wire::Session;

use crate::view::{Class, View};

pub(crate) struct Case<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) session: &'a Session,
    pub(crate) ours: &'a View,
    pub(crate) theirs: &'a View,
}

/// An attribute as it stands in the message.
struct Raw<'a> {
    flags: u8,
    kind: u8,
    value: &'a [u8],
}

impl Raw<'_> {
    /// Of a kind that rustbgpd knows and we do not.
    fn of_others(&self) -> bool {
        matches!(self.kind, 22..=25 | 27 | 29 | 33 | 34 | 36..=42 | 128)
    }

    /// Has AS 0 in a path or as the aggregator.
    fn as_zero(&self, four_octet_as: bool) -> bool {
        let width = if four_octet_as || self.kind == 17 { 4 } else { 2 };
        if self.kind == 7 {
            return self.value.iter().take(width).all(|octet| *octet == 0);
        }
        let mut rest = self.value;
        while let [_, count, more @ ..] = rest {
            let Some((asns, more)) = more.split_at_checked(usize::from(*count) * width) else {
                break;
            };
            if asns.chunks(width).any(|asn| asn.iter().all(|octet| *octet == 0)) {
                return matches!(self.kind, 2 | 17);
            }
            rest = more;
        }
        false
    }

    fn unknown_well_known(&self) -> bool {
        self.flags & 0x80 == 0 && !matches!(self.kind, 1..=10 | 14..=18 | 26 | 32 | 35)
    }
}

/// In what two views differ.
pub(crate) fn differences(name: &str, case: &Case<'_>) -> Vec<&'static str> {
    let (ours, theirs) = (case.ours, case.theirs);
    if name == "netgauze" {
        // It gives no disposition: only whether something is wrong can be compared.
        match (ours.flawed, theirs.class != Class::Accept) {
            (true, false) => return ours.faults.clone(),
            (false, true) => return vec!["they find an error"],
            (true, true) => return Vec::new(),
            (false, false) => {}
        }
    } else if ours.class != theirs.class {
        return vec!["class"];
    }
    let mut all = Vec::new();
    let mut note = |name, differs: bool| all.extend(differs.then_some(name));
    note("announced", ours.announced != theirs.announced);
    note("withdrawn", ours.withdrawn != theirs.withdrawn);
    if ours.announced.is_empty() {
        return all;
    }
    note("next hop", ours.next_hops != theirs.next_hops);
    note("unknown", ours.unknown != theirs.unknown);
    for name in NAMES {
        note(name, ours.attributes.get(name) != theirs.attributes.get(name));
    }
    all
}

const NAMES: [&str; 13] = [
    "origin",
    "path",
    "med",
    "local-pref",
    "atomic",
    "aggregator",
    "communities",
    "extended",
    "large",
    "originator",
    "clusters",
    "otc",
    "aigp",
];

/// What explains a difference.
pub(crate) fn reason(name: &str, difference: &str, case: &Case<'_>) -> Option<&'static str> {
    let facts = Facts::of(case);
    REASONS
        .iter()
        .find(|(id, of, applies)| {
            id.starts_with(name) && of.contains(&difference) && applies(case, &facts)
        })
        .map(|(id, ..)| *id)
}

pub(crate) fn ids() -> impl Iterator<Item = &'static str> {
    REASONS.iter().map(|(id, ..)| *id)
}

type Reason = (&'static str, &'static [&'static str], fn(&Case<'_>, &Facts<'_>) -> bool);

const NO_UNICAST: &[&str] = &["it is no unicast address", "its next hop is no unicast address"];

/// Name, in what it shows, and when it may. For netgauze, which has no dispositions, what shows is
/// the error that we find and it does not.
#[rustfmt::skip]
const REASONS: &[Reason] = &[
    ("rustbgpd-no-routes", &["class"], |case, facts| {
        is(case, Class::Reset, Class::Withdraw) && facts.reachable() == 0
    }),
    ("rustbgpd-empty-reach", &["class"], |case, facts| {
        is(case, Class::Accept, Class::Withdraw) && facts.value(14).is_some() && facts.mp_routes() == 0
    }),
    ("rustbgpd-next-hop", &["class"], |case, facts| {
        case.theirs.class == Class::Accept && facts.next_hops().any(|n| n[0] == 0 || n[0] >= 240)
    }),
    ("rustbgpd-link-local", &["class"], |case, facts| {
        let local = |octets: &[u8]| octets[0] == 0xfe && octets[1] & 0xc0 == 0x80;
        is(case, Class::Accept, Class::Withdraw)
            && facts.value(14).is_some_and(|value| match value {
                [_, _, _, 16, rest @ ..] => local(rest),
                [_, _, _, 32, rest @ ..] => local(rest) || !local(&rest[16..]),
                _ => false,
            })
    }),
    ("rustbgpd-well-known", &["class"], |case, facts| {
        is(case, Class::Reset, Class::Withdraw) && facts.any(|raw| raw.unknown_well_known())
    }),
    ("rustbgpd-as4-flags", &["class"], |case, facts| {
        is(case, Class::Accept, Class::Withdraw)
            && case.session.four_octet_as
            && facts.any(|raw| matches!(raw.kind, 17 | 18) && raw.flags & 0xc0 != 0xc0)
    }),
    ("rustbgpd-family", &["class"], |case, facts| {
        case.theirs.class == Class::Reset && facts.other_family()
    }),
    ("rustbgpd-partial", &["class"], |case, facts| {
        case.theirs.class > case.ours.class
            && facts.any(|raw| raw.flags & 0x20 != 0 && raw.flags & 0xc0 != 0xc0)
    }),
    ("rustbgpd-others", &["class", "unknown"], |case, facts| {
        (case.ours.class < case.theirs.class || case.theirs.class == Class::Accept)
            && facts.any(|raw| raw.of_others())
    }),
    ("rustbgpd-martian", &["announced", "next hop"], |case, _| {
        case.ours.flawed && martian(&case.theirs.announced - &case.ours.announced)
    }),
    ("rustbgpd-aigp", &["aigp"], |case, _| case.session.aigp),
    ("rustbgpd-later", &["class"], |case, facts| {
        is(case, Class::Accept, Class::Withdraw)
            && (facts.later_path_has_set() || case.ours.faults.iter().any(|f| f.contains("twice")))
    }),
    ("rustbgpd-internal", &["local-pref", "originator", "clusters"], |case, _| {
        !case.session.internal
    }),
    ("rustbgpd-as4-aggregator", &["aggregator"], |case, facts| {
        !case.session.four_octet_as && facts.value(7).is_none() && facts.value(18).is_some()
    }),
    ("netgauze-missing", &["it is missing"], |_, _| true),
    ("netgauze-twice", &["it is there twice; the first one is used", "it is there twice"], |_, _| true),
    ("netgauze-well-known", &["it is well-known and unknown"], |_, _| true),
    ("netgauze-next-hop", NO_UNICAST, |_, _| true),
    ("netgauze-martian", &["a prefix is no unicast destination"], |_, _| true),
    ("netgauze-internal", &["it does not belong on an external session"], |_, _| true),
    ("netgauze-four-octet", &["it does not belong on a session with four-octet numbers"], |_, _| true),
    ("netgauze-as-set", &["the path has an AS_SET"], |_, _| true),
    ("netgauze-family", &["its family was not negotiated"], |_, facts| facts.other_family()),
    ("netgauze-as4", &["path", "aggregator", "unknown"], |case, facts| {
        !case.session.four_octet_as && facts.any(|raw| matches!(raw.kind, 17 | 18))
    }),
    ("netgauze-as4-aggregator", &["its flags are wrong", "its length or its AS is wrong"], |_, facts| {
        facts.any(|raw| raw.kind == 18)
    }),
    ("netgauze-as-zero", &["the path is malformed", "its length or its AS is wrong"], |case, facts| {
        facts.any(|raw| raw.as_zero(case.session.four_octet_as))
    }),
    ("netgauze-next-hop-length", &["its next hop has a wrong length", "it is too short"], |_, facts| {
        facts.value(14).is_some_and(|value| {
            !matches!(value, [0, 1, 1, 4 | 16 | 32, ..] | [0, 2, 1, 16 | 32, ..])
        })
    }),
    ("netgauze-length", &["its length is not 4"], |_, facts| {
        facts.any(|raw| matches!(raw.kind, 9 | 35) && raw.value.len() != 4)
    }),
    ("netgauze-empty", &["its length is no multiple of an entry's"], |_, facts| {
        facts.any(|raw| matches!(raw.kind, 8 | 10 | 16 | 32) && raw.value.is_empty())
    }),
    ("netgauze-aigp", &["aigp"], |case, _| !case.session.aigp),
    ("netgauze-aigp-tlv", &["they find an error"], |case, facts| {
        let odd = |value: &[u8]| !value.starts_with(&[1, 0, 11]) || value.len() < 11;
        facts.value(26).is_some_and(|value| !case.session.aigp || odd(value))
    }),
    ("netgauze-aigp-tail", &["its TLVs are malformed"], |_, facts| {
        facts.value(26).is_some_and(|value| value.starts_with(&[1, 0, 11]) && value.len() != 11)
    }),
    ("netgauze-withdrawn", &["they find an error"], |case, _| {
        case.ours.withdrawn.iter().any(|key| martian([*key].into()))
    }),
    ("netgauze-extended", &["extended"], |_, facts| {
        facts.value(16).is_some_and(|value| {
            value.chunks(8).any(|c| matches!(c, [6, ..] | [_, 9, ..] | [3, 13, ..]))
        })
    }),
    ("netgauze-confederation", &["they find an error"], |case, facts| {
        let segment = |raw: &Raw<'_>| raw.value.iter().any(|octet| matches!(octet, 3 | 4));
        !case.session.four_octet_as && facts.any(|raw| raw.kind == 17 && segment(raw))
    }),
    ("netgauze-others", &["they find an error", "unknown"], |_, facts| {
        facts.any(|raw| matches!(raw.kind, 25 | 29 | 40))
    }),
    ("netgauze-partial", &["they find an error"], |_, facts| {
        facts.any(|raw| raw.flags & 0x20 != 0)
    }),
    ("netgauze-host-bits", &["they find an error"], |case, _| {
        let keys = case.ours.announced.union(&case.ours.withdrawn);
        keys.into_iter().any(|(prefix, _)| (1..8).contains(&prefix.length()))
    }),
];

fn is(case: &Case<'_>, ours: Class, theirs: Class) -> bool {
    (case.ours.class, case.theirs.class) == (ours, theirs)
}

/// All of them are, and there are some.
fn martian(keys: std::collections::BTreeSet<crate::view::Key>) -> bool {
    let martian = |prefix: twill_types::Prefix| match prefix.address() {
        std::net::IpAddr::V4(v4) => v4.is_loopback() || v4.is_multicast(),
        std::net::IpAddr::V6(v6) => {
            v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local()
        }
    };
    !keys.is_empty() && keys.iter().all(|(prefix, _)| martian(*prefix))
}

/// What the bytes say, read as simply as possible.
struct Facts<'a> {
    /// In the order of the message, as far as it can be cut.
    attributes: Vec<Raw<'a>>,
    nlri: &'a [u8],
}

impl<'a> Facts<'a> {
    fn of(case: &Case<'a>) -> Self {
        parts(case.body).unwrap_or(Self { attributes: Vec::new(), nlri: &[] })
    }

    fn first(&self, kind: u8) -> Option<&Raw<'a>> {
        self.attributes.iter().find(|raw| raw.kind == kind)
    }

    fn value(&self, kind: u8) -> Option<&'a [u8]> {
        self.first(kind).map(|raw| raw.value)
    }

    fn any(&self, wanted: impl Fn(&Raw<'_>) -> bool) -> bool {
        self.attributes.iter().any(wanted)
    }

    /// IPv4 next hops.
    fn next_hops(&self) -> impl Iterator<Item = [u8; 4]> {
        let mp = self.value(14).and_then(|value| value.strip_prefix(&[0, 1, 1, 4])?.get(..4));
        [self.value(3), mp].into_iter().flatten().filter_map(|octets| octets.try_into().ok())
    }

    /// Octets of routes that are announced.
    fn reachable(&self) -> usize {
        self.nlri.len() + self.mp_routes()
    }

    fn mp_routes(&self) -> usize {
        let mp = self.value(14).and_then(|value| {
            let (next_hop, rest) = value.get(3..)?.split_first()?;
            Some(rest.len().saturating_sub(usize::from(*next_hop) + 1))
        });
        mp.unwrap_or(0)
    }

    /// An AS_SET or AS_CONFED_SET anywhere but in the first AS_PATH.
    fn later_path_has_set(&self) -> bool {
        let paths = self.attributes.iter().filter(|raw| raw.kind == 2).skip(1);
        let as4 = self.attributes.iter().filter(|raw| raw.kind == 17);
        paths.chain(as4).any(|raw| raw.value.iter().any(|octet| matches!(octet, 1 | 4)))
    }

    /// Routes of another family than the two.
    fn other_family(&self) -> bool {
        let other = |value: &[u8]| !matches!(value, [0, 1 | 2, 1, ..]) && value.len() >= 3;
        self.attributes.iter().any(|raw| matches!(raw.kind, 14 | 15) && other(raw.value))
    }
}

fn parts(body: &[u8]) -> Option<Facts<'_>> {
    let (_withdrawn, rest) = field(body)?;
    let (mut list, nlri) = field(rest)?;
    let mut all = Vec::new();
    while let [flags, kind, rest @ ..] = list {
        let (value, rest) = if flags & 0x10 != 0 {
            match field(rest) {
                Some(parts) => parts,
                None => break,
            }
        } else {
            match rest.split_first().and_then(|(n, rest)| rest.split_at_checked(usize::from(*n))) {
                Some(parts) => parts,
                None => break,
            }
        };
        all.push(Raw { flags: *flags, kind: *kind, value });
        list = rest;
    }
    Some(Facts { attributes: all, nlri })
}

fn field(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}
