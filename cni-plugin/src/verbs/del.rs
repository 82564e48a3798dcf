//! DEL: the pod is cut off first, so that its address is free of it when it is given back.

use std::time::Duration;

use twill_dataplane::pod::{DelMode, DelOutcome, del_pod};

use super::Call;
use crate::{authority::Authority, delegate::Delegate, error::Error};

/// How much of a DEL's time our own store leaves to another IPAM plugin.
const OWN_STORE: Duration = Duration::from_secs(4);

/// Detaches the container. What is missing, is success.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    let netns = call.netns_if_any()?;
    let attachment = call.attachment();
    if let Some(delegate) = Delegate::of(call) {
        let deadline = call.deadline_of_del();
        // No daemon need run to delete the link.
        let outcome = del_pod(&attachment, None, netns.as_ref(), DelMode::Immediate)?;
        // If our own store gave its addresses, the configuration has changed since. That it does
        // not take them back is no reason for the plugin not to hear of the DEL.
        let released = match outcome {
            DelOutcome::Removed { sequence: Some(sequence @ 1..) } => {
                let mut authority = Authority::holding(&call.netconf, deadline.before(OWN_STORE));
                authority.release(attachment, Some(sequence), None).map(drop)
            }
            _ => Ok(()),
        };
        delegate.del(deadline)?;
        return released;
    }
    let mut authority = Authority::holding(&call.netconf, call.deadline_of_del());
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
