//! Standing problems: in the node's status as long as they last, in the log once.

use tokio::sync::watch;
use tracing::warn;
use twill_ipam_store::{Service, StoreError};
use twill_types::error_chain;

use crate::spool::Tombstones;

/// Why no ADD can succeed, while nothing can be written to the address store or what DELs have left cannot be
/// read. To ask makes it try again.
pub(crate) fn of_store(
    service: &Service,
    tombstones: &Tombstones,
) -> Result<Option<String>, StoreError> {
    let failure = service.failure()?.map(|error| {
        format!(
            "nothing can be written to the address store, so every ADD fails with code 11 ({}); free \
             some space in runDir",
            error_chain(&error)
        )
    });
    Ok(failure.or_else(|| tombstones.failure()))
}

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
