//! The order in which routes are written.

use twill_types::{Prefix, PrefixList};

/// Every so many of a sorted table are written first, then those beside them. In the order of prefixes
/// the kernel's trie (`net/ipv4/fib_trie.c`) grows or shrinks the same nodes again and again: to delete
/// 100,000 routes takes it 2.3 times as long, to add them 1.15 times.
const STRIDE: usize = 8;

/// Destinations whose routes are to be written, each once.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Sorted.
    all: PrefixList,
    /// The place of the next one. For 20 places the order is
    /// `0 8 16 | 1 9 17 | 2 10 18 | 3 11 19 | 4 12 | 5 13 | 6 14 | 7 15`: round `r` takes the places `p`
    /// with `p % STRIDE == r`. With `next` 9, places 0, 8, 16 and 1 are written.
    next: usize,
}

impl Due {
    pub(super) const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// No more than so many are left.
    pub(super) const fn at_most(&self) -> usize {
        self.all.len()
    }

    /// Adds destinations; all that are left are in a new order then. They stay where they are, for a list
    /// of a whole table is large.
    pub(super) fn add(&mut self, mut more: PrefixList) {
        if more.is_empty() {
            return;
        }
        let next = std::mem::take(&mut self.next);
        if self.all.is_empty() {
            self.all = more;
        } else {
            self.all.retain_places(|at| (at % STRIDE, at) >= (next % STRIDE, next));
            self.all.append(&mut more);
        }
        self.all.sort();
    }
}

impl Iterator for Due {
    type Item = Prefix;

    fn next(&mut self) -> Option<Prefix> {
        let prefix = self.all.get(self.next);
        self.next += STRIDE;
        if self.next >= self.all.len() {
            self.next = self.next % STRIDE + 1;
            if self.next == STRIDE || self.next >= self.all.len() {
                *self = Self::default();
            }
        }
        prefix
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn prefix(number: u32) -> Prefix {
        Prefix::host(Ipv4Addr::from_bits(number).into())
    }

    fn numbers(due: &mut Due) -> Vec<u32> {
        let all = 0..20;
        due.map(|due| all.clone().find(|number| prefix(*number) == due).unwrap()).collect()
    }

    #[test]
    fn neighbours_are_far_apart() {
        let mut due = Due::default();
        due.add((0..20).map(prefix).collect());
        let order = [0, 8, 16, 1, 9, 17, 2, 10, 18, 3, 11, 19, 4, 12, 5, 13, 6, 14, 7, 15];
        assert_eq!(numbers(&mut due), order);
        assert!(due.is_empty());
        due.add((0..3).rev().chain(0..3).map(prefix).collect());
        assert_eq!(numbers(&mut due), [0, 1, 2]);
    }

    proptest! {
        /// Whatever is added meanwhile, each comes once after it was added.
        #[test]
        fn each_comes_once(
            steps in prop::collection::vec((prop::collection::vec(0..200_u32, 0..50), 0..30_usize), 0..9)
        ) {
            let (mut due, mut model) = (Due::default(), BTreeSet::new());
            for (added, taken) in steps {
                due.add(added.iter().copied().map(prefix).collect());
                model.extend(added.into_iter().map(prefix));
                for _ in 0..taken {
                    match due.next() {
                        Some(next) => prop_assert!(model.remove(&next)),
                        None => prop_assert!(model.is_empty()),
                    }
                }
                prop_assert_eq!(due.is_empty(), model.is_empty());
            }
        }
    }
}
