//! The pods' way out: who of them leaves the pools by the node's own address.
//!
//! One table of nftables, `inet twill`, is ours, and says so in its comment. It is written as a whole, in
//! one batch: a packet sees the old one or the new one. Where the kernel knows tables with an owner that
//! outlive it (Linux 6.9), nobody but root's own `nft delete` after the daemon has ended takes it away, a
//! `nft flush ruleset` least of all; where it does not, events tell of it.

mod table;
#[cfg(feature = "watch")]
mod watch;

use std::collections::BTreeSet;

use nix::errno::Errno;
use twill_types::Prefix;
#[cfg(feature = "watch")]
pub use watch::{RulesEvent, RulesEvents};

use crate::{
    Error,
    nftables::{INET, Message, Socket, find, text},
};

/// The table's name.
pub const TABLE: &str = "twill";

/// Who leaves by the node's own address, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The pools whose pods do. Without any there is no table.
    pub sources: BTreeSet<Prefix>,
    /// All pools: towards these every pod keeps its address.
    pub pools: BTreeSet<Prefix>,
}

/// The table.
#[derive(Debug)]
pub struct Nat {
    socket: Socket,
    /// Whether the kernel knows tables that have an owner and outlive it.
    knows_owners: bool,
}

impl Nat {
    /// Opens a socket in the calling thread's namespace. The table belongs to it as long as it lives.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open()?, knows_owners: true })
    }

    /// By which [`RulesEvents`] tells what this does from what others do.
    #[cfg(feature = "watch")]
    pub fn port(&self) -> Result<u32, Error> {
        self.socket.port()
    }

    /// Makes the table what is wanted, whatever it is.
    pub fn apply(&mut self, wanted: &Masquerade) -> Result<(), Error> {
        /// How often somebody else may come in between.
        const ATTEMPTS: usize = 5;
        let mut result = self.try_apply(wanted);
        for _ in 1..ATTEMPTS {
            match &result {
                // The table came or went after it was looked for.
                Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EEXIST)) => {
                    result = self.try_apply(wanted);
                }
                _ => break,
            }
        }
        result
    }

    fn try_apply(&mut self, wanted: &Masquerade) -> Result<(), Error> {
        let exists = match self.found()? {
            None => false,
            Some(Found::Ours) => true,
            Some(Found::Others) if wanted.sources.is_empty() => return Ok(()),
            Some(Found::Others) => return Err(Error::TableTaken { table: TABLE }),
        };
        if wanted.sources.is_empty() {
            return match exists {
                true => self.socket.commit(&[table::delete()], "delete table inet twill"),
                false => Ok(()),
            };
        }
        let mut changes: Vec<Message> = exists.then(table::delete).into_iter().collect();
        let start = changes.len();
        changes.extend(table::table(wanted, self.knows_owners));
        let step = "replace table inet twill";
        match self.socket.commit(&changes, step) {
            Err(error) if self.knows_owners && error.errno() == Some(Errno::EOPNOTSUPP) => {
                changes.truncate(start);
                changes.extend(table::table(wanted, false));
                self.socket.commit(&changes, step)?;
                // Not before it is known that the owner was the reason.
                self.knows_owners = false;
                Ok(())
            }
            done => done,
        }
    }

    fn found(&mut self) -> Result<Option<Found>, Error> {
        let found = self.socket.ask(&table::get(), "table inet twill", |_, attributes| {
            Some(match find(attributes, table::USERDATA).and_then(table::comment) {
                Some(table::COMMENT) => Found::Ours,
                _ => Found::Others,
            })
        })?;
        Ok(found.into_iter().next())
    }
}

/// Whose the table with our name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Ours,
    Others,
}

/// Whether an event is about the table with our name.
#[cfg_attr(not(feature = "watch"), expect(dead_code, reason = "only events ask"))]
fn is_ours(family: u8, attributes: &[u8]) -> bool {
    /// `NFTA_TABLE_NAME`; the same number for the table of chains, rules, sets and elements.
    const NAME: u16 = 1;
    family == INET && find(attributes, NAME).and_then(text) == Some(TABLE)
}
