//! CHECK: the kernel and the address store against the previous result.

use twill_dataplane::pod::{PodLink, check_pod};
use twill_rpc::message::CheckRequest;

use super::Call;
use crate::{authority::Authority, error::Error, result::Previous};

/// Compares. Nothing is repaired.
pub(crate) fn check(call: &Call) -> Result<(), Error> {
    let netns = call.netns()?;
    let previous = call.netconf.prev_result.as_ref().ok_or(Error::NoPrevious)?;
    let previous = Previous::read(previous, &call.variables.ifname, &call.variables.netns)?;
    let link = PodLink {
        attachment: call.attachment(),
        // Neither is compared: an alias of any ADD of this attachment is right, and the MTU may
        // have been changed by a later plugin.
        sequence: 0,
        mtu: 0,
        addresses: previous.addresses.clone(),
        pod_name: None,
    };
    let differences = check_pod(&link, &netns)?;
    if !differences.is_empty() {
        return Err(Error::Differs(differences));
    }
    let request = CheckRequest { attachment: link.attachment, addresses: previous.addresses };
    Authority::new(&call.netconf, call.deadline).check(&request)
}
