//! The resources and the claims, as the rest of the daemon sees them.

mod claims;
mod file;
mod leases;
mod requests;
mod status;
mod watch;

use std::collections::BTreeMap;

pub(crate) use claims::{ClaimOutcome, ClaimStore, Claimant, Release, Stamp, lent, new_uid};
pub(crate) use leases::Leases;
pub(crate) use requests::{Grant, Requests};
pub(crate) use status::report;
pub(crate) use watch::watch;

use twill_k8s_api::{
    BgpConfiguration, BgpPeer, IpPool, IpamConfigSpec, Node, Problem, Resource, Secret,
    files::Catalog,
};
use twill_types::Prefix;

/// Everything that was right in the manifests at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Nodes by name.
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Pools by name.
    pub(crate) pools: BTreeMap<String, IpPool>,
    /// The labels of namespaces, by name.
    pub(crate) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Peers by name.
    pub(crate) peers: BTreeMap<String, BgpPeer>,
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
                    snapshot.namespaces.insert(name, namespace.metadata.labels);
                }
                Resource::IpPool(pool) => drop(snapshot.pools.insert(name, pool)),
                Resource::Secret(secret) => drop(snapshot.secrets.insert(name, secret)),
                Resource::BgpPeer(peer) => drop(snapshot.peers.insert(name, peer)),
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

    /// The IPAMConfig `default`; without one, its defaults.
    pub(crate) fn ipam_config(&self) -> IpamConfigSpec {
        self.ipam_config.clone().unwrap_or_default()
    }

    /// What is wrong with the manifests.
    pub(crate) fn problems(&self) -> &[Problem] {
        &self.catalog.problems
    }
}
