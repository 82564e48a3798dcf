//! Targets for fuzzing the speaker as a whole, and its policies: plain functions over bytes, as those of
//! the codec are ([`crate::wire::fuzz`]).
//!
//! [`events`] and [`session`] take whatever bytes there are, make a world of them in which one speaker
//! lives, and panic if the speaker breaks a promise to its shell, to its peers or to the kernel
//! (`world.rs`). [`policy`](fn@policy) makes filters and routes of them, and panics if they do not do what their
//! rules say.

mod choices;
mod events;
mod policy;
mod remote;
mod say;
mod session;
mod world;

pub use events::{events, events_observed};
pub use policy::{policy, policy_observed};
pub use session::{session, session_observed};

/// Runs one turn of the speaker, so that a test can measure it. The number is how many octets peers
/// have sent so far, those of this turn included.
pub type Observe<'a> = &'a mut dyn FnMut(usize, &mut dyn FnMut());

/// Measures nothing.
fn unobserved(_: usize, turn: &mut dyn FnMut()) {
    turn();
}
