//! `twillctl bgp peers`, `twillctl bgp routes` and `twillctl bgp refresh`.

use std::net::IpAddr;

use jiff::Timestamp;
use twill_rpc::message::{PeerStatus, Refreshed, RouteStatus};

use crate::{
    node::{info, is_up, kind},
    table::{age, framed, peer_address, seconds},
};

pub(crate) fn peers(peers: &[PeerStatus], now: Timestamp, wide: bool) -> String {
    if peers.is_empty() {
        return "No peers are configured.\n".to_owned();
    }
    let mut header = vec![
        "PEER ADDRESS",
        "NAME",
        "TYPE",
        "AS",
        "STATE",
        "UPTIME",
        "IN",
        "REFUSED",
        "STALE",
        "OUT",
        "HOLD TIME",
    ];
    let numbers = ["IN", "REFUSED", "STALE", "OUT", "HOLD TIME", "MSGS IN", "MSGS OUT", "FLAPS"];
    if wide {
        header.extend([
            "ROUTER ID",
            "HOST",
            "MSGS IN",
            "MSGS OUT",
            "FLAPS",
            "CAPABILITIES",
            "LAST EVENT",
        ]);
    }
    let row = |peer: &PeerStatus| {
        let mut row = vec![
            peer_address(peer.address, peer.port),
            peer.name.clone(),
            kind(peer.kind).to_owned(),
            peer.asn.to_string(),
            if wide { peer.state.clone() } else { info(peer) },
            if is_up(peer) { age(peer.since_ms, now) } else { "-".to_owned() },
            peer.prefixes_in.to_string(),
            peer.prefixes_refused.to_string(),
            stale(peer),
            peer.prefixes_out.to_string(),
            hold_time(peer),
        ];
        if wide {
            row.extend([
                peer.router_id.clone().unwrap_or_else(|| "-".to_owned()),
                or_dash(peer.hostname.clone().unwrap_or_default()),
                peer.messages_in.to_string(),
                peer.messages_out.to_string(),
                peer.flaps.to_string(),
                or_dash(peer.capabilities.join(", ")),
                or_dash(peer.info.clone()),
            ]);
        }
        row
    };
    framed(&header, &numbers, peers.iter().map(row).collect())
}

/// How many, and for how long still.
fn stale(peer: &PeerStatus) -> String {
    let time = peer.stale_for_ms.map(left);
    match (time, peer.long_lived_stale) {
        (None, _) => peer.prefixes_stale.to_string(),
        (Some(time), false) => format!("{} for {time}", peer.prefixes_stale),
        (Some(time), true) => format!("{} long-lived for {time}", peer.prefixes_stale),
    }
}

/// A time that is left.
pub(crate) fn left(ms: u64) -> String {
    seconds(i64::try_from(ms.div_ceil(1000)).unwrap_or(i64::MAX))
}

fn hold_time(peer: &PeerStatus) -> String {
    match peer.hold_time {
        0 if is_up(peer) => "off".to_owned(),
        0 => "-".to_owned(),
        seconds => format!("{seconds}s"),
    }
}

pub(crate) fn routes(routes: &[RouteStatus], wide: bool) -> String {
    if routes.is_empty() {
        return "No routes.\n".to_owned();
    }
    let mut header = vec!["PREFIX", "NEXT HOP", "FROM", "AS PATH", "ORIGIN", "STATE"];
    if wide {
        header.extend(["LOCAL PREF", "MED", "COMMUNITIES"]);
    }
    let row = |route: &RouteStatus| {
        let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
        let address = |value: Option<std::net::IpAddr>, none: &str| {
            value.map_or(none.to_owned(), |address| address.to_string())
        };
        let mut row = vec![
            route.prefix.to_string(),
            address(route.next_hop, "-"),
            with_path_id(address(route.from, "this node"), route.path_id),
            or_dash(route.as_path.clone()),
            route.origin.clone(),
            state(route),
        ];
        if wide {
            row.extend([
                number(route.local_pref),
                number(route.med),
                or_dash(route.communities.join(" ")),
            ]);
        }
        row
    };
    framed(&header, &["LOCAL PREF", "MED"], routes.iter().map(row).collect())
}

fn state(route: &RouteStatus) -> String {
    let words = [(route.best, "best"), (route.installed, "installed"), (route.stale, "stale")];
    let words: Vec<_> = words.iter().filter(|(holds, _)| *holds).map(|(_, word)| *word).collect();
    or_dash(words.join(", "))
}

pub(crate) fn refreshed(address: IpAddr, refreshed: &Refreshed) -> String {
    let families: Vec<String> = refreshed.families.iter().map(ToString::to_string).collect();
    let peer = peer_address(address, refreshed.port);
    format!("{peer} was asked for its {} routes again.\n", families.join(" and "))
}

/// A peer, and which of its paths if it tells several (RFC 7911).
pub(crate) fn with_path_id(peer: String, path_id: u32) -> String {
    if path_id == 0 { peer } else { format!("{peer} path {path_id}") }
}

pub(crate) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::tests::{NOW_MS, peer};

    fn now() -> Timestamp {
        Timestamp::from_millisecond(NOW_MS.cast_signed()).unwrap()
    }

    #[test]
    fn peers_up_and_down() {
        let mut down = peer("fd00::1");
        down.state = "Idle".into();
        down.info = "hold timer expired".into();
        down.hold_time = 0;
        down.hostname = None;
        down.router_id = None;
        down.capabilities.clear();
        down.prefixes_refused = 12;
        down.prefixes_stale = 2;
        down.stale_for_ms = Some(117_100);
        down.awaited = true;
        let all = [peer("192.168.2.1"), down];
        expect![[r#"
            +--------------+------------+---------------+-------+------------------------------------+--------+----+---------+-------------+-----+-----------+
            | PEER ADDRESS |    NAME    |      TYPE     |   AS  |                STATE               | UPTIME | IN | REFUSED |    STALE    | OUT | HOLD TIME |
            +--------------+------------+---------------+-------+------------------------------------+--------+----+---------+-------------+-----+-----------+
            | 192.168.2.1  | peer-rack1 | node specific | 64513 | Established                        | 2m0s   |  2 |       0 |           0 |   1 |       90s |
            | fd00::1      | peer-rack1 | node specific | 64513 | Idle (awaited): hold timer expired | -      |  2 |      12 | 2 for 1m58s |   1 |         - |
            +--------------+------------+---------------+-------+------------------------------------+--------+----+---------+-------------+-----+-----------+
        "#]].assert_eq(&peers(&all, now(), false));
        expect![[r#"
            +--------------+------------+---------------+-------+-------------+--------+----+---------+-------------+-----+-----------+-------------+-----------+---------+----------+-------+----------------------------------------+--------------------+
            | PEER ADDRESS |    NAME    |      TYPE     |   AS  |    STATE    | UPTIME | IN | REFUSED |    STALE    | OUT | HOLD TIME |  ROUTER ID  |    HOST   | MSGS IN | MSGS OUT | FLAPS |              CAPABILITIES              |     LAST EVENT     |
            +--------------+------------+---------------+-------+-------------+--------+----+---------+-------------+-----+-----------+-------------+-----------+---------+----------+-------+----------------------------------------+--------------------+
            | 192.168.2.1  | peer-rack1 | node specific | 64513 | Established | 2m0s   |  2 |       0 |           0 |   1 |       90s | 192.168.2.1 | tor-rack1 |      12 |       11 |     0 | multiprotocol ipv4-unicast, 4-octet AS | -                  |
            | fd00::1      | peer-rack1 | node specific | 64513 | Idle        | -      |  2 |      12 | 2 for 1m58s |   1 |         - | -           | -         |      12 |       11 |     0 | -                                      | hold timer expired |
            +--------------+------------+---------------+-------+-------------+--------+----+---------+-------------+-----+-----------+-------------+-----------+---------+----------+-------+----------------------------------------+--------------------+
        "#]].assert_eq(&peers(&all, now(), true));
        expect![[r#"
            No peers are configured.
        "#]]
        .assert_eq(&peers(&[], now(), true));
    }

    #[test]
    fn routes_of_all_origins() {
        let local = RouteStatus {
            prefix: "10.10.0.0/26".parse().unwrap(),
            next_hop: None,
            from: None,
            path_id: 0,
            best: true,
            installed: false,
            stale: false,
            as_path: String::new(),
            origin: "IGP".into(),
            local_pref: None,
            med: None,
            communities: Vec::new(),
        };
        let learned = RouteStatus {
            prefix: "10.10.0.64/26".parse().unwrap(),
            next_hop: Some("192.168.3.12".parse().unwrap()),
            from: Some("192.168.2.1".parse().unwrap()),
            installed: true,
            stale: true,
            as_path: "64513 64512".into(),
            local_pref: Some(100),
            communities: vec!["64513:1".into(), "no-export".into()],
            ..local.clone()
        };
        let unused = RouteStatus {
            path_id: 7,
            best: false,
            installed: false,
            stale: false,
            ..learned.clone()
        };
        let all = [local, learned, unused];
        expect![[r#"
            +---------------+--------------+--------------------+-------------+--------+------------------------+
            |     PREFIX    |   NEXT HOP   |        FROM        |   AS PATH   | ORIGIN |          STATE         |
            +---------------+--------------+--------------------+-------------+--------+------------------------+
            | 10.10.0.0/26  | -            | this node          | -           | IGP    | best                   |
            | 10.10.0.64/26 | 192.168.3.12 | 192.168.2.1        | 64513 64512 | IGP    | best, installed, stale |
            | 10.10.0.64/26 | 192.168.3.12 | 192.168.2.1 path 7 | 64513 64512 | IGP    | -                      |
            +---------------+--------------+--------------------+-------------+--------+------------------------+
        "#]].assert_eq(&routes(&all, false));
        expect![[r#"
            +---------------+--------------+--------------------+-------------+--------+------------------------+------------+-----+-------------------+
            |     PREFIX    |   NEXT HOP   |        FROM        |   AS PATH   | ORIGIN |          STATE         | LOCAL PREF | MED |    COMMUNITIES    |
            +---------------+--------------+--------------------+-------------+--------+------------------------+------------+-----+-------------------+
            | 10.10.0.0/26  | -            | this node          | -           | IGP    | best                   |          - |   - | -                 |
            | 10.10.0.64/26 | 192.168.3.12 | 192.168.2.1        | 64513 64512 | IGP    | best, installed, stale |        100 |   - | 64513:1 no-export |
            | 10.10.0.64/26 | 192.168.3.12 | 192.168.2.1 path 7 | 64513 64512 | IGP    | -                      |        100 |   - | 64513:1 no-export |
            +---------------+--------------+--------------------+-------------+--------+------------------------+------------+-----+-------------------+
        "#]].assert_eq(&routes(&all, true));
    }
}
