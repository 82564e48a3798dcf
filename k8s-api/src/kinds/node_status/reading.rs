//! What a node told, as a daemon of another release may have written it: value by value, so that one that
//! cannot be read hides no other.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{IpamReport, NodeStatusReport, ObjectReport};

/// Reads, and notes what could not be read.
#[derive(Default)]
struct Reading {
    unread: Vec<String>,
}

impl NodeStatusReport {
    /// Reads the `status` of a CalicoNodeStatus. The second is what could not be read, each as its place
    /// and why; all else counts.
    pub fn read(status: &Value) -> (Self, Vec<String>) {
        let mut reading = Reading::default();
        let report = Self {
            last_updated: reading.value("status.lastUpdated", &status["lastUpdated"]),
            agent: reading.value("status.agent", &status["agent"]),
            bgp: reading.value("status.bgp", &status["bgp"]),
            routes: reading.value("status.routes", &status["routes"]),
            objects: reading
                .list("status.objects", &status["objects"], Reading::object)
                .unwrap_or_default(),
            ipam: reading.ipam(&status["ipam"]),
        };
        (report, reading.unread)
    }
}

impl Reading {
    fn note(&mut self, place: &str, why: impl std::fmt::Display) {
        self.unread.push(format!("{place}: {why}"));
    }

    /// What is not there is nothing that cannot be read.
    fn value<T: DeserializeOwned>(&mut self, place: &str, value: &Value) -> Option<T> {
        if value.is_null() {
            return None;
        }
        T::deserialize(value).inspect_err(|error| self.note(place, error)).ok()
    }

    /// The items that can be read; `None` where there is no list.
    fn list<T>(
        &mut self,
        place: &str,
        value: &Value,
        item: impl Fn(&mut Self, &str, &Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        if value.is_null() {
            return None;
        }
        let Some(values) = value.as_array() else {
            self.note(place, "is no list");
            return None;
        };
        let read = values.iter().enumerate();
        Some(read.filter_map(|(n, value)| item(self, &format!("{place}[{n}]"), value)).collect())
    }

    fn object(&mut self, place: &str, value: &Value) -> Option<ObjectReport> {
        let (kind, name) = (value["kind"].as_str(), value["name"].as_str());
        let (Some(kind), Some(name)) = (kind, name) else {
            self.note(place, "has no kind, or no name");
            return None;
        };
        let generation = &value["observedGeneration"];
        let conditions = format!("{place}.conditions");
        Some(ObjectReport {
            kind: kind.to_owned(),
            name: name.to_owned(),
            observed_generation: self.value(&format!("{place}.observedGeneration"), generation),
            conditions: self
                .list(&conditions, &value["conditions"], Self::value)
                .unwrap_or_default(),
        })
    }

    fn ipam(&mut self, value: &Value) -> Option<IpamReport> {
        let blocks = self.list("status.ipam.blocks", &value["blocks"], Self::value)?;
        let since = self.value("status.ipam.since", &value["since"]).unwrap_or_default();
        Some(IpamReport { since, blocks })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        let condition =
            |kind: &str| json!({"type": kind, "status": "True", "reason": "Valid", "message": ""});
        let block = |block: &str| {
            json!({
                "block": block, "pool": "a", "size": 64, "used": 3, "free": 61, "cooling": 0, "reserved": 0,
            })
        };
        json!({
            "lastUpdated": "2026-11-24T12:00:00Z",
            "objects": [
                {"kind": "IPPool", "name": "a", "conditions": [condition("Accepted"), condition("Other")]},
                {"kind": "IPPool", "name": "b", "observedGeneration": 3},
            ],
            "ipam": {
                "since": "2026-11-24T12:00:00Z",
                "blocks": [block("10.0.0.0/26"), block("10.0.0.64/26")],
            },
        })
    }

    #[test]
    fn what_this_release_writes_is_read_as_a_whole() {
        let (report, unread) = NodeStatusReport::read(&status());
        assert_eq!(serde_json::to_value(&report).unwrap()["objects"], status()["objects"]);
        assert_eq!(report, serde_json::from_value(status()).unwrap());
        assert_eq!(unread, [""; 0]);
        assert_eq!(NodeStatusReport::read(&Value::Null), Default::default());
    }

    #[test]
    fn a_value_that_cannot_be_read_hides_no_other_and_is_told() {
        /// Where; what; how many objects, conditions of the first one and blocks are left, and what is said.
        type Case<'a> = (&'a str, Value, [usize; 3], &'a str);
        let cases: [Case<'_>; 9] = [
            (
                "/objects/0/conditions/0/status",
                json!("Perhaps"),
                [2, 1, 2],
                "status.objects[0].conditions[0]: unknown variant `Perhaps`",
            ),
            (
                "/objects/0/conditions",
                json!("many"),
                [2, 0, 2],
                "status.objects[0].conditions: is no list",
            ),
            (
                "/objects/1/observedGeneration",
                json!("new"),
                [2, 2, 2],
                "status.objects[1].observedGeneration: invalid type",
            ),
            ("/objects/1/name", json!(7), [1, 2, 2], "status.objects[1]: has no kind, or no name"),
            ("/objects", json!({"a": 1}), [0, 0, 2], "status.objects: is no list"),
            ("/ipam/blocks/1/block", json!("10.0.0.0/99"), [2, 2, 1], "status.ipam.blocks[1]: "),
            ("/ipam/blocks", json!("full"), [2, 2, 0], "status.ipam.blocks: is no list"),
            ("/ipam/since", json!(12), [2, 2, 2], "status.ipam.since: invalid type"),
            ("/lastUpdated", json!(12), [2, 2, 2], "status.lastUpdated: invalid type"),
        ];
        for (place, value, left, expected) in cases {
            let mut status = status();
            *status.pointer_mut(place).unwrap() = value;
            let (report, unread) = NodeStatusReport::read(&status);
            let of_first = report.objects.first().map_or(0, |object| object.conditions.len());
            let blocks = report.ipam.map_or(0, |ipam| ipam.blocks.len());
            assert_eq!([report.objects.len(), of_first, blocks], left, "{place}");
            assert!(matches!(&unread[..], [only] if only.starts_with(expected)), "{unread:?}");
        }
    }
}
