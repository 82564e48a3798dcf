//! Kubernetes pods, as `CNI_ARGS` names them.

use serde::{Deserialize, Serialize};

/// A Kubernetes pod. Addresses are never kept by it: the sandbox is what has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`. Every kubelet's runtime sends it; without it the pod is none of a cluster's. That
    /// of a static pod is not the uid of its mirror on the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Body of [`Request::PodAnnotations`](super::Request::PodAnnotations).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAnnotationsRequest {
    /// Whose.
    pub pod: PodRef,
    /// The runtime has told the pod's own annotations, so its namespace's are all that is asked for.
    #[serde(default)]
    pub own_known: bool,
    /// How long the caller will wait for the answer, in milliseconds.
    pub timeout_ms: u64,
}
