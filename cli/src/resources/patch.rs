//! Changes of a part of an object.

use clap::ValueEnum;
use serde_json::Value;

/// How a patch is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PatchType {
    /// The fields that are to change; null removes one (RFC 7386).
    #[default]
    Merge,
    /// A list of operations (RFC 6902).
    Json,
}

/// A patch.
#[derive(Debug, Clone)]
pub(crate) enum Patch {
    /// Fields.
    Merge(Value),
    /// Operations.
    Json(json_patch::Patch),
}

/// A patch is wrong, or does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PatchError {
    /// No YAML, and no JSON either.
    #[error("the patch is neither JSON nor YAML")]
    Text(#[source] serde_saphyr::Error),
    /// A scalar.
    #[error(
        "a merge patch has the fields that are to change, such as {{\"spec\": {{\"disabled\": true}}}}"
    )]
    NotFields,
    /// No operations.
    #[error(
        "a JSON patch is a list of operations, such as \
         [{{\"op\": \"replace\", \"path\": \"/spec/disabled\", \"value\": true}}]"
    )]
    NotOperations(#[source] serde_json::Error),
    /// An operation fails.
    #[error("the patch does not fit the object")]
    Fit(#[source] json_patch::PatchError),
}

impl Patch {
    /// Reads a patch in JSON or YAML.
    pub(crate) fn parse(text: &str, kind: PatchType) -> Result<Self, PatchError> {
        let value: Value = serde_saphyr::from_str(text).map_err(PatchError::Text)?;
        match kind {
            PatchType::Merge if value.is_object() => Ok(Self::Merge(value)),
            PatchType::Merge => Err(PatchError::NotFields),
            PatchType::Json => {
                serde_json::from_value(value).map(Self::Json).map_err(PatchError::NotOperations)
            }
        }
    }

    /// What comes of an object.
    pub(crate) fn apply(&self, before: &Value) -> Result<Value, PatchError> {
        let mut after = before.clone();
        match self {
            Self::Merge(fields) => json_patch::merge(&mut after, fields),
            Self::Json(operations) => {
                json_patch::patch(&mut after, operations).map_err(PatchError::Fit)?;
            }
        }
        Ok(after)
    }
}
