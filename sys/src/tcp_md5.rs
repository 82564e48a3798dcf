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

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        process::Command,
        thread,
    };

    use nix::{
        sched::{CloneFlags, unshare},
        sys::socket::{AddressFamily, SockFlag, SockType, connect, setsockopt, socket, sockopt},
    };

    use super::*;

    /// Connects to `listener` with a key, for at most a second.
    fn dial(listener: &TcpListener, key: Option<&[u8]>) -> io::Result<TcpStream> {
        let address = listener.local_addr()?;
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if let Some(key) = key {
            set_tcp_md5_key(&fd, address.ip(), Some(key))?;
        }
        // A refused segment is dropped without a word, so the SYN is sent again until this is over.
        setsockopt(&fd, sockopt::TcpUserTimeout, &1000)?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(TcpStream::from(fd))
    }

    /// Runs `f` in a network namespace of its own.
    pub(crate) fn apart(f: impl FnOnce() + Send + 'static) {
        let work = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("these tests need iproute2").success());
            f();
        };
        thread::spawn(work).join().unwrap();
    }

    #[test]
    fn only_who_has_the_key_gets_through() {
        apart(only_who_has_the_key);
    }

    fn only_who_has_the_key() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let peer = listener.local_addr().unwrap().ip();
            set_tcp_md5_key(&listener, peer, Some(b"s3cret")).unwrap();
            assert!(dial(&listener, None).is_err(), "{address}: without a key");
            assert!(dial(&listener, Some(b"another")).is_err(), "{address}: with a wrong key");
            let mut ours = dial(&listener, Some(b"s3cret")).unwrap();
            let (mut theirs, _) = listener.accept().unwrap();
            ours.write_all(b"hello").unwrap();
            let mut heard = [0; 5];
            theirs.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hello");

            // Another key is for connections to come.
            set_tcp_md5_key(&listener, peer, Some(b"changed")).unwrap();
            ours.write_all(b"still").unwrap();
            theirs.read_exact(&mut heard).unwrap();
            set_tcp_md5_key(&listener, peer, None).unwrap();
            set_tcp_md5_key(&listener, peer, None).unwrap();
            dial(&listener, None).unwrap();
        }
    }

    #[test]
    fn keys_have_a_length() {
        let family = AddressFamily::Inet;
        let listener = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let peer = IpAddr::from([127, 0, 0, 1]);
        set_tcp_md5_key(&listener, peer, Some(&[7; MAX_KEY_LENGTH])).unwrap();
        for key in [&[][..], &[7; MAX_KEY_LENGTH + 1]] {
            let error = set_tcp_md5_key(&listener, peer, Some(key)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
