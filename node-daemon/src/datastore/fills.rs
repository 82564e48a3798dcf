//! How full blocks are, in a datastore of files.

use std::{path::PathBuf, time::Duration};

use twill_k8s_api::files::{NodeFill, read_fill, remove_fill, write_fill};

use super::{DatastoreError, Fills};

/// One small file, so this often.
const PERIOD: Duration = Duration::from_secs(10);

/// The files of all nodes.
pub(crate) struct FileFills {
    pub(crate) directory: PathBuf,
}

impl Fills for FileFills {
    fn period(&self) -> Duration {
        PERIOD
    }

    fn read(&self, node: &str) -> Option<NodeFill> {
        read_fill(&self.directory, node)
    }

    fn write(&self, fill: &NodeFill) -> Result<bool, DatastoreError> {
        write_fill(&self.directory, fill)?;
        Ok(true)
    }

    fn stands(&self, fill: Option<&NodeFill>, node: &str) -> bool {
        self.read(node).as_ref() == fill
    }

    fn remove(&self, node: &str) -> Result<bool, DatastoreError> {
        Ok(remove_fill(&self.directory, node)?)
    }
}
