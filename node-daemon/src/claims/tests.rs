//! The life of a block, with a process that is lost, or an operation that fails, at each of the
//! operations on store and datastore in turn.

mod broken;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use broken::{Disk, Fault, Fuse, Seam};
use twill_ipam::{AssignRequest, ReleaseRequest};
use twill_ipam_store::{AssignError, Options};
use twill_k8s_api::files::{load_directory, read_claims, read_requests};
use twill_tests::wait::wait_for;
use twill_types::AttachmentId;

use super::*;
use crate::datastore::claims::FileClaims;

const DEADLINE: Duration = Duration::from_secs(60);

/// How long a block is empty before it goes. What was borrowed is empty until the ADD that needs it asks again.
const GRACE: Duration = Duration::from_millis(300);

/// How many runs wait for one another's seconds to pass.
const AT_ONCE: usize = 32;

/// A node's daemon, as far as it has to do with blocks.
struct Process {
    claims: Claims,
    fuse: Fuse,
    announced: watch::Receiver<Option<OwnedBlocks>>,
}

/// A node: what outlives its daemon, and what its pods were told.
#[derive(Default)]
struct Node {
    disk: Disk,
    process: Option<Process>,
    pods: BTreeMap<u16, IpAddr>,
}

/// Two nodes on one datastore.
struct Site {
    root: tempfile::TempDir,
    nodes: BTreeMap<&'static str, Node>,
}

/// A pool of one block, most of which one node can lend the other, or of four.
const ONE_BLOCK: &str = "{cidr: 10.60.0.0/29, blockSize: 29}";
const FOUR_BLOCKS: &str = "{cidr: 10.60.0.0/28, blockSize: 30}";

fn request(pod: u16) -> AssignRequest {
    AssignRequest {
        attachment: attachment(pod),
        pools: [(Family::V4, vec!["a".to_owned()])].into(),
        wanted: BTreeMap::new(),
        netns: format!("/run/netns/{pod}"),
        netns_cookie: Some(pod.into()),
        pod: None,
        pod_uid: None,
        foreign: None,
        allow_reserved: false,
        now_ms: 1,
    }
}

fn attachment(pod: u16) -> AttachmentId {
    let container_id = format!("c{pod}");
    AttachmentId { network: "pods".into(), container_id, ifname: "eth0".into() }
}

impl Site {
    /// `victim` is the node whose process has this fuse.
    fn new(pool: &str, victim: &'static str, fuse: Fuse) -> Result<Self> {
        let root = tempfile::tempdir()?;
        std::fs::write(
            root.path().join("a.yaml"),
            format!(
                "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: a}}\nspec: {pool}\n\
                 ---\napiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\n\
                 metadata: {{name: default}}\nspec: {{strictAffinity: false}}\n\
                 ---\napiVersion: v1\nkind: Node\nmetadata: {{name: node1}}\n\
                 ---\napiVersion: v1\nkind: Node\nmetadata: {{name: node2}}\n"
            ),
        )?;
        let mut site = Self { root, nodes: BTreeMap::new() };
        for name in ["node1", "node2"] {
            site.nodes.insert(name, Node::default());
            site.start(name, if name == victim { fuse.clone() } else { Fuse::default() })?;
        }
        Ok(site)
    }

    fn node(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.get_mut(name).context("no such node")
    }

    /// A daemon begins, with what the one before it has left. One that cannot is begun again.
    fn start(&mut self, name: &'static str, fuse: Fuse) -> Result<()> {
        let root = self.root.path().to_owned();
        let catalog = load_directory(&root)?;
        ensure!(catalog.problems.is_empty(), "{:?}", catalog.problems);
        let node = self.node(name)?;
        node.disk.fuse = fuse.clone();
        let options = Options { boot_id: "boot".to_owned(), hold_freed: false };
        let service = match Service::with_store(Box::new(node.disk.clone()), options) {
            Ok(service) => Arc::new(service),
            Err(_) if fuse.has_burnt() => return self.start(name, Fuse::default()),
            Err(error) => bail!(error),
        };
        let owned = watch::Sender::new(None);
        let announced = owned.subscribe();
        let files = FileClaims::open(&root)?;
        let (fuse_, announced_) = (fuse.clone(), announced.clone());
        let mut claims = Claims {
            node: name.to_owned(),
            shared: true,
            grace: GRACE,
            store: Arc::new(Seam { files, root, fuse: fuse_, announced: announced_ }),
            service,
            resources: watch::Sender::new(Arc::new(Snapshot::new(catalog))).subscribe(),
            conflicts: watch::Sender::default().subscribe(),
            learned: watch::Sender::default().subscribe(),
            commands: mpsc::channel(1).1,
            view: watch::Sender::default(),
            owned,
            problems: watch::Sender::default(),
            conditions: watch::Sender::default(),
            state: State::default(),
        };
        match claims.bring_in_line() {
            Ok(()) => {}
            Err(_) if fuse.has_burnt() => return self.start(name, Fuse::default()),
            Err(error) => bail!(error),
        }
        let node = self.node(name)?;
        node.process = Some(Process { claims, fuse, announced });
        Ok(())
    }

    /// All look around, and what is dead begins anew once the others have seen it dead.
    fn turn(&mut self) -> Result<()> {
        for name in ["node1", "node2"] {
            let process = self.node(name)?.process.as_mut().context("no process")?;
            // What cannot be borne ends a daemon.
            let ended = process.claims.look().is_err();
            let dead = process.fuse.is_dead();
            ensure!(!ended || process.fuse.has_burnt(), "a daemon ended for no reason");
            self.sound()?;
            if ended || dead {
                for other in ["node1", "node2"].into_iter().filter(|other| *other != name) {
                    let other = self.node(other)?.process.as_mut().context("no process")?;
                    other.claims.look()?;
                }
                self.sound()?;
                self.start(name, Fuse::default())?;
                self.sound()?;
            }
        }
        Ok(())
    }

    /// What holds at every moment: no address is given twice, nobody announces or gives what is
    /// another's, and what was told is so.
    fn sound(&mut self) -> Result<()> {
        let all = read_claims(self.root.path())?;
        ensure!(all.problems.is_empty(), "{:?}", all.problems);
        let mut given = BTreeMap::new();
        for (name, node) in &self.nodes {
            let Some(process) = &node.process else { continue };
            let is_this = |owner: &str| owner == *name;
            let claimed = |block: &Block| {
                all.claims.get(block).is_some_and(|claim| is_this(&claim.node))
                    || all
                        .claims
                        .values()
                        .flat_map(|claim| &claim.delegations)
                        .any(|part| part.cidr == *block && is_this(&part.node))
            };
            let announced = process.announced.borrow();
            for block in announced.iter().flat_map(|owned| owned.blocks.keys()) {
                ensure!(claimed(block), "{name} announces {block}, of {:?}", all.claims);
            }
            // A store that is being read again, or is dead, tells nothing.
            let Ok(records) = process.claims.service.records() else { continue };
            for address in records.into_iter().flat_map(|record| record.addresses) {
                if let Some(other) = given.insert(address, *name) {
                    bail!("{address} is given by {other} and by {name}");
                }
                // Until the claims are read, a daemon announces what the one before it did.
                let is_announced = announced.as_ref().is_none_or(|owned| {
                    owned.blocks.keys().any(|block| block.prefix().contains(address))
                });
                ensure!(is_announced, "{name} has given {address}, which it does not announce");
                // The longest counts, as with routes.
                let lent = all.claims.values().flat_map(|claim| &claim.delegations);
                let mut others = lent.filter(|part| !is_this(&part.node));
                let part = others.find(|part| part.cidr.prefix().contains(address));
                ensure!(part.is_none(), "{name} has given {address}, which is in {part:?}");
            }
            if !process.fuse.is_dead() {
                for (pod, address) in &node.pods {
                    let record = process.claims.service.lookup(&attachment(*pod));
                    let Ok(record) = record else { continue };
                    let has = record.is_some_and(|record| record.addresses == [*address]);
                    ensure!(has, "pod {pod} of {name} has lost {address}");
                }
            }
        }
        Ok(())
    }

    /// Waits for a condition, while everybody goes on.
    fn until<T>(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut wrong = None;
        let found = wait_for(what, DEADLINE, || {
            if let Err(error) = self.turn() {
                wrong = Some(error);
                return Ok(None);
            }
            condition(self).map(Some)
        })?;
        match (found, wrong) {
            (Some(found), _) => Ok(found),
            (None, wrong) => Err(wrong.context("nothing was found")?.context(what.to_owned())),
        }
    }

    /// A pod gets an address, as an ADD does it that is repeated.
    fn add(&mut self, name: &'static str, pod: u16) -> Result<IpAddr> {
        self.until(&format!("an address of pod {pod} of {name}"), |site| {
            let node = site.node(name)?;
            let process = node.process.as_mut().context("no process")?;
            match process.claims.service.assign(request(pod)) {
                Ok(given) => {
                    node.pods.insert(pod, given.addresses[0]);
                    Ok(given.addresses[0])
                }
                Err(AssignError::Refused(refusal)) => {
                    // Told to try again or not, it does.
                    let claimed = process.claims.claim(&refusal);
                    bail!("{refusal}; {claimed:?}")
                }
                Err(error) => bail!(error),
            }
        })
    }

    /// A pod goes, as a DEL does it that is repeated.
    fn del(&mut self, name: &'static str, pod: u16) -> Result<()> {
        self.node(name)?.pods.remove(&pod);
        self.until(&format!("pod {pod} of {name} to go"), |site| {
            let process = site.node(name)?.process.as_mut().context("no process")?;
            let attachment = attachment(pod);
            let request = ReleaseRequest { attachment, sequence: None, netns_cookie: None };
            process.claims.service.release(request)?;
            Ok(())
        })
    }

    /// What each store has is what the claims say, and nothing waits for anything.
    fn settled(&mut self, claimed: usize) -> Result<()> {
        self.until("everything to be as it should", |site| {
            let all = read_claims(site.root.path())?;
            ensure!(all.claims.len() == claimed, "{:?}", all.claims);
            let parts = all.claims.values().flat_map(|claim| &claim.delegations).count();
            ensure!(parts == 0, "{:?}", all.claims);
            let requests = read_requests(site.root.path())?;
            ensure!(requests.is_empty(), "{requests:?}");
            for (name, node) in &site.nodes {
                let process = node.process.as_ref().context("no process")?;
                let blocks = process.claims.service.blocks()?;
                let own = all.claims.values().filter(|claim| claim.node == *name);
                let own: BTreeSet<Block> = own.map(|claim| claim.block).collect();
                let held: BTreeSet<Block> = blocks.iter().map(|block| block.block).collect();
                ensure!(held == own, "{name} holds {held:?}, and its claims are {own:?}");
                let shut = blocks.iter().find(|b| !b.assignable || b.delegated > 0 || b.held > 0);
                ensure!(shut.is_none(), "{shut:?}");
            }
            Ok(())
        })
    }
}

/// One node claims two blocks and gives one back, and the other takes all that is left.
fn claim_and_give_back(site: &mut Site) -> Result<()> {
    for pod in 0..5 {
        site.add("node1", pod)?;
    }
    for pod in [4, 0, 1] {
        site.del("node1", pod)?;
    }
    site.settled(1)?;
    for pod in 10..22 {
        site.add("node2", pod)?;
    }
    site.settled(4)
}

/// One node lends the other half of its block, gets it back, and has all of it again.
fn lend_and_return(site: &mut Site) -> Result<()> {
    site.add("node1", 0)?;
    site.add("node2", 10)?;
    // The lender uses what it has kept, and nothing else.
    for pod in 1..4 {
        site.add("node1", pod)?;
    }
    site.del("node2", 10)?;
    site.settled(1)?;
    for pod in 4..8 {
        site.add("node1", pod)?;
    }
    site.settled(1)
}

type Story = fn(&mut Site) -> Result<()>;

/// Runs a story with a fault of each kind at each operation of `victim`.
fn sweep(pool: &str, victim: &'static str, story: Story, all: &[&str]) {
    let fuse = Fuse::default();
    let mut site = Site::new(pool, victim, fuse.clone()).unwrap();
    story(&mut site).unwrap();
    let made = fuse.made();
    for name in all {
        assert!(made.contains(name), "{victim} does not {name}: {made:?}");
    }
    let kinds = [Fault::Dies, Fault::Fails, Fault::Unanswered];
    let points: Vec<_> = (1..=made.len()).flat_map(|at| kinds.map(|fault| (at, fault))).collect();
    let next = AtomicUsize::new(0);
    let run = || -> Result<()> {
        while let Some(&(at, fault)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
            let fuse = Fuse::at(at, fault);
            let mut site = Site::new(pool, victim, fuse.clone())?;
            let told = story(&mut site);
            ensure!(fuse.has_burnt(), "there were no {at} operations: {:?}", fuse.made());
            told.with_context(|| format!("{victim} {fault:?} at {at}, after {:?}", fuse.made()))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let runs: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(run)).collect();
        let done = runs
            .into_iter()
            .map(|run| -> Result<()> { run.join().map_err(|_| anyhow!("it panicked"))? });
        done.collect::<Result<Vec<()>>>().unwrap();
    });
}

/// Many ADDs may have given up behind one that took long.
#[test]
fn nothing_is_claimed_for_who_has_left() {
    let mut site = Site::new(FOUR_BLOCKS, "node1", Fuse::default()).unwrap();
    let claims = &mut site.node("node1").unwrap().process.as_mut().unwrap().claims;
    let Err(AssignError::Refused(refusal)) = claims.service.assign(request(1)) else {
        panic!("there is no block yet");
    };
    let mut ask = |waits: bool| {
        let (reply, answer) = oneshot::channel();
        let answer = waits.then_some(answer);
        claims.obey(Command::Claim { refusal: refusal.clone(), reply });
        drop(answer);
        claims.state.mine.len()
    };
    assert_eq!(ask(false), 0);
    assert_eq!(ask(true), 1);
}

#[test]
fn a_claim_and_its_return_heal_wherever_they_stop() {
    let all = ["store", "claim", "release"];
    sweep(FOUR_BLOCKS, "node1", claim_and_give_back, &all);
}

#[test]
fn a_lender_heals_wherever_it_stops() {
    let all = ["store", "claim", "grant", "take back", "the second file"];
    sweep(ONE_BLOCK, "node1", lend_and_return, &all);
}

#[test]
fn a_borrower_heals_wherever_it_stops() {
    sweep(ONE_BLOCK, "node2", lend_and_return, &["store", "ask", "give up"]);
}
