use tokio::time::timeout;
use twill_k8s_api::{files::catalog, load_manifests};

use super::*;

/// The peer is another node's, so there is no session; its filter is kept all the same.
const MANIFESTS: &str = "apiVersion: v1\nkind: Node\n\
     metadata: {name: n1, annotations: {projectcalico.org/IPv4Address: 127.0.0.1}}\n---\n\
     apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: p}\n\
     spec: {node: n2, peerIP: 192.0.2.1, asNumber: 1, filters: [f]}\n---\n\
     apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: f}\n\
     spec: {exportV4: [{action: Reject}]}\n";

#[tokio::test(flavor = "multi_thread")]
async fn filters_that_could_not_be_kept_are_kept_later_without_any_news() {
    const DEADLINE: Duration = Duration::from_secs(60);
    let root = tempfile::tempdir().unwrap();
    let state_dir = root.path().join("state");
    std::fs::write(&state_dir, "no directory").unwrap();
    let snapshot = Snapshot::new(catalog([&load_manifests(MANIFESTS, "test")]));
    let resources = watch::Sender::new(Arc::new(snapshot));
    let owned = watch::Sender::new(Some(OwnedBlocks::default()));
    let services = watch::Sender::new(Some(BTreeSet::new()));
    let problems = watch::Sender::new(Vec::new());
    let (reports, _reported) = mpsc::unbounded_channel();
    let current = watch::Sender::new(None);
    let bgp = Bgp {
        node: "n1".to_owned(),
        // Any that is free.
        listen_port: Some(0),
        forwarding: BTreeSet::new(),
        resources: resources.subscribe(),
        filters: FilterCopy::new(&state_dir, "n1"),
        patience: Duration::from_millis(20),
        owned: owned.subscribe(),
        services: services.subscribe(),
        reports,
        current: current.clone(),
        problems: problems.clone(),
        conditions: Conditions::default(),
    };
    let mut told = problems.subscribe();
    let task = tokio::spawn(bgp.run());
    let said = timeout(DEADLINE, told.wait_for(|told| !told.is_empty())).await;
    let said = said.expect("nothing is said").unwrap().clone();
    assert!(said[0].contains("cannot be kept in stateDir (cannot read "), "{said:?}");

    std::fs::remove_file(&state_dir).unwrap();
    let settled = timeout(DEADLINE, told.wait_for(Vec::is_empty)).await;
    settled.expect("it is not tried again").unwrap();
    let left = FilterCopy::new(&state_dir, "n1").read_once().unwrap().unwrap();
    assert_eq!(left.filters.keys().collect::<Vec<_>>(), ["f"]);
    // The speaker, and with it the task, ends.
    let speaker = current.borrow().clone().map(|(_, handle)| handle).unwrap();
    speaker.stop().await;
    timeout(DEADLINE, task).await.expect("it runs on").unwrap().unwrap();
}
