//! From objects of the API server to what is read from files: the same reader, the same checks.

use kube::core::DynamicObject;
use serde_json::{Map, Value, json};
use twill_k8s_api::{Loaded, files::Claim, load_manifests};

use super::subject::{ApiKind, BLOCK_AFFINITIES};

/// What kubectl keeps the last manifest in: as large as the object, and read by nobody here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What of an object this node reads. The rest (status, managed fields, versions, a kubelet's
/// heartbeats) changes often, and is neither kept nor compared.
pub(super) fn trim(kind: ApiKind, object: &DynamicObject) -> Value {
    let metadata = &object.metadata;
    let mut kept = Map::new();
    kept.insert("name".to_owned(), json!(metadata.name));
    if let Some(labels) = &metadata.labels {
        kept.insert("labels".to_owned(), json!(labels));
    }
    let annotations: Map<String, Value> = metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(key, _)| *key != LAST_APPLIED)
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    if !annotations.is_empty() {
        kept.insert("annotations".to_owned(), Value::Object(annotations));
    }
    if let Some(uid) = &metadata.uid {
        kept.insert("uid".to_owned(), json!(uid));
    }
    if let Some(created) = &metadata.creation_timestamp {
        kept.insert("creationTimestamp".to_owned(), json!(created));
    }
    let resource = kind.resource();
    let mut trimmed = json!({
        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": kept,
    });
    for field in ["spec", "data", "type"] {
        let is_read = match kind.kind {
            // Of these two, labels and annotations are all.
            "Node" | "Namespace" => false,
            _ => true,
        };
        if let Some(value) = object.data.get(field).filter(|_| is_read) {
            trimmed[field] = value.clone();
        }
    }
    // One that waits for its claims to go gives no addresses any more, so that they can.
    if kind.kind == "IPPool" && metadata.deletion_timestamp.is_some() {
        trimmed["spec"]["disabled"] = json!(true);
    }
    trimmed
}

/// The name of what was trimmed.
pub(super) fn name(trimmed: &Value) -> &str {
    trimmed["metadata"]["name"].as_str().unwrap_or_default()
}

/// Reads what was trimmed as if it stood in a file.
pub(super) fn load(plural: &str, name: &str, trimmed: &Value) -> Loaded {
    load_manifests(&trimmed.to_string(), &format!("{plural}/{name}"))
}

/// Reads a claim, or says what is wrong with it.
pub(super) fn claim(object: &DynamicObject) -> Result<Claim, String> {
    Claim::from_text(&trim(BLOCK_AFFINITIES, object).to_string())
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::Resource;

    use super::*;
    use crate::datastore::kubernetes::subject::Subject;

    #[test]
    fn a_pool_that_is_being_deleted_is_a_disabled_one() {
        let is_pools = |subject: &Subject| subject.kind.kind == "IPPool";
        let pools = Subject::of_every_node("node1").into_iter().find(is_pools).unwrap().kind;
        let is_disabled = |deleted: Option<&str>| {
            let object: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
                "metadata": {"name": "a", "deletionTimestamp": deleted},
                "spec": {"cidr": "10.0.0.0/16"},
            }))
            .unwrap();
            let loaded = load("ippools", "a", &trim(pools, &object));
            match &loaded.resources[0].value {
                Resource::IpPool(pool) => pool.spec.disabled,
                other => panic!("{other:?}"),
            }
        };
        assert!(!is_disabled(None));
        assert!(is_disabled(Some("2026-01-01T00:00:00Z")));
    }
}
