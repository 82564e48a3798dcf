use twill_types::Family;

use super::{SAFI_UNICAST, afi, family_of, reader::Reader};

/// F in the flags of a family, for both capabilities.
const F: u8 = 0x80;

/// The graceful restart capability (RFC 4724 section 3, RFC 8538 section 2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GracefulRestart {
    /// R: the sender has restarted, and is not to be waited for.
    pub restarting: bool,
    /// N: NOTIFICATIONs other than a Hard Reset keep routes, too (RFC 8538).
    pub notification: bool,
    /// How long routes should be kept for it, in seconds, 0 to 4095.
    pub restart_time: u16,
    /// The families that it covers; of other families than ours nothing is kept.
    pub families: Vec<GracefulRestartFamily>,
}

/// One family of a [`GracefulRestart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GracefulRestartFamily {
    /// Which.
    pub family: Family,
    /// F: the sender kept its forwarding state over the restart.
    pub forwarding: bool,
}

/// One family of the long-lived graceful restart capability (RFC 9494 section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongLivedFamily {
    /// Which.
    pub family: Family,
    /// F: the sender kept its forwarding state over the restart.
    pub forwarding: bool,
    /// How long stale routes should be kept, in seconds, 0 to 16777215.
    pub stale_time: u32,
}

impl GracefulRestart {
    const R: u16 = 0x8000;
    const N: u16 = 0x4000;

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut head = self.restart_time & 0x0fff;
        if self.restarting {
            head |= Self::R;
        }
        if self.notification {
            head |= Self::N;
        }
        out.extend_from_slice(&head.to_be_bytes());
        for entry in &self.families {
            encode_family(entry.family, entry.forwarding, out);
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let head = reader.u16()?;
        let mut families = Vec::new();
        while !reader.is_empty() {
            let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
            if let Some(family) = family_of(afi, safi) {
                families.push(GracefulRestartFamily { family, forwarding: flags & F != 0 });
            }
        }
        Some(Self {
            restarting: head & Self::R != 0,
            notification: head & Self::N != 0,
            restart_time: head & 0x0fff,
            families,
        })
    }
}

impl LongLivedFamily {
    pub(super) fn encode(self, out: &mut Vec<u8>) {
        encode_family(self.family, self.forwarding, out);
        let [_, time @ ..] = self.stale_time.min(0x00ff_ffff).to_be_bytes();
        out.extend_from_slice(&time);
    }

    pub(super) fn decode_all(reader: &mut Reader<'_>) -> Option<Vec<Self>> {
        let mut families = Vec::new();
        while !reader.is_empty() {
            let (afi, safi, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
            let [high, middle, low] = reader.array::<3>()?;
            if let Some(family) = family_of(afi, safi) {
                let stale_time = u32::from_be_bytes([0, high, middle, low]);
                families.push(Self { family, forwarding: flags & F != 0, stale_time });
            }
        }
        Some(families)
    }
}

fn encode_family(family: Family, forwarding: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(&afi(family).to_be_bytes());
    out.extend_from_slice(&[SAFI_UNICAST, if forwarding { F } else { 0 }]);
}
