//! Routes in both directions.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use twill_tests::wait::wait_for;

use super::{
    rig::{BLOCK, POOL, Rig},
    router::{COMMUNITIES, OUTSIDE, Peering, Router},
};
use crate::LONG;

/// What one side withdraws is gone at the other, and what it announces again is back.
pub(super) fn withdraw<R: Router>() -> Result<()> {
    let mut rig = Rig::<R>::up(Peering::default())?;
    rig.router.wait_path(BLOCK)?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    let before = rig.peer()?;
    rig.router.announce(false)?;
    rig.node()?.wait_no_route(OUTSIDE, LONG)?;
    rig.router.announce(true)?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;

    let quiet = POOL.replace("blockSize: 26", "blockSize: 26, disableBGPExport: true");
    rig.lab.write_resource("pool.yaml", &quiet)?;
    rig.router.wait_no_path(BLOCK)?;
    rig.lab.write_resource("pool.yaml", POOL)?;
    rig.router.wait_path(BLOCK)?;
    let after = rig.peer()?;
    ensure!(before["flaps"] == after["flaps"], "{before} became {after}");
    Ok(())
}

/// The router asks for everything again, and gets it in the same session (RFC 2918).
pub(super) fn refresh<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering::default())?;
    rig.router.wait_path(BLOCK)?;
    let (before, updates) = (rig.peer()?, rig.router.updates()?);
    rig.router.ask_again()?;
    wait_for("the routes to come again", LONG, || {
        let now = rig.router.updates()?;
        ensure!(now > updates, "{now} UPDATEs, as before");
        Ok(())
    })?;
    ensure!(rig.router.path(BLOCK)?.is_some(), "the path to {BLOCK} is gone");
    let after = rig.peer()?;
    ensure!(before["flaps"] == after["flaps"], "{before} became {after}");
    Ok(())
}

/// Communities of all three kinds (RFC 1997, 4360, 8092) are seen as they were set.
pub(super) fn communities<R: Router>() -> Result<()> {
    let rig = Rig::<R>::up(Peering { communities: true, ..Peering::default() })?;
    rig.node()?.wait_route(OUTSIDE, LONG)?;
    let explained = rig.node()?.ctl_json(&["bgp", "explain", OUTSIDE])?;
    let listed = explained["paths"][0]["communities"].as_array().cloned().unwrap_or_default();
    let found: BTreeSet<&str> = listed.iter().filter_map(|community| community.as_str()).collect();
    ensure!(found == BTreeSet::from(COMMUNITIES), "{explained}");
    Ok(())
}
