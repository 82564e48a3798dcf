//! Claims on the API server: one BlockAffinity for each block, named by the block, so that making it is
//! the claim and the server says who was first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kube::{
    Api,
    api::{ListParams, PostParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;
use twill_ipam::Taken;
use twill_k8s_api::{
    CLAIM_FINALIZER, Delegation, IpPool, Problem, Severity,
    files::{Claim, Claims},
};
use twill_types::{Block, Family, Prefix, error_chain};

use super::{
    access::{Access, ApiError},
    cache::Cache,
    labels,
    names::{self, Age, Listed, Which},
    owned::{Held, OwnClaims},
    pools::Pools,
    read,
    removal::{Found, Removal},
    requests::NodeRequests,
    subject::{BLOCK_AFFINITIES, BLOCK_REQUESTS},
};
use crate::{
    backoff::Backoff,
    datastore::{
        ClaimOutcome, ClaimStore, Claimant, DatastoreError, Lending, Release, Snapshot, Stamp,
        lent, seam::Still,
    },
};

/// How many claims of a pool may be lost in a row until all claims are listed: each costs about a
/// kilobyte, and the list a hundred octets for each claim that there is.
const LOSSES: usize = 16;

/// How many claims may be lost in one attempt.
const LOSSES_AT_MOST: usize = 32;

/// Attempts for one block that is found free, then taken, again and again.
const ATTEMPTS: usize = 4;

/// The longest pause after requests that failed again and again: other nodes' fail as well.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a list of all claims is taken for what there is: pods without an address ask again and
/// again. The longer, the longer it shows nothing that is free.
const CURRENT: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(30)];

/// Blocks that cannot be had, as far as that was looked at.
#[derive(Default)]
struct Seen {
    taken: Taken,
    /// When all claims were listed last.
    listed: Option<Instant>,
    /// The sizes of block, by family and prefix length, beside which the claims of all other sizes were
    /// listed.
    beside: BTreeSet<(Family, u8)>,
}

/// How making a claim ended.
enum Made {
    /// It is this node's.
    Own(Claim),
    /// A claim of this block is in the way.
    Taken(Block),
}

/// The claims.
pub(super) struct ApiClaims {
    pub(super) access: Arc<Access>,
    pub(super) api: Api<DynamicObject>,
    pub(super) node: String,
    /// This node's, by the watch and by what was written here.
    owned: watch::Sender<Arc<OwnClaims>>,
    /// Blocks that others had when that was looked at last.
    taken: Mutex<Seen>,
    /// While it is not over, a list would show nothing that is free, either.
    full: Mutex<Backoff>,
    pools: Mutex<Pools>,
    /// Made here, and not looked at yet whether another claim is in the way: nobody gets an address there.
    doubted: Mutex<BTreeSet<Block>>,
    /// The requests that this node has made, and those that ask it.
    pub(super) requests: watch::Sender<Arc<NodeRequests>>,
    pub(super) request_api: Api<DynamicObject>,
    /// All claims, as they were listed last for one that may lend a part.
    pub(super) lenders: Mutex<Option<(Instant, Vec<Listed>)>>,
    pub(super) cache: Arc<Mutex<Cache>>,
    /// Others' claims of blocks that this node holds, as they were seen last.
    others: Mutex<BTreeMap<Block, Claim>>,
}

impl ApiClaims {
    pub(super) fn new(
        access: Arc<Access>,
        owned: watch::Sender<Arc<OwnClaims>>,
        requests: watch::Sender<Arc<NodeRequests>>,
        cache: Arc<Mutex<Cache>>,
        node: &str,
    ) -> Self {
        let api = access.objects(&BLOCK_AFFINITIES.resource());
        let request_api = access.objects(&BLOCK_REQUESTS.resource());
        Self {
            access,
            api,
            node: node.to_owned(),
            owned,
            taken: Mutex::default(),
            full: Mutex::new(Backoff::new(CURRENT[0], CURRENT[1])),
            pools: Mutex::default(),
            doubted: Mutex::default(),
            requests,
            request_api,
            lenders: Mutex::default(),
            cache,
            others: Mutex::default(),
        }
    }

    /// What the copy has of this node's own: its claims, and its requests for the parts that it has.
    pub(super) fn kept(&self) -> Vec<Value> {
        let mut kept = self.own().manifests();
        kept.extend(self.requests.borrow().manifests());
        kept
    }

    fn own(&self) -> Arc<OwnClaims> {
        Arc::clone(&self.owned.borrow())
    }

    /// Creates a claim, if there is none and none that it is a part of, or more than.
    fn create(&self, block: Block, who: Claimant<'_>) -> Result<Made, DatastoreError> {
        let name = block.claim_name();
        let parts = lent(block, &self.requests.borrow().all());
        let object = manifest(block, who, &parts);
        let params = PostParams::default();
        // Before: the watch may tell of it before the answer comes.
        let may_contest = lock(&self.pools).may_contest(block);
        let is_new = may_contest && lock(&self.doubted).insert(block);
        let request = self.api.create(&params, &object);
        match self.access.ask("create", format!("blockaffinities/{name}"), request) {
            Ok(object) if may_contest => self.clear(block, &object),
            Ok(object) => Ok(Made::Own(self.use_claim(&object)?)),
            Err(error) => {
                if error.is(409) {
                    // An attempt before this one may have made it, without an answer.
                    if is_new {
                        lock(&self.doubted).remove(&block);
                    }
                    return Ok(Made::Taken(block));
                }
                Err(error.into())
            }
        }
    }

    /// Looks whether another claim is in the way of one that was just made, and gives it back then. Who of
    /// two looks last sees the other; both may, and then both look for another block.
    fn clear(&self, block: Block, object: &DynamicObject) -> Result<Made, DatastoreError> {
        let claim = read_claim(object)?;
        let Some(other) = self.in_the_way(block, Age::Newest)? else {
            lock(&self.doubted).remove(&block);
            return Ok(Made::Own(self.use_claim(object)?));
        };
        self.delete(object, &claim)?;
        lock(&self.doubted).remove(&block);
        Ok(Made::Taken(other.block))
    }

    /// Whether a claim of this node is one that nobody is in the way of, as far as that was not known yet.
    fn is_clear(&self, block: Block) -> Result<bool, DatastoreError> {
        if !lock(&self.doubted).contains(&block) {
            return Ok(true);
        }
        let Some(object) = self.find(block)? else {
            lock(&self.doubted).remove(&block);
            return Ok(false);
        };
        if read_claim(&object)?.node != self.node {
            lock(&self.doubted).remove(&block);
            return Ok(false);
        }
        Ok(matches!(self.clear(block, &object)?, Made::Own(_)))
    }

    /// Takes over a claim that was just made. It is in the copy before anybody has an address of it.
    fn use_claim(&self, object: &DynamicObject) -> Result<Claim, ApiError> {
        let claim = self.note(object)?;
        let mut cache = lock(&self.cache);
        if let Err(error) = cache.write_claims(&self.kept()) {
            let error = error_chain(&error);
            warn!(error, "the copy for a start without the API server lacks a claim");
        }
        Ok(claim)
    }

    /// Takes over what the API server answered about one of this node's claims.
    pub(super) fn note(&self, object: &DynamicObject) -> Result<Claim, ApiError> {
        let claim = read_claim(object)?;
        self.owned.send_modify(|own| Arc::make_mut(own).set(object));
        Ok(claim)
    }

    pub(super) fn find(&self, block: Block) -> Result<Option<DynamicObject>, ApiError> {
        let name = block.claim_name();
        self.access.ask("get", format!("blockaffinities/{name}"), self.api.get_opt(&name))
    }

    /// The blocks that cannot be had, as they are now: the server's memory may be behind what was
    /// written here, or was `lost` a moment ago.
    fn list_taken(&self, lost: &[Block]) -> Result<Taken, ApiError> {
        let listed = names::list(&self.access, Which::All, Age::Any)?;
        let mut taken: Taken = listed.into_iter().map(|claim| claim.block).collect();
        self.own().blocks().keys().chain(lost).for_each(|block| taken.insert(*block));
        let mut seen = lock(&self.taken);
        seen.taken = taken.clone();
        seen.listed = Some(Instant::now());
        Ok(taken)
    }

    /// Looks, once for each size of block, for claims of other sizes: a claim of this block is made under its
    /// own name, so only others of its size are in its way by themselves. Whether anything new was seen.
    fn look_beside(&self, block: Block) -> Result<bool, ApiError> {
        let size = size(block);
        let seen = lock(&self.taken);
        if seen.listed.is_some() || seen.beside.contains(&size) {
            return Ok(false);
        }
        drop(seen);
        let listed = names::list(&self.access, Which::OfOtherSizes(size.0, size.1), Age::Any)?;
        let mut seen = lock(&self.taken);
        listed.into_iter().for_each(|claim| seen.taken.insert(claim.block));
        seen.beside.insert(size);
        Ok(true)
    }

    /// The same as it was seen last, with this node's own; and whether that is all, and new enough.
    fn seen(&self) -> (Taken, bool) {
        let seen = lock(&self.taken);
        let (mut taken, listed) = (seen.taken.clone(), seen.listed);
        drop(seen);
        self.own().blocks().keys().for_each(|block| taken.insert(*block));
        let is_new = |listed: Instant| listed.elapsed() < CURRENT[0] || !lock(&self.full).is_due();
        (taken, listed.is_some_and(is_new))
    }

    fn note_lost(&self, block: Block) {
        lock(&self.taken).taken.insert(block);
    }

    /// A claim of a part of a block, or of more than it: of a pool with blocks of another size. The names
    /// of two such claims differ, so that making both is not refused.
    fn in_the_way(&self, block: Block, age: Age) -> Result<Option<Claim>, DatastoreError> {
        let is_in_the_way =
            |other: &Block| *other != block && other.prefix().overlaps(block.prefix());
        let (family, length) = size(block);
        let listed = names::list(&self.access, Which::OfOtherSizes(family, length), age)?;
        for other in listed.into_iter().map(|claim| claim.block).filter(is_in_the_way) {
            if let Some(claim) = self.get(other)? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// From here on the copy does not name a claim: a start without the API server must not take it for
    /// this node's once it can be another's.
    fn forget_in_copy(&self, claim: &Claim) -> Result<(), ApiError> {
        self.owned.send_if_modified(|own| {
            Arc::make_mut(own).set_leaving(claim, true);
            // It is held as long as it is not given back.
            false
        });
        let mut cache = lock(&self.cache);
        cache.write_claims(&self.kept())
    }

    /// Takes the finalizer off, then deletes: an end in between leaves a claim that is still this node's.
    fn delete(&self, object: &DynamicObject, claim: &Claim) -> Result<Release, ApiError> {
        self.forget_in_copy(claim)?;
        let name = claim.block.claim_name();
        let what = format!("blockaffinities/{name}");
        let removal = Removal::new(&self.api, &name, Found::of(object), CLAIM_FINALIZER);
        let unheld = match self.access.ask("patch", what.clone(), removal.unhold()) {
            Ok(object) => object,
            Err(error) if error.is(404) => return Ok(Release::Anothers),
            // Also where somebody has written it since: it is given back once more, as it is then.
            Err(error) => return Err(error),
        };
        if let Some(request) = removal.delete(&unheld) {
            match self.access.ask("delete", what, request) {
                Ok(()) => {}
                Err(error) if error.is(404) => {}
                Err(error) => return Err(error),
            }
        }
        self.owned.send_modify(|own| Arc::make_mut(own).release(claim));
        Ok(Release::Done)
    }
}

impl ClaimStore for ApiClaims {
    /// One request where the first block is free. Before the first claim of a size those of other sizes
    /// are listed, of which there should be none; all names after some losses, and before it is said that nothing
    /// is left.
    fn claim(
        &self,
        who: Claimant<'_>,
        choose: &dyn Fn(&Taken) -> Option<Block>,
    ) -> Result<Option<Claim>, DatastoreError> {
        let (mut taken, mut is_current) = self.seen();
        let mut was_listed = false;
        let mut lost = Vec::new();
        loop {
            let Some(block) = choose(&taken) else {
                if is_current {
                    if lock(&self.full).is_due() {
                        lock(&self.full).failed();
                    }
                    return Ok(None);
                }
                // Some may have been given back since.
                taken = self.list_taken(&lost)?;
                (is_current, was_listed) = (true, true);
                continue;
            };
            if self.look_beside(block)? {
                taken = self.seen().0;
                if taken.overlaps(block) {
                    continue;
                }
            }
            let in_the_way = match self.create(block, who)? {
                Made::Own(claim) => {
                    lock(&self.full).succeeded();
                    return Ok(Some(claim));
                }
                Made::Taken(other) => other,
            };
            lost.extend([block, in_the_way]);
            for block in [block, in_the_way] {
                taken.insert(block);
                self.note_lost(block);
            }
            let losses = lost.len() / 2;
            if losses >= LOSSES_AT_MOST {
                let pool = who.pool.to_owned();
                return Err(ApiError::Outrun { pool, count: losses }.into());
            }
            if losses >= LOSSES && !was_listed {
                taken = self.list_taken(&lost)?;
                (is_current, was_listed) = (true, true);
            }
        }
    }

    fn try_claim(&self, block: Block, who: Claimant<'_>) -> Result<ClaimOutcome, DatastoreError> {
        if let Some(Held { claim: Ok(claim), .. }) = self.own().blocks().get(&block)
            && self.is_clear(block)?
        {
            return Ok(ClaimOutcome::Won(claim.clone()));
        }
        if let Some(found) = self.find(block)? {
            let claim = read_claim(&found)?;
            if claim.node != self.node {
                return Ok(ClaimOutcome::Lost(claim));
            }
        }
        // Whoever claims this block meanwhile has it under the same name, unless pools share addresses. Claims of
        // pools that were here before a list has shown.
        let may_contest = lock(&self.pools).may_contest(block);
        self.look_beside(block)?;
        if (may_contest || self.seen().0.overlaps(block))
            && let Some(other) = self.in_the_way(block, Age::Any)?
        {
            return Ok(ClaimOutcome::Lost(other));
        }
        for _ in 0..ATTEMPTS {
            let in_the_way = match self.create(block, who)? {
                Made::Own(claim) => return Ok(ClaimOutcome::Won(claim)),
                Made::Taken(other) => other,
            };
            let Some(found) = self.find(in_the_way)? else { continue };
            let claim = read_claim(&found)?;
            if claim.node != self.node {
                return Ok(ClaimOutcome::Lost(claim));
            }
            self.note(&found)?;
            if self.is_clear(in_the_way)? {
                return Ok(ClaimOutcome::Won(claim));
            }
        }
        let message = "it comes and goes".to_owned();
        Err(ApiError::Damaged { what: format!("blockaffinities/{}", block.claim_name()), message })?
    }

    fn release_if(&self, claim: &Claim, still: Still<'_>) -> Result<Release, DatastoreError> {
        let Some(object) = self.find(claim.block)? else {
            self.owned.send_modify(|own| Arc::make_mut(own).release(claim));
            return Ok(Release::Anothers);
        };
        let found = read_claim(&object)?;
        if found.uid != claim.uid {
            return Ok(Release::Anothers);
        }
        let stays = match found.delegations.is_empty() {
            false => Some(Release::Lent),
            true => (!still()?).then_some(Release::Kept),
        };
        if let Some(stays) = stays {
            self.owned.send_modify(|own| Arc::make_mut(own).set_leaving(claim, false));
            return Ok(stays);
        }
        Ok(self.delete(&object, claim)?)
    }

    /// One that is doubted has none: it is looked at again.
    fn stamp(&self, block: Block) -> Option<Stamp> {
        if lock(&self.doubted).contains(&block) {
            return None;
        }
        self.own().blocks().get(&block).map(|held| Stamp::Version(held.version.clone()))
    }

    fn get(&self, block: Block) -> Result<Option<Claim>, DatastoreError> {
        let found = self.find(block)?;
        Ok(found.as_ref().map(read_claim).transpose()?)
    }

    fn list(&self) -> Result<Claims, DatastoreError> {
        let params = ListParams::default().match_any();
        let found = self.access.ask("list", "blockaffinities", self.api.list(&params))?;
        let mut all = Claims::default();
        for object in &found.items {
            let name = object.metadata.name.clone().unwrap_or_default();
            add(&mut all, &name, read::claim(object));
        }
        Ok(all)
    }

    /// This node's as the watch has them; for blocks that it holds without a claim, who has them. Where
    /// that cannot be asked, a block counts as one whose claim cannot be read.
    fn known(&self, held: &[Block]) -> Result<Claims, DatastoreError> {
        let mut all = Claims::default();
        let own = self.own();
        for (block, held) in own.blocks() {
            let claim = match self.is_clear(*block) {
                Ok(true) => held.claim.clone(),
                Ok(false) => continue,
                Err(error) => Err(error_chain(&error)),
            };
            add(&mut all, &block.claim_name(), claim);
        }
        // A part of another's block has no claim of its own.
        let requests = self.requests.borrow().all();
        let borrowed = self.borrowed(&self.node, &all, &requests);
        let is_own = |block: &&Block| {
            own.blocks().contains_key(block) || borrowed.iter().any(|b| b.part.cidr == **block)
        };
        let mut others = lock(&self.others);
        let before = std::mem::take(&mut *others);
        for block in held.iter().filter(|block| !is_own(block)) {
            let found = match self.find(*block) {
                Ok(None) => continue,
                Ok(Some(object)) => read::claim(&object),
                // What somebody else had is not this node's because nobody can be asked.
                Err(error) => before.get(block).cloned().ok_or_else(|| error_chain(&error)),
            };
            if let Ok(claim) = &found
                && claim.node != self.node
            {
                others.insert(*block, claim.clone());
            }
            add(&mut all, &block.claim_name(), found);
        }
        Ok(all)
    }

    fn taken(&self) -> Result<Taken, DatastoreError> {
        match self.seen() {
            (taken, true) => Ok(taken),
            _ => Ok(self.list_taken(&[])?),
        }
    }

    /// Of pools that overlap, the one that was made first: all nodes come to the same without asking
    /// each other.
    fn settled_pools(&self, resources: &Snapshot, _known: &Claims) -> Vec<String> {
        if lock(&self.pools).see(&resources.pools) {
            // There may be claims in it that no list was looked at for.
            *lock(&self.taken) = Seen::default();
            lock(&self.full).succeeded();
        }
        first_made(&resources.pools)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn lending(&self) -> Option<&dyn Lending> {
        Some(self)
    }
}

/// Of pools that overlap, the name of the oldest; of those of one second, by name.
pub(crate) fn first_made(pools: &BTreeMap<String, IpPool>) -> Vec<String> {
    let mut by_age: Vec<_> = pools.iter().collect();
    // The API server writes all times in one form, so that their texts sort as they do.
    by_age.sort_by_key(|(name, pool)| (pool.metadata.creation_timestamp.clone(), (*name).clone()));
    let mut first: Vec<(&String, Prefix)> = Vec::new();
    for (name, pool) in by_age {
        if !first.iter().any(|(_, other)| other.overlaps(pool.spec.cidr)) {
            first.push((name, pool.spec.cidr));
        }
    }
    first.into_iter().map(|(name, _)| name.clone()).collect()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What claims of blocks have in common that cannot share addresses under different names.
fn size(block: Block) -> (Family, u8) {
    (block.prefix().family(), block.prefix().length())
}

/// The claim as an object. Parts that other nodes have stay theirs, whoever owns the block.
fn manifest(block: Block, who: Claimant<'_>, parts: &[Delegation]) -> DynamicObject {
    let name = block.claim_name();
    let mut object = DynamicObject::new(&name, &BLOCK_AFFINITIES.resource());
    object.metadata.finalizers = Some(vec![CLAIM_FINALIZER.to_owned()]);
    object.metadata.labels = Some(labels::of(block));
    let mut spec = json!({
        "state": "confirmed", "type": "host", "node": who.node, "cidr": block, "pool": who.pool,
    });
    if let Some(dedication) = who.dedication {
        spec["dedication"] = json!(dedication);
    }
    if !parts.is_empty() {
        spec["delegations"] = json!(parts);
    }
    object.data(json!({ "spec": spec }))
}

pub(super) fn read_claim(object: &DynamicObject) -> Result<Claim, ApiError> {
    read::claim(object).map_err(|message| {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        ApiError::Damaged { what: format!("blockaffinities/{name}"), message }
    })
}

/// Adds a claim, or what is wrong with it.
fn add(all: &mut Claims, name: &str, claim: Result<Claim, String>) {
    let block = Block::from_claim_name(name).ok();
    match claim {
        Ok(claim) => drop(all.claims.insert(claim.block, claim)),
        Err(message) => {
            all.damaged.extend(block);
            let place = format!("blockaffinities/{name}");
            all.problems.push(Problem::of_file(Severity::Error, place, message));
        }
    }
}

#[cfg(test)]
mod tests;
