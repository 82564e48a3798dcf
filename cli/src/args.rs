mod words;

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use twill_k8s_api::Kind;
use twill_types::{Family, Prefix};

pub(crate) use self::words::{AllNamed, AllOrNamed, Named, One, OneLabelled, Positional};
use crate::{
    ipam::IpamCommand,
    output::{Format, GetFormat},
    resources::PatchType,
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
    /// Where resources are, instead of what the configuration says.
    #[arg(long, global = true, value_enum)]
    pub(crate) datastore: Option<DatastoreType>,
    /// The directory of the file datastore, instead of the configured one.
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) resources: Option<PathBuf>,
    /// How to reach Kubernetes' API server.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context, instead of its current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The namespace of what is in one (Secrets), instead of the context's.
    #[arg(long, short, global = true)]
    pub(crate) namespace: Option<String>,
    /// Called by kubectl.
    #[arg(skip)]
    pub(crate) is_plugin: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show resources.
    Get(GetArgs),
    /// Make what manifests say; what is there already is an error.
    Create(WriteArgs),
    /// Make or change resources as manifests say.
    ///
    /// On Kubernetes it is a server-side apply of the field manager `twillctl`.
    Apply(WriteArgs),
    /// Put what manifests say in the place of what is there.
    Replace(WriteArgs),
    /// Take resources away.
    Delete(DeleteArgs),
    /// Change some fields of a resource.
    Patch(PatchArgs),
    /// Set labels of a resource, and take them off.
    Label(LabelArgs),
    /// Say what is wrong with manifests; no datastore is asked.
    Validate {
        /// Manifests: a file, `-` for standard input, or a directory with *.yaml, *.yml, *.json.
        #[arg(long = "filename", short, required = true, value_name = "FILE|-|DIR")]
        filename: Vec<PathBuf>,
    },
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

/// What a datastore is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DatastoreType {
    /// Manifests in a directory.
    File,
    /// Kubernetes' API server.
    Kubernetes,
}

/// The name by which kubectl finds a plugin: `kubectl twill`.
const PLUGIN: &str = "kubectl-twill";

impl Cli {
    /// Reads a command line, the program's name first.
    pub fn from_arguments(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let program = arguments.first().map(Path::new).and_then(Path::file_stem);
        let is_plugin = program.is_some_and(|name| name == PLUGIN);
        let mut command = Self::command();
        if is_plugin {
            command = command.name(PLUGIN).bin_name("kubectl twill");
        }
        let matches = command.try_get_matches_from_mut(arguments)?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.is_plugin = is_plugin;
        cli.conflict().map_or(Ok(cli), |message| {
            Err(command.error(clap::error::ErrorKind::ArgumentConflict, message))
        })
    }

    /// Options that contradict each other. clap does not see that for global ones.
    fn conflict(&self) -> Option<&'static str> {
        let cluster = self.kubeconfig.is_some() || self.context.is_some();
        match self.datastore {
            _ if self.resources.is_some() && cluster => {
                Some("--resources is about files, --kubeconfig and --context about Kubernetes")
            }
            Some(DatastoreType::Kubernetes) if self.resources.is_some() => {
                Some("--resources is about files: leave out --datastore kubernetes")
            }
            Some(DatastoreType::File) if cluster => {
                Some("--kubeconfig and --context are about Kubernetes: leave out --datastore file")
            }
            _ => None,
        }
    }
}

/// What takes manifests and writes them.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    /// Manifests: a file, `-` for standard input, or a directory with *.yaml, *.yml, *.json.
    #[arg(long = "filename", short, required = true, value_name = "FILE|-|DIR")]
    pub(crate) filename: Vec<PathBuf>,
    /// Write nothing, and say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// With apply on Kubernetes: take over fields that others have written.
    #[arg(long)]
    pub(crate) force_conflicts: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args([words::WORDS, "filename"])))]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) objects: Positional<AllNamed>,
    /// What these manifests are about.
    #[arg(long = "filename", short, value_name = "FILE|-|DIR")]
    pub(crate) filename: Vec<PathBuf>,
    /// What is not there is no error.
    #[arg(long, alias = "ignore-not-found")]
    pub(crate) skip_not_exists: bool,
    /// Delete nothing, and say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["patch", "patch_file"])))]
pub(crate) struct PatchArgs {
    #[command(flatten)]
    pub(crate) object: Positional<One>,
    /// The patch, JSON or YAML.
    #[arg(long, short)]
    pub(crate) patch: Option<String>,
    /// A file with the patch, or `-` for standard input.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) patch_file: Option<PathBuf>,
    /// How it is written.
    #[arg(long = "type", value_enum, default_value_t)]
    pub(crate) kind_of_patch: PatchType,
    /// Change nothing, and say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LabelArgs {
    #[command(flatten)]
    pub(crate) what: Positional<OneLabelled>,
    /// Also where a label has another value now.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Take the labels off that are named.
    #[arg(long)]
    pub(crate) remove: bool,
    /// Change nothing, and say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What is to become of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LabelChange {
    Set(String, String),
    Remove(String),
    /// Only its name: with `--remove` it is taken off.
    Name(String),
}

fn label(text: &str) -> Result<LabelChange, String> {
    let change = match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => LabelChange::Set(key.to_owned(), value.to_owned()),
        (None, Some(key)) => LabelChange::Remove(key.to_owned()),
        (None, None) => LabelChange::Name(text.to_owned()),
    };
    let (LabelChange::Set(key, _) | LabelChange::Remove(key) | LabelChange::Name(key)) = &change;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    match key.is_empty() || !key.chars().all(fits) {
        true => Err("write KEY=VALUE, or KEY- to take it off".to_owned()),
        false => Ok(change),
    }
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args([words::WORDS])))]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) objects: Positional<AllOrNamed>,
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
    /// What on this host decides whether pods' packets get through: forwarding, source checks, other
    /// packet filters, addresses, the runtime's configuration. Exit status 1 if something stops them.
    Check {
        /// Where the container runtime looks for its network.
        #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
        cni_conf_dir: PathBuf,
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
            &["twillctl", "create"],
            &["twillctl", "delete", "ippool"],
            &["twillctl", "delete"],
            &["twillctl", "delete", "ippool", "a", "-f", "x"],
            &["twillctl", "delete", "ippool/"],
            &["twillctl", "get", "ippool", "bgppeer/b"],
            &["twillctl", "patch", "ippool/a", "b", "-p", "{}"],
            &["twillctl", "patch", "-p", "{}"],
            &["twillctl", "label", "ippool/a"],
            &["twillctl", "patch", "ippool", "a"],
            &["twillctl", "patch", "ippool", "a", "-p", "{}", "--type", "strategic"],
            &["twillctl", "label", "node", "n"],
            &["twillctl", "label", "node", "n", "=v"],
            &["twillctl", "--datastore", "etcdv3", "version"],
            &["twillctl", "get", "ippools", "--resources", "/x", "--context", "c"],
            &["twillctl", "get", "ippools", "--resources", "/x", "--datastore", "kubernetes"],
            &["twillctl", "--datastore", "file", "get", "ippools", "--kubeconfig", "/k"],
        ] {
            let error = Cli::from_arguments(arguments.iter().map(Into::into)).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn the_plugin_goes_by_kubectls_name() {
        let usage = |name: &str| {
            let line = [name, "get"].map(Into::into);
            Cli::from_arguments(line).unwrap_err().to_string()
        };
        assert!(usage("/opt/kubectl-twill").contains("Usage: kubectl twill get"));
        assert!(usage("/opt/twillctl").contains("Usage: twillctl get"));
    }
}
