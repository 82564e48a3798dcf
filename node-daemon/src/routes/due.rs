//! The order in which routes are written.

use std::collections::VecDeque;

use twill_types::{Prefix, PrefixList};

/// Every so many of a sorted table are written first, then those beside them. In the order of prefixes
/// the kernel's trie (`net/ipv4/fib_trie.c`) grows or shrinks the same nodes again and again: to delete
/// 100,000 routes takes it 2.3 times as long, to add them 1.15 times.
const STRIDE: usize = 8;

/// So many lists may wait. More of them are made one, so that what changes again and again while a table
/// is written does not pile up.
const MOST_LISTS: usize = 8;

/// Destinations whose routes are to be written. One that comes again before its turn may be in two lists,
/// and is looked at twice: to make one list of all each time would take as much memory again as a table
/// that is being written has.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// What came first is first.
    lists: VecDeque<List>,
}

impl Due {
    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// No more than so many are left.
    pub(super) fn at_most(&self) -> usize {
        self.lists.iter().map(|list| list.all.len()).sum()
    }

    /// Adds destinations.
    pub(super) fn add(&mut self, mut more: PrefixList) {
        if more.is_empty() {
            return;
        }
        if self.lists.len() >= MOST_LISTS {
            more.extend(self.by_ref());
        }
        more.sort();
        self.lists.push_back(List { all: more, next: 0 });
    }
}

impl Iterator for Due {
    type Item = Prefix;

    fn next(&mut self) -> Option<Prefix> {
        let list = self.lists.front_mut()?;
        let prefix = list.all.get(list.next);
        if !list.advance() {
            self.lists.pop_front();
        }
        prefix
    }
}

/// Some of them, each once.
#[derive(Debug)]
struct List {
    /// Sorted, and not empty.
    all: PrefixList,
    /// The place of the next one. Those before it in its round, and those of the rounds before, which
    /// are the places that leave less by [`STRIDE`], are written.
    next: usize,
}

impl List {
    /// Goes on to the next one; says whether there is one.
    fn advance(&mut self) -> bool {
        self.next += STRIDE;
        if self.next >= self.all.len() {
            // The next round, if there is another.
            self.next = self.next % STRIDE + 1;
            return self.next < STRIDE.min(self.all.len());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        net::Ipv4Addr,
    };

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
        due.add([prefix(9)].into_iter().collect());
        assert_eq!(numbers(&mut due), [0, 1, 2, 9]);
    }

    proptest! {
        /// Whatever is added meanwhile, each comes after it was added, and no more often.
        #[test]
        fn each_comes(
            steps in prop::collection::vec((prop::collection::vec(0..200_u32, 0..50), 0..30_usize), 0..40)
        ) {
            let (mut due, mut times, mut owed) = (Due::default(), BTreeMap::new(), BTreeSet::new());
            for (added, taken) in steps {
                let added: BTreeSet<Prefix> = added.into_iter().map(prefix).collect();
                due.add(added.iter().copied().collect());
                for prefix in added {
                    *times.entry(prefix).or_insert(0_usize) += 1;
                    owed.insert(prefix);
                }
                for _ in 0..taken {
                    match due.next() {
                        Some(next) => {
                            let left = times.get_mut(&next).filter(|left| **left > 0);
                            prop_assert!(left.is_some(), "{next} came too often");
                            *left.unwrap() -= 1;
                            owed.remove(&next);
                        }
                        None => prop_assert!(owed.is_empty()),
                    }
                }
                prop_assert!(due.lists.len() <= MOST_LISTS);
                prop_assert_eq!(due.is_empty(), due.at_most() == 0);
            }
            for next in due {
                owed.remove(&next);
            }
            prop_assert!(owed.is_empty());
        }
    }
}
