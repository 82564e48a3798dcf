//! The speaker as a whole: anything that can happen to it, from the corpora and at random.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test ends with the first surprise")]

mod soak;
