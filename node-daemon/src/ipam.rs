//! Addresses: the fast path from a request to the store.
//!
//! An ADD goes straight to the store's committer while a block has space. Only when none has, it
//! asks the claim task ([`crate::claims`]) for another block and tries again; that task works
//! ahead, so this is rare.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::debug;
use twill_ipam::Record;
use twill_ipam_store::{AssignError, Assignment, Refusal, Service, now_ms};
use twill_rpc::message::{
    AssignRequest, AttachmentsRequest, CheckRequest, ErrorKind, Held, ReadinessRequest,
    ReleaseRequest, Released, RpcError,
};
use twill_selector::Selector;
use twill_types::{Family, error_chain};

use crate::{
    claims,
    datastore::{kubernetes::ApiPods, pods::PodNamespace},
    reaper::Parked,
    spool::Tombstones,
};

/// What the fast path has to know about the pools; replaced whole when the configuration changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// False until the configuration has been read and the claims of this node are loaded.
    pub(crate) ready: bool,
    /// Every pool, by name.
    pub(crate) pools: BTreeMap<String, PoolView>,
    /// Every namespace.
    pub(crate) namespaces: BTreeMap<String, PodNamespace>,
}

type Labels = BTreeMap<String, String>;

/// One pool as this node sees it.
#[derive(Debug, Clone)]
pub(crate) struct PoolView {
    pub(crate) cidr: twill_types::Prefix,
    /// Which pods' namespaces it is for; `None` if that does not matter.
    pub(crate) namespaces: Option<Selector>,
    /// Why a pod on this node gets no address from it, unless it does.
    pub(crate) refusal: Option<String>,
    /// Why it gives no address even to those who ask for it by name.
    pub(crate) unusable: Option<String>,
}

impl View {
    /// The pools to try for one family: those asked for; else those in which the address is that
    /// is asked for, whatever they select; else those that select this node and the pod's namespace.
    fn pools_for(
        &self,
        node: &str,
        (namespace, labels): (Option<&str>, Option<&Labels>),
        family: Family,
        asked: &[String],
        address: Option<IpAddr>,
    ) -> Result<Vec<String>, RpcError> {
        let named =
            || asked.iter().map(|pool| self.find(family, pool)).collect::<Result<Vec<_>, _>>();
        if let Some(address) = address {
            let among = if asked.is_empty() { self.usable(family) } else { named()? };
            return self.around(address, among);
        }
        if !asked.is_empty() {
            return named();
        }
        let eligible = self.eligible(family, labels);
        if !eligible.is_empty() {
            return Ok(eligible);
        }
        let reasons: Vec<String> = self
            .pools
            .iter()
            .filter(|(_, pool)| pool.cidr.family() == family)
            .map(|(name, pool)| {
                let other = || {
                    let selector = pool.namespaces.as_ref().map(Selector::as_written);
                    let (selector, pods) =
                        (selector.unwrap_or_default(), namespace.unwrap_or("none"));
                    format!(
                        "namespaceSelector {selector} does not match the pod's namespace ({pods})"
                    )
                };
                format!("{name} ({}): {}", pool.cidr, pool.refusal.clone().unwrap_or_else(other))
            })
            .collect();
        let message = if reasons.is_empty() {
            format!("there is no {family} pool; apply an IPPool")
        } else {
            format!(
                "no pool selects node {node} and this pod for {family}; label the node or change a \
                 selector [{}]",
                reasons.join("; ")
            )
        };
        Err(RpcError { kind: ErrorKind::NoPool, message })
    }

    /// The pools for those who ask for none by name: those that choose namespaces only for pods of
    /// one with the right labels.
    pub(crate) fn eligible(&self, family: Family, namespace: Option<&Labels>) -> Vec<String> {
        let eligible = |pool: &PoolView| {
            let chosen = |selector: &Selector| namespace.is_some_and(|l| selector.matches(l));
            pool.cidr.family() == family
                && pool.refusal.is_none()
                && pool.namespaces.as_ref().is_none_or(chosen)
        };
        self.pools.iter().filter(|(_, pool)| eligible(pool)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether it takes a pod's namespace to choose a pool: not for families of which a pool or an
    /// address is named.
    fn asks_for_namespace(&self, request: &AssignRequest) -> bool {
        let chooses = |family: Family| {
            let named = match family {
                Family::V4 => &request.ipv4_pools,
                Family::V6 => &request.ipv6_pools,
            };
            let wanted = request.wanted.iter().any(|address| Family::of(*address) == family);
            request.families.contains(&family) && named.is_empty() && !wanted
        };
        self.pools.values().any(|pool| {
            pool.namespaces.is_some() && pool.refusal.is_none() && chooses(pool.cidr.family())
        })
    }

    fn usable(&self, family: Family) -> Vec<String> {
        let usable = |pool: &PoolView| pool.cidr.family() == family && pool.unusable.is_none();
        self.pools.iter().filter(|(_, pool)| usable(pool)).map(|(name, _)| name.clone()).collect()
    }

    /// Those of the pools `among` that hold an address.
    fn around(&self, address: IpAddr, among: Vec<String>) -> Result<Vec<String>, RpcError> {
        let holds = |name: &String| self.pools.get(name).is_some_and(|p| p.cidr.contains(address));
        let (inside, outside): (Vec<_>, Vec<_>) = among.into_iter().partition(holds);
        if inside.is_empty() {
            return Err(RpcError {
                kind: ErrorKind::Invalid,
                message: format!(
                    "the address {address} was asked for, and no pool holds it that gives addresses \
                     here [{}]; ask for one of a pool, or add a pool",
                    outside.join(", ")
                ),
            });
        }
        Ok(inside)
    }

    fn find(&self, family: Family, wanted: &str) -> Result<String, RpcError> {
        let found = self
            .pools
            .iter()
            .find(|(name, pool)| *name == wanted || pool.cidr.to_string() == wanted);
        let refuse = |why: &str| {
            Err(RpcError {
                kind: ErrorKind::NoPool,
                message: format!("{family} pool {wanted:?} was asked for by name, but {why}"),
            })
        };
        match found {
            None => refuse("there is no such pool; name an IPPool or its cidr"),
            Some((_, pool)) if pool.cidr.family() != family => refuse("it is of the other family"),
            Some((_, PoolView { unusable: Some(why), .. })) => refuse(why),
            Some((name, _)) => Ok(name.clone()),
        }
    }
}

/// The way in for requests. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ipam {
    pub(crate) node: String,
    pub(crate) service: Arc<Service>,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) claims: mpsc::Sender<claims::Command>,
    pub(crate) mtu: watch::Receiver<u32>,
    pub(crate) tombstones: Arc<Tombstones>,
    pub(crate) parked: Arc<Parked>,
    /// The pods of this node, where there is a cluster.
    pub(crate) pods: Option<Arc<ApiPods>>,
}

impl Ipam {
    /// Waits until addresses can be given, at the most until `deadline`.
    pub(crate) async fn ready(&self, deadline: Instant) -> Result<Arc<View>, RpcError> {
        let mut view = self.view.clone();
        let ready = tokio::time::timeout_at(deadline, view.wait_for(|view| view.ready)).await;
        match ready {
            Ok(Ok(view)) => Ok(Arc::clone(&view)),
            Ok(Err(_)) | Err(_) => Err(RpcError {
                kind: ErrorKind::TryAgain,
                message: format!("node {} has not read its configuration yet", self.node),
            }),
        }
    }

    /// One address for each family asked for, or none.
    pub(crate) async fn assign(&self, request: AssignRequest) -> Result<Assignment, RpcError> {
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
        let view = self.ready(deadline).await?;
        let namespace = match &request.pod {
            Some(pod) if view.asks_for_namespace(&request) => {
                Some(self.namespace(&pod.namespace, deadline).await?)
            }
            _ => None,
        };
        // What was waited for is in a later one.
        let view = Arc::clone(&self.view.borrow());
        let of_pod = request.pod.as_ref().map(|pod| pod.namespace.as_str());
        let labels = namespace.as_ref().map(|namespace| &namespace.labels);
        self.tombstones.settle(&request.attachment).map_err(|error| RpcError {
            kind: ErrorKind::TryAgain,
            message: format!("cannot work off what DELs have left in the spool: {error}"),
        })?;
        let wanted: BTreeMap<Family, IpAddr> =
            request.wanted.iter().map(|address| (Family::of(*address), *address)).collect();
        let mut pools = BTreeMap::new();
        for family in &request.families {
            let asked = match family {
                Family::V4 => &request.ipv4_pools,
                Family::V6 => &request.ipv6_pools,
            };
            pools.insert(
                *family,
                view.pools_for(
                    &self.node,
                    (of_pod, labels),
                    *family,
                    asked,
                    wanted.get(family).copied(),
                )?,
            );
        }
        let plan = twill_ipam::AssignRequest {
            attachment: request.attachment,
            pools,
            wanted,
            netns: request.netns,
            netns_cookie: request.netns_cookie,
            pod: request.pod.as_ref().map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            pod_uid: request.pod.and_then(|pod| pod.uid),
            foreign: request.foreign,
            allow_reserved: request.allow_reserved,
            now_ms: now_ms(),
        };
        loop {
            match self.submit(plan.clone()).await {
                Ok(assignment) => return Ok(assignment),
                Err(AssignError::Refused(
                    refusal @ (Refusal::Full(_) | Refusal::NoBlock { .. }),
                )) => {
                    debug!(%refusal, "a block is needed");
                    self.claim(refusal, deadline).await?;
                    if Instant::now() >= deadline {
                        let message = "no block with a free address was found in time".to_owned();
                        return Err(RpcError { kind: ErrorKind::TryAgain, message });
                    }
                }
                Err(AssignError::Refused(refusal)) => return Err(refused(&refusal)),
                Err(error) => return Err(again(&error)),
            }
        }
    }

    async fn submit(&self, plan: twill_ipam::AssignRequest) -> Result<Assignment, AssignError> {
        let (reply, answer) = oneshot::channel();
        self.unblocked(|service| {
            // A DEL may have died between the link and the release, and no other came.
            let is_own = plan.foreign.is_none();
            let parked = Arc::clone(&self.parked);
            let again = move || {
                if is_own {
                    parked.note_any()
                }
            };
            service.submit_assign(plan, again, move |result| {
                // A caller that went away gets the same answer when it asks again.
                let _ = reply.send(result);
            });
        });
        answer.await.unwrap_or(Err(AssignError::Stopped))
    }

    /// Uses the store. Where that may take as long as a disk does, the other tasks of this thread
    /// are moved to another one; otherwise that would take longer than the store.
    pub(crate) fn unblocked<T>(&self, use_it: impl FnOnce(&Service) -> T) -> T {
        match self.service.waits_for_disk() {
            true => tokio::task::block_in_place(|| use_it(&self.service)),
            false => use_it(&self.service),
        }
    }

    /// Asks for the block that an assignment lacks.
    async fn claim(&self, refusal: Refusal, deadline: Instant) -> Result<(), RpcError> {
        let gone =
            || RpcError { kind: ErrorKind::TryAgain, message: "the daemon is stopping".to_owned() };
        let (reply, answer) = oneshot::channel();
        let command = claims::Command::Claim { refusal, reply };
        // The line may be as slow as the answer.
        let claimed = async {
            self.claims.send(command).await.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        };
        tokio::time::timeout_at(deadline, claimed).await.unwrap_or_else(|_| {
            Err(RpcError {
                kind: ErrorKind::TryAgain,
                message: "no block could be claimed in time".to_owned(),
            })
        })
    }

    /// Whether those who name no pool get no address any more, if that is asked. A claim task that is busy
    /// with claims has not said so; it may be waiting for the datastore, and asks it what can be claimed.
    pub(crate) async fn exhausted(&self, request: &ReadinessRequest) -> bool {
        const PATIENCE: Duration = Duration::from_secs(1);
        if !request.exhaustion {
            return false;
        }
        let ask = async {
            let (reply, answer) = oneshot::channel();
            self.claims.send(claims::Command::Exhausted { reply }).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(PATIENCE, ask).await.ok().flatten().unwrap_or(false)
    }

    /// Gives the addresses of an attachment back. Nothing held is success.
    pub(crate) async fn release(&self, request: ReleaseRequest) -> Result<Released, RpcError> {
        let (reply, answer) = oneshot::channel();
        self.unblocked(|service| {
            service.submit_release(request, move |result| {
                let _ = reply.send(result);
            });
        });
        match answer.await {
            Ok(Ok(outcome)) => Ok(Released { addresses: outcome.addresses }),
            Ok(Err(error)) => Err(again(&error)),
            Err(_) => Err(RpcError {
                kind: ErrorKind::TryAgain,
                message: "the daemon is stopping".to_owned(),
            }),
        }
    }

    /// Who holds addresses on a network, or what one has there.
    pub(crate) fn attachments(&self, request: &AttachmentsRequest) -> Result<Vec<Held>, RpcError> {
        let records = self.unblocked(|service| match &request.attachment {
            Some(attachment) => Ok(service.lookup(attachment)?.into_iter().collect()),
            None => service.on_network(&request.network),
        });
        let mut records: Vec<Record> = records.map_err(|error| again(&error))?;
        records.retain(|record| record.attachment.network == request.network);
        let held = |record: Record| Held {
            attachment: record.attachment,
            sequence: record.sequence,
            netns: record.netns,
            netns_cookie: record.netns_cookie,
            created_ms: record.created_ms,
        };
        Ok(records.into_iter().map(held).collect())
    }

    /// Whether the store holds these addresses for the attachment.
    pub(crate) fn check(&self, request: &CheckRequest) -> Result<(), RpcError> {
        let mismatch = |message| Err(RpcError { kind: ErrorKind::Mismatch, message });
        let held = self.unblocked(|service| service.lookup(&request.attachment));
        let held = held.map_err(|error| again(&error))?;
        let Some(record) = held else {
            return mismatch(format!(
                "{} has no address allocated; delete and add it again",
                request.attachment
            ));
        };
        match request.addresses.iter().find(|address| !record.addresses.contains(address)) {
            None => Ok(()),
            Some(address) => mismatch(format!(
                "{address} of the previous result is not allocated to {}; it holds {:?}",
                request.attachment, record.addresses
            )),
        }
    }
}

/// What may have passed by the next time.
pub(crate) fn again(error: &dyn std::error::Error) -> RpcError {
    RpcError { kind: ErrorKind::TryAgain, message: error_chain(error) }
}

/// What no further block can mend.
fn refused(refusal: &Refusal) -> RpcError {
    let (kind, remedy) = match refusal {
        Refusal::Cooling { .. } | Refusal::Resting { .. } => {
            (ErrorKind::TryAgain, "it can be had after that")
        }
        Refusal::Taken { .. }
        | Refusal::Reserved { .. }
        | Refusal::Delegated { .. }
        | Refusal::Withheld { .. } => (ErrorKind::Taken, "ask for another one"),
        Refusal::Full(_) | Refusal::NoBlock { .. } => (ErrorKind::Exhausted, "add a pool"),
    };
    RpcError { kind, message: format!("{refusal}; {remedy}") }
}

#[cfg(test)]
mod tests;
