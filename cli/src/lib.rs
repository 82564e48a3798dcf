//! `twillctl`: resources through the datastore, the node's state through the daemon's socket.
//!
//! Promise: input that is wrong changes nothing, and is told with file, line and remedy; what a
//! datastore refuses for one object keeps no other back. Exit status 0 is done, 1 failed, 2 wrong usage.
//! Resources are in files or on Kubernetes' API server, and look the same from here. What is printed as a table has `calicoctl`'s shape, and every
//! table can be had as JSON or YAML. No store, netlink or nftables here: what the node holds, its
//! daemon tells.

mod args;
mod bgp;
mod change;
mod config;
mod elsewhere;
mod explain;
mod get;
mod input;
mod ipam;
mod node;
mod node_check;
mod output;
mod resources;
mod table;
mod version;
mod write;

use std::{io::Write, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use twill_rpc::{
    Client, ClientError,
    message::{ExplainRequest, RefreshRequest, RoutesRequest},
};

pub use crate::args::Cli;
use crate::{
    args::{BgpCommand, Command, NodeCommand, Peer},
    config::Settings,
    output::emit,
    version::Version,
    write::Verb,
};

/// How long the daemon may take for everything that one command asks.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Executes one command. A reader that went away (`twillctl ... | head`) is no failure.
pub fn run(cli: &Cli, out: &mut dyn Write, err: &mut dyn Write) -> anyhow::Result<()> {
    let done = Settings::resolve(cli).and_then(|settings| {
        let done = execute(cli, &settings, out, err);
        done.map_err(|error| elsewhere::explained(cli, &settings, error))
    });
    let done = done.and_then(|()| Ok(out.flush()?));
    match done {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        done => done,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn execute(
    cli: &Cli,
    settings: &Settings,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let open = || settings.datastore.open();
    let connect = || {
        let name = concat!("twillctl ", env!("CARGO_PKG_VERSION"));
        Client::connect(&settings.socket, name, TIMEOUT)
    };
    match &cli.command {
        Command::Get(arguments) => get::run(&*open()?, arguments, out, err),
        Command::Create(arguments) => write::run(&*open()?, Verb::Create, arguments, out, err),
        Command::Apply(arguments) => write::run(&*open()?, Verb::Apply, arguments, out, err),
        Command::Replace(arguments) => write::run(&*open()?, Verb::Replace, arguments, out, err),
        Command::Delete(arguments) => write::delete(&*open()?, arguments, out, err),
        Command::Patch(arguments) => change::patch(&*open()?, arguments, out, err),
        Command::Label(arguments) => change::label(&*open()?, arguments, out, err),
        Command::Validate { filename } => {
            write::validate(filename, settings.datastore.identity(), out, err)
        }
        Command::Node(NodeCommand::Status { output }) => {
            let status = connect()?.node_status()?;
            let now = Timestamp::now();
            emit(out, *output, &status, |wide| node::table(&status, now, &TimeZone::system(), wide))
        }
        Command::Node(NodeCommand::Check { cni_conf_dir, output }) => {
            let mut checked = connect()?.node_check()?;
            // Kubernetes sets it in every container.
            let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
            checked.checks.push(node_check::runtime_configuration(cni_conf_dir, in_pod));
            emit(out, *output, &checked, |_| node_check::table(&checked))?;
            node_check::result(&checked)
        }
        Command::Ipam(command) => {
            ipam::run(ipam::To { resources: &*open()?, connect: &connect, out, err }, command)
        }
        Command::Bgp(BgpCommand::Peers { output }) => {
            let peers = connect()?.bgp_peers()?;
            let now = Timestamp::now();
            emit(out, *output, &peers, |wide| bgp::peers(&peers, now, wide))
        }
        Command::Bgp(BgpCommand::Routes { within, output }) => {
            let routes = connect()?.bgp_routes(RoutesRequest { within: *within })?;
            emit(out, *output, &routes, |wide| bgp::routes(&routes, wide))
        }
        Command::Bgp(BgpCommand::Explain { prefix, output }) => {
            let explained = connect()?.bgp_explain(ExplainRequest { prefix: *prefix })?;
            emit(out, *output, &explained, |wide| explain::text(&explained, wide))
        }
        Command::Bgp(BgpCommand::Refresh { peer: Peer { address, port }, family, output }) => {
            let request = RefreshRequest { address: *address, port: *port, family: *family };
            let refreshed = connect()?.bgp_refresh(request)?;
            emit(out, *output, &refreshed, |_| bgp::refreshed(*address, &refreshed))
        }
        Command::Version { client: only_client, output } => {
            let welcome = || Ok::<_, ClientError>(connect()?.welcome()?.clone());
            let asked = (!only_client).then(welcome).transpose();
            let version = Version::new(asked.as_ref().ok().cloned().flatten());
            emit(out, *output, &version, |_| version.text())?;
            match asked {
                // Who asks a cluster need not be on a node.
                Err(ClientError::NotRunning { .. }) if !settings.has_daemon => Ok(()),
                // This program's own version is worth printing without a daemon too.
                asked => Ok(asked.map(drop)?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use twill_rpc::message::{PeerKind, PeerStatus};

    use super::*;

    /// 24 November 2026, noon UTC.
    pub(crate) const NOW_MS: u64 = 1_795_521_600_000;

    pub(crate) fn peer(address: &str) -> PeerStatus {
        PeerStatus {
            address: address.parse().unwrap(),
            port: 179,
            kind: PeerKind::NodeSpecific,
            name: "peer-rack1".into(),
            asn: "64513".parse().unwrap(),
            state: "Established".into(),
            since_ms: NOW_MS - 120_000,
            info: String::new(),
            hold_time: 90,
            router_id: Some("192.168.2.1".into()),
            capabilities: vec!["multiprotocol ipv4-unicast".into(), "4-octet AS".into()],
            prefixes_in: 2,
            prefixes_refused: 0,
            prefixes_stale: 0,
            stale_for_ms: None,
            long_lived_stale: false,
            awaited: false,
            prefixes_out: 1,
            messages_in: 12,
            messages_out: 11,
            flaps: 0,
            hostname: Some("tor-rack1".into()),
            notifications: Vec::new(),
            update_errors: Vec::new(),
        }
    }

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn command(arguments: &[&str]) -> Cli {
        use clap::Parser;
        Cli::try_parse_from(["twillctl"].iter().chain(arguments)).unwrap()
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        for format in ["table", "json", "yaml"] {
            let cli = command(&["version", "--client", "-o", format]);
            run(&cli, &mut Gone, &mut Vec::new()).unwrap();
        }
    }

    #[test]
    fn a_daemon_that_does_not_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("twilld.sock");
        let (socket, directory) = (socket.to_str().unwrap(), dir.path().to_str().unwrap());
        for arguments in [
            &["node", "status"][..],
            &["node", "check"],
            &["ipam", "check"],
            &["bgp", "peers"],
            &["version"],
        ] {
            let options = ["--socket", socket, "--resources", directory];
            let cli = command(&[arguments, &options].concat());
            let error = run(&cli, &mut Vec::new(), &mut Vec::new()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(socket) && error.contains("systemctl start"), "{error}");
        }
    }
}
