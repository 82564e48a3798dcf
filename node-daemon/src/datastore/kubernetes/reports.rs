//! What this node makes of each object: its own CalicoNodeStatus, never another's object. The
//! controller is to gather it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::json;
use twill_k8s_api::{Condition, Kind, NodeStatusReport, ObjectId, ObjectReport};

use super::{access::Access, subject::NODE_STATUSES};
use crate::datastore::{DatastoreError, Reports, Snapshot, conditions};

/// Who writes.
const MANAGER: &str = "twilld";

/// The reports of one node.
pub(super) struct ApiReports {
    access: Arc<Access>,
    api: Api<DynamicObject>,
    node: String,
    /// What was written last.
    told: Mutex<Vec<ObjectReport>>,
}

impl ApiReports {
    pub(super) fn new(access: Arc<Access>, node: &str) -> Self {
        let api = access.objects(&NODE_STATUSES.resource());
        Self { access, api, node: node.to_owned(), told: Mutex::default() }
    }
}

impl Reports for ApiReports {
    fn report(
        &self,
        snapshot: &Snapshot,
        said: BTreeMap<ObjectId, Vec<Condition>>,
    ) -> Result<(), DatastoreError> {
        let mut all = conditions(snapshot);
        for (object, conditions) in said {
            all.entry(object).or_default().extend(conditions);
        }
        let objects: Vec<ObjectReport> =
            all.into_iter().filter_map(|of_it| object_report(&self.node, of_it)).collect();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == objects {
            return Ok(());
        }
        let what = || format!("caliconodestatuses/{}", self.node);
        let resource = NODE_STATUSES.resource();
        let own = |field: &str, value| {
            json!({
                "apiVersion": resource.api_version, "kind": resource.kind,
                "metadata": {"name": self.node}, field: value,
            })
        };
        let params = PatchParams::apply(MANAGER).force();
        // The first time it has to be made, and a status is written by a request of its own.
        let object = own("spec", json!({"node": self.node}));
        let patch = Patch::Apply(&object);
        let request = self.api.patch(&self.node, &params, &patch);
        self.access.ask("patch", what(), request)?;
        let last_updated = Some(jiff::Timestamp::now().to_string());
        let report =
            NodeStatusReport { last_updated, objects: objects.clone(), ..Default::default() };
        let object = own("status", json!(report));
        let patch = Patch::Apply(&object);
        let request = self.api.patch_status(&self.node, &params, &patch);
        self.access.ask("patch", format!("{}/status", what()), request)?;
        *told = objects;
        Ok(())
    }
}

/// Of two conditions of one type the first one counts, with the messages of both: a list by type holds
/// each once.
fn object_report(node: &str, (id, conditions): (ObjectId, Vec<Condition>)) -> Option<ObjectReport> {
    let kind = Kind::from_alias(&id.kind)?;
    // Nobody reads what every node makes of every namespace, or of every other node.
    let is_told = match kind {
        Kind::Namespace | Kind::Secret => false,
        Kind::Node => id.name == node,
        _ => true,
    };
    let mut merged: Vec<Condition> = Vec::new();
    for condition in conditions {
        match merged.iter_mut().find(|other| other.kind == condition.kind) {
            Some(other) => other.message = format!("{}; {}", other.message, condition.message),
            None => merged.push(condition),
        }
    }
    let kind = kind.manifest_name().to_owned();
    let report =
        ObjectReport { kind, name: id.name, observed_generation: None, conditions: merged };
    is_told.then_some(report)
}
