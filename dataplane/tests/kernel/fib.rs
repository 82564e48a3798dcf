use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use twill_dataplane::{
    NextHop,
    fib::{Fib, FibChange, FibConfig, LearnedRoute, Resolved, Via},
};
use twill_types::{BgpNextHop, Prefix};

use crate::common::*;

fn open() -> Fib {
    Fib::open(FibConfig::default()).unwrap()
}

fn ifindex(name: &str) -> u32 {
    ip(&format!("-o link show {name}")).split(':').next().unwrap().parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// A route through routers on the uplink.
fn learned(to: &str, gateways: &[&str], source: Option<&str>) -> LearnedRoute {
    let uplink = ifindex("uplink");
    let hop = |gateway: &&str| NextHop {
        gateway: Some(gateway.parse().unwrap()),
        ifindex: uplink,
        onlink: false,
    };
    LearnedRoute {
        prefix: prefix(to),
        via: Via::Hops(Arc::new(gateways.iter().map(hop).collect())),
        source: source.map(|ip| ip.parse().unwrap()),
    }
}

fn table(routes: &[LearnedRoute]) -> BTreeMap<Prefix, LearnedRoute> {
    routes.iter().map(|route| (route.prefix, route.clone())).collect()
}

/// What has to change so that one table becomes another.
fn diff(
    desired: &BTreeMap<Prefix, LearnedRoute>,
    actual: &BTreeMap<Prefix, LearnedRoute>,
) -> Vec<FibChange> {
    let new = desired.values().filter(|route| actual.get(&route.prefix) != Some(route));
    let gone = actual.keys().filter(|prefix| !desired.contains_key(prefix));
    let replaced = new.cloned().map(FibChange::Replace);
    replaced.chain(gone.map(|prefix| FibChange::Delete(*prefix))).collect()
}

/// Makes the kernel's learned routes be these, and reads them back.
fn converge(fib: &mut Fib, desired: &BTreeMap<Prefix, LearnedRoute>) {
    let changes = diff(desired, &fib.learned().unwrap());
    assert_eq!(fib.apply(&changes).unwrap(), []);
    assert_eq!(&fib.learned().unwrap(), desired);
}

#[test]
fn learned_routes_come_change_and_go() {
    on_a_node(|| {
        uplink();
        let mut fib = open();
        let v4 = |gateways: &[&str]| learned("10.10.0.0/26", gateways, Some("192.168.2.11"));
        let v6 = |gateways: &[&str]| learned("fd00:10::/122", gateways, Some("fd00:2::11"));
        converge(&mut fib, &table(&[v4(&["192.168.2.1"]), v6(&["fd00:2::1"])]));
        assert_eq!(
            ip("route show 10.10.0.0/26"),
            "10.10.0.0/26 via 192.168.2.1 dev uplink proto 116 src 192.168.2.11 metric 512"
        );
        assert_eq!(
            ip("-6 route show fd00:10::/122"),
            "fd00:10::/122 via fd00:2::1 dev uplink proto 116 src fd00:2::11 metric 512 pref medium"
        );
        // To several routers, to other ones, and back to one.
        let (v4_all, v6_all) =
            (["192.168.2.1", "192.168.2.2", "192.168.2.3"], ["fd00:2::1", "fd00:2::2", "fe80::9"]);
        converge(&mut fib, &table(&[v4(&v4_all), v6(&v6_all)]));
        assert_eq!(ip("route show 10.10.0.0/26").matches("nexthop").count(), 3);
        assert_eq!(ip("-6 route show fd00:10::/122").matches("nexthop").count(), 3);
        converge(&mut fib, &table(&[v4(&v4_all[1..]), v6(&v6_all[1..])]));
        converge(&mut fib, &table(&[v4(&v4_all[2..]), v6(&v6_all[2..])]));
        assert_eq!(ip("-6 route show fd00:10::/122").lines().count(), 1);
        // A new process finds them.
        let mut fib = open();
        assert_eq!(fib.learned().unwrap().len(), 2);
        converge(&mut fib, &BTreeMap::new());
        assert_eq!(ip("route show proto 116"), "");
        assert_eq!(ip("-6 route show proto 116"), "");
    });
}

#[test]
fn many_routes_and_the_errors_of_some() {
    on_a_node(|| {
        uplink();
        let mut fib = open();
        let route = |index: u32, gateway: &str| {
            learned(&format!("10.{}.{}.0/24", 20 + index / 256, index % 256), &[gateway], None)
        };
        let uplink_index = ifindex("uplink");
        let hop = NextHop { gateway: None, ifindex: uplink_index, onlink: false };
        let direct = |index: u32, gateway: &str| {
            let gateway = Some(gateway.parse().unwrap());
            LearnedRoute {
                prefix: prefix(&format!("10.{}.{}.0/24", 20 + index / 256, index % 256)),
                via: Via::Hops(Arc::new([NextHop { gateway, ..hop }].into())),
                source: None,
            }
        };
        let good: Vec<_> = (0..1000).map(|index| direct(index, "192.168.2.1")).collect();
        let bad = route(1001, "203.0.113.1");
        let mut changes: Vec<_> = good.iter().cloned().map(FibChange::Replace).collect();
        changes.insert(500, FibChange::Replace(bad.clone()));
        changes.push(FibChange::Delete(prefix("10.99.0.0/24")));
        let refused = fib.apply(&changes).unwrap();
        let text: Vec<_> = refused.iter().map(|(prefix, why)| format!("{prefix}: {why}")).collect();
        assert_eq!(
            text,
            ["10.23.233.0/24: ENETUNREACH: Network is unreachable (Nexthop has invalid gateway)"]
        );
        assert_eq!(fib.learned().unwrap(), table(&good));
        let gone: Vec<_> = good.iter().map(|route| FibChange::Delete(route.prefix)).collect();
        assert_eq!(fib.apply(&gone).unwrap(), []);
        assert_eq!(fib.learned().unwrap(), BTreeMap::new());
    });
}

#[test]
fn foreign_routes_survive() {
    on_a_node(|| {
        uplink();
        for route in [
            "10.10.0.0/26 via 192.168.2.9 proto static",
            "10.10.0.64/26 via 192.168.2.9 proto static metric 512",
            "fd00:10::/122 via fd00:2::9 proto static",
        ] {
            ip(&format!("route add {route}"));
        }
        let before = (ip("route show proto static"), ip("-6 route show proto static"));
        let mut fib = open();
        assert_eq!(fib.learned().unwrap(), BTreeMap::new());
        let routes = [
            learned("10.10.0.0/26", &["192.168.2.1", "192.168.2.2"], None),
            learned("fd00:10::/122", &["fd00:2::1"], None),
        ];
        converge(&mut fib, &table(&routes));
        converge(&mut fib, &BTreeMap::new());
        // Even one with our metric, for we did not make it.
        let delete = [FibChange::Delete(prefix("10.10.0.64/26"))];
        assert_eq!(fib.apply(&delete).unwrap(), []);
        fib.sync_blocks(&[prefix("10.10.0.64/26")]).unwrap();
        fib.sync_blocks(&[]).unwrap();
        assert_eq!((ip("route show proto static"), ip("-6 route show proto static")), before);
    });
}

#[test]
fn blocks_refuse_what_no_pod_has() {
    on_a_node(|| {
        uplink();
        ip("route add default via 192.168.2.1");
        let mut fib = open();
        let blocks = [prefix("10.10.0.0/26"), prefix("10.10.0.64/26"), prefix("fd00:10::/122")];
        assert_eq!(fib.sync_blocks(&blocks).unwrap(), []);
        assert_eq!(fib.sync_blocks(&blocks).unwrap(), []);
        assert_eq!(
            ip("route show 10.10.0.0/26"),
            "unreachable 10.10.0.0/26 proto 116 metric 4294967295"
        );
        assert!(ip("-6 route show fd00:10::/122").contains("metric 4294967295"));
        // Learned routes and blocks do not see each other.
        assert_eq!(fib.learned().unwrap(), BTreeMap::new());
        let pod = pod_netns();
        add(&pod_link("a", &["10.10.0.5", "fd00:10::5"]), &pod);
        assert!(ip("route get 10.10.0.5").contains("dev twl"));
        assert!(ip("route get fd00:10::5").contains("dev twl"));
        assert!(try_ip("route get 10.10.0.6").unwrap_err().contains("No route to host"));
        assert!(try_ip("route get fd00:10::6").is_err());
        assert_eq!(fib.learned().unwrap(), BTreeMap::new());

        assert_eq!(fib.sync_blocks(&blocks[1..2]).unwrap(), []);
        assert_eq!(ip("route show type unreachable").lines().count(), 1);
        assert!(ip("route get 10.10.0.5").contains("dev twl"));
        assert_eq!(fib.sync_blocks(&[]).unwrap(), []);
        assert_eq!(ip("route show type unreachable"), "");
    });
}

#[test]
fn next_hops_resolve_by_routes_that_are_not_learned() {
    on_a_node(|| {
        uplink();
        let index = ifindex("uplink");
        let mut fib = open();
        let ip_of = |text: &str| text.parse::<IpAddr>().unwrap();
        let way = |gateway: Option<&str>, source: Option<&str>| Resolved {
            hops: [NextHop { gateway: gateway.map(ip_of), ifindex: index, onlink: false }].into(),
            source: source.map(ip_of),
        };
        let first = |way: &Resolved, target| way.next_hops(ip_of(target)).next().unwrap();
        let direct = fib.resolve(ip_of("192.168.2.1")).unwrap().unwrap();
        assert_eq!(direct, way(None, Some("192.168.2.11")));
        assert_eq!(first(&direct, "192.168.2.1").gateway, Some(ip_of("192.168.2.1")));
        assert!(direct.is_direct());
        assert_eq!(fib.resolve(ip_of("fd00:2::1")).unwrap(), Some(way(None, Some("fd00:2::11"))));
        assert_eq!(fib.resolve(ip_of("192.168.3.12")).unwrap(), None);
        assert_eq!(fib.resolve(ip_of("fd00:3::12")).unwrap(), None);
        assert_eq!(fib.resolve(ip_of("192.168.2.11")).unwrap(), None, "our own address");

        // A node behind the router, as node2 of the demo is.
        ip("route add 192.168.0.0/16 via 192.168.2.1");
        let behind = fib.resolve(ip_of("192.168.3.12")).unwrap().unwrap();
        assert_eq!(behind, way(Some("192.168.2.1"), Some("192.168.2.11")));
        assert_eq!(first(&behind, "192.168.3.12").gateway, Some(ip_of("192.168.2.1")));
        assert!(!behind.is_direct());

        // A learned route to the next hop's network does not resolve it.
        let routes = [
            learned("192.168.3.0/24", &["192.168.2.2"], None),
            learned("172.16.0.0/24", &["192.168.2.2"], None),
        ];
        converge(&mut fib, &table(&routes));
        assert_eq!(
            fib.resolve(ip_of("192.168.3.12")).unwrap(),
            Some(way(Some("192.168.2.1"), None))
        );
        assert_eq!(fib.resolve(ip_of("172.16.0.1")).unwrap(), None);
        // Nor does the block that we refuse.
        fib.sync_blocks(&[prefix("10.10.0.0/26")]).unwrap();
        ip("route add default via 192.168.2.1");
        assert_eq!(fib.resolve(ip_of("10.10.0.9")).unwrap(), None);
        assert_eq!(
            fib.resolve(ip_of("172.16.0.1")).unwrap().unwrap().hops,
            way(Some("192.168.2.1"), None).hops
        );

        // A gateway that is on the link only because somebody said so.
        ip("route add 203.0.113.0/24 via 198.51.100.1 dev uplink onlink");
        let onlink = fib.resolve(ip_of("203.0.113.5")).unwrap().unwrap();
        let next = first(&onlink, "203.0.113.5");
        assert!(next.onlink);
        let mut desired = table(&routes);
        let learned = LearnedRoute {
            prefix: prefix("10.77.0.0/24"),
            via: Via::Hops(Arc::new([next].into())),
            source: None,
        };
        desired.insert(learned.prefix, learned);
        converge(&mut fib, &desired);
    });
}

/// Each link has fe80::/64, and each pod's link has fe80::1.
#[test]
fn a_link_local_next_hop_is_on_the_link_of_its_peer() {
    on_a_node(|| {
        two_uplinks();
        for link in ["uplink", "uplink2"] {
            ip(&format!("address add fe80::99/64 dev {link} nodad"));
        }
        let pod = pod_netns();
        let _up = add(&pod_link("pod", &["fd00:10::5"]), &pod);
        let mut fib = open();
        let of = |address: &str, peer: &str| {
            BgpNextHop::new(address.parse().unwrap(), peer.parse().unwrap())
        };
        let mut resolve = |next_hop: BgpNextHop| {
            let way = fib.resolve(next_hop).unwrap();
            way.and_then(|way| way.hops.first().map(|hop| (hop.gateway, hop.ifindex)))
        };
        let peers =
            [("192.168.2.1", "uplink"), ("fd00:2::1", "uplink"), ("192.168.3.1", "uplink2")];
        for (peer, link) in peers {
            for address in ["fe80::1", "fe80::77"] {
                let found = resolve(of(address, peer));
                assert_eq!(found, Some((None, ifindex(link))), "{address} of {peer}");
            }
            assert_eq!(resolve(of("fe80::99", peer)), None, "our own address");
        }
        // Nobody says on which link, or the peer is on none.
        assert_eq!(resolve("fe80::77".parse::<IpAddr>().unwrap().into()), None);
        assert_eq!(resolve(of("fe80::77", "198.51.100.1")), None);
        ip("route add 198.51.100.0/24 via 192.168.2.1");
        assert_eq!(resolve(of("fe80::77", "198.51.100.1")), None);
        // A learned route is in the way.
        let routes = [LearnedRoute {
            prefix: prefix("fe80::/96"),
            via: Via::Hops(Arc::new(
                [NextHop {
                    gateway: Some("fd00:2::1".parse().unwrap()),
                    ifindex: ifindex("uplink"),
                    onlink: false,
                }]
                .into(),
            )),
            source: None,
        }];
        converge(&mut open(), &table(&routes));
        for (peer, link) in peers {
            assert_eq!(resolve(of("fe80::77", peer)), Some((None, ifindex(link))), "{peer}");
        }
    });
}

/// A second link of the node, and both with routers that lead to a network beyond.
fn two_uplinks() {
    uplink();
    ip("link add uplink2 type veth peer name router2");
    ip("link set uplink2 up");
    ip("link set router2 up");
    ip("address add 192.168.3.11/24 dev uplink2");
    ip("address add fd00:3::11/64 dev uplink2 nodad");
}

/// The routers by which an address is reached.
fn routers(fib: &mut Fib, address: &str) -> Vec<(IpAddr, u32)> {
    let way = fib.resolve(address.parse::<IpAddr>().unwrap()).unwrap();
    let hops = way.into_iter().flat_map(|way| way.hops);
    hops.map(|hop| (hop.gateway.unwrap(), hop.ifindex)).collect()
}

#[test]
fn a_next_hop_is_reached_by_all_routers_that_lead_there() {
    on_a_node(|| {
        two_uplinks();
        ip("route add default nexthop via 192.168.2.1 nexthop via 192.168.3.1 weight 3");
        ip("route add default nexthop via fd00:2::1 nexthop via fd00:3::1");
        let mut fib = open();
        let of = |gateway: &str, link| (gateway.parse::<IpAddr>().unwrap(), ifindex(link));
        let both = [
            ("198.51.100.1", [of("192.168.2.1", "uplink"), of("192.168.3.1", "uplink2")]),
            ("2001:db8::1", [of("fd00:2::1", "uplink"), of("fd00:3::1", "uplink2")]),
        ];
        for (address, routers_there) in both {
            assert_eq!(routers(&mut fib, address), routers_there);
        }
        // A learned route is in the way.
        let learned = [learned("198.51.100.0/24", &["192.168.2.7"], None)];
        converge(&mut fib, &table(&learned));
        let (address, routers_there) = both[0];
        assert_eq!(routers(&mut fib, address), routers_there);
        ip("link set uplink2 down");
        for (address, routers_there) in both {
            assert_eq!(routers(&mut fib, address), routers_there[..1]);
        }
    });
}

/// As zebra and others write them, and without the hops spelled out.
#[test]
fn a_next_hop_behind_somebody_elses_object_is_reached() {
    on_a_node(|| {
        two_uplinks();
        set_sysctl("ipv4/nexthop_compat_mode", "0");
        ip("nexthop add id 11 via 192.168.2.1 dev uplink");
        ip("nexthop add id 12 via 192.168.3.1 dev uplink2");
        ip("nexthop add id 13 group 11/12 proto zebra");
        ip("nexthop add id 14 blackhole");
        ip("route add 198.51.100.0/24 nhid 13");
        ip("route add 198.51.101.0/24 nhid 11");
        ip("route add 198.51.102.0/24 nhid 14");
        let mut fib = open();
        let of = |gateway: &str, link| (gateway.parse::<IpAddr>().unwrap(), ifindex(link));
        let both = [of("192.168.2.1", "uplink"), of("192.168.3.1", "uplink2")];
        let expected = |fib: &mut Fib| {
            assert_eq!(routers(fib, "198.51.100.1"), both);
            assert_eq!(routers(fib, "198.51.101.1"), both[..1]);
            assert_eq!(routers(fib, "198.51.102.1"), []);
        };
        expected(&mut fib);
        // Learned routes are in the way, and the table is looked at.
        let more = ["198.51.100.0/28", "198.51.101.0/28", "198.51.102.0/28", "0.0.0.0/0"];
        let learned = more.map(|to| learned(to, &["192.168.2.7"], None));
        converge(&mut fib, &table(&learned));
        expected(&mut fib);
    });
}
