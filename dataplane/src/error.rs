use std::{io, net::IpAddr, path::PathBuf};

use nix::errno::Errno;
use twill_sys::NetnsError;

/// The kernel's refusal of one netlink request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", errno, message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default())]
pub struct KernelError {
    /// The error number.
    pub errno: Errno,
    /// What the kernel says about it in words (extended ACK), if anything.
    pub message: Option<String>,
}

/// Everything that can go wrong between Twill and the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A netlink socket cannot be opened, written or read.
    #[error("netlink socket failed")]
    Socket(#[source] io::Error),
    /// An answer of the kernel cannot be read.
    #[error("cannot read the kernel's netlink answer: {0}")]
    Decode(String),
    /// A table changed during each of several attempts to read it.
    #[error("the kernel's {0} changed faster than they could be read; try again")]
    Interrupted(&'static str),
    /// The network namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused one step.
    #[error("the kernel refused `{step}`")]
    Kernel {
        /// The step, in the words of `ip`.
        step: String,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// A kernel setting cannot be read or written.
    #[error("cannot set {} to {value}", path.display())]
    Sysctl {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// The value that was to be set.
        value: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kernel setting cannot be read.
    #[error("cannot read {}", path.display())]
    SysctlRead {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pod has an interface of this name already, and it is not ours.
    #[error(
        "the pod's namespace {} has an interface `{ifname}` already; remove it or use another \
         interface name", netns.display()
    )]
    PodInterfaceTaken {
        /// The interface's name (`CNI_IFNAME`).
        ifname: String,
        /// The pod's namespace.
        netns: PathBuf,
    },
    /// The name of the host's end is used by something that is not ours.
    #[error(
        "a link `{name}` exists on the node and is not of this attachment (alias `{alias}`); remove it"
    )]
    HostLinkTaken {
        /// The link's name.
        name: String,
        /// Its alias.
        alias: String,
    },
    /// A later ADD of the same attachment has already made its link.
    #[error("link `{name}` belongs to a later ADD (sequence {found}, this one is {wanted})")]
    Superseded {
        /// The link's name.
        name: String,
        /// The sequence number in its alias.
        found: u64,
        /// The sequence number of this call.
        wanted: u64,
    },
    /// Another ADD or a DEL of the same attachment has deleted the link while it was made.
    #[error("link `{name}` was taken away while it was made; try again")]
    LinkTakenAway {
        /// The link's name.
        name: String,
    },
    /// Another link has a host route for the pod's address.
    #[error(
        "the node has a route for {address} through `{link}` already; remove that route or link, or release the address"
    )]
    AddressInUse {
        /// The pod's address.
        address: IpAddr,
        /// The link that has the route.
        link: String,
    },
    /// An IPv6 address is wanted on a node without IPv6.
    #[error("cannot give the pod {0}: this node runs without IPv6 (ipv6.disable)")]
    NoIpv6(IpAddr),
    /// An IPv6 address is wanted on a link that is too small for IPv6.
    #[error("MTU {mtu} is too small for IPv6; use at least 1280 (RFC 8200 section 5)")]
    MtuTooSmall {
        /// The MTU as given, in bytes.
        mtu: u32,
    },
    /// The packet filter has a table of our name that is not ours.
    #[error(
        "nftables has a table `inet {table}` that Twill did not make; pods get no way out of the pools \
         until it is removed or renamed (`nft list table inet {table}`)"
    )]
    TableTaken {
        /// The table's name.
        table: &'static str,
    },
    /// The node's route to the pods' gateway exists and leads elsewhere.
    #[error(
        "the node has a route for {gateway} through `{link}`; pods need it on `lo`: remove that route"
    )]
    GatewayTaken {
        /// The gateway of all pods.
        gateway: IpAddr,
        /// The link that has the route.
        link: String,
    },
}

impl Error {
    pub(crate) fn kernel(step: impl ToString, source: KernelError) -> Self {
        Self::Kernel { step: step.to_string(), source }
    }

    /// The kernel's error number, where the kernel refused a netlink request.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { source, .. } => Some(source.errno),
            _ => None,
        }
    }
}
