//! The codec against its tables, the RFCs' examples, two other codecs, and anything at all.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends with the first surprise"
)]

mod errors;
