//! The tokio shell around [`twill_bgp_proto::Speaker`]: sockets, timers and tasks.
//!
//! Promise: one task owns the speaker and decides nothing itself. Bytes, timers and commands go
//! in, and what comes out is carried out: connect, send, close, report. No protocol rule lives
//! here.

mod connection;
mod grace;
mod listener;
mod password;
mod run;
mod strangers;

pub use password::{Password, PasswordError};
pub use run::{Command, Handle, Pictured, Report, ShellError, Snapshot, start};
