//! A scripted BGP peer: its session is real, what it says on it was made before.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Builder, Runtime},
    time::{Instant, sleep, timeout_at},
};
use twill_bgp_proto::wire::{self, Capability, MessageType, Notification, Open};
use twill_types::{Asn, Family};

use super::stream::Tally;

/// BGP's port (RFC 4271 section 3).
const PORT: u16 = 179;

/// How long a device may refuse a session until it does not work. A BIRD that could not dial
/// refuses for five seconds after an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two attempts to dial.
const PAUSE: Duration = Duration::from_millis(10);

/// The size of a read.
const READ: usize = 256 * 1024;

/// Who a scripted peer is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    /// Its address, and its identifier.
    pub(crate) address: Ipv4Addr,
    pub(crate) asn: u32,
    /// Seconds; with 0 there are no KEEPALIVEs on the session.
    pub(crate) hold_time: u16,
}

/// An Established session, as the peer has it.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What came in.
    pub(crate) tally: Tally,
}

/// Where sessions are carried on. A session belongs to the one that it was made in.
pub(crate) fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_io().enable_time().build()?)
}

impl Peer {
    /// Dials until the session is Established. To be called in the peer's namespace.
    pub(crate) async fn dial(identity: Identity, device: Ipv4Addr) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            let attempt = Self::try_dial(identity, device);
            let error = match timeout_at(end, attempt).await {
                Ok(Ok(peer)) => return Ok(peer),
                Ok(Err(error)) => error,
                Err(_) => anyhow!("the session did not become Established"),
            };
            if Instant::now() >= end {
                return Err(error.context(format!(
                    "{} waited {} s for a session with {device}",
                    identity.address,
                    PATIENCE.as_secs()
                )));
            }
            sleep(PAUSE).await;
        }
    }

    async fn try_dial(identity: Identity, device: Ipv4Addr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((identity.address, 0)))?;
        let stream = socket.connect(SocketAddr::from((device, PORT))).await?;
        Self::open(identity, stream).await
    }

    /// Waits to be dialled. To be called in the peer's namespace.
    pub(crate) async fn listen(identity: Identity) -> Result<TcpListener> {
        let at = SocketAddr::from((identity.address, PORT));
        TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))
    }

    /// Takes connections until one of them becomes a session.
    pub(crate) async fn accept(identity: Identity, listener: &TcpListener) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            let (stream, _) = timeout_at(end, listener.accept())
                .await
                .map_err(|_| anyhow!("nobody dialled {}", identity.address))??;
            if let Ok(peer) = timeout_at(end, Self::open(identity, stream)).await? {
                return Ok(peer);
            }
        }
    }

    async fn open(identity: Identity, stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        let asn = Asn::new(identity.asn)?;
        let ours = wire::encode_open(&Open {
            asn,
            hold_time: identity.hold_time,
            identifier: identity.address,
            // Without graceful restart: what a session brought goes with it.
            capabilities: vec![
                Capability::MultiProtocol(Family::V4),
                Capability::RouteRefresh,
                Capability::FourOctetAs(asn),
            ],
        });
        let mut peer = Self { stream, buffer: Vec::new(), tally: Tally::default() };
        peer.send(&ours).await?;
        peer.expect(MessageType::Open).await?;
        peer.send(&wire::encode_keepalive()).await?;
        peer.expect(MessageType::Keepalive).await?;
        Ok(peer)
    }

    /// The next message has to be of this kind.
    async fn expect(&mut self, kind: MessageType) -> Result<()> {
        loop {
            if let Some(frame) =
                wire::frame(&self.buffer, wire::MAX_MESSAGE).map_err(|wrong| anyhow!("{wrong}"))?
            {
                let (got, length) = (frame.kind, frame.length);
                if got == MessageType::Notification {
                    bail!("refused: {}", Notification::decode(frame.body));
                }
                if got != kind {
                    bail!("{got:?} came in place of {kind:?}");
                }
                self.buffer.drain(..length);
                return Ok(());
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<()> {
        self.buffer.reserve(READ);
        let count = self.stream.read_buf(&mut self.buffer).await?;
        if count == 0 {
            bail!("the device closed the session");
        }
        Ok(())
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.context("the device does not read")
    }

    /// Reads until what has come in is enough.
    pub(crate) async fn receive(
        &mut self,
        end: Instant,
        is_enough: impl Fn(&Tally) -> bool,
    ) -> Result<()> {
        loop {
            let taken = self.tally.count(&self.buffer)?;
            self.buffer.drain(..taken);
            if is_enough(&self.tally) {
                return Ok(());
            }
            timeout_at(end, self.read())
                .await
                .map_err(|_| anyhow!("only {:?} came in", self.tally))??;
        }
    }
}
