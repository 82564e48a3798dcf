use std::{
    cmp::Ordering,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "IPv4")]
    V4,
    /// IPv6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bits in an address: 32 or 128.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A network prefix without host bits. Ordered by family, address, then length, so that a covering
/// prefix sorts directly before what it covers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

// As it would be derived, but by numbers: every table of routes is searched by it, and `IpAddr`
// compares octet by octet.
impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let by_address = a.to_bits().cmp(&b.to_bits());
                by_address.then_with(|| self.length.cmp(&other.length))
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let by_address = a.to_bits().cmp(&b.to_bits());
                by_address.then_with(|| self.length.cmp(&other.length))
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => Ordering::Less,
            (IpAddr::V6(_), IpAddr::V4(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Why a text or a pair is not a [`Prefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not of the form `address/length`.
    #[error("`{0}` is not a prefix; write address/length, such as 10.10.0.0/20 or fd00:10::/48")]
    Syntax(String),
    /// The length is more than the family has bits.
    #[error("prefix length {length} is too long for {address}; {family} allows 0 to {}", family.bits())]
    Length {
        /// The address as given.
        address: IpAddr,
        /// The length as given.
        length: u8,
        /// Its family.
        family: Family,
    },
    /// Bits behind the prefix length are set.
    #[error("{address}/{length} has host bits set; write {masked}")]
    HostBits {
        /// The address as given.
        address: IpAddr,
        /// The length as given.
        length: u8,
        /// The prefix that was probably meant.
        masked: Prefix,
    },
}

impl Prefix {
    /// A prefix from its parts; host bits are an error.
    ///
    /// ```
    /// use twill_types::{Prefix, PrefixError};
    ///
    /// let pool: Prefix = "10.10.0.0/20".parse()?;
    /// assert!(pool.covers("10.10.0.64/26".parse()?));
    /// let error = "10.10.0.65/26".parse::<Prefix>().unwrap_err();
    /// assert_eq!(error.to_string(), "10.10.0.65/26 has host bits set; write 10.10.0.64/26");
    /// # Ok::<(), PrefixError>(())
    /// ```
    pub fn new(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let masked = Self::masked(address, length)?;
        if masked.address == address {
            Ok(masked)
        } else {
            Err(PrefixError::HostBits { address, length, masked })
        }
    }

    /// The prefix of this length that holds `address`.
    pub fn masked(address: IpAddr, length: u8) -> Result<Self, PrefixError> {
        let family = Family::of(address);
        if length > family.bits() {
            return Err(PrefixError::Length { address, length, family });
        }
        let masked = from_bits(family, to_bits(address) & mask(family, length));
        Ok(Self { address: masked, length })
    }

    /// One that is known to be valid.
    pub(crate) const fn from_v4_bits(bits: u32, length: u8) -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::from_bits(bits)), length }
    }

    /// One that is known to be valid.
    pub(crate) const fn from_v6_bits(bits: u128, length: u8) -> Self {
        Self { address: IpAddr::V6(Ipv6Addr::from_bits(bits)), length }
    }

    /// The prefix that holds this one address: /32 or /128.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, length: Family::of(address).bits() }
    }

    /// `0.0.0.0/0` or `::/0`.
    pub const fn default_route(family: Family) -> Self {
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { address, length: 0 }
    }

    /// The first address.
    pub const fn address(self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits.
    pub const fn length(self) -> u8 {
        self.length
    }

    /// The family.
    pub const fn family(self) -> Family {
        Family::of(self.address)
    }

    /// The last address.
    pub fn last(self) -> IpAddr {
        let family = self.family();
        from_bits(family, to_bits(self.address) | !mask(family, self.length) & all(family))
    }

    /// How many addresses it holds; `u128::MAX` stands for the 2^128 of `::/0`.
    pub fn size(self) -> u128 {
        1u128.checked_shl(u32::from(self.family().bits() - self.length)).unwrap_or(u128::MAX)
    }

    /// The address at `offset` from the first, if it lies inside.
    pub fn nth(self, offset: u128) -> Option<IpAddr> {
        (offset < self.size()).then(|| from_bits(self.family(), to_bits(self.address) + offset))
    }

    /// The offset of `address` from the first address, if it lies inside.
    pub fn offset_of(self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| to_bits(address) - to_bits(self.address))
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: IpAddr) -> bool {
        self.covers(Self::host(address))
    }

    /// Whether every address of `other` lies inside (a prefix covers itself).
    pub fn covers(self, other: Self) -> bool {
        self.family() == other.family()
            && self.length <= other.length
            && to_bits(other.address) & mask(self.family(), self.length) == to_bits(self.address)
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// How many prefixes of `length` it divides into, and which one is at `index`.
    /// `None` when `length` is shorter than this prefix or the index is past the end.
    pub fn subnet(self, length: u8, index: u128) -> Option<Self> {
        let family = self.family();
        if length < self.length || length > family.bits() {
            return None;
        }
        let count = 1u128.checked_shl(u32::from(length - self.length)).unwrap_or(u128::MAX);
        if index >= count {
            return None;
        }
        let step = index.checked_shl(u32::from(family.bits() - length)).unwrap_or(0);
        Some(Self { address: from_bits(family, to_bits(self.address) + step), length })
    }
}

const fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits() as u128,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an IPv4 value has 32 bits by construction")]
const fn from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

const fn all(family: Family) -> u128 {
    match family {
        Family::V4 => u32::MAX as u128,
        Family::V6 => u128::MAX,
    }
}

fn mask(family: Family, length: u8) -> u128 {
    let host_bits = u32::from(family.bits() - length);
    u128::MAX.checked_shl(host_bits).unwrap_or(0) & all(family)
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let network: IpNetwork = match text.contains('/') {
            true => text.parse().map_err(|_| fault(text))?,
            // `IpNetwork` reads a bare address as a host prefix; in a manifest that is a slip.
            false => return Err(PrefixError::Syntax(text.to_owned())),
        };
        Self::new(network.ip(), network.prefix())
    }
}

/// What is wrong with a text that is no network.
fn fault(text: &str) -> PrefixError {
    let parts = text.split_once('/').and_then(|(address, length)| {
        Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?))
    });
    match parts {
        Some((address, length)) if length > Family::of(address).bits() => {
            PrefixError::Length { address, length, family: Family::of(address) }
        }
        _ => PrefixError::Syntax(text.to_owned()),
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn refuses_what_is_not_a_masked_prefix() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/24", "fd00::1/64", "x/8", "10.0.0.0/"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        assert_eq!(
            "10.0.0.1/24".parse::<Prefix>().unwrap_err().to_string(),
            "10.0.0.1/24 has host bits set; write 10.0.0.0/24"
        );
    }

    #[test]
    fn knows_its_edges() {
        assert_eq!(prefix("10.10.0.0/20").last().to_string(), "10.10.15.255");
        assert_eq!(prefix("0.0.0.0/0").last().to_string(), "255.255.255.255");
        assert_eq!(prefix("::/0").size(), u128::MAX);
        assert_eq!(prefix("10.10.0.0/20").subnet(26, 63), Some(prefix("10.10.15.192/26")));
        assert_eq!(prefix("10.10.0.0/20").subnet(26, 64), None);
        assert_eq!(prefix("10.0.0.0/31").nth(2), None);
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        prop_oneof![
            (any::<u32>(), 0..=32u8).prop_map(|(a, l)| Prefix::masked(
                Ipv4Addr::from_bits(a).into(),
                l
            )
            .unwrap()),
            (any::<u128>(), 0..=128u8).prop_map(|(a, l)| Prefix::masked(
                Ipv6Addr::from_bits(a).into(),
                l
            )
            .unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn text_form_round_trips(p in any_prefix()) {
            prop_assert_eq!(p.to_string().parse::<Prefix>().unwrap(), p);
        }

        #[test]
        fn order_is_that_of_family_address_and_length(a in any_prefix(), b in any_prefix()) {
            let key = |p: Prefix| (p.family(), p.address(), p.length());
            prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
            let part = Prefix::masked(a.last(), a.family().bits()).unwrap();
            prop_assert_eq!(a.cmp(&part), key(a).cmp(&key(part)));
        }

        #[test]
        fn covering_is_the_same_as_holding_both_ends(a in any_prefix(), b in any_prefix()) {
            let ends = a.contains(b.address()) && a.contains(b.last());
            prop_assert_eq!(a.covers(b), ends);
            prop_assert_eq!(a.overlaps(b), a.contains(b.address()) || b.contains(a.address()));
        }

        #[test]
        fn offsets_invert_nth(p in any_prefix(), n in any::<u128>()) {
            let n = if p.size() == u128::MAX { n } else { n % p.size() };
            prop_assert_eq!(p.offset_of(p.nth(n).unwrap()), Some(n));
        }
    }
}
