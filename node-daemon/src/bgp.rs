//! Who this node speaks BGP with, and what it announces: resources in, commands to the speaker
//! out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, block_in_place},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};
use twill_bgp_proto::{
    NotificationCount, Own, PeerKey, PeerKind, PeerSnapshot, RefreshError, RouteSnapshot,
    SpeakerConfig, Time, UpdateErrorCount,
};
use twill_bgp_speaker::{Command, Handle, Pictured, Report, ShellError, Snapshot as Picture};
use twill_ipam_store::now_ms;
use twill_k8s_api::{Condition, ObjectId};
use twill_rpc::message::{
    self, ErrorKind, PeerStatus, RefreshRequest, Refreshed, RouteStatus, RpcError,
};
use twill_types::{Asn, Family, Prefix, error_chain};

use crate::{
    claims::OwnedBlocks,
    datastore::Snapshot,
    desired::{Desired, Known, desired},
    explain::{communities, milliseconds},
    filters::FilterCopy,
    problems,
    routes::KernelRoutes,
};

/// After a restart, old kernel routes are kept at the most this long for peers that have not sent
/// everything (RFC 4724 section 4.1). The slowest peer that was tried is back after 5 s; who takes
/// longer than this is taken for gone.
const SELECTION_DEFERRAL: Duration = Duration::from_secs(30);
/// A copy of the filters that could not be read or written is tried again after this time.
pub(crate) const COPY_AGAIN: Duration = Duration::from_secs(60);
/// Next hops that one route uses at once.
const MAX_PATHS: usize = 16;

/// What cannot change while a speaker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) asn: Asn,
    pub(crate) router_id: Ipv4Addr,
}

/// The running speaker, for those who want a picture of it; `None` until the node is configured.
pub(crate) type Current = watch::Receiver<Option<(Identity, Handle)>>;

/// What the task works on.
pub(crate) struct Bgp {
    pub(crate) node: String,
    /// Over BGPConfiguration's port.
    pub(crate) listen_port: Option<u16>,
    /// Families in which forwarding went on while no daemon ran: whose routes were in the kernel when this
    /// process started, and in which services are announced that are not served by it.
    pub(crate) forwarding: BTreeSet<Family>,
    pub(crate) resources: watch::Receiver<Arc<Snapshot>>,
    /// The filters that sessions went by last.
    pub(crate) filters: FilterCopy,
    /// After this time `filters` are read or written again that could not be.
    pub(crate) patience: Duration,
    /// Blocks that are claimed and confirmed; `None` until the claims have been read.
    pub(crate) owned: watch::Receiver<Option<OwnedBlocks>>,
    /// What is announced of the cluster's services; `None` until it may be acted upon.
    pub(crate) services: watch::Receiver<Option<BTreeSet<Prefix>>>,
    pub(crate) reports: mpsc::UnboundedSender<Report>,
    pub(crate) current: watch::Sender<Option<(Identity, Handle)>>,
    pub(crate) problems: watch::Sender<Vec<String>>,
    /// What is to be said about single objects.
    pub(crate) conditions: Conditions,
}

/// What one task has to say about objects.
pub(crate) type Conditions = watch::Sender<BTreeMap<ObjectId, Vec<Condition>>>;

/// The running speaker's task.
type Shell = JoinHandle<Result<(), ShellError>>;

impl Bgp {
    /// Runs until the speaker fails, or for ever.
    pub(crate) async fn run(mut self) -> Result<(), ShellError> {
        // Nothing is said before it is known what is ours: an early End-of-RIB would make peers
        // drop what they kept for us.
        let owned = self.owned.wait_for(Option::is_some).await.map(drop);
        let services = self.services.wait_for(Option::is_some).await.map(drop);
        if owned.is_err() || services.is_err() {
            return Ok(());
        }
        let mut task = None;
        let mut known = Known::default();
        let mut resources_changed = true;
        // When the copy of filters is tried again.
        let mut again = None;
        loop {
            // Blocks and services say nothing about sessions.
            if resources_changed {
                let is_kept = self.follow_resources(&mut known, &mut task).await;
                again = (!is_kept).then(|| Instant::now() + self.patience);
            }
            self.originate().await;
            let changed = tokio::select! {
                changed = self.resources.changed() => changed.map(|()| true),
                changed = self.owned.changed() => changed.map(|()| false),
                changed = self.services.changed() => changed.map(|()| false),
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => Ok(true),
                ended = async {
                    match task.as_mut() {
                        Some(task) => task.await,
                        None => std::future::pending().await,
                    }
                } => {
                    // The shell ends by itself only with an error, or because it panicked.
                    return ended.unwrap_or(Ok(()));
                }
            };
            match changed {
                Ok(which) => resources_changed = which,
                Err(_) => return Ok(()),
            }
        }
    }

    /// Brings the sessions in line with the resources; `false` if the filters that they go by could not be kept.
    async fn follow_resources(&mut self, known: &mut Known, task: &mut Option<Shell>) -> bool {
        let read = block_in_place(|| self.filters.read_once());
        let read = read.map(|left| known.add_left(left.unwrap_or_default()));
        let resources = Arc::clone(&self.resources.borrow_and_update());
        let wanted = desired(&self.node, &resources, known);
        self.conditions.send_if_modified(|said| {
            let changed = *said != wanted.conditions;
            said.clone_from(&wanted.conditions);
            changed
        });
        let mut found = wanted.problems.clone();
        let mut is_kept = read.is_ok();
        // Without its own Node it changes nothing about its sessions, so what they have is as it was.
        if let Some(identity) = wanted.identity {
            *known = Known::of(&wanted);
            if self.current.borrow().as_ref().is_none_or(|(running, _)| *running != identity) {
                self.replace_speaker(identity, task).await;
            }
            let last = wanted.last.clone();
            self.configure(wanted).await;
            // After that, since a disk may take its time.
            let kept = read.and_then(|()| block_in_place(|| self.filters.write(&last)));
            if let Err(error) = kept {
                is_kept = false;
                found.push(format!(
                    "BGPFilters cannot be kept in stateDir ({}): make it readable and writable; until then a \
                     daemon that starts while one of them is gone passes nothing to the peers that have it",
                    error_chain(&error)
                ));
            }
        }
        problems::tell(&self.problems, found);
        is_kept
    }

    /// Starts a speaker with this identity. One with another identity says goodbye first: its
    /// sessions cannot go on.
    async fn replace_speaker(&mut self, identity: Identity, task: &mut Option<Shell>) {
        let old = self.current.borrow().clone();
        if let Some((was, handle)) = old {
            warn!(?was, ?identity, "AS number or router id changed: all sessions start again");
            let (peers, passwords) = (BTreeMap::new(), BTreeMap::new());
            handle.send(Command::SetPeers { peers, passwords }).await;
            handle.stop().await;
            *task = None;
            // Its routes went with it, so the next one has kept forwarding for none.
            self.forwarding.clear();
        }
        info!(asn = %identity.asn, router_id = %identity.router_id, "speaking BGP");
        let config = SpeakerConfig {
            router_id: identity.router_id,
            asn: identity.asn,
            hostname: self.node.clone(),
            seed: now_ms(),
            forwarding: self.forwarding.clone(),
            selection_deferral: SELECTION_DEFERRAL,
            max_paths: MAX_PATHS,
        };
        let (handle, join) = twill_bgp_speaker::start(config, self.reports.clone());
        *task = Some(join);
        self.current.send_replace(Some((identity, handle)));
        self.originate().await;
    }

    async fn configure(&self, wanted: Desired) {
        let Some((_, handle)) = self.current.borrow().clone() else {
            return;
        };
        let Desired { peers, passwords, reflection, listen_port, .. } = wanted;
        handle.send(Command::SetReflection(reflection)).await;
        // Keys before the socket that they are for.
        handle.send(Command::SetPeers { peers, passwords }).await;
        handle.send(Command::Listen(self.listen_port.unwrap_or(listen_port))).await;
    }

    async fn originate(&mut self) {
        let anycast = self.services.borrow_and_update().clone().unwrap_or_default();
        let own = match &*self.owned.borrow_and_update() {
            Some(owned) => Own {
                prefixes: owned.blocks.iter().map(|(block, a)| (block.prefix(), *a)).collect(),
                lent: owned.lent.iter().map(|part| part.prefix()).collect(),
                anycast,
            },
            None => return,
        };
        let Some((_, handle)) = self.current.borrow().clone() else {
            return;
        };
        handle.send(Command::SetOwn(own)).await;
    }
}

/// Asks a peer for its routes again. Without a port in the request it is the one session with that address.
pub(crate) async fn refresh(
    speaker: Option<Handle>,
    request: RefreshRequest,
) -> Result<Refreshed, RpcError> {
    let RefreshRequest { address, port, family } = request;
    let refused = |why: String| RpcError {
        kind: ErrorKind::Invalid,
        message: format!("{address} cannot be asked for its routes: {why}"),
    };
    let speaker = speaker.ok_or_else(|| refused(RefreshError::NoPeer.to_string()))?;
    let port = match port {
        Some(port) => port,
        None => {
            let peers = speaker.snapshot(Pictured::Sessions).await.peers;
            let with_it = peers.iter().map(|peer| peer.key).filter(|key| key.address == address);
            match with_it.map(|key| key.port).collect::<Vec<_>>()[..] {
                [] => return Err(refused(RefreshError::NoPeer.to_string())),
                [port] => port,
                ref several => {
                    let why = format!("it has sessions on the ports {several:?}; name one");
                    return Err(refused(why));
                }
            }
        }
    };
    let asked = speaker.refresh(PeerKey { address, port }, family).await;
    asked.map(|families| Refreshed { port, families }).map_err(|error| refused(error.to_string()))
}

/// The sessions as messages show them.
pub(crate) fn peer_statuses(picture: &Picture) -> Vec<PeerStatus> {
    picture.peers.iter().map(|peer| peer_status(picture.taken_at, peer)).collect()
}

fn peer_status(now: Time, peer: &PeerSnapshot) -> PeerStatus {
    let ago = milliseconds(now.since(peer.since));
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    PeerStatus {
        address: peer.key.address,
        port: peer.key.port,
        kind: match peer.config.kind {
            PeerKind::Mesh => message::PeerKind::NodeToNodeMesh,
            PeerKind::Node => message::PeerKind::NodeSpecific,
            PeerKind::Global => message::PeerKind::Global,
        },
        name: peer.config.name.clone(),
        asn: peer.config.asn,
        state: peer.state.to_string(),
        since_ms: now_ms().saturating_sub(ago),
        info: peer.info.clone(),
        hold_time: peer.hold_time,
        router_id: peer.router_id.map(|id| id.to_string()),
        capabilities: peer.capabilities.iter().map(|name| (*name).to_owned()).collect(),
        prefixes_in: count(peer.prefixes_in),
        prefixes_refused: count(peer.prefixes_refused),
        prefixes_stale: count(peer.prefixes_stale),
        stale_for_ms: peer.stale_until.map(|until| milliseconds(until.since(now))),
        long_lived_stale: peer.long_lived_stale,
        awaited: peer.awaited,
        prefixes_out: count(peer.prefixes_out),
        messages_in: peer.messages_in,
        messages_out: peer.messages_out,
        flaps: peer.flaps,
        hostname: peer.hostname.clone(),
        notifications: peer.notifications.iter().map(notification_count).collect(),
        update_errors: peer.update_errors.iter().map(update_error_count).collect(),
    }
}

fn notification_count(counted: &NotificationCount) -> message::NotificationCount {
    let NotificationCount { sent, code, subcode, count } = *counted;
    message::NotificationCount { sent, code, subcode, count }
}

fn update_error_count(counted: &UpdateErrorCount) -> message::UpdateErrorCount {
    let UpdateErrorCount { disposition, attribute, count } = *counted;
    message::UpdateErrorCount { disposition: disposition.to_owned(), attribute, count }
}

/// The routes as messages show them; `kernel` knows which learned ones are in use.
pub(crate) fn route_statuses(
    picture: &Picture,
    within: Option<Prefix>,
    kernel: &KernelRoutes,
) -> Vec<RouteStatus> {
    picture
        .routes
        .iter()
        .filter(|route| within.is_none_or(|within| within.covers(route.prefix)))
        .map(|route| route_status(route, kernel))
        .collect()
}

fn route_status(route: &RouteSnapshot, kernel: &KernelRoutes) -> RouteStatus {
    let attributes = route.attributes.as_deref();
    RouteStatus {
        prefix: route.prefix,
        next_hop: attributes.map(|attributes| attributes.next_hop),
        from: route.from.map(|peer| peer.address),
        path_id: route.path_id,
        best: route.best,
        installed: route.from.is_none() || route.best && kernel.has(route.prefix),
        stale: route.stale,
        as_path: attributes.map(|attributes| attributes.as_path.to_string()).unwrap_or_default(),
        origin: attributes.map_or("IGP".to_owned(), |attributes| attributes.origin.to_string()),
        local_pref: attributes.and_then(|attributes| attributes.local_pref),
        med: attributes.and_then(|attributes| attributes.med),
        communities: attributes.map(communities).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
