//! The daemon on a host that is not kind to it.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
};

use anyhow::{Result, ensure};
use twill_tests::ping;

use crate::plugin::one_node;

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
