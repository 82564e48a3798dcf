//! Route policy: which routes a peer is told and which are taken from it, by filters that an operator
//! has written, and what is changed of those that pass.
//!
//! A filter has rules for each direction and family. The filters of a peer are gone through in order, and
//! the rules of each; the first that matches decides, and where none does, what holds without filters
//! (`docs/adr/0021-route-policy.md`). The shape is that of Calico's BGPFilter.

use std::fmt;

use twill_types::{Asn, Family, Prefix};

use crate::{
    decision::DEFAULT_LOCAL_PREF,
    wire::{AsPath, Community, LargeCommunity, PathAttributes, Segment},
};

/// What a route is worth for which no priority is set, in the kernel's sense: lower is better. It is
/// LOCAL_PREF 100 then.
pub const NORMAL_PRIORITY: u32 = 1024;

/// LOCAL_PREF and priority are counted from opposite ends: one is this less the other, as Calico has it.
const PRIORITY_BASE: u32 = 0x7fff_ffff;

/// The policy of one session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutePolicy {
    /// In order.
    pub filters: Vec<RouteFilter>,
    /// Communities that go with what is told, by the prefix that the route lies in.
    pub advertisements: Vec<Advertisement>,
    /// Nothing passes in either direction, because of this.
    pub closed: Option<String>,
}

/// Communities for what lies in a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// The prefix.
    pub prefix: Prefix,
    /// What is added.
    pub communities: Vec<CommunityValue>,
}

/// A named list of rules for each direction and family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// As people call it.
    pub name: String,
    /// For what is told, IPv4 first.
    pub export: [Vec<Rule>; 2],
    /// For what is taken, IPv4 first.
    pub import: [Vec<Rule>; 2],
}

/// One rule. It matches where all that is set holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The route's prefix.
    pub prefix: Option<PrefixMatch>,
    /// Only routes that were learned from a peer. What is taken always is.
    pub learned: bool,
    /// Only routes that point at an interface. What a node originates points at none, and of what it has
    /// learned the speaker does not know it, so such a rule matches nothing.
    pub by_interface: bool,
    /// Only sessions within one AS (true), or between two (false).
    pub internal: Option<bool>,
    /// Only routes with this community.
    pub community: Option<CommunityValue>,
    /// Only routes whose path begins with these.
    pub as_path: Vec<Asn>,
    /// Only routes of this priority.
    pub priority: Option<u32>,
    /// What is done then.
    pub action: Action,
}

/// A comparison with the prefix of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixMatch {
    /// With what.
    pub prefix: Prefix,
    /// How long the route's prefix has to be: at least, at most. `None` asks for `prefix` itself.
    pub within: Option<(u8, u8)>,
    /// All others match.
    pub negated: bool,
}

/// What is done with a route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Action {
    /// It does not pass.
    #[default]
    Reject,
    /// It passes, changed by these in order.
    Accept(Vec<Operation>),
}

/// One change of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A community more.
    AddCommunity(CommunityValue),
    /// The path begins with these, in this order.
    PrependAsPath(Vec<Asn>),
    /// Another priority; see [`NORMAL_PRIORITY`].
    SetPriority(u32),
}

/// A community of either kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommunityValue {
    /// RFC 1997.
    Standard(Community),
    /// RFC 8092.
    Large(LargeCommunity),
}

/// A direction, as seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Import,
    Export,
}

/// What a policy is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route<'a> {
    pub(crate) prefix: Prefix,
    pub(crate) attributes: &'a PathAttributes,
    /// From a peer.
    pub(crate) learned: bool,
    /// The session that it comes by, or is told over, is within one AS.
    pub(crate) internal: bool,
}

/// Which rule of a policy: the filter, and the rule in its list for the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    filter: usize,
    rule: usize,
}

/// What a policy says of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No rule matches.
    Unmatched,
    /// This rule lets it pass; `learned` if it names learned routes expressly.
    Accepted { place: Place, learned: bool },
    /// This rule does not.
    Rejected(Place),
    /// Nothing passes.
    Closed,
}

impl Verdict {
    pub(crate) const fn is_rejected(self) -> bool {
        matches!(self, Self::Rejected(_) | Self::Closed)
    }

    /// The rule whose changes are made.
    pub(crate) const fn accepted_by(self) -> Option<Place> {
        match self {
            Self::Accepted { place, .. } => Some(place),
            Self::Unmatched | Self::Rejected(_) | Self::Closed => None,
        }
    }
}

impl RouteFilter {
    fn rules(&self, direction: Direction, family: Family) -> &[Rule] {
        let lists = match direction {
            Direction::Import => &self.import,
            Direction::Export => &self.export,
        };
        let [v4, v6] = lists;
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }
}

impl RoutePolicy {
    /// Whether anything that peers tell could be refused or changed.
    pub(crate) fn has_import(&self) -> bool {
        let rules = |filter: &RouteFilter| filter.import.iter().any(|rules| !rules.is_empty());
        self.closed.is_some() || self.filters.iter().any(rules)
    }

    /// Whether it lets a peer be told what was learned from others.
    pub(crate) fn passes_learned_on(&self) -> bool {
        let expressly = |rule: &Rule| rule.learned && matches!(rule.action, Action::Accept(_));
        self.closed.is_none()
            && self.filters.iter().any(|f| f.export.iter().flatten().any(expressly))
    }

    /// What the filters say: the first rule that matches.
    pub(crate) fn verdict(&self, direction: Direction, route: &Route<'_>) -> Verdict {
        if self.closed.is_some() {
            return Verdict::Closed;
        }
        let family = route.prefix.family();
        for (filter, rules) in self.filters.iter().map(|f| f.rules(direction, family)).enumerate() {
            if let Some((rule, found)) = rules.iter().enumerate().find(|(_, r)| r.matches(route)) {
                let place = Place { filter, rule };
                return match found.action {
                    Action::Reject => Verdict::Rejected(place),
                    Action::Accept(_) => Verdict::Accepted { place, learned: found.learned },
                };
            }
        }
        Verdict::Unmatched
    }

    /// The changes that a rule makes.
    fn operations(&self, direction: Direction, family: Family, place: Place) -> &[Operation] {
        let filter = self.filters.get(place.filter);
        let rule = filter.and_then(|filter| filter.rules(direction, family).get(place.rule));
        match rule.map(|rule| &rule.action) {
            Some(Action::Accept(operations)) => operations,
            Some(Action::Reject) | None => &[],
        }
    }

    /// The attributes of what is taken after a verdict; `None` if they stay as they are.
    pub(crate) fn imported(&self, verdict: Verdict, route: &Route<'_>) -> Option<PathAttributes> {
        let family = route.prefix.family();
        let operations = self.operations(Direction::Import, family, verdict.accepted_by()?);
        if operations.is_empty() {
            return None;
        }
        let mut changed = route.attributes.clone();
        operations.iter().for_each(|operation| operation.apply(&mut changed));
        Some(changed)
    }

    /// Changes the attributes of what is told after a verdict.
    pub(crate) fn export(&self, verdict: Verdict, prefix: Prefix, told: &mut PathAttributes) {
        if let Some(place) = verdict.accepted_by() {
            let operations = self.operations(Direction::Export, prefix.family(), place);
            operations.iter().for_each(|operation| operation.apply(told));
        }
        let inside = self.advertisements.iter().filter(|a| a.prefix.covers(prefix));
        inside.flat_map(|a| &a.communities).for_each(|community| community.add_to(told));
    }

    /// Which of [`RoutePolicy::advertisements`] concern a prefix: routes for which these and the verdict are
    /// the same are changed alike.
    pub(crate) fn advertisements_of(&self, prefix: Prefix) -> Vec<usize> {
        let all = self.advertisements.iter().enumerate();
        all.filter(|(_, a)| a.prefix.covers(prefix)).map(|(index, _)| index).collect()
    }

    /// Why a route does not pass, for people; `None` if it does.
    pub(crate) fn refusal(
        &self,
        direction: Direction,
        family: Family,
        verdict: Verdict,
    ) -> Option<String> {
        match verdict {
            Verdict::Unmatched | Verdict::Accepted { .. } => None,
            Verdict::Closed => self.closed.clone(),
            Verdict::Rejected(place) => {
                let name = self.filters.get(place.filter).map_or("", |filter| &filter.name);
                let list = match (direction, family) {
                    (Direction::Import, Family::V4) => "importV4",
                    (Direction::Import, Family::V6) => "importV6",
                    (Direction::Export, Family::V4) => "exportV4",
                    (Direction::Export, Family::V6) => "exportV6",
                };
                Some(format!("BGPFilter {name}, {list}[{}]", place.rule))
            }
        }
    }
}

impl Rule {
    fn matches(&self, route: &Route<'_>) -> bool {
        let attributes = route.attributes;
        !self.by_interface
            && (!self.learned || route.learned)
            && self.internal.is_none_or(|internal| internal == route.internal)
            && self.prefix.is_none_or(|prefix| prefix.matches(route.prefix))
            && self.community.is_none_or(|community| community.is_in(attributes))
            && attributes.as_path.begins_with(&self.as_path)
            && self.priority.is_none_or(|priority| priority_of(attributes) == Some(priority))
    }
}

impl PrefixMatch {
    fn matches(&self, route: Prefix) -> bool {
        let is_meant = match self.within {
            Some((least, most)) => {
                self.prefix.covers(route) && (least..=most).contains(&route.length())
            }
            None => self.prefix == route,
        };
        is_meant != self.negated
    }
}

impl Operation {
    fn apply(&self, attributes: &mut PathAttributes) {
        match self {
            Self::AddCommunity(community) => community.add_to(attributes),
            Self::PrependAsPath(asns) => {
                let path = std::mem::take(&mut attributes.as_path);
                attributes.as_path = asns.iter().rev().fold(path, |path, asn| path.prepended(*asn));
            }
            Self::SetPriority(priority) => {
                attributes.local_pref = Some(local_pref_of(*priority));
            }
        }
    }
}

impl CommunityValue {
    fn is_in(self, attributes: &PathAttributes) -> bool {
        match self {
            Self::Standard(community) => attributes.has_community(community),
            Self::Large(community) => attributes.large_communities.contains(&community),
        }
    }

    fn add_to(self, attributes: &mut PathAttributes) {
        match self {
            Self::Standard(community) => insert(&mut attributes.communities, community),
            Self::Large(community) => insert(&mut attributes.large_communities, community),
        }
    }
}

fn insert<T: Ord>(sorted: &mut Vec<T>, value: T) {
    if let Err(place) = sorted.binary_search(&value) {
        sorted.insert(place, value);
    }
}

/// LOCAL_PREF for a priority. The better ones have Calico's number. The normal one is the default of
/// LOCAL_PREF, since a route without any is a normal one; what is worse has to be less than that, so it
/// cannot have Calico's, and what is worse by more than 100 is all the same.
fn local_pref_of(priority: u32) -> u32 {
    match priority.checked_sub(NORMAL_PRIORITY) {
        None => PRIORITY_BASE.saturating_sub(priority),
        Some(worse) => DEFAULT_LOCAL_PREF.saturating_sub(worse),
    }
}

/// The priority of a route; `None` if its LOCAL_PREF is none that a priority can have.
fn priority_of(attributes: &PathAttributes) -> Option<u32> {
    match attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF) {
        worse @ ..=DEFAULT_LOCAL_PREF => Some(NORMAL_PRIORITY + DEFAULT_LOCAL_PREF - worse),
        better => PRIORITY_BASE.checked_sub(better).filter(|priority| *priority > 0),
    }
}

impl AsPath {
    /// Whether these are the first that it names, one after the other.
    fn begins_with(&self, asns: &[Asn]) -> bool {
        if asns.is_empty() {
            return true;
        }
        match self.segments().first() {
            Some(Segment::Sequence(path)) => path.starts_with(asns),
            Some(Segment::Set(_)) | None => false,
        }
    }
}

impl fmt::Display for CommunityValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(community) => community.fmt(f),
            Self::Large(community) => community.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
