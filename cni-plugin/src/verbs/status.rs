//! STATUS: could an ADD succeed now?

use std::{fs, io, time::Duration};

use twill_rpc::message::{Readiness, ReadinessRequest};

use super::Call;
use crate::{
    authority::Authority,
    call::Persona,
    daemon::{Daemon, socket},
    delegate::Delegate,
    error::Error,
    netconf::{Mode, StatusRules},
    standalone::StandaloneError,
};

/// Runtimes ask every few seconds, some without any limit of their own.
const PATIENCE: Duration = Duration::from_secs(2);

/// Success, or an error that says why not.
pub(crate) fn status(call: &Call) -> Result<(), Error> {
    if let Some(delegate) = Delegate::of(call) {
        return Ok(delegate.status(call.deadline.at_most(PATIENCE))?);
    }
    if let Some(standalone) = Authority::giving(&call.netconf, call.deadline).standalone() {
        let network = (call.persona == Persona::Ipam).then_some(call.netconf.name.as_str());
        let alone = call.netconf.ipam.mode == Mode::Standalone;
        return match standalone.is_exhausted(network, call.deadline.at_most(PATIENCE)) {
            // In automatic mode its socket is about to come.
            Err(error) if alone && error.is_of_a_daemon() => Err(Error::StoreOfDaemon(error)),
            Ok(true) if call.netconf.status.on_exhaustion => Err(Error::Exhausted),
            // Calls take turns, and many of them may be in front of this one.
            Ok(_) | Err(StandaloneError::Busy(_)) => Ok(()),
            Err(error) => Err(Error::StoreNotReady(error)),
        };
    }
    let run_dir = &call.netconf.run_dir;
    // The daemon may have to wait for its datastore to tell what is left, so only who wants to know asks.
    let exhaustion = call.netconf.status.on_exhaustion;
    let request = exhaustion.then_some(ReadinessRequest { exhaustion });
    let asked = Daemon::new(run_dir, call.deadline.at_most(PATIENCE))
        .ask(|client, _| client.readiness(request));
    let why = match asked {
        Ok(readiness) if readiness.in_sync => return judge(&call.netconf.status, &readiness),
        Ok(_) => "it has not read its configuration yet".to_owned(),
        Err(error) => error.to_string(),
    };
    let heartbeat = run_dir.join("heartbeat");
    let why = match fs::metadata(&heartbeat).and_then(|metadata| metadata.modified()) {
        // A time in the future is as fresh as can be.
        Ok(beat) => match beat.elapsed().unwrap_or_default() {
            age if age <= call.netconf.status.grace => return Ok(()),
            age => format!("{why}; it was ready last {} s ago", age.as_secs()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => why,
        Err(error) => format!("{why}; cannot read {}: {error}", heartbeat.display()),
    };
    Err(Error::NotReady { socket: socket(run_dir), why })
}

/// What a daemon that is in sync lacks, where the configuration makes that the node's own state: a
/// node that is NotReady gets no new pods, and loses those that it has after some minutes.
fn judge(rules: &StatusRules, readiness: &Readiness) -> Result<(), Error> {
    if rules.on_exhaustion && readiness.exhausted {
        return Err(Error::Exhausted);
    }
    match readiness.routes_missing {
        0 => Ok(()),
        _ if !rules.on_missing_routes => Ok(()),
        missing => Err(Error::RoutesMissing(missing)),
    }
}
