//! GC: everything of this network goes that the runtime does not list.

use std::collections::BTreeMap;

use twill_dataplane::pod::{DelMode, del_pod, pod_links};
use twill_types::{Alias, AttachmentId};

use super::Call;
use crate::{
    authority::Authority, call::Persona, delegate::Delegate, error::Error, netconf::Attached,
};

/// Removes what is stale. An error does not keep the rest from going; all are told at the end.
///
/// The runtime sees to it that no ADD or DEL of the network runs meanwhile. Where it does not, the
/// numbers protect what is newer: a release names the ADD that was seen here.
pub(crate) fn gc(call: &Call) -> Result<(), Error> {
    let valid = call.netconf.valid_attachments.as_ref().ok_or(Error::NoAttachments)?;
    let mut authority = Authority::new(&call.netconf, call.deadline);
    let delegate = Delegate::of(call);
    let held = match &delegate {
        Some(_) => Vec::new(),
        None => authority.attachments(&call.netconf.name)?,
    };
    let held = held.into_iter().map(|held| (held.attachment, Some(held.sequence)));
    // A link without a record, of an ADD that died or whose addresses came from elsewhere.
    let mut found: BTreeMap<AttachmentId, Option<u64>> = match call.persona {
        Persona::Main => links_of(&call.netconf.name)?.into_iter().map(|id| (id, None)).collect(),
        Persona::Ipam => BTreeMap::new(),
    };
    found.extend(held);
    let mut failures: Vec<String> = Vec::new();
    for (attachment, sequence) in found.into_iter().filter(|(id, _)| !is_listed(id, valid)) {
        tracing::info!(%attachment, "not listed by the runtime: removed");
        let removed = remove(call, &mut authority, attachment.clone(), sequence);
        failures.extend(removed.err().map(|error| format!("{attachment}: {error}")));
    }
    if let Some(error) = delegate.and_then(|delegate| delegate.gc().err()) {
        failures.push(error.to_string());
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::Gc(failures)) }
}

fn is_listed(id: &AttachmentId, valid: &[Attached]) -> bool {
    valid.iter().any(|valid| valid.container_id == id.container_id && valid.ifname == id.ifname)
}

/// Whose links there are on a network, as far as their aliases say so in full.
fn links_of(network: &str) -> Result<Vec<AttachmentId>, Error> {
    let links = pod_links()?.into_iter().filter_map(|found| found.alias);
    let on_it = links.filter_map(|alias| match alias.owner {
        Alias::Full(id) if id.network == network => Some(id),
        Alias::Full(_) | Alias::Hashed(_) => None,
    });
    Ok(on_it.collect())
}

fn remove(
    call: &Call,
    authority: &mut Authority<'_>,
    attachment: AttachmentId,
    sequence: Option<u64>,
) -> Result<(), Error> {
    if call.persona == Persona::Main {
        // At once: where the pod's namespace is not known, its end of the link cannot be moved out
        // of the way of a later ADD.
        del_pod(&attachment, sequence, None, DelMode::Immediate)?;
    }
    match sequence {
        Some(_) => authority.release(attachment, sequence, None).map(drop),
        None => Ok(()),
    }
}
