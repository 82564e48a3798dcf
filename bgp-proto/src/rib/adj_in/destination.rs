use twill_types::{Family, Prefix};

use super::{
    paths::Paths,
    {Id, Slab},
};

/// In the place of the length of an IPv4 prefix.
const IPV6: u8 = u8::MAX;

/// All paths to one prefix, in the order in which the peers first announced it. There are as many as there
/// are prefixes, so it is small: 24 octets.
#[derive(Debug)]
pub(in crate::rib) struct Destination {
    /// The IPv4 prefix, or the name of the IPv6 one among [`LongPrefixes`].
    bits: u32,
    length: u8,
    /// It is in [`super::AdjRibsIn::dirty`].
    pub(super) dirty: bool,
    pub(in crate::rib) paths: Paths,
}

/// The IPv6 prefixes of destinations.
pub(super) type LongPrefixes = Slab<Prefix>;

impl Destination {
    /// One without a path.
    pub(super) fn new(prefix: Prefix, long: &mut LongPrefixes) -> Self {
        let (bits, length) = match prefix.address() {
            std::net::IpAddr::V4(v4) => (v4.to_bits(), prefix.length()),
            std::net::IpAddr::V6(_) => (long.insert(prefix).number(), IPV6),
        };
        Self { bits, length, dirty: false, paths: Paths::default() }
    }

    pub(super) const fn family(&self) -> Family {
        if self.length == IPV6 { Family::V6 } else { Family::V4 }
    }

    /// `None` only if the IPv6 prefix is gone already.
    pub(super) fn prefix(&self, long: &LongPrefixes) -> Option<Prefix> {
        match self.long() {
            Some(id) => long.get(id).copied(),
            None => {
                Prefix::masked(std::net::Ipv4Addr::from_bits(self.bits).into(), self.length).ok()
            }
        }
    }

    /// The name of its IPv6 prefix, which goes with it.
    pub(super) fn long(&self) -> Option<Id> {
        if self.length == IPV6 { Id::of_number(self.bits) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_knows_its_prefix() {
        assert_eq!(size_of::<Option<Destination>>(), 24);
        let mut long = LongPrefixes::default();
        for text in ["0.0.0.0/0", "10.1.2.0/24", "255.255.255.255/32", "::/0", "2001:db8::1/128"] {
            let prefix: Prefix = text.parse().unwrap();
            let destination = Destination::new(prefix, &mut long);
            assert_eq!(destination.prefix(&long), Some(prefix));
            assert_eq!(destination.family(), prefix.family());
        }
        assert_eq!(long.len(), 2);
    }
}
