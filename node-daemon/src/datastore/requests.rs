use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use twill_k8s_api::{
    BlockRequest, BlockRequestSpec, Resource,
    files::{
        DirectoryLock, FileError, REQUESTS, create_file, make_directory, read_requests,
        remove_file, replace_file,
    },
};

use super::claims::new_uid;

/// The requests of a file datastore for parts of other nodes' blocks: one file each, named by the
/// claimed block and a unique number. A node has what answers its request for as long as that is
/// there.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    directory: PathBuf,
}

impl Requests {
    /// Uses `<directory>/requests/`, made if there is none.
    pub(crate) fn open(directory: &Path) -> Result<Self, FileError> {
        make_directory(&directory.join(REQUESTS))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where they are.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.join(REQUESTS)
    }

    /// Asks; the request's name.
    pub(crate) fn ask(&self, spec: BlockRequestSpec) -> Result<String, FileError> {
        let name = format!("{}.{}", spec.block.claim_name(), new_uid());
        let created = jiff::Timestamp::now().to_string();
        let request = BlockRequest::named(name.clone(), created, spec);
        let text = Resource::BlockRequest(request).to_yaml()?;
        let _lock = DirectoryLock::acquire(&self.directory())?;
        create_file(&self.path(&name), text.as_bytes())?;
        Ok(name)
    }

    /// Says why a request is not met, in its status, for who asked to read.
    pub(crate) fn refuse(&self, name: &str, why: &str) -> Result<(), FileError> {
        let _lock = DirectoryLock::acquire(&self.directory())?;
        let Some(Some(mut request)) = self.list()?.remove(name) else {
            return Ok(());
        };
        request.status = Some(serde_json::json!({ "refused": why }));
        let text = Resource::BlockRequest(request).to_yaml()?;
        replace_file(&self.path(name), text.as_bytes())
    }

    /// Takes a request back: what answered it is the owner's again.
    pub(crate) fn withdraw(&self, name: &str) -> Result<bool, FileError> {
        let _lock = DirectoryLock::acquire(&self.directory())?;
        remove_file(&self.path(name))
    }

    /// All of them, by name; those that cannot be read without a content.
    pub(crate) fn list(&self) -> Result<BTreeMap<String, Option<BlockRequest>>, FileError> {
        read_requests(&self.directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory().join(format!("{name}.yaml"))
    }
}
