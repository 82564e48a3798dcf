//! The blocking client: one connection, one deadline for all that is done on it.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

use crate::{
    frame::{FrameError, decode, encode, read_frame},
    message::{
        AssignRequest, Assigned, AttachmentsRequest, CheckRequest, EndpointUp, ExplainRequest,
        Explained, Held, Hello, IpamCheckRequest, IpamChecked, IpamFind, IpamFound,
        IpamNodeReleased, IpamRelease, IpamReleaseNode, IpamReleased, IpamStatus, NodeChecked,
        NodeStatus, PROTOCOL_VERSION, PeerStatus, PodAnnotationsRequest, Readiness,
        ReadinessRequest, RefreshRequest, Refreshed, Release, Released, Request, Response,
        RouteStatus, RoutesRequest, RpcError, Welcome,
    },
};

/// Why a call got no answer, or not the one it asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket, or nobody listens on it.
    #[error("twilld does not run: nobody listens on {}; start it (systemctl start twilld; on Kubernetes: see what keeps the node's pod twill-node) or correct runDir", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// `ENOENT` or `ECONNREFUSED`.
        source: io::Error,
    },
    /// The socket is there and cannot be used.
    #[error("cannot connect to twilld on {}; only root and the daemon's own user may", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The deadline passed.
    #[error("twilld on {} did not answer within {waited:?}; its log says what it is busy with", path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long the client waited in all.
        waited: Duration,
    },
    /// The daemon went away during the call. Whether it did what was asked is not known.
    #[error("twilld on {} closed the connection before it answered; it is restarting, or refuses this user (its log says which)", path.display())]
    Lost {
        /// The socket.
        path: PathBuf,
        /// How the connection ended.
        source: io::Error,
    },
    /// Client and daemon are of releases that do not understand each other.
    #[error("twilld {daemon} on {} speaks protocol {theirs}, this program {ours}; install both from one release", path.display())]
    Version {
        /// The socket.
        path: PathBuf,
        /// Our [`PROTOCOL_VERSION`].
        ours: u16,
        /// The daemon's.
        theirs: u16,
        /// The daemon's release.
        daemon: String,
    },
    /// What came is not this protocol.
    #[error("what listens on {} does not answer as twilld does; look who it is (ss -xlp)", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: FrameError,
    },
    /// A well-formed answer to another question.
    #[error("twilld on {} answered {got} to {asked}; install both programs from one release", path.display())]
    Unexpected {
        /// The socket.
        path: PathBuf,
        /// The request's name.
        asked: &'static str,
        /// The response's name.
        got: &'static str,
    },
    /// The daemon's own error.
    #[error(transparent)]
    Remote(#[from] RpcError),
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<Timed>,
    /// What goes out together with the next request.
    unsent: Vec<u8>,
    /// What was sent, and nobody has waited for the answer yet.
    ahead: Option<Request>,
    welcome: Option<Welcome>,
}

impl Client {
    /// Connects and introduces itself as `name` ("twill 0.1.0"). Everything that is done on this
    /// connection has to be over within `timeout`.
    ///
    /// The introduction goes with the first request, and the daemon's welcome comes with the first
    /// answer, which saves two waits; a version mismatch is therefore an error of the first call.
    pub fn connect(path: &Path, name: &str, timeout: Duration) -> Result<Self, ClientError> {
        let timed = Timed::connect(path, timeout).map_err(|errno| match errno {
            Errno::ENOENT | Errno::ECONNREFUSED => {
                ClientError::NotRunning { path: path.to_owned(), source: errno.into() }
            }
            // The backlog stayed full.
            Errno::EAGAIN => ClientError::Timeout { path: path.to_owned(), waited: timeout },
            _ => ClientError::Connect { path: path.to_owned(), source: errno.into() },
        })?;
        let mut client = Self {
            path: path.to_owned(),
            stream: BufReader::new(timed),
            unsent: Vec::new(),
            ahead: None,
            welcome: None,
        };
        let hello = Hello { protocol: PROTOCOL_VERSION, client: name.to_owned() };
        client.unsent = encode(&hello).map_err(|error| client.failed(error))?;
        Ok(client)
    }

    /// Who the daemon is. Waits for its welcome if that has not been read yet.
    pub fn welcome(&mut self) -> Result<&Welcome, ClientError> {
        let welcome = match self.welcome.take() {
            Some(welcome) => welcome,
            None => {
                match self.flush() {
                    // A daemon that refuses may have closed already; what it said can still be read.
                    Ok(()) | Err(ClientError::Lost { .. }) => {}
                    Err(error) => return Err(error),
                }
                let welcome: Welcome = self.receive()?;
                if welcome.protocol != PROTOCOL_VERSION {
                    return Err(ClientError::Version {
                        path: self.path.clone(),
                        ours: PROTOCOL_VERSION,
                        theirs: welcome.protocol,
                        daemon: welcome.daemon,
                    });
                }
                welcome
            }
        };
        Ok(self.welcome.insert(welcome))
    }

    /// Asks, and does not wait: the daemon works while the caller does something else. The answer is
    /// that of the next call, if that asks the same.
    pub fn ask_ahead(&mut self, request: Request) -> Result<(), ClientError> {
        self.settle_ahead()?;
        self.send(&request)?;
        self.ahead = Some(request);
        Ok(())
    }

    /// Reads the answer that nobody has waited for.
    fn settle_ahead(&mut self) -> Result<(), ClientError> {
        if self.ahead.take().is_some() {
            self.welcome()?;
            self.receive::<Response>()?;
        }
        Ok(())
    }

    /// Asks, and waits for the answer. [`Response::Error`] becomes [`ClientError::Remote`].
    pub fn call(&mut self, request: &Request) -> Result<Response, ClientError> {
        let sent = match self.ahead.take_if(|ahead| ahead == request) {
            Some(_) => Ok(()),
            None => self.settle_ahead().and_then(|()| self.send(request)),
        };
        if let Ok(()) | Err(ClientError::Lost { .. }) = &sent {
            self.welcome()?;
        }
        sent?;
        match self.receive()? {
            Response::Error(error) => Err(error.into()),
            response => Ok(response),
        }
    }

    /// CNI ADD: what a pod and its namespace ask for.
    pub fn pod_annotations(
        &mut self,
        request: PodAnnotationsRequest,
    ) -> Result<BTreeMap<String, String>, ClientError> {
        match self.call(&Request::PodAnnotations(request))? {
            Response::PodAnnotations(annotations) => Ok(annotations),
            other => Err(self.unexpected("PodAnnotations", &other)),
        }
    }

    /// CNI ADD: addresses for an attachment.
    pub fn assign(&mut self, request: AssignRequest) -> Result<Assigned, ClientError> {
        match self.call(&Request::Assign(Box::new(request)))? {
            Response::Assigned(assigned) => Ok(assigned),
            other => Err(self.unexpected("Assign", &other)),
        }
    }

    /// CNI ADD: the link exists and is about to go up.
    pub fn endpoint_up(&mut self, endpoint: EndpointUp) -> Result<(), ClientError> {
        match self.call(&Request::EndpointUp(endpoint))? {
            Response::Done => Ok(()),
            other => Err(self.unexpected("EndpointUp", &other)),
        }
    }

    /// CNI DEL: gives the addresses back.
    pub fn release(&mut self, request: Release) -> Result<Released, ClientError> {
        match self.call(&Request::Release(request))? {
            Response::Released(released) => Ok(released),
            other => Err(self.unexpected("Release", &other)),
        }
    }

    /// CNI CHECK: a difference is [`ErrorKind::Mismatch`](crate::message::ErrorKind::Mismatch).
    pub fn check(&mut self, request: CheckRequest) -> Result<(), ClientError> {
        match self.call(&Request::Check(request))? {
            Response::Done => Ok(()),
            other => Err(self.unexpected("Check", &other)),
        }
    }

    /// CNI GC: who holds addresses on a network; CNI DEL: what one has there.
    pub fn attachments(&mut self, request: AttachmentsRequest) -> Result<Vec<Held>, ClientError> {
        match self.call(&Request::Attachments(request))? {
            Response::Attachments(held) => Ok(held),
            other => Err(self.unexpected("Attachments", &other)),
        }
    }

    /// CNI STATUS: could an ADD succeed now? With a request more is looked at.
    pub fn readiness(
        &mut self,
        request: Option<ReadinessRequest>,
    ) -> Result<Readiness, ClientError> {
        match self.call(&Request::Readiness(request))? {
            Response::Readiness(readiness) => Ok(readiness),
            other => Err(self.unexpected("Readiness", &other)),
        }
    }

    /// State of the node and its sessions.
    pub fn node_status(&mut self) -> Result<NodeStatus, ClientError> {
        match self.call(&Request::NodeStatus)? {
            Response::NodeStatus(status) => Ok(*status),
            other => Err(self.unexpected("NodeStatus", &other)),
        }
    }

    /// What on the host decides whether pods' packets get through.
    pub fn node_check(&mut self) -> Result<NodeChecked, ClientError> {
        match self.call(&Request::NodeCheck)? {
            Response::NodeChecked(checked) => Ok(checked),
            other => Err(self.unexpected("NodeCheck", &other)),
        }
    }

    /// Sessions in detail.
    pub fn bgp_peers(&mut self) -> Result<Vec<PeerStatus>, ClientError> {
        match self.call(&Request::BgpPeers)? {
            Response::BgpPeers(peers) => Ok(peers),
            other => Err(self.unexpected("BgpPeers", &other)),
        }
    }

    /// Routes of the RIB.
    pub fn bgp_routes(&mut self, request: RoutesRequest) -> Result<Vec<RouteStatus>, ClientError> {
        match self.call(&Request::BgpRoutes(request))? {
            Response::BgpRoutes(routes) => Ok(routes),
            other => Err(self.unexpected("BgpRoutes", &other)),
        }
    }

    /// Why the route to a prefix is what it is.
    pub fn bgp_explain(&mut self, request: ExplainRequest) -> Result<Explained, ClientError> {
        match self.call(&Request::BgpExplain(request))? {
            Response::BgpExplained(explained) => Ok(*explained),
            other => Err(self.unexpected("BgpExplained", &other)),
        }
    }

    /// Asks a peer for its routes again.
    pub fn bgp_refresh(&mut self, request: RefreshRequest) -> Result<Refreshed, ClientError> {
        match self.call(&Request::BgpRefresh(request))? {
            Response::BgpRefreshed(refreshed) => Ok(refreshed),
            other => Err(self.unexpected("BgpRefreshed", &other)),
        }
    }

    /// Pools and blocks of this node.
    pub fn ipam_show(&mut self) -> Result<IpamStatus, ClientError> {
        match self.call(&Request::IpamShow)? {
            Response::IpamShow(status) => Ok(status),
            other => Err(self.unexpected("IpamShow", &other)),
        }
    }

    /// What there is to say about an address, or about who has some.
    pub fn ipam_find(&mut self, what: IpamFind) -> Result<IpamFound, ClientError> {
        match self.call(&Request::IpamFind(what))? {
            Response::IpamFound(found) => Ok(*found),
            other => Err(self.unexpected("IpamFind", &other)),
        }
    }

    /// Gives addresses back by hand.
    pub fn ipam_release(&mut self, request: IpamRelease) -> Result<IpamReleased, ClientError> {
        match self.call(&Request::IpamRelease(request))? {
            Response::IpamReleased(released) => Ok(released),
            other => Err(self.unexpected("IpamRelease", &other)),
        }
    }

    /// Gives the blocks of a node back that is gone.
    pub fn ipam_release_node(
        &mut self,
        request: IpamReleaseNode,
    ) -> Result<IpamNodeReleased, ClientError> {
        match self.call(&Request::IpamReleaseNode(request))? {
            Response::IpamNodeReleased(released) => Ok(released),
            other => Err(self.unexpected("IpamReleaseNode", &other)),
        }
    }

    /// Compares store, kernel, claims and what is told of them.
    pub fn ipam_check(&mut self, fix: bool) -> Result<IpamChecked, ClientError> {
        match self.call(&Request::IpamCheck(IpamCheckRequest { fix }))? {
            Response::IpamChecked(checked) => Ok(checked),
            other => Err(self.unexpected("IpamCheck", &other)),
        }
    }

    fn send<T: serde::Serialize>(&mut self, message: &T) -> Result<(), ClientError> {
        let mut frame = encode(message).map_err(|error| self.failed(error))?;
        self.unsent.append(&mut frame);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        let unsent = std::mem::take(&mut self.unsent);
        let sent = self.stream.get_mut().write_all(&unsent);
        sent.map_err(|error| self.failed(FrameError::Io(error)))
    }

    fn receive<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        match read_frame(&mut self.stream) {
            Ok(Some(body)) => decode(&body).map_err(|error| self.failed(error)),
            Ok(None) => Err(self.failed(FrameError::Io(io::ErrorKind::UnexpectedEof.into()))),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: FrameError) -> ClientError {
        let path = self.path.clone();
        match error {
            FrameError::Io(source)
                if matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                ClientError::Timeout { path, waited: self.stream.get_ref().timeout }
            }
            FrameError::Io(source) => ClientError::Lost { path, source },
            FrameError::Truncated { .. } => ClientError::Lost {
                path,
                source: io::Error::new(io::ErrorKind::UnexpectedEof, error),
            },
            source => ClientError::Protocol { path, source },
        }
    }

    fn unexpected(&self, asked: &'static str, got: &Response) -> ClientError {
        let got = match got {
            Response::PodAnnotations(_) => "PodAnnotations",
            Response::Assigned(_) => "Assigned",
            Response::Done => "Done",
            Response::Released(_) => "Released",
            Response::Attachments(_) => "Attachments",
            Response::Readiness(_) => "Readiness",
            Response::NodeStatus(_) => "NodeStatus",
            Response::NodeChecked(_) => "NodeChecked",
            Response::BgpPeers(_) => "BgpPeers",
            Response::BgpRoutes(_) => "BgpRoutes",
            Response::BgpExplained(_) => "BgpExplained",
            Response::BgpRefreshed(_) => "BgpRefreshed",
            Response::IpamShow(_) => "IpamShow",
            Response::IpamFound(_) => "IpamFound",
            Response::IpamReleased(_) => "IpamReleased",
            Response::IpamNodeReleased(_) => "IpamNodeReleased",
            Response::IpamChecked(_) => "IpamChecked",
            Response::Error(_) => "Error",
        };
        ClientError::Unexpected { path: self.path.clone(), asked, got }
    }
}

/// A stream whose every system call ends when the deadline does.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    deadline: Instant,
    timeout: Duration,
}

impl Timed {
    /// Connecting blocks as well, while the listener's backlog is full; only a timeout that is set
    /// before bounds it.
    fn connect(path: &Path, timeout: Duration) -> Result<Self, Errno> {
        let deadline = Instant::now() + timeout;
        let address = UnixAddr::new(path)?;
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let microseconds = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX).max(1);
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::microseconds(microseconds))?;
        // A process that is stopped and goes on finds its wait at an end.
        while let Err(errno) = connect(socket.as_raw_fd(), &address) {
            if errno != Errno::EINTR {
                return Err(errno);
            }
        }
        Ok(Self { stream: UnixStream::from(socket), deadline, timeout })
    }

    fn left(&self) -> io::Result<Duration> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            // Zero would mean no timeout at all.
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
