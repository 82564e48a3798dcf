//! CHECK: the kernel and the address store against the previous result.

use std::net::IpAddr;

use twill_dataplane::pod::{Expected, check_pod, host_link};
use twill_rpc::message::CheckRequest;
use twill_types::{AttachmentId, Family, LinkAlias};

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
    let mut authority = Authority::holding(&call.netconf, call.deadline);
    let mut holds = |addresses: &[IpAddr]| {
        let (attachment, addresses) = (attachment.clone(), addresses.to_vec());
        authority.check(&CheckRequest { attachment, addresses })
    };
    match (holds(&addresses), call.persona) {
        // An annotation of the pod that came by the daemon.
        (Err(_), Persona::Main) if is_without_store(&attachment) => Ok(()),
        (Err(_), Persona::Ipam) if is_beside_others(call, &addresses, holds) => Ok(()),
        (checked, _) => checked,
    }
}

/// Whether the store holds some of the addresses, and one of each family that it gives. Later plugins may have
/// added others, and under another main plugin nothing but the store tells whose they are.
fn is_beside_others(
    call: &Call,
    addresses: &[IpAddr],
    mut holds: impl FnMut(&[IpAddr]) -> Result<(), Error>,
) -> bool {
    let held = addresses.iter().filter(|address| holds(&[**address]).is_ok());
    let held: Vec<Family> = held.map(|address| Family::of(*address)).collect();
    let lacks = |address: &IpAddr| {
        let family = Family::of(*address);
        call.netconf.ipam.families.contains(&family) && !held.contains(&family)
    };
    !held.is_empty() && !addresses.iter().any(lacks)
}

/// Whether the link says that its addresses are in no store.
fn is_without_store(attachment: &AttachmentId) -> bool {
    let alias = host_link(attachment).ok().flatten().and_then(|link| link.twill_alias());
    alias.is_some_and(|alias| alias.is_of(attachment) && alias.sequence == LinkAlias::WITHOUT_STORE)
}
