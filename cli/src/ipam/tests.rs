use clap::Parser;
use expect_test::expect;
use jiff::{Timestamp, tz::TimeZone};
use twill_k8s_api::files::{BlockFill, Lease, NodeFill, renew_lease, write_fill};
use twill_rpc::message::{
    AddressStatus, BlockStatus, Holder, IpamFound, IpamStatus, Life, PoolStatus,
};
use twill_types::AttachmentId;

use super::{
    address::report,
    map, svg,
    view::{Datastore, Own, View},
};
use crate::{Cli, tests::NOW_MS};

pub(super) fn now() -> Timestamp {
    Timestamp::from_millisecond(NOW_MS.cast_signed()).unwrap()
}

const MANIFESTS: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: app-pool}
spec: {cidr: 10.10.0.0/24, blockSize: 28}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: v6}
spec: {cidr: 'fd5f:abcd:64::/48'}
---
apiVersion: projectcalico.org/v3
kind: IPReservation
metadata: {name: printers}
spec: {reservedCIDRs: [10.10.0.128/27, 10.10.0.130/32, 10.10.0.31/32]}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
---
apiVersion: v1
kind: Node
metadata: {name: node2}
";

fn claim(block: &str, node: &str, pool: &str, more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {{name: {}, uid: u, \
         creationTimestamp: '2026-11-24T11:00:00Z'}}\nspec: {{state: confirmed, node: {node}, \
         cidr: '{block}', pool: {pool}{more}}}\n",
        block.parse::<twill_types::Block>().unwrap().claim_name()
    )
}

/// A datastore of two nodes, and of one that is gone.
fn datastore() -> Datastore {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("all.yaml"), MANIFESTS).unwrap();
    std::fs::create_dir(root.path().join("claims")).unwrap();
    let lent = ", delegations: [{cidr: 10.10.0.24/29, node: node2, request: r}]";
    for (block, node, pool, more) in [
        ("10.10.0.0/28", "node1", "app-pool", ""),
        ("10.10.0.16/28", "node1", "app-pool", lent),
        ("10.10.0.32/28", "node2", "app-pool", ""),
        ("10.10.0.48/28", "node2", "app-pool", ""),
        ("10.10.0.240/28", "node9", "app-pool", ""),
        ("10.99.0.0/26", "node2", "gone", ""),
        ("fd5f:abcd:64:aaaa::/122", "node2", "v6", ""),
    ] {
        let name = block.parse::<twill_types::Block>().unwrap().claim_name();
        let text = claim(block, node, pool, more);
        std::fs::write(root.path().join(format!("claims/{name}.yaml")), text).unwrap();
    }
    let fill = |block: &str, size: u32, used: u32, cooling: u32| BlockFill {
        block: block.parse().unwrap(),
        pool: "app-pool".into(),
        size,
        used,
        free: size - used - cooling,
        cooling,
        reserved: 0,
        lent: 0,
        dedication: None,
    };
    for (node, blocks) in [
        ("node1", vec![fill("10.10.0.0/28", 16, 1, 0)]),
        (
            "node2",
            vec![
                fill("10.10.0.24/29", 8, 2, 0),
                fill("10.10.0.32/28", 16, 16, 0),
                fill("10.10.0.48/28", 16, 9, 3),
                fill("fd5f:abcd:64:aaaa::/122", 64, 40, 0),
            ],
        ),
        ("node9", vec![fill("10.10.0.240/28", 16, 4, 0)]),
    ] {
        let since = "2026-11-24T11:55:00Z".to_owned();
        write_fill(root.path(), &NodeFill { node: node.into(), since, blocks }).unwrap();
    }
    Datastore::read(root.path()).unwrap()
}

fn own() -> Own {
    let block = |block: &str, used, lent| BlockStatus {
        block: block.parse().unwrap(),
        pool: "app-pool".into(),
        used,
        free: 16 - used - lent,
        cooling: 0,
        reserved: 0,
        lent,
        assignable: lent == 0,
        dedication: None,
    };
    let pool = |name: &str, cidr: &str, eligible| PoolStatus {
        name: name.into(),
        cidr: cidr.parse().unwrap(),
        eligible,
    };
    Own {
        node: "node1".into(),
        status: IpamStatus {
            pools: vec![
                pool("app-pool", "10.10.0.0/24", Ok(())),
                pool("v6", "fd5f:abcd:64::/48", Err("it is disabled".into())),
            ],
            blocks: vec![block("10.10.0.0/28", 7, 0), block("10.10.0.16/28", 5, 8)],
            claims: Vec::new(),
        },
    }
}

pub(super) fn view() -> View {
    View::new(&datastore(), Some(&own()))
}

#[test]
fn a_pools_numbers_make_up_its_size() {
    let view = view();
    let pool = &view.pools[0];
    let unknown: u128 = view
        .blocks
        .iter()
        .filter(|b| b.pool == pool.name && b.numbers.is_none())
        .map(|b| u128::from(b.size))
        .sum();
    assert_eq!(unknown, 16, "the block of the node that is gone");
    let sum = pool.used + pool.free + pool.cooling + pool.reserved + unknown;
    assert_eq!(sum, pool.total, "{pool:?}");
}

#[test]
fn what_the_daemon_says_of_its_own_comes_before_what_it_told() {
    let (fresh, told) = (view(), View::new(&datastore(), None));
    let used = |view: &View| view.blocks[0].numbers.unwrap().used;
    assert_eq!((used(&fresh), used(&told)), (7, 1));
    assert!(told.pools.iter().all(|pool| pool.eligible.is_none()));
}

#[test]
fn every_form_of_the_view_can_be_written() {
    let view = view();
    // By way of the text: a value holds no number as large as an IPv6 pool.
    let json: serde_json::Value =
        serde_json::from_str(&serde_json::to_string(&view).unwrap()).unwrap();
    assert_eq!(json["blocks"][0]["used"], 7, "{json}");
    assert_eq!(json["pools"][0]["eligible"]["Ok"], serde_json::Value::Null);
    let yaml = serde_saphyr::to_string(&view).unwrap();
    assert!(yaml.contains("cidr: 10.10.0.0/24"), "{yaml}");
    serde_saphyr::to_string(&map::grids(&view, &datastore())).unwrap();
}

#[test]
fn maps_for_a_terminal() {
    let grids = map::grids(&view(), &datastore());
    expect![[r#"
        app-pool 10.10.0.0/24: 5 of 16 blocks of /28 are claimed
        10.10.0.0       a4 +4 b* b6 .. .. .. .. -- -- .. .. .. .. .. c?
        a node1: 2 blocks
        b node2: 2 blocks
        c node9: 1 block
        0 to 9: tenths in use, *: full, ?: not known; +: of several nodes, ..: free, --: reserved
    "#]]
    .assert_eq(&map::draw(&grids[0], 80, false));
    expect![[r#"
        app-pool 10.10.0.0/24: 5 of 16 blocks of /28 are claimed
        10.10.0.0       a4 +4 b* b6 .. .. .. ..
        10.10.0.128     -- -- .. .. .. .. .. c?
        a node1: 2 blocks
        b node2: 2 blocks
        c node9: 1 block
        0 to 9: tenths in use, *: full, ?: not known; +: of several nodes, ..: free, --: reserved
    "#]]
    .assert_eq(&map::draw(&grids[0], 40, false));
    expect![[r#"
        v6 fd5f:abcd:64::/48: 1 of 1.8889e+22 blocks of /122 are claimed; each cell is a /58 with 1.8447e+19 of them
          (42 rows that are free)
        fd5f:abcd:64:a800::       .. .. .. .. .. .. .. .. .. .. a1 .. .. .. .. ..
          (21 rows that are free)
        a node2: 1 block
        0 to 9: tenths in use, *: full, ?: not known; +: of several nodes, ..: free, --: reserved
    "#]].assert_eq(&map::draw(&grids[1], 120, false));
    let colored = map::draw(&grids[0], 80, true);
    assert!(colored.contains("\x1b[30;48;5;203mb*\x1b[0m"), "{colored:?}");
}

#[test]
fn a_map_as_a_picture() {
    let picture = svg::draw(&map::grids(&view(), &datastore())[..1]);
    expect![[r##"
        <svg xmlns="http://www.w3.org/2000/svg" width="850" height="172" font-family="sans-serif" font-size="12">
        <rect width="100%" height="100%" fill="#ffffff"/>
        <text x="20" y="36" font-size="14" font-weight="bold">app-pool 10.10.0.0/24: 5 of 16 blocks of /28 are claimed</text>
        <text x="182" y="64" text-anchor="end" font-family="monospace" font-size="11">10.10.0.0</text>
        <g><title>10.10.0.0/28: node1, 7 of 16 in use</title><rect x="190" y="50" width="18" height="18" fill="#d6e6f2"/><rect x="190" y="61" width="18" height="7" fill="#d9822b"/><text x="199" y="63" text-anchor="middle">a</text></g>
        <g><title>10.10.0.16/28: node1, node2, 7 of 16 in use</title><rect x="210" y="50" width="18" height="18" fill="#d6e6f2"/><rect x="210" y="61" width="18" height="7" fill="#d9822b"/><text x="219" y="63" text-anchor="middle">+</text></g>
        <g><title>10.10.0.32/28: node2, 16 of 16 in use</title><rect x="230" y="50" width="18" height="18" fill="#d6e6f2"/><rect x="230" y="50" width="18" height="18" fill="#d9822b"/><text x="239" y="63" text-anchor="middle">b</text></g>
        <g><title>10.10.0.48/28: node2, 9 of 16 in use</title><rect x="250" y="50" width="18" height="18" fill="#d6e6f2"/><rect x="250" y="58" width="18" height="10" fill="#d9822b"/><text x="259" y="63" text-anchor="middle">b</text></g>
        <rect x="270" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.64/28: free</title></rect>
        <rect x="290" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.80/28: free</title></rect>
        <rect x="310" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.96/28: free</title></rect>
        <rect x="330" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.112/28: free</title></rect>
        <g><title>10.10.0.128/28: reserved</title><rect x="350" y="50" width="18" height="18" fill="#b9c4cc"/><rect x="350" y="68" width="18" height="0" fill="#d9822b"/><text x="359" y="63" text-anchor="middle">-</text></g>
        <g><title>10.10.0.144/28: reserved</title><rect x="370" y="50" width="18" height="18" fill="#b9c4cc"/><rect x="370" y="68" width="18" height="0" fill="#d9822b"/><text x="379" y="63" text-anchor="middle">-</text></g>
        <rect x="390" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.160/28: free</title></rect>
        <rect x="410" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.176/28: free</title></rect>
        <rect x="430" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.192/28: free</title></rect>
        <rect x="450" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.208/28: free</title></rect>
        <rect x="470" y="50" width="18" height="18" fill="#f2f4f5"><title>10.10.0.224/28: free</title></rect>
        <g><title>10.10.0.240/28: node9, not known how full</title><rect x="490" y="50" width="18" height="18" fill="#d6e6f2"/><rect x="490" y="68" width="18" height="0" fill="#d9822b"/><text x="499" y="63" text-anchor="middle">?</text></g>
        <text x="190" y="94" fill="#555555">filled: in use; ?: not known how full; +: of several nodes; grey: reserved</text>
        <text x="190" y="110"><tspan font-weight="bold">a</tspan> node1: 2 blocks</text>
        <text x="190" y="126"><tspan font-weight="bold">b</tspan> node2: 2 blocks</text>
        <text x="190" y="142"><tspan font-weight="bold">c</tspan> node9: 1 block</text>
        </svg>
    "##]].assert_eq(&picture);
}

#[test]
fn all_there_is_to_say_of_an_address() {
    let all = datastore();
    let found = |status: AddressStatus, holder| {
        Some(("node1".to_owned(), IpamFound { address: Some(status), holder }))
    };
    let status = |block: &str| AddressStatus {
        block: Some(block.parse().unwrap()),
        dedication: None,
        held: false,
        resting: None,
        reserved: None,
        lent: None,
    };
    let none = || Some(("node1".to_owned(), IpamFound::default()));
    let holder = Holder {
        attachment: AttachmentId {
            network: "pods".into(),
            container_id: "0123abcd".into(),
            ifname: "eth0".into(),
        },
        addresses: vec!["10.10.0.3".parse().unwrap(), "fd00::3".parse().unwrap()],
        sequence: 12,
        pod: Some("prod/web".into()),
        netns: "/run/netns/a".into(),
        foreign: false,
        created_ms: NOW_MS - 312_000,
        life: Life::Lives,
    };
    let own = "10.10.0.0/28";
    let text: String = [
        ("10.10.0.3", found(status(own), Some(holder))),
        ("10.10.0.4", found(AddressStatus { resting: Some(20), ..status(own) }, None)),
        ("10.10.0.5", found(AddressStatus { held: true, ..status(own) }, None)),
        ("10.10.0.6", found(status(own), None)),
        ("10.10.0.25", none()),
        ("10.10.0.40", none()),
        ("10.10.0.31", none()),
        ("10.10.0.200", none()),
        ("192.0.2.1", none()),
        ("10.10.0.6", None),
    ]
    .map(|(address, told)| report(&all, address.parse().unwrap(), told).text(now(), &TimeZone::UTC))
    .concat();
    expect![[r#"
        10.10.0.3 is in use
          pool        app-pool (10.10.0.0/24)
          block       10.10.0.0/28 of node node1
          attachment  pods/0123abcd/eth0
          pod         prod/web
          also        fd00::3
          sequence    12
          since       2026-11-24 11:54:48 (5m12s ago)
          namespace   /run/netns/a
          made by     twill
          lives       yes
        10.10.0.4 is at rest after use, for another 20 s
          pool        app-pool (10.10.0.0/24)
          block       10.10.0.0/28 of node node1
        10.10.0.5 is about to be free: its link is not gone yet
          pool        app-pool (10.10.0.0/24)
          block       10.10.0.0/28 of node node1
        10.10.0.6 is free
          pool        app-pool (10.10.0.0/24)
          block       10.10.0.0/28 of node node1
        10.10.0.25 is known to node node2 alone: ask there
          pool        app-pool (10.10.0.0/24)
          block       10.10.0.24/29 of node node2
        10.10.0.40 is known to node node2 alone: ask there
          pool        app-pool (10.10.0.0/24)
          block       10.10.0.32/28 of node node2
        10.10.0.31 is reserved: nobody gets it
          pool        app-pool (10.10.0.0/24)
          block       10.10.0.24/29 of node node2
          reserved by IPReservation printers (10.10.0.31/32)
        10.10.0.200 is free, and in no node's block
          pool        app-pool (10.10.0.0/24)
        192.0.2.1 is in no pool
        10.10.0.6 is known to node node1 alone: ask there
          pool        app-pool (10.10.0.0/24)
          block       10.10.0.0/28 of node node1
    "#]]
    .assert_eq(&text);
}

/// Runs against a directory, without a daemon.
fn ctl(directory: &std::path::Path, arguments: &[&str]) -> (bool, String, String) {
    let directory = directory.to_str().unwrap();
    let all = [&["twillctl", "--resources", directory, "--socket", "/nonexistent/s"], arguments];
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let done = crate::run(&Cli::try_parse_from(all.concat()).unwrap(), &mut out, &mut err);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let error = done.as_ref().err().map_or(String::new(), |error| format!("{error:#}"));
    (done.is_ok(), text(out), text(err) + &error)
}

#[test]
fn the_configuration_is_made_changed_and_shown() {
    let root = tempfile::tempdir().unwrap();
    let configure = |more: &[&str]| ctl(root.path(), &[&["ipam", "configure"], more].concat());
    let (ok, out, err) = configure(&["--strict-affinity=true", "--max-blocks-per-host=20"]);
    assert!(ok, "{err}");
    expect![[r#"
        IPAMConfiguration/default created
        +--------------------+-------+
        |      PROPERTY      | VALUE |
        +--------------------+-------+
        | StrictAffinity     |  true |
        | AutoAllocateBlocks |  true |
        | MaxBlocksPerHost   |    20 |
        | IPCooldownSeconds  |     0 |
        +--------------------+-------+
    "#]]
    .assert_eq(&out);
    let file = root.path().join("ipamconfig.default.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("# ours\n{}", text.replace("20\n", "20 # enough\n"))).unwrap();
    let (ok, out, err) = configure(&["--max-blocks-per-host=4", "--ip-cooldown-seconds=30"]);
    assert!(ok && out.contains("configured"), "{out} {err}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("# ours") && text.contains("maxBlocksPerHost: 4 # enough"), "{text}");
    assert!(configure(&["--max-blocks-per-host=4"]).1.contains("unchanged"));
    let (_, shown, _) = ctl(root.path(), &["ipam", "show", "--configuration", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["maxBlocksPerHost"], &shown["ipCooldownSeconds"]), (&4.into(), &30.into()));

    // A limit needs strict affinity: nothing is written.
    let (ok, _, err) = configure(&["--strict-affinity=false"]);
    assert!(!ok && err.contains("spec.maxBlocksPerHost") && err.contains("nothing"), "{err}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    // In another way of writing.
    let flow = "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\nmetadata: {name: \
                default}\nspec: {strictAffinity: true}\n";
    std::fs::write(&file, flow).unwrap();
    let (ok, out, err) = configure(&["--ip-cooldown-seconds=7"]);
    assert!(ok && out.contains("configured"), "{out} {err}");
    let (_, shown, _) = ctl(root.path(), &["ipam", "show", "--configuration", "-o", "json"]);
    assert!(
        shown.contains("\"ipCooldownSeconds\": 7") && shown.contains("\"strictAffinity\": true")
    );
    let (ok, _, err) = configure(&["--ip-cooldown-seconds=7000"]);
    assert!(!ok && err.contains("1200"), "{err}");
}

#[test]
fn without_a_daemon_the_datastore_tells() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("all.yaml"), MANIFESTS).unwrap();
    let (ok, out, err) = ctl(root.path(), &["ipam", "show"]);
    assert!(ok && out.contains("10.10.0.0/24") && err.contains("/nonexistent/s"), "{out} {err}");
    let (ok, out, _) = ctl(root.path(), &["ipam", "check", "--datastore-only"]);
    assert!(ok && out.contains("Nothing is wrong"), "{out}");
    // Half a check is none.
    let (ok, _, err) = ctl(root.path(), &["ipam", "check"]);
    assert!(!ok && err.contains("--datastore-only"), "{err}");
    std::fs::create_dir(root.path().join("claims")).unwrap();
    let text = claim("10.10.0.0/28", "node9", "app-pool", "");
    std::fs::write(root.path().join("claims/0a0a0000-28.yaml"), text).unwrap();
    let file = root.path().join("report");
    let report = file.to_str().unwrap();
    let arguments = ["ipam", "check", "--datastore-only", "--report", report];
    let (ok, out, err) = ctl(root.path(), &arguments);
    assert!(!ok && out.contains("claimWithoutNode on node9"), "{out} {err}");
    assert!(std::fs::read_to_string(&file).unwrap().contains("\"claimWithoutNode\": 1"));
    // A daemon that never had a Node does without one.
    let lease = |had_node| Lease {
        node: "node9".into(),
        instance: "1".into(),
        seconds: 60,
        had_node,
        renewed: "2026-11-26T04:00:00Z".into(),
    };
    std::fs::create_dir(root.path().join("leases")).unwrap();
    renew_lease(root.path(), lease(false)).unwrap();
    let (ok, out, err) = ctl(root.path(), &arguments);
    assert!(
        !ok && out.contains("missingNumbers on node9") && !out.contains("without"),
        "{out} {err}"
    );
    renew_lease(root.path(), lease(true)).unwrap();
    std::fs::create_dir(root.path().join("requests")).unwrap();
    std::fs::write(root.path().join("requests/0a0a0000-28.node1.yaml"), "?").unwrap();
    let (_, out, _) = ctl(root.path(), &arguments);
    for line in ["claimWithoutNode on node9", "damagedRequest: request 0a0a0000-28.node1 "] {
        assert!(out.contains(line), "{out}");
    }
}

#[test]
fn wrong_usage_is_told() {
    for arguments in [
        &["ipam", "release"][..],
        &["ipam", "release", "--ip", "10.0.0.1", "--handle", "a/b/c"],
        &["ipam", "release", "--handle", "a/b"],
        &["ipam", "configure"],
        &["ipam", "configure", "--strict-affinity=maybe"],
        &["ipam", "show", "--svg", "x"],
        &["ipam", "show", "--ip", "10.0.0.1", "--map"],
        &["ipam", "check", "--fix", "--datastore-only"],
    ] {
        let all = [&["twillctl"], arguments].concat();
        assert_eq!(Cli::try_parse_from(all).unwrap_err().exit_code(), 2, "{arguments:?}");
    }
}
