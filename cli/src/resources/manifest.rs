//! Manifests as JSON: what is sent, and what comes back.

use serde_json::{Map, Value, json};
use twill_k8s_api::{API_VERSION, Kind, Loaded, Loc, Resource, load_manifests};

use super::ResourceError;

/// What kubectl keeps the last manifest in: as large as the object, and read by nobody here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A manifest as its owner wrote it: what it does not say is not said either. The API group is the
/// one that is served; what a server fills in, and would not take back, is left out.
pub(crate) fn document(manifest: &Loc<Resource>) -> Result<Value, ResourceError> {
    let unreadable = |source: Box<dyn std::error::Error + Send + Sync>| ResourceError::Unreadable {
        what: manifest.value.id().to_string(),
        source,
    };
    let written = manifest.text.as_deref().map(serde_saphyr::from_str::<Value>);
    let mut value = match written {
        Some(value) => value.map_err(|error| unreadable(error.into()))?,
        // An item of a List.
        None => serde_json::to_value(&manifest.value).map_err(|error| unreadable(error.into()))?,
    };
    if manifest.value.kind().is_some_and(|kind| !kind.is_core()) {
        value["apiVersion"] = json!(API_VERSION);
    }
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        for field in ["managedFields", "creationTimestamp", "generation", "selfLink"] {
            metadata.remove(field);
        }
        // Our reader has said that it has no effect.
        if manifest.value.kind().is_some_and(|kind| kind != Kind::Secret) {
            metadata.remove("namespace");
        }
    }
    Ok(value)
}

/// The manifest for a verb that says what is to be, whatever is there: without which object it was that
/// was read, and which version of it. An object that is gone since would be refused for the one, and
/// one whose status was written since for the other.
pub(super) fn anew(mut document: Value) -> Value {
    if let Some(metadata) = document["metadata"].as_object_mut() {
        metadata.remove("uid");
        metadata.remove("resourceVersion");
    }
    document
}

/// Reads an object of the API server as if it stood in a file: the same checks, the same remedies.
/// Of Nodes and Namespaces only the metadata is read, and nobody's status.
pub(crate) fn read_back(place: &str, object: &Value) -> Loaded {
    let mut kept = Map::new();
    let metadata = &object["metadata"];
    for field in ["name", "labels", "uid", "creationTimestamp"] {
        if let Some(value) = metadata.get(field) {
            kept.insert(field.to_owned(), value.clone());
        }
    }
    if let Some(annotations) = metadata["annotations"].as_object() {
        let mut annotations = annotations.clone();
        annotations.remove(LAST_APPLIED);
        kept.insert("annotations".to_owned(), Value::Object(annotations));
    }
    let mut trimmed = json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": kept,
    });
    let is_metadata_only = matches!(object["kind"].as_str(), Some("Node" | "Namespace"));
    for field in ["spec", "data", "stringData", "type"] {
        if let Some(value) = object.get(field).filter(|_| !is_metadata_only) {
            trimmed[field] = value.clone();
        }
    }
    load_manifests(&trimmed.to_string(), place)
}

/// Takes off what only other programs read.
pub(super) fn shown(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_was_written() {
        let text = "# a comment\napiVersion: crd.projectcalico.org/v1\nkind: IPPool\n\
                    metadata: {name: a, namespace: b, uid: u, resourceVersion: '7', managedFields: [], creationTimestamp: null}\n\
                    spec: {cidr: 10.0.0.0/24}\nstatus: {}\n";
        let mut loaded = load_manifests(text, "");
        let expected = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "7"}, "spec": {"cidr": "10.0.0.0/24"},
        });
        let sent = document(&loaded.resources[0]).unwrap();
        assert_eq!(sent, expected);
        assert_eq!(anew(sent)["metadata"], json!({"name": "a"}));
        loaded.resources[0].text = None;
        let of_a_list = document(&loaded.resources[0]).unwrap();
        assert_eq!(of_a_list["spec"], json!({"cidr": "10.0.0.0/24"}));
    }

    #[test]
    fn an_object_is_read_with_our_checks() {
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "spec": {"podCIDR": "10.0.0.0/24"}, "status": {},
            "metadata": {"name": "n", "managedFields": [{}], "resourceVersion": "1",
                "annotations": {"projectcalico.org/ASNumber": "64512", LAST_APPLIED: "{}"}},
        });
        let loaded = read_back("nodes/n", &object);
        assert_eq!(loaded.problems, []);
        let Resource::Node(node) = &loaded.resources[0].value else { panic!("{loaded:?}") };
        assert_eq!(node.as_number().unwrap().to_string(), "64512");
        assert_eq!(node.metadata.annotations.len(), 1);
        let shown = shown(object);
        assert_eq!(shown["metadata"]["managedFields"], Value::Null);
        assert_eq!(shown["metadata"]["resourceVersion"], "1");
    }
}
