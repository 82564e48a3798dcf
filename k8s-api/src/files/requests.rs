use std::{collections::BTreeMap, io, path::Path};

use super::{FileError, REQUESTS, manifest_names, read_text};
use crate::{BlockRequest, load::read_own};

/// Reads all BlockRequests in `<directory>/requests/`, which need not exist, by name. One that cannot
/// be read is there all the same, without a content: the part that answers it stays where it is.
pub fn read_requests(
    directory: &Path,
) -> Result<BTreeMap<String, Option<BlockRequest>>, FileError> {
    let directory = directory.join(REQUESTS);
    let names = match manifest_names(&directory) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(BTreeMap::new());
        }
        names => names?,
    };
    let mut requests = BTreeMap::new();
    for file in names {
        let Some(name) = file.strip_suffix(".yaml") else {
            continue;
        };
        // One may have been removed since it was listed.
        if let Some(request) = read(&directory.join(&file), name) {
            requests.insert(name.to_owned(), request);
        }
    }
    Ok(requests)
}

/// Reads one BlockRequest; `None` if there is none, and one without a content if it cannot be read.
pub fn read_request(directory: &Path, name: &str) -> Option<Option<BlockRequest>> {
    read(&directory.join(REQUESTS).join(format!("{name}.yaml")), name)
}

fn read(path: &Path, name: &str) -> Option<Option<BlockRequest>> {
    let request = match read_text(path) {
        Ok(text) => read_own::<BlockRequest>(&text).ok(),
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return None;
        }
        Err(_) => None,
    };
    Some(request.filter(|request| request.metadata.name == name))
}
