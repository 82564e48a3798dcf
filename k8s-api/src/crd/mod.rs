//! The kinds as CustomResourceDefinitions (`apiextensions.k8s.io/v1`).
//!
//! Promise: what [`crate::load_manifests`] refuses, the API server refuses too, wherever the Common
//! Expression Language can say the rule; and the API server refuses nothing that it accepts, but
//! for what `docs/adr/0018-crds.md` names. The files under `conf/crds/` are this module's output, and a
//! test fails when they differ.

mod definition;
mod expressions;
mod fields;
mod kinds;
mod rules;
mod status;
mod structural;

pub use definition::{Definition, definitions};
pub(crate) use fields::{
    Address, Address4, Address6, AffinityState, AsNumber, BlockCidr, Cidr, Community, Dedication,
    Duration, PathAsNumber, PeerAddress, Selector,
};
