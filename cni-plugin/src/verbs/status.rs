//! STATUS: could an ADD succeed now?

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    time::Duration,
};

use twill_ipam_store::{HEARTBEAT, boot_id};
use twill_rpc::{
    ClientError,
    message::{Readiness, ReadinessRequest},
};

use super::Call;
use crate::{
    authority::Authority,
    call::Persona,
    daemon::{Daemon, socket},
    delegate::Delegate,
    error::Error,
    netconf::{Mode, StatusRules},
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
            Ok(_) => Ok(()),
            // Calls take turns, and many of them may be in front of this one.
            Err(error) if error.is_passing() => Ok(()),
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
        // It is ready, and for no call of this program: time alone changes nothing.
        Err(error @ ClientError::Version { .. }) => {
            return Err(Error::NotReady { socket: socket(run_dir), why: error.to_string() });
        }
        Err(error) => error.to_string(),
    };
    let why = match stale(&run_dir.join(HEARTBEAT), call.netconf.status.grace) {
        Ok(None) => return Ok(()),
        Ok(Some(last)) => format!("{why}; it was ready last {last}"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => why,
        Err(error) => format!("{why}; cannot read {HEARTBEAT} in runDir: {error}"),
    };
    Err(Error::NotReady { socket: socket(run_dir), why })
}

/// When the daemon was ready last, if that is too long ago to count. The file has the boot of the node, as
/// `runDir` may outlive it; one without is of an older daemon. Its time may lie in the future since the clock
/// was set back; how long ago it was cannot be told then.
fn stale(heartbeat: &Path, grace: Duration) -> io::Result<Option<String>> {
    let mut file = File::open(heartbeat)?;
    let mut boot = String::new();
    file.read_to_string(&mut boot)?;
    if !boot.is_empty() && boot_id().is_ok_and(|own| own != boot) {
        return Ok(Some("before the node started".to_owned()));
    }
    let (age, when) = match file.metadata()?.modified()?.elapsed() {
        Ok(age) => (age, "ago"),
        Err(error) => (error.duration(), "from now, by the clock"),
    };
    Ok((age > grace).then(|| format!("{} s {when}", age.as_secs())))
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
