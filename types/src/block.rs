use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{Family, Prefix};

/// A block of addresses that one node owns: /20 to /32 in IPv4, /116 to /128 in IPv6, so never
/// more than 4096 addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Prefix", into = "Prefix")]
pub struct Block(Prefix);

/// Why a value is not a [`Block`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// A prefix of another size.
    #[error("{0} is no block: a block is /20 to /32 in IPv4 and /116 to /128 in IPv6")]
    Size(Prefix),
    /// Not the name of a claim.
    #[error("`{0}` is no claim name: it is 8 or 32 hexadecimal digits, `-`, and the length")]
    Name(String),
}

impl Block {
    /// Checks the size of a prefix.
    pub fn new(prefix: Prefix) -> Result<Self, BlockError> {
        let longest = prefix.family().bits();
        if (longest - 12..=longest).contains(&prefix.length()) {
            Ok(Self(prefix))
        } else {
            Err(BlockError::Size(prefix))
        }
    }

    /// The prefix.
    pub const fn prefix(self) -> Prefix {
        self.0
    }

    /// The family.
    pub const fn family(self) -> Family {
        self.0.family()
    }

    /// How many addresses it holds, 1 to 4096.
    #[expect(clippy::cast_possible_truncation, reason = "at most 12 host bits by construction")]
    pub fn size(self) -> u16 {
        self.0.size() as u16
    }

    /// The address at `offset` from the first one.
    pub fn nth(self, offset: u16) -> Option<IpAddr> {
        self.0.nth(u128::from(offset))
    }

    /// The offset of an address that lies inside.
    pub fn offset_of(self, address: IpAddr) -> Option<u16> {
        self.0.offset_of(address).and_then(|offset| u16::try_from(offset).ok())
    }

    /// The name of the object (or file) whose creation claims this block: fixed width, so that the
    /// same block has the same name everywhere.
    ///
    /// ```
    /// let block: twill_types::Block = "10.10.0.64/26".parse()?;
    /// assert_eq!(block.claim_name(), "0a0a0040-26");
    /// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    /// ```
    pub fn claim_name(self) -> String {
        match self.0.address() {
            IpAddr::V4(v4) => format!("{:08x}-{}", v4.to_bits(), self.0.length()),
            IpAddr::V6(v6) => format!("{:032x}-{}", v6.to_bits(), self.0.length()),
        }
    }

    /// Reads a name that [`Block::claim_name`] made.
    pub fn from_claim_name(name: &str) -> Result<Self, BlockError> {
        let bad = || BlockError::Name(name.to_owned());
        let (digits, length) = name.split_once('-').ok_or_else(bad)?;
        let address: IpAddr = match digits.len() {
            8 => Ipv4Addr::from_bits(u32::from_str_radix(digits, 16).map_err(|_| bad())?).into(),
            32 => Ipv6Addr::from_bits(u128::from_str_radix(digits, 16).map_err(|_| bad())?).into(),
            _ => return Err(bad()),
        };
        let length = length.parse().map_err(|_| bad())?;
        let block = Self::new(Prefix::new(address, length).map_err(|_| bad())?)?;
        // A second spelling (upper case, a plus sign) would be a second lock for one block.
        if block.claim_name() == name { Ok(block) } else { Err(bad()) }
    }
}

/// What a block is set aside for: the network of another main plugin (bridge, macvlan, ptp), which
/// treats it as a subnet with a gateway in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dedication {
    /// The network's name.
    pub network: String,
    /// Whether the block is announced to BGP peers.
    pub advertise: bool,
}

impl TryFrom<Prefix> for Block {
    type Error = BlockError;

    fn try_from(prefix: Prefix) -> Result<Self, BlockError> {
        Self::new(prefix)
    }
}

impl From<Block> for Prefix {
    fn from(block: Block) -> Self {
        block.0
    }
}

impl FromStr for Block {
    type Err = Box<dyn std::error::Error + Send + Sync>;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(text.parse()?)?)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_names_are_one_to_one() {
        for (block, name) in [
            ("10.10.0.64/26", "0a0a0040-26"),
            ("10.0.0.1/32", "0a000001-32"),
            ("fd00:10::40/122", "fd000010000000000000000000000040-122"),
        ] {
            let block: Block = block.parse().unwrap();
            assert_eq!(block.claim_name(), name);
            assert_eq!(Block::from_claim_name(name).unwrap(), block);
        }
        for name in
            ["0A0A0040-26", "0a0a0041-26", "0a0a0040-8", "a0a0040-26", "0a0a0040", "+a0a0040-26"]
        {
            assert!(Block::from_claim_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn only_block_sizes_are_blocks() {
        for text in ["10.0.0.0/19", "fd00::/115", "0.0.0.0/0"] {
            assert!(text.parse::<Block>().is_err(), "{text}");
        }
        assert_eq!("10.0.0.0/20".parse::<Block>().unwrap().size(), 4096);
        assert_eq!("fd00::/128".parse::<Block>().unwrap().size(), 1);
    }
}
