//! What an UPDATE says, in a form that does not belong to any codec.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use twill_bgp_proto::wire::{Disposition, Segment, Session, decode_update};
use twill_types::{Family, Prefix};

pub(crate) type Key = (Prefix, u32);

/// What happens to the session and the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Accept,
    Withdraw,
    Reset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) class: Class,
    /// There was something wrong with it.
    pub(crate) flawed: bool,
    /// What, where that is known.
    pub(crate) faults: Vec<&'static str>,
    pub(crate) announced: BTreeSet<Key>,
    pub(crate) withdrawn: BTreeSet<Key>,
    pub(crate) next_hops: BTreeSet<(Family, IpAddr)>,
    /// The rest by name, in a canonical notation.
    pub(crate) attributes: BTreeMap<&'static str, String>,
    /// Unknown transitive ones: type code and value.
    pub(crate) unknown: BTreeSet<(u8, Vec<u8>)>,
}

impl View {
    pub(crate) fn new(class: Class) -> Self {
        Self {
            class,
            flawed: class != Class::Accept,
            faults: Vec::new(),
            announced: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            next_hops: BTreeSet::new(),
            attributes: BTreeMap::new(),
            unknown: BTreeSet::new(),
        }
    }

    /// Notes an attribute; a list sorted and each entry once, as it is a set.
    pub(crate) fn set(&mut self, name: &'static str, entries: impl IntoIterator<Item = String>) {
        let entries: BTreeSet<String> = entries.into_iter().collect();
        if !entries.is_empty() {
            let text = entries.into_iter().collect::<Vec<_>>().join(" ");
            self.attributes.insert(name, text);
        }
    }

    pub(crate) fn one(&mut self, name: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.attributes.insert(name, value.to_string());
        }
    }
}

/// `1 2 {3 4}` with sequences in one piece.
pub(crate) fn path_text(segments: impl IntoIterator<Item = (bool, Vec<u32>)>) -> String {
    let mut words = Vec::new();
    for (set, mut asns) in segments {
        if set {
            asns.sort_unstable();
            words.push(format!("{asns:?}"));
        } else {
            words.extend(asns.iter().map(u32::to_string));
        }
    }
    words.join(" ")
}

pub(crate) fn ours(body: &[u8], session: &Session) -> View {
    let update = match decode_update(body, session) {
        Ok(update) => update,
        Err(reset) => {
            return View { faults: vec![reset.fault.text], ..View::new(Class::Reset) };
        }
    };
    let class = match update.disposition() {
        Some(Disposition::TreatAsWithdraw) => Class::Withdraw,
        _ => Class::Accept,
    };
    let mut view = View::new(class);
    view.flawed = !update.faults.is_empty();
    view.faults = update.faults.iter().map(|fault| fault.text).collect();
    view.withdrawn.extend(update.withdrawn.iter().map(|nlri| (nlri.prefix, nlri.path_id)));
    for (attributes, routes) in &update.announced {
        view.announced.extend(routes.iter().map(|nlri| (nlri.prefix, nlri.path_id)));
        let family = routes.prefixes().next().unwrap().family();
        view.next_hops.insert((family, attributes.next_hop));
        view.one("origin", Some(attributes.origin));
        let segments = attributes.as_path.segments().iter().map(|segment| {
            let asns = segment.asns().iter().map(|asn| asn.get()).collect();
            (matches!(segment, Segment::Set(_)), asns)
        });
        view.one("path", Some(path_text(segments)));
        view.one("med", attributes.med);
        view.one("local-pref", attributes.local_pref);
        view.one("atomic", attributes.atomic_aggregate.then_some("yes"));
        let aggregator = attributes.aggregator.map(|a| format!("{} {}", a.asn, a.address));
        view.one("aggregator", aggregator);
        view.set("communities", attributes.communities.iter().map(|c| c.0.to_string()));
        let extended = attributes.extended_communities.iter().map(|c| format!("{c:02x?}"));
        view.set("extended", extended);
        view.set("large", attributes.large_communities.iter().map(|c| format!("{:?}", c.0)));
        view.one("originator", attributes.originator_id);
        let clusters = &attributes.cluster_list;
        view.one("clusters", (!clusters.is_empty()).then(|| format!("{clusters:?}")));
        view.one("otc", attributes.only_to_customer);
        view.one("aigp", attributes.aigp);
        view.unknown.extend(attributes.unknown.iter().map(|a| (a.kind, a.value.clone())));
    }
    view
}
