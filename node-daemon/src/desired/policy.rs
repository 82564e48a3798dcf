//! What filters and communities make of routes, as the speaker understands it.

use std::{collections::BTreeMap, sync::Arc};

use twill_bgp_proto::{
    PeerConfig, PeerKey,
    policy::{
        Action, Advertisement, CommunityValue, Operation, PrefixMatch, RouteFilter, RoutePolicy,
        Rule,
    },
    wire::{Community, LargeCommunity},
};
use twill_k8s_api::{
    BgpConfiguration, BgpConfigurationSpec, BgpFilter, BgpFilterRule, BgpFilterSpec, BgpPeer,
    Condition, ConditionStatus, FilterAction, FilterOperation, MatchOperator, PeerType,
};
use twill_types::{Family, Prefix};

use crate::datastore::Snapshot;

/// Where a policy's parts come from.
pub(super) struct Policies<'a> {
    filters: &'a BTreeMap<String, BgpFilter>,
    /// As they were last, of those that were named.
    last: &'a BTreeMap<String, BgpFilterSpec>,
    advertisements: Vec<Advertisement>,
}

/// What a session goes by.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) policy: Option<Arc<RoutePolicy>>,
    /// The filters that it keeps in place of those that its BGPPeer names.
    pub(super) kept: Option<Vec<String>>,
    /// What is missing, and what holds until it is there.
    pub(super) condition: Option<Condition>,
}

/// The filters that a session goes by; `None` if nothing passes it.
pub(super) fn names(session: &PeerConfig) -> Option<Vec<String>> {
    match &session.policy.routes {
        None => Some(Vec::new()),
        Some(policy) if policy.closed.is_some() => None,
        Some(policy) => Some(policy.filters.iter().map(|filter| filter.name.clone()).collect()),
    }
}

impl<'a> Policies<'a> {
    /// With what is wrong with the communities, and in which BGPConfiguration.
    pub(super) fn of(
        node: &str,
        resources: &'a Snapshot,
        last: &'a BTreeMap<String, BgpFilterSpec>,
    ) -> (Self, Vec<(String, Condition)>) {
        let (filters, configurations) = (&resources.filters, &resources.bgp_configurations);
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
            return (Self { filters, last, advertisements }, wrong);
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
        (Self { filters, last, advertisements }, wrong)
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

    /// The policy of a session with these filters. One that is gone holds as it was last. If one has never
    /// been, a session that is there keeps the filters `in_force`; one that is new passes nothing, as RFC
    /// 8212 has it.
    pub(super) fn find(&self, names: &[String], in_force: Option<&Vec<String>>) -> Found {
        let gone = names.iter().find(|name| !self.filters.contains_key(*name));
        let unknown = match self.all(names) {
            Ok(filters) => {
                let condition = gone.map(|name| {
                    missing(name, "it holds as it was last, also when the daemon starts again")
                });
                return Found { policy: self.with(filters), kept: None, condition };
            }
            Err(unknown) => unknown,
        };
        let kept = in_force.and_then(|kept| Some((kept.clone(), self.all(kept).ok()?)));
        if let Some((kept, filters)) = kept {
            let condition = missing(unknown, "the session keeps the filters that it had");
            let policy = self.with(filters);
            return Found { policy, kept: Some(kept), condition: Some(condition) };
        }
        let by = format!("BGPFilter {unknown}, which does not exist");
        let closed = RoutePolicy { closed: Some(by), ..RoutePolicy::default() };
        let condition =
            missing(unknown, "as this node has never seen it, no route goes out and none is taken");
        Found { policy: Some(Arc::new(closed)), kept: None, condition: Some(condition) }
    }

    /// These filters as they are, or were last; the name of one that has never been.
    fn all<'n>(&self, names: &'n [String]) -> Result<Vec<RouteFilter>, &'n str> {
        let find = |name: &'n String| match self.spec(name) {
            Some(spec) => Ok(route_filter(name, spec)),
            None => Err(name.as_str()),
        };
        names.iter().map(find).collect()
    }

    fn spec(&self, name: &str) -> Option<&'a BgpFilterSpec> {
        self.filters.get(name).map(|filter| &filter.spec).or_else(|| self.last.get(name))
    }

    /// What has to be remembered: the filters that BGPPeers name, and those that sessions keep.
    pub(super) fn last(
        &self,
        peers: &BTreeMap<String, BgpPeer>,
        kept: &BTreeMap<PeerKey, Vec<String>>,
    ) -> BTreeMap<String, BgpFilterSpec> {
        let named = peers.values().flat_map(|peer| &peer.spec.filters);
        let names = named.chain(kept.values().flatten());
        names.filter_map(|name| Some((name.clone(), self.spec(name)?.clone()))).collect()
    }
}

fn missing(name: &str, until: &str) -> Condition {
    Condition {
        kind: "FiltersFound".to_owned(),
        status: ConditionStatus::False,
        reason: "FilterNotFound".to_owned(),
        message: format!(
            "there is no BGPFilter {name}: add it, or take its name out of filters. Until then {until}"
        ),
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

fn route_filter(name: &str, spec: &BgpFilterSpec) -> RouteFilter {
    let rules = |family: Family, rules: &[BgpFilterRule]| {
        rules.iter().map(|rule| route_rule(family, rule)).collect()
    };
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
        route_filter("f", &filters["f"].spec).export[0][0].clone()
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
    fn a_filter_that_is_gone_holds_as_it_was_and_one_that_never_was_changes_nothing() {
        let filter = "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: f}\n\
                      spec: {exportV4: [{action: Reject}]}\n";
        let (resources, none) = (snapshot(filter), BTreeMap::new());
        let (policies, wrong) = Policies::of("n1", &resources, &none);
        assert_eq!((wrong.len(), policies.plain()), (0, None));
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let (f, g, both) = (names(&["f"]), names(&["g"]), names(&["f", "g"]));
        let there = policies.find(&f, None);
        assert_eq!((there.kept, there.condition), (None, None));
        assert_eq!(there.policy.as_ref().unwrap().filters[0].name, "f");

        // A node that has never seen it.
        let closed = policies.find(&both, None);
        let why = closed.policy.unwrap().closed.clone();
        assert_eq!(why.as_deref(), Some("BGPFilter g, which does not exist"));
        let condition = closed.condition.unwrap();
        assert_eq!(condition.reason, "FilterNotFound");
        assert!(condition.message.ends_with("no route goes out and none is taken"));
        // What is there stays, with filters and without.
        let kept = policies.find(&both, Some(&f));
        assert_eq!((&kept.policy, kept.kept.as_ref()), (&there.policy, Some(&f)));
        assert!(kept.condition.unwrap().message.ends_with("keeps the filters that it had"));
        let kept = policies.find(&g, Some(&Vec::new()));
        assert_eq!((kept.policy, kept.kept), (None, Some(Vec::new())));
        // What it had has gone as well, and nobody knows how it was.
        assert!(policies.find(&g, Some(&names(&["h"]))).policy.unwrap().closed.is_some());

        // One that has seen it, for any session.
        let (emptied, last) = (snapshot(""), policies.last(&BTreeMap::new(), &[].into()));
        assert_eq!(last, BTreeMap::new(), "nobody names it");
        let peer = "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: p}\n\
                    spec: {peerIP: 192.0.2.1, asNumber: 1, filters: [f, g]}\n";
        let last = policies.last(&snapshot(peer).peers, &[].into());
        let (policies, _) = Policies::of("n1", &emptied, &last);
        for in_force in [None, Some(&Vec::new())] {
            let gone = policies.find(&f, in_force);
            assert_eq!((&gone.policy, gone.kept), (&there.policy, None));
            assert!(gone.condition.unwrap().message.contains("it holds as it was last"));
        }
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
            let none = BTreeMap::new();
            let (policies, wrong) = Policies::of(node, resources, &none);
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
