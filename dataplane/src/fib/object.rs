//! Nexthop objects of ours: what routes can share, so that one message moves all of them.
//!
//! A route names a group, and the group its members, each a hop. A group keeps its type for life; all
//! else about it can be replaced. The kernel takes a hop out of all groups when it is deleted, and
//! deletes it when its link goes down or loses its carrier.

use std::{collections::BTreeMap, collections::BTreeSet, fmt};

use nix::errno::Errno;

use super::Fib;
use crate::{Error, KernelError, NextHop, nexthop};

/// The number of a nexthop object of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub(crate) u32);

impl ObjectId {
    /// The first number of our range: far above what the kernel and zebra reach, who count up from 1.
    pub const FIRST: u32 = 0x0774_0000;
    /// The last one.
    pub const LAST: u32 = 0x0774_ffff;

    /// The greatest, after which they begin anew.
    pub const MAX: Self = Self(Self::LAST);

    /// `None` outside of our range.
    pub const fn new(number: u32) -> Option<Self> {
        match number {
            Self::FIRST..=Self::LAST => Some(Self(number)),
            _ => None,
        }
    }

    /// What the kernel calls it.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The next one; after the last comes the first.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.0 {
            Self::LAST => Self(Self::FIRST),
            number => Self(number + 1),
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A nexthop object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A way out of the node.
    Hop(NextHop),
    /// What routes name.
    Group(Group),
}

/// Hops that share the traffic of routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// The hops, which get the same each.
    pub members: BTreeSet<ObjectId>,
    /// A hop that gets nothing until all members are gone, and then everything, by the kernel alone.
    /// For a guarded group only.
    pub backup: Option<ObjectId>,
    /// Whether it can have a backup: it is a resilient group then, and each packet leaves a mark in one
    /// of its buckets.
    pub guarded: bool,
}

/// One change of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectChange {
    /// A new one; refused if there is one of this number.
    Create(ObjectId, Object),
    /// A group becomes another, without a gap for its routes.
    Replace(ObjectId, Group),
    /// An object goes: a hop out of all its groups, a group with all its routes.
    Delete(ObjectId),
}

impl ObjectChange {
    /// The object that it is about.
    pub const fn id(&self) -> ObjectId {
        match self {
            Self::Create(id, _) | Self::Replace(id, _) | Self::Delete(id) => *id,
        }
    }
}

impl Fib {
    /// The nexthop objects that are in the kernel, by our protocol number and in our range.
    pub fn objects(&mut self) -> Result<BTreeMap<ObjectId, Object>, Error> {
        match self.socket.dump_raw(&nexthop::list(), "nexthop objects", nexthop::read) {
            // A kernel before 5.3 has none.
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => Ok(BTreeMap::new()),
            found => Ok(found?.into_iter().collect()),
        }
    }

    /// Makes the changes, in order; answers those that the kernel refused. An object to delete that
    /// has gone is no error.
    pub fn apply_objects(
        &mut self,
        changes: &[ObjectChange],
    ) -> Result<Vec<(ObjectId, KernelError)>, Error> {
        let requests: Vec<_> = changes.iter().map(nexthop::request).collect();
        let replies = self.socket.run_raw(&requests)?;
        let refused = changes.iter().zip(replies).filter_map(|(change, reply)| {
            let gone = |e: &KernelError| {
                matches!(change, ObjectChange::Delete(_)) && e.errno == Errno::ENOENT
            };
            Some((change.id(), reply.error.filter(|error| !gone(error))?))
        });
        Ok(refused.collect())
    }
}
