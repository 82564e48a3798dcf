//! The store's process killed at random moments, and its files damaged at random places: what was
//! acknowledged is there, what was released does not come back, and what cannot be read is put aside.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends with the first surprise")]
#![allow(clippy::print_stderr, reason = "for people, and the seed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use twill_ipam::AssignRequest;
use twill_ipam_store::{
    AssignError, OpenReport, Options, OwnedBlock, ReleaseRequest, Service, StoreError,
};
use twill_tests::random::Random;
use twill_types::{AttachmentId, Family};

/// Where the store of a child is: set for it alone.
const STORE: &str = "TWILL_KILL_STORE";
/// How many rounds, if not these few.
const ROUNDS: &str = "TWILL_KILL_ROUNDS";
const SOME_ROUNDS: usize = 40;
/// The test that is also the child.
const TEST: &str = "nothing_acknowledged_is_lost_to_kill";

const CALLERS: usize = 4;
const PODS: usize = 12;
/// The most acknowledgements that a child lives to give.
const LONG: usize = 300;

/// A directory on a tmpfs, as the store's own is.
fn directory() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    match shared.is_dir() {
        true => tempfile::tempdir_in(shared).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn open(store: &Path) -> Result<(Service, OpenReport), StoreError> {
    Service::open(store, Options { boot_id: "boot".into(), hold_freed: false })
}

fn id(pod: &str) -> AttachmentId {
    AttachmentId { network: "net".into(), container_id: pod.into(), ifname: "eth0".into() }
}

fn request(pod: &str, families: &[Family], namespace: u64) -> AssignRequest {
    AssignRequest {
        attachment: id(pod),
        pools: families.iter().map(|family| (*family, vec!["pool".to_owned()])).collect(),
        wanted: BTreeMap::new(),
        netns: format!("/run/netns/{namespace}"),
        netns_cookie: Some(namespace),
        pod: Some("prod/web".into()),
        pod_uid: None,
        foreign: None,
        allow_reserved: false,
        now_ms: 1,
    }
}

fn set_blocks(service: &Service) {
    // Fewer addresses than pods: some are refused.
    for block in ["10.0.0.0/28", "10.0.0.16/28", "fd00::/122"] {
        let block = block.parse().unwrap();
        let owned = OwnedBlock { block, pool: "pool".into(), dedication: None };
        service.set_block(owned, true).unwrap();
    }
}

fn say(line: &str) {
    // One write(2) for each line, whoever else writes.
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// What the child does until it is killed.
fn work(store: &Path, random: &Random) {
    let (service, report) = open(store).unwrap();
    if report.set_aside.is_some() {
        say("# aside");
    }
    set_blocks(&service);
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let random = random.fork(u64::try_from(caller).unwrap() + 1);
            let service = &service;
            scope.spawn(move || call(service, caller, random));
        }
    });
}

fn call(service: &Service, caller: usize, mut random: Random) {
    loop {
        let pod = format!("{caller}-{}", random.below(PODS));
        if random.one_in(2) {
            let families: &[Family] = match random.below(3) {
                0 => &[Family::V4],
                1 => &[Family::V6],
                _ => &[Family::V4, Family::V6],
            };
            let namespace = u64::try_from(random.below(3)).unwrap();
            say(&format!("# try {caller} {pod} assign"));
            match service.assign(request(&pod, families, namespace)) {
                Ok(given) => {
                    let addresses: Vec<String> =
                        given.addresses.iter().map(ToString::to_string).collect();
                    let (addresses, sequence) = (addresses.join(","), given.sequence);
                    say(&format!("# ok {caller} {pod} {sequence} {addresses}"));
                }
                Err(AssignError::Refused(_)) => say(&format!("# refused {caller} {pod}")),
                Err(error) => panic!("{error:?}"),
            }
        } else {
            say(&format!("# try {caller} {pod} release"));
            let request =
                ReleaseRequest { attachment: id(&pod), sequence: None, netns_cookie: None };
            service.release(request).unwrap();
            say(&format!("# released {caller} {pod}"));
        }
    }
}

/// The addresses of a pod, and the number of its assignment.
type Held = BTreeMap<String, (Vec<IpAddr>, u64)>;

/// What a child has said.
#[derive(Debug, Default)]
struct Heard {
    held: Held,
    /// By pod: what it was asked for last, if that was not answered.
    open: BTreeMap<String, String>,
    acknowledged: usize,
    aside: bool,
}

impl Heard {
    fn hear(&mut self, line: &str) {
        // The test harness says something, too.
        let Some(at) = line.find("# ") else { return };
        let words: Vec<&str> = line[at + 2..].split(' ').collect();
        match words.as_slice() {
            ["aside"] => self.aside = true,
            ["try", _, pod, what] => {
                self.open.insert((*pod).to_owned(), (*what).to_owned());
            }
            ["ok", _, pod, sequence, addresses] => {
                let addresses = addresses.split(',').map(|ip| ip.parse().unwrap()).collect();
                let sequence = sequence.parse().unwrap();
                self.answered(pod);
                self.held.insert((*pod).to_owned(), (addresses, sequence));
            }
            ["refused", _, pod] => self.answered(pod),
            ["released", _, pod] => {
                self.answered(pod);
                self.held.remove(*pod);
            }
            other => panic!("the child said {other:?}"),
        }
    }

    fn answered(&mut self, pod: &str) {
        self.open.remove(pod);
        self.acknowledged += 1;
    }
}

fn held(service: &Service) -> Held {
    let records = service.records().unwrap().into_iter();
    records.map(|r| (r.attachment.container_id, (r.addresses, r.sequence))).collect()
}

/// No address is given twice, and blocks and records agree.
fn check(service: &Service, held: &Held) {
    let all: Vec<IpAddr> = held.values().flat_map(|(addresses, _)| addresses).copied().collect();
    let distinct: BTreeSet<IpAddr> = all.iter().copied().collect();
    assert_eq!(all.len(), distinct.len(), "an address is given twice: {held:?}");
    for block in service.blocks().unwrap() {
        let used = distinct.iter().filter(|ip| block.block.prefix().contains(**ip)).count();
        assert_eq!(usize::from(block.used), used, "{block:?}");
        assert_eq!(block.used + block.free, block.block.size());
    }
}

fn spawn(store: &Path, random: &mut Random) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture"])
        .env(STORE, store)
        .env("TWILL_SEED", random.below(usize::MAX).to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs a child and kills it; `heard` is what it said.
fn one_life(store: &Path, random: &mut Random, heard: &mut Heard) {
    let mut child = spawn(store, random);
    let out = BufReader::new(child.stdout.take().unwrap());
    // One in eight dies while it opens the store, or soon after.
    let early = random.one_in(8);
    let lines = random.below(LONG);
    let (sender, said) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        out.lines().for_each(|line| sender.send(line.unwrap()).unwrap());
    });
    if early {
        let moment = Duration::from_micros(random.below(30_000).try_into().unwrap());
        said.recv_timeout(moment).iter().for_each(|line| heard.hear(line));
    } else {
        for _ in 0..lines {
            let line = said.recv_timeout(Duration::from_secs(60));
            heard.hear(&line.expect("the child says nothing"));
        }
    }
    // Anywhere inside of a write.
    let moment = Instant::now() + Duration::from_micros(random.below(300).try_into().unwrap());
    while Instant::now() < moment {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Each line was one write(2) to the pipe: it is there whole or not at all.
    said.iter().for_each(|line| heard.hear(&line));
    reader.join().unwrap();
}

/// Compares a store with what was heard of it, and takes over what was on its way.
fn compare(service: &Service, heard: &mut Heard) {
    let there = held(service);
    check(service, &there);
    let pods: BTreeSet<&String> = there.keys().chain(heard.held.keys()).collect();
    for pod in pods {
        let (now, was) = (there.get(pod), heard.held.get(pod));
        let fine = match heard.open.get(pod).map(String::as_str) {
            None => now == was,
            Some("release") => now == was || now.is_none(),
            // A new one has a higher number than what was there.
            Some("assign") => {
                now == was || now.is_some_and(|(_, now)| was.is_none_or(|(_, was)| now > was))
            }
            Some(other) => panic!("{other}"),
        };
        assert!(fine, "{pod}: acknowledged {was:?}, on its way {:?}, stored {now:?}", heard.open);
    }
    heard.held = there;
    heard.open.clear();
}

#[test]
fn nothing_acknowledged_is_lost_to_kill() {
    let mut random = Random::from_environment();
    if let Some(store) = env::var_os(STORE) {
        work(&PathBuf::from(store), &random);
        return;
    }
    let rounds = env::var(ROUNDS).ok().and_then(|text| text.parse().ok()).unwrap_or(SOME_ROUNDS);
    eprintln!("{rounds} rounds; {random}");
    let root = directory();
    let store = root.path().join("store");
    let mut heard = Heard::default();
    let (mut open_took, mut asides) = (Duration::ZERO, 0);
    for round in 0..rounds {
        one_life(&store, &mut random, &mut heard);
        let began = Instant::now();
        let (service, report) = open(&store).unwrap_or_else(|error| panic!("{round}: {error:?}"));
        open_took = open_took.max(began.elapsed());
        if report.set_aside.is_some() || std::mem::take(&mut heard.aside) {
            // One that died before anything was in it looks like one that has lost everything.
            assert_eq!(heard.held, Held::new(), "round {round}: set aside {report:?}");
            asides += 1;
        }
        compare(&service, &mut heard);
    }
    eprintln!(
        "{} acknowledged, {asides} stores set aside before anything was in them, opened within \
         {open_took:?}",
        heard.acknowledged
    );
    assert!(heard.acknowledged > rounds, "too mild");
}

/// The files of a store, those in directories included.
fn files(store: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
}

/// Damages one file at one place; says how.
fn damage(store: &Path, random: &mut Random) -> String {
    let all = files(store);
    let file = &all[random.below(all.len())];
    let mut bytes = fs::read(file).unwrap();
    // Most of the database is room that was never written.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let at = random.below(end);
    let what = match random.below(4) {
        0 => {
            bytes.truncate(at);
            "cut off"
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
            "a bit turned"
        }
        2 => {
            bytes.iter_mut().skip(at).take(512).for_each(|byte| *byte = 0);
            "512 bytes zeroed"
        }
        _ => {
            let noise = |byte: &mut u8| *byte = random.below(256).try_into().unwrap();
            bytes.iter_mut().skip(at).take(512).for_each(noise);
            "512 bytes of noise"
        }
    };
    fs::write(file, bytes).unwrap();
    format!("{} of {end}: {what} at {at}", file.strip_prefix(store).unwrap().display())
}

/// A power cut, or a disk that lies: the state is one that was acknowledged once, or there is none.
#[test]
fn damaged_files_never_lie() {
    let mut random = Random::from_environment();
    let rounds = env::var(ROUNDS).ok().and_then(|text| text.parse().ok()).unwrap_or(SOME_ROUNDS);
    let root = directory();
    let store = root.path().join("store");
    let (service, _) = open(&store).unwrap();
    set_blocks(&service);
    let mut states = vec![Held::new(), held(&service)];
    let mut copies = Vec::new();
    for number in 0..400 {
        let pod = format!("{}", random.below(PODS * 3));
        if random.one_in(3) {
            let request =
                ReleaseRequest { attachment: id(&pod), sequence: None, netns_cookie: None };
            service.release(request).unwrap();
        } else {
            let namespace = u64::try_from(random.below(3)).unwrap();
            let _ = service.assign(request(&pod, &[Family::V4, Family::V6], namespace));
        }
        states.push(held(&service));
        if number % 40 == 39 {
            // As it lies there when the process is killed.
            let copied = root.path().join(format!("copy-{number}"));
            copy(&store, &copied);
            copies.push((copied, states.len()));
        }
    }
    drop(service);
    // And as it is closed.
    copies.push((store, states.len()));
    let (mut aside, mut older, mut same) = (0, 0, 0);
    for round in 0..rounds {
        let (from, length) = &copies[random.below(copies.len())];
        let here = root.path().join(format!("round-{round}"));
        let victim = here.join("store");
        copy(from, &victim);
        let how = damage(&victim, &mut random);
        let context = format!("round {round}: {how}; {random}");
        let (service, report) =
            open(&victim).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        let there = held(&service);
        check(&service, &there);
        if report.set_aside.is_some() {
            assert_eq!(there, Held::new(), "{context}");
            aside += 1;
        } else {
            let place = states[..*length].iter().rposition(|state| *state == there);
            let Some(place) = place else { panic!("{context}: never was {there:?}") };
            if place + 1 == *length { same += 1 } else { older += 1 }
        }
        drop(service);
        fs::remove_dir_all(here).unwrap();
    }
    eprintln!(
        "{rounds} damaged: {aside} set aside, {older} gone back to an earlier moment, {same} as \
         before"
    );
}

/// The library says of some of them that they are of a version that it does not know.
#[test]
fn whatever_is_wrong_with_the_settings_of_the_library_the_store_opens() {
    let root = directory();
    let store = root.path().join("store");
    let (service, _) = open(&store).unwrap();
    set_blocks(&service);
    drop(service);
    let settings = fs::read(store.join("conf")).unwrap();
    for at in 0..settings.len() {
        let victim = root.path().join(format!("{at}"));
        copy(&store, &victim);
        let mut damaged = settings.clone();
        damaged[at] ^= 0x10;
        fs::write(victim.join("conf"), damaged).unwrap();
        let opened = open(&victim);
        let (service, report) = opened.unwrap_or_else(|error| panic!("byte {at}: {error:?}"));
        let blocks = service.blocks().unwrap().len();
        assert_eq!(blocks, if report.set_aside.is_some() { 0 } else { 3 }, "byte {at}");
    }
}
