//! Sets of addresses beside the real service: random requests, several to a batch, on a store that
//! fails or loses its process at any write, before or after it.

use super::*;

/// Who asks.
const PODS: u8 = 7;

/// The blocks there are, and their pools. There are fewer addresses than pods can ask for.
const BLOCKS: [(&str, &str); 5] = [
    ("10.0.0.0/30", "a"),
    ("10.0.0.4/31", "a"),
    ("10.0.1.0/32", "b"),
    ("10.0.2.0/30", "b"),
    ("fd00::/126", "six"),
];

const HOUR: Duration = Duration::from_secs(3600);

/// What happens at a write.
#[derive(Debug, Clone, Copy)]
struct Fault {
    /// How many writes go well before.
    after: u32,
    /// Whether the batch is durable all the same.
    written: bool,
    then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The store works again at once.
    Again,
    /// It cannot be opened again until it is repaired.
    Shut,
    /// The process is gone.
    Dead,
}

/// What outlives a process, and what happens to it.
#[derive(Debug, Default)]
struct Medium {
    kept: MemoryStore,
    fault: Option<Fault>,
    state: Option<Then>,
    /// Whether the write that the fault hit is durable.
    written: bool,
}

#[derive(Debug, Clone, Default)]
struct Faulty(Arc<Mutex<Medium>>);

impl Faulty {
    fn error() -> StoreError {
        StoreError::Sync { path: "store".into(), source: std::io::ErrorKind::StorageFull.into() }
    }

    fn usable(&self) -> Result<(), StoreError> {
        match self.0.lock().unwrap().state {
            Some(Then::Shut | Then::Dead) => Err(Self::error()),
            _ => Ok(()),
        }
    }
}

impl Store for Faulty {
    fn load(&mut self) -> Result<Vec<Entry>, StoreError> {
        self.usable()?;
        self.0.lock().unwrap().kept.load()
    }

    fn commit(&mut self, batch: &[Write]) -> Result<(), StoreError> {
        self.usable()?;
        let mut medium = self.0.lock().unwrap();
        match &mut medium.fault {
            Some(Fault { after: after @ 1.., .. }) => *after -= 1,
            Some(Fault { written, then, .. }) => {
                (medium.written, medium.state) = (*written, Some(*then));
                medium.fault = None;
                if medium.written {
                    medium.kept.commit(batch)?;
                }
                return Err(Self::error());
            }
            None => {}
        }
        medium.kept.commit(batch)
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.usable()
    }
}

/// Something that has to be durable before it is answered.
#[derive(Debug, Clone)]
enum Ask {
    Assign {
        pod: u8,
        v4: bool,
        v6: bool,
        wanted: Option<(usize, u16)>,
        namespace: u8,
        cookie: bool,
    },
    Release {
        pod: u8,
        number: Number,
        namespace: Option<u8>,
    },
    Adopt {
        pod: u8,
        at: (usize, u16),
        and: Option<(usize, u16)>,
    },
    Block {
        index: usize,
        assignable: bool,
    },
    Remove {
        index: usize,
    },
}

/// Which assignment a release means.
#[derive(Debug, Clone, Copy)]
enum Number {
    Any,
    This,
    /// The one before: the release is late.
    Older,
}

#[derive(Debug, Clone)]
enum Step {
    /// Requests that are written together.
    Batch(Vec<Ask>),
    Reserve(Vec<(usize, u16)>),
    /// Pairs of addresses that other nodes have.
    Delegate(BTreeSet<usize>),
    Rest(bool),
    /// Everything that rests has rested.
    Hour,
    BeginRound,
    EndRound,
    Fault(Fault),
    Repair,
    Crash,
    Reboot,
}

#[derive(Debug)]
enum Answer {
    Assigned(Result<Assignment, AssignError>),
    Released(Result<ReleaseOutcome, StoreError>),
    Did(Result<bool, StoreError>),
    Done(Result<(), StoreError>),
}

impl Answer {
    fn is_store_error(&self) -> bool {
        match self {
            Self::Assigned(answer) => matches!(answer, Err(AssignError::Store(_))),
            Self::Released(answer) => answer.is_err(),
            Self::Did(answer) => answer.is_err(),
            Self::Done(answer) => answer.is_err(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pod {
    addresses: Vec<IpAddr>,
    sequence: u64,
    netns: String,
    cookie: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    pool: String,
    assignable: bool,
    /// Offsets from here on were never in use.
    fresh: u16,
}

/// What should be.
#[derive(Debug, Clone, Default)]
struct Model {
    boot: u32,
    blocks: BTreeMap<Block, Range>,
    pods: BTreeMap<AttachmentId, Pod>,
    /// The highest number that was acknowledged.
    sequence: u64,
    held: BTreeMap<IpAddr, u32>,
    resting: BTreeSet<IpAddr>,
    rests: Option<bool>,
    reserved: BTreeSet<IpAddr>,
    delegated: BTreeSet<IpAddr>,
    round: u32,
    open_round: Option<(u32, u64)>,
}

fn owned(index: usize) -> OwnedBlock {
    let (block, pool) = BLOCKS[index];
    OwnedBlock { block: block.parse().unwrap(), pool: pool.into(), dedication: None }
}

/// The prefix length of a part of a block.
fn pair(index: usize) -> u8 {
    let length = owned(index).block.prefix().length();
    if length == 32 { 32 } else { length + 1 }
}

fn address((index, offset): (usize, u16)) -> IpAddr {
    let block = owned(index).block;
    block.nth(offset % block.size()).unwrap()
}

impl Model {
    fn used(&self) -> BTreeSet<IpAddr> {
        self.pods.values().flat_map(|pod| &pod.addresses).copied().collect()
    }

    fn block_of(&self, address: IpAddr) -> Option<(&Block, &Range)> {
        self.blocks.iter().find(|(block, _)| block.prefix().contains(address))
    }

    fn cools(&self, address: IpAddr) -> bool {
        self.held.contains_key(&address) || self.resting.contains(&address)
    }

    /// Whether an address of a block that gives some can be had.
    fn is_spare(&self, address: IpAddr) -> bool {
        !self.used().contains(&address) && !self.cools(address) && !self.withheld(address)
    }

    fn withheld(&self, address: IpAddr) -> bool {
        self.reserved.contains(&address) || self.delegated.contains(&address)
    }

    /// The spare addresses of the first block, by pools and then by blocks, that has one.
    fn spare(&self, family: Family, pools: &[String]) -> Vec<IpAddr> {
        let blocks = pools
            .iter()
            .flat_map(|pool| self.blocks.iter().filter(move |(_, range)| range.pool == *pool));
        let of_block = |(block, _): (&Block, &Range)| -> Vec<IpAddr> {
            (0..block.size())
                .filter_map(|n| block.nth(n))
                .filter(|address| self.is_spare(*address))
                .collect()
        };
        blocks
            .filter(|(block, range)| range.assignable && block.family() == family)
            .map(of_block)
            .find(|spare| !spare.is_empty())
            .unwrap_or_default()
    }

    fn free(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            self.held.insert(*address, self.round);
            if self.rests == Some(true) {
                self.resting.insert(*address);
            }
        }
    }

    fn take(&mut self, attachment: AttachmentId, pod: Pod) {
        for address in &pod.addresses {
            self.held.remove(address);
            self.resting.remove(address);
            let range = self.blocks.iter_mut().find(|(block, _)| block.prefix().contains(*address));
            if let Some((block, range)) = range {
                range.fresh = range.fresh.max(block.offset_of(*address).unwrap() + 1);
            }
        }
        self.sequence = self.sequence.max(pod.sequence);
        self.pods.insert(attachment, pod);
    }

    /// Nothing of what is only in memory outlives a process.
    fn forget(&mut self) {
        let Self { boot, blocks, pods, sequence, .. } = std::mem::take(self);
        *self = Self { boot, blocks, pods, sequence, ..Self::default() };
    }

    fn request(ask: &Ask) -> Option<AssignRequest> {
        let Ask::Assign { pod, v4, v6, wanted, namespace, cookie } = ask else { return None };
        let mut pools = BTreeMap::new();
        if *v4 || !*v6 {
            pools.insert(Family::V4, vec!["a".to_owned(), "b".to_owned()]);
        }
        if *v6 {
            pools.insert(Family::V6, vec!["six".to_owned()]);
        }
        let wanted = wanted.map(address).map(|address| (Family::of(address), address));
        Some(AssignRequest {
            wanted: wanted.into_iter().filter(|(family, _)| pools.contains_key(family)).collect(),
            pools,
            netns: format!("/run/netns/{namespace}"),
            netns_cookie: cookie.then_some(u64::from(*namespace)),
            ..request(u16::from(*pod))
        })
    }

    fn release(&self, ask: &Ask) -> Option<ReleaseRequest> {
        let Ask::Release { pod, number, namespace } = ask else { return None };
        let attachment = id(u16::from(*pod));
        let sequence = self.pods.get(&attachment).map_or(1, |pod| pod.sequence);
        let sequence = match number {
            Number::Any => None,
            Number::This => Some(sequence),
            Number::Older => Some(sequence - 1),
        };
        Some(ReleaseRequest { attachment, sequence, netns_cookie: namespace.map(u64::from) })
    }

    fn record(ask: &Ask) -> Option<Record> {
        let Ask::Adopt { pod, at, and } = ask else { return None };
        let mut addresses = vec![address(*at)];
        let second = and.map(address);
        addresses.extend(second.filter(|second| Family::of(*second) != Family::of(addresses[0])));
        addresses.sort();
        Some(Record {
            attachment: id(u16::from(*pod)),
            addresses,
            sequence: 3,
            netns: String::new(),
            netns_cookie: None,
            pod: None,
            pod_uid: None,
            foreign: false,
            created_ms: 1,
        })
    }

    /// Takes an answer over, if it is one that may be given. What was asked goes by what was known
    /// before the batch.
    fn accept(&mut self, before: &Self, ask: &Ask, answer: &Answer) -> Result<(), TestCaseError> {
        match (ask, answer) {
            (Ask::Assign { .. }, Answer::Assigned(answer)) => {
                let request = Model::request(ask).unwrap();
                match answer {
                    Ok(given) => self.accept_assigned(&request, given)?,
                    Err(AssignError::Refused(refusal)) => self.accept_refused(&request, refusal)?,
                    Err(error) => prop_assert!(false, "{error}"),
                }
            }
            (Ask::Release { .. }, Answer::Released(Ok(outcome))) => {
                let request = before.release(ask).unwrap();
                let mine = self.pods.get(&request.attachment).filter(|pod| {
                    request.sequence.is_none_or(|sequence| sequence >= pod.sequence)
                        && request
                            .netns_cookie
                            .is_none_or(|cookie| pod.cookie.is_none_or(|of_pod| of_pod == cookie))
                });
                let freed = mine.map(|pod| pod.addresses.clone()).unwrap_or_default();
                prop_assert_eq!(&outcome.addresses, &freed);
                if !freed.is_empty() {
                    self.pods.remove(&request.attachment);
                    self.free(&freed);
                }
            }
            (Ask::Adopt { .. }, Answer::Did(Ok(adopted))) => {
                let record = Self::record(ask).unwrap();
                let used = self.used();
                let can = !self.pods.contains_key(&record.attachment)
                    && !record.addresses.iter().any(|address| used.contains(address));
                prop_assert_eq!(*adopted, can);
                if can {
                    let Record { attachment, addresses, sequence, .. } = record;
                    let netns = String::new();
                    self.take(attachment, Pod { addresses, sequence, netns, cookie: None });
                }
            }
            (Ask::Block { index, assignable }, Answer::Done(Ok(()))) => {
                let OwnedBlock { block, pool, .. } = owned(*index);
                let inside = |address: &IpAddr| block.offset_of(*address).map(|n| n + 1);
                let fresh = self.used().iter().filter_map(inside).max().unwrap_or(0);
                let range = Range { pool, assignable: *assignable, fresh };
                self.blocks.entry(block).or_insert(range).assignable = *assignable;
            }
            (Ask::Remove { index }, Answer::Did(Ok(removed))) => {
                let block = owned(*index).block;
                let in_use = self.used().iter().any(|address| block.prefix().contains(*address));
                let can = !in_use || !self.blocks.contains_key(&block);
                prop_assert_eq!(*removed, can);
                if can {
                    self.blocks.remove(&block);
                }
            }
            other => prop_assert!(false, "{other:?}"),
        }
        Ok(())
    }

    /// The pod of a request, if the request is one that it has an answer to already.
    fn answered(&self, request: &AssignRequest) -> Option<&Pod> {
        self.pods.get(&request.attachment).filter(|pod| {
            let families: BTreeSet<Family> = pod.addresses.iter().map(|a| Family::of(*a)).collect();
            families.iter().eq(request.pools.keys())
                && request.wanted.values().all(|wanted| pod.addresses.contains(wanted))
        })
    }

    fn accept_assigned(
        &mut self,
        request: &AssignRequest,
        given: &Assignment,
    ) -> Result<(), TestCaseError> {
        let netns = request.netns.clone();
        let cookie = request.netns_cookie;
        let mut pod =
            Pod { addresses: given.addresses.clone(), sequence: given.sequence, netns, cookie };
        if let Some(had) = self.answered(request) {
            prop_assert_eq!(&given.addresses, &had.addresses);
            let same = match (had.cookie, cookie) {
                (Some(had), Some(has)) => had == has,
                _ => had.netns == pod.netns,
            };
            if same {
                prop_assert_eq!(given.sequence, had.sequence);
                pod = had.clone();
            } else {
                prop_assert!(given.sequence > self.sequence);
            }
            self.take(request.attachment.clone(), pod);
            return Ok(());
        }
        let own = self.pods.remove(&request.attachment).map(|pod| pod.addresses);
        let own = own.unwrap_or_default();
        self.free(&own);
        prop_assert!(given.sequence > self.sequence);
        prop_assert_eq!(given.addresses.len(), request.pools.len());
        for (address, (family, pools)) in given.addresses.iter().zip(&request.pools) {
            prop_assert_eq!(Family::of(*address), *family);
            if let Some(wanted) = request.wanted.get(family) {
                prop_assert_eq!(address, wanted);
                let range = self.block_of(*address).map(|(_, range)| range);
                prop_assert!(range.is_some_and(|range| range.assignable));
                prop_assert!(!self.withheld(*address), "{address} is withheld");
                prop_assert!(
                    own.contains(address) || self.is_spare(*address),
                    "{address} is not spare"
                );
                continue;
            }
            let spare = self.spare(*family, pools);
            prop_assert!(spare.contains(address), "{address} is none of {spare:?}");
            let (block, range) = self.block_of(*address).unwrap();
            let never = |address: &IpAddr| block.offset_of(*address).unwrap() >= range.fresh;
            prop_assert!(
                never(address) || !spare.iter().any(never),
                "{address} is used again early"
            );
        }
        self.take(request.attachment.clone(), pod);
        Ok(())
    }

    fn accept_refused(
        &self,
        request: &AssignRequest,
        refusal: &Refusal,
    ) -> Result<(), TestCaseError> {
        prop_assert!(self.answered(request).is_none(), "it has them: {refusal}");
        let own = self.pods.get(&request.attachment).map(|pod| pod.addresses.clone());
        let own = own.unwrap_or_default();
        let used = self.used();
        match refusal {
            Refusal::Full(shortage) => {
                let pools = &request.pools[&shortage.family];
                prop_assert_eq!(&self.spare(shortage.family, pools), &Vec::<IpAddr>::new());
                let cools = |address: &&IpAddr| {
                    let range = self.block_of(**address).map(|(_, range)| range);
                    Family::of(**address) == shortage.family
                        && !used.contains(address)
                        && !self.withheld(**address)
                        && range.is_some_and(|r| r.assignable && pools.contains(&r.pool))
                };
                let resting = self.resting.iter().filter(|ip| !self.held.contains_key(ip));
                prop_assert_eq!(shortage.held, self.held.keys().filter(cools).count());
                prop_assert_eq!(shortage.rested_in.is_some(), resting.filter(cools).count() > 0);
            }
            Refusal::Taken { address, by } => {
                prop_assert!(used.contains(address) && !own.contains(address));
                prop_assert!(self.pods[by.as_ref()].addresses.contains(address));
            }
            Refusal::Cooling { address } => {
                prop_assert!(self.held.contains_key(address) && !used.contains(address));
            }
            Refusal::Resting { address, .. } => {
                prop_assert!(self.resting.contains(address) && !used.contains(address));
            }
            Refusal::Withheld { address, .. } => prop_assert!(self.reserved.contains(address)),
            Refusal::Delegated { address, .. } => {
                prop_assert!(self.delegated.contains(address) && !self.reserved.contains(address));
            }
            Refusal::NoBlock { address, .. } => {
                let range = self.block_of(*address).map(|(_, range)| range);
                prop_assert!(range.is_none_or(|range| !range.assignable));
            }
            Refusal::Reserved { .. } => prop_assert!(false, "{refusal}"),
        }
        Ok(())
    }
}

/// The service, what should be, and what outlives both.
struct Bench {
    store: Faulty,
    service: Service,
    model: Model,
}

impl Bench {
    fn new() -> Self {
        let store = Faulty::default();
        let service = Self::open(&store, 0).unwrap();
        Self { store, service, model: Model::default() }
    }

    fn open(store: &Faulty, boot: u32) -> Result<Service, StoreError> {
        let options = Options { boot_id: boot.to_string(), hold_freed: true };
        Service::with_store(Box::new(store.clone()), options)
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.store.0.lock().unwrap()
    }

    fn state(&self) -> Option<Then> {
        self.medium().state
    }

    /// A new process, as often as it takes.
    fn restart(&mut self) {
        self.model.forget();
        loop {
            self.medium().state = None;
            if let Ok(service) = Self::open(&self.store, self.model.boot) {
                self.service = service;
                return;
            }
        }
    }

    fn job(&self, ask: &Ask, model: &Model, replies: &mpsc::Sender<Answer>) -> Job {
        let replies = replies.clone();
        let say = move |answer| replies.send(answer).unwrap();
        match ask {
            Ask::Assign { .. } => {
                let request = Model::request(ask).unwrap();
                Job::Assign(
                    request,
                    Box::new(|| ()),
                    Box::new(move |answer| say(Answer::Assigned(answer))),
                )
            }
            Ask::Release { .. } => {
                let request = model.release(ask).unwrap();
                Job::Release(request, Box::new(move |answer| say(Answer::Released(answer))))
            }
            Ask::Adopt { .. } => {
                let record = Model::record(ask).unwrap();
                Job::Adopt(record, Box::new(move |answer| say(Answer::Did(answer))))
            }
            Ask::Block { index, assignable } => {
                let say = move |answer| say(Answer::Done(answer));
                Job::Block(owned(*index), *assignable, Box::new(say))
            }
            Ask::Remove { index } => {
                let say = move |answer| say(Answer::Did(answer));
                Job::RemoveBlock(owned(*index).block, Box::new(say))
            }
        }
    }

    /// Several requests in one write.
    fn batch(&mut self, asks: &[Ask]) -> Result<(), TestCaseError> {
        let shut = self.state() == Some(Then::Shut);
        let allocator = self.service.with(|allocator| allocator.clone()).unwrap();
        // Releases name numbers by what was known before the batch.
        let before = self.model.clone();
        // Refusals are answered at once, and what changes something when it is durable: so each has
        // a channel of its own.
        let (jobs, answers): (Vec<Job>, Vec<_>) = asks
            .iter()
            .map(|ask| {
                let (sender, answer) = mpsc::channel();
                (self.job(ask, &before, &sender), answer)
            })
            .unzip();
        self.service.send(jobs);
        let answers: Vec<Answer> =
            answers.into_iter().map(|answer| answer.recv().unwrap()).collect();
        let failed = answers.iter().any(Answer::is_store_error);
        if shut {
            prop_assert!(answers.iter().all(Answer::is_store_error), "{answers:?}");
            return Ok(());
        }
        let written = !failed || self.medium().written;
        let answers = if failed { replay(allocator, asks, &before) } else { answers };
        for (ask, answer) in asks.iter().zip(&answers) {
            self.model.accept(&before, ask, answer)?;
        }
        if !written {
            let after = std::mem::replace(&mut self.model, before);
            // What was freed on the way waits for links all the same, unless it is in use again.
            let used = self.model.used();
            self.model.held = after.held;
            self.model.held.retain(|address, _| !used.contains(address));
            self.model.resting = &after.resting - &used;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let shut = self.state() == Some(Then::Shut);
        match step {
            Step::Batch(asks) => self.batch(asks)?,
            Step::Reserve(places) => {
                self.model.reserved = places.iter().copied().map(address).collect();
                let ranges = self.model.reserved.iter().map(|address| Prefix::host(*address));
                self.service.reserve(ranges.collect()).unwrap();
            }
            Step::Delegate(indexes) => {
                let part = |index: &usize| owned(*index).block.prefix().subnet(pair(*index), 0);
                let parts: BTreeSet<Block> =
                    indexes.iter().map(|index| Block::new(part(index).unwrap()).unwrap()).collect();
                let all = |part: &Block| (0..part.size()).filter_map(|n| part.nth(n)).collect();
                self.model.delegated = parts.iter().flat_map::<Vec<_>, _>(all).collect();
                self.service.set_delegated(parts).unwrap();
            }
            // What nobody knows to be stored does not begin to rest.
            Step::Rest(_) if shut => {}
            Step::Rest(rests) => {
                self.service.set_rest(if *rests { HOUR } else { Duration::ZERO }).unwrap();
                if !rests {
                    self.model.resting.clear();
                }
                if self.model.rests.replace(*rests).is_none() && *rests {
                    let used = self.model.used();
                    let freed =
                        self.model.blocks.iter().flat_map(|(block, range)| {
                            (0..range.fresh).filter_map(|n| block.nth(n))
                        });
                    self.model.resting = freed.filter(|address| !used.contains(address)).collect();
                }
            }
            Step::Hour => {
                self.service.with(|allocator| allocator.set_time(u64::MAX / 2)).unwrap();
                self.model.resting.clear();
            }
            Step::BeginRound => {
                self.model.round += 1;
                let round = self.service.begin_round().unwrap();
                self.model.open_round = Some((self.model.round, round));
            }
            Step::EndRound => {
                if let Some((round, real)) = self.model.open_round.take() {
                    self.service.end_round(real).unwrap();
                    self.model.held.retain(|_, of| *of >= round);
                }
            }
            Step::Fault(fault) => self.medium().fault = Some(*fault),
            Step::Repair => self.medium().state = None,
            Step::Crash => self.restart(),
            Step::Reboot => {
                let Model { boot, sequence, .. } = self.model;
                self.model = Model { boot: boot + 1, sequence, ..Model::default() };
                self.restart();
            }
        }
        if self.state() == Some(Then::Dead) {
            self.restart();
        }
        self.check()
    }

    /// Memory and store are what they should be.
    fn check(&mut self) -> Result<(), TestCaseError> {
        if self.service.failure().unwrap().is_some() {
            prop_assert_eq!(self.state(), Some(Then::Shut));
            return Ok(());
        }
        let model = &self.model;
        let pods = |records: Vec<Record>| -> BTreeMap<AttachmentId, Pod> {
            let pod = |record: Record| {
                let Record { attachment, addresses, sequence, netns, netns_cookie, .. } = record;
                (attachment, Pod { addresses, sequence, netns, cookie: netns_cookie })
            };
            records.into_iter().map(pod).collect()
        };
        prop_assert_eq!(&pods(self.service.records().unwrap()), &model.pods);
        prop_assert!(self.service.sequence().unwrap() >= model.sequence);
        let used = model.used();
        let count = model.pods.values().map(|pod| pod.addresses.len()).sum::<usize>();
        prop_assert_eq!(used.len(), count, "an address is given twice");
        let mut summaries = BTreeMap::new();
        for summary in self.service.blocks().unwrap() {
            let all = (0..summary.block.size()).filter_map(|n| summary.block.nth(n));
            let mut counted = BTreeMap::new();
            for address in all {
                let what = match () {
                    () if used.contains(&address) => "used",
                    () if model.delegated.contains(&address) => "delegated",
                    () if model.reserved.contains(&address) => "reserved",
                    () if model.held.contains_key(&address) => "held",
                    () if model.resting.contains(&address) => "resting",
                    () => "free",
                };
                *counted.entry(what).or_insert(0) += 1;
            }
            let BlockSummary { used, free, held, resting, reserved, delegated, .. } = summary;
            prop_assert_eq!(
                used + free + held + resting + reserved + delegated,
                summary.block.size()
            );
            let told = BTreeMap::from([
                ("used", used),
                ("free", free),
                ("held", held),
                ("resting", resting),
                ("reserved", reserved),
                ("delegated", delegated),
            ]);
            let told: BTreeMap<_, _> = told.into_iter().filter(|(_, count)| *count > 0).collect();
            prop_assert_eq!(told, counted);
            let told = (summary.pool, summary.assignable);
            summaries.insert(summary.block, told);
        }
        let wanted: BTreeMap<_, _> = model
            .blocks
            .iter()
            .map(|(block, range)| (*block, (range.pool.clone(), range.assignable)))
            .collect();
        prop_assert_eq!(summaries, wanted);
        let entries = self.medium().kept.load().unwrap();
        let stored = codec::read(&entries, &model.boot.to_string());
        let stored = stored.map_err(|error| TestCaseError::fail(error_chain(&error)))?;
        prop_assert_eq!(stored.blocks.len(), model.blocks.len());
        // One entry for each address, nothing left over.
        prop_assert_eq!(entries.iter().filter(|(key, _)| key[0] == b'r').count(), count);
        prop_assert_eq!(&pods(stored.records), &model.pods);
        prop_assert!(stored.meta.sequence >= model.sequence);
        Ok(())
    }
}

/// The answers that nobody got, because the batch failed.
fn replay(mut allocator: Allocator, asks: &[Ask], before: &Model) -> Vec<Answer> {
    let apply = |allocator: &mut Allocator, changes: &[twill_ipam::Change]| {
        changes.iter().for_each(|change| allocator.apply(change));
    };
    asks.iter()
        .map(|ask| match ask {
            Ask::Assign { .. } => match allocator.plan_assign(&Model::request(ask).unwrap()) {
                Ok(plan) => {
                    apply(&mut allocator, &plan.changes);
                    Answer::Assigned(Ok(plan.assignment))
                }
                Err(refusal) => Answer::Assigned(Err(refusal.into())),
            },
            Ask::Release { .. } => {
                let (changes, outcome) = allocator.plan_release(&before.release(ask).unwrap());
                apply(&mut allocator, &changes);
                Answer::Released(Ok(outcome))
            }
            Ask::Adopt { .. } => {
                let change = allocator.plan_adopt(Model::record(ask).unwrap());
                apply(&mut allocator, change.as_slice());
                Answer::Did(Ok(change.is_some()))
            }
            Ask::Block { index, assignable } => {
                let change = allocator.plan_block(owned(*index), *assignable);
                apply(&mut allocator, change.as_slice());
                Answer::Done(Ok(()))
            }
            Ask::Remove { index } => {
                let changes = allocator.plan_remove_block(owned(*index).block);
                apply(&mut allocator, changes.as_deref().unwrap_or_default());
                Answer::Did(Ok(changes.is_some()))
            }
        })
        .collect()
}

fn place() -> impl Strategy<Value = (usize, u16)> {
    (0..BLOCKS.len(), 0..4u16)
}

fn ask() -> impl Strategy<Value = Ask> {
    let wanted = proptest::option::weighted(0.2, place());
    let number = prop_oneof![Just(Number::Any), Just(Number::This), Just(Number::Older)];
    prop_oneof![
        8 => (0..PODS, any::<bool>(), any::<bool>(), wanted, 0..2u8, any::<bool>()).prop_map(
            |(pod, v4, v6, wanted, namespace, cookie)| {
                Ask::Assign { pod, v4, v6, wanted, namespace, cookie }
            }
        ),
        5 => (0..PODS, number, proptest::option::weighted(0.3, 0..2u8))
            .prop_map(|(pod, number, namespace)| Ask::Release { pod, number, namespace }),
        1 => (0..PODS, place(), proptest::option::of(place()))
            .prop_map(|(pod, at, and)| Ask::Adopt { pod, at, and }),
        2 => (0..BLOCKS.len(), proptest::bool::weighted(0.8))
            .prop_map(|(index, assignable)| Ask::Block { index, assignable }),
        1 => (0..BLOCKS.len()).prop_map(|index| Ask::Remove { index }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let then = prop_oneof![1 => Just(Then::Again), 1 => Just(Then::Shut), 2 => Just(Then::Dead)];
    let fault = (0..3u32, any::<bool>(), then).prop_map(|(after, written, then)| Fault {
        after,
        written,
        then,
    });
    prop_oneof![
        12 => proptest::collection::vec(ask(), 1..5).prop_map(Step::Batch),
        1 => proptest::collection::vec(place(), 0..3).prop_map(Step::Reserve),
        1 => proptest::collection::btree_set(0..BLOCKS.len(), 0..3).prop_map(Step::Delegate),
        1 => any::<bool>().prop_map(Step::Rest),
        1 => Just(Step::Hour),
        2 => Just(Step::BeginRound),
        2 => Just(Step::EndRound),
        2 => fault.prop_map(Step::Fault),
        2 => Just(Step::Repair),
        1 => Just(Step::Crash),
        1 => proptest::bool::weighted(0.3).prop_map(|reboot| match reboot {
            true => Step::Reboot,
            false => Step::Crash,
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Everything acknowledged is there, nothing released came back, what was in flight is whole or
    /// absent; and every address is free, in use, cooling or reserved.
    #[test]
    fn the_service_is_its_model(steps in proptest::collection::vec(step(), 1..60)) {
        let mut bench = Bench::new();
        let blocks = (0..BLOCKS.len()).map(|index| Ask::Block { index, assignable: true });
        bench.step(&Step::Batch(blocks.collect()))?;
        for step in &steps {
            bench.step(step)?;
        }
    }
}

/// What is in use again after a release that failed is not about to become free.
#[test]
fn a_release_that_could_not_be_stored_leaves_nothing_cooling() {
    let store = Faulty::default();
    let service = Bench::open(&store, 0).unwrap();
    service.set_block(owned(2), true).unwrap();
    let request = |n| AssignRequest {
        pools: BTreeMap::from([(Family::V4, vec!["b".to_owned()])]),
        ..request(n)
    };
    service.set_rest(HOUR).unwrap();
    service.assign(request(1)).unwrap();
    let fault = Fault { after: 0, written: false, then: Then::Again };
    store.0.lock().unwrap().fault = Some(fault);
    service.release(release(1)).unwrap_err();
    let refused = service.assign(request(2)).unwrap_err();
    let AssignError::Refused(Refusal::Full(shortage)) = refused else { panic!("{refused}") };
    assert_eq!((shortage.held, shortage.rested_in), (0, None));
    let blocks = service.blocks().unwrap();
    assert_eq!((blocks[0].used, blocks[0].free), (1, 0));
}

/// A store that does not say of which boot it is would be taken for one of another, and emptied.
#[test]
fn entries_without_their_boot_are_damage() {
    let faulty = Faulty::default();
    let service = Service::with_store(Box::new(faulty.clone()), options("a")).unwrap();
    service.set_block(owned(0), true).unwrap();
    drop(service);
    faulty.0.lock().unwrap().kept.commit(&[(vec![b'm'], None)]).unwrap();
    let error = Service::with_store(Box::new(faulty), options("a")).unwrap_err();
    assert!(error.is_damage(), "{error}");
}

/// Such as a claim that was made by hand.
#[test]
fn blocks_that_overlap_give_no_address_twice() {
    let service = Service::with_store(Box::new(MemoryStore::default()), options("a")).unwrap();
    let blocks = ["10.0.0.0/30", "10.0.0.0/31", "10.0.0.0/29", "10.0.0.3/32"];
    for other in blocks {
        service.set_block(block(other), true).unwrap();
    }
    let given: BTreeSet<IpAddr> =
        (0..4).flat_map(|n| service.assign(request(n)).unwrap().addresses).collect();
    assert_eq!(given.len(), 4);
    assert!(service.assign(request(4)).is_err());
    (0..4).for_each(|n| drop(service.release(release(n)).unwrap()));
    // When the one in the way has gone, the next can be had.
    assert!(service.remove_block(block("10.0.0.0/30").block).unwrap());
    service.set_block(block("10.0.0.0/29"), true).unwrap();
    assert_eq!(service.blocks().unwrap().len(), 1);
}
