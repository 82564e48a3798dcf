//! Broken UPDATEs over TCP to a real daemon: what becomes of the route and of the session, and where an
//! operator reads of it. Every malformation there is stands in `docs/bgp-errors.md`.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, Result, ensure};
use twill_tests::{
    lab::{Lab, Node},
    wait::wait_for,
};

use crate::{
    LONG,
    reconcile::metric,
    sessions::{Raw, silent_tors},
};

const TOR1: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 1);
const TOR2: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);

/// ORIGIN, AS_PATH `64513` and NEXT_HOP 192.168.2.1, with nothing wrong.
const GOOD: &str = "40010100 400206 0201 0000fc01 400304 c0a80201";

/// What a broken UPDATE does.
enum Does {
    /// Its route is used.
    Announces,
    /// Its route counts as withdrawn, and the session stays.
    Withdraws,
    /// The session ends with a NOTIFICATION of this code and subcode, whose data is this.
    Resets(u8, u8, &'static str),
}

/// An UPDATE with something wrong.
struct Broken {
    /// What comes behind the good attributes.
    attributes: &'static str,
    /// The attributes count as so many octets more than they are.
    excess: u16,
    does: Does,
    disposition: &'static str,
    /// Its type in the metric, where 255 is each that no RFC names, and in the log.
    attribute: (u8, u8),
    text: &'static str,
}

const CASES: [Broken; 5] = [
    Broken {
        attributes: "400504 00000064",
        excess: 0,
        does: Does::Announces,
        disposition: "attribute-discard",
        attribute: (5, 5),
        text: "it does not belong on an external session",
    },
    // The peer has IPv4 alone.
    Broken {
        attributes: "800e1a 00020110 20010db8000000000000000000000001 00 2020010db8",
        excess: 0,
        does: Does::Announces,
        disposition: "afi-safi-disable",
        attribute: (14, 14),
        text: "its family was not negotiated",
    },
    Broken {
        attributes: "800403 000001",
        excess: 0,
        does: Does::Withdraws,
        disposition: "treat-as-withdraw",
        attribute: (4, 4),
        text: "its length is not 4",
    },
    Broken {
        attributes: "40c801 05",
        excess: 0,
        does: Does::Resets(3, 2, "40c80105"),
        disposition: "session-reset",
        attribute: (255, 200),
        text: "it is well-known and unknown",
    },
    Broken {
        attributes: "",
        excess: 100,
        does: Does::Resets(3, 1, ""),
        disposition: "session-reset",
        attribute: (0, 0),
        text: "the fields are longer than the message",
    },
];

fn hex(text: &str) -> Result<Vec<u8>> {
    let digits: String = text.split_whitespace().collect();
    let octet = |at: usize| digits.get(at..at + 2).context("half an octet");
    (0..digits.len()).step_by(2).map(|at| Ok(u8::from_str_radix(octet(at)?, 16)?)).collect()
}

impl Broken {
    /// The whole message, with a route to the /24 of this third octet.
    fn message(&self, third: u8) -> Result<Vec<u8>> {
        let attributes = [hex(GOOD)?, hex(self.attributes)?].concat();
        let length = u16::try_from(attributes.len())? + self.excess;
        let mut body = vec![0, 0];
        body.extend(length.to_be_bytes());
        body.extend(attributes);
        body.extend([24, 198, 51, third]);
        let mut message = vec![0xff; 16];
        message.extend(u16::try_from(19 + body.len())?.to_be_bytes());
        message.push(2);
        message.extend(body);
        Ok(message)
    }

    /// Sends it, and sees to it that the node does what it should, and says so.
    fn meet(&self, lab: &Lab, raw: &mut Raw, third: u8) -> Result<()> {
        let node = lab.node("node1")?;
        let route = format!("198.51.{third}.0/24");
        if !matches!(self.does, Does::Announces) {
            let good = raw.update(route.parse()?, TOR1.into(), 0)?;
            raw.stream.write_all(&good)?;
            node.wait_route(&route, LONG)?;
        }
        let (counter, log) = (self.counter(), node.log().len());
        let before = metric(lab, &counter).unwrap_or_default();
        raw.stream.write_all(&self.message(third)?)?;
        match self.does {
            Does::Announces => drop(node.wait_route(&route, LONG)?),
            Does::Withdraws | Does::Resets(..) => node.wait_no_route(&route, LONG)?,
        }
        let said = wait_for("a line in the log", LONG, || {
            let said = node.log().get(log..).unwrap_or_default().to_owned();
            let line =
                format!("attribute {}: {} ({})", self.attribute.1, self.text, self.disposition);
            ensure!(said.contains("bad UPDATE peer=192.168.2.1") && said.contains(&line), "{said}");
            Ok(said)
        })?;
        let after = metric(lab, &counter)?;
        ensure!(after - before == 1.0, "{counter} went from {before} to {after}");
        match self.does {
            Does::Announces | Does::Withdraws => is_up(node, "192.168.2.1", 0),
            Does::Resets(code, subcode, data) => {
                self.is_reset(lab, raw, (code, subcode, data), &said)
            }
        }
    }

    fn counter(&self) -> String {
        let (disposition, attribute) = (self.disposition, self.attribute.0);
        format!(
            "twill_bgp_update_errors_total{{peer=\"192.168.2.1\",disposition=\"{disposition}\",\
             attribute=\"{attribute}\"}}"
        )
    }

    fn is_reset(
        &self,
        lab: &Lab,
        raw: &mut Raw,
        (code, subcode, data): (u8, u8, &str),
        log: &str,
    ) -> Result<()> {
        let said = raw.notification()?;
        let expected = (code, subcode, hex(data)?);
        ensure!((said.code, said.subcode, said.data.clone()) == expected, "the node says {said:?}");
        let number = format!("({code}/{subcode})");
        ensure!(log.contains(&number), "{number} is not told: {log}");
        let sent = format!(
            "twill_bgp_notifications_total{{peer=\"192.168.2.1\",direction=\"sent\",\
             code=\"{code}\",subcode=\"{subcode}\"}}"
        );
        ensure!(metric(lab, &sent)? == 1.0, "{sent}");
        let peer = lab.node("node1")?.peer("192.168.2.1")?;
        let info = peer["info"].as_str().unwrap_or_default();
        ensure!(info.contains(&number) && info.ends_with(self.text), "{peer}");
        Ok(())
    }
}

fn is_up(node: &Node, address: &str, flaps: u64) -> Result<()> {
    let peer = node.peer(address)?;
    ensure!(peer["state"] == "Established" && peer["flaps"] == flaps, "{peer}");
    Ok(())
}

/// One broken UPDATE after the other from one peer, while another has its session and its route.
pub(crate) fn broken_updates_are_answered_counted_and_told() -> Result<()> {
    let lab = silent_tors()?;
    let (node, tor1) = (lab.node("node1")?, lab.router("tor1")?);
    let mut calm = Raw::establish(lab.router("tor2")?, TOR2, 0)?;
    let route = calm.update("198.51.200.0/24".parse()?, IpAddr::from(TOR2), 0)?;
    calm.stream.write_all(&route)?;
    let mut raw = Raw::establish(tor1, TOR1, 0)?;
    for (third, case) in (100..).zip(&CASES) {
        case.meet(&lab, &mut raw, third).with_context(|| case.text)?;
        if matches!(case.does, Does::Resets(..)) {
            // It is held for a moment after an error.
            raw = wait_for("another session", LONG, || Raw::establish(tor1, TOR1, 0))?;
        }
    }
    is_up(node, "192.168.2.2", 0)?;
    node.wait_route("198.51.200.0/24", LONG).map(drop)
}
