use twill_types::Family;

use super::*;

fn problems(text: &str) -> Vec<String> {
    load_manifests(text, "m.yaml").problems.iter().map(ToString::to_string).collect()
}

/// A manifest with its `spec`, given as lines without indentation.
fn manifest(kind: &str, name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata:\n  name: {name}\nspec:\n{spec}"
    )
}

fn only(text: &str) -> Resource {
    let loaded = load_manifests(text, "m.yaml");
    assert_eq!(loaded.problems, [], "{text}");
    assert_eq!(loaded.resources.len(), 1, "{text}");
    loaded.resources.into_iter().next().unwrap().value
}

#[test]
fn samples_load_without_a_word() {
    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/samples");
    let catalog = crate::files::load_directory(&samples).unwrap();
    assert_eq!(catalog.problems, []);
    let names: Vec<_> = catalog.resources.keys().map(ToString::to_string).collect();
    for name in
        ["bgppeer peer-rack1", "bgppeer peer-tor-switch", "ipamconfig default", "ippool app-pool"]
    {
        assert!(names.iter().any(|found| found == name), "{name} is not in {names:?}");
    }
    let resources: Vec<_> = catalog.resources.values().map(|loc| &loc.value).collect();
    for resource in resources {
        assert_eq!(resource.unsupported(), []);
        assert_eq!(only(&resource.to_yaml().unwrap()), *resource);
        assert_eq!(only(&resource.to_json().unwrap()), *resource);
    }
}

#[test]
fn defaults() {
    let Resource::IpPool(pool) = only(&manifest("IPPool", "p", "cidr: fd00:10::/112")) else {
        panic!("another kind")
    };
    assert_eq!(pool.spec.block_size(), 122);
    assert!(pool.spec.selects(&std::collections::BTreeMap::new()));
    let Resource::IpamConfig(config) =
        only(&manifest("IPAMConfig", "default", "strictAffinity: true"))
    else {
        panic!("another kind")
    };
    assert!(config.spec.auto_allocate_blocks && config.spec.strict_affinity);
}

#[test]
fn nodes() {
    let Resource::Node(node) = only(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: node1\n  labels: {rack: rack1}\n  \
         annotations:\n    projectcalico.org/IPv4Address: 192.168.2.11/24\n    \
         projectcalico.org/ASNumber: \"64512\"\nspec:\n  blocks: [10.10.0.0/26]\n  \
         podCIDR: 10.0.0.0/24\nstatus:\n  phase: Ready\n",
    ) else {
        panic!("another kind")
    };
    assert_eq!(node.address(Family::V4), Some([192, 168, 2, 11].into()));
    assert_eq!(node.address(Family::V6), None);
    assert_eq!(node.as_number().unwrap().get(), 64512);
    assert_eq!(node.spec.blocks, ["10.10.0.0/26".parse().unwrap()]);
    only("{apiVersion: v1, kind: Node, metadata: {name: n}}");
}

#[test]
fn every_field_of_calico_is_known() {
    for (kind, spec) in [
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nblockSize: 26\nnodeSelector: all()\nnamespaceSelector: has(a)\n\
             ipipMode: Never\nvxlanMode: CrossSubnet\nnatOutgoing: true\ndisabled: true\n\
             disableBGPExport: true\nallowedUses: [Workload]\nassignmentMode: Manual",
        ),
        (
            "BGPPeer",
            "node: n\npeerIP: 10.0.0.1:1179\nasNumber: \"1.10\"\nlocalASNumber: 65000\n\
             nextHopMode: Self\npassword: {secretKeyRef: {name: s, key: k, optional: true}}\n\
             longLivedRestartTime: {ipv4: 3600, ipv6: 16777215}\n\
             sourceAddress: None\nmaxRestartTime: 120s\nkeepaliveTime: 30s\n\
             numAllowedLocalASNumbers: 1\nttlSecurity: 1\nreachableBy: 10.0.0.2\nfilters: [f]\n\
             reversePeering: Auto",
        ),
        ("BGPPeer", "nodeSelector: has(a)\npeerSelector: has(b)"),
        ("BGPPeer", "localWorkloadSelector: has(a)\nasNumber: 65000\nkeepOriginalNextHop: true"),
        (
            "BGPConfiguration",
            "logSeverityScreen: Info\nnodeToNodeMeshEnabled: false\nasNumber: 64512\n\
             listenPort: 1179\nbindMode: NodeIP\nserviceClusterIPs: [{cidr: 10.0.0.0/16}]\n\
             serviceExternalIPs: [{cidr: 10.0.0.0/16}]\n\
             serviceLoadBalancerIPs: [{cidr: 10.0.0.0/16}]\n\
             serviceLoadBalancerAggregation: Disabled\ncommunities: [{name: a, value: \"1:2\"}]\n\
             prefixAdvertisements: [{cidr: 10.0.0.0/16, communities: [a]}]\n\
             nodeMeshPassword: {secretKeyRef: {name: s, key: k}}\nnodeMeshMaxRestartTime: 120s\n\
             nodeMeshLongLivedRestartTime: {ipv4: 0}\n\
             ignoredInterfaces: [a]\nlocalWorkloadPeeringIPV4: 10.0.0.1\n\
             localWorkloadPeeringIPV6: fd00::1\nprogramClusterRoutes: EnabledNoEncapOnly\n\
             ipv4NormalRoutePriority: 1024\nipv6NormalRoutePriority: 1024",
        ),
        (
            "BGPFilter",
            "exportV4:\n- {cidr: 10.0.0.0/16, matchOperator: In, prefixLength: {min: 24, max: 26}, \
             source: RemotePeers, interface: \"*.calico\", peerType: eBGP, \
             communities: {values: [\"1:2\"]}, asPathPrefix: [65000], priority: 1, action: Accept, \
             operations: [{addCommunity: {value: \"1:2\"}}, {prependASPath: {prefix: [65000]}}, \
             {setPriority: {value: 5}}]}\nimportV4: [{action: Reject}]\nexportV6: []\nimportV6: []",
        ),
        (
            "IPAMConfiguration",
            "strictAffinity: true\nmaxBlocksPerHost: 4\nautoAllocateBlocks: false\n\
             kubeVirtVMAddressPersistence: Enabled\nipCooldownSeconds: 30",
        ),
        ("IPReservation", "reservedCIDRs: [10.0.0.0/30]"),
        (
            "BlockAffinity",
            "state: \"\"\nnode: n\ntype: host\ncidr: 10.0.0.0/26\ndeleted: \"false\"",
        ),
    ] {
        let name = if kind == "BlockAffinity" { "0a000000-26" } else { "default" };
        let text = manifest(kind, name, spec);
        let resource = only(&text);
        assert_eq!(only(&resource.to_yaml().unwrap()), resource);
        assert_eq!(resource.kind_name(), kind);
    }
}

#[test]
fn what_has_no_effect_is_told() {
    let unsupported = |kind: &str, spec: &str| -> Vec<String> {
        let resource = only(&manifest(kind, "default", spec));
        resource.unsupported().into_iter().map(|unsupported| unsupported.field).collect()
    };
    assert_eq!(
        unsupported("IPPool", "cidr: 10.0.0.0/16\nnatOutgoing: true\nipipMode: Always"),
        ["spec.ipipMode"]
    );
    assert_eq!(
        unsupported("IPPool", "cidr: 10.0.0.0/16\nnatOutgoing: true\nipipMode: Never"),
        [""; 0]
    );
    assert_eq!(
        unsupported(
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\nfilters: [a]\nreachableBy: 10.0.0.2"
        ),
        ["spec.reachableBy"]
    );
    assert_eq!(
        unsupported(
            "BGPFilter",
            "exportV4: [{action: Reject}, {action: Reject, interface: eth0}]\n\
             importV6: [{action: Reject, interface: '*'}, {action: Reject, interface: '*.calico'}]"
        ),
        ["spec.exportV4[1].interface", "spec.importV6[1].interface"]
    );
    let tunnel = "projectcalico.org/IPv4IPIPTunnelAddr";
    let node = only(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: n, annotations: {{{tunnel}: 10.0.0.1}}}}}}"
    ));
    let fields: Vec<_> = node.unsupported().into_iter().map(|found| found.field).collect();
    assert_eq!(fields, [format!("metadata.annotations.{tunnel}")]);
    assert_eq!(unsupported("BGPConfiguration", "bindMode: NodeIP"), ["spec.bindMode"]);
    assert_eq!(
        unsupported("IPAMConfiguration", "kubeVirtVMAddressPersistence: Enabled"),
        ["spec.kubeVirtVMAddressPersistence"]
    );
}

/// Each object is wrong in one way; the line, the path and the remedy have to be in the one
/// problem that it makes.
#[test]
fn invalid_values_name_place_value_and_remedy() {
    for (kind, spec, expected) in [
        ("IPPool", "blockSize: 26", "error: m.yaml:5: spec: field `cidr` is missing; add it"),
        (
            "IPPool",
            "cidr: 10.0.0.1/16",
            "error: m.yaml:6: spec.cidr: 10.0.0.1/16 has host bits set; write 10.0.0.0/16",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0",
            "error: m.yaml:6: spec.cidr: `10.0.0.0` is not a prefix; write address/length, such as 10.10.0.0/20 or fd00:10::/48",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nblockSize: 19",
            "error: m.yaml:7: spec.blockSize: 19: a block of an IPv4 pool is /20 to /32",
        ),
        (
            "IPPool",
            "cidr: fd00::/64\nblockSize: 64",
            "error: m.yaml:7: spec.blockSize: 64: a block of an IPv6 pool is /116 to /128",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nblockSize: big",
            "error: m.yaml:7: spec.blockSize: big: expected a whole number from 0 to 255, found a text",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nblockSize: 300",
            "error: m.yaml:7: spec.blockSize: 300: expected a whole number from 0 to 255",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/28\nblockSize: 26",
            "error: m.yaml:7: spec.blockSize: 26: a block of /26 does not fit into 10.0.0.0/28; set blockSize to 28 or more, or widen cidr",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/28",
            "error: m.yaml:6: spec.cidr: a block of /26 does not fit into 10.0.0.0/28; set blockSize to 28 or more, or widen cidr",
        ),
        (
            "IPPool",
            "cidr: 169.254.0.0/17",
            "error: m.yaml:6: spec.cidr: 169.254.0.0/17: overlaps the link-local range 169.254.0.0/16; choose another range",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\ndisabled: 1",
            "error: m.yaml:7: spec.disabled: 1: expected true or false, found a number",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nipipMode: always",
            "error: m.yaml:7: spec.ipipMode: always: did you mean Always? Allowed are: Never, Always, CrossSubnet",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nipipMode: Always\nvxlanMode: Always",
            "error: m.yaml:8: spec.vxlanMode: Always: spec.vxlanMode and spec.ipipMode exclude each other; remove one of them",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nnodeSelector: rack = 'a'",
            "error: m.yaml:7: spec.nodeSelector: selector `rack = 'a'`, character 6: `=` alone is no operator; write `==`",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nnodeSelector: global()",
            "error: m.yaml:7: spec.nodeSelector: global() selects nothing here; write all() for everything",
        ),
        (
            "IPPool",
            "cidr: 10.0.0.0/16\nallowedUses: [Workload, Pod]",
            "error: m.yaml:7: spec.allowedUses[1]: Pod: allowed are: Workload, Tunnel, LoadBalancer",
        ),
        (
            "IPPool",
            "- cidr: 10.0.0.0/16",
            "error: m.yaml:5: spec: expected a mapping with the fields cidr, blockSize, nodeSelector, namespaceSelector, ipipMode, vxlanMode, natOutgoing, disabled, disableBGPExport, allowedUses, assignmentMode",
        ),
        (
            "BGPPeer",
            "asNumber: 1",
            "error: m.yaml:5: spec.peerIP: the peer has no address; write peerIP: 192.0.2.1",
        ),
        (
            "BGPPeer",
            "localWorkloadSelector: all()",
            "error: m.yaml:5: spec.asNumber: the peer's AS number is missing; add asNumber: 64512",
        ),
        (
            "BGPPeer",
            "peerIP: tor\nasNumber: 1",
            "error: m.yaml:6: spec.peerIP: `tor` is not a peer's address; write 192.0.2.1, 192.0.2.1:1179, 2001:db8::1 or [2001:db8::1]:1179",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 0",
            "error: m.yaml:7: spec.asNumber: 0: AS number 0 is reserved (RFC 7607); use 1 to 4294967295",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 4294967296",
            "error: m.yaml:7: spec.asNumber: `4294967296` is not an AS number; write 1 to 4294967295, or high.low such as 64512.1",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\nnode: a\nnodeSelector: all()",
            "error: m.yaml:9: spec.nodeSelector: all(): spec.nodeSelector and spec.node exclude each other; remove one of them",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\nmaxPrefixes: 0",
            "error: m.yaml:8: spec.maxPrefixes: 0: is at least 1; to stop the session write shutdown: \"\"",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\ndelayOpenSeconds: 121",
            "error: m.yaml:8: spec.delayOpenSeconds: 121: is 0 to 120 seconds",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\nnumAllowedLocalASNumbers: 11",
            "error: m.yaml:8: spec.numAllowedLocalASNumbers: 11: is 0 to 10",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\nlocalRole: Transit",
            "error: m.yaml:8: spec.localRole: Transit: allowed are: Provider, RouteServer, RouteServerClient, Customer, Peer",
        ),
        (
            "BGPConfiguration",
            "listenPort: 65536",
            "error: m.yaml:6: spec.listenPort: 65536: expected a whole number from 0 to 65535",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\nmaxRestartTime: 5000s",
            "error: m.yaml:8: spec.maxRestartTime: `5000s` is no restart time; write whole seconds up to 4095s, such as 120s or 2m",
        ),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\nlongLivedRestartTime:\n  ipv4: 16777216",
            "error: m.yaml:9: spec.longLivedRestartTime.ipv4: 16777216: a long-lived stale time is 0 to 16777215 seconds",
        ),
        (
            "BGPConfiguration",
            "listenPort: 0",
            "error: m.yaml:6: spec.listenPort: 0: ports are 1 to 65535; 179 is usual",
        ),
        (
            "IPAMConfig",
            "strictAffinity: false\nautoAllocateBlocks: false",
            "error: m.yaml:7: spec.autoAllocateBlocks: false: without blocks of their own, nodes would give out each other's addresses; set it to true, or strictAffinity to true",
        ),
        (
            "IPAMConfig",
            "maxBlocksPerHost: 3",
            "error: m.yaml:6: spec.maxBlocksPerHost: 3: a limit needs strictAffinity: true",
        ),
        (
            "BGPFilter",
            "exportV4:\n- cidr: 10.0.0.0/8\n  action: Accept",
            "error: m.yaml:7: spec.exportV4[0]: cidr and matchOperator come together; add the other one",
        ),
    ] {
        let text = manifest(kind, "default", spec);
        assert_eq!(problems(&text), [expected], "{spec}");
        assert!(load_manifests(&text, "").resources.is_empty());
    }
}

/// As many as the schemas of Kubernetes allow, in files as well.
#[test]
fn lists_have_a_limit_that_is_told_with_the_remedy() {
    let list = |entry: &str, count: usize| format!("[{}]", vec![entry; count].join(", "));
    let wider = "write one shorter cidr for several";
    let rules =
        "move the last ones into another BGPFilter, and name it next in the BGPPeer's filters";
    for (kind, before, field, entry, most, remedy) in [
        ("BGPConfiguration", "", "prefixAdvertisements", "{cidr: 10.0.0.0/8}", 500, wider),
        ("BGPConfiguration", "", "serviceClusterIPs", "{cidr: 10.0.0.0/8}", 500, wider),
        ("BGPConfiguration", "", "serviceExternalIPs", "{cidr: 10.0.0.0/8}", 500, wider),
        ("BGPConfiguration", "", "serviceLoadBalancerIPs", "{cidr: 10.0.0.0/8}", 500, wider),
        (
            "BGPConfiguration",
            "",
            "communities",
            "{name: a, value: '1:2'}",
            500,
            "write the values into prefixAdvertisements, which needs no name for them",
        ),
        ("BGPConfiguration", "", "ignoredInterfaces", "a", 500, "write one pattern for several"),
        ("BGPFilter", "", "exportV4", "{action: Reject}", 500, rules),
        ("BGPFilter", "", "importV4", "{action: Reject}", 500, rules),
        ("BGPFilter", "", "exportV6", "{action: Reject}", 500, rules),
        ("BGPFilter", "", "importV6", "{action: Reject}", 500, rules),
        (
            "BGPPeer",
            "peerIP: 10.0.0.1\nasNumber: 1\n",
            "filters",
            "f",
            100,
            "write one BGPFilter for several",
        ),
    ] {
        let of = |count: usize| {
            manifest(kind, "default", &format!("{before}{field}: {}", list(entry, count)))
        };
        assert_eq!(problems(&of(most)), Vec::<String>::new(), "{field}");
        let said = problems(&of(most + 1));
        let expected =
            format!("spec.{field}: has {} entries, and {most} are the most; {remedy}", most + 1);
        assert!(said.len() == 1 && said[0].ends_with(&expected), "{said:?} is not {expected}");
        assert!(said[0].starts_with("error: "), "{said:?}");
    }
    let communities = list("'1:2'", 51);
    let spec = format!("prefixAdvertisements: [{{cidr: 10.0.0.0/8, communities: {communities}}}]");
    let said = problems(&manifest("BGPConfiguration", "default", &spec));
    let expected = "spec.prefixAdvertisements[0].communities: has 51 entries, and 50 are the most; move \
                    some into another entry for the same cidr";
    assert!(said.len() == 1 && said[0].ends_with(expected), "{said:?}");
}

#[test]
fn a_disabled_pool_may_be_smaller_than_its_blocks() {
    only(&manifest("IPPool", "p", "cidr: 10.0.0.0/28\ndisabled: true"));
}

#[test]
fn unknown_fields_are_warnings_with_a_remedy() {
    for (spec, expected) in [
        (
            "cidr: 10.0.0.0/16\nblocksize: 26",
            "warning: m.yaml:7: spec.blocksize: 26: unknown field; did you mean `blockSize`? It has no effect now",
        ),
        (
            "cidr: 10.0.0.0/16\nvlan: 5",
            "warning: m.yaml:7: spec.vlan: 5: unknown field, without effect; known here: cidr, blockSize, nodeSelector, namespaceSelector, ipipMode, vxlanMode, natOutgoing, disabled, disableBGPExport, allowedUses, assignmentMode",
        ),
    ] {
        let text = manifest("IPPool", "p", spec);
        assert_eq!(problems(&text), [expected]);
        assert_eq!(load_manifests(&text, "").resources.len(), 1);
    }
    let text =
        manifest("BGPPeer", "p", "peerIP: 10.0.0.1\nasNumber: 1\npassword:\n  secretKeyReff: {}");
    assert_eq!(
        problems(&text),
        ["warning: m.yaml:9: spec.password.secretKeyReff: unknown field; did you mean \
          `secretKeyRef`? It has no effect now"]
    );
}

#[test]
fn headers() {
    for (text, expected) in [
        (
            "kind: IPPool\nmetadata: {name: p}",
            "error: m.yaml:1: apiVersion: is missing; add apiVersion: projectcalico.org/v3",
        ),
        (
            "kind: Node\nmetadata: {name: p}",
            "error: m.yaml:1: apiVersion: is missing; add apiVersion: v1",
        ),
        (
            "apiVersion: v1\nmetadata: {name: p}",
            "error: m.yaml:1: kind: every object says what it is; add kind: IPPool or another",
        ),
        (
            "apiVersion: projectcalico.org/v2\nkind: IPPool\nmetadata: {name: p}",
            "error: m.yaml:1: apiVersion: projectcalico.org/v2: write projectcalico.org/v3 for kind IPPool",
        ),
        (
            "apiVersion: v1\nkind: IPPool\nmetadata: {name: p}",
            "error: m.yaml:1: apiVersion: v1: write projectcalico.org/v3 for kind IPPool",
        ),
        (
            "apiVersion: projectcalico.org/v3\nkind: IPPol\nmetadata: {name: p}",
            "error: m.yaml:2: kind: IPPol: did you mean IPPool?",
        ),
        (
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: App}",
            "error: m.yaml:3: metadata.name: App: a name is made of a-z, 0-9, `-` and `.`, and each part between dots starts and ends with a letter or digit",
        ),
        (
            "apiVersion: projectcalico.org/v3\nkind: IPPool",
            "error: m.yaml:1: metadata.name: an object needs a name; add metadata.name",
        ),
        (
            "- a",
            "error: m.yaml:1: a manifest is a mapping with apiVersion, kind, metadata and spec",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}",
            "note: m.yaml:2: kind: kind NetworkPolicy is not used by Twill (yet); the object is kept and has no effect",
        ),
        (
            "apiVersion: metallb.io/v1beta2\nkind: BGPPeer\nmetadata: {name: p}",
            "note: m.yaml:2: kind: kind BGPPeer is not used by Twill (yet); the object is kept and has no effect",
        ),
    ] {
        assert_eq!(problems(text), [expected], "{text}");
    }
    let loaded =
        load_manifests("apiVersion: metallb.io/v1beta2\nkind: BGPPeer\nmetadata: {name: p}", "");
    assert_eq!(loaded.resources[0].value.id().to_string(), "bgppeer.metallb.io p");
}

#[test]
fn a_broken_document_hides_no_other() {
    let good = manifest("IPPool", "good", "cidr: 10.0.0.0/16");
    let text = format!("{good}---\nspec: [1\n---\nkind: 'x\n---\n{}", good.replace("good", "too"));
    let loaded = load_manifests(&text, "m.yaml");
    let names: Vec<_> = loaded.resources.iter().map(|loc| (loc.value.name(), loc.line)).collect();
    assert_eq!(names, [("good", 1), ("too", 12)]);
    let lines: Vec<_> = loaded.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [Some(8), Some(10)], "{:#?}", loaded.problems);
}

#[test]
fn lists_and_json() {
    let item = |name| {
        format!(
            "{{\"apiVersion\": \"projectcalico.org/v3\", \"kind\": \"IPPool\",\n\t\t\"metadata\": \
             {{\"name\": \"{name}\"}},\n\t\t\"spec\": {{\"cidr\": \"10.0.0.0/16\", \"x\": 1}}}}"
        )
    };
    let text = format!(
        "{{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"List\",\n\t\"items\": [\n\t\t{},\n\t\t{}\n\t]\n}}\n",
        item("a"),
        item("b")
    );
    let loaded = load_manifests(&text, "m.json");
    let names: Vec<_> = loaded.resources.iter().map(|loc| loc.value.name()).collect();
    assert_eq!(names, ["a", "b"], "{:#?}", loaded.problems);
    let lines: Vec<_> = loaded.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [Some(7), Some(10)]);
}

#[test]
fn hostile_texts_are_problems() {
    let bomb = format!(
        "a0: &a0 [x]\n{}",
        (1..40).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}]\n", n - 1)).collect::<String>()
    );
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
        "a:\n".repeat(2),
        bomb,
        "\u{0}".to_owned(),
        "\u{feff}a: 1".to_owned(),
        "&a a: *a".to_owned(),
    ] {
        let shown: String = text.chars().take(20).collect();
        assert!(!problems(&text).is_empty(), "{shown}");
    }
    assert_eq!(problems(""), [""; 0]);
    assert_eq!(problems("# nothing\n---\n---\n# here\n"), [""; 0]);
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "[a-z:{}\\[\\] \\n\"'&*#|>%!-]{0,60}") {
        load_manifests(&text, "");
    }

    #[test]
    fn no_damage_panics(at in 0..200usize, with in proptest::prelude::any::<char>()) {
        let text = manifest("BGPPeer", "p", "peerIP: 10.0.0.1\nasNumber: 1\nfilters: [a]");
        let damaged: String = text
            .char_indices()
            .map(|(index, c)| if index == at { with } else { c })
            .collect();
        load_manifests(&damaged, "");
    }
}
