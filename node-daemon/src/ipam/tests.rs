use futures_util::FutureExt;
use twill_ipam_store::{MemoryStore, Options};
use twill_types::AttachmentId;

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
