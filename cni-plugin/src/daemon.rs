//! The daemon as this program uses it: one connection, made when needed, and made again if the
//! daemon restarts in the middle of a call. Every request may be repeated.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use twill_rpc::{
    Client, ClientError,
    message::{ErrorKind, Request, RpcError},
};

use crate::deadline::Deadline;

/// How this program introduces itself.
const NAME: &str = concat!("twill ", env!("CARGO_PKG_VERSION"));

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The socket of the daemon of this run directory.
pub(crate) fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("twilld.sock")
}

/// The way to the daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    socket: PathBuf,
    deadline: Deadline,
    client: Option<Client>,
}

impl Daemon {
    /// Nothing is sent before the first request.
    pub(crate) fn new(run_dir: &Path, deadline: Deadline) -> Self {
        Self { socket: socket(run_dir), deadline, client: None }
    }

    /// Asks once. `request` is told how long the daemon may take for an answer that leaves us time
    /// to act on it.
    pub(crate) fn ask<T>(
        &mut self,
        request: impl FnOnce(&mut Client, Duration) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket, NAME, self.deadline.left())?,
        };
        let answer = request(&mut client, self.deadline.left().mul_f32(0.9));
        // After any other error the connection may be in the middle of a frame.
        if let Ok(_) | Err(ClientError::Remote(_)) = answer {
            self.client = Some(client);
        }
        answer
    }

    /// Asks on the connection that is there, and does not wait: a later question for the same finds the
    /// answer, or asks again where something is amiss.
    pub(crate) fn ask_ahead(&mut self, request: Request) {
        self.client = self.client.take().and_then(|mut client| {
            let asked = client.ask_ahead(request);
            asked.is_ok().then_some(client)
        });
    }

    /// Asks until there is an answer or the deadline has come: a runtime does not repeat a call by
    /// itself, it fails the whole pod.
    pub(crate) fn insist<T>(
        &mut self,
        request: impl FnMut(&mut Client, Duration) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        self.repeat(request, passes)
    }

    /// Asks until a daemon answers, whatever that says, or the deadline has come.
    pub(crate) fn reach<T>(
        &mut self,
        request: impl FnMut(&mut Client, Duration) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        self.repeat(request, |error| passes(error) && !matches!(error, ClientError::Remote(_)))
    }

    fn repeat<T>(
        &mut self,
        mut request: impl FnMut(&mut Client, Duration) -> Result<T, ClientError>,
        passes: impl Fn(&ClientError) -> bool,
    ) -> Result<T, ClientError> {
        let mut pause = FIRST_PAUSE;
        let mut told = None;
        loop {
            match self.ask(&mut request) {
                Err(error) if passes(&error) && self.deadline.left() > pause => {
                    tracing::debug!(%error, "asking again");
                    told = matches!(error, ClientError::Remote(_)).then_some(error);
                    std::thread::sleep(pause);
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                // The last time it had no time to answer; what it said before is why.
                Err(error @ ClientError::Timeout { .. }) => return Err(told.unwrap_or(error)),
                answer => return answer,
            }
        }
    }
}

/// Whether the same question may find an answer in a moment.
fn passes(error: &ClientError) -> bool {
    match error {
        ClientError::NotRunning { .. } | ClientError::Lost { .. } => true,
        ClientError::Remote(RpcError { kind, .. }) => *kind == ErrorKind::TryAgain,
        ClientError::Connect { .. }
        | ClientError::Timeout { .. }
        | ClientError::Version { .. }
        | ClientError::Protocol { .. }
        | ClientError::Unexpected { .. } => false,
    }
}
