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
        let request = match read_text(&directory.join(&file)) {
            Ok(text) => read_own::<BlockRequest>(&text).ok(),
            // Removed since it was listed.
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                continue;
            }
            Err(_) => None,
        };
        let request = request.filter(|request| request.metadata.name == name);
        requests.insert(name.to_owned(), request);
    }
    Ok(requests)
}
