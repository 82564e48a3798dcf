use twill_dataplane::{
    Netns,
    pod::{Expected, check_pod},
};

use crate::common::*;

/// Breaks a pod's link by one `ip` command (`HOST` is the host end) and looks at what CHECK says.
#[track_caller]
fn broken(in_pod: bool, command: &'static str, expected: &'static str) {
    on_a_node(move || {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        let up = add(&link, &pod);
        let run = |pod: &Netns, command: &str| match in_pod {
            true => ip_in(pod, command),
            false => ip(command),
        };
        run(&pod, &command.replace("HOST", &up.host_ifname));
        let found = check_pod(&link.expected(), &pod).unwrap();
        let text: Vec<String> = found.iter().map(|difference| difference.to_string()).collect();
        assert_eq!(text.join("; ").replace(&up.host_ifname, "HOST"), expected, "after {command}");
    });
}

#[test]
fn each_broken_piece_is_found() {
    broken(false, "link delete HOST", "the node has no link HOST");
    broken(false, "link set HOST name other", "the node has no link HOST");
    broken(false, "link set HOST group 1953982828", "the node has no link HOST");
    broken(false, "link set HOST alias other", "link HOST on the node is not of this attachment");
    broken(
        false,
        "link set HOST down",
        "link HOST on the node is down; the node has no route for 10.10.0.5 to the pod; \
         link HOST on the node lacks the gateway's address fe80::1; \
         the node has no route for fd00:10::5 to the pod",
    );
    broken(
        false,
        "route delete 169.254.1.1",
        "the node has no route to 169.254.1.1, so it does not answer for that on link HOST",
    );
    broken(
        false,
        "address delete fe80::1/64 dev HOST",
        "link HOST on the node lacks the gateway's address fe80::1",
    );
    broken(false, "route delete 10.10.0.5", "the node has no route for 10.10.0.5 to the pod");
    broken(false, "route delete fd00:10::5", "the node has no route for fd00:10::5 to the pod");
    broken(true, "link set eth0 name eth7", "the pod has no interface eth0");
    broken(
        true,
        "address delete 10.10.0.5/32 dev eth0",
        "the pod lacks its address 10.10.0.5; the pod lacks its route to 169.254.1.1/32; \
         the pod lacks its route to 0.0.0.0/0",
    );
    broken(true, "address delete fd00:10::5/128 dev eth0", "the pod lacks its address fd00:10::5");
    broken(true, "route delete default", "the pod lacks its route to 0.0.0.0/0");
    broken(true, "-6 route delete default", "the pod lacks its route to ::/0");
}

#[test]
fn a_link_that_is_not_the_peer_is_found() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        let up = add(&link, &pod);
        set_sysctl(&format!("ipv4/conf/{}/proxy_arp", up.host_ifname), "0");
        ip_in(&pod, "link set eth0 down");
        let found = check_pod(&link.expected(), &pod).unwrap();
        let text = found.iter().map(|difference| difference.to_string()).collect::<Vec<_>>();
        assert!(text[0].starts_with("proxy_arp is off"), "{text:?}");
        assert!(text.contains(&"the pod's interface eth0 is down".to_owned()), "{text:?}");
        ip_in(&pod, "link set eth0 name eth7");
        ip_in(&pod, "link add eth0 type veth peer name eth1");
        let found = check_pod(&link.expected(), &pod).unwrap();
        assert!(found.iter().any(|d| d.to_string().contains("is not connected to its link")));
    });
}

#[test]
fn what_other_plugins_do_is_no_difference() {
    on_a_node(|| {
        uplink();
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        add(&link, &pod);
        ip_in(&pod, "link set eth0 address 02:00:00:00:00:07");
        ip_in(&pod, "link set eth0 mtu 1400");
        ip_in(&pod, "address add 10.99.0.1/32 dev eth0");
        ip_in(&pod, "route add 10.98.0.0/16 via 169.254.1.1");
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
    });
}

/// The node answers for the gateway by any route that leads elsewhere.
#[test]
fn a_default_route_is_as_good_as_the_gateways() {
    on_a_node(|| {
        uplink();
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        let up = add(&link, &pod);
        ip("route delete 169.254.1.1");
        ip("route add default via 192.168.2.1");
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
        // Where it leads to the pod itself, nobody answers.
        ip(&format!("route add 169.254.1.1 dev {}", up.host_ifname));
        let found = check_pod(&link.expected(), &pod).unwrap();
        assert!(found[0].to_string().contains("no route to 169.254.1.1"), "{found:?}");
    });
}

/// A later plugin took them away, and the result says so.
#[test]
fn what_is_not_expected_may_be_missing() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        let up = add(&link, &pod);
        let without_routes = Expected { routes: Vec::new(), ..link.expected() };
        ip_in(&pod, "route delete default");
        ip_in(&pod, "route delete 169.254.1.1");
        ip_in(&pod, "-6 route delete default");
        assert_ne!(check_pod(&link.expected(), &pod).unwrap(), []);
        assert_eq!(check_pod(&without_routes, &pod).unwrap(), []);
        ip_in(&pod, "address delete 10.10.0.5/32 dev eth0");
        ip("route delete 10.10.0.5");
        set_sysctl(&format!("ipv4/conf/{}/proxy_arp", up.host_ifname), "0");
        assert_ne!(check_pod(&without_routes, &pod).unwrap(), []);
        let without_ipv4 = Expected { addresses: vec![link.addresses[1]], ..without_routes };
        assert_eq!(check_pod(&without_ipv4, &pod).unwrap(), []);
    });
}
