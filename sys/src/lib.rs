//! What the standard library and nix do not offer: the only crate of Twill with `unsafe` code.
//!
//! Promise: every function here is safe to call, gives back the calling thread in the namespace in
//! which it came, and each `unsafe` block says why it is sound.

mod arena;
pub mod child;
mod code;
mod filter;
mod heap;
pub mod netns;
pub mod sched;
mod tcp_md5;
mod ttl_security;
mod xtables;

pub use arena::ShortLived;
pub use code::let_go_of_code;
pub use filter::ignore_netlink;
pub use heap::share_heap;
pub use netns::{AtPath, Netns, NetnsError, in_netns, look, netns_cookie};
pub use tcp_md5::{MAX_KEY_LENGTH, set_tcp_md5_key};
pub use ttl_security::{send_highest_ttl, set_ttl_security};
pub use xtables::{XTable, read_xtable};
