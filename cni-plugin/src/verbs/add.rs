//! ADD: addresses first, then the link, then the word to the daemon, then traffic.

use serde_json::Value;
use twill_dataplane::{
    Netns,
    pod::{self, PodLink, PodLinkUp},
};
use twill_rpc::message::{AssignRequest, Assigned, EndpointUp};
use twill_types::Family;

use super::Call;
use crate::{
    authority::Authority,
    call::Args,
    error::Error,
    result::{AddResult, Interface, PodAddress},
};

/// Attaches the container and answers the result for standard output.
pub(crate) fn add(call: &Call) -> Result<Value, Error> {
    let args = call.variables.args()?;
    refuse_wishes(call, &args)?;
    if call.netconf.prev_result.is_some() {
        return Err(Error::Chained);
    }
    let netns = call.netns()?;
    let mut authority = Authority::new(&call.netconf, call.deadline);
    let assigned = authority.assign(&assign_request(call, &args, &netns)?)?;
    match plumb(call, &args, &netns, &assigned, &mut authority) {
        Ok(up) => Ok(result(call, &assigned, &up).render(call.netconf.version)),
        Err(error) => {
            authority.take_back(&call.attachment(), assigned.sequence);
            Err(error)
        }
    }
}

/// What the user asks for and would not get has to be an error, not a surprise.
fn refuse_wishes(call: &Call, args: &Args) -> Result<(), Error> {
    let from_args = [("CNI_ARGS IP", &args.ip), ("CNI_ARGS MAC", &args.mac)]
        .into_iter()
        .find_map(|(key, value)| Some((key, value.clone()?)));
    let wish = call.netconf.wishes.first().map(|wish| (wish.key, wish.value.clone()));
    match wish.or(from_args) {
        None => Ok(()),
        Some((key, value)) => Err(Error::Unsupported {
            key,
            value,
            remedy: "addresses come from pools: name one in ipam.ipv4Pools or ipam.ipv6Pools",
        }),
    }
}

fn assign_request(call: &Call, args: &Args, netns: &Netns) -> Result<AssignRequest, Error> {
    let ipam = &call.netconf.ipam;
    Ok(AssignRequest {
        attachment: call.attachment(),
        families: ipam.families.clone(),
        ipv4_pools: ipam.ipv4_pools.clone(),
        ipv6_pools: ipam.ipv6_pools.clone(),
        netns: call.variables.netns.clone(),
        netns_cookie: netns.cookie().map_err(|source| call.netns_error(source))?,
        pod: args.pod.clone(),
        timeout_ms: 0,
    })
}

/// Makes the link. A failure on the way leaves no link that was not there before.
fn plumb(
    call: &Call,
    args: &Args,
    netns: &Netns,
    assigned: &Assigned,
    authority: &mut Authority,
) -> Result<PodLinkUp, Error> {
    let link = PodLink {
        attachment: call.attachment(),
        sequence: assigned.sequence,
        addresses: assigned.addresses.clone(),
        mtu: if call.netconf.mtu == 0 { assigned.mtu } else { call.netconf.mtu },
        pod_name: args.pod.as_ref().map(|pod| format!("{}.{}", pod.name, pod.namespace)),
    };
    let prepared = pod::prepare(&link, netns)?;
    let made = prepared.link();
    authority.endpoint_up(&EndpointUp {
        attachment: link.attachment,
        sequence: assigned.sequence,
        host_ifname: made.host_ifname,
        host_ifindex: made.host_ifindex,
    })?;
    Ok(prepared.activate()?)
}

fn result(call: &Call, assigned: &Assigned, up: &PodLinkUp) -> AddResult {
    let address =
        |address: &_| PodAddress { address: *address, gateway: pod::gateway(Family::of(*address)) };
    AddResult {
        host: Interface { name: up.host_ifname.clone(), mac: up.host_mac.to_string(), mtu: up.mtu },
        pod: Interface {
            name: call.variables.ifname.clone(),
            mac: up.pod_mac.to_string(),
            mtu: up.mtu,
        },
        sandbox: call.variables.netns.clone(),
        addresses: assigned.addresses.iter().map(address).collect(),
        dns: call.netconf.dns.clone(),
    }
}
