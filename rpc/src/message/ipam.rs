use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use twill_types::{AttachmentId, Block, Dedication, Finding, Prefix};

/// Body of [`Request::IpamFind`](super::Request::IpamFind).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IpamFind {
    /// What is this address?
    Address(IpAddr),
    /// What does this attachment have?
    Attachment(AttachmentId),
}

/// Body of [`Response::IpamFound`](super::Response::IpamFound).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamFound {
    /// Of the address that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressStatus>,
    /// Who has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
}

/// What the node says of one address. Part of [`IpamFound`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressStatus {
    /// Its block, if the node has that.
    pub block: Option<Block>,
    /// What the block is set aside for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedication: Option<Dedication>,
    /// Nobody has it any more, and its link is not gone yet.
    pub held: bool,
    /// For how many seconds it rests yet.
    pub resting: Option<u64>,
    /// The range that reserves it.
    pub reserved: Option<Prefix>,
    /// The part of a block that it lies in and that another node has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lent: Option<Block>,
}

/// Who has an address. Part of [`IpamFound`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Who.
    pub attachment: AttachmentId,
    /// All addresses that it has.
    pub addresses: Vec<IpAddr>,
    /// Number of the ADD.
    pub sequence: u64,
    /// Pod namespace and name.
    pub pod: Option<String>,
    /// Path of its network namespace, where it is known.
    pub netns: String,
    /// Whether another main plugin made its interface.
    pub foreign: bool,
    /// Since when, milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Whether it lives.
    pub life: Life,
}

/// Whether a pod lives, by the evidence that the node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Life {
    /// It has its link, or its network namespace.
    Lives,
    /// It has neither.
    Gone,
    /// Nothing can be told from here.
    Unclear,
}

/// Body of [`Request::IpamRelease`](super::Request::IpamRelease).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamRelease {
    /// Whose addresses, each with the number of the ADD that is meant: nothing is done where there
    /// is another one by now.
    pub wanted: Vec<Allocation>,
    /// Also if the pod lives.
    pub force: bool,
}

/// Body of [`Response::IpamReleased`](super::Response::IpamReleased).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamReleased {
    /// What came of each, in the order of the request.
    pub outcomes: Vec<ReleaseOutcome>,
}

/// What came of a release by hand. Part of [`IpamReleased`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseOutcome {
    /// Whose addresses.
    pub attachment: AttachmentId,
    /// The pod's namespace and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What was given back.
    pub addresses: Vec<IpAddr>,
    /// Why nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Body of [`Request::IpamReleaseNode`](super::Request::IpamReleaseNode).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamReleaseNode {
    /// The node that is gone.
    pub node: String,
    /// Also if it has a Node, or its daemon seems to live.
    pub force: bool,
}

/// Body of [`Response::IpamNodeReleased`](super::Response::IpamNodeReleased).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamNodeReleased {
    /// Blocks that anybody can have now.
    pub blocks: Vec<Block>,
    /// Parts of others' blocks that their owners take back.
    pub parts: Vec<Block>,
    /// Blocks that stay, since others have parts of them.
    pub lent: Vec<Block>,
    /// Requests for parts, by the node or to it, that nobody waits for any more.
    #[serde(default)]
    pub requests: u32,
}

/// Body of [`Request::IpamCheck`](super::Request::IpamCheck).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamCheckRequest {
    /// Mend what can be mended here.
    pub fix: bool,
}

/// Body of [`Response::IpamChecked`](super::Response::IpamChecked).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamChecked {
    /// What is wrong (after mending).
    pub findings: Vec<Finding>,
    /// What was mended, each with what was done as its remedy.
    pub fixed: Vec<Finding>,
    /// How many allocations were looked at.
    pub records: u32,
    /// How many links of pods.
    pub links: u32,
    /// How many blocks of this node.
    pub blocks: u32,
}

/// The addresses of one ADD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Allocation {
    /// Whose.
    pub attachment: AttachmentId,
    /// Number of the ADD.
    pub sequence: u64,
}
