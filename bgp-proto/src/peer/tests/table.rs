//! Every row of `docs/bgp-fsm.md` against the peer itself.

use super::*;

const TABLE: &str = include_str!("../../../../docs/bgp-fsm.md");

/// The states, as the table's headings have them.
const STATES: [&str; 9] = [
    "Idle",
    "Idle, held",
    "Connect",
    "Connect, OPEN delayed",
    "Active",
    "Active, OPEN delayed",
    "OpenSent",
    "OpenConfirm",
    "Established",
];

/// The events of RFC 4271 section 8.1, then those of RFC 9687 and RFC 2918.
const EVENTS: [&str; 30] = [
    "1 ManualStart",
    "2 ManualStop",
    "3 AutomaticStart",
    "4 ManualStart_with_PassiveTcpEstablishment",
    "5 AutomaticStart_with_PassiveTcpEstablishment",
    "6 AutomaticStart_with_DampPeerOscillations",
    "7 AutomaticStart_with_DampPeerOscillations_and_PassiveTcpEstablishment",
    "8 AutomaticStop",
    "9 ConnectRetryTimer_Expires",
    "10 HoldTimer_Expires",
    "11 KeepaliveTimer_Expires",
    "12 DelayOpenTimer_Expires",
    "13 IdleHoldTimer_Expires",
    "14 TcpConnection_Valid",
    "15 Tcp_CR_Invalid",
    "16 Tcp_CR_Acked",
    "17 TcpConnectionConfirmed",
    "18 TcpConnectionFails",
    "19 BGPOpen",
    "20 BGPOpen with DelayOpenTimer running",
    "21 BGPHeaderErr",
    "22 BGPOpenMsgErr",
    "23 OpenCollisionDump",
    "24 NotifMsgVerErr",
    "25 NotifMsg",
    "26 KeepAliveMsg",
    "27 UpdateMsg",
    "28 UpdateMsgErr",
    "29 SendHoldTimer_Expires",
    "30 RouteRefreshMsg",
];

/// A peer in a state, and its connection, if it has one there.
fn in_state(state: &str, config: PeerConfig) -> (Rig, ConnId) {
    let delay = if state.ends_with("delayed") { 5 } else { 0 };
    let mut rig = Rig::new(PeerConfig { delay_open: Duration::from_secs(delay), ..config });
    let mut conn = ConnId(999);
    if state != "Idle" {
        rig.start();
    }
    match state {
        "Idle" | "Connect" => {}
        "Active" => rig.connect_failed(),
        "Active, OPEN delayed" => {
            rig.connect_failed();
            conn = rig.accepted();
        }
        _ => conn = rig.connected(),
    }
    let open = Open { hold_time: rig.peer.config.hold_time, ..their_open() };
    match state {
        "Idle, held" => rig.receive(conn, &notification(code::OPEN, 2)),
        "OpenConfirm" => rig.receive(conn, &wire::encode_open(&open)),
        "Established" => {
            rig.receive(conn, &wire::encode_open(&open));
            rig.receive(conn, &wire::encode_keepalive());
        }
        _ => {}
    }
    assert_eq!(name_of(&rig), state);
    rig.take_actions();
    (rig, conn)
}

fn name_of(rig: &Rig) -> String {
    let state = rig.peer.state();
    let runs = |name| rig.deadline(name).is_some();
    match state {
        State::Idle if runs("idle hold timer") => "Idle, held".to_owned(),
        State::Connect | State::Active if runs("delay open timer") => {
            format!("{state}, OPEN delayed")
        }
        state => state.to_string(),
    }
}

/// Lets an event happen, or what comes nearest to it where it cannot.
fn happen(rig: &mut Rig, event: &str, conn: ConnId) {
    let open = wire::encode_open(&their_open());
    let delayed = rig.deadline("delay open timer").is_some();
    let number = event.split(' ').next().unwrap_or_default();
    match number {
        "1" => rig.start(),
        "2" => rig.reconfigure(|config| config.shutdown = Some(String::new())),
        "4" => {
            rig.peer.config.passive = true;
            rig.start();
        }
        "7" => {
            rig.peer.config.passive = true;
            rig.expire("idle hold timer");
        }
        "8" => rig.reconfigure(|config| config.hold_time = 30),
        "9" => rig.expire("connect retry timer"),
        "10" => rig.expire("hold timer"),
        "11" => rig.expire("keepalive timer"),
        "12" => rig.expire("delay open timer"),
        "6" | "13" => rig.expire("idle hold timer"),
        "3" | "5" | "14" | "15" => rig.tick(),
        "16" => drop(rig.connected()),
        "17" => drop(rig.accepted()),
        "18" if rig.opening.is_empty() => rig.closed(conn),
        "18" => rig.connect_failed(),
        "19" if !delayed => rig.receive(conn, &open),
        "20" if delayed => rig.receive(conn, &open),
        "19" | "20" => rig.tick(),
        "21" => rig.receive(conn, &[0; 19]),
        "22" => rig.receive(conn, &wire::encode_open(&stranger())),
        "23" => collide(rig),
        "24" => rig.receive(conn, &notification(code::OPEN, 1)),
        "25" => rig.receive(conn, &notification(code::CEASE, cease::RESET)),
        "26" => rig.receive(conn, &wire::encode_keepalive()),
        "27" => rig.receive(conn, &end_of_rib()),
        "28" => {
            // Its withdrawn routes reach beyond its end.
            let mut bytes = end_of_rib();
            bytes[20] = 9;
            rig.receive(conn, &bytes);
        }
        // The hold timer may be the shorter one, so that this one never expires.
        "29" if rig.deadline("hold timer").is_some() => rig.tick(),
        "29" => rig.expire("send hold timer"),
        "30" => {
            let refresh = RouteRefresh { family: Family::V4, subtype: 0 };
            rig.receive(conn, &wire::encode_route_refresh(refresh));
        }
        other => panic!("no event {other}"),
    }
}

/// A second connection, which the peer opened, gets ahead of the one that is there.
fn collide(rig: &mut Rig) {
    if matches!(name_of(rig).as_str(), "Idle" | "Idle, held" | "Active" | "Active, OPEN delayed") {
        return rig.tick();
    }
    if rig.peer.state() == State::Established {
        // Longer than a race.
        rig.wait(Duration::from_secs(2));
    }
    let second = rig.accepted();
    rig.take_actions();
    rig.establish(second);
}

fn row(state: &str, event: &str) -> String {
    let hold_time = if event.starts_with("29") { 0 } else { 90 };
    let (mut rig, conn) = in_state(state, PeerConfig { hold_time, ..config() });
    happen(&mut rig, event, conn);
    let next = name_of(&rig);
    let actions = rig.take_actions();
    let timers: BTreeSet<&str> = rig.peer.timers().map(|(_, name)| name).collect();
    let timers: Vec<&str> = timers.iter().map(|name| name.trim_end_matches(" timer")).collect();
    let list = |list: String| if list.is_empty() { "–".to_owned() } else { list };
    format!("| {event} | {next} | {} | {} |", list(actions.join(", ")), list(timers.join(", ")))
}

/// Where RFCs say what a row does: that follows from the event, and from what becomes of it.
fn sections(state: &str, event: &str, actions: &str) -> &'static str {
    let says = |number: &str| actions.contains(&format!("NOTIFICATION {number}"));
    let (closes, lost) = (actions.contains("close"), actions.contains("session down"));
    let has_connection = matches!(state, "OpenSent" | "OpenConfirm" | "Established");
    match event.split(' ').next().unwrap_or_default() {
        // A message that has no place in the state.
        "19" | "22" | "26" | "27" | "28" | "30" if says("5/") => "4271 6.6, 6608 4",
        "2" if says("6/2") => "4271 8.2.2, 4486 4, 9003",
        "2" if says("6/9") => "8538 3.1",
        "8" if says("6/6") => "4271 8.2.2, 4486 4",
        "15" => "4486 4",
        "17" if has_connection => "4271 6.8",
        "18" if lost => "4271 8.2.2, 4724 4.2",
        "21" if says("1/1") => "4271 8.2.2, 6.1",
        "22" if says("2/2") => "4271 8.2.2, 6.2",
        "23" if lost => "4724 4.2",
        "23" => "4271 6.8",
        "25" if lost => "4271 8.2.2, 8538 4",
        "24" | "25" if closes => "4271 8.2.2, 6.4",
        "28" if says("3/1") => "4271 8.2.2, 7606 3",
        "29" => "9687 4.3",
        "30" if actions == "refresh" => "2918 4",
        _ => "4271 8.2.2",
    }
}

#[test]
fn every_state_and_event_is_as_the_table_says() {
    let mut wrong = Vec::new();
    for state in STATES {
        let heading = format!("{state}\n");
        let section = TABLE.split("\n## ").find(|section| section.starts_with(&heading));
        let lines: Vec<&str> = section.unwrap_or_default().lines().collect();
        for event in EVENTS {
            let row = row(state, event);
            let Some(line) = lines.iter().find(|line| line.starts_with(&row)) else {
                wrong.push(format!("{state}: {row}"));
                continue;
            };
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [_, _, actions, _, cited, _] = cells[..] else {
                wrong.push(format!("{state}: {line} has no six columns"));
                continue;
            };
            let sections = sections(state, event, actions);
            if cited != sections {
                wrong.push(format!("{state}: {event} is by RFC {sections}, not {cited}"));
            }
            if line.contains("| cannot occur") && !row.contains(&format!("| {state} | – |")) {
                wrong.push(format!("{state}: {event} is not ignored"));
            }
        }
        let rows = lines.iter().filter(|line| line.starts_with("| ")).count();
        // With the head of the table.
        if rows != EVENTS.len() + 1 {
            wrong.push(format!("{state}: {} rows, not {rows}", EVENTS.len() + 1));
        }
    }
    assert!(wrong.is_empty(), "docs/bgp-fsm.md should say:\n{}", wrong.join("\n"));
}
