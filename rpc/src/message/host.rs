//! What decides on a host whether pods' packets get through.

use serde::{Deserialize, Serialize};

/// Body of [`super::Response::NodeChecked`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeChecked {
    /// Everything that was looked at.
    pub checks: Vec<HostCheck>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostCheck {
    /// Its name, for programs: `forwarding`, `forward-policy`, ...
    pub name: String,
    /// How it is.
    pub outcome: HostOutcome,
    /// What was found, with its effect.
    pub detail: String,
    /// What to do about it; empty where nothing needs to be done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostOutcome {
    /// As it should be.
    Ok,
    /// It may cost packets, or costs something else.
    Warning,
    /// It costs packets, or what pods are promised.
    Failed,
}
