use expect_test::{Expect, expect};
use twill_types::AttachmentId;

use super::*;

fn check(addresses: &[&str], mtu: u32, ipv6: bool, expected: Expect) {
    let link = PodLink {
        attachment: AttachmentId {
            network: "k8s".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        },
        sequence: 7,
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        mtu,
        mac: None,
        routes: Vec::new(),
        pod_name: Some("web-1".into()),
    };
    let text = match Plan::new(&link, ipv6) {
        Ok(plan) => render(&plan),
        Err(error) => error.to_string(),
    };
    expected.assert_eq(&text);
}

fn render(plan: &Plan) -> String {
    use std::fmt::Write;
    let mut text = format!("create\n  {}\n", plan.create_text());
    let mut section = |title: &str, lines: Vec<String>| {
        writeln!(text, "{title}").unwrap();
        lines.iter().for_each(|line| writeln!(text, "  {line}").unwrap());
    };
    let ops = |ops: &[Op]| ops.iter().map(Op::to_string).collect();
    let settings = |settings: &[Setting]| settings.iter().map(Setting::to_string).collect();
    section("identify", ops(&plan.identify));
    section("host settings", settings(&plan.host_settings));
    section("pod settings", settings(&plan.pod_settings));
    section("pod", ops(&plan.pod));
    section("host", ops(&plan.host));
    text
}

#[test]
fn ipv4() {
    check(
        &["10.10.0.5"],
        1500,
        true,
        expect![[r#"
        create
          link add twl8a71f3c7df05 address ee:ee:ee:ee:ee:ee mtu 1500 type veth peer eth0 address 8a:71:f3:c7:df:05 netns POD
        identify
          link set HOST alias twill;seq=7;net=k8s;id=c1;if=eth0 forwarding 1 proxy_arp 1 rp_filter 1 addrgenmode none
          ntable change name arp_cache dev HOST proxy_delay 0
          link property add dev HOST altname web-1
        host settings
          net/ipv6/conf/twl8a71f3c7df05/accept_ra = 0
        pod settings
          net/ipv4/ip_forward = 0
        pod
          link set lo up
          address add 10.10.0.5/32 dev POD
          link set POD up forwarding 0
          route add 169.254.1.1/32 dev POD scope link
          route add 0.0.0.0/0 via 169.254.1.1 dev POD
          neighbour replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev POD nud permanent
        host
          link set HOST up
          route add 10.10.0.5/32 dev HOST scope link
    "#]],
    );
}

#[test]
fn dual_stack() {
    check(
        &["10.10.0.5", "fd00:10::5"],
        9000,
        true,
        expect![[r#"
            create
              link add twl8a71f3c7df05 address ee:ee:ee:ee:ee:ee mtu 9000 type veth peer eth0 address 8a:71:f3:c7:df:05 netns POD
            identify
              link set HOST alias twill;seq=7;net=k8s;id=c1;if=eth0 forwarding 1 proxy_arp 1 rp_filter 1 addrgenmode none
              ntable change name arp_cache dev HOST proxy_delay 0
              ntable change name ndisc_cache dev HOST retrans 20 mcast_probes 150
              link property add dev HOST altname web-1
            host settings
              net/ipv6/conf/twl8a71f3c7df05/disable_ipv6 = 0
              net/ipv6/conf/twl8a71f3c7df05/accept_ra = 0
            pod settings
              net/ipv4/ip_forward = 0
              net/ipv6/conf/all/forwarding = 0
              net/ipv6/conf/eth0/disable_ipv6 = 0
              net/ipv6/conf/eth0/accept_ra = 0
            pod
              link set lo up
              address add 10.10.0.5/32 dev POD
              address add fd00:10::5/128 dev POD nodad
              link set POD up forwarding 0
              route add 169.254.1.1/32 dev POD scope link
              route add 0.0.0.0/0 via 169.254.1.1 dev POD
              neighbour replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev POD nud permanent
              route add ::/0 via fe80::1 dev POD
              neighbour replace fe80::1 lladdr ee:ee:ee:ee:ee:ee dev POD nud permanent
            host
              link set HOST up
              address add fe80::1/64 dev HOST nodad
              route add 10.10.0.5/32 dev HOST scope link
              route add fd00:10::5/128 dev HOST scope link
        "#]],
    );
}

#[test]
fn ipv6_only() {
    check(
        &["fd00:10::5"],
        1500,
        true,
        expect![[r#"
            create
              link add twl8a71f3c7df05 address ee:ee:ee:ee:ee:ee mtu 1500 type veth peer eth0 address 8a:71:f3:c7:df:05 netns POD
            identify
              link set HOST alias twill;seq=7;net=k8s;id=c1;if=eth0 forwarding 1 proxy_arp 1 rp_filter 1 addrgenmode none
              ntable change name arp_cache dev HOST proxy_delay 0
              ntable change name ndisc_cache dev HOST retrans 20 mcast_probes 150
              link property add dev HOST altname web-1
            host settings
              net/ipv6/conf/twl8a71f3c7df05/disable_ipv6 = 0
              net/ipv6/conf/twl8a71f3c7df05/accept_ra = 0
            pod settings
              net/ipv4/ip_forward = 0
              net/ipv6/conf/all/forwarding = 0
              net/ipv6/conf/eth0/disable_ipv6 = 0
              net/ipv6/conf/eth0/accept_ra = 0
            pod
              link set lo up
              address add fd00:10::5/128 dev POD nodad
              link set POD up forwarding 0
              route add ::/0 via fe80::1 dev POD
              neighbour replace fe80::1 lladdr ee:ee:ee:ee:ee:ee dev POD nud permanent
            host
              link set HOST up
              address add fe80::1/64 dev HOST nodad
              route add fd00:10::5/128 dev HOST scope link
        "#]],
    );
}

#[test]
fn a_node_or_an_mtu_without_ipv6() {
    check(
        &["10.10.0.5"],
        1500,
        false,
        expect![[r#"
        create
          link add twl8a71f3c7df05 address ee:ee:ee:ee:ee:ee mtu 1500 type veth peer eth0 address 8a:71:f3:c7:df:05 netns POD
        identify
          link set HOST alias twill;seq=7;net=k8s;id=c1;if=eth0 forwarding 1 proxy_arp 1 rp_filter 1
          ntable change name arp_cache dev HOST proxy_delay 0
          link property add dev HOST altname web-1
        host settings
        pod settings
          net/ipv4/ip_forward = 0
        pod
          link set lo up
          address add 10.10.0.5/32 dev POD
          link set POD up forwarding 0
          route add 169.254.1.1/32 dev POD scope link
          route add 0.0.0.0/0 via 169.254.1.1 dev POD
          neighbour replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev POD nud permanent
        host
          link set HOST up
          route add 10.10.0.5/32 dev HOST scope link
    "#]],
    );
    check(
        &["10.10.0.5"],
        1000,
        true,
        expect![[r#"
        create
          link add twl8a71f3c7df05 address ee:ee:ee:ee:ee:ee mtu 1000 type veth peer eth0 address 8a:71:f3:c7:df:05 netns POD
        identify
          link set HOST alias twill;seq=7;net=k8s;id=c1;if=eth0 forwarding 1 proxy_arp 1 rp_filter 1
          ntable change name arp_cache dev HOST proxy_delay 0
          link property add dev HOST altname web-1
        host settings
        pod settings
          net/ipv4/ip_forward = 0
        pod
          link set lo up
          address add 10.10.0.5/32 dev POD
          link set POD up forwarding 0
          route add 169.254.1.1/32 dev POD scope link
          route add 0.0.0.0/0 via 169.254.1.1 dev POD
          neighbour replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev POD nud permanent
        host
          link set HOST up
          route add 10.10.0.5/32 dev HOST scope link
    "#]],
    );
    check(
        &["fd00:10::5"],
        1500,
        false,
        expect!["cannot give the pod fd00:10::5: this node runs without IPv6 (ipv6.disable)"],
    );
    check(
        &["fd00:10::5"],
        1279,
        true,
        expect!["MTU 1279 is too small for IPv6; use at least 1280 (RFC 8200 section 5)"],
    );
}

#[test]
fn pod_names_that_the_kernel_takes() {
    for (name, legal) in [
        ("web-1", true),
        ("a/b", false),
        ("", false),
        ("a b", false),
        // Names of VLANs, and what is none: no VLAN has this number, or it is too long for an interface's.
        ("bond0.100", false),
        ("eth0.0005", false),
        ("a.b.4094", false),
        ("web.prod", true),
        ("web.v2", true),
        ("web.10000", true),
        ("coredns-abcde.100", true),
        ("100", true),
        ("web.", true),
    ] {
        assert_eq!(is_altname(name), legal, "{name}");
    }
    assert!(is_altname(&"a".repeat(127)) && !is_altname(&"a".repeat(128)));
}

#[test]
fn hardware_addresses_are_local_unicast_and_stable() {
    let attachment = |id: u32| AttachmentId {
        network: "k8s".into(),
        container_id: id.to_string(),
        ifname: "eth0".into(),
    };
    let mac = |id| {
        let addresses = Vec::new();
        PodLink {
            attachment: attachment(id),
            sequence: 1,
            addresses,
            mtu: 1500,
            mac: None,
            routes: Vec::new(),
            pod_name: None,
        }
        .pod_mac()
    };
    for id in 0..100 {
        assert_eq!(mac(id).0[0] & 3, 2);
        assert_eq!(mac(id), mac(id));
        assert_ne!(mac(id), mac(id + 1));
    }
}
