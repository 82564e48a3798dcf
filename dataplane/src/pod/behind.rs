//! A pod's link behind another: the namespace has a default route by another link already, as with Multus, whose
//! second interface is one of ours or stands beside another plugin's.
//!
//! The first link keeps the default route. Ours has one of a higher metric, for when the first is gone; and
//! what comes from its own addresses leaves by it, by a rule and a table of its own. Without those, answers
//! would leave by the first link, where the node's reverse path filter drops them.

use std::net::IpAddr;

use netlink_packet_route::route::{RouteAttribute, RouteFlags};
use nix::errno::Errno;
use twill_types::{Family, Prefix};

use super::{
    PodLink, PodRoute, gateway, hash_in,
    plan::{Indexes, Op, pod_route},
};
use crate::{
    Error,
    link::Link,
    message::{self, RouteFilter},
    netlink::{Reply, Request, Socket},
};

/// The metrics of default routes behind another begin here, before what people use for the last resort;
/// the link's index makes it a metric of its own.
const METRICS: u32 = 4096;

/// Our tables begin here ("t"), one for each link by the hash in the host end's name: the same ADD again has
/// the same one, and a DEL knows it.
const TABLES: u32 = 0x7400_0000;

/// Before the main table, which is at 32766, and behind what somebody puts first.
const RULE_PRIORITY: u32 = 30_000;

/// A family's default route behind another link's: its metric.
pub(super) type Behind = (Family, u32);

/// A step.
pub(super) struct Step {
    /// In the words of `ip`.
    pub(super) text: String,
    pub(super) request: Request,
    /// Errors that are as good as success.
    pub(super) accepted: &'static [Errno],
}

impl Step {
    fn new(text: String, request: Request) -> Self {
        Self { text, request, accepted: &[] }
    }
}

fn metric(pod_index: u32) -> u32 {
    METRICS.saturating_add(pod_index)
}

/// The table of the link whose host end has this name.
fn table(host_name: &str) -> u32 {
    let [.., a, b, c] = hash_in(host_name).to_be_bytes();
    TABLES | u32::from_be_bytes([0, a, b, c])
}

/// The families whose way out the namespace has by another link already, by the replies to these steps.
pub(super) fn families(ops: &[Op], replies: &[Reply], pod_index: u32) -> Vec<Behind> {
    let taken = |reply: &Reply| reply.error.as_ref().is_some_and(|e| e.errno == Errno::EEXIST);
    let mut found: Vec<Behind> = Vec::new();
    for (op, _) in ops.iter().zip(replies).filter(|(_, reply)| taken(reply)) {
        let family = match op {
            Op::GatewayRoute(gateway) => Family::of(*gateway),
            Op::PodRoute(route) if is_default(route) => route.destination.family(),
            _ => continue,
        };
        if !found.iter().any(|(known, _)| *known == family) {
            found.push((family, metric(pod_index)));
        }
    }
    found
}

/// Whether a step that failed is done by [`steps`] in another way.
pub(super) fn is_done_behind(op: &Op, behind: &[Behind]) -> bool {
    let family = match op {
        Op::GatewayRoute(gateway) => Family::of(*gateway),
        Op::PodRoute(route) => route.destination.family(),
        _ => return false,
    };
    behind.iter().any(|(known, _)| *known == family)
}

/// The metrics of the routes that [`steps`] makes: the default routes, and those that `failed`.
pub(super) fn metrics(failed: &[&Op], behind: &[Behind]) -> Vec<(Prefix, u32)> {
    let metric = |family| behind.iter().find(|(of, _)| *of == family).map(|(_, metric)| *metric);
    let defaults = behind.iter().map(|(family, metric)| (Prefix::default_route(*family), *metric));
    let routes = failed.iter().filter_map(|op| match op {
        Op::PodRoute(PodRoute { destination, priority: None, .. })
            if *destination != Prefix::default_route(destination.family()) =>
        {
            Some((*destination, metric(destination.family())?))
        }
        _ => None,
    });
    defaults.chain(routes).collect()
}

/// What there is to do instead of the steps that `failed`.
pub(super) fn steps(
    link: &PodLink,
    failed: &[&Op],
    behind: &[Behind],
    indexes: Indexes,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let table = table(&link.host_ifname());
    for (family, metric) in behind {
        let gateway = gateway(*family);
        for op in failed {
            match op {
                Op::GatewayRoute(gateway) if Family::of(*gateway) == *family => {
                    let prefix = Prefix::host(*gateway);
                    let mut route = message::link_route(prefix, indexes.pod, None);
                    route.attributes.push(RouteAttribute::Priority(*metric));
                    let text = format!("route add {prefix} dev POD scope link metric {metric}");
                    steps.push(Step::new(text, message::add_route(route)));
                }
                Op::PodRoute(route) if route.destination.family() == *family => {
                    let priority = route.priority.or(Some(*metric));
                    let route = PodRoute { priority, ..route.clone() };
                    let op = Op::PodRoute(route);
                    steps.push(Step::new(op.to_string(), op.request(indexes)));
                }
                _ => {}
            }
        }
        let default = link
            .routes()
            .into_iter()
            .find(|route| is_default(route) && route.destination.family() == *family);
        let default = default.unwrap_or(PodRoute::to(Prefix::default_route(*family)));
        let mut own = pod_route(&PodRoute { priority: None, ..default }, indexes.pod);
        own.attributes.push(RouteAttribute::Table(table));
        if *family == Family::V4 {
            own.header.flags |= RouteFlags::Onlink;
        }
        let text = format!("route add default via {gateway} dev POD table {table}");
        steps.push(Step::new(text, message::add_route(own)));
        steps.extend(of_family(&link.addresses, *family).map(|address| {
            // An ADD that was killed may have left it.
            Step {
                text: format!("rule add from {address} table {table}"),
                request: message::add_rule(address, table, RULE_PRIORITY),
                accepted: &[Errno::EEXIST],
            }
        }));
    }
    steps
}

/// Takes the rules back; routes go with their link.
pub(super) fn rules_away(host_name: &str, addresses: &[IpAddr]) -> impl Iterator<Item = Request> {
    let table = table(host_name);
    addresses.iter().map(move |address| message::del_rule(*address, table))
}

/// Of a link that is there: its routes behind another's, in the families where its default route is one.
pub(super) fn look(
    pod: &mut Socket,
    link: &PodLink,
    index: u32,
) -> Result<Vec<(Prefix, u32)>, Error> {
    let mut found = Vec::new();
    for family in link.families() {
        let behind = routes_behind(pod, family, index)?;
        if behind.contains(&Prefix::default_route(family)) {
            found.extend(behind.into_iter().map(|to| (to, metric(index))));
        }
    }
    Ok(found)
}

/// The addresses of a link behind another whose rule is not there.
pub(super) fn without_rule(
    pod: &mut Socket,
    host: &Link,
    pod_index: u32,
    addresses: &[IpAddr],
) -> Result<Vec<IpAddr>, Error> {
    let mut missing = Vec::new();
    for family in [Family::V4, Family::V6] {
        if of_family(addresses, family).next().is_none()
            || !routes_behind(pod, family, pod_index)?.contains(&Prefix::default_route(family))
        {
            continue;
        }
        let ruled = pod.sources_with_table(family, table(&host.name))?;
        missing.extend(of_family(addresses, family).filter(|address| !ruled.contains(address)));
    }
    Ok(missing)
}

/// Where the routes of this link lead that have the metric of those behind another's.
fn routes_behind(pod: &mut Socket, family: Family, index: u32) -> Result<Vec<Prefix>, Error> {
    let mut routes = pod.routes(family, RouteFilter { ours: false, link: Some(index) })?;
    routes.retain(|route| route.metric == metric(index));
    Ok(routes.into_iter().map(|route| route.prefix).collect())
}

fn is_default(route: &PodRoute) -> bool {
    route.destination == Prefix::default_route(route.destination.family())
}

fn of_family(addresses: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| Family::of(*address) == family)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use twill_types::AttachmentId;

    use super::*;
    use crate::KernelError;

    fn link(addresses: &[&str], routes: Vec<PodRoute>) -> PodLink {
        PodLink {
            attachment: AttachmentId {
                network: "k8s".into(),
                container_id: "c1".into(),
                ifname: "net1".into(),
            },
            sequence: 7,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            mtu: 1500,
            mac: None,
            routes,
            pod_name: None,
        }
    }

    fn failed(errno: Errno) -> Reply {
        let mut reply = Reply::default();
        reply.error = Some(KernelError { errno, message: None });
        reply
    }

    #[test]
    fn a_second_link_gets_a_table_and_keeps_its_own_routes() {
        let mtu = PodRoute { mtu: Some(1400), ..PodRoute::to("192.0.2.0/24".parse().unwrap()) };
        let link = link(&["10.10.0.5", "fd00:10::5"], vec![mtu]);
        let gateway_route = Op::GatewayRoute(gateway(Family::V4));
        let routes = link.routes().into_iter().map(Op::PodRoute);
        let ops: Vec<Op> = std::iter::once(gateway_route).chain(routes).collect();
        // The gateway, the default routes of both families, and the extra one by the missing gateway.
        let replies = [Errno::EEXIST, Errno::EEXIST, Errno::EEXIST, Errno::ENETUNREACH].map(failed);
        let behind = families(&ops, &replies, 3);
        assert_eq!(behind, [(Family::V4, 4099), (Family::V6, 4099)]);
        let all: Vec<&Op> = ops.iter().collect();
        assert!(all.iter().all(|op| is_done_behind(op, &behind)));
        let table = table(&link.host_ifname());
        let steps = steps(&link, &all, &behind, Indexes { host: 9, pod: 3 });
        let texts: Vec<String> = steps.into_iter().map(|step| step.text).collect();
        expect![[r"
            route add 169.254.1.1/32 dev POD scope link metric 4099
            route add 0.0.0.0/0 via 169.254.1.1 dev POD metric 4099
            route add 192.0.2.0/24 via 169.254.1.1 dev POD metric 4099 mtu 1400
            route add default via 169.254.1.1 dev POD table TABLE
            rule add from 10.10.0.5 table TABLE
            route add ::/0 via fe80::1 dev POD metric 4099
            route add default via fe80::1 dev POD table TABLE
            rule add from fd00:10::5 table TABLE
        "]]
        .assert_eq(&(texts.join("\n") + "\n").replace(&table.to_string(), "TABLE"));
    }

    #[test]
    fn a_family_that_has_no_other_way_out_is_as_ever() {
        let ops = [
            Op::GatewayRoute(gateway(Family::V4)),
            Op::PodRoute(PodRoute::to("192.0.2.0/24".parse().unwrap())),
        ];
        // Somebody else's route to that network is no way out of the namespace.
        let replies = [Reply::default(), failed(Errno::EEXIST)];
        let behind = families(&ops, &replies, 3);
        assert_eq!(behind, []);
        assert!(!is_done_behind(&ops[1], &behind));
    }

    #[test]
    fn a_table_is_the_links_own() {
        let (one, two) = (table("twl8a71f3c7df05"), table("twl8a71f3c7df06"));
        assert_eq!((one, two), (0x74c7_df05, 0x74c7_df06));
    }
}
