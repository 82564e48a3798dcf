//! 64 nodes at once on one pool, in one process and in several that are killed; and what a claim
//! costs in a pool that is nearly full.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use twill_tests::random::Random;

use super::*;

/// 64 blocks for 64 nodes.
const POOL: &str = "10.10.0.0/22";
const LENGTH: u8 = 28;
const NODES: usize = 64;

fn claim(store: &FileClaims, node: &str) -> Option<Claim> {
    store
        .claim(who(node), |taken| next_candidate(POOL.parse().unwrap(), LENGTH, node, taken))
        .unwrap()
}

/// On a tmpfs, where a claim waits for no disk.
fn directory() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    match shared.is_dir() {
        true => tempfile::tempdir_in(shared).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Every claim can be read, and no two share an address.
fn look(store: &FileClaims) -> BTreeMap<Block, Claim> {
    let Claims { claims, problems, .. } = store.list().unwrap();
    assert_eq!(problems, []);
    let mut blocks = claims.keys().collect::<Vec<_>>();
    blocks.sort();
    for pair in blocks.windows(2) {
        assert!(!pair[0].prefix().overlaps(pair[1].prefix()), "{pair:?}");
    }
    claims
}

#[test]
fn sixty_four_nodes_share_a_pool() {
    let root = directory();
    let random = Random::from_environment();
    eprintln!("{random}");
    // Whose each block is, known before it is given back and after it is claimed.
    let owners: Mutex<BTreeMap<Block, String>> = Mutex::default();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (owners, over, root) = (&owners, &over, root.path());
        let reader = scope.spawn(move || {
            let store = FileClaims::open(root).unwrap();
            let mut times = 0;
            while !over.load(Ordering::Acquire) {
                look(&store);
                times += 1;
            }
            times
        });
        let nodes: Vec<_> = (0..NODES)
            .map(|number| {
                let mut random = random.fork(u64::try_from(number).unwrap());
                let node = format!("node{number}");
                scope.spawn(move || {
                    let store = FileClaims::open(root).unwrap();
                    let mut mine: Vec<Claim> = Vec::new();
                    for _ in 0..20 {
                        if random.one_in(2) && !mine.is_empty() {
                            let claim = mine.swap_remove(random.below(mine.len()));
                            let owner = owners.lock().unwrap().remove(&claim.block);
                            assert_eq!(owner.as_deref(), Some(node.as_str()));
                            assert_eq!(
                                store.release_if(&claim, || Ok(true)).unwrap(),
                                Release::Done,
                                "{claim:?}"
                            );
                            assert_eq!(
                                store.release_if(&claim, || Ok(true)).unwrap(),
                                Release::Anothers,
                                "given back once"
                            );
                        } else if let Some(claim) = self::claim(&store, &node) {
                            let before = owners.lock().unwrap().insert(claim.block, node.clone());
                            assert_eq!(before, None, "{claim:?} has two owners");
                            mine.push(claim);
                        }
                    }
                    // A pool that is full ends for everybody.
                    while let Some(claim) = self::claim(&store, &node) {
                        let before = owners.lock().unwrap().insert(claim.block, node.clone());
                        assert_eq!(before, None, "{claim:?} has two owners");
                    }
                })
            })
            .collect();
        nodes.into_iter().for_each(|node| node.join().unwrap());
        over.store(true, Ordering::Release);
        assert!(reader.join().unwrap() > 0);
    });
    let store = FileClaims::open(root.path()).unwrap();
    let claimed: BTreeMap<Block, String> =
        look(&store).into_iter().map(|(block, claim)| (block, claim.node)).collect();
    assert_eq!((claimed.len(), &claimed), (64, &*owners.lock().unwrap()));
    assert_eq!(claim(&store, "another"), None);
}

/// Where the claims of a child are: set for it alone, with the number of its first node.
const CHILD: &str = "TWILL_CLAIMS_CHILD";
const PROCESSES: usize = 8;

fn say(line: &str) {
    // One write(2) for each line, whoever else writes.
    std::io::stdout().lock().write_all(format!("# {line}\n").as_bytes()).unwrap();
}

/// What a node of a child does until the child is killed. It has one block at a time: nodes that were
/// killed keep theirs, and there is one for each node, so that whoever lives never runs out of them.
fn live(root: &Path, node: &str, mut random: Random) {
    let store = FileClaims::open(root).unwrap();
    loop {
        let claim = self::claim(&store, node).expect("as many blocks as nodes");
        say(&format!("won {} {node} {}", claim.block, claim.uid));
        if random.one_in(2) {
            let again = store.try_claim(claim.block, who(node)).unwrap();
            assert_eq!(again, ClaimOutcome::Won(claim.clone()));
        }
        say(&format!("release {} {node} {}", claim.block, claim.uid));
        assert_eq!(store.release_if(&claim, || Ok(true)).unwrap(), Release::Done, "{claim:?}");
    }
}

fn spawn(root: &Path, first: usize, random: &mut Random) -> Child {
    let test = "datastore::claims::tests::many_nodes::killed_nodes_leave_whole_claims";
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, format!("{first} {}", root.display()))
        .env("TWILL_SEED", random.below(usize::MAX).to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn killed_nodes_leave_whole_claims() {
    let mut random = Random::from_environment();
    if let Some((first, root)) = env::var(CHILD).ok().as_deref().and_then(|v| v.split_once(' ')) {
        let (first, root): (usize, PathBuf) = (first.parse().unwrap(), root.into());
        std::thread::scope(|scope| {
            for node in first..first + NODES / PROCESSES {
                let random = random.fork(u64::try_from(node).unwrap());
                let root = &root;
                scope.spawn(move || live(root, &format!("node{node}"), random));
            }
        });
        return;
    }
    eprintln!("{random}");
    let root = directory();
    let store = FileClaims::open(root.path()).unwrap();
    let children: Vec<_> = (0..PROCESSES)
        .map(|process| {
            let mut child = spawn(root.path(), process * NODES / PROCESSES, &mut random);
            let out = BufReader::new(child.stdout.take().unwrap());
            let lines = 20 + random.below(100);
            std::thread::spawn(move || {
                let mut said = out.lines().map(Result::unwrap).filter(|line| line.contains("# "));
                let mut heard: Vec<String> = said.by_ref().take(lines).collect();
                child.kill().unwrap();
                child.wait().unwrap();
                heard.extend(said);
                heard
            })
        })
        .collect();
    let mut held: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut releasing = Vec::new();
    for child in children {
        let heard = child.join().unwrap();
        assert!(heard.len() >= 20, "too mild: {heard:?}");
        for line in heard {
            let words: Vec<&str> = line.split("# ").last().unwrap().split(' ').collect();
            let [what, block, node, uid] = words[..] else { panic!("{line}") };
            if what == "won" {
                held.insert(uid.to_owned(), (block.to_owned(), node.to_owned()));
            } else {
                releasing.extend(held.remove_entry(uid));
            }
        }
    }
    let listed = look(&store);
    let by_uid: BTreeMap<&str, &Claim> =
        listed.values().map(|claim| (claim.uid.as_str(), claim)).collect();
    for (uid, (block, node)) in &held {
        let claim = by_uid.get(uid.as_str()).unwrap_or_else(|| panic!("{node} has lost {block}"));
        assert_eq!((claim.block.to_string(), &claim.node), (block.clone(), node));
    }
    // Who starts again has what it had; and the half-written files of the killed are gone.
    for claim in listed.values() {
        let outcome = store.try_claim(claim.block, who(&claim.node)).unwrap();
        assert_eq!(outcome, ClaimOutcome::Won(claim.clone()));
    }
    let names = std::fs::read_dir(root.path().join(CLAIMS)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let rest: Vec<String> = names.filter(|name| !name.ends_with(".yaml")).collect();
    assert_eq!(rest, [".lock"]);
    while claim(&store, "last").is_some() {}
    assert_eq!(look(&store).len(), 64);
}

#[test]
fn blocks_of_other_sizes_are_in_the_way() {
    let root = directory();
    let store = FileClaims::open(root.path()).unwrap();
    let block = |text: &str| -> Block { text.parse().unwrap() };
    let claim = |text: &str, node| store.try_claim(block(text), who(node)).unwrap();
    assert!(matches!(claim("10.10.0.64/26", "node1"), ClaimOutcome::Won(_)));
    for other in ["10.10.0.0/24", "10.10.0.64/27", "10.10.0.127/32"] {
        for node in ["node1", "node2"] {
            let outcome = claim(other, node);
            let ClaimOutcome::Lost(owner) = outcome else { panic!("{other}: {outcome:?}") };
            assert_eq!((owner.node.as_str(), owner.block), ("node1", block("10.10.0.64/26")));
        }
    }
    assert!(matches!(claim("10.10.0.0/26", "node2"), ClaimOutcome::Won(_)));
    assert!(matches!(claim("10.10.0.128/25", "node2"), ClaimOutcome::Won(_)));
    assert_eq!(look(&store).len(), 3);
}

/// What was done in the directory of claims: how often it was listed, and what was made in it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Done {
    listed: usize,
    made: usize,
}

fn watched<T>(root: &Path, act: impl FnOnce() -> T) -> (T, Done) {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CREATE;
    inotify.add_watch(&root.join(CLAIMS), flags).unwrap();
    let result = act();
    let mut done = Done::default();
    let mut opened = false;
    while let Ok(events) = inotify.read_events() {
        for event in events {
            let name = event.name.unwrap_or_default();
            match event.mask {
                mask if mask.contains(AddWatchFlags::IN_ISDIR | AddWatchFlags::IN_OPEN) => {
                    opened = true;
                }
                // The directory was read, and for the first time since it was opened.
                mask if mask.contains(AddWatchFlags::IN_ISDIR | AddWatchFlags::IN_ACCESS) => {
                    done.listed += usize::from(std::mem::take(&mut opened));
                }
                mask if mask.contains(AddWatchFlags::IN_CREATE) => {
                    done.made += usize::from(!name.to_string_lossy().starts_with('.'));
                }
                _ => {}
            }
        }
    }
    (result, done)
}

/// 4,095 of 4,096 blocks are taken: it is not walked from block to block.
#[test]
fn the_last_block_of_4096_costs_a_listing_and_a_file() {
    let root = directory();
    let store = FileClaims::open(root.path()).unwrap();
    let pool: Prefix = "10.0.0.0/14".parse().unwrap();
    let missing: Block = "10.3.7.64/26".parse().unwrap();
    for index in 0..4096 {
        let block = Block::new(pool.subnet(26, index).unwrap()).unwrap();
        if block != missing {
            // Its name alone is what counts.
            std::fs::write(root.path().join(CLAIMS).join(Claim::file_name(block)), "").unwrap();
        }
    }
    let claim =
        || store.claim(who("node1"), |taken| next_candidate(pool, 26, "node1", taken)).unwrap();
    let (won, done) = watched(root.path(), claim);
    assert_eq!(won.map(|claim| claim.block), Some(missing));
    assert_eq!(done, Done { listed: 1, made: 1 });
    let (full, done) = watched(root.path(), claim);
    assert_eq!((full, done), (None, Done { listed: 1, made: 0 }));
}
