//! One TCP connection: a task that reads, a task that writes, and nothing that decides.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream, tcp::OwnedWriteHalf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinHandle,
};
use twill_bgp_proto::ConnId;
use twill_sys::{set_tcp_md5_key, set_ttl_security};

use crate::Password;

/// How long the last bytes of a closed connection may take to leave.
const LINGER: Duration = Duration::from_secs(5);

/// So many closed connections of the process are read to their end. Anybody may connect, and nobody is to
/// hold more sockets by that; of more than these the last bytes may be lost.
static LINGERING: Semaphore = Semaphore::const_new(64);

/// Room for one extended message (RFC 8654).
const READ_BUFFER: usize = 64 * 1024;

/// Pieces of one connection that may wait for the speaker. A peer that floods waits in its own TCP
/// window then, and what others send is never behind more than these.
const PIECES: usize = 4;

/// What the tasks of a connection tell the speaker.
#[derive(Debug)]
pub(crate) enum Event {
    /// An outgoing connection is open.
    Connected { conn: ConnId, local: SocketAddr, stream: TcpStream },
    /// An outgoing connection could not be opened.
    ConnectFailed { conn: ConnId, reason: String },
    /// Bytes came in.
    Received { conn: ConnId, bytes: Vec<u8>, permit: OwnedSemaphorePermit },
    /// The kernel took this many bytes.
    Written { conn: ConnId, count: usize },
    /// The other side closed, or the connection broke.
    Closed { conn: ConnId, reason: String },
}

impl Event {
    /// Octets of messages in it.
    pub(crate) fn octets(&self) -> usize {
        match self {
            Self::Received { bytes, .. } => bytes.len(),
            Self::Connected { .. }
            | Self::ConnectFailed { .. }
            | Self::Written { .. }
            | Self::Closed { .. } => 0,
        }
    }
}

/// The tasks of an open connection. Dropping it ends both and closes the socket.
#[derive(Debug)]
pub(crate) struct Connection {
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
    reset: oneshot::Sender<()>,
    /// What comes in is thrown away.
    finished: Arc<AtomicBool>,
}

impl Connection {
    pub(crate) fn start(conn: ConnId, stream: TcpStream, events: mpsc::Sender<Event>) -> Self {
        // The speaker packs its messages; waiting for more would only delay a KEEPALIVE.
        let _ = stream.set_nodelay(true);
        let (read, write) = stream.into_split();
        // Bounded by time alone: the send hold timer ends the session of a peer that does not read (RFC 9687).
        // Answers to refreshes wait for `Written`; changes do not.
        let (outgoing, queue) = mpsc::unbounded_channel();
        let (reset, asked) = oneshot::channel();
        let finished = Arc::new(AtomicBool::new(false));
        Self {
            outgoing,
            writer: tokio::spawn(write_or_reset(conn, write, queue, asked, events.clone())),
            reader: tokio::spawn(read_all(conn, read, Arc::clone(&finished), events)),
            reset,
            finished,
        }
    }

    pub(crate) fn send(&self, bytes: Vec<u8>) {
        // A writer that is gone has reported `Closed`, or is about to.
        let _ = self.outgoing.send(bytes);
    }

    /// Sends what is queued, then closes, in the background: the peer gets the NOTIFICATION. Until it
    /// has closed its side, what it still sends is read and thrown away: a socket that is closed with
    /// something unread resets the connection, and takes what the peer has not read yet along.
    pub(crate) fn finish(self) {
        let Self { outgoing, reader, writer, reset, finished } = self;
        finished.store(true, Ordering::Relaxed);
        // The writer ends when its queue is empty and has no sender any more, and one that cannot write when
        // nobody can ask for a reset any more.
        drop((outgoing, reset));
        let place = LINGERING.try_acquire();
        if place.is_err() {
            reader.abort();
        }
        tokio::spawn(async move {
            let _place = place;
            let tasks = [writer.abort_handle(), reader.abort_handle()];
            let both = async { (writer.await, reader.await) };
            if tokio::time::timeout(LINGER, both).await.is_err() {
                tasks.iter().for_each(tokio::task::AbortHandle::abort);
            }
        });
    }

    /// Closes at once with an RST; what has not left is thrown away (RFC 9687 section 4).
    pub(crate) fn reset(self) {
        self.reader.abort();
        // A writer that is gone has closed already.
        let _ = self.reset.send(());
    }

    /// Closes at once.
    pub(crate) fn abort(self) {
        self.reader.abort();
        self.writer.abort();
    }
}

/// What keeps others than the peer from a connection with it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Protection {
    /// What segments are signed with (RFC 2385).
    pub(crate) password: Option<Password>,
    /// Over how many links packets may come (RFC 5082).
    pub(crate) hops: Option<u8>,
}

/// Opens a connection from `local` in a task of its own, protected. How long
/// that may take the speaker knows.
pub(crate) fn connect(
    conn: ConnId,
    local: Option<IpAddr>,
    remote: SocketAddr,
    protection: Protection,
    events: mpsc::Sender<Event>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let event = match open(local, remote, &protection).await {
            Ok((stream, local)) => Event::Connected { conn, local, stream },
            Err(reason) => Event::ConnectFailed { conn, reason },
        };
        let _ = events.send(event).await;
    })
}

async fn open(
    local: Option<IpAddr>,
    remote: SocketAddr,
    protection: &Protection,
) -> Result<(TcpStream, SocketAddr), String> {
    let socket = socket(local, remote).map_err(|error| error.to_string())?;
    if let Some(password) = &protection.password {
        set_tcp_md5_key(&socket, remote.ip(), Some(password.as_bytes())).map_err(|error| {
            format!(
                "cannot sign segments: {error}; the kernel needs CONFIG_TCP_MD5SIG, or remove the \
                 password on both sides"
            )
        })?;
    }
    if let Some(hops) = protection.hops {
        set_ttl_security(&socket, remote.is_ipv6(), hops)
            .map_err(|error| format!("cannot demand a TTL: {error}; remove ttlSecurity"))?;
    }
    let connected = async {
        let stream = socket.connect(remote).await?;
        let local = stream.local_addr()?;
        Ok((stream, local))
    };
    connected.await.map_err(|error: io::Error| error.to_string())
}

fn socket(local: Option<IpAddr>, remote: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match remote {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(local) = local {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    Ok(socket)
}

async fn read_all(
    conn: ConnId,
    mut read: impl AsyncRead + Unpin,
    finished: Arc<AtomicBool>,
    events: mpsc::Sender<Event>,
) {
    let mut buffer = vec![0; READ_BUFFER];
    let pieces = Arc::new(Semaphore::new(PIECES));
    let reason = loop {
        // It is never closed.
        let Ok(permit) = Arc::clone(&pieces).acquire_owned().await else {
            return;
        };
        match read.read(&mut buffer).await {
            Ok(0) => break "the peer closed the connection".to_owned(),
            Ok(_) if finished.load(Ordering::Relaxed) => {}
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default().to_vec();
                if events.send(Event::Received { conn, bytes, permit }).await.is_err() {
                    return;
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    let _ = events.send(Event::Closed { conn, reason }).await;
}

/// Writes until the queue has no sender any more, or a reset is asked for. One that cannot write any more ends
/// with its connection.
async fn write_or_reset(
    conn: ConnId,
    mut write: OwnedWriteHalf,
    queue: mpsc::UnboundedReceiver<Vec<u8>>,
    mut asked: oneshot::Receiver<()>,
    events: mpsc::Sender<Event>,
) {
    let outcome = tokio::select! {
        outcome = write_all(conn, &mut write, queue, &events) => outcome,
        Ok(()) = &mut asked => return reset(write),
    };
    let Err(error) = outcome else {
        return;
    };
    // What the peer has said before it closed may wait to be read: a NOTIFICATION that says why. So the reader
    // tells the end, behind that, and this is for one that cannot. Whoever has given the connection up waits for
    // nothing.
    if asked.is_terminated() {
        return;
    }
    tokio::select! {
        asked = &mut asked => if asked.is_ok() {
            reset(write);
        },
        () = tokio::time::sleep(LINGER) => {
            let _ = events.send(Event::Closed { conn, reason: error.to_string() }).await;
        }
    }
}

/// Closes with an RST.
fn reset(write: OwnedWriteHalf) {
    let _ = write.as_ref().set_zero_linger();
    // Dropped in the ordinary way it would send a FIN first.
    write.forget();
}

/// Each piece that the kernel takes is told: a slow peer that goes on reading is no stalled one
/// (RFC 9687), however much waits for it.
async fn write_all(
    conn: ConnId,
    mut write: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    events: &mpsc::Sender<Event>,
) -> io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let count = write.write(rest).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = rest.get(count..).unwrap_or_default();
            let _ = events.send(Event::Written { conn, count }).await;
        }
    }
    let _ = write.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flood fills what its own connection may have waiting, and no more: what another peer says
    /// comes right behind that, and the flood goes on when a piece of it is handled.
    #[tokio::test]
    async fn a_flood_leaves_room_for_others() {
        let (events, mut heard) = mpsc::channel(1024);
        let (flood, calm) = (ConnId(1), ConnId(2));
        let (ours, mut theirs) = tokio::io::duplex(READ_BUFFER);
        let reader = tokio::spawn(read_all(flood, ours, Arc::default(), events.clone()));
        let flooder =
            tokio::spawn(
                async move { while theirs.write_all(&[0xff; READ_BUFFER]).await.is_ok() {} },
            );
        let mut waiting = Vec::new();
        while waiting.len() < PIECES {
            match heard.recv().await {
                Some(Event::Received { conn, permit, .. }) if conn == flood => waiting.push(permit),
                other => panic!("{other:?}"),
            }
        }
        let (ours, mut theirs) = tokio::io::duplex(READ_BUFFER);
        let other = tokio::spawn(read_all(calm, ours, Arc::default(), events));
        theirs.write_all(&[1]).await.unwrap();
        for expected in [calm, flood] {
            match heard.recv().await {
                Some(Event::Received { conn, .. }) => assert_eq!(conn, expected),
                other => panic!("{other:?}"),
            }
            // As when the speaker has handled a piece.
            waiting.pop();
        }
        for task in [reader, other, flooder] {
            task.abort();
        }
    }

    /// One piece that is larger than the peer's buffer: the speaker hears of every part.
    #[tokio::test]
    async fn a_slow_peer_is_seen_to_read() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let (events, mut heard) = mpsc::channel(16);
        let (outgoing, queue) = mpsc::unbounded_channel();
        let conn = ConnId(1);
        let writer = tokio::spawn(async move { write_all(conn, ours, queue, &events).await });
        outgoing.send(vec![7; 20]).unwrap();
        let mut counts = Vec::new();
        for part in [8, 8, 4] {
            match heard.recv().await {
                Some(Event::Written { count, .. }) => counts.push(count),
                other => panic!("{other:?}"),
            }
            let mut buffer = vec![0; part];
            theirs.read_exact(&mut buffer).await.unwrap();
        }
        assert_eq!(counts, [8, 8, 4]);
        drop(outgoing);
        writer.await.unwrap().unwrap();
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "it is closed at the end");
    }

    /// A connection whose peer has said why it closes, and has closed without having read everything: the next
    /// write fails, and what was said waits to be read.
    async fn broken() -> TcpStream {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut ours, _) = listener.accept().await.unwrap();
        ours.write_all(b"unread").await.unwrap();
        // It is there, or the end would be an ordinary one.
        theirs.peek(&mut [0]).unwrap();
        std::io::Write::write_all(&mut theirs, b"why").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        drop(theirs);
        ours.writable().await.unwrap();
        ours
    }

    #[tokio::test]
    async fn a_write_that_fails_is_not_told_before_what_waits_to_be_read() {
        let ours = broken().await;
        let (events, mut heard) = mpsc::channel(16);
        let connection = Connection::start(ConnId(1), ours, events);
        // The writer is the task that was started first, and need not wait.
        connection.send(b"one".to_vec());
        connection.send(b"two".to_vec());
        match heard.recv().await {
            Some(Event::Received { bytes, .. }) => assert_eq!(bytes, b"why"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(heard.recv().await, Some(Event::Closed { .. })));
    }

    /// Nobody waits for a writer that cannot write.
    #[tokio::test]
    async fn a_write_that_has_failed_is_over_with_its_connection() {
        for is_reset in [false, true] {
            let (_, write) = broken().await.into_split();
            let (events, mut heard) = mpsc::channel(16);
            let (outgoing, queue) = mpsc::unbounded_channel();
            let (reset, asked) = oneshot::channel();
            outgoing.send(b"one".to_vec()).unwrap();
            let writer = tokio::spawn(write_or_reset(ConnId(1), write, queue, asked, events));
            // Its turn: it fails, and tells nothing for now.
            tokio::task::yield_now().await;
            assert!(!writer.is_finished());
            if is_reset {
                reset.send(()).unwrap();
            } else {
                drop(reset);
            }
            tokio::time::timeout(LINGER / 5, writer).await.unwrap().unwrap();
            assert!(heard.recv().await.is_none());
        }
    }

    /// What a peer sends after the end is thrown away, and does not take our last word along.
    #[tokio::test]
    async fn who_is_still_talking_hears_the_last_word() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (ours, _) = listener.accept().await.unwrap();
        let (events, mut heard) = mpsc::channel(16);
        let connection = Connection::start(ConnId(1), ours, events);
        let (mut read, mut write) = theirs.into_split();
        let talker = tokio::spawn(async move {
            for _ in 0..64 {
                write.write_all(&[0xff; READ_BUFFER]).await?;
            }
            write.shutdown().await
        });
        // In the middle of it.
        heard.recv().await.unwrap();
        let speaker = tokio::spawn(async move { while heard.recv().await.is_some() {} });
        connection.send(b"goodbye".to_vec());
        connection.finish();
        let mut said = Vec::new();
        read.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"goodbye");
        talker.await.unwrap().unwrap();
        speaker.await.unwrap();
    }
}
