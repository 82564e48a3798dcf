//! Any policy against its definition: what its filters say of any route, and what becomes of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use twill_types::{Asn, Family, Prefix};

use super::{Observe, choices::Choices, say, unobserved};
use crate::{
    policy::{
        Action, Advertisement, CommunityValue, Direction, Operation, PrefixMatch, Route,
        RouteFilter, RoutePolicy, Rule, Verdict,
    },
    wire::{AsPath, Community, LargeCommunity, Origin, PathAttributes, Segment},
};

/// Numbers of which a policy has at the most so many, each.
const FILTERS: usize = 4;
const RULES: usize = 4;
const ADVERTISEMENTS: usize = 3;
const OPERATIONS: usize = 4;
const ASNS: usize = 4;
const COMMUNITIES: usize = 4;
const SEGMENTS: usize = 3;
/// More routes are not looked at in one run.
const ROUTES: usize = 64;

/// A policy, and routes that it is asked about.
///
/// # Panics
/// If the policy says or does anything else than its rules, one by one.
pub fn policy(input: &[u8]) {
    policy_observed(input, &mut unobserved);
}

/// [`policy`], route by route. The number is how many octets the policy and its routes came from.
///
/// # Panics
/// If the policy says or does anything else than its rules, one by one.
pub fn policy_observed(input: &[u8], observe: Observe<'_>) {
    let mut choices = Choices::new(input);
    let policy = any_policy(&mut choices);
    let expressly = |rule: &Rule| rule.learned && matches!(rule.action, Action::Accept(_));
    let passes = policy.filters.iter().flat_map(|f| f.export.iter().flatten()).any(expressly);
    assert_eq!(policy.passes_learned_on(), passes && policy.closed.is_none(), "{policy:?}");
    for _ in 0..ROUTES {
        let Some(bits) = choices.next() else {
            return;
        };
        let asked = Asked::new(&mut choices, bits);
        let mut answer = None;
        observe(input.len(), &mut || answer = Some(asked.answer(&policy)));
        assert_eq!(answer, Some(asked.expected(&policy)), "{asked:?}, {policy:?}");
    }
}

/// One question.
#[derive(Debug)]
struct Asked {
    direction: Direction,
    prefix: Prefix,
    attributes: PathAttributes,
    learned: bool,
    internal: bool,
}

/// What becomes of a route.
#[derive(Debug, PartialEq)]
struct Answer {
    /// Which rule keeps it out, or what else, in words.
    refused_by: Option<String>,
    /// A rule that names learned routes lets it pass.
    expressly: bool,
    /// As it is taken or told.
    attributes: Option<PathAttributes>,
    /// The advertisements that its prefix lies in.
    inside: Vec<usize>,
}

impl Asked {
    fn new(choices: &mut Choices<'_>, bits: u8) -> Self {
        let bit = |n: u8| bits & (1 << n) != 0;
        let direction = if bit(0) { Direction::Export } else { Direction::Import };
        Self {
            direction,
            prefix: any_prefix(choices),
            attributes: any_attributes(choices),
            // What is taken always is.
            learned: bit(1) || direction == Direction::Import,
            internal: bit(2),
        }
    }

    /// What the policy says.
    fn answer(&self, policy: &RoutePolicy) -> Answer {
        let Self { direction, prefix, attributes, learned, internal } = self;
        let route = Route { prefix: *prefix, attributes, learned: *learned, internal: *internal };
        let verdict = policy.verdict(*direction, &route);
        let refused_by = policy.refusal(*direction, prefix.family(), verdict);
        assert_eq!(refused_by.is_some(), verdict.is_rejected(), "{verdict:?}");
        let changed = match direction {
            _ if verdict.is_rejected() => None,
            Direction::Import => {
                let imported = policy.imported(verdict, &route);
                let untouched = verdict == Verdict::Unmatched && imported.is_none();
                assert!(policy.has_import() || untouched, "no import policy, and {verdict:?}");
                Some(imported.unwrap_or_else(|| attributes.clone()))
            }
            Direction::Export => {
                let mut told = attributes.clone();
                policy.export(verdict, *prefix, &mut told);
                Some(told)
            }
        };
        Answer {
            refused_by,
            expressly: matches!(verdict, Verdict::Accepted { learned: true, .. }),
            attributes: changed,
            inside: policy.advertisements_of(*prefix),
        }
    }

    /// What its rules say, one by one.
    fn expected(&self, policy: &RoutePolicy) -> Answer {
        let inside = (0..).zip(&policy.advertisements);
        let inside = inside.filter(|(_, a)| bits(self.prefix).starts_with(&bits(a.prefix)));
        let inside: Vec<(usize, &Advertisement)> = inside.collect();
        let found = policy.filters.iter().find_map(|filter| {
            let (list, rules) = self.list(filter);
            let (place, rule) = (0..).zip(rules).find(|(_, rule)| self.is_meant(rule))?;
            Some((format!("BGPFilter {}, {list}[{place}]", filter.name), rule))
        });
        let refused_by = match &found {
            _ if policy.closed.is_some() => policy.closed.clone(),
            Some((place, Rule { action: Action::Reject, .. })) => Some(place.clone()),
            _ => None,
        };
        let passes = refused_by.is_none();
        let rule = found.map(|(_, rule)| rule).filter(|_| passes);
        let operations = match rule.map(|rule| &rule.action) {
            Some(Action::Accept(operations)) => operations.as_slice(),
            _ => &[],
        };
        let mut attributes = self.attributes.clone();
        operations.iter().for_each(|operation| change(&mut attributes, operation));
        if self.direction == Direction::Export {
            let added = inside.iter().flat_map(|(_, advertisement)| &advertisement.communities);
            added.for_each(|community| add(&mut attributes, *community));
        }
        Answer {
            refused_by,
            expressly: rule.is_some_and(|rule| rule.learned),
            attributes: passes.then_some(attributes),
            inside: inside.iter().map(|(place, _)| *place).collect(),
        }
    }

    fn list<'a>(&self, filter: &'a RouteFilter) -> (&'static str, &'a [Rule]) {
        let ([export4, export6], [import4, import6]) = (&filter.export, &filter.import);
        match (self.direction, self.prefix.family()) {
            (Direction::Export, Family::V4) => ("exportV4", export4),
            (Direction::Export, Family::V6) => ("exportV6", export6),
            (Direction::Import, Family::V4) => ("importV4", import4),
            (Direction::Import, Family::V6) => ("importV6", import6),
        }
    }

    fn is_meant(&self, rule: &Rule) -> bool {
        let attributes = &self.attributes;
        let is_in = |community| match community {
            CommunityValue::Standard(one) => attributes.communities.contains(&one),
            CommunityValue::Large(one) => attributes.large_communities.contains(&one),
        };
        let begins =
            attributes.as_path.segments().iter().take(1).flat_map(|segment| match segment {
                Segment::Sequence(asns) => asns.as_slice(),
                Segment::Set(_) => &[],
            });
        let begins: Vec<Asn> = begins.copied().take(rule.as_path.len()).collect();
        let conditions = [
            !rule.by_interface,
            self.learned || !rule.learned,
            rule.internal != Some(!self.internal),
            rule.prefix.is_none_or(|asked| is_prefix_meant(&asked, self.prefix)),
            rule.community.is_none_or(is_in),
            begins == rule.as_path,
            rule.priority.is_none_or(|asked| priority(attributes) == Some(i64::from(asked))),
        ];
        !conditions.contains(&false)
    }
}

/// A prefix as the bits that it is made of, with one for the family in front.
fn bits(prefix: Prefix) -> Vec<bool> {
    let octets = match prefix.address() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let bits = octets.iter().flat_map(|octet| (0..8).rev().map(move |n| octet >> n & 1 == 1));
    let family = prefix.family() == Family::V6;
    [family].into_iter().chain(bits.take(prefix.length().into())).collect()
}

fn is_prefix_meant(asked: &PrefixMatch, route: Prefix) -> bool {
    let (whole, begin) = (bits(route), bits(asked.prefix));
    let is_meant = match asked.within {
        None => whole == begin,
        Some((least, most)) => {
            let length = route.length();
            whole.starts_with(&begin) && least <= length && length <= most
        }
    };
    if asked.negated { !is_meant } else { is_meant }
}

/// By the definition of ADR 0021: LOCAL_PREF counted from the other end, with 1024 for 100.
fn priority(attributes: &PathAttributes) -> Option<i64> {
    let local_pref = i64::from(attributes.local_pref.unwrap_or(100));
    let priority = if local_pref > 100 { 2_147_483_647 - local_pref } else { 1124 - local_pref };
    (priority > 0).then_some(priority)
}

fn change(attributes: &mut PathAttributes, operation: &Operation) {
    match operation {
        Operation::AddCommunity(community) => add(attributes, *community),
        Operation::PrependAsPath(asns) if asns.is_empty() => {}
        Operation::PrependAsPath(asns) => {
            let first = Segment::Sequence(asns.clone());
            let rest = attributes.as_path.segments().iter().cloned();
            attributes.as_path = AsPath::new([first].into_iter().chain(rest).collect());
        }
        Operation::SetPriority(priority) => {
            let priority = i64::from(*priority);
            let local_pref =
                if priority < 1024 { 2_147_483_647 - priority } else { (1124 - priority).max(0) };
            attributes.local_pref = u32::try_from(local_pref).ok();
        }
    }
}

fn add(attributes: &mut PathAttributes, community: CommunityValue) {
    match community {
        CommunityValue::Standard(one) => {
            attributes.communities.push(one);
            attributes.communities.sort_unstable();
            attributes.communities.dedup();
        }
        CommunityValue::Large(one) => {
            attributes.large_communities.push(one);
            attributes.large_communities.sort_unstable();
            attributes.large_communities.dedup();
        }
    }
}

/// Any policy that a few rules can make.
pub(super) fn any_policy(choices: &mut Choices<'_>) -> RoutePolicy {
    let closed = choices.octet() == 255;
    let filters = (0..choices.below(FILTERS)).map(|number| {
        let mut rules =
            || -> Vec<Rule> { (0..choices.below(RULES)).map(|_| any_rule(choices)).collect() };
        let (export, import) = ([rules(), rules()], [rules(), rules()]);
        RouteFilter { name: format!("f{number}"), export, import }
    });
    let filters = filters.collect();
    let advertisements = (0..choices.below(ADVERTISEMENTS)).map(|_| {
        let prefix = any_prefix(choices);
        let communities = (0..choices.below(COMMUNITIES)).map(|_| any_community(choices));
        Advertisement { prefix, communities: communities.collect() }
    });
    RoutePolicy {
        filters,
        advertisements: advertisements.collect(),
        closed: closed.then(|| "it is closed".to_owned()),
    }
}

fn any_rule(choices: &mut Choices<'_>) -> Rule {
    let bits = choices.short();
    let bit = |n: u16| bits & (1 << n) != 0;
    let prefix = bit(0).then(|| {
        let prefix = any_prefix(choices);
        let within = bit(1).then(|| {
            // As it is without `prefixLength`, or anything.
            if bit(2) {
                (prefix.length(), prefix.family().bits())
            } else {
                (choices.octet(), choices.octet())
            }
        });
        PrefixMatch { prefix, within, negated: bit(3) }
    });
    let action = if bit(4) {
        Action::Accept((0..choices.below(OPERATIONS)).map(|_| any_operation(choices)).collect())
    } else {
        Action::Reject
    };
    Rule {
        prefix,
        learned: bit(5),
        by_interface: bit(6) && bit(7),
        internal: bit(8).then(|| bit(9)),
        community: bit(10).then(|| any_community(choices)),
        as_path: if bit(11) { any_asns(choices) } else { Vec::new() },
        priority: bit(12).then(|| any_priority(choices)),
        action,
    }
}

fn any_operation(choices: &mut Choices<'_>) -> Operation {
    match choices.below(3) {
        0 => Operation::AddCommunity(any_community(choices)),
        1 => Operation::PrependAsPath(any_asns(choices)),
        _ => Operation::SetPriority(any_priority(choices)),
    }
}

/// Often one of a few, so that some are parts of others; else any.
fn any_prefix(choices: &mut Choices<'_>) -> Prefix {
    let number = choices.octet();
    if number < 192 {
        return say::prefix(number);
    }
    let length = usize::from(choices.octet());
    let address: IpAddr = if number & 1 == 0 {
        Ipv4Addr::from_bits(any_number(choices)).into()
    } else {
        let high = u128::from(any_number(choices)) << 96 | u128::from(any_number(choices)) << 64;
        Ipv6Addr::from_bits(high).into()
    };
    let bits = usize::from(Family::of(address).bits());
    let length = u8::try_from(length % (bits + 1)).unwrap_or_default();
    match Prefix::masked(address, length) {
        Ok(prefix) => prefix,
        Err(error) => panic!("{error}"),
    }
}

fn any_number(choices: &mut Choices<'_>) -> u32 {
    u32::from(choices.short()) << 16 | u32::from(choices.short())
}

/// Some that are at a border of what is told apart, else any.
fn any_priority(choices: &mut Choices<'_>) -> u32 {
    let borders = [1, 512, 1023, 1024, 1025, 1123, 1124, 1125, 2_147_483_546, 2_147_483_646];
    let number = choices.below(borders.len() + 1);
    borders.get(number).copied().unwrap_or_else(|| any_number(choices))
}

fn any_community(choices: &mut Choices<'_>) -> CommunityValue {
    let number = choices.octet();
    let low = u32::from(number >> 1 & 3);
    match (number & 1, number & 8) {
        (0, 0) => CommunityValue::Standard(Community(0xfc00_0000 | low)),
        (0, _) => CommunityValue::Standard(Community(any_number(choices))),
        (_, 0) => CommunityValue::Large(LargeCommunity([64512, 1, low])),
        (_, _) => CommunityValue::Large(LargeCommunity([low, any_number(choices), low])),
    }
}

fn any_asns(choices: &mut Choices<'_>) -> Vec<Asn> {
    (0..choices.below(ASNS)).map(|_| say::asn(choices.pick([1, 2, 64512, 4_294_967_295]))).collect()
}

fn any_attributes(choices: &mut Choices<'_>) -> PathAttributes {
    let segments = (0..choices.below(SEGMENTS)).filter_map(|_| {
        let is_set = choices.flag();
        let asns = any_asns(choices);
        let segment = if is_set { Segment::Set(asns) } else { Segment::Sequence(asns) };
        (!segment.asns().is_empty()).then_some(segment)
    });
    let path = AsPath::new(segments.collect());
    let mut attributes = PathAttributes::new(Origin::Igp, path, Ipv4Addr::new(192, 0, 2, 1).into());
    let (mut standard, mut large) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..choices.below(COMMUNITIES) {
        match any_community(choices) {
            CommunityValue::Standard(community) => drop(standard.insert(community)),
            CommunityValue::Large(community) => drop(large.insert(community)),
        }
    }
    attributes.communities = standard.into_iter().collect();
    attributes.large_communities = large.into_iter().collect();
    attributes.local_pref = match choices.below(8) {
        0 | 1 => None,
        2 => Some(0),
        3 => Some(100),
        4 => Some(101),
        5 => Some(2_147_483_647),
        6 => Some(any_number(choices)),
        _ => Some(2_147_483_647_u32.saturating_sub(any_priority(choices))),
    };
    attributes
}
