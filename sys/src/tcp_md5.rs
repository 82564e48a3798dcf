//! Signed TCP segments (RFC 2385): the key that a socket shares with one peer.

use std::{
    io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// The most bytes that a key has (`TCP_MD5SIG_MAXKEYLEN` of `linux/tcp.h`).
pub const MAX_KEY_LENGTH: usize = 80;

/// `struct tcp_md5sig` of `linux/tcp.h`.
#[repr(C)]
struct Md5Sig {
    /// The peer. Its port means nothing.
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: i32,
    key: [u8; MAX_KEY_LENGTH],
}

/// Sets the key of the segments that `socket` exchanges with `peer`, 1 to [`MAX_KEY_LENGTH`]
/// bytes; `None` takes it away. Unsigned segments of a peer with a key are dropped by the kernel,
/// and so are signed ones of a peer without.
///
/// On a listening socket it holds for connections to come; one that is accepted keeps the key that
/// it came with. On another one it has to be set before the connection is opened. Needs no
/// capability.
///
/// # Errors
/// `InvalidInput` for a key of another length. The kernel's own: `ENOPROTOOPT` if it is built
/// without `CONFIG_TCP_MD5SIG`.
pub fn set_tcp_md5_key(socket: impl AsFd, peer: IpAddr, key: Option<&[u8]>) -> io::Result<()> {
    let mut option = Md5Sig {
        address: storage(peer),
        flags: 0,
        prefix_length: 0,
        key_length: 0,
        interface: 0,
        key: [0; MAX_KEY_LENGTH],
    };
    if let Some(key) = key {
        let room = option.key.get_mut(..key.len()).filter(|room| !room.is_empty());
        room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(key);
        option.key_length = u16::try_from(key.len()).unwrap_or(0);
    }
    #[expect(clippy::cast_possible_truncation, reason = "216")]
    let length = mem::size_of::<Md5Sig>() as libc::socklen_t;
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads `length` bytes of
    // `option`, which is that long and initialised in all fields; it has no padding.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MD5SIG,
            (&raw const option).cast(),
            length,
        )
    };
    match (result, io::Error::last_os_error()) {
        (0, _) => Ok(()),
        // There was none to take away.
        (_, error) if key.is_none() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        (_, error) => Err(error),
    }
}

fn storage(peer: IpAddr) -> libc::sockaddr_storage {
    let address = SockaddrStorage::from(SocketAddr::new(peer, 0));
    // SAFETY: zero is a value of every field of this struct.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    // SAFETY: both are at least `len` bytes long, which is the length of an address of this family,
    // and they do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut storage).cast::<u8>(),
            address.len() as usize,
        );
    }
    storage
}
