//! The listening sockets: one for each family, so that an IPv4 peer is never seen as a mapped
//! IPv6 address.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tracing::{error, warn};
use twill_sys::{send_highest_ttl, set_tcp_md5_key};

use crate::Password;

/// Peers that wait to be accepted; a rack that restarts dials at once.
const BACKLOG: u32 = 1024;

/// Before another connection is accepted where one could not be; doubled up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);
/// Others may have closed their files by then.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often it is said that connections still cannot be accepted.
const REMINDER: Duration = Duration::from_secs(60);

/// A connection that a peer opened.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// The accepting tasks. Dropping it closes the sockets, though not at once: see [`Listener::close`].
#[derive(Debug)]
pub(crate) struct Listener {
    sockets: Vec<(SocketAddr, Arc<TcpListener>)>,
    tasks: Vec<JoinHandle<()>>,
    /// Peers whose key the kernel did not take: nobody can be sure who connects from there.
    unsigned: BTreeSet<IpAddr>,
}

impl Listener {
    /// Listens on `port` in both families; a node without IPv6 listens on IPv4 alone. No
    /// connection is accepted from a peer with a password before its key is set.
    pub(crate) fn bind(
        port: u16,
        passwords: &BTreeMap<IpAddr, Password>,
        accepted: &mpsc::Sender<Accepted>,
    ) -> io::Result<Self> {
        let mut bound = vec![bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?];
        match bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
            Ok(socket) => bound.push(socket),
            // Peers would be refused by a program that is not theirs, and nobody would know why.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => warn!(%error, port, "no IPv6 listener"),
        }
        let mut listener =
            Self { sockets: Vec::new(), tasks: Vec::new(), unsigned: BTreeSet::new() };
        for socket in bound {
            let address = socket.local_addr()?;
            for (peer, password) in of_family(address, passwords) {
                listener.sign(&socket, *peer, Some(password));
            }
            let socket = Arc::new(socket.listen(BACKLOG)?);
            listener.tasks.push(tokio::spawn(accept_all(Arc::clone(&socket), accepted.clone())));
            listener.sockets.push((address, socket));
        }
        Ok(listener)
    }

    /// Closes the sockets. After it others can listen on the port; after a drop only once the tasks,
    /// which have the sockets as well, have been ended by the runtime.
    pub(crate) async fn close(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            // An error says that it was ended.
            let _ = task.await;
        }
    }

    /// Sets the keys for connections to come; `before` is what is set.
    pub(crate) fn change_passwords(
        &mut self,
        before: &BTreeMap<IpAddr, Password>,
        passwords: &BTreeMap<IpAddr, Password>,
    ) {
        for (address, socket) in self.sockets.clone() {
            for (peer, _) in of_family(address, before) {
                if !passwords.contains_key(peer) {
                    self.sign(&*socket, *peer, None);
                }
            }
            for (peer, password) in of_family(address, passwords) {
                if before.get(peer) != Some(password) {
                    self.sign(&*socket, *peer, Some(password));
                }
            }
        }
    }

    /// Whether connections from there may be taken: not from a peer with a password whose key could
    /// not be set.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        !self.unsigned.contains(&peer)
    }

    fn sign(&mut self, socket: impl std::os::fd::AsFd, peer: IpAddr, password: Option<&Password>) {
        match set_tcp_md5_key(socket, peer, password.map(Password::as_bytes)) {
            Ok(()) => drop(self.unsigned.remove(&peer)),
            Err(error) => {
                error!(
                    %peer, %error,
                    "cannot set the TCP MD5 key, so no connection from it is taken; \
                     the kernel needs CONFIG_TCP_MD5SIG"
                );
                self.unsigned.insert(peer);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Those that a socket of this address can have connections from.
fn of_family(
    local: SocketAddr,
    passwords: &BTreeMap<IpAddr, Password>,
) -> impl Iterator<Item = (&IpAddr, &Password)> {
    passwords.iter().filter(move |(peer, _)| peer.is_ipv4() == local.is_ipv4())
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    // A peer with TTL security (RFC 5082) wants it in the very first answer.
    send_highest_ttl(&socket, address.is_ipv6())?;
    // A restarted daemon must not wait for the old one's connections to leave TIME-WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept_all(listener: Arc<TcpListener>, accepted: mpsc::Sender<Accepted>) {
    let mut refusals = Refusals::default();
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                refusals.end();
                let Ok(local) = stream.local_addr() else {
                    continue;
                };
                if accepted.send(Accepted { stream, local, remote }).await.is_err() {
                    return;
                }
            }
            // The peer gave it up while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                let (pause, is_told) = refusals.next(Instant::now());
                if is_told {
                    warn!(
                        %error,
                        "cannot accept a connection, and tries again; raise LimitNOFILE if files \
                         have run out"
                    );
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Connections in a row that could not be accepted.
#[derive(Debug, Default)]
struct Refusals {
    pause: Duration,
    told: Option<Instant>,
}

impl Refusals {
    /// One more: how long to wait before the next attempt, and whether it is to be told.
    fn next(&mut self, now: Instant) -> (Duration, bool) {
        self.pause = (self.pause * 2).clamp(PAUSE, LONGEST_PAUSE);
        let is_told = self.told.is_none_or(|told| now.duration_since(told) >= REMINDER);
        if is_told {
            self.told = Some(now);
        }
        (self.pause, is_told)
    }

    /// One was accepted. The next refusal soon after is still the same story for the log.
    fn end(&mut self) {
        self.pause = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_another_has_in_one_family_is_in_use() {
        let other = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
        let other = other.listen(1).unwrap();
        let port = other.local_addr().unwrap().port();
        let (accepted, _queue) = mpsc::channel(1);
        let refused = Listener::bind(port, &BTreeMap::new(), &accepted).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn refusals_are_told_once_a_minute_and_waited_out() {
        let start = Instant::now();
        let mut refusals = Refusals::default();
        let pauses: Vec<_> = (0..7).map(|_| refusals.next(start)).collect();
        let told: Vec<_> = pauses.iter().map(|(_, told)| *told).collect();
        assert_eq!(told, [true, false, false, false, false, false, false]);
        let pauses: Vec<_> = pauses.iter().map(|(pause, _)| pause.as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);

        refusals.end();
        assert_eq!(refusals.next(start + Duration::from_secs(59)), (PAUSE, false));
        assert!(refusals.next(start + REMINDER).1);
    }
}
