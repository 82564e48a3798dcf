use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Report;

/// How long a peer shall keep a node's routes over a restart (RFC 4724 section 3): whole seconds, 0 to
/// 4095. Written as Go writes times: `120s`, `2m`, `1h5m0s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartTime(u16);

/// Why a text is no [`RestartTime`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no restart time; write whole seconds up to 4095s, such as 120s or 2m")]
pub struct RestartTimeError(String);

impl RestartTime {
    /// The longest that fits the capability, in seconds.
    const LONGEST: u32 = 4095;

    /// In seconds, 0 to 4095.
    pub const fn seconds(self) -> u16 {
        self.0
    }
}

/// The sum of numbers with their units; `None` if it is none, or does not fit.
fn seconds(text: &str) -> Option<u32> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut sum: u32 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, units) = rest.split_at(digits);
        let mut letters = units.chars();
        let scale = match letters.next()? {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        rest = letters.as_str();
        sum = sum.checked_add(number.parse::<u32>().ok()?.checked_mul(scale)?)?;
    }
    (!text.is_empty()).then_some(sum)
}

impl FromStr for RestartTime {
    type Err = RestartTimeError;

    fn from_str(text: &str) -> Result<Self, RestartTimeError> {
        let fits = seconds(text).filter(|seconds| *seconds <= Self::LONGEST);
        let time = fits.and_then(|seconds| u16::try_from(seconds).ok()).map(Self);
        time.ok_or_else(|| RestartTimeError(text.to_owned()))
    }
}

impl fmt::Display for RestartTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0)
    }
}

impl Serialize for RestartTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RestartTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Long-lived stale times (RFC 9494), in seconds, 0 to 16777215. A family with a time, also with 0,
/// keeps the peer's routes for as long as the peer asks; without one it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LongLivedRestartTime {
    /// Of IPv4 routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 16_777_215)))]
    pub ipv4: Option<u32>,
    /// Of IPv6 routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(max = 16_777_215)))]
    pub ipv6: Option<u32>,
}

impl LongLivedRestartTime {
    /// The longest time that fits the capability, in seconds (RFC 9494 section 3).
    pub const LONGEST: u32 = 0x00ff_ffff;

    pub(super) fn check(self, path: &str, report: &mut Report) {
        for (family, time) in [("ipv4", self.ipv4), ("ipv6", self.ipv6)] {
            if time.is_some_and(|time| time > Self::LONGEST) {
                let longest = Self::LONGEST;
                report.error(
                    &format!("{path}.{family}"),
                    format!("a long-lived stale time is 0 to {longest} seconds"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_go_writes_them() {
        for (text, seconds) in
            [("120s", 120), ("2m0s", 120), ("1h8m15s", 4095), ("0s", 0), ("0", 0), ("2m", 120)]
        {
            let time: RestartTime = text.parse().unwrap();
            assert_eq!(time.seconds(), seconds, "{text}");
            assert_eq!(time.to_string().parse(), Ok(time));
        }
        for text in ["", "s", "120", "4096s", "-1s", "1.5s", "100ms", "2m s", "99999999999s", "1d"]
        {
            assert!(text.parse::<RestartTime>().is_err(), "{text}");
        }
    }
}
