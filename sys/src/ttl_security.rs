//! How far away a peer may be (RFC 5082, the Generalized TTL Security Mechanism).

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::socket::{setsockopt, sockopt};

/// What packets to peers with TTL security start with.
const HIGHEST: u8 = 255;

/// Sends the packets of a socket with the highest TTL (hop limit), so that a peer can tell how far
/// they came. A listening socket hands it on to what it accepts.
pub fn send_highest_ttl(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    let ttl = i32::from(HIGHEST);
    let set = match ipv6 {
        false => setsockopt(&socket, sockopt::Ipv4Ttl, &ttl),
        true => setsockopt(&socket, sockopt::Ipv6Ttl, &ttl),
    };
    set.map_err(io::Error::from)
}

/// [`send_highest_ttl`], and has the kernel drop every packet of a connected (or connecting) socket
/// that came over more than `hops` links, 1 to 255: on one link nobody else can be the sender.
pub fn set_ttl_security(socket: impl AsFd, ipv6: bool, hops: u8) -> io::Result<()> {
    send_highest_ttl(&socket, ipv6)?;
    let lowest = i32::from(HIGHEST) + 1 - i32::from(hops.max(1));
    let (level, name) = match ipv6 {
        false => (libc::IPPROTO_IP, libc::IP_MINTTL),
        true => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
    };
    #[expect(clippy::cast_possible_truncation, reason = "four")]
    let length = mem::size_of::<i32>() as libc::socklen_t;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads the four bytes of
    // `lowest`.
    let result =
        unsafe { libc::setsockopt(socket, level, name, (&raw const lowest).cast(), length) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
