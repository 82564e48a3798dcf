use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    FileError, STATUS, failed, make_directory, read_text, remove_file, replace_file, stem,
};
use crate::{Condition, ObjectId, Resource};

/// What one node says about one object: the file `status/<node>/<kind>.<name>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The object.
    pub object: ObjectId,
    /// The node.
    pub node: String,
    /// What it says.
    pub conditions: Vec<Condition>,
}

/// What all nodes say about all objects: conditions by object, then by node.
pub type Statuses = BTreeMap<ObjectId, BTreeMap<String, Vec<Condition>>>;

fn file_name(object: &ObjectId) -> String {
    format!("{}.json", stem(object))
}

/// Writes a status, unless its file says just that already; tells whether it wrote.
pub fn write_status(directory: &Path, status: &Status) -> Result<bool, FileError> {
    let directory = directory.join(STATUS).join(&status.node);
    let path = directory.join(file_name(&status.object));
    if read_text(&path).is_ok_and(|text| serde_json::from_str(&text).ok().as_ref() == Some(status))
    {
        return Ok(false);
    }
    make_directory(&directory)?;
    let mut text = serde_json::to_string_pretty(status)
        .map_err(io::Error::from)
        .map_err(failed("write", &path))?;
    text.push('\n');
    replace_file(&path, text.as_bytes())?;
    Ok(true)
}

/// Removes a node's status of an object; tells whether there was one.
pub fn remove_status(directory: &Path, node: &str, object: &ObjectId) -> Result<bool, FileError> {
    remove_file(&directory.join(STATUS).join(node).join(file_name(object)))
}

/// Reads every status. What cannot be read is passed over: its node writes it again.
pub fn read_statuses(directory: &Path) -> Result<Statuses, FileError> {
    let root = directory.join(STATUS);
    let mut statuses = Statuses::new();
    for node in entries(&root)? {
        for path in entries(&node)? {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = read_text(&path).unwrap_or_default();
            if let Ok(status) = serde_json::from_str::<Status>(&text) {
                statuses.entry(status.object).or_default().insert(status.node, status.conditions);
            }
        }
    }
    Ok(statuses)
}

/// What a directory holds; nothing if it does not exist or is none.
pub(super) fn entries(directory: &Path) -> Result<Vec<std::path::PathBuf>, FileError> {
    let listing = match fs::read_dir(directory) {
        Ok(listing) => listing,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed("list", directory)(error)),
    };
    listing
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed("list", directory)))
        .collect()
}

/// An object as a manifest with `status.nodes[]` of what nodes say, for showing; a status that
/// came with the manifest is left out, since nobody keeps it up to date.
pub fn with_status(resource: &Resource, statuses: &Statuses) -> Result<Value, serde_json::Error> {
    let mut manifest = serde_json::to_value(resource)?;
    if let (Some(fields), Some(_)) = (manifest.as_object_mut(), resource.kind()) {
        fields.remove("status");
        if let Some(nodes) = statuses.get(&resource.id()) {
            let nodes: Vec<Value> = nodes
                .iter()
                .map(|(node, conditions)| json!({ "name": node, "conditions": conditions }))
                .collect();
            fields.insert("status".to_owned(), json!({ "nodes": nodes }));
        }
    }
    Ok(manifest)
}
