use std::{fmt::Write, net::IpAddr};

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use twill_rpc::{
    ClientError,
    message::{AddressStatus, Holder, IpamFind, IpamFound, Life},
};
use twill_types::{Block, Prefix};

use super::{To, view::Datastore};
use crate::table::age;

/// All that is known of one address.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    address: IpAddr,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<(String, Prefix)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<Block>,
    /// The owner of the block.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<Holder>,
    /// The name of the IPReservation and its range.
    #[serde(skip_serializing_if = "Option::is_none")]
    reservation: Option<(String, Prefix)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resting_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
}

/// What an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum State {
    /// Somebody has it.
    InUse,
    /// It can be given out.
    Free,
    /// It was in use until lately.
    Resting,
    /// It was given back, and its link is not gone yet.
    Held,
    /// Nobody gets it.
    Reserved,
    /// Its block is nobody's.
    Unclaimed,
    /// It is in no pool.
    Outside,
    /// Only the node that has its block knows.
    Elsewhere,
}

/// Asks datastore and daemon.
pub(super) fn find(to: &mut To<'_>, all: &Datastore, address: IpAddr) -> anyhow::Result<Report> {
    let ask = || -> Result<(String, IpamFound), ClientError> {
        let mut client = (to.connect)()?;
        let node = client.welcome()?.node.clone();
        Ok((node, client.ipam_find(IpamFind::Address(address))?))
    };
    let told = match ask() {
        Ok(told) => Some(told),
        Err(error @ ClientError::NotRunning { .. }) => {
            super::without_daemon(to, &error)?;
            None
        }
        Err(error) => return Err(error.into()),
    };
    Ok(report(all, address, told))
}

/// Puts together what both say.
pub(super) fn report(
    all: &Datastore,
    address: IpAddr,
    told: Option<(String, IpamFound)>,
) -> Report {
    let pool = all.pools.iter().find(|(_, pool)| pool.cidr.contains(address));
    let claims = || all.claims.claims.values().filter(|c| c.block.prefix().contains(address));
    let parts = claims().flat_map(|claim| &claim.delegations);
    let mut lent = parts
        .filter(|part| part.cidr.prefix().contains(address))
        .map(|part| (part.cidr, part.node.clone()));
    // A part's node has it, and not the one of the block around it.
    let owner =
        lent.next_back().or_else(|| claims().map(|c| (c.block, c.node.clone())).next_back());
    let reservation = all.reservations.iter().find(|(_, range)| range.contains(address)).cloned();
    let mut report = Report {
        address,
        state: State::Outside,
        pool: pool.map(|(name, pool)| (name.clone(), pool.cidr)),
        block: owner.as_ref().map(|(block, _)| *block),
        node: owner.map(|(_, node)| node),
        holder: None,
        reservation,
        resting_seconds: None,
        network: None,
    };
    let is_own = |node: &String| told.as_ref().is_some_and(|(own, _)| own == node);
    report.state = match &report.node {
        _ if report.reservation.is_some() => State::Reserved,
        Some(node) if is_own(node) => State::Free,
        Some(_) => State::Elsewhere,
        None if report.pool.is_some() => State::Unclaimed,
        None => State::Outside,
    };
    if let Some((own, IpamFound { address: status, holder })) = told {
        if let Some(AddressStatus { block: Some(block), held, resting, dedication, .. }) = status {
            report.block.get_or_insert(block);
            report.network = dedication.map(|dedication| dedication.network);
            match (resting, held) {
                _ if report.state == State::Reserved => {}
                (_, true) => report.state = State::Held,
                (Some(seconds), _) => {
                    report.state = State::Resting;
                    report.resting_seconds = Some(seconds);
                }
                (None, false) => {}
            }
        }
        if let Some(holder) = holder {
            report.state = State::InUse;
            report.node.get_or_insert(own);
            report.holder = Some(holder);
        }
    }
    report
}

impl Report {
    pub(super) fn text(&self, now: Timestamp, zone: &TimeZone) -> String {
        let node = self.node.as_deref().unwrap_or("-");
        let state = match self.state {
            State::InUse => "in use".to_owned(),
            State::Free => "free".to_owned(),
            State::Resting => format!(
                "at rest after use, for another {} s",
                self.resting_seconds.unwrap_or_default()
            ),
            State::Held => "about to be free: its link is not gone yet".to_owned(),
            State::Reserved => "reserved: nobody gets it".to_owned(),
            State::Unclaimed => "free, and in no node's block".to_owned(),
            State::Outside => "in no pool".to_owned(),
            State::Elsewhere => format!("known to node {node} alone: ask there"),
        };
        let mut text = format!("{} is {state}\n", self.address);
        let mut line = |name: &str, value: String| _ = writeln!(text, "  {name:<12}{value}");
        if let Some((name, cidr)) = &self.pool {
            line("pool", format!("{name} ({cidr})"));
        }
        if let Some(block) = self.block {
            let network = self.network.as_ref();
            let aside =
                network.map_or(String::new(), |name| format!(", set aside for network {name}"));
            line("block", format!("{block} of node {node}{aside}"));
        }
        if let Some((name, range)) = &self.reservation {
            line("reserved by", format!("IPReservation {name} ({range})"));
        }
        if let Some(holder) = &self.holder {
            line("attachment", holder.attachment.to_string());
            line("pod", holder.pod.clone().unwrap_or_else(|| "-".to_owned()));
            let others: Vec<_> =
                holder.addresses.iter().filter(|ip| **ip != self.address).collect();
            if let [other, ..] = others[..] {
                line("also", other.to_string());
            }
            line("sequence", holder.sequence.to_string());
            line("since", since(holder.created_ms, now, zone));
            let netns = if holder.netns.is_empty() { "-" } else { &holder.netns };
            line("namespace", netns.to_owned());
            line("made by", if holder.foreign { "another plugin" } else { "twill" }.to_owned());
            let life = match holder.life {
                Life::Lives => "yes",
                Life::Gone => "no: its address leaked, or it is being made or deleted now",
                Life::Unclear => "cannot be told from here",
            };
            line("lives", life.to_owned());
        }
        text
    }
}

fn since(ms: u64, now: Timestamp, zone: &TimeZone) -> String {
    let then = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    then.map_or("-".to_owned(), |then| {
        let clock = then.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string();
        format!("{clock} ({} ago)", age(ms, now))
    })
}
