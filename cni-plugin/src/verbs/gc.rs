//! GC: everything of this network goes that the runtime does not list.

use std::{collections::BTreeMap, time::Duration};

use twill_dataplane::{
    Link,
    pod::{DelMode, DelOutcome, del_pod, delete_group_links, host_link, host_links},
};
use twill_ipam_store::now_ms;
use twill_rpc::message::Held;
use twill_types::{Alias, AttachmentId, LinkAlias, ReleaseRequest, error_chain};

use super::{BATCH, Call, namespace_of};
use crate::{
    authority::Authority, call::Persona, deadline::Deadline, delegate::Delegate, error::Error,
    netconf::Attached,
};

/// How much of the call's time is kept for another IPAM plugin.
const FOR_THE_PLUGIN: Duration = Duration::from_secs(5);

/// How much of the call's time is kept for the links, which no daemon is needed for.
const FOR_THE_LINKS: Duration = Duration::from_secs(5);

/// The numbers of the ADDs that an attachment was seen of.
#[derive(Debug, Default)]
struct Seen {
    link: Option<u64>,
    record: Option<u64>,
    /// What the store has for it.
    held: Option<Held>,
}

/// Removes what is stale. An error does not keep the rest from going; all are told at the end.
///
/// The runtime sees to it that no ADD or DEL of the network runs meanwhile. Where it does not, the
/// order and the numbers protect what is newer, and where the links are another plugin's, their age.
/// Links are read before records: a link that was not
/// there then is of an ADD that came later, and is left alone with its addresses. A link goes only
/// if it is still that of the ADD that was seen, and so does a record.
///
/// Where nobody can say who has addresses, the links alone tell: one whose attachment the runtime does
/// not list is stale whatever the store says. Where the links cannot be read, a record goes only if its
/// attachment has no link.
pub(crate) fn gc(call: &Call) -> Result<(), Error> {
    let valid = call.netconf.valid_attachments.as_ref().ok_or(Error::NoAttachments)?;
    let delegate = Delegate::of(call);
    let deadline = match &delegate {
        Some(_) => call.deadline.before(FOR_THE_PLUGIN),
        None => call.deadline,
    };
    let mut failures = Vec::new();
    let mut stale: BTreeMap<AttachmentId, Seen> = BTreeMap::new();
    let mut hashed = Vec::new();
    if call.persona == Persona::Main {
        // Also those without a record: of an ADD that died, or with addresses from elsewhere.
        match links_on(&call.netconf.name) {
            Ok(links) => {
                for (attachment, sequence) in links.named {
                    stale.entry(attachment).or_default().link = Some(sequence);
                }
                hashed = links.hashed;
            }
            Err(error) => failures.push(error_chain(&error)),
        }
    }
    let records = match &delegate {
        // Our own store may have given some, if the configuration has changed since.
        Some(_) => None,
        None => {
            let mut authority = Authority::holding(&call.netconf, deadline.before(FOR_THE_LINKS));
            let records = authority.attachments(&call.netconf.name);
            records.map_err(|error| failures.push(error_chain(&error))).ok()
        }
    };
    match records {
        Some(records) => {
            for held in records.into_iter().filter(|held| !is_young(call, held)) {
                // A hash does not say whose it is, but whether it is this one's.
                let its = hashed.iter().find(|alias| alias.is_of(&held.attachment));
                let seen = stale.entry(held.attachment.clone()).or_default();
                seen.link = seen.link.or(its.map(|alias| alias.sequence));
                seen.record = Some(held.sequence);
                seen.held = Some(held);
            }
        }
        // As for a DEL: a link says whose addresses these are.
        None => {
            for seen in stale.values_mut() {
                seen.record = seen.link.filter(|number| *number != LinkAlias::WITHOUT_STORE);
            }
        }
    }
    stale.retain(|id, _| !is_listed(id, valid));
    failures.extend(remove(call, stale, deadline));
    match delegate.map(|delegate| delegate.gc()) {
        None | Some(Ok(())) => {}
        // As it is, if there is no more to tell.
        Some(Err(error)) if failures.is_empty() => return Err(error.into()),
        Some(Err(error)) => failures.push(error_chain(&error)),
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::Gc(failures)) }
}

/// Whether the ADD of another main plugin may still be at work on what it was given: nobody asks
/// here before it lets packets flow. A time in the future is of no age, as the clock was set back.
fn is_young(call: &Call, held: &Held) -> bool {
    let grace = call.netconf.ipam.foreign.gc_grace;
    let age = Duration::from_millis(now_ms().saturating_sub(held.created_ms));
    let is_young = call.persona == Persona::Ipam && age < grace;
    if is_young {
        tracing::info!(attachment = %held.attachment, ?age, "not older than gcGraceSeconds: left alone");
    }
    is_young
}

fn is_listed(id: &AttachmentId, valid: &[Attached]) -> bool {
    valid.iter().any(|valid| valid.container_id == id.container_id && valid.ifname == id.ifname)
}

/// Links of ours, by what their aliases say.
#[derive(Debug, Default)]
struct Links {
    /// Those of a network, and of which ADD each is.
    named: Vec<(AttachmentId, u64)>,
    /// Those of any network that are too long to be told in full.
    hashed: Vec<LinkAlias>,
}

fn links_on(network: &str) -> Result<Links, Error> {
    let mut links = Links::default();
    for alias in host_links()?.iter().filter_map(Link::twill_alias) {
        match alias.owner {
            Alias::Full(id) if id.network == network => links.named.push((id, alias.sequence)),
            Alias::Full(_) => {}
            Alias::Hashed(_) => links.hashed.push(alias),
        }
    }
    Ok(links)
}

/// Cuts all of them off, deletes their links together, and then gives their addresses back; says
/// what could not be done. What there was no time for is found again by the next GC.
fn remove(call: &Call, stale: BTreeMap<AttachmentId, Seen>, deadline: Deadline) -> Vec<String> {
    let mut failures = Vec::new();
    let mut out_of_time = 0;
    let mut records = Vec::new();
    for (attachment, seen) in stale {
        if deadline.left().is_zero() {
            out_of_time += 1;
            continue;
        }
        match cut_off(call, &attachment, &seen) {
            Ok(false) => tracing::info!(%attachment, "an ADD has come meanwhile: left alone"),
            Ok(true) => {
                tracing::info!(%attachment, "not listed by the runtime: removed");
                records.extend(seen.record.map(|sequence| ReleaseRequest {
                    attachment,
                    sequence: Some(sequence),
                    netns_cookie: None,
                }));
            }
            Err(error) => failures.push(format!("{attachment}: {}", error_chain(&error))),
        }
    }
    if call.persona == Persona::Main
        && let Err(error) = delete_links(deadline)
    {
        failures.push(error_chain(&error));
    }
    if !records.is_empty() {
        let mut authority = Authority::holding(&call.netconf, deadline);
        failures.extend(authority.collect(&records));
    }
    if out_of_time > 0 {
        failures.push(format!("there was no time for {out_of_time} attachments"));
    }
    failures
}

/// Cuts a pod off, if no later ADD has made its link; false if one has. In the pod its rules and addresses
/// go, too, where the store says in which namespace that is, and the link leads there.
fn cut_off(call: &Call, attachment: &AttachmentId, seen: &Seen) -> Result<bool, Error> {
    if call.persona == Persona::Ipam {
        return Ok(true);
    }
    // The number of no ADD of our store is lower than any other.
    let sequence = Some(seen.link.unwrap_or(LinkAlias::WITHOUT_STORE));
    let netns = seen.held.as_ref().and_then(namespace_of);
    let mut outcome = del_pod(attachment, sequence, netns.as_ref(), DelMode::Deferred)?;
    if let DelOutcome::Elsewhere { .. } = outcome {
        outcome = del_pod(attachment, sequence, None, DelMode::Deferred)?;
    }
    if outcome == DelOutcome::Absent
        && let Some(link) = host_link(attachment)?.filter(|link| is_of_another(link, attachment))
    {
        // Nothing was removed, and its address stays with it.
        return Err(Error::AliasOfAnother {
            link: link.name,
            alias: link.alias.unwrap_or_default(),
        });
    }
    Ok(!matches!(outcome, DelOutcome::Newer { .. }))
}

/// Whether a link with the name of an attachment's has an alias that does not say so.
fn is_of_another(link: &Link, attachment: &AttachmentId) -> bool {
    match link.twill_alias() {
        Some(alias) => !alias.is_of(attachment),
        None => link.is_overwritten(),
    }
}

/// Deletes the links that are cut off: at once, and not when the daemon comes to it. Where a pod's
/// namespace is not known, its end of the link is in the way of a later ADD.
fn delete_links(deadline: Deadline) -> Result<(), Error> {
    delete_group_links(BATCH, || !deadline.left().is_zero())?;
    Ok(())
}
