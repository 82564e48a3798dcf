//! Kernel settings for which there is no netlink message.

use std::{fs, io, path::Path};

use crate::Error;

/// Whether the kernel runs IPv6 at all (it does not with `ipv6.disable=1`).
pub(crate) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
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
    fs::write(path(key), value.to_string()).map_err(failed)?;
    Ok(Some(before))
}

fn path(key: &str) -> String {
    format!("/proc/sys/net/{key}")
}
