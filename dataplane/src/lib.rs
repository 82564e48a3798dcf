//! What Twill does to the kernel: pod links, the node's own routes, and learned routes.
//!
//! Promise: what Twill makes it can recognise (routes by protocol number and metric, links by name,
//! alias and group), and it never changes or removes anything else. Every verb may be repeated;
//! removing what is not there is success. Everything is done by netlink on a synchronous socket,
//! in as few sends as the kernel allows; `docs/host-changes.md` lists it all.
//!
//! Absent: decisions. Which address, which route, which MTU comes from the caller.

mod address;
mod error;
mod link;
mod message;
mod netlink;
mod nexthop;
mod nftables;
mod route;
mod sysctl;

pub mod fib;
pub mod host;
pub mod leave;
pub mod nat;
pub mod node;
pub mod pod;
#[cfg(feature = "watch")]
pub mod watch;

pub use error::{Error, KernelError};
pub use link::Link;
pub use message::{MacAddress, MacError};
pub use route::NextHop;
pub use twill_sys::{Netns, NetnsError};
