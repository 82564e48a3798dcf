//! What the service costs on top of its storage library: allocations and releases of 16 callers,
//! beside the least program that makes the same entries durable. `make bench` runs it.
//!
//! Prints one line of JSON: operations a second, an allocation and a release counting one each.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    io::Write,
    path::Path,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use twill_ipam::AssignRequest;
use twill_ipam_store::{Options, OwnedBlock, ReleaseRequest, Service, SledStore, Store};
use twill_types::{AttachmentId, Family};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CALLERS: usize = 16;

/// Requests written together at the most, as in the service.
const BATCH: usize = 64;

fn main() -> Outcome<()> {
    let mut arguments = env::args().skip(1);
    let directory = arguments.next().ok_or("usage: committer DIRECTORY ROUNDS MILLISECONDS")?;
    let rounds: usize = arguments.next().ok_or("ROUNDS is missing")?.parse()?;
    let time = Duration::from_millis(arguments.next().ok_or("MILLISECONDS are missing")?.parse()?);
    let directory = Path::new(&directory);
    let (mut service, mut bare) = (Vec::new(), Vec::new());
    let sizes = sizes(&directory.join("sizes"))?;
    let (assign, write) = alone(&directory.join("alone"), sizes)?;
    for round in 0..rounds {
        // In turn, so that neither has the quieter machine.
        service.push(of_service(&directory.join(format!("service-{round}")), time)?);
        bare.push(of_bare(&directory.join(format!("bare-{round}")), time, sizes)?);
    }
    let Sizes { record, block, meta } = sizes;
    writeln!(
        std::io::stdout(),
        "{{\"service\":{service:?},\"bare\":{bare:?},\"assignUs\":{assign:.1},\
         \"bareWriteUs\":{write:.1},\"recordBytes\":{record},\
         \"blockBytes\":{block},\"metaBytes\":{meta}}}"
    )?;
    Ok(())
}

/// Values of the service's entries, in bytes.
#[derive(Clone, Copy)]
struct Sizes {
    record: usize,
    block: usize,
    meta: usize,
}

fn open(directory: &Path) -> Outcome<Service> {
    let options =
        Options { boot_id: "6f5c1a52-5f2c-4bb0-8c5e-a17d58d1e9e1".into(), hold_freed: false };
    let (service, _) = Service::open(directory, options)?;
    let block =
        OwnedBlock { block: "10.0.0.0/26".parse()?, pool: "default".into(), dedication: None };
    service.set_block(block, true)?;
    Ok(service)
}

fn attachment(caller: usize, turn: u64) -> AttachmentId {
    AttachmentId {
        network: "twill".into(),
        container_id: format!("{caller:08x}{turn:056x}"),
        ifname: "eth0".into(),
    }
}

fn request(attachment: AttachmentId) -> AssignRequest {
    AssignRequest {
        attachment,
        pools: BTreeMap::from([(Family::V4, vec!["default".to_owned()])]),
        wanted: BTreeMap::new(),
        allow_reserved: false,
        netns: "/var/run/netns/cni-5d1a3b0e-8e0a-4d6c-9f52-c1c0f6f0b1c2".into(),
        netns_cookie: Some(4_294_971_234),
        pod: Some("production/web-6b7f9c5d8-x2x7q".into()),
        pod_uid: None,
        foreign: None,
        now_ms: 1_790_000_000_000,
    }
}

/// What the service's entries are like after some use.
fn sizes(directory: &Path) -> Outcome<Sizes> {
    let service = open(directory)?;
    for turn in 0..200 {
        let attachment = attachment(1, turn);
        service.assign(request(attachment.clone()))?;
        if turn >= 16 {
            let old = self::attachment(1, turn - 16);
            service.release(ReleaseRequest {
                attachment: old,
                sequence: None,
                netns_cookie: None,
            })?;
        }
    }
    drop(service);
    let entries = SledStore::open(directory)?.load()?;
    let of = |kind: u8| {
        let found = entries.iter().find(|(key, _)| key.first() == Some(&kind));
        found.map(|(_, value)| value.len()).ok_or("the store lacks an entry")
    };
    Ok(Sizes { record: of(b'r')?, block: of(b'b')?, meta: of(b'm')? })
}

/// Runs callers for a time; operations a second.
fn run(time: Duration, callers: Vec<impl FnMut(u64) -> Outcome<()> + Send>) -> Outcome<f64> {
    let count = AtomicU64::new(0);
    let began = Instant::now();
    thread::scope(|scope| {
        let callers: Vec<_> = callers
            .into_iter()
            .map(|mut call| {
                let count = &count;
                scope.spawn(move || -> Outcome<()> {
                    for turn in 0.. {
                        if began.elapsed() >= time {
                            break;
                        }
                        call(turn)?;
                        count.fetch_add(2, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        callers.into_iter().try_for_each(|caller| caller.join().map_err(|_| "a caller panicked")?)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = count.into_inner() as f64;
    Ok((count / began.elapsed().as_secs_f64()).round())
}

fn of_service(directory: &Path, time: Duration) -> Outcome<f64> {
    let service = open(directory)?;
    let service = &service;
    let callers = (0..CALLERS).map(|caller| {
        move |turn| {
            let attachment = attachment(caller, turn);
            let given = service.assign(request(attachment.clone()))?;
            let sequence = Some(given.sequence);
            let netns_cookie = None;
            service.release(ReleaseRequest { attachment, sequence, netns_cookie })?;
            Ok(())
        }
    });
    run(time, callers.collect())
}

/// p50 of one allocation of a lone caller, and of making the same entries durable with the library
/// alone, in microseconds.
fn alone(directory: &Path, sizes: Sizes) -> Outcome<(f64, f64)> {
    const TURNS: u64 = 2000;
    let service = open(&directory.join("service"))?;
    let db = open_bare(&directory.join("bare"))?;
    let (mut assigns, mut writes) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let (attachment, sequence, netns_cookie) = (attachment(0, turn), None, None);
        let request = request(attachment.clone());
        let began = Instant::now();
        service.assign(request)?;
        assigns.push(began.elapsed());
        service.release(ReleaseRequest { attachment, sequence, netns_cookie })?;
        let began = Instant::now();
        write(&db, entries(0, turn, sizes))?;
        writes.push(began.elapsed());
        write(&db, vec![(record_key(0), None)])?;
    }
    let p50 = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e6
    };
    Ok((p50(assigns), p50(writes)))
}

fn open_bare(directory: &Path) -> Outcome<sled::Db> {
    let config = sled::Config::default()
        .path(directory)
        .cache_capacity(16 * 1024 * 1024)
        .flush_every_ms(None);
    Ok(config.open()?)
}

fn write(db: &sled::Db, writes: Vec<Entry>) -> Outcome<()> {
    let mut batch = sled::Batch::default();
    for (key, value) in writes {
        match value {
            Some(value) => batch.insert(key, value),
            None => batch.remove(key),
        }
    }
    db.apply_batch(batch)?;
    db.flush()?;
    Ok(())
}

/// A key, and its value unless it goes.
type Entry = (Vec<u8>, Option<Vec<u8>>);

fn record_key(number: u8) -> Vec<u8> {
    vec![b'r', 4, 10, 0, 0, number]
}

fn block(number: u8, turn: u64, sizes: Sizes) -> Entry {
    (vec![b'b', 4, 10, 0, 0, 0, 26], filled(number, turn, sizes.block))
}

fn filled(number: u8, turn: u64, size: usize) -> Option<Vec<u8>> {
    let mut value = vec![number; size];
    value[..8].copy_from_slice(&turn.to_le_bytes());
    Some(value)
}

/// Those of an allocation.
fn entries(number: u8, turn: u64, sizes: Sizes) -> Vec<Entry> {
    let record = (record_key(number), filled(number, turn, sizes.record));
    let meta = (vec![b'm'], filled(number, turn, sizes.meta));
    vec![record, meta, block(number, turn, sizes)]
}

/// Entries to write, and where to say that they are durable.
type Job = (Vec<Entry>, mpsc::Sender<()>);

/// One thread that writes what waits in one batch, and the library.
fn of_bare(directory: &Path, time: Duration, sizes: Sizes) -> Outcome<f64> {
    let db = open_bare(directory)?;
    let (jobs, queue) = mpsc::channel::<Job>();
    let committer = thread::spawn(move || -> Outcome<()> {
        while let Ok(first) = queue.recv() {
            let more = std::iter::from_fn(|| queue.try_recv().ok()).take(BATCH - 1);
            let (writes, waiting): (Vec<_>, Vec<_>) = std::iter::once(first).chain(more).unzip();
            write(&db, writes.concat())?;
            for reply in waiting {
                let _ = reply.send(());
            }
        }
        Ok(())
    });
    let callers = (0..CALLERS).map(|caller| {
        let (jobs, (reply, answer)) = (jobs.clone(), mpsc::channel());
        move |turn: u64| {
            let number = u8::try_from(caller)?;
            let release = vec![(record_key(number), None), block(number, turn, sizes)];
            for writes in [entries(number, turn, sizes), release] {
                jobs.send((writes, reply.clone()))?;
                answer.recv()?;
            }
            Ok(())
        }
    });
    let rate = run(time, callers.collect())?;
    drop(jobs);
    committer.join().map_err(|_| "the committer panicked")??;
    Ok(rate)
}
