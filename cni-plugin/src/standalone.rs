//! Standalone mode: without a daemon this process owns the node's store, for as long as one
//! request takes.

mod reclaim;

use std::{
    fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use twill_dataplane::{
    Link, node,
    pod::{host_links, living_pods},
};
use twill_ipam::{LinkFact, Record, ReleaseOutcome, links_of};
use twill_ipam_store::{
    AssignError, LockError, OwnerLock, Refusal, STANDALONE_MARK, Shortage, Standalone as Store,
    StandalonePool, StoreError, names_any, now_ms, private_file, release_tombstones, spool,
};
use twill_rpc::message::{AssignRequest, Assigned, CheckRequest, Held};
use twill_types::{AttachmentId, Family, ForeignUse, ReleaseRequest};

use self::reclaim::{host_link_facts, is_linked};
use crate::{deadline::Deadline, netconf::Netconf};

/// What can go wrong without a daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StandaloneError {
    /// Another process owns the store.
    #[error("another process owns the address store, and there was no time to wait for it")]
    Busy(#[source] LockError),
    /// The owner's lock cannot be used at all.
    #[error("cannot own the address store; runDir has to be writable")]
    Lock(#[source] LockError),
    /// The store failed.
    #[error("the address store in {} failed", path.display())]
    Store {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
    /// The configuration has no pool to take an address from.
    #[error("no {family} pool to take an address from: ipam.pools has {pools:?}, ipam.ip{}Pools asks for {asked:?}", match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    })]
    NoPool {
        /// The family.
        family: Family,
        /// The ranges of `ipam.pools`.
        pools: Vec<String>,
        /// What the configuration wants of them; empty for all.
        asked: Vec<String>,
    },
    /// Every address of the pools is in use.
    #[error("no free {family} address in {}; add a range to ipam.pools", pools.join(", "))]
    Exhausted {
        /// The family.
        family: Family,
        /// Where it was looked for.
        pools: Vec<String>,
    },
    /// The address that was asked for cannot be had.
    #[error("{0}; ask for another one")]
    Refused(Refusal),
    /// CHECK: the store does not hold what the previous result says.
    #[error("{attachment} holds {held:?} in the address store, not {address}; delete the pod")]
    Mismatch {
        /// Who.
        attachment: AttachmentId,
        /// What it holds.
        held: Vec<IpAddr>,
        /// What it should hold.
        address: IpAddr,
    },
    /// A GC, or an ADD without a free address, has taken back what this ADD was given.
    #[error("the addresses of {0} were released while its link was made")]
    Released(AttachmentId),
    /// The node's own part in the kernel failed.
    #[error(transparent)]
    Node(#[from] twill_dataplane::Error),
}

impl StandaloneError {
    /// Whether a daemon owns the store.
    pub(crate) fn is_of_a_daemon(&self) -> bool {
        matches!(self, Self::Busy(lock) if lock.is_of_a_daemon())
    }

    /// Whether nothing is done and the same call may succeed the next moment: others had the store, or the links of
    /// pods came and went while they were looked at.
    pub(crate) fn is_passing(&self) -> bool {
        use twill_dataplane::Error::Interrupted;
        matches!(self, Self::Busy(_) | Self::Node(Interrupted(_)))
    }
}

/// The store, opened for each request and closed again, so that calls at the same time take turns.
#[derive(Debug)]
pub(crate) struct Standalone<'a> {
    netconf: &'a Netconf,
    /// What [`COLLECTED`] said before anything was asked.
    collected: Option<Vec<u8>>,
}

/// Name of the file beside the store that has other contents whenever records were released that
/// no DEL of their own came for. An ADD looks at it in the place of a store that would have to be
/// opened once more.
const COLLECTED: &str = "collected";

/// The store with the right to it. Fields drop in this order: the store closes first.
struct Owned {
    store: Store,
    path: PathBuf,
    _lock: OwnerLock,
}

/// The mark of a store that no daemon has owned since.
fn mark(run_dir: &Path) -> PathBuf {
    run_dir.join("ipam").join(STANDALONE_MARK)
}

fn collected(run_dir: &Path) -> PathBuf {
    run_dir.join("ipam").join(COLLECTED)
}

/// Whether the store was last used in standalone mode.
pub(crate) fn has_mark(run_dir: &Path) -> bool {
    mark(run_dir).exists()
}

impl<'a> Standalone<'a> {
    pub(crate) fn new(netconf: &'a Netconf) -> Self {
        Self { netconf, collected: fs::read(collected(&netconf.run_dir)).ok() }
    }

    fn open(&self, deadline: Deadline) -> Result<Owned, StandaloneError> {
        tracing::trace!("opening the address store");
        let directory = self.netconf.run_dir.join("ipam");
        let until = Instant::now() + deadline.left();
        let lock = OwnerLock::acquire(&directory.join("owner.lock"), "twill, standalone", until)
            .map_err(|error| match error {
                LockError::Held { .. } => StandaloneError::Busy(error),
                LockError::Open { .. } => StandaloneError::Lock(error),
            })?;
        let pools = self.netconf.ipam.pools.iter();
        let pools = pools
            .map(|pool| StandalonePool { cidr: pool.cidr, block_size: pool.block_size })
            .collect();
        let path = directory.join("store");
        match Store::open(&path, pools) {
            Ok(store) => {
                let owned = Owned { store, path, _lock: lock };
                owned.rebuild()?;
                owned.settle(&self.netconf.run_dir)?;
                Ok(owned)
            }
            Err(source) => Err(StandaloneError::Store { path, source }),
        }
    }

    /// Addresses for an attachment. The store is waited for until `wait`, which may be sooner than the
    /// deadline of all.
    pub(crate) fn assign(
        &self,
        request: &AssignRequest,
        wait: Deadline,
        deadline: Deadline,
    ) -> Result<Assigned, StandaloneError> {
        let pools = request
            .families
            .iter()
            .map(|family| {
                let asked = match family {
                    Family::V4 => &request.ipv4_pools,
                    Family::V6 => &request.ipv6_pools,
                };
                Ok((*family, self.pools(*family, asked)?))
            })
            .collect::<Result<_, StandaloneError>>()?;
        let wanted = request.wanted.iter().map(|address| (Family::of(*address), *address));
        let request = twill_ipam::AssignRequest {
            attachment: request.attachment.clone(),
            pools,
            wanted: wanted.collect(),
            netns: request.netns.clone(),
            netns_cookie: request.netns_cookie,
            pod: request.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            pod_uid: request.pod.as_ref().and_then(|pod| pod.uid.clone()),
            // Nobody is there to announce anything.
            foreign: request
                .foreign
                .clone()
                .map(|foreign| ForeignUse { advertise: false, ..foreign }),
            // No reservation is known here.
            allow_reserved: false,
            now_ms: now_ms(),
        };
        let mtu = match self.netconf.mtu {
            0 => node::uplink_mtu(None)?,
            mtu => mtu,
        };
        let owned = self.open(wait)?;
        let mut assignment = owned.store.assign(&request);
        // Somebody may have it who is gone without a DEL.
        if let Err(AssignError::Refused(Refusal::Full(_) | Refusal::Taken { .. })) = assignment
            && owned.reclaims(&self.netconf.run_dir, deadline)
        {
            assignment = owned.store.assign(&request);
        }
        let assignment = assignment.map_err(|error| match error {
            AssignError::Refused(Refusal::Full(Shortage { family, pools, .. })) => {
                StandaloneError::Exhausted { family, pools }
            }
            AssignError::Refused(refusal) => StandaloneError::Refused(refusal),
            AssignError::Store(source) => owned.failed(source),
            AssignError::Stopped => owned.failed(StoreError::Stopped),
        })?;
        let twill_ipam_store::Assignment { addresses, blocks, sequence, .. } = assignment;
        Ok(Assigned { addresses, blocks, sequence, mtu })
    }

    /// The names of the pools to take an address of this family from, in the order of the
    /// configuration.
    fn pools(&self, family: Family, asked: &[String]) -> Result<Vec<String>, StandaloneError> {
        let ipam = &self.netconf.ipam;
        let all: Vec<String> = ipam.pools.iter().map(|pool| pool.cidr.to_string()).collect();
        let names: Vec<String> = ipam
            .pools
            .iter()
            .filter(|pool| pool.cidr.family() == family)
            .map(|pool| pool.cidr.to_string())
            .filter(|name| asked.is_empty() || asked.contains(name))
            .collect();
        if names.is_empty() {
            return Err(StandaloneError::NoPool { family, pools: all, asked: asked.to_vec() });
        }
        Ok(names)
    }

    /// Gives addresses back, in one go; false if there were none of this number.
    pub(crate) fn release(
        &self,
        requests: &[ReleaseRequest],
        deadline: Deadline,
    ) -> Result<Vec<Result<bool, StandaloneError>>, StandaloneError> {
        let owned = self.open(deadline)?;
        let outcomes = owned.store.service().release_all(requests.iter().cloned());
        let released = |outcome: Result<ReleaseOutcome, _>| match outcome {
            Ok(outcome) => Ok(!outcome.addresses.is_empty()),
            Err(source) => Err(owned.failed(source)),
        };
        Ok(outcomes.into_iter().map(released).collect())
    }

    /// The same for those that no DEL came for. What has a link by now is of an ADD that came
    /// meanwhile, and false as well.
    pub(crate) fn collect(
        &self,
        requests: &[ReleaseRequest],
        deadline: Deadline,
    ) -> Result<Vec<Result<bool, StandaloneError>>, StandaloneError> {
        let owned = self.open(deadline)?;
        // In this order: whoever has not seen the mark change has made its link before.
        owned.mark_collected(&self.netconf.run_dir)?;
        let links = host_link_facts()?;
        let linked: Vec<bool> =
            requests.iter().map(|request| is_linked(&links, &request.attachment)).collect();
        let unlinked = requests.iter().zip(&linked).filter(|(_, linked)| !**linked);
        let unlinked = unlinked.map(|(request, _)| request.clone());
        let mut outcomes = owned.store.service().release_all(unlinked).into_iter();
        let released = |linked| match linked {
            true => Ok(false),
            false => match outcomes.next() {
                Some(Ok(outcome)) => Ok(!outcome.addresses.is_empty()),
                Some(Err(source)) => Err(owned.failed(source)),
                None => Err(owned.failed(StoreError::Stopped)),
            },
        };
        Ok(linked.into_iter().map(released).collect())
    }

    /// Whether an ADD has its addresses still, now that its link is made. From here on nobody takes
    /// them back but a DEL.
    pub(crate) fn stands(
        &self,
        attachment: &AttachmentId,
        sequence: u64,
        deadline: Deadline,
    ) -> Result<(), StandaloneError> {
        if fs::read(collected(&self.netconf.run_dir)).ok() == self.collected {
            return Ok(());
        }
        let owned = self.open(deadline)?;
        let record = owned.store.service().lookup(attachment);
        match record.map_err(|source| owned.failed(source))? {
            Some(record) if record.sequence == sequence => Ok(()),
            _ => Err(StandaloneError::Released(attachment.clone())),
        }
    }

    /// STATUS: whether the store can be used, and has an address of each family or can get one. `network` is
    /// that of another main plugin.
    pub(crate) fn is_exhausted(
        &self,
        network: Option<&str>,
        deadline: Deadline,
    ) -> Result<bool, StandaloneError> {
        let owned = self.open(deadline)?;
        for family in &self.netconf.ipam.families {
            let pools = self.pools(*family, &[])?;
            let has_free = || {
                let free = owned.store.has_free(&pools, network);
                free.map_err(|source| owned.failed(source))
            };
            // As an ADD would do it, where none comes to a node that is not ready.
            let counts = self.netconf.status.on_exhaustion;
            let can_have = has_free()?
                || counts && owned.reclaims(&self.netconf.run_dir, deadline) && has_free()?;
            if !can_have {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Who holds addresses on a network.
    pub(crate) fn attachments(
        &self,
        network: &str,
        deadline: Deadline,
    ) -> Result<Vec<Held>, StandaloneError> {
        let owned = self.open(deadline)?;
        let records = owned.store.service().on_network(network);
        let records = records.map_err(|source| owned.failed(source))?;
        let held = |record: Record| Held {
            attachment: record.attachment,
            sequence: record.sequence,
            netns: record.netns,
            netns_cookie: record.netns_cookie,
            created_ms: record.created_ms,
        };
        Ok(records.into_iter().map(held).collect())
    }

    /// Whether the store holds the addresses for the attachment.
    pub(crate) fn check(
        &self,
        request: &CheckRequest,
        deadline: Deadline,
    ) -> Result<(), StandaloneError> {
        let owned = self.open(deadline)?;
        let record = owned.store.service().lookup(&request.attachment);
        let record = record.map_err(|source| owned.failed(source))?;
        let held = record.map(|record| record.addresses).unwrap_or_default();
        match request.addresses.iter().find(|address| !held.contains(address)) {
            None => Ok(()),
            Some(address) => Err(StandaloneError::Mismatch {
                attachment: request.attachment.clone(),
                held,
                address: *address,
            }),
        }
    }
}

impl Owned {
    /// Reads the records of pods that run from their links, where the store does not know of them.
    fn rebuild(&self) -> Result<(), StandaloneError> {
        let service = self.store.service();
        let links = host_links()?.iter().filter_map(Link::twill_alias).collect();
        if !service.misses(links).map_err(|source| self.failed(source))? {
            return Ok(());
        }
        let rebuilt = service.rebuild(living_pods()?).map_err(|source| self.failed(source))?;
        if rebuilt > 0 {
            tracing::warn!(rebuilt, "the store did not know of pods that run; it does now");
        }
        Ok(())
    }

    /// Takes back what DELs could not give back, and leaves the mark by which a DEL knows its store
    /// when the configuration has lost its pools.
    fn settle(&self, run_dir: &Path) -> Result<(), StandaloneError> {
        let mark = mark(run_dir);
        if !mark.exists() {
            private_file(&mark).map_err(|source| {
                self.failed(StoreError::Directory { path: mark.clone(), source })
            })?;
        }
        let spool = spool(run_dir);
        match names_any(&spool, "") {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "cannot read the spool");
                }
                return Ok(());
            }
        }
        // As in `collect`. A DEL takes the link away before it leaves a tombstone, so one that is there is of
        // an ADD that nobody waited for.
        self.mark_collected(run_dir)?;
        let links = host_link_facts()?;
        let is_left = |request: &ReleaseRequest| {
            let as_old = |link: &LinkFact| {
                let numbers = link.alias.as_ref().zip(request.sequence);
                numbers.is_none_or(|(alias, sequence)| alias.sequence <= sequence)
            };
            links_of(&links, &request.attachment).any(as_old)
        };
        match release_tombstones(&spool, self.store.service(), "", is_left) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "released what the spool named"),
            Err(error) => tracing::warn!(%error, "cannot read the spool"),
        }
        Ok(())
    }

    /// Tells the ADDs that are at it to look whether they have their addresses still.
    fn mark_collected(&self, run_dir: &Path) -> Result<(), StandaloneError> {
        let path = collected(run_dir);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // No two of this boot have the same, whatever becomes of the clock: of one process none are
        // at the same time, and the number of another is in it.
        let text = format!("{} {}\n", std::process::id(), time.as_nanos());
        let written = private_file(&path).and_then(|mut file| {
            file.set_len(0)?;
            file.write_all(text.as_bytes())
        });
        written.map_err(|source| self.failed(StoreError::Directory { path, source }))
    }

    fn failed(&self, source: StoreError) -> StandaloneError {
        StandaloneError::Store { path: self.path.clone(), source }
    }
}
