//! What this node makes of each object: its own CalicoNodeStatus, never another's object. The
//! controller gathers it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use twill_k8s_api::{Condition, Kind, NodeStatusReport, ObjectId, ObjectReport};

use super::{access::Access, subject::NODE_STATUSES};
use crate::datastore::{DatastoreError, Reports, Snapshot, conditions};

/// How long what was written is taken for what stands there: somebody may delete it.
const REWRITE: Duration = Duration::from_secs(600);

/// Ten thousand nodes that hear of a change of a pool would write at one moment.
const SPREAD: Duration = Duration::from_secs(3);

/// Who writes.
const MANAGER: &str = "twilld";

/// The reports of one node.
pub(super) struct ApiReports {
    access: Arc<Access>,
    api: Api<DynamicObject>,
    node: String,
    /// What was written last, and when.
    told: Mutex<Option<(NodeStatusReport, Instant)>>,
}

impl ApiReports {
    pub(super) fn new(access: Arc<Access>, node: &str) -> Self {
        let api = access.objects(&NODE_STATUSES.resource());
        Self { access, api, node: node.to_owned(), told: Mutex::default() }
    }

    fn own(&self, field: &str, value: &Value) -> Value {
        let resource = NODE_STATUSES.resource();
        json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": {"name": self.node}, field: value,
        })
    }

    fn what(&self) -> String {
        format!("caliconodestatuses/{}/status", self.node)
    }

    /// Makes the object, unless it is there: a status is written by a request of its own.
    fn make(&self) -> Result<(), DatastoreError> {
        let object = self.own("spec", &json!({"node": self.node}));
        let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&object));
        let request = self.api.patch(&self.node, &params, &patch);
        self.access.ask_in_turn("patch", format!("caliconodestatuses/{}", self.node), request)?;
        Ok(())
    }

    /// Writes the status; `false` if there is no such object.
    fn write_status(&self, report: &NodeStatusReport) -> Result<bool, DatastoreError> {
        let object = self.own("status", &json!(report));
        let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&object));
        let request = self.api.patch_status(&self.node, &params, &patch);
        match self.access.ask_in_turn("patch", self.what(), request) {
            Ok(_) => Ok(true),
            Err(error) if error.is(404) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Reports for ApiReports {
    fn spread(&self) -> Duration {
        SPREAD
    }

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
        let before = told.take_if(|(report, _)| report.objects == objects);
        if let Some((report, when)) = before {
            if when.elapsed() < REWRITE {
                *told = Some((report, when));
                return Ok(());
            }
            // Word for word, so that it is no change where it stands.
            if self.write_status(&report)? {
                *told = Some((report, Instant::now()));
                return Ok(());
            }
        }
        self.access.may("patch", &self.what())?;
        self.make()?;
        let last_updated = Some(jiff::Timestamp::now().to_string());
        let report = NodeStatusReport { last_updated, objects, ..Default::default() };
        self.write_status(&report)?;
        *told = Some((report, Instant::now()));
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

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::{super::fake::Fake, *};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_status_that_somebody_deletes_is_made_again() {
        let fake = Fake::default();
        let reports = ApiReports::new(fake.access(), "node1");
        let report = || reports.report(&Snapshot::default(), BTreeMap::new()).unwrap();
        let asked = || fake.with(|objects| std::mem::take(&mut objects.asked).len());
        report();
        assert_eq!(asked(), 2, "the object, and its status");
        report();
        assert_eq!(asked(), 0, "nothing is new");
        let age = || {
            let mut told = reports.told.lock().unwrap();
            told.as_mut().unwrap().1 = Instant::now().checked_sub(REWRITE).unwrap();
        };
        age();
        report();
        let path = "caliconodestatuses/node1";
        assert_eq!(
            fake.with(|objects| std::mem::take(&mut objects.asked)),
            [(Method::PATCH, format!("{path}/status"))],
            "it stands there"
        );
        fake.with(|objects| objects.stored.remove(path)).unwrap();
        age();
        report();
        let stored = fake.with(|objects| objects.stored.get(path).cloned()).unwrap();
        assert!(stored["status"]["lastUpdated"].is_string(), "{stored}");
    }
}
