//! What is read of a host.

use std::{collections::BTreeSet, process::Command};

use twill_dataplane::host::{DroppingChain, Uplink, dropping_chains, has_old_tables, look};
use twill_types::Family;

use crate::common::*;

fn shell(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The chains that stop pods, without what the test found by itself.
fn names(chains: &[DroppingChain]) -> Vec<String> {
    let name = |c: &DroppingChain| format!("{} {} {}", c.family, c.table, c.chain);
    chains.iter().map(name).collect()
}

#[test]
fn a_chain_that_drops_is_found_until_pods_pass() {
    on_a_node(|| {
        assert_eq!(dropping_chains().unwrap(), []);
        for (table, chain) in [("inet", "forward"), ("ip6", "forward"), ("inet", "input")] {
            shell(&format!("nft add table {table} guard"));
            let policy = if chain == "forward" { "drop" } else { "accept" };
            shell(&format!(
                "nft 'add chain {table} guard {chain} {{ type filter hook {chain} priority 5; \
                 policy {policy}; }}'"
            ));
            shell(&format!("nft add rule {table} guard {chain} ct state established accept"));
            // Names that only begin like ours, and rules that accept a part.
            shell(&format!("nft add rule {table} guard {chain} iifname '\"twlan*\"' accept"));
            shell(&format!(
                "nft add rule {table} guard {chain} iifname '\"twl*\"' oifname eth0 accept"
            ));
            shell(&format!("nft add rule {table} guard {chain} iifname '\"twl*\"' counter drop"));
        }
        let found = dropping_chains().unwrap();
        assert_eq!(names(&found), ["inet guard forward", "ip6 guard forward"]);
        assert!(found[0].concerns(Family::V4) && found[0].concerns(Family::V6));
        assert!(!found[1].concerns(Family::V4));
        for chain in &found {
            assert!(chain.from_pods && chain.to_pods);
            shell(&chain.remedy());
        }
        assert_eq!(dropping_chains().unwrap(), []);
        // One direction is half of it.
        shell("nft flush chain inet guard forward");
        shell("nft add rule inet guard forward oifname '\"twl*\"' counter accept");
        let found = dropping_chains().unwrap();
        assert!(found[0].from_pods && !found[0].to_pods);
        assert_eq!(
            found[0].remedy(),
            "nft insert rule inet guard forward iifname '\"twl*\"' accept"
        );
        shell("nft add rule inet guard forward counter accept");
        assert_eq!(dropping_chains().unwrap(), []);
    });
}

#[test]
fn the_tables_of_iptables_are_mended_by_iptables() {
    on_a_node(|| {
        for (tool, family) in [("iptables-nft", "ip"), ("ip6tables-nft", "ip6")] {
            shell(&format!("{tool} -P FORWARD DROP"));
            shell(&format!("{tool} -A FORWARD -i docker0 -j ACCEPT"));
            let found = dropping_chains().unwrap();
            assert_eq!(names(&found), [format!("{family} filter FORWARD")]);
            let remedy = found[0].remedy();
            assert!(remedy.starts_with(tool.trim_end_matches("-nft")), "{remedy}");
            // Whichever kind of iptables the machine prefers.
            shell(&remedy.replace("tables ", "tables-nft "));
            assert_eq!(dropping_chains().unwrap(), []);
        }
    });
}

#[test]
fn the_tables_of_the_old_iptables_are_read_too() {
    on_a_node(|| {
        assert_eq!(dropping_chains().unwrap(), []);
        // Asking has made none.
        let tables = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap();
        assert_eq!(tables, "");
        assert!(!has_old_tables());
        for tool in ["iptables-legacy", "ip6tables-legacy"] {
            shell(&format!("{tool} -P FORWARD DROP"));
            for rule in [
                "-i twl+ -p tcp -j ACCEPT",
                "-i twl+ -m state --state ESTABLISHED -j ACCEPT",
                "-i twl+ -o eth0 -j ACCEPT",
                "-i twlan0 -j ACCEPT",
                "! -i twl+ -j ACCEPT",
                "-o twl+ -j DROP",
                "-o twl+",
            ] {
                shell(&format!("{tool} -A FORWARD {rule}"));
            }
            assert!(has_old_tables());
            let found = dropping_chains().unwrap();
            assert_eq!(names(&found), [format!("{tool} filter FORWARD")]);
            assert!(found[0].from_pods && found[0].to_pods, "{found:?}");
            assert_eq!(found[0].concerns(Family::V4), tool == "iptables-legacy");
            shell(&found[0].remedy());
            assert_eq!(dropping_chains().unwrap(), []);
            shell(&format!("{tool} -D FORWARD -o twl+ -j ACCEPT"));
            let found = dropping_chains().unwrap();
            assert!(!found[0].from_pods && found[0].to_pods, "{found:?}");
            shell(&format!("{tool} -P FORWARD ACCEPT"));
            assert_eq!(dropping_chains().unwrap(), []);
        }
    });
}

#[test]
fn the_settings_of_a_host_are_read() {
    on_a_node(|| {
        uplink();
        set_sysctl("ipv4/ip_forward", "0");
        set_sysctl("ipv6/conf/all/forwarding", "0");
        set_sysctl("ipv4/conf/all/rp_filter", "0");
        set_sysctl("ipv4/conf/uplink/rp_filter", "1");
        let index = std::fs::read_to_string("/proc/thread-self/net/igmp").unwrap();
        let index = index.lines().find(|line| line.contains("uplink")).unwrap();
        let index: u32 = index.split_whitespace().next().unwrap().parse().unwrap();
        let (here, gone) = ("192.168.2.11".parse().unwrap(), "192.168.2.12".parse().unwrap());
        let uplinks = BTreeSet::from([index, 4711]);
        let facts = look(&uplinks, &[here, gone]).unwrap();
        assert_eq!(facts.forwards, []);
        assert_eq!(facts.source_check, 0);
        let strict = |strict_source_check| {
            vec![Uplink { name: "uplink".to_owned(), mtu: 1500, strict_source_check }]
        };
        assert_eq!(facts.uplinks, strict(true));
        assert_eq!(facts.addresses, [here]);
        assert!(facts.nexthop_objects && facts.has_ipv6);
        ensure_forwarding();
        set_sysctl("ipv4/conf/all/rp_filter", "2");
        ip("link set uplink down");
        let facts = look(&uplinks, &[here]).unwrap();
        assert_eq!(facts.forwards, [Family::V4, Family::V6]);
        assert_eq!((facts.source_check, facts.uplinks), (2, strict(false)));
        assert_eq!(facts.addresses, [] as [std::net::IpAddr; 0]);
    });
}
