//! Kernel settings for which there is no netlink message.

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::Error;

/// Whether the kernel runs IPv6 at all (it does not with `ipv6.disable=1`).
pub(crate) fn has_ipv6() -> bool {
    // Quicker than a look into /proc/sys, whose entries are found anew each time.
    let made = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    !matches!(made, Err(Errno::EAFNOSUPPORT))
}

/// Reads `net/<key>` in the calling thread's namespace; `None` if there is no such setting.
pub(crate) fn read(key: &str) -> io::Result<Option<u32>> {
    match fs::read_to_string(path(key)) {
        Ok(text) => text.trim().parse().map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets `net/<key>`, unless it has this value already; answers the value that it had before if it
/// was changed.
pub(crate) fn ensure(key: &str, value: u32) -> Result<Option<u32>, Error> {
    let failed = |source| Error::Sysctl { path: path(key).into(), value, source };
    let before =
        read(key).map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    if before == value {
        return Ok(None);
    }
    write(key, value).map_err(failed)?;
    Ok(Some(before))
}

/// Sets `net/<key>` without a look at what it is. Where it cannot be written (a read-only `/proc/sys`
/// of a container), it is enough that it has this value already.
pub(crate) fn set(key: &str, value: u32) -> Result<(), Error> {
    match write(key, value) {
        Ok(()) => Ok(()),
        Err(_) if read(key).is_ok_and(|found| found == Some(value)) => Ok(()),
        Err(source) => Err(Error::Sysctl { path: path(key).into(), value, source }),
    }
}

/// `/proc/sys` is read-only in a container: the host's is mounted elsewhere (`conf/install/`). Both show the
/// network namespace of who looks.
fn write(key: &str, value: u32) -> io::Result<()> {
    const MOUNTED: &str = "/host/proc/sys/net";
    match fs::write(path(key), value.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            match fs::write(Path::new(MOUNTED).join(key), value.to_string()) {
                Err(other) if other.kind() == io::ErrorKind::NotFound => Err(error),
                written => written,
            }
        }
        written => written,
    }
}

fn path(key: &str) -> String {
    format!("/proc/sys/net/{key}")
}
