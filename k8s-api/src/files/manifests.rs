use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    DirectoryLock, EVERYONE, FileError, OWNER, failed, make_directory, manifest_names, read_text,
    remove_file, replace_file, replace_file_as, stem,
};
use crate::{
    Loaded, Loc, ObjectId, Problem, Resource, Severity,
    load::identities,
    load_manifests,
    yaml::{self, Document},
};

/// What [`apply_manifest`] did, and to which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// There was no such object.
    Created(PathBuf),
    /// The object was another one before.
    Configured(PathBuf),
    /// The object was the same already; nothing was written.
    Unchanged(PathBuf),
}

/// Every object once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    /// The objects.
    pub resources: BTreeMap<ObjectId, Loc<Resource>>,
    /// What is wrong with any of them.
    pub problems: Vec<Problem>,
}

/// Puts files together. Where two hold the same object, the first in the order given has it.
pub fn catalog<'a>(files: impl IntoIterator<Item = &'a Loaded>) -> Catalog {
    let mut catalog = Catalog::default();
    for loaded in files {
        catalog.problems.extend(loaded.problems.iter().cloned());
        for resource in &loaded.resources {
            let id = resource.value.id();
            match catalog.resources.get(&id) {
                None => drop(catalog.resources.insert(id, resource.clone())),
                Some(first) => catalog.problems.push(Problem::twice(id, first, resource)),
            }
        }
    }
    catalog
}

/// Reads all manifests of a directory, which need not exist. A file that cannot be read is a
/// problem in the answer.
pub fn load_directory(directory: &Path) -> Result<Catalog, FileError> {
    let names = match manifest_names(directory) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let files: Vec<Loaded> = names.iter().map(|name| load_file(&directory.join(name))).collect();
    Ok(catalog(&files))
}

/// Reads one manifest file; problems name its path.
pub(crate) fn load_file(path: &Path) -> Loaded {
    let name = path.display().to_string();
    match read_text(path) {
        Ok(text) => load_manifests(&text, &name),
        Err(error) => {
            Loaded { resources: Vec::new(), problems: vec![Problem::unreadable(name, &error)] }
        }
    }
}

impl Problem {
    /// The same object is in two places.
    pub fn twice(id: ObjectId, first: &Loc<Resource>, second: &Loc<Resource>) -> Self {
        Self {
            severity: Severity::Error,
            file: second.file.clone(),
            line: Some(second.line),
            path: "metadata.name".to_owned(),
            value: None,
            message: format!(
                "{id} is also in {}:{}, and that one is used; remove one of them",
                first.file, first.line
            ),
            object: Some(id),
        }
    }

    /// A file that cannot be read at all.
    pub fn unreadable(file: String, error: &FileError) -> Self {
        let message = match error {
            FileError::Io { source, .. } => format!("cannot be read: {source}"),
            other => other.to_string(),
        };
        Self::of_file(Severity::Error, file, message)
    }
}

/// Writes an object into the datastore. Where a file holds it already, its document there is
/// replaced and the rest of that file stays as it is; else it gets a file `<kind>.<name>.yaml`.
/// The text of the manifest is kept, comments included.
pub fn apply_manifest(directory: &Path, manifest: &Loc<Resource>) -> Result<Applied, FileError> {
    make_directory(directory)?;
    let _lock = DirectoryLock::acquire(directory)?;
    let id = manifest.value.id();
    if let Some(place) = find(directory, &id)? {
        if place.holds(&manifest.value) {
            return Ok(Applied::Unchanged(place.path));
        }
        let body = body(manifest, &place.path)?;
        place.write(Some(&body))?;
        return Ok(Applied::Configured(place.path));
    }
    let path = directory.join(format!("{}.yaml", stem(&id)));
    let mut text = match read_text(&path) {
        Ok(text) => text,
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            String::new()
        }
        Err(error) => return Err(error),
    };
    // A file of that name with other objects in it: this one goes behind them.
    if !text.is_empty() {
        end_line(&mut text);
        text.push_str("---\n");
    }
    text.push_str(&body(manifest, &path)?);
    let mode = if matches!(manifest.value, Resource::Secret(_)) { OWNER } else { EVERYONE };
    replace_file_as(&path, text.as_bytes(), mode)?;
    Ok(Applied::Created(path))
}

/// Takes an object out of the datastore, and its file too if nothing else is in it. Tells which
/// file it was in.
pub fn remove_manifest(directory: &Path, id: &ObjectId) -> Result<Option<PathBuf>, FileError> {
    if !directory.is_dir() {
        return Ok(None);
    }
    let _lock = DirectoryLock::acquire(directory)?;
    let Some(place) = find(directory, id)? else {
        return Ok(None);
    };
    place.write(None)?;
    Ok(Some(place.path))
}

/// The file that holds an object.
pub fn find_manifest(directory: &Path, id: &ObjectId) -> Result<Option<PathBuf>, FileError> {
    match find(directory, id) {
        Ok(place) => Ok(place.map(|place| place.path)),
        Err(FileError::InList { path, .. }) => Ok(Some(path)),
        Err(error) => Err(error),
    }
}

/// Where an object stands: a document of a file.
struct Place {
    path: PathBuf,
    text: String,
    /// The index of its document.
    index: usize,
}

fn find(directory: &Path, id: &ObjectId) -> Result<Option<Place>, FileError> {
    for name in manifest_names(directory)? {
        let path = directory.join(&name);
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(
                FileError::NotRegular { .. }
                | FileError::TooLarge { .. }
                | FileError::NotText { .. },
            ) => {
                continue;
            }
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for (index, document) in yaml::split(&text).iter().enumerate() {
            let ids = identities(document.text);
            if ids.contains(id) {
                if ids.len() > 1 {
                    return Err(FileError::InList { object: id.clone(), path });
                }
                // A link stays a link: the file behind it is what changes.
                let path = fs::canonicalize(&path).map_err(failed("resolve", &path))?;
                return Ok(Some(Place { path, text, index }));
            }
        }
    }
    Ok(None)
}

impl Place {
    fn holds(&self, resource: &Resource) -> bool {
        let documents = yaml::split(&self.text);
        let loaded = documents.get(self.index).map(|document| load_manifests(document.text, ""));
        loaded.is_some_and(|loaded| {
            !loaded.has_errors() && loaded.resources.iter().any(|found| found.value == *resource)
        })
    }

    /// Writes the file with another document in this place, or with none.
    fn write(&self, body: Option<&str>) -> Result<(), FileError> {
        let mut text = String::new();
        for (index, document) in yaml::split(&self.text).iter().enumerate() {
            let part = match body {
                _ if index != self.index => document.text,
                Some(body) => body,
                None => continue,
            };
            let marked = index != self.index && document.starts_with_marker();
            if !text.is_empty() && !marked {
                text.push_str("---\n");
            }
            text.push_str(part);
            end_line(&mut text);
        }
        let is_empty = yaml::split(&text).iter().all(Document::is_empty);
        if is_empty {
            remove_file(&self.path).map(drop)
        } else {
            replace_file(&self.path, text.as_bytes())
        }
    }
}

/// The text of an object as it goes into a file: as it was written, if that can stand anywhere in
/// a file, else written anew.
fn body(manifest: &Loc<Resource>, path: &Path) -> Result<String, FileError> {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let written = manifest.text.as_deref().map(|text| Document { text, line: 1 });
    let mut text = match written.as_ref().and_then(Document::body) {
        Some(text) if !is_json => text,
        _ if is_json => manifest.value.to_json()?,
        _ => manifest.value.to_yaml()?,
    };
    end_line(&mut text);
    Ok(text)
}

fn end_line(text: &mut String) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
}
