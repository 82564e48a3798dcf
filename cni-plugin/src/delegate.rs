//! Another IPAM plugin, executed by the rules for delegation: the same environment, the same
//! standard input, found in `CNI_PATH`.

use std::{
    env,
    io::{self, Read, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Map, Value};
use twill_dataplane::pod::PodRoute;
use twill_types::{LinkAlias, Prefix};

use crate::{deadline::Deadline, verbs::Call};

/// How often it is looked whether the plugin has ended.
const LOOK: Duration = Duration::from_millis(1);

/// What an IPAM plugin, or the store, has given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Granted {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) routes: Vec<PodRoute>,
    pub(crate) dns: Option<Map<String, Value>>,
    /// Number of the ADD.
    pub(crate) sequence: u64,
    /// Of the uplink, where it is known.
    pub(crate) mtu: Option<u32>,
}

impl Default for Granted {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            routes: Vec::new(),
            dns: None,
            sequence: LinkAlias::WITHOUT_STORE,
            mtu: None,
        }
    }
}

/// What can go wrong with another plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DelegateError {
    /// It is in none of the directories.
    #[error("ipam.type is {plugin:?}, and there is no such program in CNI_PATH ({path})")]
    NotFound {
        /// Its name.
        plugin: String,
        /// `CNI_PATH`.
        path: String,
    },
    /// It cannot be executed, or its output cannot be read.
    #[error("cannot execute {}", program.display())]
    Execute {
        /// Its file.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It took too long.
    #[error("{plugin} did not end in time and was killed")]
    Timeout {
        /// Its name.
        plugin: String,
    },
    /// It reported an error of its own, which is passed on as it is.
    #[error("{plugin}: {message}")]
    Failed {
        /// Its name.
        plugin: String,
        /// Its error code.
        code: u32,
        /// Its `msg`.
        message: String,
        /// Its `details`.
        details: Option<String>,
    },
    /// What it printed is no result.
    #[error("the result of {plugin} cannot be used: {what}")]
    Result {
        /// Its name.
        plugin: String,
        /// What is wrong.
        what: String,
    },
}

/// The plugin that `ipam.type` names, for one call.
pub(crate) struct Delegate<'a> {
    call: &'a Call,
    plugin: &'a str,
}

impl<'a> Delegate<'a> {
    /// `None` where the addresses are our own business.
    pub(crate) fn of(call: &'a Call) -> Option<Self> {
        let plugin = call.netconf.ipam.plugin.as_deref()?;
        Some(Self { call, plugin })
    }

    pub(crate) fn add(&self) -> Result<Granted, DelegateError> {
        let printed = self.run("ADD")?;
        let granted = read_result(&printed)
            .map_err(|what| DelegateError::Result { plugin: self.plugin.to_owned(), what });
        if granted.is_err()
            && let Err(error) = self.del()
        {
            tracing::warn!(%error, "an address that cannot be used stays allocated");
        }
        granted
    }

    pub(crate) fn del(&self) -> Result<(), DelegateError> {
        self.run("DEL").map(drop)
    }

    pub(crate) fn check(&self) -> Result<(), DelegateError> {
        self.run("CHECK").map(drop)
    }

    pub(crate) fn status(&self) -> Result<(), DelegateError> {
        self.run("STATUS").map(drop)
    }

    pub(crate) fn gc(&self) -> Result<(), DelegateError> {
        self.run("GC").map(drop)
    }

    fn run(&self, verb: &str) -> Result<Value, DelegateError> {
        let program = self.find()?;
        let failed = |source| DelegateError::Execute { program: program.clone(), source };
        let mut child = Command::new(&program)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let ended = talk(&mut child, &self.call.stdin, self.call.deadline);
        let Some(output) = ended.map_err(failed)? else {
            return Err(DelegateError::Timeout { plugin: self.plugin.to_owned() });
        };
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() {
            return Ok(printed);
        }
        let text = |key: &str| printed.get(key).and_then(Value::as_str).map(str::to_owned);
        let code = printed.get("code").and_then(Value::as_u64);
        Err(DelegateError::Failed {
            plugin: self.plugin.to_owned(),
            code: code.and_then(|code| u32::try_from(code).ok()).unwrap_or(999),
            message: text("msg").unwrap_or_else(|| output.status.to_string()),
            details: text("details"),
        })
    }

    fn find(&self) -> Result<PathBuf, DelegateError> {
        let path = &self.call.variables.path;
        env::split_paths(path)
            .map(|directory| directory.join(self.plugin))
            .find(|program| Path::is_file(program))
            .ok_or_else(|| DelegateError::NotFound {
                plugin: self.plugin.to_owned(),
                path: path.clone(),
            })
    }
}

/// Writes standard input, reads standard output, and waits; `None` if the deadline came first.
fn talk(child: &mut Child, input: &[u8], deadline: Deadline) -> io::Result<Option<Output>> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    thread::scope(|scope| {
        // Beside each other: either side may fill its pipe.
        let write = scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        let read = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.map(|mut stdout| stdout.read_to_end(&mut bytes)).transpose().map(|_| bytes)
        });
        let status = loop {
            match child.try_wait()? {
                Some(status) => break Some(status),
                None if deadline.left().is_zero() => {
                    child.kill()?;
                    child.wait()?;
                    break None;
                }
                None => thread::sleep(LOOK),
            }
        };
        // One that does not read its input is no failure of ours.
        let _ = write.join();
        let stdout = read.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        Ok(status.map(|status| Output { status, stdout, stderr: Vec::new() }))
    })
}

/// The addresses, routes and name servers of a result of any version.
fn read_result(printed: &Value) -> Result<Granted, String> {
    let list = |key: &str| printed.get(key).and_then(Value::as_array).into_iter().flatten();
    let families = || ["ip4", "ip6"].into_iter().filter_map(|key| printed.get(key));
    let old = families().filter_map(|entry| entry.get("ip"));
    let addresses: Vec<IpAddr> = list("ips")
        .filter_map(|entry| entry.get("address"))
        .chain(old)
        .map(|address| {
            let text = address.as_str().unwrap_or_default();
            let plain = text.split_once('/').map_or(text, |(address, _)| address);
            plain.parse().map_err(|_| format!("{address} is no address"))
        })
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err(format!("it has no address: {printed}"));
    }
    let old = families().filter_map(|entry| entry.get("routes")?.as_array()).flatten();
    let routes = list("routes")
        .chain(old)
        .map(|route| {
            let number = |key: &str| {
                route.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())
            };
            let text = route.get("dst").and_then(Value::as_str).unwrap_or_default();
            let destination = text.parse::<Prefix>().map_err(|error| format!("{text}: {error}"))?;
            Ok(PodRoute {
                destination,
                priority: number("priority"),
                mtu: number("mtu"),
                advmss: number("advmss"),
            })
        })
        .collect::<Result<_, String>>()?;
    let dns = printed.get("dns").and_then(Value::as_object).filter(|dns| !dns.is_empty());
    Ok(Granted { addresses, routes, dns: dns.cloned(), ..Granted::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_of_every_form_are_read() {
        for printed in [
            json!({"ips": [{"version": "4", "address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
                   "routes": [{"dst": "192.0.2.0/24", "mtu": 1400}], "dns": {}}),
            json!({"ip4": {"ip": "10.1.0.5/24", "routes": [{"dst": "192.0.2.0/24", "mtu": 1400}]}}),
        ] {
            let granted = read_result(&printed).unwrap();
            assert_eq!(granted.addresses, ["10.1.0.5".parse::<IpAddr>().unwrap()]);
            assert_eq!(granted.routes[0].destination, "192.0.2.0/24".parse().unwrap());
            assert_eq!((granted.routes[0].mtu, granted.sequence), (Some(1400), 0));
            assert_eq!(granted.dns, None);
        }
        for (printed, wrong) in [
            (json!(null), "no address"),
            (json!({"ips": [{"address": "x"}]}), "is no address"),
            (json!({"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "y"}]}), "y"),
        ] {
            let error = read_result(&printed).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
