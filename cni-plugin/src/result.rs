//! The result of an ADD, in the form that each version of the specification gives it.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use twill_dataplane::pod::{self, PodRoute};
use twill_types::{Family, Prefix};

use crate::version::Version;

/// What an ADD made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddResult {
    /// `None` where another plugin makes the interface.
    pub(crate) link: Option<ResultLink>,
    /// The pod's addresses with their gateways.
    pub(crate) addresses: Vec<PodAddress>,
    pub(crate) routes: Vec<ResultRoute>,
    pub(crate) dns: Option<Map<String, Value>>,
}

/// Both ends of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResultLink {
    /// The node's end.
    pub(crate) host: Interface,
    /// The pod's end.
    pub(crate) pod: Interface,
    /// `CNI_NETNS`, letter for letter.
    pub(crate) sandbox: String,
}

/// One end of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: String,
    pub(crate) mtu: u32,
}

/// One address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PodAddress {
    pub(crate) address: IpAddr,
    /// Prefix length.
    pub(crate) length: u8,
    pub(crate) gateway: Option<IpAddr>,
}

impl PodAddress {
    fn family(self) -> Family {
        Family::of(self.address)
    }

    /// Whether the main plugin has given it: as a host's, with the gateway of all pods.
    pub(crate) fn is_of_twill(self) -> bool {
        let family = self.family();
        self.length == family.bits() && self.gateway.is_none_or(|ip| ip == pod::gateway(family))
    }

    fn cidr(self) -> String {
        format!("{}/{}", self.address, self.length)
    }
}

/// A route of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResultRoute {
    pub(crate) route: PodRoute,
    /// `None` leaves it to the gateway of the address.
    pub(crate) gateway: Option<IpAddr>,
}

/// What a route may ask for, and all routes here have alike: the key, the values that ask for just
/// that, and what it is. The main table is 254, or 0 for no choice, and the global scope 0
/// (`linux/rtnetlink.h`).
const ALIKE: [(&str, &[u64], &str); 2] = [
    ("table", &[0, 254], "all routes are in the main table"),
    ("scope", &[0], "all routes are of global scope"),
];

/// The keys in a route's object that ask for what no route here has, with their values and what holds for all.
pub(crate) fn asked_in_vain(
    route: &Map<String, Value>,
) -> impl Iterator<Item = (&'static str, &Value, &'static str)> {
    ALIKE.iter().filter_map(|(key, alike, what)| {
        let value = route.get(*key).filter(|value| !value.is_null())?;
        let is_so = value.as_u64().is_some_and(|value| alike.contains(&value));
        (!is_so).then_some((*key, value, *what))
    })
}

impl ResultRoute {
    fn render(&self, with_metrics: bool) -> Value {
        let PodRoute { destination, priority, mtu, advmss } = &self.route;
        let mut value = Map::new();
        value.insert("dst".to_owned(), destination.to_string().into());
        if let Some(gateway) = self.gateway {
            value.insert("gw".to_owned(), gateway.to_string().into());
        }
        let metrics = [("priority", priority), ("mtu", mtu), ("advmss", advmss)];
        for (key, metric) in metrics.into_iter().filter(|_| with_metrics) {
            if let Some(metric) = metric {
                value.insert(key.to_owned(), (*metric).into());
            }
        }
        value.into()
    }
}

/// Position of the pod's end in `interfaces`.
const POD: usize = 1;

impl AddResult {
    /// The JSON object for standard output.
    pub(crate) fn render(&self, version: Version) -> Value {
        let mut result = match version {
            Version::V0_1_0 | Version::V0_2_0 => self.by_family(),
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => self.listed(true, false),
            Version::V1_0_0 => self.listed(false, false),
            Version::V1_1_0 => self.listed(false, true),
        };
        result.insert("cniVersion".to_owned(), version.as_str().into());
        if let Some(dns) = &self.dns {
            result.insert("dns".to_owned(), dns.clone().into());
        }
        result.into()
    }

    /// 0.1.0 and 0.2.0: one address per family, with its routes.
    fn by_family(&self) -> Map<String, Value> {
        let mut result = Map::new();
        for (key, family) in [("ip4", Family::V4), ("ip6", Family::V6)] {
            if let Some(address) = self.addresses.iter().find(|a| a.family() == family) {
                let routes: Vec<Value> = self
                    .routes
                    .iter()
                    .filter(|route| route.route.destination.family() == family)
                    .map(|route| route.render(false))
                    .collect();
                let mut value = json!({"ip": address.cidr(), "routes": routes});
                if let Some(gateway) = address.gateway {
                    value["gateway"] = gateway.to_string().into();
                }
                result.insert(key.to_owned(), value);
            }
        }
        result
    }

    /// From 0.3.0: interfaces, addresses and routes as lists.
    fn listed(&self, with_family: bool, newest: bool) -> Map<String, Value> {
        let mut result = Map::new();
        if let Some(link) = &self.link {
            result.insert("interfaces".to_owned(), link.render(newest));
        }
        let address = |address: &PodAddress| {
            let mut value = Map::new();
            if with_family {
                let version = match address.family() {
                    Family::V4 => "4",
                    Family::V6 => "6",
                };
                value.insert("version".to_owned(), version.into());
            }
            value.insert("address".to_owned(), address.cidr().into());
            if let Some(gateway) = address.gateway {
                value.insert("gateway".to_owned(), gateway.to_string().into());
            }
            if self.link.is_some() {
                value.insert("interface".to_owned(), POD.into());
            }
            value
        };
        let ips: Vec<_> = self.addresses.iter().map(address).collect();
        let routes: Vec<_> = self.routes.iter().map(|route| route.render(newest)).collect();
        result.insert("ips".to_owned(), json!(ips));
        result.insert("routes".to_owned(), json!(routes));
        result
    }
}

impl ResultLink {
    fn render(&self, with_mtu: bool) -> Value {
        let interface = |interface: &Interface| {
            let mut value = Map::new();
            value.insert("name".to_owned(), interface.name.clone().into());
            value.insert("mac".to_owned(), interface.mac.clone().into());
            if with_mtu {
                value.insert("mtu".to_owned(), interface.mtu.into());
            }
            value
        };
        let host = interface(&self.host);
        let mut pod = interface(&self.pod);
        pod.insert("sandbox".to_owned(), self.sandbox.clone().into());
        json!([host, pod])
    }
}

/// What a `prevResult` says about the pod's end of the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Previous {
    /// Those on the interface; later plugins may have added some, and taken away others.
    pub(crate) addresses: Vec<PodAddress>,
    /// Where to, of the routes through the pods' gateway; all others are other plugins'.
    pub(crate) routes: Vec<Prefix>,
}

/// Why a `prevResult` is not one that this plugin can have printed, or a later one in the list
/// made of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PreviousError {
    /// A field is missing or of another type.
    #[error("prevResult.{field} is {value}; {right} is needed")]
    Field {
        /// The field.
        field: String,
        /// What is there, as JSON.
        value: String,
        /// What should be.
        right: &'static str,
    },
    /// The pod's interface is not listed.
    #[error(
        "prevResult.interfaces has no `{ifname}` with sandbox `{netns}` (CNI_IFNAME, CNI_NETNS)"
    )]
    NoInterface {
        /// `CNI_IFNAME`.
        ifname: String,
        /// `CNI_NETNS`.
        netns: String,
    },
}

impl Previous {
    /// Finds the interface of this attachment, and the addresses on it, in a result of 0.3.0 or
    /// later. Interfaces of other plugins in the list are passed over.
    pub(crate) fn read(value: &Value, ifname: &str, netns: &str) -> Result<Self, PreviousError> {
        let field = |field: &str, value: &Value, right| PreviousError::Field {
            field: field.to_owned(),
            value: value.to_string(),
            right,
        };
        let list = |key: &str| match value.get(key) {
            None | Some(Value::Null) => Ok(&[][..]),
            Some(Value::Array(list)) => Ok(list.as_slice()),
            Some(other) => Err(field(key, other, "a list")),
        };
        let text = |value: &Value, key: &str| -> Option<String> {
            value.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        let index = list("interfaces")?.iter().position(|interface| {
            text(interface, "name").as_deref() == Some(ifname)
                && text(interface, "sandbox").as_deref() == Some(netns)
        });
        let Some(index) = index else {
            let (ifname, netns) = (ifname.to_owned(), netns.to_owned());
            return Err(PreviousError::NoInterface { ifname, netns });
        };
        let in_pod =
            |interface: &&Value| !text(interface, "sandbox").unwrap_or_default().is_empty();
        let is_alone = list("interfaces")?.iter().filter(in_pod).count() == 1;
        let by_gateway = |entry: &Value, key: &str| {
            let gateway = text(entry, key).and_then(|gateway| gateway.parse::<IpAddr>().ok());
            gateway.is_some_and(|address| address == pod::gateway(Family::of(address)))
        };
        let mut addresses = Vec::new();
        for (position, ip) in list("ips")?.iter().enumerate() {
            match ip.get("interface").unwrap_or(&Value::Null) {
                // The field may be left out; then the address is of the only interface that there is,
                // or its gateway says whose it is.
                Value::Null if is_alone || by_gateway(ip, "gateway") => {}
                number if number.as_u64().and_then(|n| usize::try_from(n).ok()) == Some(index) => {}
                _ => continue,
            }
            let cidr = text(ip, "address").and_then(|cidr| {
                let (address, length) = cidr.split_once('/')?;
                Some((address.parse().ok()?, length.parse().ok()?))
            });
            let (address, length) = cidr.ok_or_else(|| {
                let name = format!("ips[{position}].address");
                field(&name, ip.get("address").unwrap_or(&Value::Null), "a CIDR")
            })?;
            let gateway = text(ip, "gateway").and_then(|gateway| gateway.parse().ok());
            addresses.push(PodAddress { address, length, gateway });
        }
        let ours = |route: &&Value| by_gateway(route, "gw");
        let destination = |route: &Value| text(route, "dst")?.parse().ok();
        let routes = list("routes")?.iter().filter(ours).filter_map(destination).collect();
        Ok(Self { addresses, routes })
    }
}

#[cfg(test)]
mod tests;
