//! The versions of the CNI specification.

use std::fmt;

/// A version of the specification that this plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// ADD and DEL, one address per family.
    V0_1_0,
    /// VERSION.
    V0_2_0,
    /// Lists of plugins; results with interfaces and any number of addresses.
    V0_3_0,
    /// A name in the text of the specification corrected.
    V0_3_1,
    /// CHECK.
    V0_4_0,
    /// No family number beside an address.
    V1_0_0,
    /// GC and STATUS; the MTU in results.
    V1_1_0,
}

impl Version {
    /// All, oldest first.
    pub(crate) const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest.
    pub(crate) const NEWEST: Self = Self::V1_1_0;

    /// As `cniVersion` has it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a `cniVersion`; runtimes compare the exact strings, so does this.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
