use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use twill_types::{Asn, Family, Prefix};

use super::{Effects, Report, Rules};
use crate::{Object, Unsupported};

/// Rules for what peers hear and what is taken from them.
pub type BgpFilter = Object<BgpFilterSpec>;

/// What a BGPFilter says: the first rule that matches decides, and no match accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct BgpFilterSpec {
    /// For IPv4 routes that go out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub export_v4: Vec<BgpFilterRule>,
    /// For IPv4 routes that come in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub import_v4: Vec<BgpFilterRule>,
    /// For IPv6 routes that go out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub export_v6: Vec<BgpFilterRule>,
    /// For IPv6 routes that come in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 500)))]
    pub import_v6: Vec<BgpFilterRule>,
}

/// One rule; every condition that is set has to hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BgpFilterRule {
    /// Compared with the route's prefix by `matchOperator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Cidr>"))]
    pub cidr: Option<Prefix>,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub match_operator: Option<MatchOperator>,
    /// How long the route's prefix is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<PrefixLengthRange>,
    /// Where the route came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<RouteSource>,
    /// The interface it points at; `*` stands for anything, and alone for no interface as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 15)))]
    pub interface: Option<String>,
    /// Which peers it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<PeerType>,
    /// A community it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communities: Option<CommunityMatch>,
    /// How its AS path begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1, max = 10), with = "Option<Vec<crate::crd::PathAsNumber>>")
    )]
    pub as_path_prefix: Option<Vec<Asn>>,
    /// Its metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 2_147_483_646)))]
    pub priority: Option<u32>,
    /// What happens to it.
    pub action: FilterAction,
    /// What is changed before it is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 10)))]
    pub operations: Option<Vec<FilterOperation>>,
}

/// How prefixes are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum MatchOperator {
    /// The same prefix.
    Equal,
    /// Another prefix.
    NotEqual,
    /// Inside.
    In,
    /// Not inside.
    NotIn,
}

/// Bounds for a prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PrefixLengthRange {
    /// At least; unset: the length of `cidr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 128)))]
    pub min: Option<u8>,
    /// At most; unset: 32 or 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 128)))]
    pub max: Option<u8>,
}

/// Where a route came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RouteSource {
    /// From a peer.
    RemotePeers,
}

/// Which peers a rule concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum PeerType {
    /// Of another AS.
    #[serde(rename = "eBGP")]
    External,
    /// Of the same AS.
    #[serde(rename = "iBGP")]
    Internal,
}

/// A community that a route has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CommunityMatch {
    /// Exactly one.
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1, max = 1), with = "Vec<crate::crd::Community>")
    )]
    pub values: Vec<String>,
}

/// The start of an AS path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AsPathPrefix {
    /// 1 to 10 numbers.
    #[cfg_attr(
        feature = "schema",
        schemars(length(min = 1, max = 10), with = "Vec<crate::crd::PathAsNumber>")
    )]
    pub prefix: Vec<Asn>,
}

/// What happens to a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum FilterAction {
    /// It passes.
    Accept,
    /// It does not.
    Reject,
}

/// One change of an accepted route; exactly one of these is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FilterOperation {
    /// A community more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_community: Option<AddCommunity>,
    /// AS numbers in front of the path.
    #[serde(default, rename = "prependASPath", skip_serializing_if = "Option::is_none")]
    pub prepend_as_path: Option<AsPathPrefix>,
    /// Another metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_priority: Option<SetPriority>,
}

/// A community to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AddCommunity {
    /// `aa:nn` or `aa:nn:mm`.
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::Community"))]
    pub value: String,
}

/// A metric to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SetPriority {
    /// The metric.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 2_147_483_646)))]
    pub value: u32,
}

/// Metrics that a route can have: those of the kernel but its default and its greatest.
const PRIORITIES: RangeInclusive<u32> = 1..=2_147_483_646;

/// How many rules a list has at the most, as the schema has it.
const RULES: usize = 500;

/// How many items a list of a rule has.
const ITEMS: RangeInclusive<usize> = 1..=10;

/// What becomes of a rule that asks for an interface.
const NO_INTERFACE: &str = "a block points at no interface, and of a learned route it is not known here; the \
                            rule matches nothing: ask for cidr, source or communities in its place";

impl Rules for BgpFilter {
    fn check(&self, report: &mut Report) {
        let spec = &self.spec;
        for (list, family, rules) in [
            ("exportV4", Family::V4, &spec.export_v4),
            ("importV4", Family::V4, &spec.import_v4),
            ("exportV6", Family::V6, &spec.export_v6),
            ("importV6", Family::V6, &spec.import_v6),
        ] {
            report.at_most(
                &format!("spec.{list}"),
                RULES,
                rules.len(),
                "move the last ones into another BGPFilter, and name it next in the BGPPeer's filters",
            );
            for (index, rule) in rules.iter().enumerate() {
                let path = format!("spec.{list}[{index}]");
                rule.check_prefix(family, &path, report);
                rule.check_attributes(&path, report);
                rule.check_operations(&path, report);
            }
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        let spec = &self.spec;
        let lists = [
            ("spec.exportV4", &spec.export_v4),
            ("spec.importV4", &spec.import_v4),
            ("spec.exportV6", &spec.export_v6),
            ("spec.importV6", &spec.import_v6),
        ];
        let mut effects = Effects::new();
        for (list, rules) in lists {
            for (index, rule) in rules.iter().enumerate() {
                let field = format!("{list}[{index}].interface");
                effects = effects.when(rule.asks_for_interface(), &field, NO_INTERFACE);
            }
        }
        effects.done()
    }
}

impl BgpFilterRule {
    /// Whether it is for routes that point at certain interfaces only. `*` is for all routes, those among
    /// them that point at none.
    pub fn asks_for_interface(&self) -> bool {
        self.interface.as_ref().is_some_and(|pattern| pattern.bytes().any(|octet| octet != b'*'))
    }

    fn check_prefix(&self, family: Family, path: &str, report: &mut Report) {
        if self.cidr.is_some() != self.match_operator.is_some() {
            report.error(path, "cidr and matchOperator come together; add the other one");
        }
        if let Some(cidr) = self.cidr
            && cidr.family() != family
        {
            let message =
                format!("must be an {family} prefix here; each family has lists of its own");
            report.error(&format!("{path}.cidr"), message);
        }
        let Some(range) = self.prefix_length else { return };
        let path = format!("{path}.prefixLength");
        if self.cidr.is_none() {
            report.error(&path, "needs cidr: it bounds the prefixes that cidr is compared with");
        }
        if let (Some(min), Some(max)) = (range.min, range.max)
            && min > max
        {
            report.error(&path, "min is greater than max; exchange them");
        }
        if range.min.max(range.max).is_some_and(|length| length > family.bits()) {
            let message = format!("{family} prefixes are at most {} bits long", family.bits());
            report.error(&path, message);
        }
    }

    fn check_attributes(&self, path: &str, report: &mut Report) {
        const LONGEST_INTERFACE: usize = 15;
        if let Some(communities) = &self.communities {
            let path = format!("{path}.communities.values");
            if communities.values.len() != 1 {
                report.error(&path, "takes exactly one community");
            }
            for (index, value) in communities.values.iter().enumerate() {
                check_community(value, &format!("{path}[{index}]"), report);
            }
        }
        let longest = |name: &String| !(1..=LONGEST_INTERFACE).contains(&name.len());
        if self.interface.as_ref().is_some_and(longest) {
            let message = format!("an interface has 1 to {LONGEST_INTERFACE} characters");
            report.error(&format!("{path}.interface"), message);
        }
        if self.as_path_prefix.as_ref().is_some_and(|prefix| !ITEMS.contains(&prefix.len())) {
            report.error(&format!("{path}.asPathPrefix"), items("AS numbers"));
        }
        if let Some(priority) = self.priority {
            check_priority(priority, &format!("{path}.priority"), report);
        }
    }

    fn check_operations(&self, path: &str, report: &mut Report) {
        let Some(operations) = &self.operations else { return };
        let path = format!("{path}.operations");
        if self.action == FilterAction::Reject {
            report.error(&path, "changes need action: Accept");
        }
        if !ITEMS.contains(&operations.len()) {
            report.error(&path, items("changes"));
        }
        for (index, operation) in operations.iter().enumerate() {
            operation.check(&format!("{path}[{index}]"), report);
        }
    }
}

impl FilterOperation {
    fn check(&self, path: &str, report: &mut Report) {
        let set = [
            self.add_community.is_some(),
            self.prepend_as_path.is_some(),
            self.set_priority.is_some(),
        ];
        if set.into_iter().filter(|is_set| *is_set).count() != 1 {
            let message = "exactly one of addCommunity, prependASPath and setPriority is one \
                           change; split or fill it";
            report.error(path, message);
        }
        if let Some(community) = &self.add_community {
            check_community(&community.value, &format!("{path}.addCommunity.value"), report);
        }
        if self.prepend_as_path.as_ref().is_some_and(|path| !ITEMS.contains(&path.prefix.len())) {
            report.error(&format!("{path}.prependASPath.prefix"), items("AS numbers"));
        }
        if let Some(priority) = &self.set_priority {
            check_priority(priority.value, &format!("{path}.setPriority.value"), report);
        }
    }
}

fn items(what: &str) -> String {
    format!("takes {} to {} {what}; split the rule or remove the list", ITEMS.start(), ITEMS.end())
}

fn check_priority(priority: u32, path: &str, report: &mut Report) {
    if !PRIORITIES.contains(&priority) {
        let message = format!("a priority is {} to {}", PRIORITIES.start(), PRIORITIES.end());
        report.error(path, message);
    }
}

/// `aa:nn` of two octets each (RFC 1997), or `aa:nn:mm` of four octets each (RFC 8092).
fn check_community(text: &str, path: &str, report: &mut Report) {
    let parts: Vec<&str> = text.split(':').collect();
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let is_right = parts.iter().all(|part| digits(part))
        && match parts.as_slice() {
            [_, _] => parts.iter().all(|part| part.parse::<u16>().is_ok()),
            [_, _, _] => parts.iter().all(|part| part.parse::<u32>().is_ok()),
            _ => false,
        };
    if !is_right {
        let message = "a community is aa:nn with parts up to 65535, or aa:nn:mm with parts up to \
                       4294967295";
        report.error(path, message);
    }
}
