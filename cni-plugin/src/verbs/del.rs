//! DEL: the pod is cut off first, so that its address is free of it when it is given back.

use std::{net::IpAddr, path::Path, time::Duration};

use twill_dataplane::{
    Netns,
    pod::{DelMode, DelOutcome, del_pod, pod_links},
};
use twill_rpc::message::Held;
use twill_sys::netns::{AtPath, look};
use twill_types::{AttachmentId, LinkAlias, ReleaseRequest, host_link_name};

use super::{Call, namespace_of};
use crate::{
    authority::{Authority, GivenBack, may_have_link},
    call::Variables,
    delegate::Delegate,
    error::Error,
    result::Previous,
};

/// How much of a DEL's time our own store leaves to another IPAM plugin.
const OWN_STORE: Duration = Duration::from_secs(4);

/// Detaches the container. What is missing, is success.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    let netns = call.netns_if_any()?;
    let attachment = call.attachment();
    if let Some(delegate) = Delegate::of(call) {
        let deadline = call.deadline_of_del();
        let mut authority = Authority::holding(&call.netconf, deadline.before(OWN_STORE));
        // No daemon need run to delete the link.
        match cut_off(call, &mut authority, netns.as_ref(), DelMode::Immediate)? {
            DelOutcome::Elsewhere { .. } | DelOutcome::Newer { .. } => return Ok(()),
            // If our own store gave its addresses, the configuration has changed since.
            DelOutcome::Removed { sequence: Some(sequence @ 1..), parked } => {
                authority.release(&of_add(attachment, sequence), parked);
            }
            DelOutcome::Absent | DelOutcome::Removed { .. } => {}
        }
        return Ok(delegate.del(deadline)?);
    }
    let mut authority = Authority::holding(&call.netconf, call.deadline_of_del());
    let mode = authority.del_mode();
    let (sequence, parked) = match cut_off(call, &mut authority, netns.as_ref(), mode)? {
        DelOutcome::Absent => (None, None),
        DelOutcome::Removed { sequence, parked } => (sequence, parked),
        DelOutcome::Elsewhere { .. } | DelOutcome::Newer { .. } => return Ok(()),
    };
    tracing::trace!("step: pod cut off");
    let Some(sequence) = sequence else {
        release_of(&mut authority, attachment, netns.as_ref(), parked);
        return Ok(());
    };
    // The link that is gone says whose addresses these are, wherever the path leads by now.
    if authority.release(&of_add(attachment.clone(), sequence), parked) != GivenBack::Nothing {
        return Ok(());
    }
    // A container that was started again under its old id has addresses with a higher number than
    // its old link. If there is no new link, the ADD has died on the way to it, or is there soon: a DEL that
    // names no namespace means that one's only if that has none either.
    if netns.as_ref().and_then(|netns| netns.cookie().ok().flatten()).is_none() {
        release_of_the_dead(&mut authority, &attachment, netns.as_ref());
        return Ok(());
    }
    match del_pod(&attachment, Some(sequence), netns.as_ref(), mode)? {
        DelOutcome::Elsewhere { .. } | DelOutcome::Newer { .. } => {}
        DelOutcome::Absent => release_of(&mut authority, attachment, netns.as_ref(), parked),
        DelOutcome::Removed { parked, .. } => {
            release_of(&mut authority, attachment, netns.as_ref(), parked);
        }
    }
    Ok(())
}

/// Takes the pod off the network; [`DelOutcome::Elsewhere`] if the link is that of another sandbox.
fn cut_off(
    call: &Call,
    authority: &mut Authority<'_>,
    netns: Option<&Netns>,
    mode: DelMode,
) -> Result<DelOutcome, Error> {
    let attachment = call.attachment();
    let outcome = del_pod(&attachment, None, netns, mode)?;
    let (DelOutcome::Elsewhere { sequence }, Some(named)) = (outcome, netns) else {
        return Ok(outcome);
    };
    // No store says for which namespace it was made.
    let is_in_no_store = sequence == Some(LinkAlias::WITHOUT_STORE)
        || sequence.is_none() && Delegate::of(call).is_some();
    let is_of_another = match is_in_no_store {
        true => !is_remembered(call, &attachment)?,
        false => is_of_another(authority, &attachment, sequence, named),
    };
    if is_of_another {
        tracing::info!(%attachment, "it has another namespace by now: left alone");
        return Ok(outcome);
    }
    Ok(del_pod(&attachment, sequence, None, mode)?)
}

/// Whether a link that leads elsewhere is the one that the runtime remembers for the namespace which it names: the
/// pod has moved its end into a namespace of its own. The result of a newer sandbox names that one's, and until it
/// is there the newer link has no addresses.
fn is_remembered(call: &Call, attachment: &AttachmentId) -> Result<bool, Error> {
    let Variables { ifname, netns, .. } = &call.variables;
    let previous = call.netconf.prev_result.as_ref();
    let Some(Ok(previous)) = previous.map(|result| Previous::read(result, ifname, netns)) else {
        return Ok(false);
    };
    let name = host_link_name(attachment);
    let links = pod_links()?;
    let found = links.iter().find(|found| found.link.name == name);
    let addresses = found.map(|found| &found.addresses[..]).unwrap_or_default();
    let is_known =
        |address: &IpAddr| previous.addresses.iter().any(|known| known.address == *address);
    Ok(!addresses.is_empty() && addresses.iter().all(is_known))
}

/// The release of what an ADD was given.
fn of_add(attachment: AttachmentId, sequence: u64) -> ReleaseRequest {
    ReleaseRequest { attachment, sequence: Some(sequence), netns_cookie: None }
}

/// Gives back what an attachment has in the namespace that the runtime names, or has had at its path: no link tells
/// of which ADD that is. What it has in a namespace that is at another path is of a later ADD.
pub(super) fn release_of(
    authority: &mut Authority<'_>,
    attachment: AttachmentId,
    named: Option<&Netns>,
    parked: Option<u32>,
) {
    let netns_cookie = named.and_then(|netns| netns.cookie().ok().flatten());
    let request = ReleaseRequest { attachment, sequence: None, netns_cookie };
    if authority.release(&request, parked) != GivenBack::Nothing {
        return;
    }
    let (attachment, Some(named)) = (request.attachment, named) else {
        return;
    };
    match authority.held(&attachment) {
        // Looked at after the store, and given back by its number: an ADD that comes meanwhile keeps its own.
        Ok(Some(held))
            if Path::new(&held.netns) == named.path() && namespace_of(&held).is_none() =>
        {
            tracing::info!(%attachment, "its path has another namespace by now");
            authority.release(&of_add(attachment, held.sequence), None);
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(%attachment, %error, "cannot see whether it has addresses still");
        }
    }
}

/// Gives back what an attachment has without a link, for an ADD that was killed: its namespace is gone, or is the
/// one that the runtime names as far as a kernel without cookies can tell.
fn release_of_the_dead(
    authority: &mut Authority<'_>,
    attachment: &AttachmentId,
    named: Option<&Netns>,
) {
    let is_dead = |held: &Held| {
        let is_named = named.is_some_and(|named| named.path() == Path::new(&held.netns));
        (is_named || is_gone(held)) && !may_have_link(attachment)
    };
    match authority.held(attachment) {
        Ok(Some(held)) if is_dead(&held) => {
            tracing::info!(%attachment, "a later ADD has left addresses behind: released");
            authority.release(&of_add(attachment.clone(), held.sequence), None);
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(%attachment, %error, "cannot see whether a later ADD has addresses");
        }
    }
}

/// Whether the namespace that somebody was given addresses for is certainly not at its path any more.
fn is_gone(held: &Held) -> bool {
    match look(Path::new(&held.netns)) {
        Ok(AtPath::Namespace(there)) => {
            there.zip(held.netns_cookie).is_some_and(|(there, cookie)| there != cookie)
        }
        Ok(AtPath::Plain) => true,
        // A daemon of before does not say the path.
        Ok(AtPath::Nothing) => !held.netns.is_empty(),
        Err(_) => false,
    }
}

/// Whether a link that does not lead to the namespace which the runtime names was made for another
/// one, that is at its path: then this is a late DEL of a container that was started again under its
/// old id. Where the store knows nothing of it, it is not; where it cannot be asked, it is: if that is wrong, the
/// link goes with its namespace, and what it had is found by the daemon, or by an ADD that finds no address.
fn is_of_another(
    authority: &mut Authority<'_>,
    attachment: &AttachmentId,
    sequence: Option<u64>,
    named: &Netns,
) -> bool {
    match authority.held(attachment) {
        Ok(Some(held)) if sequence.is_none_or(|sequence| held.sequence == sequence) => {
            held.netns_cookie != named.cookie().ok().flatten() && namespace_of(&held).is_some()
        }
        Ok(_) => false,
        Err(error) => {
            tracing::warn!(%attachment, %error, "cannot see whose link it is");
            true
        }
    }
}
