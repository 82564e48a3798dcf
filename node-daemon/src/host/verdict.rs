//! What the facts of a host mean for pods.

use std::{collections::BTreeSet, net::IpAddr};

use twill_dataplane::host::{DroppingChain, HostFacts, is_strict};
use twill_rpc::message::{HostCheck, HostOutcome};
use twill_types::Family;

pub(super) const NAT_OUTGOING: &str = "nat-outgoing";

/// What was found.
pub(super) struct Facts {
    /// Those of the pools and of the node's addresses.
    pub(super) families: BTreeSet<Family>,
    pub(super) host: Result<HostFacts, String>,
    /// The node's, as its Node says.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) chains: Result<Vec<DroppingChain>, String>,
    /// What new pods get.
    pub(super) mtu: u32,
    /// The links of pods, if they were looked at.
    pub(super) pods: Option<Vec<PodLink>>,
    pub(super) nat_problems: Vec<String>,
}

/// A pod's link on the node.
pub(super) struct PodLink {
    pub(super) name: String,
    pub(super) mtu: u32,
    /// Its `rp_filter`.
    pub(super) source_check: u32,
}

/// All checks, in the order in which people should read them.
pub(super) fn verdict(facts: &Facts) -> Vec<HostCheck> {
    let mut checks = Vec::new();
    match &facts.host {
        Ok(host) => {
            checks.push(addresses(&facts.addresses, host));
            checks.push(forwarding(&facts.families, host));
            checks.push(source_check(host));
            checks.extend(facts.pods.as_deref().map(|links| pods_source_check(host, links)));
            checks.push(uplinks(host));
            checks.push(nexthop_objects(host));
        }
        Err(error) => checks.push(failed(
            "settings",
            format!("the kernel's settings cannot be read: {error}"),
            "",
        )),
    }
    checks.push(forward_policy(&facts.families, &facts.chains));
    checks.push(match facts.nat_problems.first() {
        None => ok(NAT_OUTGOING, "natOutgoing is as the pools say"),
        Some(problem) => failed(NAT_OUTGOING, problem.clone(), ""),
    });
    checks.extend(facts.pods.as_deref().map(|links| mtu(links, facts.mtu)));
    checks
}

fn check(
    name: &str,
    outcome: HostOutcome,
    detail: impl Into<String>,
    remedy: impl Into<String>,
) -> HostCheck {
    HostCheck { name: name.to_owned(), outcome, detail: detail.into(), remedy: remedy.into() }
}

fn ok(name: &str, detail: impl Into<String>) -> HostCheck {
    check(name, HostOutcome::Ok, detail, "")
}

fn warning(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> HostCheck {
    check(name, HostOutcome::Warning, detail, remedy)
}

fn failed(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> HostCheck {
    check(name, HostOutcome::Failed, detail, remedy)
}

fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn addresses(wanted: &[IpAddr], host: &HostFacts) -> HostCheck {
    const NAME: &str = "node-address";
    const ANNOTATION: &str = "projectcalico.org/IPv4Address or IPv6Address";
    let missing: Vec<_> = wanted.iter().filter(|ip| !host.addresses.contains(ip)).collect();
    match (wanted, &*missing) {
        ([], _) => failed(
            NAME,
            "the Node has no address, so there is neither a session nor a source for learned routes",
            format!("give it one by the annotation {ANNOTATION}"),
        ),
        (_, []) => ok(NAME, format!("{} on a link that is up", join(wanted))),
        (_, missing) => failed(
            NAME,
            format!("no link that is up has {}, which the Node says is this node's", join(missing)),
            format!("add the address to a link, or correct the annotation {ANNOTATION}"),
        ),
    }
}

fn forwarding(families: &BTreeSet<Family>, host: &HostFacts) -> HostCheck {
    const NAME: &str = "forwarding";
    // Where there is no IPv6, there is no such setting either, and no pod that would need it.
    let (run, other): (Vec<Family>, Vec<Family>) =
        families.iter().partition(|family| **family == Family::V4 || host.has_ipv6);
    let missing = run.iter().filter(|family| !host.forwards.contains(family));
    let missing: Vec<&str> = missing
        .map(|family| match family {
            Family::V4 => "net.ipv4.ip_forward",
            Family::V6 => "net.ipv6.conf.all.forwarding",
        })
        .collect();
    match &*missing {
        [] => {
            let mut detail = Vec::new();
            if !run.is_empty() || other.is_empty() {
                detail.push(format!("packets of {} are forwarded", join(run)));
            }
            detail.extend(other.iter().map(|family| format!("the kernel runs without {family}")));
            ok(NAME, detail.join("; "))
        }
        missing => failed(
            NAME,
            format!("{} is 0, so no packet gets from or to a pod", missing.join(" and ")),
            "set it to 1, and look what sets it to 0 (/etc/sysctl.d); twilld sets it when it can",
        ),
    }
}

fn source_check(host: &HostFacts) -> HostCheck {
    const NAME: &str = "pod-source-check";
    let all = host.source_check;
    if is_spoiled(host) {
        return failed(
            NAME,
            format!(
                "net.ipv4.conf.all.rp_filter is {all}, which weakens the 1 of each pod's link: a pod can \
                 send with the addresses of others"
            ),
            "set it to 0, and to 2 only the links that need it (net.ipv4.conf.<link>.rp_filter)",
        );
    }
    ok(NAME, format!("net.ipv4.conf.all.rp_filter is {all}, which weakens no link's check"))
}

/// Whether not even a link that is strict checks any sources.
fn is_spoiled(host: &HostFacts) -> bool {
    const STRICT: u32 = 1;
    !is_strict(host.source_check, STRICT)
}

fn pods_source_check(host: &HostFacts, pods: &[PodLink]) -> HostCheck {
    const NAME: &str = "pod-link-source-check";
    // What the setting of all spoils is told by itself.
    let all = if is_spoiled(host) { 0 } else { host.source_check };
    let mut unchecked = pods.iter().filter(|pod| !is_strict(all, pod.source_check));
    match (unchecked.next(), unchecked.count()) {
        (None, _) => ok(NAME, "no pod's link lets other IPv4 addresses through by its own setting"),
        (Some(pod), more) => failed(
            NAME,
            format!(
                "rp_filter is {} on the pod's link {}{}: the pod can send with the addresses of others",
                pod.source_check,
                pod.name,
                if more == 0 { String::new() } else { format!(", and on {more} more is not 1") }
            ),
            "set net.ipv4.conf.<link>.rp_filter to 1, and look what writes another value; twilld sets \
             it when it can",
        ),
    }
}

fn uplinks(host: &HostFacts) -> HostCheck {
    const NAME: &str = "uplink-source-check";
    let strict = host.uplinks.iter().filter(|link| link.strict_source_check);
    let strict: Vec<&str> = strict.map(|link| link.name.as_str()).collect();
    match (&*strict, host.uplinks.len()) {
        ([], _) | (_, 0 | 1) => ok(NAME, "answers may come in by another link than they left by"),
        (strict, count) => warning(
            NAME,
            format!(
                "rp_filter is strict on {}, one of {count} uplinks: what comes in there is dropped \
                 when the single route back leads out of another",
                join(strict)
            ),
            "set net.ipv4.conf.<link>.rp_filter to 2 there, and net.ipv4.conf.all.rp_filter to 0",
        ),
    }
}

fn nexthop_objects(host: &HostFacts) -> HostCheck {
    const NAME: &str = "nexthop-objects";
    match host.nexthop_objects {
        true => ok(NAME, "the kernel has nexthop objects"),
        false => warning(
            NAME,
            "the kernel has no nexthop objects: a failover is a message for each route",
            "use Linux 5.3 or later, or set fib.nexthopObjects: off in twilld.yaml",
        ),
    }
}

fn forward_policy(
    families: &BTreeSet<Family>,
    chains: &Result<Vec<DroppingChain>, String>,
) -> HostCheck {
    const NAME: &str = "forward-policy";
    let chains = match chains {
        Ok(chains) => chains,
        // Without nf_tables in the kernel nothing can be dropped by it.
        Err(error) => {
            return warning(NAME, format!("the packet filter cannot be read: {error}"), "");
        }
    };
    let concerned: Vec<&DroppingChain> = chains
        .iter()
        .filter(|chain| families.iter().any(|family| chain.concerns(*family)))
        .collect();
    if concerned.is_empty() {
        return ok(NAME, "no chain of nftables drops what pods send or get by its policy");
    }
    let whose = concerned.iter().map(|chain| {
        let what = match (chain.from_pods, chain.to_pods) {
            (true, true) => "sent or got by pods",
            (true, false) => "sent by pods",
            (false, _) => "sent to pods",
        };
        format!(
            "chain {} of table {} {} drops what is {what}",
            chain.chain, chain.family, chain.table
        )
    });
    let detail = format!("{}: its policy is drop, and no rule accepts pods' links", join(whose));
    let remedies: Vec<String> = concerned.iter().map(|chain| chain.remedy()).collect();
    failed(NAME, detail, format!("where that table is configured, or now: {}", remedies.join("; ")))
}

fn mtu(links: &[PodLink], uplink: u32) -> HostCheck {
    const NAME: &str = "mtu";
    let larger = links.iter().filter(|link| link.mtu > uplink).count();
    match larger {
        0 => ok(NAME, format!("pods' links have at most the uplink's MTU of {uplink}")),
        count => warning(
            NAME,
            format!(
                "{count} of {} pods' links have an MTU above the uplink's {uplink}: their larger \
                 packets do not leave the node",
                links.len()
            ),
            "restart these pods, or give the uplink its MTU back",
        ),
    }
}

#[cfg(test)]
mod tests {
    use twill_dataplane::host::Uplink;

    use super::*;

    fn healthy() -> Facts {
        let address: IpAddr = "192.168.2.11".parse().unwrap();
        let uplink =
            |name: &str| Uplink { name: name.to_owned(), mtu: 1500, strict_source_check: false };
        Facts {
            families: [Family::V4, Family::V6].into(),
            host: Ok(HostFacts {
                forwards: vec![Family::V4, Family::V6],
                has_ipv6: true,
                source_check: 0,
                uplinks: vec![uplink("eth0"), uplink("eth1")],
                addresses: vec![address],
                nexthop_objects: true,
            }),
            addresses: vec![address],
            chains: Ok(Vec::new()),
            mtu: 1500,
            pods: Some(vec![PodLink { name: "twl0".to_owned(), mtu: 1500, source_check: 1 }]),
            nat_problems: Vec::new(),
        }
    }

    /// What is not well, each as `outcome name: detail`.
    fn found(change: impl FnOnce(&mut Facts)) -> Vec<String> {
        let mut facts = healthy();
        change(&mut facts);
        let bad = verdict(&facts).into_iter().filter(|check| check.outcome != HostOutcome::Ok);
        bad.map(|check| format!("{:?} {}: {}", check.outcome, check.name, check.detail)).collect()
    }

    fn one(change: impl FnOnce(&mut Facts), needles: [&str; 2]) {
        let found = found(change);
        assert_eq!(found.len(), 1, "{found:?}");
        for needle in needles {
            assert!(found[0].contains(needle), "no {needle:?} in {found:?}");
        }
    }

    fn host(facts: &mut Facts) -> &mut HostFacts {
        facts.host.as_mut().unwrap()
    }

    #[test]
    fn a_healthy_host_has_nothing_to_tell() {
        assert_eq!(found(|_| {}), [""; 0]);
        // Nothing of a family that nobody uses.
        let v4 = |facts: &mut Facts| {
            facts.families.remove(&Family::V6);
            host(facts).forwards.pop();
            let table = || "filter".to_owned();
            facts.chains = Ok(vec![DroppingChain {
                family: "ip6",
                table: table(),
                chain: table(),
                from_pods: true,
                to_pods: true,
            }]);
        };
        assert_eq!(found(v4), [""; 0]);
        // One uplink may be as strict as it likes.
        let strict = |facts: &mut Facts| {
            let host = host(facts);
            host.uplinks.pop();
            host.uplinks[0].strict_source_check = true;
        };
        assert_eq!(found(strict), [""; 0]);
    }

    #[test]
    fn each_thing_that_is_wrong_is_told_by_itself() {
        one(|f| host(f).forwards.clear(), ["Failed forwarding", "ip_forward and net.ipv6"]);
        one(|f| host(f).source_check = 2, ["Failed pod-source-check", "all.rp_filter is 2"]);
        one(
            |f| f.pods.as_mut().unwrap()[0].source_check = 2,
            ["Failed pod-link-source-check", "rp_filter is 2 on the pod's link twl0:"],
        );
        one(
            |f| f.pods.as_mut().unwrap()[0].source_check = 0,
            ["Failed pod-link-source-check", "rp_filter is 0 on the pod's link twl0:"],
        );
        one(
            |f| host(f).uplinks[1].strict_source_check = true,
            ["Warning uplink-source-check", "strict on eth1, one of 2"],
        );
        one(|f| f.addresses.clear(), ["Failed node-address", "no address"]);
        one(|f| host(f).addresses.clear(), ["Failed node-address", "192.168.2.11"]);
        one(|f| host(f).nexthop_objects = false, ["Warning nexthop-objects", "failover"]);
        one(|f| f.mtu = 1400, ["Warning mtu", "1 of 1 pods' links"]);
        one(|f| f.nat_problems.push("no way out".into()), ["Failed nat-outgoing", "no way out"]);
        one(|f| f.host = Err("no netlink".into()), ["Failed settings", "no netlink"]);
        one(|f| f.chains = Err("no nftables".into()), ["Warning forward-policy", "no nftables"]);
    }

    #[test]
    fn of_links_that_were_not_looked_at_nothing_is_said() {
        let of_links = ["pod-link-source-check", "mtu"];
        let mut facts = healthy();
        let names = |facts: &Facts| verdict(facts).into_iter().map(|c| c.name).collect::<Vec<_>>();
        assert!(of_links.iter().all(|name| names(&facts).iter().any(|n| n == name)));
        facts.pods = None;
        assert!(!of_links.iter().any(|name| names(&facts).iter().any(|n| n == name)));
        for check in verdict(&facts) {
            assert!(!check.detail.contains("a pod sends with"), "{check:?}");
        }
    }

    #[test]
    fn a_setting_of_all_that_stands_for_the_links_own() {
        // The kernel goes by the higher one.
        let by_all = |facts: &mut Facts| {
            host(facts).source_check = 1;
            facts.pods.as_mut().unwrap()[0].source_check = 0;
        };
        assert_eq!(found(by_all), [""; 0]);
    }

    #[test]
    fn a_kernel_without_ipv6_need_not_forward_it() {
        let mut facts = healthy();
        host(&mut facts).forwards.pop();
        let forwarding = |facts: &Facts| {
            verdict(facts).into_iter().find(|check| check.name == "forwarding").unwrap()
        };
        assert_eq!(forwarding(&facts).outcome, HostOutcome::Failed);
        host(&mut facts).has_ipv6 = false;
        let check = forwarding(&facts);
        assert_eq!(check.outcome, HostOutcome::Ok, "{check:?}");
        assert_eq!(check.detail, "packets of IPv4 are forwarded; the kernel runs without IPv6");
        // IPv4 is looked at all the same.
        host(&mut facts).forwards.clear();
        assert_eq!(forwarding(&facts).outcome, HostOutcome::Failed);
    }

    #[test]
    fn a_chain_that_drops_is_named_with_the_remedy() {
        let mut facts = healthy();
        facts.chains = Ok(vec![DroppingChain {
            family: "ip",
            table: "filter".to_owned(),
            chain: "FORWARD".to_owned(),
            from_pods: true,
            to_pods: false,
        }]);
        let checks = verdict(&facts);
        let found = checks.iter().find(|check| check.name == "forward-policy").unwrap();
        assert_eq!(found.outcome, HostOutcome::Failed);
        assert!(
            found.detail.contains("chain FORWARD of table ip filter drops what is sent by pods")
        );
        assert!(
            found.remedy.ends_with("iptables -I FORWARD -i twl+ -j ACCEPT"),
            "{}",
            found.remedy
        );
    }
}
