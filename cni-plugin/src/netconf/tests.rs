use serde_json::json;

use super::*;

fn read(value: Value) -> (Netconf, Vec<String>) {
    read_as(Persona::Main, value)
}

fn read_as(persona: Persona, value: Value) -> (Netconf, Vec<String>) {
    let Value::Object(mut map) = value else { panic!("an object is needed") };
    map.entry("name").or_insert("net".into());
    let (netconf, problems) =
        Parsed::new(map).map_err(|e| e.to_string()).unwrap().netconf(persona, &Args::default());
    (netconf, problems.iter().map(ToString::to_string).collect())
}

fn read_well(value: Value) -> Netconf {
    let (netconf, problems) = read(value);
    assert_eq!(problems, [""; 0]);
    netconf
}

#[test]
fn an_empty_configuration_has_defaults() {
    let netconf = read_well(json!({"type": "twill"}));
    assert_eq!(netconf.version, Version::V0_1_0);
    assert_eq!(netconf.run_dir, PathBuf::from("/run/twill"));
    assert_eq!((netconf.mtu, netconf.timeout), (0, Duration::from_secs(20)));
    assert_eq!(netconf.ipam.mode, Mode::Auto);
    assert_eq!(netconf.ipam.families, [Family::V4]);
    assert_eq!((netconf.prev_result, netconf.dns), (None, None));
}

#[test]
fn calicos_spellings_mean_the_same() {
    let ours = read_well(json!({"ipam": {
        "type": "twill-ipam", "assignIPv4": false, "assignIPv6": true, "ipv4Pools": ["a"], "ipv6Pools": ["b"],
    }}));
    let calicos = read_well(json!({"ipam": {
        "type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true", "ipv4_pools": ["a"], "ipv6_pools": ["b"],
    }}));
    assert_eq!(ours, calicos);
    // What is null is not there.
    for flags in [
        json!({"assignIPv6": null, "assign_ipv6": true}),
        json!({"assignIPv6": true, "assign_ipv6": null}),
    ] {
        let netconf = read_well(json!({"ipam": flags}));
        assert_eq!(netconf.ipam.families, [Family::V4, Family::V6], "{flags}");
    }
    assert_eq!(ours.ipam.families, [Family::V6]);
}

#[test]
fn pools_of_standalone_mode() {
    let netconf = read_well(json!({"ipam": {"mode": "standalone", "assignIPv6": true, "pools": [
        {"cidr": "10.10.0.0/20"},
        {"cidr": "10.11.0.0/20", "blockSize": 24},
        {"cidr": "10.12.0.0/30"},
        {"cidr": "fd00:10::/48"},
    ]}}));
    let sizes: Vec<u8> = netconf.ipam.pools.iter().map(|pool| pool.block_size).collect();
    assert_eq!(sizes, [26, 24, 30, 122]);
}

#[test]
fn keys_of_the_runtime_are_no_surprise() {
    read_well(json!({
        "cniVersion": "1.1.0", "cniVersions": ["1.0.0", "1.1.0"], "capabilities": {"ips": true},
        "runtimeConfig": {}, "args": {"cni": {"labels": []}}, "prevResult": null,
        "cni.dev/valid-attachments": null, "disableCheck": true, "disableGC": "true", "loadOnlyInlinedPlugins": false,
    }));
}

#[test]
fn every_problem_names_path_value_and_what_would_be_right() {
    for (value, problem) in [
        (json!({"mtu": "1450"}), r#"mtu is "1450"; write 0 (the uplink's) or 68 to 65535"#),
        (json!({"mtu": -1}), "mtu is -1; write 0 (the uplink's) or 68 to 65535"),
        (json!({"mtu": 67}), "mtu is 67; write 0 (the uplink's) or 68 to 65535"),
        (
            json!({"mtu": 1279, "ipam": {"assignIPv6": true}}),
            "mtu is 1279; write at least 1280 with IPv6 addresses (RFC 8200 section 5), or 0",
        ),
        (json!({"runDir": "run"}), r#"runDir is "run"; write an absolute path"#),
        (json!({"timeoutSeconds": 0}), "timeoutSeconds is 0; write 1 to 120"),
        (
            json!({"logLevel": "loud"}),
            r#"logLevel is "loud"; write one of off, error, warn, warning, info, debug, trace"#,
        ),
        (json!({"ipam": "twill-ipam"}), r#"ipam is "twill-ipam"; write an object in braces"#),
        (
            json!({"type": "twill", "ipam": {"type": "twill"}}),
            r#"ipam.type is "twill"; write "twill-ipam", or the name of another IPAM plugin in CNI_PATH"#,
        ),
        (
            json!({"type": "lan", "ipam": {"type": "lan"}}),
            r#"ipam.type is "lan"; write "twill-ipam", or the name of another IPAM plugin in CNI_PATH"#,
        ),
        (
            json!({"ipam": {"mode": "no"}}),
            r#"ipam.mode is "no"; write one of daemon, standalone, auto"#,
        ),
        (
            json!({"ipam": {"assignIPv6": "maybe"}}),
            r#"ipam.assignIPv6 is "maybe"; write true or false"#,
        ),
        (
            json!({"ipam": {"assignIPv4": true, "assign_ipv4": "false"}}),
            r#"ipam.assignIPv4 is true; write it once; ipam.assign_ipv4 is there too, with "false""#,
        ),
        (
            json!({"ipam": {"assignIPv4": false}}),
            "ipam.assignIPv4 is false; write true, or ipam.assignIPv6 true",
        ),
        (
            json!({"ipam": {"ipv4Pools": "a"}}),
            r#"ipam.ipv4Pools is "a"; write a list of texts, such as ["app-pool"]"#,
        ),
        (
            json!({"ipam": {"mode": "standalone"}}),
            r#"ipam.pools is missing; write at least one IPv4 range, such as {"cidr": "10.10.0.0/24"}"#,
        ),
        (
            json!({"ipam": {"pools": [{"cidr": "10.0.0.1/24"}]}}),
            r#"ipam.pools[0].cidr is "10.0.0.1/24"; write 10.0.0.0/24"#,
        ),
        (
            json!({"ipam": {"pools": [{"cidr": "10.10.0.0"}]}}),
            r#"ipam.pools[0].cidr is "10.10.0.0"; write address/length, such as 10.10.0.0/24"#,
        ),
        (
            json!({"ipam": {"pools": [{"cidr": "10.10.0.0/33"}]}}),
            r#"ipam.pools[0].cidr is "10.10.0.0/33"; write a length of 0 to 32"#,
        ),
        (
            json!({"ipam": {"routes": [{"dst": "default"}]}}),
            r#"ipam.routes[0].dst is "default"; write address/length, such as 0.0.0.0/0"#,
        ),
        (
            json!({"ipam": {"routes": [{"dst": "fd00::/129"}]}}),
            r#"ipam.routes[0].dst is "fd00::/129"; write a length of 0 to 128"#,
        ),
        (
            json!({"ipam": {"routes": [{"dst": "0.0.0.0/0", "table": 100}]}}),
            "ipam.routes[0].table is 100, which is not supported; write nothing: all routes are in the main table",
        ),
        (
            json!({"ipam": {"routes": [{"dst": "10.0.0.0/8", "scope": 253}]}}),
            "ipam.routes[0].scope is 253, which is not supported; write nothing: all routes are of global scope",
        ),
        (
            json!({"ipam": {"pools": [{}]}}),
            "ipam.pools[0].cidr is missing; write a prefix, such as 10.10.0.0/24",
        ),
        (
            json!({"ipam": {"pools": [{"cidr": "10.0.0.0/24", "blockSize": 23}]}}),
            "ipam.pools[0].blockSize is 23; write 24 to 32, the prefix length of a block inside 10.0.0.0/24",
        ),
        (
            json!({"ipam": {"pools": [{"cidr": "10.0.0.0/8", "blockSize": 19}]}}),
            "ipam.pools[0].blockSize is 19; write 20 to 32, the prefix length of a block inside 10.0.0.0/8",
        ),
        (
            json!({"ipam": {"pools": [{"cidr": "10.0.0.0/24"}, {"cidr": "10.0.0.128/25"}]}}),
            r#"ipam.pools[1].cidr is "10.0.0.128/25"; write a range apart from 10.0.0.0/24"#,
        ),
        (
            json!({"log_level": "info"}),
            "log_level is no key of this plugin and is ignored; did you mean logLevel?",
        ),
        (
            json!({"ipam": {"pools": [{"cidr": "10.0.0.0/24", "blocksize": 26}]}}),
            "ipam.pools[0].blocksize is no key of this plugin and is ignored; did you mean blockSize?",
        ),
        (json!({"bridge": "br0"}), "bridge is no key of this plugin and is ignored; remove it"),
    ] {
        assert_eq!(read(value.clone()).1, [problem], "{value}");
    }
}

/// Where another plugin makes the interface, the pod is on a segment with others.
#[test]
fn routes_for_another_main_plugin_have_gateways() {
    let of = |persona, route: Value| {
        let (netconf, problems) = read_as(persona, json!({"ipam": {"routes": [route]}}));
        let gateways: Vec<_> = netconf.ipam.routes.iter().map(|route| route.gateway).collect();
        (gateways, problems)
    };
    for (route, gateway) in [
        (json!({"dst": "10.0.0.0/8", "gw": "192.168.2.254"}), "192.168.2.254".parse().ok()),
        (json!({"dst": "fd00::/8", "gw": "fd00:1::1"}), "fd00:1::1".parse().ok()),
        (json!({"dst": "0.0.0.0/0"}), None),
        (json!({"dst": "0.0.0.0/0", "table": 254, "scope": 0}), None),
    ] {
        assert_eq!(of(Persona::Ipam, route.clone()), (vec![gateway], vec![]), "{route}");
    }
    for (persona, route, problem) in [
        (
            Persona::Ipam,
            json!({"dst": "10.0.0.0/8", "gw": "fd00::1"}),
            r#"ipam.routes[0].gw is "fd00::1"; write an IPv4 address, as dst is 10.0.0.0/8"#,
        ),
        (
            Persona::Ipam,
            json!({"dst": "fd00::/8", "gw": "router"}),
            r#"ipam.routes[0].gw is "router"; write an IPv6 address, as dst is fd00::/8"#,
        ),
        (
            Persona::Main,
            json!({"dst": "10.0.0.0/8", "gw": "192.168.2.254"}),
            r#"ipam.routes[0].gw is "192.168.2.254"; write nothing: the gateway of a pod is the node"#,
        ),
    ] {
        assert_eq!(of(persona, route.clone()).1, [problem], "{route}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let (netconf, problems) = read(json!({"mtu": true, "ipam": {"mode": 7, "assignIPv4": []}}));
    assert_eq!(problems.len(), 3, "{problems:?}");
    // A DEL goes on with these.
    assert_eq!((netconf.mtu, netconf.ipam.mode), (0, Mode::Auto));
}

#[test]
fn a_network_of_another_main_plugin_has_one_gateway_of_a_family() {
    let of = |gateway: Value| {
        let (netconf, problems) = read_as(Persona::Ipam, json!({"ipam": {"gateway": gateway}}));
        (netconf.ipam.foreign.gateway, problems)
    };
    let both = ["10.0.0.1", "fd00::1"].map(|address| address.parse().unwrap());
    assert_eq!(of(json!(["10.0.0.1", "fd00::1"])), (Gateway::At(both.to_vec()), vec![]));
    for two in [json!(["10.0.0.1", "10.0.0.2"]), json!(["10.0.0.1", "fd00::1", "10.0.0.1"])] {
        let (_, problems) = of(two.clone());
        let right = "true, false, an address, or a list of one address of each family";
        assert_eq!(problems, [format!("ipam.gateway is {two}; write {right}")]);
    }
}

#[test]
fn names_and_versions() {
    let code = |value: Value| {
        let Value::Object(map) = value else { panic!("an object is needed") };
        Parsed::new(map).map(|parsed| parsed.version).map_err(|error| error.code())
    };
    assert_eq!(code(json!({"name": "a"})), Ok(Version::V0_1_0));
    assert_eq!(code(json!({"name": "a", "cniVersion": ""})), Ok(Version::V0_1_0));
    assert_eq!(code(json!({"name": "a", "cniVersion": "1.1.0"})), Ok(Version::V1_1_0));
    for (value, expected) in [
        (json!({}), 7),
        (json!({"name": ""}), 7),
        (json!({"name": "a b"}), 7),
        (json!({"name": "-a"}), 7),
        (json!({"name": 7}), 6),
        (json!({"name": "a", "cniVersion": 1}), 6),
        (json!({"name": "a", "cniVersion": "1.2.0"}), 1),
        (json!({"name": "a", "cniVersion": "1.0"}), 1),
    ] {
        assert_eq!(code(value.clone()), Err(expected), "{value}");
    }
}
