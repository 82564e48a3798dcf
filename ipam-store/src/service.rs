use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use tracing::error;
use twill_ipam::{
    AddressLook, Allocator, AssignRequest, Assignment, BlockSummary, OwnedBlock, Record, Refusal,
    ReleaseOutcome, ReleaseRequest,
};
use twill_types::{AttachmentId, Block, Prefix, error_chain};

use crate::{
    SledStore, Store, StoreError,
    codec::{self, Contents},
    committer::{BATCH, Committer, Job, Reply},
};

/// How a service is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// [`crate::boot_id`]: records of another boot are dropped.
    pub boot_id: String,
    /// Whether an address that was freed waits for [`Service::end_round`] before it is given out
    /// again. Right where links are deleted later, by the daemon.
    pub hold_freed: bool,
}

/// What was found when a store was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Where a damaged store was moved to.
    pub set_aside: Option<PathBuf>,
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// The blocks do not have it: claim another one and ask again, or see who has it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store failed.
    #[error("the address store failed")]
    Store(#[from] StoreError),
    /// The service has ended.
    #[error("the address service has stopped")]
    Stopped,
}

/// The address service. All methods may be called from any thread.
///
/// It has no thread of its own. A caller that finds the store idle works on it, for itself and for
/// all who call meanwhile, so a lone request needs no change of threads. A callback must not call
/// the methods that call back.
pub struct Service {
    queue: Arc<WorkQueue>,
    waits_for_disk: bool,
}

/// Where jobs are left, and who works on them.
struct WorkQueue {
    waiting: Mutex<Waiting>,
    committer: Mutex<Committer>,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// The committer has panicked: nobody is answered any more.
    dead: bool,
}

/// How many batches a caller writes for others before a thread takes over.
const TURNS: usize = 8;

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    /// Opens the store in a directory. A store that is damaged is moved to
    /// `<directory>.corrupt-<n>`, and an empty one takes its place.
    ///
    /// # Errors
    /// The directory cannot be used, or another process has the store open.
    pub fn open(directory: &Path, options: Options) -> Result<(Self, OpenReport), StoreError> {
        let attempt = || -> Result<_, StoreError> {
            let existed = directory.join("db").exists();
            let mut store = SledStore::open(directory)?;
            let entries = store.load()?;
            // The library takes a file that it cannot read at all for an empty one.
            if existed && entries.is_empty() {
                return Err(StoreError::Lost);
            }
            let contents = codec::read(&entries, &options.boot_id)?;
            Ok((store, contents))
        };
        let mut report = OpenReport::default();
        let (store, contents) = match attempt() {
            Ok(opened) => opened,
            Err(damage) if damage.is_damage() => {
                let aside = set_aside(directory)?;
                error!(
                    error = error_chain(&damage),
                    moved_to = %aside.display(),
                    "the store is damaged"
                );
                report.set_aside = Some(aside);
                attempt()?
            }
            Err(error) => return Err(error),
        };
        Ok((Self::start(Box::new(store), contents, options)?, report))
    }

    /// Starts a service on any store.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn with_store(mut store: Box<dyn Store>, options: Options) -> Result<Self, StoreError> {
        let contents = codec::read(&store.load()?, &options.boot_id)?;
        Self::start(store, contents, options)
    }

    fn start(
        store: Box<dyn Store>,
        contents: Contents,
        options: Options,
    ) -> Result<Self, StoreError> {
        let waits_for_disk = store.waits_for_disk();
        let committer = Mutex::new(Committer::new(store, contents, options)?);
        let queue = Arc::new(WorkQueue { waiting: Mutex::default(), committer });
        Ok(Self { queue, waits_for_disk })
    }

    /// Whether an answer may take as long as a disk does. An event loop should wait elsewhere then.
    pub const fn waits_for_disk(&self) -> bool {
        self.waits_for_disk
    }

    /// Leaves jobs to whoever is at work on the store, or does them, with all that waits. What is
    /// dropped unanswered tells its caller that the service has stopped.
    fn send(&self, jobs: impl IntoIterator<Item = Job>) {
        if !self.queue.leave(jobs) {
            return;
        }
        if !self.queue.work(TURNS) {
            return;
        }
        // Others come faster than one can write, and the caller has an answer of its own to give.
        let queue = Arc::clone(&self.queue);
        let relieved = thread::Builder::new().name("store".to_owned()).spawn(move || {
            queue.work(usize::MAX);
        });
        if relieved.is_err() {
            self.queue.work(usize::MAX);
        }
    }

    /// Assigns addresses, and calls back, from any thread, once that is durable. `again` is called
    /// before anything is planned if the attachment has addresses already; what it gives up can be
    /// given out only after a round that begins later.
    pub fn submit_assign(
        &self,
        request: AssignRequest,
        again: impl FnOnce() + Send + 'static,
        reply: impl FnOnce(Result<Assignment, AssignError>) + Send + 'static,
    ) {
        self.send([Job::Assign(request, Box::new(again), Box::new(reply))]);
    }

    /// Releases addresses, and calls back, from any thread, once that is durable.
    pub fn submit_release(
        &self,
        request: ReleaseRequest,
        reply: impl FnOnce(Result<ReleaseOutcome, StoreError>) + Send + 'static,
    ) {
        self.send([Job::Release(request, Box::new(reply))]);
    }

    fn wait<T: Send + 'static>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, StoreError> {
        let (reply, answer) = answer();
        self.send([job(reply)]);
        answer.recv().map_err(|_| StoreError::Stopped)
    }

    /// Assigns addresses; returns once that is durable.
    ///
    /// # Errors
    /// No free address, or the store failed.
    pub fn assign(&self, request: AssignRequest) -> Result<Assignment, AssignError> {
        self.wait(|reply| Job::Assign(request, Box::new(|| ()), reply))?
    }

    /// Releases addresses; returns once that is durable. Nothing held is success.
    ///
    /// # Errors
    /// The store failed.
    pub fn release(&self, request: ReleaseRequest) -> Result<ReleaseOutcome, StoreError> {
        self.wait(|reply| Job::Release(request, reply))?
    }

    /// Releases the addresses of many attachments, in as few writes as can be; answers what came of
    /// each, in their order, once that is durable.
    pub fn release_all(
        &self,
        requests: impl IntoIterator<Item = ReleaseRequest>,
    ) -> Vec<Result<ReleaseOutcome, StoreError>> {
        let (jobs, answers): (Vec<_>, Vec<_>) = requests
            .into_iter()
            .map(|request| {
                let (reply, answer) = answer();
                (Job::Release(request, reply), answer)
            })
            .unzip();
        self.send(jobs);
        answers
            .into_iter()
            .map(|answer| answer.recv().map_err(|_| StoreError::Stopped).flatten())
            .collect()
    }

    /// Adds a block that was claimed, or changes whether it gives addresses. Nothing is written if
    /// it is so already.
    ///
    /// # Errors
    /// The store failed.
    pub fn set_block(&self, block: OwnedBlock, assignable: bool) -> Result<(), StoreError> {
        self.wait(|reply| Job::Block(block, assignable, reply))?
    }

    /// Stores an assignment that was lost; false, and no change, if one of its addresses is
    /// another's by now, or its attachment has others.
    ///
    /// # Errors
    /// The store failed.
    pub fn adopt(&self, record: Record) -> Result<bool, StoreError> {
        self.wait(|reply| Job::Adopt(record, reply))?
    }

    /// Why nothing can be stored at present; `None` as long as it can. To ask makes it try again.
    ///
    /// # Errors
    /// The service has ended.
    pub fn failure(&self) -> Result<Option<Arc<StoreError>>, StoreError> {
        self.wait(Job::Failure)
    }

    /// Removes a block; false, and no change, if an address of it is in use.
    ///
    /// # Errors
    /// The store failed.
    pub fn remove_block(&self, block: Block) -> Result<bool, StoreError> {
        self.wait(|reply| Job::RemoveBlock(block, reply))?
    }

    pub(crate) fn with<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Allocator) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.wait(|reply| Job::With(Box::new(move |allocator| reply(look(allocator)))))
    }

    /// How long an address rests after use.
    ///
    /// # Errors
    /// The service has ended.
    pub fn set_rest(&self, rest: Duration) -> Result<(), StoreError> {
        let rest_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        self.with(move |allocator| allocator.set_rest(rest_ms))
    }

    /// From now on nobody gets an address of these ranges. They are not stored.
    ///
    /// # Errors
    /// The service has ended.
    pub fn reserve(&self, ranges: Vec<Prefix>) -> Result<(), StoreError> {
        self.with(move |allocator| allocator.reserve(ranges))
    }

    /// These parts of blocks are other nodes', all of them. They are not stored.
    ///
    /// # Errors
    /// The service has ended.
    pub fn set_delegated(&self, parts: BTreeSet<Block>) -> Result<(), StoreError> {
        self.with(move |allocator| allocator.set_delegated(parts))
    }

    /// Takes a part out of a block for another node; see [`Allocator::delegate`].
    ///
    /// # Errors
    /// The service has ended.
    pub fn delegate(
        &self,
        block: Block,
        length: u8,
        address: Option<IpAddr>,
    ) -> Result<Option<Block>, StoreError> {
        self.with(move |allocator| allocator.delegate(block, length, address))
    }

    /// What an attachment holds.
    ///
    /// # Errors
    /// The service has ended.
    pub fn lookup(&self, attachment: &AttachmentId) -> Result<Option<Record>, StoreError> {
        let attachment = attachment.clone();
        self.with(move |allocator| allocator.lookup(&attachment).cloned())
    }

    /// All blocks and their fill.
    ///
    /// # Errors
    /// The service has ended.
    pub fn blocks(&self) -> Result<Vec<BlockSummary>, StoreError> {
        self.with(|allocator| allocator.blocks().collect())
    }

    /// All records.
    ///
    /// # Errors
    /// The service has ended.
    pub fn records(&self) -> Result<Vec<Record>, StoreError> {
        self.with(|allocator| allocator.records().cloned().collect())
    }

    /// All records and all blocks, of one moment.
    ///
    /// # Errors
    /// The service has ended.
    pub fn census(&self) -> Result<(Vec<Record>, Vec<BlockSummary>), StoreError> {
        self.with(|allocator| {
            (allocator.records().cloned().collect(), allocator.blocks().collect())
        })
    }

    /// What there is to say about an address.
    ///
    /// # Errors
    /// The service has ended.
    pub fn look(&self, address: IpAddr) -> Result<AddressLook, StoreError> {
        self.with(move |allocator| allocator.look(address))
    }

    /// The records of those who hold addresses on a network.
    ///
    /// # Errors
    /// The service has ended.
    pub fn on_network(&self, network: &str) -> Result<Vec<Record>, StoreError> {
        let network = network.to_owned();
        self.with(move |allocator| {
            let on_it = allocator.records().filter(|r| r.attachment.network == network);
            on_it.cloned().collect()
        })
    }

    /// Number of the last assignment.
    ///
    /// # Errors
    /// The service has ended.
    pub fn sequence(&self) -> Result<u64, StoreError> {
        self.with(|allocator| allocator.sequence())
    }

    /// Begins a round of deleting links; see [`Service::end_round`].
    ///
    /// # Errors
    /// The service has ended.
    pub fn begin_round(&self) -> Result<u64, StoreError> {
        self.with(Allocator::begin_round)
    }

    /// The links of what was freed before this round began are gone: its addresses can be given
    /// out again.
    ///
    /// # Errors
    /// The service has ended.
    pub fn end_round(&self, round: u64) -> Result<(), StoreError> {
        self.with(move |allocator| allocator.end_round(round))
    }
}

impl WorkQueue {
    /// Leaves jobs; false if nobody will ever do them.
    fn leave(&self, jobs: impl IntoIterator<Item = Job>) -> bool {
        let mut waiting = self.waiting();
        if !waiting.dead {
            waiting.jobs.extend(jobs);
        }
        !waiting.dead
    }

    /// Does what waits, unless somebody is at it, in so many batches at the most; whether something
    /// is left for which nobody is at work.
    fn work(&self, turns: usize) -> bool {
        let mut turns = 0..turns;
        // Who is at work looks once more after it has put the store down, so that nothing is left
        // that came in between.
        while let Ok(mut committer) = self.committer.try_lock() {
            let unless_it_panics = Burial(self);
            let emptied = loop {
                let jobs: Vec<Job> = {
                    let mut waiting = self.waiting();
                    let count = waiting.jobs.len().min(BATCH);
                    waiting.jobs.drain(..count).collect()
                };
                if jobs.is_empty() {
                    break true;
                }
                if turns.next().is_none() {
                    let mut waiting = self.waiting();
                    jobs.into_iter().rev().for_each(|job| waiting.jobs.push_front(job));
                    break false;
                }
                committer.work(jobs);
            };
            std::mem::forget(unless_it_panics);
            drop(committer);
            if !emptied {
                return true;
            }
            if self.waiting().jobs.is_empty() {
                return false;
            }
        }
        false
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing can panic while it is locked.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers nobody any more where the committer panics: what it knows may be half a change.
struct Burial<'a>(&'a WorkQueue);

impl Drop for Burial<'_> {
    fn drop(&mut self) {
        let jobs = {
            let mut waiting = self.0.waiting();
            waiting.dead = true;
            std::mem::take(&mut waiting.jobs)
        };
        drop(jobs);
    }
}

/// Two ends for one answer.
fn answer<T: Send + 'static>() -> (Reply<T>, mpsc::Receiver<T>) {
    let (sender, receiver) = mpsc::channel();
    let reply = move |value| {
        // Who asked may have gone.
        let _ = sender.send(value);
    };
    (Box::new(reply), receiver)
}

/// `<directory>.corrupt-<n>` with the first free number.
fn set_aside(directory: &Path) -> Result<PathBuf, StoreError> {
    for number in 1u32.. {
        let mut name = directory.as_os_str().to_owned();
        name.push(format!(".corrupt-{number}"));
        let aside = PathBuf::from(name);
        if !aside.exists() {
            return std::fs::rename(directory, &aside)
                .map(|()| aside)
                .map_err(|source| StoreError::Directory { path: directory.to_owned(), source });
        }
    }
    Err(StoreError::Stopped)
}

#[cfg(test)]
mod tests;
