//! The IPAM plugin's ADD and DEL: addresses for an interface that another main plugin makes.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;
use twill_rpc::message::{AssignRequest, Assigned, ForeignUse};
use twill_types::{Block, Family};

use super::{
    Call,
    add::{assign_request, wishes},
    del::release_of,
};
use crate::{
    authority::Authority,
    error::Error,
    netconf::{ForeignNeeds, Gateway},
    result::{AddResult, PodAddress},
};

/// Answers addresses.
pub(crate) fn add(call: &Call) -> Result<Value, Error> {
    let netns = call.netns()?;
    let needs = &call.netconf.ipam.foreign;
    let (first_is_gateway, reserved) = match &needs.gateway {
        Gateway::First => (true, BTreeSet::new()),
        Gateway::Absent => (false, BTreeSet::new()),
        Gateway::At(addresses) => (false, addresses.iter().copied().collect()),
    };
    let advertise = needs.advertise;
    let foreign = Some(ForeignUse { advertise, first_is_gateway, reserved });
    let mut authority = Authority::giving(&call.netconf, call.deadline);
    let wishes = wishes(call, &mut authority)?;
    let request = AssignRequest { foreign, ..assign_request(call, &wishes, &netns)? };
    let assigned = authority.assign(&request, || {})?;
    Ok(result(call, &assigned).render(call.netconf.version))
}

/// Gives the addresses back.
pub(crate) fn del(call: &Call) -> Result<(), Error> {
    let netns = call.netns_if_any()?;
    let mut authority = Authority::holding(&call.netconf, call.deadline_of_del());
    release_of(&mut authority, call.attachment(), netns.as_ref(), None);
    Ok(())
}

fn result(call: &Call, assigned: &Assigned) -> AddResult {
    let ipam = &call.netconf.ipam;
    let pairs = assigned.addresses.iter().zip(&assigned.blocks);
    AddResult {
        link: None,
        addresses: pairs.map(|(address, block)| ipam.foreign.address(*address, *block)).collect(),
        routes: ipam.routes.clone(),
        dns: call.netconf.dns.clone(),
    }
}

impl ForeignNeeds {
    /// An address as the main plugin is told it: by default as one of a subnet, the block.
    fn address(&self, address: IpAddr, block: Block) -> PodAddress {
        let family = Family::of(address);
        let wanted = match family {
            Family::V4 => self.prefix_length,
            Family::V6 => self.prefix_length_v6,
        };
        let gateway = match &self.gateway {
            Gateway::First => Some(block.prefix().address()),
            Gateway::Absent => None,
            Gateway::At(gateways) => gateways.iter().find(|ip| Family::of(**ip) == family).copied(),
        };
        PodAddress { address, length: wanted.unwrap_or(block.prefix().length()), gateway }
    }
}
