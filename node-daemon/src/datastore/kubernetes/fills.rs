//! How full this node's blocks are: a part of its own CalicoNodeStatus, with a writer of its own, so that it
//! neither waits for what is said about objects nor is said with it.

use std::{sync::Arc, time::Duration};

use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use twill_k8s_api::{IpamReport, files::NodeFill};

use super::{access::Access, subject::NODE_STATUSES};
use crate::datastore::{DatastoreError, Fills};

/// Who writes.
const MANAGER: &str = "twilld-ipam";

/// Each write goes to whoever watches all nodes.
const PERIOD: Duration = Duration::from_secs(60);

/// The numbers of one node.
pub(super) struct ApiFills {
    access: Arc<Access>,
    api: Api<DynamicObject>,
}

impl ApiFills {
    pub(super) fn new(access: Arc<Access>) -> Self {
        let api = access.objects(&NODE_STATUSES.resource());
        Self { access, api }
    }
}

impl Fills for ApiFills {
    fn period(&self) -> Duration {
        PERIOD
    }

    fn read(&self, _: &str) -> Option<NodeFill> {
        None
    }

    fn write(&self, fill: &NodeFill) -> Result<bool, DatastoreError> {
        let object = apply(fill);
        let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&object));
        let request = self.api.patch_status(&fill.node, &params, &patch);
        let what = format!("caliconodestatuses/{}/status", fill.node);
        match self.access.ask_in_turn("patch", what, request) {
            Ok(_) => Ok(true),
            // Who tells what this node makes of each object makes it.
            Err(error) if error.is(404) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn stands(&self, _: Option<&NodeFill>, _: &str) -> bool {
        true
    }

    /// The controller removes the whole object of a node that is gone.
    fn remove(&self, _: &str) -> Result<bool, DatastoreError> {
        Ok(false)
    }
}

fn apply(fill: &NodeFill) -> Value {
    let resource = NODE_STATUSES.resource();
    let report = IpamReport { since: fill.since.clone(), blocks: fill.blocks.clone() };
    json!({
        "apiVersion": resource.api_version, "kind": resource.kind,
        "metadata": {"name": fill.node}, "status": {"ipam": report},
    })
}
