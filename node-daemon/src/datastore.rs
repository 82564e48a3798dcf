//! The resources and the claims, as the rest of the daemon sees them.

pub(crate) mod claims;
mod file;
mod files;
mod fills;
pub(crate) mod kubernetes;
pub(crate) mod leases;
pub(crate) mod pods;
mod requests;
mod seam;
mod status;
pub(crate) mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(crate) use claims::{lent, new_uid};
pub(crate) use fills::FileFills;
use pods::PodNamespace;
pub(crate) use requests::Requests;
pub(crate) use seam::{
    Answer, Borrowed, ClaimOutcome, ClaimStore, Claimant, DatastoreError, Fills, Grant, Leases,
    Lender, Lending, Release, Reports, Stamp, Tenure,
};
use status::conditions;

use twill_k8s_api::{
    BgpConfiguration, BgpConfigurationSpec, BgpFilter, BgpPeer, IpPool, IpamConfigSpec, Metadata,
    Node, Problem, Resource, Secret,
    files::{Catalog, FileError},
};
use twill_types::{Family, Prefix};

use crate::{
    config::{Config, DatastoreKind},
    tasks::Tasks,
};

/// The datastore cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Watch(#[from] watch::WatchError),
    #[error(transparent)]
    Files(#[from] FileError),
    #[error(transparent)]
    Api(#[from] kubernetes::ApiError),
}

/// A datastore in use.
pub(crate) struct Datastore {
    /// The resources; the first ones are complete.
    pub(crate) resources: tokio::sync::watch::Receiver<Arc<Snapshot>>,
    /// What this node announces of the cluster's services; `None` until it may be acted upon.
    pub(crate) services: tokio::sync::watch::Receiver<Option<BTreeSet<Prefix>>>,
    /// The families in which the process before announced any of that since the machine started: who serves
    /// them (kube-proxy) forwards whether or not a daemon runs.
    pub(crate) served_before: BTreeSet<Family>,
    /// Why services are not known as they are now.
    pub(crate) service_problems: tokio::sync::watch::Receiver<Vec<String>>,
    /// What this daemon has been refused, where somebody refuses anything.
    pub(crate) refusals: Option<tokio::sync::watch::Receiver<Vec<String>>>,
    pub(crate) claims: Arc<dyn ClaimStore>,
    pub(crate) leases: Arc<dyn Leases>,
    pub(crate) reports: Arc<dyn Reports>,
    pub(crate) tenure: Arc<dyn Tenure>,
    /// Where is told how full blocks are; `None` if nowhere.
    pub(crate) fills: Option<Arc<dyn Fills>>,
    /// Several daemons use it.
    pub(crate) shared: bool,
    /// The pods of this node, where the datastore has them.
    pub(crate) pods: Option<Arc<kubernetes::ApiPods>>,
    /// The own Node, where daemons write to it.
    pub(crate) own_node: Option<Arc<kubernetes::ApiNode>>,
    /// What is wrong with the datastore itself.
    pub(crate) problems: tokio::sync::watch::Receiver<Vec<String>>,
}

/// Opens the configured datastore and waits until it has told everything once: nothing in the kernel
/// changes before. What is wrong with it is told meanwhile, too. Its tasks are among those that never end.
pub(crate) async fn open(
    config: &Config,
    node: &str,
    problems: tokio::sync::watch::Sender<Vec<String>>,
    tasks: &mut Tasks,
) -> Result<Datastore, OpenError> {
    match config.datastore.kind {
        DatastoreKind::File => {
            files::open(&config.datastore.directory, config.datastore.shared, node, problems, tasks)
        }
        DatastoreKind::Kubernetes => {
            let (kubeconfig, state) = (config.datastore.kubeconfig.as_deref(), &config.state_dir);
            Ok(kubernetes::open(kubeconfig, state, node, problems, tasks).await?)
        }
    }
}

/// Everything that was right in the manifests at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Nodes by name.
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Pools by name.
    pub(crate) pools: BTreeMap<String, IpPool>,
    /// Namespaces by name.
    pub(crate) namespaces: BTreeMap<String, PodNamespace>,
    /// Peers by name.
    pub(crate) peers: BTreeMap<String, BgpPeer>,
    /// Filters by name.
    pub(crate) filters: BTreeMap<String, BgpFilter>,
    /// `default` and `node.<name>`.
    pub(crate) bgp_configurations: BTreeMap<String, BgpConfiguration>,
    /// Secrets by name.
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// What no pod gets an address of.
    pub(crate) reservations: Vec<Prefix>,
    /// Everything as it was read, for conditions.
    pub(crate) catalog: Catalog,
    ipam_config: Option<IpamConfigSpec>,
}

impl Snapshot {
    pub(crate) fn new(catalog: Catalog) -> Self {
        let mut snapshot = Self::default();
        for found in catalog.resources.values() {
            let name = found.value.name().to_owned();
            match found.value.clone() {
                Resource::Node(node) => drop(snapshot.nodes.insert(name, node)),
                Resource::Namespace(namespace) => {
                    let Metadata { labels, annotations, .. } = namespace.metadata;
                    snapshot.namespaces.insert(name, PodNamespace::new(labels, &annotations));
                }
                Resource::IpPool(pool) => drop(snapshot.pools.insert(name, pool)),
                Resource::Secret(secret) => drop(snapshot.secrets.insert(name, secret)),
                Resource::BgpPeer(peer) => drop(snapshot.peers.insert(name, peer)),
                Resource::BgpFilter(filter) => drop(snapshot.filters.insert(name, filter)),
                Resource::BgpConfiguration(configuration) => {
                    snapshot.bgp_configurations.insert(name, configuration);
                }
                Resource::IpReservation(reservation) => {
                    snapshot.reservations.extend(reservation.spec.reserved_cidrs);
                }
                // Calico's name is `default`; one of another name has no meaning there either.
                Resource::IpamConfig(config) if name == "default" => {
                    snapshot.ipam_config = Some(config.spec);
                }
                _ => {}
            }
        }
        snapshot.catalog = catalog;
        snapshot
    }

    /// What the BGPConfiguration `default` says, if there is one.
    pub(crate) fn bgp_default(&self) -> Option<&BgpConfigurationSpec> {
        self.bgp_configurations.get("default").map(|found| &found.spec)
    }

    /// The IPAMConfig `default`; without one, its defaults.
    pub(crate) fn ipam_config(&self) -> IpamConfigSpec {
        self.ipam_config.clone().unwrap_or_default()
    }

    /// What is wrong with the manifests.
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.catalog.problems
    }
}
