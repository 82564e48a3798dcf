//! The testkit: whole networks of nodes and routers, made of throw-away namespaces.
//!
//! Promise: what a caller makes here ends with its process, however that ends. Everything lives
//! inside one [`sandbox`] (its own mount, network and process namespaces, `/run` on a tmpfs), so
//! the kernel itself cleans up, after SIGKILL too. Nothing here touches the machine's own
//! interfaces, routes or files.
//!
//! A [`lab::Lab`] is a topology: nodes (each runs its own `twilld`), routers (real BIRD 2, or FRR,
//! GoBGP and OpenBGPD by [`frr`], [`gobgp`] and [`openbgpd`]) and the segments between them.
//! [`cni`] calls plugins exactly as a container runtime does, [`ping`] counts lost packets,
//! [`kubernetes`] is a real control plane, [`snapshot`] compares what is there before and after.

pub mod bird;
pub mod cgroup;
pub mod cni;
pub mod demo;
pub mod frr;
pub mod gobgp;
pub mod image;
pub mod kubernetes;
pub mod lab;
pub mod netns;
pub mod openbgpd;
pub mod ping;
pub mod process;
pub mod programs;
pub mod ptrace;
pub mod rack;
pub mod random;
pub mod record;
pub mod sandbox;
pub mod snapshot;
pub mod suite;
pub mod wait;
pub mod watch;
