use std::fmt;

use crate::{
    Prefix,
    prefix_map::{Key, Key4, Key6, key, prefix4, prefix6},
};

/// A list of prefixes, those of IPv4 first, and these in eight octets each, where a [`Prefix`] has room
/// for IPv6.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PrefixList {
    v4: Vec<Key4>,
    v6: Vec<Key6>,
}

impl PrefixList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }

    /// An empty list with room for so many of each family, and no more.
    pub fn with_capacity(v4: usize, v6: usize) -> Self {
        Self { v4: Vec::with_capacity(v4), v6: Vec::with_capacity(v6) }
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds one behind the others of its family.
    pub fn push(&mut self, prefix: Prefix) {
        match key(prefix) {
            Key::V4(key) => self.v4.push(key),
            Key::V6(key) => self.v6.push(key),
        }
    }

    /// Moves all of another list behind these, by family.
    pub fn append(&mut self, other: &mut Self) {
        self.v4.append(&mut other.v4);
        self.v6.append(&mut other.v6);
    }

    /// Leaves those at these places.
    pub fn retain_places(&mut self, keep: impl Fn(usize) -> bool) {
        let mut places = 0..;
        let mut keep = || places.next().is_some_and(&keep);
        self.v4.retain(|_| keep());
        self.v6.retain(|_| keep());
    }

    /// Sorts it, and leaves one of each.
    pub fn sort(&mut self) {
        // Stable, for it makes use of runs that are sorted already.
        self.v4.sort();
        self.v4.dedup();
        self.v6.sort();
        self.v6.dedup();
    }

    /// Gives back memory that is not needed.
    pub fn shrink_to_fit(&mut self) {
        self.v4.shrink_to_fit();
        self.v6.shrink_to_fit();
    }

    /// The one at a place, if there is one.
    pub fn get(&self, at: usize) -> Option<Prefix> {
        match at.checked_sub(self.v4.len()) {
            None => self.v4.get(at).map(|key| prefix4(*key)),
            Some(at) => self.v6.get(at).map(|key| prefix6(*key)),
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Prefix> {
        let v4 = self.v4.iter().map(|key| prefix4(*key));
        v4.chain(self.v6.iter().map(|key| prefix6(*key)))
    }

    /// Whether a prefix is in a list that is sorted.
    pub fn has(&self, prefix: Prefix) -> bool {
        match key(prefix) {
            Key::V4(key) => self.v4.binary_search(&key).is_ok(),
            Key::V6(key) => self.v6.binary_search(&key).is_ok(),
        }
    }

    /// Those of a list that is sorted which lie inside a prefix, in order.
    pub fn within(&self, outer: Prefix) -> impl Iterator<Item = Prefix> {
        let start = match key(outer) {
            Key::V4(key) => self.v4.partition_point(|other| *other < key),
            Key::V6(key) => self.v4.len() + self.v6.partition_point(|other| *other < key),
        };
        let from = (start..self.len()).filter_map(|at| self.get(at));
        from.take_while(move |prefix| outer.covers(*prefix))
    }
}

impl FromIterator<Prefix> for PrefixList {
    fn from_iter<I: IntoIterator<Item = Prefix>>(prefixes: I) -> Self {
        let mut list = Self::new();
        list.extend(prefixes);
        list
    }
}

impl Extend<Prefix> for PrefixList {
    fn extend<I: IntoIterator<Item = Prefix>>(&mut self, prefixes: I) {
        for prefix in prefixes {
            self.push(prefix);
        }
    }
}

impl fmt::Debug for PrefixList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::samples::any_prefix;

    proptest! {
        /// Beside a `Vec`.
        #[test]
        fn it_is_a_list(
            all in prop::collection::vec(any_prefix(), 0..200),
            more in prop::collection::vec(any_prefix(), 0..20),
            asked in any_prefix(),
        ) {
            let mut list: PrefixList = all.iter().copied().collect();
            list.append(&mut more.iter().copied().collect());
            list.sort();
            let mut model: Vec<Prefix> = all.into_iter().chain(more).collect();
            model.sort();
            model.dedup();
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), model.clone());
            prop_assert_eq!((list.len(), list.is_empty()), (model.len(), model.is_empty()));
            for at in 0..=model.len() {
                prop_assert_eq!(list.get(at), model.get(at).copied());
            }
            prop_assert_eq!(list.has(asked), model.contains(&asked));
            let outer = Prefix::masked(asked.address(), asked.length() - 6).unwrap();
            let inside = model.iter().copied().filter(|prefix| outer.covers(*prefix));
            prop_assert!(list.within(outer).eq(inside));
            list.retain_places(|at| at % 3 == 1);
            prop_assert!(list.iter().eq(model.into_iter().skip(1).step_by(3)));
        }
    }
}
