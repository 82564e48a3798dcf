//! What the daemon answers: the plugin's requests, and what people ask about its state or have it do.

use std::{sync::Arc, time::Instant};

use tokio::{sync::watch, task::block_in_place};
use tracing::debug;
use twill_bgp_speaker::{Handle, Pictured};
use twill_k8s_api::files::Claim;
use twill_rpc::message::{
    AssignRequest, Assigned, BlockStatus, ClaimStatus, EndpointUp, ErrorKind, Explained,
    IpamStatus, NodeChecked, NodeStatus, PoolStatus, Readiness, Release, Released, Request,
    Response, RouteStatus, RpcError,
};
use twill_types::{AttachmentId, Family, Prefix, error_chain};

use crate::{
    bgp::{self, Current},
    caretaker::Caretaker,
    claims,
    datastore::{ClaimStore, Snapshot},
    explain,
    host::{Depth, Host},
    ipam::{Ipam, again},
    look::Looker,
    metrics::Metrics,
    problems,
    publish::Publisher,
    reaper::Parked,
    routes::KernelRoutes,
    routes::OriginConflict,
};

/// Everything that answers are made of.
pub(crate) struct Api {
    pub(crate) node: String,
    pub(crate) started_ms: u64,
    pub(crate) ipam: Ipam,
    pub(crate) claims: Arc<dyn ClaimStore>,
    pub(crate) speaker: Current,
    pub(crate) resources: watch::Receiver<Arc<Snapshot>>,
    pub(crate) installed: watch::Receiver<Arc<KernelRoutes>>,
    /// Standing problems, from each task that has any.
    pub(crate) problems: Vec<watch::Receiver<Vec<String>>>,
    /// What the datastore has refused.
    pub(crate) refusals: Option<watch::Receiver<Vec<String>>>,
    pub(crate) conflicts: watch::Receiver<Vec<OriginConflict>>,
    pub(crate) metrics: Metrics,
    pub(crate) parked: Arc<Parked>,
    pub(crate) looker: Arc<Looker>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) caretaker: Arc<Caretaker>,
    pub(crate) host: Arc<Host>,
}

impl Api {
    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request) -> Result<Response, RpcError> {
        let (name, started) = (timed_as(&request), Instant::now());
        let result = self.serve(request).await;
        if let Some(name) = name {
            self.metrics.observe(name, result.is_ok(), started.elapsed().as_secs_f64());
        }
        result
    }

    async fn assign(&self, request: AssignRequest) -> Result<Assigned, RpcError> {
        let assignment = self.ipam.assign(request).await?;
        self.claim_ahead(&assignment.nearly_full);
        Ok(Assigned {
            addresses: assignment.addresses,
            blocks: assignment.blocks,
            sequence: assignment.sequence,
            mtu: *self.ipam.mtu.borrow(),
        })
    }

    async fn release(&self, release: Release) -> Result<Released, RpcError> {
        let Release { request, parked } = release;
        match parked {
            Some(index) => self.parked.note(index),
            // This one may follow one that has died between the link and the release.
            None => self.note_link_of(&request.attachment)?,
        }
        let released = self.ipam.release(request).await;
        // A runtime may repeat a DEL; those that change nothing are no reason to do anything.
        if parked.is_some() || !matches!(&released, Ok(nothing) if nothing.addresses.is_empty()) {
            self.parked.reap();
        }
        released
    }

    /// Has the link looked for that may wait to be deleted with addresses of an attachment on it. What
    /// another main plugin has made does not come to wait.
    fn note_link_of(&self, attachment: &AttachmentId) -> Result<(), RpcError> {
        let record = self.ipam.unblocked(|service| service.lookup(attachment));
        if record.map_err(|error| again(&error))?.is_some_and(|record| !record.foreign) {
            self.parked.note_any();
        }
        Ok(())
    }

    /// The last word before a pod's link goes up: it must not, if the addresses were released or
    /// given to a newer ADD in the meantime.
    fn endpoint_up(&self, endpoint: &EndpointUp) -> Result<(), RpcError> {
        let record = self.ipam.unblocked(|service| service.lookup(&endpoint.attachment));
        let record = record.map_err(|error| again(&error))?;
        match record {
            Some(record) if record.sequence == endpoint.sequence => {
                debug!(
                    attachment = %endpoint.attachment,
                    link = endpoint.host_ifname,
                    addresses = ?record.addresses,
                    pod = record.pod,
                    "endpoint up"
                );
                Ok(())
            }
            _ => Err(RpcError {
                kind: ErrorKind::TryAgain,
                message: format!(
                    "the addresses of {} were released while its link was made",
                    endpoint.attachment
                ),
            }),
        }
    }

    /// Has another block claimed in each of these pools.
    fn claim_ahead(&self, pools: &[String]) {
        for pool in pools {
            // A full queue means that claims are on their way.
            let _ = self.ipam.claims.try_send(claims::Command::Ahead { pool: pool.clone() });
        }
    }

    async fn serve(&self, request: Request) -> Result<Response, RpcError> {
        match request {
            Request::PodAnnotations(request) => {
                self.ipam.pod_annotations(&request).await.map(Response::PodAnnotations)
            }
            Request::Assign(request) => self.assign(*request).await.map(Response::Assigned),
            Request::EndpointUp(endpoint) => self.endpoint_up(&endpoint).map(|()| Response::Done),
            Request::Release(request) => self.release(request).await.map(Response::Released),
            Request::Check(request) => self.ipam.check(&request).map(|()| Response::Done),
            Request::Attachments(request) => {
                self.ipam.attachments(&request).map(Response::Attachments)
            }
            Request::Readiness(request) => {
                let request = request.unwrap_or_default();
                let Ipam { service, tombstones, .. } = &self.ipam;
                let failure = block_in_place(|| problems::of_store(service, tombstones));
                if let Some(message) = failure.map_err(|error| again(&error))? {
                    return Err(RpcError { kind: ErrorKind::TryAgain, message });
                }
                Ok(Response::Readiness(Readiness {
                    exhausted: self.ipam.exhausted(&request).await,
                    in_sync: self.ipam.view.borrow().ready,
                    routes_missing: count(self.installed.borrow().missing),
                }))
            }
            Request::NodeStatus => Ok(Response::NodeStatus(Box::new(self.node_status().await?))),
            Request::NodeCheck => {
                let checks = block_in_place(|| self.host.look(Depth::Everything));
                Ok(Response::NodeChecked(NodeChecked { checks }))
            }
            Request::BgpPeers => {
                let picture = self.speaker_picture(Pictured::Sessions).await;
                Ok(Response::BgpPeers(bgp::peer_statuses(&picture)))
            }
            Request::BgpRoutes(request) => {
                Ok(Response::BgpRoutes(self.bgp_routes(request.within).await))
            }
            Request::BgpExplain(request) => {
                let explained = self.bgp_explained(request.prefix).await;
                Ok(Response::BgpExplained(Box::new(explained)))
            }
            Request::BgpRefresh(request) => {
                bgp::refresh(self.speaker(), request).await.map(Response::BgpRefreshed)
            }
            Request::IpamShow => Ok(Response::IpamShow(self.ipam_status()?)),
            Request::IpamFind(what) => Ok(Response::IpamFound(Box::new(self.find(&what)?))),
            Request::IpamRelease(request) => {
                self.release_by_hand(&request).map(Response::IpamReleased)
            }
            Request::IpamReleaseNode(request) => {
                block_in_place(|| self.caretaker.release_node(&request))
                    .map(Response::IpamNodeReleased)
            }
            Request::IpamCheck(request) => {
                self.check_addresses(request.fix).await.map(Response::IpamChecked)
            }
        }
    }

    fn speaker(&self) -> Option<Handle> {
        self.speaker.borrow().as_ref().map(|(_, speaker)| speaker.clone())
    }

    async fn bgp_routes(&self, within: Option<Prefix>) -> Vec<RouteStatus> {
        let picture = self.speaker_picture(Pictured::All).await;
        let kernel = Arc::clone(&self.installed.borrow());
        bgp::route_statuses(&picture, within, &kernel)
    }

    async fn bgp_explained(&self, prefix: Prefix) -> Explained {
        let explanation = match self.speaker() {
            Some(speaker) => speaker.explain(prefix).await,
            None => None,
        };
        let kernel = Arc::clone(&self.installed.borrow());
        explain::explained(prefix, explanation, &kernel)
    }

    async fn speaker_picture(&self, of: Pictured) -> twill_bgp_speaker::Snapshot {
        match self.speaker() {
            Some(speaker) => speaker.snapshot(of).await,
            None => twill_bgp_speaker::Snapshot::default(),
        }
    }

    /// The state of the node.
    pub(crate) async fn node_status(&self) -> Result<NodeStatus, RpcError> {
        let picture = self.speaker_picture(Pictured::Sessions).await;
        let identity = self.speaker.borrow().as_ref().map(|(identity, _)| *identity);
        let resources = Arc::clone(&self.resources.borrow());
        let own = resources.nodes.get(&self.node);
        let addresses =
            [Family::V4, Family::V6].into_iter().filter_map(|family| own?.address(family));
        let blocks = self.ipam.unblocked(twill_ipam_store::Service::blocks);
        let blocks = blocks.map_err(|error| internal(&error))?;
        let mut problems: Vec<String> =
            resources.problems().iter().map(ToString::to_string).collect();
        for source in &self.problems {
            problems.extend(source.borrow().iter().cloned());
        }
        problems.extend(self.conflicts.borrow().iter().map(|conflict| conflict.text.clone()));
        for refusal in self.refusals.iter().flat_map(|refusals| refusals.borrow().clone()) {
            // Some say themselves what they may not do.
            if !problems.iter().any(|problem| problem.contains(&refusal)) {
                problems.push(refusal);
            }
        }
        Ok(NodeStatus {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_ms: self.started_ms,
            addresses: addresses.collect(),
            labels: own.map(|node| node.metadata.labels.clone()).unwrap_or_default(),
            asn: identity.map(|identity| identity.asn),
            router_id: identity.map(|i| i.router_id.to_string()).unwrap_or_default(),
            in_sync: self.ipam.view.borrow().ready,
            peers: bgp::peer_statuses(&picture),
            strangers_refused: picture.strangers_refused,
            blocks: count(blocks.len()),
            kernel_routes: count(self.installed.borrow().count()),
            problems,
        })
    }

    /// Pools, blocks and claims.
    pub(crate) fn ipam_status(&self) -> Result<IpamStatus, RpcError> {
        let view = Arc::clone(&self.ipam.view.borrow());
        let pool = |(name, pool): (&String, &crate::ipam::PoolView)| PoolStatus {
            name: name.clone(),
            cidr: pool.cidr,
            eligible: pool.refusal.clone().map_or(Ok(()), Err),
        };
        let blocks = self.ipam.unblocked(twill_ipam_store::Service::blocks);
        let blocks = blocks.map_err(|error| internal(&error))?;
        let block = |summary: twill_ipam::BlockSummary| BlockStatus {
            block: summary.block,
            pool: summary.pool,
            used: summary.used.into(),
            free: summary.free.into(),
            cooling: u32::from(summary.held) + u32::from(summary.resting),
            reserved: summary.reserved.into(),
            lent: summary.delegated.into(),
            assignable: summary.assignable,
            dedication: summary.dedication,
        };
        let claims = block_in_place(|| self.claims.known(&[]));
        let claim =
            |claim: Claim| ClaimStatus { block: claim.block, node: claim.node, pool: claim.pool };
        Ok(IpamStatus {
            pools: view.pools.iter().map(pool).collect(),
            blocks: blocks.into_iter().map(block).collect(),
            claims: claims
                .map_err(|error| internal(&error))?
                .claims
                .into_values()
                .map(claim)
                .collect(),
        })
    }
}

/// The name under which a request of the plugin is timed; what people ask and order is not, and STATUS is not.
fn timed_as(request: &Request) -> Option<&'static str> {
    match request {
        Request::PodAnnotations(_) => Some("pod_annotations"),
        Request::Assign(_) => Some("assign"),
        Request::EndpointUp(_) => Some("endpoint_up"),
        Request::Release(_) => Some("release"),
        Request::Check(_) => Some("check"),
        Request::Attachments(_) => Some("attachments"),
        Request::Readiness(_)
        | Request::NodeStatus
        | Request::NodeCheck
        | Request::BgpPeers
        | Request::BgpRoutes(_)
        | Request::BgpExplain(_)
        | Request::BgpRefresh(_)
        | Request::IpamShow
        | Request::IpamFind(_)
        | Request::IpamRelease(_)
        | Request::IpamReleaseNode(_)
        | Request::IpamCheck(_) => None,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn internal(error: &dyn std::error::Error) -> RpcError {
    RpcError { kind: ErrorKind::Internal, message: error_chain(error) }
}
