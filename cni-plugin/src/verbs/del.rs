//! DEL: the pod is cut off first, so that its address is free of it when it is given back.

use twill_dataplane::pod::{DelMode, DelOutcome, del_pod};

use super::Call;
use crate::{authority::Authority, delegate::Delegate, error::Error};

/// Detaches the container. What is missing, is success.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    let netns = call.netns_if_any()?;
    let attachment = call.attachment();
    if let Some(delegate) = Delegate::of(call) {
        // No daemon need run to delete the link. If our own store gave its addresses, the
        // configuration has changed since.
        let outcome = del_pod(&attachment, None, netns.as_ref(), DelMode::Immediate)?;
        if let DelOutcome::Removed { sequence: Some(sequence @ 1..) } = outcome {
            let mut authority = Authority::new(&call.netconf, call.deadline_of_del());
            authority.release(attachment, Some(sequence), None)?;
        }
        return Ok(delegate.del()?);
    }
    let mut authority = Authority::new(&call.netconf, call.deadline_of_del());
    let mode = authority.del_mode();
    let sequence = match del_pod(&attachment, None, netns.as_ref(), mode)? {
        DelOutcome::Absent => None,
        DelOutcome::Removed { sequence } => sequence,
        DelOutcome::Newer { .. } => return Ok(()),
    };
    tracing::trace!("step: pod cut off");
    let cookie = netns.as_ref().and_then(|netns| netns.cookie().ok().flatten());
    if sequence.is_none() {
        return authority.release(attachment, None, cookie).map(drop);
    }
    // The link that is gone says whose addresses these are, wherever the path leads by now.
    if authority.release(attachment.clone(), sequence, None)? {
        return Ok(());
    }
    // A container that was started again under its old id has addresses with a higher number than
    // its old link. If there is no new link, the ADD has died on the way to it.
    match del_pod(&attachment, sequence, netns.as_ref(), mode)? {
        DelOutcome::Newer { .. } => Ok(()),
        DelOutcome::Absent | DelOutcome::Removed { .. } => {
            authority.release(attachment, None, cookie).map(drop)
        }
    }
}
