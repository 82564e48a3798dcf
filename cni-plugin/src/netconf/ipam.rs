//! The `ipam` section.

use std::{net::IpAddr, time::Duration};

use serde_json::{Map, Value};
use twill_dataplane::pod::PodRoute;
use twill_types::{Block, Family, Prefix};

use super::section::{Problem, Section};
use crate::{
    call::Persona,
    result::{ResultRoute, asked_in_vain},
};

#[rustfmt::skip]
const KEYS: &[&str] = &[
    "type", "mode",
    "assignIPv4", "assign_ipv4", "assignIPv6", "assign_ipv6",
    "ipv4Pools", "ipv4_pools", "ipv6Pools", "ipv6_pools",
    "allowReserved",
    "pools", "routes",
];

/// Keys that only count where another plugin makes the interface, and those that the main plugin
/// has no place for then.
#[rustfmt::skip]
const FOREIGN_KEYS: &[&str] = &[
    "type", "mode",
    "assignIPv4", "assign_ipv4", "assignIPv6", "assign_ipv6",
    "ipv4Pools", "ipv4_pools", "ipv6Pools", "ipv6_pools",
    "allowReserved",
    "pools", "routes",
    "prefixLength", "prefixLengthIPv6", "gateway", "advertise", "gcGraceSeconds",
    "runDir", "timeoutSeconds", "logLevel", "logFile",
    "statusGraceSeconds", "statusOnExhaustion", "statusOnMissingRoutes",
];

/// As long as an ADD of ours may take (`timeoutSeconds`), and as the daemon waits (`graceSeconds`).
const DEFAULT_GC_GRACE: Duration = Duration::from_secs(120);

const POOL_KEYS: &[&str] = &["cidr", "blockSize"];

const ROUTE_KEYS: &[&str] = &["dst", "gw", "mtu", "advmss", "priority", "table", "scope"];

/// The `ipam` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ipam {
    pub(crate) mode: Mode,
    /// Which families a pod gets an address of; at least one.
    pub(crate) families: Vec<Family>,
    /// Pools by name or CIDR; empty: those whose selector matches the node.
    pub(crate) ipv4_pools: Vec<String>,
    pub(crate) ipv6_pools: Vec<String>,
    /// An address that is asked for may be one that an IPReservation reserves.
    pub(crate) allow_reserved: bool,
    /// Only for standalone mode.
    pub(crate) pools: Vec<Pool>,
    /// Routes beside the default route; with gateways only for another main plugin.
    pub(crate) routes: Vec<ResultRoute>,
    /// Another IPAM plugin that is to be executed instead.
    pub(crate) plugin: Option<String>,
    /// For the main plugin that calls us.
    pub(crate) foreign: ForeignNeeds,
}

/// What the network of another main plugin needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignNeeds {
    /// Prefix lengths of the addresses; `None` is that of the block.
    pub(crate) prefix_length: Option<u8>,
    pub(crate) prefix_length_v6: Option<u8>,
    pub(crate) gateway: Gateway,
    /// Whether the network's blocks are announced.
    pub(crate) advertise: bool,
    /// How long GC leaves alone what was given to a pod that is not listed: its ADD may go on, and
    /// nothing of the main plugin's shows that here.
    pub(crate) gc_grace: Duration,
}

/// The gateway of a network of another main plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gateway {
    /// The first address of each block.
    First,
    /// None at all.
    Absent,
    /// These, at most one of a family.
    At(Vec<IpAddr>),
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

const MODES: &[(&str, Mode)] =
    &[("daemon", Mode::Daemon), ("standalone", Mode::Standalone), ("auto", Mode::Auto)];

/// Reads the section of a plugin of the type `own`.
pub(super) fn read(
    map: &Map<String, Value>,
    own: Option<&str>,
    persona: Persona,
    problems: &mut Vec<Problem>,
) -> Ipam {
    let known = match persona {
        Persona::Main => KEYS,
        Persona::Ipam => FOREIGN_KEYS,
    };
    let kind = map.get("type").and_then(Value::as_str);
    let plugin = kind
        .filter(|kind| persona == Persona::Main && !matches!(*kind, "twill-ipam" | "calico-ipam"))
        .map(str::to_owned);
    if plugin.is_some() {
        return Ipam::of_plugin(map, plugin, own, problems);
    }
    let mut ipam = Section::new("ipam", map, known, problems);
    ipam.string(&["type"]);
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
    let allow_reserved = ipam.flag(&["allowReserved"]).unwrap_or(false);
    let foreign = read_foreign(&mut ipam);
    let objects = ipam.objects(&["pools"]);
    let routes = read_routes(&mut ipam, persona);
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
    Ipam {
        mode,
        families,
        ipv4_pools,
        ipv6_pools,
        allow_reserved,
        pools,
        routes,
        plugin: None,
        foreign,
    }
}

impl Ipam {
    /// The routes as those of a pod, all through the node.
    pub(crate) fn pod_routes(&self) -> Vec<PodRoute> {
        self.routes.iter().map(|route| route.route.clone()).collect()
    }

    /// Of another plugin: the keys are its own. What it has no say in is ours all the same.
    fn of_plugin(
        map: &Map<String, Value>,
        plugin: Option<String>,
        own: Option<&str>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        // The same program once more, which would execute it once more in turn.
        if plugin.as_deref().is_some_and(|name| name == "twill" || Some(name) == own) {
            let right = r#""twill-ipam", or the name of another IPAM plugin in CNI_PATH"#;
            problems.push(Problem::wrong("ipam.type", plugin.clone(), right));
        }
        if plugin.as_deref().is_some_and(|name| name.is_empty() || name.contains('/')) {
            let right = "the name of a program in CNI_PATH, without a slash";
            problems.push(Problem::wrong("ipam.type", plugin.clone(), right));
        }
        let mut section = Section::unchecked("ipam", map, problems);
        Self {
            mode: Mode::Daemon,
            families: Vec::new(),
            ipv4_pools: Vec::new(),
            ipv6_pools: Vec::new(),
            allow_reserved: false,
            pools: Vec::new(),
            foreign: read_foreign(&mut section),
            routes: Vec::new(),
            plugin,
        }
    }
}

/// `featureControl.ipAddrsNoIpam`, in Calico's spelling too.
pub(super) fn allows_no_ipam(control: &Map<String, Value>) -> bool {
    ["ipAddrsNoIpam", "ip_addrs_no_ipam"]
        .iter()
        .any(|key| control.get(*key).is_some_and(|value| value == true || value == "true"))
}

/// What `gateway` takes.
const GATEWAYS: &str = "true, false, an address, or a list of one address of each family";

fn read_foreign(ipam: &mut Section<'_, '_>) -> ForeignNeeds {
    let mut length = |key, longest: u64| {
        let right = format!("1 to {longest}");
        let read = ipam.number(&[key], &right, |length| (1..=longest).contains(&length));
        read.and_then(|length| u8::try_from(length).ok())
    };
    ForeignNeeds {
        prefix_length: length("prefixLength", 32),
        prefix_length_v6: length("prefixLengthIPv6", 128),
        gateway: ipam
            .read(&["gateway"], GATEWAYS, |value| {
                let address = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
                match value {
                    Value::Bool(true) => Some(Gateway::First),
                    Value::Bool(false) => Some(Gateway::Absent),
                    Value::String(_) => Some(Gateway::At(vec![address(value)?])),
                    Value::Array(list) => {
                        let list = list.iter().map(address).collect::<Option<Vec<_>>>()?;
                        let count = |f| list.iter().filter(|ip| Family::of(**ip) == f).count();
                        let fits = [Family::V4, Family::V6].into_iter().all(|f| count(f) <= 1);
                        fits.then_some(Gateway::At(list))
                    }
                    _ => None,
                }
            })
            .unwrap_or(Gateway::First),
        advertise: ipam.flag(&["advertise"]).unwrap_or(false),
        gc_grace: ipam
            .number(&["gcGraceSeconds"], "0 to 3600", |seconds| seconds <= 3600)
            .map_or(DEFAULT_GC_GRACE, Duration::from_secs),
    }
}

fn read_routes(ipam: &mut Section<'_, '_>, persona: Persona) -> Vec<ResultRoute> {
    let objects = ipam.objects(&["routes"]);
    let mut routes = Vec::new();
    for (index, map) in objects.into_iter().enumerate() {
        let path = format!("ipam.routes[{index}]");
        let mut section = Section::new(&path, map, ROUTE_KEYS, ipam.problems());
        let number = |section: &mut Section<'_, '_>, key, least: u64, most: u64| {
            let right = format!("{least} to {most}");
            let read = section.number(&[key], &right, |number| (least..=most).contains(&number));
            read.and_then(|number| u32::try_from(number).ok())
        };
        let priority = number(&mut section, "priority", 1, u64::from(u32::MAX));
        let mtu = number(&mut section, "mtu", 68, 65535);
        let advmss = number(&mut section, "advmss", 28, 65535);
        for (key, value, alike) in asked_in_vain(map) {
            let right = format!("nothing: {alike}");
            section.problem(Problem::unsupported(&format!("{path}.{key}"), value.clone(), &right));
        }
        let destination = section.prefix("dst", "0.0.0.0/0");
        let gateway = read_gateway(&mut section, persona, destination);
        if let Some(destination) = destination {
            let route = PodRoute { destination, priority, mtu, advmss };
            routes.push(ResultRoute { route, gateway });
        }
    }
    routes
}

/// A gateway of a route's own. A pod of ours has the node alone.
fn read_gateway(
    section: &mut Section<'_, '_>,
    persona: Persona,
    destination: Option<Prefix>,
) -> Option<IpAddr> {
    let right = match (persona, destination) {
        (Persona::Main, _) => "nothing: the gateway of a pod is the node".to_owned(),
        (Persona::Ipam, Some(to)) => format!("an {} address, as dst is {to}", to.family()),
        (Persona::Ipam, None) => "an address of the family of dst".to_owned(),
    };
    section.read(&["gw"], &right, |value| {
        let gateway = value.as_str()?.parse::<IpAddr>().ok();
        let fits = |ip: &IpAddr| destination.is_none_or(|to| to.family() == Family::of(*ip));
        gateway.filter(|gateway| persona == Persona::Ipam && fits(gateway))
    })
}

const fn example(family: Family) -> &'static str {
    match family {
        Family::V4 => r#"{"cidr": "10.10.0.0/24"}"#,
        Family::V6 => r#"{"cidr": "fd00:10::/64"}"#,
    }
}

fn read_pool(path: &str, map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Option<Pool> {
    let mut section = Section::new(path, map, POOL_KEYS, problems);
    let cidr = section.prefix("cidr", "10.10.0.0/24")?;
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
