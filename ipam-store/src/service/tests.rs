use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, OnceLock},
    thread::ThreadId,
};

use proptest::prelude::*;
use twill_ipam::{AssignRequest, OwnedBlock, ReleaseRequest};
use twill_types::{AttachmentId, Family, LinkAlias, LivingPod};

use super::*;
use crate::{Entry, MemoryStore, Write};

mod model;

fn options(boot: &str) -> Options {
    Options { boot_id: boot.into(), hold_freed: false }
}

fn id(n: u16) -> AttachmentId {
    AttachmentId { network: "net".into(), container_id: format!("c{n}"), ifname: "eth0".into() }
}

fn request(n: u16) -> AssignRequest {
    AssignRequest {
        attachment: id(n),
        pools: BTreeMap::from([(Family::V4, vec!["pool".to_owned()])]),
        wanted: BTreeMap::new(),
        netns: format!("/run/netns/{n}"),
        netns_cookie: Some(u64::from(n)),
        pod: Some("prod/web".into()),
        pod_uid: None,
        foreign: None,
        allow_reserved: false,
        now_ms: 1,
    }
}

fn release(n: u16) -> ReleaseRequest {
    ReleaseRequest { attachment: id(n), sequence: None, netns_cookie: None }
}

fn block(text: &str) -> OwnedBlock {
    OwnedBlock { block: text.parse().unwrap(), pool: "pool".into(), dedication: None }
}

/// A store whose commits fail while it is told so, and that outlives its service.
#[derive(Debug, Clone, Default)]
struct Shaky {
    inner: Arc<Mutex<MemoryStore>>,
    /// It cannot be opened again.
    shut: Arc<Mutex<bool>>,
    /// How many commits go well before one fails.
    left: Arc<Mutex<Option<u32>>>,
}

impl Store for Shaky {
    fn load(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.inner.lock().unwrap().load()
    }

    fn commit(&mut self, batch: &[Write]) -> Result<(), StoreError> {
        let mut left = self.left.lock().unwrap();
        match left.as_mut() {
            Some(0) => {
                *left = None;
                Err(StoreError::Sync {
                    path: "store".into(),
                    source: std::io::ErrorKind::StorageFull.into(),
                })
            }
            Some(more) => {
                *more -= 1;
                self.inner.lock().unwrap().commit(batch)
            }
            None => self.inner.lock().unwrap().commit(batch),
        }
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        if *self.shut.lock().unwrap() {
            return Err(StoreError::Sync {
                path: "store".into(),
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        Ok(())
    }
}

#[test]
fn what_was_answered_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let (service, report) = Service::open(&store, options("a")).unwrap();
    assert_eq!(report, OpenReport::default());
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    let given = service.assign(request(1)).unwrap();
    service.assign(request(2)).unwrap();
    service.release(release(2)).unwrap();
    drop(service);
    let (service, _) = Service::open(&store, options("a")).unwrap();
    let record = service.lookup(&id(1)).unwrap().unwrap();
    assert_eq!((record.addresses, record.sequence), (given.addresses.clone(), given.sequence));
    assert_eq!(service.lookup(&id(2)).unwrap(), None);
    assert_eq!(service.assign(request(1)).unwrap().addresses, given.addresses);
    let third = service.assign(request(3)).unwrap();
    assert!(third.sequence > given.sequence + 1, "numbers go up over a restart");
}

#[test]
fn another_boot_begins_empty_and_the_numbers_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let (service, _) = Service::open(&store, options("a")).unwrap();
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    let before = service.assign(request(1)).unwrap();
    drop(service);
    let (service, report) = Service::open(&store, options("b")).unwrap();
    assert_eq!(report, OpenReport::default());
    assert_eq!((service.records().unwrap(), service.blocks().unwrap()), (vec![], vec![]));
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    assert!(service.assign(request(1)).unwrap().sequence > before.sequence);
}

#[test]
fn a_damaged_store_is_put_aside_and_never_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    for number in 1..=2 {
        let (service, _) = Service::open(&path, options("a")).unwrap();
        service.set_block(block("10.0.0.0/29"), true).unwrap();
        service.assign(request(1)).unwrap();
        drop(service);
        // A value under another key: every checksum of the file itself is right.
        let mut store = SledStore::open(&path).unwrap();
        let entries = store.load().unwrap();
        let record = entries.iter().find(|(key, _)| key[0] == b'r').unwrap();
        let mut moved = record.0.clone();
        *moved.last_mut().unwrap() += 1;
        store.commit(&[(moved, Some(record.1.clone()))]).unwrap();
        drop(store);
        let (service, report) = Service::open(&path, options("a")).unwrap();
        let aside = directory.path().join(format!("store.corrupt-{number}"));
        assert_eq!(report.set_aside.as_deref(), Some(aside.as_path()));
        assert!(aside.join("db").exists());
        assert_eq!(service.records().unwrap(), []);
        drop(service);
        std::fs::remove_dir_all(&path).unwrap();
    }
    // Rubbish in the place of the database.
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("db"), vec![7; 4096]).unwrap();
    std::fs::write(path.join("conf"), "rubbish").unwrap();
    let opened = Service::open(&path, options("a"));
    assert!(opened.as_ref().is_ok_and(|(_, report)| report.set_aside.is_some()), "{opened:?}");
}

#[test]
fn a_batch_that_cannot_be_stored_is_answered_to_nobody() {
    let shaky = Shaky::default();
    let service = Service::with_store(Box::new(shaky.clone()), options("a")).unwrap();
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    let first = service.assign(request(1)).unwrap();
    *shaky.left.lock().unwrap() = Some(0);
    let error = service.assign(request(2)).unwrap_err();
    assert!(matches!(error, AssignError::Store(StoreError::Batch(_))), "{error}");
    // Memory is as the store is: the address is free, and the pod that had one keeps it.
    assert_eq!(service.lookup(&id(2)).unwrap(), None);
    assert_eq!(service.assign(request(1)).unwrap().addresses, first.addresses);
    let second = service.assign(request(2)).unwrap();
    assert_ne!(second.addresses, first.addresses);
    *shaky.left.lock().unwrap() = Some(0);
    assert!(service.release(release(1)).is_err());
    assert_eq!(service.lookup(&id(1)).unwrap().unwrap().addresses, first.addresses);
    service.release(release(1)).unwrap();
}

/// What was planned and could not be written is no basis for anything.
#[test]
fn nothing_is_given_while_the_store_cannot_be_opened_again() {
    let shaky = Shaky::default();
    let options = Options { hold_freed: true, ..options("a") };
    let service = Service::with_store(Box::new(shaky.clone()), options).unwrap();
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    let first = service.assign(request(1)).unwrap();
    let freed = service.assign(request(2)).unwrap();
    service.release(release(2)).unwrap();
    assert!(service.failure().unwrap().is_none());
    *shaky.left.lock().unwrap() = Some(0);
    *shaky.shut.lock().unwrap() = true;
    for _ in 0..3 {
        let error = service.assign(request(3)).unwrap_err();
        assert!(matches!(error, AssignError::Store(StoreError::Batch(_))), "{error}");
        assert!(service.assign(request(1)).is_err(), "it is not known that it is stored");
        assert!(service.release(release(1)).is_err());
        assert!(service.set_block(block("10.0.1.0/29"), true).is_err());
        assert!(service.failure().unwrap().is_some());
    }
    *shaky.shut.lock().unwrap() = false;
    assert!(service.failure().unwrap().is_none());
    assert_eq!(service.lookup(&id(3)).unwrap(), None);
    assert_eq!(service.assign(request(1)).unwrap().addresses, first.addresses);
    // The link of what was freed before may exist still.
    for n in 10..16 {
        assert_ne!(service.assign(request(n)).unwrap().addresses, freed.addresses);
    }
    assert!(service.assign(request(16)).is_err());
    let round = service.begin_round().unwrap();
    service.end_round(round).unwrap();
    assert_eq!(service.assign(request(16)).unwrap().addresses, freed.addresses);
}

/// A full file system must not take a node down whose blocks are as they were.
#[test]
fn a_block_that_is_there_is_not_written_again() {
    let shaky = Shaky::default();
    let service = Service::with_store(Box::new(shaky.clone()), options("a")).unwrap();
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    *shaky.left.lock().unwrap() = Some(0);
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    assert!(service.set_block(block("10.0.0.0/29"), false).is_err());
}

#[test]
fn requests_that_wait_are_written_together_and_each_gets_an_address() {
    let service =
        Arc::new(Service::with_store(Box::<MemoryStore>::default(), options("a")).unwrap());
    service.set_block(block("10.0.0.0/24"), true).unwrap();
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let service = Arc::clone(&service);
            std::thread::spawn(move || {
                (0..16)
                    .map(|n| service.assign(request(caller * 16 + n)).unwrap())
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let given: Vec<IpAddr> = callers
        .into_iter()
        .flat_map(|caller| caller.join().unwrap())
        .flat_map(|assignment| assignment.addresses)
        .collect();
    let distinct: BTreeSet<IpAddr> = given.iter().copied().collect();
    assert_eq!((given.len(), distinct.len()), (256, 256));
    assert!(service.assign(request(999)).is_err());
}

/// So that a look that finds hundreds of dead pods does not wait for the disk hundreds of times.
#[test]
fn many_releases_are_few_writes() {
    let shaky = Shaky::default();
    let service = Service::with_store(Box::new(shaky.clone()), options("a")).unwrap();
    service.set_block(block("10.0.0.0/24"), true).unwrap();
    for n in 0..100 {
        service.assign(request(n)).unwrap();
    }
    *shaky.left.lock().unwrap() = Some(100);
    let outcomes = service.release_all((0..101).map(release));
    assert_eq!(*shaky.left.lock().unwrap(), Some(98));
    let freed: Vec<usize> =
        outcomes.into_iter().map(|outcome| outcome.unwrap().addresses.len()).collect();
    assert_eq!((freed.iter().sum::<usize>(), freed.last()), (100, Some(&0)));
}

#[test]
fn one_process_at_a_time_owns_the_store() {
    use std::time::{Duration, Instant};

    use crate::{LockError, OwnerLock};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("owner.lock");
    let lock = OwnerLock::acquire(&path, "the first", Instant::now()).unwrap();
    let soon = Instant::now() + Duration::from_millis(20);
    let error = OwnerLock::acquire(&path, "the second", soon).unwrap_err();
    assert!(matches!(&error, LockError::Held { .. }), "{error}");
    assert!(error.to_string().contains("the first"), "{error}");
    drop(lock);
    OwnerLock::acquire(&path, "the second", Instant::now()).unwrap();
}

#[derive(Debug, Clone)]
enum Action {
    Assign(u16),
    Release(u16),
    Fail(u32),
    Crash,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..12u16).prop_map(Action::Assign),
        3 => (0..12u16).prop_map(Action::Release),
        1 => (0..3u32).prop_map(Action::Fail),
        1 => Just(Action::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever fails or dies in between: what was acknowledged is there, what was released does
    /// not come back, and no address has two users.
    #[test]
    fn the_store_says_what_was_acknowledged(actions in proptest::collection::vec(action(), 1..80)) {
        let shaky = Shaky::default();
        let open = || Service::with_store(Box::new(shaky.clone()), options("a")).unwrap();
        let mut service = open();
        // Eight addresses for twelve pods.
        service.set_block(block("10.0.0.0/29"), true).unwrap();
        let mut model: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Assign(n) => if let Ok(given) = service.assign(request(n)) {
                    let had = model.insert(n, given.addresses.clone());
                    prop_assert!(had.is_none_or(|had| had == given.addresses));
                },
                Action::Release(n) => if service.release(release(n)).is_ok() {
                    model.remove(&n);
                },
                Action::Fail(after) => *shaky.left.lock().unwrap() = Some(after),
                Action::Crash => {
                    *shaky.left.lock().unwrap() = None;
                    drop(service);
                    service = open();
                }
            }
            let records = service.records().unwrap();
            let stored: BTreeMap<String, Vec<IpAddr>> = records
                .into_iter()
                .map(|record| (record.attachment.container_id, record.addresses))
                .collect();
            let wanted: BTreeMap<String, Vec<IpAddr>> =
                model.iter().map(|(n, addresses)| (format!("c{n}"), addresses.clone())).collect();
            prop_assert_eq!(&stored, &wanted);
            let all: Vec<IpAddr> = stored.into_values().flatten().collect();
            let distinct: BTreeSet<IpAddr> = all.iter().copied().collect();
            prop_assert_eq!(all.len(), distinct.len());
        }
    }
}

#[test]
fn a_lost_store_is_rebuilt_from_the_links() {
    let service = Service::with_store(Box::new(MemoryStore::default()), options("boot")).unwrap();
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    let known = service.assign(request(1)).unwrap();
    let links = [LinkAlias::new(&id(1), known.sequence), LinkAlias::new(&id(2), 70)];
    assert!(!service.misses(links[..1].to_vec()).unwrap());
    assert!(service.misses(links.to_vec()).unwrap());
    let pod = |n: u16, address: &str| LivingPod {
        attachment: id(n),
        sequence: 70,
        addresses: vec![address.parse().unwrap()],
        pod: Some("prod/web".into()),
    };
    let pods = vec![pod(1, "10.0.0.5"), pod(2, "10.0.0.1"), pod(3, "10.0.0.1")];
    assert_eq!(service.rebuild(pods).unwrap(), 1, "one is known, one's address is another's");
    assert_eq!(service.lookup(&id(1)).unwrap().unwrap().addresses, known.addresses);
    assert!(!service.misses(links.to_vec()).unwrap());
    let next = service.assign(request(4)).unwrap();
    assert_eq!((next.addresses, next.sequence), (vec!["10.0.0.2".parse().unwrap()], 71));
}

/// A store that is asked for more while it writes.
struct Busy {
    service: Arc<OnceLock<Arc<Service>>>,
    /// Who wrote, batch by batch.
    writers: Arc<Mutex<Vec<ThreadId>>>,
}

const BATCHES: usize = 3 * TURNS;

impl Store for Busy {
    fn load(&mut self) -> Result<Vec<Entry>, StoreError> {
        Ok(Vec::new())
    }

    fn commit(&mut self, _: &[Write]) -> Result<(), StoreError> {
        let count = {
            let mut writers = self.writers.lock().unwrap();
            writers.push(std::thread::current().id());
            writers.len()
        };
        if let Some(service) = self.service.get().filter(|_| count < BATCHES) {
            let ask = || service.submit_assign(request(u16::try_from(count).unwrap()), || (), drop);
            std::thread::scope(|scope| scope.spawn(ask).join()).unwrap();
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn nobody_works_for_others_without_end() {
    let (cell, writers) = (Arc::new(OnceLock::new()), Arc::new(Mutex::new(Vec::new())));
    let store = Busy { service: Arc::clone(&cell), writers: Arc::clone(&writers) };
    let service = Arc::new(Service::with_store(Box::new(store), options("a")).unwrap());
    service.set_block(block("10.0.0.0/24"), true).unwrap();
    writers.lock().unwrap().clear();
    cell.set(Arc::clone(&service)).unwrap();
    service.assign(request(1000)).unwrap();
    let me = std::thread::current().id();
    assert_eq!(writers.lock().unwrap().iter().filter(|writer| **writer == me).count(), TURNS);
    // Another thread goes on with what came in the meantime, and all of it is done.
    while service.records().unwrap().len() < BATCHES {
        std::thread::yield_now();
    }
    assert_eq!(writers.lock().unwrap().len(), BATCHES);
}

/// A store with a fault.
struct Faulty;

impl Store for Faulty {
    fn load(&mut self) -> Result<Vec<Entry>, StoreError> {
        Ok(vec![])
    }

    fn commit(&mut self, batch: &[Write]) -> Result<(), StoreError> {
        assert!(batch.iter().all(|(key, _)| key[0] != b'r'), "a fault");
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn after_a_panic_everybody_is_told_that_the_service_has_stopped() {
    let service = Service::with_store(Box::new(Faulty), options("a")).unwrap();
    service.set_block(block("10.0.0.0/24"), true).unwrap();
    let (told, answers) = mpsc::channel();
    let panicked = std::thread::scope(|scope| {
        let ask = || {
            // What waits behind the batch with the fault is answered, too.
            let jobs = (0..200).map(|n| {
                let told = told.clone();
                Job::Assign(request(n), Box::new(|| ()), Box::new(move |_| told.send(n).unwrap()))
            });
            service.send(jobs);
        };
        scope.spawn(ask).join().is_err()
    });
    drop(told);
    assert!(panicked);
    assert_eq!(answers.iter().count(), 0, "an answer for what was not written");
    assert!(matches!(service.assign(request(1)), Err(AssignError::Store(StoreError::Stopped))));
    assert!(matches!(service.blocks(), Err(StoreError::Stopped)));
}

/// What another IPAM plugin has given is in no store.
#[test]
fn a_link_without_a_store_is_not_missed() {
    let service = Service::with_store(Box::<MemoryStore>::default(), options("boot")).unwrap();
    let alias = |sequence| vec![LinkAlias::new(&id(1), sequence)];
    assert!(!service.misses(alias(LinkAlias::WITHOUT_STORE)).unwrap());
    assert!(service.misses(alias(1)).unwrap());
}
