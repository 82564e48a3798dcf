//! The verbs.

mod add;
mod check;
mod del;
mod gc;
pub(crate) mod ipam;
mod status;

use std::time::Duration;

use nix::sys::stat::fstat;
use twill_dataplane::{Netns, NetnsError};
use twill_rpc::message::Held;
use twill_types::AttachmentId;

pub(crate) use self::{add::add, check::check, del::del, gc::gc, status::status};
use crate::{
    call::{Args, Persona, Variables},
    deadline::Deadline,
    error::Error,
    netconf::Netconf,
};

/// The most that a DEL waits for the daemon in all: a pod that cannot be deleted blocks more than
/// an address that comes back later.
const DEL_PATIENCE: Duration = Duration::from_secs(8);

/// How many links are deleted at once. The kernel waits once for all of them, and whoever adds a
/// pod to another network meanwhile waits as long.
pub(crate) const BATCH: usize = 10;

/// A call, read and checked.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) persona: Persona,
    /// Standard input, for the plugins that are executed in turn.
    pub(crate) stdin: Vec<u8>,
    pub(crate) variables: Variables,
    /// `CNI_ARGS`.
    pub(crate) args: Args,
    pub(crate) netconf: Netconf,
    pub(crate) deadline: Deadline,
}

impl Call {
    pub(crate) fn attachment(&self) -> AttachmentId {
        AttachmentId {
            network: self.netconf.name.clone(),
            container_id: self.variables.container_id.clone(),
            ifname: self.variables.ifname.clone(),
        }
    }

    /// Opens `CNI_NETNS`, which must not be the namespace of the node. That is found out before
    /// anything is done there.
    fn netns(&self) -> Result<Netns, Error> {
        let failed = |source| self.netns_error(source);
        let netns = Netns::open(&self.variables.netns).map_err(failed)?;
        if !self.variables.own_netns_allowed {
            let own = Netns::current().map_err(failed)?;
            if is_same(&netns, &own).map_err(failed)? {
                return Err(Error::OwnNetns(self.variables.netns.clone()));
            }
        }
        Ok(netns)
    }

    /// The same for a DEL: a namespace that is gone is none. Neither is the node's own: the path
    /// leads to another one than at the ADD (a process's number is used again), which no repetition
    /// of the DEL would mend.
    fn netns_if_any(&self) -> Result<Option<Netns>, Error> {
        match self.netns() {
            Ok(netns) => Ok(Some(netns)),
            Err(error @ Error::OwnNetns(_)) => {
                tracing::warn!(%error, "the pod's namespace is taken for gone");
                Ok(None)
            }
            Err(Error::Netns {
                source:
                    NetnsError::Open { .. }
                    | NetnsError::NotANamespace { .. }
                    | NetnsError::OtherKind { .. },
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn deadline_of_del(&self) -> Deadline {
        self.deadline.at_most(DEL_PATIENCE)
    }

    fn netns_error(&self, source: NetnsError) -> Error {
        Error::Netns { path: self.variables.netns.clone(), source }
    }
}

/// The namespace that somebody was given addresses for, if it is at its path now.
fn namespace_of(held: &Held) -> Option<Netns> {
    let netns = Netns::open(&held.netns).ok()?;
    let cookie = held.netns_cookie?;
    (netns.cookie().ok()? == Some(cookie)).then_some(netns)
}

/// Whether both are one namespace. While both are open, no other can have the same inode.
fn is_same(one: &Netns, other: &Netns) -> Result<bool, NetnsError> {
    let inode = |netns: &Netns| match fstat(netns) {
        Ok(stat) => Ok((stat.st_dev, stat.st_ino)),
        Err(errno) => Err(NetnsError::Open { path: netns.path().into(), source: errno.into() }),
    };
    Ok(inode(one)? == inode(other)?)
}
