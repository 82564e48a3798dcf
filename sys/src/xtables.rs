//! A table of iptables as kernels before nftables have it (`linux/netfilter_ipv4/ip_tables.h`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// The rules of a table, as the kernel keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XTable {
    /// By hook (`NF_INET_*`): where its rules begin in `entries`, in octets.
    pub hook_entry: [u32; 5],
    /// By hook: where the last of them is, its policy.
    pub underflow: [u32; 5],
    /// `struct ipt_entry` or `struct ip6t_entry`, one behind the other.
    pub entries: Vec<u8>,
}

/// Reads a table of iptables-legacy, or of ip6tables-legacy, in the calling thread's namespace. To ask for
/// a table that is not there makes it: see `/proc/thread-self/net/ip_tables_names` first.
pub fn read_xtable(ipv6: bool, table: &str) -> io::Result<XTable> {
    const NAME: usize = 32;
    /// `struct ipt_getinfo`: the name and 13 numbers.
    const INFO: usize = NAME + 13 * 4;
    /// `struct ipt_get_entries`: the name, the size, and what aligns the entries.
    const HEADER: usize = NAME + 8;
    const GET_INFO: i32 = 64;
    const GET_ENTRIES: i32 = 65;
    let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let raw = Some(SockProtocol::Raw);
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, raw)?;
    let mut info = vec![0; INFO];
    let name = table.as_bytes();
    if name.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    info[..name.len()].copy_from_slice(name);
    get(&socket, ipv6, GET_INFO, &mut info)?;
    let number = |index: usize| -> u32 {
        let at = NAME + index * 4;
        info.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b))
    };
    let size = number(12);
    let mut entries = vec![0; HEADER + size as usize];
    entries[..name.len()].copy_from_slice(name);
    entries[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    get(&socket, ipv6, GET_ENTRIES, &mut entries)?;
    entries.drain(..HEADER);
    Ok(XTable {
        hook_entry: std::array::from_fn(|hook| number(1 + hook)),
        underflow: std::array::from_fn(|hook| number(6 + hook)),
        entries,
    })
}

fn get(socket: impl AsFd, ipv6: bool, option: i32, buffer: &mut [u8]) -> io::Result<()> {
    let level = if ipv6 { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
    let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads and writes at most the
    // `length` bytes of `buffer`.
    let result = unsafe {
        libc::getsockopt(socket, level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
