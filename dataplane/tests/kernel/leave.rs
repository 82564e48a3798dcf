//! Twill leaves a node that has something of every kind.

use twill_dataplane::{
    Netns, NextHop,
    fib::{Fib, FibChange, FibConfig, Group, LearnedRoute, Object, ObjectChange, ObjectId, Via},
    leave::{Removed, remove_all},
    nat::{Masquerade, Nat},
    node::ensure_gateway,
};

use crate::common::*;

/// What somebody else has beside the uplink: routes, to destinations of ours too, a nexthop object, a link.
const OTHERS: &str = "link add cali1 type veth peer name far\n\
     route add unreachable 10.10.0.0/26 proto static metric 7\n\
     route add 10.20.0.0/26 via 192.168.2.2 proto bird\n\
     route add fd00:20::/122 via fd00:2::2 proto bird\n\
     nexthop add id 7 via 192.168.2.2 dev uplink proto bird\n";

/// Names of links, routes, nexthop objects and tables, without what the kernel does by itself and later.
fn everything() -> String {
    let nft = std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap();
    let links = ip("-o link");
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    let routes = ip("route show table all") + "\n" + &ip("-6 route show table all");
    let by_kernel =
        |line: &&str| ["fe80", "ff00::/8", "anycast"].iter().any(|own| line.contains(own));
    let routes =
        routes.lines().filter(|line| !by_kernel(line)).map(|line| line.replace(" linkdown", ""));
    let mut found: Vec<String> = names.map(str::to_owned).chain(routes).collect();
    found.push(ip("nexthop").replace(" linkdown", ""));
    found.push(String::from_utf8(nft.stdout).unwrap());
    found.join("\n")
}

/// A pod, a block and a learned route in each family, and one by nexthop objects; a way out.
fn live() -> Netns {
    ensure_gateway().unwrap();
    let pod = pod_netns();
    add(&pod_link("c1", &["10.10.0.5", "fd00:10::5"]), &pod);
    let mut fib = Fib::open(FibConfig::default()).unwrap();
    let blocks = ["10.10.0.0/26", "fd00:10::/122"].map(|block| block.parse().unwrap());
    assert_eq!(fib.sync_blocks(&blocks).unwrap(), []);
    let ifindex = ip("-o link show uplink").split(':').next().unwrap().parse().unwrap();
    let hop =
        |gateway: &str| NextHop { gateway: Some(gateway.parse().unwrap()), ifindex, onlink: false };
    let id = |number: u32| ObjectId::new(ObjectId::FIRST + number).unwrap();
    let group = Group { members: [id(1)].into(), ..Group::default() };
    let objects = [
        ObjectChange::Create(id(1), Object::Hop(hop("192.168.2.1"))),
        ObjectChange::Create(id(2), Object::Group(group)),
    ];
    assert_eq!(fib.apply_objects(&objects).unwrap(), []);
    let route = |prefix: &str, via| {
        let route = LearnedRoute { prefix: prefix.parse().unwrap(), via, source: None };
        FibChange::Replace(route)
    };
    let by_hop = |gateway| Via::Hops(std::sync::Arc::new([hop(gateway)].into()));
    let routes = [
        route("10.20.0.0/26", by_hop("192.168.2.1")),
        route("fd00:20::/122", by_hop("fd00:2::1")),
        route("10.30.0.0/26", Via::Object(id(2))),
    ];
    assert_eq!(fib.apply(&routes).unwrap(), []);
    let pools = || ["10.10.0.0/16".parse().unwrap()].into();
    Nat::open().unwrap().apply(&Masquerade { sources: pools(), pools: pools() }).unwrap();
    pod
}

#[test]
fn nothing_of_ours_is_left_and_everything_of_others() {
    on_a_node(|| {
        uplink();
        batch(OTHERS);
        let before = everything();
        let _pod = live();
        assert!(everything().contains("proto 116") && everything().contains("table inet twill"));
        let removed = remove_all().unwrap();
        assert_eq!((removed.links, removed.objects), (1, 2));
        assert!(removed.routes >= 5, "{removed:?}");
        assert_eq!(everything(), before);
        assert_eq!(remove_all().unwrap(), Removed::default());
    });
}
