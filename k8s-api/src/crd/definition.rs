//! One kind as a manifest.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    kinds::{KINDS, KindDefinition},
    rules::Rule,
    structural::structural,
};
use crate::API_VERSION;

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
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        serde_saphyr::to_string(&self.manifest)
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
        "metadata": {"name": name},
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
            "metadata": {"type": "object"},
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
        all.extend(rules.iter().map(Rule::to_json));
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
