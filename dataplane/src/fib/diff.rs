//! Desired against actual.

use std::collections::BTreeMap;

use twill_types::Prefix;

use super::LearnedRoute;

/// One change of a learned route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FibChange {
    /// The route is made, or takes the place of the one that we have for its prefix, without a gap.
    Replace(LearnedRoute),
    /// Our route for the prefix is removed.
    Delete(Prefix),
}

impl FibChange {
    /// The prefix that it is about.
    pub fn prefix(&self) -> Prefix {
        match self {
            Self::Replace(route) => route.prefix,
            Self::Delete(prefix) => *prefix,
        }
    }
}

/// What has to change so that `actual` becomes `desired`: first what is new or different, then what
/// is to go, each in the order of prefixes.
pub fn diff(
    desired: &BTreeMap<Prefix, LearnedRoute>,
    actual: &BTreeMap<Prefix, LearnedRoute>,
) -> Vec<FibChange> {
    let replaced = desired
        .iter()
        .filter(|(prefix, route)| actual.get(prefix) != Some(route))
        .map(|(_, route)| FibChange::Replace(route.clone()));
    let gone = actual
        .keys()
        .filter(|prefix| !desired.contains_key(prefix))
        .map(|prefix| FibChange::Delete(*prefix));
    replaced.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NextHop;

    fn routes(list: &[(&str, &[&str])]) -> BTreeMap<Prefix, LearnedRoute> {
        let route = |(prefix, gateways): &(&str, &[&str])| {
            let prefix = prefix.parse().unwrap();
            let hop = |gateway: &&str| NextHop {
                gateway: Some(gateway.parse().unwrap()),
                ifindex: 2,
                onlink: false,
            };
            let next_hops = gateways.iter().map(hop).collect();
            (prefix, LearnedRoute { prefix, next_hops, source: None })
        };
        list.iter().map(route).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let actual = routes(&[
            ("10.0.0.0/26", &["192.168.2.1"]),
            ("10.0.0.64/26", &["192.168.2.1"]),
            ("10.0.0.128/26", &["192.168.2.1", "192.168.2.2"]),
        ]);
        let desired = routes(&[
            ("10.0.0.64/26", &["192.168.2.2"]),
            ("10.0.0.128/26", &["192.168.2.2", "192.168.2.1"]),
            ("fd00::/64", &["fe80::2"]),
        ]);
        let changes = diff(&desired, &actual);
        let text: Vec<String> = changes
            .iter()
            .map(|change| match change {
                FibChange::Replace(route) => format!("replace {}", route.prefix),
                FibChange::Delete(prefix) => format!("delete {prefix}"),
            })
            .collect();
        assert_eq!(text, ["replace 10.0.0.64/26", "replace fd00::/64", "delete 10.0.0.0/26"]);
        assert_eq!(diff(&desired, &desired), []);
    }
}
