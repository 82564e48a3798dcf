use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use twill_dataplane::{
    Error, Netns, node,
    pod::{self, PodLink, PodLinkUp, PodRoute, Prepared, Sides, check_pod, host_link, pod_links},
};
use twill_types::{Family, LinkAlias, Prefix};

use crate::common::*;

/// A datagram from the node (or from a pod) to a pod and back.
fn reach(from: Option<&Netns>, pod: &Netns, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let open = |ip: IpAddr| {
        let socket = UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        socket
    };
    let server = pod.enter(|| open(address)).unwrap();
    let client = match from {
        Some(netns) => netns.enter(|| open(any)).unwrap(),
        None => open(any),
    };
    client.connect(server.local_addr().unwrap()).unwrap();
    client.send(b"ping").unwrap();
    let mut buffer = [0; 8];
    let (length, peer) = server.recv_from(&mut buffer).expect("nothing came to the pod");
    server.send_to(&buffer[..length], peer).unwrap();
    client.recv(&mut buffer).expect("nothing came back from the pod");
}

/// A node with addresses, on no network, and without a default route.
fn node_addresses() {
    ip("address add 192.168.7.1/32 dev lo");
    ip("address add fd00:7::1/128 dev lo nodad");
    node::ensure_gateway().unwrap();
}

fn assert_nothing_left(pod: &Netns) {
    assert_eq!(ip("-o link show").lines().filter(|line| line.contains("twl")).count(), 0);
    assert_eq!(ip_in(pod, "-o link show").lines().filter(|l| l.contains("eth0")).count(), 0);
    assert_eq!(ip("route show proto 116 scope link").matches("10.10").count(), 0);
}

#[test]
fn nothing_flows_before_activation_and_all_after() {
    on_a_node(|| {
        node_addresses();
        let pod = pod_netns();
        let link = PodLink { pod_name: Some("web-1".into()), ..pod_link("a", &["10.10.0.5"]) };
        let prepared = prepare(&link, &pod).unwrap();
        let name = link.host_ifname();
        assert!(ip(&format!("-o link show {name}")).contains("state DOWN"));
        assert_eq!(ip("route show 10.10.0.5"), "");
        assert_eq!(ip_in(&pod, "-4 -o address show dev eth0").matches("10.10.0.5/32").count(), 1);

        let up = prepared.activate().unwrap();
        assert_eq!(up.host_ifname, name);
        assert_eq!(up.host.mac.to_string(), "ee:ee:ee:ee:ee:ee");
        assert_eq!(
            ip("route show 10.10.0.5"),
            format!("10.10.0.5 dev {name} proto 116 scope link")
        );
        assert!(ip_in(&pod, "-o link show eth0").contains(&up.pod.mac.to_string()));
        reach(None, &pod, "10.10.0.5");

        let shown = ip("-d -o link show web-1");
        assert!(shown.contains(&name) && shown.contains("addrgenmode none"), "{shown}");
        // Asked for, they cost no grace period of the kernel's.
        for shown in [shown, ip_in(&pod, "-d -o link show eth0")] {
            assert!(
                shown.contains("numtxqueues 1 ") && shown.contains("numrxqueues 1 "),
                "{shown}"
            );
        }
        let alias = LinkAlias::new(&link.attachment, 5).to_string();
        assert!(ip("link show web-1").contains(&format!("alias {alias}")));
        let conf = |key: &str| sysctl(&format!("ipv4/conf/{name}/{key}"));
        assert_eq!(
            (conf("proxy_arp"), conf("forwarding"), conf("rp_filter")),
            triple("1", "1", "1")
        );
        assert_eq!(sysctl(&format!("ipv4/neigh/{name}/proxy_delay")), "0");
        assert_eq!(sysctl(&format!("ipv6/conf/{name}/accept_ra")), "0");
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
    });
}

fn triple(a: &str, b: &str, c: &str) -> (String, String, String) {
    (a.into(), b.into(), c.into())
}

#[test]
fn dual_stack_even_where_ipv6_is_off_by_default() {
    on_a_node(|| {
        node_addresses();
        ensure_forwarding();
        set_sysctl("ipv6/conf/default/disable_ipv6", "1");
        let (one, two) = (pod_netns(), pod_netns());
        let settings = [
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
        ];
        one.enter(|| settings.map(|(key, value)| set_sysctl(key, value))).unwrap();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        let up = add(&link, &one);
        add(&pod_link("b", &["10.10.0.6", "fd00:10::6"]), &two);
        reach(None, &one, "fd00:10::5");
        reach(None, &one, "10.10.0.5");
        reach(Some(&two), &one, "fd00:10::5");
        reach(Some(&one), &two, "10.10.0.6");
        one.enter(|| {
            assert_eq!(sysctl("ipv4/ip_forward"), "0");
            assert_eq!(sysctl("ipv4/conf/eth0/forwarding"), "0");
            assert_eq!(sysctl("ipv6/conf/eth0/forwarding"), "0");
            assert_eq!(sysctl("ipv6/conf/eth0/accept_ra"), "0");
        })
        .unwrap();
        let shown = ip(&format!("-6 -o address show dev {}", up.host_ifname));
        assert!(shown.contains("fe80::1/64") && shown.lines().count() == 1, "{shown}");
        assert!(!shown.contains("tentative"));
        assert_eq!(check_pod(&link.expected(), &one).unwrap(), []);
    });
}

#[test]
fn ipv6_alone() {
    on_a_node(|| {
        node_addresses();
        let pod = pod_netns();
        let link = pod_link("a", &["fd00:10::5"]);
        add(&link, &pod);
        reach(None, &pod, "fd00:10::5");
        assert_eq!(ip_in(&pod, "-4 route show"), "");
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
    });
}

/// The `tuning` plugin changes the hardware address of pods, and that flushes permanent neighbour
/// entries. The node has no default route here, without which proxy ARP needs a route of its own.
#[test]
fn the_gateway_answers_after_a_change_of_the_hardware_address() {
    on_a_node(|| {
        node_addresses();
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        let up = add(&link, &pod);
        ip_in(&pod, "link set eth0 address 02:00:00:00:00:07");
        ip_in(&pod, "neighbour flush all");
        assert_eq!(ip_in(&pod, "neighbour show nud permanent"), "");
        ip(&format!("neighbour flush dev {}", up.host_ifname));
        reach(None, &pod, "10.10.0.5");
        reach(None, &pod, "fd00:10::5");
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
    });
}

#[test]
fn the_same_add_again_finds_its_link() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        let first = add(&link, &pod);
        assert_eq!(add(&link, &pod), first);
        drop(prepare(&link, &pod).unwrap());
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);

        ip(&format!("link set {} down", first.host_ifname));
        let again = add(&link, &pod);
        assert_ne!(again.host_ifindex, first.host_ifindex);
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
    });
}

#[test]
fn leftovers_of_earlier_adds_make_way() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        let name = link.host_ifname();
        // An ADD that died between creation and alias.
        ip(&format!("link add {name} type veth peer name other"));
        add(&link, &pod);
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
        // An ADD before a restart of the container, in another namespace.
        let (newer, elsewhere) = (PodLink { sequence: 6, ..link.clone() }, pod_netns());
        add(&newer, &elsewhere);
        assert_eq!(check_pod(&newer.expected(), &elsewhere).unwrap(), []);
        // The earlier one comes late.
        match prepare(&link, &pod) {
            Err(Error::Superseded { found: 6, wanted: 5, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(check_pod(&newer.expected(), &elsewhere).unwrap(), []);
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        let name = link.host_ifname();
        ip(&format!("link add {name} type veth peer name other"));
        ip(&format!("link set {name} alias mine"));
        match prepare(&link, &pod) {
            Err(Error::HostLinkTaken { alias, .. }) => assert_eq!(alias, "mine"),
            other => panic!("{other:?}"),
        }
        ip("link show other");
        ip("link delete other");

        ip_in(&pod, "link add eth0 type veth peer name eth1");
        match prepare(&link, &pod) {
            Err(Error::PodInterfaceTaken { ifname, .. }) => assert_eq!(ifname, "eth0"),
            other => panic!("{other:?}"),
        }
        assert!(!ip("-o link show").contains("twl"));
        ip_in(&pod, "link show eth1");
    });
}

#[test]
fn a_failure_in_the_pod_takes_everything_back() {
    on_a_node(|| {
        let pod = pod_netns();
        ip_in(&pod, "link add net1 type veth peer name net2");
        ip_in(&pod, "link set net1 up");
        // A default route would be another link's, which ours stands behind.
        ip_in(&pod, "route add 192.0.2.0/24 dev net1");
        let routes = vec![PodRoute::to("192.0.2.0/24".parse().unwrap())];
        let link = PodLink { routes, ..pod_link("a", &["10.10.0.5"]) };
        let error = prepare(&link, &pod).map(drop).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel refused `route add 192.0.2.0/24 via 169.254.1.1 dev POD`"
        );
        assert_nothing_left(&pod);
    });
}

#[test]
fn a_missing_setting_takes_everything_back() {
    on_a_node(|| {
        let pod = pod_netns();
        // An MTU below IPv6's takes the IPv6 settings away after they were planned.
        let link = PodLink { mtu: 1280, ..pod_link("a", &["fd00:10::5"]) };
        set_sysctl("ipv6/conf/default/mtu", "1280");
        add(&link, &pod);
        let refused = PodLink { mtu: 1279, ..pod_link("b", &["fd00:10::6"]) };
        assert!(matches!(prepare(&refused, &pod), Err(Error::MtuTooSmall { mtu: 1279 })));
        let refused = PodLink { mtu: 70_000, ..pod_link("c", &["10.10.0.6"]) };
        let error = prepare(&refused, &pod_netns()).unwrap_err();
        assert!(error.to_string().contains("mtu 70000"), "{error}");
        assert!(!ip("-o link show").contains(&refused.host_ifname()));
    });
}

#[test]
fn an_address_of_another_link_takes_everything_back() {
    on_a_node(|| {
        uplink();
        for address in ["10.10.0.5", "fd00:10::5"] {
            let pod = pod_netns();
            let metric = if address.contains(':') { "metric 256" } else { "" };
            ip(&format!("route add {address} dev uplink {metric}"));
            match prepare(&pod_link("a", &[address]), &pod).unwrap().activate() {
                Err(error @ Error::AddressInUse { .. }) => {
                    assert!(error.to_string().contains("`uplink`"), "{error}");
                }
                other => panic!("{other:?}"),
            }
            assert_nothing_left(&pod);
            assert_ne!(ip(&format!("route get fibmatch {address}")), "");
        }
    });
}

#[test]
fn dropping_what_was_prepared_takes_everything_back() {
    on_a_node(|| {
        let pod = pod_netns();
        drop(prepare(&pod_link("a", &["10.10.0.5"]), &pod).unwrap());
        assert_nothing_left(&pod);
    });
}

#[test]
fn behind_another_link_routes_and_rules_are_its_own() {
    on_a_node(|| {
        node_addresses();
        let pod = pod_netns();
        let routes = vec![PodRoute::to("192.0.2.0/24".parse().unwrap())];
        let first = PodLink { routes: routes.clone(), ..pod_link("a", &["10.10.0.5"]) };
        let metrics = |up: PodLinkUp| {
            let default = PodRoute::to(Prefix::default_route(Family::V4));
            (up.metric(&default), up.metric(&routes[0]))
        };
        assert_eq!(metrics(prepare(&first, &pod).unwrap().activate().unwrap()), (None, None));
        let mut second = PodLink { routes: routes.clone(), ..pod_link("a", &["10.10.0.6"]) };
        second.attachment.ifname = "net1".to_owned();
        // Made, and found again.
        for _ in 0..2 {
            let (default, other) = metrics(prepare(&second, &pod).unwrap().activate().unwrap());
            assert!(default.is_some() && other == default, "{default:?} {other:?}");
        }
        assert_eq!(ip_in(&pod, "route show 192.0.2.0/24").lines().count(), 2);
        assert!(ip_in(&pod, "rule show").contains("from 10.10.0.6 "));

        // A later ADD of it, with another address, finds the link of the one before, and its rule.
        let later =
            PodLink { sequence: 6, addresses: vec!["10.10.0.7".parse().unwrap()], ..second };
        prepare(&later, &pod).unwrap().activate().unwrap();
        let rules = ip_in(&pod, "rule show");
        assert!(rules.contains("from 10.10.0.7 ") && !rules.contains("10.10.0.6"), "{rules}");
        reach(None, &pod, "10.10.0.7");
    });
}

#[test]
fn an_add_may_use_the_longest_names() {
    on_a_node(|| {
        let pod = pod_netns();
        let mut link = pod_link(&"c".repeat(300), &["10.10.0.5"]);
        link.pod_name = Some("p".repeat(128));
        add(&link, &pod);
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
        // A name that is taken is left out.
        let mut other = pod_link("b", &["10.10.0.6"]);
        other.pod_name = Some(link.host_ifname());
        add(&other, &pod_netns_leaked());
    });
}

/// A namespace that outlives the test's handle, as a running pod's does.
fn pod_netns_leaked() -> Netns {
    pod_netns()
}

#[test]
fn pods_are_found_again() {
    on_a_node(|| {
        uplink();
        let (one, two) = (pod_netns(), pod_netns());
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        add(&link, &one);
        let dead = pod_link("b", &[]).host_ifname();
        ip(&format!("link add {dead} type veth peer name other"));
        drop(two);
        let named = |container| host_link(&attachment(container)).unwrap().map(|link| link.name);
        assert_eq!(named("a"), Some(link.host_ifname()));
        // Its ADD may be there soon.
        assert_eq!(named("b"), Some(dead.clone()));
        assert_eq!(named("c"), None);
        let mut found = pod_links().unwrap();
        found.sort_by_key(|found| found.alias.is_none());
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].alias, Some(LinkAlias::new(&link.attachment, 5)));
        assert_eq!(found[0].addresses, link.addresses);
        assert_eq!((found[1].link.name.as_str(), &found[1].alias), (dead.as_str(), &None));
    });
}

/// Another ADD, or a DEL, takes the link for a dead ADD's, or means it. The runtime may try again.
#[test]
fn an_add_whose_link_is_taken_away_meanwhile_is_told_to_try_again() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        let name = link.host_ifname();
        let sides = Sides::open(&pod).unwrap();
        let gone = pod::prepare(&link, &pod, sides, |_| drop(ip(&format!("link del {name}"))));
        assert!(matches!(gone, Err(Error::LinkTakenAway { .. })), "{gone:?}");
        let prepared = prepare(&link, &pod).unwrap();
        ip(&format!("link del {name}"));
        let gone = prepared.activate();
        assert!(matches!(gone, Err(Error::LinkTakenAway { .. })), "{gone:?}");
        assert_nothing_left(&pod);
        // Two at a time: before the link says whose it is, each may take the other's away.
        for _ in 0..50 {
            let add = || prepare(&link, &pod).and_then(Prepared::activate);
            let results = thread::scope(|scope| {
                [scope.spawn(add), scope.spawn(add)].map(|add| add.join().unwrap())
            });
            for result in results {
                let is_fine = matches!(result, Ok(_) | Err(Error::LinkTakenAway { .. }));
                assert!(is_fine, "{result:?}");
            }
            let _ = try_ip(&format!("link del {name}"));
        }
    });
}

/// VLANs of a bond are named like that, and the kernel has one space for names of both kinds.
#[test]
fn the_name_of_a_pod_takes_none_of_a_vlan() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = PodLink { pod_name: Some("bond0.100".into()), ..pod_link("a", &["10.10.0.5"]) };
        add(&link, &pod);
        ip("link add bond0.100 type veth peer name other");
    });
}
