//! Where Calico is, this controller would write into Calico's objects: docs/adr/0018-crds.md.

use std::time::{Duration, Instant};

use tokio::{sync::watch, time::sleep};
use twill_types::error_chain;

use crate::{
    backoff::jittered,
    datastore::kubernetes::{Access, Account, ApiError, REMEDY, foreign_definitions},
    problems,
};

/// Interval at which Calico's objects are looked for. Shorter than `SILENCE`, as each answer also
/// keeps this process ready.
const AGAIN: Duration = Duration::from_secs(10);

const _: () = assert!(AGAIN.as_secs() < super::serve::SILENCE.as_secs());

/// The pause where only people can help: a permission is missing.
const REFUSED: Duration = Duration::from_secs(60);

/// Waits until the cluster has nothing of Calico's, or of anybody else's, in Calico's groups. `asked` is when
/// the API server answered last, and `said` what is in the way meanwhile.
pub(super) async fn outlast(
    access: &Access,
    asked: &watch::Sender<Option<Instant>>,
    said: &watch::Sender<Vec<String>>,
) {
    loop {
        let sent = Instant::now();
        let (problem, pause) = match foreign_definitions(access, Account::Controller).await {
            Ok(found) => {
                asked.send_replace(Some(sent));
                if found.is_empty() {
                    break;
                }
                (in_the_way(&found), AGAIN)
            }
            Err(error) => {
                let is_refused = matches!(error, ApiError::Forbidden { .. });
                let pause = if is_refused { REFUSED } else { AGAIN };
                (format!("cannot look whether Calico is here: {}", error_chain(&error)), pause)
            }
        };
        problems::tell(said, vec![problem]);
        sleep(jittered(pause)).await;
    }
    problems::tell(said, Vec::new());
}

fn in_the_way(found: &[String]) -> String {
    format!(
        "this cluster has {}, which is not Twill's: the controller writes nothing until that is gone. {REMEDY}",
        found.join(", ")
    )
}
