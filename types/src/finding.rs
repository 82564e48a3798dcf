//! What a check of the addresses finds, in the words of the daemon's socket and of a report.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{AttachmentId, Prefix};

/// What is wrong with addresses, blocks or claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FindingKind {
    /// An address is allocated, and its pod is gone.
    LeakedAddress,
    /// The kernel has a pod with an address that is not allocated to it.
    InUseNotAllocated,
    /// An address is allocated to a pod, and the kernel does not lead there.
    MissingRoute,
    /// A link is left of an ADD that died.
    LeftoverLink,
    /// An address is allocated out of no block of the node.
    OutsideBlocks,
    /// An address is allocated twice.
    AllocatedTwice,
    /// The node has a block in its store that it has no claim for.
    BlockWithoutClaim,
    /// The node has a claim for a block that is not in its store.
    ClaimNotTaken,
    /// What the store counts in a block is not what it has records of.
    CountDiffers,
    /// The fill published in the datastore is not what the node wrote.
    PublishedDiffers,
    /// The node of a claim does not exist.
    ClaimWithoutNode,
    /// The pool of a claim does not exist.
    ClaimWithoutPool,
    /// A claim does not fit its pool: outside of it, or of another size.
    ClaimOutsidePool,
    /// Two claims share addresses.
    OverlappingClaims,
    /// A claim cannot be read.
    DamagedClaim,
    /// What a node asks of another's block cannot be read.
    DamagedRequest,
    /// Numbers of a node that does not exist, or of a block that is not its own.
    StaleNumbers,
    /// A block of a node of which that node says nothing.
    MissingNumbers,
    /// One of a later release.
    #[serde(other)]
    Other,
}

impl FindingKind {
    /// Its name in a report.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeakedAddress => "leakedAddress",
            Self::InUseNotAllocated => "inUseNotAllocated",
            Self::MissingRoute => "missingRoute",
            Self::LeftoverLink => "leftoverLink",
            Self::OutsideBlocks => "outsideBlocks",
            Self::AllocatedTwice => "allocatedTwice",
            Self::BlockWithoutClaim => "blockWithoutClaim",
            Self::ClaimNotTaken => "claimNotTaken",
            Self::CountDiffers => "countDiffers",
            Self::PublishedDiffers => "publishedDiffers",
            Self::ClaimWithoutNode => "claimWithoutNode",
            Self::ClaimWithoutPool => "claimWithoutPool",
            Self::ClaimOutsidePool => "claimOutsidePool",
            Self::OverlappingClaims => "overlappingClaims",
            Self::DamagedClaim => "damagedClaim",
            Self::DamagedRequest => "damagedRequest",
            Self::StaleNumbers => "staleNumbers",
            Self::MissingNumbers => "missingNumbers",
            Self::Other => "other",
        }
    }
}

/// One thing that a check finds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// On which node, or whose claim; `None` where it cannot be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The block, or the address as a prefix of its full length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Prefix>,
    /// The addresses that a release gives back together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentId>,
    /// The pod's namespace and name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The number of the assignment: what fences a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The link's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The claim's uid: what fences its removal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// False as long as it may be an ADD or a DEL that is under way.
    pub confirmed: bool,
    /// What is wrong, with names and numbers.
    pub message: String,
    /// What mends it, and who.
    pub remedy: String,
}

impl Finding {
    /// One of which nothing else is known.
    pub fn new(kind: FindingKind, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            kind,
            node: None,
            range: None,
            addresses: Vec::new(),
            pool: None,
            attachment: None,
            pod: None,
            sequence: None,
            link: None,
            uid: None,
            confirmed: true,
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}
