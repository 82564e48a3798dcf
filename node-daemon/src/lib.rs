//! The node daemon: owns all state on a node.
//!
//! ```text
//!  manifests ─> datastore ──(watch)──┬──> claims ──> store (ipam-store: one committer at a time)
//!                                    │       └─(watch: owned blocks)─┐        ^
//!                                    └──> bgp ──> speaker <──────────┤        │ assign, release
//!                                                   │ routes         │        │
//!  kernel events ──────────────────────────────> routes <────────────┘     server <── twill, twillctl
//!
//!  store ──(publish: how full the blocks are)──> datastore
//!
//!  links, namespaces ──> reconcile ──(what no DEL came for)──> store, delete group ──> reaper
//! ```
//!
//! Promise: each piece of state has one task that owns it; configuration is passed on as the latest
//! value, commands by bounded queues. A task that fails takes the process down: starting again is
//! the one recovery there is, and it loses neither routes nor addresses.

mod api;
mod app;
mod backoff;
mod bgp;
mod caretaker;
mod check;
mod claims;
mod cluster;
mod config;
mod datastore;
mod desired;
mod explain;
mod filters;
pub mod fleet;
mod gone;
mod heartbeat;
mod host;
mod http;
mod install;
mod ipam;
mod last_known;
mod look;
mod metrics;
mod namespaces;
mod nat;
mod node;
mod passwords;
mod pods;
mod problems;
mod publish;
mod reaper;
mod reconcile;
mod repair;
mod result_cache;
mod routes;
mod server;
mod services;
mod spool;
mod tasks;
mod uninstall;

pub use app::main;
pub use config::{Config, ConfigError};
