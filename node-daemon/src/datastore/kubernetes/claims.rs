//! Claims on the API server: one BlockAffinity for each block, named by the block, so that making it is
//! the claim and the server says who was first.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions},
    core::{DynamicObject, PartialObjectMeta},
};
use serde_json::json;
use tokio::sync::watch;
use twill_ipam::Taken;
use twill_k8s_api::{
    IpPool, Problem, Severity,
    files::{Claim, Claims},
};
use twill_types::{Block, Prefix, error_chain};

use super::{
    access::{Access, ApiError},
    owned::{Held, OwnClaims},
    read,
    subject::BLOCK_AFFINITIES,
};
use crate::datastore::{
    ClaimOutcome, ClaimStore, Claimant, DatastoreError, Lending, Release, Snapshot, Stamp,
    seam::Still,
};

/// Keeps a claim until its owner has let go of it, whoever deletes it. Never an owner reference: claims
/// would go with a Node, while its pods live.
const FINALIZER: &str = "twill.projectcalico.org/claim";

/// How many claims of a pool may be lost in a row until all claims are listed.
const LOSSES: usize = 3;

/// How often a block that is free and taken in turns is tried.
const ATTEMPTS: usize = 4;

/// How long a list of all claims is taken for what there is: pods without an address ask again and
/// again.
const CURRENT: Duration = Duration::from_secs(2);

/// Blocks that cannot be had.
#[derive(Clone)]
struct Seen {
    taken: Taken,
    listed: Instant,
}

/// The claims.
pub(super) struct ApiClaims {
    access: Arc<Access>,
    api: Api<DynamicObject>,
    node: String,
    /// This node's, by the watch and by what was written here.
    owned: watch::Sender<Arc<OwnClaims>>,
    /// Blocks that others had when that was looked at last.
    taken: Mutex<Option<Seen>>,
    /// Others' claims of blocks that this node holds, as they were seen last.
    others: Mutex<BTreeMap<Block, Claim>>,
}

impl ApiClaims {
    pub(super) fn new(
        access: Arc<Access>,
        owned: watch::Sender<Arc<OwnClaims>>,
        node: &str,
    ) -> Self {
        let api = access.objects(&BLOCK_AFFINITIES.resource());
        Self {
            access,
            api,
            node: node.to_owned(),
            owned,
            taken: Mutex::default(),
            others: Mutex::default(),
        }
    }

    fn own(&self) -> Arc<OwnClaims> {
        Arc::clone(&self.owned.borrow())
    }

    /// Creates a claim; `None` if there is one already.
    fn create(&self, block: Block, who: Claimant<'_>) -> Result<Option<Claim>, ApiError> {
        let name = block.claim_name();
        let object = manifest(block, who);
        let params = PostParams::default();
        let request = self.api.create(&params, &object);
        match self.access.ask("create", format!("blockaffinities/{name}"), request) {
            Ok(object) => self.note(&object).map(Some),
            Err(error) if error.is(409) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes over what the API server answered about one of this node's claims.
    fn note(&self, object: &DynamicObject) -> Result<Claim, ApiError> {
        let claim = read_claim(object)?;
        self.owned.send_modify(|own| Arc::make_mut(own).set(object));
        Ok(claim)
    }

    fn find(&self, block: Block) -> Result<Option<DynamicObject>, ApiError> {
        let name = block.claim_name();
        self.access.ask("get", format!("blockaffinities/{name}"), self.api.get_opt(&name))
    }

    /// The names of all claims, out of the API server's memory.
    fn names(&self) -> Result<Vec<Block>, ApiError> {
        let params = ListParams::default().match_any();
        let request = self.api.list_metadata(&params);
        let found = self.access.ask("list", "blockaffinities", request)?;
        let block = |object: PartialObjectMeta<DynamicObject>| {
            Block::from_claim_name(object.metadata.name.as_deref()?).ok()
        };
        Ok(found.items.into_iter().filter_map(block).collect())
    }

    /// The blocks that cannot be had, as they are now: the server's memory may be behind what was
    /// written here, or was `lost` a moment ago.
    fn list_taken(&self, lost: &[Block]) -> Result<Taken, ApiError> {
        let mut taken: Taken = self.names()?.into_iter().collect();
        self.own().blocks().keys().chain(lost).for_each(|block| taken.insert(*block));
        let seen = Seen { taken: taken.clone(), listed: Instant::now() };
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(taken)
    }

    /// The same as it was listed last, with this node's own; and whether that was lately.
    fn seen(&self) -> Option<(Taken, bool)> {
        let seen = self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let Seen { mut taken, listed } = seen;
        self.own().blocks().keys().for_each(|block| taken.insert(*block));
        Some((taken, listed.elapsed() < CURRENT))
    }

    fn note_lost(&self, block: Block) {
        if let Some(seen) = &mut *self.taken.lock().unwrap_or_else(PoisonError::into_inner) {
            seen.taken.insert(block);
        }
    }

    /// Another's claim of a part of a block, or of more than it: there was a pool with blocks of another
    /// size. The names of two such claims differ, so all names are looked at.
    fn in_the_way(&self, block: Block) -> Result<Option<Claim>, DatastoreError> {
        let is_in_the_way =
            |other: &&Block| **other != block && other.prefix().overlaps(block.prefix());
        for other in self.names()?.iter().filter(is_in_the_way) {
            if let Some(claim) = self.get(*other)? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// Takes the finalizer off, then deletes: an end in between leaves a claim that is still this node's.
    fn delete(&self, object: &DynamicObject, claim: &Claim) -> Result<Release, ApiError> {
        let name = claim.block.claim_name();
        let what = format!("blockaffinities/{name}");
        let meta = &object.metadata;
        let others = meta.finalizers.iter().flatten().filter(|name| *name != FINALIZER);
        let bare = json!({"metadata": {
            "uid": meta.uid, "resourceVersion": meta.resource_version,
            "finalizers": others.collect::<Vec<_>>(),
        }});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&bare));
        let request = self.api.patch(&name, &params, &patch);
        let object = match self.access.ask("patch", what.clone(), request) {
            Ok(object) => object,
            Err(error) if error.is(404) => return Ok(Release::Anothers),
            // Also where somebody has written it since: it is given back once more, as it is then.
            Err(error) => return Err(error),
        };
        // Somebody had deleted it before: it is gone with its finalizer.
        let is_gone = meta.deletion_timestamp.is_some();
        if !is_gone {
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: object.metadata.uid.clone(),
                resource_version: object.metadata.resource_version.clone(),
            });
            match self.access.ask("delete", what, self.api.delete(&name, &params)) {
                Ok(_) => {}
                Err(error) if error.is(404) => {}
                Err(error) => return Err(error),
            }
        }
        self.owned.send_modify(|own| Arc::make_mut(own).release(claim));
        Ok(Release::Done)
    }
}

impl ClaimStore for ApiClaims {
    /// One request where the first block is free. The names of all claims are listed before the first
    /// claim, after some losses, and before it is said that nothing is left.
    fn claim(
        &self,
        who: Claimant<'_>,
        choose: &dyn Fn(&Taken) -> Option<Block>,
    ) -> Result<Option<Claim>, DatastoreError> {
        let seen = self.seen();
        let (mut taken, mut is_listed) =
            seen.map_or_else(|| Ok::<_, ApiError>((self.list_taken(&[])?, true)), Ok)?;
        let mut lost = Vec::new();
        loop {
            let Some(block) = choose(&taken) else {
                if is_listed {
                    return Ok(None);
                }
                // Some may have been given back since.
                taken = self.list_taken(&lost)?;
                is_listed = true;
                continue;
            };
            if let Some(claim) = self.create(block, who)? {
                return Ok(Some(claim));
            }
            lost.push(block);
            taken.insert(block);
            self.note_lost(block);
            if lost.len() >= LOSSES && !is_listed {
                taken = self.list_taken(&lost)?;
                is_listed = true;
            }
        }
    }

    fn try_claim(&self, block: Block, who: Claimant<'_>) -> Result<ClaimOutcome, DatastoreError> {
        if let Some(Held { claim: Ok(claim), .. }) = self.own().blocks().get(&block) {
            return Ok(ClaimOutcome::Won(claim.clone()));
        }
        if let Some(other) = self.in_the_way(block)? {
            return Ok(ClaimOutcome::Lost(other));
        }
        for _ in 0..ATTEMPTS {
            if let Some(claim) = self.create(block, who)? {
                return Ok(ClaimOutcome::Won(claim));
            }
            let Some(found) = self.find(block)? else { continue };
            let claim = read_claim(&found)?;
            if claim.node == self.node {
                self.note(&found)?;
                return Ok(ClaimOutcome::Won(claim));
            }
            return Ok(ClaimOutcome::Lost(claim));
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
        if !found.delegations.is_empty() {
            return Ok(Release::Lent);
        }
        if !still()? {
            return Ok(Release::Kept);
        }
        Ok(self.delete(&object, claim)?)
    }

    fn stamp(&self, block: Block) -> Option<Stamp> {
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
            add(&mut all, &block.claim_name(), held.claim.clone());
        }
        let is_own = |block: &&Block| own.blocks().contains_key(block);
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
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
            Some((taken, true)) => Ok(taken),
            _ => Ok(self.list_taken(&[])?),
        }
    }

    /// Of pools that overlap, the one that was made first: all nodes come to the same without asking
    /// each other.
    fn settled_pools(&self, resources: &Snapshot, _known: &Claims) -> Vec<String> {
        first_made(&resources.pools)
    }

    fn lending(&self) -> Option<&dyn Lending> {
        None
    }
}

/// Of pools that overlap, the name of the oldest; of those of one second, by name.
fn first_made(pools: &BTreeMap<String, IpPool>) -> Vec<String> {
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

/// The claim as an object.
fn manifest(block: Block, who: Claimant<'_>) -> DynamicObject {
    let name = block.claim_name();
    let mut object = DynamicObject::new(&name, &BLOCK_AFFINITIES.resource());
    object.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    let mut spec = json!({
        "state": "confirmed", "type": "host", "node": who.node, "cidr": block, "pool": who.pool,
    });
    if let Some(dedication) = who.dedication {
        spec["dedication"] = json!(dedication);
    }
    object.data(json!({ "spec": spec }))
}

fn read_claim(object: &DynamicObject) -> Result<Claim, ApiError> {
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
mod tests {
    use twill_k8s_api::{files::catalog, load_manifests};

    use super::*;

    #[test]
    fn of_pools_that_overlap_the_oldest_is_used() {
        let pool = |name: &str, cidr: &str, second: u8| {
            format!(
                "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}, \
                 creationTimestamp: \"2026-01-01T00:00:{second:02}Z\"}}\nspec: {{cidr: {cidr}}}\n---\n"
            )
        };
        let text = [
            pool("a", "10.0.0.0/16", 30),
            pool("b", "10.0.0.0/20", 7),
            pool("c", "10.0.0.0/8", 31),
            pool("d", "10.1.0.0/16", 31),
            pool("e", "10.2.0.0/16", 31),
            pool("f", "10.2.0.0/17", 31),
        ];
        let loaded = load_manifests(&text.concat(), "test");
        let pools = Snapshot::new(catalog([&loaded])).pools;
        assert_eq!(first_made(&pools), ["b", "d", "e"], "a and c overlap b, which is older");
    }

    #[test]
    fn a_claim_is_an_object_that_reads_back() {
        let block: Block = "10.0.0.64/26".parse().unwrap();
        let who = Claimant { node: "node1", pool: "a", dedication: None };
        let mut object = manifest(block, who);
        assert_eq!(object.metadata.name.as_deref(), Some("0a000040-26"));
        assert_eq!(object.metadata.finalizers, Some(vec![FINALIZER.to_owned()]));
        assert_eq!(object.metadata.owner_references, None);
        object.metadata.uid = Some("u1".to_owned());
        let claim = read_claim(&object).unwrap();
        assert_eq!((claim.block, claim.node.as_str(), claim.uid.as_str()), (block, "node1", "u1"));
    }
}
