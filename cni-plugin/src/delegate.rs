//! Another IPAM plugin, executed by the rules for delegation: the same environment, the same
//! standard input, found in `CNI_PATH`.

mod run;

use std::{
    env, fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use serde_json::{Map, Value};
use twill_dataplane::pod::PodRoute;
use twill_types::{LinkAlias, Prefix};

use self::run::{Ended, run};
use crate::{authority::may_have_link, deadline::Deadline, result::asked_in_vain, verbs::Call};

/// How much of a call's time is kept for giving the addresses back.
const TAKE_BACK: Duration = Duration::from_secs(2);

/// How long that may take where the call's time is over.
const TAKE_BACK_AT_LEAST: Duration = Duration::from_millis(500);

/// The file of this program, whatever it is called by now.
const OWN_PROGRAM: &str = "/proc/self/exe";

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
    /// It is this program.
    #[error("ipam.type is {plugin:?}, which is {} and this very program; write \"twill-ipam\", or the name of another IPAM plugin", program.display())]
    Itself {
        /// Its name.
        plugin: String,
        /// Its file.
        program: PathBuf,
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
    /// Its result asks for what is not done here.
    #[error("{plugin} gives what is not supported: {what}")]
    Unsupported {
        /// Its name.
        plugin: String,
        /// What.
        what: String,
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

    /// Addresses. An ADD that failed may have given some all the same, so a DEL follows (section 4 of
    /// the specification): the time for that is kept free at the end of the call.
    pub(crate) fn add(&self) -> Result<Granted, DelegateError> {
        let printed = self.run("ADD", self.call.deadline.before(TAKE_BACK));
        let granted = printed.and_then(|printed| read_result(self.plugin, &printed));
        match &granted {
            // It has not run at all.
            Ok(_) | Err(DelegateError::NotFound { .. } | DelegateError::Itself { .. }) => {}
            Err(_) => self.take_back(),
        }
        granted
    }

    /// After a failed ADD. A link that is there was there before, and keeps its addresses until DEL:
    /// some plugins refuse a second ADD of the same. Where no time is left, a little is taken.
    pub(crate) fn take_back(&self) {
        if may_have_link(&self.call.attachment()) {
            return;
        }
        if let Err(error) = self.del(self.call.deadline.at_least(TAKE_BACK_AT_LEAST)) {
            tracing::warn!(%error, "the addresses stay allocated until DEL");
        }
    }

    pub(crate) fn del(&self, deadline: Deadline) -> Result<(), DelegateError> {
        self.run("DEL", deadline).map(drop)
    }

    pub(crate) fn check(&self) -> Result<(), DelegateError> {
        self.run("CHECK", self.call.deadline).map(drop)
    }

    pub(crate) fn status(&self, deadline: Deadline) -> Result<(), DelegateError> {
        self.run("STATUS", deadline).map(drop)
    }

    pub(crate) fn gc(&self) -> Result<(), DelegateError> {
        self.run("GC", self.call.deadline).map(drop)
    }

    /// What it printed.
    fn run(&self, verb: &str, deadline: Deadline) -> Result<Vec<u8>, DelegateError> {
        let program = self.find()?;
        let mut command = Command::new(&program);
        command.env("CNI_COMMAND", verb);
        let ended = run(command, &self.call.stdin, deadline);
        let ended = ended.map_err(|source| DelegateError::Execute { program, source })?;
        let Some(Ended { status, printed }) = ended else {
            return Err(DelegateError::Timeout { plugin: self.plugin.to_owned() });
        };
        if status.success() { Ok(printed) } else { Err(self.failed(status, &printed)) }
    }

    /// The error that it reported; without one, what it printed instead is all that there is.
    fn failed(&self, status: ExitStatus, printed: &[u8]) -> DelegateError {
        let object: Map<String, Value> = serde_json::from_slice(printed).unwrap_or_default();
        let text = |key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
        let code = object.get("code").and_then(Value::as_u64);
        let message = text("msg");
        let quoted = message.is_none().then(|| quote(printed)).filter(|quoted| !quoted.is_empty());
        DelegateError::Failed {
            plugin: self.plugin.to_owned(),
            code: code.and_then(|code| u32::try_from(code).ok()).unwrap_or(999),
            message: message.unwrap_or_else(|| status.to_string()),
            details: text("details").or(quoted.map(|quoted| format!("it printed {quoted}"))),
        }
    }

    /// Its file, in one of the directories of `CNI_PATH`. An empty one is none: it would mean the
    /// current directory, and a program that is named without any directory is looked for in the
    /// caller's own path.
    fn find(&self) -> Result<PathBuf, DelegateError> {
        let path = &self.call.variables.path;
        let program = env::split_paths(path)
            .filter(|directory| !directory.as_os_str().is_empty())
            .map(|directory| directory.join(self.plugin))
            .find(|program| program.is_file())
            .ok_or_else(|| DelegateError::NotFound {
                plugin: self.plugin.to_owned(),
                path: path.clone(),
            })?;
        if is_this_program(&program) {
            return Err(DelegateError::Itself { plugin: self.plugin.to_owned(), program });
        }
        Ok(program)
    }
}

/// Whether executing it would execute this program once more, which would do the same again.
fn is_this_program(program: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((file(program), file(Path::new(OWN_PROGRAM))), (Ok(one), Ok(other)) if one == other)
}

/// The beginning of what a plugin printed, for a message.
fn quote(printed: &[u8]) -> String {
    /// Enough for a line or two.
    const MOST: usize = 500;
    let start = &printed[..printed.len().min(MOST)];
    let text = String::from_utf8_lossy(start).trim().to_owned();
    if printed.len() > MOST { format!("{text} ...") } else { text }
}

/// The addresses, routes and name servers of a result of any version.
fn read_result(plugin: &str, printed: &[u8]) -> Result<Granted, DelegateError> {
    let failed = |what| DelegateError::Result { plugin: plugin.to_owned(), what };
    let printed: Value = serde_json::from_slice(printed)
        .map_err(|error| failed(format!("{error}; it printed {:?}", quote(printed))))?;
    let list = |key: &str| printed.get(key).and_then(Value::as_array).into_iter().flatten();
    let families = || ["ip4", "ip6"].into_iter().filter_map(|key| printed.get(key));
    let old = families().filter_map(|entry| entry.get("ip"));
    let addresses: Vec<IpAddr> = list("ips")
        .filter_map(|entry| entry.get("address"))
        .chain(old)
        .map(|address| {
            let text = address.as_str().unwrap_or_default();
            let plain = text.split_once('/').map_or(text, |(address, _)| address);
            plain.parse().map_err(|_| failed(format!("{address} is no address")))
        })
        .collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err(failed(format!("it has no address: {printed}")));
    }
    let old = families().filter_map(|entry| entry.get("gateway"));
    let gateways: Vec<&Value> =
        list("ips").filter_map(|entry| entry.get("gateway")).chain(old).collect();
    let old = families().filter_map(|entry| entry.get("routes")?.as_array()).flatten();
    let routes = list("routes")
        .chain(old)
        .map(|route| read_route(plugin, route, &gateways))
        .collect::<Result<_, _>>()?;
    let dns = printed.get("dns").and_then(Value::as_object).filter(|dns| !dns.is_empty());
    Ok(Granted { addresses, routes, dns: dns.cloned(), ..Granted::default() })
}

/// One of the routes. In the place of its gateway, mostly one of the addresses' `gateways`, stands the node.
fn read_route(plugin: &str, route: &Value, gateways: &[&Value]) -> Result<PodRoute, DelegateError> {
    let number =
        |key: &str| route.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let text = route.get("dst").and_then(Value::as_str).unwrap_or_default();
    let destination = text.parse::<Prefix>().map_err(|error| DelegateError::Result {
        plugin: plugin.to_owned(),
        what: format!("{text}: {error}"),
    })?;
    if let Some((key, value, alike)) = route.as_object().and_then(|map| asked_in_vain(map).next()) {
        let what = format!("the {key} {value} of its route to {destination}; {alike}");
        return Err(DelegateError::Unsupported { plugin: plugin.to_owned(), what });
    }
    if let Some(gateway) = route.get("gw").filter(|gw| !gw.is_null() && !gateways.contains(gw)) {
        tracing::warn!(
            %gateway,
            "{plugin}'s route to {destination} leads by the node: a pod has no other gateway"
        );
    }
    Ok(PodRoute {
        destination,
        priority: number("priority"),
        mtu: number("mtu"),
        advmss: number("advmss"),
    })
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
            let granted = read_result("x", printed.to_string().as_bytes()).unwrap();
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
            let error = read_result("x", printed.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
