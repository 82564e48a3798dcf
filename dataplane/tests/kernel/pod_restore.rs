//! What somebody took from a pod's link on the node's side is put back, and nothing else is done.

use std::net::IpAddr;

use twill_dataplane::pod::{DelMode, HostEnd, check_pod, del_pod};

use crate::common::*;

fn is_loosened(ifindex: u32) -> bool {
    HostEnd::find(ifindex).unwrap().unwrap().is_loosened()
}

fn restore(ifindex: u32, addresses: &[IpAddr]) -> Vec<String> {
    HostEnd::find(ifindex).unwrap().unwrap().restore(addresses).unwrap()
}

#[test]
fn what_is_missing_comes_back() {
    on_a_node(|| {
        let netns = pod_netns();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        let up = add(&link, &netns);
        let name = &up.host_ifname;
        let before =
            ["route", "-6 route", "address"].map(|what| ip(&format!("{what} show dev {name}")));
        assert_eq!(restore(up.host_ifindex, &link.addresses), [""; 0]);

        ip(&format!("route delete 10.10.0.5 dev {name}"));
        set_sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
        assert!(!is_loosened(up.host_ifindex));
        let done = restore(up.host_ifindex, &link.addresses);
        let expected = [
            format!("link set {name} forwarding 1 proxy_arp 1 rp_filter 1"),
            format!("route add 10.10.0.5/32 dev {name} scope link"),
        ];
        assert_eq!(done, expected);
        assert_eq!(sysctl(&format!("ipv4/conf/{name}/rp_filter")), "1");
        // Not only what was switched off: 2 lets a pod send with its neighbour's address.
        set_sysctl(&format!("ipv4/conf/{name}/rp_filter"), "2");
        assert!(is_loosened(up.host_ifindex));
        set_sysctl(&format!("ipv4/conf/{name}/proxy_arp"), "0");
        assert!(!is_loosened(up.host_ifindex));
        assert_eq!(restore(up.host_ifindex, &link.addresses), expected[..1]);
        assert_eq!(sysctl(&format!("ipv4/conf/{name}/rp_filter")), "1");

        // While it is down there is nothing to route to, and up again it has lost all of it.
        ip(&format!("link set {name} down"));
        assert_eq!(restore(up.host_ifindex, &link.addresses), [""; 0]);
        ip(&format!("link set {name} up"));
        assert_eq!(restore(up.host_ifindex, &link.addresses).len(), 3);
        let after =
            ["route", "-6 route", "address"].map(|what| ip(&format!("{what} show dev {name}")));
        assert_eq!(after, before);
        assert_eq!(check_pod(&link.expected(), &netns).unwrap(), []);
        assert_eq!(HostEnd::all().unwrap().len(), 1);
    });
}

#[test]
fn a_link_that_waits_to_be_deleted_gets_nothing() {
    on_a_node(|| {
        uplink();
        let netns = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        let up = add(&link, &netns);
        del_pod(&link.attachment, Some(link.sequence), Some(&netns), DelMode::Deferred).unwrap();
        assert_eq!(HostEnd::find(up.host_ifindex).unwrap(), None);
        assert_eq!(HostEnd::all().unwrap(), []);
        // Nor does a link that is not a pod's, or no link at all.
        for ifindex in [1, 4711] {
            assert_eq!(HostEnd::find(ifindex).unwrap(), None);
        }
    });
}
