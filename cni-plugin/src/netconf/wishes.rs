//! What is asked for one interface: addresses, hardware address, pools.
//!
//! There are four places to ask. Where two of them say the same thing, the one that comes first
//! here counts (the conventions of CNI for the first three): `runtimeConfig`, `args.cni`,
//! `CNI_ARGS`; the pod's annotations go before `CNI_ARGS`, as with Calico. Annotations come from the
//! runtime, or from the cluster by way of the daemon, which has those of the namespace among them.

use std::{collections::BTreeMap, net::IpAddr};

use serde_json::{Map, Value};
use twill_dataplane::MacAddress;
use twill_types::{Family, asks_for_nothing};

use super::section::Problem;
use crate::call::Args;

/// Where containerd and CRI-O put the pod's annotations.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// At most one of a family.
    pub(crate) addresses: Vec<IpAddr>,
    /// The addresses are used as they are, and no pool is asked.
    pub(crate) without_ipam: bool,
    pub(crate) mac: Option<MacAddress>,
    /// The runtime has handed over the pod's annotations: all that it has, kubelets add some to each.
    pub(crate) annotations_told: bool,
    /// Instead of the configuration's, where it is not empty.
    pub(crate) ipv4_pools: Vec<String>,
    pub(crate) ipv6_pools: Vec<String>,
    /// Instead of the configuration's, as a result has it.
    pub(super) dns: Option<Map<String, Value>>,
}

/// What of the configuration counts for wishes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rules<'a> {
    /// Pods may ask for addresses of no pool.
    pub(super) no_ipam_allowed: bool,
    /// Another IPAM plugin gives the addresses. It reads what runtime and arguments say by itself.
    pub(super) plugin: Option<&'a str>,
}

/// The annotations that ask for something of our own pools.
const OF_POOLS: [&str; 3] = ["ipAddrs", "ipv4pools", "ipv6pools"];

/// One place to ask in, with what is there.
type Place = (String, Value);

/// Reads all places.
pub(super) fn read(
    map: &Map<String, Value>,
    args: &Args,
    cluster: &BTreeMap<String, String>,
    rules: Rules<'_>,
    problems: &mut Vec<Problem>,
) -> Wishes {
    let runtime = |key: &str| place("runtimeConfig", map.get("runtimeConfig"), key);
    let cni = map.get("args").and_then(|args| args.get("cni"));
    let argument = |key: &str| place("args.cni", cni, key);
    let annotations = map.get("runtimeConfig").and_then(|config| config.get(ANNOTATIONS));
    let annotation = |key: &str| {
        let key = format!("cni.projectcalico.org/{key}");
        let by_runtime = annotations.and_then(|all| all.get(&key)).cloned();
        let by_runtime = by_runtime.map(|value| (key.clone(), value)).filter(wanted);
        // What the runtime hands over is of the moment at which the pod's sandbox was made.
        by_runtime.or_else(|| {
            let value = Value::from(cluster.get(&key)?.as_str());
            Some((key, value)).filter(wanted)
        })
    };
    refuse_floating(annotation("floatingIPs"), problems);
    match rules.plugin {
        Some(plugin) => {
            let of_ours = OF_POOLS.map(annotation);
            refuse_delegated(plugin, of_ours.into_iter().flatten(), problems);
        }
        None => refuse_ranges(runtime("ipRanges"), problems),
    }

    let no_ipam = annotation("ipAddrsNoIpam");
    if let (Some((key, value)), Some(_)) = (&no_ipam, annotation("ipAddrs")) {
        let right = "one of ipAddrs and ipAddrsNoIpam, not both";
        problems.push(Problem::wrong(key, value.clone(), right));
    }
    if let (Some((key, value)), false) = (&no_ipam, rules.no_ipam_allowed) {
        let right = "ipAddrs, or allow it by featureControl.ipAddrsNoIpam";
        problems.push(Problem::unsupported(key, value.clone(), right));
    }
    let without_ipam = no_ipam.is_some();
    let of_pools = || {
        runtime("ips")
            .or_else(|| argument("ips"))
            .or_else(|| annotation("ipAddrs"))
            .or_else(|| Some(("CNI_ARGS IP".to_owned(), args.ip.as_deref()?.into())))
    };
    let addresses = no_ipam.or_else(|| of_pools().filter(|_| rules.plugin.is_none()));
    let mac = runtime("mac")
        .or_else(|| argument("mac"))
        .or_else(|| annotation("hwAddr"))
        .or_else(|| Some(("CNI_ARGS MAC".to_owned(), args.mac.as_deref()?.into())));
    let mut pools = |key| annotation(key).map(|place| texts(place, problems)).unwrap_or_default();
    let (ipv4_pools, ipv6_pools) = (pools("ipv4pools"), pools("ipv6pools"));
    Wishes {
        addresses: addresses.map(|place| read_addresses(place, problems)).unwrap_or_default(),
        without_ipam,
        mac: mac.and_then(|place| read_mac(place, problems)),
        annotations_told: annotations.is_some_and(Value::is_object),
        ipv4_pools,
        ipv6_pools,
        dns: runtime("dns").and_then(|place| read_dns(place, problems)),
    }
}

/// Whether a problem is with an annotation that asks for something of our own pools.
pub(super) fn is_of_pools(path: &str) -> bool {
    path.strip_prefix("cni.projectcalico.org/").is_some_and(|name| OF_POOLS.contains(&name))
}

/// `key` of an object, if something is asked there.
fn place(path: &str, object: Option<&Value>, key: &str) -> Option<Place> {
    let value = object?.get(key)?.clone();
    Some((format!("{path}.{key}"), value)).filter(wanted)
}

fn wanted((_, value): &Place) -> bool {
    match value {
        Value::Null => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !asks_for_nothing(text),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// Ranges belong to whoever owns the addresses, which is the pools.
fn refuse_ranges(ranges: Option<Place>, problems: &mut Vec<Problem>) {
    if let Some((key, value)) = ranges {
        let right = "pools: name them in ipam.ipv4Pools or ipam.ipv6Pools, and leave out the \
                     capability ipRanges";
        problems.push(Problem::unsupported(&key, value, right));
    }
}

/// They are addresses that a node translates to the pod's.
fn refuse_floating(addresses: Option<Place>, problems: &mut Vec<Problem>) {
    if let Some((key, value)) = addresses {
        let right = "ipAddrs for an address that the pod has itself, or leave it out";
        problems.push(Problem::unsupported(&key, value, right));
    }
}

/// They are of our own pools, and another plugin knows nothing of annotations.
fn refuse_delegated(plugin: &str, asked: impl Iterator<Item = Place>, problems: &mut Vec<Problem>) {
    for (key, value) in asked {
        let right = format!(
            "nothing, since ipam.type is {plugin:?}, or \"twill-ipam\" there; for an address ask \
             {plugin} in its own way"
        );
        problems.push(Problem::unsupported(&key, value, &right));
    }
}

/// A list of texts: as JSON, as JSON in a text (annotations), or separated by commas (`CNI_ARGS`).
fn texts((key, value): Place, problems: &mut Vec<Problem>) -> Vec<String> {
    let list = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let read = match &value {
        Value::String(text) if text.trim_start().starts_with('[') => {
            serde_json::from_str(text).ok().as_ref().and_then(list)
        }
        Value::String(text) => Some(text.split(',').map(|part| part.trim().to_owned()).collect()),
        other => list(other),
    };
    read.unwrap_or_else(|| {
        problems.push(Problem::wrong(key, value, r#"a list of texts, such as ["10.10.0.5"]"#));
        Vec::new()
    })
}

/// Addresses; a prefix length beside one is passed over, as every pod has a /32 or /128.
fn read_addresses(place: Place, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let key = place.0.clone();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in texts(place, problems) {
        let (plain, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text.as_str(), None),
        };
        let fits = |address: &IpAddr| {
            let right = |length: u8| length <= Family::of(*address).bits();
            length.is_none_or(|length| length.parse().is_ok_and(right))
        };
        match plain.parse::<IpAddr>() {
            Ok(address) if !fits(&address) => {
                let right = "an address, with a prefix length of its family if with any";
                problems.push(Problem::wrong(key.clone(), text, right));
            }
            Ok(address) if !is_host(address) => {
                problems.push(Problem::wrong(key.clone(), text, "the address of one host"));
            }
            Ok(address) => addresses.push(address),
            Err(_) => {
                problems.push(Problem::wrong(key.clone(), text, "an address, such as 10.10.0.5"));
            }
        }
    }
    for family in [Family::V4, Family::V6] {
        let of_family: Vec<String> = addresses
            .iter()
            .filter(|address| Family::of(**address) == family)
            .map(ToString::to_string)
            .collect();
        if of_family.len() > 1 {
            let right = format!("at most one {family} address");
            problems.push(Problem::wrong(key.clone(), of_family, right));
        }
    }
    addresses.sort();
    addresses
}

/// Whether an interface can have it: an IPv4 address in IPv6 clothes is told as such elsewhere.
fn is_host(address: IpAddr) -> bool {
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !(mapped || address.is_multicast() || address.is_unspecified() || address.is_loopback())
}

fn read_mac((key, value): Place, problems: &mut Vec<Problem>) -> Option<MacAddress> {
    let read = value.as_str().unwrap_or_default().parse::<MacAddress>();
    read.map_err(|error| problems.push(Problem::wrong(key, value, error.to_string()))).ok()
}

/// The conventions of CNI have other names for these lists than a result has. A runtime sends them
/// empty where a pod leaves it to the node; nothing is asked then.
const DNS: [(&str, &str); 3] =
    [("servers", "nameservers"), ("searches", "search"), ("options", "options")];

fn read_dns((key, value): Place, problems: &mut Vec<Problem>) -> Option<Map<String, Value>> {
    if !value.is_object() {
        let right = r#"an object, such as {"servers": ["192.0.2.53"]}"#;
        problems.push(Problem::wrong(key, value, right));
        return None;
    }
    let mut dns = Map::new();
    for (asked, given) in DNS {
        if let Some((key, list)) = place(&key, Some(&value), asked) {
            if list.as_array().is_some_and(|list| list.iter().all(Value::is_string)) {
                dns.insert(given.to_owned(), list);
            } else {
                problems.push(Problem::wrong(key, list, "a list of texts"));
            }
        }
    }
    Some(dns).filter(|dns| !dns.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wishes(value: &Value, args: &Args, allowed: bool) -> (Wishes, Vec<String>) {
        wishes_by(value, args, Rules { no_ipam_allowed: allowed, plugin: None })
    }

    fn wishes_by(value: &Value, args: &Args, rules: Rules<'_>) -> (Wishes, Vec<String>) {
        let mut problems = Vec::new();
        let none = BTreeMap::new();
        let wishes = read(value.as_object().unwrap(), args, &none, rules, &mut problems);
        (wishes, problems.iter().map(ToString::to_string).collect())
    }

    fn addresses(value: &Value, args: &Args) -> Vec<String> {
        let (wishes, problems) = wishes(value, args, true);
        assert_eq!(problems, [""; 0], "{value}");
        wishes.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_place_counts() {
        let args = Args { ip: Some("10.0.0.8".into()), ..Args::default() };
        let mut config = json!({});
        assert_eq!(addresses(&config, &args), ["10.0.0.8"]);
        config["runtimeConfig"] =
            json!({ANNOTATIONS: {"cni.projectcalico.org/ipAddrs": "[\"10.0.0.7\"]"}});
        assert_eq!(addresses(&config, &args), ["10.0.0.7"]);
        config["args"] = json!({"cni": {"ips": ["10.0.0.6/24", "fd00::6"]}});
        assert_eq!(addresses(&config, &args), ["10.0.0.6", "fd00::6"]);
        config["runtimeConfig"]["ips"] = json!([]);
        assert_eq!(addresses(&config, &args), ["10.0.0.6", "fd00::6"]);
        config["runtimeConfig"]["ips"] = json!(["10.0.0.5"]);
        assert_eq!(addresses(&config, &args), ["10.0.0.5"]);
        let both = Args { ip: Some("10.0.0.8,fd00::8".into()), ..Args::default() };
        assert_eq!(addresses(&json!({}), &both), ["10.0.0.8", "fd00::8"]);
    }

    #[test]
    fn annotations_choose_pools_and_hardware_address() {
        let config = json!({"runtimeConfig": {ANNOTATIONS: {
            "cni.projectcalico.org/ipv4pools": "[\"blue\", \"10.1.0.0/16\"]",
            "cni.projectcalico.org/hwAddr": "02:00:00:00:00:05",
            "other/key": "x",
        }}});
        let (wishes, problems) = wishes(&config, &Args::default(), false);
        assert_eq!(problems, [""; 0]);
        assert_eq!(wishes.ipv4_pools, ["blue", "10.1.0.0/16"]);
        assert_eq!(wishes.mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:05"));
    }

    /// Each annotation by itself: the runtime's, then the cluster's.
    #[test]
    fn annotations_come_from_the_runtime_and_from_the_cluster() {
        let config = json!({"runtimeConfig": {ANNOTATIONS: {
            "cni.projectcalico.org/ipv4pools": "[\"blue\"]",
            "cni.projectcalico.org/hwAddr": "",
        }}});
        let cluster = [
            ("cni.projectcalico.org/ipv4pools", "[\"red\"]"),
            ("cni.projectcalico.org/ipv6pools", "[\"six\"]"),
            ("cni.projectcalico.org/hwAddr", "02:00:00:00:00:05"),
            ("cni.projectcalico.org/ipAddrs", "[\"10.0.0.7\"]"),
        ];
        let cluster = cluster.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let args = Args { ip: Some("10.0.0.8".into()), ..Args::default() };
        let mut problems = Vec::new();
        let wishes =
            read(config.as_object().unwrap(), &args, &cluster, Rules::default(), &mut problems);
        assert_eq!(problems, []);
        assert_eq!(
            (&wishes.ipv4_pools[..], &wishes.ipv6_pools[..]),
            (&["blue".into()][..], &["six".into()][..])
        );
        assert_eq!(wishes.mac.map(|mac| mac.to_string()).as_deref(), Some("02:00:00:00:00:05"));
        assert_eq!(wishes.addresses, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn an_empty_list_in_a_text_asks_for_nothing() {
        let args = Args { ip: Some("10.0.0.8".into()), ..Args::default() };
        for empty in ["[]", " [ ] "] {
            for name in ["ipAddrs", "ipAddrsNoIpam", "floatingIPs"] {
                let key = format!("cni.projectcalico.org/{name}");
                let config = json!({"runtimeConfig": {ANNOTATIONS: {&key: empty}}});
                let (wishes, problems) = wishes(&config, &args, true);
                assert_eq!(problems, [""; 0], "{config}");
                assert!(!wishes.without_ipam, "{config}");
                assert_eq!(wishes.addresses, ["10.0.0.8".parse::<IpAddr>().unwrap()], "{config}");
            }
        }
        // The namespace's pools are those of a pod that names none.
        let key = "cni.projectcalico.org/ipv4pools";
        let config = json!({"runtimeConfig": {ANNOTATIONS: {key: "[]"}}});
        let cluster = [(key.to_owned(), "[\"red\"]".to_owned())].into();
        let mut problems = Vec::new();
        let wishes =
            read(config.as_object().unwrap(), &args, &cluster, Rules::default(), &mut problems);
        assert_eq!((wishes.ipv4_pools, problems), (vec!["red".to_owned()], vec![]));
    }

    #[test]
    fn a_runtime_without_annotations_has_told_none() {
        for (config, told) in [
            (json!({}), false),
            (json!({"runtimeConfig": {"ips": ["10.0.0.5"]}}), false),
            (json!({"runtimeConfig": {ANNOTATIONS: null}}), false),
            (json!({"runtimeConfig": {ANNOTATIONS: {"kubernetes.io/config.source": "api"}}}), true),
        ] {
            let (wishes, problems) = wishes(&config, &Args::default(), false);
            assert_eq!((wishes.annotations_told, problems), (told, vec![]), "{config}");
        }
    }

    #[test]
    fn addresses_without_ipam_are_behind_a_switch() {
        let config = json!({"runtimeConfig": {ANNOTATIONS: {
            "cni.projectcalico.org/ipAddrsNoIpam": "[\"192.0.2.5\"]",
        }}});
        let (_, problems) = wishes(&config, &Args::default(), false);
        assert!(problems[0].contains("featureControl.ipAddrsNoIpam"), "{problems:?}");
        let (wishes, problems) = wishes(&config, &Args::default(), true);
        assert!(problems.is_empty() && wishes.without_ipam, "{problems:?}");
    }

    #[test]
    fn what_another_plugin_cannot_know_is_refused() {
        let rules = Rules { no_ipam_allowed: true, plugin: Some("host-local") };
        let args = Args { ip: Some("10.0.0.8".into()), ..Args::default() };
        for name in ["ipAddrs", "ipv4pools", "ipv6pools"] {
            let key = format!("cni.projectcalico.org/{name}");
            let mut config = json!({"runtimeConfig": {ANNOTATIONS: {&key: "[\"10.0.0.7\"]"}}});
            let (_, problems) = wishes_by(&config, &args, rules);
            for word in [&key, "10.0.0.7", "not supported", "host-local", "twill-ipam"] {
                assert!(problems[0].contains(word), "{problems:?}");
            }
            config["runtimeConfig"][ANNOTATIONS][&key] = json!("[]");
            assert_eq!(wishes_by(&config, &args, rules).1, [""; 0], "{config}");
        }
        // It reads these itself, and that one needs no plugin.
        for config in [
            json!({"runtimeConfig": {"ips": ["10.0.0.5"]}}),
            json!({"args": {"cni": {"ips": ["10.0.0.5"]}}}),
            json!({"runtimeConfig": {"ips": ["10.0.0.5/24", "10.0.0.6/24"]}}),
            json!({"args": {"cni": {"ips": {"of": "its own"}}}}),
            json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/24"}]]}}),
            json!({"runtimeConfig": {ANNOTATIONS: {
                "cni.projectcalico.org/ipAddrsNoIpam": "[\"192.0.2.5\"]",
                "cni.projectcalico.org/hwAddr": "02:00:00:00:00:05",
            }}}),
        ] {
            assert_eq!(wishes_by(&config, &args, rules).1, [""; 0], "{config}");
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        let v4 = |ips: Value| json!({"runtimeConfig": {"ips": ips}});
        let annotated = |name: &str| {
            let key = format!("cni.projectcalico.org/{name}");
            let ip = "[\"10.0.0.5\"]";
            let all = json!({&key: ip, "cni.projectcalico.org/ipAddrs": ip});
            json!({"runtimeConfig": {ANNOTATIONS: all}})
        };
        for (config, needle) in [
            (v4(json!(["10.0.0.5", "10.0.0.6"])), "at most one IPv4 address"),
            (annotated("floatingIPs"), "which is not supported"),
            (annotated("ipAddrsNoIpam"), "not both"),
            (v4(json!(["10.0.0"])), "an address, such as"),
            (v4(json!(["::ffff:10.0.0.1"])), "the address of one host"),
            (v4(json!(["224.0.0.1"])), "the address of one host"),
            (v4(json!([5])), "a list of texts"),
            (json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}), "not a multicast address"),
            (json!({"runtimeConfig": {"mac": "2:0:0:0:0:1"}}), "six bytes"),
            (json!({"runtimeConfig": {"dns": ["192.0.2.53"]}}), "an object, such as"),
            (json!({"runtimeConfig": {"dns": {"searches": [1]}}}), "runtimeConfig.dns.searches"),
            (json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/24"}]]}}), "ipv4Pools"),
        ] {
            let (_, problems) = wishes(&config, &Args::default(), true);
            assert!(problems.iter().any(|p| p.contains(needle)), "{config}: {problems:?}");
        }
    }
}
