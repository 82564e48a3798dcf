//! A real Kubernetes: etcd of Debian, and the programs that the module `tests/go/kubernetes` names.
//!
//! Everything runs in a network namespace and below a directory that the caller gives, inside a
//! [`crate::sandbox`]: nothing is left when the caller ends.

mod apiserver;
mod kubectl;
mod pki;

pub use apiserver::ApiServer;
pub use kubectl::Kubectl;
