//! What a service has to know of the host that it runs on.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::StoreError;

/// Name of the file in `runDir` that a daemon writes while it is ready: the id of the boot.
pub const HEARTBEAT: &str = "heartbeat";

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What tells this boot of the kernel from every other.
///
/// # Errors
/// The kernel does not say.
pub fn boot_id() -> Result<String, StoreError> {
    let text = fs::read_to_string(BOOT_ID);
    text.map(|id| id.trim().to_owned()).map_err(StoreError::BootId)
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
