use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use twill_dataplane::{Error, node};
use twill_types::Family;

use crate::common::*;

#[test]
fn the_gateway_route_is_made_once() {
    on_a_node(|| {
        assert!(node::ensure_gateway().unwrap());
        assert!(!node::ensure_gateway().unwrap());
        assert_eq!(ip("route show"), "169.254.1.1 dev lo proto 116 scope link");
        ip("route delete 169.254.1.1 dev lo");

        uplink();
        ip("route add 169.254.1.1 dev uplink");
        match node::ensure_gateway() {
            Err(error @ Error::GatewayTaken { .. }) => {
                assert!(error.to_string().contains("through `uplink`"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn forwarding_keeps_router_advertisements() {
    on_a_node(|| {
        uplink();
        set_sysctl("ipv4/ip_forward", "0");
        set_sysctl("ipv6/conf/router/accept_ra", "0");
        let changes = ensure_forwarding();
        let text: Vec<_> =
            changes.iter().map(|c| format!("{} {} {}", c.key, c.before, c.after)).collect();
        assert_eq!(
            text,
            [
                "net/ipv4/ip_forward 0 1",
                "net/ipv6/conf/uplink/accept_ra 1 2",
                "net/ipv6/conf/all/forwarding 0 1",
            ]
        );
        assert_eq!(sysctl("ipv6/conf/uplink/forwarding"), "1");
        assert_eq!(ensure_forwarding(), []);
    });
}

/// As pods' links do all the time.
#[test]
fn a_link_that_goes_meanwhile_keeps_no_node_from_forwarding() {
    on_a_node(|| {
        ip("link add one type veth peer name two");
        node::ensure_forwarding(Family::V6, |change| {
            if change.key == "net/ipv6/conf/one/accept_ra" {
                ip("link del one");
            }
        })
        .unwrap();
        assert_eq!(sysctl("ipv6/conf/all/forwarding"), "1");
    });
}

#[test]
fn a_kernel_without_ipv6_has_nothing_of_it_to_forward() {
    on_a_node(|| {
        set_sysctl("ipv4/ip_forward", "0");
        // A mount namespace for this thread alone, in which the kernel shows settings of IPv4 only.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let hide = "mount --make-rprivate / && mount -t tmpfs none /mnt && mkdir /mnt/ipv4 && \
                    mount --bind /proc/sys/net/ipv4 /mnt/ipv4 && mount --rbind /mnt /proc/sys/net";
        assert!(Command::new("sh").args(["-c", hide]).status().unwrap().success());
        let changes = ensure_forwarding();
        assert_eq!(changes.len(), 1, "{changes:?}");
        assert_eq!(sysctl("ipv4/ip_forward"), "1");
    });
}

#[test]
fn the_uplink_is_found_by_address_or_by_the_default_route() {
    on_a_node(|| {
        assert_eq!(node::uplink_mtu(None).unwrap(), 1500);
        uplink();
        ip("link set uplink mtu 9000");
        for address in ["192.168.2.11", "fd00:2::11"] {
            let address = address.parse().unwrap();
            let link = node::link_for_address(address).unwrap().unwrap();
            assert_eq!((link.name.as_str(), link.mtu, link.up), ("uplink", 9000, true));
            assert_eq!(node::uplink_mtu(Some(address)).unwrap(), 9000);
        }
        assert_eq!(node::link_for_address("192.168.2.12".parse().unwrap()).unwrap(), None);
        // A node whose address is on lo, as with unnumbered uplinks.
        ip("address add 10.99.99.1/32 dev lo");
        let loopback = Some("10.99.99.1".parse().unwrap());
        assert_eq!(node::uplink_mtu(loopback).unwrap(), 1500);
        ip("route add default via 192.168.2.1");
        assert_eq!(node::uplink_mtu(loopback).unwrap(), 9000);
        assert_eq!(node::uplink_mtu(None).unwrap(), 9000);
    });
}

#[test]
fn the_uplink_of_an_ipv6_only_node_is_found() {
    on_a_node(|| {
        ip("link add uplink mtu 9000 type veth peer name router");
        ip("link set uplink up");
        ip("link set router up");
        ip("address add fd00:2::11/64 dev uplink nodad");
        assert_eq!(node::uplink_mtu(None).unwrap(), 1500);
        ip("route add default via fd00:2::1");
        assert_eq!(node::uplink_mtu(None).unwrap(), 9000);
        // An address that is on no link says nothing, and the next one does.
        let addresses = ["10.99.99.1", "fd00:2::11"].map(|text| text.parse().unwrap());
        assert_eq!(node::uplink_mtu(addresses).unwrap(), 9000);
    });
}

#[test]
fn a_default_route_that_leads_nowhere_is_no_uplink() {
    for kind in ["prohibit", "blackhole", "unreachable", "throw"] {
        on_a_node(move || {
            ip(&format!("route add {kind} default"));
            ip(&format!("-6 route add {kind} default"));
            assert_eq!(node::uplink_mtu(None).unwrap(), 1500, "{kind}");
            // One family that leads nowhere leaves the other.
            uplink();
            ip("link set uplink mtu 9000");
            ip("-6 route replace default via fd00:2::1 metric 1");
            assert_eq!(node::uplink_mtu(None).unwrap(), 9000, "{kind}");
        });
    }
}

#[test]
fn of_several_uplinks_the_smallest_mtu_counts() {
    on_a_node(|| {
        uplink();
        ip("link set uplink mtu 9000");
        ip("link add second mtu 4000 type veth peer name router2");
        ip("link set second up");
        ip("link set router2 up");
        ip("address add 192.168.3.11/24 dev second");
        ip("route add default nexthop via 192.168.2.1 nexthop via 192.168.3.1");
        assert_eq!(node::uplink_mtu(None).unwrap(), 4000);
    });
}
