//! ADD: addresses first, then the link, then the word to the daemon, then traffic.

use std::{borrow::Cow, net::IpAddr};

use serde_json::Value;
use twill_dataplane::{
    Netns, node,
    pod::{self, Hardware, PodLink, PodLinkUp, PodRoute, Sides},
};
use twill_rpc::message::{AssignRequest, EndpointUp};
use twill_types::Family;

use super::Call;
use crate::{
    authority::{Authority, prepare_node},
    delegate::{Delegate, Granted},
    error::Error,
    netconf::{Netconf, Wishes},
    result::{AddResult, Interface, PodAddress, ResultLink, ResultRoute},
};

/// Who has given the addresses, and takes them back.
enum Source<'a> {
    Store(Box<Authority<'a>>),
    Plugin(Delegate<'a>),
    /// The user.
    Nobody,
}

/// Attaches the container and answers the result for standard output.
pub(crate) fn add(call: &Call) -> Result<Value, Error> {
    if call.netconf.prev_result.is_some() {
        return Err(Error::Chained);
    }
    let netns = call.netns()?;
    let mut sides = None;
    let (mut source, wishes, granted) = grant(call, &netns, || sides = Some(Sides::open(&netns)))?;
    tracing::trace!("step: addresses given, durably");
    let make = || {
        let sides = sides.unwrap_or_else(|| Sides::open(&netns))?;
        let link = link(call, &wishes, &granted)?;
        let up = plumb(&link, &netns, sides, &mut source)?;
        Ok(result(call, &link, &granted, &up).render(call.netconf.version))
    };
    let made = make();
    if made.is_err() {
        source.take_back(call, granted.sequence);
    }
    made
}

/// Addresses, from whom they are, and what was asked for.
type Grant<'a> = (Source<'a>, Cow<'a, Wishes>, Granted);

/// `meanwhile` is done while the addresses are looked for, where somebody else does that.
fn grant<'a>(call: &'a Call, netns: &Netns, meanwhile: impl FnOnce()) -> Result<Grant<'a>, Error> {
    let netconf = &call.netconf;
    // Addresses that the user gives need no plugin either.
    if let Some(delegate) = Delegate::of(call).filter(|_| !netconf.wishes.without_ipam) {
        let granted = delegate.add()?;
        return Ok((Source::Plugin(delegate), Cow::Borrowed(&netconf.wishes), granted));
    }
    let mut authority = Authority::giving(netconf, call.deadline);
    let wishes = wishes(call, &mut authority)?;
    if wishes.without_ipam {
        let addresses = wishes.addresses.clone();
        let routes = netconf.ipam.pod_routes();
        return Ok((Source::Nobody, wishes, Granted { addresses, routes, ..Granted::default() }));
    }
    let assigned = authority.assign(&assign_request(call, &wishes, netns)?, meanwhile)?;
    let granted = Granted {
        addresses: assigned.addresses,
        routes: netconf.ipam.pod_routes(),
        dns: None,
        sequence: assigned.sequence,
        mtu: Some(assigned.mtu),
    };
    Ok((Source::Store(Box::new(authority)), wishes, granted))
}

/// What is asked for: by the runtime, and by the pod and its namespace as the cluster has them.
pub(super) fn wishes<'a>(
    call: &'a Call,
    authority: &mut Authority<'_>,
) -> Result<Cow<'a, Wishes>, Error> {
    let own = &call.netconf.wishes;
    if own.without_ipam {
        return Ok(Cow::Borrowed(own));
    }
    let cluster = authority.pod_annotations(call.args.pod.as_ref(), own.annotations_told)?;
    if cluster.is_empty() {
        return Ok(Cow::Borrowed(own));
    }
    tracing::debug!(?cluster, "the pod or its namespace asks for something");
    Ok(Cow::Owned(Netconf::wishes_with(&call.stdin, &call.args, &cluster)?))
}

/// What the store is asked for.
pub(super) fn assign_request(
    call: &Call,
    wishes: &Wishes,
    netns: &Netns,
) -> Result<AssignRequest, Error> {
    let ipam = &call.netconf.ipam;
    let pools = |asked: &Vec<String>, configured: &Vec<String>| {
        if asked.is_empty() { configured.clone() } else { asked.clone() }
    };
    let wanted = |family| wishes.addresses.iter().any(|address| Family::of(*address) == family);
    let families = [Family::V4, Family::V6]
        .into_iter()
        .filter(|family| ipam.families.contains(family) || wanted(*family));
    Ok(AssignRequest {
        attachment: call.attachment(),
        families: families.collect(),
        wanted: wishes.addresses.clone(),
        ipv4_pools: pools(&wishes.ipv4_pools, &ipam.ipv4_pools),
        ipv6_pools: pools(&wishes.ipv6_pools, &ipam.ipv6_pools),
        allow_reserved: ipam.allow_reserved,
        netns: call.variables.netns.clone(),
        netns_cookie: netns.cookie().map_err(|source| call.netns_error(source))?,
        pod: call.args.pod.clone(),
        foreign: None,
        timeout_ms: 0,
    })
}

fn link(call: &Call, wishes: &Wishes, granted: &Granted) -> Result<PodLink, Error> {
    let mtu = match (call.netconf.mtu, granted.mtu) {
        (0, Some(mtu)) => mtu,
        (0, None) => node::uplink_mtu(None)?,
        (mtu, _) => mtu,
    };
    Ok(PodLink {
        attachment: call.attachment(),
        sequence: granted.sequence,
        addresses: granted.addresses.clone(),
        mtu,
        mac: wishes.mac,
        routes: granted.routes.clone(),
        pod_name: call.args.pod.as_ref().map(|pod| format!("{}.{}", pod.name, pod.namespace)),
    })
}

/// Makes the link. A failure on the way leaves no link that was not there before.
fn plumb(
    link: &PodLink,
    netns: &Netns,
    sides: Sides,
    source: &mut Source<'_>,
) -> Result<PodLinkUp, Error> {
    let endpoint = |host_ifindex| EndpointUp {
        attachment: link.attachment.clone(),
        sequence: link.sequence,
        host_ifname: link.host_ifname(),
        host_ifindex,
    };
    let mut told = None;
    let prepared = pod::prepare(link, netns, sides, |host_ifindex| {
        if let Source::Store(authority) = source {
            authority.endpoint_up_ahead(&endpoint(host_ifindex));
            told = Some(host_ifindex);
        }
    });
    tracing::trace!("step: pod's side set up");
    // Not the configured ones: a pod may have asked for another.
    let families: Vec<Family> = link.families().collect();
    let host_ifindex = match &prepared {
        Ok(made) => Some(made.link().host_ifindex),
        Err(twill_dataplane::Error::LinkTakenAway { .. }) => told,
        Err(_) => None,
    };
    match (source, host_ifindex) {
        // Where somebody has taken addresses and link away meanwhile, the daemon's answer says so.
        (Source::Store(authority), Some(index)) => {
            authority.endpoint_up(&endpoint(index), &families)?;
        }
        (Source::Plugin(_) | Source::Nobody, Some(_)) => prepare_node(&families)?,
        (_, None) => {}
    }
    tracing::trace!("step: daemon told of the link");
    let up = prepared?.activate()?;
    tracing::trace!("step: host's side up and routed");
    Ok(up)
}

impl Source<'_> {
    /// After a failed ADD.
    fn take_back(&mut self, call: &Call, sequence: u64) {
        match self {
            Self::Store(authority) => authority.take_back(&call.attachment(), sequence),
            Self::Plugin(delegate) => delegate.take_back(),
            Self::Nobody => {}
        }
    }
}

fn result(call: &Call, link: &PodLink, granted: &Granted, up: &PodLinkUp) -> AddResult {
    let address = |address: &IpAddr| PodAddress {
        address: *address,
        length: Family::of(*address).bits(),
        gateway: Some(pod::gateway(Family::of(*address))),
    };
    let route = |mut route: PodRoute| {
        route.priority = route.priority.or_else(|| up.metric(&route));
        let gateway = Some(pod::gateway(route.destination.family()));
        ResultRoute { route, gateway }
    };
    let interface = |name: &str, end: Hardware| Interface {
        name: name.to_owned(),
        mac: end.mac.to_string(),
        mtu: end.mtu,
    };
    AddResult {
        link: Some(ResultLink {
            host: interface(&up.host_ifname, up.host),
            pod: interface(&call.variables.ifname, up.pod),
            sandbox: call.variables.netns.clone(),
        }),
        addresses: granted.addresses.iter().map(address).collect(),
        routes: link.routes().into_iter().map(route).collect(),
        dns: call.netconf.dns.clone().or_else(|| granted.dns.clone()),
    }
}
