//! The daemon dies under traffic.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Screen, show};
use crate::{
    lab::{Lab, Pod},
    ping::Pinger,
    rack,
    wait::wait_for,
    watch::RouteWatch,
};

pub(super) fn run(lab: &mut Lab, pods: &[Pod], screen: &Screen) -> Result<()> {
    let blocks = lab.node("node2")?.blocks()?;
    let from = lab.bird("tor")?.log().len();
    let watches = ["tor", "node1", "node2", "node3"].map(|name| RouteWatch::start(lab, name));
    let pinger = Pinger::start(show::sources(lab, pods)?, Duration::from_millis(10))?;
    pinger.wait_rounds(20)?;

    let start = Instant::now();
    let pid = lab.node("node2")?.daemon()?.pid();
    lab.node_mut("node2")?.kill9()?;
    wait_for("the ToR to see the session go", rack::CONVERGENCE, || {
        let protocol = lab.bird("tor")?.protocol("node2")?;
        ensure!(!protocol.info.starts_with("Established"), "{protocol:?}");
        Ok(())
    })?;
    screen.good(format_args!("twilld (pid {pid}) is dead, the ToR's session with node2 is down"));
    let kept = lab.bird("tor")?.routes_from("node2")?;
    ensure!(
        kept.len() == blocks.len() && lab.bird("tor")?.is_helping("node2")?,
        "the ToR does not keep node2's routes: {kept:?}"
    );
    screen.good("the ToR keeps node2's routes (graceful restart)");
    pinger.wait_rounds(50)?;

    lab.node_mut("node2")?.start()?;
    rack::wait_established(lab)?;
    wait_for("the End-of-RIB at the ToR", rack::CONVERGENCE, || {
        ensure!(!lab.bird("tor")?.is_helping("node2")?, "it waits still");
        Ok(())
    })?;
    screen.good(format_args!(
        "started again: {} announced anew {:.1} s after the kill",
        blocks.join(", "),
        start.elapsed().as_secs_f64()
    ));
    pinger.wait_rounds(50)?;

    let tallies = pinger.stop()?;
    show::lossless(&tallies)?;
    let sent: u32 = tallies.iter().map(|tally| tally.sent).sum();
    screen.good(format_args!("{sent} packets of {} pairs: none lost", tallies.len()));
    let withdrawn = lab.bird("tor")?.withdrawals("node2", from);
    ensure!(withdrawn.is_empty(), "the ToR lost routes: {withdrawn:#?}");
    for watch in watches {
        watch?.nothing_deleted()?;
    }
    screen.good("BIRD's log: no route withdrawn; no kernel deleted a route meanwhile");
    Ok(())
}
