//! What can go wrong, and the one table that makes a CNI error of it.

use std::{error::Error as _, io, path::PathBuf};

use serde_json::{Value, json};
use twill_dataplane::{NetnsError, pod::Difference};
use twill_ipam_store::Refusal;
use twill_rpc::{
    ClientError,
    message::{ErrorKind, RpcError},
};
use twill_types::error_chain;

use crate::{
    delegate::DelegateError,
    netconf::{Problem, ProblemKind},
    result::PreviousError,
    standalone::StandaloneError,
    version::Version,
};

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration's `cniVersion` is not one of ours. The wording is libcni's.
    #[error("incompatible CNI versions")]
    Version(String),
    /// A verb that the configuration's version does not have yet.
    #[error(
        "config version does not allow {verb}: cniVersion is {version}, at least {since} is needed"
    )]
    VerbTooNew {
        /// The verb.
        verb: &'static str,
        /// The configuration's version.
        version: Version,
        /// The version that brought the verb.
        since: Version,
    },
    /// Variables that the verb needs are missing or empty. The wording is libcni's.
    #[error("required env variables [{}] missing", .0.join(","))]
    MissingVariables(Vec<&'static str>),
    /// No such verb here. The wording is libcni's.
    #[error("unknown CNI_COMMAND: {0}")]
    UnknownCommand(String),
    /// A variable's value cannot be right.
    #[error("{wrong}: {name} is {value:?}; it takes {right}")]
    InvalidVariable {
        /// What is wrong with it.
        wrong: &'static str,
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it takes.
        right: &'static str,
    },
    /// Standard input cannot be read.
    #[error("cannot read the network configuration from standard input")]
    Stdin(#[source] io::Error),
    /// Standard input is not a JSON object.
    #[error("the network configuration on standard input is no JSON object")]
    Decode(#[source] serde_json::Error),
    /// A key of the specification has a value of another type.
    #[error("{key} is {value}; write it as a string, in quotes")]
    NotAString {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// The network has no name, or not one that the specification allows.
    #[error("{}", match .0 {
        None => "missing network name".to_owned(),
        Some(name) => format!("invalid characters in network name: name is {name:?}; it takes a \
            letter or digit, then letters, digits, `_`, `.`, `-`"),
    })]
    NetworkName(Option<String>),
    /// Values of the configuration that cannot be used; at least one.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<Problem>),
    /// A result of another plugin comes in, and this one makes the interface itself.
    #[error(
        "prevResult is given: twill makes the pod's interface and has to be the first plugin of the list"
    )]
    Chained,
    /// CHECK without the result that it is to compare with.
    #[error("prevResult is missing: CHECK compares with it")]
    NoPrevious,
    /// A `prevResult` that does not fit.
    #[error(transparent)]
    Previous(#[from] PreviousError),
    /// GC without the list of what is to stay: nothing may be freed.
    #[error("cni.dev/valid-attachments is missing: without it, GC would not know what is to stay")]
    NoAttachments,
    /// GC could not remove all that it should; the rest is gone.
    #[error("not all could be removed: {}", .0.join("; "))]
    Gc(Vec<String>),
    /// The link of an attachment has the alias of somebody else, so GC leaves it alone.
    #[error(
        "its link {link} has the alias {alias:?}, which is not Twill's, so it stays with its \
         addresses; take the alias away (ip link set dev {link} alias \"\"), or delete the link"
    )]
    AliasOfAnother {
        /// Its name.
        link: String,
        /// What stands there.
        alias: String,
    },
    /// Another IPAM plugin failed.
    #[error(transparent)]
    Delegate(#[from] DelegateError),
    /// The pod's namespace cannot be opened.
    #[error("CNI_NETNS is {path:?}, which is no network namespace here")]
    Netns {
        /// `CNI_NETNS`.
        path: String,
        /// Why.
        source: NetnsError,
    },
    /// The pod's namespace is the one in which the plugin runs.
    #[error(
        "CNI_NETNS is {0:?}, the network namespace of the node itself; CNI_NETNS_OVERRIDE=1 allows it"
    )]
    OwnNetns(String),
    /// The pod's link differs from what the ADD made.
    #[error("the pod's network is not as the ADD left it: {}; delete the pod", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Differs(Vec<Difference>),
    /// The kernel's part failed.
    #[error(transparent)]
    Dataplane(#[from] twill_dataplane::Error),
    /// The daemon's part failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Standalone mode failed.
    #[error(transparent)]
    Standalone(#[from] StandaloneError),
    /// Neither a daemon that was ready lately, nor standalone mode.
    #[error(
        "twilld on {} is not ready: {why}; see its log (journalctl -u twilld, or kubectl logs)",
        socket.display()
    )]
    NotReady {
        /// The daemon's socket.
        socket: PathBuf,
        /// What is known.
        why: String,
    },
    /// STATUS: there is no daemon, and the store cannot be used without one.
    #[error("no pod can get an address; start twilld, or repair runDir")]
    StoreNotReady(#[source] StandaloneError),
    /// STATUS: the configuration says that there is no daemon, and there is one.
    #[error(
        "ipam.mode is \"standalone\", and twilld has the address store: no pod can get an address; write \
         \"daemon\", or stop twilld"
    )]
    StoreOfDaemon(#[source] StandaloneError),
    /// STATUS: no address is left, and no block to claim.
    #[error("every address that this node can have is in use; add a pool, or delete pods")]
    Exhausted,
    /// STATUS: pods may not reach everything.
    #[error("{0} routes that peers announce are not in the kernel; see twillctl bgp routes")]
    RoutesMissing(u32),
    /// A fault of this program.
    #[error("twill failed at {place}: {what}; please report it")]
    Panic {
        /// Source file and line.
        place: String,
        /// The panic's message.
        what: String,
    },
}

/// The codes. Up to 99 they are the specification's, 8 and 999 are libcni's, 100 and up our own.
/// `docs/cni.md` lists them for users.
mod code {
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const UNSUPPORTED_FIELD: u32 = 2;
    pub(super) const ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const DECODE: u32 = 6;
    pub(super) const CONFIG: u32 = 7;
    pub(super) const INVALID_NETNS: u32 = 8;
    pub(super) const TRY_AGAIN: u32 = 11;
    pub(super) const NOT_AVAILABLE: u32 = 50;
    pub(super) const LIMITED: u32 = 51;
    pub(super) const NO_POOL: u32 = 100;
    pub(super) const EXHAUSTED: u32 = 101;
    pub(super) const MISMATCH: u32 = 102;
    pub(super) const TAKEN: u32 = 103;
    pub(super) const KERNEL: u32 = 104;
    pub(super) const INTERNAL: u32 = 999;
}

impl Error {
    /// The CNI error code.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Version(_) | Self::VerbTooNew { .. } => code::INCOMPATIBLE_VERSION,
            Self::MissingVariables(_)
            | Self::UnknownCommand(_)
            | Self::InvalidVariable { .. }
            | Self::Netns { .. } => code::ENVIRONMENT,
            Self::Stdin(_) => code::IO,
            Self::Decode(_) | Self::NotAString { .. } => code::DECODE,
            Self::Config(problems) => match problems.first().map(|problem| &problem.kind) {
                Some(ProblemKind::Unsupported(_)) => code::UNSUPPORTED_FIELD,
                Some(ProblemKind::Wrong(_) | ProblemKind::Unknown(_)) | None => code::CONFIG,
            },
            Self::NetworkName(_)
            | Self::Chained
            | Self::NoPrevious
            | Self::NoAttachments
            | Self::Previous(_) => code::CONFIG,
            Self::Gc(_) | Self::AliasOfAnother { .. } => code::TRY_AGAIN,
            Self::Delegate(error) => delegate_code(error),
            Self::OwnNetns(_) => code::INVALID_NETNS,
            Self::Differs(_) => code::MISMATCH,
            Self::Dataplane(error) => dataplane_code(error),
            Self::Client(error) => client_code(error),
            Self::Standalone(error) => standalone_code(error),
            Self::NotReady { .. }
            | Self::StoreNotReady(_)
            | Self::StoreOfDaemon(_)
            | Self::Exhausted => code::NOT_AVAILABLE,
            Self::RoutesMissing(_) => code::LIMITED,
            Self::Panic { .. } => code::INTERNAL,
        }
    }

    /// The error object of the specification.
    pub(crate) fn to_json(&self, version: Version) -> Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code(),
            "msg": self.to_string(),
        });
        if let Some(details) = self.details() {
            object["details"] = details.into();
        }
        object
    }

    fn details(&self) -> Option<String> {
        if let Self::Version(config) = self {
            let ours = Version::ALL.map(Version::as_str);
            return Some(format!("config is {config:?}, plugin supports {ours:?}"));
        }
        if let Self::Delegate(DelegateError::Failed { details: Some(details), .. }) = self {
            return Some(details.clone());
        }
        self.source().map(error_chain).filter(|details| !details.is_empty())
    }
}

/// The code of another plugin's error is passed on as it is.
fn delegate_code(error: &DelegateError) -> u32 {
    match error {
        DelegateError::Failed { code, .. } => *code,
        DelegateError::NotFound { .. } | DelegateError::Itself { .. } => code::CONFIG,
        DelegateError::Execute { .. } => code::IO,
        DelegateError::Timeout { .. } => code::TRY_AGAIN,
        DelegateError::Unsupported { .. } => code::UNSUPPORTED_FIELD,
        DelegateError::Result { .. } => code::DECODE,
    }
}

fn dataplane_code(error: &twill_dataplane::Error) -> u32 {
    use twill_dataplane::Error as E;
    match error {
        E::PodInterfaceTaken { .. }
        | E::HostLinkTaken { .. }
        | E::AddressInUse { .. }
        | E::GatewayTaken { .. } => code::TAKEN,
        // A later call for the same attachment is under way, or a table is busy.
        E::Superseded { .. } | E::LinkTakenAway { .. } | E::Interrupted(_) => code::TRY_AGAIN,
        E::MtuTooSmall { .. } => code::CONFIG,
        _ => code::KERNEL,
    }
}

fn client_code(error: &ClientError) -> u32 {
    match error {
        // Each of these passes when the daemon is back, or is replaced as well.
        ClientError::NotRunning { .. }
        | ClientError::Timeout { .. }
        | ClientError::Lost { .. }
        | ClientError::Version { .. } => code::TRY_AGAIN,
        ClientError::Connect { .. } => code::IO,
        ClientError::Protocol { .. } | ClientError::Unexpected { .. } => code::INTERNAL,
        ClientError::Remote(RpcError { kind, .. }) => match kind {
            ErrorKind::Invalid => code::CONFIG,
            ErrorKind::NoPool => code::NO_POOL,
            ErrorKind::Exhausted => code::EXHAUSTED,
            ErrorKind::TryAgain => code::TRY_AGAIN,
            ErrorKind::Taken => code::TAKEN,
            ErrorKind::Mismatch => code::MISMATCH,
            ErrorKind::Internal => code::INTERNAL,
        },
    }
}

fn standalone_code(error: &StandaloneError) -> u32 {
    match error {
        StandaloneError::Busy(_) | StandaloneError::Released(_) | StandaloneError::Store { .. } => {
            code::TRY_AGAIN
        }
        StandaloneError::Lock(_) => code::IO,
        StandaloneError::NoPool { .. } => code::NO_POOL,
        StandaloneError::Exhausted { .. } => code::EXHAUSTED,
        // As the daemon has them.
        StandaloneError::Refused(refusal) => match refusal {
            Refusal::NoBlock { .. } => code::CONFIG,
            Refusal::Full(_) => code::EXHAUSTED,
            Refusal::Cooling { .. } | Refusal::Resting { .. } => code::TRY_AGAIN,
            Refusal::Taken { .. }
            | Refusal::Reserved { .. }
            | Refusal::Delegated { .. }
            | Refusal::Withheld { .. } => code::TAKEN,
        },
        StandaloneError::Mismatch { .. } => code::MISMATCH,
        StandaloneError::Node(error) => dataplane_code(error),
    }
}

#[cfg(test)]
mod tests {
    use twill_ipam_store::StoreError;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let store = || StandaloneError::Store {
            path: "/run/twill/ipam/store".into(),
            source: StoreError::Stopped,
        };
        let causes = ["/run/twill/ipam/store", &StoreError::Stopped.to_string()];
        for error in [Error::StoreNotReady(store()), Error::Standalone(store())] {
            let object = error.to_json(Version::NEWEST).to_string();
            for cause in causes {
                assert_eq!(object.matches(cause).count(), 1, "{object}");
            }
        }
    }
}
