//! The BGP speaker without I/O.
//!
//! Promise: the same inputs at the same times give the same outputs. There are no sockets, clocks,
//! threads or random numbers here: time is an argument ([`Time`]), jitter comes from a seed, and
//! everything that has to be done outside is an [`Output`] for the shell to carry out.
//!
//! ```text
//!   Input ──> Speaker ──> Output
//!               ├─ Peer (one per neighbour: both connections, timers, state)
//!               ├─ Rib  (paths of all peers, decision, what the kernel should have)
//!               └─ AdjRibsOut (what this node originates or reflects, and who was told of it)
//! ```

mod adj_out;
mod api;
mod connection;
mod decision;
mod explain;
pub mod fuzz;
mod offer;
mod peer;
pub mod policy;
mod rib;
mod speaker;
mod time;
pub mod wire;

pub use api::{
    Conflict, ConnId, Input, NextHopMode, NextHopState, NotificationCount, Output, Own, PathKey,
    PeerConfig, PeerEvent, PeerKey, PeerKind, PeerPolicy, PeerSnapshot, Reflection, RefreshError,
    RouteChange, RouteSnapshot, SpeakerConfig, State, UpdateErrorCount,
};
pub use decision::Step;
pub use explain::{Explanation, Outcome, PathExplanation, Unusable};
pub use speaker::Speaker;
pub use time::Time;

#[cfg(test)]
mod any_policy;
#[cfg(test)]
mod sim;
