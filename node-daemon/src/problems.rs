//! Standing problems: in the node's status as long as they last, in the log once.

use tokio::sync::watch;
use tracing::warn;

/// Says what the problems of one source are now.
pub(crate) fn tell(problems: &watch::Sender<Vec<String>>, found: Vec<String>) {
    problems.send_if_modified(|known| {
        for problem in found.iter().filter(|problem| !known.contains(problem)) {
            warn!("{problem}");
        }
        let changed = *known != found;
        *known = found;
        changed
    });
}
