//! GC after an ADD that was killed or amid one, and a GC that is killed itself.

use std::fs::File;

use anyhow::{Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use twill_tests::{
    cni::{self, Attachment},
    netns::Namespace,
    programs,
    ptrace::{self, Ended},
};

use super::{
    Place, SOME,
    alone::{ALONE, alone},
    nothing_allocated, sweep, with_daemon,
};
use crate::plugin::refusal;

impl Place<'_> {
    /// A GC that keeps these attachments.
    pub(super) fn gc(&self, listed: &[&Attachment]) -> Result<()> {
        self.runtime.gc(self.host, listed)
    }

    fn killed_gc(&self, listed: &[&Attachment], at: usize) -> Result<bool> {
        self.killed_call("twill", "GC", &self.runtime.first_gc(listed)?, at)
    }

    /// An ADD that waits at its `at`-th system call while a GC that does not list it is made, unless
    /// the ADD has the store, which the GC would wait for. What came of it, and of how many calls.
    fn add_around_gc(&self, attachment: &Attachment, at: usize) -> Result<(Result<Value>, usize)> {
        let call = self.runtime.first_call("ADD", attachment)?;
        let (twill, stdin) = (programs::find("twill")?, call.stdin());
        let mut gc = || {
            if self.store_is_free()?
                && let Err(error) = self.gc(&[])
            {
                // Threads of the ADD wait as well, which may not have let go of the store.
                let error = refusal::<()>(Err(error))?;
                ensure!(error.code == 11, "{error}");
            }
            Ok(())
        };
        let environment = &call.environment;
        let ended =
            ptrace::run_around(self.host, &twill, environment, stdin.as_bytes(), at, &mut gc)?;
        match ended {
            Ended::Completed { output, calls } => Ok((cni::parse("ADD", "twill", &output), calls)),
            Ended::Killed { number } => bail!("killed at {number}"),
        }
    }

    fn store_is_free(&self) -> Result<bool> {
        let lock = File::open(self.run_dir.join("ipam/owner.lock"))?;
        Ok(Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok())
    }

    /// No link of the pod is left, on the node beside `others` links of other pods, and in the pod.
    fn no_link_but(&self, others: usize) -> Result<()> {
        let links = self.host.ip("-oneline link show")?;
        let ends = links.lines().filter(|line| line.contains("twl")).count();
        ensure!(ends == others, "{ends} links, {others} were expected: {links}");
        let inside = self.pod.ip("-oneline link show")?;
        ensure!(!inside.contains("eth0"), "the pod has its interface still: {inside}");
        Ok(())
    }
}

pub(crate) fn gc_undoes_an_add_killed_anywhere() -> Result<()> {
    with_daemon(|lab, place, attachment| {
        sweep(SOME, |at| {
            let killed = place.killed("ADD", attachment, at)?;
            place.gc(&[])?;
            place.no_pod()?;
            nothing_allocated(lab)?;
            Ok(killed)
        })
    })
}

/// However far it came: what is listed works on, and the next GC takes the rest.
pub(crate) fn a_gc_killed_anywhere_may_be_repeated() -> Result<()> {
    let namespace = Namespace::create("listed")?;
    with_daemon(|lab, place, attachment| {
        let mut listed = place.attachment("listed");
        listed.netns = namespace.path().display().to_string();
        let kept = place.add(&listed)?;
        sweep(SOME, |at| {
            let addresses = place.add(attachment)?;
            place.works(attachment, &addresses)?;
            let killed = place.killed_gc(&[&listed], at)?;
            place.works(&listed, &kept)?;
            place.gc(&[&listed])?;
            place.no_link_but(1)?;
            place.works(&listed, &kept)?;
            let used = lab.node("node1")?.addresses_in_use()?;
            ensure!(used == kept.len() as u64, "{used} addresses are in use");
            Ok(killed)
        })?;
        place.del(&listed)
    })
}

/// A runtime should not let that happen. The ADD succeeds and its pod has its address, or it fails and
/// has none, or the GC has taken both, link and address: never the address alone. There is one for all.
pub(crate) fn alone_a_gc_amid_an_add_leaves_no_pod_without_its_address() -> Result<()> {
    alone(|place| {
        let mut refused = 0;
        sweep(ALONE, |at| {
            let attachment = place.attachment(&format!("c{at}"));
            let next = place.attachment(&format!("c{at}-next"));
            let (added, calls) = place.add_around_gc(&attachment, at)?;
            match added {
                Ok(_) if place.host.ip("-oneline link show")?.contains("twl") => {
                    let error = refusal(place.runtime.add(place.host, &next))?;
                    ensure!(error.code == 101, "the address of a pod that lives is free: {error}");
                }
                Ok(_) => place.no_pod()?,
                Err(error) => {
                    let error = refusal::<()>(Err(error))?;
                    refused += usize::from(error.code == 11);
                }
            }
            place.del(&attachment)?;
            place.round(&next)?;
            Ok(at <= calls)
        })?;
        ensure!(refused > 0, "no GC came between the address and the link");
        Ok(())
    })
}

pub(crate) fn alone_a_gc_killed_anywhere_may_be_repeated() -> Result<()> {
    alone(|place| {
        sweep(ALONE, |at| {
            let attachment = place.attachment(&format!("c{at}"));
            place.add(&attachment)?;
            let killed = place.killed_gc(&[], at)?;
            place.gc(&[])?;
            place.no_pod()?;
            place.round(&place.attachment(&format!("c{at}-next")))?;
            Ok(killed)
        })
    })
}
