//! A real Kubernetes: etcd of Debian, and the programs that the module `tests/go/kubernetes` names.
//!
//! An [`ApiServer`] stands alone; a [`Cluster`] has the rest of the control plane too, and nodes, each a
//! kubelet, a containerd and a kube-proxy on a machine of its own, behind a router.
//!
//! Everything runs in a network namespace and below a directory that the caller gives, inside a
//! [`crate::sandbox`]: nothing is left when the caller ends.

mod apiserver;
mod cluster;
mod etcd;
mod kubectl;
mod machine;
mod node;
mod pki;
mod runtime;
mod twill;

pub use apiserver::ApiServer;
pub use cluster::{BUSYBOX, Cluster, Tor};
pub use kubectl::Kubectl;
pub use machine::enter;
pub use node::Node;
pub use runtime::Runtime;
pub use twill::METRICS;
