//! The unix socket: accepts connections, checks who asks, and answers each request in order.

use std::{
    io,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tracing::{debug, warn};
use twill_rpc::message::{
    ErrorKind, Hello, PROTOCOL_VERSION, Request, Response, RpcError, Welcome,
};
use twill_types::error_chain;

use crate::api::Api;

/// Before another connection is accepted where one could not be: others end in the meantime, and
/// with them their files.
const PAUSE: Duration = Duration::from_millis(50);

/// How often it is said that connections still cannot be accepted.
const REMINDER: Duration = Duration::from_secs(60);

/// A failure of one connection; the others go on.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("a bad frame")]
    Frame(#[from] twill_rpc::FrameError),
    #[error("uid {uid} is neither root nor the daemon's own user")]
    Forbidden { uid: u32 },
    #[error("protocol version {0} is not {PROTOCOL_VERSION}")]
    Version(u16),
}

/// Binds the socket, mode 0600. It appears under its name only once it can be connected to, and
/// takes the place of a dead daemon's.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let temporary = path.with_extension("sock.new");
    match std::fs::remove_file(&temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&temporary, path)?;
    Ok(listener)
}

/// Serves for ever. Cancelling it ends the connections too.
pub(crate) async fn serve(listener: UnixListener, api: Arc<Api>) {
    let mut connections = JoinSet::new();
    let mut complaint = Complaint::default();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let stream = match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        complaint.tell(&error);
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                let api = Arc::clone(&api);
                connections.spawn(async move {
                    match converse(stream, &api).await {
                        Ok(()) => {}
                        Err(error @ (ConnectionError::Forbidden { .. } | ConnectionError::Version(_))) => {
                            warn!(error = %error_chain(&error), "refused a connection");
                        }
                        Err(error) => debug!(error = %error_chain(&error), "a connection ended"),
                    }
                });
            }
            Some(ended) = connections.join_next() => {
                // What a panic leaves behind is not worth being served from.
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        }
    }
}

/// What was said last of connections that cannot be accepted.
#[derive(Default)]
struct Complaint(Option<(io::ErrorKind, Option<i32>, Instant)>);

impl Complaint {
    /// Says it once for each cause, and again where it goes on.
    fn tell(&mut self, error: &io::Error) {
        let (kind, number) = (error.kind(), error.raw_os_error());
        let told = self.0.is_some_and(|(last, errno, when)| {
            (last, errno) == (kind, number) && when.elapsed() < REMINDER
        });
        if !told {
            warn!(
                %error,
                "cannot accept a connection, and tries again; where too many files are open, raise \
                 the limit (LimitNOFILE of the unit)"
            );
            self.0 = Some((kind, number, Instant::now()));
        }
    }
}

async fn converse(stream: UnixStream, api: &Api) -> Result<(), ConnectionError> {
    // The file mode keeps others out; the credentials hold where a directory was bind-mounted
    // with other rights. The pid in them is 0 across pid namespaces and is not looked at.
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(ConnectionError::Forbidden { uid });
    }
    let mut stream = BufReader::new(stream);
    let Some(hello) = receive::<Hello>(&mut stream).await? else {
        return Ok(());
    };
    let mut answer = twill_rpc::encode(&api.welcome())?;
    let understood = hello.protocol == PROTOCOL_VERSION;
    // The plugin sends its first request together with this, and gets both answers together.
    if !understood || stream.buffer().is_empty() {
        stream.write_all(&answer).await?;
        answer.clear();
    }
    if !understood {
        debug!(client = hello.client, protocol = hello.protocol, "refused for its version");
        return Err(ConnectionError::Version(hello.protocol));
    }
    while let Some(body) = receive_body(&mut stream).await? {
        // It has given up while this process was stopped, or very busy. An ADD would leave what it
        // is given now to nobody, and a DEL has left a tombstone.
        if has_hung_up(stream.get_ref()) {
            debug!("a caller has given up before its request was read; it is left out");
            return Ok(());
        }
        let response = match twill_rpc::decode::<Request>(&body) {
            Ok(request) => api.answer(request).await.unwrap_or_else(Response::Error),
            Err(error) => {
                let error = error_chain(&error);
                debug!(client = hello.client, error, "a request is not understood");
                Response::Error(RpcError {
                    kind: ErrorKind::Invalid,
                    message: format!("request not understood: {error}"),
                })
            }
        };
        answer.append(&mut twill_rpc::encode(&response)?);
        stream.write_all(&answer).await?;
        answer.clear();
    }
    Ok(())
}

/// Whether the other side has closed the connection. What it sent before can still be read.
fn has_hung_up(stream: impl AsFd) -> bool {
    // The kernel tells a hang-up unasked; one that has only stopped sending waits for an answer.
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut asked, PollTimeout::ZERO).is_ok()
        && asked[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

async fn receive<T: serde::de::DeserializeOwned>(
    stream: &mut BufReader<UnixStream>,
) -> Result<Option<T>, ConnectionError> {
    Ok(match receive_body(stream).await? {
        Some(body) => Some(twill_rpc::decode(&body)?),
        None => None,
    })
}

/// One frame's body, or `None` if the other side closed between two frames.
async fn receive_body(
    stream: &mut BufReader<UnixStream>,
) -> Result<Option<Vec<u8>>, ConnectionError> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut body = vec![0; twill_rpc::body_length(length)?];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

impl Api {
    fn welcome(&self) -> Welcome {
        Welcome {
            protocol: PROTOCOL_VERSION,
            daemon: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::Shutdown, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn only_a_caller_that_has_closed_has_hung_up() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(!has_hung_up(&ours));
        theirs.write_all(b"a request").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        assert!(!has_hung_up(&ours), "it waits for the answer");
        drop(theirs);
        assert!(has_hung_up(&ours));
    }
}
