use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::sync::watch;
use tracing::{info, warn};
use twill_k8s_api::files::{FileError, make_directory};

use super::{Snapshot, file::Files};

/// How long the directory has to be quiet before it is read: an editor's save is several events.
const QUIET: Duration = Duration::from_millis(20);

/// How often a directory on a shared file system is read: inotify does not see other hosts.
const SHARED_POLL: Duration = Duration::from_secs(2);

/// How often a directory is read that cannot be watched, such as one that was removed.
const LOST_POLL: Duration = Duration::from_secs(1);

/// The manifests cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error(transparent)]
    Read(#[from] FileError),
    #[error("cannot watch {}", path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Reads the manifests of a directory, made if there is none, and goes on reading them whenever
/// they change, until nobody is interested any more.
pub(crate) fn watch(
    directory: &Path,
    shared: bool,
) -> Result<watch::Receiver<Arc<Snapshot>>, WatchError> {
    make_directory(directory)?;
    let watched = |source| WatchError::Watch { path: directory.to_owned(), source };
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(watched)?;
    let mut watcher = Watcher {
        directory: directory.to_owned(),
        shared,
        inotify,
        files: Files::default(),
        is_watched: true,
    };
    // Before the first reading, so that no change falls between.
    watcher.add_watch().map_err(watched)?;
    let (sender, receiver) = watch::channel(Arc::new(watcher.read()?));
    std::thread::Builder::new()
        .name("datastore".to_owned())
        .spawn(move || watcher.run(&sender))
        .map_err(WatchError::Thread)?;
    Ok(receiver)
}

struct Watcher {
    directory: PathBuf,
    shared: bool,
    inotify: Inotify,
    files: Files,
    is_watched: bool,
}

impl Watcher {
    fn add_watch(&self) -> Result<(), Errno> {
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        self.inotify.add_watch(&self.directory, what).map(drop)
    }

    fn read(&mut self) -> Result<Snapshot, FileError> {
        let catalog = self.files.reload(&self.directory)?;
        for problem in &catalog.problems {
            warn!("{problem}");
        }
        Ok(Snapshot::new(catalog))
    }

    fn run(mut self, sender: &watch::Sender<Arc<Snapshot>>) {
        loop {
            self.wait();
            if sender.is_closed() {
                return;
            }
            if !self.is_watched {
                self.is_watched = self.add_watch().is_ok();
            }
            // A copy: sending waits for those who hold the value.
            let before = Arc::clone(&sender.borrow());
            match self.reread(&before) {
                Ok(Some(snapshot)) => {
                    info!(objects = snapshot.catalog.resources.len(), "the resources changed");
                    sender.send_replace(Arc::new(snapshot));
                }
                Ok(None) => {}
                // All objects stay as they are: a directory that went away is an accident.
                Err(error) => {
                    if self.is_watched {
                        warn!(%error, "the resources cannot be read; the last ones stay");
                    }
                    self.is_watched = false;
                }
            }
        }
    }

    /// The resources, if they are others than before.
    fn reread(&mut self, before: &Snapshot) -> Result<Option<Snapshot>, FileError> {
        let catalog = self.files.reload(&self.directory)?;
        if catalog == before.catalog {
            return Ok(None);
        }
        for problem in catalog.problems.iter().filter(|p| !before.catalog.problems.contains(p)) {
            warn!("{problem}");
        }
        Ok(Some(Snapshot::new(catalog)))
    }

    /// Waits until it is worth reading: something changed and is quiet again, or it is time.
    fn wait(&mut self) {
        let limit = match (self.is_watched, self.shared) {
            (false, _) => Some(LOST_POLL),
            (true, true) => Some(SHARED_POLL),
            (true, false) => None,
        };
        if !self.readable(limit) {
            return;
        }
        while self.drain() && self.readable(Some(QUIET)) {}
    }

    fn readable(&self, limit: Option<Duration>) -> bool {
        let timeout =
            limit.and_then(|limit| PollTimeout::try_from(limit).ok()).unwrap_or(PollTimeout::NONE);
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        // An interrupted call counts as a change: reading once more does no harm.
        poll(&mut fds, timeout).map_or(true, |ready| ready > 0)
    }

    /// Reads all events; their content does not matter, unless it is the end of the watch.
    fn drain(&mut self) -> bool {
        match self.inotify.read_events() {
            Ok(events) => {
                let end = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF;
                if events.iter().any(|event| event.mask.intersects(end)) {
                    self.is_watched = false;
                }
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            Err(error) => {
                warn!(%error, "cannot read from inotify");
                self.is_watched = false;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\n\
                        metadata: {name: a}\nspec: {cidr: 10.0.0.0/16}\n";

    async fn until(
        receiver: &mut watch::Receiver<Arc<Snapshot>>,
        what: impl FnMut(&Arc<Snapshot>) -> bool,
    ) {
        let change = receiver.wait_for(what);
        tokio::time::timeout(Duration::from_secs(10), change).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn changes_arrive_and_a_directory_that_went_away_takes_nothing_with_it() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("deep/resources");
        let mut receiver = watch(&directory, false).unwrap();
        assert!(receiver.borrow().pools.is_empty());

        std::fs::write(directory.join("a.yaml"), POOL).unwrap();
        until(&mut receiver, |snapshot| snapshot.pools.contains_key("a")).await;

        // As editors save: a new file renamed over the old one.
        let temporary = directory.join(".a.yaml.swp");
        std::fs::write(&temporary, POOL.replace("/16", "/17")).unwrap();
        std::fs::rename(&temporary, directory.join("a.yaml")).unwrap();
        until(&mut receiver, |s| s.pools["a"].spec.cidr.length() == 17).await;

        std::fs::rename(&directory, root.path().join("elsewhere")).unwrap();
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("b.yaml"), POOL.replace("name: a", "name: b")).unwrap();
        until(&mut receiver, |snapshot| snapshot.pools.contains_key("b")).await;
    }

    #[tokio::test]
    async fn a_broken_file_is_told_and_repaired() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("a.yaml"), POOL.replace("cidr", "cird")).unwrap();
        let mut receiver = watch(root.path(), true).unwrap();
        let text = receiver.borrow().problems()[0].to_string();
        assert!(text.contains("a.yaml:4") && text.contains("cird"), "{text}");
        std::fs::write(root.path().join("a.yaml"), POOL).unwrap();
        until(&mut receiver, |snapshot| {
            snapshot.pools.contains_key("a") && snapshot.problems().is_empty()
        })
        .await;
    }
}
