//! The listening sockets: one for each family, so that an IPv4 peer is never seen as a mapped
//! IPv6 address.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tracing::warn;

/// Peers that wait to be accepted; a rack that restarts dials at once.
const BACKLOG: u32 = 1024;

/// A connection that a peer opened.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// The accepting tasks. Dropping it closes the sockets.
#[derive(Debug)]
pub(crate) struct Listener {
    tasks: Vec<JoinHandle<()>>,
}

impl Listener {
    /// Listens on `port` in both families; a node without IPv6 listens on IPv4 alone.
    pub(crate) fn bind(port: u16, accepted: &mpsc::Sender<Accepted>) -> io::Result<Self> {
        let mut sockets = vec![listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?];
        match listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Ok(socket) => sockets.push(socket),
            Err(error) => warn!(%error, port, "no IPv6 listener"),
        }
        let tasks = sockets
            .into_iter()
            .map(|socket| tokio::spawn(accept_all(socket, accepted.clone())))
            .collect();
        Ok(Self { tasks })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    // A restarted daemon must not wait for the old one's connections to leave TIME-WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept_all(listener: TcpListener, accepted: mpsc::Sender<Accepted>) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let Ok(local) = stream.local_addr() else {
                    continue;
                };
                if accepted.send(Accepted { stream, local, remote }).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Out of file descriptors, most likely: a pause lets others be closed.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}
