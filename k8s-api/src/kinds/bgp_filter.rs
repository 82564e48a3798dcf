use serde::{Deserialize, Serialize};
use twill_types::{Asn, Prefix};

use super::{Effects, Report, Rules};
use crate::{Object, Unsupported};

/// Rules for what peers hear and what is taken from them.
pub type BgpFilter = Object<BgpFilterSpec>;

/// What a BGPFilter says: the first rule that matches decides, and no match accepts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BgpFilterSpec {
    /// For IPv4 routes that go out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_v4: Vec<BgpFilterRule>,
    /// For IPv4 routes that come in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub import_v4: Vec<BgpFilterRule>,
    /// For IPv6 routes that go out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_v6: Vec<BgpFilterRule>,
    /// For IPv6 routes that come in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub import_v6: Vec<BgpFilterRule>,
}

/// One rule; every condition that is set has to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpFilterRule {
    /// Compared with the route's prefix by `matchOperator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
    /// The interface it points at; `*` stands for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Which peers it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_type: Option<PeerType>,
    /// A community it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communities: Option<CommunityMatch>,
    /// How its AS path begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_path_prefix: Option<Vec<Asn>>,
    /// Its metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// What happens to it.
    pub action: FilterAction,
    /// What is changed before it is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<FilterOperation>>,
}

/// How prefixes are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct PrefixLengthRange {
    /// At least; unset: the length of `cidr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u8>,
    /// At most; unset: 32 or 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u8>,
}

/// Where a route came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteSource {
    /// From a peer.
    RemotePeers,
}

/// Which peers a rule concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct CommunityMatch {
    /// Exactly one.
    pub values: Vec<String>,
}

/// The start of an AS path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsPathPrefix {
    /// 1 to 10 numbers.
    pub prefix: Vec<Asn>,
}

/// What happens to a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterAction {
    /// It passes.
    Accept,
    /// It does not.
    Reject,
}

/// One change of an accepted route; exactly one of these is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct AddCommunity {
    /// `aa:nn` or `aa:nn:mm`.
    pub value: String,
}

/// A metric to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPriority {
    /// The metric.
    pub value: u32,
}

impl Rules for BgpFilter {
    fn check(&self, report: &mut Report) {
        let spec = &self.spec;
        for (list, rules) in [
            ("exportV4", &spec.export_v4),
            ("importV4", &spec.import_v4),
            ("exportV6", &spec.export_v6),
            ("importV6", &spec.import_v6),
        ] {
            for (index, rule) in rules.iter().enumerate() {
                rule.check(&format!("spec.{list}[{index}]"), report);
            }
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        Effects::new().when(true, "spec", "nothing is filtered").done()
    }
}

impl BgpFilterRule {
    fn check(&self, path: &str, report: &mut Report) {
        if self.cidr.is_some() != self.match_operator.is_some() {
            report.error(path, "cidr and matchOperator come together; add the other one");
        }
        if self.communities.as_ref().is_some_and(|communities| communities.values.len() != 1) {
            report.error(&format!("{path}.communities.values"), "takes exactly one community");
        }
        if self.operations.is_some() && self.action == FilterAction::Reject {
            report.error(&format!("{path}.operations"), "changes need action: Accept");
        }
    }
}
