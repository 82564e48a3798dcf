//! DEL: the pod is cut off first, so that its address is free of it when it is given back.

use std::time::Duration;

use twill_dataplane::{
    NetnsError,
    pod::{DelOutcome, del_pod},
};

use super::Call;
use crate::{authority::Authority, error::Error};

/// The most that a DEL waits for the daemon in all: a pod that cannot be deleted blocks more than
/// an address that comes back later.
const PATIENCE: Duration = Duration::from_secs(8);

/// Detaches the container. What is missing, is success.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    let netns = match call.netns() {
        Ok(netns) => Some(netns),
        Err(Error::Netns {
            source: NetnsError::Open { .. } | NetnsError::NotANamespace { .. },
            ..
        }) => None,
        Err(error) => return Err(error),
    };
    let mut authority = Authority::new(&call.netconf, call.deadline.at_most(PATIENCE));
    let attachment = call.attachment();
    let mode = authority.del_mode();
    let sequence = match del_pod(&attachment, None, netns.as_ref(), mode)? {
        DelOutcome::Absent => None,
        DelOutcome::Removed { sequence } => sequence,
        DelOutcome::Newer { .. } => return Ok(()),
    };
    let released = authority.release(attachment.clone(), sequence)?;
    if released || sequence.is_none() {
        return Ok(());
    }
    // A container that was started again under its old id has addresses with a higher number than
    // its old link. If there is no new link, the ADD has died on the way to it.
    match del_pod(&attachment, sequence, netns.as_ref(), mode)? {
        DelOutcome::Newer { .. } => Ok(()),
        DelOutcome::Absent | DelOutcome::Removed { .. } => {
            authority.release(attachment, None).map(drop)
        }
    }
}
