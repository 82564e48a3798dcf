use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Kubernetes' object metadata. What Twill does not use is kept as it came, so that a manifest
/// taken from a cluster with `-o yaml` needs no cleaning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The object's name, an RFC 1123 subdomain.
    pub name: String,
    /// Its namespace; the kinds that Twill knows have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What tells it from an earlier object of the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// When it was made, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resource_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) generate_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) self_link: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deletion_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deletion_grace_period_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) finalizers: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner_references: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) managed_fields: Option<Value>,
}

/// An object as it stands in a manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object<Spec> {
    /// The API group and version it was written in.
    pub api_version: String,
    /// The kind as it was written: some have two names.
    pub kind: String,
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// What its owner wants.
    pub spec: Spec,
    /// What a cluster said about it; read by nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

/// Which object: no two have the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// The kind in lower case, `ippool`; both names of one kind read the same here.
    pub kind: String,
    /// Its namespace, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// Why a text cannot name an object, unless it can. RFC 1123 subdomains are safe in file names.
pub(crate) fn name_fault(name: &str) -> Option<&'static str> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let part_is_right = |part: &str| {
        part.starts_with(inner)
            && part.ends_with(inner)
            && part.chars().all(|c| inner(c) || c == '-')
    };
    if name.is_empty() {
        Some("an object needs a name; add metadata.name")
    } else if name.len() > 253 {
        Some("a name has at most 253 characters")
    } else if !name.split('.').all(part_is_right) {
        Some(
            "a name is made of a-z, 0-9, `-` and `.`, and each part between dots starts and ends \
             with a letter or digit",
        )
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_subdomains() {
        for name in ["a", "app-pool", "node.n1", "0a0a0040-26"] {
            assert_eq!(name_fault(name), None, "{name}");
        }
        for name in ["", "A", "a_b", "-a", "a-", "a..b", ".", "..", "a/b", &"a".repeat(254)] {
            assert!(name_fault(name).is_some(), "{name}");
        }
    }
}
