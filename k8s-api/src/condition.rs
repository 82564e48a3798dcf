use serde::{Deserialize, Serialize};

/// What a node says about an object, in the shape of Kubernetes' conditions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is said, such as `Unsupported` or `Invalid`.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 316)))]
    pub kind: String,
    /// Whether it is so.
    pub status: ConditionStatus,
    /// Why, in one word.
    #[cfg_attr(feature = "schema", schemars(length(max = 1024)))]
    pub reason: String,
    /// Why, for a person.
    #[cfg_attr(feature = "schema", schemars(length(max = 32_768)))]
    pub message: String,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell (yet).
    Unknown,
}

impl Condition {
    /// A condition that holds.
    pub fn holds(kind: &str, reason: &str, message: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            status: ConditionStatus::True,
            reason: reason.to_owned(),
            message: message.into(),
        }
    }

    /// A condition that does not hold.
    pub fn fails(kind: &str, reason: &str, message: impl Into<String>) -> Self {
        Self { status: ConditionStatus::False, ..Self::holds(kind, reason, message) }
    }

    /// Whether it is bad news.
    pub fn is_bad(&self) -> bool {
        let bad = match BAD_WHEN_TRUE.contains(&self.kind.as_str()) {
            true => ConditionStatus::True,
            false => ConditionStatus::False,
        };
        self.status == bad
    }
}

/// Types of condition that are bad news when they hold; all others are when they do not.
const BAD_WHEN_TRUE: [&str; 6] = [
    "AddressPressure",
    "BlockLimitReached",
    "ClaimLost",
    "Conflicted",
    "MixedBlockSizes",
    "Unsupported",
];
