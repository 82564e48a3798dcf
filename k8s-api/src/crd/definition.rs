//! One kind as a manifest.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    kinds::{KINDS, KindDefinition},
    rules::Rule,
    structural::structural,
};
use crate::{API_VERSION, FormatError, ObjectId};

/// The label by which an install knows our definitions from those of others: docs/adr/0018-crds.md.
const PART_OF: &str = "app.kubernetes.io/part-of";

/// The definition of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Its name, such as `ippools.projectcalico.org`.
    pub name: String,
    /// The whole manifest.
    pub manifest: Value,
}

impl Definition {
    /// The manifest in YAML, keys in alphabetical order.
    pub fn to_yaml(&self) -> Result<String, FormatError> {
        serde_saphyr::to_string(&self.manifest).map_err(|source| FormatError {
            object: ObjectId {
                kind: "customresourcedefinition".to_owned(),
                namespace: None,
                name: self.name.clone(),
            },
            source: source.into(),
        })
    }
}

/// The definitions of all kinds that Twill brings, by name.
pub fn definitions() -> Vec<Definition> {
    let mut definitions: Vec<_> = KINDS.iter().map(define).collect();
    definitions.sort_by(|a, b| a.name.cmp(&b.name));
    definitions
}

/// The structural schema of a type.
pub(crate) fn schema_of<T: JsonSchema>() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

fn define(kind: &KindDefinition) -> Definition {
    let (group, version) = API_VERSION.split_once('/').unwrap_or_default();
    let name = format!("{}.{group}", kind.plural);
    let mut manifest = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "labels": {PART_OF: "twill"}},
        "spec": {
            "group": group,
            "scope": "Cluster",
            "names": names(kind),
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema(kind)},
                "subresources": {"status": {}},
            }],
        },
    });
    if !kind.selectable.is_empty() {
        let field = |path: &&str| json!({"jsonPath": path});
        let fields: Value = kind.selectable.iter().map(field).collect();
        manifest["spec"]["versions"][0]["selectableFields"] = fields;
    }
    if !kind.columns.is_empty() {
        manifest["spec"]["versions"][0]["additionalPrinterColumns"] = columns(kind);
    }
    Definition { name, manifest }
}

fn names(kind: &KindDefinition) -> Value {
    let mut names = json!({
        "kind": kind.kind,
        "listKind": format!("{}List", kind.kind),
        "plural": kind.plural,
        "singular": kind.kind.to_lowercase(),
    });
    if !kind.short_names.is_empty() {
        names["shortNames"] = json!(kind.short_names);
    }
    names
}

fn columns(kind: &KindDefinition) -> Value {
    let column = |column: &super::kinds::Column| {
        json!({
            "name": column.name,
            "type": column.form,
            "jsonPath": column.path,
            // kubectl shows what is above 0 with `-o wide` alone.
            "priority": i32::from(column.wide),
        })
    };
    kind.columns.iter().map(column).collect()
}

/// The schema of the whole object, rules included.
fn schema(kind: &KindDefinition) -> Value {
    let text = |about: &str| json!({"type": "string", "description": about});
    let mut schema = json!({
        "type": "object",
        "description": kind.about,
        "properties": {
            "apiVersion": text("The API group and version: projectcalico.org/v3."),
            "kind": text("The kind."),
            // Kubernetes has the schema of the rest. Rules can be about a name only where it stands here.
            "metadata": {
                "type": "object",
                "properties": {"name": {
                    "type": "string",
                    "maxLength": 253,
                    "description": "The object's name.",
                }},
            },
            "spec": (kind.spec)(),
            "status": (kind.status)(),
        },
        "required": ["spec"],
    });
    for (path, rules) in kind.rules {
        if let Some(node) = nodes(&mut schema, path) {
            add_rules(node, rules);
        }
    }
    schema
}

/// Puts rules behind those that a node has.
fn add_rules(node: &mut Map<String, Value>, rules: &[Rule]) {
    let all = node.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
    if let Value::Array(all) = all {
        all.extend(rules.iter().copied().map(Rule::to_json));
    }
}

/// The node at a path such as `spec.exportV4[].cidr`: `[]` leads to the items of a list, and the
/// empty path is the object. A path that leads nowhere gives nothing; a test looks for such.
pub(crate) fn nodes<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut node = schema;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let (field, is_list) = match step.strip_suffix("[]") {
            Some(field) => (field, true),
            None => (step, false),
        };
        node = node.get_mut("properties")?.get_mut(field)?;
        if is_list {
            node = node.get_mut("items")?;
        }
    }
    node.as_object_mut()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every node of a schema, with its path.
    fn walk(node: &Value, path: &str, visit: &mut impl FnMut(&str, &Map<String, Value>)) {
        let Some(node) = node.as_object() else { return };
        visit(path, node);
        for (field, inner) in
            node.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            walk(inner, &format!("{path}.{field}"), visit);
        }
        if let Some(items) = node.get("items") {
            walk(items, &format!("{path}[]"), visit);
        }
    }

    fn each_node(mut visit: impl FnMut(&str, &Map<String, Value>)) {
        for definition in definitions() {
            let version = &definition.manifest["spec"]["versions"][0];
            walk(&version["schema"]["openAPIV3Schema"], &definition.name, &mut visit);
        }
    }

    #[test]
    fn schemas_are_structural() {
        const KNOWN: [&str; 20] = [
            "default",
            "description",
            "enum",
            "format",
            "items",
            "maxItems",
            "maxLength",
            "maximum",
            "minItems",
            "minLength",
            "minimum",
            "pattern",
            "properties",
            "required",
            "type",
            "x-kubernetes-int-or-string",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-list-type",
            "x-kubernetes-validations",
            "additionalProperties",
        ];
        const FORMATS: [&str; 3] = ["int32", "int64", "date-time"];
        each_node(|path, node| {
            let unknown: Vec<_> =
                node.keys().filter(|key| !KNOWN.contains(&key.as_str())).collect();
            assert!(unknown.is_empty(), "{path}: {unknown:?}");
            let is_either = node.contains_key("x-kubernetes-int-or-string");
            assert!(
                node.get("type").is_some_and(Value::is_string) != is_either,
                "{path}: {node:?}"
            );
            let format = node.get("format").and_then(Value::as_str);
            assert!(format.is_none_or(|format| FORMATS.contains(&format)), "{path}: {format:?}");
            let is_list = node.get("type") == Some(&json!("array"));
            assert_eq!(is_list, node.contains_key("x-kubernetes-list-type"), "{path}");
            // Without a bound, the cost of rules below a list or on a text cannot be estimated.
            assert_eq!(is_list, node.contains_key("maxItems"), "{path}");
        });
    }

    #[test]
    fn every_rule_has_a_place() {
        for kind in &KINDS {
            let mut schema = json!({
                "properties": {"spec": (kind.spec)(), "status": (kind.status)()}
            });
            for (path, _) in kind.rules {
                assert!(nodes(&mut schema, path).is_some(), "{} has no {path}", kind.kind);
            }
        }
    }

    #[test]
    fn every_field_is_described_for_people() {
        each_node(|path, node| {
            // Items are described by their list, the metadata by Kubernetes.
            let is_known = path.ends_with("[]") || path.ends_with(".metadata");
            let text = node.get("description").and_then(Value::as_str).unwrap_or_default();
            assert!(is_known || !text.is_empty(), "{path}");
            assert!(!text.contains("::") && !text.contains("[`"), "{path}: {text}");
        });
    }

    #[test]
    fn no_two_kinds_share_a_name() {
        let mut names = BTreeSet::new();
        for kind in &KINDS {
            let singular = kind.kind.to_lowercase();
            for name in kind.short_names.iter().copied().chain([kind.plural, &singular]) {
                assert!(names.insert(name.to_owned()), "{name} stands for two kinds");
            }
        }
    }
}
