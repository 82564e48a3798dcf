//! Plans, writes and answers: what waits together is written together.

use std::{sync::Arc, time::Instant};

use tracing::{error, info, warn};
use twill_ipam::{
    Allocator, AssignRequest, Assignment, Change, OwnedBlock, Record, ReleaseOutcome,
    ReleaseRequest,
};
use twill_types::{Block, error_chain};

use crate::{
    AssignError, Options, Store, StoreError, Write,
    codec::{self, Contents, Meta},
};

/// Requests written in one batch at the most.
pub(crate) const BATCH: usize = 64;

/// How an answer gets back to who asked.
pub(crate) type Reply<T> = Box<dyn FnOnce(T) + Send>;

/// What the committer is asked to do.
pub(crate) enum Job {
    /// The second is called first if the attachment has addresses already.
    Assign(AssignRequest, Box<dyn FnOnce() + Send>, Reply<Result<Assignment, AssignError>>),
    Release(ReleaseRequest, Reply<Result<ReleaseOutcome, StoreError>>),
    Block(OwnedBlock, bool, Reply<Result<(), StoreError>>),
    Adopt(Record, Reply<Result<bool, StoreError>>),
    RemoveBlock(Block, Reply<Result<bool, StoreError>>),
    /// Why nothing can be stored.
    Failure(Reply<Option<Arc<StoreError>>>),
    /// Looks at, or changes, what is not stored.
    With(Box<dyn FnOnce(&mut Allocator) + Send>),
}

/// An answer that waits for the batch to be durable.
type Pending = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The owner of the store.
pub(crate) struct Committer {
    store: Box<dyn Store>,
    options: Options,
    allocator: Allocator,
    /// Why what is in memory is not what is stored: a batch failed, and the store could not be read
    /// again. Nothing is planned on it then.
    behind: Option<Arc<StoreError>>,
    /// When the allocator's time begins.
    started: Instant,
}

impl Committer {
    /// Takes over what was read from the store.
    pub(crate) fn new(
        store: Box<dyn Store>,
        contents: Contents,
        options: Options,
    ) -> Result<Self, StoreError> {
        let mut committer = Self {
            store,
            options,
            allocator: Allocator::default(),
            behind: None,
            started: Instant::now(),
        };
        if contents.meta.boot_id != committer.options.boot_id {
            committer.begin_boot(contents.meta.sequence)?;
        }
        committer.allocator =
            Allocator::restore(contents.blocks, contents.records, contents.meta.sequence);
        Ok(committer)
    }

    /// Empties a store of another boot, keeping the numbers going up.
    fn begin_boot(&mut self, sequence: u64) -> Result<(), StoreError> {
        let mut batch: Vec<Write> =
            self.store.load()?.into_iter().map(|(key, _)| (key, None)).collect();
        let boot_id = self.options.boot_id.clone();
        batch.push(codec::write_meta(&Meta { boot_id, sequence })?);
        self.store.commit(&batch)
    }

    /// Does what waits, at most [`BATCH`] jobs of it, in one write.
    pub(crate) fn work(&mut self, jobs: Vec<Job>) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.allocator.set_time(now);
        self.catch_up();
        if let Some(cause) = self.behind.clone() {
            jobs.into_iter().for_each(|job| refuse(job, &cause, &mut self.allocator));
            return;
        }
        let mut changes = Vec::new();
        let mut pending = Vec::new();
        for job in jobs {
            self.job(job, &mut changes, &mut pending);
        }
        let boot_id = &self.options.boot_id;
        let outcome = match changes.is_empty() {
            true => Ok(()),
            false => codec::writes(&changes, &self.allocator, boot_id)
                .and_then(|batch| self.store.commit(&batch)),
        };
        match outcome {
            Ok(()) => pending.into_iter().for_each(|answer| answer(Ok(()))),
            Err(error) => self.fail(error, pending),
        }
    }

    /// Plans one job on top of those before it in the batch.
    fn job(&mut self, job: Job, batch: &mut Vec<Change>, pending: &mut Vec<Pending>) {
        match job {
            Job::Assign(request, again, reply) => {
                if self.allocator.lookup(&request.attachment).is_some() {
                    again();
                }
                match self.allocator.plan_assign(&request) {
                    Ok(plan) => {
                        self.apply(plan.changes, batch);
                        let mut assignment = plan.assignment;
                        assignment.nearly_full = self.allocator.nearly_full(&assignment.blocks);
                        pending.push(Box::new(move |durable| {
                            reply(durable.map(|()| assignment).map_err(Into::into));
                        }));
                    }
                    Err(refusal) => reply(Err(refusal.into())),
                }
            }
            Job::Release(request, reply) => {
                let (changes, outcome) = self.allocator.plan_release(&request);
                self.apply(changes, batch);
                pending.push(Box::new(move |durable| {
                    reply(durable.map(|()| outcome));
                }));
            }
            Job::Block(block, assignable, reply) => {
                let change = self.allocator.plan_block(block, assignable);
                self.apply(change, batch);
                pending.push(reply);
            }
            Job::Adopt(record, reply) => {
                let change = self.allocator.plan_adopt(record);
                let adopted = change.is_some();
                self.apply(change, batch);
                pending.push(Box::new(move |durable| {
                    reply(durable.map(|()| adopted));
                }));
            }
            Job::RemoveBlock(block, reply) => {
                let changes = self.allocator.plan_remove_block(block);
                let removed = changes.is_some();
                self.apply(changes.unwrap_or_default(), batch);
                pending.push(Box::new(move |durable| {
                    reply(durable.map(|()| removed));
                }));
            }
            Job::Failure(reply) => reply(None),
            Job::With(look) => look(&mut self.allocator),
        }
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>, batch: &mut Vec<Change>) {
        for change in changes {
            self.allocator.apply(&change);
            batch.push(change);
        }
        if !self.options.hold_freed {
            let round = self.allocator.begin_round();
            self.allocator.end_round(round);
        }
    }

    /// A batch that failed: nobody is told that it worked, and memory goes back to what is stored.
    fn fail(&mut self, error: StoreError, pending: Vec<Pending>) {
        error!(error = error_chain(&error), waiting = pending.len(), "a batch could not be stored");
        let error = Arc::new(error);
        for answer in pending {
            answer(Err(StoreError::Batch(Arc::clone(&error))));
        }
        self.behind = Some(error);
        self.catch_up();
    }

    /// Brings memory back to what is stored, if it is not.
    fn catch_up(&mut self) {
        let Some(cause) = self.behind.clone() else {
            return;
        };
        match self.read_again() {
            Ok(stored) => {
                self.allocator.reload(stored.blocks, stored.records);
                self.behind = None;
                info!("the store can be used again");
            }
            Err(error) => {
                // Each request tries; one line is enough for a cause.
                if error_chain(&error) != error_chain(&cause) {
                    warn!(error = error_chain(&error), "the store cannot be read again");
                }
                self.behind = Some(Arc::new(error));
            }
        }
    }

    fn read_again(&mut self) -> Result<Contents, StoreError> {
        self.store.reopen()?;
        let entries = self.store.load()?;
        // Which boot it is of is always in it.
        if entries.is_empty() {
            return Err(StoreError::Lost);
        }
        codec::read(&entries, &self.options.boot_id)
    }
}

/// Answers a job that has to be stored, while nothing can be.
fn refuse(job: Job, cause: &Arc<StoreError>, allocator: &mut Allocator) {
    let error = StoreError::Batch(Arc::clone(cause));
    match job {
        Job::Assign(_, _, reply) => reply(Err(error.into())),
        Job::Release(_, reply) => reply(Err(error)),
        Job::Block(_, _, reply) => reply(Err(error)),
        Job::Adopt(_, reply) => reply(Err(error)),
        Job::RemoveBlock(_, reply) => reply(Err(error)),
        Job::Failure(reply) => reply(Some(Arc::clone(cause))),
        Job::With(look) => look(allocator),
    }
}
