//! The protocol between the node daemon and those who ask it: the CNI plugin and `twillctl`.
//!
//! Promise: a frame is read whole or not at all, lengths are bounded, and both sides name their
//! protocol version before anything else. No retries and no business rules here.

mod client;
mod frame;
pub mod message;

pub use client::{Client, ClientError};
pub use frame::{FrameError, MAX_FRAME, body_length, decode, encode, read_frame, write_frame};
