//! Which of several paths to one prefix are used (RFC 4271 section 9.1.2.2).
//!
//! Each step is a filter over the set of paths that are left. That is what the RFC describes, and
//! unlike a comparison of two it is right about MED, which orders only paths of one neighbour AS.

use std::{fmt, net::Ipv4Addr, sync::Arc};

use crate::{PeerKey, wire::PathAttributes};

/// LOCAL_PREF of a path that has none.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// A path that could be used, with what the decision looks at besides its attributes.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) peer: PeerKey,
    pub(crate) attributes: Arc<PathAttributes>,
    /// From an external session.
    pub(crate) external: bool,
    /// Cost of the interior route to the next hop.
    pub(crate) metric: u32,
    /// The peer's identifier.
    pub(crate) router_id: Ipv4Addr,
}

/// The step that left one path, or the ones that are used together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    OnlyPath,
    LocalPref,
    AsPathLength,
    Origin,
    Med,
    External,
    Metric,
    RouterId,
    PeerAddress,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OnlyPath => "only path",
            Self::LocalPref => "higher LOCAL_PREF",
            Self::AsPathLength => "shorter AS_PATH",
            Self::Origin => "better ORIGIN",
            Self::Med => "lower MED",
            Self::External => "external over internal",
            Self::Metric => "nearer next hop",
            Self::RouterId => "lower router id",
            Self::PeerAddress => "lower peer address",
        })
    }
}

/// The paths to use, best first, at most `max_paths`, and what decided for the best.
pub(crate) fn decide(mut left: Vec<Candidate>, max_paths: usize) -> Option<(Vec<Candidate>, Step)> {
    let mut step = Step::OnlyPath;
    let mut narrow = |left: &mut Vec<Candidate>, by: Step, keep: &dyn Fn(&Candidate) -> bool| {
        let before = left.len();
        left.retain(keep);
        if left.len() < before {
            step = by;
        }
    };
    let preference = |c: &Candidate| c.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF);
    let best = left.iter().map(preference).max()?;
    narrow(&mut left, Step::LocalPref, &|c| preference(c) == best);
    // a)
    let best = left.iter().map(|c| c.attributes.as_path.hops()).min()?;
    narrow(&mut left, Step::AsPathLength, &|c| c.attributes.as_path.hops() == best);
    // b)
    let best = left.iter().map(|c| c.attributes.origin).min()?;
    narrow(&mut left, Step::Origin, &|c| c.attributes.origin == best);
    // c) Only paths of one neighbour AS are compared; a missing MED is the lowest.
    let med = |c: &Candidate| c.attributes.med.unwrap_or(0);
    let neighbor = |c: &Candidate| c.attributes.as_path.neighbor();
    let all = left.clone();
    narrow(&mut left, Step::Med, &|c| {
        !all.iter().any(|other| neighbor(other) == neighbor(c) && med(other) < med(c))
    });
    // d)
    if left.iter().any(|c| c.external) {
        narrow(&mut left, Step::External, &|c| c.external);
    }
    // e)
    let best = left.iter().map(|c| c.metric).min()?;
    narrow(&mut left, Step::Metric, &|c| c.metric == best);

    // What is still left is equally good and shares the traffic. f) and g) say which is the best
    // of them, and which stay when there are too many.
    left.sort_by_key(|c| (originator(c), c.peer.address, c.peer.port));
    if let [first, second, ..] = left.as_slice() {
        step = if originator(first) == originator(second) {
            Step::PeerAddress
        } else {
            Step::RouterId
        };
    }
    left.truncate(max_paths.max(1));
    Some((left, step))
}

/// RFC 4456 section 9: ORIGINATOR_ID takes the place of the router id.
fn originator(candidate: &Candidate) -> Ipv4Addr {
    candidate.attributes.originator_id.unwrap_or(candidate.router_id)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use twill_types::Asn;

    use super::*;
    use crate::wire::{AsPath, Origin};

    fn candidate(last: u8, change: impl FnOnce(&mut PathAttributes, &mut Candidate)) -> Candidate {
        let next_hop = IpAddr::from([192, 0, 2, last]);
        let path = AsPath::sequence([Asn::new(64513).unwrap(), Asn::new(64999).unwrap()]);
        let mut attributes = PathAttributes::new(Origin::Igp, path, next_hop);
        let mut candidate = Candidate {
            peer: PeerKey { address: next_hop, port: 179 },
            attributes: Arc::new(attributes.clone()),
            external: true,
            metric: 0,
            router_id: Ipv4Addr::new(10, 0, 0, last),
        };
        change(&mut attributes, &mut candidate);
        candidate.attributes = Arc::new(attributes);
        candidate
    }

    fn winners(candidates: Vec<Candidate>, max: usize) -> (Vec<u8>, Step) {
        let (paths, step) = decide(candidates, max).unwrap();
        let last = |c: &Candidate| match c.peer.address {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        };
        (paths.iter().map(last).collect(), step)
    }

    #[test]
    fn each_step_decides_in_its_turn() {
        let asn = |n| Asn::new(n).unwrap();
        let other = |n| AsPath::sequence([asn(n), asn(64999)]);
        let plain = || candidate(2, |_, _| {});
        for (better, step) in [
            (candidate(9, |a, _| a.local_pref = Some(101)), Step::LocalPref),
            (candidate(9, |a, _| a.as_path = AsPath::sequence([asn(1)])), Step::AsPathLength),
            (plain(), Step::OnlyPath),
        ] {
            let last = match better.peer.address {
                IpAddr::V4(v4) => v4.octets()[3],
                IpAddr::V6(_) => unreachable!(),
            };
            let mut all = vec![better];
            if step != Step::OnlyPath {
                all.push(plain());
            }
            assert_eq!(winners(all, 8), (vec![last], step));
        }
        let worse_origin = candidate(1, |a, _| a.origin = Origin::Incomplete);
        assert_eq!(winners(vec![worse_origin, plain()], 8), (vec![2], Step::Origin));
        let worse_med = candidate(1, |a, _| a.med = Some(5));
        assert_eq!(winners(vec![worse_med.clone(), plain()], 8), (vec![2], Step::Med));
        let other_as = candidate(3, |a, _| a.as_path = other(65000));
        assert_eq!(winners(vec![worse_med, other_as], 8), (vec![1, 3], Step::RouterId));
        let internal = candidate(1, |_, c| c.external = false);
        assert_eq!(winners(vec![internal, plain()], 8), (vec![2], Step::External));
        let far = candidate(1, |_, c| c.metric = 7);
        assert_eq!(winners(vec![far, plain()], 8), (vec![2], Step::Metric));
        assert_eq!(winners(vec![candidate(3, |_, _| {}), plain()], 1), (vec![2], Step::RouterId));
    }

    #[test]
    fn equal_paths_share_the_traffic() {
        let all = (1..=4).map(|n| candidate(n, |_, _| {})).collect::<Vec<_>>();
        assert_eq!(winners(all.clone(), 16).0, [1, 2, 3, 4]);
        assert_eq!(winners(all, 2).0, [1, 2]);
    }
}
