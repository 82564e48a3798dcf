//! The status of objects: what the controller gathers from the nodes' own status objects.

use schemars::JsonSchema;

use crate::ConditionStatus;

/// What the cluster made of the object. The controller writes it, from what the nodes say in their
/// own status objects.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct ObjectStatus {
    /// What was accepted, what was refused, and why.
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    conditions: Option<Vec<StatusCondition>>,
    /// How many nodes say what.
    nodes: Option<NodeCounts>,
}

/// How many nodes say what about the object.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct NodeCounts {
    /// Nodes that use it as it stands.
    accepted: Option<u32>,
    /// Nodes that refuse it, or a part of it; the conditions say why.
    refused: Option<u32>,
}

/// One condition.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct StatusCondition {
    /// What is said, such as Accepted, Unsupported or Allocatable.
    #[schemars(rename = "type", length(min = 1, max = 316))]
    kind: String,
    /// Whether it is so.
    status: ConditionStatus,
    /// Why, in one word.
    #[schemars(length(max = 1024))]
    reason: String,
    /// Why, for a person.
    #[schemars(length(max = 32_768))]
    message: String,
    /// The generation of the object that this is about.
    #[schemars(range(min = 0))]
    observed_generation: Option<i64>,
    /// Since when it is so, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    last_transition_time: Option<String>,
}

/// What became of a BlockRequest, beside what is said of every object. The owner of the block
/// answers, and who asked says when the part came back.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct RequestStatus {
    #[schemars(flatten)]
    object: ObjectStatus,
    #[schemars(flatten)]
    outcome: crate::BlockRequestStatus,
}

/// What a node told, beside what the controller says of the object.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct NodeReportStatus {
    /// What of the object nobody fills, and why. The controller writes it.
    #[schemars(
        length(max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    conditions: Option<Vec<StatusCondition>>,
    #[schemars(flatten)]
    report: crate::NodeStatusReport,
}
