use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{ClaimOutcome, Claimant, DatastoreError, Release, Requests, Stamp};
use twill_ipam::Taken;
use twill_k8s_api::{
    BlockRequest, Delegation,
    files::{
        CLAIMS, Claim, Claims, DirectoryLock, FileError, REQUESTS, claim_block, claimed_blocks,
        create_file, make_directory, read_claim, read_claims, read_fills, remove_file, remove_fill,
    },
};
use twill_types::Block;

/// The claims of a file datastore: one file for each block, named by the block, so that making it
/// is the claim and the file system says who was first.
#[derive(Debug, Clone)]
pub(crate) struct FileClaims {
    directory: PathBuf,
}

impl FileClaims {
    /// Uses `<directory>/claims/` and `<directory>/requests/`, made if there are none.
    pub(crate) fn open(directory: &Path) -> Result<Self, FileError> {
        make_directory(&directory.join(CLAIMS))?;
        make_directory(&directory.join(REQUESTS))?;
        Ok(Self { directory: directory.to_owned() })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn claims(&self) -> PathBuf {
        self.directory.join(CLAIMS)
    }

    pub(super) fn path(&self, block: Block) -> PathBuf {
        self.claims().join(Claim::file_name(block))
    }

    /// Claims the block that `choose` takes, knowing which cannot be had; `None` if it takes none.
    /// One listing and one file made; one more of these for each race that is lost.
    pub(crate) fn claim(
        &self,
        who: Claimant<'_>,
        choose: impl Fn(&Taken) -> Option<Block>,
    ) -> Result<Option<Claim>, FileError> {
        let lock = DirectoryLock::acquire(&self.claims())?;
        let mut taken: Taken = claimed_in(&lock).collect();
        let requests = self.requests()?;
        requests.iter().filter_map(|request| bars(request, who.node)).for_each(|block| {
            taken.insert(block);
        });
        while let Some(block) = choose(&taken) {
            if let Some(claim) = self.create(block, who, lent(block, &requests))? {
                return Ok(Some(claim));
            }
            taken.insert(block);
        }
        Ok(None)
    }

    /// Claims one block.
    pub(crate) fn try_claim(
        &self,
        block: Block,
        who: Claimant<'_>,
    ) -> Result<ClaimOutcome, FileError> {
        let lock = DirectoryLock::acquire(&self.claims())?;
        for other in claimed_in(&lock) {
            let in_the_way = other.prefix().overlaps(block.prefix());
            if in_the_way && let Some(found) = read_claim(&self.directory, other)? {
                let is_own = other == block && found.node == who.node;
                return Ok(if is_own { ClaimOutcome::Won } else { ClaimOutcome::Lost }(found));
            }
        }
        let requests = self.requests()?;
        if let Some(request) = requests.iter().find(|r| bars(*r, who.node) == Some(block)) {
            return Err(FileError::Damaged {
                path: self.request(request.0),
                message: format!("it speaks of {block}, which has no claim"),
            });
        }
        match self.create(block, who, lent(block, &requests))? {
            Some(claim) => Ok(ClaimOutcome::Won(claim)),
            None => Err(FileError::Damaged {
                path: self.path(block),
                message: "it came while nobody else could write".to_owned(),
            }),
        }
    }

    /// Makes a claim unless there is one. Parts that other nodes have stay theirs, whoever owns the
    /// block. `link(2)` decides; the lock, which the caller has, keeps
    /// others from sweeping our temporary file, and from claiming more or less than this block.
    fn create(
        &self,
        block: Block,
        who: Claimant<'_>,
        delegations: Vec<Delegation>,
    ) -> Result<Option<Claim>, FileError> {
        let claim = Claim {
            block,
            node: who.node.to_owned(),
            pool: who.pool.to_owned(),
            dedication: who.dedication.cloned(),
            delegations,
            uid: new_uid(),
            created: jiff::Timestamp::now().to_string(),
        };
        let made = create_file(&self.path(block), claim.to_yaml()?.as_bytes())?;
        Ok(made.then_some(claim))
    }

    /// Gives a claim back, if it still is the one that is meant, nobody else has a part of it, and
    /// something is still so that is looked at while nobody else can claim. A block that was released and
    /// claimed again by anyone has another uid.
    pub(crate) fn release_if(
        &self,
        claim: &Claim,
        still: impl FnOnce() -> Result<bool, DatastoreError>,
    ) -> Result<Release, DatastoreError> {
        let _lock = DirectoryLock::acquire(&self.claims())?;
        let found = read_claim(&self.directory, claim.block)?;
        let Some(found) = found.filter(|found| found.uid == claim.uid) else {
            return Ok(Release::Anothers);
        };
        if !found.delegations.is_empty() {
            return Ok(Release::Lent);
        }
        if !still()? {
            return Ok(Release::Kept);
        }
        remove_file(&self.path(claim.block))?;
        Ok(Release::Done)
    }

    /// What tells whether a claim has changed since, without reading it; `None` if there is none.
    pub(crate) fn stamp(&self, block: Block) -> Option<Stamp> {
        let file = std::fs::metadata(self.path(block)).ok()?;
        Some(Stamp::File(file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
    }

    /// Addresses that can be had in blocks, as their owners say.
    pub(crate) fn free_addresses(&self) -> Result<BTreeMap<Block, u32>, FileError> {
        let fills = read_fills(&self.directory)?.into_values().flat_map(|fill| fill.blocks);
        Ok(fills.map(|fill| (fill.block, fill.free)).collect())
    }

    /// Forgets how full the blocks of a node that is gone were.
    pub(crate) fn forget_fill(&self, node: &str) -> Result<bool, FileError> {
        remove_fill(&self.directory, node)
    }

    /// One claim.
    pub(crate) fn get(&self, block: Block) -> Result<Option<Claim>, FileError> {
        read_claim(&self.directory, block)
    }

    /// All claims, with what is wrong with those that cannot be read. That there is no directory of
    /// claims does not mean that there is none.
    pub(crate) fn list(&self) -> Result<Claims, FileError> {
        let path = self.claims();
        if let Err(source) = std::fs::metadata(&path) {
            let action =
                "find, so blocks stay as they are; put back what was in it, or make it empty";
            return Err(FileError::Io { action, path, source });
        }
        read_claims(&self.directory)
    }

    /// The blocks that cannot be claimed, a damaged claim's included.
    pub(crate) fn taken(&self) -> Result<Taken, FileError> {
        Ok(claimed_blocks(&self.directory)?.into_iter().collect())
    }
}

/// The blocks that have a claim while the lock is held.
fn claimed_in(lock: &DirectoryLock) -> impl Iterator<Item = Block> {
    lock.manifest_names().iter().filter_map(|name| claim_block(name))
}

/// The parts of a block that nodes have, as their requests say.
pub(crate) fn lent(block: Block, requests: &Requests) -> Vec<Delegation> {
    let part = |(name, request): (&String, &Option<BlockRequest>)| {
        let request = request.as_ref().filter(|request| request.spec.block == block)?;
        let outcome = request.outcome();
        let cidr = outcome.granted.filter(|_| !outcome.returned)?;
        Some(Delegation { cidr, node: request.spec.node.clone(), request: name.clone() })
    };
    requests.iter().filter_map(part).collect()
}

/// The block that a node cannot claim because of a request: it has a part of it itself, or nobody can
/// say who has one.
fn bars((name, request): (&String, &Option<BlockRequest>), node: &str) -> Option<Block> {
    let Some(request) = request else {
        return Block::from_claim_name(name.split('.').next()?).ok();
    };
    let outcome = request.outcome();
    let has_part = outcome.granted.is_some() && !outcome.returned && request.spec.node == node;
    has_part.then_some(request.spec.block)
}

/// What tells one claim of a block from an earlier one, also across nodes and boots.
pub(crate) fn new_uid() -> String {
    // The kernel's own generator: a random UUID for each reading.
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map(|uuid| uuid.trim().to_owned())
        .unwrap_or_else(|_| format!("{}-{}", std::process::id(), jiff::Timestamp::now()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Barrier};

    use twill_ipam::next_candidate;
    use twill_types::Prefix;

    use super::*;

    mod many_nodes;

    fn who(node: &str) -> Claimant<'_> {
        Claimant { node, pool: "a", dedication: None }
    }

    #[test]
    fn of_sixteen_nodes_one_wins_each_block() {
        let root = tempfile::tempdir().unwrap();
        let pool: Prefix = "10.10.0.0/24".parse().unwrap();
        let start = Barrier::new(16);
        let won: Vec<(String, Block)> = std::thread::scope(|scope| {
            let node = |number: u32| {
                let name = format!("node{number}");
                let store = FileClaims::open(root.path()).unwrap();
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let mut won = Vec::new();
                    // 16 blocks of /28 in all: everybody takes what there is.
                    while let Some(block) = next_candidate(pool, 28, &name, &store.taken().unwrap())
                    {
                        match store.try_claim(block, who(&name)).unwrap() {
                            ClaimOutcome::Won(claim) => won.push((claim.node, claim.block)),
                            ClaimOutcome::Lost(claim) => assert_ne!(claim.node, name),
                        }
                    }
                    won
                })
            };
            let threads: Vec<_> = (0..16).map(node).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let blocks: BTreeSet<Block> = won.iter().map(|(_, block)| *block).collect();
        assert_eq!((won.len(), blocks.len()), (16, 16), "{won:?}");
        let listed = FileClaims::open(root.path()).unwrap().list().unwrap();
        assert_eq!(listed.problems, []);
        for (node, block) in won {
            assert_eq!(listed.claims[&block].node, node);
        }
    }

    #[test]
    fn ones_own_claim_is_won_again_with_the_same_uid() {
        let root = tempfile::tempdir().unwrap();
        let store = FileClaims::open(root.path()).unwrap();
        let block: Block = "10.10.0.64/26".parse().unwrap();
        let first = store.try_claim(block, who("node1")).unwrap();
        assert!(matches!(first, ClaimOutcome::Won(_)));
        assert_eq!(store.try_claim(block, who("node1")).unwrap(), first);
        assert!(matches!(store.try_claim(block, who("node2")).unwrap(), ClaimOutcome::Lost(_)));
        let names: Vec<_> = std::fs::read_dir(root.path().join(CLAIMS))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != ".lock")
            .collect();
        assert_eq!(names, ["0a0a0040-26.yaml"]);
    }

    #[test]
    fn only_the_claim_that_is_meant_is_released() {
        let root = tempfile::tempdir().unwrap();
        let store = FileClaims::open(root.path()).unwrap();
        let block: Block = "10.10.0.64/26".parse().unwrap();
        let ClaimOutcome::Won(first) = store.try_claim(block, who("node1")).unwrap() else {
            panic!("somebody else has it");
        };
        assert_eq!(store.release_if(&first, || Ok(true)).unwrap(), Release::Done);
        assert_eq!(
            store.release_if(&first, || Ok(true)).unwrap(),
            Release::Anothers,
            "it is gone already"
        );
        let second = store.try_claim(block, who("node1")).unwrap();
        assert_eq!(
            store.release_if(&first, || Ok(true)).unwrap(),
            Release::Anothers,
            "the new one is another"
        );
        assert_eq!(store.try_claim(block, who("node1")).unwrap(), second);
    }

    #[test]
    fn a_damaged_claim_keeps_its_block_from_everybody() {
        let root = tempfile::tempdir().unwrap();
        let store = FileClaims::open(root.path()).unwrap();
        let block: Block = "10.10.0.64/26".parse().unwrap();
        std::fs::write(root.path().join("claims/0a0a0040-26.yaml"), "rubbish: [").unwrap();
        let listed = store.list().unwrap();
        assert_eq!((listed.claims.len(), listed.problems.len()), (0, 1));
        assert!(store.try_claim(block, who("node1")).is_err());
        assert_eq!(store.taken().unwrap(), Taken::from_iter([block]));
    }
}
