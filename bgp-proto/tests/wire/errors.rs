//! Runs the tables of `docs/bgp-errors.md`.

use twill_bgp_proto::wire::{
    AddPath, Disposition, Notification, Session, decode_open, decode_route_refresh, decode_update,
    frame,
};

const TABLES: &str = include_str!("../../../docs/bgp-errors.md");

const ROUTE: &str = "180a0000";
const NAMES: [(&str, &str); 5] = [
    ("O", "40010100"),
    ("P", "400206 0201 0000fc00"),
    ("N", "400304 c0000201"),
    ("R", ROUTE),
    ("M", "800e1a 00020110 20010db8000000000000000000000001 00 2020010db8"),
];

struct Row {
    section: String,
    what: String,
    session: Session,
    bytes: String,
    answer: String,
}

fn rows() -> Vec<Row> {
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in TABLES.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut section);
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [what, session, bytes, answer, rfc] = cells.as_slice() else {
            continue;
        };
        if *what == "Malformation" || what.starts_with("---") {
            continue;
        }
        assert!(rfc.split_once(' ').is_some_and(|(n, _)| n.parse::<u32>().is_ok()), "{line}");
        rows.push(Row {
            section: section.clone(),
            what: (*what).to_owned(),
            session: session_of(session),
            bytes: bytes.trim_matches('`').to_owned(),
            answer: answer.trim_matches('`').to_owned(),
        });
    }
    rows
}

fn session_of(words: &str) -> Session {
    let mut session = Session {
        four_octet_as: true,
        ipv4: true,
        ipv6: true,
        as_sets: true,
        ..Session::default()
    };
    for word in words.split_whitespace() {
        match word {
            "internal" => session.internal = true,
            "2-octet" => session.four_octet_as = false,
            "extended" => session.receive_extended = true,
            "enhanced" => session.enhanced_refresh = true,
            "noipv4" => session.ipv4 = false,
            "noipv6" => session.ipv6 = false,
            "nosets" => session.as_sets = false,
            "aigp" => session.aigp = true,
            "addpath" => {
                session.add_path = AddPath { receive_ipv4: true, ..AddPath::default() };
            }
            _ => panic!("no such word: {word}"),
        }
    }
    session
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .split_whitespace()
        .map(|word| NAMES.iter().find(|(name, _)| *name == word).map_or(word, |(_, hex)| hex))
        .flat_map(str::bytes)
        .filter(|byte| *byte != b' ')
        .collect();
    assert!(digits.len().is_multiple_of(2), "half an octet: {text}");
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
    digits.chunks(2).map(|pair| octet(pair).unwrap()).collect()
}

/// `session-reset 3/9 00ff` of a notification.
fn reset(notification: &Notification) -> String {
    let data: String = notification.data.iter().map(|octet| format!("{octet:02x}")).collect();
    let head = format!("session-reset {}/{}", notification.code, notification.subcode);
    if data.is_empty() { head } else { format!("{head} {data}") }
}

fn header(row: &Row) -> String {
    let mut bytes = match row.bytes.strip_prefix("marker ") {
        Some(marker) => hex(marker),
        None => [vec![0xff; 16], hex(&row.bytes)].concat(),
    };
    bytes.push(0);
    match frame(&bytes, row.session.longest_received()) {
        Ok(_) => "accepted".to_owned(),
        Err(notification) => reset(&notification),
    }
}

fn update(row: &Row) -> String {
    let body = match row.bytes.strip_prefix("raw ") {
        Some(raw) => hex(raw),
        None => {
            let fields: Vec<Vec<u8>> = row.bytes.split('/').map(hex).collect();
            let [withdrawn, attributes, nlri] = fields.as_slice() else {
                panic!("{}: three fields", row.what);
            };
            let length = |field: &[u8]| u16::try_from(field.len()).unwrap().to_be_bytes();
            [&length(withdrawn), withdrawn.as_slice(), &length(attributes), attributes, nlri]
                .concat()
        }
    };
    let update = match decode_update(&body, &row.session) {
        Ok(update) => update,
        Err(error) => {
            assert_eq!(error.fault.disposition, Disposition::SessionReset);
            return reset(&error.notification);
        }
    };
    let routes: usize = update.announced.iter().map(|(_, routes)| routes.len()).sum();
    match update.disposition() {
        Some(Disposition::TreatAsWithdraw) => {
            assert_eq!(routes, 0, "{}: routes are left", row.what);
            assert!(!update.withdrawn.is_empty(), "{}: nothing is withdrawn", row.what);
        }
        Some(_) => assert!(routes > 0, "{}: the routes are lost", row.what),
        None if update.end_of_rib.is_some() => assert!(row.what.starts_with("End-of-RIB")),
        None => assert!(routes > 0, "{}: the routes are lost", row.what),
    }
    update.disposition().map_or("accepted", Disposition::name).to_owned()
}

#[test]
fn every_row_of_the_table_is_answered_as_it_says() {
    let mut wrong = Vec::new();
    let rows = rows();
    assert!(rows.len() > 120, "only {} rows were found", rows.len());
    for row in &rows {
        let answer = match row.section.as_str() {
            "Header" => header(row),
            "OPEN" => match decode_open(&hex(&row.bytes)) {
                Ok(_) => "accepted".to_owned(),
                Err(notification) => reset(&notification),
            },
            "UPDATE" => update(row),
            "ROUTE-REFRESH" => match decode_route_refresh(&hex(&row.bytes), &row.session) {
                Ok(_) => "accepted".to_owned(),
                Err(notification) => reset(&notification),
            },
            other => panic!("a table in {other}"),
        };
        let expected = match row.answer.splitn(3, ' ').collect::<Vec<_>>().as_slice() {
            [name, code, data] => format!("{name} {code} {}", data.replace(' ', "")),
            _ => row.answer.clone(),
        };
        if answer != expected {
            wrong.push(format!("{}: {}: {answer}, not {expected}", row.section, row.what));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}
