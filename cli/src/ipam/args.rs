use std::{
    borrow::Cow,
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::{ArgAction, ArgGroup, Args, Subcommand, ValueEnum};
use twill_types::AttachmentId;

use crate::{elsewhere::quoted, output::Format};

#[derive(Debug, Subcommand)]
pub(crate) enum IpamCommand {
    /// Pools and blocks of the cluster, and how full they are.
    ///
    /// Who has which block, and how full those of other nodes are, is read from the datastore; this
    /// node's daemon tells its own. No other node is asked.
    Show(Show),
    /// Give addresses back by hand.
    ///
    /// Every release is fenced: it names the ADD that it is about, and does nothing where another one
    /// has taken its place. An address whose pod lives is given back only with --force. All addresses
    /// of an attachment go together.
    Release(Release),
    /// Change the IPAMConfiguration `default`, and make it if there is none.
    ///
    /// The rest of it stays. It is checked as `apply` checks it, and nothing is written if it is wrong.
    Configure(Configure),
    /// Look for leaked addresses, and for what does not agree.
    ///
    /// Nodes, pools, claims and numbers of the whole cluster are read from the datastore; records, links
    /// and routes are compared by this node's daemon for this node. Exit status 0: nothing is wrong;
    /// 1: something is. What may be an ADD or a DEL under way is shown, and does not count.
    Check(Check),
}

impl IpamCommand {
    /// The words behind `ipam` that have another daemon do the same, as a shell reads them; and the file that it is to
    /// have on its standard input, because it has no other of this machine.
    pub(crate) fn elsewhere(&self) -> (String, Option<&Path>) {
        match self {
            Self::Show(_) => ("show".to_owned(), None),
            Self::Release(release) => release.elsewhere(),
            Self::Configure(_) => ("configure".to_owned(), None),
            Self::Check(Check { fix: true, .. }) => ("check --fix".to_owned(), None),
            Self::Check(_) => ("check".to_owned(), None),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Also the blocks of all nodes.
    #[arg(long)]
    pub(super) show_blocks: bool,
    /// The parts of blocks that other nodes have.
    #[arg(long, conflicts_with_all = ["show_blocks", "ip", "configuration", "map"])]
    pub(super) show_borrowed: bool,
    /// Everything that is known of one address.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["show_blocks", "configuration", "map"])]
    pub(super) ip: Option<IpAddr>,
    /// The IPAMConfiguration that is in force.
    #[arg(long, conflicts_with_all = ["show_blocks", "map"])]
    pub(super) configuration: bool,
    /// A picture of the blocks of all pools, or of one.
    #[arg(long, value_name = "POOL", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "the flag, and its value")]
    pub(super) map: Option<Option<String>>,
    /// The picture as a file.
    #[arg(long, value_name = "FILE", requires = "map")]
    pub(super) svg: Option<PathBuf>,
    /// How wide the picture may be.
    #[arg(long, env = "COLUMNS", default_value_t = 80, hide_env_values = true)]
    pub(super) width: usize,
    /// Whether the picture has colours; it can be read without.
    #[arg(long, value_enum, default_value_t)]
    pub(super) color: Color,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    pub(super) output: Format,
}

/// When there are colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["ip", "handle", "from_report", "node"])))]
pub(crate) struct Release {
    /// These addresses, each with all others of its attachment.
    #[arg(long, value_name = "ADDRESS", num_args = 1.., value_delimiter = ',')]
    pub(super) ip: Vec<IpAddr>,
    /// What an attachment has: network/container/interface, as `show --ip` names it.
    #[arg(long, value_name = "ATTACHMENT", value_parser = attachment)]
    pub(super) handle: Option<AttachmentId>,
    /// The leaked addresses of this node that a report of `check` lists.
    #[arg(long, value_name = "FILE")]
    pub(super) from_report: Option<PathBuf>,
    /// The blocks of a node that is gone, without waiting until its grace period is over.
    #[arg(long, alias = "from-node", value_name = "NODE", conflicts_with = "sequence")]
    pub(super) node: Option<String>,
    /// Only if they are those of the ADD with this number; else of the one that is there now.
    #[arg(long, value_name = "NUMBER", conflicts_with = "from_report")]
    pub(super) sequence: Option<u64>,
    /// Also if the pod, or the node, lives.
    #[arg(long)]
    pub(super) force: bool,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    pub(super) output: Format,
}

impl Release {
    fn elsewhere(&self) -> (String, Option<&Path>) {
        let mut words = vec![Cow::Borrowed("release")];
        let mut option = |name: &'static str, value: String| {
            words.extend([name.into(), quoted(&value).into_owned().into()]);
        };
        for ip in &self.ip {
            option("--ip", ip.to_string());
        }
        if let Some(handle) = &self.handle {
            option("--handle", handle.to_string());
        }
        if self.from_report.is_some() {
            option("--from-report", "/dev/stdin".to_owned());
        }
        if let Some(node) = &self.node {
            option("--node", node.clone());
        }
        if let Some(sequence) = self.sequence {
            option("--sequence", sequence.to_string());
        }
        if self.force {
            words.push("--force".into());
        }
        (words.join(" "), self.from_report.as_deref())
    }
}

fn attachment(text: &str) -> Result<AttachmentId, String> {
    let parts: Vec<&str> = text.splitn(3, '/').collect();
    match parts[..] {
        [network, container, ifname] if !parts.iter().any(|part| part.is_empty()) => {
            Ok(AttachmentId {
                network: network.to_owned(),
                container_id: container.to_owned(),
                ifname: ifname.to_owned(),
            })
        }
        _ => Err("write network/container/interface, such as k8s-pod-network/0123abcd/eth0".into()),
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true, args = [
    "strict_affinity", "auto_allocate_blocks", "max_blocks_per_host", "ip_cooldown_seconds",
])]
pub(crate) struct Configure {
    /// Whether nodes give out addresses of their own blocks only.
    #[arg(long, value_name = "true|false", action = ArgAction::Set)]
    pub(super) strict_affinity: Option<bool>,
    /// Whether nodes take blocks as they need them.
    #[arg(long, value_name = "true|false", action = ArgAction::Set)]
    pub(super) auto_allocate_blocks: Option<bool>,
    /// How many blocks of each family a node may have; 0: as many as there are.
    #[arg(long, value_name = "NUMBER")]
    pub(super) max_blocks_per_host: Option<u32>,
    /// How long an address rests after use.
    #[arg(long, value_name = "SECONDS")]
    pub(super) ip_cooldown_seconds: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Mend what can be mended here, and say who can mend the rest.
    #[arg(long, conflicts_with = "datastore_only")]
    pub(super) fix: bool,
    /// Look at the datastore alone: without the records and links of this node.
    #[arg(long)]
    pub(super) datastore_only: bool,
    /// Write the report, as JSON, into a file as well.
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    pub(super) output: Format,
}
