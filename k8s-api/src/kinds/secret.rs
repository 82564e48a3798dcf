use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::{Report, Rules};
use crate::{Metadata, Unsupported};

/// Kubernetes' own Secret: passwords of BGP sessions. Nothing in it is ever printed but by who asks
/// for the object itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// `v1`.
    pub api_version: String,
    /// `Secret`.
    pub kind: String,
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// Values in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, SecretText>,
    /// Values as they are, over those of `data`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub string_data: BTreeMap<String, SecretText>,
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub(crate) kind_of_secret: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) immutable: Option<bool>,
}

/// A text that is nobody's to read: its `Debug` form shows nothing of it.
#[derive(Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Any value, because serde's own complaint about a wrong one would quote it.
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            _ => Err(de::Error::custom("is no text; write it in quotes")),
        }
    }
}

impl Secret {
    /// The value of a key; `None` if it has none that can be read.
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        match self.string_data.get(key) {
            Some(text) => Some(text.0.clone().into_bytes()),
            None => decode(self.data.get(key)?),
        }
    }
}

fn decode(text: &SecretText) -> Option<Vec<u8>> {
    // Long values are wrapped by some tools.
    let text: String = text.0.split_ascii_whitespace().collect();
    STANDARD.decode(text).ok()
}

impl Rules for Secret {
    fn check(&self, report: &mut Report) {
        for (key, text) in &self.data {
            if decode(text).is_none() {
                report.error(
                    &format!("data.{key}"),
                    "is not base64; encode it, or write it as it is below stringData",
                );
            }
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Loaded, Resource, load_manifests};

    fn load(body: &str) -> Loaded {
        load_manifests(
            &format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: bgp}}\n{body}"),
            "s.yaml",
        )
    }

    #[test]
    fn values_are_read_from_both_places() {
        let loaded = load("type: Opaque\ndata: {a: czNjcmV0, b: czNjcmV0}\nstringData: {b: plain}");
        assert_eq!(loaded.problems, []);
        let Resource::Secret(secret) = &loaded.resources[0].value else {
            panic!("{loaded:?}");
        };
        assert_eq!(secret.value("a").as_deref(), Some(&b"s3cret"[..]));
        assert_eq!(secret.value("b").as_deref(), Some(&b"plain"[..]));
        assert_eq!(secret.value("c"), None);
    }

    /// Whatever is wrong with a Secret, what it holds is not told.
    #[test]
    fn nothing_of_a_secret_is_told() {
        for body in [
            "data: {password: hunter2!}",
            "stringData: {password: hunter2}",
            "stringData: {password: {hunter2: hunter2}}",
            "stringData: {password: [hunter2]}",
            "stringData: hunter2",
            "data: hunter2",
            "type: [hunter2]\nstringData: {password: hunter2}",
            "immutable: hunter2",
        ] {
            let loaded = load(body);
            let told: Vec<_> = loaded.problems.iter().map(ToString::to_string).collect();
            let told = format!("{told:?} {loaded:?}");
            assert!(!told.contains("hunter2"), "{body}: {told}");
        }
        let loaded = load("data: {password: hunter2!}");
        assert_eq!(
            loaded.problems[0].to_string(),
            "error: s.yaml:4: data.password: is not base64; encode it, or write it as it is below \
             stringData"
        );
        let loaded = load("stringData: {password: 12345}");
        assert!(loaded.has_errors() && !format!("{loaded:?}").contains("12345"), "{loaded:?}");
    }

    #[test]
    fn a_secret_of_a_cluster_is_taken_as_it_comes() {
        let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: bgp, namespace: kube-system}\n\
                    data: {a: czNjcmV0}\n";
        let loaded = load_manifests(text, "s.yaml");
        assert!(!loaded.has_errors() && loaded.resources.len() == 1, "{loaded:?}");
        assert_eq!(
            loaded.problems[0].to_string(),
            "note: s.yaml:3: metadata.namespace: kube-system: files know Secrets by their names alone, \
             and the namespace has no effect there; on Kubernetes daemons read those of their own \
             namespace"
        );
    }
}
