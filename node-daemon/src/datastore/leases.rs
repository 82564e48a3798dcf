use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use twill_k8s_api::files::{
    FileError, LEASES, Lease, make_directory, read_lease, read_leases, remove_lease, renew_lease,
};

/// Which nodes' daemons live: each renews a file of its own.
#[derive(Debug, Clone)]
pub(crate) struct FileLeases {
    datastore: PathBuf,
    directory: PathBuf,
}

impl FileLeases {
    /// Uses `<datastore>/leases/`, made if there is none.
    pub(crate) fn open(datastore: &Path) -> Result<Self, FileError> {
        let directory = datastore.join(LEASES);
        make_directory(&directory)?;
        Ok(Self { datastore: datastore.to_owned(), directory })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a lease; what it was before.
    pub(crate) fn renew(&self, lease: Lease) -> Result<Option<Lease>, FileError> {
        renew_lease(&self.datastore, lease)
    }

    /// What a node said last.
    pub(crate) fn get(&self, node: &str) -> Option<Lease> {
        read_lease(&self.datastore, node)
    }

    /// What each node said last.
    pub(crate) fn list(&self) -> Result<BTreeMap<String, Lease>, FileError> {
        read_leases(&self.datastore)
    }

    /// Forgets a node that is gone.
    pub(crate) fn remove(&self, node: &str) -> Result<bool, FileError> {
        remove_lease(&self.datastore, node)
    }
}
