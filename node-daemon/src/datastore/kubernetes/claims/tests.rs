use std::path::Path;

use axum::http::Method;
use serde_json::json;
use twill_ipam::next_candidate;
use twill_k8s_api::{files::catalog, load_manifests};

use super::{super::fake::Fake, *};

fn pools(of: &[(&str, &str, u8)]) -> Snapshot {
    let text: String = of
        .iter()
        .map(|(name, cidr, size)| {
            format!(
                "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\n\
                 spec: {{cidr: {cidr}, blockSize: {size}}}\n---\n"
            )
        })
        .collect();
    Snapshot::new(catalog([&load_manifests(&text, "test")]))
}

fn store(fake: &Fake, directory: &Path, pools: &Snapshot) -> ApiClaims {
    let mut cache = Cache::open(directory, "node1").unwrap();
    cache.begin();
    let owned = watch::Sender::default();
    let requests = watch::Sender::new(Arc::new(NodeRequests::new("node1")));
    let store =
        ApiClaims::new(fake.access(), owned, requests, Arc::new(Mutex::new(cache)), "node1");
    store.settled_pools(pools, &Claims::default());
    store
}

const WHO: Claimant<'_> = Claimant { node: "node1", pool: "a", dedication: None };

fn blocks(taken: &Taken) -> Option<Block> {
    next_candidate("10.0.0.0/24".parse().unwrap(), 26, "node1", taken)
}

fn others(cidr: &str) -> serde_json::Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
        "metadata": {"name": cidr.parse::<Block>().unwrap().claim_name()},
        "spec": {"node": "node2", "cidr": cidr, "pool": "b"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_claims_of_other_sizes_none_stays_over_the_other() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let both = pools(&[("a", "10.0.0.0/24", 26), ("b", "10.0.0.0/24", 28)]);
    let store = store(&fake, directory.path(), &both);
    // Another node, which does not know yet that the pool is disabled, is there at the same moment.
    fake.after(|method, path, objects| {
        let is_first = objects.stored.len() == 1;
        if *method == Method::POST && is_first {
            let block = Block::from_claim_name(path_name(objects)).unwrap();
            let part = format!("{}/28", block.prefix().address());
            let name = part.parse::<Block>().unwrap().claim_name();
            objects.put(&format!("{path}/{name}"), others(&part));
        }
    });
    let claim = store.claim(WHO, &blocks).unwrap().unwrap();
    let stored: Vec<Block> = fake.with(|objects| {
        let names = objects.stored.keys().map(|path| path.rsplit('/').next().unwrap());
        names.map(|name| Block::from_claim_name(name).unwrap()).collect()
    });
    assert_eq!(stored.len(), 2, "{stored:?}");
    assert!(!stored[0].prefix().overlaps(stored[1].prefix()), "{stored:?}");
    assert_eq!(store.known(&[]).unwrap().claims.keys().collect::<Vec<_>>(), [&claim.block]);
}

fn path_name(objects: &super::super::fake::Objects) -> &str {
    objects.stored.keys().next().unwrap().rsplit('/').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_cannot_be_cleared_is_not_used() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let both = pools(&[("a", "10.0.0.0/24", 26), ("b", "10.0.0.0/24", 28)]);
    let store = store(&fake, directory.path(), &both);
    // The answer to the creation is lost with the connection.
    let block: Block = "10.0.0.0/26".parse().unwrap();
    lock(&store.doubted).insert(block);
    let mut claim = others("10.0.0.0/26");
    claim["spec"]["node"] = json!("node1");
    let path = format!("blockaffinities/{}", block.claim_name());
    let object = fake.with(|objects| objects.put(&path, claim));
    store.note(&serde_json::from_value(object).unwrap()).unwrap();
    fake.with(|objects| objects.put("blockaffinities/0a000010-28", others("10.0.0.16/28")));
    assert_eq!(store.stamp(block), None);
    assert!(store.known(&[]).unwrap().claims.is_empty(), "another has a part of it");
    assert!(fake.with(|objects| !objects.stored.contains_key(&path)), "it is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doubt_outlives_an_attempt_that_came_too_late() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let both = pools(&[("a", "10.0.0.0/24", 26), ("b", "10.0.0.0/24", 28)]);
    let store = store(&fake, directory.path(), &both);
    // The answer to the first creation is lost, and the watch is late.
    let block: Block = "10.0.0.0/26".parse().unwrap();
    lock(&store.doubted).insert(block);
    let mut claim = others("10.0.0.0/26");
    claim["spec"]["node"] = json!("node1");
    let path = format!("blockaffinities/{}", block.claim_name());
    let object = fake.with(|objects| objects.put(&path, claim));
    fake.with(|objects| objects.put("blockaffinities/0a000010-28", others("10.0.0.16/28")));
    assert!(matches!(store.create(block, WHO).unwrap(), Made::Taken(_)));
    store.note(&serde_json::from_value(object).unwrap()).unwrap();
    assert!(store.known(&[]).unwrap().claims.is_empty(), "another has a part of it");

    // One that another has is in no doubt.
    fake.with(|objects| objects.put("blockaffinities/0a000080-26", others("10.0.0.128/26")));
    store.create("10.0.0.128/26".parse().unwrap(), WHO).unwrap();
    assert_eq!(lock(&store.doubted).len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_another_has_is_not_listed_for_again() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let store = store(&fake, directory.path(), &pools(&[("a", "10.0.0.0/24", 26)]));
    fake.with(|objects| objects.put("blockaffinities/0a000000-26", others("10.0.0.0/26")));
    fake.with(|objects| objects.put("blockaffinities/0a000050-28", others("10.0.0.80/28")));
    for _ in 0..4 {
        for (wanted, had) in [("10.0.0.0/26", "10.0.0.0/26"), ("10.0.0.64/26", "10.0.0.80/28")] {
            let outcome = store.try_claim(wanted.parse().unwrap(), WHO).unwrap();
            let ClaimOutcome::Lost(claim) = outcome else { panic!("{wanted} is another's") };
            assert_eq!(claim.block.to_string(), had);
        }
    }
    // Once for all, and where it shows that an older claim is in the way.
    assert_eq!(fake.with(|objects| objects.lists()), 1 + 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_pools_overlap_a_claim_is_one_request() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let store = store(&fake, directory.path(), &pools(&[("a", "10.0.0.0/24", 26)]));
    store.claim(WHO, &blocks).unwrap().unwrap();
    fake.with(|objects| objects.asked.clear());
    store.claim(WHO, &blocks).unwrap().unwrap();
    assert_eq!(fake.with(|objects| objects.asked.len()), 1);

    // Pools that have changed are looked at anew.
    store.settled_pools(
        &pools(&[("a", "10.0.0.0/24", 26), ("c", "10.9.0.0/24", 26)]),
        &Claims::default(),
    );
    fake.with(|objects| objects.asked.clear());
    store.claim(WHO, &blocks).unwrap().unwrap();
    assert!(fake.with(|objects| objects.lists()) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_claim_lists_no_claims_of_its_own_size() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let both = pools(&[("a", "10.0.0.0/24", 26), ("v6", "fd00::/118", 122)]);
    let of_node2 = store(&fake, directory.path(), &both);
    let who = Claimant { node: "node2", ..WHO };
    for block in ["10.0.0.0/26", "10.0.0.64/26", "fd00::/122"] {
        let outcome = of_node2.try_claim(block.parse().unwrap(), who).unwrap();
        assert!(matches!(outcome, ClaimOutcome::Won(_)));
    }
    // Of a pool that is gone, made by somebody who knows of no labels.
    fake.with(|objects| objects.put("blockaffinities/0a000090-28", others("10.0.0.144/28")));
    let listed = |block: &str| {
        let (family, length) = size(block.parse().unwrap());
        let listed = names::list(&fake.access(), Which::OfOtherSizes(family, length), Age::Any);
        listed.unwrap().into_iter().map(|claim| claim.block.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed("10.0.0.0/26"), ["10.0.0.144/28"]);
    assert_eq!(listed("10.0.0.0/27"), ["10.0.0.0/26", "10.0.0.64/26", "10.0.0.144/28"]);
    assert_eq!(listed("fd00::/122"), ["10.0.0.144/28"]);

    // Only one block is free: the other is seen to be in a claim's way, or lost.
    let own = store(&fake, directory.path(), &both);
    fake.with(|objects| objects.asked.clear());
    let claim = own.claim(WHO, &blocks).unwrap().unwrap();
    assert_eq!(claim.block.to_string(), "10.0.0.192/26");
    assert_eq!(fake.with(|objects| objects.lists()), 1);
    // Before it is said that nothing is left, all names are looked at.
    assert!(own.claim(WHO, &blocks).unwrap().is_none());
    assert_eq!(fake.with(|objects| objects.lists()), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_without_end_tries_again_later() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let store = store(&fake, directory.path(), &pools(&[("a", "10.0.0.0/8", 26)]));
    fake.with(|objects| objects.is_all_taken = true);
    let all = |taken: &Taken| next_candidate("10.0.0.0/8".parse().unwrap(), 26, "node1", taken);
    let error = store.claim(WHO, &all).unwrap_err();
    assert!(matches!(error, DatastoreError::Api(ApiError::Outrun { .. })), "{error}");
    assert_eq!(fake.with(|objects| objects.lists()), 2, "before the first, and after sixteen");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_not_listed_for_each_pod() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let store = store(&fake, directory.path(), &pools(&[("a", "10.0.0.0/24", 26)]));
    for _ in 0..4 {
        assert!(store.claim(WHO, &|_| None).unwrap().is_none());
    }
    assert_eq!(fake.with(|objects| objects.lists()), 1);
    // As after the two seconds for which any list counts.
    let age = || {
        lock(&store.taken).listed = Instant::now().checked_sub(CURRENT[0]);
        assert!(store.claim(WHO, &|_| None).unwrap().is_none());
        fake.with(|objects| objects.lists())
    };
    assert_eq!(age(), 1, "it was full a moment ago");
    *lock(&store.full) = Backoff::new(CURRENT[0], CURRENT[1]);
    assert_eq!(age(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_has_a_claim_from_its_first_address_until_it_may_be_anothers() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let store = store(&fake, directory.path(), &pools(&[("a", "10.0.0.0/24", 26)]));
    lock(&store.cache).write(&[], &[]).unwrap();
    let claim = store.claim(WHO, &blocks).unwrap().unwrap();
    let copy = directory.path().join("last-known-good.json");
    let text = move || std::fs::read_to_string(&copy).unwrap();
    assert!(text().contains(&claim.uid), "before anybody has an address of it");
    let (uid, seen) = (claim.uid.clone(), Arc::new(Mutex::new(Vec::new())));
    let (noted, look) = (Arc::clone(&seen), text.clone());
    fake.after(move |method, _, _| {
        if matches!(*method, Method::PATCH | Method::DELETE) {
            lock(&noted).push((method.clone(), look().contains(&uid)));
        }
    });
    assert_eq!(store.release_if(&claim, &|| Ok(true)).unwrap(), Release::Done);
    assert_eq!(*lock(&seen), [(Method::PATCH, false), (Method::DELETE, false)]);
    assert!(store.known(&[]).unwrap().claims.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_stays_after_all_is_in_the_copy_again() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let store = store(&fake, directory.path(), &pools(&[("a", "10.0.0.0/24", 26)]));
    let claim = store.claim(WHO, &blocks).unwrap().unwrap();
    store.forget_in_copy(&claim).unwrap();
    assert!(store.own().manifests().is_empty());
    assert_eq!(store.release_if(&claim, &|| Ok(false)).unwrap(), Release::Kept);
    assert_eq!(store.own().manifests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_borrowed_part_is_no_claim_to_be_asked_for() {
    let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
    let store = store(&fake, directory.path(), &pools(&[("a", "10.0.0.0/24", 26)]));
    let request = json!({
        "apiVersion": "projectcalico.org/v3", "kind": "BlockRequest",
        "metadata": {"name": "0a000000-26.r1", "uid": "r1", "resourceVersion": "1"},
        "spec": {"node": "node1", "owner": "node2", "block": "10.0.0.0/26", "pool": "a", "length": 29},
        "status": {"granted": "10.0.0.8/29"},
    });
    let request = serde_json::from_value(request).unwrap();
    store.requests.send_modify(|known| Arc::make_mut(known).set(&request));
    let held = ["10.0.0.8/29".parse().unwrap(), "10.0.0.16/29".parse().unwrap()];
    assert!(store.known(&held).unwrap().claims.is_empty());
    let asked = fake.with(|objects| objects.asked.clone());
    assert_eq!(asked, [(Method::GET, "blockaffinities/0a000010-29".to_owned())]);
}

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
    let mut object = manifest(block, WHO, &[]);
    assert_eq!(object.metadata.name.as_deref(), Some("0a000040-26"));
    assert_eq!(object.metadata.finalizers, Some(vec![CLAIM_FINALIZER.to_owned()]));
    assert_eq!(object.metadata.owner_references, None);
    object.metadata.uid = Some("u1".to_owned());
    let claim = read_claim(&object).unwrap();
    assert_eq!((claim.block, claim.node.as_str(), claim.uid.as_str()), (block, "node1", "u1"));
}
