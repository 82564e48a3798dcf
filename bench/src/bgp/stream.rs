//! What the scripted peers send, made before the clock starts, and what they count.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use twill_bgp_proto::wire::{self, AsPath, Frame, MessageType, Origin, PathAttributes, Session};
use twill_types::{Asn, Family, Prefix};

/// The length of all prefixes: that of a block.
pub(crate) const LENGTH: u8 = 26;

/// The first address of the first prefix.
const FIRST: u32 = 0x0a00_0000;

/// What a peer announces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// How many /26, from 10.0.0.0 on.
    pub(crate) prefixes: u32,
    /// How many that stand next to each other have the same attributes.
    pub(crate) shared: u32,
}

/// A prefix by its number.
pub(crate) fn prefix(index: u32) -> Result<Prefix> {
    Ok(Prefix::new(destination(index).into(), LENGTH)?)
}

/// The first address of a prefix.
pub(crate) fn destination(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST + (index << (32 - u32::from(LENGTH))))
}

/// What a scripted peer negotiates.
pub(crate) fn session(internal: bool) -> Session {
    Session { four_octet_as: true, ipv4: true, internal, ..Session::default() }
}

/// Who announces, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Announcer {
    pub(crate) address: Ipv4Addr,
    pub(crate) asn: u32,
    /// The session is internal.
    pub(crate) internal: bool,
    /// How often its own AS number stands in its paths, beyond once.
    pub(crate) prepended: usize,
}

impl Announcer {
    fn attributes(&self, set: u32) -> Result<PathAttributes> {
        let own = Asn::new(self.asn)?;
        let before = if self.internal { 0 } else { 1 + self.prepended };
        // The last one tells the sets of attributes apart.
        let path = std::iter::repeat_n(own, before).chain([Asn::new(100_000 + set)?]);
        let next_hop = IpAddr::from(self.address);
        let mut attributes = PathAttributes::new(Origin::Igp, AsPath::sequence(path), next_hop);
        attributes.local_pref = self.internal.then_some(100);
        Ok(attributes)
    }

    /// UPDATEs that announce these prefixes, `shared` to a set of attributes.
    pub(crate) fn announce(&self, from: u32, table: Table) -> Result<Vec<u8>> {
        let session = session(self.internal);
        let mut bytes = Vec::new();
        for first in (0..table.prefixes).step_by(table.shared.max(1) as usize) {
            let last = (first + table.shared).min(table.prefixes);
            let some =
                (first..last).map(|index| prefix(from + index)).collect::<Result<Vec<_>>>()?;
            let attributes = self.attributes(first / table.shared.max(1))?;
            let fits = wire::encode_updates(&attributes, Family::V4, &some, &session, &mut bytes);
            ensure!(fits, "attributes do not fit a message");
        }
        Ok(bytes)
    }

    /// UPDATEs that withdraw them.
    pub(crate) fn withdraw(&self, from: u32, count: u32) -> Result<Vec<u8>> {
        let all = (from..from + count).map(prefix).collect::<Result<Vec<_>>>()?;
        let mut bytes = Vec::new();
        wire::encode_withdrawals(Family::V4, &all, &session(self.internal), &mut bytes);
        Ok(bytes)
    }
}

/// IPv4 prefixes of the UPDATEs that came in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) announced: u64,
    pub(crate) withdrawn: u64,
    pub(crate) updates: u64,
}

impl Tally {
    /// Counts the whole messages at the beginning of `bytes`; says how many octets these are.
    pub(crate) fn count(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut taken = 0;
        while let Some(frame) = wire::frame(&bytes[taken..], wire::MAX_MESSAGE)
            .map_err(|wrong| anyhow::anyhow!("a message that is wrong came in: {wrong}"))?
        {
            self.message(&frame)?;
            taken += frame.length;
        }
        Ok(taken)
    }

    fn message(&mut self, frame: &Frame<'_>) -> Result<()> {
        ensure!(
            frame.kind != MessageType::Notification,
            "the session was ended: {}",
            wire::Notification::decode(frame.body)
        );
        if frame.kind == MessageType::Update {
            self.updates += 1;
            let (withdrawn, rest) = field(frame.body)?;
            let (_attributes, announced) = field(rest)?;
            self.withdrawn += prefixes(withdrawn)?;
            self.announced += prefixes(announced)?;
        }
        Ok(())
    }
}

/// A field of the length that two octets tell, and what follows it (RFC 4271 section 4.3).
fn field(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>().context("an UPDATE ends early")?;
    rest.split_at_checked(u16::from_be_bytes(*length).into()).context("an UPDATE ends early")
}

fn prefixes(mut bytes: &[u8]) -> Result<u64> {
    let mut count = 0;
    while let Some((length, rest)) = bytes.split_first() {
        bytes = rest.get(usize::from(length.div_ceil(8))..).context("a prefix ends early")?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_counted() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let speaker = Announcer { address, asn: 64513, internal: false, prepended: 1 };
        let mut bytes = speaker.announce(5, Table { prefixes: 1001, shared: 10 }).unwrap();
        bytes.extend(speaker.withdraw(5, 999).unwrap());
        let mut tally = Tally::default();
        // The last message is not whole.
        let taken = tally.count(&bytes[..bytes.len() - 1]).unwrap();
        assert!(taken < bytes.len() && tally.withdrawn < 999);
        tally.count(&bytes[taken..]).unwrap();
        assert_eq!((tally.announced, tally.withdrawn), (1001, 999));
        assert_eq!(prefix(1).unwrap().to_string(), "10.0.0.64/26");
    }
}
