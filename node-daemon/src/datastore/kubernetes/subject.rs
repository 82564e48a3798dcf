//! What is watched.

use kube::core::{ApiResource, GroupVersionKind};
use twill_k8s_api::API_VERSION;

use super::requests::Side;

/// A kind on the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ApiKind {
    /// What stands behind `kind:`.
    pub(super) kind: &'static str,
    /// The name of many, as RBAC has it.
    pub(super) plural: &'static str,
    /// Its group and version.
    api_version: &'static str,
}

const fn own(kind: &'static str, plural: &'static str) -> ApiKind {
    ApiKind { kind, plural, api_version: API_VERSION }
}

/// One of Kubernetes' first ones.
const fn core(kind: &'static str, plural: &'static str) -> ApiKind {
    ApiKind { kind, plural, api_version: "v1" }
}

/// The claims of blocks.
pub(super) const BLOCK_AFFINITIES: ApiKind = own("BlockAffinity", "blockaffinities");
/// What nodes ask each other for.
pub(super) const BLOCK_REQUESTS: ApiKind = own("BlockRequest", "blockrequests");
/// What nodes tell about themselves.
pub(super) const NODE_STATUSES: ApiKind = own("CalicoNodeStatus", "caliconodestatuses");
const NODES: ApiKind = core("Node", "nodes");
const NAMESPACES: ApiKind = core("Namespace", "namespaces");
const PODS: ApiKind = core("Pod", "pods");
const SECRETS: ApiKind = core("Secret", "secrets");
const SERVICES: ApiKind = core("Service", "services");
const ENDPOINT_SLICES: ApiKind =
    ApiKind { kind: "EndpointSlice", plural: "endpointslices", api_version: "discovery.k8s.io/v1" };

/// Fields that lists are chosen by.
const NODE: &str = "spec.node";
const OWNER: &str = "spec.owner";

/// Kinds of which every node needs every object.
const EVERYWHERE: [ApiKind; 8] = [
    own("IPPool", "ippools"),
    own("BGPPeer", "bgppeers"),
    own("BGPFilter", "bgpfilters"),
    own("BGPConfiguration", "bgpconfigurations"),
    own("IPAMConfiguration", "ipamconfigurations"),
    own("IPAMConfig", "ipamconfigs"),
    own("IPReservation", "ipreservations"),
    NAMESPACES,
];

impl ApiKind {
    pub(super) fn resource(self) -> ApiResource {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", self.api_version));
        let kind = GroupVersionKind::gvk(group, version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }
}

/// A list that is watched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    /// Of what.
    pub(super) kind: ApiKind,
    /// In one namespace only.
    pub(super) namespace: Option<String>,
    /// Those with this field only, such as `metadata.name=node1`.
    pub(super) field: Option<String>,
}

impl Subject {
    /// What every node watches: itself and its claims among it.
    pub(super) fn of_every_node(node: &str) -> Vec<Self> {
        let all = |kind| Self { kind, namespace: None, field: None };
        let mut subjects: Vec<_> = EVERYWHERE.into_iter().map(all).collect();
        let by = |field: &str| Some(format!("{field}={node}"));
        let own = |kind, field| Self { kind, namespace: None, field: by(field) };
        subjects.push(own(BLOCK_AFFINITIES, NODE));
        subjects.extend([own(BLOCK_REQUESTS, NODE), own(BLOCK_REQUESTS, OWNER)]);
        subjects
    }

    /// All Nodes, or this one only.
    pub(super) fn nodes(only: Option<&str>) -> Self {
        let field = only.map(|name| format!("metadata.name={name}"));
        Self { kind: NODES, namespace: None, field }
    }

    /// All Services.
    pub(super) const fn services() -> Self {
        Self { kind: SERVICES, namespace: None, field: None }
    }

    /// All EndpointSlices.
    pub(super) const fn endpoint_slices() -> Self {
        Self { kind: ENDPOINT_SLICES, namespace: None, field: None }
    }

    /// The pods of a node.
    pub(super) fn pods(node: &str) -> Self {
        Self { kind: PODS, namespace: None, field: Some(format!("spec.nodeName={node}")) }
    }

    /// Whether the metadata are all that is asked for, as nothing else is read. A kubelet writes a status many
    /// times, and that of a Node is several times as long as the rest of it.
    pub(super) fn is_metadata_alone(&self) -> bool {
        [PODS, NODES, NAMESPACES].contains(&self.kind)
    }

    /// One Secret.
    pub(super) fn secret(namespace: &str, name: &str) -> Self {
        let field = Some(format!("metadata.name={name}"));
        Self { kind: SECRETS, namespace: Some(namespace.to_owned()), field }
    }

    /// Whether the node does without where it may not see it: a password that is missing keeps one
    /// session down, and nothing else.
    pub(super) fn is_optional(&self) -> bool {
        self.kind == SECRETS
    }

    /// The name of the only object in it, if there is but one.
    pub(super) fn only(&self) -> Option<&str> {
        self.field.as_deref()?.strip_prefix("metadata.name=")
    }

    /// Which of the requests for parts of blocks, if it is of these.
    pub(super) fn requests(&self) -> Option<Side> {
        let is_by = |field: &str| self.field.as_deref().is_some_and(|by| by.starts_with(field));
        let side = if is_by(OWNER) { Side::Asked } else { Side::Asking };
        (self.kind == BLOCK_REQUESTS).then_some(side)
    }

    /// What this node writes itself.
    pub(super) fn is_own(&self) -> bool {
        self.is_claims() || self.kind == BLOCK_REQUESTS
    }

    /// This node's claims.
    pub(super) fn is_claims(&self) -> bool {
        self.kind == BLOCK_AFFINITIES
    }

    /// For people, as RBAC names it.
    pub(super) fn what(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} in namespace {namespace}", self.kind.plural),
            None => self.kind.plural.to_owned(),
        }
    }
}
