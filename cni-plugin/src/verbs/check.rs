//! CHECK: the kernel and the address store against the previous result.

use twill_dataplane::pod::{Expected, check_pod, host_link};
use twill_rpc::message::CheckRequest;
use twill_types::{AttachmentId, LinkAlias};

use super::Call;
use crate::{
    authority::Authority,
    call::Persona,
    delegate::Delegate,
    error::Error,
    result::{PodAddress, Previous},
};

/// Compares. Nothing is repaired.
pub(crate) fn check(call: &Call) -> Result<(), Error> {
    let netns = call.netns()?;
    let previous = call.netconf.prev_result.as_ref().ok_or(Error::NoPrevious)?;
    let previous = Previous::read(previous, &call.variables.ifname, &call.variables.netns)?;
    let attachment = call.attachment();
    let is_ours = |ip: &PodAddress| call.persona == Persona::Ipam || ip.is_of_twill();
    let ours = previous.addresses.into_iter().filter(is_ours);
    let addresses: Vec<_> = ours.map(|ip| ip.address).collect();
    if call.persona == Persona::Main {
        // What this plugin has made and the result still lists. Not what the configuration says,
        // which may have changed, nor what a later plugin has taken away.
        let expected = Expected {
            attachment: attachment.clone(),
            addresses: addresses.clone(),
            routes: previous.routes,
        };
        let differences = check_pod(&expected, &netns)?;
        if !differences.is_empty() {
            return Err(Error::Differs(differences));
        }
    }
    if call.netconf.wishes.without_ipam {
        return Ok(());
    }
    if let Some(delegate) = Delegate::of(call) {
        return Ok(delegate.check()?);
    }
    let request = CheckRequest { attachment, addresses };
    match Authority::holding(&call.netconf, call.deadline).check(&request) {
        // An annotation of the pod that came by the daemon.
        Err(_) if is_without_store(&request.attachment) => Ok(()),
        checked => checked,
    }
}

/// Whether the link says that its addresses are in no store.
fn is_without_store(attachment: &AttachmentId) -> bool {
    let alias = host_link(attachment).ok().flatten().and_then(|link| link.twill_alias());
    alias.is_some_and(|alias| alias.is_of(attachment) && alias.sequence == LinkAlias::WITHOUT_STORE)
}
