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
        let hop = |next_hop: &BgpNextHop| {
            let hop = (*self.resolved.get(next_hop)?)?.next_hop(next_hop.address);
            (!self.refused.contains(&hop)).then_some(hop)
        };
        let live = |hop: &NextHop| !self.dead_links.contains(&hop.ifindex);
        let works = |next_hop: &&BgpNextHop| !self.leaving.contains(*next_hop);
        let working = |next_hops: &[BgpNextHop]| -> BTreeSet<NextHop> {
            next_hops.iter().filter(works).filter_map(hop).filter(live).collect()
        };
        let backup = working(key.backup.as_slice()).first().copied();
        let way = Way::new(working(&key.next_hops), backup);
        if !way.hops.is_empty() {
            return way;
        }
        let alone = key.next_hops.len() == 1 && key.backup.is_none();
        let last = key.next_hops.iter().filter_map(hop);
        Way::new(last.filter(|hop| alone || live(hop)).collect(), None)
    }
}
