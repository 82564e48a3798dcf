use serde_json::json;

use super::*;

fn pool(cidr: &str) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
        "metadata": {"name": "a", "resourceVersion": "7"}, "spec": {"cidr": cidr},
    }))
    .unwrap()
}

fn subject() -> Subject {
    let pools = |subject: &Subject| subject.kind.kind == "IPPool";
    Subject::of_every_node("node1").into_iter().find(pools).unwrap()
}

fn cidr(list: &List) -> (String, usize) {
    let catalog = catalog(list.objects.values().map(|entry| &entry.loaded));
    let problems = catalog.problems.len();
    let pools = Snapshot::new(catalog).pools;
    (pools.get("a").map(|pool| pool.spec.cidr.to_string()).unwrap_or_default(), problems)
}

#[test]
fn a_damaged_object_keeps_what_was_last_right() {
    let (mut list, subject) = (List::default(), subject());
    let mut take = |event| {
        list.take(&subject, event);
        (cidr(&list), list.objects.get("a").map(|e| e.manifest["spec"]["cidr"].clone()))
    };
    let right = Some(json!("10.0.0.0/16"));
    let good = ("10.0.0.0/16".to_owned(), 0);
    assert_eq!(take(Event::Apply(pool("10.0.0.0/16"))), (good.clone(), right.clone()));
    let kept = ("10.0.0.0/16".to_owned(), 1);
    assert_eq!(take(Event::Apply(pool("10.0.0.1/16"))), (kept.clone(), right.clone()));
    assert_eq!(take(Event::Apply(pool("nonsense"))), (kept, right.clone()));
    assert_eq!(take(Event::Apply(pool("10.0.0.0/16"))), (good, right));
    assert_eq!(take(Event::Delete(pool("10.0.0.0/16"))), ((String::new(), 0), None));
}

/// A collector of node1 that nothing is told to but by the test.
fn collector() -> (Collector, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path(), "node1").unwrap();
    let access = crate::datastore::kubernetes::fake::Fake::default().access();
    let cache = Arc::new(Mutex::new(cache));
    let (own, problems) = (Own::default(), watch::Sender::default());
    (Collector::new("node1", &access, cache, Vec::new(), own, problems), directory)
}

const NO_MESH: &str = "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\n\
                       metadata: {name: default}\nspec: {nodeToNodeMeshEnabled: false}\n";

/// A kubelet writes its Node every few minutes, of which nothing is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_nobody_reads_makes_no_snapshot_and_no_copy() {
    let (mut collector, _directory) = collector();
    collector.cache.lock().unwrap().begin();
    collector.follow_wanted();
    let mut tell = |subject: &Subject, event| {
        collector.take(subject, News::Event(Box::new(event)));
        collector.settle();
        let is_wanted = collector.copy_due.is_some();
        if is_wanted {
            collector.keep_copy();
        }
        is_wanted
    };
    let no_mesh: Value = serde_json::from_value(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "BGPConfiguration",
        "metadata": {"name": "default"}, "spec": {"nodeToNodeMeshEnabled": false},
    }))
    .unwrap();
    let nodes = Subject::nodes(Some("node1"));
    let mut subjects = Subject::of_every_node("node1");
    subjects.push(nodes.clone());
    for subject in &subjects {
        tell(subject, Event::Init);
        if subject.kind.kind == "BGPConfiguration" {
            let object = serde_json::from_value(no_mesh.clone()).unwrap();
            tell(subject, Event::InitApply(object));
        }
        tell(subject, Event::InitDone);
    }
    let node = |label: &str, seen: &str| -> Event<DynamicObject> {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "node1", "labels": {"rack": label}},
            "status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": seen}]},
        });
        Event::Apply(serde_json::from_value(node).unwrap())
    };
    assert!(tell(&nodes, node("a", "1")), "it is new");
    assert!(!tell(&nodes, node("a", "2")), "it is as it was, for those who read it");
    assert!(tell(&nodes, node("b", "2")));
    let resources = Arc::clone(&collector.resources.borrow());
    assert_eq!(resources.nodes["node1"].metadata.labels["rack"], "b");
}

/// Which Nodes a reflector, or who speaks with Nodes on ports of theirs, has to see.
#[tokio::test]
async fn all_nodes_are_wanted_where_a_peer_may_be_one_of_them() {
    let (collector, _directory) = collector();
    let peer = "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: rr2}\n\
                spec: {peerIP: 192.0.2.12, asNumber: 64512}\n";
    let reflector = "apiVersion: v1\nkind: Node\nmetadata: {name: node1, annotations: \
                     {projectcalico.org/RouteReflectorClusterID: 10.0.0.1}}\n";
    let port = "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\n\
                metadata: {name: node.node2}\nspec: {listenPort: 1179}\n";
    let wants_all = |manifests: &[&str]| {
        let text = [&[NO_MESH], manifests].concat().join("---\n");
        let loaded = twill_k8s_api::load_manifests(&text, "test");
        assert!(!loaded.has_errors(), "{:?}", loaded.problems);
        let wanted = collector.wanted_by(&Snapshot::new(catalog([&loaded])));
        wanted.contains(&Subject::nodes(None))
    };
    assert!(!wants_all(&[peer]));
    assert!(!wants_all(&[reflector]), "it has the ToR alone");
    assert!(wants_all(&[peer, reflector]), "its peer may be a reflector of its cluster");
    assert!(wants_all(&[peer, port]), "its peer may listen elsewhere");
}

#[tokio::test]
async fn what_the_copy_makes_necessary_is_followed_from_the_start() {
    let (mut collector, _directory) = collector();
    let peer = "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor}\nspec: {peerIP: \
                192.0.2.1, asNumber: 64513, password: {secretKeyRef: {name: bgp, key: tor}}}\n";
    let loaded = twill_k8s_api::load_manifests(peer, "test");
    assert!(!loaded.has_errors(), "{:?}", loaded.problems);
    collector.expect(&Snapshot::new(catalog([&loaded])));
    collector.follow_wanted();
    let follows = |subject: &Subject| collector.following.contains_key(subject);
    assert!(follows(&Subject::nodes(None)), "the mesh is on");
    assert!(!follows(&Subject::nodes(Some("node1"))), "it is one of all");
    assert!(follows(&Subject::secret(collector.access.namespace(), "bgp")));
    assert!(Subject::of_every_node("node1").iter().all(follows));
}

#[test]
fn an_object_that_is_broken_at_the_start_is_what_the_copy_says() {
    let of_copy = |name: &str, uid: &str| {
        let manifest = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": {"name": name, "uid": uid}, "spec": {"cidr": "10.0.0.0/16"},
        });
        ("ippools".to_owned(), manifest)
    };
    let mut broken = pool("nonsense");
    broken.metadata.uid = Some("u1".to_owned());
    let read = |uid: &str| {
        let mut known = vec![of_copy("a", uid), of_copy("gone", "u2")];
        let mut list = List::with_known(&subject(), &mut known);
        assert!(known.is_empty());
        list.take(&subject(), Event::Init);
        list.take(&subject(), Event::InitApply(broken.clone()));
        list.take(&subject(), Event::InitDone);
        assert_eq!(list.objects.len(), 1, "what is gone is gone");
        cidr(&list)
    };
    assert_eq!(read("u1"), ("10.0.0.0/16".to_owned(), 1));
    assert_eq!(read("u9"), (String::new(), 1), "that was another object");
}

/// The API server answers for one Secret with nothing but 500.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_had_holds_nothing_up_and_is_what_the_copy_says() {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp", "uid": "s1"},
        "type": "Opaque", "data": {"tor": "czNjcmV0"},
    });
    let peer: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "projectcalico.org/v3", "kind": "BGPPeer", "metadata": {"name": "tor"},
        "spec": {"peerIP": "192.0.2.1", "asNumber": 64513,
                 "password": {"secretKeyRef": {"name": "bgp", "key": "tor"}}},
    }))
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path(), "node1").unwrap();
    let known = vec![("secrets".to_owned(), secret)];
    let (own, problems) = (Own::default(), watch::Sender::default());
    let access = crate::datastore::kubernetes::fake::Fake::default().access();
    let cache = Arc::new(Mutex::new(cache));
    let mut collector = Collector::new("node1", &access, cache, known, own, problems.clone());
    collector.follow_wanted();
    let done = || News::Event(Box::new(Event::InitDone));
    let mut subjects = Subject::of_every_node("node1");
    subjects.extend([Subject::nodes(Some("node1")), Subject::nodes(None)]);
    for subject in &subjects {
        collector.take(subject, News::Event(Box::new(Event::Init)));
        if subject.kind.kind == "BGPPeer" {
            collector.take(subject, News::Event(Box::new(Event::InitApply(peer.clone()))));
        }
        collector.take(subject, done());
        collector.settle();
    }
    // The mesh is on, so all Nodes are wanted as well.
    collector.take(&Subject::nodes(None), done());
    let secret = Subject::secret("twill-system", "bgp");
    for number in 1..=ENOUGH {
        collector.settle();
        assert_ne!(*collector.progress.borrow(), Progress::Complete, "after {number} - 1");
        let text = "the API server answers list secrets with 500".to_owned();
        collector.take(&secret, News::Failed { text, refused: false });
    }
    collector.settle();
    assert_eq!(*collector.progress.borrow(), Progress::Complete);
    assert!(collector.resources.borrow().secrets.contains_key("bgp"), "the copy has it");
    assert!(problems.borrow().iter().any(|said| said.contains("500")), "{:?}", problems.borrow());
    // A list without it says that it is gone.
    collector.take(&secret, News::Event(Box::new(Event::Init)));
    collector.take(&secret, done());
    collector.settle();
    assert!(collector.resources.borrow().secrets.is_empty());
}

#[test]
fn a_new_list_takes_away_what_it_lacks() {
    let (mut list, subject) = (List::default(), subject());
    list.take(&subject, Event::Apply(pool("10.0.0.0/16")));
    list.take(&subject, Event::Init);
    assert_eq!(list.objects.len(), 1, "not before it is complete");
    list.take(&subject, Event::InitDone);
    assert_eq!(list.objects.len(), 0);
}

#[tokio::test]
async fn own_claims_and_requests_are_asked_for_first() {
    let fake = super::super::fake::Fake::default();
    let (mut collector, _directory) = collector();
    collector.access = fake.access();
    collector.follow_wanted();
    let asked = || {
        fake.with(|objects| {
            objects.asked.iter().map(|(_, path)| path.clone()).collect::<Vec<String>>()
        })
    };
    let begun = Instant::now();
    while asked().len() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", asked());
        tokio::task::yield_now().await;
    }
    assert_eq!(asked()[..3], ["blockaffinities", "blockrequests", "blockrequests"]);
}
