use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};

/// A four-octet autonomous system number (RFC 6793), 1 to 4294967295.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Asn(u32);

/// Why a text or a number is not an [`Asn`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AsnError {
    /// AS 0 is reserved (RFC 7607).
    #[error("AS number 0 is reserved (RFC 7607); use 1 to 4294967295")]
    Zero,
    /// Neither a decimal number nor the `high.low` form of RFC 5396.
    #[error("`{0}` is not an AS number; write 1 to 4294967295, or high.low such as 64512.1")]
    Syntax(String),
}

impl Asn {
    /// The placeholder in two-octet fields when the real number does not fit (RFC 6793 section 9).
    pub const TRANS: Asn = Asn(23456);

    /// Checks and wraps a number.
    pub const fn new(number: u32) -> Result<Self, AsnError> {
        if number == 0 { Err(AsnError::Zero) } else { Ok(Self(number)) }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl FromStr for Asn {
    type Err = AsnError;

    /// Reads asplain (`64512`) and asdot (`1.10`), RFC 5396.
    fn from_str(text: &str) -> Result<Self, AsnError> {
        let syntax = || AsnError::Syntax(text.to_owned());
        let number = match text.split_once('.') {
            Some((high, low)) => {
                let high: u16 = high.parse().map_err(|_| syntax())?;
                let low: u16 = low.parse().map_err(|_| syntax())?;
                u32::from(high) << 16 | u32::from(low)
            }
            None => text.parse().map_err(|_| syntax())?,
        };
        Self::new(number)
    }
}

impl fmt::Display for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AS{}", self.0)
    }
}

impl<'de> Deserialize<'de> for Asn {
    /// Accepts a number or a text, as Calico's resources do.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Asn;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an AS number from 1 to 4294967295")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Asn, E> {
                let number = u32::try_from(number)
                    .map_err(|_| E::custom(AsnError::Syntax(number.to_string())))?;
                Asn::new(number).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Asn, E> {
                let number = u64::try_from(number)
                    .map_err(|_| E::custom(AsnError::Syntax(number.to_string())))?;
                self.visit_u64(number)
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Asn, E> {
                // YAML reads an unquoted asdot number as a float, and 1.10 becomes 1.1.
                Err(E::custom(format_args!(
                    "{number} reads as a decimal fraction; put an AS number in dotted form in quotes"
                )))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Asn, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_plain_and_dotted_numbers() {
        for (text, number) in [("64512", 64512), ("1.10", 65546), ("4294967295", u32::MAX)] {
            assert_eq!(text.parse::<Asn>().unwrap().get(), number, "{text}");
        }
        for text in ["0", "", "-1", "4294967296", "1.65536", "a", "1.2.3", "0.0"] {
            assert!(text.parse::<Asn>().is_err(), "{text}");
        }
    }
}
