//! What others do to the packet filter, as it happens.

use std::{
    fmt,
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};

use super::is_ours;
use crate::{
    Error,
    netlink::for_each_raw,
    nftables::{SUBSYSTEM, payload},
};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;

/// Room for a ruleset of some ten thousand rules that is replaced, in bytes.
const RECEIVE_QUEUE: usize = 4 * 1024 * 1024;
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The most datagrams that are read in one go.
const MAX_READS: usize = 256;

/// What has changed since the last time. Many changes are one event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RulesEvent {
    /// Somebody else changed or removed our table, or may have.
    pub ours: bool,
    /// Other tables have changed, or may have.
    pub others: bool,
}

/// The stream of events of the namespace in which it was opened.
pub struct RulesEvents {
    socket: TokioSocket,
    own_port: u32,
    buffer: Vec<u8>,
}

impl RulesEvents {
    /// Subscribes. What the socket with `own_port` ([`super::Nat::port`]) does is not reported. Must be
    /// called within a tokio runtime with I/O.
    pub fn open(own_port: u32) -> Result<Self, Error> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_QUEUE)?;
            socket.socket_mut().add_membership(GROUP)?;
            Ok(socket)
        };
        let socket = open().map_err(Error::Socket)?;
        Ok(Self { socket, own_port, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The next event. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<RulesEvent, Error> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<RulesEvent, Error>> {
        loop {
            let mut free = &mut self.buffer[..];
            let received = ready!(self.socket.poll_recv(context, &mut free));
            let length = RECEIVE_BUFFER - free.len();
            match self.read_burst(received.map(|()| length)) {
                Ok(event) if event == RulesEvent::default() => {}
                Ok(event) => return Poll::Ready(Ok(event)),
                Err(error) => return Poll::Ready(Err(Error::Socket(error))),
            }
        }
    }

    /// Reads a first datagram and those behind it.
    fn read_burst(&mut self, mut received: io::Result<usize>) -> io::Result<RulesEvent> {
        let mut event = RulesEvent::default();
        for _ in 0..MAX_READS {
            match received {
                Ok(length) => self.read(length, &mut event),
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    event = RulesEvent { ours: true, others: true };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            received = self.socket.socket_ref().recv(&mut &mut self.buffer[..], 0);
        }
        Ok(event)
    }

    fn read(&self, length: usize, event: &mut RulesEvent) {
        /// The mark behind each batch, which says nothing of its own.
        const NEW_GENERATION: u16 = SUBSYSTEM << 8 | 15;
        let read = for_each_raw(&self.buffer[..length], &mut |message| {
            let kind = message.message_type();
            if kind >> 8 != SUBSYSTEM
                || kind == NEW_GENERATION
                || message.port_number() == self.own_port
            {
                return Ok(());
            }
            match payload(&message) {
                Some((family, attributes)) if is_ours(family, attributes) => event.ours = true,
                _ => event.others = true,
            }
            Ok(())
        });
        if let Err(error) = read {
            tracing::debug!(%error, "an event of the packet filter is left out");
        }
    }
}

impl fmt::Debug for RulesEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RulesEvents").field("own_port", &self.own_port).finish_non_exhaustive()
    }
}
