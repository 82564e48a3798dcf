use std::path::{Path, PathBuf};

use twill_ipam::Taken;
use twill_k8s_api::files::{
    CLAIMS, Claim, Claims, DirectoryLock, FileError, claimed_blocks, create_file, make_directory,
    read_claim, read_claims, remove_file,
};
use twill_types::{Block, Dedication};

/// The claims of a file datastore: one file for each block, named by the block, so that making it
/// is the claim and the file system says who was first.
#[derive(Debug, Clone)]
pub(crate) struct ClaimStore {
    directory: PathBuf,
}

/// How an attempt to claim ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClaimOutcome {
    /// The block is this node's, now or already.
    Won(Claim),
    /// Another node has it.
    Lost(Claim),
}

impl ClaimStore {
    /// Uses `<directory>/claims/`, made if there is none.
    pub(crate) fn open(directory: &Path) -> Result<Self, FileError> {
        make_directory(&directory.join(CLAIMS))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Claims a block for a node.
    pub(crate) fn try_claim(
        &self,
        block: Block,
        node: &str,
        pool: &str,
        dedication: Option<&Dedication>,
    ) -> Result<ClaimOutcome, FileError> {
        let claims = self.directory.join(CLAIMS);
        let claim = Claim {
            block,
            node: node.to_owned(),
            pool: pool.to_owned(),
            dedication: dedication.cloned(),
            uid: new_uid(),
            created: jiff::Timestamp::now().to_string(),
        };
        // `link(2)` alone decides the race; the lock keeps others from sweeping our temporary
        // file.
        let _lock = DirectoryLock::acquire(&claims)?;
        if create_file(&claims.join(Claim::file_name(block)), claim.to_yaml()?.as_bytes())? {
            return Ok(ClaimOutcome::Won(claim));
        }
        match read_claim(&self.directory, block)? {
            Some(other) if other.node == node => Ok(ClaimOutcome::Won(other)),
            Some(other) => Ok(ClaimOutcome::Lost(other)),
            // Removed by hand in between: those who remove a claim hold the lock.
            None => Err(FileError::Damaged {
                path: claims.join(Claim::file_name(block)),
                message: "it came and went at once".to_owned(),
            }),
        }
    }

    /// Gives a claim back, if it still is the one that is meant: a block that was released and
    /// claimed again by anyone has another uid.
    pub(crate) fn release(&self, claim: &Claim) -> Result<bool, FileError> {
        let claims = self.directory.join(CLAIMS);
        let _lock = DirectoryLock::acquire(&claims)?;
        match read_claim(&self.directory, claim.block)? {
            Some(found) if found.uid == claim.uid => {
                remove_file(&claims.join(Claim::file_name(claim.block)))
            }
            _ => Ok(false),
        }
    }

    /// All claims, with what is wrong with those that cannot be read.
    pub(crate) fn list(&self) -> Result<Claims, FileError> {
        read_claims(&self.directory)
    }

    /// The blocks that cannot be claimed, a damaged claim's included.
    pub(crate) fn taken(&self) -> Result<Taken, FileError> {
        Ok(claimed_blocks(&self.directory)?.into_iter().collect())
    }
}

/// What tells one claim of a block from an earlier one, also across nodes and boots.
fn new_uid() -> String {
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

    #[test]
    fn of_sixteen_nodes_one_wins_each_block() {
        let root = tempfile::tempdir().unwrap();
        let pool: Prefix = "10.10.0.0/24".parse().unwrap();
        let start = Barrier::new(16);
        let won: Vec<(String, Block)> = std::thread::scope(|scope| {
            let node = |number: u32| {
                let name = format!("node{number}");
                let store = ClaimStore::open(root.path()).unwrap();
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let mut won = Vec::new();
                    // 16 blocks of /28 in all: everybody takes what there is.
                    while let Some(block) = next_candidate(pool, 28, &name, &store.taken().unwrap())
                    {
                        match store.try_claim(block, &name, "a", None).unwrap() {
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
        let listed = ClaimStore::open(root.path()).unwrap().list().unwrap();
        assert_eq!(listed.problems, []);
        for (node, block) in won {
            assert_eq!(listed.claims[&block].node, node);
        }
    }

    #[test]
    fn ones_own_claim_is_won_again_with_the_same_uid() {
        let root = tempfile::tempdir().unwrap();
        let store = ClaimStore::open(root.path()).unwrap();
        let block: Block = "10.10.0.64/26".parse().unwrap();
        let first = store.try_claim(block, "node1", "a", None).unwrap();
        assert!(matches!(first, ClaimOutcome::Won(_)));
        assert_eq!(store.try_claim(block, "node1", "a", None).unwrap(), first);
        assert!(matches!(
            store.try_claim(block, "node2", "a", None).unwrap(),
            ClaimOutcome::Lost(_)
        ));
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
        let store = ClaimStore::open(root.path()).unwrap();
        let block: Block = "10.10.0.64/26".parse().unwrap();
        let ClaimOutcome::Won(first) = store.try_claim(block, "node1", "a", None).unwrap() else {
            panic!("somebody else has it");
        };
        assert!(store.release(&first).unwrap());
        assert!(!store.release(&first).unwrap(), "it is gone already");
        let second = store.try_claim(block, "node1", "a", None).unwrap();
        assert!(!store.release(&first).unwrap(), "the new claim is another one");
        assert_eq!(store.try_claim(block, "node1", "a", None).unwrap(), second);
    }

    #[test]
    fn a_damaged_claim_keeps_its_block_from_everybody() {
        let root = tempfile::tempdir().unwrap();
        let store = ClaimStore::open(root.path()).unwrap();
        let block: Block = "10.10.0.64/26".parse().unwrap();
        std::fs::write(root.path().join("claims/0a0a0040-26.yaml"), "rubbish: [").unwrap();
        let listed = store.list().unwrap();
        assert_eq!((listed.claims.len(), listed.problems.len()), (0, 1));
        assert!(store.try_claim(block, "node1", "a", None).is_err());
        assert_eq!(store.taken().unwrap(), Taken::from_iter([block]));
    }
}
