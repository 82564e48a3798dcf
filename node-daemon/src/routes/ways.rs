//! From BGP next hops to ways out of the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use twill_dataplane::{NextHop, fib::Resolved};
use twill_types::{BgpNextHop, Family};

/// What routes share: the same BGP next hops lead them the same way, whatever becomes of these.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SetKey {
    /// Of the destinations. IPv6 routes cannot name an object with an IPv4 next hop, so the families
    /// have objects of their own.
    pub(super) family: Family,
    /// BGP next hops that share the traffic; at least one.
    pub(super) next_hops: Arc<[BgpNextHop]>,
    /// What takes the place of a single next hop that is lost.
    pub(super) backup: Option<BgpNextHop>,
}

/// The most hops of a route, however many routers lead to its BGP next hops.
const MOST_HOPS: usize = 16;

/// Where packets go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// They share the traffic; none if there is no way.
    pub(super) hops: Arc<BTreeSet<NextHop>>,
    /// Takes over when all of them are lost; never one of them.
    pub(super) backup: Option<NextHop>,
}

impl Way {
    /// The way as a group can have it.
    pub(super) fn as_held(&self, guarded: bool) -> Self {
        let backup = self.backup.filter(|_| guarded);
        Self { hops: Arc::clone(&self.hops), backup }
    }

    /// All hops, the backup too.
    pub(super) fn all(&self) -> impl Iterator<Item = NextHop> {
        self.hops.iter().copied().chain(self.backup)
    }

    /// Whether there is a second next hop, for which an object pays.
    pub(super) fn has_second(&self) -> bool {
        self.all().nth(1).is_some()
    }

    /// What the kernel leaves of it when these hops are gone.
    pub(super) fn without(&self, gone: &BTreeSet<NextHop>) -> Self {
        let hops: BTreeSet<NextHop> = self.hops.difference(gone).copied().collect();
        let backup = self.backup.filter(|hop| !gone.contains(hop));
        Self::new(hops, backup)
    }

    /// A backup that is left alone is no backup.
    pub(super) fn new(mut hops: BTreeSet<NextHop>, mut backup: Option<NextHop>) -> Self {
        if hops.is_empty() {
            hops.extend(backup.take());
        }
        backup = backup.filter(|hop| !hops.contains(hop));
        Self { hops: Arc::new(hops), backup }
    }
}

/// What is known of next hops and links.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Where each tracked BGP next hop is.
    pub(super) resolved: BTreeMap<BgpNextHop, Option<Resolved>>,
    /// BGP next hops that no path has any more. The routes that had them are about to change.
    pub(super) leaving: BTreeSet<BgpNextHop>,
    /// Links that are down or have no carrier.
    pub(super) dead_links: BTreeSet<u32>,
    /// Hops that the kernel refused as objects, until something changes.
    pub(super) refused: BTreeSet<NextHop>,
}

impl Reach {
    /// The way of routes with these next hops, by what is best of: the next hops that work, the backup
    /// if it does, and what worked until now. To the last one belong next hops that are leaving,
    /// for a route shall not be gone before its next one is there; and a single next hop without a
    /// backup on a dead link, for its route outlives a flap of the carrier in the kernel.
    pub(super) fn way(&self, key: &SetKey) -> Way {
        let live = |hop: &NextHop| !self.dead_links.contains(&hop.ifindex);
        let live_hops = |next_hop: &BgpNextHop| self.hops(next_hop).filter(live).collect();
        let works = |next_hop: &&BgpNextHop| !self.leaving.contains(*next_hop);
        let working = |next_hops: &[BgpNextHop]| {
            shared(&next_hops.iter().filter(works).map(live_hops).collect::<Vec<_>>())
        };
        let (hops, backup) = (working(&key.next_hops), working(key.backup.as_slice()));
        if !hops.is_empty() {
            // Behind the routers that lead to the others it is no second way.
            let backup = backup.difference(&hops).next().copied();
            return Way::new(hops, backup);
        }
        if !backup.is_empty() {
            return Way::new(backup, None);
        }
        let mut last = shared(&key.next_hops.iter().map(live_hops).collect::<Vec<_>>());
        if let ([only], None, true) = (&key.next_hops[..], key.backup, last.is_empty()) {
            last.extend(self.hops(only).next());
        }
        Way::new(last, None)
    }

    /// The hops to a next hop that the kernel takes, in order.
    fn hops(&self, next_hop: &BgpNextHop) -> impl Iterator<Item = NextHop> {
        let resolved = self.resolved.get(next_hop).and_then(Option::as_ref);
        let address = next_hop.address;
        let hops = resolved.into_iter().flat_map(move |resolved| resolved.next_hops(address));
        hops.filter(|hop| !self.refused.contains(hop))
    }
}

/// All hops to some next hops, or as many of each as there is room for.
fn shared(each: &[Vec<NextHop>]) -> BTreeSet<NextHop> {
    let mut all = BTreeSet::new();
    for round in 0..each.iter().map(Vec::len).max().unwrap_or(0) {
        for hop in each.iter().filter_map(|hops| hops.get(round)) {
            if all.len() < MOST_HOPS {
                all.insert(*hop);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_next_hop_has_its_part_of_the_hops_of_a_route() {
        let hop = |ifindex| NextHop { gateway: None, ifindex, onlink: false };
        let hops = |numbers: std::ops::Range<u32>| numbers.map(hop).collect::<Vec<_>>();
        let all = shared(&[hops(0..8), hops(10..12), hops(20..40)]);
        let links: Vec<u32> = all.iter().map(|hop| hop.ifindex).collect();
        assert_eq!(links, [0, 1, 2, 3, 4, 5, 6, 10, 11, 20, 21, 22, 23, 24, 25, 26]);
        // Those that several have count once.
        assert_eq!(shared(&[hops(0..10), hops(0..10), hops(0..12)]).len(), 12);
        assert!(shared(&[hops(0..0), hops(0..0)]).is_empty());
    }
}
