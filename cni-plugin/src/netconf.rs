//! The network configuration: what standard input holds.

mod ipam;
mod section;
mod wishes;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::{Map, Value};
use twill_types::Family;

pub(crate) use self::{
    ipam::{ForeignNeeds, Gateway, Ipam, Mode},
    section::{Problem, ProblemKind},
    wishes::Wishes,
};
use section::Section;
use wishes::Rules;

use crate::{
    call::{Args, Persona, is_identifier},
    error::Error,
    version::Version,
};

/// Where the daemon keeps its socket, store, spool and locks.
const DEFAULT_RUN_DIR: &str = "/run/twill";

/// How long a call may take. The kubelet calls a runtime dead that does not answer for 30 s, and
/// containerd answers nobody while it waits for plugins to let it read a changed configuration:
/// so well below that, and as long as a restart of the daemon takes.
const DEFAULT_TIMEOUT: u64 = 20;

/// How old the daemon's last sign of readiness may be for STATUS. A restart or an upgrade of the
/// daemon must not make the node NotReady: an ADD waits that long anyway, or is repeated.
const DEFAULT_STATUS_GRACE: u64 = 120;

/// Keys of the whole configuration. The first lines are the specification's or the runtime's.
#[rustfmt::skip]
const KEYS: &[&str] = &[
    "cniVersion", "cniVersions", "name", "type", "ipam", "dns", "args", "runtimeConfig",
    "capabilities", "prevResult", "disableCheck", "disableGC", "loadOnlyInlinedPlugins",
    "mtu", "runDir", "timeoutSeconds", "logLevel", "logFile", "feature_control", "featureControl",
    "statusGraceSeconds", "statusOnExhaustion", "statusOnMissingRoutes",
];

/// The configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Netconf {
    pub(crate) version: Version,
    /// The network's name.
    pub(crate) name: String,
    /// In bytes; 0 takes the uplink's.
    pub(crate) mtu: u32,
    pub(crate) run_dir: PathBuf,
    pub(crate) timeout: Duration,
    pub(crate) log: LogConfig,
    pub(crate) ipam: Ipam,
    pub(crate) status: StatusRules,
    /// Passed on in the result.
    pub(crate) dns: Option<Map<String, Value>>,
    pub(crate) prev_result: Option<Value>,
    /// What is asked for this one interface.
    pub(crate) wishes: Wishes,
    /// GC: those that are to stay.
    pub(crate) valid_attachments: Option<Vec<Attached>>,
}

impl Netconf {
    /// What is asked for this one interface, with what the cluster has to say about the pod. No other IPAM
    /// plugin is asked then.
    pub(crate) fn wishes_with(
        stdin: &[u8],
        args: &Args,
        cluster: &BTreeMap<String, String>,
    ) -> Result<Wishes, Error> {
        let (map, mut problems) = (decode(stdin)?, Vec::new());
        let no_ipam_allowed = allows_no_ipam(&mut Section::unchecked("", &map, &mut Vec::new()));
        let rules = Rules { no_ipam_allowed, plugin: None };
        let wishes = wishes::read(&map, args, cluster, rules, &mut problems);
        if problems.is_empty() { Ok(wishes) } else { Err(Error::Config(problems)) }
    }

    /// Whether a DEL would do the wrong thing with the default in the place of this field.
    pub(crate) fn needed_by_del(path: &str) -> bool {
        matches!(path, "runDir" | "ipam" | "ipam.mode" | "ipam.runDir" | "ipam.type")
    }

    /// The same for a CHECK, which goes by what the ADD has answered: the ADD of an older plugin may have
    /// passed over what another IPAM plugin does not know.
    pub(crate) fn needed_by_check(path: &str) -> bool {
        !wishes::is_of_pools(path)
    }

    /// The same for a GC.
    pub(crate) fn needed_by_gc(path: &str) -> bool {
        Self::needed_by_del(path) || path.starts_with("cni.dev/")
    }
}

/// When STATUS says that no ADD would succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StatusRules {
    /// How long the daemon's last sign of readiness counts.
    pub(crate) grace: Duration,
    /// Whether a node without a free address is not ready.
    pub(crate) on_exhaustion: bool,
    /// Whether a node that lacks learned routes in its kernel has limited connectivity.
    pub(crate) on_missing_routes: bool,
}

/// An attachment as GC lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

/// Where to log, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogConfig {
    pub(crate) level: tracing::level_filters::LevelFilter,
    /// Beside standard error.
    pub(crate) file: Option<PathBuf>,
}

/// JSON, with the parts checked that every verb needs.
pub(crate) struct Parsed {
    pub(crate) version: Version,
    name: String,
    map: Map<String, Value>,
}

/// The whole of standard input as an object.
pub(crate) fn decode(stdin: &[u8]) -> Result<Map<String, Value>, Error> {
    serde_json::from_slice(stdin).map_err(Error::Decode)
}

/// The version of a configuration. None at all means 0.1.0, the one before the key existed; `null` is
/// none, as libcni reads it.
pub(crate) fn version(map: &Map<String, Value>) -> Result<Version, Error> {
    match map.get("cniVersion") {
        None | Some(Value::Null) => Ok(Version::V0_1_0),
        Some(Value::String(text)) if text.is_empty() => Ok(Version::V0_1_0),
        Some(Value::String(text)) => {
            Version::parse(text).ok_or_else(|| Error::Version(text.clone()))
        }
        Some(other) => Err(Error::NotAString { key: "cniVersion", value: other.to_string() }),
    }
}

impl Parsed {
    /// Checks name and version.
    pub(crate) fn new(map: Map<String, Value>) -> Result<Self, Error> {
        let name = match map.get("name") {
            None | Some(Value::Null) => return Err(Error::NetworkName(None)),
            Some(Value::String(name)) if name.is_empty() => return Err(Error::NetworkName(None)),
            Some(Value::String(name)) if is_identifier(name) => name.clone(),
            Some(Value::String(name)) => return Err(Error::NetworkName(Some(name.clone()))),
            Some(other) => {
                return Err(Error::NotAString { key: "name", value: other.to_string() });
            }
        };
        let version = version(&map)?;
        Ok(Self { version, name, map })
    }

    /// Reads the rest, and what `CNI_ARGS` add. What is wrong is in the list, and a default in its
    /// place.
    pub(crate) fn netconf(mut self, persona: Persona, args: &Args) -> (Netconf, Vec<Problem>) {
        let prev_result = self.map.remove("prevResult").filter(|value| !value.is_null());
        let mut problems = Vec::new();
        let empty = Map::new();
        let ipam_map = self.map.get("ipam").and_then(Value::as_object).unwrap_or(&empty);
        let mut top = match persona {
            Persona::Main => Section::new("", &self.map, KEYS, &mut problems),
            // All the other keys are the main plugin's.
            Persona::Ipam => Section::unchecked("", &self.map, &mut problems),
        };
        let mtu = match persona {
            Persona::Main => top.number(&["mtu"], "0 (the uplink's) or 68 to 65535", |mtu| {
                mtu == 0 || (68..=65535).contains(&mtu)
            }),
            Persona::Ipam => None,
        };
        let mtu = mtu.and_then(|mtu| u32::try_from(mtu).ok()).unwrap_or(0);
        let dns = top.object(&["dns"]).filter(|dns| !dns.is_empty()).cloned();
        let no_ipam_allowed = allows_no_ipam(&mut top);
        top.object(&["ipam"]);
        let mut place = match persona {
            Persona::Main => top,
            Persona::Ipam => Section::unchecked("ipam", ipam_map, &mut problems),
        };
        let common = Common::read(&mut place);
        let own_type = self.map.get("type").and_then(Value::as_str);
        let ipam = ipam::read(ipam_map, own_type, persona, &mut problems);
        if ipam.families.contains(&Family::V6) && (1..1280).contains(&mtu) {
            let right = "at least 1280 with IPv6 addresses (RFC 8200 section 5), or 0";
            problems.push(Problem::wrong("mtu", mtu, right));
        }
        let rules = Rules { no_ipam_allowed, plugin: ipam.plugin.as_deref() };
        let mut wishes = wishes::read(&self.map, args, &BTreeMap::new(), rules, &mut problems);
        let dns = wishes.dns.take().or(dns);
        let netconf = Netconf {
            version: self.version,
            name: self.name,
            mtu,
            run_dir: common.run_dir,
            timeout: common.timeout,
            log: common.log,
            status: common.status,
            ipam,
            dns,
            prev_result,
            wishes,
            valid_attachments: valid_attachments(&self.map, &mut problems),
        };
        (netconf, problems)
    }
}

/// Whether pods may ask for addresses of no pool.
fn allows_no_ipam(top: &mut Section<'_, '_>) -> bool {
    top.object(&["featureControl", "feature_control"]).is_some_and(ipam::allows_no_ipam)
}

/// What stands at the top where this is the main plugin, and in `ipam` where it is not.
struct Common {
    run_dir: PathBuf,
    timeout: Duration,
    log: LogConfig,
    status: StatusRules,
}

impl Common {
    fn read(section: &mut Section<'_, '_>) -> Self {
        let seconds = |section: &mut Section<'_, '_>, key, most: u64, default| {
            let right = format!("1 to {most}");
            let read = section.number(&[key], &right, |seconds| (1..=most).contains(&seconds));
            Duration::from_secs(read.unwrap_or(default))
        };
        let level = section.choice(&["logLevel"], LOG_LEVELS);
        Self {
            run_dir: section.path(&["runDir"]).unwrap_or_else(|| DEFAULT_RUN_DIR.into()),
            timeout: seconds(section, "timeoutSeconds", 120, DEFAULT_TIMEOUT),
            log: LogConfig {
                level: level.unwrap_or(tracing::level_filters::LevelFilter::WARN),
                file: section.path(&["logFile"]),
            },
            status: StatusRules {
                grace: seconds(section, "statusGraceSeconds", 3600, DEFAULT_STATUS_GRACE),
                on_exhaustion: section.flag(&["statusOnExhaustion"]).unwrap_or(false),
                on_missing_routes: section.flag(&["statusOnMissingRoutes"]).unwrap_or(false),
            },
        }
    }
}

/// What GC is to keep. libcni writes two spellings, and `null` for an empty list; without either
/// key nothing is known, and nothing may be freed.
fn valid_attachments(
    map: &Map<String, Value>,
    problems: &mut Vec<Problem>,
) -> Option<Vec<Attached>> {
    let spellings = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let (key, value) = spellings.iter().find_map(|key| Some((*key, map.get(*key)?)))?;
    let attached = |entry: &Value| {
        let text = |key: &str| Some(entry.get(key)?.as_str()?.to_owned());
        Some(Attached { container_id: text("containerID")?, ifname: text("ifname")? })
    };
    let list = match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(attached).collect(),
        _ => None,
    };
    if list.is_none() {
        let right = r#"a list of {"containerID": "...", "ifname": "..."}"#;
        problems.push(Problem::wrong(key, value.clone(), right));
    }
    list
}

const LOG_LEVELS: &[(&str, tracing::level_filters::LevelFilter)] = {
    use tracing::level_filters::LevelFilter;
    &[
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("warning", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ]
};

#[cfg(test)]
mod tests;
