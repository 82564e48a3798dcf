//! A DEL that is not done when the container is started again.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use twill_tests::{
    cni,
    netns::Namespace,
    programs,
    ptrace::{self, Ended},
};

use super::{SOME, nothing_allocated, sweep, with_daemon};

/// A path that leads from one namespace to another.
struct Pointer(PathBuf);

impl Pointer {
    fn to(&self, namespace: &Namespace) -> io::Result<()> {
        self.off()?;
        symlink(namespace.path(), &self.0)
    }

    fn off(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

/// The path has had a namespace before the one that the DEL finds, and has the next one's when it is
/// halfway. The pod of that ADD keeps both, link and address, or it has lost both.
pub(crate) fn a_late_del_amid_an_add_at_its_path_takes_no_address_alone() -> Result<()> {
    let (first, second) = (Namespace::create("first")?, Namespace::create("second")?);
    with_daemon(|lab, place, attachment| {
        let pointer = Pointer(place.run_dir.join("netns"));
        let mut moved = attachment.clone();
        moved.netns = pointer.path().display().to_string();
        let (mut lived, mut lost) = (0, 0);
        sweep(SOME, |at| {
            pointer.to(&first)?;
            place.add(&moved)?;
            first.ip("link del eth0")?;
            pointer.to(&second)?;
            let call = place.runtime.first_call("DEL", &moved)?;
            let mut addresses = Vec::new();
            let mut add = || {
                pointer.to(place.pod)?;
                addresses = place.add(&moved)?;
                Ok(())
            };
            let (twill, stdin) = (programs::find("twill")?, call.stdin());
            let environment = &call.environment;
            let ended = ptrace::run_around(
                place.host,
                &twill,
                environment,
                stdin.as_bytes(),
                at,
                &mut add,
            )?;
            let calls = match ended {
                Ended::Completed { output, calls } => {
                    cni::parse("DEL", "twill", &output)?;
                    calls
                }
                Ended::Killed { number } => bail!("killed at {number}"),
            };
            if !addresses.is_empty() && place.host.ip("-oneline link show")?.contains("twl") {
                place.works(&moved, &addresses)?;
                lived += 1;
            } else {
                place.no_pod()?;
                nothing_allocated(lab)?;
                lost += 1;
            }
            place.del(&moved)?;
            nothing_allocated(lab)?;
            Ok(at <= calls)
        })?;
        ensure!(lived > 0 && lost > 0, "{lived} pods lived, {lost} did not");
        pointer.off()?;
        Ok(())
    })
}
