//! What the kernel knows of pods whose records are lost: whose a link is stands in its alias, and
//! its addresses are those that the node routes to it.

use std::collections::BTreeSet;

use anyhow::Context;
use tracing::{info, warn};
use twill_dataplane::pod::{FoundPodLink, host_links, pod_links};
use twill_ipam_store::{Record, Service};
use twill_types::{Alias, AttachmentId, LinkAlias};

use crate::ipam::now_ms;

/// Writes the records of links in use that have none; says how many. To be done before anybody is
/// served: until then every address looks free.
pub(crate) fn from_links(service: &Service) -> anyhow::Result<usize> {
    let links = host_links().context("cannot list the pods' links")?;
    let aliases: Vec<LinkAlias> = links.iter().filter_map(|link| link.twill_alias()).collect();
    // A link that has a higher number than the next ADD of its attachment would be in its way.
    let highest = aliases.iter().map(|alias| alias.sequence).max();
    service.number_after(highest.unwrap_or_default())?;
    let records = service.records()?;
    let known: BTreeSet<&AttachmentId> = records.iter().map(|record| &record.attachment).collect();
    let is_lost = |alias: &LinkAlias| match &alias.owner {
        Alias::Full(attachment) => !known.contains(attachment),
        Alias::Hashed(_) => false,
    };
    if !aliases.iter().any(is_lost) {
        return Ok(0);
    }
    let mut count = 0;
    for found in pod_links().context("cannot list the pods' links")? {
        let Some(record) = record(&found).filter(|record| !known.contains(&record.attachment))
        else {
            continue;
        };
        let (attachment, addresses) = (record.attachment.clone(), record.addresses.clone());
        if service.adopt(record)? {
            info!(%attachment, ?addresses, link = found.link.name, "record read from the link");
            count += 1;
        } else {
            warn!(%attachment, ?addresses, link = found.link.name, "another pod has the address");
        }
    }
    Ok(count)
}

/// The record of a link that is in use, as far as it can be told.
fn record(found: &FoundPodLink) -> Option<Record> {
    let alias = found.alias.as_ref()?;
    let Alias::Full(attachment) = &alias.owner else {
        return None;
    };
    let in_use = found.link.up && !found.addresses.is_empty();
    if !in_use || alias.sequence == LinkAlias::WITHOUT_STORE {
        return None;
    }
    Some(Record {
        attachment: attachment.clone(),
        addresses: found.addresses.clone(),
        sequence: alias.sequence,
        // The namespace is not known: the link alone says whether the pod lives.
        netns: String::new(),
        netns_cookie: None,
        pod: found.link.altnames.iter().find_map(|name| pod_of(name)),
        foreign: false,
        created_ms: now_ms(),
    })
}

/// `<pod>.<namespace>`, as an alternative name has it, in the way of records.
fn pod_of(name: &str) -> Option<String> {
    let (pod, namespace) = name.rsplit_once('.')?;
    Some(format!("{namespace}/{pod}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_may_have_dots_and_its_namespace_has_none() {
        assert_eq!(pod_of("web-1.prod").as_deref(), Some("prod/web-1"));
        assert_eq!(pod_of("web.v2.prod").as_deref(), Some("prod/web.v2"));
        assert_eq!(pod_of("eth5"), None);
    }
}
