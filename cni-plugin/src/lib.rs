//! One CNI call: read it, get the addresses, plumb the pod, print.
//!
//! Promise: standard output holds the result, or one error object, and nothing else, whatever
//! happens, a panic of ours included. All waits of a call end within the configuration's
//! `timeoutSeconds`, counted from its start, but for four with limits of their own: for the configuration
//! itself, where that stands (`STDIN_PATIENCE`), for one that the call can do without
//! (`SHORT_PATIENCE`), for another IPAM plugin to take back what it gave to an ADD that failed
//! (`TAKE_BACK_AT_LEAST`), and for a table of the kernel to stay the same while it is read. A call that
//! is killed at any point leaves what the DEL that follows, or the daemon, can find.
//!
//! Absent: state (it is the daemon's), knowledge of Kubernetes, and tokio.

mod authority;
mod call;
mod daemon;
mod deadline;
mod delegate;
mod error;
mod log;
mod netconf;
mod panic;
mod result;
mod spool;
mod standalone;
mod verbs;
mod version;

use std::{
    cell::Cell,
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::{
    call::{Asked, Command, Persona, Variables, read_stdin},
    deadline::Deadline,
    error::Error,
    netconf::{Netconf, Parsed, Problem},
    verbs::Call,
    version::Version,
};

/// How long a caller may take to write the configuration.
const STDIN_PATIENCE: Duration = Duration::from_secs(10);

/// How long a call waits for a configuration that it can do without: VERSION, and one whose
/// variables are wrong.
const SHORT_PATIENCE: Duration = Duration::from_secs(1);

/// Executes the call that the environment and standard input describe.
pub fn main() -> ExitCode {
    let started = Instant::now();
    let version = Cell::new(Version::NEWEST);
    let (text, code) = match panic::catch(|| run(&version, started)) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!(code = error.code(), "{error}");
            (error.to_json(version.get()).to_string(), ExitCode::FAILURE)
        }
    };
    match std::io::stdout().write_all(format!("{text}\n").as_bytes()) {
        Ok(()) => code,
        // A runtime that lost the answer calls DEL. People find it where log lines are.
        Err(error) => {
            let told =
                format!("cannot write to standard output: {error}; this was the answer: {text}\n");
            let _ = std::io::stderr().write_all(told.as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// What is to be printed. `version` is set to the configuration's as soon as that is known.
fn run(version: &Cell<Version>, started: Instant) -> Result<Option<Value>, Error> {
    let called = match Asked::from_env() {
        Ok(Asked::Versions) => {
            return Ok(Some(supported_versions(&read_stdin(SHORT_PATIENCE).unwrap_or_default())));
        }
        Ok(Asked::Verb(command)) => variables_of(command).map(|variables| (command, variables)),
        Err(error) => Err(error),
    };
    let (command, variables) = match called {
        Ok(called) => called,
        Err(error) => {
            // Told in the configuration's version all the same, if there is one.
            if let Ok(map) = netconf::decode(&read_stdin(SHORT_PATIENCE).unwrap_or_default()) {
                learn_version(&map, version);
            }
            return Err(error);
        }
    };
    let stdin = read_stdin(STDIN_PATIENCE).map_err(Error::Stdin)?;
    let map = netconf::decode(&stdin)?;
    learn_version(&map, version);
    let parsed = Parsed::new(map)?;
    command.allowed_in(version.get())?;
    let args = match (command, variables.args()) {
        (Command::Add, Err(error)) => return Err(error),
        // No other verb acts on what they ask for.
        (_, args) => args.unwrap_or_default(),
    };
    let persona = Persona::from_program();
    let (netconf, problems) = parsed.netconf(persona, &args);
    log::start(&netconf.log, format!("{} {}/{}", command.name(), netconf.name, variables), started);
    report(command, problems)?;
    let deadline = Deadline::since(started, netconf.timeout);
    tracing::debug!(?netconf, "begin");
    tracing::trace!("step: call read");
    let call = Call { persona, stdin, variables, args, netconf, deadline };
    match (command, persona) {
        (Command::Add, Persona::Main) => verbs::add(&call).map(Some),
        (Command::Add, Persona::Ipam) => verbs::ipam::add(&call).map(Some),
        (Command::Del, Persona::Main) => verbs::del(&call).map(|()| None),
        (Command::Del, Persona::Ipam) => verbs::ipam::del(&call).map(|()| None),
        (Command::Check, _) => verbs::check(&call).map(|()| None),
        (Command::Gc, _) => verbs::gc(&call).map(|()| None),
        (Command::Status, _) => verbs::status(&call).map(|()| None),
    }
}

/// The variables of a call, checked as far as the verb acts on them.
fn variables_of(command: Command) -> Result<Variables, Error> {
    let variables = Variables::from_env(command)?;
    if command.has_attachment() {
        variables.validate(command)?;
    }
    Ok(variables)
}

/// Has the answer in the configuration's version, if that is one of ours.
fn learn_version(map: &Map<String, Value>, version: &Cell<Version>) {
    if let Ok(known) = netconf::version(map) {
        version.set(known);
    }
}

/// The answer to VERSION: the caller's own version back if it gave one.
fn supported_versions(stdin: &[u8]) -> Value {
    let config: Map<String, Value> = serde_json::from_slice(stdin).unwrap_or_default();
    let version = config
        .get("cniVersion")
        .and_then(Value::as_str)
        .filter(|version| !version.is_empty())
        .unwrap_or(Version::NEWEST.as_str());
    json!({ "cniVersion": version, "supportedVersions": Version::ALL.map(Version::as_str) })
}

/// Warns of what can be passed over, and refuses the rest. A DEL passes over all that it does not
/// need: a pod must not outlive a slip in the configuration.
fn report(command: Command, problems: Vec<Problem>) -> Result<(), Error> {
    let needed = |problem: &Problem| match command {
        Command::Del => Netconf::needed_by_del(&problem.path),
        Command::Gc => Netconf::needed_by_gc(&problem.path),
        Command::Check => Netconf::needed_by_check(&problem.path),
        Command::Add | Command::Status => true,
    };
    let (errors, warnings): (Vec<_>, Vec<_>) =
        problems.into_iter().partition(|problem| !problem.is_warning() && needed(problem));
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::Config(errors)) }
}
