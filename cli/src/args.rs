use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand};
use twill_k8s_api::Kind;
use twill_types::{Family, Prefix};

use crate::{
    ipam::IpamCommand,
    output::{Format, GetFormat},
};

/// Twill's resources and the state of this node.
#[derive(Debug, Parser)]
#[command(name = "twillctl", version, arg_required_else_help = true)]
pub struct Cli {
    /// The daemon's configuration; socket and datastore are found through it.
    #[arg(long, short = 'c', global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The daemon's socket, instead of the one in the configured runDir.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The directory of the file datastore, instead of the configured one.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) resources: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create or change resources as manifests say.
    Apply {
        /// Manifests: a file, `-` for standard input, or a directory with *.yaml, *.yml, *.json.
        #[arg(long = "filename", short, required = true, value_name = "FILE|-|DIR")]
        filename: Vec<PathBuf>,
    },
    /// Show resources.
    Get(GetArgs),
    /// The node and its daemon.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Addresses: pools and blocks.
    #[command(subcommand)]
    Ipam(IpamCommand),
    /// BGP sessions and routes.
    #[command(subcommand)]
    Bgp(BgpCommand),
    /// Versions of this program and of the daemon.
    Version {
        /// Do not ask the daemon.
        #[arg(long)]
        client: bool,
        /// How to print.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// node, ippool, bgppeer, ...; plural and short forms too.
    #[arg(value_parser = kind)]
    pub(crate) kind: Kind,
    /// Only these.
    pub(crate) names: Vec<String>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: GetFormat,
}

fn kind(name: &str) -> Result<Kind, String> {
    Kind::from_alias(name).ok_or_else(|| {
        let known: Vec<_> = Kind::ALL.into_iter().map(Kind::singular).collect();
        format!("there are: {}", known.join(", "))
    })
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// What the daemon does, and its BGP sessions.
    Status {
        /// How to print.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BgpCommand {
    /// Sessions in detail.
    Peers {
        /// How to print.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Routes: what this node originates and what it learned.
    Routes {
        /// Only routes inside this prefix.
        #[arg(long, value_name = "PREFIX")]
        within: Option<Prefix>,
        /// How to print.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Why the route to a prefix is what it is: every path, and which step of the decision each lost by.
    Explain {
        /// A prefix or an address; without a route of its own, the most specific one that covers it.
        #[arg(value_parser = destination)]
        prefix: Prefix,
        /// How to print.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
    /// Have a peer tell all its routes again, in the session that it has (RFC 2918).
    Refresh {
        /// Its address, with `:PORT` if it has several sessions.
        #[arg(value_parser = peer)]
        peer: Peer,
        /// ipv4 or ipv6; all families of the session without it.
        #[arg(long, value_parser = family)]
        family: Option<Family>,
        /// How to print.
        #[arg(long, short, value_enum, default_value_t)]
        output: Format,
    },
}

/// A session's peer, as `twillctl bgp peers` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// `None` where the address has one session.
    pub(crate) port: Option<u16>,
}

/// `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`.
fn peer(text: &str) -> Result<Peer, std::net::AddrParseError> {
    if let Ok(address) = text.parse() {
        return Ok(Peer { address, port: None });
    }
    let socket: SocketAddr = text.parse()?;
    Ok(Peer { address: socket.ip(), port: Some(socket.port()) })
}

/// `ipv4` or `ipv6`.
fn family(text: &str) -> Result<Family, String> {
    match text {
        "ipv4" => Ok(Family::V4),
        "ipv6" => Ok(Family::V6),
        _ => Err("there are: ipv4, ipv6".to_owned()),
    }
}

/// A prefix, or an address as the prefix of it alone.
fn destination(text: &str) -> Result<Prefix, twill_types::PrefixError> {
    match text.parse() {
        Ok(address) => Ok(Prefix::host(address)),
        Err(_) => text.parse(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_exit_status_2() {
        for arguments in [
            &["twillctl"][..],
            &["twillctl", "apply"],
            &["twillctl", "get", "pod"],
            &["twillctl", "bgp", "routes", "--within", "10.0.0.1/8"],
            &["twillctl", "bgp", "refresh", "tor1"],
            &["twillctl", "bgp", "refresh", "192.0.2.1", "--family", "vpnv4"],
            &["twillctl", "node", "status", "-o", "name"],
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }
}
