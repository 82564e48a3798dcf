//! A pod's second interface, whose rules are in the pod and do not go with its link.

use anyhow::{Result, ensure};
use twill_tests::netns::Namespace;

use super::{SOME, nothing_allocated, sweep, with_daemon};

/// No rule of ours is in the pod.
fn no_rule(pod: &Namespace) -> Result<()> {
    for family in ["-4", "-6"] {
        let rules = pod.ip(&format!("{family} rule show"))?;
        ensure!(!rules.contains("30000:"), "a rule is left: {rules}");
    }
    Ok(())
}

/// The first one works on meanwhile.
pub(crate) fn a_second_interface_killed_anywhere_is_undone_or_repeated() -> Result<()> {
    with_daemon(|_, place, attachment| {
        let first = place.add(attachment)?;
        let mut net1 = attachment.clone();
        net1.ifname = "net1".to_owned();
        sweep(SOME, |at| {
            place.killed("ADD", &net1, at)?;
            place.runtime.del(place.host, &net1)?;
            no_rule(place.pod)?;
            let killed = place.killed("ADD", &net1, at)?;
            let second = place.add(&net1)?;
            place.works(&net1, &second)?;
            place.works(attachment, &first)?;
            place.runtime.del(place.host, &net1)?;
            no_rule(place.pod)?;
            Ok(killed)
        })?;
        place.del(attachment)
    })
}

/// A GC goes where the store says that the interface is.
pub(crate) fn gc_takes_the_rules_of_a_second_interface() -> Result<()> {
    with_daemon(|lab, place, attachment| {
        let first = place.add(attachment)?;
        let mut net1 = attachment.clone();
        net1.ifname = "net1".to_owned();
        sweep(SOME, |at| {
            let killed = place.killed("ADD", &net1, at)?;
            place.gc(&[attachment])?;
            no_rule(place.pod)?;
            place.works(attachment, &first)?;
            Ok(killed)
        })?;
        let links = place.pod.ip("-oneline link show")?;
        ensure!(!links.contains("net1"), "its interface is left: {links}");
        place.del(attachment)?;
        nothing_allocated(lab)
    })
}
