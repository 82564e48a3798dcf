//! The daemon on a host that is not kind to it.

use std::{
    fs::{self, File, Permissions},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

use anyhow::{Result, ensure};
use twill_tests::{lab::Lab, ping, wait::wait_for};

use crate::{LONG, SECONDS, plugin::one_node};

/// Who can open a lock can hold it: files of the run directory are root's alone, whatever they
/// were before, and a lock that is not let go of is not waited for without end.
pub(crate) fn nobody_else_can_keep_it_from_starting() -> Result<()> {
    let mut lab = one_node()?;
    lab.node_mut("node1")?.stop()?;
    let run = lab.node("node1")?.dir().join("run");
    let (directories, locks) = (["ipam", "spool"], ["ipam/owner.lock", "spool/.lock"]);
    for (names, mode) in [(directories, 0o755), (locks, 0o644)] {
        for name in names {
            fs::set_permissions(run.join(name), Permissions::from_mode(mode))?;
        }
    }
    let held = File::open(run.join("spool/.lock"))?;
    held.lock_shared()?;
    lab.node_mut("node1")?.start()?;
    for (names, mode) in [(directories, 0o700), (locks, 0o600)] {
        for name in names {
            let found = fs::metadata(run.join(name))?.permissions().mode() & 0o7777;
            ensure!(found == mode, "{name} has mode {found:o}");
        }
    }
    let log = lab.node("node1")?.log();
    ensure!(log.contains("spool/.lock") && log.contains("lslocks"), "{log}");
    let pod = lab.add_pod("node1", "web")?;
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)
}

/// More callers than it may have files open: those wait, and it goes on.
pub(crate) fn it_outlives_too_many_connections() -> Result<()> {
    const FILES: usize = 64;
    let mut lab = one_node()?;
    let node = lab.node_mut("node1")?;
    node.stop()?;
    node.launch_by(&["prlimit", &format!("--nofile={FILES}")])?;
    node.wait_ready()?;
    let before = node.daemon()?.pid();
    let connect = || UnixStream::connect(node.socket());
    let crowd = (0..2 * FILES).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
    let complaints = || node.log().matches("cannot accept a connection").count();
    wait_for("word of it", SECONDS, || {
        ensure!(complaints() > 0, "{}", node.log());
        Ok(())
    })?;
    drop(crowd);
    let status = wait_for("an answer", SECONDS, || node.status())?;
    ensure!(status["pid"] == before, "another daemon answers: {status}");
    ensure!(complaints() == 1, "said {} times", complaints());
    let pod = lab.add_pod("node1", "web")?;
    ping::reaches(lab.node("node1")?.namespace(), pod.address()?)
}

/// `rp_filter` of a pod's link is of no use where that of all links is 2.
pub(crate) fn a_loose_source_check_is_told() -> Result<()> {
    let mut lab = one_node()?;
    let told = |lab: &Lab, wanted: bool| {
        wait_for("the node's problems", LONG, || {
            let problems = lab.node("node1")?.status()?["problems"].to_string();
            ensure!(problems.contains("rp_filter") == wanted, "{problems}");
            Ok(())
        })
    };
    let node = lab.node_mut("node1")?;
    node.stop()?;
    node.namespace().sysctl("ipv4/conf/all/rp_filter", "2")?;
    node.start()?;
    told(&lab, true)?;
    lab.node("node1")?.namespace().sysctl("ipv4/conf/all/rp_filter", "1")?;
    told(&lab, false)
}
