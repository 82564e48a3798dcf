//! DEL: the pod is cut off first, so that its address is free of it when it is given back.

use twill_dataplane::pod::{DelMode, DelOutcome, del_pod};

use super::Call;
use crate::{authority::Authority, delegate::Delegate, error::Error};

/// Detaches the container. What is missing, is success.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    let netns = call.netns_if_any()?;
    let attachment = call.attachment();
    if let Some(delegate) = Delegate::of(call) {
        // Its addresses are nobody's of ours, and no daemon need run to delete the link.
        del_pod(&attachment, None, netns.as_ref(), DelMode::Immediate)?;
        return Ok(delegate.del()?);
    }
    let mut authority = Authority::new(&call.netconf, call.deadline_of_del());
    let sequence = match del_pod(&attachment, None, netns.as_ref(), authority.del_mode())? {
        DelOutcome::Absent => None,
        DelOutcome::Removed { sequence } => sequence,
        DelOutcome::Newer { .. } => return Ok(()),
    };
    let cookie = netns.and_then(|netns| netns.cookie().ok().flatten());
    authority.release(attachment, sequence, cookie)
}
