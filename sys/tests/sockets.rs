//! Options of sockets, seen by what goes through them. Needs root and iproute2: each test has a network
//! namespace of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends with the first surprise")]

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
    },
};
use twill_sys::{MAX_KEY_LENGTH, send_highest_ttl, set_tcp_md5_key, set_ttl_security};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// Runs `f` in a network namespace of its own.
fn apart(f: impl FnOnce() + Send + 'static) {
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.expect("these tests need iproute2").success());
        f();
    };
    thread::spawn(work).join().unwrap();
}

/// Connects to `listener` from a socket that `prepare` has set up, for at most a second.
fn dial(
    listener: &TcpListener,
    prepare: impl FnOnce(&OwnedFd, SocketAddr) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let address = listener.local_addr()?;
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let ours = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    prepare(&ours, address)?;
    // A refused segment is dropped without a word, so the SYN is sent again until this is over.
    setsockopt(&ours, sockopt::TcpUserTimeout, &1000)?;
    connect(ours.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(TcpStream::from(ours))
}

/// With a key, or without.
fn dial_signed(listener: &TcpListener, key: Option<&[u8]>) -> io::Result<TcpStream> {
    dial(listener, |ours, address| match key {
        Some(key) => set_tcp_md5_key(ours, address.ip(), Some(key)),
        None => Ok(()),
    })
}

#[test]
fn only_who_has_the_key_gets_through() {
    apart(|| LOOPBACKS.into_iter().for_each(only_who_has_the_key));
}

fn only_who_has_the_key(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    let peer = listener.local_addr().unwrap().ip();
    set_tcp_md5_key(&listener, peer, Some(b"s3cret")).unwrap();
    assert!(dial_signed(&listener, None).is_err(), "{address}: without a key");
    assert!(dial_signed(&listener, Some(b"another")).is_err(), "{address}: with a wrong key");
    let mut ours = dial_signed(&listener, Some(b"s3cret")).unwrap();
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
    dial_signed(&listener, None).unwrap();
}

#[test]
fn keys_have_a_length() {
    let ours = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let peer = IpAddr::from([192, 0, 2, 1]);
    set_tcp_md5_key(&ours, peer, Some(&[7; MAX_KEY_LENGTH])).unwrap();
    for key in [&[][..], &[7; MAX_KEY_LENGTH + 1]] {
        let error = set_tcp_md5_key(&ours, peer, Some(key)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}

/// The loopback is no link on the way, so the usual TTL looks like one from afar.
#[test]
fn packets_from_afar_are_dropped() {
    apart(|| {
        for address in LOOPBACKS {
            let listener = TcpListener::bind(address).unwrap();
            let near = || dial(&listener, |ours, to| set_ttl_security(ours, to.is_ipv6(), 1));
            assert!(near().is_err(), "{address}: an answer with a TTL of 64 is taken");
            send_highest_ttl(&listener, address.contains("::")).unwrap();
            near().unwrap();
        }
    });
}
