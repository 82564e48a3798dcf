//! `twillctl bgp explain`.

use std::{fmt::Write, net::IpAddr};

use twill_rpc::message::{Explained, ExplainedNextHop, ExplainedPath};
use twill_types::Prefix;

use crate::{
    bgp::{left, or_dash, with_path_id},
    table::{framed, peer_address},
};

pub(crate) fn text(explained: &Explained, wide: bool) -> String {
    let Some(prefix) = explained.prefix else {
        return format!(
            "No route covers {}: no peer announces it, and it is not this node's.\n",
            explained.asked
        );
    };
    let mut text = String::new();
    if prefix != explained.asked {
        let _ = writeln!(text, "{} is covered by {prefix}.", explained.asked);
    }
    let _ = writeln!(text, "{}", summary(prefix, explained));
    if explained.paths.is_empty() {
        return text;
    }
    let mut header =
        vec!["FROM", "USE", "NEXT HOP", "WAY", "LOCAL PREF", "AS PATH", "ORIGIN", "MED", "REASON"];
    if wide {
        header.extend([
            "SESSION",
            "ROUTER ID",
            "ORIGINATOR",
            "CLUSTERS",
            "COMMUNITIES",
            "ONLY TO CUSTOMER",
        ]);
    }
    let rows = explained.paths.iter().map(|path| row(path, wide)).collect();
    text + &framed(&header, &["LOCAL PREF", "MED"], rows)
}

/// What is done with packets to it, and why, if not by the decision.
fn summary(prefix: Prefix, explained: &Explained) -> String {
    let used = explained.paths.iter().filter(|path| path.used).count();
    let paths = explained.paths.len();
    let mut text = match (explained.announced, explained.own) {
        (Some(true), _) => format!("{prefix} is this node's own and announced to its peers."),
        (Some(false), _) => format!("{prefix} is this node's own and not announced."),
        (None, Some(own)) => format!("{prefix} lies in this node's own {own}."),
        (None, None) => format!(
            "{prefix}: {paths} {}, {used} used (of at most {} next hops), {}.",
            if paths == 1 { "path" } else { "paths" },
            explained.max_paths,
            match (explained.installed, explained.next_hops.is_empty()) {
                (true, false) => "in the kernel",
                (true, true) => "in the kernel and about to go",
                (false, false) => "not in the kernel yet",
                (false, true) => "not in the kernel",
            }
        ),
    };
    if let Some(lent) = explained.lent {
        let _ = write!(text, " Another node has borrowed {lent}, so it is learned.");
    }
    for withheld in &explained.withheld {
        let peer = peer_address(withheld.from, withheld.port);
        let _ = write!(text, " {peer} is not told: rejected by {}.", withheld.by);
    }
    if explained.own.is_some() && paths > 0 {
        text += " Paths to it are not used; find out who else owns it.";
    }
    text
}

fn row(path: &ExplainedPath, wide: bool) -> Vec<String> {
    let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    let words = [(path.best, "best"), (path.used && !path.best, "used"), (path.stale, "stale")];
    let mut words: Vec<String> =
        words.iter().filter(|(holds, _)| *holds).map(|(_, word)| (*word).to_owned()).collect();
    if let (Some(last), Some(ms)) = (words.last_mut(), path.stale_for_ms) {
        *last += &format!(" for {}", left(ms));
    }
    let mut row = vec![
        with_path_id(peer_address(path.from, path.port), path.path_id),
        or_dash(words.join(", ")),
        path.next_hop.address.to_string(),
        way(&path.next_hop),
        number(path.local_pref),
        or_dash(path.as_path.clone()),
        path.origin.clone(),
        number(path.med),
        path.reason.clone(),
    ];
    if wide {
        row.extend([
            if path.external { "external" } else { "internal" }.to_owned(),
            or_dash(path.router_id.clone().unwrap_or_default()),
            or_dash(path.originator_id.clone().unwrap_or_default()),
            or_dash(path.cluster_list.join(" ")),
            or_dash(path.communities.join(" ")),
            path.only_to_customer.map_or("-".to_owned(), |asn| format!("AS {asn}")),
        ]);
    }
    row
}

/// `dev eth0`, `via 192.168.2.1 dev eth0`, `via 192.168.2.1 dev eth0, via 192.168.3.1 dev eth1`: all ways that the
/// underlay has, of which a route uses at most 16 that work.
fn way(next_hop: &ExplainedNextHop) -> String {
    let hop = |gateway: Option<IpAddr>, device: &str| match gateway {
        Some(gateway) => format!("via {gateway} dev {device}"),
        None => format!("dev {device}"),
    };
    match (next_hop.reachable, &next_hop.device) {
        (None, _) => "unknown".to_owned(),
        (Some(false), _) => "unreachable".to_owned(),
        (Some(true), None) => "reachable".to_owned(),
        (Some(true), Some(device)) => {
            let others = next_hop.others.iter().map(|other| hop(other.gateway, &other.device));
            let first = std::iter::once(hop(next_hop.gateway, device));
            first.chain(others).collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use twill_rpc::message::{ExplainedHop, Withheld};

    use super::*;

    fn path(from: &str, reason: &str) -> ExplainedPath {
        ExplainedPath {
            from: from.parse().unwrap(),
            port: 179,
            path_id: 0,
            external: true,
            router_id: Some(from.to_owned()),
            best: reason == "best",
            used: reason == "best" || reason.starts_with("as good as"),
            stale: false,
            stale_for_ms: None,
            reason: reason.to_owned(),
            step: None,
            against: None,
            against_path_id: 0,
            next_hop: ExplainedNextHop {
                address: from.parse().unwrap(),
                reachable: Some(true),
                metric: Some(0),
                gateway: None,
                device: Some("eth0".to_owned()),
                others: Vec::new(),
            },
            as_path: "64513".to_owned(),
            origin: "IGP".to_owned(),
            local_pref: None,
            med: None,
            aigp: None,
            communities: Vec::new(),
            only_to_customer: None,
            originator_id: None,
            cluster_list: Vec::new(),
        }
    }

    fn explained(paths: Vec<ExplainedPath>) -> Explained {
        Explained {
            asked: "198.51.100.7/32".parse().unwrap(),
            prefix: Some("198.51.100.0/24".parse().unwrap()),
            own: None,
            announced: None,
            lent: None,
            installed: true,
            next_hops: vec!["192.168.2.1".parse().unwrap()],
            max_paths: 16,
            withheld: Vec::new(),
            paths,
        }
    }

    #[test]
    fn every_path_has_its_reason() {
        let equal = "as good as 192.168.2.1, which comes first by lower router id";
        let mut all = vec![
            path("192.168.2.1", "best"),
            path("192.168.2.2", equal),
            path("192.168.2.3", "lost to 192.168.2.1 by shorter AS_PATH"),
            path("192.168.2.4", "next hop unreachable"),
        ];
        all[2].as_path = "64513 64513".to_owned();
        all[2].med = Some(10);
        all[2].stale = true;
        all[2].stale_for_ms = Some(90_000);
        all[2].next_hop.others = vec![ExplainedHop { gateway: None, device: "eth1".to_owned() }];
        all[3].next_hop.reachable = Some(false);
        all[3].communities = vec!["64513:1".to_owned()];
        all[1].next_hop.gateway = Some("192.168.2.254".parse().unwrap());
        expect![[r#"
            198.51.100.7/32 is covered by 198.51.100.0/24.
            198.51.100.0/24: 4 paths, 2 used (of at most 16 next hops), in the kernel.
            +-------------+-----------------+-------------+----------------------------+------------+-------------+--------+-----+--------------------------------------------------------------+
            |     FROM    |       USE       |   NEXT HOP  |             WAY            | LOCAL PREF |   AS PATH   | ORIGIN | MED |                            REASON                            |
            +-------------+-----------------+-------------+----------------------------+------------+-------------+--------+-----+--------------------------------------------------------------+
            | 192.168.2.1 | best            | 192.168.2.1 | dev eth0                   |          - | 64513       | IGP    |   - | best                                                         |
            | 192.168.2.2 | used            | 192.168.2.2 | via 192.168.2.254 dev eth0 |          - | 64513       | IGP    |   - | as good as 192.168.2.1, which comes first by lower router id |
            | 192.168.2.3 | stale for 1m30s | 192.168.2.3 | dev eth0, dev eth1         |          - | 64513 64513 | IGP    |  10 | lost to 192.168.2.1 by shorter AS_PATH                       |
            | 192.168.2.4 | -               | 192.168.2.4 | unreachable                |          - | 64513       | IGP    |   - | next hop unreachable                                         |
            +-------------+-----------------+-------------+----------------------------+------------+-------------+--------+-----+--------------------------------------------------------------+
        "#]].assert_eq(&text(&explained(all.clone()), false));
        expect![[r#"
            198.51.100.7/32 is covered by 198.51.100.0/24.
            198.51.100.0/24: 4 paths, 2 used (of at most 16 next hops), in the kernel.
            +-------------+-----------------+-------------+----------------------------+------------+-------------+--------+-----+--------------------------------------------------------------+----------+-------------+------------+----------+-------------+------------------+
            |     FROM    |       USE       |   NEXT HOP  |             WAY            | LOCAL PREF |   AS PATH   | ORIGIN | MED |                            REASON                            |  SESSION |  ROUTER ID  | ORIGINATOR | CLUSTERS | COMMUNITIES | ONLY TO CUSTOMER |
            +-------------+-----------------+-------------+----------------------------+------------+-------------+--------+-----+--------------------------------------------------------------+----------+-------------+------------+----------+-------------+------------------+
            | 192.168.2.1 | best            | 192.168.2.1 | dev eth0                   |          - | 64513       | IGP    |   - | best                                                         | external | 192.168.2.1 | -          | -        | -           | -                |
            | 192.168.2.2 | used            | 192.168.2.2 | via 192.168.2.254 dev eth0 |          - | 64513       | IGP    |   - | as good as 192.168.2.1, which comes first by lower router id | external | 192.168.2.2 | -          | -        | -           | -                |
            | 192.168.2.3 | stale for 1m30s | 192.168.2.3 | dev eth0, dev eth1         |          - | 64513 64513 | IGP    |  10 | lost to 192.168.2.1 by shorter AS_PATH                       | external | 192.168.2.3 | -          | -        | -           | -                |
            | 192.168.2.4 | -               | 192.168.2.4 | unreachable                |          - | 64513       | IGP    |   - | next hop unreachable                                         | external | 192.168.2.4 | -          | -        | 64513:1     | -                |
            +-------------+-----------------+-------------+----------------------------+------------+-------------+--------+-----+--------------------------------------------------------------+----------+-------------+------------+----------+-------------+------------------+
        "#]].assert_eq(&text(&explained(all), true));
    }

    #[test]
    fn own_lent_and_unknown_prefixes() {
        let conflict = path("192.168.2.1", "conflict: 198.51.100.0/24 is this node's own");
        let own = Explained {
            asked: "198.51.100.0/24".parse().unwrap(),
            own: Some("198.51.100.0/24".parse().unwrap()),
            announced: Some(true),
            installed: false,
            next_hops: Vec::new(),
            ..explained(vec![conflict])
        };
        let by = "BGPFilter f, exportV4[0]".to_owned();
        let from = "192.168.2.1".parse().unwrap();
        let withheld = Explained {
            withheld: vec![Withheld { from, port: 179, by }],
            paths: Vec::new(),
            ..own.clone()
        };
        let quiet = Explained { announced: Some(false), paths: Vec::new(), ..own.clone() };
        let lent = Explained {
            asked: "198.51.100.8/29".parse().unwrap(),
            prefix: Some("198.51.100.8/29".parse().unwrap()),
            lent: Some("198.51.100.8/29".parse().unwrap()),
            installed: false,
            ..explained(vec![path("192.168.2.1", "best")])
        };
        let none = Explained { prefix: None, ..explained(Vec::new()) };
        let all: String =
            [own, withheld, quiet, lent, none].iter().map(|e| text(e, false)).collect();
        expect![[r#"
            198.51.100.0/24 is this node's own and announced to its peers. Paths to it are not used; find out who else owns it.
            +-------------+-----+-------------+----------+------------+---------+--------+-----+----------------------------------------------+
            |     FROM    | USE |   NEXT HOP  |    WAY   | LOCAL PREF | AS PATH | ORIGIN | MED |                    REASON                    |
            +-------------+-----+-------------+----------+------------+---------+--------+-----+----------------------------------------------+
            | 192.168.2.1 | -   | 192.168.2.1 | dev eth0 |          - | 64513   | IGP    |   - | conflict: 198.51.100.0/24 is this node's own |
            +-------------+-----+-------------+----------+------------+---------+--------+-----+----------------------------------------------+
            198.51.100.0/24 is this node's own and announced to its peers. 192.168.2.1 is not told: rejected by BGPFilter f, exportV4[0].
            198.51.100.0/24 is this node's own and not announced.
            198.51.100.8/29: 1 path, 1 used (of at most 16 next hops), not in the kernel yet. Another node has borrowed 198.51.100.8/29, so it is learned.
            +-------------+------+-------------+----------+------------+---------+--------+-----+--------+
            |     FROM    |  USE |   NEXT HOP  |    WAY   | LOCAL PREF | AS PATH | ORIGIN | MED | REASON |
            +-------------+------+-------------+----------+------------+---------+--------+-----+--------+
            | 192.168.2.1 | best | 192.168.2.1 | dev eth0 |          - | 64513   | IGP    |   - | best   |
            +-------------+------+-------------+----------+------------+---------+--------+-----+--------+
            No route covers 198.51.100.7/32: no peer announces it, and it is not this node's.
        "#]].assert_eq(&all);
    }
}
