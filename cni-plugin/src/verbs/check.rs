//! CHECK: the kernel and the address store against the previous result.

use twill_dataplane::pod::{PodLink, PodRoute, check_pod};
use twill_rpc::message::CheckRequest;

use super::Call;
use crate::{
    authority::Authority, call::Persona, delegate::Delegate, error::Error, result::Previous,
};

/// Compares. Nothing is repaired.
pub(crate) fn check(call: &Call) -> Result<(), Error> {
    let netns = call.netns()?;
    let previous = call.netconf.prev_result.as_ref().ok_or(Error::NoPrevious)?;
    let previous = Previous::read(previous, &call.variables.ifname, &call.variables.netns)?;
    let attachment = call.attachment();
    if call.persona == Persona::Main {
        let link = PodLink {
            attachment: attachment.clone(),
            // None of these is compared: an alias of any ADD of this attachment is right, and the
            // MTU and the hardware address may have been changed by a later plugin.
            sequence: 0,
            mtu: 0,
            mac: None,
            addresses: previous.addresses.clone(),
            // Those of the result: with another IPAM plugin no configuration has them, and one that
            // has changed since says nothing about this pod.
            routes: previous.routes.iter().copied().map(PodRoute::to).collect(),
            pod_name: None,
        };
        let differences = check_pod(&link, &netns)?;
        if !differences.is_empty() {
            return Err(Error::Differs(differences));
        }
    }
    if let Some(delegate) = Delegate::of(call) {
        return Ok(delegate.check()?);
    }
    if call.netconf.wishes.without_ipam {
        return Ok(());
    }
    let request = CheckRequest { attachment, addresses: previous.addresses };
    Authority::new(&call.netconf, call.deadline).check(&request)
}
