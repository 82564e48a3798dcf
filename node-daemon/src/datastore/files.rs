//! The file datastore behind the seam.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::sync::watch;
use twill_ipam::Taken;
use twill_ipam_store::private_file;
use twill_k8s_api::{
    BlockRequestSpec, Condition, Delegation, ObjectId,
    files::{Claim, Claims, FileError, Lease},
};
use twill_types::Block;

use super::{
    Answer, Borrowed, ClaimOutcome, ClaimStore, Claimant, Datastore, DatastoreError, FileFills,
    Grant, Leases, Lender, Lending, Release, Reports, Requests, Snapshot, Stamp, Tenure,
    claims::FileClaims, leases::FileLeases, seam::Still, status::report, watch::watch,
};
use crate::{
    services::{Announced, follow_ranges},
    tasks::Tasks,
};

/// Opens the datastore in a directory for a node.
pub(super) fn open(
    directory: &Path,
    shared: bool,
    node: &str,
    problems: watch::Sender<Vec<String>>,
    tasks: &mut Tasks,
) -> Result<Datastore, super::OpenError> {
    let resources = watch(directory, shared)?;
    let reports = FileReports { directory: directory.to_owned(), node: node.to_owned() };
    // There are no Services in files.
    let announced = Announced::default();
    let services = announced.subscribe();
    tasks.endless("ranges", follow_ranges(node.to_owned(), resources.clone(), announced));
    Ok(Datastore {
        resources,
        services,
        // Nobody says that somebody serves them.
        served_before: BTreeSet::new(),
        service_problems: watch::Sender::default().subscribe(),
        refusals: None,
        claims: Arc::new(FileClaims::open(directory)?),
        leases: Arc::new(FileLeases::open(directory)?),
        reports: Arc::new(reports),
        tenure: Arc::new(NoTenure),
        pods: None,
        own_node: None,
        fills: Some(Arc::new(FileFills { directory: directory.to_owned() })),
        shared,
        // They are in the snapshot's own.
        problems: problems.subscribe(),
    })
}

impl ClaimStore for FileClaims {
    fn claim(
        &self,
        who: Claimant<'_>,
        choose: &dyn Fn(&Taken) -> Option<Block>,
    ) -> Result<Option<Claim>, DatastoreError> {
        Ok(Self::claim(self, who, choose)?)
    }

    fn try_claim(&self, block: Block, who: Claimant<'_>) -> Result<ClaimOutcome, DatastoreError> {
        Ok(Self::try_claim(self, block, who)?)
    }

    fn release_if(&self, claim: &Claim, still: Still<'_>) -> Result<Release, DatastoreError> {
        Self::release_if(self, claim, still)
    }

    fn stamp(&self, block: Block) -> Option<Stamp> {
        Self::stamp(self, block)
    }

    fn get(&self, block: Block) -> Result<Option<Claim>, DatastoreError> {
        Ok(Self::get(self, block)?)
    }

    fn list(&self) -> Result<Claims, DatastoreError> {
        Ok(Self::list(self)?)
    }

    fn known(&self, _held: &[Block]) -> Result<Claims, DatastoreError> {
        Ok(Self::list(self)?)
    }

    fn taken(&self) -> Result<Taken, DatastoreError> {
        Ok(Self::taken(self)?)
    }

    /// Those of which somebody has a block.
    fn settled_pools(&self, _resources: &Snapshot, known: &Claims) -> Vec<String> {
        known.claims.values().map(|claim| claim.pool.clone()).collect()
    }

    /// A directory tells nobody that it works again, and looking costs nothing.
    fn patience(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn lending(&self) -> Option<&dyn Lending> {
        Some(self)
    }
}

impl Lending for FileClaims {
    fn free_addresses(&self) -> Result<BTreeMap<Block, u32>, DatastoreError> {
        Ok(Self::free_addresses(self)?)
    }

    fn forget_fill(&self, node: &str) -> Result<bool, DatastoreError> {
        Ok(Self::forget_fill(self, node)?)
    }

    fn lenders(&self, node: &str, pools: &[String]) -> Result<Vec<Lender>, DatastoreError> {
        let is_lender = |claim: &Claim| {
            claim.node != node && claim.dedication.is_none() && pools.contains(&claim.pool)
        };
        let claims = Self::list(self)?.claims.into_values().filter(is_lender);
        let lender =
            |claim: Claim| Lender { block: claim.block, node: claim.node, pool: claim.pool };
        Ok(claims.map(lender).collect())
    }

    fn is_by_request(&self) -> bool {
        false
    }

    /// That stands in the claims, until its request says that it was returned.
    fn borrowed(&self, node: &str, all: &Claims, requests: &Requests) -> Vec<Borrowed> {
        let is_returned = |name: &str| {
            let request = requests.get(name).and_then(Option::as_ref);
            request.is_some_and(|request| request.outcome().returned)
        };
        let of_claim = |claim: &Claim| {
            let ours = claim.delegations.iter().filter(|part| part.node == node).cloned();
            let (of, pool, owner) = (claim.block, claim.pool.clone(), claim.node.clone());
            ours.map(move |part| Borrowed { part, of, pool: pool.clone(), owner: owner.clone() })
                .collect::<Vec<_>>()
        };
        let others = all.claims.values().filter(|claim| claim.node != node);
        others.flat_map(of_claim).filter(|found| !is_returned(&found.part.request)).collect()
    }

    /// Given back, the block may be another's by now, or this node's. A claim that cannot be read says
    /// nothing yet.
    fn answer(&self, name: &str, spec: &BlockRequestSpec, requests: &Requests) -> Answer {
        let Ok(claim) = Self::get(self, spec.block) else { return Answer::None };
        let is_owners =
            |claim: &Claim| spec.owner.as_ref().is_none_or(|owner| claim.node == *owner);
        let Some(claim) = claim.filter(is_owners) else { return Answer::Freed };
        let part = claim.delegations.iter().find(|part| part.request == name);
        let request = requests.get(name).and_then(Option::as_ref);
        match (part, request.and_then(|request| request.outcome().refused)) {
            (Some(part), _) => Answer::Granted(part.cidr),
            (None, Some(why)) => Answer::Refused(why),
            (None, None) => Answer::None,
        }
    }

    /// They go as they are given up, and with what their owners take back.
    fn settle(&self) -> Result<(), DatastoreError> {
        Ok(())
    }

    /// Who asked reads the claim.
    fn confirm(&self, _part: &Delegation) -> Result<(), DatastoreError> {
        Ok(())
    }

    fn requests(&self) -> Result<Requests, DatastoreError> {
        Ok(Self::requests(self)?)
    }

    fn ask(&self, spec: BlockRequestSpec) -> Result<String, DatastoreError> {
        Ok(Self::ask(self, spec)?)
    }

    fn ask_again(
        &self,
        part: &Delegation,
        block: Block,
        pool: &str,
        _owner: &str,
    ) -> Result<(), DatastoreError> {
        Ok(Self::ask_again(self, part, block, pool)?)
    }

    fn refuse(&self, name: &str, why: &str) -> Result<(), DatastoreError> {
        Ok(Self::refuse(self, name, why)?)
    }

    fn grant(&self, claim: &Claim, part: &Delegation) -> Result<Grant, DatastoreError> {
        Ok(Self::grant(self, claim, part)?)
    }

    fn give_up(&self, name: &str, spec: &BlockRequestSpec) -> Result<(), DatastoreError> {
        Ok(Self::give_up(self, name, spec)?)
    }

    fn take_back(&self, claim: &Claim) -> Result<Option<Claim>, DatastoreError> {
        Ok(Self::take_back(self, claim)?)
    }
}

impl Leases for FileLeases {
    fn renew(&self, lease: Lease) -> Result<Option<Lease>, DatastoreError> {
        Ok(Self::renew(self, lease)?)
    }

    fn get(&self, node: &str) -> Result<Option<Lease>, DatastoreError> {
        Ok(Self::get(self, node))
    }

    fn list(&self) -> Result<BTreeMap<String, Lease>, DatastoreError> {
        Ok(Self::list(self)?)
    }

    fn remove(&self, node: &str) -> Result<bool, DatastoreError> {
        Ok(Self::remove(self, node)?)
    }

    fn clears_up(&self) -> bool {
        true
    }

    fn try_lead(&self) -> Result<Option<Flock<File>>, DatastoreError> {
        let path = self.directory().join(".controller");
        let failed = |source| FileError::Io { action: "lock", path: path.clone(), source };
        let file = private_file(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(failed(error.into()).into()),
        }
    }
}

/// Nothing is kept beside the directory, and nothing takes long.
struct NoTenure;

impl Tenure for NoTenure {
    fn begin(&self) {}

    fn end(&self) {}
}

/// Conditions in `status/<node>/`.
struct FileReports {
    directory: PathBuf,
    node: String,
}

impl Reports for FileReports {
    fn report(
        &self,
        snapshot: &Snapshot,
        said: BTreeMap<ObjectId, Vec<Condition>>,
    ) -> Result<(), DatastoreError> {
        Ok(report(&self.directory, &self.node, snapshot, said)?)
    }

    /// A directory bears as many writers as read it.
    fn spread(&self) -> Duration {
        Duration::ZERO
    }
}
