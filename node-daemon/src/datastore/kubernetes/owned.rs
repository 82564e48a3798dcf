//! This node's claims, as the API server has them: what the watch tells, and what was written since.

use std::collections::{BTreeMap, BTreeSet};

use kube::core::DynamicObject;
use serde_json::Value;
use twill_k8s_api::files::Claim;
use twill_types::Block;

use super::{read, subject::BLOCK_AFFINITIES, version::Version};

/// A claim with what is needed to change it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    /// The claim, or what is wrong with it.
    pub(super) claim: Result<Claim, String>,
    /// `metadata.resourceVersion`; empty for one out of the copy.
    pub(super) version: String,
    /// What is kept in the copy.
    pub(super) manifest: Value,
}

/// The claims of this node by block.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct OwnClaims {
    blocks: BTreeMap<Block, Held>,
    /// Whether the API server has told all of them once.
    is_complete: bool,
    /// A list that is being read, and what was claimed meanwhile.
    listing: Option<BTreeMap<Block, Held>>,
    /// Given back by this process: the watch may still be telling of them. By uid, with whether they
    /// were so before the list that is being read, and were not seen in it.
    released: BTreeMap<String, bool>,
    /// About to be given back, by uid: the copy does not name them any more.
    leaving: BTreeSet<String>,
}

impl Held {
    fn of(object: &DynamicObject) -> Option<(Block, Self)> {
        let block = Block::from_claim_name(object.metadata.name.as_deref()?).ok()?;
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        let manifest = read::trim(BLOCK_AFFINITIES, object);
        Some((block, Self { claim: read::claim(object), version, manifest }))
    }

    fn version(&self) -> Version<'_> {
        let uid = self.manifest["metadata"]["uid"].as_str().unwrap_or_default();
        Version { uid, number: &self.version }
    }
}

impl OwnClaims {
    /// Out of the copy.
    pub(super) fn from_manifests(manifests: &[Value]) -> Self {
        let held = |manifest: &Value| {
            if manifest["kind"] != BLOCK_AFFINITIES.kind {
                return None;
            }
            let name = manifest["metadata"]["name"].as_str()?;
            let block = Block::from_claim_name(name).ok()?;
            let claim = Claim::from_text(&manifest.to_string());
            Some((block, Held { claim, version: String::new(), manifest: manifest.clone() }))
        };
        Self { blocks: manifests.iter().filter_map(held).collect(), ..Self::default() }
    }

    /// Takes those of the copy over, until a list is complete.
    pub(super) fn set_known(&mut self, known: Self) {
        for (block, held) in known.blocks {
            self.blocks.entry(block).or_insert(held);
        }
    }

    /// For the copy: without those that may be another's before it is written next.
    pub(super) fn manifests(&self) -> Vec<Value> {
        let stays = |held: &&Held| {
            let uid = held.manifest["metadata"]["uid"].as_str();
            uid.is_none_or(|uid| !self.leaving.contains(uid))
        };
        self.blocks.values().filter(stays).map(|held| held.manifest.clone()).collect()
    }

    /// Whether a claim is about to be given back; it may be so no more.
    pub(super) fn set_leaving(&mut self, claim: &Claim, leaves: bool) {
        if leaves {
            self.leaving.insert(claim.uid.clone());
        } else {
            self.leaving.remove(&claim.uid);
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub(super) fn blocks(&self) -> &BTreeMap<Block, Held> {
        &self.blocks
    }

    /// A list begins.
    pub(super) fn begin_list(&mut self) {
        self.listing = Some(BTreeMap::new());
        self.released.values_mut().for_each(|is_unseen| *is_unseen = true);
    }

    /// A list is complete. What was claimed while it was read stays.
    pub(super) fn end_list(&mut self) {
        if let Some(listed) = self.listing.take() {
            self.blocks = listed;
            self.is_complete = true;
            // Nobody will tell of those: they were gone before it was read.
            self.released.retain(|_, is_unseen| !*is_unseen);
        }
    }

    /// Listed.
    pub(super) fn listed(&mut self, object: &DynamicObject) {
        let is_released = self.is_released(object);
        if let Some(is_unseen) = object.metadata.uid.as_ref().and_then(|u| self.released.get_mut(u))
        {
            *is_unseen = false;
        }
        if let (Some(listing), Some((block, held))) = (&mut self.listing, Held::of(object))
            && !is_released
        {
            // The list may be older than what was written here before it was read.
            let known = self.blocks.get(&block);
            let known = known.filter(|known| held.version().is_older_than(known.version()));
            place(listing, block, known.cloned().unwrap_or(held));
        }
    }

    /// Told by the watch, or just written. What is older than what is known changes nothing: a part would
    /// seem to be lent no more.
    pub(super) fn set(&mut self, object: &DynamicObject) {
        if self.is_released(object) {
            return;
        }
        if let Some((block, held)) = Held::of(object) {
            if let Some(listing) = &mut self.listing {
                place(listing, block, held.clone());
            }
            place(&mut self.blocks, block, held);
        }
    }

    /// Told by the watch: gone.
    pub(super) fn removed(&mut self, object: &DynamicObject) {
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        self.released.remove(uid);
        self.leaving.remove(uid);
        let name = object.metadata.name.as_deref().unwrap_or_default();
        if let Ok(block) = Block::from_claim_name(name) {
            self.forget(block, uid);
        }
    }

    /// Given back by this process.
    pub(super) fn release(&mut self, claim: &Claim) {
        self.leaving.remove(&claim.uid);
        self.released.insert(claim.uid.clone(), false);
        self.forget(claim.block, &claim.uid);
    }

    fn forget(&mut self, block: Block, uid: &str) {
        for blocks in [Some(&mut self.blocks), self.listing.as_mut()].into_iter().flatten() {
            if blocks.get(&block).is_some_and(|held| held.manifest["metadata"]["uid"] == uid) {
                blocks.remove(&block);
            }
        }
    }

    fn is_released(&self, object: &DynamicObject) -> bool {
        object.metadata.uid.as_ref().is_some_and(|uid| self.released.contains_key(uid))
    }
}

fn place(blocks: &mut BTreeMap<Block, Held>, block: Block, held: Held) {
    if !blocks.get(&block).is_some_and(|known| held.version().is_older_than(known.version())) {
        blocks.insert(block, held);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(uid: &str, version: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
            "metadata": {"name": "0a000000-26", "uid": uid, "resourceVersion": version},
            "spec": {"node": "node1", "cidr": "10.0.0.0/26", "pool": "a"},
        }))
        .unwrap()
    }

    fn uids(claims: &OwnClaims) -> Vec<String> {
        claims.blocks().values().map(|held| held.claim.clone().unwrap().uid).collect()
    }

    #[test]
    fn what_was_given_back_does_not_return_by_late_news() {
        let mut claims = OwnClaims::default();
        claims.set(&object("u1", "1"));
        let claim = claims.blocks().values().next().unwrap().claim.clone().unwrap();
        claims.release(&claim);
        claims.set(&object("u1", "1"));
        assert_eq!(uids(&claims), [""; 0], "the watch is late");
        claims.begin_list();
        claims.listed(&object("u1", "1"));
        claims.end_list();
        assert_eq!(uids(&claims), [""; 0], "so is a list");

        // Claimed again: another object, and the end of the first one does not end it.
        claims.set(&object("u2", "5"));
        claims.removed(&object("u1", "4"));
        assert_eq!(uids(&claims), ["u2"]);
        claims.removed(&object("u2", "6"));
        assert_eq!(uids(&claims), [""; 0]);
    }

    #[test]
    fn late_news_do_not_take_back_what_was_written() {
        let parts = |claims: &OwnClaims| {
            let claim = claims.blocks().values().next().unwrap().claim.clone().unwrap();
            claim.delegations.len()
        };
        let mut lent = object("u1", "11");
        lent.data["spec"]["delegations"] =
            json!([{"cidr": "10.0.0.0/28", "node": "node2", "request": "r1"}]);
        let mut claims = OwnClaims::default();
        claims.set(&lent);
        claims.set(&object("u1", "10"));
        assert_eq!(parts(&claims), 1, "the watch is late");
        claims.begin_list();
        claims.listed(&object("u1", "10"));
        claims.end_list();
        assert_eq!(parts(&claims), 1, "so is a list");
        claims.begin_list();
        claims.listed(&lent);
        claims.set(&object("u1", "10"));
        claims.end_list();
        assert_eq!(parts(&claims), 1, "what was written is told after a list that has it");
        claims.set(&object("u1", "12"));
        assert_eq!(parts(&claims), 0);
        lent.metadata.resource_version = Some("13".to_owned());
        claims.set(&lent);
        assert_eq!(parts(&claims), 1);
        claims.set(&object("u2", "10"));
        assert_eq!(parts(&claims), 0, "it is another claim");
    }

    #[test]
    fn what_was_given_back_is_forgotten_once_nobody_tells_of_it() {
        let mut claims = OwnClaims::default();
        claims.set(&object("u1", "1"));
        let claim = claims.blocks().values().next().unwrap().claim.clone().unwrap();
        claims.release(&claim);
        claims.begin_list();
        claims.listed(&object("u1", "1"));
        claims.end_list();
        assert_eq!(claims.released.len(), 1, "a list still has it, so its end will be told");
        claims.begin_list();
        claims.end_list();
        assert_eq!(claims.released.len(), 0);
        claims.begin_list();
        claims.release(&claim);
        claims.end_list();
        assert_eq!(claims.released.len(), 1, "the list may be older than its end");
    }

    #[test]
    fn what_is_about_to_go_is_not_in_the_copy() {
        let mut claims = OwnClaims::default();
        claims.set(&object("u1", "1"));
        let claim = claims.blocks().values().next().unwrap().claim.clone().unwrap();
        claims.set_leaving(&claim, true);
        assert_eq!((claims.manifests().len(), claims.blocks().len()), (0, 1));
        claims.set_leaving(&claim, false);
        assert_eq!(claims.manifests().len(), 1, "it stays after all");
    }

    #[test]
    fn what_is_claimed_while_a_list_is_read_stays() {
        let mut claims = OwnClaims::default();
        claims.begin_list();
        claims.set(&object("u1", "9"));
        claims.end_list();
        assert_eq!(uids(&claims), ["u1"]);
        claims.begin_list();
        claims.end_list();
        assert_eq!(uids(&claims), [""; 0], "a list without it says that it is gone");
    }

    #[test]
    fn a_claim_that_cannot_be_read_is_there_all_the_same() {
        let mut claims = OwnClaims::default();
        let mut damaged = object("u1", "1");
        damaged.data = json!({"spec": {"node": "node1", "cidr": "10.0.0.0/26"}});
        claims.set(&damaged);
        let held = claims.blocks().values().next().unwrap();
        assert!(held.claim.as_ref().unwrap_err().contains("spec.pool"), "{held:?}");
    }
}
