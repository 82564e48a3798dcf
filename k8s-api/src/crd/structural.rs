//! From JSON Schema to what Kubernetes calls a structural schema: every node has one type, nothing
//! is referred to, nothing is an alternative.

use serde_json::{Map, Value, json};

/// Rewrites a schema that schemars made with its subschemas inlined.
pub(crate) fn structural(schema: &mut Value) {
    let Value::Object(node) = schema else { return };
    for key in ["$schema", "title", "$defs"] {
        node.remove(key);
    }
    if let Some(Value::String(text)) = node.get_mut("description") {
        *text = plain(text);
    }
    optional(node);
    variants(node);
    bounds(node);
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = node.get_mut(key) {
            structural(inner);
        }
    }
    if let Some(Value::Object(fields)) = node.get_mut("properties") {
        fields.values_mut().for_each(structural);
    }
    if node.get("type") == Some(&json!("array")) {
        node.entry("x-kubernetes-list-type").or_insert_with(|| json!("atomic"));
    }
}

/// `Option<T>` is a field that may be left out; `null` is no value.
fn optional(node: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = node.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            node.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(values)) = node.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    let Some(Value::Array(mut choices)) = node.remove("anyOf") else { return };
    choices.retain(|choice| choice.get("type") != Some(&json!("null")));
    if let [Value::Object(only)] = choices.as_mut_slice() {
        // What the field says of itself stands above what its type says.
        for (key, value) in std::mem::take(only) {
            node.entry(key).or_insert(value);
        }
    }
    optional(node);
}

/// An enum whose values have descriptions of their own.
fn variants(node: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = node.remove("oneOf") else { return };
    let mut values = Vec::new();
    let mut lines = Vec::new();
    for choice in &choices {
        let Some(value) = choice.get("const").and_then(Value::as_str) else {
            values
                .extend(choice.get("enum").and_then(Value::as_array).cloned().unwrap_or_default());
            continue;
        };
        values.push(json!(value));
        if let Some(text) = choice.get("description").and_then(Value::as_str) {
            lines.push(format!("{value}: {}", plain(text)));
        }
    }
    node.insert("type".to_owned(), json!("string"));
    node.insert("enum".to_owned(), Value::Array(values));
    if !lines.is_empty() {
        let about = node.get("description").and_then(Value::as_str).map(str::to_owned);
        lines.splice(0..0, about);
        node.insert("description".to_owned(), json!(lines.join("\n")));
    }
}

/// Kubernetes knows the formats of signed integers only; the bounds say the rest.
fn bounds(node: &mut Map<String, Value>) {
    let (format, largest) = match node.get("format").and_then(Value::as_str) {
        Some("uint8") => ("int32", u64::from(u8::MAX)),
        Some("uint16") => ("int32", u64::from(u16::MAX)),
        Some("uint32") => ("int64", u64::from(u32::MAX)),
        Some("uint64" | "uint") => ("int64", i64::MAX.unsigned_abs()),
        _ => return,
    };
    node.insert("format".to_owned(), json!(format));
    node.entry("minimum").or_insert_with(|| json!(0));
    node.entry("maximum").or_insert_with(|| json!(largest));
}

/// A doc comment as a paragraph for people who do not read Rust.
fn plain(text: &str) -> String {
    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
    let text = paragraphs.collect::<Vec<_>>().join("\n");
    text.replace("[`", "`").replace("`]", "`")
}
