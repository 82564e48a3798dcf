use expect_test::{Expect, expect};

use super::*;

fn result() -> AddResult {
    let route = |gateway: &str, destination: &str| ResultRoute {
        route: PodRoute::to(destination.parse().unwrap()),
        gateway: Some(gateway.parse().unwrap()),
    };
    AddResult {
        link: Some(ResultLink {
            host: Interface {
                name: "twl0123456789ab".into(),
                mac: "ee:ee:ee:ee:ee:ee".into(),
                mtu: 1450,
            },
            pod: Interface { name: "eth0".into(), mac: "02:00:00:00:00:01".into(), mtu: 1450 },
            sandbox: "/run/netns/a".into(),
        }),
        addresses: vec![
            PodAddress {
                address: "10.10.0.1".parse().unwrap(),
                length: 32,
                gateway: "169.254.1.1".parse().ok(),
            },
            PodAddress {
                address: "fd00:10::1".parse().unwrap(),
                length: 128,
                gateway: "fe80::1".parse().ok(),
            },
        ],
        routes: vec![route("169.254.1.1", "0.0.0.0/0"), route("fe80::1", "::/0")],
        dns: None,
    }
}

#[track_caller]
fn check(version: Version, expected: Expect) {
    expected.assert_eq(&serde_json::to_string_pretty(&result().render(version)).unwrap());
}

#[test]
fn of_0_2_0_by_family() {
    check(
        Version::V0_2_0,
        expect![[r#"
            {
              "cniVersion": "0.2.0",
              "ip4": {
                "gateway": "169.254.1.1",
                "ip": "10.10.0.1/32",
                "routes": [
                  {
                    "dst": "0.0.0.0/0",
                    "gw": "169.254.1.1"
                  }
                ]
              },
              "ip6": {
                "gateway": "fe80::1",
                "ip": "fd00:10::1/128",
                "routes": [
                  {
                    "dst": "::/0",
                    "gw": "fe80::1"
                  }
                ]
              }
            }"#]],
    );
}

#[test]
fn of_0_3_1_with_families_and_without_mtu() {
    check(
        Version::V0_3_1,
        expect![[r#"
            {
              "cniVersion": "0.3.1",
              "interfaces": [
                {
                  "mac": "ee:ee:ee:ee:ee:ee",
                  "name": "twl0123456789ab"
                },
                {
                  "mac": "02:00:00:00:00:01",
                  "name": "eth0",
                  "sandbox": "/run/netns/a"
                }
              ],
              "ips": [
                {
                  "address": "10.10.0.1/32",
                  "gateway": "169.254.1.1",
                  "interface": 1,
                  "version": "4"
                },
                {
                  "address": "fd00:10::1/128",
                  "gateway": "fe80::1",
                  "interface": 1,
                  "version": "6"
                }
              ],
              "routes": [
                {
                  "dst": "0.0.0.0/0",
                  "gw": "169.254.1.1"
                },
                {
                  "dst": "::/0",
                  "gw": "fe80::1"
                }
              ]
            }"#]],
    );
}

#[test]
fn of_1_0_0_without_families() {
    check(
        Version::V1_0_0,
        expect![[r#"
            {
              "cniVersion": "1.0.0",
              "interfaces": [
                {
                  "mac": "ee:ee:ee:ee:ee:ee",
                  "name": "twl0123456789ab"
                },
                {
                  "mac": "02:00:00:00:00:01",
                  "name": "eth0",
                  "sandbox": "/run/netns/a"
                }
              ],
              "ips": [
                {
                  "address": "10.10.0.1/32",
                  "gateway": "169.254.1.1",
                  "interface": 1
                },
                {
                  "address": "fd00:10::1/128",
                  "gateway": "fe80::1",
                  "interface": 1
                }
              ],
              "routes": [
                {
                  "dst": "0.0.0.0/0",
                  "gw": "169.254.1.1"
                },
                {
                  "dst": "::/0",
                  "gw": "fe80::1"
                }
              ]
            }"#]],
    );
}

#[test]
fn of_1_1_0_with_mtu() {
    check(
        Version::V1_1_0,
        expect![[r#"
            {
              "cniVersion": "1.1.0",
              "interfaces": [
                {
                  "mac": "ee:ee:ee:ee:ee:ee",
                  "mtu": 1450,
                  "name": "twl0123456789ab"
                },
                {
                  "mac": "02:00:00:00:00:01",
                  "mtu": 1450,
                  "name": "eth0",
                  "sandbox": "/run/netns/a"
                }
              ],
              "ips": [
                {
                  "address": "10.10.0.1/32",
                  "gateway": "169.254.1.1",
                  "interface": 1
                },
                {
                  "address": "fd00:10::1/128",
                  "gateway": "fe80::1",
                  "interface": 1
                }
              ],
              "routes": [
                {
                  "dst": "0.0.0.0/0",
                  "gw": "169.254.1.1"
                },
                {
                  "dst": "::/0",
                  "gw": "fe80::1"
                }
              ]
            }"#]],
    );
}

#[test]
fn neighbouring_versions_differ_in_their_number_alone() {
    for (one, other) in [
        (Version::V0_1_0, Version::V0_2_0),
        (Version::V0_3_0, Version::V0_3_1),
        (Version::V0_3_1, Version::V0_4_0),
    ] {
        let mut rendered = result().render(one);
        assert_eq!(rendered["cniVersion"], one.as_str());
        rendered["cniVersion"] = other.as_str().into();
        assert_eq!(rendered, result().render(other), "{one}");
    }
}

#[test]
fn dns_is_passed_on() {
    let mut result = result();
    assert_eq!(result.render(Version::V1_0_0).get("dns"), None);
    let dns = json!({ "nameservers": ["10.96.0.10"] });
    result.dns = dns.as_object().cloned();
    for version in Version::ALL {
        assert_eq!(result.render(version)["dns"], dns, "{version}");
    }
}

#[test]
fn what_was_printed_is_found_again() {
    for version in [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0] {
        let previous = Previous::read(&result().render(version), "eth0", "/run/netns/a").unwrap();
        assert_eq!(previous.addresses, result().addresses, "{version}");
        assert!(previous.addresses.iter().all(|address| address.is_of_twill()), "{version}");
        let routes: Vec<_> = result().routes.iter().map(|r| r.route.destination).collect();
        assert_eq!(previous.routes, routes, "{version}");
    }
}

#[test]
fn interfaces_of_other_plugins_are_passed_over() {
    let value = json!({
        "interfaces": [
            {"name": "eth0", "sandbox": ""},
            {"name": "net1", "sandbox": "/run/netns/a"},
            {"name": "eth0", "sandbox": "/run/netns/a"},
        ],
        "ips": [
            {"address": "192.168.1.2/24", "interface": 1},
            {"address": "192.168.1.3/24"},
            {"address": "10.10.0.1/32", "interface": 2},
            {"address": "198.51.100.7/24", "interface": 2},
            {"address": "198.51.100.8/32", "gateway": "198.51.100.1", "interface": 2},
        ],
        "routes": [
            {"dst": "198.51.100.0/24", "gw": "192.168.1.1"},
            {"dst": "192.168.7.7/24"},
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1", "priority": 7},
        ],
    });
    let previous = Previous::read(&value, "eth0", "/run/netns/a").unwrap();
    let routes = [Family::V4, Family::V6].map(Prefix::default_route);
    assert_eq!(previous.routes, routes);
    let ours: Vec<_> = previous.addresses.iter().filter(|ip| ip.is_of_twill()).collect();
    assert_eq!((previous.addresses.len(), ours.len()), (3, 1));
    assert_eq!(ours[0].address, "10.10.0.1".parse::<IpAddr>().unwrap());
}

/// The field is optional.
#[test]
fn an_address_that_names_no_interface_is_of_the_only_one() {
    let mut value = json!({
        "interfaces": [{"name": "twl1"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
        "ips": [
            {"address": "10.10.0.1/32", "gateway": "169.254.1.1"},
            {"address": "198.51.100.7/24", "interface": null},
            {"address": "198.51.100.8/24", "interface": 0},
        ],
    });
    let read = |value: &Value| -> Vec<String> {
        let previous = Previous::read(value, "eth0", "/run/netns/a").unwrap();
        previous.addresses.iter().map(|ip| ip.cidr()).collect()
    };
    assert_eq!(read(&value), ["10.10.0.1/32", "198.51.100.7/24"]);
    // With another one only the gateway tells.
    value["interfaces"][0]["sandbox"] = json!("/run/netns/a");
    assert_eq!(read(&value), ["10.10.0.1/32"]);
}

#[test]
fn a_previous_result_that_does_not_fit() {
    let interface = json!([{"name": "eth0", "sandbox": "/run/netns/a"}]);
    for (value, wrong) in [
        (json!({}), "prevResult.interfaces has no `eth0` with sandbox `/run/netns/a`"),
        (json!([]), "has no `eth0`"),
        (json!({"interfaces": 7}), "prevResult.interfaces is 7; a list is needed"),
        (json!({"interfaces": [{"name": "eth0", "sandbox": "/run/netns/b"}]}), "has no `eth0`"),
        (json!({"interfaces": [7, null]}), "has no `eth0`"),
        (
            json!({"interfaces": interface, "ips": [{"address": "10.0.0.1", "interface": 0}]}),
            "prevResult.ips[0].address is \"10.0.0.1\"; a CIDR is needed",
        ),
    ] {
        let error = Previous::read(&value, "eth0", "/run/netns/a").unwrap_err().to_string();
        assert!(error.contains(wrong), "{value}: {error}");
    }
}
