//! The network configuration: what standard input holds.

mod section;

use std::{path::PathBuf, time::Duration};

use serde_json::{Map, Value};
use twill_types::{Block, Family, Prefix, PrefixError};

use section::Section;
pub(crate) use section::{Problem, ProblemKind};

use crate::{call::is_identifier, error::Error, version::Version};

/// Where the daemon keeps its socket, store, spool and locks.
const DEFAULT_RUN_DIR: &str = "/run/twill";

/// How long a call may take. The kubelet calls a runtime dead that does not answer for 30 s, and
/// containerd answers nobody while it waits for plugins to let it read a changed configuration:
/// so well below that, and as long as a restart of the daemon takes.
const DEFAULT_TIMEOUT: u64 = 20;

/// Keys of the whole configuration. The first lines are the specification's or the runtime's.
#[rustfmt::skip]
const KEYS: &[&str] = &[
    "cniVersion", "cniVersions", "name", "type", "ipam", "dns", "args", "runtimeConfig",
    "capabilities", "prevResult", "disableCheck", "disableGC",
    "mtu", "runDir", "timeoutSeconds", "logLevel", "logFile",
];

const IPAM_KEYS: &[&str] = &[
    "type",
    "mode",
    "assignIPv4",
    "assign_ipv4",
    "assignIPv6",
    "assign_ipv6",
    "ipv4Pools",
    "ipv4_pools",
    "ipv6Pools",
    "ipv6_pools",
    "pools",
];

const POOL_KEYS: &[&str] = &["cidr", "blockSize"];

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
    /// Passed on in the result.
    pub(crate) dns: Option<Map<String, Value>>,
    pub(crate) prev_result: Option<Value>,
    /// Addresses and hardware addresses asked for by other means than `CNI_ARGS`.
    pub(crate) wishes: Vec<Wish>,
}

impl Netconf {
    /// Whether a DEL would do the wrong thing with the default in the place of this field.
    pub(crate) fn needed_by_del(path: &str) -> bool {
        matches!(path, "runDir" | "ipam" | "ipam.mode")
    }
}

/// What the user wants the interface to have, by key and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) key: &'static str,
    pub(crate) value: String,
}

/// Where to log, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogConfig {
    pub(crate) level: tracing::level_filters::LevelFilter,
    /// Beside standard error.
    pub(crate) file: Option<PathBuf>,
}

/// The `ipam` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ipam {
    pub(crate) mode: Mode,
    /// Which families a pod gets an address of; at least one.
    pub(crate) families: Vec<Family>,
    /// Pools by name or CIDR; empty: those whose selector matches the node.
    pub(crate) ipv4_pools: Vec<String>,
    pub(crate) ipv6_pools: Vec<String>,
    /// Only for standalone mode.
    pub(crate) pools: Vec<Pool>,
}

/// Who gives addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The daemon, always.
    Daemon,
    /// This process, out of the `pools` of the configuration.
    Standalone,
    /// The daemon if its socket exists; else this process, if there are `pools`.
    Auto,
}

/// A pool of standalone mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) cidr: Prefix,
    /// Prefix length of the blocks that it is cut into.
    pub(crate) block_size: u8,
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

/// The version of a configuration. None at all means 0.1.0, the one before the key existed.
pub(crate) fn version(map: &Map<String, Value>) -> Result<Version, Error> {
    match map.get("cniVersion") {
        None => Ok(Version::V0_1_0),
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
            None => return Err(Error::NetworkName(None)),
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

    /// Reads the rest. What is wrong is in the list, and a default in its place.
    pub(crate) fn netconf(mut self) -> (Netconf, Vec<Problem>) {
        let prev_result = self.map.remove("prevResult").filter(|value| !value.is_null());
        let mut problems = Vec::new();
        let mut top = Section::new("", &self.map, KEYS, &mut problems);
        let mtu = top.number(&["mtu"], "0 (the uplink's) or 68 to 65535", |mtu| {
            mtu == 0 || (68..=65535).contains(&mtu)
        });
        let run_dir = top.path(&["runDir"]);
        let timeout = top
            .number(&["timeoutSeconds"], "1 to 120", |seconds| (1..=120).contains(&seconds))
            .unwrap_or(DEFAULT_TIMEOUT);
        let log = LogConfig {
            level: top
                .choice(&["logLevel"], LOG_LEVELS)
                .unwrap_or(tracing::level_filters::LevelFilter::WARN),
            file: top.path(&["logFile"]),
        };
        let dns = top.object(&["dns"]).filter(|dns| !dns.is_empty()).cloned();
        let ipam = top.object(&["ipam"]);
        let ipam = read_ipam(ipam.unwrap_or(&Map::new()), &mut problems);
        let mtu = mtu.and_then(|mtu| u32::try_from(mtu).ok()).unwrap_or(0);
        if ipam.families.contains(&Family::V6) && (1..1280).contains(&mtu) {
            problems.push(Problem::wrong(
                "mtu",
                mtu,
                "at least 1280 with IPv6 addresses (RFC 8200 section 5), or 0",
            ));
        }
        let netconf = Netconf {
            version: self.version,
            name: self.name,
            mtu,
            run_dir: run_dir.unwrap_or_else(|| DEFAULT_RUN_DIR.into()),
            timeout: Duration::from_secs(timeout),
            log,
            ipam,
            dns,
            prev_result,
            wishes: wishes(&self.map),
        };
        (netconf, problems)
    }
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

const MODES: &[(&str, Mode)] =
    &[("daemon", Mode::Daemon), ("standalone", Mode::Standalone), ("auto", Mode::Auto)];

fn read_ipam(map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Ipam {
    let mut ipam = Section::new("ipam", map, IPAM_KEYS, problems);
    if let Some(kind) = ipam.string(&["type"])
        && !matches!(kind.as_str(), "twill-ipam" | "calico-ipam")
    {
        ipam.problem(Problem::unsupported("ipam.type", kind, "\"twill-ipam\", or leave it out"));
    }
    let mode = ipam.choice(&["mode"], MODES).unwrap_or(Mode::Auto);
    let ipv4 = ipam.flag(&["assignIPv4", "assign_ipv4"]).unwrap_or(true);
    let ipv6 = ipam.flag(&["assignIPv6", "assign_ipv6"]).unwrap_or(false);
    let families: Vec<Family> =
        [(ipv4, Family::V4), (ipv6, Family::V6)].iter().filter(|f| f.0).map(|f| f.1).collect();
    if families.is_empty() {
        ipam.problem(Problem::wrong("ipam.assignIPv4", false, "true, or ipam.assignIPv6 true"));
    }
    let ipv4_pools = ipam.strings(&["ipv4Pools", "ipv4_pools"]);
    let ipv6_pools = ipam.strings(&["ipv6Pools", "ipv6_pools"]);
    let objects = ipam.objects(&["pools"]);
    let pools: Vec<Pool> = objects
        .iter()
        .enumerate()
        .filter_map(|(index, map)| read_pool(&format!("ipam.pools[{index}]"), map, problems))
        .collect();
    for (index, pool) in pools.iter().enumerate() {
        if let Some(other) = pools[..index].iter().find(|other| other.cidr.overlaps(pool.cidr)) {
            let path = format!("ipam.pools[{index}].cidr");
            let right = format!("a range apart from {}", other.cidr);
            problems.push(Problem::wrong(path, pool.cidr.to_string(), right));
        }
    }
    if mode == Mode::Standalone {
        for family in families.iter().filter(|f| !pools.iter().any(|p| p.cidr.family() == **f)) {
            let right = format!("at least one {family} range, such as {}", example(*family));
            problems.push(Problem::wrong(
                "ipam.pools",
                Value::from(map.get("pools").cloned()),
                right,
            ));
        }
    }
    Ipam { mode, families, ipv4_pools, ipv6_pools, pools }
}

const fn example(family: Family) -> &'static str {
    match family {
        Family::V4 => r#"{"cidr": "10.10.0.0/24"}"#,
        Family::V6 => r#"{"cidr": "fd00:10::/64"}"#,
    }
}

fn read_pool(path: &str, map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Option<Pool> {
    let mut section = Section::new(path, map, POOL_KEYS, problems);
    let cidr = match section.string(&["cidr"]) {
        Some(text) => match text.parse::<Prefix>() {
            Ok(cidr) => cidr,
            Err(error) => {
                let right = match error {
                    PrefixError::HostBits { masked, .. } => masked.to_string(),
                    PrefixError::Syntax(_) | PrefixError::Length { .. } => error.to_string(),
                };
                section.problem(Problem::wrong(format!("{path}.cidr"), text, right));
                return None;
            }
        },
        None => {
            section.problem(Problem::wrong(
                format!("{path}.cidr"),
                Value::Null,
                "a prefix, such as 10.10.0.0/24",
            ));
            return None;
        }
    };
    // Calico's defaults: 64 addresses.
    let default = match cidr.family() {
        Family::V4 => 26,
        Family::V6 => 122,
    };
    let smallest = cidr.family().bits();
    let largest = (smallest - 12).max(cidr.length());
    let right = format!("{largest} to {smallest}, the prefix length of a block inside {cidr}");
    let block_size = section
        .number(&["blockSize"], &right, |n| (u64::from(largest)..=u64::from(smallest)).contains(&n))
        .and_then(|n| u8::try_from(n).ok())
        .unwrap_or_else(|| default.max(cidr.length()));
    let first = cidr.subnet(block_size, 0)?;
    Block::new(first).is_ok().then_some(Pool { cidr, block_size })
}

/// Addresses asked for in the places that the conventions name, the one that wins first.
fn wishes(map: &Map<String, Value>) -> Vec<Wish> {
    let places = [
        ("runtimeConfig.ips", map.get("runtimeConfig").and_then(|v| v.get("ips"))),
        ("runtimeConfig.mac", map.get("runtimeConfig").and_then(|v| v.get("mac"))),
        ("args.cni.ips", map.get("args").and_then(|v| v.get("cni")?.get("ips"))),
        ("args.cni.mac", map.get("args").and_then(|v| v.get("cni")?.get("mac"))),
    ];
    let wanted = |value: &Value| match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    };
    places
        .into_iter()
        .filter_map(|(key, value)| value.filter(|v| wanted(v)).map(|v| (key, v.to_string())))
        .map(|(key, value)| Wish { key, value })
        .collect()
}

#[cfg(test)]
mod tests;
