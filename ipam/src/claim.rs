use std::{collections::BTreeSet, ops::Bound};

use twill_types::{Block, Prefix};

/// The blocks that someone owns, of any size, and what no block is worth claiming for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    claims: BTreeSet<Prefix>,
    reserved: Vec<Prefix>,
}

impl Taken {
    /// Adds a claim. Of those that overlap, as they never should, the largest counts.
    pub fn insert(&mut self, block: Block) {
        let claim = block.prefix();
        if self.claims.range(..=claim).next_back().is_some_and(|before| before.covers(claim)) {
            return;
        }
        let inside: Vec<Prefix> =
            self.claims.range(claim..).take_while(|other| claim.covers(**other)).copied().collect();
        for other in inside {
            self.claims.remove(&other);
        }
        self.claims.insert(claim);
    }

    /// A block of which nobody gets any address, because of these ranges, is not claimed.
    pub fn without(mut self, reserved: Vec<Prefix>) -> Self {
        self.reserved = reserved;
        self
    }

    /// Whether somebody owns some of a block.
    pub fn overlaps(&self, block: Block) -> bool {
        self.claimed(block.prefix()).is_some()
    }

    /// What keeps `prefix` from being claimed, if anything does: what comes next begins behind it.
    fn in_the_way(&self, prefix: Prefix) -> Option<Prefix> {
        self.claimed(prefix).or_else(|| self.reserved(prefix))
    }

    /// A reservation of all of it, or itself if several together are that.
    fn reserved(&self, prefix: Prefix) -> Option<Prefix> {
        let here: Vec<&Prefix> = self.reserved.iter().filter(|r| r.overlaps(prefix)).collect();
        if let Some(all) = here.iter().find(|range| range.covers(prefix)) {
            return Some(**all);
        }
        let is_reserved = |ip| here.iter().any(|range| range.contains(ip));
        let mut addresses = (0..prefix.size()).map_while(|n| prefix.nth(n));
        (!here.is_empty() && addresses.all(is_reserved)).then_some(prefix)
    }

    /// The claim that shares an address with `prefix` and ends last, if any does.
    fn claimed(&self, prefix: Prefix) -> Option<Prefix> {
        // Claims do not overlap each other, so one that covers the prefix sorts last before it,
        // and those inside it follow directly.
        let after = self.claims.range((Bound::Included(prefix), Bound::Unbounded));
        let inside = after.take_while(|claim| prefix.covers(**claim)).last();
        let before = self.claims.range(..prefix).next_back();
        inside.or(before.filter(|claim| claim.covers(prefix))).copied()
    }
}

impl FromIterator<Block> for Taken {
    fn from_iter<I: IntoIterator<Item = Block>>(blocks: I) -> Self {
        let mut taken = Self::default();
        blocks.into_iter().for_each(|block| taken.insert(block));
        taken
    }
}

/// The block that a node should try to claim in a pool: the first free one from a place that
/// depends on node and pool, so that nodes that start together do not meet at every block.
///
/// ```
/// use twill_ipam::{Taken, next_candidate};
///
/// let pool = "10.10.0.0/24".parse()?;
/// let mut taken = Taken::default();
/// for _ in 0..4 {
///     let block = next_candidate(pool, 26, "node1", &taken).expect("three are free at least");
///     taken.insert(block);
/// }
/// assert_eq!(next_candidate(pool, 26, "node1", &taken), None);
/// # Ok::<(), twill_types::PrefixError>(())
/// ```
///
/// A run of taken blocks is passed in one step for each claim in it, and a full pool is known
/// after one round. `None` means that every block is taken.
pub fn next_candidate(pool: Prefix, block_size: u8, node: &str, taken: &Taken) -> Option<Block> {
    let bits = u32::from(block_size.checked_sub(pool.length())?);
    let count = 1u128.checked_shl(bits)?;
    let start = start(node, pool) % count;
    first_free(pool, block_size, start, count, taken)
        .or_else(|| first_free(pool, block_size, 0, start, taken))
}

fn first_free(pool: Prefix, block_size: u8, from: u128, to: u128, taken: &Taken) -> Option<Block> {
    let mut index = from;
    while index < to {
        let prefix = pool.subnet(block_size, index)?;
        match taken.in_the_way(prefix) {
            None => return Block::new(prefix).ok(),
            // A claim larger than a block covers several: the one behind it is next.
            Some(claim) => {
                let last = if claim.length() < block_size { claim.last() } else { prefix.last() };
                let offset = pool.offset_of(last)?;
                let block = 1u128 << (u32::from(pool.family().bits() - block_size));
                index = offset / block + 1;
            }
        }
    }
    None
}

/// FNV-1a over node and pool: the same on every machine.
fn start(node: &str, pool: Prefix) -> u128 {
    let text = format!("{node} {pool}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV are its weakest.
    u128::from(hash ^ (hash >> 32))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn finds_the_last_free_block_of_4096() {
        let pool = prefix("10.0.0.0/14");
        let missing: Block = "10.3.7.64/26".parse().unwrap();
        let taken: Taken = (0..4096)
            .map(|index| Block::new(pool.subnet(26, index).unwrap()).unwrap())
            .filter(|block| *block != missing)
            .collect();
        assert_eq!(next_candidate(pool, 26, "node1", &taken), Some(missing));
        let mut full = taken;
        full.insert(missing);
        assert_eq!(next_candidate(pool, 26, "node1", &full), None);
    }

    #[test]
    fn a_block_that_is_reserved_as_a_whole_is_passed_over() {
        let check = |reserved: &[&str], expected: Option<&str>| {
            let reserved = reserved.iter().map(|text| prefix(text)).collect();
            let taken = Taken::default().without(reserved);
            let found = next_candidate(prefix("10.0.0.0/29"), 30, "n", &taken);
            assert_eq!(found.map(|block| block.to_string()).as_deref(), expected);
        };
        check(&["10.0.0.0/30"], Some("10.0.0.4/30"));
        check(&["10.0.0.4/30"], Some("10.0.0.0/30"));
        check(&["10.0.0.0/31", "10.0.0.2/32", "10.0.0.3/32"], Some("10.0.0.4/30"));
        check(&["10.0.0.0/31", "10.0.0.2/32", "10.0.0.4/30"], Some("10.0.0.0/30"));
        check(&["10.0.0.0/29"], None);
        check(&["10.0.0.0/8"], None);
    }

    #[test]
    fn a_large_reservation_is_passed_in_one_step() {
        let taken = Taken::default().without(vec![prefix("10.0.0.0/9")]);
        let found = next_candidate(prefix("10.0.0.0/8"), 32, "node1", &taken);
        assert!(found.is_some_and(|block| prefix("10.128.0.0/9").covers(block.prefix())));
    }

    #[test]
    fn claims_inside_of_others_hide_nothing() {
        let blocks = ["10.10.0.0/28", "10.10.0.0/25", "10.10.0.64/26", "10.10.0.192/26"];
        for turn in 0..blocks.len() {
            let order = blocks.iter().cycle().skip(turn).take(blocks.len());
            let taken: Taken = order.map(|block| block.parse().unwrap()).collect();
            let next = next_candidate(prefix("10.10.0.0/24"), 26, "n", &taken);
            assert_eq!(next.map(|block| block.to_string()).as_deref(), Some("10.10.0.128/26"));
        }
    }

    #[test]
    fn nodes_start_at_different_places() {
        let pool = prefix("10.10.0.0/20");
        let starts: BTreeSet<Block> = (0..16)
            .filter_map(|n| next_candidate(pool, 26, &format!("node{n}"), &Taken::default()))
            .collect();
        assert!(starts.len() > 8, "{starts:?}");
    }

    proptest! {
        #[test]
        fn a_candidate_is_free_and_there_is_one_while_any_is(
            claims in proptest::collection::btree_set((22u8..=28, 0u32..4096), 0..40),
            node in "[a-z]{1,6}",
        ) {
            let pool = prefix("10.10.0.0/20");
            let mut taken = Taken::default();
            let mut list: Vec<Prefix> = Vec::new();
            for (length, index) in claims {
                let count = 1u32 << (length - 20);
                let claim = pool.subnet(length, u128::from(index % count)).unwrap();
                if !list.iter().any(|other| other.overlaps(claim)) {
                    list.push(claim);
                    taken.insert(Block::new(claim).unwrap());
                }
            }
            let free = |block: Prefix| !list.iter().any(|claim| claim.overlaps(block));
            let any = (0..64).any(|index| free(pool.subnet(26, index).unwrap()));
            let found = next_candidate(pool, 26, &node, &taken);
            prop_assert_eq!(found.is_some(), any);
            if let Some(block) = found {
                prop_assert!(free(block.prefix()));
            }
        }
    }
}
