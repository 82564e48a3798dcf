use futures_util::FutureExt;
use twill_ipam_store::{MemoryStore, Options};
use twill_types::{AttachmentId, host_link_name};

use super::*;

/// What requests go through, beside a claim task that is played.
fn ipam() -> (tempfile::TempDir, Ipam, mpsc::Receiver<claims::Command>) {
    let run_dir = tempfile::tempdir().unwrap();
    let options = Options { boot_id: "boot".to_owned(), hold_freed: false };
    let service = Service::with_store(Box::new(MemoryStore::default()), options);
    let (service, parked) = (Arc::new(service.unwrap()), Arc::<Parked>::default());
    let tombstones = Tombstones::new(run_dir.path(), Arc::clone(&service), Arc::clone(&parked));
    let (claims, commands) = mpsc::channel(1);
    let ipam = Ipam {
        node: "node1".to_owned(),
        service,
        view: watch::Sender::default().subscribe(),
        claims,
        mtu: watch::Sender::new(1500).subscribe(),
        tombstones: Arc::new(tombstones),
        parked,
        pods: None,
    };
    (run_dir, ipam, commands)
}

/// The claim task may be waiting for the datastore.
#[tokio::test]
async fn only_who_asks_what_is_left_waits_for_the_claim_task() {
    let (_run_dir, ipam, mut commands) = ipam();
    let answer = ipam.exhausted(&ReadinessRequest::default()).now_or_never();
    assert_eq!(answer, Some(false), "it waits");
    assert!(commands.try_recv().is_err(), "the claim task was asked");
    let asked =
        tokio::spawn(async move { ipam.exhausted(&ReadinessRequest { exhaustion: true }).await });
    let Some(claims::Command::Exhausted { reply }) = commands.recv().await else {
        panic!("the claim task was not asked");
    };
    reply.send(true).unwrap();
    assert!(asked.await.unwrap());
}

fn attachment() -> AttachmentId {
    AttachmentId {
        network: "pods".to_owned(),
        container_id: "a".to_owned(),
        ifname: "eth0".to_owned(),
    }
}

/// An ADD that asks for no family, so that it takes no pool to answer it.
fn request(attachment: &AttachmentId) -> AssignRequest {
    AssignRequest {
        attachment: attachment.clone(),
        families: Vec::new(),
        wanted: Vec::new(),
        ipv4_pools: Vec::new(),
        ipv6_pools: Vec::new(),
        allow_reserved: false,
        netns: "/run/netns/a".to_owned(),
        netns_cookie: Some(1),
        pod: None,
        foreign: None,
        timeout_ms: 1000,
    }
}

/// What a DEL has left there would take from the pod what it is given, a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_given_while_the_spool_may_name_it() {
    let attachment = attachment();
    let (run_dir, mut ipam, _commands) = ipam();
    let view = Arc::new(View { ready: true, ..View::default() });
    ipam.view = watch::Sender::new(view).subscribe();
    let add =
        async || ipam.assign(request(&attachment)).await.map(|_| ()).map_err(|error| error.kind);
    let spool = run_dir.path().join("spool");
    assert_eq!(add().await, Ok(()), "no spool, and nothing in it");
    // Neither can be read, whoever reads.
    std::fs::write(&spool, "").unwrap();
    assert_eq!(add().await, Err(ErrorKind::TryAgain), "no directory");
    std::fs::remove_file(&spool).unwrap();
    std::fs::create_dir(&spool).unwrap();
    let tombstone = spool.join(format!("{}-1.json", host_link_name(&attachment)));
    std::os::unix::fs::symlink(&tombstone, &tombstone).unwrap();
    assert_eq!(add().await, Err(ErrorKind::TryAgain), "a tombstone that stays");
    std::fs::rename(&tombstone, spool.join("twlother.json")).unwrap();
    assert_eq!(add().await, Ok(()), "another's");
}

/// The claim task may be at something that takes long, with others in line.
#[tokio::test(start_paused = true)]
async fn who_needs_a_block_waits_no_longer_than_it_may() {
    let (_run_dir, mut ipam, _commands) = ipam();
    let pool = PoolView {
        cidr: "10.0.0.0/24".parse().unwrap(),
        namespaces: None,
        refusal: None,
        unusable: None,
    };
    let pools = [("a".to_owned(), pool)].into();
    let view = Arc::new(View { ready: true, pools, ..View::default() });
    ipam.view = watch::Sender::new(view).subscribe();
    ipam.claims.try_send(claims::Command::Ahead { pool: "a".to_owned() }).unwrap();
    let request = AssignRequest { families: vec![Family::V4], ..request(&attachment()) };
    let answer = tokio::time::timeout(Duration::from_secs(60), ipam.assign(request)).await;
    let error = answer.expect("it waits for the line").unwrap_err();
    assert_eq!(error.kind, ErrorKind::TryAgain, "{error}");
}

/// A DEL asks for one, and a node has thousands.
#[test]
fn who_asks_for_one_attachment_is_told_of_no_other() {
    let (_run_dir, ipam, _commands) = ipam();
    let id = |network: &str, container: &str| AttachmentId {
        network: network.to_owned(),
        container_id: container.to_owned(),
        ifname: "eth0".to_owned(),
    };
    let all = [id("lan", "a"), id("pods", "a"), id("pods", "b")];
    for (attachment, sequence) in all.iter().zip(1..) {
        let record = Record {
            attachment: attachment.clone(),
            addresses: vec![format!("10.0.0.{sequence}").parse().unwrap()],
            sequence,
            netns: "/run/netns/a".to_owned(),
            netns_cookie: Some(1),
            pod: None,
            pod_uid: None,
            foreign: false,
            created_ms: 1,
        };
        assert!(ipam.service.adopt(record).unwrap());
    }
    let told = |attachment: Option<&AttachmentId>| -> Vec<AttachmentId> {
        let request =
            AttachmentsRequest { network: "pods".to_owned(), attachment: attachment.cloned() };
        let mut told = ipam.attachments(&request).unwrap();
        told.sort_by_key(|held| held.sequence);
        told.into_iter().map(|held| held.attachment).collect()
    };
    assert_eq!(told(None), &all[1..]);
    assert_eq!(told(Some(&all[2])), &all[2..]);
    assert_eq!(told(Some(&all[0])), &[], "it is of another network");
    assert_eq!(told(Some(&id("pods", "c"))), &[]);
}

/// Without a word of it, nobody would see why no ADD succeeds.
#[test]
fn a_spool_that_cannot_be_read_is_a_problem_as_long_as_it_lasts() {
    let (run_dir, ipam, _commands) = ipam();
    let problem = || crate::problems::of_store(&ipam.service, &ipam.tombstones).unwrap();
    let directory = twill_ipam_store::spool(run_dir.path());
    assert_eq!(problem(), None, "there is none yet");
    std::fs::write(&directory, "").unwrap();
    let told = problem().unwrap();
    assert!(told.contains(directory.to_str().unwrap()) && told.contains("code 11"), "{told}");
    std::fs::remove_file(&directory).unwrap();
    std::fs::create_dir(&directory).unwrap();
    assert_eq!(problem(), None);
}
