//! What the kernel really does with what this crate asks for. Needs root; works in network
//! namespaces of its own only.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends with the first surprise")]

mod common;
mod kernel {
    mod fib;
    mod host;
    mod leave;
    mod nat;
    mod node;
    mod objects;
    mod pod_add;
    mod pod_check;
    mod pod_del;
    mod pod_restore;
    mod tables;
}
