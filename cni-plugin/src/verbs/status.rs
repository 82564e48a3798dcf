//! STATUS: could an ADD succeed now?

use std::{fs, io, time::Duration};

use super::Call;
use crate::{
    authority::Authority,
    daemon::{Daemon, socket},
    error::Error,
};

/// Runtimes ask every few seconds, some without any limit of their own.
const PATIENCE: Duration = Duration::from_secs(2);

/// How old the daemon's last sign of readiness may be. A restart or an upgrade of the daemon must
/// not make the node NotReady: an ADD waits that long anyway, or is repeated.
const GRACE: Duration = Duration::from_secs(120);

/// Success, or an error that says why not.
pub(crate) fn status(call: &Call) -> Result<(), Error> {
    if Authority::new(&call.netconf, call.deadline).is_standalone() {
        return Ok(());
    }
    let run_dir = &call.netconf.run_dir;
    let asked =
        Daemon::new(run_dir, call.deadline.at_most(PATIENCE)).ask(|client, _| client.node_status());
    let why = match asked {
        Ok(status) if status.in_sync => return Ok(()),
        Ok(_) => "it has not read its configuration yet".to_owned(),
        Err(error) => error.to_string(),
    };
    let heartbeat = run_dir.join("heartbeat");
    let why = match fs::metadata(&heartbeat).and_then(|metadata| metadata.modified()) {
        // A time in the future is as fresh as can be.
        Ok(beat) => match beat.elapsed().unwrap_or_default() {
            age if age <= GRACE => return Ok(()),
            age => format!("{why}; it was ready last {} s ago", age.as_secs()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => why,
        Err(error) => format!("{why}; cannot read {}: {error}", heartbeat.display()),
    };
    Err(Error::NotReady { socket: socket(run_dir), why })
}
