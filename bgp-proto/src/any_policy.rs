//! Policies for tests: any that a few rules can make.

use proptest::prelude::*;
use twill_types::{Asn, Prefix};

use crate::{
    policy::{
        Action, Advertisement, CommunityValue, Operation, PrefixMatch, RouteFilter, RoutePolicy,
        Rule,
    },
    wire::{Community, LargeCommunity},
};

pub(crate) const RED: CommunityValue = CommunityValue::Standard(Community(0xfc00_0064));
pub(crate) const LARGE: CommunityValue = CommunityValue::Large(LargeCommunity([64512, 1, 2]));

fn parsed(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// Any policy for routes to some of these prefixes.
pub(crate) fn policies(prefixes: &'static [&'static str]) -> impl Strategy<Value = RoutePolicy> {
    let rules = || prop::collection::vec(rule(prefixes), 0..3);
    let lists = (rules(), rules(), rules(), rules());
    let filter = lists.prop_map(|(e4, e6, i4, i6)| RouteFilter {
        name: "f".to_owned(),
        export: [e4, e6],
        import: [i4, i6],
    });
    let advertisement = prop::sample::select(prefixes)
        .prop_map(|text| Advertisement { prefix: parsed(text), communities: vec![LARGE] });
    let closed = prop::option::weighted(0.1, Just("closed".to_owned()));
    let advertisements = prop::collection::vec(advertisement, 0..2);
    (prop::collection::vec(filter, 0..3), advertisements, closed).prop_map(
        |(filters, advertisements, closed)| RoutePolicy { filters, advertisements, closed },
    )
}

fn rule(prefixes: &'static [&'static str]) -> impl Strategy<Value = Rule> {
    let matched = (prop::sample::select(prefixes), 0_u8..40, any::<bool>(), any::<bool>());
    let matched = matched.prop_map(|(text, most, equal, negated)| {
        let prefix = parsed(text);
        let within = (!equal).then(|| (prefix.length(), prefix.length().saturating_add(most)));
        PrefixMatch { prefix, within, negated }
    });
    let operation = prop_oneof![
        Just(Operation::AddCommunity(RED)),
        Just(Operation::PrependAsPath(vec![Asn::new(64999).unwrap()])),
        Just(Operation::SetPriority(512)),
        Just(Operation::SetPriority(2000)),
    ];
    let operations = prop::collection::vec(operation, 0..3);
    let action = prop_oneof![
        2 => Just(Action::Reject),
        3 => operations.prop_map(Action::Accept),
    ];
    (
        prop::option::weighted(0.7, matched),
        prop::bool::weighted(0.4),
        prop::option::weighted(0.2, any::<bool>()),
        prop::option::weighted(0.2, Just(RED)),
        prop::option::weighted(0.1, Just(1024_u32)),
        action,
    )
        .prop_map(|(prefix, learned, internal, community, priority, action)| Rule {
            prefix,
            learned,
            by_interface: false,
            internal,
            community,
            as_path: Vec::new(),
            priority,
            action,
        })
}
