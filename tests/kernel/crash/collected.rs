//! GC after an ADD that was killed, and a GC that is killed itself.

use anyhow::{Result, ensure};
use twill_tests::{cni::Attachment, netns::Namespace};

use super::{
    Place, SOME,
    alone::{ALONE, alone},
    nothing_allocated, sweep, with_daemon,
};

impl Place<'_> {
    /// A GC that keeps these attachments.
    pub(super) fn gc(&self, listed: &[&Attachment]) -> Result<()> {
        self.runtime.gc(self.host, listed)
    }

    fn killed_gc(&self, listed: &[&Attachment], at: usize) -> Result<bool> {
        self.killed_call("twill", "GC", &self.runtime.first_gc(listed)?, at)
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
