//! Who gives the addresses in this call: the daemon, or this process itself.

use std::{collections::BTreeMap, fmt::Display, slice, time::Duration};

use twill_dataplane::{
    node::{self, SysctlChange},
    pod::{DelMode, del_pod, host_link},
};
use twill_rpc::{
    ClientError,
    message::{
        AssignRequest, Assigned, AttachmentsRequest, CheckRequest, EndpointUp, ErrorKind, Held,
        PodAnnotationsRequest, PodRef, Release, ReleaseRequest, Request, RpcError,
    },
};
use twill_types::{AttachmentId, Family, error_chain};

use crate::{
    daemon::{Daemon, socket},
    deadline::Deadline,
    error::Error,
    netconf::{Mode, Netconf},
    spool::{Spool, SpoolError},
    standalone::{Standalone, StandaloneError, has_mark},
};

/// How long automatic mode waits for the owner's lock before it looks for the daemon's socket
/// again: a daemon that is starting holds the lock and has no socket yet.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Who gives the addresses.
#[derive(Debug)]
pub(crate) struct Authority<'a> {
    netconf: &'a Netconf,
    deadline: Deadline,
    daemon: Daemon,
    /// Takes the daemon's place.
    standalone: Option<Standalone<'a>>,
}

/// What became of addresses that were to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenBack {
    /// Nobody holds any for what was named.
    Nothing,
    /// They are free.
    Released,
    /// A tombstone names them, for whoever can use the store next.
    Buried,
    /// The daemon does not take them back, however often it is asked.
    Refused,
    /// Nobody was told. They are found when it is seen that the pod is gone.
    Lost,
}

impl<'a> Authority<'a> {
    /// Who gives addresses, by the configuration's mode. Nothing is opened yet.
    ///
    /// Without pools there is nothing to give here. A node that shall have a daemon waits for it.
    pub(crate) fn giving(netconf: &'a Netconf, deadline: Deadline) -> Self {
        Self::choose(netconf, deadline, false)
    }

    /// Who holds the addresses that were given. The mark tells whose they are when the pools were
    /// taken out of the configuration since.
    pub(crate) fn holding(netconf: &'a Netconf, deadline: Deadline) -> Self {
        Self::choose(netconf, deadline, has_mark(&netconf.run_dir))
    }

    fn choose(netconf: &'a Netconf, deadline: Deadline, is_marked: bool) -> Self {
        let standalone = match netconf.ipam.mode {
            Mode::Daemon => false,
            Mode::Standalone => true,
            // A socket that refuses still means that there is a daemon, which owns the store.
            Mode::Auto => {
                !socket(&netconf.run_dir).exists() && (!netconf.ipam.pools.is_empty() || is_marked)
            }
        };
        Self {
            netconf,
            deadline,
            daemon: Daemon::new(&netconf.run_dir, deadline),
            standalone: standalone.then(|| Standalone::new(netconf)),
        }
    }

    /// The store of this process, if there is no daemon to ask.
    pub(crate) fn standalone(&self) -> Option<&Standalone<'a>> {
        self.standalone.as_ref()
    }

    /// Who deletes the link of a DEL: the daemon later, many at once, or this call.
    pub(crate) fn del_mode(&self) -> DelMode {
        if self.standalone.is_some() { DelMode::Immediate } else { DelMode::Deferred }
    }

    /// What a pod and its namespace ask for, as the daemon has it; of one whose own annotations are known the
    /// namespace alone. Nothing where there is no daemon. Once the daemon has said that it cannot tell, the
    /// call is over: it has waited for what it does not know, and has asked the API server.
    pub(crate) fn pod_annotations(
        &mut self,
        pod: Option<&PodRef>,
        own_known: bool,
    ) -> Result<BTreeMap<String, String>, Error> {
        let Some(pod) = pod.filter(|_| self.standalone.is_none()) else {
            return Ok(BTreeMap::new());
        };
        Ok(self.daemon.reach(|client, patience| {
            client.pod_annotations(PodAnnotationsRequest {
                pod: pod.clone(),
                own_known,
                timeout_ms: timeout_ms(patience),
            })
        })?)
    }

    /// Addresses for an attachment; durable when this returns.
    /// `meanwhile` is done while a daemon looks for them.
    pub(crate) fn assign(
        &mut self,
        request: &AssignRequest,
        meanwhile: impl FnOnce(),
    ) -> Result<Assigned, Error> {
        let deadline = self.deadline;
        let alone = |standalone: &Standalone<'a>, wait| standalone.assign(request, wait, deadline);
        if let Some(assigned) = self.alone(alone)? {
            return Ok(assigned);
        }
        let mut meanwhile = Some(meanwhile);
        Ok(self.daemon.insist(|client, patience| {
            let request = AssignRequest { timeout_ms: timeout_ms(patience), ..request.clone() };
            if let Some(meanwhile) = meanwhile.take() {
                client.ask_ahead(Request::Assign(Box::new(request.clone())))?;
                meanwhile();
            }
            client.assign(request)
        })?)
    }

    /// Tells the daemon of the link while its pod's side is made; `endpoint_up` hears the answer.
    pub(crate) fn endpoint_up_ahead(&mut self, endpoint: &EndpointUp) {
        self.daemon.ask_ahead(Request::EndpointUp(endpoint.clone()));
    }

    /// The link exists, with addresses of these families; traffic may flow when this returns. Addresses
    /// that were released meanwhile stay so, however often a daemon is asked: only a new ADD helps.
    pub(crate) fn endpoint_up(
        &mut self,
        endpoint: &EndpointUp,
        families: &[Family],
    ) -> Result<(), Error> {
        let EndpointUp { attachment, sequence, .. } = endpoint;
        match self.alone(|standalone, wait| standalone.stands(attachment, *sequence, wait))? {
            Some(()) => prepare_node(families),
            None => Ok(self.daemon.reach(|client, _| client.endpoint_up(endpoint.clone()))?),
        }
    }

    /// Whether the store holds these addresses.
    pub(crate) fn check(&mut self, request: &CheckRequest) -> Result<(), Error> {
        match self.alone(|standalone, wait| standalone.check(request, wait))? {
            Some(()) => Ok(()),
            None => Ok(self.daemon.ask(|client, _| client.check(request.clone()))?),
        }
    }

    /// Who holds addresses on a network.
    pub(crate) fn attachments(&mut self, network: &str) -> Result<Vec<Held>, Error> {
        match self.alone(|standalone, wait| standalone.attachments(network, wait))? {
            Some(held) => Ok(held),
            None => {
                let request = AttachmentsRequest { network: network.to_owned(), attachment: None };
                Ok(self.daemon.insist(|client, _| client.attachments(request.clone()))?)
            }
        }
    }

    /// What an attachment holds, if that can be told without waiting for a daemon.
    pub(crate) fn held(&mut self, attachment: &AttachmentId) -> Result<Option<Held>, Error> {
        let network = attachment.network.as_str();
        let held = match self.alone(|standalone, wait| standalone.attachments(network, wait))? {
            Some(held) => held,
            None => {
                let (network, attachment) = (network.to_owned(), Some(attachment.clone()));
                let request = AttachmentsRequest { network, attachment };
                self.daemon.ask(|client, _| client.attachments(request.clone()))?
            }
        };
        Ok(held.into_iter().find(|held| held.attachment == *attachment))
    }

    /// Gives addresses back. `parked` is the link that had them, if it waits to be deleted. No failure comes
    /// of it: a DEL that fails for its addresses would be repeated for ever.
    pub(crate) fn release(&mut self, request: &ReleaseRequest, parked: Option<u32>) -> GivenBack {
        let release = Release { request: request.clone(), parked };
        let requests = slice::from_ref(request);
        match self.alone(|standalone, wait| standalone.release(requests, wait)) {
            Ok(None) => self.entrust(&release),
            Ok(Some(mut released)) => match released.pop() {
                Some(Ok(true)) => GivenBack::Released,
                Some(Ok(false)) | None => GivenBack::Nothing,
                Some(Err(error)) => self.bury(&release, &Error::from(error)),
            },
            Err(error) => self.bury(&release, &error),
        }
    }

    /// The same for many that no DEL came for, for as long as there is time; says of each that could
    /// not be released why. What has a link by now stays, as an ADD has come meanwhile. Without a daemon the store is
    /// opened once, and no tombstone is left: the next GC finds what stays.
    pub(crate) fn collect(&mut self, requests: &[ReleaseRequest]) -> Vec<String> {
        let named =
            |request: &ReleaseRequest, why: &dyn Display| format!("{}: {why}", request.attachment);
        let mut failures = Vec::new();
        match self.alone(|standalone, wait| standalone.collect(requests, wait)) {
            Ok(None) => {
                for request in requests {
                    if self.deadline.left().is_zero() {
                        failures.push(named(request, &"there was no time for it"));
                    } else if !may_have_link(&request.attachment) {
                        self.entrust(&Release { request: request.clone(), parked: None });
                        // One that the daemon was told of in between has lost its addresses.
                        let (attachment, sequence) = (&request.attachment, request.sequence);
                        if let Err(error) = del_pod(attachment, sequence, None, DelMode::Deferred) {
                            failures.push(named(request, &error_chain(&error)));
                        }
                    }
                }
            }
            Ok(Some(released)) => {
                for (request, released) in requests.iter().zip(released) {
                    if let Err(error) = released {
                        failures.push(named(request, &Error::from(error)));
                    }
                }
            }
            Err(error) => failures.extend(requests.iter().map(|request| named(request, &error))),
        }
        failures
    }

    /// Has the daemon release, now or when it can.
    fn entrust(&mut self, release: &Release) -> GivenBack {
        match self.daemon.ask(|client, _| client.release(release.clone())) {
            Ok(released) if released.addresses.is_empty() => GivenBack::Nothing,
            Ok(_) => GivenBack::Released,
            Err(error) if may_be_buried(&error) => self.bury(release, &error),
            Err(error) => {
                tracing::warn!(%error, "twilld will not take the addresses back");
                GivenBack::Refused
            }
        }
    }

    /// Leaves a release to whoever can use the store next. Where no tombstone can be written either (`runDir`
    /// is full), the daemon finds out by itself that the pod is gone, and without one the ADD that finds no
    /// address.
    fn bury(&mut self, release: &Release, why: &dyn std::error::Error) -> GivenBack {
        tracing::debug!(error = %why, "leaving a tombstone");
        self.release_or_bury(release).unwrap_or_else(|unwritten| {
            let (error, tombstone) = (error_chain(why), error_chain(&unwritten));
            let then = match self.standalone {
                Some(_) => "the addresses stay allocated until an ADD finds no others",
                None => "twilld has to find out by itself that the pod is gone",
            };
            tracing::warn!(error, tombstone, "{then}");
            GivenBack::Lost
        })
    }

    fn release_or_bury(&mut self, release: &Release) -> Result<GivenBack, SpoolError> {
        let spool = Spool::open(&self.netconf.run_dir, self.deadline)?;
        // It may have begun to listen while its lock was waited for. That it has nothing then does not say that
        // there was nothing: the request before may have released it, and only the answer was lost.
        if self.standalone.is_none()
            && self.daemon.ask(|client, _| client.release(release.clone())).is_ok()
        {
            return Ok(GivenBack::Released);
        }
        spool.bury(&release.request).map(|()| GivenBack::Buried)
    }

    /// After a failed ADD. The dataplane has taken its link back by now; one that is still there
    /// was there before, or would not go, and keeps its addresses until DEL.
    pub(crate) fn take_back(&mut self, attachment: &AttachmentId, sequence: u64) {
        if may_have_link(attachment) {
            return;
        }
        let (attachment, sequence) = (attachment.clone(), Some(sequence));
        let request = ReleaseRequest { attachment, sequence, netns_cookie: None };
        self.release(&request, None);
    }

    /// Does `work` in standalone mode, which is told until when to wait for the store; `None` if the daemon
    /// is the one to ask, also where it has turned up in the meantime.
    fn alone<T>(
        &mut self,
        work: impl Fn(&Standalone<'a>, Deadline) -> Result<T, StandaloneError>,
    ) -> Result<Option<T>, Error> {
        let Some(standalone) = &self.standalone else {
            return Ok(None);
        };
        let only = self.netconf.ipam.mode == Mode::Standalone;
        loop {
            let deadline = if only { self.deadline } else { self.deadline.at_most(LOOK_AGAIN) };
            let result = work(standalone, deadline);
            let busy = matches!(result, Err(StandaloneError::Busy(_)));
            if busy && !only && socket(&self.netconf.run_dir).exists() {
                self.standalone = None;
                return Ok(None);
            }
            match result {
                Err(error) if error.is_passing() && !self.deadline.left().is_zero() => {}
                done => return Ok(Some(done?)),
            }
        }
    }
}

/// Whether the node has the link of an attachment, or cannot say. One without an alias is of another ADD that is
/// at it right now, with the same addresses.
pub(crate) fn may_have_link(attachment: &AttachmentId) -> bool {
    match host_link(attachment) {
        Ok(link) => link.is_some(),
        Err(error) => {
            tracing::warn!(%error, "cannot see whether the link is gone");
            true
        }
    }
}

/// What the daemon does once for the node, where there is none.
pub(crate) fn prepare_node(families: &[Family]) -> Result<(), Error> {
    for family in families {
        node::ensure_forwarding(*family, |change| {
            let SysctlChange { key, before, after } = change;
            tracing::info!(key, before, after, "sysctl changed, so that the node forwards");
        })?;
    }
    if families.contains(&Family::V4) && node::ensure_gateway()? {
        tracing::info!("made the route to the gateway of pods");
    }
    Ok(())
}

/// How long a daemon may take, as it is told.
fn timeout_ms(patience: Duration) -> u64 {
    u64::try_from(patience.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the daemon can do later what it did not do now.
fn may_be_buried(error: &ClientError) -> bool {
    match error {
        ClientError::Remote(RpcError { kind, .. }) => match kind {
            ErrorKind::TryAgain | ErrorKind::Internal => true,
            ErrorKind::Invalid
            | ErrorKind::NoPool
            | ErrorKind::Exhausted
            | ErrorKind::Taken
            | ErrorKind::Mismatch => false,
        },
        ClientError::NotRunning { .. }
        | ClientError::Connect { .. }
        | ClientError::Timeout { .. }
        | ClientError::Lost { .. }
        | ClientError::Version { .. }
        | ClientError::Protocol { .. }
        | ClientError::Unexpected { .. } => true,
    }
}
