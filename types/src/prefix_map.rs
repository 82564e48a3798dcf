use std::{fmt, net::IpAddr};

use crate::prefix::Prefix;

/// So many entries stand in one run. With fewer there would be more runs to search, and with more each
/// new entry would move more of them.
const MOST: usize = 256;

/// A run that has fewer is joined with one beside it.
const FEW: usize = MOST / 4;

/// By so many entries the room of a run grows; doubled, it would be empty by a half.
const STEP: usize = 16;

/// An IPv4 prefix in eight octets, where a [`Prefix`] has room for IPv6.
pub(crate) type Key4 = (u32, u8);
/// An IPv6 prefix; an `u128` would be aligned to 16.
pub(crate) type Key6 = (u64, u64, u8);

/// A map by prefix, in the order of [`Prefix`], for tables of a million routes. It is dense: the families
/// are apart, and entries stand in runs. An IPv4 entry takes eight octets and its value; in a `BTreeMap`
/// that is filled in order it would take 18, and the same for the room beside it.
#[derive(Clone)]
pub struct PrefixMap<V> {
    v4: Runs<Key4, V>,
    v6: Runs<Key6, V>,
}

/// A prefix as a map of its family has it.
pub(crate) enum Key {
    V4(Key4),
    V6(Key6),
}

#[expect(clippy::cast_possible_truncation, reason = "the halves of 128 bits")]
pub(crate) const fn key(prefix: Prefix) -> Key {
    match prefix.address() {
        IpAddr::V4(v4) => Key::V4((v4.to_bits(), prefix.length())),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            Key::V6(((bits >> 64) as u64, bits as u64, prefix.length()))
        }
    }
}

pub(crate) const fn prefix4((bits, length): Key4) -> Prefix {
    Prefix::from_v4_bits(bits, length)
}

pub(crate) const fn prefix6((high, low, length): Key6) -> Prefix {
    Prefix::from_v6_bits((high as u128) << 64 | low as u128, length)
}

impl<V> PrefixMap<V> {
    /// How many entries there are.
    pub const fn len(&self) -> usize {
        self.v4.len + self.v6.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a prefix has.
    pub fn get(&self, prefix: Prefix) -> Option<&V> {
        match key(prefix) {
            Key::V4(key) => self.v4.get(key),
            Key::V6(key) => self.v6.get(key),
        }
    }

    /// What a prefix has, to be changed.
    pub fn get_mut(&mut self, prefix: Prefix) -> Option<&mut V> {
        match key(prefix) {
            Key::V4(key) => self.v4.get_mut(key),
            Key::V6(key) => self.v6.get_mut(key),
        }
    }

    /// What a prefix has, which is `new()` if it had nothing.
    pub fn get_or_insert_with(&mut self, prefix: Prefix, new: impl FnOnce() -> V) -> &mut V {
        match key(prefix) {
            Key::V4(key) => self.v4.get_or_insert_with(key, new),
            Key::V6(key) => self.v6.get_or_insert_with(key, new),
        }
    }

    /// Removes what a prefix has.
    pub fn remove(&mut self, prefix: Prefix) -> Option<V> {
        match key(prefix) {
            Key::V4(key) => self.v4.remove(key),
            Key::V6(key) => self.v6.remove(key),
        }
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &V)> {
        let v4 = self.v4.runs.iter().flatten().map(|(key, value)| (prefix4(*key), value));
        v4.chain(self.v6.runs.iter().flatten().map(|(key, value)| (prefix6(*key), value)))
    }

    /// All entries, in order, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Prefix, &mut V)> {
        let v4 = self.v4.runs.iter_mut().flatten().map(|(key, value)| (prefix4(*key), value));
        v4.chain(self.v6.runs.iter_mut().flatten().map(|(key, value)| (prefix6(*key), value)))
    }

    /// The entries inside a prefix, which may be itself, in order.
    pub fn within(&self, outer: Prefix) -> impl Iterator<Item = (Prefix, &V)> {
        // One of the two is empty.
        let (v4, v6) = match key(outer) {
            Key::V4(key) => (Some(self.v4.from(key)), None),
            Key::V6(key) => (None, Some(self.v6.from(key))),
        };
        let v4 = v4.into_iter().flatten().map(|(key, value)| (prefix4(*key), value));
        let v6 = v6.into_iter().flatten().map(|(key, value)| (prefix6(*key), value));
        v4.chain(v6).take_while(move |(inside, _)| outer.covers(*inside))
    }
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self { v4: Runs::default(), v6: Runs::default() }
    }
}

impl<V> FromIterator<(Prefix, V)> for PrefixMap<V> {
    fn from_iter<I: IntoIterator<Item = (Prefix, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (prefix, value) in entries {
            // The last one of a prefix counts, as in other maps.
            map.remove(prefix);
            map.get_or_insert_with(prefix, || value);
        }
        map
    }
}

impl<V: fmt::Debug> fmt::Debug for PrefixMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The entries of one family.
#[derive(Clone)]
struct Runs<K, V> {
    /// No key of a run is below its start, and none of the run before is not below it. Apart from the
    /// runs, because they are searched each time.
    starts: Vec<K>,
    /// Sorted, and none is empty.
    runs: Vec<Vec<(K, V)>>,
    len: usize,
}

impl<K, V> Default for Runs<K, V> {
    fn default() -> Self {
        Self { starts: Vec::new(), runs: Vec::new(), len: 0 }
    }
}

impl<K: Copy + Ord, V> Runs<K, V> {
    /// The run that a key belongs to, if there is any run.
    fn run_of(&self, key: K) -> usize {
        self.starts.partition_point(|start| *start <= key).saturating_sub(1)
    }

    fn get(&self, key: K) -> Option<&V> {
        let run = self.runs.get(self.run_of(key))?;
        let at = run.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        run.get(at).map(|(_, value)| value)
    }

    fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let run_of = self.run_of(key);
        let run = self.runs.get_mut(run_of)?;
        let at = run.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        run.get_mut(at).map(|(_, value)| value)
    }

    fn get_or_insert_with(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        if self.runs.is_empty() {
            self.starts.push(key);
            self.runs.push(Vec::new());
        }
        let mut number = self.run_of(key);
        let mut found = self.runs[number].binary_search_by_key(&key, |(key, _)| *key);
        if let Err(at) = found {
            self.len += 1;
            if self.runs[number].len() >= MOST {
                (number, found) = self.split(number, at, key);
            }
        }
        let run = &mut self.runs[number];
        let at = found.unwrap_or_else(|at| {
            if run.len() == run.capacity() {
                run.reserve_exact(STEP);
            }
            run.insert(at, (key, new()));
            at
        });
        // A key before all others belongs to the first run.
        let start = &mut self.starts[number];
        *start = key.min(*start);
        &mut run[at].1
    }

    /// Makes room in a full run; answers where the key goes now.
    fn split(&mut self, number: usize, at: usize, key: K) -> (usize, Result<usize, usize>) {
        let run = &mut self.runs[number];
        // A table that comes in order fills its runs.
        if at == run.len() {
            self.starts.insert(number + 1, key);
            self.runs.insert(number + 1, Vec::new());
            return (number + 1, Err(0));
        }
        let half = run.len() / 2;
        let mut right = Vec::with_capacity(run.len() - half + STEP);
        right.extend(run.drain(half..));
        run.shrink_to(half + STEP);
        self.starts.insert(number + 1, right[0].0);
        self.runs.insert(number + 1, right);
        match at.checked_sub(half) {
            Some(at) if at > 0 => (number + 1, Err(at)),
            _ => (number, Err(at)),
        }
    }

    fn remove(&mut self, key: K) -> Option<V> {
        let number = self.run_of(key);
        let run = self.runs.get_mut(number)?;
        let at = run.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        let (_, value) = run.remove(at);
        self.len -= 1;
        if run.len() < FEW {
            self.join(number);
        }
        Some(value)
    }

    /// Joins a run that has few entries with the next one, or takes it away.
    fn join(&mut self, number: usize) {
        let length = self.runs[number].len();
        if length == 0 {
            self.starts.remove(number);
            self.runs.remove(number);
        } else if let Some(next) = self.runs.get(number + 1)
            && length + next.len() <= MOST - FEW
        {
            self.starts.remove(number + 1);
            let next = self.runs.remove(number + 1);
            let run = &mut self.runs[number];
            run.reserve_exact(next.len());
            run.extend(next);
        } else if self.runs[number].capacity() > MOST / 2 {
            self.runs[number].shrink_to(FEW);
        }
    }

    /// The entries from a key on.
    fn from(&self, key: K) -> impl Iterator<Item = &(K, V)> {
        let rest = self.runs.get(self.run_of(key)..).unwrap_or_default();
        let first = rest.first().map_or(0, |run| run.partition_point(|(other, _)| *other < key));
        rest.iter().flatten().skip(first)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::samples::any_prefix;

    /// `None` removes.
    fn any_steps() -> impl Strategy<Value = Vec<(Prefix, Option<u32>)>> {
        let some = prop::option::weighted(0.7, any::<u32>());
        let mixed = prop::collection::vec((any_prefix(), some), 0..3000);
        // All in, and all or some out, each in an order or in none.
        let sorted = (prop::collection::vec(any_prefix(), 0..3000), any::<[bool; 3]>()).prop_map(
            |(mut all, [forwards, backwards, sorted])| {
                if forwards {
                    all.sort_unstable();
                }
                let mut steps: Vec<_> = all.iter().map(|prefix| (*prefix, Some(1))).collect();
                if sorted {
                    all.sort_unstable();
                }
                if backwards {
                    all.reverse();
                }
                steps.extend(all.into_iter().map(|prefix| (prefix, None)));
                steps
            },
        );
        prop_oneof![mixed, sorted]
    }

    fn run(
        map: &mut PrefixMap<u32>,
        model: &mut BTreeMap<Prefix, u32>,
        step: (Prefix, Option<u32>),
    ) {
        match step {
            (prefix, Some(value)) => {
                let mut is_new = false;
                let place = map.get_or_insert_with(prefix, || {
                    is_new = true;
                    0
                });
                *place = value;
                assert_eq!(is_new, model.insert(prefix, value).is_none());
            }
            (prefix, None) => assert_eq!(map.remove(prefix), model.remove(&prefix)),
        }
    }

    /// What has to be true of the runs.
    fn check_runs<K: Copy + Ord, V>(runs: &Runs<K, V>) {
        assert_eq!(runs.starts.len(), runs.runs.len());
        assert_eq!(runs.runs.iter().map(Vec::len).sum::<usize>(), runs.len);
        for (number, run) in runs.runs.iter().enumerate() {
            assert!((1..=MOST).contains(&run.len()) && run.is_sorted_by_key(|(key, _)| *key));
            assert!(run.iter().all(|(key, _)| *key >= runs.starts[number]));
            let end = runs.starts.get(number + 1);
            assert!(end.is_none_or(|end| run.iter().all(|(key, _)| key < end)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Beside a `BTreeMap`, whatever is done.
        #[test]
        fn it_is_a_map(steps in any_steps(), asked in prop::collection::vec(any_prefix(), 20)) {
            let (mut map, mut model) = (PrefixMap::default(), BTreeMap::new());
            for step in steps {
                run(&mut map, &mut model, step);
            }
            check_runs(&map.v4);
            check_runs(&map.v6);
            prop_assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            for (_, value) in map.iter_mut() {
                *value = value.wrapping_add(1);
            }
            model.values_mut().for_each(|value| *value = value.wrapping_add(1));
            prop_assert!(map.iter().eq(model.iter().map(|(prefix, value)| (*prefix, value))));
            for prefix in asked {
                prop_assert_eq!(map.get(prefix), model.get(&prefix));
                prop_assert_eq!(map.get_mut(prefix), model.get_mut(&prefix));
                let outer = Prefix::masked(prefix.address(), prefix.length() - 6).unwrap();
                let inside = model.iter().filter(|(prefix, _)| outer.covers(**prefix));
                let inside = inside.map(|(prefix, value)| (*prefix, value));
                prop_assert!(map.within(outer).eq(inside));
            }
            let again: PrefixMap<u32> = model.iter().map(|(p, value)| (*p, *value)).collect();
            prop_assert!(again.iter().eq(map.iter()));
        }
    }

    /// A table that comes in order fills its runs, one that comes in no order fills them by a half at the
    /// least, and what is removed leaves no room behind.
    #[test]
    fn it_is_dense() {
        let room = |map: &PrefixMap<u32>| map.v4.runs.iter().map(Vec::capacity).sum::<usize>();
        let mut map = PrefixMap::default();
        let prefix = |number: u32| Prefix::host(Ipv4Addr::from_bits(number).into());
        for number in 0..100_000 {
            map.get_or_insert_with(prefix(number), || number);
        }
        assert!(room(&map) <= 100_000 + MOST);
        let mut map = PrefixMap::default();
        for number in 0..100_000_u32 {
            map.get_or_insert_with(prefix(number.wrapping_mul(0x9e37_79b1)), || number);
        }
        assert!(room(&map) <= 170_000, "{}", room(&map));
        for number in (0..100_000_u32).filter(|number| number % 10 != 0) {
            assert!(map.remove(prefix(number.wrapping_mul(0x9e37_79b1))).is_some());
        }
        assert_eq!(map.len(), 10_000);
        assert!(room(&map) <= 30_000, "{}", room(&map));
    }
}
