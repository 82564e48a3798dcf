//! Which of several paths to one prefix are used (RFC 4271 section 9.1.2.2).
//!
//! Each step is a filter over the set of paths that are left. That is what the RFC describes, and
//! unlike a comparison of two it is right about MED, which orders only paths of one neighbour AS.
//!
//! What is left after the step of the next hop's metric is equally good: LOCAL_PREF, AIGP, length of
//! AS_PATH, ORIGIN, kind of session and metric are the same, and no other path of the same neighbour
//! AS has a lower MED. These paths share the traffic, as with BIRD's `merge paths`: neither the ASes
//! in AS_PATH nor the MEDs of different neighbour ASes have to be the same. The steps after it order
//! them: which is the best, and which go when there are more next hops than allowed.
//!
//! The step of RFC 5004, which keeps an older external path before a lower router id, is left out.
//! The choice would depend on the order of arrival, and a path that is as good as the best one is
//! used beside it anyway.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use twill_types::{Asn, BgpNextHop};

use crate::{
    PathKey,
    wire::{Community, PathAttributes},
};

/// LOCAL_PREF of a path that has none.
pub(crate) const DEFAULT_LOCAL_PREF: u32 = 100;

/// A path that could be used, with what the decision looks at besides its attributes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'a> {
    pub(crate) path: PathKey,
    pub(crate) attributes: &'a PathAttributes,
    /// From an external session.
    pub(crate) external: bool,
    /// Cost of the interior route to the next hop.
    pub(crate) metric: u32,
    /// The peer's identifier.
    pub(crate) router_id: Ipv4Addr,
}

impl Candidate<'_> {
    /// Where it leads to.
    pub(crate) const fn next_hop(&self) -> BgpNextHop {
        BgpNextHop::new(self.attributes.next_hop, self.path.peer.address)
    }
}

/// A step of the decision, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Any before one that is kept for long while its peer is away, here or farther off (RFC 9494
    /// section 4.3).
    LongLivedStale,
    /// Higher LOCAL_PREF (RFC 4271 section 9.1.1); none counts as 100.
    LocalPref,
    /// Lower AIGP with the cost of the way to the next hop added; any before none (RFC 7311 section 4.1).
    Aigp,
    /// Shorter AS_PATH, a set counting once (section 9.1.2.2 a).
    AsPathLength,
    /// Lower ORIGIN (b).
    Origin,
    /// Lower MED among paths of one neighbour AS (c); none counts as 0.
    Med,
    /// External before internal (d).
    External,
    /// Lower cost of the way to the next hop (e).
    Metric,
    /// Lower identifier of the router that brought the route into the AS (f, and RFC 4456 section 9).
    RouterId,
    /// Fewer reflectors on the way (RFC 4456 section 9).
    ClusterList,
    /// Lower address of the peer (g), then lower port.
    PeerAddress,
    /// Lower path identifier, of two paths from one peer. RFC 7911 leaves this order to the receiver.
    PathId,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LongLivedStale => "fresh over long-lived stale",
            Self::LocalPref => "higher LOCAL_PREF",
            Self::Aigp => "lower AIGP",
            Self::AsPathLength => "shorter AS_PATH",
            Self::Origin => "better ORIGIN",
            Self::Med => "lower MED",
            Self::External => "external over internal",
            Self::Metric => "nearer next hop",
            Self::RouterId => "lower router id",
            Self::ClusterList => "shorter CLUSTER_LIST",
            Self::PeerAddress => "lower peer address",
            Self::PathId => "lower path identifier",
        })
    }
}

/// Why a path is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Which path.
    pub(crate) path: PathKey,
    /// The step in which the other was better.
    pub(crate) step: Step,
    /// The one that was better.
    pub(crate) against: PathKey,
}

/// Reduces the candidates to the paths to use, best first, with at most `max_paths` next hops
/// between them. Each other one is told to `lost`.
pub(crate) fn decide(left: &mut Vec<Candidate<'_>>, max_paths: usize, lost: &mut dyn FnMut(Loss)) {
    if left.len() <= 1 {
        return;
    }
    narrow(left, Step::LongLivedStale, lost, |c| c.attributes.has_community(Community::LLGR_STALE));
    narrow(left, Step::LocalPref, lost, |c| std::cmp::Reverse(preference(c)));
    narrow(left, Step::Aigp, lost, |c| match c.attributes.aigp {
        Some(metric) => (false, metric.saturating_add(c.metric.into())),
        None => (true, 0),
    });
    narrow(left, Step::AsPathLength, lost, |c| c.attributes.as_path.hops());
    narrow(left, Step::Origin, lost, |c| c.attributes.origin);
    narrow_by_med(left, lost);
    narrow(left, Step::External, lost, |c| !c.external);
    narrow(left, Step::Metric, lost, |c| c.metric);
    left.sort_unstable_by_key(rank);
    // The same next hop by two peers (reflectors) is one way.
    let mut ways = Vec::new();
    let mut last: Option<Candidate<'_>> = None;
    left.retain(|c| {
        let next_hop = c.next_hop();
        if !ways.contains(&next_hop) {
            match last {
                Some(last) if ways.len() >= max_paths => {
                    lost(Loss { path: c.path, step: order(&last, c), against: last.path });
                    return false;
                }
                _ => ways.push(next_hop),
            }
        }
        last = Some(*c);
        true
    });
}

/// Keeps those with the lowest key. The others lose to the first of these in the final order, which
/// is the same whatever the order of the candidates is.
fn narrow<K: Ord>(
    left: &mut Vec<Candidate<'_>>,
    step: Step,
    lost: &mut dyn FnMut(Loss),
    key: impl Fn(&Candidate<'_>) -> K,
) {
    let Some(best) = left.iter().map(&key).min() else {
        return;
    };
    if left.iter().all(|c| key(c) == best) {
        return;
    }
    let winner = left.iter().filter(|c| key(c) == best).min_by_key(|c| rank(c)).map(|c| c.path);
    left.retain(|c| {
        let keep = key(c) == best;
        if let (false, Some(against)) = (keep, winner) {
            lost(Loss { path: c.path, step, against });
        }
        keep
    });
}

/// Only paths of one neighbour AS are compared (c). A path without an AS to name was made inside this
/// one, which then is the neighbour AS of all such paths.
fn narrow_by_med(left: &mut Vec<Candidate<'_>>, lost: &mut dyn FnMut(Loss)) {
    let med = |c: &Candidate<'_>| c.attributes.med.unwrap_or(0);
    let mut lowest: BTreeMap<Option<Asn>, Candidate<'_>> = BTreeMap::new();
    if left.first().is_none_or(|first| left.iter().all(|c| med(c) == med(first))) {
        return;
    }
    for c in left.iter() {
        let held = lowest.entry(c.attributes.as_path.neighbor()).or_insert(*c);
        if (med(c), rank(c)) < (med(held), rank(held)) {
            *held = *c;
        }
    }
    left.retain(|c| {
        let Some(best) = lowest.get(&c.attributes.as_path.neighbor()) else {
            return true;
        };
        let keep = med(c) == med(best);
        if !keep {
            lost(Loss { path: c.path, step: Step::Med, against: best.path });
        }
        keep
    });
}

fn preference(candidate: &Candidate<'_>) -> u32 {
    candidate.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
}

/// RFC 4456 section 9: ORIGINATOR_ID takes the place of the router id.
fn originator(candidate: &Candidate<'_>) -> Ipv4Addr {
    candidate.attributes.originator_id.unwrap_or(candidate.router_id)
}

/// The order of equally good paths.
fn rank(c: &Candidate<'_>) -> (Ipv4Addr, usize, PathKey) {
    (originator(c), c.attributes.cluster_list.len(), c.path)
}

/// The step that puts `first` before `second`, both equally good.
pub(crate) fn order(first: &Candidate<'_>, second: &Candidate<'_>) -> Step {
    match (rank(first), rank(second)) {
        (a, b) if a.0 != b.0 => Step::RouterId,
        (a, b) if a.1 != b.1 => Step::ClusterList,
        (a, b) if a.2.peer != b.2.peer => Step::PeerAddress,
        _ => Step::PathId,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::{
        PeerKey,
        wire::{AsPath, Origin, Segment},
    };

    struct Owned {
        path: PathKey,
        attributes: PathAttributes,
        external: bool,
        metric: u32,
        router_id: Ipv4Addr,
    }

    impl Owned {
        fn candidate(&self) -> Candidate<'_> {
            Candidate {
                path: self.path,
                attributes: &self.attributes,
                external: self.external,
                metric: self.metric,
                router_id: self.router_id,
            }
        }
    }

    fn asn(number: u32) -> Asn {
        Asn::new(number).unwrap()
    }

    fn path(last: u8, change: impl FnOnce(&mut Owned)) -> Owned {
        let address = IpAddr::from([192, 0, 2, last]);
        let as_path = AsPath::sequence([asn(64513), asn(64999)]);
        let mut owned = Owned {
            path: PathKey { peer: PeerKey { address, port: 179 }, path_id: 0 },
            attributes: PathAttributes::new(Origin::Igp, as_path, address),
            external: true,
            metric: 10,
            router_id: Ipv4Addr::new(10, 0, 0, last),
        };
        change(&mut owned);
        owned
    }

    fn last(path: PathKey) -> u8 {
        match path.peer.address {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        }
    }

    /// Who is used, best first, and who lost by what against whom.
    fn run(paths: &[Owned], max: usize) -> (Vec<u8>, Vec<(u8, Step, u8)>) {
        let mut left: Vec<_> = paths.iter().map(Owned::candidate).collect();
        let mut lost = Vec::new();
        decide(&mut left, max, &mut |loss| {
            lost.push((last(loss.path), loss.step, last(loss.against)));
        });
        lost.sort_unstable();
        (left.iter().map(|c| last(c.path)).collect(), lost)
    }

    type Change = fn(&mut Owned);

    /// One path (2) as it is, another (1, which would win a tie) made worse in one respect, and better
    /// in all that come later.
    #[test]
    fn each_step_decides_in_its_turn() {
        let worse: [(Step, Change); 11] = [
            (Step::LongLivedStale, |p| p.attributes.communities = vec![Community::LLGR_STALE]),
            (Step::LocalPref, |p| p.attributes.local_pref = Some(99)),
            (Step::Aigp, |p| p.attributes.aigp = None),
            (Step::AsPathLength, |p| {
                p.attributes.as_path = p.attributes.as_path.prepended(asn(64513));
            }),
            (Step::Origin, |p| p.attributes.origin = Origin::Egp),
            (Step::Med, |p| p.attributes.med = Some(1)),
            (Step::External, |p| p.external = false),
            (Step::Metric, |p| (p.metric, p.attributes.aigp) = (11, Some(6))),
            (Step::RouterId, |p| p.router_id = Ipv4Addr::new(10, 0, 0, 3)),
            (Step::ClusterList, |p| {
                p.attributes.cluster_list = vec![Ipv4Addr::new(1, 1, 1, 1); 3];
            }),
            (Step::PeerAddress, |p| p.path.peer.address = IpAddr::from([192, 0, 2, 9])),
        ];
        let better: [Change; 11] = [
            |_| {},
            |p| p.attributes.local_pref = Some(101),
            |p| p.attributes.aigp = Some(0),
            |p| p.attributes.as_path = AsPath::sequence([asn(64513)]),
            |p| p.attributes.origin = Origin::Igp,
            |p| p.attributes.med = Some(0),
            |p| p.external = true,
            // With the same sum, unless AIGP is what is better.
            |p| {
                p.metric = 9;
                p.attributes.aigp =
                    p.attributes.aigp.map(|metric| if metric == 7 { 8 } else { metric });
            },
            |p| p.router_id = Ipv4Addr::new(10, 0, 0, 1),
            |p| p.attributes.cluster_list = vec![],
            |p| p.path.peer.address = IpAddr::from([192, 0, 2, 1]),
        ];
        for (index, (step, worsen)) in worse.into_iter().enumerate() {
            let plain = path(2, |p| {
                p.router_id = Ipv4Addr::new(10, 0, 0, 2);
                p.attributes.origin = Origin::Igp;
                p.attributes.cluster_list = vec![Ipv4Addr::new(1, 1, 1, 1); 2];
                p.attributes.aigp = Some(7);
            });
            let other = path(1, |p| {
                p.router_id = Ipv4Addr::new(10, 0, 0, 2);
                p.attributes.cluster_list = vec![Ipv4Addr::new(1, 1, 1, 1); 2];
                p.attributes.aigp = Some(7);
                better.iter().skip(index + 1).for_each(|change| change(p));
                worsen(p);
            });
            let loser = last(other.path);
            assert_eq!(run(&[plain, other], 1), (vec![2], vec![(loser, step, 2)]), "{step}");
        }
    }

    /// What has to tie for paths to share the traffic: all up to the metric, nothing after it.
    #[test]
    fn equal_paths_share_the_traffic() {
        let all: Vec<Owned> = (1..=4)
            .map(|n| {
                path(n, |p| {
                    p.attributes.as_path = AsPath::sequence([asn(64513 + u32::from(n)), asn(1)]);
                    p.attributes.med = Some(u32::from(n));
                    p.attributes.cluster_list = vec![Ipv4Addr::LOCALHOST; usize::from(n)];
                })
            })
            .collect();
        assert_eq!(run(&all, 16), (vec![1, 2, 3, 4], vec![]));
        let over = vec![(3, Step::RouterId, 2), (4, Step::RouterId, 2)];
        assert_eq!(run(&all, 2), (vec![1, 2], over));
    }

    /// Two reflectors tell of one next hop: that is one way, not two.
    #[test]
    fn the_limit_counts_next_hops() {
        let all: Vec<Owned> = (1..=4)
            .map(|n| {
                path(n, |p| p.attributes.next_hop = IpAddr::from([198, 51, 100, n.div_ceil(2)]))
            })
            .collect();
        assert_eq!(run(&all, 2), (vec![1, 2, 3, 4], vec![]));
        let over = vec![(3, Step::RouterId, 2), (4, Step::RouterId, 2)];
        assert_eq!(run(&all, 1), (vec![1, 2], over));
    }

    /// RFC 4271 section 9.1.2.2 c: comparing two at a time would depend on the order of arrival.
    #[test]
    fn med_orders_paths_of_one_neighbour_alone() {
        let via = |last, neighbour: Option<u32>, med, metric| {
            path(last, |p| {
                p.attributes.as_path = match neighbour {
                    Some(number) => AsPath::sequence([asn(number), asn(64999)]),
                    None => AsPath::new(vec![
                        Segment::Set(vec![asn(64998)]),
                        Segment::Sequence(vec![asn(64999)]),
                    ]),
                };
                p.attributes.med = med;
                p.metric = metric;
            })
        };
        // The nearest loses to another of its AS, which then is the farthest of those left.
        let ring = |order: [usize; 3]| {
            let of = |n| match n {
                0 => via(1, Some(64513), Some(20), 1),
                1 => via(2, Some(64513), Some(10), 3),
                _ => via(3, Some(64514), Some(90), 2),
            };
            run(&order.map(of), 16)
        };
        let expected = (vec![3], vec![(1, Step::Med, 2), (2, Step::Metric, 3)]);
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            assert_eq!(ring(order), expected, "{order:?}");
        }
        // None is the lowest, and paths made inside one AS are compared with each other.
        let inside = [via(1, None, Some(5), 0), via(2, None, None, 0), via(3, Some(1), Some(7), 0)];
        assert_eq!(run(&inside, 16), (vec![2, 3], vec![(1, Step::Med, 2)]));
    }

    /// RFC 7911: two paths of one peer differ in nothing but their identifiers.
    #[test]
    fn path_identifiers_come_last() {
        let with_id = |path_id, next_hop: u8| {
            path(1, |p| {
                p.path.path_id = path_id;
                p.attributes.next_hop = IpAddr::from([198, 51, 100, next_hop]);
            })
        };
        let all = [with_id(7, 7), with_id(3, 3), with_id(5, 5)];
        let mut lost = Vec::new();
        let mut left: Vec<_> = all.iter().map(Owned::candidate).collect();
        decide(&mut left, 2, &mut |loss| {
            lost.push((loss.path.path_id, loss.step, loss.against.path_id));
        });
        assert_eq!(left.iter().map(|c| c.path.path_id).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(lost, [(7, Step::PathId, 5)]);
    }

    #[test]
    fn originator_stands_for_the_router_id() {
        let reflected = path(2, |p| p.attributes.originator_id = Some(Ipv4Addr::new(1, 0, 0, 1)));
        let lost = vec![(1, Step::RouterId, 2)];
        assert_eq!(run(&[path(1, |_| {}), reflected], 1), (vec![2], lost));
    }

    /// RFC 7311 section 4.1: what the AS before has counted, and what is added here.
    #[test]
    fn aigp_counts_the_way_to_the_next_hop() {
        let with = |last, aigp, metric| {
            path(last, |p| {
                p.attributes.aigp = aigp;
                p.metric = metric;
            })
        };
        let lost = vec![(2, Step::Aigp, 1), (3, Step::Aigp, 1)];
        let all = [with(1, Some(5), 4), with(2, Some(8), 2), with(3, None, 0)];
        assert_eq!(run(&all, 16), (vec![1], lost));
        // The same sum is told apart by the metric alone, much later.
        let all = [with(1, Some(5), 4), with(2, Some(7), 2)];
        assert_eq!(run(&all, 16), (vec![2], vec![(1, Step::Metric, 2)]));
    }

    #[test]
    fn no_local_pref_is_100() {
        let all = [path(1, |p| p.attributes.local_pref = Some(100)), path(2, |_| {})];
        assert_eq!(run(&all, 16).0, [1, 2]);
    }
}
