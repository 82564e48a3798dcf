//! OPENs beside two others: taken or refused, and every capability as it is read. `docs/bgp-oracles.md`
//! explains where they differ.

mod netgauze;
mod rustbgpd;

use std::collections::BTreeMap;

use twill_bgp_proto::wire::{Capability, Notification, Open, Role, code, decode_open};
use twill_types::Family;

use crate::messages::{Random, damage, open};

/// What an OPEN says, in a form that does not belong to any codec.
#[derive(Debug, PartialEq, Eq)]
struct View {
    hold_time: u16,
    identifier: u32,
    asn: u32,
    /// In the order in which they came.
    capabilities: Vec<Said>,
}

/// A capability: its code, and what it says. Of families there are AFI and SAFI, of the lists of families
/// those that are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    code: u8,
    text: String,
    /// It is known by more than its octets.
    known: bool,
}

impl Said {
    fn known(code: u8, text: impl ToString) -> Self {
        Self { code, text: text.to_string(), known: true }
    }

    /// Octets as they came. A family of the multiprotocol capability is one, whether it is known or not.
    fn raw(code: u8, value: &[u8]) -> Self {
        match (code, value) {
            (1, [high, low, _, safi]) => Self::family([0, 0, *high, *low], *safi),
            _ => Self { code, text: format!("{value:02x?}"), known: false },
        }
    }

    fn family(afi: [u8; 4], safi: u8) -> Self {
        Self::known(1, format!("{}/{safi}", u32::from_be_bytes(afi)))
    }

    fn restart(bits: [bool; 2], time: u16, families: impl IntoIterator<Item = String>) -> Self {
        let [restarting, notification] = bits;
        let families: Vec<String> = families.into_iter().collect();
        Self::known(64, format!("R {restarting} N {notification} {time} s {families:?}"))
    }

    fn list(code: u8, entries: impl IntoIterator<Item = String>) -> Self {
        Self::known(code, format!("{:?}", entries.into_iter().collect::<Vec<_>>()))
    }

    fn names(host: &str, domain: &str) -> Self {
        let octets = [host, domain]
            .map(|name| [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat());
        Self::raw(73, &octets.concat())
    }
}

const fn afi(family: Family) -> u16 {
    match family {
        Family::V4 => 1,
        Family::V6 => 2,
    }
}

const fn role(role: Role) -> u8 {
    match role {
        Role::Provider => 0,
        Role::RouteServer => 1,
        Role::RouteServerClient => 2,
        Role::Customer => 3,
        Role::Peer => 4,
        Role::Unassigned(number) => number,
    }
}

fn said(capability: &Capability) -> Said {
    match capability {
        Capability::MultiProtocol(family) => {
            let [high, low] = afi(*family).to_be_bytes();
            Said::family([0, 0, high, low], 1)
        }
        Capability::RouteRefresh => Said::known(2, ""),
        Capability::ExtendedNextHop(all) => Said::list(
            5,
            all.iter().map(|one| format!("{}/{} over {}", one.afi, one.safi, one.next_hop_afi)),
        ),
        Capability::ExtendedMessage => Said::known(6, ""),
        // One without a meaning is as good as unknown.
        Capability::Role(Role::Unassigned(number)) => Said::raw(9, &[*number]),
        Capability::Role(known) => Said::known(9, role(*known)),
        Capability::GracefulRestart(restart) => Said::restart(
            [restart.restarting, restart.notification],
            restart.restart_time,
            restart.families.iter().map(|one| format!("{} F {}", afi(one.family), one.forwarding)),
        ),
        Capability::FourOctetAs(asn) => Said::known(65, asn),
        Capability::AddPath(all) => Said::list(
            69,
            all.iter().map(|one| {
                format!("{} receive {} send {}", afi(one.family), one.receive, one.send)
            }),
        ),
        Capability::EnhancedRouteRefresh => Said::known(70, ""),
        Capability::LongLivedGracefulRestart(all) => Said::list(
            71,
            all.iter().map(|one| {
                format!("{} F {} {} s", afi(one.family), one.forwarding, one.stale_time)
            }),
        ),
        Capability::Fqdn { host, domain } => Said::names(host, domain),
        Capability::Unknown { code, value } => Said::raw(*code, value),
    }
}

fn view(open: &Open) -> View {
    View {
        hold_time: open.hold_time,
        identifier: open.identifier.to_bits(),
        asn: open.asn.get(),
        capabilities: open.capabilities.iter().map(said).collect(),
    }
}

/// What one of the others makes of an OPEN.
enum Theirs {
    Refused(String),
    Read(View),
    /// It has lost its place among the capabilities, so that what it reads means nothing.
    Lost,
}

/// Which row of the table explains that they refuse what we take.
type Refusal = fn(body: &[u8]) -> Option<&'static str>;
/// The same for what we refuse and they take.
type Acceptance = fn(body: &[u8], ours: &Notification) -> Option<&'static str>;
/// The same for one capability that is read in two ways.
type Reading = fn(ours: &Said, theirs: &Said) -> Option<&'static str>;

struct Other {
    name: &'static str,
    read: fn(&[u8]) -> Theirs,
    lost: Option<&'static str>,
    refusal: Refusal,
    acceptance: Acceptance,
    reading: Reading,
}

const OTHERS: [Other; 2] = [rustbgpd::OTHER, netgauze::OTHER];

/// The rows of the table that are about OPENs.
pub(crate) const ROWS: [&str; 11] = [
    "rustbgpd-open-judged",
    "rustbgpd-open-families",
    "rustbgpd-open-others",
    "netgauze-open-extended",
    "netgauze-open-identifier",
    "netgauze-open-asn",
    "netgauze-open-tail",
    "netgauze-open-lost",
    "netgauze-open-next-hop",
    "netgauze-open-add-path",
    "netgauze-open-names",
];

/// What we refuse and leave to be judged by a caller who knows more than octets.
fn is_judgement(error: &Notification, of: &[u8]) -> bool {
    error.code == code::OPEN && of.contains(&error.subcode)
}

/// The rows that explain the differences.
fn compare(body: &[u8], other: &Other) -> Vec<&'static str> {
    let name = other.name;
    let row = |found: Option<&'static str>, what: &dyn std::fmt::Debug| {
        found.unwrap_or_else(|| panic!("{name}: {what:?}: {body:02x?}"))
    };
    match (decode_open(body), (other.read)(body)) {
        (_, Theirs::Lost) => vec![row(other.lost, &"lost")],
        (Err(_), Theirs::Refused(_)) => Vec::new(),
        (Ok(_), Theirs::Refused(why)) => vec![row((other.refusal)(body), &why)],
        (Err(ours), Theirs::Read(_)) => vec![row((other.acceptance)(body, &ours), &ours)],
        (Ok(ours), Theirs::Read(theirs)) => {
            let ours = view(&ours);
            let head = |view: &View| (view.hold_time, view.identifier, view.asn);
            assert_eq!(head(&ours), head(&theirs), "{name}: {body:02x?}");
            let (all, others) = (&ours.capabilities, &theirs.capabilities);
            assert_eq!(all.len(), others.len(), "{name}: {ours:?} {theirs:?} {body:02x?}");
            let pairs = all.iter().zip(others).filter(|(ours, theirs)| ours != theirs);
            pairs.map(|pair| row((other.reading)(pair.0, pair.1), &pair)).collect()
        }
    }
}

#[test]
fn opens_are_read_alike() {
    let whole = !cfg!(debug_assertions);
    let count = if whole { 500_000 } else { 50_000 };
    let mut random = Random::new(9072);
    let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
    let mut alike = 0;
    for index in 0..count {
        let mut body = open(&mut random);
        if index % 3 != 0 {
            damage(&mut random, &mut body);
        }
        // Shorter ones do not get through the header.
        if body.len() < 10 {
            continue;
        }
        for other in &OTHERS {
            let rows = compare(&body, other);
            alike += usize::from(rows.is_empty());
            rows.into_iter().for_each(|row| *explained.entry(row).or_default() += 1);
        }
    }
    println!("alike {alike}, {explained:?}");
    // The rarest ones need the whole run.
    let unused = ROWS.iter().find(|row| !explained.contains_key(*row));
    assert_eq!(unused.filter(|_| whole), None, "nothing needs this explanation any more");
}

#[test]
fn a_generated_open_says_much() {
    let mut random = Random::new(5492);
    let mut seen: BTreeMap<u8, std::collections::BTreeSet<String>> = BTreeMap::new();
    for _ in 0..5_000 {
        let read = decode_open(&open(&mut random)).unwrap();
        for said in read.capabilities.iter().map(said).filter(|said| said.known) {
            seen.entry(said.code).or_default().insert(said.text);
        }
    }
    // Families, next hops, roles, bits and times of restarts, ADD-PATH.
    for (code, least) in [(1, 3), (5, 3), (9, 5), (64, 20), (69, 10), (71, 10)] {
        let count = seen.get(&code).map_or(0, |texts| texts.len());
        assert!(count >= least, "{code}: {count} of {least}");
    }
}
