//! The codec against its tables, the RFCs' examples, two other codecs, and anything at all.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test ends with the first surprise"
)]

mod codec;
mod errors;
mod explain;
mod messages;
mod netgauze;
mod opens;
mod oracles;
mod rustbgpd;
mod short;
mod soak;
mod speed;
mod vectors;
mod view;
