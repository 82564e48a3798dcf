//! A control group for the containers of one test.

use std::{fs, path::Path};

/// A name below the root of each hierarchy, removed with everything below it when this is dropped.
/// Groups are no namespace's, so the sandbox does not end them.
pub(crate) struct Cgroup(String);

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        // Process numbers are the sandbox's own, so the clock keeps two apart.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self(format!("twill-{name}-{:x}", now.unwrap_or_default().as_nanos()))
    }

    pub(crate) fn path(&self) -> String {
        format!("/{}", self.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
        remove(&root.join(&self.0));
        for hierarchy in hierarchies {
            remove(&hierarchy.path().join(&self.0));
        }
    }
}

/// Removes a group and those below it. One that has processes still stays, and shows.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
