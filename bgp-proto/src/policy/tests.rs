//! Policies against their definition.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{
    any_policy::{LARGE, RED, policies},
    wire::Origin,
};

fn asn(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn path(asns: &[u32]) -> AsPath {
    AsPath::sequence(asns.iter().map(|number| asn(*number)))
}

fn attributes(asns: &[u32]) -> PathAttributes {
    PathAttributes::new(Origin::Igp, path(asns), IpAddr::from([192, 0, 2, 1]))
}

fn inside(text: &str, least: u8, most: u8, negated: bool) -> Rule {
    let prefix = PrefixMatch { prefix: prefix(text), within: Some((least, most)), negated };
    Rule { prefix: Some(prefix), ..Rule::default() }
}

fn equal(text: &str, negated: bool) -> Rule {
    let prefix = PrefixMatch { prefix: prefix(text), within: None, negated };
    Rule { prefix: Some(prefix), ..Rule::default() }
}

fn importing(name: &str, rules: Vec<Rule>) -> RouteFilter {
    let (v6, export) = (rules.clone(), [rules.clone(), rules.clone()]);
    RouteFilter { name: name.to_owned(), export, import: [rules, v6] }
}

/// Each condition, where it holds and where it does not.
#[test]
fn what_a_rule_matches() {
    let mut red = attributes(&[64513, 64514]);
    RED.add_to(&mut red);
    let mut large = attributes(&[64514]);
    LARGE.add_to(&mut large);
    let preferred = |number: u32| PathAttributes { local_pref: Some(number), ..attributes(&[]) };
    let plain = attributes(&[]);
    let one = prefix("10.1.0.0/16");
    let learned = |prefix, attributes| Route { prefix, attributes, learned: true, internal: false };
    let own = Route { learned: false, ..learned(one, &plain) };
    let within = Route { internal: true, ..own };
    let any = Rule::default;
    let rows: Vec<(&str, Rule, Route<'_>, bool)> = vec![
        ("nothing asked", any(), own, true),
        ("equal", equal("10.1.0.0/16", false), own, true),
        ("equal, a part", equal("10.0.0.0/8", false), own, false),
        ("not equal", equal("10.1.0.0/16", true), own, false),
        ("not equal, a part", equal("10.0.0.0/8", true), own, true),
        ("in", inside("10.0.0.0/8", 8, 32, false), own, true),
        ("in, itself", inside("10.1.0.0/16", 16, 32, false), own, true),
        ("in, around it", inside("10.1.0.0/24", 24, 32, false), own, false),
        ("in, elsewhere", inside("11.0.0.0/8", 8, 32, false), own, false),
        ("in, too long", inside("10.0.0.0/8", 8, 15, false), own, false),
        ("in, too short", inside("10.0.0.0/8", 17, 32, false), own, false),
        ("in, as long", inside("10.0.0.0/8", 16, 16, false), own, true),
        ("not in", inside("10.0.0.0/8", 8, 32, true), own, false),
        ("not in, elsewhere", inside("11.0.0.0/8", 8, 32, true), own, true),
        ("not in, too long", inside("10.0.0.0/8", 8, 15, true), own, true),
        ("learned", Rule { learned: true, ..any() }, learned(one, &plain), true),
        ("not learned", Rule { learned: true, ..any() }, own, false),
        ("interface", Rule { by_interface: true, ..any() }, learned(one, &plain), false),
        ("internal", Rule { internal: Some(true), ..any() }, within, true),
        ("internal, is not", Rule { internal: Some(true), ..any() }, own, false),
        ("external", Rule { internal: Some(false), ..any() }, own, true),
        ("external, is not", Rule { internal: Some(false), ..any() }, within, false),
        ("community", Rule { community: Some(RED), ..any() }, learned(one, &red), true),
        ("another", Rule { community: Some(LARGE), ..any() }, learned(one, &red), false),
        ("large", Rule { community: Some(LARGE), ..any() }, learned(one, &large), true),
        ("none", Rule { community: Some(RED), ..any() }, own, false),
        ("path", Rule { as_path: vec![asn(64513)], ..any() }, learned(one, &red), true),
        (
            "whole path",
            Rule { as_path: vec![asn(64513), asn(64514)], ..any() },
            learned(one, &red),
            true,
        ),
        ("its end", Rule { as_path: vec![asn(64514)], ..any() }, learned(one, &red), false),
        ("own path", Rule { as_path: vec![asn(64513)], ..any() }, own, false),
        ("normal", Rule { priority: Some(1024), ..any() }, own, true),
        ("better", Rule { priority: Some(512), ..any() }, own, false),
    ];
    for (what, rule, route, expected) in rows {
        assert_eq!(rule.matches(&route), expected, "{what}: {rule:?}");
    }
    for (local_pref, priority) in [
        (0, Some(1124)),
        (99, Some(1025)),
        (100, Some(1024)),
        (101, Some(PRIORITY_BASE - 101)),
        (PRIORITY_BASE - 1024, Some(1024)),
        (PRIORITY_BASE - 512, Some(512)),
        (PRIORITY_BASE, None),
        (u32::MAX, None),
    ] {
        assert_eq!(priority_of(&preferred(local_pref)), priority, "{local_pref}");
    }
}

#[test]
fn what_a_rule_changes() {
    let rows: [(Operation, PathAttributes); 5] = [
        (Operation::AddCommunity(RED), {
            let mut with = attributes(&[64513]);
            with.communities = vec![Community(0xfc00_0064)];
            with
        }),
        (Operation::AddCommunity(LARGE), {
            let mut with = attributes(&[64513]);
            with.large_communities = vec![LargeCommunity([64512, 1, 2])];
            with
        }),
        (Operation::PrependAsPath(vec![asn(1), asn(2)]), attributes(&[1, 2, 64513])),
        (
            Operation::SetPriority(512),
            PathAttributes { local_pref: Some(PRIORITY_BASE - 512), ..attributes(&[64513]) },
        ),
        (
            Operation::SetPriority(NORMAL_PRIORITY),
            PathAttributes { local_pref: Some(100), ..attributes(&[64513]) },
        ),
    ];
    for (operation, expected) in rows {
        let mut changed = attributes(&[64513]);
        operation.apply(&mut changed);
        assert_eq!(changed, expected, "{operation:?}");
    }
    // The same community twice is once.
    let mut twice = attributes(&[]);
    (0..2).for_each(|_| Operation::AddCommunity(RED).apply(&mut twice));
    assert_eq!(twice.communities.len(), 1);
}

/// A better priority is always the better LOCAL_PREF, or as good.
#[test]
fn priorities_are_in_the_order_of_local_pref() {
    let some = [1, 2, 511, 512, 1023, 1024, 1025, 1100, 1124, 1125, 5000, 2_147_483_646];
    for pair in some.windows(2) {
        assert!(local_pref_of(pair[0]) >= local_pref_of(pair[1]), "{pair:?}");
    }
    for priority in [1, 512, 1023, 1024, 1025, 1124] {
        let local_pref = Some(local_pref_of(priority));
        let attributes = PathAttributes { local_pref, ..attributes(&[]) };
        assert_eq!(priority_of(&attributes), Some(priority));
    }
}

#[test]
fn the_first_rule_of_the_first_filter_decides_and_is_named() {
    let accept = |rule: Rule| Rule { action: Action::Accept(Vec::new()), ..rule };
    let policy = RoutePolicy {
        filters: vec![
            importing("a", vec![accept(equal("10.1.0.0/16", false))]),
            importing("b", vec![equal("10.2.0.0/16", false), inside("10.0.0.0/8", 8, 32, false)]),
        ],
        ..RoutePolicy::default()
    };
    let attributes = attributes(&[]);
    let said = |policy: &RoutePolicy, text: &str, direction| {
        let route =
            Route { prefix: prefix(text), attributes: &attributes, learned: true, internal: false };
        let verdict = policy.verdict(direction, &route);
        let why = policy.refusal(direction, route.prefix.family(), verdict);
        assert_eq!(why.is_some(), verdict.is_rejected());
        why
    };
    for (text, direction, expected) in [
        ("10.1.0.0/16", Direction::Import, None),
        ("10.2.0.0/16", Direction::Import, Some("BGPFilter b, importV4[0]")),
        ("10.3.0.0/16", Direction::Export, Some("BGPFilter b, exportV4[1]")),
        ("11.0.0.0/8", Direction::Export, None),
        ("2001:db8::/32", Direction::Import, None),
    ] {
        assert_eq!(said(&policy, text, direction).as_deref(), expected, "{text}");
    }
    let closed = RoutePolicy { closed: Some("there is no filter x".to_owned()), ..policy };
    for direction in [Direction::Import, Direction::Export] {
        let why = said(&closed, "11.0.0.0/8", direction);
        assert_eq!(why.as_deref(), Some("there is no filter x"));
    }
    assert!(closed.has_import() && !closed.passes_learned_on());
}

/// All rules in one list, and the first that matches.
fn naive(policy: &RoutePolicy, direction: Direction, route: &Route<'_>) -> Option<Action> {
    let v6 = usize::from(route.prefix.family() == Family::V6);
    let lists = policy.filters.iter().map(|filter| match direction {
        Direction::Import => filter.import[v6].clone(),
        Direction::Export => filter.export[v6].clone(),
    });
    let mut rules = lists.flatten().filter(|rule| rule.matches(route));
    rules.next().map(|rule| rule.action)
}

const PREFIXES: [&str; 5] =
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "2001:db8::/32", "2001:db8:1::/48"];

proptest! {
    #[test]
    fn a_verdict_is_that_of_the_first_rule(
        policy in policies(&PREFIXES),
        place in 0..PREFIXES.len(),
        (learned, internal, red, export) in any::<(bool, bool, bool, bool)>(),
    ) {
        let mut attributes = attributes(&[64513]);
        if red {
            RED.add_to(&mut attributes);
        }
        let route = Route { prefix: prefix(PREFIXES[place]), attributes: &attributes, learned, internal };
        let direction = if export { Direction::Export } else { Direction::Import };
        let verdict = policy.verdict(direction, &route);
        if policy.closed.is_some() {
            prop_assert_eq!(verdict, Verdict::Closed);
            return Ok(());
        }
        let expected = naive(&policy, direction, &route);
        prop_assert_eq!(verdict.is_rejected(), expected == Some(Action::Reject));
        let mut changed = attributes.clone();
        if let Some(Action::Accept(operations)) = &expected {
            operations.iter().for_each(|operation| operation.apply(&mut changed));
        }
        if !export && !verdict.is_rejected() {
            prop_assert!(policy.has_import() || changed == attributes);
            let imported = policy.imported(verdict, &route);
            prop_assert_eq!(imported.unwrap_or_else(|| attributes.clone()), changed.clone());
        }
        if export && !verdict.is_rejected() {
            let mut told = attributes.clone();
            policy.export(verdict, route.prefix, &mut told);
            let is_inside = |a: &Advertisement| a.prefix.covers(route.prefix);
            if policy.advertisements.iter().any(is_inside) {
                LARGE.add_to(&mut changed);
            }
            prop_assert_eq!(told, changed);
            if let Verdict::Accepted { learned: true, .. } = verdict {
                prop_assert!(policy.passes_learned_on());
            }
        }
    }
}
