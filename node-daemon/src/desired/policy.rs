//! What filters and communities make of routes, as the speaker understands it.

use std::{collections::BTreeMap, sync::Arc};

use twill_bgp_proto::{
    policy::{
        Action, Advertisement, CommunityValue, Operation, PrefixMatch, RouteFilter, RoutePolicy,
        Rule,
    },
    wire::{Community, LargeCommunity},
};
use twill_k8s_api::{
    BgpConfiguration, BgpConfigurationSpec, BgpFilter, BgpFilterRule, Condition, ConditionStatus,
    FilterAction, FilterOperation, MatchOperator, PeerType,
};
use twill_types::{Family, Prefix};

/// Where a policy's parts come from.
pub(super) struct Policies<'a> {
    filters: &'a BTreeMap<String, BgpFilter>,
    advertisements: Vec<Advertisement>,
}

/// The policy of a session that is there; `None` in it has none.
type Known<'a> = Option<&'a Option<Arc<RoutePolicy>>>;

impl<'a> Policies<'a> {
    /// With what is wrong with the communities, and in which BGPConfiguration.
    pub(super) fn of(
        node: &str,
        filters: &'a BTreeMap<String, BgpFilter>,
        configurations: &BTreeMap<String, BgpConfiguration>,
    ) -> (Self, Vec<(String, Condition)>) {
        let named = |name: String| Some((configurations.get(&name)?, name));
        let own = named(format!("node.{node}"));
        let all = named("default".to_owned());
        let says = |found: &Option<(&BgpConfiguration, String)>| {
            found.as_ref().is_some_and(|(found, _)| !found.spec.prefix_advertisements.is_empty())
        };
        let specs: Vec<&BgpConfigurationSpec> =
            [&own, &all].into_iter().flatten().map(|(found, _)| &found.spec).collect();
        let (mut advertisements, mut wrong) = (Vec::new(), Vec::new());
        // What one node says of prefixes takes the place of what all say.
        let Some((configuration, name)) = (if says(&own) { &own } else { &all }) else {
            return (Self { filters, advertisements }, wrong);
        };
        for said in &configuration.spec.prefix_advertisements {
            let mut communities = Vec::new();
            for text in &said.communities {
                match community(text).or_else(|| called(text, &specs)) {
                    Some(value) => communities.push(value),
                    None => wrong.push((name.clone(), unknown_community(text))),
                }
            }
            advertisements.push(Advertisement { prefix: said.cidr, communities });
        }
        (Self { filters, advertisements }, wrong)
    }

    /// The policy of a session without filters.
    pub(super) fn plain(&self) -> Option<Arc<RoutePolicy>> {
        self.with(Vec::new())
    }

    fn with(&self, filters: Vec<RouteFilter>) -> Option<Arc<RoutePolicy>> {
        let policy =
            RoutePolicy { filters, advertisements: self.advertisements.clone(), closed: None };
        (policy != RoutePolicy::default()).then(|| Arc::new(policy))
    }

    /// The policy of a session with these filters. If one does not exist, what was in force stays in
    /// force; a session that is new passes nothing, as RFC 8212 has it.
    pub(super) fn find(
        &self,
        names: &[String],
        known: Known<'_>,
    ) -> (Option<Arc<RoutePolicy>>, Option<Condition>) {
        let found = names.iter().map(|name| match self.filters.get(name) {
            Some(filter) => Ok(route_filter(name, filter)),
            None => Err(name),
        });
        let missing = match found.collect::<Result<Vec<_>, _>>() {
            Ok(filters) => return (self.with(filters), None),
            Err(missing) => missing,
        };
        let is_open = |policy: &Option<Arc<RoutePolicy>>| {
            policy.as_ref().is_none_or(|policy| policy.closed.is_none())
        };
        let why = format!("there is no BGPFilter {missing}");
        let (policy, until) = match known.filter(|known| is_open(known)) {
            Some(known) => (
                known.clone(),
                "the session keeps the filters that it had, as long as this daemon runs; after that no \
                 route goes out",
            ),
            None => {
                let by = format!("BGPFilter {missing}, which does not exist");
                let closed = RoutePolicy { closed: Some(by), ..RoutePolicy::default() };
                (Some(Arc::new(closed)), "no route goes out and none is taken")
            }
        };
        let condition = Condition {
            kind: "FiltersFound".to_owned(),
            status: ConditionStatus::False,
            reason: "FilterNotFound".to_owned(),
            message: format!("{why}: add it, or take its name out of filters. Until then {until}"),
        };
        (policy, Some(condition))
    }
}

fn unknown_community(name: &str) -> Condition {
    Condition {
        kind: "CommunitiesFound".to_owned(),
        status: ConditionStatus::False,
        reason: "CommunityNotFound".to_owned(),
        message: format!(
            "prefixAdvertisements names the community {name}, which communities does not have: add it \
             there, or write its value. Until then prefixes are announced without it"
        ),
    }
}

/// `aa:nn` or `aa:nn:mm`.
fn community(text: &str) -> Option<CommunityValue> {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [high, low] => {
            let (high, low) = (high.parse::<u16>().ok()?, low.parse::<u16>().ok()?);
            let bits = u32::from(high) << 16 | u32::from(low);
            Some(CommunityValue::Standard(Community(bits)))
        }
        [global, first, second] => Some(CommunityValue::Large(LargeCommunity([
            global.parse().ok()?,
            first.parse().ok()?,
            second.parse().ok()?,
        ]))),
        _ => None,
    }
}

/// The community of this name in the first BGPConfiguration that has it.
fn called(name: &str, specs: &[&BgpConfigurationSpec]) -> Option<CommunityValue> {
    let mut all = specs.iter().flat_map(|spec| &spec.communities);
    all.find(|named| named.name == name).and_then(|named| community(&named.value))
}

fn route_filter(name: &str, filter: &BgpFilter) -> RouteFilter {
    let rules = |family: Family, rules: &[BgpFilterRule]| {
        rules.iter().map(|rule| route_rule(family, rule)).collect()
    };
    let spec = &filter.spec;
    RouteFilter {
        name: name.to_owned(),
        export: [rules(Family::V4, &spec.export_v4), rules(Family::V6, &spec.export_v6)],
        import: [rules(Family::V4, &spec.import_v4), rules(Family::V6, &spec.import_v6)],
    }
}

fn route_rule(family: Family, rule: &BgpFilterRule) -> Rule {
    let communities = rule.communities.as_ref().map(|matched| &matched.values);
    Rule {
        prefix: rule
            .cidr
            .zip(rule.match_operator)
            .map(|(cidr, operator)| prefix_match(family, cidr, operator, rule)),
        learned: rule.source.is_some(),
        by_interface: rule.asks_for_interface(),
        internal: rule.peer_type.map(|kind| kind == PeerType::Internal),
        community: communities.and_then(|values| community(values.first()?)),
        as_path: rule.as_path_prefix.clone().unwrap_or_default(),
        priority: rule.priority,
        action: match rule.action {
            FilterAction::Reject => Action::Reject,
            FilterAction::Accept => {
                let operations = rule.operations.iter().flatten();
                Action::Accept(operations.filter_map(operation).collect())
            }
        },
    }
}

fn prefix_match(
    family: Family,
    prefix: Prefix,
    operator: MatchOperator,
    rule: &BgpFilterRule,
) -> PrefixMatch {
    let negated = matches!(operator, MatchOperator::NotEqual | MatchOperator::NotIn);
    let within = match operator {
        MatchOperator::Equal | MatchOperator::NotEqual => None,
        MatchOperator::In | MatchOperator::NotIn => {
            let range = rule.prefix_length;
            let least = range.and_then(|range| range.min).unwrap_or(prefix.length());
            let most = range.and_then(|range| range.max).unwrap_or(family.bits());
            Some((least, most))
        }
    };
    PrefixMatch { prefix, within, negated }
}

/// The resource's own check sees to it that there is exactly one.
fn operation(operation: &FilterOperation) -> Option<Operation> {
    if let Some(add) = &operation.add_community {
        return community(&add.value).map(Operation::AddCommunity);
    }
    if let Some(path) = &operation.prepend_as_path {
        return Some(Operation::PrependAsPath(path.prefix.clone()));
    }
    operation.set_priority.map(|set| Operation::SetPriority(set.value))
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::{files, load_manifests};
    use twill_types::Asn;

    use super::*;
    use crate::datastore::Snapshot;

    fn snapshot(text: &str) -> Snapshot {
        let loaded = load_manifests(text, "m.yaml");
        assert!(!loaded.has_errors(), "{:?}", loaded.problems);
        Snapshot::new(files::catalog([&loaded]))
    }

    fn rule(yaml: &str) -> Rule {
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {{name: f}}\n\
             spec: {{exportV4: [{yaml}]}}\n"
        );
        let filters = snapshot(&text).filters;
        route_filter("f", &filters["f"]).export[0][0].clone()
    }

    #[test]
    fn each_field_of_a_rule_has_its_meaning() {
        let ten = "10.0.0.0/8".parse().unwrap();
        let matched = |within, negated| Rule {
            prefix: Some(PrefixMatch { prefix: ten, within, negated }),
            ..Rule::default()
        };
        let asns: Vec<Asn> = [1, 2].map(|number| Asn::new(number).unwrap()).into();
        let accept =
            |operation| Rule { action: Action::Accept(vec![operation]), ..Rule::default() };
        let red = CommunityValue::Standard(Community(0xfc00_0064));
        let large = CommunityValue::Large(LargeCommunity([64512, 1, 2]));
        let cidr = |rest: &str| format!("{{action: Reject, cidr: 10.0.0.0/8, {rest}}}");
        for (yaml, expected) in [
            ("{action: Reject}".to_owned(), Rule::default()),
            (cidr("matchOperator: Equal"), matched(None, false)),
            (cidr("matchOperator: NotEqual"), matched(None, true)),
            (cidr("matchOperator: In"), matched(Some((8, 32)), false)),
            (cidr("matchOperator: NotIn, prefixLength: {min: 16}"), matched(Some((16, 32)), true)),
            (cidr("matchOperator: In, prefixLength: {max: 24}"), matched(Some((8, 24)), false)),
            (
                "{action: Reject, source: RemotePeers}".to_owned(),
                Rule { learned: true, ..Rule::default() },
            ),
            (
                "{action: Reject, interface: '*.calico'}".to_owned(),
                Rule { by_interface: true, ..Rule::default() },
            ),
            ("{action: Reject, interface: '*'}".to_owned(), Rule::default()),
            (
                "{action: Reject, peerType: eBGP}".to_owned(),
                Rule { internal: Some(false), ..Rule::default() },
            ),
            (
                "{action: Reject, peerType: iBGP}".to_owned(),
                Rule { internal: Some(true), ..Rule::default() },
            ),
            (
                "{action: Reject, communities: {values: ['64512:100']}}".to_owned(),
                Rule { community: Some(red), ..Rule::default() },
            ),
            (
                "{action: Reject, asPathPrefix: [1, 2], priority: 512}".to_owned(),
                Rule { as_path: asns.clone(), priority: Some(512), ..Rule::default() },
            ),
            (
                "{action: Accept, operations: [{addCommunity: {value: '64512:1:2'}}]}".to_owned(),
                accept(Operation::AddCommunity(large)),
            ),
            (
                "{action: Accept, operations: [{prependASPath: {prefix: [1, 2]}}]}".to_owned(),
                accept(Operation::PrependAsPath(asns)),
            ),
            (
                "{action: Accept, operations: [{setPriority: {value: 512}}]}".to_owned(),
                accept(Operation::SetPriority(512)),
            ),
        ] {
            assert_eq!(rule(&yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn a_filter_that_does_not_exist_changes_nothing_or_lets_nothing_pass() {
        let filter = "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: f}\n\
                      spec: {exportV4: [{action: Reject}]}\n";
        let resources = snapshot(filter);
        let (policies, wrong) = Policies::of("n1", &resources.filters, &BTreeMap::new());
        assert_eq!((wrong.len(), policies.plain()), (0, None));
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let (found, condition) = policies.find(&names(&["f"]), None);
        assert_eq!(condition, None);
        assert_eq!(found.as_ref().unwrap().filters[0].name, "f");

        let (closed, condition) = policies.find(&names(&["f", "g"]), None);
        assert_eq!(
            closed.as_ref().unwrap().closed.as_deref(),
            Some("BGPFilter g, which does not exist")
        );
        let condition = condition.unwrap();
        assert_eq!(condition.reason, "FilterNotFound");
        assert!(condition.message.ends_with("no route goes out and none is taken"));
        // What is closed stays so, and what is open as well.
        assert_eq!(policies.find(&names(&["g"]), Some(&closed)).0, closed);
        let (kept, condition) = policies.find(&names(&["g"]), Some(&found));
        assert_eq!(kept, found);
        assert!(condition.unwrap().message.contains("keeps the filters that it had, as long as"));
        assert_eq!(policies.find(&names(&["g"]), Some(&None)).0, None);
    }

    #[test]
    fn communities_go_with_prefixes() {
        let configuration = |name: &str, spec: &str| {
            format!(
                "---\napiVersion: projectcalico.org/v3\nkind: BGPConfiguration\n\
                 metadata: {{name: {name}}}\nspec: {spec}\n"
            )
        };
        let all = configuration(
            "default",
            "{communities: [{name: red, value: '64512:100'}], prefixAdvertisements: \
             [{cidr: 10.0.0.0/8, communities: [red, '64512:1:2', blue]}]}",
        );
        let resources = snapshot(&all);
        let of = |resources: &Snapshot, node: &str| {
            let (policies, wrong) =
                Policies::of(node, &resources.filters, &resources.bgp_configurations);
            let plain = policies.plain();
            (plain.map(|plain| plain.advertisements.clone()).unwrap_or_default(), wrong)
        };
        let (said, wrong) = of(&resources, "n1");
        let values: Vec<_> = said[0].communities.iter().map(ToString::to_string).collect();
        assert_eq!((said.len(), values), (1, vec!["64512:100".into(), "64512:1:2".to_owned()]));
        assert_eq!(
            (wrong[0].0.as_str(), wrong[0].1.reason.as_str()),
            ("default", "CommunityNotFound")
        );
        // One node's own, with a name that all have.
        let own = configuration(
            "node.n1",
            "{prefixAdvertisements: [{cidr: 10.1.0.0/16, communities: [red]}]}",
        );
        let resources = snapshot(&(all + &own));
        let (said, wrong) = of(&resources, "n1");
        assert_eq!((said[0].prefix.to_string().as_str(), wrong.len()), ("10.1.0.0/16", 0));
        assert_eq!(of(&resources, "n2").0[0].prefix.to_string(), "10.0.0.0/8");
    }
}
