//! What a row asks of a peer, whichever it is.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Result, ensure};
use twill_tests::{netns::Namespace, process::Daemon, wait::wait_for};

use crate::LONG;

/// The node's addresses.
pub(super) const NODE: &str = "192.168.2.11";
pub(super) const NODE6: &str = "2001:db8:2::11";

/// The router's addresses.
pub(super) const ROUTER: &str = "192.168.2.1";
pub(super) const ROUTER6: &str = "2001:db8:2::1";

/// What the router announces in each family.
pub(super) const OUTSIDE: &str = "198.51.100.0/24";
pub(super) const OUTSIDE6: &str = "2001:db8:ff::/64";

/// The communities of a [`Peering`] with `communities`, as the node prints them.
pub(super) const COMMUNITIES: [&str; 3] = ["64513:7", "64513:1:2", "rt:64513:9"];

/// Of a second path to the outside.
pub(super) const SECOND: &str = "64513:2";

/// Large communities of a [`Peering`] with `crowd`: `64513:8:0` and so on.
pub(super) const CROWD: u32 = 400;

/// A router with one session, with the node. Both families are negotiated, and the outside is
/// announced in both.
#[derive(Debug, Clone)]
pub(super) struct Peering {
    /// The router's AS.
    pub(super) asn: u32,
    /// What it takes for the node's.
    pub(super) node_asn: u32,
    /// The session runs over IPv6.
    pub(super) over_ipv6: bool,
    /// The node has no IPv4 address, so that IPv4 routes go over IPv6 next hops both ways (RFC 8950); over
    /// IPv6 alone.
    pub(super) extended_next_hop: bool,
    /// Seconds.
    pub(super) hold_time: u16,
    /// It never dials.
    pub(super) passive: bool,
    /// It sends no capabilities in its OPEN, so it speaks IPv4 alone.
    pub(super) no_capabilities: bool,
    /// It is one link away, and takes no packets from farther (RFC 5082).
    pub(super) ttl_security: bool,
    /// What it signs segments with (RFC 2385).
    pub(super) password: Option<&'static str>,
    /// The IPv4 outside has [`COMMUNITIES`].
    pub(super) communities: bool,
    /// The IPv4 outside has [`CROWD`] large communities more: 12 octets each (RFC 8092), which a message
    /// of 4,096 octets does not hold (RFC 8654).
    pub(super) crowd: bool,
    /// It has a second path to the outside in both families, marked with [`SECOND`], and sends all of them
    /// (RFC 7911).
    pub(super) add_path: bool,
    /// It speaks VPN-IPv4 alone (RFC 4364), a family that the node has not.
    pub(super) foreign_family: bool,
    /// What it is to the node, as RFC 9234 names roles, in lower case.
    pub(super) role: Option<&'static str>,
    /// More announced: 10,000 networks of 30 bits, or a part of them, from 10.200.0.0 on.
    pub(super) more: u32,
}

impl Default for Peering {
    fn default() -> Self {
        Self {
            asn: 64513,
            node_asn: 64512,
            over_ipv6: false,
            extended_next_hop: false,
            hold_time: 90,
            passive: false,
            no_capabilities: false,
            ttl_security: false,
            password: None,
            communities: false,
            crowd: false,
            add_path: false,
            foreign_family: false,
            role: None,
            more: 0,
        }
    }
}

impl Peering {
    /// The router's address of the session.
    pub(super) fn own(&self) -> &'static str {
        if self.over_ipv6 { ROUTER6 } else { ROUTER }
    }

    /// The node's.
    pub(super) fn node(&self) -> &'static str {
        if self.over_ipv6 { NODE6 } else { NODE }
    }

    /// The third parts of the large communities of a crowd.
    pub(super) fn crowd(&self) -> std::ops::Range<u32> {
        0..if self.crowd { CROWD } else { 0 }
    }

    /// Prefixes beyond the outside.
    pub(super) fn more(&self) -> impl Iterator<Item = String> {
        (0..self.more).map(|index| small_network([10, 200, 0, 0], index))
    }
}

/// The network of 30 bits with this number after a first one.
pub(super) fn small_network(first: [u8; 4], index: u32) -> String {
    let address = std::net::Ipv4Addr::from(u32::from_be_bytes(first) + index * 4);
    format!("{address}/30")
}

/// A path that the router has from the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Learned {
    /// AS numbers, separated by spaces.
    pub(super) as_path: String,
    /// As iBGP carries it.
    pub(super) local_pref: Option<u64>,
    /// All kinds of them, as the node prints them.
    pub(super) communities: BTreeSet<String>,
    /// The AS number of Only to Customer (RFC 9234 section 5).
    pub(super) only_to_customer: Option<u64>,
}

/// A peer of the node.
pub(super) trait Router: Sized {
    /// Whether it says which AS number it refuses.
    const NAMES_BAD_AS: bool = true;

    /// Starts it in a namespace, with its files in a directory.
    fn start(namespace: &Namespace, dir: &Path, peering: &Peering) -> Result<Self>;

    /// Takes another configuration while it runs; sessions that it concerns are reset.
    fn reconfigure(&mut self, peering: &Peering) -> Result<()>;

    /// Whether the session is Established, in its own words.
    fn state(&self) -> Result<String>;

    /// Announces the IPv4 outside, or withdraws it.
    fn announce(&mut self, announced: bool) -> Result<()>;

    /// Withdraws what it announces beyond the outside, in the session that there is; `peering` says no
    /// more of it.
    fn withdraw_more(&mut self, peering: &Peering) -> Result<()> {
        self.reconfigure(peering)
    }

    /// The path to a prefix from the node.
    fn path(&self, prefix: &str) -> Result<Option<Learned>>;

    /// How many prefixes of IPv4 it has from the node.
    fn prefixes(&self) -> Result<usize>;

    /// Asks the node for its routes again (RFC 2918).
    fn ask_again(&self) -> Result<()>;

    /// UPDATEs that it has had from the node in this session.
    fn updates(&self) -> Result<u64>;

    /// Stops the session with a text for the node (RFC 9003).
    fn shut_down(&mut self, text: &str) -> Result<()>;

    /// The process that speaks BGP.
    fn daemon(&self) -> &Daemon;

    /// What it tells its operator of the end of the session.
    fn told(&self) -> Result<String>;

    /// Whether the node has told it that it is of the wrong AS (RFC 4271 section 6.2).
    fn heard_bad_peer_as(&self) -> Result<bool>;

    /// Whether it has heard where the node's answer to [`Router::ask_again`] begins and ends (RFC 7313).
    fn heard_replay(&self) -> Result<bool>;

    /// Waits until the session is Established.
    fn wait_up(&self) -> Result<()> {
        wait_for("the router's session", LONG, || {
            let state = self.state()?;
            ensure!(state == "Established", "it is {state}");
            Ok(())
        })
    }

    /// Waits for the path to a prefix from the node.
    fn wait_path(&self, prefix: &str) -> Result<Learned> {
        wait_for(&format!("the router's path to {prefix}"), LONG, || {
            self.path(prefix)?.ok_or_else(|| anyhow::anyhow!("it has none"))
        })
    }

    /// Waits until it has no path to a prefix from the node.
    fn wait_no_path(&self, prefix: &str) -> Result<()> {
        wait_for(&format!("the router's path to {prefix} to go"), LONG, || {
            let path = self.path(prefix)?;
            ensure!(path.is_none(), "it has {path:?}");
            Ok(())
        })
    }
}
