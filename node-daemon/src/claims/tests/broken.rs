//! A datastore and a store that a process loses in the middle: the n-th thing that changes one of
//! them goes wrong.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::watch;
use twill_ipam::Taken;
use twill_ipam_store::{Entry, MemoryStore, Store, StoreError, Write};
use twill_k8s_api::{
    BlockRequestSpec, Delegation,
    files::{CLAIMS, Claim, Claims as AllClaims, FileError, REQUESTS},
};
use twill_types::Block;

use super::super::OwnedBlocks;
use crate::datastore::{
    Answer, Borrowed, ClaimOutcome, ClaimStore, Claimant, DatastoreError, Grant, Lender, Lending,
    Release, Requests, Snapshot, Stamp, claims::FileClaims,
};

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process is gone before it: from now on it changes nothing.
    Dies,
    /// It fails, and those after it work.
    Fails,
    /// It is done, and its answer is an error.
    Unanswered,
}

#[derive(Debug, Default)]
struct Count {
    /// All that changed something, by name.
    made: Vec<&'static str>,
    fault: Option<(usize, Fault)>,
    burnt: bool,
    dead: bool,
}

/// Counts what one process changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Fuse(Arc<Mutex<Count>>);

impl Fuse {
    /// One that burns at the `at`-th operation, counted from 1.
    pub(super) fn at(at: usize, fault: Fault) -> Self {
        Self(Arc::new(Mutex::new(Count { fault: Some((at, fault)), ..Count::default() })))
    }

    /// Whether the process is gone.
    pub(super) fn is_dead(&self) -> bool {
        self.0.lock().unwrap().dead
    }

    /// Whether it has burnt.
    pub(super) fn has_burnt(&self) -> bool {
        self.0.lock().unwrap().burnt
    }

    /// The operations up to here.
    pub(super) fn made(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().made.clone()
    }

    /// What is to become of the next operation; `None` if it goes well.
    fn next(&self, name: &'static str) -> Option<Fault> {
        let mut count = self.0.lock().unwrap();
        if count.dead {
            return Some(Fault::Dies);
        }
        count.made.push(name);
        let (_, fault) = count.fault.filter(|(at, _)| *at == count.made.len())?;
        (count.fault, count.burnt) = (None, true);
        count.dead = fault == Fault::Dies;
        Some(fault)
    }

    /// Does one thing that changes something, or not.
    fn change<T, E>(
        &self,
        name: &'static str,
        lost: impl Fn() -> E,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match self.next(name) {
            None => work(),
            Some(Fault::Dies | Fault::Fails) => Err(lost()),
            Some(Fault::Unanswered) => work().and(Err(lost())),
        }
    }
}

/// A node's store. It outlives the process.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    pub(super) kept: Arc<Mutex<MemoryStore>>,
    pub(super) fuse: Fuse,
}

impl Disk {
    fn lost() -> StoreError {
        StoreError::Sync { path: "store".into(), source: ErrorKind::StorageFull.into() }
    }
}

impl Store for Disk {
    fn load(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.kept.lock().unwrap().load()
    }

    fn commit(&mut self, batch: &[Write]) -> Result<(), StoreError> {
        self.fuse.change("store", Self::lost, || self.kept.lock().unwrap().commit(batch))
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        if self.fuse.is_dead() { Err(Self::lost()) } else { Ok(()) }
    }
}

/// The file datastore as one process has it.
pub(super) struct Seam {
    pub(super) files: FileClaims,
    pub(super) root: PathBuf,
    pub(super) fuse: Fuse,
    /// What the process announces.
    pub(super) announced: watch::Receiver<Option<OwnedBlocks>>,
}

type Done<T> = Result<T, DatastoreError>;

fn away() -> DatastoreError {
    let source = ErrorKind::StorageFull.into();
    FileError::Io { action: "use", path: PathBuf::new(), source }.into()
}

/// The manifests of a directory with what is in them.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let manifests = entries.filter(|path| path.extension().is_some_and(|ext| ext == "yaml"));
    manifests.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

impl Seam {
    fn change<T>(&self, name: &'static str, work: impl FnOnce() -> Done<T>) -> Done<T> {
        self.fuse.change(name, away, work)
    }

    /// Something that writes a claim and then a request: the process may be lost in between.
    fn change_both<T>(&self, name: &'static str, work: impl FnOnce() -> Done<T>) -> Done<T> {
        let requests = self.root.join(REQUESTS);
        let (claims, before) = (contents(&self.root.join(CLAIMS)), contents(&requests));
        let done = self.change(name, work)?;
        let both = contents(&self.root.join(CLAIMS)) != claims && contents(&requests) != before;
        if both && let Some(Fault::Dies | Fault::Fails) = self.fuse.next("the second file") {
            contents(&requests).keys().for_each(|path| fs::remove_file(path).unwrap());
            before.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
            return Err(away());
        }
        Ok(done)
    }

    fn read<T>(&self, answer: Result<T, FileError>) -> Done<T> {
        if self.fuse.is_dead() { Err(away()) } else { Ok(answer?) }
    }

    /// A block, or a part of one, is withdrawn before it can be another's.
    fn is_withdrawn(&self, what: impl Fn(&Block) -> bool) {
        let announced = self.announced.borrow();
        let mut blocks = announced.iter().flat_map(|owned| owned.blocks.keys());
        assert!(!blocks.any(what), "given back, and still announced: {announced:?}");
    }
}

impl ClaimStore for Seam {
    fn claim(
        &self,
        who: Claimant<'_>,
        choose: &dyn Fn(&Taken) -> Option<Block>,
    ) -> Done<Option<Claim>> {
        self.change("claim", || ClaimStore::claim(&self.files, who, choose))
    }

    fn try_claim(&self, block: Block, who: Claimant<'_>) -> Done<ClaimOutcome> {
        self.change("claim this", || ClaimStore::try_claim(&self.files, block, who))
    }

    fn release_if(&self, claim: &Claim, still: &dyn Fn() -> Done<bool>) -> Done<Release> {
        self.is_withdrawn(|block| *block == claim.block);
        self.change("release", || ClaimStore::release_if(&self.files, claim, still))
    }

    fn stamp(&self, block: Block) -> Option<Stamp> {
        self.files.stamp(block)
    }

    fn get(&self, block: Block) -> Done<Option<Claim>> {
        self.read(self.files.get(block))
    }

    fn list(&self) -> Done<AllClaims> {
        self.read(self.files.list())
    }

    fn known(&self, _held: &[Block]) -> Done<AllClaims> {
        self.read(self.files.list())
    }

    fn taken(&self) -> Done<Taken> {
        self.read(self.files.taken())
    }

    fn settled_pools(&self, resources: &Snapshot, known: &AllClaims) -> Vec<String> {
        self.files.settled_pools(resources, known)
    }

    fn patience(&self) -> Duration {
        self.files.patience()
    }

    fn lending(&self) -> Option<&dyn Lending> {
        Some(self)
    }
}

impl Lending for Seam {
    fn free_addresses(&self) -> Done<BTreeMap<Block, u32>> {
        self.read(self.files.free_addresses())
    }

    fn forget_fill(&self, node: &str) -> Done<bool> {
        Lending::forget_fill(&self.files, node)
    }

    fn lenders(&self, node: &str, pools: &[String]) -> Done<Vec<Lender>> {
        self.files.lenders(node, pools)
    }

    fn is_by_request(&self) -> bool {
        self.files.is_by_request()
    }

    fn borrowed(&self, node: &str, all: &AllClaims, requests: &Requests) -> Vec<Borrowed> {
        self.files.borrowed(node, all, requests)
    }

    fn answer(&self, name: &str, spec: &BlockRequestSpec, requests: &Requests) -> Answer {
        self.files.answer(name, spec, requests)
    }

    fn settle(&self) -> Done<()> {
        self.files.settle()
    }

    fn confirm(&self, part: &Delegation) -> Done<()> {
        self.files.confirm(part)
    }

    fn requests(&self) -> Done<Requests> {
        self.read(self.files.requests())
    }

    fn ask(&self, spec: BlockRequestSpec) -> Done<String> {
        self.change("ask", || Lending::ask(&self.files, spec))
    }

    fn ask_again(&self, part: &Delegation, block: Block, pool: &str, owner: &str) -> Done<()> {
        self.change("ask again", || Lending::ask_again(&self.files, part, block, pool, owner))
    }

    fn refuse(&self, name: &str, why: &str) -> Done<()> {
        self.change("refuse", || Lending::refuse(&self.files, name, why))
    }

    fn grant(&self, claim: &Claim, part: &Delegation) -> Done<Grant> {
        self.change_both("grant", || Lending::grant(&self.files, claim, part))
    }

    fn give_up(&self, name: &str, spec: &BlockRequestSpec) -> Done<()> {
        let claim = self.files.get(spec.block)?;
        let mut parts = claim.iter().flat_map(|claim| &claim.delegations);
        if let Some(part) = parts.find(|part| part.request == name) {
            self.is_withdrawn(|block| *block == part.cidr);
        }
        self.change("give up", || Lending::give_up(&self.files, name, spec))
    }

    fn take_back(&self, claim: &Claim) -> Done<Option<Claim>> {
        self.change_both("take back", || Lending::take_back(&self.files, claim))
    }
}
